//! The cache on paused time, against a scripted source.

mod budgets;
mod calls;
mod handover;
mod reads;
mod watching;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::time::{advance, sleep};

use super::*;
use crate::secret::{
    Group, Origin, Resolver, SecretPath, SecretValue, SecretVersion, Unlisted, VersionSelector,
};
use crate::source::{BatchError, Fetching, FetchingBatch};

const ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
const SECOND: Duration = Duration::from_secs(1);

/// A source that answers as told: by name a version number, or an error, after a delay.
#[derive(Default)]
struct Scripted {
    secrets: Mutex<HashMap<String, u32>>,
    /// Versions that a region has instead, or why it gives none.
    regions: Mutex<HashMap<String, Result<u32, SourceError>>>,
    failure: Mutex<Option<SourceError>>,
    delay: Mutex<Duration>,
    calls: AtomicUsize,
    /// What a batch answers instead, if anything; without `batches` there are none.
    batches: Mutex<Option<Result<(), BatchError>>>,
    /// When each call began, and how many secrets it was about.
    log: Mutex<Vec<(Instant, usize)>>,
    panics: std::sync::atomic::AtomicBool,
    size: AtomicUsize,
    /// Calls a second beyond which it throttles; 0 is no limit.
    quota: AtomicUsize,
}

impl Scripted {
    fn put(&self, name: &str, version: u32) {
        self.secrets.lock().unwrap().insert(name.to_owned(), version);
    }

    fn delete(&self, name: &str) {
        self.secrets.lock().unwrap().remove(name);
    }

    fn fail(&self, failure: Option<SourceError>) {
        *self.failure.lock().unwrap() = failure;
    }

    fn delay(&self, delay: Duration) {
        *self.delay.lock().unwrap() = delay;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    async fn called(&self, about: usize) {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.log.lock().unwrap().push((Instant::now(), about));
        let delay = *self.delay.lock().unwrap();
        sleep(delay).await;
        assert!(!self.panics.load(Ordering::SeqCst), "the source was told to panic");
    }

    fn answer(&self, key: &SecretKey) -> Result<SecretVersion, SourceError> {
        let name = key.id.name();
        let name = if key.id.is_arn() { name.strip_suffix("-AbCdEf").unwrap_or(name) } else { name };
        let version = *self.secrets.lock().unwrap().get(name).ok_or(SourceError::NotFound)?;
        let region = key.region().unwrap_or("us-west-2");
        let version = self.regions.lock().unwrap().get(region).cloned().unwrap_or(Ok(version))?;
        let padding = "x".repeat(self.size.load(Ordering::SeqCst));
        Ok(SecretVersion {
            arn: format!("{}{name}-AbCdEf", ARN.replace("us-west-2", region)),
            name: name.to_owned(),
            version_id: format!("v{version}").into(),
            version_stages: vec!["AWSCURRENT".to_owned()],
            created_date: Some(SystemTime::UNIX_EPOCH + SECOND * version),
            value: SecretValue::text(format!("{name} {version}{padding}")),
        })
    }
}

impl SecretSource for Scripted {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn operation(&self, _key: &SecretKey) -> &'static str {
        "GetSecretValue"
    }

    fn fetch<'a>(&'a self, key: &'a SecretKey) -> Fetching<'a> {
        Box::pin(async move {
            self.called(1).await;
            let quota = self.quota.load(Ordering::SeqCst);
            let recent = |log: &[(Instant, usize)]| {
                log.iter().rev().take_while(|(at, _)| at.elapsed() < SECOND).count()
            };
            if quota > 0 && recent(&self.log.lock().unwrap()) > quota {
                return Err(SourceError::Throttled { retry_after: None });
            }
            match self.failure.lock().unwrap().clone() {
                Some(failure) => Err(failure),
                None => self.answer(key),
            }
        })
    }

    fn max_batch(&self) -> usize {
        if self.batches.lock().unwrap().is_some() { 20 } else { 1 }
    }

    fn fetch_batch<'a>(&'a self, keys: &'a [SecretKey]) -> FetchingBatch<'a> {
        Box::pin(async move {
            self.called(keys.len()).await;
            self.batches.lock().unwrap().clone().unwrap()?;
            match self.failure.lock().unwrap().clone() {
                Some(failure) => Err(BatchError::Failed(failure)),
                None => Ok(keys.iter().map(|key| Some(self.answer(key))).collect()),
            }
        })
    }
}

fn options() -> CacheOptions {
    CacheOptions {
        lifetimes: Lifetimes {
            ttl: SECOND * 100,
            stale_while_revalidate: SECOND * 50,
            stale_if_error: SECOND * 1000,
        },
        negative_ttl: SECOND * 10,
        idle_timeout: SECOND * 500,
        fetch_timeout: SECOND * 3,
        revalidate_timeout: Duration::from_millis(250),
        max_bytes: 1 << 20,
    }
}

fn calls() -> CallOptions {
    CallOptions {
        fetch_timeout: SECOND * 3,
        max_attempts: 1,
        max_concurrency: 100,
        rate: 1000,
        rate_per_caller: 500,
        batch: true,
    }
}

struct Rig {
    cache: Cache,
    source: Arc<Scripted>,
    resolver: Arc<Resolver>,
}

impl Rig {
    fn new() -> Self {
        Self::with(options(), calls(), &[])
    }

    fn with(options: CacheOptions, calls: CallOptions, pinned: &[&str]) -> Self {
        let source = Arc::new(Scripted::default());
        source.put("team-a/db", 1);
        let group = Group {
            name: "team-a".into(),
            prefix: "team-a/".into(),
            origin: Origin::default(),
            ttl: None,
            fallback_regions: Vec::new(),
        };
        let replicated = Group {
            name: "replicated".into(),
            prefix: "replicated/".into(),
            origin: Origin { region: Some("us-west-2".into()), role_arn: None },
            fallback_regions: vec!["us-east-1".into(), "eu-west-1".into()],
            ..group.clone()
        };
        let resolver = Arc::new(Resolver::new([group, replicated], Unlisted::Allow));
        let metrics = Metrics::new();
        let policies = Policies::new(Arc::clone(&resolver), options.lifetimes, &metrics.cache);
        let dyn_source = Arc::clone(&source) as Arc<dyn SecretSource>;
        let cache = Cache::new(dyn_source, Settings { options, calls, policies }, metrics);
        cache.pin(pinned.iter().map(|raw| key(&resolver, raw)).collect());
        tokio::spawn(cache.clone().run());
        Self { cache, source, resolver }
    }

    fn key(&self, raw: &str) -> SecretKey {
        key(&self.resolver, raw)
    }

    async fn read_under(&self, raw: &str, control: &str) -> Result<Answer, ReadError> {
        let mut demand = Demand::default();
        demand.add_cache_control(control);
        self.cache.read(&self.key(raw), &demand).await
    }

    async fn read(&self, raw: &str) -> Result<Answer, ReadError> {
        self.read_under(raw, "").await
    }

    async fn error(&self, raw: &str) -> SourceError {
        match self.read(raw).await {
            Err(ReadError::Source { error, .. }) => error,
            other => panic!("expected an error of the source, got {other:?}"),
        }
    }

    /// One read of each hot secret: all must be served from memory.
    async fn read_all(&self, count: usize) {
        for index in 0..count {
            let answer = self.read(&format!("hot/{index}")).await.unwrap();
            assert!(!matches!(answer.served, Served::Fetched { .. }), "a reader waited for hot/{index}");
        }
    }

    /// When calls were made since the rig was ready, and about how many secrets each.
    fn log(&self) -> Vec<(Instant, usize)> {
        self.source.log.lock().unwrap().clone()
    }

    fn metric(&self, line: &str) -> u64 {
        let page = String::from_utf8(self.cache.shared.metrics.render().unwrap()).unwrap();
        let found = page.lines().find_map(|candidate| candidate.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |number| number.parse().unwrap())
    }
}

fn wanting(keys: &[SecretKey]) -> (tokio::sync::watch::Sender<Wanted>, tokio::sync::watch::Receiver<Wanted>) {
    tokio::sync::watch::channel(Wanted { keys: keys.to_vec(), tags: Vec::new() })
}

fn key(resolver: &Resolver, raw: &str) -> SecretKey {
    resolver.resolve(SecretPath::parse(raw).unwrap(), VersionSelector::current()).unwrap()
}

fn text(answer: &Answer) -> &str {
    std::str::from_utf8(answer.held.version.value.expose()).unwrap()
}

const MISS: Served = Served::Fetched { forward: Forward::Miss, collapsed: false };
const UNREACHABLE: fn() -> SourceError = || SourceError::Unreachable { reason: "refused".to_owned() };

/// A rig with `count` secrets that are held and read before they are due, and with batches.
async fn hot(count: usize, calls: CallOptions) -> Rig {
    let rig = Rig::with(CacheOptions { max_bytes: 64 << 20, ..options() }, calls, &[]);
    *rig.source.batches.lock().unwrap() = Some(Ok(()));
    for index in 0..count {
        rig.source.put(&format!("hot/{index}"), 1);
        rig.read(&format!("hot/{index}")).await.unwrap();
    }
    rig.read_all(count).await;
    rig.source.log.lock().unwrap().clear();
    rig
}

/// Advances in steps, so that the refresher gets its turn in between.
async fn pass(time: Duration) {
    let step = Duration::from_millis(500);
    let mut left = time;
    while !left.is_zero() {
        advance(step.min(left)).await;
        left = left.saturating_sub(step);
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
    }
}
