//! What readers get while AWS misbehaves: one test a row of the table in `docs/operations.md`, whose cells are the
//! expectations. The daemon stands before moto, with a proxy in between that makes its answers go wrong.

use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::support::client::{self, Address, Answer};
use crate::support::daemon::{Daemon, Setup};
use crate::support::faults::Fault;
use crate::support::moto::Moto;
use crate::support::proxy::FaultProxy;
use crate::support::{eventually, in_repository};

const PATIENCE: Duration = Duration::from_secs(40);
const TTL: Duration = Duration::from_millis(800);
const STALE_WHILE_REVALIDATE: Duration = TTL;
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_ATTEMPTS: usize = 2;

/// One for all rows: each has secrets of its own.
static MOTO: OnceCell<Moto> = OnceCell::const_new();

/// The cells of a row.
#[derive(Debug)]
struct Row {
    cold: String,
    attempts: usize,
    expired_waits: bool,
    single: String,
    batch: String,
}

/// The names of all rows, and the cells of one.
fn table(wanted: &str) -> (Vec<String>, Option<Row>) {
    let page = std::fs::read_to_string(in_repository("docs/operations.md")).unwrap();
    let section = page.split_once("\n## When AWS misbehaves\n").unwrap().1.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let (mut names, mut found) = (Vec::new(), None);
    for line in rows {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [what, cold, attempts, fresh, stale, expired, single, batch] = cells[..] else {
            panic!("a row of {} cells: {line}", cells.len());
        };
        let name = what.split('`').nth(1).unwrap().to_owned();
        assert_eq!((fresh, stale), ("at once", "at once"), "{name}: the promise");
        if name == wanted {
            found = Some(Row {
                cold: cold.replace('`', ""),
                attempts: if attempts == "all" { MAX_ATTEMPTS } else { attempts.parse().unwrap() },
                expired_waits: match expired {
                    "at once" => false,
                    "within `revalidate_timeout`" => true,
                    other => panic!("{name}: {other:?}"),
                },
                single: single.replace('`', ""),
                batch: batch.replace('`', ""),
            });
        }
        names.push(name);
    }
    (names, found)
}

/// A read, and how long it took.
async fn timed(address: &Address, path: &str) -> (Answer, Duration) {
    let start = Instant::now();
    let answer = client::get(address, path, &[]).await;
    (answer, start.elapsed())
}

/// A read of a held value, which takes no longer than `longest` and half of the revalidate timeout.
async fn held(daemon: &Daemon, path: &str, longest: Duration) -> Answer {
    let (answer, took) = timed(&daemon.unix(), path).await;
    assert_eq!((answer.status, answer.text()), (200, "x"), "{path}");
    assert!(took < longest + REVALIDATE_TIMEOUT / 2, "{path} took {took:?}");
    answer
}

async fn check(name: &str, fault: Fault, is_batch: bool) {
    let row = table(name).1.unwrap_or_else(|| panic!("no row {name}"));
    let moto = MOTO.get_or_init(Moto::start).await;
    let prefix = format!("{name}-{is_batch}");
    let hot = ["hot/1", "hot/2", "hot/3", "hot/4", "hot/5"];
    for secret in hot.into_iter().chain(["late/1", "late/2", "old/1", "old/2", "cold"]) {
        moto.create(&format!("{prefix}/{secret}"), "x").await;
    }
    let path = |secret: &str| format!("/secret/{prefix}/{secret}");
    let proxy = FaultProxy::before(moto.port());
    let batch = if is_batch { "auto" } else { "off" };
    let daemon = Setup::with_aws(&proxy.url())
        .aws(&format!("attempt_timeout = \"2s\"\nmax_attempts = {MAX_ATTEMPTS}"))
        .cache("ttl = \"800ms\"\nstale_while_revalidate = \"800ms\"\nstale_if_error = \"1h\"")
        .cache("fetch_timeout = \"4s\"\nrevalidate_timeout = \"1s\"")
        .section(&format!("[refresh]\nbatch = \"{batch}\""))
        .start()
        .await;
    for secret in ["old/1", "old/2", "late/1", "late/2"] {
        assert_eq!(daemon.get(&path(secret)).await.status, 200);
    }
    // Together, so that they are due together.
    let mut filling = JoinSet::new();
    for path in hot.map(path) {
        let address = daemon.unix();
        filling.spawn(async move { client::get(&address, &path, &[]).await.status });
    }
    assert_eq!(filling.join_all().await, [200; 5]);
    let filled = Instant::now();
    // A second read: they are in use, so they are refreshed ahead.
    for secret in &hot[1..] {
        held(&daemon, &path(secret), Duration::ZERO).await;
    }
    let fresh = held(&daemon, &path("hot/1"), Duration::ZERO).await;
    assert!(fresh.header("cache-status").starts_with("smcached; hit; ttl="), "{fresh:?}");
    proxy.clear_log();
    proxy.fail(Some(fault));

    let cold = {
        let (address, path) = (daemon.unix(), path("cold"));
        tokio::spawn(async move { timed(&address, &path).await.0 })
    };
    let within_stale_while_revalidate = filled + TTL + STALE_WHILE_REVALIDATE / 4;
    sleep_until(within_stale_while_revalidate).await;
    for secret in ["late/1", "late/2"] {
        let stale = held(&daemon, &path(secret), Duration::ZERO).await;
        assert!(stale.header("cache-status").contains("; detail=stale-"), "{name}: {stale:?}");
    }
    sleep_until(filled + TTL + STALE_WHILE_REVALIDATE + TTL / 4).await;
    let longest = if row.expired_waits { REVALIDATE_TIMEOUT } else { Duration::ZERO };
    let (first, second) = (path("old/1"), path("old/2"));
    let (expired, _) = tokio::join!(held(&daemon, &first, longest), held(&daemon, &second, longest));
    assert!(expired.header("cache-status").contains("; detail=stale-if-error"), "{name}: {expired:?}");
    held(&daemon, &path("hot/1"), longest).await;
    assert_eq!(daemon.ops_page("/readyz").await.status, 200, "{name}");

    let cold = cold.await.unwrap();
    let code = if cold.status == 200 { String::new() } else { format!(" {}", cold.code()) };
    assert_eq!(format!("{}{code}", cold.status), row.cold, "{name}");
    let log = proxy.log();
    let about = |secret: &str| {
        let id = format!("{prefix}/{secret}");
        log.iter().filter(|call| call.ids.contains(&id)).count()
    };
    if fault != Fault::Refuse {
        assert_eq!(about("cold"), row.attempts, "{name}: {log:?}");
        let refreshes = hot.map(about);
        assert!(refreshes.iter().any(|calls| *calls > 0), "{name}: {log:?}");
        assert!(refreshes.iter().all(|calls| *calls <= 8), "{name}: {log:?}");
    }
    assert!(is_batch || log.iter().all(|call| call.action == "GetSecretValue"), "{name}: {log:?}");
    let counted = async |operation: &str, result: &str| {
        let labels = format!("{{operation=\"{operation}\",result=\"{result}\"}}");
        daemon.metric(&format!("smcached_upstream_requests_total{labels}")).await
    };
    eventually(&format!("{name} is counted as {}", row.single), PATIENCE, async || {
        counted("GetSecretValue", &row.single).await >= 1
    })
    .await;
    if is_batch {
        eventually(&format!("{name} is counted as {} in a batch", row.batch), PATIENCE, async || {
            counted("BatchGetSecretValue", &row.batch).await >= 1
        })
        .await;
    }
    proxy.fail(None);
    eventually(&format!("the value is fresh again after {name}"), PATIENCE, async || {
        let answer = held(&daemon, &path("hot/1"), REVALIDATE_TIMEOUT).await;
        answer.header("age") == "0" && !answer.header("cache-status").contains("stale")
    })
    .await;
}

macro_rules! rows {
    ($($test:ident: $name:literal = $fault:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                tokio::join!(check($name, $fault, false), check($name, $fault, true));
            }
        )*

        #[test]
        fn the_table_has_these_rows_and_no_other() {
            assert_eq!(table("").0, [$($name),*]);
        }
    };
}

rows! {
    delay: "delay" = Fault::Delay(Duration::from_millis(1500));
    hang: "hang" = Fault::Hang;
    drip: "drip" = Fault::Drip;
    refuse: "refuse" = Fault::Refuse;
    reset_before: "reset-before" = Fault::ResetBefore;
    reset_middle: "reset-middle" = Fault::ResetMiddle;
    truncate: "truncate" = Fault::Truncate;
    throttle_400: "throttle-400" = Fault::Throttle400;
    throttle_429: "throttle-429" = Fault::Throttle429;
    http_500: "http-500" = Fault::Http500;
    http_503: "http-503" = Fault::Http503;
    garble: "garble" = Fault::Garble;
    empty_object: "empty-object" = Fault::EmptyObject;
    html_403: "html-403" = Fault::Html403;
    wrong_secret: "wrong-secret" = Fault::WrongSecret;
    expired_token: "expired-token" = Fault::ExpiredToken;
}
