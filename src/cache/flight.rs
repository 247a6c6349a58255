//! One fetch per secret at a time, whoever asks: any number of askers share it, and its error.
//!
//! A fetch runs in a task of its own and askers only wait for it, so that one who hangs up neither
//! cancels nor repeats it. Its answer is put in its place before anybody is told.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::Shared;
use super::slot::Held;
use crate::secret::{SecretKey, SecretVersion};
use crate::source::{ErrorClass, SourceError, Urgency};

/// How a fetch ended.
pub(super) type Outcome = Result<Arc<Held>, SourceError>;

/// The fetches under way.
#[derive(Debug, Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<SecretKey, Waiter>>,
}

/// One asker's seat.
#[derive(Debug, Clone)]
pub(super) struct Waiter {
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Waiter {
    /// Waits for the end of the fetch.
    pub(super) async fn outcome(&mut self) -> Outcome {
        match self.outcome.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone().unwrap_or(Err(SourceError::Aborted)),
            Err(_) => Err(SourceError::Aborted),
        }
    }
}

/// What an asker finds.
pub(super) enum Boarding {
    /// There is nothing to wait for.
    Landed(Outcome),
    /// A fetch is under way.
    Waiting {
        /// The asker's seat.
        waiter: Waiter,
        /// Whether the fetch was under way already.
        collapsed: bool,
    },
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, HashMap<SecretKey, Waiter>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// Joins the fetch of `key` that is under way, else takes what `landed_just_now` finds, else starts one.
    ///
    /// A flight puts its answer in its place before it leaves the list, so looking for both under the
    /// list's lock misses neither.
    pub(super) fn board(
        self: &Arc<Self>,
        key: &SecretKey,
        urgency: Urgency,
        landed_just_now: impl FnOnce() -> Option<Outcome>,
    ) -> Boarding {
        let mut under_way = self.flights.lock();
        match under_way.entry(key.clone()) {
            Entry::Occupied(flight) => Boarding::Waiting { waiter: flight.get().clone(), collapsed: true },
            Entry::Vacant(vacancy) => {
                if let Some(outcome) = landed_just_now() {
                    return Boarding::Landed(outcome);
                }
                let (teller, outcome) = watch::channel(None);
                let waiter = vacancy.insert(Waiter { outcome }).clone();
                let flight = Flight {
                    shared: Arc::clone(self),
                    key: key.clone(),
                    fetched_at: Instant::now(),
                    teller,
                    end: End::NotYet,
                };
                tokio::spawn(flight.fly(urgency));
                Boarding::Waiting { waiter, collapsed: false }
            }
        }
    }

    /// Asks the source, within the limits and the time that a fetch may take.
    async fn ask(
        &self,
        key: &SecretKey,
        urgency: Urgency,
        fetched_at: &mut Instant,
    ) -> Result<SecretVersion, SourceError> {
        let asking = async {
            let _permit = self.limits.enter().await.ok_or(SourceError::Aborted)?;
            *fetched_at = Instant::now();
            let answer = self.source.fetch(key, urgency).await?;
            if !answer.answers(&key.id, &key.selector) {
                return Err(SourceError::Unusable { reason: "it is about another secret or version" });
            }
            Ok(answer)
        };
        timeout(self.options.flight_timeout(), asking).await.unwrap_or(Err(SourceError::Timeout))
    }

    /// Puts an answer, or an error, in its place.
    fn land(
        &self,
        key: &SecretKey,
        fetched_at: Instant,
        answer: Result<SecretVersion, SourceError>,
    ) -> Outcome {
        let now = Instant::now();
        let result = answer.as_ref().map_or_else(SourceError::kind, |_| "success");
        let elapsed = now.saturating_duration_since(fetched_at);
        self.metrics.upstream.called(self.source.operation(), result, elapsed);
        let answer = match answer {
            Ok(version) => self.land_version(key, fetched_at, version),
            Err(error) => Err(error),
        };
        self.upstream.note(self.source.name(), answer.as_ref().err(), now);
        answer.inspect_err(|error| self.land_error(key, error, now))
    }

    fn land_version(&self, key: &SecretKey, fetched_at: Instant, version: SecretVersion) -> Outcome {
        let was_held = self.store.find(key).is_some_and(|slot| slot.held().is_some());
        let policy = self.policies.of(key);
        let landed = self
            .store
            .land(key, version, policy, fetched_at, self.pinned.contains(key))
            .map_err(|_| SourceError::Unusable { reason: "its ARN is malformed" })?;
        self.refusals.forget(key);
        landed.slot.set_refreshing(false);
        if was_held {
            self.metrics.cache.refreshed(if landed.is_changed { "changed" } else { "unchanged" });
        }
        self.agenda.reconsider(&landed.slot, landed.held.refresh_at);
        Ok(landed.held)
    }

    fn land_error(&self, key: &SecretKey, error: &SourceError, now: Instant) {
        let slot = self.store.find(key).filter(|slot| slot.held().is_some());
        if let Some(slot) = &slot {
            slot.set_refreshing(false);
        }
        match (error.class(), slot) {
            (ErrorClass::Authoritative, slot) => {
                self.refusals.remember(key, error, now);
                if let Some(slot) = slot {
                    tracing::warn!(secret = %key.id, reason = error.kind(), "dropped a held secret: {error}");
                    self.metrics.cache.refreshed("dropped");
                    self.store.drop_slot(&slot, "revoked");
                }
            }
            (ErrorClass::Caller | ErrorClass::Transient, Some(slot)) => {
                let failures = slot.note_failure(error, now);
                tracing::debug!(secret = %key.id, reason = error.kind(), failures, "a refresh failed; the held value stays");
                self.metrics.cache.refreshed("failed");
                self.agenda.reconsider(&slot, now);
            }
            (ErrorClass::Caller | ErrorClass::Transient, None) => {}
        }
    }
}

/// A fetch under way. However it ends, a panic included, those who wait are told and the next may start.
struct Flight {
    shared: Arc<Shared>,
    key: SecretKey,
    fetched_at: Instant,
    teller: watch::Sender<Option<Outcome>>,
    end: End,
}

enum End {
    NotYet,
    Landing,
    Landed(Outcome),
}

impl Flight {
    async fn fly(mut self, urgency: Urgency) {
        let answer = self.shared.ask(&self.key, urgency, &mut self.fetched_at).await;
        self.land(answer);
    }

    fn land(&mut self, answer: Result<SecretVersion, SourceError>) {
        self.end = End::Landing;
        self.end = End::Landed(self.shared.land(&self.key, self.fetched_at, answer));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if matches!(self.end, End::NotYet) {
            self.land(Err(SourceError::Aborted));
        }
        self.shared.flights.lock().remove(&self.key);
        let outcome = match std::mem::replace(&mut self.end, End::NotYet) {
            End::Landed(outcome) => outcome,
            End::NotYet | End::Landing => Err(SourceError::Aborted),
        };
        self.teller.send_replace(Some(outcome));
    }
}
