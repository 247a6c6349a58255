//! `smcached init`: the init container of Flyte's pod webhook, which puts one secret into one file.
//!
//! The webhook gives it `SECRET_ARN`, `SECRET_FILENAME` and a volume at `/tmp`, and nothing else. `request` is what
//! is asked for, `fetch` the ways to it, `retry` the patience, `failed` what went wrong and what to do, `place` the
//! file. It exits with 0 only with the file in place, and says one line, never a value.

mod failed;
mod fetch;
mod place;
mod request;
mod retry;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio::time::Instant;

use self::failed::Failed;
use self::fetch::{Fetched, Ways};
use self::place::Place;
use self::request::Request;
use super::{CANNOT_HIDE, Exit, complain, small_runtime};
use crate::config::Environment;
use crate::hardening;
use crate::units::{DURATION, parse_duration};

const HELP: &str = "\
Examples:
  SECRET_ARN=arn:aws:secretsmanager:us-west-2:123456789012:secret:db-AbCdEf SECRET_FILENAME=db \\
    smcached init --dir /run/secrets

Exit codes:
  0  the file is in place
  1  anything else, such as a directory that cannot be written
  2  wrong usage
  3  no such secret, or it is deleted
  4  not allowed
  5  AWS or the daemon cannot be reached or fails
  6  throttled

Environment:
  SECRET_ARN           the secret
  SECRET_FILENAME      the file
  SMCACHED_ADDRESS     the daemon: unix:/path or http://host:port
  SMCACHED_TOKEN       the token for the latter
  SMCACHED_TOKEN_FILE  a file with that token
  AWS_*                as in the AWS SDKs, where AWS is asked";

/// Write one secret to a file, as the init container of Flyte's pod webhook does.
///
/// `SECRET_ARN` names the secret, `SECRET_FILENAME` the file. It comes from the daemon at `$SMCACHED_ADDRESS`, else from
/// one at 127.0.0.1:2773, else from AWS.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct InitArgs {
    /// Where the file is put
    #[arg(long, value_name = "DIR", default_value = "/tmp")]
    dir: PathBuf,
    /// How long to go on trying
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = duration)]
    timeout: Duration,
    /// The daemon of the pod or node, when the environment names none. For tests: the webhook passes no arguments.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:2773", hide = true)]
    local_daemon: String,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("accepted: {DURATION}"))
}

pub(super) fn run(args: &InitArgs, environment: &Environment) -> Exit {
    let (message, exit) = match init(args, environment) {
        Ok(done) => (done, Exit::Success),
        Err(failed) => failed,
    };
    // Parts of it come from outside; it is one line all the same.
    complain(&message.replace(char::is_control, " "));
    exit
}

/// What a daemon is asked for, and AWS, were this `SECRET_ARN`.
#[cfg(any(test, fuzzing))]
pub(super) fn target(secret_arn: &str) -> Option<(String, crate::secret::SecretId)> {
    let request = Request::parse(secret_arn).ok()?;
    Some((request.target.to_string(), request.key.id))
}

/// What was done, or the one line that says what was not.
fn init(args: &InitArgs, environment: &Environment) -> Result<String, (String, Exit)> {
    let (Some(arn), Some(filename)) = (environment.secret_arn(), environment.secret_filename()) else {
        let message = "SECRET_ARN and SECRET_FILENAME must be set, as Flyte's pod webhook does";
        return Err((message.to_owned(), Exit::Usage));
    };
    let wrong = |error: &dyn std::fmt::Display, exit| (format!("{arn}: {error}"), exit);
    let request = Request::parse(arn).map_err(|error| wrong(&error, Exit::Usage))?;
    let place = Place::parse(&args.dir, filename).map_err(|error| wrong(&error, Exit::Usage))?;
    let ways = Ways::find(environment, &args.local_daemon).map_err(|error| wrong(&error, Exit::Usage))?;
    hardening::forbid_dumps().map_err(|error| wrong(&format!("{CANNOT_HIDE}: {error}"), Exit::Failure))?;
    let runtime = small_runtime().map_err(|exit| wrong(&"no runtime", exit))?;
    let deadline = Instant::now() + args.timeout;
    let fetched = runtime.block_on(ways.fetch(&request, deadline));
    let Fetched { value, way } = fetched.map_err(|failed: Failed| wrong(&failed, failed.exit()))?;
    place.write(&value).map_err(|error| wrong(&error, Exit::Failure))?;
    Ok(format!("wrote {} ({way})", place.path().display()))
}
