//! Logs: one line an event on standard error, as JSON or text.
//!
//! What dependencies log is capped whatever the level: at trace, HTTP libraries write headers and bodies,
//! and so secrets and tokens.

use std::io;
use std::panic::PanicHookInfo;

use tracing::Level;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For a person.
    Text,
}

/// Sends the process's logs to standard error, panics included. Once per process.
pub fn init(format: Format, level: Level) -> Result<(), SetGlobalDefaultError> {
    let filter = Targets::new()
        .with_target(env!("CARGO_PKG_NAME"), level)
        .with_default(LevelFilter::WARN.min(LevelFilter::from_level(level)));
    let lines = fmt::layer().with_writer(io::stderr);
    std::panic::set_hook(Box::new(log_panic));
    match format {
        Format::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false).with_span_list(false);
            tracing::subscriber::set_global_default(
                tracing_subscriber::registry().with(lines.with_filter(filter)),
            )
        }
        Format::Text => {
            let lines = lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()));
            tracing::subscriber::set_global_default(
                tracing_subscriber::registry().with(lines.with_filter(filter)),
            )
        }
    }
}

/// One line, as for any other event. The message of a panic is left out: it may hold what was being worked on.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(location, "panicked; this is a defect of smcached");
}
