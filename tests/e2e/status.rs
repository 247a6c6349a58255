//! How the daemon fares, as a person sees it: `/status` in a browser, `smcached status` in a terminal.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use crate::support::client::{self, Answer};
use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::fake_aws::FakeAws;
use crate::support::faults::Fault;
use crate::support::{eventually, leaks};

/// What a browser sends.
const BROWSER: &str = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";

/// What is held is soon past its ttl.
const SHORT: &str = "ttl = \"300ms\"\nstale_while_revalidate = \"0s\"";

async fn page(daemon: &Daemon) -> Answer {
    let page = client::get(&daemon.ops(), "/status", &[("Accept", BROWSER)]).await;
    leaks::check("the status page", &page.body);
    page
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn status(daemon: &Daemon, more: &[&str]) -> Output {
    let output = daemon.run(&[&["status", "--config", "smcached.toml"], more].concat());
    leaks::check("what status prints", &output.stdout);
    output
}

/// Standard output of a program that is given this, which must not fail.
fn piped(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    output.stdout
}

#[tokio::test]
async fn the_page_is_well_formed_and_brings_all_that_it_needs() {
    let aws = FakeAws::with_secrets_of_every_kind();
    let groups = "[groups.\"a<b\"]\nprefix = \"team-a/\"";
    let daemon = Setup::with_aws(&aws.url()).section(groups).start().await;
    daemon.get("/secret/db").await;
    let page = page(&daemon).await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    piped("python3", &["-c", "import sys, xml.etree.ElementTree as e; e.parse(sys.stdin)"], &page.body);
    for loading in ["<script", "src=", "href=", "url(", "@import", "http:", "https:"] {
        assert!(!page.text().contains(loading), "{loading}: {}", page.text());
    }
    assert!(!page.text().contains(">db<") && page.text().contains("tcp:127.0.0.1:"));
    assert_eq!(page.header("cache-control"), "no-store");
    let style = page.text().split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let hash = "openssl dgst -sha256 -binary | base64";
    let hash = piped("sh", &["-c", hash], style.as_bytes());
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(policy.contains(&format!("style-src 'sha256-{}'", text(&hash).trim())), "{policy}: {hash:?}");
}

#[tokio::test]
async fn who_does_not_ask_for_html_gets_json() {
    let daemon = Setup::with_file("").start().await;
    for headers in [&[][..], &[("Accept", "*/*")], &[("Accept", "application/json, text/html;q=0.5")]] {
        let answer = client::get(&daemon.ops(), "/status", headers).await;
        assert_eq!(answer.header("content-type"), "application/json", "{headers:?}");
        assert_eq!(answer.json()["listeners"]["unix:s.sock"]["connections"], 0);
    }
    let mut connection = client::Connection::open(&daemon.ops()).await.unwrap();
    let head = connection.request("HEAD", "/status", &[("Accept", BROWSER)]).await.unwrap();
    assert_eq!((head.status, head.header("content-type")), (200, "text/html; charset=utf-8"));
}

#[tokio::test]
async fn trouble_is_told_to_browsers_and_terminals_alike() {
    let aws = FakeAws::start();
    aws.put("db", "correct-horse-battery");
    let daemon = Setup::with_aws(&aws.url()).cache(SHORT).start().await;
    daemon.get("/secret/db").await;
    let healthy = text(&status(&daemon, &[]).stdout).to_owned();
    assert!(healthy.starts_with("smcached: ready"), "{healthy}");
    for (fault, kind) in [(Fault::Throttle400, "(throttled)"), (Fault::Refuse, "(unreachable)")] {
        aws.fail(Some(fault));
        eventually(kind, Duration::from_secs(20), async || {
            daemon.get_with("/secret/db", &[("Cache-Control", "no-cache")]).await;
            page(&daemon).await.text().contains(kind)
        })
        .await;
        let trouble = "ready, but the source fails: what is held is served on, reads of other secrets fail";
        assert!(page(&daemon).await.text().contains(trouble), "{kind}");
        let output = status(&daemon, &[]);
        assert_eq!(output.status.code(), Some(0), "the daemon itself answers");
        let printed = text(&output.stdout);
        assert!(printed.starts_with(&format!("smcached: {trouble}")) && printed.contains(kind), "{printed}");
        assert!(!printed.contains('\x1b'), "no colours but on a terminal: {printed}");
    }
}

#[tokio::test]
async fn status_finds_the_ops_listener_and_says_when_it_cannot() {
    let daemon = Setup::with_file("").start().await;
    let address = format!("127.0.0.1:{}", ops_port(&daemon));
    let run = |arguments: &[&str], variables: &[(&str, &str)]| {
        let mut command = smcached(&daemon.path(""));
        let output = command.arg("status").args(arguments).envs(variables.iter().copied()).output().unwrap();
        let said = text(&output.stdout).to_owned() + text(&output.stderr);
        (output.status.code().unwrap(), said)
    };
    let variable = [("SMCACHED_OPS_ADDRESS", address.as_str())];
    for found in
        [run(&["--address", &address], &[]), run(&[], &variable), run(&["--config", "smcached.toml"], &[])]
    {
        assert!(found.0 == 0 && found.1.starts_with("smcached: ready"), "{found:?}");
    }
    let (_, json) = run(&["--address", &address, "--output", "json"], &[]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["ready"], &json["upstream"]["source"]), (&true.into(), &"file".into()));
    let secrets = format!("127.0.0.1:{}", daemon.tcp_port());
    let cases = [
        (run(&["--address", &secrets], &[]), 1, "is not the ops listener"),
        (run(&["--address", "127.0.0.1:1"], &[]), 1, "cannot connect"),
        (run(&["--address", "nonsense"], &[]), 2, "accepted: host:port"),
        (
            run(&[], &[("SMCACHED_OPS_ADDRESS", "x")]),
            2,
            "SMCACHED_OPS_ADDRESS: got \"x\"; accepted: host:port",
        ),
        (run(&["--output", "xml"], &[]), 2, "possible values: text, json"),
    ];
    for ((code, said), expected, part) in cases {
        assert!(code == expected && said.contains(part), "{code}: {said}");
    }
    std::fs::write(daemon.path("off.toml"), "[ops]\ntcp = \"off\"\n").unwrap();
    let (code, said) = run(&["--config", "off.toml"], &[]);
    assert!(code == 2 && said.contains("ops listener is off"), "{said}");
}

#[tokio::test]
async fn a_terminal_gets_colours_and_lines_that_fit() {
    let aws = FakeAws::start();
    aws.fail(Some(Fault::Throttle400));
    let daemon = Setup::with_aws(&aws.url()).start().await;
    daemon.get("/secret/db").await;
    let in_terminal = |columns: usize, setting: &str| {
        let command = format!(
            "stty rows 24 cols {columns}; {setting} {} status --config smcached.toml",
            crate::SMCACHED
        );
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--command", &command, "/dev/null"]).current_dir(daemon.path(""));
        let output = script.stdin(Stdio::null()).env("TERM", "xterm").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for columns in [36, 60, 200] {
        let plain = in_terminal(columns, "NO_COLOR=1");
        assert!(!plain.contains('\x1b'), "{plain}");
        assert!(plain.lines().all(|line| line.trim_end().chars().count() <= columns), "{columns}: {plain}");
        assert!(in_terminal(columns, "").contains("\x1b[33m"));
    }
}

fn ops_port(daemon: &Daemon) -> u16 {
    match daemon.ops() {
        client::Address::Tcp(port) => port,
        client::Address::Unix(_) => unreachable!("the ops listener is a TCP one"),
    }
}
