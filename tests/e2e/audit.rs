//! The audit trail: a line for every answer about a secret, and never a reader who waits for one.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::client::{self, Address, Connection};
use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::fake_aws::FakeAws;

const PATIENCE: Duration = Duration::from_secs(20);
const SECRETS: &str = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2\"\n";
const TO_FILE: &str = "[audit]\noutput = \"./audit.log\"";
const TOKEN: &str = "X-Aws-Parameters-Secrets-Token";

fn with_trail() -> Setup {
    Setup::with_file(SECRETS).section(TO_FILE)
}

fn parsed(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
        .collect()
}

/// Ends the daemon and reads its trail.
async fn end(daemon: Daemon) -> Vec<Value> {
    let directory = daemon.into_directory("TERM").await;
    parsed(&fs::read_to_string(directory.path().join("audit.log")).unwrap())
}

fn keys(line: &Value) -> BTreeSet<&str> {
    line.as_object().unwrap().keys().map(String::as_str).collect()
}

async fn events(daemon: &Daemon, result: &str) -> u64 {
    daemon.metric(&format!("smcached_audit_events_total{{result=\"{result}\"}}")).await
}

/// Reads one secret so many times over one connection, many requests at a time; all must be answered.
async fn read_many(address: &Address, count: usize) {
    const AT_A_TIME: usize = 100;
    assert_eq!(count % AT_A_TIME, 0);
    let mut connection = Connection::open(address).await.unwrap();
    let requests = "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(AT_A_TIME);
    for _ in 0..count / AT_A_TIME {
        connection.send(requests.as_bytes()).await.unwrap();
        for _ in 0..AT_A_TIME {
            let answer = connection.answer(false).await.unwrap().unwrap();
            assert_eq!((answer.status, answer.text()), (200, "hunter2"));
        }
    }
}

#[tokio::test]
async fn a_read_leaves_a_line_that_says_who_read_what() {
    let daemon = with_trail().start().await;
    assert_eq!(daemon.get_with("/secret/a/b", &[("X-Request-Id", "r-1")]).await.status, 200);
    let token = daemon.token();
    assert_eq!(client::get(&daemon.tcp(), "/secret/a/b", &[(TOKEN, &token)]).await.status, 200);
    let answer = client::get(&daemon.tcp(), "/v1/a%2Fb", &[(TOKEN, &token)]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for path in ["/healthz", "/ping"] {
        assert_eq!(daemon.get(path).await.status, 200);
    }
    let tcp = format!("tcp:127.0.0.1:{}", daemon.tcp_port());
    let lines = end(daemon).await;
    assert_eq!(lines.len(), 3, "health is not a secret: {lines:?}");

    let always = ["time", "listener", "surface", "secret_id", "version_id", "outcome", "status", "age"];
    let peer = ["uid", "gid", "pid", "program"];
    let over_unix = [&always[..], &peer[..], &["request_id"]].concat();
    assert_eq!(keys(&lines[0]), over_unix.into_iter().collect());
    assert_eq!(keys(&lines[1]), BTreeSet::from(always));
    assert_eq!(keys(&lines[2]), BTreeSet::from(always));
    let own = fs::metadata("/proc/self").unwrap();
    assert_eq!((&lines[0]["uid"], &lines[0]["gid"]), (&own.uid().into(), &own.gid().into()));
    assert_eq!(lines[0]["pid"], std::process::id());
    assert_eq!(lines[0]["program"], std::env::current_exe().unwrap().to_str().unwrap());
    assert_eq!(lines[0]["request_id"], "r-1");
    let parts = |key: &str| lines.iter().map(|line| line[key].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(parts("listener"), ["unix:s.sock", &tcp, &tcp]);
    assert_eq!(parts("surface"), ["secret", "secret", "agent"]);
    assert_eq!(parts("secret_id"), ["a/b"; 3]);
    assert_eq!(parts("outcome"), ["fetched", "hit", "hit"]);
    let versions: BTreeSet<_> = parts("version_id").into_iter().collect();
    assert!(versions.len() == 1 && !versions.contains(""), "{versions:?}");
    for line in &lines {
        assert_eq!(line["status"], 200);
        assert!(line["age"].as_u64().unwrap() < 20, "{line}");
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == 24 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
        assert!(!line.to_string().contains("hunter2"));
    }
}

#[tokio::test]
async fn a_refusal_leaves_a_line_that_says_why() {
    let daemon = with_trail().unix("allow_secrets = [\"a/*\"]").start().await;
    let id = format!("r\t{}", "x".repeat(1000));
    let over_unix = async |path: &str| daemon.get_with(path, &[("X-Request-Id", &id)]).await;
    assert_eq!(over_unix("/secret/other/b").await.status, 403);
    assert_eq!(over_unix("/secret/a/none").await.status, 404);
    assert_eq!(over_unix("/secret/a/none").await.status, 404);
    assert_eq!(over_unix("/secret/a//b").await.status, 400);
    for token in ["sesame", ""] {
        let headers = [(TOKEN, token)];
        let headers = if token.is_empty() { &[][..] } else { &headers[..] };
        assert_eq!(client::get(&daemon.tcp(), "/secret/a/b", headers).await.status, 401);
    }
    let lines = end(daemon).await;
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (line["outcome"].as_str().unwrap(), line["status"].as_u64().unwrap(), &line["secret_id"]))
        .collect();
    let (other, none) = (json!("other/b"), json!("a/none"));
    let expected = [
        ("caller_not_allowed", 403, &other),
        ("secret_not_found", 404, &none),
        ("secret_not_found", 404, &none),
        ("empty_segment", 400, &Value::Null),
        // Who has not come in has not been asked what for.
        ("token_wrong", 401, &Value::Null),
        ("token_missing", 401, &Value::Null),
    ];
    assert_eq!(seen, expected);
    for line in &lines {
        assert!(line.get("version_id").is_none() && line.get("age").is_none(), "{line}");
        assert!(!line.to_string().contains("sesame"), "{line}");
    }
    assert!(lines[0]["request_id"].as_str().unwrap().len() <= 64);
}

#[tokio::test]
async fn a_batch_leaves_a_line_for_each_id() {
    let aws = FakeAws::start();
    aws.put("a/b", "hunter2");
    aws.put("c", "hunter3");
    let daemon = Setup::with_aws(&aws.url()).section(TO_FILE).start().await;
    let ids = json!({ "SecretIdList": ["a/b", "none", "c", "a/b"] });
    let token = daemon.token();
    let answer =
        client::aws_json_as(daemon.tcp_port(), &token, "us-west-2", "BatchGetSecretValue", &ids).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let lines = end(daemon).await;
    let mut seen: Vec<_> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["surface"], "sdk");
            assert_eq!(line.get("version_id").is_some(), line["secret_id"] != "none", "{line}");
            (line["secret_id"].as_str().unwrap(), line["outcome"] == "secret_not_found")
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(seen, [("a/b", false), ("a/b", false), ("c", false), ("none", true)]);
}

#[tokio::test]
async fn of_a_hundred_thousand_reads_each_is_in_the_trail_or_counted_as_missing() {
    let daemon = with_trail().quiet().start().await;
    let address = daemon.unix();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let address = address.clone();
            tokio::spawn(async move { read_many(&address, 25_000).await })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    eventually("the trail has settled", PATIENCE, async || {
        events(&daemon, "written").await + events(&daemon, "dropped").await == 100_000
    })
    .await;
    let (written, dropped) = (events(&daemon, "written").await, events(&daemon, "dropped").await);
    assert_eq!(events(&daemon, "failed").await, 0);
    let lines = end(daemon).await;
    let of_reads = lines.iter().filter(|line| line["outcome"].is_string()).count() as u64;
    let missing: u64 = lines
        .iter()
        .filter(|line| line["event"] == "dropped")
        .map(|line| line["count"].as_u64().unwrap())
        .sum();
    assert_eq!((of_reads, missing), (written, dropped));
    assert!(written > 0);
}

#[tokio::test]
async fn standard_output_that_nobody_reads_slows_no_reader_down_and_ends_with_the_daemon() {
    let (reader, pipe) = io::pipe().unwrap();
    let plain = Setup::with_file(SECRETS).quiet().start().await;
    let trailed =
        Setup::with_file(SECRETS).quiet().section("[audit]\noutput = \"stdout\"").stdout(pipe).start().await;
    let timed = async |daemon: &Daemon| {
        let start = Instant::now();
        read_many(&daemon.unix(), 5000).await;
        start.elapsed()
    };
    let (mut without, mut with) = (Duration::ZERO, Duration::ZERO);
    // By turns, so that what else this machine does falls on both.
    for _ in 0..6 {
        without += timed(&plain).await;
        with += timed(&trailed).await;
    }
    assert!(with < without * 3, "{with:?} against {without:?}");
    // A pipe, the queue and what the writer holds have room for far fewer than 30,000.
    assert!(events(&trailed, "dropped").await > 5000);
    trailed.into_directory("TERM").await;
    drop(reader);
}

#[tokio::test]
async fn standard_output_has_the_trail_and_nothing_else() {
    let (mut reader, pipe) = io::pipe().unwrap();
    let daemon = Setup::with_file(SECRETS).section("[audit]\noutput = \"stdout\"").stdout(pipe).start().await;
    daemon.get("/secret/a/b").await;
    daemon.get("/secret/a/none").await;
    daemon.into_directory("TERM").await;
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    let outcomes: Vec<_> = parsed(&text).iter().map(|line| line["outcome"].clone()).collect();
    assert_eq!(outcomes, ["fetched", "secret_not_found"]);
}

#[tokio::test]
async fn after_sighup_the_trail_goes_on_in_a_new_file() {
    let daemon = with_trail().start().await;
    daemon.get("/secret/a/b").await;
    let (current, moved) = (daemon.path("audit.log"), daemon.path("audit.log.moved"));
    let lines = |path: &Path| fs::read_to_string(path).map_or(0, |text| parsed(&text).len());
    eventually("the first line", PATIENCE, async || lines(&current) == 1).await;
    fs::rename(&current, &moved).unwrap();
    daemon.signal("HUP");
    eventually("a new file", PATIENCE, async || current.exists()).await;
    daemon.get("/secret/a/b").await;
    eventually("the second line", PATIENCE, async || lines(&current) == 1).await;
    assert_eq!(lines(&moved), 1);
}

#[tokio::test]
async fn the_file_is_made_at_start_for_its_owner_alone_and_anew_on_sighup() {
    let daemon = with_trail().start().await;
    let path = daemon.path("audit.log");
    let mode = || fs::metadata(&path).map(|file| file.permissions().mode() & 0o7777).ok();
    assert_eq!(mode(), Some(0o600));
    fs::remove_file(&path).unwrap();
    // Whoever moves the file away knows nothing of the configuration.
    daemon.rewrite_config(|text| format!("{text}\nbroken = \n"));
    daemon.signal("HUP");
    eventually("a new file", PATIENCE, async || mode() == Some(0o600)).await;
    daemon.logs("cannot be reloaded").await;
}

#[tokio::test]
async fn a_trail_that_cannot_be_opened_refuses_the_start() {
    let mut daemon = Setup::with_file(SECRETS).section("[audit]\noutput = \"none/audit.log\"").launch();
    assert_eq!(daemon.exit().await.code(), Some(1));
    assert!(
        daemon.log().contains("the audit trail none/audit.log cannot be opened: No such file"),
        "{}",
        daemon.log()
    );
}

#[tokio::test]
async fn the_file_is_for_the_user_as_whom_the_daemon_goes_on() {
    let own = fs::metadata("/proc/self").unwrap();
    // Only root can become somebody else.
    let (user, group) = if own.uid() == 0 { (65534, 65534) } else { (own.uid(), own.gid()) };
    let directory = tempfile::tempdir().unwrap();
    chown(directory.path(), Some(user), None).unwrap();
    let process = format!("[process]\nuser = \"{user}\"\ngroup = \"{group}\"");
    let daemon = with_trail().section(&process).launch_in(directory);
    daemon.wait_ready().await;
    let path = daemon.path("audit.log");
    let owner = || fs::metadata(&path).map(|file| file.uid()).ok();
    assert_eq!(owner(), Some(user));
    fs::remove_file(&path).unwrap();
    daemon.signal("HUP");
    eventually("a new file", PATIENCE, async || owner() == Some(user)).await;
}
