//! `smcached healthcheck`: for images without a shell or curl.

use super::{ConfigArgs, Exit, complain, load, ops, small_runtime};
use crate::config::Environment;
use crate::net::{PATIENCE, fetch};

pub(super) const HELP: &str = "\
Examples:
  HEALTHCHECK CMD [\"smcached\", \"healthcheck\"]    # in a Dockerfile
  smcached healthcheck --config FILE || echo \"not ready\"

Exit codes:
  0  the daemon is ready
  1  it is not, or cannot be asked; the reasons are on standard error
  2  the command line or the configuration is wrong, or its ops listener is off

Environment:
  SMCACHED_CONFIG  the configuration file, where --config is not given";

pub(super) fn run(args: ConfigArgs, environment: &Environment) -> Exit {
    let asked = (|| {
        let config = load(args, environment)?;
        let Some(endpoint) = ops::endpoint(&config) else {
            complain(&ops::OFF);
            return Err(Exit::Usage);
        };
        Ok(small_runtime()?.block_on(fetch(&endpoint, "/readyz", &[], PATIENCE)))
    })();
    match asked {
        Err(exit) => exit,
        Ok(Ok((head, _))) if head.status.is_success() => Exit::Success,
        Ok(Ok((_, reasons))) => {
            complain(&String::from_utf8_lossy(&reasons).trim_end());
            Exit::Failure
        }
        Ok(Err(error)) => {
            complain(&error);
            Exit::Failure
        }
    }
}
