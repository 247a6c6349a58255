//! Readers who wait for another version.

use tokio::task::JoinSet;

use super::*;

/// Waits for a version other than the one that is held now.
async fn next(rig: &Rig, raw: &str, patience: Duration) -> Result<Answer, ReadError> {
    let known = rig.read(raw).await.unwrap().held.version.version_id.clone();
    let until = Instant::now() + patience;
    let is_known = |held: &Held| held.version.version_id == known;
    rig.cache.read_next(&rig.key(raw), &Demand::default(), until, is_known).await
}

#[tokio::test(start_paused = true)]
async fn a_waiting_reader_is_answered_by_the_refresh_that_brings_another_version() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    rig.source.put("team-a/db", 2);
    let start = Instant::now();
    let answer = next(&rig, "team-a/db", SECOND * 1000).await.unwrap();
    assert_eq!(text(&answer), "team-a/db 2");
    assert!(start.elapsed() < options().lifetimes.ttl, "within one ttl: {:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn without_another_version_the_wait_ends_with_the_known_one_kept_fresh_at_one_call_a_ttl() {
    let rig = Rig::new();
    let ttl = options().lifetimes.ttl;
    let start = Instant::now();
    let answer = next(&rig, "team-a/db", ttl * 10).await.unwrap();
    assert_eq!((text(&answer), start.elapsed()), ("team-a/db 1", ttl * 10));
    assert_eq!(answer.served, Served::Hit, "it was kept fresh, though nobody else read it");
    assert!((10..=14).contains(&rig.source.calls()), "{} calls", rig.source.calls());
}

#[tokio::test(start_paused = true)]
async fn who_knows_nothing_or_something_else_does_not_wait() {
    let rig = Rig::new();
    let until = Instant::now() + SECOND * 100;
    let start = Instant::now();
    let key = rig.key("team-a/db");
    rig.cache.read_next(&key, &Demand::default(), until, |_| false).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_revocation_ends_the_wait_with_its_error_and_a_failing_source_does_not() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    rig.source.fail(Some(UNREACHABLE()));
    let ttl = options().lifetimes.ttl;
    assert_eq!(text(&next(&rig, "team-a/db", ttl * 3).await.unwrap()), "team-a/db 1");
    rig.source.fail(None);
    rig.source.delete("team-a/db");
    let error = next(&rig, "team-a/db", SECOND * 10_000).await.unwrap_err();
    assert!(matches!(error, ReadError::Source { error: SourceError::NotFound, .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_thousand_waiting_readers_cost_no_call_of_their_own_and_none_sleeps_on() {
    let rig = Arc::new(Rig::new());
    rig.read("team-a/db").await.unwrap();
    for version in 2..5 {
        let mut waiting = JoinSet::new();
        for _ in 0..1000 {
            let rig = Arc::clone(&rig);
            waiting.spawn(async move {
                text(&next(&rig, "team-a/db", SECOND * 10_000).await.unwrap()).to_owned()
            });
        }
        tokio::task::yield_now().await;
        rig.source.put("team-a/db", version);
        let expected = format!("team-a/db {version}");
        assert!(waiting.join_all().await.iter().all(|text| *text == expected));
    }
    assert!(rig.source.calls() <= 8, "{} calls", rig.source.calls());
}

#[tokio::test(start_paused = true)]
async fn once_nobody_waits_any_more_the_secret_is_left_alone() {
    let rig = Rig::new();
    next(&rig, "team-a/db", SECOND).await.unwrap();
    let calls = rig.source.calls();
    pass(options().idle_timeout * 2).await;
    assert!(rig.source.calls() <= calls + 1, "one refresh at most, for the last read");
    assert!(!rig.cache.holds(&rig.key("team-a/db")));
}

#[tokio::test(start_paused = true)]
async fn the_current_version_asked_for_by_its_id_costs_no_call() {
    let rig = Rig::new();
    let current = rig.read("team-a/db").await.unwrap();
    let by_id = |id: &str| SecretKey {
        selector: VersionSelector::new(Some(id), None).unwrap(),
        ..rig.key("team-a/db")
    };
    let key = by_id(&current.held.version.version_id);
    let answer = rig.cache.read(&key, &Demand::default()).await.unwrap();
    assert_eq!((answer.served, rig.source.calls()), (Served::Hit, 1));
    assert!(rig.cache.read(&by_id("other"), &Demand::default()).await.is_err());
    assert_eq!(rig.source.calls(), 2);
}
