//! The cache's promises, against a Secrets Manager that can be slow, broken or gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::client::{Address, Connection};
use crate::support::daemon::Setup;
use crate::support::fake_aws::{FakeAws, Stored};
use crate::support::faults::Fault;
use crate::support::{ARN, eventually};

const PATIENCE: Duration = Duration::from_secs(20);

/// So many readers at once, each on a connection of its own; their statuses.
async fn crowd(address: &Address, path: &str, readers: usize) -> Vec<u16> {
    let mut crowd = JoinSet::new();
    for _ in 0..readers {
        let (address, path) = (address.clone(), path.to_owned());
        crowd.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            connection.get(&path, &[]).await.unwrap().status
        });
    }
    crowd.join_all().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cold_readers_make_one_call_for_a_secret_and_one_for_an_unknown_one() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    aws.set_latency(Duration::from_millis(200));
    let daemon =
        Setup::with_aws(&aws.url()).cache("fetch_timeout = \"10s\"\nnegative_ttl = \"60s\"").start().await;
    for (path, status) in [("/secret/db", 200), ("/secret/unknown", 404)] {
        let before = aws.calls();
        let statuses = crowd(&daemon.unix(), path, 1000).await;
        assert_eq!(statuses.iter().filter(|found| **found == status).count(), 1000, "{path}");
        assert_eq!(aws.calls() - before, 1, "{path}");
    }
}

#[tokio::test]
async fn every_spelling_of_a_secret_shares_one_value() {
    let aws = FakeAws::start();
    aws.put("team-a/db", "x");
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let paths = [
        "/secret/team-a/db".to_owned(),
        format!("/secret/{ARN}/team-a/db-AbCdEf"),
        format!("/secret/{ARN}team-a/db-AbCdEf"),
        "/secret/team-a/db?version_stage=AWSCURRENT".to_owned(),
    ];
    for path in &paths {
        assert_eq!(daemon.get(path).await.text(), "x", "{path}");
    }
    assert_eq!(aws.calls(), 1);
    for _ in 0..3 {
        assert_eq!(daemon.get(&format!("/secret/{ARN}/team-a/db")).await.text(), "x");
    }
    assert_eq!(aws.calls(), 2, "an ARN without its six characters costs one call, once");
    assert_eq!(aws.actions(), ["GetSecretValue"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_under_readers_shows_no_mix_no_older_value_and_no_error() {
    let aws = FakeAws::start();
    let value = |round: usize| format!("{round}|").repeat(2000);
    aws.put("db", value(0).as_str());
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"300ms\"").start().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..100 {
        let (address, stop) = (daemon.unix(), Arc::clone(&stop));
        readers.spawn(async move {
            let mut connection = Connection::open(&address).await.unwrap();
            let mut newest = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = connection.get("/secret/db", &[]).await.unwrap();
                let rounds: std::collections::HashSet<&str> = answer.text().split_terminator('|').collect();
                assert_eq!((answer.status, rounds.len()), (200, 1), "a mix of values");
                let round: usize = rounds.into_iter().next().unwrap().parse().unwrap();
                assert!(round >= newest, "{round} after {newest}");
                newest = round;
                sleep(Duration::from_millis(2)).await;
            }
            newest
        });
    }
    for round in 1..=20 {
        sleep(Duration::from_millis(100)).await;
        aws.put("db", value(round).as_str());
    }
    eventually("the last rotation is served", PATIENCE, async || {
        daemon.get("/secret/db").await.text() == value(20)
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let newest = readers.join_all().await;
    assert!(newest.iter().any(|round| *round >= 19), "{newest:?}");
}

#[tokio::test]
async fn with_aws_refusing_connections_nothing_changes_for_readers() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    let daemon =
        Setup::with_aws(&aws.url()).cache("ttl = \"200ms\"\nstale_while_revalidate = \"0s\"").start().await;
    assert_eq!(daemon.get("/secret/db").await.status, 200);
    aws.refuse();
    for _ in 0..40 {
        sleep(Duration::from_millis(25)).await;
        assert_eq!(daemon.get("/secret/db").await.text(), "x");
    }
    let forced = daemon.get_with("/secret/db", &[("Cache-Control", "no-cache")]).await;
    assert_eq!((forced.status, forced.code().as_str()), (503, "upstream_unreachable"));
    assert!(!forced.header("retry-after").is_empty());
    let accepted = [("Cache-Control", "no-cache, stale-if-error=60")];
    assert_eq!(daemon.get_with("/secret/db", &accepted).await.text(), "x");
    let status = daemon.ops_page("/status").await.json();
    assert_eq!(status["upstream"]["state"], "failing");
    assert_eq!(status["upstream"]["last_error"]["kind"], "unreachable");
    aws.listen();
    eventually("the source answers again", PATIENCE, async || {
        daemon.get("/secret/db").await;
        daemon.ops_page("/status").await.json()["upstream"]["state"] == "answering"
    })
    .await;
}

#[tokio::test]
async fn deleting_or_revoking_a_secret_drops_it_within_one_refresh() {
    let aws = FakeAws::start();
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"300ms\"").start().await;
    for name in ["deleted", "denied"] {
        aws.put(name, "x");
        assert_eq!(daemon.get(&format!("/secret/{name}")).await.status, 200);
    }
    aws.delete("deleted");
    aws.deny("denied", true);
    for (name, status, code) in
        [("deleted", 404, "secret_deleted"), ("denied", 403, "upstream_access_denied")]
    {
        let path = format!("/secret/{name}");
        eventually("the secret is refused", PATIENCE, async || daemon.get(&path).await.status == status)
            .await;
        let refused = daemon.get(&path).await;
        assert_eq!(refused.code(), code);
        assert!(refused.header("cache-status").contains("detail=negative"), "{refused:?}");
        assert!(!refused.text().contains("arn:aws:sts"), "AWS's message names the principal");
    }
    assert!(daemon.metric("smcached_cache_evictions_total{cause=\"revoked\"}").await >= 2);
    assert_eq!(daemon.metric("smcached_cache_entries").await, 0);
}

#[tokio::test]
async fn cache_control_is_heeded() {
    let aws = FakeAws::start();
    aws.put("db", "one");
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let ask = async |control: &str| daemon.get_with("/secret/db", &[("Cache-Control", control)]).await;
    let absent = ask("only-if-cached").await;
    assert_eq!((absent.status, absent.code().as_str()), (504, "not_cached"));
    assert_eq!(aws.calls(), 0);
    ask("").await;
    aws.put("db", "two");
    assert_eq!(ask("max-age=60").await.text(), "one");
    let forced = ask("no-cache").await;
    assert_eq!((forced.text(), forced.header("cache-status")), ("two", "smcached; fwd=request; stored"));
    sleep(Duration::from_millis(1100)).await;
    aws.put("db", "three");
    assert_eq!(ask("max-age=1").await.text(), "three");
    assert_eq!(ask("only-if-cached").await.text(), "three");
}

#[tokio::test]
async fn a_binary_secret_comes_through_as_it_is() {
    let aws = FakeAws::start();
    let bytes: Vec<u8> = (0..=255).collect();
    aws.put("key", Stored::Binary(bytes.clone()));
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let answer = daemon.get("/secret/key").await;
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!(answer.body, bytes);
}

#[tokio::test]
async fn preloaded_secrets_are_there_before_readiness_and_without_aws_readiness_still_comes() {
    let aws = FakeAws::start();
    aws.put("team-a/db", "x");
    let setup =
        || Setup::with_aws(&aws.url()).cache("preload = [\"team-a/db\"]\npreload_timeout = \"500ms\"");
    let daemon = setup().start().await;
    assert_eq!(aws.calls(), 1);
    assert!(daemon.get("/secret/team-a/db").await.header("cache-status").contains("; hit;"));
    aws.fail(Some(Fault::Hang));
    let hung = setup().launch();
    eventually("it listens", PATIENCE, async || Connection::open(&hung.ops()).await.is_ok()).await;
    let waiting = hung.ops_page("/readyz").await;
    assert_eq!((waiting.status, waiting.text()), (503, "not ready: preload\n"));
    hung.wait_ready().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_neither_cancels_nor_repeats_the_fetch() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    aws.set_latency(Duration::from_millis(300));
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let mut impatient = Connection::open(&daemon.unix()).await.unwrap();
    impatient.send(b"GET /secret/db HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    eventually("the call is made", PATIENCE, async || aws.calls() == 1).await;
    drop(impatient);
    eventually("the value is held", PATIENCE, async || {
        daemon.get_with("/secret/db", &[("Cache-Control", "only-if-cached")]).await.status == 200
    })
    .await;
    assert_eq!(aws.calls(), 1);
}

#[tokio::test]
async fn no_credentials_are_said_and_leave_the_daemon_alive() {
    let aws = FakeAws::start();
    let daemon = Setup::with_aws(&aws.url())
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .start()
        .await;
    let advice = "give its pod an IAM role";
    daemon.logs(advice).await;
    let status = daemon.ops_page("/status").await;
    assert!(status.text().contains(advice), "said before anybody asks: {}", status.text());
    let refused = daemon.get("/secret/db").await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "upstream_no_credentials"));
    assert!(refused.text().contains(advice), "{}", refused.text());
    assert_eq!(daemon.ops_page("/livez").await.status, 200);
    assert_eq!(aws.calls(), 0);
}

#[tokio::test]
async fn credentials_that_hang_are_said_in_time() {
    let aws = FakeAws::start();
    // An instance metadata service that accepts and never answers.
    let metadata = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", metadata.local_addr().unwrap());
    let daemon = Setup::with_aws(&aws.url())
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .env("AWS_EC2_METADATA_DISABLED", "false")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)
        .start()
        .await;
    let refused = daemon.get("/secret/db").await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "upstream_no_credentials"), "{refused:?}");
    assert_eq!(aws.calls(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_secrets_are_kept_within_the_bound_and_the_used_one_stays() {
    let aws = FakeAws::start();
    for index in 0..40 {
        aws.put(&format!("s/{index}"), "x".repeat(60_000).as_str());
    }
    let daemon = Setup::with_aws(&aws.url())
        .cache("max_bytes = \"1MiB\"")
        .section("[refresh]\nrate = 1000")
        .start()
        .await;
    let hits = AtomicUsize::new(0);
    for index in 0..40 {
        assert_eq!(daemon.get(&format!("/secret/s/{index}")).await.status, 200);
        let hot = daemon.get("/secret/s/0").await;
        hits.fetch_add(usize::from(hot.header("cache-status").contains("; hit;")), Ordering::Relaxed);
    }
    assert_eq!(hits.into_inner(), 40, "the secret that is read most is never evicted");
    assert!(daemon.metric("smcached_cache_bytes").await <= 1 << 20);
    assert!(daemon.metric("smcached_cache_evictions_total{cause=\"size\"}").await >= 20);
}
