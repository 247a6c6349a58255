//! What is in the daemon's memory: values while they are held, and nothing of them afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::client::{Connection, aws_json_as};
use crate::support::daemon::{Daemon, Setup};
use crate::support::fake_aws::{FakeAws, Stored};
use crate::support::faults::Fault;
use crate::support::leaks::{self, Secrets};
use crate::support::memory::{Canaries, Leftover};
use crate::support::tls::TlsFront;
use crate::support::{self, ARN, eventually, is_root};

const PATIENCE: Duration = Duration::from_secs(30);

/// Random text that needs no escapes.
fn random(length: usize) -> String {
    (0..length).map(|_| fastrand::alphanumeric()).collect()
}

/// Random text with something to escape here and there, as in a key in PEM form.
fn random_lines(length: usize) -> String {
    let mut text = String::new();
    while text.len() < length {
        writeln!(text, "\"{}", random(61)).unwrap();
    }
    text.truncate(length);
    text
}

/// A daemon behind TLS, with secrets of every kind and size.
struct Rig {
    aws: FakeAws,
    values: BTreeMap<&'static str, Vec<u8>>,
    canaries: Canaries,
    front: TlsFront,
    daemon: Daemon,
    /// Stay open until the end.
    kept: Vec<Connection>,
    _directory: tempfile::TempDir,
}

impl Rig {
    async fn start(cache: &str, more: &str) -> Self {
        let password = random(200);
        let binary: Vec<u8> = std::iter::repeat_with(|| fastrand::u8(..)).take(3000).collect();
        let values = BTreeMap::from([
            ("short", random(40).into_bytes()),
            ("page", random_lines(4 << 10).into_bytes()),
            ("largest", random_lines(64 << 10).into_bytes()),
            ("binary", binary.clone()),
            ("fields", json!({ "password": password, "user": "x" }).to_string().into_bytes()),
        ]);
        let aws = FakeAws::start();
        for (name, value) in &values {
            match str::from_utf8(value) {
                Ok(text) => aws.put(name, text),
                Err(_) => aws.put(name, Stored::Binary(value.clone())),
            };
        }
        let directory = tempfile::tempdir().unwrap();
        let front = TlsFront::before(aws.port(), directory.path()).await;
        let daemon = Setup::with_aws(&front.url())
            .env("AWS_CA_BUNDLE", front.certificate())
            .cache(cache)
            .section(more)
            .start()
            .await;
        let canaries = Canaries::new(values.iter().map(|(name, value)| (*name, value.as_slice())));
        Self { aws, values, canaries, front, daemon, kept: Vec::new(), _directory: directory }
    }

    /// Reads every value by every way in, again and again, over connections that are closed and others that are kept.
    async fn read(&mut self, reads: usize) {
        let token = self.daemon.token();
        let port = self.daemon.tcp_port();
        let in_json: &[(&str, &str)] = &[("Accept", "application/json")];
        let with_token: &[(&str, &str)] = &[("X-Aws-Parameters-Secrets-Token", &token)];
        let mut kept = Vec::new();
        for _ in 0..4 {
            kept.push(Connection::open(&self.daemon.unix()).await.unwrap());
            kept.push(Connection::open(&self.daemon.tcp()).await.unwrap());
        }
        let names: Vec<&str> = self.values.keys().copied().collect();
        for read in 0..reads {
            let name = names[read % names.len()];
            let value = &self.values[name];
            let to_all = |body: &[u8]| assert!(body.len() >= value.len(), "{name}: {} bytes", body.len());
            let (unix, tcp) = (2 * (read % 4), 2 * (read % 4) + 1);
            match read / names.len() % 8 {
                0 => {
                    let answer = kept[unix].get(&format!("/secret/{name}"), &[]).await.unwrap();
                    assert_eq!(&answer.body, value, "{name}");
                }
                1 => to_all(&kept[unix].get(&format!("/secret/{name}"), in_json).await.unwrap().body),
                2 => to_all(&kept[tcp].get(&format!("/secret/{name}"), with_token).await.unwrap().body),
                3 => {
                    let path = format!("/secretsmanager/get?secretId={name}");
                    to_all(&kept[tcp].get(&path, with_token).await.unwrap().body);
                }
                4 => to_all(&self.daemon.get(&format!("/secret/{name}")).await.body),
                5 => {
                    let body = json!({ "SecretId": name });
                    to_all(&aws_json_as(port, &token, "us-west-2", "GetSecretValue", &body).await.body);
                }
                6 => {
                    let body = json!({ "SecretIdList": names });
                    to_all(&aws_json_as(port, &token, "us-west-2", "BatchGetSecretValue", &body).await.body);
                }
                _ => {
                    let answer = kept[unix].get("/secret/fields?field=password", &[]).await.unwrap();
                    assert_eq!(answer.body.len(), 200);
                }
            }
        }
        self.kept.extend(kept);
    }

    fn found(&self) -> Vec<Leftover> {
        self.canaries.find_in(self.daemon.pid())
    }

    /// That the scan finds what is there; how many pieces of each.
    fn assert_all_are_found(&self) -> BTreeMap<&'static str, usize> {
        let found = self.found();
        let pieces = |name: &str| found.iter().filter(|leftover| leftover.is_of(name)).count();
        let pieces: BTreeMap<_, _> = self.values.keys().map(|name| (*name, pieces(name))).collect();
        assert!(pieces.values().all(|count| *count > 0), "what is held is not found: {pieces:?}");
        pieces
    }

    /// That nothing is left, after at most a moment: how long that was, and what was found last.
    async fn assert_none_is_found(&self, when: &str) -> (Duration, Vec<Leftover>) {
        let (since, mut last) = (Instant::now(), Vec::new());
        let mut found = self.found();
        // Connections to AWS are kept for a second.
        while !found.is_empty() && since.elapsed() < Duration::from_secs(10) {
            sleep(Duration::from_millis(100)).await;
            last = std::mem::replace(&mut found, self.found());
        }
        assert!(found.is_empty(), "{} pieces are left {when}: {found:#?}", found.len());
        (since.elapsed(), last)
    }

    async fn holds_nothing(&self) {
        eventually("nothing is held", PATIENCE, async || {
            self.daemon.metric("smcached_cache_entries").await == 0
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_value_is_left_after_its_eviction() {
    if !is_root("read the memory of another process") {
        return;
    }
    let mut rig = Rig::start("ttl = \"2s\"\nidle_timeout = \"4s\"", "").await;
    rig.read(1000).await;
    eprintln!("while they are held: {:?}", rig.assert_all_are_found());
    rig.holds_nothing().await;
    eprintln!("gone: {:?}", rig.assert_none_is_found("after eviction").await);
    eprintln!("{} calls over {} connections", rig.aws.calls(), rig.front.connections());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_value_is_left_after_its_revocation() {
    if !is_root("read the memory of another process") {
        return;
    }
    let mut rig = Rig::start("ttl = \"2s\"", "").await;
    rig.read(200).await;
    eprintln!("while they are held: {:?}", rig.assert_all_are_found());
    for name in rig.values.keys() {
        rig.aws.delete(name);
    }
    // Reading them has them refreshed.
    for name in rig.values.keys() {
        eventually("the secret is gone", PATIENCE, async || {
            rig.daemon.get(&format!("/secret/{name}")).await.status == 404
        })
        .await;
    }
    rig.holds_nothing().await;
    eprintln!("gone: {:?}", rig.assert_none_is_found("after revocation").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_value_is_left_while_the_last_requests_are_finished() {
    if !is_root("read the memory of another process") {
        return;
    }
    let more = "[server]\ndrain_timeout = \"20s\"\n";
    let mut rig = Rig::start("fetch_timeout = \"15s\"", more).await;
    rig.read(200).await;
    eprintln!("while they are held: {:?}", rig.assert_all_are_found());
    rig.aws.fail_in("us-east-1", Some(Fault::Hang));
    let mut slow = Connection::open(&rig.daemon.unix()).await.unwrap();
    let path = format!("/secret/{}/slow-AbCdEf", ARN.replace("us-west-2", "us-east-1"));
    slow.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    eventually("the slow call is made", PATIENCE, async || {
        rig.aws.log().iter().any(|call| call.region == "us-east-1")
    })
    .await;
    rig.daemon.signal("TERM");
    rig.daemon.logs("the values in memory are wiped").await;
    eprintln!("gone: {:?}", rig.assert_none_is_found("while a request is being finished").await);
    // That request is not forgotten.
    rig.aws.fail_in("us-east-1", None);
    let answer = slow.answer(false).await.unwrap().unwrap();
    assert!(answer.status >= 400, "{answer:?}");
    assert!(rig.daemon.exit().await.success());
}

/// Runs what follows with core dumps allowed.
const WITH_DUMPS: &[&str] =
    &["/usr/bin/env", "--default-signal", "/bin/sh", "-c", "ulimit -c unlimited && exec \"$0\" \"$@\""];

/// Runs what follows as a user who is nobody in particular.
const AS_NOBODY: &[&str] = &["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// A running command of these words, which does nothing for a minute.
struct Sleeper(std::process::Child);

impl Sleeper {
    fn start(under: &[&str], directory: &Path) -> Self {
        let child = Command::new(under[0])
            .args(&under[1..])
            .args(["/bin/sleep", "60"])
            .current_dir(directory)
            .spawn()
            .unwrap();
        let sleeper = Self(child);
        while fs::read_to_string(format!("/proc/{}/comm", sleeper.0.id())).unwrap() != "sleep\n" {
            std::thread::yield_now();
        }
        sleeper
    }

    fn end(&mut self, signal: &str) -> ExitStatus {
        support::signal(self.0.id(), signal);
        self.0.wait().unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn core_files(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.to_string_lossy().into_owned()).filter(|name| name.contains("core")).collect()
}

#[tokio::test]
async fn a_crash_leaves_no_core_dump() {
    let directory = tempfile::tempdir().unwrap();
    let status = Sleeper::start(WITH_DUMPS, directory.path()).end("ABRT");
    if !status.core_dumped() {
        // So does a pattern that leads nowhere.
        eprintln!("not shown that a dump would be seen: this system dumps no core of a plain command");
    }
    // Rust handles SEGV and BUS itself, and lets the first of each pass that comes from outside.
    for signal in ["ABRT", "QUIT", "ILL", "FPE"] {
        let setup =
            Setup::with_file("[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n").under(WITH_DUMPS);
        let mut daemon = setup.start().await;
        assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
        daemon.signal(signal);
        let status = daemon.exit().await;
        assert!(status.signal().is_some(), "{signal}: {status:?}");
        assert!(!status.core_dumped(), "{signal}: {status:?}");
        assert_eq!(core_files(&daemon.path("")), Vec::<String>::new(), "{signal}");
    }
}

/// Whether a user who is nobody in particular may look into the memory of a process, as a debugger does.
fn nobody_may_read(pid: u32) -> bool {
    let open = format!(": < /proc/{pid}/mem");
    let status = Command::new(AS_NOBODY[0]).args(&AS_NOBODY[1..]).args(["/bin/sh", "-c", &open]).status();
    status.unwrap().success()
}

#[tokio::test]
async fn another_process_of_the_same_user_cannot_look_into_its_memory() {
    if !is_root("run a daemon as another user") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    if !nobody_may_read(Sleeper::start(AS_NOBODY, directory.path()).0.id()) {
        eprintln!(
            "not shown that memory could be read: this system keeps even a plain command's from its user"
        );
    }
    let secrets = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n";
    let started_so = Setup::with_file(secrets).under(AS_NOBODY);
    let become_so = Setup::with_file(secrets)
        .under(&["/usr/bin/env"])
        .section("[process]\nuser = \"65534\"\ngroup = \"65534\"");
    for setup in [started_so, become_so] {
        let daemon = setup.start().await;
        assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
        let process = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        assert!(process.contains("Uid:\t65534\t65534\t65534\t65534"), "{process}");
        assert!(process.contains("Groups:\t65534 \n") || process.contains("Groups:\t \n"), "{process}");
        assert!(process.contains("CapEff:\t0000000000000000"), "{process}");
        assert!(process.contains("NoNewPrivs:\t1"), "{process}");
        assert!(!nobody_may_read(daemon.pid()));
        // It may look at itself.
        assert!(daemon.metric("process_open_fds").await > 5);
        assert!(daemon.metric("process_resident_memory_bytes").await > 0);
    }
}

#[tokio::test]
async fn what_a_daemon_needs_is_there_after_it_gave_up_root() {
    if !is_root("run a daemon as another user") {
        return;
    }
    let as_nobody = "[process]\nuser = \"65534\"\ngroup = \"65534\"";
    let setup = Setup::with_file("[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n");
    let daemon = setup.under(&["/usr/bin/env"]).section(as_nobody).start().await;
    daemon.logs("going on as the user that is configured").await;
    let token = fs::metadata(daemon.path("token")).unwrap();
    assert_eq!((token.uid(), token.mode() & 0o777), (65534, 0o640));
    // It rereads the token, the configuration and the secrets, and removes its socket.
    fs::write(daemon.path("token"), "another-token-of-its-operator").unwrap();
    daemon.logs("the token was reread").await;
    daemon.signal("HUP");
    daemon.logs("the configuration was reloaded").await;
    let changed = "[[secret]]\nname = \"a/b\"\nstring = \"changed since\"\n";
    fs::write(daemon.path("secrets.toml"), changed).unwrap();
    eventually("the change is seen", PATIENCE, async || {
        daemon.get("/secret/a/b").await.text() == "changed since"
    })
    .await;
    let directory = daemon.into_directory("TERM").await;
    assert!(!directory.path().join("s.sock").exists());
}

#[tokio::test]
async fn a_user_whom_nobody_knows_or_who_cannot_be_had_is_a_wrong_configuration() {
    if !is_root("run a daemon as another user") {
        return;
    }
    let process = |user: &str| Setup::with_file("").section(&format!("[process]\nuser = \"{user}\""));
    let mut unknown = process("no-such-user").launch();
    assert_eq!(unknown.exit().await.code(), Some(2));
    assert!(unknown.log().contains("which is not on this system"), "{}", unknown.log());
    let mut other = process("root").under(AS_NOBODY).launch();
    assert_eq!(other.exit().await.code(), Some(2));
    assert!(other.log().contains("the daemon was started as 65534"), "{}", other.log());
}

#[tokio::test]
async fn commands_that_are_run_may_dump_core_and_the_daemons_files_are_its_own() {
    if !is_root("run a daemon as another user") {
        return;
    }
    let daemon = Setup::with_file("[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n").start().await;
    assert!(daemon.log().contains("runs as root"), "{}", daemon.log());
    assert_eq!(fs::metadata(daemon.path(".s.sock.lock")).unwrap().mode() & 0o777, 0o600);
    let socket = daemon.path("s.sock");
    let output = Command::new(WITH_DUMPS[0])
        .args(&WITH_DUMPS[1..])
        .args([crate::SMCACHED, "exec", "--socket"])
        .arg(&socket)
        .args(["--env", "X=a/b", "--", "/bin/sh", "-c", "ulimit -c"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "unlimited\n", "{output:?}");
}

#[test]
fn a_secret_in_a_log_is_noticed_in_any_form() {
    let mut secrets = Secrets::default();
    let (text, binary) = ("correct \"horse\"\nbattery", [7, 0, 255, 254, 8, 9, 10, 200]);
    secrets.add(text.as_bytes());
    secrets.add(&binary);
    secrets.add(b"short");
    let long = random(5000);
    secrets.add(long.as_bytes());
    assert_eq!(secrets.find(b"{\"message\":\"all is well\"}\nshort"), Vec::<String>::new());
    let in_json = serde_json::to_string(text).unwrap();
    let leaks = [
        format!("x{in_json}"),
        format!("x{}", serde_json::to_string(&in_json).unwrap()),
        format!("x{text:?}"),
        STANDARD.encode(text),
        format!("b\"{}\"", STANDARD.encode(binary)),
        format!("{binary:?}"),
        long[..40].to_owned(),
        long[4900..].to_owned(),
    ];
    for leak in &leaks {
        let text = format!("before\n{leak}\nafter");
        assert_eq!(secrets.find(text.as_bytes()), std::slice::from_ref(leak));
    }
    let searched = secrets.searched();
    assert_eq!((searched.values, searched.texts), (3, 1 + leaks.len()));
}

#[tokio::test]
async fn a_test_whose_daemon_logs_a_secret_fails() {
    let aws = FakeAws::start();
    let daemon = Setup::with_aws(&aws.url()).start().await;
    let value = random(20);
    aws.put("db", value.as_str());
    assert_eq!(daemon.get("/secret/db").await.text(), value);
    let mut log = fs::OpenOptions::new().append(true).open(daemon.path("log")).unwrap();
    writeln!(log, "{{\"message\":\"planted: {value}\"}}").unwrap();
    let dropped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(daemon)));
    let complaint = dropped.unwrap_err().downcast::<String>().unwrap();
    assert!(complaint.contains("a secret is in a log") && complaint.contains("planted"), "{complaint}");
    eprintln!("so far: {:?}", leaks::searched());
}
