//! How the daemon takes to much of everything, and how it begins: `cargo bench --bench scale [-- memory|churn|start]`.
//!
//! `memory`: what a held secret takes, and an open connection. `churn`: what readers feel over 10,000 connections while
//! all that is held is refreshed and a thousand secrets a second are rotated. `start`: how soon the daemon listens and is
//! ready, how large it is, and how many crates it is made of. Each prints a table and writes
//! `target/bench/scale-<part>.json`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]
#![allow(
    clippy::disallowed_methods,
    reason = "time passes, threads sleep, and the environment names what else is started"
)]
#![allow(clippy::cast_precision_loss)]

mod many;
#[path = "../common/paced.rs"]
mod paced;
mod start;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::fs;
use std::process::ExitCode;

use serde_json::Value;

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

fn main() -> ExitCode {
    let parts: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let parts: Vec<&str> = match &parts[..] {
        [] => vec!["memory", "churn", "start"],
        parts => parts.iter().map(String::as_str).collect(),
    };
    smcached::net::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for part in parts {
        match part {
            "memory" => runtime.block_on(many::memory()),
            "churn" => runtime.block_on(many::churn()),
            "start" => start::run(&runtime),
            other => {
                println!("unknown part {other:?}; there are memory, churn and start");
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::SUCCESS
}

/// Writes `target/bench/scale-<part>.json`.
fn write(part: &str, figures: &Value) {
    let folder = support::in_repository("target/bench");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(format!("scale-{part}.json"));
    fs::write(&path, serde_json::to_string_pretty(figures).unwrap()).unwrap();
    println!("written to {}\n", path.display());
}
