//! `smcached serve`: the daemon.

use std::time::Duration;

use tracing::Level;

use super::{ConfigArgs, Exit, complain, load};
use crate::app;
use crate::config::{Environment, LogFormat, LogLevel, config_path};
use crate::telemetry;

/// How long the end may take once everything that matters is done.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(100);

pub(super) fn run(args: ConfigArgs, environment: &Environment) -> Exit {
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
    // One worker: a hit costs microseconds, and handing requests between workers costs more than that.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start: {error}"));
            return Exit::Failure;
        }
    };
    let environment = environment.clone();
    let ended = runtime.block_on(async move {
        // On the worker, where everything else runs.
        match tokio::spawn(async move { app::run(config, path, &environment).await }).await {
            Ok(ended) => ended.map_err(|error| (error.to_string(), error.is_configuration())),
            Err(_) => Err(("the daemon panicked; this is a defect of smcached".to_owned(), false)),
        }
    });
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    match ended {
        Ok(()) => Exit::Success,
        Err((error, is_configuration)) => {
            tracing::error!(error, "smcached ends");
            if is_configuration { Exit::Usage } else { Exit::Failure }
        }
    }
}
