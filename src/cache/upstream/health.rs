//! How the source fares: what `/status` shows, and one log line when that changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::source::{ErrorClass, SourceError};

/// While the source fails, the log says so again this often.
const REMINDER_INTERVAL: Duration = Duration::from_mins(1);

/// Whether the source answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// Nothing has been asked yet.
    Unknown,
    /// The last call was answered, be it with a refusal.
    Answering,
    /// The last call failed in a way that may pass.
    Failing,
}

/// What is known of the source.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamSummary {
    /// Whether it answers.
    pub state: UpstreamState,
    /// Failures since it last answered.
    pub consecutive_failures: u64,
    /// Time since it last answered.
    pub last_answer: Option<Duration>,
    /// The last failure, and the time since.
    pub last_error: Option<(SourceError, Duration)>,
    /// The calls a second that are allowed at present: less than configured after throttling.
    pub rate: f64,
    /// The regions and roles that have been asked, in no order.
    pub places: Vec<PlaceSummary>,
}

/// What is known of one region and role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlaceSummary {
    /// The region; `None` is the daemon's default.
    pub region: Option<Arc<str>>,
    /// The role; `None` is the daemon's default.
    pub role_arn: Option<Arc<str>>,
    /// It is only probed, since it does not answer.
    pub is_dead: bool,
    /// Refreshes share calls here.
    pub batches: bool,
}

#[derive(Debug, Default)]
pub(super) struct Health {
    record: Mutex<Record>,
}

#[derive(Debug, Default)]
struct Record {
    consecutive_failures: u64,
    failing_since: Option<Instant>,
    last_answer: Option<Instant>,
    last_error: Option<(SourceError, Instant)>,
    last_reminder: Option<Instant>,
}

impl Health {
    /// Notes how a call ended. A refusal is an answer: the source works.
    pub(super) fn note(&self, source: &'static str, error: Option<&SourceError>, now: Instant) {
        let mut record = self.lock();
        let Some(error) = error.filter(|error| error.class() == ErrorClass::Transient) else {
            record.last_answer = Some(now);
            record.last_reminder = None;
            record.consecutive_failures = 0;
            if let Some(since) = record.failing_since.take() {
                let seconds = now.duration_since(since).as_secs();
                tracing::info!(source, failed_for_seconds = seconds, "the source answers again");
            }
            return;
        };
        record.consecutive_failures += 1;
        record.failing_since.get_or_insert(now);
        record.last_error = Some((error.clone(), now));
        if record.last_reminder.is_none_or(|last| now.duration_since(last) >= REMINDER_INTERVAL) {
            record.last_reminder = Some(now);
            tracing::warn!(
                source,
                reason = error.kind(),
                error = %error,
                consecutive_failures = record.consecutive_failures,
                "the source fails; held secrets are served on, reads of others fail"
            );
        }
    }

    pub(super) fn summary(&self, rate: f64, places: Vec<PlaceSummary>, now: Instant) -> UpstreamSummary {
        let record = self.lock();
        let state = match (record.failing_since, record.last_answer) {
            (Some(_), _) => UpstreamState::Failing,
            (None, Some(_)) => UpstreamState::Answering,
            (None, None) => UpstreamState::Unknown,
        };
        UpstreamSummary {
            state,
            consecutive_failures: record.consecutive_failures,
            last_answer: record.last_answer.map(|at| now.duration_since(at)),
            last_error: record
                .last_error
                .as_ref()
                .map(|(error, at)| (error.clone(), now.duration_since(*at))),
            rate,
            places,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
