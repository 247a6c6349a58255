//! `smcached check`: is this configuration right, and what is in effect?

use super::{ConfigArgs, Exit, complain, load};
use crate::config::Environment;

#[expect(clippy::print_stdout, reason = "the effective configuration is this command's output")]
pub(super) fn run(args: ConfigArgs, environment: &Environment) -> Exit {
    if let Err(error) = environment.check() {
        complain(&error);
        return Exit::Usage;
    }
    match load(args, environment) {
        Ok(config) => {
            if let Err(error) = environment.check_upstream(&config) {
                complain(&error);
                return Exit::Usage;
            }
            print!("{}", config.to_toml());
            Exit::Success
        }
        Err(exit) => exit,
    }
}
