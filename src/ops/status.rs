//! `/status`: the daemon's state in one document. Times are in seconds.
//!
//! It is written as JSON, and read again by `smcached status`; what it says to a person is in `report`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::{CacheView, PlaceSummary, UpstreamState};
use crate::lifecycle::Readiness;
use crate::metrics::HttpMetrics;

/// A word of ours, or one that was read.
type Word = Cow<'static, str>;

/// The daemon's state. Never a secret's value or name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    pub(super) version: Word,
    pub(super) uptime_seconds: u64,
    pub(super) ready: bool,
    /// Why not, if not.
    pub(super) not_ready_because: Vec<Word>,
    pub(super) upstream: Upstream,
    pub(super) cache: Held,
    pub(super) groups: BTreeMap<Arc<str>, Group>,
    /// By label, as in the metrics.
    #[serde(default)]
    pub(super) listeners: BTreeMap<String, Listener>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Upstream {
    pub(super) source: Word,
    pub(super) state: State,
    pub(super) consecutive_failures: u64,
    pub(super) last_answer_seconds_ago: Option<u64>,
    pub(super) last_error: Option<LastError>,
    /// Calls a second that are allowed at present: less than configured after throttling.
    pub(super) rate_limit: f64,
    pub(super) places: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Until asked for the first time.
    Unknown,
    Answering,
    Failing,
}

/// A region and role that has been asked; `null` is the daemon's default.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) region: Option<Arc<str>>,
    pub(super) role_arn: Option<Arc<str>>,
    pub(super) breaker: Breaker,
    /// Whether refreshes share calls.
    pub(super) batches: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Breaker {
    /// It is asked.
    Closed,
    /// It does not answer, and is only probed.
    Open,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LastError {
    pub(super) kind: Word,
    /// What happened, and what to do about it.
    pub(super) message: String,
    pub(super) seconds_ago: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Held {
    pub(super) entries: usize,
    pub(super) stale_entries: usize,
    pub(super) bytes: u64,
    pub(super) max_bytes: u64,
    pub(super) oldest_entry_age_seconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Group {
    pub(super) entries: usize,
    pub(super) stale_entries: usize,
    pub(super) oldest_entry_age_seconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Listener {
    pub(super) connections: i64,
}

impl Place {
    fn of(place: PlaceSummary) -> Self {
        let breaker = if place.is_dead { Breaker::Open } else { Breaker::Closed };
        Self { region: place.region, role_arn: place.role_arn, breaker, batches: place.batches }
    }
}

impl Status {
    pub(super) fn of(
        cache: &CacheView,
        readiness: &Readiness,
        listeners: &HttpMetrics,
        uptime: Duration,
    ) -> Self {
        let held = cache.summary();
        let upstream = cache.upstream();
        let not_ready_because: Vec<Word> = readiness.reasons().into_iter().map(Word::from).collect();
        let group = |group: &crate::cache::GroupSummary| Group {
            entries: group.entries,
            stale_entries: group.stale,
            oldest_entry_age_seconds: group.oldest.as_secs(),
        };
        let open = listeners.open_connections().into_iter();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            uptime_seconds: uptime.as_secs(),
            ready: not_ready_because.is_empty(),
            not_ready_because,
            upstream: Upstream {
                source: cache.source().into(),
                state: match upstream.state {
                    UpstreamState::Unknown => State::Unknown,
                    UpstreamState::Answering => State::Answering,
                    UpstreamState::Failing => State::Failing,
                },
                consecutive_failures: upstream.consecutive_failures,
                last_answer_seconds_ago: upstream.last_answer.map(|ago| ago.as_secs()),
                last_error: upstream.last_error.map(|(error, ago)| LastError {
                    kind: error.kind().into(),
                    message: error.to_string(),
                    seconds_ago: ago.as_secs(),
                }),
                rate_limit: upstream.rate,
                places: upstream.places.into_iter().map(Place::of).collect(),
            },
            cache: Held {
                entries: held.entries,
                stale_entries: held.stale,
                bytes: held.bytes as u64,
                max_bytes: cache.max_bytes(),
                oldest_entry_age_seconds: held.oldest.as_secs(),
            },
            groups: held.groups.iter().map(|(label, held)| (Arc::clone(label), group(held))).collect(),
            listeners: open.map(|(label, connections)| (label, Listener { connections })).collect(),
        }
    }

    /// Why the daemon is not ready, if it is not.
    pub fn reasons(&self) -> Option<String> {
        (!self.ready).then(|| self.not_ready_because.join(", "))
    }

    /// As `/status` has it by default.
    pub(super) fn to_json(&self) -> Vec<u8> {
        // Strings and numbers always serialize into memory.
        let mut page = serde_json::to_vec_pretty(self).unwrap_or_default();
        page.push(b'\n');
        page
    }
}
