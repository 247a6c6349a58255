//! `?wait=`: answers that come when the version changes.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::support::client::{self, Connection};
use crate::support::daemon::Setup;
use crate::support::fake_aws::FakeAws;
use crate::support::faults::Fault;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_waiting_reader_gets_the_next_version_or_304_at_the_end() {
    let aws = FakeAws::start();
    aws.put("a/b", "one");
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"1s\"").start().await;
    let first = daemon.get("/secret/a/b?wait=30s").await;
    assert_eq!((first.status, first.text()), (200, "one"), "who knows nothing does not wait");
    let etag = first.header("etag").to_owned();
    let known = [("If-None-Match", etag.as_str())];

    let start = Instant::now();
    let unchanged = daemon.get_with("/secret/a/b?wait=1500ms", &known).await;
    assert_eq!((unchanged.status, unchanged.header("etag")), (304, etag.as_str()));
    assert!(start.elapsed() >= Duration::from_millis(1500));

    aws.put("a/b", "two");
    let changed = timeout(SECOND * 10, daemon.get_with("/secret/a/b?wait=30s", &known)).await.unwrap();
    assert_eq!((changed.status, changed.text()), (200, "two"));
    assert_ne!(changed.header("etag"), etag);

    // AWS being down ends no wait; a revocation does.
    let etag = changed.header("etag").to_owned();
    let known = [("If-None-Match", etag.as_str())];
    aws.fail(Some(Fault::Refuse));
    assert_eq!(daemon.get_with("/secret/a/b?wait=3s", &known).await.status, 304);
    aws.fail(None);
    aws.delete("a/b");
    let gone = timeout(SECOND * 20, daemon.get_with("/secret/a/b?wait=60s", &known)).await.unwrap();
    assert_eq!((gone.status, gone.code().as_str()), (404, "secret_deleted"));
}

#[tokio::test]
async fn a_field_may_be_waited_for_and_a_wrong_wait_is_refused() {
    let daemon = Setup::with_file("[[secret]]\nname = \"a\"\nstring = '{\"k\": 1}'\n").start().await;
    let etag = daemon.get("/secret/a?field=k").await.header("etag").to_owned();
    let known = [("If-None-Match", etag.as_str())];
    assert_eq!(daemon.get_with("/secret/a?field=k&wait=10ms", &known).await.status, 304);
    for wait in ["", "30", "forever", "11m", "-1s"] {
        let refused = daemon.get(&format!("/secret/a?wait={wait}")).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "invalid_parameter"), "{wait}");
    }
}

#[tokio::test]
async fn at_the_end_of_the_daemon_nobody_is_left_waiting() {
    let mut daemon = Setup::with_file("[[secret]]\nname = \"a\"\nstring = \"x\"\n").start().await;
    let etag = daemon.get("/secret/a").await.header("etag").to_owned();
    let address = daemon.unix();
    let waiting = tokio::spawn(async move {
        client::get(&address, "/secret/a?wait=10m", &[("If-None-Match", &etag)]).await
    });
    let connections = format!("smcached_http_connections{{listener=\"unix:{}\"}}", "s.sock");
    crate::support::eventually("somebody waits", SECOND * 10, async || {
        daemon.metric(&connections).await == 1
    })
    .await;
    let start = Instant::now();
    daemon.signal("TERM");
    assert_eq!(waiting.await.unwrap().status, 304);
    assert!(daemon.exit().await.success());
    assert!(start.elapsed() < SECOND * 5, "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_waiting_readers_are_all_woken_and_cost_one_call() {
    const READERS: usize = 500;
    let aws = FakeAws::start();
    aws.put("a/b", "one");
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"1h\"").start().await;
    let mut etag = daemon.get("/secret/a/b").await.header("etag").to_owned();
    for value in ["two", "three"] {
        let mut waiting = JoinSet::new();
        for _ in 0..READERS {
            let (address, etag) = (daemon.unix(), etag.clone());
            waiting.spawn(async move {
                let mut connection = Connection::open(&address).await.unwrap();
                connection.get("/secret/a/b?wait=60s", &[("If-None-Match", &etag)]).await.unwrap()
            });
        }
        let connections = "smcached_http_connections{listener=\"unix:s.sock\"}";
        crate::support::eventually("all wait", SECOND * 20, async || {
            daemon.metric(connections).await >= u64::try_from(READERS).unwrap()
        })
        .await;
        let calls = aws.calls();
        aws.put("a/b", value);
        let forced = daemon.get_with("/secret/a/b", &[("Cache-Control", "no-cache")]).await;
        etag = forced.header("etag").to_owned();
        let answers = timeout(SECOND * 20, waiting.join_all()).await.expect("nobody sleeps on");
        assert!(answers.iter().all(|answer| (answer.status, answer.text()) == (200, value)));
        assert_eq!(aws.calls(), calls + 1);
    }
}
