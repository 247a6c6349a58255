//! What readers cost who wait for a change, and how soon they are woken: `cargo bench --bench waiting [-- READERS]`.
//!
//! Each reader holds a connection of its own with `?wait=`; the secret is rotated, fetched once, and every reader must be
//! answered with it.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::client::Connection;
use support::daemon::{Daemon, Setup};
use support::fake_aws::FakeAws;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

const ROTATIONS: u32 = 10;
const PATIENCE: Duration = Duration::from_mins(1);

async fn waiting(daemon: &Daemon) -> u64 {
    daemon.metric("smcached_http_connections{listener=\"unix:s.sock\"}").await
}

fn main() {
    let readers = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(5000);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(run(readers));
}

async fn run(readers: u64) {
    let aws = FakeAws::start();
    aws.put("a/b", "0");
    let daemon = Setup::with_aws(&aws.url())
        .quiet()
        .cache("ttl = \"1h\"")
        .section("[server]\nmax_connections = 20000")
        .start()
        .await;
    let mut etag = daemon.get("/secret/a/b").await.header("etag").to_owned();
    let before = support::resident(daemon.pid());
    println!("{readers} readers wait; resident before: {} KiB", before / 1024);
    println!("{:>9} {:>9} {:>9} {:>10} {:>6} {:>6}", "p50", "p99", "max", "bytes each", "lost", "calls");
    let mut idle: Vec<Connection> = Vec::new();
    for rotation in 1..=ROTATIONS {
        let mut waiters = JoinSet::new();
        for _ in 0..readers {
            let (address, etag, reused) = (daemon.unix(), etag.clone(), idle.pop());
            waiters.spawn(async move {
                let mut connection = match reused {
                    Some(connection) => connection,
                    None => Connection::open(&address).await.unwrap(),
                };
                let known = [("If-None-Match", etag.as_str())];
                // Not the client's own patience, which is for short answers.
                let answer = connection.get("/secret/a/b?wait=10s", &known).await.unwrap();
                (connection, Instant::now(), answer)
            });
        }
        support::eventually("all wait", PATIENCE, async || waiting(&daemon).await >= readers).await;
        // A connection is open before its request has come; those are given a moment.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let bytes_each = support::resident(daemon.pid()).saturating_sub(before) / readers;
        let (calls, value) = (aws.calls(), rotation.to_string());
        aws.put("a/b", value.as_str());
        let start = Instant::now();
        let forced = daemon.get_with("/secret/a/b", &[("Cache-Control", "no-cache")]).await;
        etag = forced.header("etag").to_owned();
        let answers = timeout(PATIENCE, waiters.join_all()).await.expect("all are answered in the end");
        let mut late: Vec<Duration> = Vec::new();
        for (connection, at, answer) in answers {
            if answer.status == 200 && answer.text() == value {
                late.push(at.duration_since(start));
            }
            idle.push(connection);
        }
        late.sort_unstable();
        println!(
            "{:>9.1?} {:>9.1?} {:>9.1?} {:>10} {:>6} {:>6}",
            late[late.len() / 2],
            late[late.len() * 99 / 100],
            late[late.len() - 1],
            bytes_each,
            readers - late.len() as u64,
            aws.calls() - calls
        );
    }
}
