//! The `smcached` binary: parses the arguments and calls the command.

use std::process::ExitCode;

use clap::Parser;
use smcached::cli::{self, Cli};
use smcached::config::Environment;

fn main() -> ExitCode {
    cli::run(Cli::parse(), &Environment::from_process())
}
