//! Requests that no honest client sends, byte by byte, over both kinds of socket: each has one right outcome, and after
//! each the daemon serves the next caller.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::client::{Address, Answer, Connection};
use crate::support::daemon::{Daemon, Setup};

mod tables;

const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a connection after the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It can be used again.
    Open,
    Closed,
}

use Then::{Closed, Open};

async fn daemon() -> Daemon {
    let secrets = "[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n[[secret]]\nname = \"json\"\nstring = '{\"k\\r\\n\": \"v\"}'\n";
    Setup::with_file(secrets).tcp("token = \"none\"").quiet().start().await
}

/// Each character as one byte, so that any byte can be written.
fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|character| u8::try_from(u32::from(character)).unwrap()).collect()
}

/// A read with more header lines.
fn read(headers: &str) -> Vec<u8> {
    bytes(&format!("GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"))
}

/// A read that names this host, if any.
fn host(lines: &str) -> Vec<u8> {
    bytes(&format!("GET /secret/a/b HTTP/1.1\r\n{lines}\r\n"))
}

/// Sends the bytes and takes as many answers as there should be: a 200 tells the secret, and nothing else does. Then
/// looks at the connection.
async fn exchange(address: &Address, bytes: &[u8], count: usize, then: Then, what: &str) -> Vec<Answer> {
    let mut connection = Connection::open(address).await.unwrap();
    // Whoever is refused may be hung up on while sending.
    let _ = connection.send(bytes).await;
    let mut answers = Vec::new();
    for _ in 0..count {
        let answer = connection.answer(false).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        answers.push(answer.unwrap_or_else(|| panic!("{what}: hung up on after {answers:?}")));
    }
    for answer in &answers {
        let tells = String::from_utf8_lossy(&answer.body).contains("hunter2-hunter2");
        assert_eq!(tells, answer.status == 200, "{what}: {answer:?}");
    }
    match then {
        Closed => assert!(connection.closes_within(PATIENCE).await, "{what}: still open, or more is said"),
        Open => {
            let again = connection.get("/secret/a/b", &[]).await;
            assert!(
                again.is_ok_and(|again| again.text() == "hunter2-hunter2"),
                "{what}: closed, or more is said"
            );
        }
    }
    answers
}

/// After a hostile caller comes another one.
async fn check_next(daemon: &Daemon, what: &str) {
    assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2", "after {what}");
}

#[tokio::test]
async fn over_tcp_only_a_host_of_ours_is_answered() {
    let daemon = daemon().await;
    for name in ["evil.example", "localhost.", "localhost.evil.example", "0.0.0.0", "2130706433", "[::2]"] {
        let asked = host(&format!("Host: {name}\r\n"));
        let answers = exchange(&daemon.tcp(), &asked, 1, Open, name).await;
        assert_eq!((answers[0].status, answers[0].code().as_str()), (403, "host_not_allowed"), "{name}");
    }
    // Where the header says nothing, the target does.
    for rest in ["HTTP/1.1\r\nHost:\r\n\r\n", "HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"] {
        let asked = bytes(&format!("GET http://evil.example/secret/a/b {rest}"));
        assert_eq!(exchange(&daemon.tcp(), &asked, 1, Open, rest).await[0].status, 403, "{rest}");
    }
}

#[tokio::test]
async fn nothing_that_a_caller_says_becomes_a_header_of_the_answer() {
    let daemon = daemon().await;
    let evil = "x%0d%0ax-evil:%20y%0d%0a%0d%0a";
    let cases = [
        (format!("/secret/a/b?{evil}=1"), 400),
        (format!("/secret/a/b?version_stage={evil}"), 400),
        (format!("/secret/a/b?version_id={evil}"), 400),
        (format!("/secret/a/b?wait={evil}"), 400),
        (format!("/secret/json?field={evil}"), 404),
        (format!("/secret/{evil}/{evil}"), 400),
        (format!("/v1/{evil}"), 400),
        (format!("/secretsmanager/get?secretId={evil}"), 400),
        (format!("/secretsmanager/get?{evil}=1"), 400),
        (format!("/{evil}"), 404),
    ];
    let headers = [("X-Amzn-RequestId", "evil"), ("X-Request-Id", "evil"), ("If-None-Match", "\"evil\"")];
    for (path, status) in cases {
        for address in [daemon.unix(), daemon.tcp()] {
            let mut connection = Connection::open(&address).await.unwrap();
            let answer = connection.get(&path, &headers).await.unwrap();
            assert_eq!(answer.status, status, "{path}: {answer:?}");
            for (name, value) in &answer.headers {
                assert!(
                    !name.contains("evil") && !value.contains("evil") && !value.contains('\r'),
                    "{path}: {answer:?}"
                );
            }
            let next = connection.get("/secret/a/b", &[]).await.unwrap();
            assert_eq!(next.text(), "hunter2-hunter2", "{path}: more was said than one answer");
        }
    }
    // The entity tag has the name of a field that is there.
    let answer = daemon.get("/secret/json?field=k%0d%0a").await;
    assert_eq!((answer.status, answer.text()), (200, "v"));
    assert!(answer.header("etag").ends_with("#k%0D%0A\""), "{answer:?}");
}

#[tokio::test]
async fn half_a_request_is_forgotten_and_a_slow_one_is_answered() {
    let daemon = daemon().await;
    for address in [daemon.unix(), daemon.tcp()] {
        let whole = read("");
        for end in [1, 10, whole.len() - 1] {
            let mut half = Connection::open(&address).await.unwrap();
            half.send(&whole[..end]).await.unwrap();
            drop(half);
            check_next(&daemon, "half a request").await;
        }
        let mut slow = Connection::open(&address).await.unwrap();
        for byte in &whole {
            slow.send(&[*byte]).await.unwrap();
            // Real time: each byte shall go over the socket by itself.
            sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(slow.answer(false).await.unwrap().unwrap().text(), "hunter2-hunter2");
    }
}

#[tokio::test]
async fn an_answer_is_not_held_up_by_the_beginning_of_the_next_request() {
    let daemon = daemon().await;
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    connection.send(&[read(""), bytes("GET /secret/a")].concat()).await.unwrap();
    assert_eq!(connection.answer(false).await.unwrap().unwrap().text(), "hunter2-hunter2");
    connection.send(b"/b HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(connection.answer(false).await.unwrap().unwrap().text(), "hunter2-hunter2");
}

#[tokio::test]
async fn a_body_on_a_read_is_refused_and_is_never_the_next_request() {
    let daemon = daemon().await;
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    let smuggled = "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let outer = format!(
        "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    connection.send(outer.as_bytes()).await.unwrap();
    let answer = connection.answer(false).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (413, "body_not_accepted"));
    assert!(connection.closes_within(Duration::from_secs(5)).await, "one request, one answer");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let daemon = daemon().await;
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let all: String = ["/secret/a/b", "/secret/a/none", "/ping", "/secret/a/b"].map(request).concat();
    connection.send(all.as_bytes()).await.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(connection.answer(false).await.unwrap().unwrap().status);
    }
    assert_eq!(statuses, [200, 404, 200, 200]);
}

#[tokio::test]
async fn a_request_that_arrives_byte_by_byte_is_cut_off_in_time() {
    let daemon = Setup::with_file("").section("[server]\nidle_timeout = \"300ms\"").start().await;
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    connection.send(b"GET /secret/a/b HTTP/1.1\r\nHost: lo").await.unwrap();
    assert!(connection.closes_within(Duration::from_secs(5)).await);
}
