//! One process takes the place of another: no read fails, nothing is asked for again.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::client::{Address, Connection};
use crate::support::daemon::{Daemon, IN_A_NETWORK_OF_ITS_OWN, Setup};
use crate::support::fake_aws::FakeAws;
use crate::support::memory::Canaries;
use crate::support::{eventually, is_root};

const TAKEN: &str = "this process has taken over";
const SECRETS: usize = 20;

const PATIENCE: Duration = Duration::from_secs(20);

/// A private directory, apart from the daemon's own.
fn private() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    let socket = directory.path().join("socket");
    (directory, socket)
}

/// A daemon that another may take over from at `socket`.
fn setup(aws: &FakeAws, socket: &Path, lines: &str) -> Setup {
    let section = format!("[process]\ntakeover = \"{}\"\n{lines}", socket.display());
    Setup::with_aws(&aws.url()).tcp("token = \"none\"").section(&section)
}

/// A Secrets Manager and a daemon that has asked it for everything once.
async fn warm(socket: &Path, lines: &str) -> (FakeAws, Daemon) {
    let aws = FakeAws::start();
    for index in 0..SECRETS {
        aws.put(&format!("hot/{index}"), format!("value of {index}").as_str());
    }
    let daemon = setup(&aws, socket, lines).start().await;
    read_all(&daemon).await;
    (aws, daemon)
}

async fn read_all(daemon: &Daemon) {
    for index in 0..SECRETS {
        let answer = daemon.get(&format!("/secret/hot/{index}")).await;
        assert_eq!((answer.status, answer.text()), (200, format!("value of {index}").as_str()));
    }
}

/// Reads on and on, over one connection for as long as the daemon keeps it or over a new one each time; returns how often.
async fn read_until(over: Arc<AtomicBool>, address: Address, keeps_alive: bool) -> usize {
    let mut kept = None;
    let mut reads = 0;
    while !over.load(Ordering::Relaxed) {
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => Connection::open(&address).await.expect("nobody listens"),
        };
        let index = reads % SECRETS;
        let answer = connection.get(&format!("/secret/hot/{index}"), &[]).await.expect("a read failed");
        assert_eq!((answer.status, answer.text()), (200, format!("value of {index}").as_str()));
        reads += 1;
        if keeps_alive && answer.header("connection") != "close" {
            kept = Some(connection);
        }
    }
    reads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_in_a_row_under_load_fail_no_read_and_cost_no_call() {
    let (_private, socket) = private();
    let (aws, mut daemon) = warm(&socket, "").await;
    let (calls, held_since) = (aws.calls(), Instant::now());
    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for (address, keeps_alive) in
        [(daemon.unix(), true), (daemon.unix(), false), (daemon.tcp(), true), (daemon.tcp(), false)]
    {
        clients.spawn(read_until(Arc::clone(&over), address, keeps_alive));
    }
    for round in 0..20 {
        let mut old = daemon.replace(&[]);
        daemon.logs(TAKEN).await;
        let status = old.exit().await;
        assert_eq!(status.code(), Some(0), "round {round}: {}", old.log());
        assert!(old.log().contains("the values in memory are wiped"));
    }
    over.store(true, Ordering::Relaxed);
    let reads = clients.join_all().await;
    assert!(reads.iter().all(|reads| *reads > 20), "{reads:?}");
    assert_eq!(aws.calls(), calls, "everything was held all the time");
    let least_age = held_since.elapsed().as_secs();
    let answer = daemon.get("/secret/hot/0").await;
    assert!(answer.header("cache-status").starts_with("smcached; hit"), "{answer:?}");
    let age: u64 = answer.header("age").parse().unwrap();
    assert!(age >= least_age, "no value has become younger: {answer:?}");
    assert_eq!(daemon.metric("smcached_cache_entries").await, SECRETS as u64);
    // The last one owns what the first one made.
    daemon.signal("TERM");
    assert_eq!(daemon.exit().await.code(), Some(0));
    assert!(!daemon.path("s.sock").exists() && !socket.exists());
}

#[tokio::test]
async fn a_process_with_another_source_takes_the_listeners_and_starts_cold() {
    let (_private, socket) = private();
    let (aws, mut daemon) = warm(&socket, "").await;
    let calls = aws.calls();
    daemon.rewrite_config(|text| text.replace("us-west-2", "us-east-1"));
    let mut old = daemon.replace(&[]);
    daemon.logs(TAKEN).await;
    assert!(daemon.log().contains("the two have another source: region differ"), "{}", daemon.log());
    assert!(daemon.log().contains("starting cold"));
    assert_eq!(old.exit().await.code(), Some(0));
    assert_eq!(aws.calls(), calls);
    daemon.get("/secret/hot/0").await;
    assert_eq!(aws.calls(), calls + 1);
}

#[tokio::test]
async fn secrets_of_a_file_are_read_anew() {
    let (_private, socket) = private();
    let file = |value: &str| format!("[[secret]]\nname = \"a/b\"\nstring = \"{value}\"\n");
    let section = format!("[process]\ntakeover = \"{}\"", socket.display());
    let mut daemon = Setup::with_file(&file("the first value")).section(&section).start().await;
    assert_eq!(daemon.get("/secret/a/b").await.text(), "the first value");
    fs::write(daemon.path("secrets.toml"), file("the second value")).unwrap();
    let mut old = daemon.replace(&[]);
    daemon.logs(TAKEN).await;
    assert_eq!(old.exit().await.code(), Some(0));
    assert_eq!(daemon.get("/secret/a/b").await.text(), "the second value");
}

#[tokio::test]
async fn one_that_dies_before_it_is_ready_leaves_the_old_one_as_it_was() {
    let (_private, socket) = private();
    let (aws, mut daemon) = warm(&socket, "").await;
    aws.put("slow", "y");
    for signal in ["KILL", "TERM"] {
        let over = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for (address, keeps_alive) in [(daemon.unix(), false), (daemon.tcp(), true)] {
            clients.spawn(read_until(Arc::clone(&over), address, keeps_alive));
        }
        let config = fs::read_to_string(daemon.path("smcached.toml")).unwrap();
        aws.set_latency(Duration::from_secs(30));
        daemon.rewrite_config(|text| {
            text.replace("[cache]", "[cache]\npreload = [\"slow\"]\npreload_timeout = \"1m\"")
        });
        let old = daemon.replace(&[]);
        daemon.logs("what the old process held is held here").await;
        old.logs("another process is about to take over").await;
        daemon.signal(signal);
        daemon.exit().await;
        aws.set_latency(Duration::ZERO);
        let failed = daemon.swap(old);
        daemon.logs("this one goes on as before").await;
        drop(failed);
        over.store(true, Ordering::Relaxed);
        clients.join_all().await;
        read_all(&daemon).await;
        assert!(daemon.path("s.sock").exists(), "{signal}");
        daemon.rewrite_config(|_| config);
        // Nothing is left of it that another one could not take over.
        let mut old = daemon.replace(&[]);
        daemon.logs(TAKEN).await;
        assert_eq!(old.exit().await.code(), Some(0));
        read_all(&daemon).await;
    }
}

#[tokio::test]
async fn one_that_is_to_wait_serves_nobody_and_ends_when_told() {
    let (_private, socket) = private();
    let (aws, mut daemon) = warm(&socket, "after_takeover = \"wait\"").await;
    let calls = aws.calls();
    let mut old = daemon.replace(&[]);
    daemon.logs(TAKEN).await;
    old.logs("waiting to be told to end").await;
    read_all(&daemon).await;
    daemon.wait_ready().await;
    assert!(old.is_running() && old.log().contains("the values in memory are wiped"));
    old.signal("TERM");
    assert_eq!(old.exit().await.code(), Some(0));
    read_all(&daemon).await;
    assert_eq!(aws.calls(), calls);
}

#[tokio::test]
async fn one_that_waits_is_there_again_when_the_other_one_ends() {
    let (_private, socket) = private();
    let (_aws, mut daemon) = warm(&socket, "after_takeover = \"wait\"").await;
    for signal in ["TERM", "KILL"] {
        let old = daemon.replace(&[]);
        daemon.logs(TAKEN).await;
        old.logs("waiting to be told to end").await;
        daemon.signal(signal);
        daemon.exit().await;
        let ended = daemon.swap(old);
        // As the same process: nobody has to start it.
        daemon.logs("the process that has taken over has ended").await;
        daemon.wait_ready().await;
        read_all(&daemon).await;
        drop(ended);
    }
}

#[tokio::test]
async fn a_socket_that_somebody_has_removed_is_made_again() {
    let (_private, socket) = private();
    let (aws, mut daemon) = warm(&socket, "").await;
    let calls = aws.calls();
    fs::remove_file(daemon.path("s.sock")).unwrap();
    fs::remove_file(daemon.path(".s.sock.lock")).unwrap();
    let mut old = daemon.replace(&[]);
    daemon.logs(TAKEN).await;
    assert!(daemon.log().contains("somebody has removed the socket of the old process"), "{}", daemon.log());
    assert_eq!(old.exit().await.code(), Some(0));
    read_all(&daemon).await;
    let over_unix = Connection::open(&daemon.unix()).await.unwrap().get("/secret/hot/0", &[]).await.unwrap();
    assert_eq!(over_unix.text(), "value of 0");
    assert_eq!(aws.calls(), calls);
    // It is the new one's to remove.
    daemon.signal("TERM");
    assert_eq!(daemon.exit().await.code(), Some(0));
    assert!(!daemon.path("s.sock").exists());
}

#[tokio::test]
async fn one_that_waits_has_forgotten_what_it_held() {
    if !is_root("read the memory of another process") {
        return;
    }
    let (_private, socket) = private();
    let aws = FakeAws::start();
    let values: Vec<String> =
        (0..SECRETS).map(|_| (0..500).map(|_| fastrand::alphanumeric()).collect()).collect();
    let names: Vec<String> = (0..SECRETS).map(|index| format!("long/{index}")).collect();
    for (name, value) in names.iter().zip(&values) {
        aws.put(name, value.as_str());
    }
    let mut daemon = setup(&aws, &socket, "after_takeover = \"wait\"").start().await;
    for name in &names {
        assert_eq!(daemon.get(&format!("/secret/{name}")).await.status, 200);
    }
    let old = daemon.replace(&[]);
    daemon.logs(TAKEN).await;
    old.logs("waiting to be told to end").await;
    let canaries = Canaries::new(names.iter().zip(&values).map(|(name, value)| (&**name, value.as_bytes())));
    let held = canaries.find_in(daemon.pid());
    assert!(names.iter().all(|name| held.iter().any(|found| found.is_of(name))), "the next one holds them");
    eventually("nothing of them is left in the old one", PATIENCE, async || {
        canaries.find_in(old.pid()).is_empty()
    })
    .await;
}

#[tokio::test]
async fn of_another_network_only_unix_sockets_are_taken_over() {
    if !is_root("give a process a network of its own") {
        return;
    }
    let (_private, socket) = private();
    let (aws, mut daemon) = warm(&socket, "").await;
    let calls = aws.calls();
    let mut old = daemon.replace(&IN_A_NETWORK_OF_ITS_OWN);
    daemon.logs(TAKEN).await;
    assert_eq!(old.exit().await.code(), Some(0));
    read_all(&daemon).await;
    assert_eq!(aws.calls(), calls);
    for address in [daemon.tcp(), daemon.ops()] {
        assert!(Connection::open(&address).await.is_err(), "the old one's TCP sockets are closed");
    }
}

/// Says something as another process would, and returns the answer.
fn say(stream: &mut UnixStream, message: &Value) -> Value {
    write(stream, message);
    hear(stream)
}

fn write(stream: &mut UnixStream, message: &Value) {
    let body = message.to_string();
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    stream.write_all(&[&length[..], body.as_bytes()].concat()).unwrap();
}

fn hear(stream: &mut UnixStream) -> Value {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

#[tokio::test]
async fn what_the_other_could_not_read_is_withheld() {
    let (_private, socket) = private();
    let (_aws, daemon) = warm(&socket, "").await;
    let claim =
        |protocol, format| json!({"protocol": protocol, "version": "9", "format": format, "source": {}});
    let mut later = UnixStream::connect(&socket).unwrap();
    let reply = say(&mut later, &claim(1, 99));
    let reason = reply["Granted"]["withheld"].as_str().unwrap();
    assert!(reason.contains("its format is 99"), "{reply}");
    drop(later);
    daemon.logs("this one goes on as before").await;
    let mut later = UnixStream::connect(&socket).unwrap();
    let reply = say(&mut later, &claim(99, 1));
    assert!(reply["Refused"]["reason"].as_str().unwrap().contains("version 99"), "{reply}");
    let mut garbage = UnixStream::connect(&socket).unwrap();
    garbage.write_all(&[0xff; 64]).unwrap();
    daemon.logs("the message is too long").await;
    read_all(&daemon).await;
}

#[tokio::test]
async fn a_process_that_gets_nothing_says_why_and_starts_cold() {
    let (_private, socket) = private();
    let listener = UnixListener::bind(&socket).unwrap();
    let aws = FakeAws::start();
    aws.put("db", "x");
    let refusing = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let claim = hear(&mut stream);
        write(&mut stream, &json!({"Refused": {"reason": "it is too new"}}));
        (claim, listener)
    });
    let daemon = setup(&aws, &socket, "").start().await;
    let (claim, _listener) = refusing.join().unwrap();
    assert_eq!((&claim["protocol"], &claim["format"]), (&json!(1), &json!(1)));
    for text in ["it is too new", "starting cold", "nothing can take over from this one"] {
        assert!(daemon.log().contains(text), "{text}: {}", daemon.log());
    }
    assert_eq!(daemon.get("/secret/db").await.status, 200);
}

#[tokio::test]
async fn another_user_gets_nothing() {
    if !is_root("become another user") {
        return;
    }
    let (private, socket) = private();
    let (_aws, daemon) = warm(&socket, "").await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    // As if somebody had opened all doors.
    fs::set_permissions(private.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    let script = "import json, socket, struct, sys\n\
                  s = socket.socket(socket.AF_UNIX)\n\
                  s.connect(sys.argv[1])\n\
                  claim = json.dumps({'protocol': 1, 'version': '1', 'format': 1, 'source': {}}).encode()\n\
                  try:\n    s.sendall(struct.pack('<I', len(claim)) + claim)\n    print(len(s.recv(1)))\n\
                  except OSError: print(0)\n";
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", script])
        .arg(&socket)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "{output:?}");
    daemon.logs("a process of another user would take over; it gets nothing").await;
    read_all(&daemon).await;
}

#[tokio::test]
async fn a_directory_that_others_may_enter_is_refused() {
    let (private, socket) = private();
    fs::set_permissions(private.path(), Permissions::from_mode(0o755)).unwrap();
    let aws = FakeAws::start();
    let mut daemon = setup(&aws, &socket, "").launch();
    assert_eq!(daemon.exit().await.code(), Some(1));
    assert!(daemon.log().contains("nobody else may enter it (mode 0700)"), "{}", daemon.log());
}
