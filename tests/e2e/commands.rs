//! The commands besides `serve`, by their output and exit codes.

use std::fs;
use std::process::Output;

use crate::support::daemon::{Setup, smcached};

const SECRETS: &str = "[[secret]]\nname = \"a/b\"\nstring = '{\"k\": \"v\"}'\n";

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

#[tokio::test]
async fn get_prints_a_secret_and_nothing_else() {
    let daemon = Setup::with_file(SECRETS).start().await;
    for arguments in [
        &["get", "a", "b", "--socket", "s.sock"][..],
        &["get", "a/b", "--socket", "s.sock"],
        &["get", "--socket", "s.sock", "a%2Fb"],
    ] {
        let output = daemon.run(arguments);
        assert_eq!((code(&output), text(&output.stdout)), (0, "{\"k\": \"v\"}"), "{arguments:?} {output:?}");
        assert!(output.stderr.is_empty());
    }
    let field =
        daemon.run(&["get", "a", "b", "--field", "k", "--version-stage", "AWSCURRENT", "--socket", "s.sock"]);
    assert_eq!(text(&field.stdout), "v");
}

#[tokio::test]
async fn get_has_an_exit_code_for_each_kind_of_failure() {
    let daemon = Setup::with_file(SECRETS).unix("allow_secrets = [\"a/*\"]").start().await;
    let cases: &[(&[&str], i32, &str)] = &[
        (&["get", "a", "none", "--socket", "s.sock"], 3, "secret_not_found"),
        (&["get", "a", "b", "--field", "x", "--socket", "s.sock"], 3, "field_not_found"),
        (&["get", "c", "d", "--socket", "s.sock"], 4, "caller_not_allowed"),
        (&["get", "a", "b c", "--socket", "s.sock"], 2, "invalid_character"),
        (&["get", "a", "b", "--socket", "none.sock"], 5, "cannot connect to none.sock"),
        (&["get"], 2, "Usage"),
        (&["get", "a", "b", "--what"], 2, "--what"),
    ];
    for (arguments, expected, message) in cases {
        let output = daemon.run(arguments);
        assert_eq!(code(&output), *expected, "{arguments:?} {output:?}");
        assert!(text(&output.stderr).contains(message), "{arguments:?} {output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[tokio::test]
async fn get_finds_a_daemon_by_its_address_and_token() {
    let daemon = Setup::with_file(SECRETS).start().await;
    let address = format!("http://127.0.0.1:{}", daemon.tcp_port());
    let run = |variables: &[(&str, &str)]| {
        let mut command = smcached(daemon.path("").as_path());
        command.args(["get", "a", "b"]).env("SMCACHED_ADDRESS", &address).envs(variables.iter().copied());
        command.output().unwrap()
    };
    assert_eq!(code(&run(&[])), 4);
    assert_eq!(code(&run(&[("SMCACHED_TOKEN", &daemon.token())])), 0);
    assert_eq!(code(&run(&[("SMCACHED_TOKEN_FILE", "token")])), 0);
    assert_eq!(code(&run(&[("SMCACHED_TOKEN", "wrong")])), 4);
    assert_eq!(code(&run(&[("SMCACHED_ADDRESS", "nonsense")])), 2);
}

#[test]
fn check_prints_what_is_in_effect_or_every_error() {
    let directory = tempfile::tempdir().unwrap();
    let check = |config: &str| {
        fs::write(directory.path().join("c.toml"), config).unwrap();
        smcached(directory.path()).args(["check", "--config", "c.toml"]).output().unwrap()
    };
    let good = check("[cache]\nttl = \"90s\"\n");
    assert_eq!(code(&good), 0);
    assert!(
        text(&good.stdout).contains("ttl = \"1m30s\"\n")
            && text(&good.stdout).contains("stale_if_error = \"24h\"")
    );
    let json = smcached(directory.path()).args(["check", "--config", "c.toml", "--output", "json"]).output();
    let json: serde_json::Value = serde_json::from_slice(&json.unwrap().stdout).unwrap();
    assert_eq!((&json["cache"]["ttl"], &json["listener"][0]["mode"]), (&"1m30s".into(), &"0660".into()));
    let bad = check("[cache]\nttl = 90\nsize = 1\n[log]\nlevel = \"loud\"\n");
    assert_eq!((code(&bad), bad.stdout.len()), (2, 0));
    for line in [
        "c.toml:2:7: cache.ttl: got 90; accepted: a duration",
        "c.toml:3:1: cache.size: unknown key",
        "c.toml:5:9: log.level",
    ] {
        assert!(text(&bad.stderr).contains(line), "{line}: {}", text(&bad.stderr));
    }
    let missing = smcached(directory.path()).args(["check", "--config", "none.toml"]).output().unwrap();
    assert!(code(&missing) == 2 && text(&missing.stderr).contains("none.toml: cannot be read"));
}

#[tokio::test]
async fn serve_refuses_an_invalid_configuration() {
    let mut daemon = Setup::with_file(SECRETS).section("[nonsense]").launch();
    assert_eq!(daemon.exit().await.code(), Some(2));
    assert!(daemon.log().contains("nonsense: unknown key; accepted: "), "{}", daemon.log());
}

#[tokio::test]
async fn healthcheck_tells_whether_the_daemon_is_ready() {
    let daemon = Setup::with_file(SECRETS).start().await;
    assert_eq!(code(&daemon.run(&["healthcheck", "--config", "smcached.toml"])), 0);
    let directory = daemon.into_directory("TERM").await;
    let ended =
        smcached(directory.path()).args(["healthcheck", "--config", "smcached.toml"]).output().unwrap();
    assert_eq!(code(&ended), 1);
}

#[test]
fn version_and_help_go_to_standard_output() {
    let directory = tempfile::tempdir().unwrap();
    let run = |argument: &str| smcached(directory.path()).arg(argument).output().unwrap();
    let version = run("--version");
    assert_eq!(text(&version.stdout), format!("smcached {}\n", env!("CARGO_PKG_VERSION")));
    let help = run("--help");
    for command in ["serve", "check", "status", "doctor", "get", "exec", "init", "healthcheck"] {
        assert!(text(&help.stdout).contains(command));
    }
}
