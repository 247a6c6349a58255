//! `smcached get`: one secret on standard output, byte for byte; with `--watch`, each version of it.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;

use super::daemon::{Daemon, Target, Version};
use super::watch::{Event, Watch};
use super::{Exit, complain, small_runtime, unreadable};
use crate::config::Environment;
use crate::hardening;

const HELP: &str = concat!(
    "\
Examples:
  smcached get team-a/db
  smcached get team-a/db --field password
  smcached get team-a db --version-stage AWSPREVIOUS
  smcached get arn:aws:secretsmanager:us-west-2:123456789012:secret: /MySecret-AbCdEf
  smcached get team-a/flags --watch | while read -r flags; do echo \"changed\"; done

Exit codes:
  0  printed
  1  anything else
  2  wrong usage or a malformed name
  3  no such secret, version or field
  4  not allowed
  5  the daemon or AWS cannot be reached or is busy: try again later

",
    client_environment!()
);

/// Print one secret, exactly as it is.
///
/// On a terminal a newline follows; elsewhere nothing is added to the value.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct GetArgs {
    /// The secret's group: one of the configuration, or an ARN up to `:secret:`. Or `<group>/<key>` in one word
    #[arg(value_name = "GROUP")]
    group: String,
    /// The secret's key within the group
    #[arg(value_name = "KEY")]
    key: Option<String>,
    /// Only this field of a JSON secret: a top-level key, or a JSON Pointer that starts with /
    #[arg(long)]
    field: Option<String>,
    /// The version with this staging label, such as AWSPREVIOUS
    #[arg(long, value_name = "STAGE")]
    version_stage: Option<String>,
    /// The version with this id
    #[arg(long, value_name = "ID")]
    version_id: Option<String>,
    /// The daemon's Unix socket [default: `$SMCACHED_ADDRESS`, else /run/smcached/smcached.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Go on, and print each other value that it gets, a newline after each
    #[arg(long)]
    watch: bool,
}

pub(super) fn run(args: &GetArgs, environment: &Environment) -> Exit {
    if let Err(exit) = unreadable(hardening::forbid_dumps) {
        return exit;
    }
    let daemon = match Daemon::find(args.socket.as_deref(), environment) {
        Ok(daemon) => daemon,
        Err(error) => {
            complain(&error);
            return Exit::Usage;
        }
    };
    match small_runtime() {
        Ok(runtime) => runtime.block_on(get(args, daemon)),
        Err(exit) => exit,
    }
}

async fn get(args: &GetArgs, daemon: Daemon) -> Exit {
    let target = args.target();
    match daemon.read(&target).await {
        Ok(Version { value, etag }) if args.watch => follow(value, Watch::new(daemon, target, etag)).await,
        Ok(Version { value, .. }) => match print(&value, io::stdout().is_terminal()) {
            Ok(()) => Exit::Success,
            Err(error) => unwritten(&error),
        },
        Err(failure) => {
            complain(&failure);
            failure.exit()
        }
    }
}

/// Prints a value and each other one that follows, until nobody reads them or there are no more.
async fn follow(mut value: Bytes, mut watch: Watch) -> Exit {
    loop {
        match print(&value, true) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Exit::Success,
            Err(error) => return unwritten(&error),
        }
        value = loop {
            match watch.next().await {
                // A new version of a secret need not have another value, nor another field.
                Event::Changed(new) if new == value => {}
                Event::Changed(new) => break new,
                Event::Troubled(failure) => complain(&format!("{failure}; still watching")),
                Event::Revoked(failure) => {
                    complain(&failure);
                    return failure.exit();
                }
            }
        };
    }
}

impl GetArgs {
    fn target(&self) -> Target {
        let target = match &self.key {
            Some(key) => Target::of_names(&self.group, key),
            None => Target::of_word(&self.group),
        };
        let parameters = [
            ("field", &self.field),
            ("version_stage", &self.version_stage),
            ("version_id", &self.version_id),
        ];
        let given = parameters.iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        given.fold(target, |target, (name, value)| target.with(name, value))
    }
}

/// Writes the secret as it is; on a terminal, where nobody counts bytes, a newline follows.
fn print(secret: &[u8], with_newline: bool) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let newline: &[u8] = if with_newline { b"\n" } else { b"" };
    output.write_all(secret)?;
    output.write_all(newline)?;
    output.flush()
}

fn unwritten(error: &io::Error) -> Exit {
    complain(&format!("cannot write the secret: {error}"));
    Exit::Failure
}
