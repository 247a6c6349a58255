//! The command line: one file a command. This is where text goes to standard output and error.

/// The environment of commands that ask the daemon, for their help.
macro_rules! client_environment {
    () => {
        "\
Environment:
  SMCACHED_ADDRESS     the daemon, where --socket is not given: unix:/path or http://host:port
  SMCACHED_TOKEN       the token for the latter
  SMCACHED_TOKEN_FILE  a file with that token"
    };
}

mod backoff;
mod check;
mod completions;
mod daemon;
mod doctor;
mod exec;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod get;
mod healthcheck;
mod init;
mod ops;
mod serve;
mod status;
mod terminal;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{Config, Environment, config_path};

const HELP: &str = "\
Examples:
  smcached check --config smcached.toml    Is the configuration right?
  smcached serve --config smcached.toml    Run the daemon
  smcached status                          How does it fare?
  smcached doctor                          What is wrong, and what mends it?
  smcached get team-a/db --field password  Read one field of a secret
  smcached exec --env DB_PASSWORD=team-a/db#password -- ./server
  smcached COMMAND --help                  More examples, exit codes and environment variables

Exit codes:
  0  done
  1  it failed while running
  2  the command line or the configuration is wrong
`get`, `exec` and `init` have more.

Environment:
  SMCACHED_CONFIG       the configuration file of the daemon, and of the commands that read it
  SMCACHED_ADDRESS      where `get`, `exec` and `init` find it: unix:/path or http://host:port
  SMCACHED_TOKEN        the token that they present over TCP
  SMCACHED_TOKEN_FILE   a file with that token
  SMCACHED_OPS_ADDRESS  where `status` finds the ops listener: host:port
  NO_COLOR              no colours on a terminal";

/// A node-local cache for AWS Secrets Manager.
///
/// Tasks read secrets from it over a Unix socket or localhost; it answers from memory and keeps what it
/// holds fresh in the background.
#[derive(Debug, Parser)]
#[command(
    name = "smcached",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = HELP
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon.
    #[command(after_long_help = serve::HELP)]
    Serve(ConfigArgs),
    Check(check::CheckArgs),
    Status(status::StatusArgs),
    Doctor(doctor::DoctorArgs),
    Get(get::GetArgs),
    Exec(exec::ExecArgs),
    Init(init::InitArgs),
    /// Ask the daemon of this configuration whether it is ready, for container health checks.
    #[command(after_long_help = healthcheck::HELP)]
    Healthcheck(ConfigArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(completions::ManArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file [default: `$SMCACHED_CONFIG`, else /etc/smcached/smcached.toml if it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How a command prints what it has found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person.
    Text,
    /// For a program.
    Json,
}

/// What the process tells its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// Done.
    Success = 0,
    /// It failed while running.
    Failure = 1,
    /// The command line, the configuration or the name of the secret is wrong.
    Usage = 2,
    /// There is no such secret, version or field.
    NotFound = 3,
    /// The caller or the daemon may not read it.
    Denied = 4,
    /// The daemon or AWS cannot be reached, or is slow or throttling: it may work later.
    Unavailable = 5,
    /// AWS was throttling for as long as the command would wait.
    Throttled = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Runs the command that the arguments name.
pub fn run(cli: Cli, environment: &Environment) -> ExitCode {
    let exit = match cli.command {
        Command::Serve(args) => serve::run(args, environment),
        Command::Check(args) => check::run(args, environment),
        Command::Get(args) => get::run(&args, environment),
        Command::Exec(args) => return exec::run(&args, environment),
        Command::Init(args) => init::run(&args, environment),
        Command::Doctor(args) => doctor::run(args, environment),
        Command::Status(args) => status::run(args, environment),
        Command::Healthcheck(args) => healthcheck::run(args, environment),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => completions::man(&args),
    };
    exit.into()
}

/// Loads the configuration, or says what is wrong with it.
fn load(args: ConfigArgs, environment: &Environment) -> Result<Config, Exit> {
    let path = config_path(args.config, environment);
    Config::load(path.as_deref()).map_err(|errors| {
        complain(&errors);
        Exit::Usage
    })
}

/// What a command says that cannot keep its memory to itself, and so holds no secret.
const CANNOT_HIDE: &str = "cannot forbid core dumps, so no secret is held";

/// Keeps other processes from reading this one's memory, before a secret is in it.
fn unreadable(forbid: impl FnOnce() -> std::io::Result<()>) -> Result<(), Exit> {
    forbid().map_err(|error| {
        complain(&format!("{CANNOT_HIDE}: {error}"));
        Exit::Failure
    })
}

/// A single-threaded runtime for a command that makes one request.
fn small_runtime() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| {
        complain(&format!("cannot start: {error}"));
        Exit::Failure
    })
}

#[expect(clippy::print_stderr, reason = "a command says what is wrong on standard error")]
fn complain(error: &impl std::fmt::Display) {
    eprintln!("smcached: {error}");
}
