//! Every call to the source goes through here: in its turn, to an endpoint that is not dead, in a batch where that
//! saves calls, to another region where the first one fails.
//!
//! - `pace`, `breaker` and `ability` are pure: when a call may start, which endpoint is asked at all, and whether
//!   in batches.
//! - `limits` gives turns; `batches` collects refreshes into one call; `health` remembers how the source fares.
//!
//! A cold read is tried several times within the time that its reader waits. A refresh is tried once: the
//! refresher comes again by itself.

pub mod ability;
mod batches;
pub mod breaker;
mod health;
mod limits;
pub mod pace;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

pub use self::health::{PlaceSummary, UpstreamState, UpstreamSummary};

use self::ability::Ability;
use self::batches::{Batches, Seat};
use self::breaker::{Breaker, Change};
use self::health::Health;
use self::limits::{Class, Limits};
use super::slot::Fetch;
use crate::metrics::UpstreamMetrics;
use crate::secret::{Origin, SecretId, SecretKey, SecretVersion, with_region};
use crate::source::{SecretSource, SourceError, Tag};

/// The pause before the second attempt of a cold read, jittered over its upper half; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The most secrets that one tag may bring; whoever tags more needs a narrower tag.
const MAX_LISTED: usize = 10_000;

/// How the source is called. A reload may change all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallOptions {
    /// The longest that a reader without a value waits.
    pub fetch_timeout: Duration,
    /// The most attempts that are made for such a reader.
    pub max_attempts: u32,
    /// The most calls at a time.
    pub max_concurrency: u32,
    /// The most calls a second.
    pub rate: u32,
    /// The most calls a second that the reads of one caller may cause.
    pub rate_per_caller: u32,
    /// Whether refreshes may share calls.
    pub batch: bool,
}

impl CallOptions {
    /// The longest that one call goes on: readers may give up before.
    pub fn call_timeout(&self) -> Duration {
        self.fetch_timeout.max(Duration::from_secs(5))
    }
}

/// The way to the source.
pub(super) struct Upstream {
    source: Arc<dyn SecretSource>,
    options: ArcSwap<CallOptions>,
    limits: Arc<Limits>,
    endpoints: Mutex<HashMap<Origin, Endpoint>>,
    batches: Batches,
    health: Health,
    metrics: UpstreamMetrics,
    /// A dead endpoint answers again.
    recovered: Notify,
    /// That batches do not work has been said.
    batch_is_said: AtomicBool,
}

/// What is known of one region and role.
#[derive(Debug, Default)]
struct Endpoint {
    breaker: Breaker,
    ability: Ability,
}

/// How a question ended.
#[derive(Debug)]
pub(super) struct Asked {
    /// The call that the answer comes from.
    pub(super) fetch: Fetch,
    pub(super) answer: Result<SecretVersion, SourceError>,
    /// Whether there was a call at all; else the error is one that was known before.
    pub(super) called: bool,
    /// Where a dead endpoint was not asked: when it may be.
    pub(super) probe_at: Option<Instant>,
    /// For an answer of another region: why its own gave none.
    pub(super) instead_of: Option<SourceError>,
}

impl Asked {
    /// Nobody was asked.
    pub(super) fn without_call(error: SourceError) -> Self {
        Self { fetch: Fetch::now(), answer: Err(error), called: false, probe_at: None, instead_of: None }
    }

    fn is_transient_failure(&self) -> bool {
        self.answer.as_ref().is_err_and(SourceError::is_transient)
    }

    /// A replica's answer, as one about the secret itself.
    fn come_home(mut self, key: &SecretKey, instead_of: Option<SourceError>) -> Self {
        if let (Ok(version), Some(region)) = (&mut self.answer, key.region()) {
            version.arn = with_region(&version.arn, region);
        }
        self.instead_of = instead_of;
        self
    }
}

/// A refresh that waits for its turn or is under way.
#[derive(Debug)]
pub(super) struct Refreshing {
    /// Its place in a batch; without one it makes a call of its own.
    seat: Option<Seat>,
    departure: Departure,
}

impl Refreshing {
    /// Tells whether the refresh still waits for its turn.
    pub(super) fn departure(&self) -> Departure {
        self.departure.clone()
    }
}

/// Whether the call of a refresh has begun. Until then it can be dropped and is as if it had never been.
#[derive(Debug, Clone, Default)]
pub(super) struct Departure(Arc<AtomicBool>);

impl Departure {
    fn note(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_been(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a call waits for its turn.
#[derive(Clone, Copy)]
enum Line<'a> {
    Cold { patience: Duration },
    Refresh(&'a Departure),
}

impl Upstream {
    pub(super) fn new(
        source: Arc<dyn SecretSource>,
        options: CallOptions,
        metrics: UpstreamMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits: Limits::new(options.max_concurrency, options.rate),
            options: ArcSwap::from_pointee(options),
            source,
            endpoints: Mutex::default(),
            batches: Batches::default(),
            health: Health::default(),
            metrics,
            recovered: Notify::new(),
            batch_is_said: AtomicBool::new(false),
        })
    }

    pub(super) fn source(&self) -> &dyn SecretSource {
        &*self.source
    }

    /// Other options from now on.
    pub(super) fn reconfigure(&self, options: CallOptions) {
        self.limits.reconfigure(options.max_concurrency, options.rate);
        self.options.store(Arc::new(options));
    }

    /// Asks for a reader who has nothing: `key` first, then its replicas, all of that again while there is time.
    pub(super) async fn ask_cold(&self, key: &SecretKey, fallback_regions: &[Arc<str>]) -> Asked {
        let options = self.options.load_full();
        let start = Instant::now();
        let deadline = start + options.fetch_timeout;
        let replicas = replicas(key, fallback_regions);
        let mut attempt = 1;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // A call may outlast its reader and fill the cache, unless another region might answer in time.
            let limit = match u32::try_from(replicas.len()) {
                Ok(0) | Err(_) => (start + options.call_timeout()).saturating_duration_since(Instant::now()),
                Ok(others) => left / (others + 1),
            };
            let failed = self.call(key, Line::Cold { patience: left }, limit).await;
            if !failed.is_transient_failure() {
                return failed;
            }
            let why = failed.answer.as_ref().err().cloned();
            for (index, replica) in (0_u32..).zip(&replicas) {
                let left = deadline.saturating_duration_since(Instant::now());
                let others = u32::try_from(replicas.len()).unwrap_or(u32::MAX).saturating_sub(index).max(1);
                let asked = self.call(replica, Line::Cold { patience: left }, left / others).await;
                // That a replica is missing is no word about the secret: only a value counts.
                if asked.answer.is_ok() {
                    self.metrics.failed_over();
                    return asked.come_home(key, why);
                }
            }
            let pause =
                (FIRST_PAUSE * 2_u32.saturating_pow(attempt - 1)).mul_f64(0.5 + 0.5 * fastrand::f64());
            let is_worth_it = failed.called
                && attempt < options.max_attempts
                && why.is_some_and(|error| error.is_worth_another_attempt())
                && Instant::now() + pause < deadline;
            if !is_worth_it {
                return failed;
            }
            sleep(pause).await;
            attempt += 1;
        }
    }

    /// Has a refresh of `key` take its place in line, in a batch where that is possible.
    pub(super) fn begin_refresh(self: &Arc<Self>, key: &SecretKey) -> Refreshing {
        let departure = Departure::default();
        if key.selector.is_current() && self.batches_work(&key.place()) {
            Refreshing { seat: Some(self.join_batch(key, departure.clone())), departure }
        } else {
            Refreshing { seat: None, departure }
        }
    }

    /// Asks once for a value that is held, and once each replica if that fails.
    pub(super) async fn refresh(
        self: &Arc<Self>,
        key: &SecretKey,
        refreshing: Refreshing,
        fallback_regions: &[Arc<str>],
    ) -> Asked {
        let failed = self.refresh_here(key, refreshing).await;
        if !failed.is_transient_failure() {
            return failed;
        }
        for replica in replicas(key, fallback_regions) {
            let asked = self.refresh_here(&replica, self.begin_refresh(&replica)).await;
            if asked.answer.is_ok() {
                self.metrics.failed_over();
                return asked.come_home(key, failed.answer.err());
            }
        }
        failed
    }

    async fn refresh_here(&self, key: &SecretKey, refreshing: Refreshing) -> Asked {
        match refreshing.seat {
            None => self.call_for_refresh(key, &refreshing.departure).await,
            Some(seat) => seat.await.unwrap_or_else(|_| Asked::without_call(SourceError::Aborted)),
        }
    }

    async fn call_for_refresh(&self, key: &SecretKey, departure: &Departure) -> Asked {
        let limit = self.options.load().call_timeout();
        self.call(key, Line::Refresh(departure), limit).await
    }

    /// One call for one secret, which waits for its turn in `line` and for the answer for at most `limit`.
    async fn call(&self, key: &SecretKey, line: Line<'_>, limit: Duration) -> Asked {
        let place = key.place();
        if let Some(refused) = self.refused(&place) {
            return refused;
        }
        let turn = match line {
            Line::Cold { patience } => self.limits.enter(Class::Cold, Some(patience)).await,
            Line::Refresh(_) => self.limits.enter(Class::Refresh, None).await,
        };
        let turn = match turn {
            Ok(turn) => turn,
            Err(error) => return Asked::without_call(error),
        };
        if let Line::Refresh(departure) = line {
            departure.note();
        }
        if let Some(refused) = self.admit(&place) {
            return refused;
        }
        let fetch = Fetch::now();
        let answer = timeout(limit, self.source.fetch(key)).await.unwrap_or(Err(SourceError::Timeout));
        let answer = answer.and_then(|version| checked(key, version));
        drop(turn);
        let result = answer.as_ref().map_or_else(SourceError::kind, |_| "success");
        self.note_call(self.source.operation(key), fetch.at, result, answer.as_ref().err());
        self.note_endpoint(&place, std::slice::from_ref(key), answer.as_ref().err());
        Asked { fetch, answer, called: true, probe_at: None, instead_of: None }
    }

    /// The names of the secrets with a tag, in the default region and role; each page in its turn.
    pub(super) async fn list(&self, tag: &Tag) -> Result<Vec<SecretId>, SourceError> {
        let (mut ids, mut from) = (Vec::new(), None);
        loop {
            if let Some(refused) = self.refused(&Origin::default()) {
                refused.answer?;
            }
            let turn = self.limits.enter(Class::Refresh, None).await?;
            let (at, limit) = (Instant::now(), self.options.load().call_timeout());
            let answer =
                timeout(limit, self.source.list(tag, from)).await.unwrap_or(Err(SourceError::Timeout));
            drop(turn);
            let result = answer.as_ref().map_or_else(SourceError::kind, |_| "success");
            self.note_call(self.source.list_operation(), at, result, answer.as_ref().err());
            let page = answer?;
            ids.extend(page.ids);
            from = page.next;
            if from.is_none() || ids.len() >= MAX_LISTED {
                return Ok(ids);
            }
        }
    }

    /// Whether a refresh that starts now cannot have an answer within `patience`: its turn would not come, the
    /// source throttles us, or it is dead.
    pub(super) fn is_held_back(&self, key: &SecretKey, patience: Duration) -> bool {
        self.limits.would_keep_waiting(Class::Refresh, patience) || self.refused(&key.place()).is_some()
    }

    /// How a call would end at once.
    fn refused(&self, place: &Origin) -> Option<Asked> {
        self.endpoint(place, |endpoint| {
            let error = endpoint.breaker.refusal(Instant::now())?.clone();
            Some(Asked { probe_at: endpoint.breaker.probe_at(), ..Asked::without_call(error) })
        })
    }

    /// Lets a call go out to an endpoint; else how it ends, since the endpoint is dead.
    fn admit(&self, place: &Origin) -> Option<Asked> {
        self.endpoint(place, |endpoint| {
            let error = endpoint.breaker.admit(Instant::now()).err()?;
            Some(Asked { probe_at: endpoint.breaker.probe_at(), ..Asked::without_call(error) })
        })
    }

    /// Counts a call, and slows all down if it was throttled.
    fn note_call(
        &self,
        operation: &'static str,
        at: Instant,
        result: &'static str,
        error: Option<&SourceError>,
    ) {
        let now = Instant::now();
        self.metrics.called(operation, result, now - at);
        if let Some(SourceError::Throttled { retry_after }) = error {
            self.limits.throttled(*retry_after);
        }
        self.health.note(self.source.name(), error, now);
    }

    /// Notes what a call says of its endpoint.
    fn note_endpoint(&self, place: &Origin, keys: &[SecretKey], error: Option<&SourceError>) {
        let ids = keys.iter().map(|key| &key.id);
        let change = self
            .endpoint(place, |endpoint| endpoint.breaker.note(ids, error, Instant::now(), fastrand::f64()));
        let (region, role) = (place.region.as_deref(), place.role_arn.as_deref());
        match change {
            Change::None => {}
            Change::Opened => {
                let reason = error.map(SourceError::kind);
                tracing::warn!(
                    region,
                    role,
                    reason,
                    "the endpoint is taken for dead: only probed from now on"
                );
            }
            Change::Closed { after } => {
                let seconds = after.as_secs();
                tracing::info!(region, role, dead_for_seconds = seconds, "the endpoint answers again");
                self.recovered.notify_one();
            }
        }
        if change != Change::None {
            let open = self.endpoints().values().filter(|endpoint| endpoint.breaker.is_open()).count();
            self.metrics.breakers_open(open);
        }
    }

    /// Waits until a dead endpoint answers again.
    pub(super) async fn recovered(&self) {
        self.recovered.notified().await;
    }

    /// Finds out whether the source could answer, and says so in the log and in the summary if not.
    pub(super) async fn probe(&self) {
        if let Err(error) = self.source.probe().await {
            self.health.note(self.source.name(), Some(&error), Instant::now());
        }
    }

    /// How the source fares.
    pub(super) fn summary(&self) -> UpstreamSummary {
        let now = Instant::now();
        let place = |(place, endpoint): (&Origin, &Endpoint)| PlaceSummary {
            region: place.region.clone(),
            role_arn: place.role_arn.clone(),
            is_dead: endpoint.breaker.is_open(),
            batches: self.may_batch() && endpoint.ability.is_there(now),
        };
        let places = self.endpoints().iter().map(place).collect();
        self.health.summary(self.limits.allowed(), places, now)
    }

    fn endpoint<T>(&self, place: &Origin, look: impl FnOnce(&mut Endpoint) -> T) -> T {
        look(self.endpoints().entry(place.clone()).or_default())
    }

    fn endpoints(&self) -> MutexGuard<'_, HashMap<Origin, Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same secret in other regions.
fn replicas(key: &SecretKey, fallback_regions: &[Arc<str>]) -> Vec<SecretKey> {
    let elsewhere = fallback_regions.iter().filter(|region| key.region() != Some(&***region));
    elsewhere.filter_map(|region| key.in_region(region).ok()).collect()
}

/// An upstream that mixes answers up must not make one caller read another's secret.
fn checked(key: &SecretKey, version: SecretVersion) -> Result<SecretVersion, SourceError> {
    if version.answers(&key.id, &key.selector) {
        Ok(version)
    } else {
        Err(SourceError::Unusable { reason: "it is about another secret or version" })
    }
}
