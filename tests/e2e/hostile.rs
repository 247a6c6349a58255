//! Requests that no honest client sends, byte by byte.

use std::time::Duration;

use crate::support::client::Connection;
use crate::support::daemon::{Daemon, Setup};

async fn daemon() -> Daemon {
    Setup::with_file("[[secret]]\nname = \"a/b\"\nstring = \"hunter2-hunter2\"\n")
        .tcp("token = \"none\"")
        .start()
        .await
}

#[tokio::test]
async fn ambiguous_or_malformed_requests_never_get_a_secret() {
    let daemon = daemon().await;
    let long = "x".repeat(20_000);
    let many: String = (0..200).map(|index| format!("h{index}: x\r\n")).collect();
    let cases: &[(&str, String)] = &[
        ("no Host", "GET /secret/a/b HTTP/1.1\r\n\r\n".to_owned()),
        ("two Hosts", "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".to_owned()),
        ("a foreign Host", "GET /secret/a/b HTTP/1.1\r\nHost: evil.example\r\n\r\n".to_owned()),
        (
            "another authority",
            "GET http://evil.example/secret/a/b HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned(),
        ),
        (
            "length and chunks",
            "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
        ),
        (
            "two lengths",
            "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx".to_owned(),
        ),
        ("a body", "GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello".to_owned()),
        ("CONNECT", "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n".to_owned()),
        ("raw UTF-8", "GET /secret/a/b\u{e9} HTTP/1.1\r\nHost: localhost\r\n\r\n".to_owned()),
        ("a long path", format!("GET /secret/a/{long} HTTP/1.1\r\nHost: localhost\r\n\r\n")),
        ("a long header", format!("GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n")),
        ("many headers", format!("GET /secret/a/b HTTP/1.1\r\nHost: localhost\r\n{many}\r\n")),
        ("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}".to_owned() + &"\0".repeat(64)),
        ("nonsense", "hello\r\n\r\n".to_owned()),
    ];
    for (what, bytes) in cases {
        let mut connection = Connection::open(&daemon.tcp()).await.unwrap();
        connection.send(bytes.as_bytes()).await.unwrap();
        // Or the connection is closed without a word, which HTTP allows for what is not HTTP.
        if let Ok(Some(answer)) = connection.answer(false).await {
            assert!((400..500).contains(&answer.status) || answer.status == 505, "{what}: {answer:?}");
            assert!(!String::from_utf8_lossy(&answer.body).contains("hunter2-hunter2"), "{what}");
        }
        assert_eq!(daemon.get("/secret/a/b").await.text(), "hunter2-hunter2", "after {what}");
    }
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
