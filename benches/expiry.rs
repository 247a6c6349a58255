//! What expiry costs readers: the same constant load over a short ttl and over one that never ends within the
//! run, with AWS 100 ms away. The two rows should be alike.
//!
//! `cargo bench --bench expiry [-- SECONDS]`. Latency is counted from the moment at which a request was due,
//! so that a stall is charged to every request that it held up (coordinated omission).

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use support::client::Connection;
use support::daemon::Setup;
use support::fake_aws::FakeAws;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

const CONNECTIONS: u32 = 64;
const SECRETS: u32 = 8;
/// Between two requests of one connection.
const PACE: Duration = Duration::from_millis(20);
const LATENCY_OF_AWS: Duration = Duration::from_millis(100);

fn main() {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(30);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        println!(
            "{CONNECTIONS} connections, {SECRETS} secrets, AWS {LATENCY_OF_AWS:?} away, {seconds} s a run"
        );
        println!(
            "{:>6} {:>8} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6}",
            "ttl", "reads", "p50", "p99", "p99.9", "max", "calls", "stale"
        );
        for ttl in ["1h", "2s", "1h", "2s"] {
            run(ttl, Duration::from_secs(seconds)).await;
        }
    });
}

async fn run(ttl: &str, length: Duration) {
    let aws = FakeAws::start();
    for index in 0..SECRETS {
        aws.put(&format!("team-a/{index}"), "x".repeat(200).as_str());
    }
    let daemon = Setup::with_aws(&aws.url()).cache(&format!("ttl = \"{ttl}\"")).start().await;
    for index in 0..SECRETS {
        daemon.get(&format!("/secret/team-a/{index}")).await;
    }
    aws.set_latency(LATENCY_OF_AWS);
    let start = Instant::now();
    let mut readers = JoinSet::new();
    for index in 0..CONNECTIONS {
        let address = daemon.unix();
        readers.spawn(async move {
            let path = format!("/secret/team-a/{}", index % SECRETS);
            let mut connection = Connection::open(&address).await.unwrap();
            let mut due = start + PACE * index / CONNECTIONS;
            let (mut latencies, mut stale) = (Vec::new(), 0_usize);
            while due < start + length {
                sleep_until(due).await;
                let sent = Instant::now();
                let answer = connection.get(&path, &[]).await.unwrap();
                assert_eq!(answer.status, 200);
                stale += usize::from(answer.header("cache-status").contains("stale"));
                // The timer wakes at whole milliseconds: that lateness is the client's own.
                let client_late = sent.duration_since(due).min(Duration::from_millis(2));
                latencies.push(due.elapsed().saturating_sub(client_late));
                due += PACE;
            }
            (latencies, stale)
        });
    }
    let (mut latencies, mut stale) = (Vec::new(), 0);
    for (of_reader, stale_of_reader) in readers.join_all().await {
        latencies.extend(of_reader);
        stale += stale_of_reader;
    }
    latencies.sort_unstable();
    let at = |per_mille: usize| latencies[(latencies.len() - 1) * per_mille / 1000];
    println!(
        "{ttl:>6} {:>8} {:>9.1?} {:>9.1?} {:>9.1?} {:>9.1?} {:>6} {stale:>6}",
        latencies.len(),
        at(500),
        at(990),
        at(999),
        at(1000),
        aws.calls()
    );
}
