//! `smcached exec`, by what the command that it runs sees and what its parent sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::leaks;
use crate::support::{ARN, eventually, signal};

const PATIENCE: Duration = Duration::from_secs(25);

fn secrets(db: &str) -> String {
    format!(
        "[[secret]]\nname = \"a/db\"\nstring = '{{\"user\": \"ada\", \"password\": \"{db}\"}}'\n\
         [[secret]]\nname = \"a/token\"\nstring = 'spaces  and = \"quotes\" $HOME'\n\
         [[secret]]\nname = \"a/binary\"\nbinary = \"gP8=\"\n\
         [[secret]]\nname = \"a/nul\"\nbinary = \"AGE=\"\n\
         [[secret]]\narn = \"{ARN}MySecret-AbCdEf\"\nstring = \"of flyte\"\n"
    )
}

async fn daemon() -> Daemon {
    Setup::with_file(&secrets("one")).unix("allow_secrets = [\"a/*\", \"*MySecret*\"]").start().await
}

/// `smcached exec`, to be run in the daemon's directory.
fn exec(daemon: &Daemon, arguments: &[&str]) -> Command {
    let mut command = smcached(&daemon.path(""));
    command.args(["exec", "--socket", "s.sock"]).args(arguments).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn errors(output: &Output) -> &str {
    leaks::check("what exec says", &output.stderr);
    text(&output.stderr)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Killed when dropped.
struct Running(Child);

impl Running {
    fn start(mut command: Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        signal(self.0.id(), name);
    }

    async fn code(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end");
            sleep(Duration::from_millis(10)).await;
        }
        self.0.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until a file in the daemon's directory holds this.
async fn holds(daemon: &Daemon, name: &str, expected: &str) {
    let read = || fs::read_to_string(daemon.path(name)).unwrap_or_default();
    eventually(&format!("{name} holds {expected:?}"), PATIENCE, async || read() == expected).await;
}

#[tokio::test]
async fn the_command_sees_the_values_as_they_are() {
    let daemon = daemon().await;
    fs::write(daemon.path("more.env"), "# more\n\nUSER_NAME=a/db#user\nPOINTED=a/db#/password\n").unwrap();
    let flyte = format!("{ARN}/MySecret-AbCdEf");
    let arguments = [
        "--env",
        "TOKEN=a/token",
        "--env",
        "BINARY=a/binary",
        "--env",
        "HOME=a%2Fdb#user",
        "--env-file",
        "more.env",
        "--flyte",
        &flyte,
        "--",
        "/usr/bin/env",
        "-0",
    ];
    let output = exec(&daemon, &arguments).env("KEPT", "as it was").output().unwrap();
    assert_eq!((code(&output), errors(&output)), (0, ""));
    let lines: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    let upper = format!("_FSEC_{}_MYSECRET-ABCDEF=of flyte", ARN.to_uppercase());
    for expected in [
        b"TOKEN=spaces  and = \"quotes\" $HOME".as_slice(),
        b"BINARY=\x80\xff",
        b"HOME=ada",
        b"USER_NAME=ada",
        b"POINTED=one",
        b"KEPT=as it was",
        upper.as_bytes(),
    ] {
        assert!(lines.contains(&expected), "{}: {output:?}", String::from_utf8_lossy(expected));
    }
}

#[tokio::test]
async fn the_commands_end_is_our_end() {
    let daemon = daemon().await;
    for change in [&[][..], &["--on-change", "restart"]] {
        let run = |script: &str| {
            let arguments = [&["--env", "A=a/db"], change, &["--", "sh", "-c", script]].concat();
            exec(&daemon, &arguments).output().unwrap().status
        };
        assert_eq!(run("exit 7").code(), Some(7));
        let killed = run("kill -USR1 $$");
        // Without supervision it is the command itself that dies.
        let expected = if change.is_empty() { (Some(10), None) } else { (None, Some(138)) };
        assert_eq!((killed.signal(), killed.code()), expected);
    }
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_told_apart() {
    let daemon = daemon().await;
    fs::write(daemon.path("plain"), "x").unwrap();
    fs::set_permissions(daemon.path("plain"), fs::Permissions::from_mode(0o644)).unwrap();
    for change in [&[][..], &["--on-change", "signal=HUP"]] {
        for (program, expected) in [("no-such-program", 127), ("./none/x", 127), ("./plain", 126)] {
            let output =
                exec(&daemon, &[&["--env", "A=a/db"], change, &["--", program]].concat()).output().unwrap();
            assert_eq!(code(&output), expected, "{program}");
            assert!(errors(&output).starts_with(&format!("smcached: cannot run {program}: ")), "{output:?}");
        }
    }
}

#[tokio::test]
async fn without_every_secret_nothing_runs_and_each_failure_has_a_line() {
    let daemon = daemon().await;
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["--env", "A=a/none"], 3, &["A from a/none: ", "secret_not_found"]),
        (&["--env", "A=a/db#none"], 3, &["A from a/db#none: ", "field_not_found"]),
        (
            &["--env", "A=a/none", "--env", "B=b/c"],
            4,
            &["A from a/none: ", "B from b/c: ", "caller_not_allowed"],
        ),
        (&["--env", "A=a/nul"], 2, &["A from a/nul: ", "NUL"]),
        (&["--env", "A=a/b c"], 2, &["A from a/b c: ", "invalid_character"]),
        (&["--env", "A=a//../c", "--env", "A"], 2, &["A: \"a//../c\" names no secret", "--env: got \"A\""]),
        (
            &["--env", "A=a/db", "--env", "A=a/token"],
            2,
            &["--env: A is set to a/token and, by --env, to a/db"],
        ),
        (&["--env-file", "none.env"], 2, &["none.env cannot be read"]),
        (&["--on-change", "restart"], 2, &["--env <NAME=GROUP/KEY[#FIELD]>"]),
        (&["--env", "A=a/db", "--on-change", "reload"], 2, &["accepted: restart"]),
        (&["--env", "A=a/db", "--socket", "none.sock"], 5, &["A from a/db: cannot connect to none.sock"]),
    ];
    for (arguments, expected, messages) in cases {
        let mut command = smcached(&daemon.path(""));
        command.arg("exec").args(*arguments);
        if !arguments.contains(&"--socket") {
            command.args(["--socket", "s.sock"]);
        }
        let output = command.args(["--", "touch", "ran"]).output().unwrap();
        assert_eq!(code(&output), *expected, "{arguments:?} {output:?}");
        for message in *messages {
            assert!(errors(&output).contains(message), "{arguments:?} {output:?}");
        }
        for value in ["ada", "quotes"] {
            assert!(!errors(&output).contains(value), "{output:?}");
        }
        assert!(!daemon.path("ran").exists(), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_changed_secret_restarts_the_command_with_the_new_value() {
    let daemon = daemon().await;
    let script = "printf '%s ' \"$P\" >> seen; exec sleep 1000";
    let arguments = [
        "--env",
        "P=a/db#password",
        "--env",
        "U=a/db#user",
        "--on-change",
        "restart",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut running = Running::start(exec(&daemon, &arguments));
    holds(&daemon, "seen", "one ").await;
    fs::write(daemon.path("secrets.toml"), secrets("two")).unwrap();
    holds(&daemon, "seen", "one two ").await;
    running.signal("TERM");
    assert_eq!(running.code().await, Some(128 + 15));
    assert_eq!(fs::read_to_string(daemon.path("seen")).unwrap(), "one two ");
}

#[tokio::test]
async fn a_revoked_secret_leaves_the_command_running() {
    let daemon = daemon().await;
    let script = "printf '%s ' \"$P\" >> seen; exec sleep 1000";
    let arguments = ["--env", "P=a/db#password", "--on-change", "restart", "--", "sh", "-c", script];
    let mut command = exec(&daemon, &arguments);
    command.stderr(fs::File::create(daemon.path("said")).unwrap());
    let mut running = Running::start(command);
    holds(&daemon, "seen", "one ").await;
    fs::write(daemon.path("secrets.toml"), secrets("one").replace("a/db", "a/gone")).unwrap();
    let said = || fs::read_to_string(daemon.path("said")).unwrap();
    eventually("it is said", PATIENCE, async || said().contains("secret_not_found")).await;
    assert!(said().contains("the command goes on with what it has"), "{}", said());
    fs::write(daemon.path("secrets.toml"), secrets("three")).unwrap();
    holds(&daemon, "seen", "one three ").await;
    running.signal("INT");
    assert_eq!(running.code().await, Some(128 + 2));
    assert_eq!(said().lines().count(), 1, "once, however often it is asked: {}", said());
}

#[tokio::test]
async fn a_changed_secret_is_told_by_a_signal_and_ours_are_passed_on() {
    let daemon = daemon().await;
    let script = "trap 'printf hup >> seen' HUP; trap 'printf usr2 >> seen' USR2; trap 'exit 9' TERM
        printf ready >> seen; while :; do sleep 0.05; done";
    let arguments = ["--env", "A=a/db", "--on-change", "signal=HUP", "--", "sh", "-c", script];
    let mut running = Running::start(exec(&daemon, &arguments));
    holds(&daemon, "seen", "ready").await;
    running.signal("USR2");
    holds(&daemon, "seen", "readyusr2").await;
    fs::write(daemon.path("secrets.toml"), secrets("two")).unwrap();
    holds(&daemon, "seen", "readyusr2hup").await;
    running.signal("TERM");
    assert_eq!(running.code().await, Some(9));
}

#[tokio::test]
async fn get_watches_a_secret_until_it_is_gone() {
    let daemon = daemon().await;
    let mut command = smcached(&daemon.path(""));
    command.args(["get", "a/db", "--field", "password", "--watch", "--socket", "s.sock"]);
    let out = |name: &str| fs::File::create(daemon.path(name)).unwrap();
    command.stdin(Stdio::null()).stdout(out("printed")).stderr(out("said"));
    let mut running = Running::start(command);
    holds(&daemon, "printed", "one\n").await;
    fs::write(daemon.path("secrets.toml"), secrets("two")).unwrap();
    holds(&daemon, "printed", "one\ntwo\n").await;
    fs::write(daemon.path("secrets.toml"), "").unwrap();
    assert_eq!(running.code().await, Some(3));
    assert!(fs::read_to_string(daemon.path("said")).unwrap().contains("secret_not_found"));
}

#[tokio::test]
async fn get_ends_well_when_nobody_reads_what_it_watches() {
    let daemon = daemon().await;
    let mut command = smcached(&daemon.path(""));
    command
        .args(["get", "a/db", "--watch", "--socket", "s.sock"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut running = Running::start(command);
    let mut reader = std::io::BufReader::new(running.0.stdout.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut reader, &mut line).unwrap();
    assert!(line.contains("one"));
    drop(reader);
    fs::write(daemon.path("secrets.toml"), secrets("two")).unwrap();
    assert_eq!(running.code().await, Some(0));
}
