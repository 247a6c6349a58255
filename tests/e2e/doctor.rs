//! `smcached doctor`: what it finds wrong, with AWS, with the node, with the configuration.
//!
//! The fake AWS runs in this process and must answer while the command is waited for: hence the threads.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::fake_aws::FakeAws;
use crate::support::faults::Fault;
use crate::support::leaks;

const PRELOAD: &str = "preload = [\"db\", \"team-a/key\"]\npreload_timeout = \"1ms\"";

/// Locked memory is the machine's affair: whether it can be had is found out by another test.
const LIMITS: &str = "limits";

fn aws() -> FakeAws {
    let aws = FakeAws::start();
    aws.put("db", "correct-horse-battery");
    aws.put("team-a/key", "staple-staple-staple");
    aws
}

/// Runs it as the daemon's administrator would; the exit code, and what it finds.
fn examine(daemon: &Daemon) -> (i32, Vec<Value>) {
    let mut command = smcached(&daemon.path(""));
    command.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE").env("AWS_SECRET_ACCESS_KEY", "test");
    read(command.args(["doctor", "--config", "smcached.toml", "--output", "json"]))
}

fn read(command: &mut Command) -> (i32, Vec<Value>) {
    let output = command.output().unwrap();
    leaks::check("what doctor prints", &output.stdout);
    leaks::check("what doctor complains of", &output.stderr);
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("no JSON: {output:?}"));
    (output.status.code().unwrap(), report["findings"].as_array().unwrap().clone())
}

/// The messages of what is of this level, but for limits.
fn messages(findings: &[Value], level: &str) -> Vec<String> {
    let found = findings.iter().filter(|finding| finding["level"] == level && finding["check"] != LIMITS);
    found
        .map(|finding| {
            format!("{}: {}", finding["check"].as_str().unwrap(), finding["message"].as_str().unwrap())
        })
        .collect()
}

fn assert_found(findings: &[Value], level: &str, message: &str) {
    let found = messages(findings, level);
    assert!(found.iter().any(|found| found.contains(message)), "no {level} with {message:?}: {findings:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_there_are_no_problems() {
    let aws = aws();
    let daemon = Setup::with_aws(&aws.url()).cache(PRELOAD).start().await;
    let (code, findings) = examine(&daemon);
    assert_eq!((messages(&findings, "problem"), messages(&findings, "note")), (vec![], vec![]));
    for message in [
        "configuration: smcached.toml",
        "answers; the daemon is ready",
        "sockets: s.sock answers; mode 0660",
        "its token is in token",
        "permissions: GetSecretValue works for 2 of 2 preloaded secrets",
        "permissions: BatchGetSecretValue works",
        "permissions: DescribeSecret works",
        "clock: as AWS's",
    ] {
        assert_found(&findings, "ok", message);
    }
    let has_problem = findings.iter().any(|finding| finding["level"] == "problem");
    assert_eq!(code, i32::from(has_problem));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_aws_denies_is_a_problem_only_where_it_is_needed() {
    let aws = aws();
    aws.deny("db", true);
    aws.deny_action("BatchGetSecretValue", true);
    aws.deny_action("DescribeSecret", true);
    aws.deny_action("ListSecrets", true);
    let tags = "preload_tags = [\"team=a\"]";
    let daemon = Setup::with_aws(&aws.url()).cache(PRELOAD).cache(tags).start().await;
    let (code, findings) = examine(&daemon);
    assert_eq!(code, 1);
    assert_eq!(
        messages(&findings, "problem"),
        [
            "permissions: GetSecretValue, db: AWS denied the daemon's identity access to this secret",
            "permissions: ListSecrets is denied, for the tag team=a",
        ]
    );
    assert_found(&findings, "note", "BatchGetSecretValue is denied or not known");
    assert_found(&findings, "note", "DescribeSecret is denied for 1 of 1");
    let denied = findings.iter().find(|finding| finding["message"].as_str().unwrap().contains(", db:"));
    assert!(denied.unwrap()["mend"].as_str().unwrap().contains("grant secretsmanager:GetSecretValue"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_is_compared_with_that_of_aws() {
    let aws = aws();
    aws.set_behind(200);
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let (code, findings) = examine(&daemon);
    assert_eq!(code, 1);
    assert_found(&findings, "problem", "s ahead of AWS's, which refuses what is signed 300 s off");
    assert_found(&findings, "ok", "credentials: AWS accepts them in the default region");
    assert_found(
        &findings,
        "note",
        "permissions: not checked in the default region: nothing is preloaded there",
    );
    // An answer that is an error has a date as well.
    aws.set_behind(-200);
    aws.fail(Some(Fault::ExpiredToken));
    let (_, findings) = examine(&daemon);
    assert_found(&findings, "problem", "s behind AWS's");
    assert_found(&findings, "problem", "AWS rejected the daemon's credentials (ExpiredTokenException)");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aws_that_does_not_answer_is_complained_of_once() {
    let aws = aws();
    let daemon = Setup::with_aws(&aws.url()).cache(PRELOAD).start().await;
    aws.fail(Some(Fault::Refuse));
    let (code, findings) = examine(&daemon);
    assert_eq!((code, messages(&findings, "problem").len()), (1, 1), "{findings:#?}");
    assert_found(&findings, "problem", "AWS cannot be reached");
    assert_found(&findings, "note", "clock: not checked");
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_looked_at_and_tried() {
    let daemon = Setup::with_file("").start().await;
    fs::set_permissions(daemon.path("s.sock"), Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(daemon.path("token")).unwrap();
    let (code, findings) = examine(&daemon);
    assert_eq!(code, 1);
    assert_found(&findings, "problem", "s.sock has the mode 0600; configured is 0660");
    assert_found(&findings, "problem", "the token file token cannot be looked at");
    let directory = daemon.into_directory("KILL").await;
    let args = ["doctor", "--config", "smcached.toml", "--output", "json"];
    let (_, findings) = read(smcached(directory.path()).args(args));
    assert_found(&findings, "problem", "ops: cannot connect to 127.0.0.1:");
    assert_found(&findings, "problem", "cannot connect to s.sock");
    fs::remove_file(directory.path().join("s.sock")).unwrap();
    let (_, findings) = read(smcached(directory.path()).args(args));
    assert_found(&findings, "problem", "s.sock does not exist");
    fs::write(directory.path().join("s.sock"), "").unwrap();
    let (_, findings) = read(smcached(directory.path()).args(args));
    assert_found(&findings, "problem", "s.sock is not a socket");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_are_those_of_the_daemon_that_runs() {
    // Two listeners of so many connections need more than the daemon may open; this process is not asked.
    let limit = ["prlimit", "--nofile=300:300"];
    let daemon = Setup::with_file("").under(&limit).section("[server]\nmax_connections = 200").start().await;
    let (_, findings) = examine(&daemon);
    let found = findings.iter().find(|finding| finding["check"] == LIMITS).unwrap();
    let expected = "the daemon may open 300 files, and server.max_connections needs 656";
    assert_eq!((&found["message"], &found["level"]), (&expected.into(), &"problem".into()));
}

#[test]
fn a_wrong_configuration_is_a_problem_and_a_wrong_command_line_is_none() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("c.toml"), "[cache]\nttl = 90\n").unwrap();
    let output = smcached(directory.path()).args(["doctor", "--config", "c.toml"]).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.starts_with("problem  configuration  c.toml:2:7: cache.ttl: got 90"), "{said}");
    assert!(said.contains("-> correct it there") && said.ends_with("\n1 problem.\n"), "{said}");
    assert_eq!(
        smcached(directory.path()).args(["doctor", "--what"]).output().unwrap().status.code(),
        Some(2)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_it_says_what_to_do() {
    let aws = aws();
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let args = ["doctor", "--config", "smcached.toml", "--output", "json"];
    let (code, findings) = read(smcached(&daemon.path("")).args(args));
    assert_eq!((code, aws.calls()), (1, 0));
    assert_found(
        &findings,
        "problem",
        "credentials: the daemon has no AWS credentials: give its pod an IAM role",
    );
}
