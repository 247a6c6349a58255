//! What readers get: the freshness table, single flight, refusals, bounds.

use super::*;

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
        fn operation(&self, _key: &SecretKey) -> &'static str {
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

#[tokio::test(start_paused = true)]
async fn a_closed_cache_holds_nothing_and_still_answers_those_who_wait() {
    let rig = Rig::new();
    rig.source.put("team-a/other", 1);
    rig.read("team-a/db").await.unwrap();
    rig.source.delay(SECOND);
    let waiting = tokio::spawn({
        let (cache, key) = (rig.cache.clone(), rig.key("team-a/other"));
        async move { cache.read(&key, &Demand::default()).await.map(|answer| Arc::downgrade(&answer.held)) }
    });
    pass(SECOND / 2).await;
    let held = Arc::downgrade(&rig.cache.shared.store.find(&rig.key("team-a/db")).unwrap().held().unwrap());
    rig.cache.close();
    assert_eq!((rig.cache.view().summary().entries, held.strong_count()), (0, 0));
    // What lands later goes to who asked for it, and with them.
    let answered = waiting.await.unwrap().unwrap();
    pass(SECOND).await;
    assert_eq!((rig.cache.view().summary().entries, answered.strong_count()), (0, 0));
    assert_eq!(text(&rig.read("team-a/db").await.unwrap()), "team-a/db 1");
    assert_eq!(rig.cache.view().summary().entries, 0);
}
