//! What a well-behaved reader feels while others misbehave: `cargo bench --bench siege [-- SECONDS]`.
//!
//! 2,000 connections that do nothing, 200 that send the head of a request a byte at a time, and another user who guesses
//! names at full speed over 16 connections, half of them one name over and over; beside them a reader who reads what is held, now and then over a new
//! connection, and once a second something new. Run as root, since the guesser is another user.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]
#![allow(clippy::print_stdout, reason = "the table is the output")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use support::client::{self, Address, Connection};
use support::daemon::{Daemon, Setup};
use support::fake_aws::FakeAws;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// The binary under test.
const SMCACHED: &str = env!("CARGO_BIN_EXE_smcached");

const IDLE: usize = 2000;
const SLOW: usize = 200;
const GUESSERS: usize = 16;
const GUESSER: u32 = 2001;

/// How often the reader reads, and how often it is looked whether the daemon is well.
const READ_PAUSE: Duration = Duration::from_millis(5);
const PROBE_PAUSE: Duration = Duration::from_millis(100);

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    if let [_, mode, socket] = &arguments[..]
        && mode == "guess"
    {
        return runtime.block_on(guess(socket.into()));
    }
    let seconds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(60);
    runtime.block_on(run(Duration::from_secs(seconds)));
}

/// Guesses names for ever; says once a second what came of it.
async fn guess(socket: PathBuf) {
    let counts: Arc<[AtomicU64; 3]> = Arc::default();
    for guesser in 0..GUESSERS {
        let (address, counts) = (Address::Unix(socket.clone()), Arc::clone(&counts));
        tokio::spawn(async move {
            for number in 0_u64.. {
                let Ok(mut connection) = Connection::open(&address).await else { continue };
                for guess in 0..1000 {
                    // Half of them ask for one name over and over, which costs no call and so is not slowed down.
                    let guess = if guesser % 2 == 0 { 0 } else { number * 1000 + guess };
                    let path = format!("/secret/guess/{guesser}-{guess}");
                    let Ok(answer) = connection.get(&path, &[]).await else { break };
                    let count = match answer.status {
                        404 => 0,
                        429 => 1,
                        _ => 2,
                    };
                    counts[count].fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    loop {
        sleep(Duration::from_secs(1)).await;
        let [not_found, limited, other] = [0, 1, 2].map(|index| counts[index].load(Ordering::Relaxed));
        println!("{not_found} were told that there is none, {limited} to slow down, {other} something else");
        std::io::stdout().flush().unwrap();
    }
}

/// What the reader and the prober saw.
#[derive(Default)]
struct Seen {
    reads: Vec<Duration>,
    cold: Vec<Duration>,
    probes: Vec<Duration>,
    errors: Vec<String>,
}

impl Seen {
    fn note(&mut self, what: &str, since: Instant, status: Option<u16>) {
        if status != Some(200) {
            self.errors.push(format!("{what}: {status:?}"));
            return;
        }
        let times = match what {
            "read" => &mut self.reads,
            "cold" => &mut self.cold,
            _ => &mut self.probes,
        };
        times.push(since.elapsed());
    }

    fn print(&mut self, phase: &str) {
        for (what, times) in
            [("held", &mut self.reads), ("new", &mut self.cold), ("probes", &mut self.probes)]
        {
            times.sort_unstable();
            let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
            println!(
                "{phase:>9} {what:>7} {:>7} {:>9.1?} {:>9.1?} {:>9.1?} {:>6}",
                times.len(),
                at(50),
                at(99),
                times.last().copied().unwrap_or_default(),
                self.errors.len()
            );
        }
        for error in self.errors.iter().take(5) {
            println!("          {error}");
        }
    }
}

/// Reads and probes for so long.
async fn observe(daemon: &Daemon, new: &str, duration: Duration) -> Seen {
    let mut seen = Seen::default();
    let end = Instant::now() + duration;
    let mut kept = Connection::open(&daemon.unix()).await.unwrap();
    let mut ops =
        [Connection::open(&daemon.ops()).await.unwrap(), Connection::open(&daemon.ops()).await.unwrap()];
    let token = daemon.token();
    let (mut next_probe, mut next_new, mut number) = (Instant::now(), Instant::now(), 0_u64);
    while Instant::now() < end {
        let start = Instant::now();
        number += 1;
        let status = match number % 4 {
            0 => status_of(&daemon.unix(), "/secret/held", &[]).await,
            1 => status_of(&daemon.tcp(), "/secret/held", &[("X-Vault-Token", &token)]).await,
            _ => kept.get("/secret/held", &[]).await.ok().map(|answer| answer.status),
        };
        seen.note("read", start, status);
        if status.is_none() && number % 4 > 1 {
            kept = Connection::open(&daemon.unix()).await.unwrap();
        }
        if next_new <= start {
            next_new = start + Duration::from_secs(1);
            let path = format!("/secret/{new}-{number}");
            let start = Instant::now();
            // There is none of this name, and to be told so takes a call.
            let status = status_of(&daemon.unix(), &path, &[]).await;
            seen.note("cold", start, status.map(|status| if status == 404 { 200 } else { status }));
        }
        if next_probe <= start {
            next_probe = start + PROBE_PAUSE;
            for (connection, path) in ops.iter_mut().zip(["/livez", "/metrics"]) {
                let start = Instant::now();
                let status = connection.get(path, &[]).await.ok().map(|answer| answer.status);
                seen.note("probe", start, status);
            }
            let start = Instant::now();
            seen.note("probe", start, status_of(&daemon.ops(), "/livez", &[]).await);
        }
        sleep(READ_PAUSE).await;
    }
    seen
}

async fn status_of(address: &Address, path: &str, headers: &[(&str, &str)]) -> Option<u16> {
    let mut connection = Connection::open(address).await.ok()?;
    Some(connection.get(path, headers).await.ok()?.status)
}

/// Connections that do nothing; those that were closed are opened again.
async fn idle(address: Address, is_over: Arc<AtomicBool>) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok(mut connection) = Connection::open(&address).await else { continue };
        while !is_over.load(Ordering::Relaxed) && !connection.closes_within(Duration::from_secs(1)).await {}
    }
}

/// The head of a request, a byte at a time; again and again.
async fn slow(address: Address, is_over: Arc<AtomicBool>, cut: Arc<AtomicU64>) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok(mut connection) = Connection::open(&address).await else { continue };
        for byte in b"GET /secret/held HTTP/1.1\r\nHost: x\r\nX-A: ".iter().chain(b"a".iter().cycle()) {
            if is_over.load(Ordering::Relaxed) || connection.send(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_millis(200)).await;
        }
        cut.fetch_add(1, Ordering::Relaxed);
    }
}

struct Guesser(Child);

impl Drop for Guesser {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn run(duration: Duration) {
    let aws = FakeAws::start();
    aws.put("held", "the value that is held");
    aws.set_latency(Duration::from_millis(5));
    let daemon = Setup::with_aws(&aws.url()).quiet().unix("mode = \"0666\"").start().await;
    fs::set_permissions(daemon.path(""), Permissions::from_mode(0o755)).unwrap();
    assert_eq!(daemon.get("/secret/held").await.status, 200);
    println!("{:>9} {:>7} {:>7} {:>9} {:>9} {:>9} {:>6}", "", "", "count", "p50", "p99", "max", "errors");
    observe(&daemon, "quiet", duration).await.print("quiet");

    let (is_over, cut) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut besiegers = JoinSet::new();
    for number in 0..IDLE {
        let address = if number % 2 == 0 { daemon.unix() } else { daemon.tcp() };
        besiegers.spawn(idle(address, Arc::clone(&is_over)));
    }
    for number in 0..SLOW {
        let address = if number % 2 == 0 { daemon.unix() } else { daemon.tcp() };
        besiegers.spawn(slow(address, Arc::clone(&is_over), Arc::clone(&cut)));
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.uid(GUESSER).gid(GUESSER).current_dir("/").arg("guess").arg(daemon.path("s.sock"));
    let output = fs::File::create(daemon.path("guesses")).unwrap();
    let guesser = Guesser(command.stdout(output).stderr(Stdio::inherit()).spawn().unwrap());
    let before = aws.calls();
    observe(&daemon, "siege", duration).await.print("siege");
    let calls = u32::try_from(aws.calls() - before).unwrap();
    drop(guesser);
    let over_at = Instant::now();
    observe(&daemon, "after", Duration::from_secs(1)).await.print("after");
    is_over.store(true, Ordering::Relaxed);
    timeout(Duration::from_mins(1), async { while besiegers.join_next().await.is_some() {} }).await.unwrap();
    let connections = daemon.metric("smcached_http_connections{listener=\"unix:s.sock\"}").await;
    let said = fs::read_to_string(daemon.path("guesses")).unwrap();
    println!("the guesser: {}", said.lines().last().unwrap_or("nothing"));
    println!("calls to AWS during the siege: {:.1} a second", f64::from(calls) / duration.as_secs_f64());
    println!("heads that dripped in were cut off {} times", cut.load(Ordering::Relaxed));
    println!("{connections} connections are open {:.1?} after the siege", over_at.elapsed());
    assert_eq!(client::get(&daemon.unix(), "/secret/held", &[]).await.status, 200);
}
