//! Under systemd: sockets that it opens, what it is told, and the files that it reads. A test cannot have a systemd of its
//! own as process 1: `systemd-socket-activate` opens the sockets, a shell starts the daemon again as a unit's `Restart=` does,
//! and the test itself listens to what the daemon tells.

use std::fs::{self, File};
use std::io::{IoSliceMut, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;
use tokio::io::Interest;
use tokio::net::UnixDatagram;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::support::client::{Address, Connection};
use crate::support::daemon::{Daemon, Setup, TCP_PORT};
use crate::support::fake_aws::FakeAws;
use crate::support::{eventually, in_repository, is_root, signal};

const SECRETS: &str = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n";

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs the daemon anew whenever it ends, on the sockets that it was given itself. The daemon is killed with it.
const KEEPER: &str = "while [ ! -e stop ]; do setpriv --pdeathsig KILL \
                      sh -c 'echo $$ > pid.new; mv pid.new pid; LISTEN_PID=$$ exec \"$0\" \"$@\"' \"$@\"; done";

/// Runs one daemon, and another one beside it on the same sockets once `next` is there.
const PAIR: &str = "start() { setpriv --pdeathsig KILL \
                    sh -c 'echo $$ > pid.new; mv pid.new pid; LISTEN_PID=$$ exec \"$0\" \"$@\"' \"$@\" & }; \
                    start \"$@\"; until [ -e next ]; do sleep 0.05; done; start \"$@\"; wait";

/// Has systemd's tool open `s.sock` in the directory and the TCP port, and `run` take them over.
fn activated(setup: Setup, directory: &TempDir, run: &[&str]) -> Setup {
    let socket = directory.path().join("s.sock");
    let address = format!("127.0.0.1:{TCP_PORT}");
    let words = ["/usr/bin/systemd-socket-activate", "-l", socket.to_str().unwrap(), "-l", &address];
    setup.under(&[&words, run].concat())
}

async fn wait_for_file(path: &Path) {
    eventually(&format!("{} is there", path.display()), PATIENCE, async || path.exists()).await;
}

/// The process id of the daemon that runs now.
fn daemon_pid(daemon: &Daemon) -> String {
    fs::read_to_string(daemon.path("pid")).unwrap_or_default().trim().to_owned()
}

fn terminate(pid: &str) {
    signal(pid.parse().unwrap(), "TERM");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_reader_is_refused_before_during_and_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let setup = Setup::with_file(SECRETS).tcp("token = \"none\"").unix("mode = \"0600\"");
    let setup = activated(setup, &directory, &["/bin/sh", "-c", KEEPER, "sh"]);
    let mut daemon = setup.launch_in(directory);
    wait_for_file(&daemon.path("s.sock")).await;
    let made = fs::metadata(daemon.path("s.sock")).unwrap();
    assert_ne!(
        made.mode() & 0o777,
        0o600,
        "the mode of the test's socket is another than the configured one"
    );
    // Nobody serves yet: this is what starts the daemon.
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");

    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for address in [daemon.unix(), daemon.tcp(), daemon.unix(), daemon.tcp()] {
        readers.spawn(read_until(address, Arc::clone(&stop)));
    }
    for _ in 0..2 {
        daemon.wait_ready().await;
        let before = daemon_pid(&daemon);
        terminate(&before);
        eventually("another daemon runs", PATIENCE, async || daemon_pid(&daemon) != before).await;
    }
    daemon.wait_ready().await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
    stop.store(true, Ordering::Relaxed);
    let reads = readers.join_all().await;
    assert!(reads.iter().all(|reads| *reads > 2), "{reads:?}");

    fs::write(daemon.path("stop"), "").unwrap();
    terminate(&daemon_pid(&daemon));
    assert_eq!(daemon.exit().await.code(), Some(0));
    let log = daemon.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(count("\"message\":\"started\""), 3, "{log}");
    assert_eq!(count("\"passed\":true"), 6, "each of them took both sockets: {log}");
    let left = fs::metadata(daemon.path("s.sock")).unwrap();
    assert_eq!((left.ino(), left.mode()), (made.ino(), made.mode()), "the socket's file is systemd's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_daemon_takes_over_from_another_on_the_same_sockets() {
    let (directory, meeting) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let takeover = meeting.path().join("private/socket");
    let section = format!("[process]\ntakeover = \"{}\"", takeover.display());
    let setup = Setup::with_file(SECRETS).tcp("token = \"none\"").section(&section);
    let mut daemon = activated(setup, &directory, &["/bin/sh", "-c", PAIR, "sh"]).launch_in(directory);
    wait_for_file(&daemon.path("s.sock")).await;
    let made = fs::metadata(daemon.path("s.sock")).unwrap().ino();
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
    daemon.wait_ready().await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for address in [daemon.unix(), daemon.tcp()] {
        readers.spawn(read_until(address, Arc::clone(&stop)));
    }
    fs::write(daemon.path("next"), "").unwrap();
    daemon.logs("this process has taken over").await;
    daemon.logs("\"message\":\"ended\"").await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2", "the next one serves");
    stop.store(true, Ordering::Relaxed);
    let reads = readers.join_all().await;
    assert!(reads.iter().all(|reads| *reads > 2), "{reads:?}");

    terminate(&daemon_pid(&daemon));
    assert_eq!(daemon.exit().await.code(), Some(0));
    assert_eq!(fs::metadata(daemon.path("s.sock")).unwrap().ino(), made, "the socket's file is systemd's");
    assert!(!takeover.exists(), "and this one the daemon's");
}

/// Reads over a new connection each time; returns how often.
async fn read_until(address: Address, stop: Arc<AtomicBool>) -> usize {
    let mut reads = 0;
    while !stop.load(Ordering::Relaxed) {
        let mut connection = Connection::open(&address).await.expect("a reader was refused");
        let answer = connection.get("/secret/a/b", &[]).await.expect("a read was lost");
        assert_eq!(answer.text(), "hunter2-hunter2");
        reads += 1;
    }
    reads
}

#[tokio::test]
async fn a_passed_socket_that_nothing_is_configured_for_ends_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.sock");
    let words = ["/usr/bin/systemd-socket-activate", "-l", other.to_str().unwrap()];
    let mut daemon = Setup::with_file(SECRETS).under(&words).launch_in(directory);
    wait_for_file(&other).await;
    let _starts_it = Connection::open(&Address::Unix(other)).await.unwrap();
    assert_eq!(daemon.exit().await.code(), Some(2));
    let log = daemon.log();
    assert!(log.contains("other.sock was passed to the daemon, but no [[listener]]"), "{log}");
    assert!(log.contains(&format!("configured: unix:s.sock, tcp:127.0.0.1:{}", daemon.tcp_port())), "{log}");
    assert!(!daemon.path("s.sock").exists(), "nothing was opened");
}

#[tokio::test]
async fn what_was_passed_and_is_no_listening_socket_ends_the_start() {
    let under = ["/bin/sh", "-c", "exec 3</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" \"$@\""];
    let mut daemon = Setup::with_file(SECRETS).under(&under).launch();
    assert_eq!(daemon.exit().await.code(), Some(2));
    let log = daemon.log();
    assert!(log.contains("of what was passed to the daemon, number 1 cannot be used"), "{log}");
}

#[tokio::test]
async fn sockets_that_were_passed_to_another_process_are_left_alone() {
    let daemon = Setup::with_file(SECRETS).env("LISTEN_FDS", "1").env("LISTEN_PID", "1").start().await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
}

/// The other end of `NOTIFY_SOCKET`.
struct Told {
    socket: UnixDatagram,
    lives: usize,
}

impl Told {
    fn listen(directory: &TempDir) -> Self {
        let socket = UnixDatagram::bind(directory.path().join("notify")).unwrap();
        Self { socket, lives: 0 }
    }

    /// The next thing that is told; signs of life are counted and passed over.
    async fn next(&mut self) -> String {
        loop {
            let message = self.any().await;
            if message != "WATCHDOG=1\n" {
                return message;
            }
            self.lives += 1;
        }
    }

    async fn any(&mut self) -> String {
        self.with_descriptors().await.0
    }

    /// The next thing that is told, and what comes with it.
    async fn with_descriptors(&mut self) -> (String, Vec<OwnedFd>) {
        let mut buffer = [0; 4096];
        let receive = || {
            let mut space = [0; rustix::cmsg_space!(ScmRights(4))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut buffer)];
            let length = recvmsg(&self.socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
            let rights = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            Ok((length, rights.flatten().collect()))
        };
        let told = timeout(PATIENCE, self.socket.async_io(Interest::READABLE, receive)).await;
        let (length, descriptors) = told.expect("nothing is told").unwrap();
        (String::from_utf8(buffer[..length].to_vec()).unwrap(), descriptors)
    }

    /// What a process leaves that ends.
    async fn left(&mut self) -> File {
        loop {
            let (message, descriptors) = self.with_descriptors().await;
            if let Some(descriptor) = descriptors.into_iter().next() {
                assert_eq!(message, "FDSTORE=1\nFDNAME=smcached-held\n");
                return descriptor.into();
            }
        }
    }

    async fn is_told(&mut self, expected: &str) {
        while self.next().await != expected {}
    }
}

/// Runs the daemon as a systemd does that has kept this file for it.
fn with_kept(setup: Setup, file: &File) -> Setup {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let run =
        format!("exec 3<{path}; LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=smcached-held exec \"$0\" \"$@\"");
    setup.under(&["/bin/sh", "-c", &run])
}

/// A daemon that holds something, and a systemd that keeps descriptors.
async fn that_is_kept() -> (FakeAws, Setup, Told, Daemon, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let told = Told::listen(&directory);
    let aws = FakeAws::start();
    aws.put("a/b", "hunter2-hunter2");
    let socket = directory.path().join("notify");
    let setup =
        Setup::with_aws(&aws.url()).env("NOTIFY_SOCKET", socket.to_str().unwrap()).env("FDSTORE", "1");
    let daemon = setup.clone().start().await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
    (aws, setup, told, daemon, directory)
}

const FORGOTTEN: &str = "FDSTOREREMOVE=1\nFDNAME=smcached-held\n";

#[tokio::test]
async fn what_is_held_outlasts_a_restart_and_costs_no_call() {
    let (aws, setup, mut told, daemon, _directory) = that_is_kept().await;
    let calls = aws.calls();
    let held_since = Instant::now();
    let directory = daemon.into_directory("TERM").await;
    let left = told.left().await;
    let mut writer = File::options().write(true).open(format!("/proc/self/fd/{}", left.as_raw_fd())).unwrap();
    assert!(writer.write_all(b"x").is_err(), "it is sealed");
    assert_eq!(
        fs::read_link(format!("/proc/self/fd/{}", left.as_raw_fd())).unwrap().to_str().unwrap(),
        "/memfd:smcached (deleted)"
    );
    sleep(Duration::from_secs(1)).await;

    let mut daemon = with_kept(setup, &left).launch_in(directory);
    daemon.wait_ready().await;
    told.is_told(FORGOTTEN).await;
    let answer = daemon.get("/secret/a/b").await;
    assert_eq!(answer.text(), "hunter2-hunter2");
    assert!(answer.header("cache-status").starts_with("smcached; hit"), "{answer:?}");
    let age: u64 = answer.header("age").parse().unwrap();
    assert!(age >= 1 && age <= held_since.elapsed().as_secs() + 1, "no value has become younger: {answer:?}");
    assert_eq!(aws.calls(), calls);
    daemon.signal("TERM");
    told.left().await;
    assert_eq!(daemon.exit().await.code(), Some(0));
}

#[tokio::test]
async fn what_is_of_no_use_to_the_next_process_is_dropped() {
    let (aws, setup, mut told, daemon, _directory) = that_is_kept().await;
    let mut directory = daemon.into_directory("TERM").await;
    let of_another_user = told.left().await;
    let other = setup.env("AWS_SHARED_CREDENTIALS_FILE", "/nowhere");
    let no_memory = tempfile::tempfile().unwrap();
    for (left, expected) in [
        (of_another_user, "have another source: AWS_SHARED_CREDENTIALS_FILE differ"),
        (no_memory, "what the old process has left cannot be read"),
    ] {
        let calls = aws.calls();
        let daemon = with_kept(other.clone(), &left).launch_in(directory);
        daemon.wait_ready().await;
        told.is_told(FORGOTTEN).await;
        daemon.logs(expected).await;
        daemon.get("/secret/a/b").await;
        assert_eq!(aws.calls(), calls + 1, "it starts cold");
        directory = daemon.into_directory("TERM").await;
    }
}

#[tokio::test]
async fn nothing_is_left_where_nothing_is_kept() {
    let (_aws, setup, mut told, daemon, _directory) = that_is_kept().await;
    drop(daemon);
    for fd_store in ["0", ""] {
        let mut daemon = setup.clone().env("FDSTORE", fd_store).start().await;
        daemon.get("/secret/a/b").await;
        daemon.signal("TERM");
        assert_eq!(daemon.exit().await.code(), Some(0));
        told.is_told("STOPPING=1\nSTATUS=finishing requests in flight\n").await;
        let mut next = [0; 64];
        assert!(told.socket.try_recv(&mut next).is_err(), "it is the last that is told");
    }
}

#[tokio::test]
async fn systemd_is_told_of_readiness_reloads_and_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut told = Told::listen(&directory);
    let aws = FakeAws::start();
    aws.put("db", "x");
    aws.set_latency(Duration::from_secs(1));
    let socket = directory.path().join("notify");
    let setup = Setup::with_aws(&aws.url()).cache("preload = [\"db\"]");
    let setup = setup.env("NOTIFY_SOCKET", socket.to_str().unwrap()).env("WATCHDOG_USEC", "200000");
    let mut daemon = setup.launch_in(directory);

    let status =
        |message: &str| message.lines().find_map(|line| line.strip_prefix("STATUS=")).map(str::to_owned);
    let first = told.next().await;
    assert!(status(&first).unwrap().contains("not ready before") && !first.contains("READY=1"), "{first}");
    assert!(told.next().await.starts_with("READY=1\nSTATUS=serving\n"));
    assert_eq!(daemon.ops_page("/readyz").await.status, 200, "ready is said when it is so");
    assert_eq!(daemon.metric("smcached_cache_entries").await, 1, "and the preload is done");

    daemon.signal("HUP");
    let reloading = told.next().await;
    let moment = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(reloading.starts_with("RELOADING=1\n") && moment.parse::<u64>().unwrap() > 0, "{reloading}");
    assert!(told.next().await.starts_with("READY=1\nSTATUS=serving\n"));

    daemon.rewrite_config(|text| format!("{text}\nnonsense = 1\n"));
    daemon.signal("HUP");
    assert!(told.next().await.starts_with("RELOADING=1\n"));
    let failed = told.next().await;
    assert!(failed.starts_with("READY=1\n") && failed.contains("cannot be reloaded"), "{failed}");

    let lives = told.lives;
    assert!(lives > 0, "signs of life come from the start");
    assert_eq!(told.any().await, "WATCHDOG=1\n", "and go on");
    daemon.signal("TERM");
    assert!(told.next().await.starts_with("STOPPING=1\n"));
    assert_eq!(daemon.exit().await.code(), Some(0));
}

#[tokio::test]
async fn systemd_is_told_that_one_is_ready_and_that_the_other_ends() {
    let (directory, meeting) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let socket = directory.path().join("notify");
    let section = format!("[process]\ntakeover = \"{}\"", meeting.path().join("private/socket").display());
    let mut told = Told::listen(&directory);
    let setup = Setup::with_file(SECRETS).section(&section).env("NOTIFY_SOCKET", socket.to_str().unwrap());
    let mut daemon = setup.launch_in(directory);
    while !told.next().await.starts_with("READY=1\n") {}
    let mut old = daemon.replace(&[]);
    let (mut is_ready, mut is_stopping) = (false, false);
    while !(is_ready && is_stopping) {
        let message = told.next().await;
        is_ready |= message.starts_with("READY=1\n");
        is_stopping |= message.starts_with("STOPPING=1\n");
        assert!(!is_ready || daemon.log().contains("this process has taken over"), "{}", daemon.log());
    }
    assert_eq!(old.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_service_manager_that_is_gone_is_no_reason_to_end() {
    let setup =
        Setup::with_file(SECRETS).env("NOTIFY_SOCKET", "/nobody/listens").env("WATCHDOG_USEC", "200000");
    let daemon = setup.start().await;
    daemon.logs("the service manager cannot be told how the daemon is").await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2");
}

/// The units of `config/systemd` in a directory, with the built binary in the place of the installed one.
fn installed() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for unit in ["smcached.service", "smcached.socket"] {
        let text = fs::read_to_string(in_repository("config/systemd").join(unit)).unwrap();
        let text = text.replace("ExecStart=smcached ", &format!("ExecStart={} ", crate::SMCACHED));
        fs::write(directory.path().join(unit), text).unwrap();
    }
    directory
}

fn run(program: &str, directory: &TempDir, arguments: &[&str]) -> Output {
    Command::new(program).args(arguments).current_dir(directory.path()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units_and_little_that_they_could_give_up() {
    let directory = installed();
    let verified = run("systemd-analyze", &directory, &["verify", "./smcached.service", "./smcached.socket"]);
    assert!(verified.status.success(), "{}", text(&verified.stderr));
    assert_eq!(text(&verified.stderr), "", "not a word of warning");
    // In tenths; 0 is best, 100 worst.
    let scored = ["security", "--offline=true", "--threshold=15", "./smcached.service"];
    let scored = run("systemd-analyze", &directory, &scored);
    assert!(scored.status.success(), "{}", text(&scored.stdout));
}

#[test]
fn the_sockets_of_the_unit_are_those_of_the_defaults() {
    let directory = installed();
    let shown = run(crate::SMCACHED, &directory, &["check"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    let unit = fs::read_to_string(directory.path().join("smcached.socket")).unwrap();
    let addresses: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(addresses.len(), 3);
    for address in addresses {
        assert!(
            text(&shown.stdout).contains(&format!("\"{address}\"")),
            "{address}: {}",
            text(&shown.stdout)
        );
    }
}

#[test]
fn the_user_and_the_directories_are_made_as_the_service_needs_them() {
    if !is_root("give a directory to another user") {
        return;
    }
    let directory = installed();
    let root = format!("--root={}", directory.path().display());
    for kind in ["sysusers", "tmpfiles"] {
        let place = directory.path().join(format!("etc/{kind}.d"));
        fs::create_dir_all(&place).unwrap();
        let file = in_repository(&format!("config/systemd/{kind}.d/smcached.conf"));
        fs::copy(file, place.join("smcached.conf")).unwrap();
    }
    let users = run("systemd-sysusers", &directory, &[&root]);
    assert!(users.status.success(), "{}", text(&users.stderr));
    let passwd = fs::read_to_string(directory.path().join("etc/passwd")).unwrap();
    let entry = passwd.lines().find(|line| line.starts_with("smcached:")).unwrap();
    let entry: Vec<&str> = entry.split(':').collect();
    assert_eq!(entry[6], "/usr/sbin/nologin");
    let made = run("systemd-tmpfiles", &directory, &[&root, "--create"]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    let runtime = fs::metadata(directory.path().join("run/smcached")).unwrap();
    assert_eq!((runtime.mode() & 0o777, runtime.uid().to_string().as_str()), (0o755, entry[2]));
}
