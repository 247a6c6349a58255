//! What one caller may cost the source.

use tokio::task::JoinSet;

use super::*;

/// Five calls a second of one caller, and ten at once.
fn rig() -> Rig {
    let rig = Rig::with(options(), CallOptions { rate_per_caller: 5, ..calls() }, &[]);
    for index in 0..100 {
        rig.source.put(&format!("s/{index}"), 1);
    }
    rig
}

fn at_the_expense_of(uid: u32) -> Demand {
    Demand { payer: Some(Payer { listener: 0, uid: Some(uid) }), ..Demand::default() }
}

#[tokio::test(start_paused = true)]
async fn who_has_spent_its_share_waits_and_others_do_not() {
    let rig = rig();
    let start = Instant::now();
    for index in 0..10 {
        rig.cache.read(&rig.key(&format!("s/{index}")), &at_the_expense_of(1)).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    rig.cache.read(&rig.key("s/10"), &at_the_expense_of(1)).await.unwrap();
    assert_eq!(start.elapsed(), SECOND / 5);
    rig.cache.read(&rig.key("s/11"), &at_the_expense_of(2)).await.unwrap();
    rig.cache.read(&rig.key("s/12"), &Demand::default()).await.unwrap();
    assert_eq!(start.elapsed(), SECOND / 5, "neither another caller nor the daemon itself waits");
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_in_vain_is_told_at_once_and_what_is_held_is_free() {
    let rig = rig();
    let mut reads = JoinSet::new();
    for index in 0..60 {
        let (cache, key) = (rig.cache.clone(), rig.key(&format!("s/{index}")));
        reads.spawn(async move { (key.clone(), cache.read(&key, &at_the_expense_of(1)).await) });
    }
    let (held, refused): (Vec<_>, Vec<_>) =
        reads.join_all().await.into_iter().partition(|(_, read)| read.is_ok());
    // Ten at once, and fifteen within the three seconds that a reader waits.
    assert!((24..=26).contains(&held.len()), "{}", held.len());
    for (_, read) in refused {
        assert!(matches!(read, Err(ReadError::CallerOverBudget { .. })), "{read:?}");
    }
    let start = Instant::now();
    for (key, _) in held {
        rig.cache.read(&key, &at_the_expense_of(1)).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn to_join_a_fetch_costs_nothing() {
    let rig = rig();
    let mut reads = JoinSet::new();
    for _ in 0..1000 {
        let (cache, key) = (rig.cache.clone(), rig.key("s/0"));
        reads.spawn(async move { cache.read(&key, &at_the_expense_of(1)).await.is_ok() });
    }
    assert!(reads.join_all().await.into_iter().all(|is_read| is_read));
    for index in 1..10 {
        rig.cache.read(&rig.key(&format!("s/{index}")), &at_the_expense_of(1)).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn that_a_value_is_too_old_for_a_reader_alone_costs_no_more_than_no_cache() {
    let rig = rig();
    rig.cache.read(&rig.key("s/0"), &Demand::default()).await.unwrap();
    advance(SECOND).await;
    let calls = rig.source.calls();
    let demand = Demand { max_age: Some(Duration::ZERO), ..at_the_expense_of(1) };
    for _ in 0..100 {
        rig.cache.read(&rig.key("s/0"), &demand).await.unwrap();
        advance(Duration::from_millis(1)).await;
    }
    let made = rig.source.calls() - calls;
    assert!((2..=10).contains(&made), "{made}");
}
