//! smcached: a node-local cache daemon for AWS Secrets Manager.
//!
//! One way in, one way out:
//!
//! ```text
//! net (listener) -> server (guards -> api: parse, resolve) -> access (gate) -> cache -> (store | flight -> source)
//!                                                             refresher -> flight -> source
//! ```
//!
//! - [`secret`]: the words of the domain; imports nothing of ours.
//! - [`source`]: where secrets come from, and what can go wrong there.
//! - [`cache`]: freshness, single flight, the refresher.
//! - [`access`]: who may come in and read what; knows no HTTP.
//! - [`net`]: sockets and connections; knows no secrets.
//! - [`server`], [`ops`]: the routes of the secret listeners and of the ops listener.
//! - [`projection`]: secrets as files.
//! - [`lifecycle`]: readiness, supervised tasks, signals, drain.
//! - [`takeover`]: from one process to the next, with what is open and what is held.
//! - [`audit`]: who read what, as a trail of lines.
//! - [`config`], [`metrics`], [`telemetry`]: what is configured, counted and logged; [`document`]: strict
//!   reading of TOML files; [`file_watch`]: noticing that a file changed; [`units`]: durations and sizes;
//!   [`atomic_file`]: files that nobody sees half done; [`folder`]: directories that nobody can swap; [`hardening`]: what keeps
//!   memory to the process.
//! - `fuzzing`: what fuzzers call, compiled for them and for tests only.
//! - [`app`]: builds the parts and owns the order of start and end; [`cli`]: the commands.
//!
//! Imports point one way; `tests/architecture.rs` holds the map and fails on any other arrow.

pub mod access;
pub mod app;
pub mod atomic_file;
pub mod audit;
pub mod cache;
pub mod cli;
pub mod config;
pub mod document;
pub mod file_watch;
pub mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod hardening;
pub mod lifecycle;
pub mod metrics;
pub mod net;
pub mod ops;
pub mod projection;
pub mod secret;
pub mod server;
pub mod source;
pub mod takeover;
pub mod telemetry;
pub mod units;
