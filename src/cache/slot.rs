//! One held secret: a swappable cell for its current version, and what the clock needs to know.
//!
//! Readers only load and mark; whoever replaces or empties the cell does so under the slot's lock, which
//! is never held across an await. Emptying is final, so that a value that was revoked or evicted cannot
//! come back through somebody who still holds the slot.

use std::any::Any;
use std::collections::HashSet;
use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::freshness::Freshness;
use super::policy::GroupPolicy;
use super::schedule::{self, EntryClock};
use crate::secret::{SecretKey, SecretVersion};
use crate::source::SourceError;

/// The call that an answer came from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    /// When it began.
    pub(super) at: Instant,
    /// Between 0 and 1: what came in one call is due again at one moment, and with that in one call.
    pub(super) jitter: f64,
}

impl Fetch {
    /// A call that begins now.
    pub(super) fn now() -> Self {
        Self { at: Instant::now(), jitter: fastrand::f64() }
    }
}

/// A version as it is held and served. Immutable; replaced as a whole.
#[derive(Debug)]
pub struct Held {
    /// What the source said.
    pub version: Arc<SecretVersion>,
    /// The entity tag, quotes included (RFC 9110 section 8.8.3): finished, so that a hit renders nothing.
    pub etag: Bytes,
    /// The group's lifetimes and counters.
    pub policy: Arc<GroupPolicy>,
    /// When the fetch began: the last moment at which the value is known to have been current.
    pub fetched_at: Instant,
    /// Whatever a way in makes of it for one reader and may use for the next.
    pub keepsake: Keepsake,
    jitter: f64,
    /// When it is refreshed, if it is in use.
    pub(super) refresh_at: Instant,
}

/// One value of a type that the cache does not know, made when it is first asked for.
#[derive(Default)]
pub struct Keepsake(OnceLock<Box<dyn Any + Send + Sync>>);

impl Keepsake {
    /// The value; `None` if somebody else keeps one of another type here.
    pub fn get_or_default<T: Default + Send + Sync + 'static>(&self) -> Option<&T> {
        self.0.get_or_init(|| Box::<T>::default()).downcast_ref()
    }
}

impl fmt::Debug for Keepsake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keepsake")
    }
}

impl Held {
    pub(super) fn new(version: Arc<SecretVersion>, policy: Arc<GroupPolicy>, fetch: Fetch) -> Self {
        let etag = Bytes::from(format!("\"{}\"", version.version_id));
        let refresh_at = fetch.at + schedule::refresh_ahead(policy.lifetimes.ttl, fetch.jitter);
        Self {
            version,
            etag,
            policy,
            fetched_at: fetch.at,
            keepsake: Keepsake::default(),
            jitter: fetch.jitter,
            refresh_at,
        }
    }

    /// Time since the fetch began: the `Age` of RFC 9111 section 5.1.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.fetched_at)
    }

    pub(super) fn freshness(&self, now: Instant) -> Freshness {
        self.policy.lifetimes.freshness(self.age(now))
    }
}

/// The place of one secret in the cache. All spellings of it lead here.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) id: u64,
    /// How it is asked for upstream: the spelling that was asked for first.
    pub(super) key: SecretKey,
    /// The same secret by its complete ARN, as the source gave it.
    pub(super) canonical: SecretKey,
    held: ArcSwapOption<Held>,
    state: Mutex<SlotState>,
    /// Milliseconds since `epoch`; what readers write, so it is no lock.
    last_read: AtomicU64,
    read_since_fetch: AtomicBool,
    /// A fetch is under way.
    refreshing: AtomicBool,
    /// The last attempt failed, or one under way takes longer than a reader should wait.
    troubled: AtomicBool,
    /// When it was first fetched.
    epoch: Instant,
    is_pinned: AtomicBool,
    /// Those who wait for another version: as long as there are any, the secret is kept fresh.
    watchers: AtomicUsize,
    /// Wakes them when another version is held, or nothing any more.
    changed: Notify,
}

/// `no-cache` reads that may ask at once, and the time after which one more may.
const FORCED_BURST: u32 = 10;
const FORCED_REFILL: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct SlotState {
    is_closed: bool,
    /// Every key that leads here.
    names: HashSet<SecretKey>,
    failures: u32,
    retry_at: Option<Instant>,
    /// When all forced reads that were made will be forgotten.
    forced_until: Option<Instant>,
}

impl Slot {
    pub(super) fn new(id: u64, key: SecretKey, canonical: SecretKey, epoch: Instant) -> Self {
        Self {
            id,
            key,
            canonical,
            held: ArcSwapOption::empty(),
            state: Mutex::default(),
            last_read: AtomicU64::new(0),
            read_since_fetch: AtomicBool::new(false),
            refreshing: AtomicBool::new(false),
            troubled: AtomicBool::new(false),
            epoch,
            is_pinned: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            changed: Notify::new(),
        }
    }

    /// What is held, if the slot has not been emptied.
    pub(super) fn held(&self) -> Option<Arc<Held>> {
        self.held.load_full()
    }

    /// Notes a read. True when it is the first within this millisecond: only then is it worth telling
    /// the store, which keeps what was used last.
    pub(super) fn mark_read(&self, now: Instant) -> bool {
        if !self.read_since_fetch.load(Ordering::Relaxed) {
            self.read_since_fetch.store(true, Ordering::Relaxed);
        }
        // Counted from 1, so that the first read is always news.
        let since = now.saturating_duration_since(self.epoch);
        let now = since.as_secs() * 1000 + u64::from(since.subsec_millis()) + 1;
        let is_news = self.last_read.load(Ordering::Relaxed) != now;
        if is_news {
            self.last_read.store(now, Ordering::Relaxed);
        }
        is_news
    }

    /// Replaces what is held, unless the slot was emptied or holds something fetched later; returns what
    /// it holds then.
    pub(super) fn store(&self, held: Arc<Held>) -> Option<Arc<Held>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        let current = self.held();
        if let Some(current) = &current
            && current.fetched_at > held.fetched_at
        {
            return Some(Arc::clone(current));
        }
        state.failures = 0;
        state.retry_at = None;
        self.troubled.store(false, Ordering::Relaxed);
        self.read_since_fetch.store(false, Ordering::Relaxed);
        let is_other = current.is_none_or(|current| current.version != held.version);
        self.held.store(Some(Arc::clone(&held)));
        if is_other {
            self.changed.notify_waiters();
        }
        Some(held)
    }

    /// Empties the slot for good and returns the keys that led to it; `None` if that had been done.
    pub(super) fn close(&self) -> Option<HashSet<SecretKey>> {
        let mut state = self.lock();
        if state.is_closed {
            return None;
        }
        state.is_closed = true;
        self.held.store(None);
        self.changed.notify_waiters();
        Some(std::mem::take(&mut state.names))
    }

    /// Every key that leads here.
    pub(super) fn names(&self) -> HashSet<SecretKey> {
        self.lock().names.clone()
    }

    /// Notes that `name` leads here; false if the slot has been emptied.
    pub(super) fn add_name(&self, name: SecretKey) -> bool {
        let mut state = self.lock();
        if !state.is_closed {
            state.names.insert(name);
        }
        !state.is_closed
    }

    /// Notes a failed attempt; returns how many there were in a row. Those that failed in one call are tried again
    /// in one call.
    ///
    /// One that was not made, because the endpoint is dead, is no failure: the next is made when it is probed.
    pub(super) fn note_failure(
        &self,
        error: &SourceError,
        fetch: Fetch,
        probe_at: Option<Instant>,
        now: Instant,
    ) -> u32 {
        let mut state = self.lock();
        self.troubled.store(true, Ordering::Relaxed);
        if let Some(probe_at) = probe_at {
            state.retry_at = Some(probe_at.max(now + Duration::from_millis(1)));
            return state.failures;
        }
        state.failures = state.failures.saturating_add(1);
        let retry_after = match error {
            SourceError::Throttled { retry_after } => *retry_after,
            _ => None,
        };
        state.retry_at = Some(now + schedule::backoff(state.failures, retry_after, fetch.jitter));
        state.failures
    }

    /// Notes that a reader waited in vain, so that the next ones don't.
    pub(super) fn note_slow(&self) {
        self.troubled.store(true, Ordering::Relaxed);
    }

    /// Whether the last attempt failed or the present one drags on.
    pub(super) fn is_troubled(&self) -> bool {
        self.troubled.load(Ordering::Relaxed)
    }

    /// Whether an attempt may start now: none is under way, and after a failure its turn has come.
    pub(super) fn may_attempt(&self, now: Instant) -> bool {
        !self.refreshing.load(Ordering::Relaxed) && self.lock().retry_at.is_none_or(|at| now >= at)
    }

    pub(super) fn set_refreshing(&self, refreshing: bool) {
        self.refreshing.store(refreshing, Ordering::Relaxed);
    }

    pub(super) fn is_refreshing(&self) -> bool {
        self.refreshing.load(Ordering::Relaxed)
    }

    /// Takes one of the reads that may ask the source though a value is held; else says when there is one.
    pub(super) fn take_forced(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.lock();
        let until = state.forced_until.filter(|until| *until > now).unwrap_or(now) + FORCED_REFILL;
        let too_early = (until - now).saturating_sub(FORCED_REFILL * FORCED_BURST);
        if !too_early.is_zero() {
            return Err(too_early);
        }
        state.forced_until = Some(until);
        Ok(())
    }

    pub(super) fn pin(&self) {
        self.is_pinned.store(true, Ordering::Relaxed);
    }

    /// Kept fresh from now on if one of its names says so, else only while it is read; true if that is news.
    pub(super) fn pin_if(&self, is_pinned: impl Fn(&SecretKey) -> bool) -> bool {
        let is_pinned = self.lock().names.iter().any(is_pinned);
        self.is_pinned.swap(is_pinned, Ordering::Relaxed) != is_pinned
    }

    /// Keeps the secret fresh for somebody who waits for another version of it.
    pub(super) fn watch(self: &Arc<Self>) -> Watch {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watch { slot: Arc::clone(self) }
    }

    /// Holds what it holds under another policy.
    pub(super) fn set_policy(&self, policy: &Arc<GroupPolicy>) {
        let state = self.lock();
        if let Some(held) = self.held().filter(|_| !state.is_closed) {
            let fetch = Fetch { at: held.fetched_at, jitter: held.jitter };
            let held = Held::new(Arc::clone(&held.version), Arc::clone(policy), fetch);
            self.held.store(Some(Arc::new(held)));
        }
    }

    /// May be tried again at once, whatever went wrong before.
    pub(super) fn forget_failures(&self) {
        self.lock().retry_at = None;
    }

    /// What the clock needs to know; `None` once the slot has been emptied.
    pub(super) fn clock(&self, idle_timeout: Duration) -> Option<EntryClock> {
        let held = self.held()?;
        Some(EntryClock {
            lifetimes: held.policy.lifetimes,
            fetched_at: held.fetched_at,
            refresh_at: held.refresh_at,
            retry_at: self.lock().retry_at,
            last_read: self.last_read(),
            read_since_fetch: self.read_since_fetch.load(Ordering::Relaxed),
            is_pinned: self.is_pinned.load(Ordering::Relaxed) || self.watchers.load(Ordering::Relaxed) > 0,
            idle_timeout,
        })
    }

    /// When it was last read; when it was first fetched if nobody has read it.
    pub(super) fn last_read(&self) -> Instant {
        self.epoch + Duration::from_millis(self.last_read.load(Ordering::Relaxed))
    }

    /// The bytes that the slot accounts for: the version, and its own parts and names, roughly.
    pub(super) fn weight(&self) -> usize {
        const PARTS: usize = 2048;
        PARTS + self.held.load().as_ref().map_or(0, |held| held.version.weight())
    }

    fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody waits for another version. The secret is kept fresh as long as this lives.
#[derive(Debug)]
pub(super) struct Watch {
    slot: Arc<Slot>,
}

impl Watch {
    /// Waits until something else is held than `known`, or nothing.
    pub(super) async fn changed(&self, known: &Held) {
        let mut changed = pin!(self.slot.changed.notified());
        // Heard from here on; what happened before is looked at now.
        changed.as_mut().enable();
        if self.slot.held().is_some_and(|held| held.version == known.version) {
            changed.await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.slot.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}
