//! `/status`: the daemon's state in one document, for a person. Times are in seconds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cache::{CacheView, PlaceSummary, UpstreamState};
use crate::lifecycle::Readiness;

#[derive(Debug, Serialize)]
pub(super) struct Status {
    version: &'static str,
    uptime_seconds: u64,
    ready: bool,
    /// Why not, if not.
    not_ready_because: Vec<&'static str>,
    upstream: Upstream,
    cache: Held,
    groups: BTreeMap<Arc<str>, Group>,
}

#[derive(Debug, Serialize)]
struct Upstream {
    source: &'static str,
    /// `unknown` until asked for the first time, then `answering` or `failing`.
    state: &'static str,
    consecutive_failures: u64,
    last_answer_seconds_ago: Option<u64>,
    last_error: Option<LastError>,
    /// Calls a second that are allowed at present: less than configured after throttling.
    rate_limit: f64,
    places: Vec<Place>,
}

/// A region and role that has been asked; `null` is the daemon's default.
#[derive(Debug, Serialize)]
struct Place {
    region: Option<Arc<str>>,
    role_arn: Option<Arc<str>>,
    /// `closed`: it is asked. `open`: it does not answer, and is only probed.
    breaker: &'static str,
    /// Whether refreshes share calls.
    batches: bool,
}

#[derive(Debug, Serialize)]
struct LastError {
    kind: &'static str,
    /// What happened, and what to do about it.
    message: String,
    seconds_ago: u64,
}

#[derive(Debug, Serialize)]
struct Held {
    entries: usize,
    stale_entries: usize,
    bytes: usize,
    max_bytes: u64,
    oldest_entry_age_seconds: u64,
}

#[derive(Debug, Serialize)]
struct Group {
    entries: usize,
    stale_entries: usize,
    oldest_entry_age_seconds: u64,
}

impl Place {
    fn of(place: PlaceSummary) -> Self {
        let breaker = if place.is_dead { "open" } else { "closed" };
        Self { region: place.region, role_arn: place.role_arn, breaker, batches: place.batches }
    }
}

impl Status {
    pub(super) fn of(cache: &CacheView, readiness: &Readiness, uptime: Duration) -> Self {
        let held = cache.summary();
        let upstream = cache.upstream();
        let not_ready_because = readiness.reasons();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: uptime.as_secs(),
            ready: not_ready_because.is_empty(),
            not_ready_because,
            upstream: Upstream {
                source: cache.source(),
                state: match upstream.state {
                    UpstreamState::Unknown => "unknown",
                    UpstreamState::Answering => "answering",
                    UpstreamState::Failing => "failing",
                },
                consecutive_failures: upstream.consecutive_failures,
                last_answer_seconds_ago: upstream.last_answer.map(|ago| ago.as_secs()),
                last_error: upstream.last_error.map(|(error, ago)| LastError {
                    kind: error.kind(),
                    message: error.to_string(),
                    seconds_ago: ago.as_secs(),
                }),
                rate_limit: upstream.rate,
                places: upstream.places.into_iter().map(Place::of).collect(),
            },
            cache: Held {
                entries: held.entries,
                stale_entries: held.stale,
                bytes: held.bytes,
                max_bytes: cache.max_bytes(),
                oldest_entry_age_seconds: held.oldest.as_secs(),
            },
            groups: held
                .groups
                .into_iter()
                .map(|(label, group)| {
                    let oldest_entry_age_seconds = group.oldest.as_secs();
                    (
                        label,
                        Group {
                            entries: group.entries,
                            stale_entries: group.stale,
                            oldest_entry_age_seconds,
                        },
                    )
                })
                .collect(),
        }
    }
}
