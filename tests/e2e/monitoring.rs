//! What pages an SRE: the alerts and the dashboard of `config/monitoring/`, in a real Prometheus that scrapes
//! real daemons while things go wrong.
//!
//! The rules run sixty times as fast as they ship: see [`hurried`](crate::support::prometheus::hurried).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::support::client::{self, Address, Connection};
use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::fake_aws::FakeAws;
use crate::support::faults::Fault;
use crate::support::prometheus::{Prometheus, RULES, promtool};
use crate::support::{eventually, free_port, in_repository, python};

/// How long an alert may take to fire, or to be over. None has a window or a `for` of more than 15 hurried
/// minutes.
const PATIENCE: Duration = Duration::from_mins(1);
const TICK: Duration = Duration::from_millis(100);
const UNIT_TESTS: &str = "config/monitoring/smcached.rules.test.yml";
const DASHBOARD: &str = "config/monitoring/smcached.dashboard.json";
const RUNBOOK: &str = "docs/runbook.md";

/// What cannot be brought about in a minute: hours of age, and a defect or 128 MiB of load. Unit tests have
/// them fire.
const NOT_PROVOKED: [&str; 2] = ["SmcachedMemoryHigh", "SmcachedValuesVeryOld"];

fn read(path: &str) -> String {
    fs::read_to_string(in_repository(path)).unwrap()
}

/// The names of all alerts.
fn alerts() -> BTreeSet<String> {
    read(RULES).lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn promtool_finds_the_rules_right_and_each_alert_fires_and_clears_in_a_unit_test() {
    let directory = in_repository("config/monitoring");
    promtool(&["check", "rules", "smcached.rules.yml"], &directory);
    promtool(&["test", "rules", "smcached.rules.test.yml"], &directory);
    let tests = read(UNIT_TESTS);
    let parts: Vec<&str> = tests.split("\n  - name: ").skip(1).collect();
    let tested: BTreeSet<String> = parts.iter().map(|part| part.lines().next().unwrap().to_owned()).collect();
    assert_eq!(tested, alerts());
    for part in parts {
        let name = part.lines().next().unwrap();
        let asked = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\"}}");
        let expected: Vec<bool> = part
            .lines()
            .filter_map(|line| line.trim().strip_prefix("exp_samples: "))
            .map(|samples| samples != "[]")
            .collect();
        assert_eq!(part.matches(&asked).count(), 3, "{name}");
        assert_eq!(expected, [false, true, false], "{name}");
    }
}

#[test]
fn the_runbook_has_a_section_for_each_alert_and_no_other() {
    let runbook = read(RUNBOOK);
    let sections: Vec<&str> = runbook.split("\n## ").skip(1).collect();
    let described: BTreeSet<String> =
        sections.iter().map(|section| section.lines().next().unwrap().to_owned()).collect();
    assert_eq!(described, alerts());
    for section in sections {
        for part in ["**Means**: ", "**Users see**: ", "**Check**: ", "**Mend**: "] {
            assert_eq!(section.matches(part).count(), 1, "{part} {section}");
        }
    }
}

/// Does something again and again as long as the set lives.
fn keep<F: Future<Output = ()> + Send + 'static>(
    load: &mut JoinSet<()>,
    pause: Duration,
    mut what: impl FnMut(usize) -> F + Send + 'static,
) {
    load.spawn(async move {
        for turn in 0.. {
            what(turn).await;
            sleep(pause).await;
        }
    });
}

/// A daemon that holds ten secrets for a second, which are read in turn.
async fn hot(load: &mut JoinSet<()>, aws: &FakeAws) -> Daemon {
    let daemon = Setup::with_aws(&aws.url()).quiet().cache("ttl = \"1s\"").start().await;
    for index in 0..10 {
        assert_eq!(daemon.get(&format!("/secret/secrets/{index}")).await.status, 200);
    }
    read_in_turn(load, daemon.unix(), 10);
    daemon
}

/// Reads what nobody has read before, again and again.
fn read_cold(load: &mut JoinSet<()>, address: Address, reader: usize) {
    keep(load, TICK, move |turn| {
        let address = address.clone();
        async move {
            client::get(&address, &format!("/secret/cold/{reader}-{turn}"), &[]).await;
        }
    });
}

/// Reads `secrets/<n>` in turn, of so many.
fn read_in_turn(load: &mut JoinSet<()>, address: Address, count: usize) {
    keep(load, TICK, move |turn| {
        let address = address.clone();
        async move {
            client::get(&address, &format!("/secret/secrets/{}", turn % count), &[]).await;
        }
    });
}

fn aws_with_secrets(count: usize) -> FakeAws {
    let aws = FakeAws::start();
    for index in 0..count {
        aws.put(&format!("secrets/{index}"), format!("value {index} of a secret").as_str());
    }
    aws
}

async fn open(address: &Address, count: usize) -> Vec<Connection> {
    let mut connections = Vec::new();
    for _ in 0..count {
        let mut connection = Connection::open(address).await.unwrap();
        connection.get("/ping", &[]).await.unwrap();
        connections.push(connection);
    }
    connections
}

/// Everything that fires, ever.
type Seen = Arc<Mutex<BTreeSet<(String, String)>>>;

async fn has_fired(seen: &Seen, expected: &[(&str, &str)]) {
    let missing = || {
        let seen = seen.lock().unwrap();
        let is_missing =
            |(alert, node): &&(&str, &str)| !seen.contains(&((*alert).to_owned(), (*node).to_owned()));
        expected.iter().filter(is_missing).copied().collect::<Vec<_>>()
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !missing().is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "these do not fire: {:?}", missing());
        sleep(TICK).await;
    }
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a daemon for each thing that goes wrong, all at one time")]
async fn each_alert_fires_when_it_should_and_is_over_afterwards_and_the_dashboard_shows_it_all() {
    let prometheus = Arc::new(Prometheus::start().await);
    check_rules(&prometheus).await;
    let (seen, mut watch) = (Seen::default(), JoinSet::new());
    let (server, noted) = (Arc::clone(&prometheus), Arc::clone(&seen));
    keep(&mut watch, TICK * 2, move |_| {
        let (server, noted) = (Arc::clone(&server), Arc::clone(&noted));
        async move {
            let firing = server.firing().await;
            noted.lock().unwrap().extend(firing);
        }
    });
    has_fired(&seen, &[("SmcachedAbsent", "")]).await;

    let mut load = JoinSet::new();
    // Answers nobody can use: every cold read fails, and the endpoint is not taken for dead.
    let garbling = FakeAws::start();
    garbling.fail(Some(Fault::Garble));
    let garbled = Setup::with_aws(&garbling.url()).quiet().start().await;
    read_cold(&mut load, garbled.unix(), 0);

    // Something held, and nobody there any more.
    let dying = aws_with_secrets(10);
    let stale = hot(&mut load, &dying).await;
    dying.fail(Some(Fault::Refuse));

    let throttling = aws_with_secrets(1);
    throttling.fail(Some(Fault::Throttle400));
    let throttled = Setup::with_aws(&throttling.url()).quiet().start().await;
    for reader in 0..5 {
        read_cold(&mut load, throttled.unix(), reader);
    }

    // On and off: taken for dead, the endpoint would be asked too seldom for windows of five seconds.
    let expiring = Arc::new(aws_with_secrets(1));
    let identity = Setup::with_aws(&expiring.url()).quiet().start().await;
    let (address, aws) = (identity.unix(), Arc::clone(&expiring));
    keep(&mut load, TICK, move |turn| {
        let address = address.clone();
        aws.fail((turn / 3 % 2 == 0).then_some(Fault::ExpiredToken));
        async move {
            client::get(&address, &format!("/secret/cold/{turn}"), &[]).await;
        }
    });

    let revoking = aws_with_secrets(10);
    let revoked = hot(&mut load, &revoking).await;

    let file = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n";
    let callers = Setup::with_file(file).quiet().start().await;
    let address = callers.tcp();
    keep(&mut load, TICK, move |_| {
        let address = address.clone();
        async move {
            client::get(&address, "/secret/a/b", &[("X-Aws-Parameters-Secrets-Token", "guess")]).await;
        }
    });

    let limits = "[server]\nmax_connections = 10";
    let crowded = Setup::with_file(file).quiet().section(limits).start().await;
    let crowd = open(&crowded.unix(), 9).await;

    let limits = "[server]\nmax_connections_per_uid = 3";
    let greedy = Setup::with_file(file).quiet().section(limits).start().await;
    let greed = open(&greedy.unix(), 3).await;
    let address = greedy.unix();
    keep(&mut load, TICK, move |_| {
        let address = address.clone();
        async move {
            // It is turned away, before or after it has asked.
            if let Ok(mut connection) = Connection::open(&address).await {
                let _ = connection.get("/ping", &[]).await;
            }
        }
    });

    let few = Setup::with_file(file).quiet().under(&["/usr/bin/prlimit", "--nofile=64:64"]).start().await;
    let many = open(&few.unix(), 40).await;

    let reloaded = Setup::with_file(file).quiet().start().await;
    let right = fs::read_to_string(reloaded.path("smcached.toml")).unwrap();
    reloaded.rewrite_config(|text| text.replace("[cache]", "[cache]\nttl = \"soon\""));
    reloaded.signal("HUP");

    let (trail, writer) = io::pipe().unwrap();
    let audited =
        Setup::with_file(file).quiet().section("[audit]\noutput = \"stdout\"").stdout(writer).start().await;

    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let in_the_way = memory.path().join("files");
    fs::write(&in_the_way, "in the way").unwrap();
    let project = format!("[[project]]\ndir = \"{}\"\nsecrets = [\"a/b\"]", in_the_way.display());
    let projecting = Setup::with_file(file).quiet().cache("preload_timeout = \"1s\"").section(&project);
    let projecting = projecting.start().await;

    let full_aws = aws_with_secrets(60);
    let full = Setup::with_aws(&full_aws.url()).quiet().cache("max_bytes = \"4KiB\"").start().await;
    read_in_turn(&mut load, full.unix(), 60);

    let failing = aws_with_secrets(1);
    failing.fail(Some(Fault::Hang));
    let preload = "preload = [\"secrets/0\"]\npreload_timeout = \"30s\"\nfetch_timeout = \"1m\"";
    let unready =
        Setup::with_aws(&failing.url()).aws("attempt_timeout = \"1m\"").quiet().cache(preload).launch();

    let restarted = Setup::with_file(file).quiet().start().await;

    let port = |daemon: &Daemon| match daemon.ops() {
        Address::Tcp(port) => port,
        Address::Unix(_) => unreachable!("the ops listener is a TCP listener"),
    };
    let nobody = free_port();
    let mut targets = vec![
        ("garbled", port(&garbled)),
        ("stale", port(&stale)),
        ("throttled", port(&throttled)),
        ("identity", port(&identity)),
        ("revoked", port(&revoked)),
        ("callers", port(&callers)),
        ("crowded", port(&crowded)),
        ("greedy", port(&greedy)),
        ("few", port(&few)),
        ("reloaded", port(&reloaded)),
        ("audited", port(&audited)),
        ("projecting", port(&projecting)),
        ("full", port(&full)),
        ("unready", port(&unready)),
        ("restarted", port(&restarted)),
        ("down", nobody),
    ];
    prometheus.scrape(&targets);
    eventually("all daemons are scraped", PATIENCE, async || {
        prometheus.query("smcached_build_info").await.len() == targets.len() - 1
    })
    .await;

    // From counters that Prometheus has seen before.
    for index in 0..10 {
        revoking.delete(&format!("secrets/{index}"));
    }
    drop(trail);
    for _ in 0..20 {
        audited.get("/secret/a/b").await;
    }
    let home = restarted.into_directory("TERM").await;
    let mut running: Option<tokio::process::Child> = None;
    for count in 1..=3 {
        if let Some(mut process) = running.take() {
            process.kill().await.unwrap();
        }
        // A process tells its start in whole seconds.
        sleep(TICK * 11).await;
        let mut again = tokio::process::Command::from(smcached(home.path()));
        again.args(["serve", "--config", "smcached.toml"]).stdout(Stdio::null()).stderr(Stdio::null());
        running = Some(again.kill_on_drop(true).spawn().unwrap());
        let changes = format!("changes(process_start_time_seconds{{instance=\"restarted\"}}[1m]) >= {count}");
        eventually("the start is seen", PATIENCE, async || !prometheus.query(&changes).await.is_empty())
            .await;
    }

    let expected = [
        ("SmcachedReadersGetErrors", "garbled"),
        ("SmcachedUpstreamFailing", "garbled"),
        ("SmcachedServingStaleValues", "stale"),
        ("SmcachedUpstreamDead", "stale"),
        ("SmcachedThrottled", "throttled"),
        ("SmcachedCredentialsRejected", "identity"),
        ("SmcachedSecretsRevoked", "revoked"),
        ("SmcachedCallersRejected", "callers"),
        ("SmcachedConnectionsNearLimit", "crowded"),
        ("SmcachedReadersTurnedAway", "greedy"),
        ("SmcachedFileDescriptorsNearLimit", "few"),
        ("SmcachedConfigReloadFailed", "reloaded"),
        ("SmcachedAuditTrailIncomplete", "audited"),
        ("SmcachedProjectionFailing", "projecting"),
        ("SmcachedCacheFull", "full"),
        ("SmcachedNotReady", "unready"),
        ("SmcachedDown", "down"),
        ("SmcachedRestarting", "restarted"),
    ];
    has_fired(&seen, &expected).await;
    let provoked = expected.iter().map(|(alert, _)| (*alert).to_owned());
    let accounted_for = provoked.chain(["SmcachedAbsent"].into_iter().chain(NOT_PROVOKED).map(str::to_owned));
    assert_eq!(accounted_for.collect::<BTreeSet<_>>(), alerts());
    check_dashboard(&prometheus).await;

    // All is well again.
    load.shutdown().await;
    for aws in [&garbling, &dying, &throttling, &*expiring, &failing] {
        aws.fail(None);
    }
    drop((crowd, greed, many));
    fs::write(reloaded.path("smcached.toml"), right).unwrap();
    reloaded.signal("HUP");
    fs::remove_file(&in_the_way).unwrap();
    targets.retain(|(name, _)| *name != "down");
    targets.push(("down", port(&callers)));
    prometheus.scrape(&targets);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let firing = prometheus.firing().await;
        if firing.is_empty() {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "these are not over: {firing:?}");
        // Those who wait for a probe to succeed are its only traffic.
        for daemon in [&stale, &identity] {
            daemon.get("/secret/secrets/0").await;
        }
        sleep(TICK).await;
    }
    let unprovoked: Vec<_> = seen
        .lock()
        .unwrap()
        .iter()
        .filter(|(alert, _)| NOT_PROVOKED.contains(&alert.as_str()))
        .cloned()
        .collect();
    assert!(unprovoked.is_empty(), "{unprovoked:?}");
    watch.shutdown().await;
}

/// Every alert says how grave it is, what has happened, and where to read on.
async fn check_rules(prometheus: &Prometheus) {
    let rules = prometheus.rules().await;
    let mut names = BTreeSet::new();
    for rule in rules.iter().filter(|rule| rule["type"] == "alerting") {
        let name = rule["name"].as_str().unwrap();
        assert!(["critical", "warning"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{name}");
        for annotation in ["summary", "description"] {
            let text = rule["annotations"][annotation].as_str().unwrap_or_default();
            assert!(text.ends_with('.'), "{name}: {annotation}");
        }
        let link = format!("{RUNBOOK}#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook_url"], link.as_str(), "{name}");
        names.insert(name.to_owned());
    }
    assert_eq!(names, alerts());
}

/// What Grafana's own schema does not know of a dashboard.
fn unknown_to_grafana(dashboard: &str) -> Vec<String> {
    let home = tempfile::tempdir().unwrap();
    let output = python::fed(&mut python::script("python", "dashboard.py", home.path()), dashboard);
    let unknown = python::printed(&output);
    let unknown: Vec<String> = serde_json::from_str(&unknown).unwrap();
    // Grafana writes it itself, beside `query`.
    unknown
        .into_iter()
        .filter(|path| !path.starts_with("/templating/") || !path.ends_with("/definition"))
        .collect()
}

#[test]
fn grafana_knows_all_that_the_dashboard_says() {
    let dashboard = read(DASHBOARD);
    assert_eq!(unknown_to_grafana(&dashboard), Vec::<String>::new());
    let misspelt = dashboard.replacen("\"gridPos\"", "\"gridPosition\"", 1);
    assert_eq!(unknown_to_grafana(&misspelt), ["/panels/0/gridPosition"]);
}

/// Every panel is explained and has a unit, and every query returns something from the daemons that are
/// scraped.
async fn check_dashboard(prometheus: &Prometheus) {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let mut asked = 0;
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().unwrap();
        assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title}");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title}");
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "30s");
            let expression = ["$node", "$listener", "$group"]
                .iter()
                .fold(expression, |expression, variable| expression.replace(variable, ".+"));
            assert!(!expression.contains('$'), "{title}: {expression}");
            assert!(!prometheus.query(&expression).await.is_empty(), "{title}: {expression} returns nothing");
            // A label that no series has groups everything under nothing.
            let labels = expression.split("by (").skip(1).map(|rest| rest.split(')').next().unwrap());
            for label in labels.flat_map(|labels| labels.split(", ")) {
                let series = prometheus.query(&expression).await;
                let has = |series: &Value| label == "le" || series["metric"][label].is_string();
                assert!(series.iter().all(has), "{title}: {expression} has no label {label}");
            }
            asked += 1;
        }
    }
    assert!(asked >= 30, "only {asked} queries were found");
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "datasource" {
            continue;
        }
        let definition = variable["definition"].as_str().unwrap().replace("$node", ".+");
        let (series, label) = definition
            .strip_prefix("label_values(")
            .unwrap()
            .strip_suffix(')')
            .unwrap()
            .rsplit_once(", ")
            .unwrap();
        let found = prometheus.query(&format!("count by ({label}) ({series})")).await;
        assert!(found.iter().any(|series| series["metric"][label].is_string()), "{definition}");
    }
}
