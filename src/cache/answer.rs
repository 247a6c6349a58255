//! What a read comes to: a value and how it came about, or why there is none.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::time::Instant;

use super::flight::Outcome;
use super::freshness::Freshness;
use super::policy::GroupPolicy;
use super::slot::Held;
use crate::source::SourceError;

/// How an answer came about; what `Cache-Status` (RFC 9211) tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Served {
    /// A fresh value from memory.
    Hit,
    /// A stale value at once, while a refresh is under way.
    StaleWhileRevalidate,
    /// A stale value because the source fails or is slow.
    StaleIfError,
    /// A value that the source was asked for.
    Fetched {
        /// Why it was asked.
        forward: Forward,
        /// Whether the fetch was somebody else's.
        collapsed: bool,
    },
}

/// Why a read went to the source: the `fwd` parameter of RFC 9211 section 2.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// Nothing was held.
    Miss,
    /// What was held was too old.
    Stale,
    /// The reader demanded it.
    Request,
}

/// A value, and how it came about.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What is served.
    pub held: Arc<Held>,
    /// How.
    pub served: Served,
    /// Its age at the moment of the answer.
    pub age: Duration,
}

/// Why a read has no value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadError {
    /// `only-if-cached`, and nothing suitable is held.
    #[error("nothing suitable is held, and only-if-cached forbids to ask for it")]
    NotHeld,
    /// `no-cache` too often for one secret.
    #[error("this secret is asked for with no-cache too often; without it, what is held is served")]
    ForcedTooOften {
        /// When the next such read may ask.
        retry_after: Duration,
    },
    /// One caller's reads of what is not held, and those with `no-cache`, cost the source too much.
    #[error("this caller asks too often for what is not held, or with no-cache; what is held is served")]
    CallerOverBudget {
        /// When the next such read may ask.
        retry_after: Duration,
    },
    /// The source said so, now or within `negative_ttl`.
    #[error("{error}")]
    Source {
        /// What it said.
        error: SourceError,
        /// For a remembered refusal: how much longer it is remembered.
        remembered_for: Option<Duration>,
    },
}

/// An answer from memory, counted.
pub(super) fn served(held: Arc<Held>, served: Served, age: Duration) -> Answer {
    match served {
        Served::Hit => held.policy.metrics.hit(),
        _ => held.policy.metrics.stale(),
    }
    Answer { held, served, age }
}

/// An answer from memory because the source failed or was slow.
pub(super) fn served_held(held: Arc<Held>, now: Instant) -> Answer {
    let age = held.age(now);
    let how = match held.freshness(now) {
        Freshness::Fresh => Served::Hit,
        _ => Served::StaleIfError,
    };
    served(held, how, age)
}

/// An answer, or an error, from the source.
pub(super) fn fetched(
    outcome: Outcome,
    forward: Forward,
    collapsed: bool,
    policy: &GroupPolicy,
) -> Result<Answer, ReadError> {
    policy.metrics.miss();
    let held = outcome.map_err(|error| ReadError::Source { error, remembered_for: None })?;
    let age = held.age(Instant::now());
    Ok(Answer { held, served: Served::Fetched { forward, collapsed }, age })
}
