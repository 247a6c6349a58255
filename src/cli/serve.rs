//! `smcached serve`: the daemon.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use tracing::Level;

use super::{ConfigArgs, Exit, complain, load, unreadable};
use crate::app::{self, Finish};
use crate::config::{Config, Environment, LogFormat, LogLevel, config_path};
use crate::hardening;
use crate::net::PassedToProcess;
use crate::telemetry;

pub(super) const HELP: &str = "\
Examples:
  smcached serve
  smcached serve --config /etc/smcached/smcached.toml
  kill -HUP \"$(pidof smcached)\"    # has it read its configuration again; what it holds is kept

SIGTERM and SIGINT end it once requests in flight are done. Logs go to standard error.

Exit codes:
  0  ended as told
  1  failed while running, an address is in use, or the audit trail cannot be opened
  2  the command line, the configuration or the file of secrets is wrong

Environment:
  SMCACHED_CONFIG  the configuration file, where --config is not given
  AWS_*            as in the AWS SDKs: AWS_REGION, AWS_PROFILE, AWS_ENDPOINT_URL, AWS_CA_BUNDLE and credentials";

/// How long the end may take once everything that matters is done.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) fn run(args: ConfigArgs, environment: &Environment) -> Exit {
    if let Err(exit) = unreadable(hardening::forbid_dumps) {
        return exit;
    }
    let passed = match PassedToProcess::from_process(environment.descriptor_names()) {
        Ok(passed) => passed,
        Err(error) => {
            complain(&error);
            return Exit::Usage;
        }
    };
    let path = config_path(args.config.clone(), environment);
    let config = match load(args, environment) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let format = match config.log.format {
        LogFormat::Json => telemetry::Format::Json,
        LogFormat::Text => telemetry::Format::Text,
    };
    let level = match config.log.level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    if let Err(error) = telemetry::init(format, level) {
        complain(&error);
        return Exit::Failure;
    }
    harden(&config);
    // One thread: a hit costs microseconds, and handing requests between threads costs more than that.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failure;
        }
    };
    let environment = environment.clone();
    let ended = runtime.block_on(async move {
        // As a task, so that a panic ends the daemon in good order.
        match tokio::spawn(async move { app::run(config, path, &environment, passed).await }).await {
            Ok(ended) => ended.map_err(|error| (error.to_string(), error.is_configuration())),
            Err(_) => Err(("the daemon panicked; this is a defect of smcached".to_owned(), false)),
        }
    });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match ended {
        Ok(Finish::Ended) => Exit::Success,
        Ok(Finish::StartAgain) => start_again(),
        Err((error, is_configuration)) => {
            tracing::error!(error, "smcached ends");
            if is_configuration { Exit::Usage } else { Exit::Failure }
        }
    }
}

/// Runs the daemon anew in this process. Its supervisor sees nothing of it: Kubernetes replaces a pod whose container has to be
/// started again.
fn start_again() -> Exit {
    let mut words = env::args_os();
    let name = words.next().unwrap_or_else(|| env!("CARGO_PKG_NAME").into());
    let error = Command::new("/proc/self/exe").arg0(name).args(words).exec();
    tracing::error!(%error, "smcached cannot be started again");
    Exit::Failure
}

/// What makes the daemon safer and may be impossible here: then the log says so.
fn harden(config: &Config) {
    if let Err(error) = hardening::give_up_spare_rights() {
        tracing::warn!(%error, "the daemon cannot give up the right to get new privileges");
    }
    let user_changes = config.process.user.is_some();
    match hardening::lock_memory(user_changes) {
        Ok(()) => tracing::debug!("memory is locked and never swapped out"),
        Err(reason) => tracing::warn!(
            %reason,
            "secrets may be swapped out: set LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 or the capability \
             IPC_LOCK (containers), or have no swap"
        ),
    }
    if hardening::is_root() && !user_changes {
        tracing::warn!(
            "the daemon runs as root, which it does not need: start it as another user, or name one as process.user"
        );
    }
}
