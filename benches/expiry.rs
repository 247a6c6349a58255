//! What expiry costs readers: the same constant load over a short ttl and over one that never ends within the
//! run, with AWS 100 ms away. The rows should be alike.
//!
//! `cargo bench --bench expiry [-- SECONDS]`. Both daemons are read from at the same time, so that whatever else the
//! machine does falls on both; each has an AWS of its own.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]

#[path = "common/paced.rs"]
mod paced;
#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use paced::Seen;
use support::client::Connection;
use support::daemon::{Daemon, Setup};
use support::fake_aws::FakeAws;
use tokio::time::Instant;

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

const CONNECTIONS: usize = 64;
const SECRETS: usize = 8;
/// Between two requests of one connection.
const PACE: Duration = Duration::from_millis(20);
const LATENCY_OF_AWS: Duration = Duration::from_millis(100);

fn main() {
    let seconds = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(30);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        println!(
            "{CONNECTIONS} connections, {SECRETS} secrets, AWS {LATENCY_OF_AWS:?} away, for {seconds} s"
        );
        println!(
            "{:>6} {:>8} {:>9} {:>9} {:>9} {:>9} {:>6} {:>6}",
            "ttl", "reads", "p50", "p99", "p99.9", "slowest", "calls", "stale"
        );
        let (without, with) = (Side::start("1h").await, Side::start("2s").await);
        let start = Instant::now() + Duration::from_millis(100);
        let end = start + Duration::from_secs(seconds);
        let seen = tokio::join!(without.read(start, end), with.read(start, end));
        without.print(&seen.0);
        with.print(&seen.1);
        let [without, with] = [&seen.0, &seen.1].map(|seen| seen.at(1000).as_secs_f64() * 1e3);
        println!("the slowest read: {with:.1} ms with expiry, {without:.1} ms without");
    });
}

/// A daemon and its AWS.
struct Side {
    ttl: &'static str,
    daemon: Daemon,
    aws: FakeAws,
}

impl Side {
    /// Holds all secrets already.
    async fn start(ttl: &'static str) -> Self {
        let aws = FakeAws::start();
        for index in 0..SECRETS {
            aws.put(&format!("team-a/{index}"), "x".repeat(200).as_str());
        }
        let cache = format!("ttl = \"{ttl}\"");
        let daemon = Setup::with_aws(&aws.url()).quiet().cache(&cache).start().await;
        for index in 0..SECRETS {
            daemon.get(&format!("/secret/team-a/{index}")).await;
        }
        aws.set_latency(LATENCY_OF_AWS);
        Self { ttl, daemon, aws }
    }

    async fn read(&self, start: Instant, end: Instant) -> Seen {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(Connection::open(&self.daemon.unix()).await.unwrap());
        }
        let path = |reader: usize, _| format!("/secret/team-a/{}", reader % SECRETS);
        paced::read(connections, path, PACE, [start, end]).await
    }

    fn print(&self, seen: &Seen) {
        println!(
            "{:>6} {:>8} {:>9.1?} {:>9.1?} {:>9.1?} {:>9.1?} {:>6} {:>6}",
            self.ttl,
            seen.latencies.len(),
            seen.at(500),
            seen.at(990),
            seen.at(999),
            seen.at(1000),
            self.aws.calls(),
            seen.stale
        );
    }
}
