//! `smcached exec`: runs a command with secrets in its environment.
//!
//! `variables` says which variable gets which secret, `values` fetches them, `supervise` keeps a command
//! whose secrets may change. The command is run as it is, never through a shell. No value is ever shown.

mod supervise;
mod values;
mod variables;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Args;

use self::supervise::Reaction;
use self::values::{Failed, Values};
use self::variables::Variables;
use super::daemon::Daemon;
use super::{Exit, complain, small_runtime, unreadable};
use crate::config::Environment;
use crate::hardening;

const HELP: &str = concat!(
    "\
Examples:
  smcached exec --env DB_PASSWORD=team-a/db#password -- ./server --port 8080
  smcached exec --env-file secrets.env --on-change restart -- ./server
  smcached exec --env TOKEN=team-a/token --on-change signal=HUP -- ./server
  smcached exec --flyte team-a/db -- python task.py

Exit codes:
  those of the command, or 128 + n if it died of signal n
  126  the command cannot be run
  127  it was not found
and before it runs:
  1  anything else
  2  wrong usage or a malformed name
  3  no such secret or field
  4  not allowed
  5  the daemon or AWS cannot be reached or is busy: try again later

",
    client_environment!()
);

/// Run a command with secrets in its environment.
///
/// Nothing runs unless every secret can be had.
#[derive(Debug, Args)]
#[command(after_long_help = HELP)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    secrets: Secrets,
    /// When a secret changes: `restart` the command with the new values, or send it a signal, as in `signal=HUP`
    #[arg(long, value_name = "ACTION", value_parser = Reaction::parse)]
    on_change: Option<Reaction>,
    /// The daemon's Unix socket [default: `$SMCACHED_ADDRESS`, else /run/smcached/smcached.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What the environment gets.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
struct Secrets {
    /// Set a variable to a secret, or to one field of a JSON secret: `DB_PASSWORD=team-a/db#password`
    #[arg(long, value_name = "NAME=GROUP/KEY[#FIELD]")]
    env: Vec<String>,
    /// Set a variable for each line of a file, in the form of --env; blank lines and those that begin with # are skipped
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Set the variable in which flytekit looks for a secret
    #[arg(long, value_name = "GROUP/KEY")]
    flyte: Vec<String>,
}

pub(super) fn run(args: &ExecArgs, environment: &Environment) -> ExitCode {
    match exec(args, environment) {
        Ok(code) => code,
        Err(exit) => exit.into(),
    }
}

fn exec(args: &ExecArgs, environment: &Environment) -> Result<ExitCode, Exit> {
    // The command inherits limits, and may have its core dumps.
    unreadable(hardening::forbid_reading)?;
    let Secrets { env, env_file, flyte } = &args.secrets;
    let variables = Variables::collect(env, env_file, flyte).map_err(|errors| {
        errors.iter().for_each(complain);
        Exit::Usage
    })?;
    let daemon = Daemon::find(args.socket.as_deref(), environment).map_err(|error| {
        complain(&error);
        Exit::Usage
    })?;
    let runtime = small_runtime()?;
    let values = runtime.block_on(Values::fetch(&daemon, &variables)).map_err(|failed| {
        failed.iter().for_each(complain);
        most_telling(&failed)
    })?;
    match args.on_change {
        None => {
            // The command must find the process as it was: without threads, descriptors or handlers of ours.
            drop(runtime);
            Ok(replace(args.command(&values)))
        }
        Some(reaction) => {
            let command = |values: &Values| args.command(values);
            runtime.block_on(supervise::run(&command, &daemon, &variables, values, reaction))
        }
    }
}

impl ExecArgs {
    fn command(&self, values: &Values) -> Command {
        // There is at least one word: clap sees to it.
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command.args(words).envs(values.iter());
        command
    }
}

/// What is asked for, were this the argument of `--env` or `--flyte`.
#[cfg(any(test, fuzzing))]
pub(super) fn targets(argument: &str) -> Vec<String> {
    let argument = [argument.to_owned()];
    let read = [Variables::collect(&argument, &[], &[]), Variables::collect(&[], &[], &argument)];
    let variables = read.iter().flatten().flat_map(Variables::iter);
    variables.map(|variable| variable.target().to_string()).collect()
}

/// Becomes the command; returns only if that fails.
fn replace(mut command: Command) -> ExitCode {
    let error = command.exec();
    not_run(&command, &error)
}

/// Says why a command does not run, as env(1) and shells do.
fn not_run(command: &Command, error: &io::Error) -> ExitCode {
    complain(&format!("cannot run {}: {error}", command.get_program().display()));
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
}

/// What the failures have to say, in one word.
fn most_telling(failed: &[Failed]) -> Exit {
    let exits = [Exit::Usage, Exit::Denied, Exit::NotFound, Exit::Unavailable];
    let has = |exit: &Exit| failed.iter().any(|failed| failed.exit() == *exit);
    exits.into_iter().find(has).unwrap_or(Exit::Failure)
}
