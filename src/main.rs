//! The `smcached` binary: parses the arguments and calls the command.

use std::alloc::System;
use std::process::ExitCode;

use clap::Parser;
use smcached::cli::{self, Cli};
use smcached::config::Environment;
use zeroizing_alloc::ZeroAlloc;

/// Wipes every block that is freed: whatever copies of a secret the TLS, HTTP and SDK layers make do not outlive
/// their use. Its `realloc` is one block and then another, so that what is moved is wiped too.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

fn main() -> ExitCode {
    cli::run(Cli::parse(), &Environment::from_process())
}
