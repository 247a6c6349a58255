//! Freshness: the heart of the daemon. A read comes in, a held value or one shared fetch answers it.
//!
//! - `answer` is what a read comes to.
//! - `freshness` and `schedule` are pure: what a reader gets at this age, what the clock does next.
//! - `store` holds what is held (moka), `slot` is the place of one secret in it.
//! - `flight` makes one fetch of however many askers, and lands its answer.
//! - `refresher` is the thin loop around `schedule`; `preload` keeps listed secrets held.
//! - `handover` passes what is held to the next process.
//! - `budget` bounds what one caller may cost the source.
//! - `upstream` makes the calls: bounded, in batches, not to who is dead, to another region where one fails.
//!
//! A hit does no I/O, takes no lock that a writer holds for long and copies no secret bytes.

mod answer;
mod budget;
mod demand;
mod flight;
mod freshness;
mod handover;
mod policy;
mod preload;
mod refresher;
mod refusals;
pub mod schedule;
mod slot;
mod store;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

pub use self::answer::{Answer, Forward, ReadError, Served};
pub use self::budget::Payer;
pub use self::demand::Demand;
pub use self::freshness::{Freshness, Lifetimes};
pub use self::handover::Entry;
pub use self::policy::{CacheOptions, GroupPolicy, Policies};
pub use self::preload::{Wanted, preload};
pub use self::slot::Held;
pub use self::store::{GroupSummary, StoreSummary};
pub use self::upstream::{CallOptions, PlaceSummary, UpstreamState, UpstreamSummary, ability, breaker, pace};

use self::answer::{fetched, served, served_held};
use self::budget::{Allowance, Budgets};
use self::flight::{Boarding, Flights, Outcome, Purpose};
use self::refresher::Agenda;
use self::refusals::Refusals;
use self::slot::Slot;
use self::store::Store;
use self::upstream::Upstream;
use crate::metrics::Metrics;
use crate::secret::{Origin, SecretKey, SecretVersion, VersionSelector};
use crate::source::{ErrorClass, SecretSource, SourceError, Tag};

/// A `no-cache` read asks again for a secret that was just refused no sooner than this.
const FORCED_INTERVAL: Duration = Duration::from_secs(1);

/// Where a secret is held. What is held there may be replaced, or removed for good: then nothing comes there again.
#[derive(Debug, Clone)]
pub struct Place(Arc<Slot>);

/// The cache. Clones are handles to one cache.
#[derive(Debug, Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

struct Shared {
    settings: ArcSwap<Settings>,
    store: Store,
    max_bytes: u64,
    refusals: Refusals,
    flights: Flights,
    budgets: Budgets,
    agenda: Agenda,
    upstream: Arc<Upstream>,
    /// Keys that are kept fresh though nobody reads them.
    pinned: ArcSwap<HashSet<SecretKey>>,
    metrics: Metrics,
}

/// All that a reload may change.
#[derive(Debug)]
pub struct Settings {
    /// How what is held is treated.
    pub options: CacheOptions,
    /// How the source is called.
    pub calls: CallOptions,
    /// What holds for each group.
    pub policies: Policies,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("source", &self.upstream.source().name()).finish_non_exhaustive()
    }
}

impl Cache {
    /// A cache over `source`. Nothing runs until [`Cache::run`] is spawned.
    pub fn new(source: Arc<dyn SecretSource>, settings: Settings, metrics: Metrics) -> Self {
        let max_bytes = settings.options.max_bytes;
        let shared = Shared {
            store: Store::new(max_bytes, metrics.cache.clone()),
            max_bytes,
            refusals: Refusals::new(),
            flights: Flights::default(),
            budgets: Budgets::default(),
            agenda: Agenda::default(),
            upstream: Upstream::new(source, settings.calls.clone(), metrics.upstream.clone()),
            settings: ArcSwap::from_pointee(settings),
            pinned: ArcSwap::default(),
            metrics,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Other settings from now on, for what is held as well; all but `max_bytes`.
    pub fn reconfigure(&self, settings: Settings) {
        self.shared.upstream.reconfigure(settings.calls.clone());
        let settings = Arc::new(settings);
        self.shared.settings.store(Arc::clone(&settings));
        let now = Instant::now();
        for slot in self.shared.store.slots() {
            slot.set_policy(settings.policies.of(&slot.key));
            self.shared.agenda.reconsider(&slot, now);
        }
    }

    /// Has these kept fresh whether read or not, once they are held, and no others.
    pub fn pin(&self, keys: HashSet<SecretKey>) {
        let pinned = Arc::new(keys);
        self.shared.pinned.store(Arc::clone(&pinned));
        let now = Instant::now();
        for slot in self.shared.store.slots() {
            if slot.pin_if(|name| pinned.contains(name)) {
                self.shared.agenda.reconsider(&slot, now);
            }
        }
    }

    /// Reads one secret under the reader's `demand`.
    ///
    /// Waits for nothing when a fresh value, or one within `stale_while_revalidate`, is held; at most
    /// `revalidate_timeout` when an older one is; at most `fetch_timeout` otherwise.
    pub async fn read(&self, key: &SecretKey, demand: &Demand) -> Result<Answer, ReadError> {
        let now = Instant::now();
        let slot = self.shared.store.find(key);
        let held = slot.as_ref().and_then(|slot| Some((slot, slot.held()?)));
        let Some((slot, held)) = held.filter(|(_, held)| held.freshness(now) != Freshness::Expired) else {
            return self.read_cold(key, demand, now).await;
        };
        self.shared.store.mark_read(slot, now);
        if demand.no_cache {
            return self.read_forced(slot, held, demand).await;
        }
        let age = held.age(now);
        let too_old = demand.is_too_old(age, held.policy.lifetimes.ttl);
        match held.policy.lifetimes.freshness(age) {
            freshness @ (Freshness::Fresh | Freshness::StaleWhileRevalidate) if !too_old => {
                Ok(self.at_once(slot, held, freshness, age, now))
            }
            _ if demand.only_if_cached && too_old => Err(ReadError::NotHeld),
            _ if demand.only_if_cached => Ok(served(held, Served::StaleIfError, age)),
            // That the value is too old is the reader's opinion alone, and each of its reads would cost a call.
            Freshness::Fresh if !self.shared.may_revalidate(slot, demand.payer) => {
                Ok(served(held, Served::Hit, age))
            }
            _ => self.revalidate(slot, held, now).await,
        }
    }

    /// Where a secret is held; `None` if it is not.
    pub fn place_of(&self, key: &SecretKey) -> Option<Place> {
        self.shared.store.find(key).filter(|slot| slot.held().is_some()).map(Place)
    }

    /// Reads what is held at a place, as [`Cache::read`] would for a reader without demands; `None` where that would have to
    /// look further, or wait, and where the reader `may_have` it not.
    pub fn read_held(
        &self,
        place: &Place,
        now: Instant,
        may_have: impl FnOnce(&SecretVersion) -> bool,
    ) -> Option<Answer> {
        let Place(slot) = place;
        let held = slot.held()?;
        let age = held.age(now);
        let freshness = held.policy.lifetimes.freshness(age);
        let is_young = matches!(freshness, Freshness::Fresh | Freshness::StaleWhileRevalidate);
        if !is_young || !may_have(&held.version) {
            return None;
        }
        self.shared.store.mark_read(slot, now);
        Some(self.at_once(slot, held, freshness, age, now))
    }

    /// Serves a value that is young enough, and has it refreshed if it is due.
    fn at_once(
        &self,
        slot: &Arc<Slot>,
        held: Arc<Held>,
        freshness: Freshness,
        age: Duration,
        now: Instant,
    ) -> Answer {
        let is_fresh = freshness == Freshness::Fresh;
        if !is_fresh || now >= held.refresh_at {
            self.shared.refresh(slot, now);
        }
        let served_as = match is_fresh {
            true => Served::Hit,
            false if slot.is_troubled() => Served::StaleIfError,
            false => Served::StaleWhileRevalidate,
        };
        served(held, served_as, age)
    }

    /// Reads like [`Cache::read`]; while the reader knows what is held, waits for another version of it, at most
    /// until `until`. The secret is kept fresh meanwhile. An error, such as a revocation, ends the waiting.
    pub async fn read_next(
        &self,
        key: &SecretKey,
        demand: &Demand,
        until: Instant,
        is_known: impl Fn(&Held) -> bool,
    ) -> Result<Answer, ReadError> {
        let answer = self.read(key, demand).await?;
        self.next(key, answer, demand.payer, until, is_known).await
    }

    /// While the reader knows this answer, waits for another version; as [`Cache::read_next`].
    pub async fn next(
        &self,
        key: &SecretKey,
        mut answer: Answer,
        payer: Option<Payer>,
        until: Instant,
        is_known: impl Fn(&Held) -> bool,
    ) -> Result<Answer, ReadError> {
        let demand = Demand { payer, ..Demand::default() };
        while is_known(&answer.held) && Instant::now() < until {
            // Where it was evicted at once there is no room for it, and nothing to wait on.
            let Some(slot) = self.shared.store.find(key) else { break };
            let watch = slot.watch();
            // Nobody may have used it until now, so it may have been due and not been refreshed.
            self.shared.agenda.reconsider(&slot, Instant::now());
            let in_time = timeout_at(until, watch.changed(&answer.held)).await.is_ok();
            drop(watch);
            answer = self.read(key, &demand).await?;
            if !in_time {
                break;
            }
        }
        Ok(answer)
    }

    /// A held value that the reader or its age makes doubtful: wait a moment for something newer, and
    /// not at all while the source is known to fail.
    async fn revalidate(&self, slot: &Arc<Slot>, held: Arc<Held>, now: Instant) -> Result<Answer, ReadError> {
        let patience = self.shared.settings.load().options.revalidate_timeout;
        if slot.is_troubled() || self.shared.upstream.is_held_back(&slot.key, patience) {
            self.shared.refresh(slot, now);
            return Ok(served_held(held, now));
        }
        let (mut waiter, collapsed) = match self.shared.board(&slot.key, Purpose::Refresh, || None) {
            Boarding::Landed(outcome) => return fetched(outcome, Forward::Stale, true, &held.policy),
            Boarding::Waiting { waiter, collapsed } => (waiter, collapsed),
        };
        match timeout(patience, waiter.outcome()).await {
            Ok(Err(error)) if error.class() != ErrorClass::Authoritative => {
                Ok(served_held(held, Instant::now()))
            }
            Ok(outcome) => fetched(outcome, Forward::Stale, collapsed, &held.policy),
            Err(_) => {
                slot.note_slow();
                Ok(served_held(held, Instant::now()))
            }
        }
    }

    /// `no-cache` where something is held: the source's word counts, its errors too, unless the reader
    /// accepts a stale value then.
    async fn read_forced(&self, slot: &Slot, held: Arc<Held>, demand: &Demand) -> Result<Answer, ReadError> {
        if demand.only_if_cached {
            return Err(ReadError::NotHeld);
        }
        let policy = Arc::clone(&held.policy);
        let answer = match self.shared.may_force(slot) {
            Ok(()) => {
                let fetch = self.fetch(&slot.key, demand.payer, || None).await;
                fetch.and_then(|(outcome, collapsed)| fetched(outcome, Forward::Request, collapsed, &policy))
            }
            Err(retry_after) => {
                policy.metrics.miss();
                Err(ReadError::ForcedTooOften { retry_after })
            }
        };
        answer.or_else(|error| {
            let now = Instant::now();
            let staleness = held.age(now).saturating_sub(policy.lifetimes.ttl);
            let is_accepted = demand.stale_if_error.is_some_and(|accepted| accepted >= staleness);
            if is_accepted && error.is_transient() && held.freshness(now) != Freshness::Expired {
                return Ok(served_held(held, now));
            }
            Err(error)
        })
    }

    /// Nothing usable is held.
    async fn read_cold(&self, key: &SecretKey, demand: &Demand, now: Instant) -> Result<Answer, ReadError> {
        if let Some(held) = self.held_as_current(key, demand, now) {
            let age = held.age(now);
            return Ok(served(held, Served::Hit, age));
        }
        let settings = self.shared.settings.load_full();
        let policy = settings.policies.of(key);
        if let Some(refusal) = self.shared.refusals.find(key, now)
            && !(demand.no_cache && now >= refusal.since + FORCED_INTERVAL)
        {
            policy.metrics.negative();
            let remembered_for = Some(refusal.until - now);
            return Err(ReadError::Source { error: refusal.error, remembered_for });
        }
        if demand.only_if_cached {
            policy.metrics.miss();
            return Err(ReadError::NotHeld);
        }
        // Whoever finds no flight looks again before starting one: the last may have landed just now.
        let landed_just_now = || {
            if demand.no_cache {
                return None;
            }
            let now = Instant::now();
            let refusal = self.shared.refusals.find(key, now).map(|refusal| Err(refusal.error));
            refusal.or_else(|| {
                let held = self.shared.store.find(key)?.held()?;
                (held.freshness(now) == Freshness::Fresh).then_some(Ok(held))
            })
        };
        let (outcome, collapsed) = self.fetch(key, demand.payer, landed_just_now).await?;
        let forward = if demand.no_cache { Forward::Request } else { Forward::Miss };
        fetched(outcome, forward, collapsed, policy)
    }

    /// A version that is asked for by its id, where it is the current one, which is held and fresh: what has an id
    /// never changes.
    fn held_as_current(&self, key: &SecretKey, demand: &Demand, now: Instant) -> Option<Arc<Held>> {
        let version_id = key.selector.id().filter(|_| !demand.no_cache)?;
        let slot = self.shared.store.find(&key.current())?;
        let held = slot.held()?;
        let is_it = *held.version.version_id == *version_id
            && key
                .selector
                .stage()
                .is_none_or(|stage| held.version.version_stages.iter().any(|has| has == stage));
        let too_old = demand.is_too_old(held.age(now), held.policy.lifetimes.ttl);
        if !is_it || too_old || held.freshness(now) != Freshness::Fresh {
            return None;
        }
        self.shared.store.mark_read(&slot, now);
        Some(held)
    }

    /// Waits for one shared fetch, at most `fetch_timeout`. The fetch goes on when the waiting ends.
    async fn fetch(
        &self,
        key: &SecretKey,
        payer: Option<Payer>,
        landed_just_now: impl Fn() -> Option<Outcome>,
    ) -> Result<(Outcome, bool), ReadError> {
        let patience = self.shared.settings.load().options.fetch_timeout;
        let until = Instant::now() + patience;
        if let Some(payer) = payer {
            self.pay(payer, until, || self.shared.flights.has(key) || landed_just_now().is_some()).await?;
        }
        Ok(match self.shared.board(key, Purpose::Cold, landed_just_now) {
            Boarding::Landed(outcome) => (outcome, true),
            Boarding::Waiting { mut waiter, collapsed } => {
                let outcome = timeout_at(until, waiter.outcome()).await;
                (outcome.unwrap_or(Err(SourceError::Timeout)), collapsed)
            }
        })
    }

    /// Charges a caller for one call, unless `is_free` says that none is needed. Who has spent its share waits for more,
    /// if that comes before `until`.
    async fn pay(&self, payer: Payer, until: Instant, is_free: impl Fn() -> bool) -> Result<(), ReadError> {
        let allowance = self.shared.allowance();
        let budgets = &self.shared.budgets;
        let mut in_line = None;
        loop {
            let now = Instant::now();
            if is_free() {
                return Ok(());
            }
            let Err(at) = budgets.take(payer, allowance, now) else { return Ok(()) };
            if in_line.is_none() {
                in_line = budgets.stand_in_line(payer, allowance, until - now, now);
            }
            if in_line.is_none() || at >= until {
                return Err(ReadError::CallerOverBudget { retry_after: at - now });
            }
            sleep_until(at).await;
        }
    }

    /// Keeps what is held fresh, and drops what is not used; returns only if the refresher fails.
    pub async fn run(self) {
        refresher::run(&self.shared).await;
    }

    /// Finds out whether the source could answer, and says so in the log and in the summary if not.
    pub async fn probe(&self) {
        self.shared.upstream.probe().await;
    }

    /// The secrets with a tag, by name.
    pub async fn list(&self, tag: &Tag) -> Result<Vec<SecretKey>, SourceError> {
        let key = |id| SecretKey { origin: Origin::default(), id, selector: VersionSelector::current() };
        Ok(self.shared.upstream.list(tag).await?.into_iter().map(key).collect())
    }

    /// Has a secret that is not held fetched in its turn, and waits for that as long as it takes. No read: it
    /// shares calls with others, and waits behind readers.
    pub async fn warm(&self, key: &SecretKey) -> Result<(), SourceError> {
        let landed_just_now = || self.shared.store.find(key)?.held().map(Ok);
        match self.shared.board(key, Purpose::Refresh, landed_just_now) {
            Boarding::Landed(outcome) => outcome.map(drop),
            Boarding::Waiting { mut waiter, .. } => waiter.outcome().await.map(drop),
        }
    }

    /// Whether a usable value is held, without counting that as a read.
    pub fn holds(&self, key: &SecretKey) -> bool {
        self.shared.store.find(key).is_some_and(|slot| slot.held().is_some())
    }

    /// Drops all that is held, and keeps nothing from now on. Reads are answered as before, each by a fetch.
    pub fn close(&self) {
        self.shared.store.close();
    }

    /// A handle that shows how the cache fares and can never show a value.
    pub fn view(&self) -> CacheView {
        CacheView { shared: Arc::clone(&self.shared) }
    }
}

/// What may be known of a cache without reading a secret.
#[derive(Debug, Clone)]
pub struct CacheView {
    shared: Arc<Shared>,
}

impl CacheView {
    /// What is held; sets the gauges on the way.
    pub fn summary(&self) -> StoreSummary {
        let summary = self.shared.store.summary(Instant::now());
        self.shared.metrics.cache.describe(summary.entries, summary.bytes, summary.stale, summary.oldest);
        self.shared.metrics.upstream.rate_allowed(self.upstream().rate);
        summary
    }

    /// How the source fares.
    pub fn upstream(&self) -> UpstreamSummary {
        self.shared.upstream.summary()
    }

    /// The source's name.
    pub fn source(&self) -> &'static str {
        self.shared.upstream.source().name()
    }

    /// The bytes that held values may take.
    pub fn max_bytes(&self) -> u64 {
        self.shared.max_bytes
    }
}

impl ReadError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Source { error, .. } => error.is_transient(),
            Self::ForcedTooOften { .. } | Self::CallerOverBudget { .. } => true,
            Self::NotHeld => false,
        }
    }
}

impl Shared {
    /// Starts a fetch in the background, unless one is under way or, after a failure, its time has not come;
    /// and with it fetches of others that would soon be due, as many as share a call.
    fn refresh(self: &Arc<Self>, slot: &Arc<Slot>, now: Instant) {
        if !slot.may_attempt(now) {
            return;
        }
        self.begin_refresh(slot);
        let place = slot.key.place();
        for mate in self.agenda.take_ahead(&place, self.upstream.room_in_batch(&place), now) {
            self.begin_refresh(&mate);
        }
    }

    fn begin_refresh(self: &Arc<Self>, slot: &Slot) {
        slot.set_refreshing(true);
        let _under_way: Boarding = self.board(&slot.key, Purpose::Refresh, || None);
    }

    /// Whether a `no-cache` read may ask the source; else the time until it may.
    fn may_force(&self, slot: &Slot) -> Result<(), Duration> {
        if self.flights.has(&slot.key) {
            return Ok(());
        }
        slot.take_forced(Instant::now())
    }

    /// Whether a read may have a fresh value revalidated: bounded for the secret as `no-cache` is, and for the caller.
    fn may_revalidate(&self, slot: &Slot, payer: Option<Payer>) -> bool {
        if self.flights.has(&slot.key) {
            return true;
        }
        let now = Instant::now();
        let may_pay = |payer| self.budgets.take(payer, self.allowance(), now).is_ok();
        slot.take_forced(now).is_ok() && payer.is_none_or(may_pay)
    }

    /// What one caller may cost the source.
    fn allowance(&self) -> Allowance {
        Allowance::per_second(self.settings.load().calls.rate_per_caller)
    }

    fn is_pinned(&self, key: &SecretKey) -> bool {
        self.pinned.load().contains(key)
    }

    fn fallback_regions(&self, key: &SecretKey) -> Arc<[Arc<str>]> {
        Arc::clone(&self.settings.load().policies.of(key).fallback_regions)
    }
}
