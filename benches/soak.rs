//! Twenty minutes of everything at once: AWS misbehaves at random, secrets rotate, are deleted, denied and restored, the
//! configuration is reloaded with good and bad files, and 200 connections read throughout. Every value carries its name
//! and version, and every answer is checked; memory and descriptors are sampled. Before that, AWS is away for a minute.
//!
//! `cargo bench --bench soak [-- MINUTES]`. Ends with 1 if any answer was wrong, any held read failed, or anything grew.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the summary is the output")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::client::{Address, Connection};
use support::daemon::{Daemon, Setup};
use support::fake_aws::FakeAws;
use support::faults::{Fault, busiest_second};
use support::{ARN, eventually};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

const CONNECTIONS: usize = 200;
const SECRETS: usize = 200;
/// The first of them are deleted and denied now and then; all others must always be answered.
const VOLATILE: usize = 20;
/// Between two requests of one connection.
const PACE: Duration = Duration::from_millis(100);
/// How far the clocks of a check may be apart: `Age` is in whole seconds, and a call takes time.
const SLACK: Duration = Duration::from_secs(3);
const RATE: usize = 50;
const SECOND: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let minutes = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(20);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    if runtime.block_on(run(SECOND * 60 * minutes)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What is stored, and since when.
struct World {
    aws: FakeAws,
    /// For each secret, when each of its versions was stored.
    history: Vec<Mutex<Vec<Instant>>>,
}

impl World {
    fn rotate(&self, index: usize) {
        let mut history = self.history[index].lock().unwrap();
        history.push(Instant::now());
        let padding = "x".repeat(fastrand::usize(..4000));
        self.aws.put(&name(index), format!("{}|{}|{padding}", name(index), history.len()).as_str());
    }

    /// The version of an answer that is right: about this secret, and current when `Age` says that it was.
    fn version(&self, index: usize, body: &str, age: Duration, asked: Instant) -> Result<usize, String> {
        let mut parts = body.splitn(3, '|');
        let (found, version) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if found != name(index) {
            return Err(format!("the value of {found} for {}", name(index)));
        }
        let version: usize = version.parse().map_err(|_| format!("half a value of {found}"))?;
        let history = self.history[index].lock().unwrap();
        if version == 0 || version > history.len() {
            return Err(format!("version {version} of {found}, which has {}", history.len()));
        }
        if let Some(replaced) = history.get(version)
            && *replaced + age + SLACK < asked
        {
            let ago = (asked - *replaced).as_secs();
            return Err(format!("version {version} of {found}, Age {}, replaced {ago} s ago", age.as_secs()));
        }
        Ok(version)
    }
}

fn name(index: usize) -> String {
    format!("team/{index}")
}

/// What the readers saw.
#[derive(Default)]
struct Seen {
    reads: usize,
    stale: usize,
    refused: usize,
    wrong: Vec<String>,
    latencies: Vec<Duration>,
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.reads += other.reads;
        self.stale += other.stale;
        self.refused += other.refused;
        self.wrong.extend(other.wrong);
        self.latencies.extend(other.latencies);
    }

    /// The latencies are in order.
    fn latency(&self, per_mille: usize) -> Duration {
        let index = self.latencies.len().saturating_sub(1) * per_mille / 1000;
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

async fn read(
    world: Arc<World>,
    address: Address,
    token: Option<String>,
    offset: Duration,
    is_over: Arc<AtomicBool>,
) -> Seen {
    let headers: Vec<(&str, &str)> =
        token.iter().map(|token| ("X-Aws-Parameters-Secrets-Token", token.as_str())).collect();
    let mut connection = Connection::open(&address).await.unwrap();
    let (mut seen, mut newest) = (Seen::default(), [0; SECRETS]);
    let mut due = Instant::now() + offset;
    while !is_over.load(Ordering::Relaxed) {
        sleep_until(due).await;
        due += PACE;
        let index = fastrand::usize(..SECRETS);
        let path = if fastrand::bool() {
            format!("/secret/team/{index}")
        } else {
            format!("/secret/{ARN}/team/{index}-AbCdEf")
        };
        let asked = Instant::now();
        let answer = match connection.get(&path, &headers).await {
            Ok(answer) => answer,
            Err(error) => {
                seen.wrong.push(format!("{path}: the connection broke: {error}"));
                connection = Connection::open(&address).await.unwrap();
                continue;
            }
        };
        seen.reads += 1;
        if answer.status == 200 {
            let age = Duration::from_secs(answer.header("age").parse().unwrap());
            seen.stale += usize::from(answer.header("cache-status").contains("detail=stale"));
            match world.version(index, answer.text(), age, asked) {
                Ok(version) if version >= newest[index] => newest[index] = version,
                Ok(version) => seen.wrong.push(format!("{path}: {version} after {}", newest[index])),
                Err(error) => seen.wrong.push(error),
            }
        } else if index < VOLATILE {
            seen.refused += 1;
            continue;
        } else {
            seen.wrong.push(format!("{path}: {} {}", answer.status, answer.code()));
        }
        if index >= VOLATILE {
            seen.latencies.push(asked.elapsed());
        }
    }
    seen
}

/// Starts the readers; what they saw, once told that it is over.
fn readers(world: &Arc<World>, daemon: &Daemon, is_over: &Arc<AtomicBool>) -> JoinSet<Seen> {
    let mut readers = JoinSet::new();
    for index in 0..CONNECTIONS {
        let (address, token) =
            if index % 4 == 0 { (daemon.tcp(), Some(daemon.token())) } else { (daemon.unix(), None) };
        let offset = PACE * u32::try_from(index).unwrap() / u32::try_from(CONNECTIONS).unwrap();
        readers.spawn(read(Arc::clone(world), address, token, offset, Arc::clone(is_over)));
    }
    readers
}

async fn ended(mut readers: JoinSet<Seen>, is_over: &AtomicBool) -> Seen {
    is_over.store(true, Ordering::Relaxed);
    let mut seen = Seen::default();
    while let Some(of_reader) = readers.join_next().await {
        seen.add(of_reader.unwrap());
    }
    seen.latencies.sort_unstable();
    seen
}

/// Resident memory in KiB, and open descriptors.
fn size(daemon: &Daemon) -> (usize, usize) {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let kibibytes = support::resident(daemon.pid()) / 1024;
    (usize::try_from(kibibytes).unwrap(), descriptors)
}

async fn run(length: Duration) -> bool {
    let history = (0..SECRETS).map(|_| Mutex::default()).collect();
    let world = Arc::new(World { aws: FakeAws::start(), history });
    (0..SECRETS).for_each(|index| world.rotate(index));
    let listed: Vec<String> = (0..SECRETS).map(|index| format!("\"{}\"", name(index))).collect();
    let daemon = Setup::with_aws(&world.aws.url())
        .aws("attempt_timeout = \"1s\"")
        .cache(
            "ttl = \"5s\"\nstale_while_revalidate = \"2s\"\nnegative_ttl = \"1s\"\npreload_timeout = \"1m\"",
        )
        .cache(&format!("preload = [{}]", listed.join(", ")))
        .section(&format!("[refresh]\nrate = {RATE}"))
        .quiet()
        .start()
        .await;
    let is_right = outage(&world, &daemon).await;
    soak(&world, &daemon, length).await && is_right
}

/// AWS is away for a minute: half of that it hangs, half it refuses.
async fn outage(world: &Arc<World>, daemon: &Daemon) -> bool {
    let is_over = Arc::new(AtomicBool::new(false));
    let reading = readers(world, daemon, &is_over);
    sleep(SECOND * 5).await;
    for fault in [Fault::Hang, Fault::Refuse] {
        world.aws.fail(Some(fault));
        sleep(SECOND * 30).await;
    }
    world.aws.clear_log();
    (0..SECRETS).for_each(|index| world.rotate(index));
    let back = Instant::now();
    world.aws.fail(None);
    eventually("all is fresh again", SECOND * 60, async || {
        daemon.metric("smcached_stale_entries").await == 0
    })
    .await;
    let recovery = back.elapsed();
    let seen = ended(reading, &is_over).await;
    println!("AWS away for 60 s under load, then back:");
    println!(
        "  {} reads, {} of them stale, {} wrong or failed; p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, max {:.1?}",
        seen.reads,
        seen.stale,
        seen.wrong.len(),
        seen.latency(500),
        seen.latency(990),
        seen.latency(999),
        seen.latency(1000)
    );
    let busiest = busiest_second(&world.aws.log());
    println!("  all fresh {recovery:.1?} later; the busiest second saw {busiest} calls of {RATE}");
    seen.wrong.iter().take(10).for_each(|wrong| println!("  WRONG {wrong}"));
    seen.wrong.is_empty() && busiest <= RATE
}

async fn soak(world: &Arc<World>, daemon: &Daemon, length: Duration) -> bool {
    let start = Instant::now();
    let is_over = Arc::new(AtomicBool::new(false));
    let reading = readers(world, daemon, &is_over);
    let mut trouble = JoinSet::new();
    trouble.spawn(rotations(Arc::clone(world)));
    trouble.spawn(faults(Arc::clone(world)));
    trouble.spawn(revocations(Arc::clone(world)));
    let good = std::fs::read_to_string(daemon.path("smcached.toml")).unwrap();
    let (mut reloads, mut samples, mut calls, mut busiest) = ([0_u64; 2], Vec::new(), 0, 0);
    println!("{:>8} {:>9} {:>12} {:>8} {:>8}", "minute", "RSS KiB", "descriptors", "calls", "busiest");
    let mut next_row = start;
    while start.elapsed() < length {
        let is_good = fastrand::bool();
        let ttl = fastrand::usize(3..7);
        let text = good.replace("ttl = \"5s\"", &format!("ttl = \"{ttl}s\""));
        daemon.rewrite_config(|_| if is_good { text } else { good.replace("[cache]", "[cash]") });
        daemon.signal("HUP");
        reloads[usize::from(is_good)] += 1;
        sleep(SECOND * 5).await;
        let (resident, descriptors) = size(daemon);
        samples.push((resident, descriptors));
        let log = world.aws.log();
        world.aws.clear_log();
        calls += log.len();
        busiest = busiest.max(busiest_second(&log));
        if Instant::now() >= next_row {
            let minute = start.elapsed().as_secs() / 60;
            println!("{minute:>8} {resident:>9} {descriptors:>12} {calls:>8} {busiest:>8}");
            next_row += SECOND * 60;
        }
    }
    trouble.shutdown().await;
    world.aws.fail(None);
    world.aws.set_quota(None);
    world.aws.set_latency(Duration::ZERO);
    let seen = ended(reading, &is_over).await;
    let counted = [
        daemon.metric("smcached_config_reloads_total{result=\"failure\"}").await,
        daemon.metric("smcached_config_reloads_total{result=\"success\"}").await,
    ];
    println!(
        "soak of {:?}: {} reads, {} stale, {} refused as deleted or denied or not held, {} wrong or failed",
        length,
        seen.reads,
        seen.stale,
        seen.refused,
        seen.wrong.len()
    );
    println!(
        "  latency p50 {:.1?}, p99 {:.1?}, p99.9 {:.1?}, max {:.1?}; {calls} calls, at most {busiest} in a second",
        seen.latency(500),
        seen.latency(990),
        seen.latency(999),
        seen.latency(1000)
    );
    println!("  reloads, bad and good: sent {reloads:?}, counted {counted:?}");
    // The first quarter warms up.
    let settled = &samples[samples.len() / 4..];
    let median = |part: &[(usize, usize)], of: fn(&(usize, usize)) -> usize| {
        let mut values: Vec<usize> = part.iter().map(of).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let (early, late) = settled.split_at(settled.len() / 2);
    let memory = (median(early, |sample| sample.0), median(late, |sample| sample.0));
    let descriptors = (median(early, |sample| sample.1), median(late, |sample| sample.1));
    println!(
        "  median RSS {} -> {} KiB, descriptors {} -> {}",
        memory.0, memory.1, descriptors.0, descriptors.1
    );
    seen.wrong.iter().take(20).for_each(|wrong| println!("  WRONG {wrong}"));
    let is_flat = memory.1 * 10 <= memory.0 * 11 && descriptors.1 <= descriptors.0 + 20;
    seen.wrong.is_empty() && is_flat && counted == reloads && busiest <= RATE
}

async fn rotations(world: Arc<World>) {
    loop {
        world.rotate(fastrand::usize(..SECRETS));
        sleep(Duration::from_millis(50)).await;
    }
}

async fn faults(world: Arc<World>) {
    const ALL: [Fault; 15] = [
        Fault::Hang,
        Fault::Drip,
        Fault::Refuse,
        Fault::ResetBefore,
        Fault::ResetMiddle,
        Fault::Truncate,
        Fault::Throttle400,
        Fault::Throttle429,
        Fault::Http500,
        Fault::Http503,
        Fault::Garble,
        Fault::EmptyObject,
        Fault::Html403,
        Fault::WrongSecret,
        Fault::ExpiredToken,
    ];
    loop {
        match fastrand::usize(..10) {
            0 => world.aws.set_latency(Duration::from_millis(fastrand::u64(..800))),
            1 => world.aws.set_quota(Some(fastrand::usize(1..20))),
            2 => world.aws.deny_action("BatchGetSecretValue", fastrand::bool()),
            _ => world.aws.fail(Some(ALL[fastrand::usize(..ALL.len())])),
        }
        sleep(Duration::from_millis(fastrand::u64(500..6000))).await;
        world.aws.fail(None);
        world.aws.set_quota(None);
        world.aws.set_latency(Duration::ZERO);
        sleep(Duration::from_millis(fastrand::u64(500..6000))).await;
    }
}

async fn revocations(world: Arc<World>) {
    loop {
        let name = name(fastrand::usize(..VOLATILE));
        if fastrand::bool() {
            world.aws.delete(&name);
        } else {
            world.aws.deny(&name, true);
        }
        sleep(Duration::from_millis(fastrand::u64(1000..8000))).await;
        world.aws.restore(&name);
        world.aws.deny(&name, false);
        sleep(Duration::from_millis(fastrand::u64(1000..8000))).await;
    }
}
