//! How the source is called: in batches, within limits, around what is dead.

use super::*;

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
