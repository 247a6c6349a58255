//! The process: how it starts, what it refuses, how it ends.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::client::{Address, Connection};
use crate::support::daemon::Setup;
use crate::support::fake_aws::FakeAws;

const SECRETS: &str = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n";

#[tokio::test]
async fn sockets_and_token_have_their_modes_and_are_gone_or_kept_at_the_end() {
    let daemon = Setup::with_file(SECRETS).unix("mode = \"0640\"\ngroup = \"0\"").start().await;
    let mode = |name: &str| fs::metadata(daemon.path(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("s.sock"), mode("token")), (0o640, 0o640));
    let directory = daemon.into_directory("TERM").await;
    assert!(!directory.path().join("s.sock").exists());
    assert!(directory.path().join("token").exists(), "callers keep their token over a restart");
}

#[tokio::test]
async fn a_stale_socket_is_replaced_after_a_crash() {
    let directory = Setup::with_file(SECRETS).start().await.into_directory("KILL").await;
    assert!(directory.path().join("s.sock").exists());
    let daemon = Setup::with_file(SECRETS).launch_in(directory);
    daemon.wait_ready().await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
}

#[tokio::test]
async fn a_live_socket_or_a_file_in_its_place_is_refused_with_a_clear_error() {
    let directory = tempfile::tempdir().unwrap();
    let _live = UnixListener::bind(directory.path().join("s.sock")).unwrap();
    let mut daemon = Setup::with_file(SECRETS).launch_in(directory);
    assert_eq!(daemon.exit().await.code(), Some(1));
    assert!(daemon.log().contains("s.sock is in use by another process"), "{}", daemon.log());

    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("s.sock"), "precious").unwrap();
    let mut daemon = Setup::with_file(SECRETS).launch_in(directory);
    assert_eq!(daemon.exit().await.code(), Some(1));
    assert!(daemon.log().contains("exists and is not a socket"), "{}", daemon.log());
    assert_eq!(fs::read_to_string(daemon.path("s.sock")).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_under_load_loses_no_request() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    aws.put("slow", "y");
    let mut daemon = Setup::with_aws(&aws.url()).tcp("token = \"none\"").start().await;
    daemon.get("/secret/db").await;
    aws.set_latency(Duration::from_millis(400));
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for index in 0..50 {
        let address = if index % 2 == 0 { daemon.unix() } else { daemon.tcp() };
        clients.spawn(ask_until(address, Arc::clone(&stop)));
    }
    sleep(Duration::from_millis(300)).await;
    let slow = tokio::spawn({
        let address = daemon.unix();
        async move { Connection::open(&address).await.unwrap().get("/secret/slow", &[]).await.unwrap() }
    });
    sleep(Duration::from_millis(100)).await;
    daemon.signal("TERM");
    assert_eq!(slow.await.unwrap().text(), "y", "a request in flight is finished");
    assert_eq!(daemon.exit().await.code(), Some(0));
    stop.store(true, Ordering::Relaxed);
    let answered: usize = clients.join_all().await.into_iter().sum();
    assert!(answered > 100, "only {answered} requests were made");
    assert!(!daemon.path("s.sock").exists());
}

/// Asks again and again over one connection, and over a new one when told that the old one ends; returns
/// the number of answers once nobody lets it in any more.
async fn ask_until(address: Address, stop: Arc<AtomicBool>) -> usize {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        // Once nobody listens, nobody is promised anything.
        let Ok(mut connection) = Connection::open(&address).await else { break };
        loop {
            let answer = connection.get("/secret/db", &[]).await.expect("a request was lost");
            assert_eq!(answer.status, 200);
            answered += 1;
            if answer.header("connection") == "close" || stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }
    answered
}

#[tokio::test]
async fn while_it_ends_it_is_not_ready_and_a_second_signal_ends_it_at_once() {
    let aws = FakeAws::start();
    aws.put("slow", "y");
    aws.set_latency(Duration::from_secs(30));
    let mut daemon = Setup::with_aws(&aws.url()).cache("fetch_timeout = \"20s\"").start().await;
    let mut waiting = Connection::open(&daemon.unix()).await.unwrap();
    waiting.send(b"GET /secret/slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    daemon.signal("INT");
    daemon.logs("ending").await;
    let ready = daemon.ops_page("/readyz").await;
    assert_eq!((ready.status, ready.text()), (503, "not ready: draining\n"));
    daemon.signal("TERM");
    assert_eq!(daemon.exit().await.code(), Some(1));
}

#[tokio::test]
async fn a_hangup_ends_nothing() {
    let daemon = Setup::with_file(SECRETS).start().await;
    daemon.signal("HUP");
    daemon.logs("the configuration was reloaded").await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
}

#[tokio::test]
async fn what_does_not_finish_within_the_deadline_is_cut_off() {
    let aws = FakeAws::start();
    aws.put("slow", "y");
    aws.set_latency(Duration::from_secs(30));
    let setup = Setup::with_aws(&aws.url()).cache("fetch_timeout = \"20s\"");
    let mut daemon = setup.section("[server]\ndrain_timeout = \"300ms\"").start().await;
    let mut waiting = Connection::open(&daemon.unix()).await.unwrap();
    waiting.send(b"GET /secret/slow HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    sleep(Duration::from_millis(100)).await;
    daemon.signal("TERM");
    assert_eq!(daemon.exit().await.code(), Some(0));
    assert!(daemon.log().contains("did not finish within drain_timeout"));
}

#[tokio::test]
async fn an_edit_of_the_file_is_served_and_a_broken_one_is_not() {
    let daemon = Setup::with_file(SECRETS).start().await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
    fs::write(daemon.path("secrets.toml"), SECRETS.replace("hunter2-hunter2", "swordfish")).unwrap();
    crate::support::eventually("the edit is served", Duration::from_secs(10), async || {
        daemon.get("/secret/a/b").await.text() == "swordfish"
    })
    .await;
    fs::write(daemon.path("secrets.toml"), "[[secret]]\nname = \"a/b\"\nstring = \"correct horse").unwrap();
    daemon.logs("the old content stays").await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "swordfish");
    for value in ["hunter2-hunter2", "swordfish", "correct horse"] {
        assert!(!daemon.log().contains(value), "the log has a secret's value");
    }
}

#[tokio::test]
async fn a_new_token_is_taken_over() {
    let daemon = Setup::with_file(SECRETS).start().await;
    fs::write(daemon.path("token"), "sesame\n").unwrap();
    let header = [("X-Aws-Parameters-Secrets-Token", "sesame")];
    crate::support::eventually("the new token is valid", Duration::from_secs(10), async || {
        crate::support::client::get(&daemon.tcp(), "/secret/a/b", &header).await.status == 200
    })
    .await;
    assert!(!daemon.log().contains("sesame"));
    // A pipe in its place is not read: to open it would be to wait for whoever writes.
    fs::remove_file(daemon.path("token")).unwrap();
    assert!(Command::new("mkfifo").arg(daemon.path("token")).status().unwrap().success());
    let guess = [("X-Aws-Parameters-Secrets-Token", "guess")];
    assert_eq!(crate::support::client::get(&daemon.tcp(), "/secret/a/b", &guess).await.status, 401);
    daemon.logs("it is no regular file").await;
    assert_eq!(crate::support::client::get(&daemon.tcp(), "/secret/a/b", &header).await.status, 200);
    fs::remove_file(daemon.path("token")).unwrap();
}

#[tokio::test]
async fn an_environment_that_makes_the_sdk_log_secrets_is_refused() {
    let mut daemon = Setup::with_file(SECRETS).env("LOG_SENSITIVE_BODIES", "true").launch();
    assert_eq!(daemon.exit().await.code(), Some(2));
    assert!(daemon.log().contains("LOG_SENSITIVE_BODIES"));
}
