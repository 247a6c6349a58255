//! What an SRE sees: metrics, health, status, logs.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::client;
use crate::support::daemon::Setup;
use crate::support::in_repository;

const SECRETS: &str = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n";

#[tokio::test]
async fn promtool_finds_nothing_to_complain_about() {
    let daemon = Setup::with_file(SECRETS).section("[groups.a]\nprefix = \"a/\"").start().await;
    for path in ["/secret/a/b", "/secret/a/b", "/secret/a/none", "/secret/a//", "/none"] {
        daemon.get(path).await;
    }
    let page = daemon.ops_page("/metrics").await;
    assert!(page.header("content-type").starts_with("text/plain; version=0.0.4"));
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing; tests/run installs it");
    promtool.stdin.take().unwrap().write_all(&page.body).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.is_empty(), "{said}");
    assert!(!page.text().contains("a/b"), "a label holds a secret's name");
}

#[tokio::test]
async fn requests_are_counted_by_what_became_of_them() {
    let daemon = Setup::with_file(SECRETS).section("[groups.team]\nprefix = \"a/\"").start().await;
    for path in ["/secret/team/b", "/secret/a/b", "/secret/a/b", "/secret/a/none", "/secret/a/none"] {
        daemon.get(path).await;
    }
    let count = async |group: &str, result: &str| {
        let line = format!("smcached_cache_requests_total{{group=\"{group}\",result=\"{result}\"}}");
        daemon.metric(&line).await
    };
    // The name belongs to the group however it was spelt.
    assert_eq!((count("team", "miss").await, count("team", "hit").await), (2, 2));
    assert_eq!(count("team", "negative").await, 1);
    assert_eq!(count("default", "miss").await, 0);
    let upstream = "smcached_upstream_requests_total{operation=\"ReadFile\",result=";
    assert_eq!(daemon.metric(&format!("{upstream}\"success\"}}")).await, 1);
    assert_eq!(daemon.metric(&format!("{upstream}\"not_found\"}}")).await, 1);
    let listener = format!("unix:{}", "s.sock");
    let requests = format!("smcached_http_requests_total{{listener=\"{listener}\",route=\"secret\",status=");
    assert_eq!(daemon.metric(&format!("{requests}\"200\"}}")).await, 3);
    assert_eq!(daemon.metric(&format!("{requests}\"404\"}}")).await, 2);
}

#[tokio::test]
async fn every_metric_is_documented_and_every_documented_one_exists() {
    let daemon = Setup::with_file(SECRETS).start().await;
    daemon.get("/secret/a/b").await;
    client::get(&daemon.tcp(), "/secret/a/b", &[]).await;
    let page = daemon.ops_page("/metrics").await;
    let exposed: std::collections::BTreeSet<&str> = page
        .text()
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .filter(|name| name.starts_with("smcached_"))
        .collect();
    let documentation = std::fs::read_to_string(in_repository("docs/operations.md")).unwrap();
    let documented: std::collections::BTreeSet<&str> = documentation
        .lines()
        .filter_map(|line| line.strip_prefix("| `smcached_")?.split(['`', '{']).next())
        .collect();
    let documented: std::collections::BTreeSet<String> =
        documented.iter().map(|name| format!("smcached_{name}")).collect();
    assert_eq!(exposed.into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>(), documented);
}

#[tokio::test]
async fn the_ops_listener_never_returns_a_secret() {
    let daemon = Setup::with_file(SECRETS).start().await;
    daemon.get("/secret/a/b").await;
    for path in ["/metrics", "/livez", "/readyz", "/healthz", "/status"] {
        let answer = daemon.ops_page(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.text().contains("hunter2-hunter2") && !answer.text().contains("a/b"), "{path}");
    }
    assert_eq!(daemon.ops_page("/secret/a/b").await.status, 404);
    let status = daemon.ops_page("/status").await.json();
    assert_eq!(status["cache"]["entries"], 1);
    assert_eq!(status["groups"]["default"]["entries"], 1);
    assert_eq!((&status["ready"], &status["upstream"]["source"]), (&true.into(), &"file".into()));
}

#[tokio::test]
async fn secret_listeners_answer_health_and_ping() {
    let daemon = Setup::with_file(SECRETS).start().await;
    for address in [daemon.unix(), daemon.tcp()] {
        let ping = client::get(&address, "/ping", &[]).await;
        assert_eq!((ping.status, ping.text()), (200, "healthy"));
        assert_eq!(client::get(&address, "/healthz", &[]).await.status, 200);
    }
}

#[tokio::test]
async fn every_log_line_is_one_json_object_with_level_and_time() {
    let daemon = Setup::with_file(SECRETS).start().await;
    daemon.get("/secret/a/b").await;
    let log = daemon.log();
    assert!(log.lines().count() >= 4, "{log}");
    for line in log.lines() {
        let event: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(
            event["timestamp"].is_string() && event["level"].is_string() && event["message"].is_string(),
            "{line}"
        );
    }
    assert!(!log.contains("hunter2-hunter2"));
}
