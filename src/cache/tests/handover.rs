//! What one process held, the next one holds, as old as it was.

use super::*;

/// Another cache that has taken what `rig` holds.
fn successor(rig: &Rig, options: CacheOptions, pinned: &[&str]) -> (Rig, usize) {
    let next = Rig::with(options, calls(), pinned);
    let taken = rig.cache.hand_over().into_iter().filter(|entry| next.cache.take(entry.clone())).count();
    (next, taken)
}

#[tokio::test(start_paused = true)]
async fn every_spelling_is_a_hit_of_the_same_age_and_costs_no_call() {
    let rig = Rig::new();
    let spellings = ["team-a/db", &format!("{ARN}team-a/db-AbCdEf"), &format!("{ARN}team-a/db")];
    for raw in spellings {
        rig.read(raw).await.unwrap();
    }
    advance(SECOND * 40).await;
    let (next, taken) = successor(&rig, options(), &[]);
    assert_eq!(taken, 1);
    for raw in spellings {
        let answer = next.read(raw).await.unwrap();
        assert_eq!((answer.served, text(&answer)), (Served::Hit, "team-a/db 1"), "{raw}");
        assert_eq!(answer.age, SECOND * 40, "{raw}");
    }
    assert_eq!(next.source.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn it_is_refreshed_and_forgotten_when_it_would_have_been() {
    let rig = Rig::new();
    rig.source.put("idle", 1);
    rig.read("idle").await.unwrap();
    rig.read("team-a/db").await.unwrap();
    advance(SECOND * 50).await;
    rig.read("team-a/db").await.unwrap();
    advance(SECOND * 20).await;
    let (next, taken) = successor(&rig, options(), &[]);
    assert_eq!(taken, 2);
    next.source.put("team-a/db", 2);
    pass(SECOND * 25).await;
    assert_eq!(next.source.calls(), 1, "what was read is refreshed ahead of its expiry, and nothing else");
    assert_eq!(text(&next.read("team-a/db").await.unwrap()), "team-a/db 2");
    pass(SECOND * 410).await;
    assert!(!next.cache.holds(&next.key("idle")), "nobody has read it for idle_timeout");
}

#[tokio::test(start_paused = true)]
async fn what_is_too_old_by_either_configuration_is_left_out() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    advance(SECOND * 101).await;
    let strict = Lifetimes { ttl: SECOND * 100, stale_while_revalidate: SECOND, stale_if_error: SECOND };
    let (next, taken) = successor(&rig, CacheOptions { lifetimes: strict, ..options() }, &[]);
    assert_eq!((taken, next.cache.view().summary().entries), (0, 0));
    rig.source.fail(Some(UNREACHABLE()));
    advance(SECOND * 1000).await;
    assert_eq!(rig.cache.hand_over(), []);
}

#[tokio::test(start_paused = true)]
async fn what_was_read_last_is_kept_where_the_next_has_less_room() {
    let rig = Rig::new();
    for index in 0..20 {
        rig.source.put(&format!("x/{index}"), 1);
        rig.read(&format!("x/{index}")).await.unwrap();
        advance(SECOND / 10).await;
    }
    rig.read("x/0").await.unwrap();
    let (next, _) = successor(&rig, CacheOptions { max_bytes: 12 << 10, ..options() }, &[]);
    next.cache.shared.store.tidy();
    assert!(next.cache.holds(&next.key("x/0")) && next.cache.holds(&next.key("x/19")));
    assert!(!next.cache.holds(&next.key("x/1")));
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_the_next_one_preloads_is_kept_fresh_there() {
    let rig = Rig::new();
    rig.read("team-a/db").await.unwrap();
    let (next, _) = successor(&rig, options(), &["team-a/db"]);
    pass(SECOND * 95).await;
    assert_eq!(next.source.calls(), 1);
}
