//! The built binary, end to end: real sockets, real clients, and a Secrets Manager that counts.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod agent;
mod audit;
mod clients;
mod command_line;
mod commands;
mod contract;
mod doctor;
mod documentation;
mod exec;
mod faults;
mod flyte;
mod freshness;
mod hostile;
mod identity;
mod init;
mod kubernetes;
mod memory;
mod monitoring;
mod native_api;
mod openapi;
mod operations;
mod process;
mod projection;
mod references;
mod reload;
mod sdk;
mod status;
mod systemd;
mod takeover;
mod upstream;
mod waiting;

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");
