//! One fetch per secret at a time, whoever asks: any number of askers share it, and its error.
//!
//! A fetch runs in a task of its own and askers only wait for it, so that one who hangs up neither
//! cancels nor repeats it. Its answer is put in its place before anybody is told.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::Shared;
use super::slot::{Fetch, Held};
use super::upstream::{Asked, Refreshing};
use crate::secret::{SecretKey, SecretVersion};
use crate::source::{ErrorClass, SourceError};

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
    /// Tells the fetch that somebody waits who has nothing.
    hurry: Arc<Notify>,
}

/// What a fetch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A reader waits who has nothing, or wants nothing that is held.
    Cold,
    /// To renew what is held, or to hold what is listed.
    Refresh,
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
    /// Whether a fetch of `key` is under way.
    pub(super) fn has(&self, key: &SecretKey) -> bool {
        self.lock().contains_key(key)
    }

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
        purpose: Purpose,
        landed_just_now: impl FnOnce() -> Option<Outcome>,
    ) -> Boarding {
        let mut under_way = self.flights.lock();
        match under_way.entry(key.clone()) {
            Entry::Occupied(flight) => {
                if purpose == Purpose::Cold {
                    flight.get().hurry.notify_one();
                }
                Boarding::Waiting { waiter: flight.get().clone(), collapsed: true }
            }
            Entry::Vacant(vacancy) => {
                if let Some(outcome) = landed_just_now() {
                    return Boarding::Landed(outcome);
                }
                let (teller, outcome) = watch::channel(None);
                let hurry = Arc::new(Notify::new());
                let waiter = vacancy.insert(Waiter { outcome, hurry: Arc::clone(&hurry) }).clone();
                // A refresh takes its place in line at once, so that many that start together share a call.
                let refreshing = (purpose == Purpose::Refresh).then(|| self.upstream.begin_refresh(key));
                let shared = Arc::clone(self);
                let flight = Flight { shared, key: key.clone(), teller, hurry, end: End::NotYet };
                tokio::spawn(flight.fly(refreshing));
                Boarding::Waiting { waiter, collapsed: false }
            }
        }
    }

    /// Puts an answer, or an error, in its place.
    fn land(&self, key: &SecretKey, asked: Asked) -> Outcome {
        let answer = match asked.answer {
            Ok(version) => self.land_version(key, asked.fetch, version, asked.instead_of),
            Err(error) => Err(error),
        };
        answer.inspect_err(|error| self.land_error(key, error, asked.fetch, asked.probe_at))
    }

    fn land_version(
        &self,
        key: &SecretKey,
        fetch: Fetch,
        version: SecretVersion,
        instead_of: Option<SourceError>,
    ) -> Outcome {
        let was_held = self.store.find(key).and_then(|slot| slot.held());
        if let (Some(error), Some(held)) = (instead_of, &was_held)
            && version.created_date < held.version.created_date
        {
            // A replica that lags behind must not bring an old value back.
            return Err(error);
        }
        let settings = self.settings.load();
        let landed = self
            .store
            .land(key, version, settings.policies.of(key), fetch, self.is_pinned(key))
            .map_err(|_| SourceError::Unusable { reason: "its ARN is malformed" })?;
        self.refusals.forget(key);
        landed.slot.set_refreshing(false);
        if was_held.is_some() {
            self.metrics.cache.refreshed(if landed.is_changed { "changed" } else { "unchanged" });
        }
        self.agenda.reconsider(&landed.slot, landed.held.refresh_at);
        Ok(landed.held)
    }

    fn land_error(&self, key: &SecretKey, error: &SourceError, fetch: Fetch, probe_at: Option<Instant>) {
        let now = Instant::now();
        let slot = self.store.find(key).filter(|slot| slot.held().is_some());
        if let Some(slot) = &slot {
            slot.set_refreshing(false);
        }
        match (error.class(), slot) {
            (ErrorClass::Authoritative, slot) => {
                let settings = self.settings.load();
                let mut ttl = settings.options.negative_ttl;
                if key.selector.is_description() && *error == SourceError::AccessDenied {
                    // The usual policy does not grant it, so this is no accident that will soon be over.
                    ttl = ttl.max(settings.policies.of(key).lifetimes.ttl);
                }
                self.refusals.remember(key, error, ttl, now);
                if let Some(slot) = slot {
                    tracing::warn!(secret = %key.id, reason = error.kind(), "dropped a held secret: {error}");
                    self.metrics.cache.refreshed("dropped");
                    self.store.drop_slot(&slot, "revoked");
                }
            }
            // Our own limit on a reader's demand says nothing of the value.
            (_, Some(slot)) if *error == SourceError::LocalLimit => self.agenda.reconsider(&slot, now),
            (ErrorClass::Caller | ErrorClass::Transient, Some(slot)) => {
                let failures = slot.note_failure(error, fetch, probe_at, now);
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
    teller: watch::Sender<Option<Outcome>>,
    hurry: Arc<Notify>,
    end: End,
}

enum End {
    NotYet,
    Landing,
    Landed(Outcome),
}

impl Flight {
    async fn fly(mut self, refreshing: Option<Refreshing>) {
        let asked = match refreshing {
            Some(refreshing) => self.refresh(refreshing).await,
            None => self.ask_cold().await,
        };
        self.land(asked);
    }

    async fn ask_cold(&self) -> Asked {
        let fallback_regions = self.shared.fallback_regions(&self.key);
        self.shared.upstream.ask_cold(&self.key, &fallback_regions).await
    }

    /// A refresh in its turn; once somebody waits who has nothing, it is his.
    async fn refresh(&self, refreshing: Refreshing) -> Asked {
        let fallback_regions = self.shared.fallback_regions(&self.key);
        let departure = refreshing.departure();
        let hurried = async {
            self.hurry.notified().await;
            if departure.has_been() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            asked = self.shared.upstream.refresh(&self.key, refreshing, &fallback_regions) => asked,
            () = hurried => self.ask_cold().await,
        }
    }

    fn land(&mut self, asked: Asked) {
        self.end = End::Landing;
        self.end = End::Landed(self.shared.land(&self.key, asked));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if matches!(self.end, End::NotYet) {
            self.land(Asked::without_call(SourceError::Aborted));
        }
        self.shared.flights.lock().remove(&self.key);
        let outcome = match std::mem::replace(&mut self.end, End::NotYet) {
            End::Landed(outcome) => outcome,
            End::NotYet | End::Landing => Err(SourceError::Aborted),
        };
        self.teller.send_replace(Some(outcome));
    }
}
