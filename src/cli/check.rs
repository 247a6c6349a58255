//! `smcached check`: is this configuration right, and what is in effect?

use clap::Args;

use super::terminal::print;
use super::{ConfigArgs, Exit, Output, complain, load};
use crate::config::Environment;

const HELP: &str = "\
Examples:
  smcached check --config smcached.toml
  smcached check --config new.toml && kill -HUP \"$(pidof smcached)\"
  smcached check --output json | jq -r .cache.ttl

Exit codes:
  0  the configuration is right
  2  it is wrong: every mistake is on standard error, with file, line, key, what was given and what is accepted

Environment:
  SMCACHED_CONFIG  the configuration file, where --config is not given";

/// Check a configuration and print what is in effect, defaults included.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// How it is printed: as the TOML that `serve` reads, or as JSON
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Output::Text)]
    output: Output,
}

pub(super) fn run(args: CheckArgs, environment: &Environment) -> Exit {
    if let Err(error) = environment.check() {
        complain(&error);
        return Exit::Usage;
    }
    match load(args.config, environment) {
        Ok(config) => {
            if let Err(error) = environment.check_upstream(&config) {
                complain(&error);
                return Exit::Usage;
            }
            let text = match args.output {
                Output::Text => config.to_toml(),
                Output::Json => config.to_json(),
            };
            print(text.as_bytes()).err().unwrap_or(Exit::Success)
        }
        Err(exit) => exit,
    }
}
