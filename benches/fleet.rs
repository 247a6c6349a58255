//! A fleet against one AWS account, on simulated time: what the daemon's own policy (its schedule, pace, breaker and
//! batches, the same code) asks of AWS through a start of all nodes within a minute, a rotation of every secret and ten
//! minutes without AWS; beside what AWS's agent and a client in every pod would ask.
//!
//! `cargo bench --bench fleet [-- NODES...]`. The answers to calls take no time here; latencies are of no
//! account beside minutes.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]
#![allow(clippy::cast_precision_loss, reason = "figures are printed with three digits")]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use smcached::cache::Lifetimes;
use smcached::cache::ability::Ability;
use smcached::cache::breaker::Breaker;
use smcached::cache::pace::Pace;
use smcached::cache::schedule::{EntryClock, Step, backoff, refresh_ahead};
use smcached::secret::SecretId;
use smcached::source::{BatchError, SourceError};
use tokio::time::Instant;

/// Secrets that are in use on each node.
const SECRETS: usize = 20;
/// The daemon's defaults.
const LIFETIMES: Lifetimes = Lifetimes {
    ttl: MINUTE.saturating_mul(5),
    stale_while_revalidate: MINUTE,
    stale_if_error: MINUTE.saturating_mul(24 * 60),
};
const RATE: u32 = 50;
const MAX_BATCH: usize = 20;
/// What AWS allows an account in a region, a second
/// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).
const QUOTA: [f64; 2] = [10_000.0, 100.0];
/// <https://aws.amazon.com/secrets-manager/pricing/>
const DOLLARS_PER_CALL: f64 = 0.05 / 10_000.0;
/// AWS's agent holds a value for this long, and then asks at the next read.
const AGENT_TTL: Duration = MINUTE.saturating_mul(5);
/// Each secret of a node is read this often.
const READ_INTERVAL: Duration = Duration::from_secs(10);
/// A client in every pod: so many pods start on a node in an hour, and each reads so many secrets.
const POD_STARTS: u32 = 120;
const POD_SECRETS: usize = 3;
/// Attempts of an AWS SDK.
const SDK_ATTEMPTS: u32 = 3;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const END: Duration = MINUTE.saturating_mul(80);
/// All nodes start within this time.
const START: Duration = MINUTE;
/// The quiet part, by which rates and costs are told.
const STEADY: (Duration, Duration) = (MINUTE.saturating_mul(20), MINUTE.saturating_mul(40));
const ROTATION: Duration = MINUTE.saturating_mul(40);
const OUTAGE: (Duration, Duration) = (MINUTE.saturating_mul(50), MINUTE.saturating_mul(60));

fn main() {
    let mut fleets: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if fleets.is_empty() {
        fleets = vec![1000, 10_000, 50_000];
    }
    println!(
        "{SECRETS} secrets a node, ttl {:?}; AWS allows {} GetSecretValue and {} BatchGetSecretValue a second",
        LIFETIMES.ttl, QUOTA[0], QUOTA[1]
    );
    println!(
        "{:<18} {:>6} | {:>9} {:>9} {:>9} {:>9} | {:>8} {:>8} | {:>6} {:>6} {:>6} | {:>7} {:>7} | {:>8}",
        "policy",
        "nodes",
        "calls/s",
        "start",
        "back",
        "USD/month",
        "thr.",
        "failed",
        "age50",
        "age99",
        "max",
        "seen50",
        "seen99",
        "recovery"
    );
    for nodes in fleets {
        for policy in
            [Policy::Daemon { batch: true }, Policy::Daemon { batch: false }, Policy::Agent, Policy::Pods]
        {
            let mut fleet = Fleet::new(policy, nodes);
            fleet.run();
            fleet.print();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    /// This daemon.
    Daemon { batch: bool },
    /// AWS's agent: an expired value is asked for at the next read, which waits, and fails if AWS does.
    Agent,
    /// An SDK in every pod, which reads what it needs when it starts.
    Pods,
}

impl Policy {
    fn name(self) -> &'static str {
        match self {
            Self::Daemon { batch: true } => "smcached",
            Self::Daemon { batch: false } => "smcached, no batch",
            Self::Agent => "AWS's agent",
            Self::Pods => "a client a pod",
        }
    }
}

/// AWS, as one account in one region sees it.
struct Account {
    epoch: Instant,
    /// Tokens of each operation, and when they were counted.
    tokens: [(f64, Instant); 2],
    /// Calls of each second.
    calls: Vec<u32>,
    throttled: u64,
    total: u64,
}

const GET: usize = 0;
const BATCH: usize = 1;

impl Account {
    fn call(&mut self, operation: usize, now: Instant) -> Result<(), SourceError> {
        let since = now - self.epoch;
        if since >= OUTAGE.0 && since < OUTAGE.1 {
            return Err(SourceError::Unreachable { reason: "the outage".to_owned() });
        }
        self.calls[usize::try_from(since.as_secs()).unwrap()] += 1;
        self.total += 1;
        let (tokens, counted) = &mut self.tokens[operation];
        let earned = now.saturating_duration_since(*counted).as_secs_f64() * QUOTA[operation];
        *tokens = (*tokens + earned).min(QUOTA[operation]);
        *counted = now.max(*counted);
        if *tokens < 1.0 {
            self.throttled += 1;
            return Err(SourceError::Throttled { retry_after: None });
        }
        *tokens -= 1.0;
        Ok(())
    }

    /// Calls a second, on average and at most.
    fn rate(&self, from: Duration, to: Duration) -> (f64, u32) {
        let part =
            &self.calls[usize::try_from(from.as_secs()).unwrap()..usize::try_from(to.as_secs()).unwrap()];
        let sum: u64 = part.iter().map(|calls| u64::from(*calls)).sum();
        (sum as f64 / part.len() as f64, part.iter().copied().max().unwrap_or(0))
    }
}

/// One secret on one node.
#[derive(Clone)]
struct Entry {
    /// As the daemon has it; `None` until the first answer.
    clock: Option<EntryClock>,
    failures: u32,
    /// Of a secret without a value, or for the policies that have no clock: when it is asked for next.
    ask_at: Instant,
}

struct Node {
    pace: Pace,
    breaker: Breaker,
    ability: Ability,
    entries: Vec<Entry>,
    was_open: bool,
}

struct Fleet {
    policy: Policy,
    epoch: Instant,
    account: Account,
    nodes: Vec<Node>,
    events: BinaryHeap<Reverse<(Instant, usize)>>,
    ids: Vec<SecretId>,
    reads: u64,
    failed_reads: u64,
    ages: Vec<f32>,
    /// How long after the rotation each node had each new version.
    seen: Vec<f32>,
    /// When the last value had been renewed after the outage.
    recovered: Option<Duration>,
}

impl Fleet {
    fn new(policy: Policy, count: usize) -> Self {
        let epoch = Instant::now();
        let account = Account {
            epoch,
            tokens: [(QUOTA[0], epoch), (QUOTA[1], epoch)],
            calls: vec![0; usize::try_from(END.as_secs()).unwrap() + 1],
            throttled: 0,
            total: 0,
        };
        let mut events = BinaryHeap::new();
        let nodes = (0..count).map(|index| {
            let start = epoch + START.mul_f64(fastrand::f64());
            events.push(Reverse((start, index)));
            let entry =
                || Entry { clock: None, failures: 0, ask_at: start + READ_INTERVAL.mul_f64(fastrand::f64()) };
            Node {
                pace: Pace::new(RATE),
                breaker: Breaker::default(),
                ability: Ability::default(),
                entries: (0..SECRETS).map(|_| entry()).collect(),
                was_open: false,
            }
        });
        let nodes = nodes.collect();
        let ids = (0..SECRETS).map(|index| SecretId::parse(&format!("secret/{index}")).unwrap()).collect();
        Self {
            policy,
            epoch,
            account,
            nodes,
            events,
            ids,
            reads: 0,
            failed_reads: 0,
            ages: Vec::new(),
            seen: Vec::new(),
            recovered: None,
        }
    }

    fn run(&mut self) {
        let mut sample_at = self.epoch + START + READ_INTERVAL;
        while let Some(Reverse((now, index))) = self.events.pop() {
            if now >= self.epoch + END {
                break;
            }
            while now >= sample_at {
                self.sample(sample_at);
                sample_at += READ_INTERVAL;
            }
            let next = match self.policy {
                Policy::Daemon { batch } => self.daemon(index, now, batch),
                Policy::Agent => self.agent(index, now),
                Policy::Pods => self.pod(now),
            };
            self.events.push(Reverse((next, index)));
        }
    }

    /// One step of a daemon: at most one call. Says when the next is due.
    fn daemon(&mut self, index: usize, now: Instant, batch: bool) -> Instant {
        let node = &mut self.nodes[index];
        let due = |entry: &Entry| match entry.clock.as_ref().map(|clock| clock.next_step(now)) {
            Some(Step::Wait(at)) => at,
            Some(Step::Refresh | Step::Drop(_)) => now,
            None => entry.ask_at,
        };
        let (first, due_at) =
            (0..).zip(&node.entries).map(|(at, entry)| (at, due(entry))).min_by_key(|(_, at)| *at).unwrap();
        if due_at > now {
            return due_at;
        }
        let group: Vec<usize> = if batch && node.entries[first].clock.is_some() && node.ability.is_there(now)
        {
            let may_go = |entry: &Entry| {
                due(entry) <= now && entry.clock.is_some()
                    || entry.clock.as_ref().is_some_and(|clock| clock.may_go_ahead(now))
            };
            (0..node.entries.len()).filter(|at| may_go(&node.entries[*at])).take(MAX_BATCH).collect()
        } else {
            vec![first]
        };
        let admitted = node.breaker.admit(now);
        let is_admitted = admitted.is_ok();
        let answer = match admitted {
            Err(error) => Err(error),
            Ok(()) => {
                if let Err(again) = node.pace.take(now) {
                    return again;
                }
                let operation = if group.len() > 1 { BATCH } else { GET };
                let answer = self.account.call(operation, now);
                if let Err(SourceError::Throttled { retry_after }) = &answer {
                    node.pace.throttled(now, *retry_after);
                }
                if operation == BATCH {
                    let failed = answer.clone().err().map(BatchError::Failed);
                    node.ability.note(failed.as_ref(), now, fastrand::f64());
                }
                let ids = group.iter().map(|at| &self.ids[*at]);
                node.breaker.note(ids, answer.as_ref().err(), now, fastrand::f64());
                answer
            }
        };
        // When a dead endpoint answers again, what waits for its backoff goes at once.
        if std::mem::replace(&mut node.was_open, node.breaker.is_open()) && !node.breaker.is_open() {
            for clock in node.entries.iter_mut().filter_map(|entry| entry.clock.as_mut()) {
                clock.retry_at = clock.retry_at.map(|at| at.min(now));
            }
        }
        let jitter = fastrand::f64();
        for at in group {
            let entry = &mut node.entries[at];
            match &answer {
                Ok(()) => {
                    let fetched_before = entry.clock.map(|clock| clock.fetched_at);
                    entry.failures = 0;
                    entry.clock = Some(clock(now, jitter));
                    note_fetch(self.epoch, fetched_before, now, &mut self.seen, &mut self.recovered);
                }
                Err(_) => {
                    match &mut entry.clock {
                        Some(clock) if !is_admitted => clock.retry_at = node.breaker.probe_at(),
                        Some(clock) => {
                            entry.failures += 1;
                            clock.retry_at = Some(now + backoff(entry.failures, None, jitter));
                        }
                        // A reader who got an error comes again.
                        None => entry.ask_at = now + READ_INTERVAL,
                    }
                }
            }
        }
        now
    }

    /// Every read of a node's secrets that finds an expired value asks, and waits.
    fn agent(&mut self, index: usize, now: Instant) -> Instant {
        let node = &mut self.nodes[index];
        for entry in node.entries.iter_mut().filter(|entry| entry.ask_at <= now) {
            let answer = (0..SDK_ATTEMPTS).find_map(|_| self.account.call(GET, now).ok());
            match answer {
                Some(()) => {
                    let fetched_before = entry.clock.map(|clock| clock.fetched_at);
                    entry.clock = Some(clock(now, 0.0));
                    entry.ask_at = now + AGENT_TTL + READ_INTERVAL.mul_f64(fastrand::f64());
                    entry.failures = 0;
                    note_fetch(self.epoch, fetched_before, now, &mut self.seen, &mut self.recovered);
                }
                None => {
                    entry.failures = 1;
                    entry.ask_at = now + READ_INTERVAL;
                }
            }
        }
        node.entries.iter().map(|entry| entry.ask_at).min().unwrap().max(now + SECOND / 10)
    }

    /// A pod starts and reads.
    fn pod(&mut self, now: Instant) -> Instant {
        for _ in 0..POD_SECRETS {
            let is_read = (0..SDK_ATTEMPTS).any(|_| self.account.call(GET, now).is_ok());
            self.reads += 1;
            self.failed_reads += u64::from(!is_read);
        }
        now + (MINUTE * 60 / POD_STARTS).mul_f64(2.0 * fastrand::f64())
    }

    /// Reads some secrets of some nodes.
    fn sample(&mut self, now: Instant) {
        if self.policy == Policy::Pods {
            return;
        }
        for _ in 0..2000 {
            let node = &self.nodes[fastrand::usize(..self.nodes.len())];
            let entry = &node.entries[fastrand::usize(..SECRETS)];
            self.reads += 1;
            let age = entry.clock.map(|clock| now.saturating_duration_since(clock.fetched_at));
            let is_served = match self.policy {
                Policy::Agent => entry.failures == 0 && age.is_some(),
                _ => age.is_some_and(|age| age < LIFETIMES.expiry()),
            };
            if let Some(age) = age.filter(|_| is_served) {
                self.ages.push(age.as_secs_f32());
            } else {
                self.failed_reads += 1;
            }
        }
    }

    fn print(&mut self) {
        let (steady, _) = self.account.rate(STEADY.0, STEADY.1);
        let (_, start) = self.account.rate(Duration::ZERO, MINUTE * 10);
        let (_, back) = self.account.rate(OUTAGE.1, END);
        let percent = |part: u64, whole: u64| format!("{:.2}%", part as f64 * 100.0 / whole.max(1) as f64);
        let age = |per_mille| seconds(&mut self.ages, per_mille);
        let ages = [500, 990, 1000].map(age);
        let seen = [500, 990].map(|per_mille| seconds(&mut self.seen, per_mille));
        let recovery = self.recovered.filter(|_| self.policy != Policy::Pods);
        println!(
            "{:<18} {:>6} | {:>9.1} {:>9} {:>9} {:>9.0} | {:>8} {:>8} | {:>6} {:>6} {:>6} | {:>7} {:>7} | {:>8}",
            self.policy.name(),
            self.nodes.len(),
            steady,
            start,
            back,
            steady * 86_400.0 * 30.0 * DOLLARS_PER_CALL,
            percent(self.account.throttled, self.account.total),
            percent(self.failed_reads, self.reads),
            ages[0],
            ages[1],
            ages[2],
            seen[0],
            seen[1],
            recovery.map_or_else(|| "-".to_owned(), |at| format!("{:.0} s", at.as_secs_f64())),
        );
        let by_five: Vec<String> = (0..16)
            .map(|part| format!("{:.0}", self.account.rate(MINUTE * 5 * part, MINUTE * 5 * (part + 1)).0))
            .collect();
        println!("{:>24} | calls/s by 5 minutes: {}", "", by_five.join(" "));
    }
}

/// An entry that was fetched now and is read all the time.
fn clock(now: Instant, jitter: f64) -> EntryClock {
    EntryClock {
        lifetimes: LIFETIMES,
        fetched_at: now,
        refresh_at: now + refresh_ahead(LIFETIMES.ttl, jitter),
        retry_at: None,
        last_read: now,
        read_since_fetch: true,
        is_pinned: false,
        idle_timeout: Duration::ZERO,
    }
}

/// What a fetch tells of the rotation and of the outage.
fn note_fetch(
    epoch: Instant,
    fetched_before: Option<Instant>,
    now: Instant,
    seen: &mut Vec<f32>,
    recovered: &mut Option<Duration>,
) {
    let Some(before) = fetched_before else { return };
    let rotation = epoch + ROTATION;
    if before < rotation && now >= rotation {
        seen.push((now - rotation).as_secs_f32());
    }
    // A value that should have been renewed while AWS was away.
    let back = epoch + OUTAGE.1;
    if now >= back && before + LIFETIMES.ttl < back {
        *recovered = (*recovered).max(Some(now - back));
    }
}

fn seconds(values: &mut [f32], per_mille: usize) -> String {
    values.sort_unstable_by(f32::total_cmp);
    let at = values.len().saturating_sub(1) * per_mille / 1000;
    values.get(at).map_or_else(|| "-".to_owned(), |value| format!("{value:.0} s"))
}
