//! How AWS is called: few calls, never too many, and none in vain.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::client::{self, Address, Connection};
use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::fake_aws::FakeAws;
use crate::support::faults::{Call, Fault, busiest_second};

const PATIENCE: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// A fake with `count` secrets `hot/<index>`.
fn hot(count: usize) -> FakeAws {
    let aws = FakeAws::start();
    for index in 0..count {
        aws.put(&format!("hot/{index}"), "x");
    }
    aws
}

/// Reads each hot secret once, over some connections; the slowest read.
async fn read_all(address: &Address, count: usize) -> Duration {
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..16 {
        let (address, next) = (address.clone(), Arc::clone(&next));
        readers.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let mut slowest = Duration::ZERO;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return slowest;
                }
                let start = Instant::now();
                let answer = connection.get(&format!("/secret/hot/{index}"), &[]).await.unwrap();
                slowest = slowest.max(start.elapsed());
                assert_eq!((answer.status, answer.text()), (200, "x"), "hot/{index}");
            }
        });
    }
    readers.join_all().await.into_iter().max().unwrap()
}

fn count(log: &[Call], action: &str) -> usize {
    log.iter().filter(|call| call.action == action).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_hot_secrets_cost_fifty_calls_a_ttl_or_a_thousand_without_batches() {
    for (batch, expected) in [("auto", 50), ("off", 1000)] {
        let aws = hot(1000);
        let daemon = Setup::with_aws(&aws.url())
            .cache("ttl = \"16s\"")
            .section(&format!("[refresh]\nbatch = \"{batch}\"\nrate = 1000"))
            .start()
            .await;
        read_all(&daemon.unix(), 1000).await;
        let filled = Instant::now();
        read_all(&daemon.unix(), 1000).await;
        assert_eq!(aws.calls(), 1000, "cold reads are not batched");
        aws.clear_log();
        // The last refresh comes at 90 % of the ttl, and the second one of the first secret at 150 %.
        sleep_until(filled + SECOND * 15).await;
        let log = aws.log();
        assert_eq!(log.iter().map(|call| call.ids.len()).sum::<usize>(), 1000, "{batch}");
        // A batch may leave with an empty seat when this machine is busy.
        assert!((expected..=expected + 3).contains(&log.len()), "{batch}: {}", log.len());
        let (first, last) = (log.first().unwrap().at, log.last().unwrap().at);
        let fifth = (last - first) / 5;
        let within = |part: u32| {
            let part = first + fifth * part..first + fifth * (part + 1);
            log.iter().filter(|call| part.contains(&call.at)).count()
        };
        let fifths: Vec<usize> = (0..5).map(within).collect();
        eprintln!("batch = {batch}: {} calls in {:?}, by fifths: {fifths:?}", log.len(), last - first);
        assert!(last - first > SECOND * 2, "{batch}: all within {:?}", last - first);
        assert!(fifths.iter().all(|calls| *calls * 5 < expected * 3), "{batch}: {fifths:?}");
    }
}

#[tokio::test]
async fn the_secrets_of_a_batch_are_told_apart_page_by_page() {
    let aws = hot(25);
    aws.set_page(7);
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"1s\"\nnegative_ttl = \"60s\"").start().await;
    read_all(&daemon.unix(), 25).await;
    for index in 2..25 {
        aws.put(&format!("hot/{index}"), format!("new {index}").as_str());
    }
    aws.delete("hot/0");
    aws.deny("hot/1", true);
    let read = async |index: usize| daemon.get(&format!("/secret/hot/{index}")).await;
    eventually("all are refreshed", PATIENCE, async || {
        let mut refreshed = true;
        for index in 0..25 {
            let answer = read(index).await;
            refreshed &= match index {
                0 => answer.status == 404 && answer.code() == "secret_deleted",
                1 => answer.status == 403 && answer.code() == "upstream_access_denied",
                _ => answer.text() == format!("new {index}"),
            };
        }
        refreshed
    })
    .await;
    assert!(count(&aws.log(), "BatchGetSecretValue") >= 4, "{:?}", aws.log());
    assert_eq!(daemon.metric("smcached_cache_entries").await, 23);
}

#[tokio::test]
async fn that_batches_are_denied_is_said_once_and_costs_one_call() {
    let aws = hot(40);
    aws.deny_action("BatchGetSecretValue", true);
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"1s\"").start().await;
    for _ in 0..40 {
        read_all(&daemon.unix(), 40).await;
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(count(&aws.log(), "BatchGetSecretValue"), 1);
    let said = daemon.log().matches("batches are not allowed or not known here").count();
    assert_eq!(said, 1);
    let denied = "smcached_upstream_requests_total{operation=\"BatchGetSecretValue\",result=\"unsupported\"}";
    assert_eq!(daemon.metric(denied).await, 1);
    let status = daemon.ops_page("/status").await.json();
    assert_eq!(status["upstream"]["places"][0]["batches"], false, "{status}");
    assert_eq!(status["upstream"]["state"], "answering");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttled_at_half_of_what_is_asked_no_reader_sees_it_and_the_rate_settles_and_recovers() {
    let aws = hot(200);
    let daemon = Setup::with_aws(&aws.url())
        .cache("ttl = \"2s\"\nstale_while_revalidate = \"2s\"\nrevalidate_timeout = \"1s\"")
        .section("[refresh]\nbatch = \"off\"\nrate = 200")
        .start()
        .await;
    read_all(&daemon.unix(), 200).await;
    let asked = async |length: Duration| {
        aws.clear_log();
        let end = Instant::now() + length;
        let mut slowest = Duration::ZERO;
        while Instant::now() < end {
            slowest = slowest.max(read_all(&daemon.unix(), 200).await);
            sleep(Duration::from_millis(50)).await;
        }
        (aws.log(), slowest)
    };
    let quiet = asked(SECOND * 6).await.0.len() / 6;
    aws.set_quota(Some(quiet / 2));
    asked(SECOND * 6).await;
    let (log, slowest) = asked(SECOND * 10).await;
    let settled = log.len() / 10;
    let throttled = daemon.metric("smcached_upstream_throttled_total").await;
    eprintln!("asked for {quiet}/s, allowed {}/s, made {settled}/s, {throttled} throttled", quiet / 2);
    assert!(throttled >= 1 && settled <= quiet / 2, "{settled} a second of {}", quiet / 2);
    assert!(settled >= quiet / 8, "{settled} a second of {}", quiet / 2);
    assert!(slowest < SECOND, "a reader waited {slowest:?}");
    aws.set_quota(None);
    eventually("the rate recovers", PATIENCE, async || {
        daemon.ops_page("/status").await.json()["upstream"]["rate_limit"] == 200.0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_aws_down_under_load_nothing_fails_and_recovery_is_quick_and_below_the_rate() {
    let aws = hot(100);
    let daemon = Setup::with_aws(&aws.url())
        .cache("ttl = \"2s\"\nstale_while_revalidate = \"1s\"")
        .section("[refresh]\nrate = 20")
        .aws("attempt_timeout = \"1s\"")
        .start()
        .await;
    for index in 0..100 {
        daemon.get(&format!("/secret/hot/{index}")).await;
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let load = tokio::spawn({
        let (address, is_over) = (daemon.unix(), Arc::clone(&is_over));
        async move {
            let mut rounds = 0;
            while !is_over.load(Ordering::Relaxed) {
                read_all(&address, 100).await;
                rounds += 1;
            }
            rounds
        }
    });
    for fault in [Fault::Hang, Fault::Http500, Fault::Refuse] {
        aws.fail(Some(fault));
        sleep(SECOND * 4).await;
        aws.clear_log();
        sleep(SECOND * 2).await;
        assert!(aws.calls() <= 10, "{fault:?}: a dead endpoint is only probed: {}", aws.calls());
        let open = "smcached_upstream_breakers_open";
        assert_eq!(daemon.metric(open).await, 1, "{fault:?}");
        aws.clear_log();
        aws.fail(None);
        eventually("the endpoint is known to answer", PATIENCE, async || daemon.metric(open).await == 0)
            .await;
        eventually("all is fresh again", PATIENCE, async || {
            daemon.metric("smcached_stale_entries").await == 0
        })
        .await;
        assert!(busiest_second(&aws.log()) <= 20, "{fault:?}: {}", busiest_second(&aws.log()));
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(load.await.unwrap() > 10, "0 failed reads in that many rounds");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_of_unknown_names_cannot_starve_the_refreshes() {
    let aws = hot(20);
    let daemon = Setup::with_aws(&aws.url())
        .cache("ttl = \"6s\"\nfetch_timeout = \"1s\"")
        .section("[refresh]\nrate = 20\nbatch = \"off\"")
        .start()
        .await;
    read_all(&daemon.unix(), 20).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut guessers = JoinSet::new();
    for guesser in 0..50 {
        let (address, is_over) = (daemon.unix(), Arc::clone(&is_over));
        guessers.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let (mut limited, mut guess) = (0, 0);
            while !is_over.load(Ordering::Relaxed) {
                let answer = connection.get(&format!("/secret/guess/{guesser}-{guess}"), &[]).await.unwrap();
                assert!(matches!(answer.status, 404 | 429 | 504), "{answer:?}");
                if answer.status == 429 {
                    assert_eq!(answer.code(), "caller_rate_limited");
                    assert!(!answer.header("retry-after").is_empty());
                    limited += 1;
                }
                guess += 1;
                // At full speed they would only measure this machine.
                sleep(Duration::from_millis(50)).await;
            }
            limited
        });
    }
    aws.clear_log();
    for _ in 0..120 {
        read_all(&daemon.unix(), 20).await;
        let oldest = client::get(&daemon.unix(), "/secret/hot/0", &[]).await;
        assert!(oldest.header("age").parse::<u32>().unwrap() <= 8, "{oldest:?}");
        sleep(Duration::from_millis(100)).await;
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(guessers.join_all().await.into_iter().sum::<usize>() > 100, "the guesser is told to slow down");
    assert!(busiest_second(&aws.log()) <= 20);
    let refreshed = aws.log().iter().filter(|call| call.ids[0].starts_with("hot/")).count();
    assert!(refreshed >= 20, "{refreshed}");
}

#[tokio::test]
async fn no_cache_is_limited_for_each_secret() {
    let aws = hot(2);
    let daemon = Setup::with_aws(&aws.url()).start().await;
    read_all(&daemon.unix(), 2).await;
    let forced = async |index: usize| {
        daemon.get_with(&format!("/secret/hot/{index}"), &[("Cache-Control", "no-cache")]).await
    };
    let mut statuses = Vec::new();
    for _ in 0..30 {
        statuses.push(forced(0).await.status);
    }
    assert_eq!(statuses[..10], [200; 10]);
    let limited = forced(0).await;
    assert_eq!((limited.status, limited.code().as_str()), (429, "forced_refresh_limited"));
    assert_eq!(limited.header("retry-after"), "1");
    assert!((12..=20).contains(&aws.calls()), "{}", aws.calls());
    assert_eq!(daemon.get("/secret/hot/0").await.status, 200, "a plain read is not limited");
    assert_eq!(forced(1).await.status, 200, "nor another secret");
    let accepted = [("Cache-Control", "no-cache, stale-if-error=60")];
    assert_eq!(daemon.get_with("/secret/hot/0", &accepted).await.text(), "x");
}

#[tokio::test]
async fn when_a_region_fails_the_replica_answers_for_it() {
    let aws = FakeAws::start();
    aws.put("prod/db", "x");
    let daemon: Daemon = Setup::with_aws(&aws.url())
        .cache("ttl = \"500ms\"")
        .section(
            "[groups.prod]\nprefix = \"prod/\"\nregion = \"us-west-2\"\nfallback_regions = [\"us-east-1\"]",
        )
        .start()
        .await;
    aws.fail_in("us-west-2", Some(Fault::Http500));
    let cold = daemon.get_with("/secret/prod/db", &[("Accept", "application/json")]).await;
    assert_eq!(cold.status, 200, "{cold:?}");
    assert_eq!(cold.json()["ARN"], "arn:aws:secretsmanager:us-west-2:123456789012:secret:prod/db-AbCdEf");
    aws.put("prod/db", "y");
    eventually("a rotation arrives by the replica", PATIENCE, async || {
        daemon.get("/secret/prod/db").await.text() == "y"
    })
    .await;
    assert!(daemon.metric("smcached_upstream_failovers_total").await >= 2);
    aws.fail_in("us-west-2", None);
    aws.put("prod/db", "z");
    eventually("its own region answers again", PATIENCE, async || {
        daemon.get("/secret/prod/db").await.text() == "z"
    })
    .await;
    assert_eq!(daemon.metric("smcached_cache_entries").await, 1);
}
