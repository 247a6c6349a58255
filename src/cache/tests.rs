//! The freshness table and single flight, on paused time against a scripted source.

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
            version_id: format!("v{version}"),
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

    fn operation(&self) -> &'static str {
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
    CallOptions { fetch_timeout: SECOND * 3, max_attempts: 1, max_concurrency: 100, rate: 1000, batch: true }
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

#[tokio::test(start_paused = true)]
async fn a_second_read_is_a_hit_and_costs_no_call() {
    let rig = Rig::new();
    assert_eq!(rig.read("team-a/db").await.unwrap().served, MISS);
    let again = rig.read("team-a/db").await.unwrap();
    assert_eq!((again.served, text(&again)), (Served::Hit, "team-a/db 1"));
    assert_eq!(rig.source.calls(), 1);
    assert_eq!(rig.metric("smcached_cache_requests_total{group=\"team-a\",result=\"hit\"}"), 1);
    assert_eq!(rig.metric("smcached_cache_requests_total{group=\"team-a\",result=\"miss\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_cold_readers_make_one_call_and_share_its_answer_or_error() {
    let rig = Rig::new();
    rig.source.delay(SECOND / 5);
    for (raw, is_there) in [("team-a/db", true), ("team-a/none", false)] {
        let before = rig.source.calls();
        let mut readers = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let (cache, key) = (rig.cache.clone(), rig.key(raw));
            readers.spawn(async move { cache.read(&key, &Demand::default()).await.is_ok() });
        }
        assert!(readers.join_all().await.into_iter().all(|found| found == is_there), "{raw}");
        assert_eq!(rig.source.calls() - before, 1, "{raw}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_hangs_up_neither_cancels_nor_repeats_the_fetch() {
    let rig = Rig::new();
    rig.source.delay(SECOND);
    assert!(timeout(SECOND / 10, rig.read("team-a/db")).await.is_err());
    pass(SECOND * 2).await;
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
    assert_eq!(rig.source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_in_use_never_goes_stale_and_costs_one_call_a_ttl() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    for _ in 0..2000 {
        pass(SECOND / 2).await;
        assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
    }
    // 1,000 s at one refresh every 75 to 90 s.
    assert!((11..=14).contains(&rig.source.calls()), "{} calls", rig.source.calls());
}

#[tokio::test(start_paused = true)]
async fn an_entry_that_nobody_reads_is_not_refreshed_and_dropped_when_idle() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 499).await;
    assert_eq!(rig.cache.view().summary().entries, 1);
    pass(SECOND * 2).await;
    assert_eq!(rig.cache.view().summary().entries, 0);
    assert_eq!(rig.source.calls(), 1);
    assert_eq!(rig.metric("smcached_cache_evictions_total{cause=\"idle\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_read_late_in_the_ttl_starts_the_refresh_that_nobody_else_did() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    rig.source.put("team-a/db", 2);
    pass(SECOND * 96).await;
    assert_eq!(text(&rig.read("team-a/db").await.unwrap()), "team-a/db 1");
    pass(SECOND).await;
    assert_eq!(text(&rig.read("team-a/db").await.unwrap()), "team-a/db 2");
}

#[tokio::test(start_paused = true)]
async fn within_stale_while_revalidate_a_read_is_served_at_once_and_starts_one_refresh() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 120).await;
    rig.source.delay(SECOND);
    let before = Instant::now();
    for _ in 0..100 {
        let answer = rig.read("team-a/db").await.unwrap();
        assert_eq!(answer.served, Served::StaleWhileRevalidate);
        assert_eq!(answer.age, SECOND * 120);
    }
    assert_eq!(before.elapsed(), Duration::ZERO);
    pass(SECOND * 2).await;
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
    assert_eq!(rig.source.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn within_stale_if_error_a_read_waits_for_one_shared_fetch() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 200).await;
    rig.source.put("team-a/db", 2);
    rig.source.delay(SECOND / 10);
    let answer = rig.read("team-a/db").await.unwrap();
    let expected = Served::Fetched { forward: Forward::Stale, collapsed: false };
    assert_eq!((answer.served, text(&answer)), (expected, "team-a/db 2"));
}

#[tokio::test(start_paused = true)]
async fn within_stale_if_error_only_an_authoritative_answer_fails_a_read() {
    let invalid = SourceError::InvalidRequest { code: "InvalidParameterException".to_owned() };
    for failure in [invalid, SourceError::DecryptionFailure, SourceError::Upstream { status: 500 }] {
        let rig = Rig::new();
        rig.read("team-a/db").await.unwrap();
        pass(SECOND * 200).await;
        rig.source.fail(Some(failure));
        assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::StaleIfError);
    }
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 200).await;
    rig.source.fail(Some(SourceError::Deleted));
    assert_eq!(rig.error("team-a/db").await, SourceError::Deleted);
}

#[tokio::test(start_paused = true)]
async fn within_stale_if_error_a_slow_source_costs_one_reader_the_revalidate_timeout() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 200).await;
    rig.source.delay(SECOND * 60);
    let start = Instant::now();
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::StaleIfError);
    assert_eq!(start.elapsed(), Duration::from_millis(250));
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::StaleIfError);
    assert_eq!(start.elapsed(), Duration::from_millis(250), "later readers don't wait again");
}

#[tokio::test(start_paused = true)]
async fn while_the_source_fails_reads_are_served_at_once_until_expiry() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    rig.source.fail(Some(UNREACHABLE()));
    for _ in 0..1098 {
        pass(SECOND).await;
        let start = Instant::now();
        let answer = rig.read("team-a/db").await.unwrap();
        assert_eq!((start.elapsed(), text(&answer)), (Duration::ZERO, "team-a/db 1"));
    }
    let calls = rig.source.calls();
    assert!((30..100).contains(&calls), "{calls} calls in 1,100 s are more than the backoff allows");
    pass(SECOND * 2).await;
    assert_eq!(rig.error("team-a/db").await, UNREACHABLE());
    assert_eq!(rig.cache.view().summary().entries, 0);
    assert_eq!(rig.metric("smcached_cache_evictions_total{cause=\"expired\"}"), 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_source_answers_again_the_value_is_fresh_within_one_backoff() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    rig.source.fail(Some(UNREACHABLE()));
    for _ in 0..300 {
        pass(SECOND).await;
        rig.read("team-a/db").await.unwrap();
    }
    rig.source.fail(None);
    pass(schedule::MAX_BACKOFF + SECOND).await;
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
    assert_eq!(rig.cache.view().upstream().state, UpstreamState::Answering);
}

#[tokio::test(start_paused = true)]
async fn an_authoritative_refusal_drops_the_secret_at_once_and_is_remembered() {
    for refusal in [SourceError::NotFound, SourceError::Deleted, SourceError::AccessDenied] {
        let rig = Rig::new();
        let held = Arc::downgrade(&rig.read("team-a/db").await.unwrap().held);
        rig.source.fail(Some(refusal.clone()));
        rig.read("team-a/db").await.unwrap();
        while rig.cache.view().summary().entries > 0 {
            assert!(rig.read("team-a/db").await.unwrap().age < SECOND * 96, "refused within one refresh");
            pass(SECOND).await;
        }
        let calls = rig.source.calls();
        assert_eq!(rig.error("team-a/db").await, refusal);
        assert_eq!(rig.source.calls(), calls, "the refusal is remembered");
        assert!(held.upgrade().is_none(), "nobody holds the value any more");
        rig.source.fail(None);
        pass(SECOND * 10).await;
        assert!(rig.read("team-a/db").await.is_ok(), "and forgotten after negative_ttl");
        assert_eq!(rig.metric("smcached_cache_evictions_total{cause=\"revoked\"}"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_transient_failure_of_a_cold_read_is_not_remembered() {
    let rig = Rig::new();
    rig.source.fail(Some(UNREACHABLE()));
    assert_eq!(rig.error("team-a/db").await, UNREACHABLE());
    rig.source.fail(None);
    assert_eq!(rig.read("team-a/db").await.unwrap().served, MISS);
}

#[tokio::test(start_paused = true)]
async fn a_cold_read_waits_at_most_fetch_timeout_and_the_fetch_goes_on() {
    let rig = Rig::new();
    rig.source.delay(SECOND * 4);
    let start = Instant::now();
    assert_eq!(rig.error("team-a/db").await, SourceError::Timeout);
    assert_eq!(start.elapsed(), SECOND * 3);
    pass(SECOND * 2).await;
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
}

#[tokio::test(start_paused = true)]
async fn no_cache_asks_the_source_now_and_gets_its_error() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    rig.source.put("team-a/db", 2);
    let forced = rig.read_under("team-a/db", "no-cache").await.unwrap();
    let expected = Served::Fetched { forward: Forward::Request, collapsed: false };
    assert_eq!((forced.served, text(&forced)), (expected, "team-a/db 2"));
    rig.source.fail(Some(UNREACHABLE()));
    assert!(rig.read_under("team-a/db", "no-cache").await.is_err());
    assert!(rig.read("team-a/db").await.is_ok(), "others are served on");
    let accepted = rig.read_under("team-a/db", "no-cache, stale-if-error=60").await.unwrap();
    assert_eq!(text(&accepted), "team-a/db 2");
}

#[tokio::test(start_paused = true)]
async fn max_age_revalidates_what_is_older_but_never_fails_because_the_source_does() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 30).await;
    assert_eq!(rig.read_under("team-a/db", "max-age=30").await.unwrap().served, Served::Hit);
    rig.source.put("team-a/db", 2);
    let newer = rig.read_under("team-a/db", "max-age=29").await.unwrap();
    assert_eq!((text(&newer), newer.age), ("team-a/db 2", Duration::ZERO));
    pass(SECOND * 30).await;
    rig.source.fail(Some(UNREACHABLE()));
    let held = rig.read_under("team-a/db", "max-age=0").await.unwrap();
    assert_eq!((held.served, held.age), (Served::Hit, SECOND * 30));
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_never_asks() {
    let rig = Rig::new();
    assert_eq!(rig.read_under("team-a/db", "only-if-cached").await.unwrap_err(), ReadError::NotHeld);
    rig.read("team-a/db").await.unwrap();
    pass(SECOND * 200).await;
    let stale = rig.read_under("team-a/db", "only-if-cached").await.unwrap();
    assert_eq!(stale.served, Served::StaleIfError);
    let too_old = rig.read_under("team-a/db", "only-if-cached, max-age=10").await;
    assert_eq!(too_old.unwrap_err(), ReadError::NotHeld);
    assert_eq!(rig.source.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn every_spelling_of_a_secret_shares_one_value() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    let by_arn = format!("{ARN}/team-a/db-AbCdEf");
    assert_eq!(rig.read(&by_arn).await.unwrap().served, Served::Hit);
    let explicit = VersionSelector::new(None, Some("AWSCURRENT")).unwrap();
    let explicit = SecretKey { selector: explicit, ..rig.key("team-a/db") };
    assert_eq!(rig.cache.read(&explicit, &Demand::default()).await.unwrap().served, Served::Hit);
    assert_eq!(rig.source.calls(), 1);
    // An ARN without its random characters proves itself with one call, and never again.
    let partial = format!("{ARN}/team-a/db");
    rig.read(&partial).await.unwrap();
    assert_eq!(rig.read(&partial).await.unwrap().served, Served::Hit);
    assert_eq!(rig.source.calls(), 2);
    assert_eq!(rig.cache.view().summary().entries, 1);
    // A refresh serves all of them, a refusal ends all of them.
    rig.source.put("team-a/db", 2);
    rig.read_under(&by_arn, "no-cache").await.unwrap();
    assert_eq!(text(&rig.read("team-a/db").await.unwrap()), "team-a/db 2");
    assert_eq!(text(&rig.read(&partial).await.unwrap()), "team-a/db 2");
    rig.source.delete("team-a/db");
    assert!(rig.read_under(&partial, "no-cache").await.is_err());
    assert_eq!(rig.error("team-a/db").await, SourceError::NotFound);
    assert_eq!(rig.error(&by_arn).await, SourceError::NotFound);
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_another_secret_is_never_served() {
    struct Confused;
    impl SecretSource for Confused {
        fn name(&self) -> &'static str {
            "confused"
        }
        fn operation(&self) -> &'static str {
            "GetSecretValue"
        }
        fn fetch<'a>(&'a self, _: &'a SecretKey) -> Fetching<'a> {
            let other = Scripted::default();
            other.put("other", 1);
            Box::pin(async move { other.answer(&key(&Resolver::default(), "other")) })
        }
    }
    let metrics = Metrics::new();
    let policies = Policies::new(Arc::default(), options().lifetimes, &metrics.cache);
    let cache =
        Cache::new(Arc::new(Confused), Settings { options: options(), calls: calls(), policies }, metrics);
    let outcome = cache.read(&key(&Resolver::default(), "team-a/db"), &Demand::default()).await;
    assert!(matches!(outcome, Err(ReadError::Source { error: SourceError::Unusable { .. }, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_fetch_is_an_error_for_its_readers_and_for_nobody_else() {
    let rig = Rig::new();
    rig.source.panics.store(true, Ordering::SeqCst);
    assert_eq!(rig.error("team-a/db").await, SourceError::Aborted);
    rig.source.panics.store(false, Ordering::SeqCst);
    assert!(rig.read("team-a/db").await.is_ok());
    rig.source.panics.store(true, Ordering::SeqCst);
    pass(SECOND * 120).await;
    assert!(rig.read("team-a/db").await.is_ok(), "a held value is served on");
}

#[tokio::test(start_paused = true)]
async fn the_cache_is_bounded_in_bytes_and_keeps_what_is_used() {
    let rig = Rig::new();
    rig.source.size.store(64 << 10, Ordering::SeqCst);
    rig.read("team-a/db").await.unwrap();
    for index in 0..100 {
        rig.source.put(&format!("s/{index}"), 1);
        rig.read(&format!("s/{index}")).await.unwrap();
        advance(Duration::from_millis(2)).await;
        assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit, "after {index} others");
    }
    let summary = rig.cache.view().summary();
    assert!(summary.bytes <= 1 << 20, "{} bytes", summary.bytes);
    assert!((10..=15).contains(&summary.entries), "{} entries", summary.entries);
    assert_eq!(rig.read("s/99").await.unwrap().served, Served::Hit);
    assert_eq!(rig.read("s/0").await.unwrap().served, MISS);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_value_dies_at_once() {
    let rig = Rig::new();
    rig.source.size.store(64 << 10, Ordering::SeqCst);
    let held = Arc::downgrade(&rig.read("team-a/db").await.unwrap().held);
    for index in 0..20 {
        rig.source.put(&format!("s/{index}"), 1);
        rig.read(&format!("s/{index}")).await.unwrap();
    }
    assert!(held.upgrade().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_secret_larger_than_the_cache_is_still_answered() {
    let rig = Rig::with(CacheOptions { max_bytes: 1000, ..options() }, calls(), &[]);
    assert_eq!(text(&rig.read("team-a/db").await.unwrap()), "team-a/db 1");
    assert_eq!(rig.cache.view().summary().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn asking_for_unknown_names_evicts_nothing() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    for index in 0..2000 {
        rig.read(&format!("unknown/{index}")).await.unwrap_err();
    }
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
    assert_eq!(rig.cache.view().summary().entries, 1);
}

#[tokio::test(start_paused = true)]
async fn preloaded_secrets_are_kept_fresh_though_nobody_reads_them() {
    let rig = Rig::with(options(), calls(), &["team-a/db"]);
    let (said, is_ready) = tokio::sync::oneshot::channel();
    let (_wanting, wanted) = wanting(&[rig.key("team-a/db")]);
    tokio::spawn(preload(rig.cache.clone(), wanted, SECOND, || said.send(()).unwrap()));
    is_ready.await.unwrap();
    pass(SECOND * 1000).await;
    let answer = rig.read("team-a/db").await.unwrap();
    assert_eq!(answer.served, Served::Hit);
    assert!(rig.source.calls() >= 11, "{} calls", rig.source.calls());
}

#[tokio::test(start_paused = true)]
async fn preload_gives_up_waiting_but_not_trying() {
    let rig = Rig::with(options(), calls(), &["team-a/db"]);
    rig.source.fail(Some(UNREACHABLE()));
    let (said, is_ready) = tokio::sync::oneshot::channel();
    let keys = vec![rig.key("team-a/db")];
    let (_wanting, wanted) = wanting(&keys);
    tokio::spawn(preload(rig.cache.clone(), wanted, SECOND, || said.send(()).unwrap()));
    is_ready.await.unwrap();
    assert!(!rig.cache.holds(&keys[0]));
    rig.source.fail(None);
    pass(SECOND * 20).await;
    assert!(rig.cache.holds(&keys[0]));
}

#[tokio::test(start_paused = true)]
async fn a_secret_made_anew_under_its_name_replaces_the_old_one() {
    let rig = Rig::new();
    let old = rig.read("team-a/db").await.unwrap();
    let landed = rig.cache.shared.store.land(
        &rig.key("team-a/db"),
        SecretVersion {
            arn: format!("{ARN}team-a/db-ZzZzZz"),
            value: SecretValue::text("anew".to_owned()),
            ..(*old.held.version).clone()
        },
        rig.cache.shared.settings.load().policies.of(&rig.key("team-a/db")),
        slot::Fetch::now(),
        false,
    );
    assert!(landed.unwrap().is_changed);
    assert_eq!(text(&rig.read("team-a/db").await.unwrap()), "anew");
    assert!(!rig.cache.holds(&rig.key(&format!("{ARN}/team-a/db-AbCdEf"))));
}

/// The most calls that any second saw.
fn busiest_second(log: &[(Instant, usize)]) -> usize {
    let from = |start: Instant| log.iter().filter(|(at, _)| *at >= start && *at < start + SECOND).count();
    log.iter().map(|(at, _)| from(*at)).max().unwrap_or(0)
}

/// Calls by fifths of the time in which they may be made: 75 to 90 % of the ttl.
fn histogram(start: Instant, log: &[(Instant, usize)]) -> [usize; 5] {
    let mut fifths = [0; 5];
    for (at, _) in log {
        let milliseconds = at.duration_since(start).as_millis().saturating_sub(75_000);
        fifths[usize::try_from(milliseconds / 3000).unwrap().min(4)] += 1;
    }
    fifths
}

#[tokio::test(start_paused = true)]
async fn a_thousand_hot_secrets_cost_fifty_calls_a_ttl_spread_over_the_window() {
    let rig = hot(1000, calls()).await;
    let start = Instant::now();
    for _ in 0..200 {
        pass(SECOND / 2).await;
    }
    let log = rig.log();
    assert_eq!(log.iter().map(|(_, about)| about).sum::<usize>(), 1000, "each is refreshed once");
    assert_eq!(log.len(), 50, "{log:?}");
    let fifths = histogram(start, &log);
    assert!(fifths.iter().all(|calls| (4..=18).contains(calls)), "{fifths:?}");
    assert_eq!(rig.metric("smcached_refreshes_total{result=\"unchanged\"}"), 1000);
}

#[tokio::test(start_paused = true)]
async fn where_batches_are_denied_that_costs_one_call_and_is_tried_again_much_later() {
    let rig = hot(1000, calls()).await;
    *rig.source.batches.lock().unwrap() = Some(Err(BatchError::Unsupported));
    let start = Instant::now();
    pass(SECOND * 100).await;
    let log = rig.log();
    let batches = log.iter().filter(|(_, about)| *about > 1).count();
    assert_eq!((log.len(), batches), (1001, 1));
    let fifths = histogram(start, &log);
    assert!(fifths.iter().all(|calls| (100..=300).contains(calls)), "{fifths:?}");
    // An hour and a quarter later, at the latest.
    *rig.source.batches.lock().unwrap() = Some(Ok(()));
    rig.source.log.lock().unwrap().clear();
    for _ in 0..80 {
        rig.read_all(1000).await;
        pass(SECOND * 60).await;
    }
    assert!(rig.log().iter().any(|(_, about)| *about == 20), "batches are made again");
}

#[tokio::test(start_paused = true)]
async fn batches_that_are_turned_off_are_never_made() {
    let rig = hot(100, CallOptions { batch: false, ..calls() }).await;
    pass(SECOND * 100).await;
    assert_eq!(rig.log().len(), 100);
    assert!(rig.log().iter().all(|(_, about)| *about == 1));
}

#[tokio::test(start_paused = true)]
async fn refreshes_never_exceed_the_rate_and_readers_never_wait_for_their_turn() {
    let rig = hot(1000, CallOptions { rate: 20, batch: false, ..calls() }).await;
    for _ in 0..100 {
        pass(SECOND).await;
        rig.read_all(1000).await;
    }
    assert!(busiest_second(&rig.log()) <= 20, "{} in a second", busiest_second(&rig.log()));
    assert!(rig.log().len() > 400);
}

#[tokio::test(start_paused = true)]
async fn after_an_hour_without_the_source_recovery_takes_one_backoff_and_stays_below_the_rate() {
    let lifetimes = Lifetimes { stale_if_error: SECOND * 24 * 3600, ..options().lifetimes };
    let rig = Rig::with(
        CacheOptions { max_bytes: 64 << 20, lifetimes, ..options() },
        CallOptions { rate: 50, ..calls() },
        &[],
    );
    *rig.source.batches.lock().unwrap() = Some(Ok(()));
    for index in 0..300 {
        rig.source.put(&format!("hot/{index}"), 1);
        rig.read(&format!("hot/{index}")).await.unwrap();
    }
    rig.source.fail(Some(UNREACHABLE()));
    rig.source.log.lock().unwrap().clear();
    for _ in 0..360 {
        rig.read_all(300).await;
        pass(SECOND * 10).await;
    }
    let calls = rig.log().len();
    assert!((100..400).contains(&calls), "{calls} calls in an hour: a dead endpoint is only probed");
    rig.source.log.lock().unwrap().clear();
    rig.source.fail(None);
    pass(schedule::MAX_BACKOFF + SECOND).await;
    for index in 0..300 {
        assert_eq!(rig.read(&format!("hot/{index}")).await.unwrap().served, Served::Hit, "hot/{index}");
    }
    let log = rig.log();
    assert!(log.len() <= 20 && busiest_second(&log) <= 16, "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_of_unknown_names_cannot_starve_the_refreshes() {
    let rig = hot(100, CallOptions { rate: 10, batch: false, ..calls() }).await;
    rig.source.log.lock().unwrap().clear();
    let guesser = rig.cache.clone();
    let guessing = tokio::spawn(async move {
        for index in 0.. {
            let cache = guesser.clone();
            tokio::spawn(async move {
                let key = key(&Resolver::default(), &format!("guess/{index}"));
                cache.read(&key, &Demand::default()).await.is_ok()
            });
            sleep(Duration::from_millis(20)).await;
        }
    });
    for _ in 0..100 {
        pass(SECOND).await;
        rig.read_all(100).await;
    }
    guessing.abort();
    assert_eq!(rig.metric("smcached_refreshes_total{result=\"unchanged\"}"), 100);
    assert!(busiest_second(&rig.log()) <= 10);
}

#[tokio::test(start_paused = true)]
async fn who_has_nothing_does_not_wait_behind_the_refreshes() {
    let rig = Rig::with(options(), CallOptions { rate: 2, batch: false, ..calls() }, &[]);
    let keys: Vec<_> = (0..100).map(|index| rig.key(&format!("listed/{index}"))).collect();
    for key in &keys {
        rig.source.put(key.id.as_str(), 1);
    }
    let (_wanting, wanted) = wanting(&keys);
    tokio::spawn(preload(rig.cache.clone(), wanted, SECOND, || ()));
    pass(SECOND * 5).await;
    let start = Instant::now();
    let waiting = keys.iter().rev().find(|key| !rig.cache.holds(key)).unwrap();
    let reading = async { rig.read(waiting.id.as_str()).await.unwrap().served };
    let collapsed = Served::Fetched { forward: Forward::Miss, collapsed: true };
    assert_eq!(reading.await, collapsed, "its place in the queue of refreshes is given up");
    assert!(start.elapsed() <= SECOND, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn cold_reads_are_tried_again_while_their_readers_wait_and_refreshes_are_not() {
    let rig = Rig::with(options(), CallOptions { max_attempts: 3, ..calls() }, &[]);
    for (failure, attempts) in [
        (UNREACHABLE(), 3),
        (SourceError::Throttled { retry_after: None }, 3),
        (SourceError::DecryptionFailure, 1),
        (SourceError::AccessDenied, 1),
    ] {
        rig.source.fail(Some(failure.clone()));
        let before = rig.source.calls();
        assert_eq!(rig.error(&format!("cold/{attempts}/{}", failure.kind())).await, failure);
        assert_eq!(rig.source.calls() - before, attempts, "{failure}");
    }
    rig.source.fail(None);
    pass(SECOND * 60).await;
    rig.read("team-a/db").await.unwrap();
    rig.source.fail(Some(UNREACHABLE()));
    pass(SECOND * 110).await;
    let before = rig.source.calls();
    rig.read("team-a/db").await.unwrap();
    pass(SECOND / 10).await;
    assert_eq!(rig.source.calls() - before, 1);
}

#[tokio::test(start_paused = true)]
async fn throttled_at_half_of_what_is_asked_no_reader_sees_it_and_the_rate_settles_below() {
    let rig = hot(2000, CallOptions { rate: 100, batch: false, ..calls() }).await;
    rig.source.quota.store(20, Ordering::SeqCst);
    rig.source.log.lock().unwrap().clear();
    for _ in 0..20 {
        pass(SECOND * 5).await;
        rig.read_all(2000).await;
    }
    let settled = Instant::now();
    for _ in 0..10 {
        pass(SECOND * 5).await;
        rig.read_all(2000).await;
    }
    let made = rig.log().iter().filter(|(at, _)| *at >= settled).count();
    assert!((500..1000).contains(&made), "{made} calls in 50 s at 20 a second");
    rig.source.quota.store(0, Ordering::SeqCst);
    pass(SECOND * 60).await;
    let summary = rig.cache.view().upstream();
    assert!((summary.rate - 100.0).abs() < 0.1, "{summary:?}");
}

#[tokio::test(start_paused = true)]
async fn no_cache_is_limited_for_each_secret_and_others_go_on() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    for _ in 0..10 {
        rig.read_under("team-a/db", "no-cache").await.unwrap();
    }
    let limited = rig.read_under("team-a/db", "no-cache").await.unwrap_err();
    assert_eq!(limited, ReadError::ForcedTooOften { retry_after: SECOND });
    let accepted = rig.read_under("team-a/db", "no-cache, stale-if-error=0").await.unwrap();
    assert_eq!(accepted.served, Served::Hit);
    assert_eq!(rig.read("team-a/db").await.unwrap().served, Served::Hit);
    rig.source.put("other", 1);
    rig.read("other").await.unwrap();
    rig.read_under("other", "no-cache").await.unwrap();
    pass(SECOND).await;
    rig.read_under("team-a/db", "no-cache").await.unwrap();
    assert!(rig.read_under("team-a/db", "no-cache").await.is_err());
    assert_eq!(rig.source.calls(), 14);
}

#[tokio::test(start_paused = true)]
async fn no_cache_asks_again_after_a_refusal_once_a_second() {
    let rig = Rig::new();
    for _ in 0..100 {
        rig.read_under("unknown", "no-cache").await.unwrap_err();
    }
    assert_eq!(rig.source.calls(), 1);
    rig.source.put("unknown", 1);
    pass(SECOND).await;
    assert!(rig.read_under("unknown", "no-cache").await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn other_settings_hold_for_what_is_held() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    let lifetimes = Lifetimes { ttl: SECOND * 10, ..options().lifetimes };
    let policies = Policies::new(Arc::clone(&rig.resolver), lifetimes, &rig.cache.shared.metrics.cache);
    rig.cache.reconfigure(Settings {
        options: CacheOptions { lifetimes, ..options() },
        calls: calls(),
        policies,
    });
    rig.read("team-a/db").await.unwrap();
    rig.source.put("team-a/db", 2);
    pass(SECOND * 10).await;
    let answer = rig.read("team-a/db").await.unwrap();
    assert_eq!((answer.served, text(&answer)), (Served::Hit, "team-a/db 2"));
    rig.cache.pin(HashSet::from([rig.key("team-a/db")]));
    let calls = rig.source.calls();
    pass(SECOND * 100).await;
    assert!(rig.source.calls() >= calls + 10, "pinned: kept fresh unread");
    rig.cache.pin(HashSet::new());
    let calls = rig.source.calls();
    pass(SECOND * 100).await;
    assert!(rig.source.calls() <= calls + 1, "no longer");
}

#[tokio::test(start_paused = true)]
async fn when_a_region_fails_its_replicas_are_asked_and_never_for_a_refusal() {
    let rig = Rig::new();
    rig.source.put("replicated/db", 2);
    let set = |region: &str, answer: Result<u32, SourceError>| {
        rig.source.regions.lock().unwrap().insert(region.to_owned(), answer);
    };
    set("us-west-2", Err(UNREACHABLE()));
    set("us-east-1", Err(SourceError::NotFound));
    let cold = rig.read("replicated/db").await.unwrap();
    assert_eq!((cold.served, text(&cold)), (MISS, "replicated/db 2"));
    assert_eq!(cold.held.version.arn, format!("{ARN}replicated/db-AbCdEf"), "it is the same secret");
    assert_eq!(rig.metric("smcached_upstream_failovers_total"), 1);
    // A held value is renewed from a replica too, but never by an older one.
    set("eu-west-1", Ok(3));
    let control = "max-age=0";
    pass(SECOND * 50).await;
    assert_eq!(text(&rig.read_under("replicated/db", control).await.unwrap()), "replicated/db 3");
    set("eu-west-1", Ok(1));
    pass(SECOND * 50).await;
    let kept = rig.read_under("replicated/db", control).await.unwrap();
    assert_eq!((text(&kept), kept.served), ("replicated/db 3", Served::Hit));
    assert_eq!(rig.cache.view().summary().entries, 1);
    for refusal in [SourceError::NotFound, SourceError::AccessDenied] {
        set("us-west-2", Err(refusal.clone()));
        assert!(rig.read_under("replicated/db", "no-cache").await.is_err(), "{refusal}");
        pass(SECOND * 11).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_secrets_that_share_a_call_recover_within_one_backoff_too() {
    let lifetimes = Lifetimes { stale_if_error: SECOND * 24 * 3600, ..options().lifetimes };
    for _ in 0..20 {
        let rig = Rig::with(CacheOptions { lifetimes, ..options() }, calls(), &[]);
        *rig.source.batches.lock().unwrap() = Some(Ok(()));
        for name in ["hot/0", "hot/1"] {
            rig.source.put(name, 1);
            rig.read(name).await.unwrap();
        }
        rig.read_all(2).await;
        pass(SECOND * 100).await;
        rig.source.fail(Some(UNREACHABLE()));
        for _ in 0..fastrand::usize(60..90) {
            rig.read_all(2).await;
            pass(SECOND * 10).await;
        }
        rig.source.fail(None);
        pass(schedule::MAX_BACKOFF + SECOND).await;
        rig.read_all(2).await;
        for name in ["hot/0", "hot/1"] {
            assert_eq!(rig.read(name).await.unwrap().served, Served::Hit, "{name}");
        }
    }
}
