//! Many secrets, many connections, and all of it in motion.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::paced::{self, Seen};
use crate::support::client::{Address, Connection};
use crate::support::daemon::{Daemon, Setup};
use crate::support::fake_aws::FakeAws;
use crate::{support, write};

const SMALL: Kind = Kind { folder: "small", count: 10_000, bytes: 1 << 10 };
const LARGE: Kind = Kind { folder: "large", count: 1_000, bytes: 64 << 10 };

/// Over each of the two transports.
const CONNECTIONS: usize = 5_000;

/// Those of them that read, and how often each does: 5,000 reads a second.
const READERS: usize = 100;
const PACE: Duration = Duration::from_millis(20);
const LENGTH: Duration = Duration::from_secs(30);

/// Every other read is of one of these.
const WARM: usize = 100;

/// Rotations a second.
const ROTATIONS: usize = 1_000;

/// With this, and 11,000 secrets in use, there are more than a thousand refreshes a second.
const SHORT_TTL: &str = "10s";

/// Secrets of one size.
#[derive(Clone, Copy)]
struct Kind {
    folder: &'static str,
    count: usize,
    bytes: usize,
}

impl Kind {
    fn name(self, number: usize) -> String {
        format!("{}/{number}", self.folder)
    }

    /// A value that no other round has.
    fn value(self, round: usize) -> String {
        let round = round.to_string();
        "0".repeat(self.bytes - round.len()) + &round
    }

    fn put_all(self, aws: &FakeAws) {
        let names: Vec<String> = (0..self.count).map(|number| self.name(number)).collect();
        aws.put_all(&names.iter().map(String::as_str).collect::<Vec<_>>(), &self.value(0));
    }

    /// Has the daemon hold all of them.
    async fn fetch_all(self, daemon: &Daemon) {
        let mut connection = Connection::open(&daemon.unix()).await.unwrap();
        for number in 0..self.count {
            let answer = connection.get(&format!("/secret/{}", self.name(number)), &[]).await.unwrap();
            assert_eq!((answer.status, answer.body.len()), (200, self.bytes));
        }
    }
}

/// A daemon with room for all this.
fn roomy(setup: Setup, ttl: &str) -> Setup {
    setup
        .quiet()
        .tcp("token = \"none\"")
        .cache(&format!("ttl = \"{ttl}\"\nmax_bytes = \"128MiB\""))
        .section("[refresh]\nrate = 10_000\nrate_per_caller = 10_000\nmax_concurrency = 100")
        .section("[server]\nmax_connections = 9_000\nidle_timeout = \"10m\"")
}

/// Opens connections, each of which has read once.
async fn open(address: &Address) -> Vec<Connection> {
    let mut connections = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::open(address).await.unwrap();
        assert_eq!(connection.get("/secret/small/0", &[]).await.unwrap().status, 200);
        connections.push(connection);
    }
    connections
}

/// What a secret takes that is held, and a connection that is open. The values come from AWS: what comes from a file is
/// in memory before anybody reads it.
pub(crate) async fn memory() {
    let aws = FakeAws::start();
    let daemon = roomy(Setup::with_aws(&aws.url()), "1h").start().await;
    let resident = async || {
        // Until what was put off is done.
        sleep(Duration::from_secs(2)).await;
        support::resident(daemon.pid())
    };
    let mut before = resident().await;
    println!("resident memory with nothing held: {:.1} MB", before as f64 / 1e6);
    println!("{:>32} {:>8} {:>12} {:>14}", "", "count", "MB more", "bytes for each");
    let mut figures = vec![json!({ "what": "nothing", "resident_bytes": before })];
    let mut print = |what: &str, count: usize, before: u64, now: u64| {
        let (more, each) = (now.saturating_sub(before), now.saturating_sub(before) / count as u64);
        println!("{what:>32} {count:>8} {:>12.1} {each:>14}", more as f64 / 1e6);
        figures.push(json!({ "what": what, "count": count, "resident_bytes": now, "bytes_each": each }));
    };
    for kind in [SMALL, LARGE] {
        kind.put_all(&aws);
        kind.fetch_all(&daemon).await;
        let now = resident().await;
        print(&format!("secrets of {} bytes", kind.bytes), kind.count, before, now);
        before = now;
    }
    let mut all = Vec::new();
    for (what, address) in [("Unix", daemon.unix()), ("TCP", daemon.tcp())] {
        all.extend(open(&address).await);
        let now = resident().await;
        print(&format!("connections, {what}"), CONNECTIONS, before, now);
        before = now;
    }
    let held = daemon.metric("smcached_cache_entries").await;
    println!("{held} secrets are held in the end, and {} connections are open", all.len());
    write("memory", &json!(figures));
}

/// What readers feel: with nothing going on, while AWS rotates, and while a file is rewritten.
pub(crate) async fn churn() {
    println!(
        "{} connections, {READERS} of them read {} times a second, every other time one of {WARM} secrets, for {} s",
        2 * CONNECTIONS,
        READERS as u128 * 1000 / PACE.as_millis(),
        LENGTH.as_secs()
    );
    println!(
        "{:>44} {:>8} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>8}",
        "", "reads", "p50", "p99", "p99.9", "max", "refreshes", "rotations", "stale"
    );
    let mut figures = Vec::new();
    for (what, ttl, rotates) in
        [("from AWS, nothing goes on", "1h", false), ("from AWS, refreshed and rotated", SHORT_TTL, true)]
    {
        let aws = FakeAws::start();
        let kinds = [SMALL, LARGE];
        for kind in kinds {
            kind.put_all(&aws);
        }
        let daemon = roomy(Setup::with_aws(&aws.url()), ttl).start().await;
        figures.push(
            under_load(what, &daemon, &kinds, async || if rotates { rotate(&aws).await } else { 0 }).await,
        );
    }
    let daemon = roomy(Setup::with_file(&file_of(0)), SHORT_TTL).start().await;
    let what = "from a file, refreshed and rewritten";
    figures.push(under_load(what, &daemon, &[SMALL], async || rewrite(&daemon).await).await);
    write("churn", &json!(figures));
}

/// One row: reads for as long as `rotating` goes on, which says in the end how many secrets it rotated.
async fn under_load(
    what: &str,
    daemon: &Daemon,
    kinds: &[Kind],
    rotating: impl AsyncFn() -> usize,
) -> serde_json::Value {
    for kind in kinds {
        kind.fetch_all(daemon).await;
    }
    let mut unix = open(&daemon.unix()).await;
    let mut tcp = open(&daemon.tcp()).await;
    let readers = unix.drain(..READERS / 2).chain(tcp.drain(..READERS / 2)).collect();
    let total: usize = kinds.iter().map(|kind| kind.count).sum();
    let kinds = kinds.to_vec();
    let path = move |reader: usize, reads: usize| {
        let turn = reads / 2 * READERS + reader;
        // Of what follows the warm ones each in its turn, those of every size.
        let mut number = if reads.is_multiple_of(2) { turn % WARM } else { turn % total };
        let kind = kinds.iter().find(|kind| {
            let is_it = number < kind.count;
            if !is_it {
                number -= kind.count;
            }
            is_it
        });
        format!("/secret/{}", kind.unwrap().name(number))
    };
    let before = refreshes_of(daemon).await;
    let start = Instant::now() + Duration::from_millis(100);
    let reading = paced::read(readers, path, PACE, [start, start + LENGTH]);
    let (seen, rotations): (Seen, usize) = tokio::join!(reading, rotating());
    let refreshes = refreshes_of(daemon).await - before;
    let [p50, p99, p999, max] = [500, 990, 999, 1000].map(|per_mille| seen.at(per_mille));
    println!(
        "{what:>44} {:>8} {p50:>9.1?} {p99:>9.1?} {p999:>9.1?} {max:>9.1?} {refreshes:>10} {rotations:>10} {:>8}",
        seen.latencies.len(),
        seen.stale
    );
    let microseconds = |latency: Duration| latency.as_secs_f64() * 1e6;
    json!({
        "what": what, "reads": seen.latencies.len(), "stale": seen.stale, "refreshes": refreshes,
        "rotations": rotations, "resident_bytes": support::resident(daemon.pid()),
        "latency_microseconds": {
            "p50": microseconds(p50), "p99": microseconds(p99), "p99.9": microseconds(p999),
            "max": microseconds(max),
        },
    })
}

/// How many refreshes have brought a value, be it the same as before.
async fn refreshes_of(daemon: &Daemon) -> u64 {
    let of = async |result| daemon.metric(&format!("smcached_refreshes_total{{result=\"{result}\"}}")).await;
    of("changed").await + of("unchanged").await
}

/// A tenth of the rotations every tenth of a second, each secret in its turn.
async fn rotate(aws: &FakeAws) -> usize {
    let mut tick = interval(Duration::from_millis(100));
    let end = Instant::now() + LENGTH;
    let mut rotated = 0;
    while tick.tick().await < end {
        let names: Vec<String> =
            (rotated..rotated + ROTATIONS / 10).map(|number| SMALL.name(number % SMALL.count)).collect();
        aws.put_all(&names.iter().map(String::as_str).collect::<Vec<_>>(), &SMALL.value(rotated + 1));
        rotated += names.len();
    }
    rotated
}

/// All rotations of a second at once: a file of this size cannot be written, nor read, a thousand times a second.
async fn rewrite(daemon: &Daemon) -> usize {
    let mut tick = interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let end = Instant::now() + LENGTH;
    let mut rotated = 0;
    while tick.tick().await < end {
        rotated += ROTATIONS;
        fs::write(daemon.path("next.toml"), file_of(rotated)).unwrap();
        fs::rename(daemon.path("next.toml"), daemon.path("secrets.toml")).unwrap();
    }
    rotated
}

/// The small secrets after so many rotations.
fn file_of(rotated: usize) -> String {
    let mut file = String::with_capacity(SMALL.count * (SMALL.bytes + 60));
    for number in 0..SMALL.count {
        // Of which round its last rotation was; none was in round 0.
        let round = (rotated + SMALL.count - 1 - number) / SMALL.count;
        let (name, value) = (SMALL.name(number), SMALL.value(round));
        write!(file, "[[secret]]\nname = \"{name}\"\nstring = \"{value}\"\n").unwrap();
    }
    file
}
