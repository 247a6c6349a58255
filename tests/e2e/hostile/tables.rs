//! One message a row, and what becomes of it.

#![allow(clippy::too_many_lines, reason = "a table is as long as it is")]

use super::Then::{Closed, Open};
use super::{Then, bytes, check_next, daemon, exchange, host, read};

const CALL: &str = "{\"SecretId\": \"a/b\"}";

/// A read of this target.
fn target(target: &str) -> Vec<u8> {
    bytes(&format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

/// A read that begins with this line.
fn line(line: &str) -> Vec<u8> {
    bytes(&format!("{line}\r\nHost: localhost\r\n\r\n"))
}

/// A call of AWS's protocol, with these header lines and this body.
fn post(headers: &str, body: &str) -> Vec<u8> {
    bytes(&format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: secretsmanager.GetSecretValue\r\n{headers}\r\n{body}"
    ))
}

/// The same in chunks.
fn chunks(body: &str) -> Vec<u8> {
    post("Transfer-Encoding: chunked\r\n", body)
}

fn many_headers(count: usize) -> String {
    (0..count).map(|index| format!("h{index}: x\r\n")).collect()
}

#[tokio::test]
async fn what_is_no_http_is_refused_without_a_word_and_hung_up_on() {
    let long = "x".repeat(20_000);
    // hyper answers these by itself: a status, no body, and the end. 0: not even that.
    let cases: Vec<(&str, Vec<u8>, u16)> = vec![
        ("differing lengths", read("Content-Length: 0\r\nContent-Length: 1\r\n"), 400),
        ("a list of lengths", post("Content-Length: 2, 2\r\n", "{}"), 400),
        ("a length with a plus", read("Content-Length: +0\r\n"), 400),
        ("a length with a minus", read("Content-Length: -1\r\n"), 400),
        ("a length in hexadecimal", read("Content-Length: 0x0\r\n"), 400),
        ("a length with a space", read("Content-Length: 0 0\r\n"), 400),
        ("no length", read("Content-Length:\r\n"), 400),
        ("a length over 64 bits", read("Content-Length: 18446744073709551616\r\n"), 400),
        ("the greatest length", read("Content-Length: 18446744073709551615\r\n"), 431),
        ("chunked and then identity", post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"), 400),
        (
            "the same in two lines",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", ""),
            400,
        ),
        ("identity", read("Transfer-Encoding: identity\r\n"), 400),
        ("no coding", post("Transfer-Encoding:\r\n", ""), 400),
        ("another coding", post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"), 400),
        ("a quoted coding", post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"), 400),
        ("a coding after a vertical tab", post("Transfer-Encoding: \u{b}chunked\r\n", "0\r\n\r\n"), 400),
        ("a coding's name and a space", post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"), 400),
        (
            "chunks in HTTP/1.0",
            bytes("POST / HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("a head over 16 KiB", read(&format!("X: {long}\r\n")), 431),
        ("101 headers", read(&many_headers(100)), 431),
        ("a space in a name", read("X Y: z\r\n"), 400),
        ("a space after a name", read("X : z\r\n"), 400),
        ("a nul in a name", read("X\0Y: z\r\n"), 400),
        ("UTF-8 in a name", read("X\u{c3}\u{a9}: z\r\n"), 400),
        ("no name", read(": z\r\n"), 400),
        ("no colon", read("nocolon\r\n"), 400),
        ("a folded line", read("X: a\r\n b\r\n"), 400),
        ("a line folded by a tab", read("X: a\r\n\tb\r\n"), 400),
        ("a folded Host", host("Host:\r\n localhost\r\n"), 400),
        ("a line before the headers that is folded", host(" X: y\r\nHost: localhost\r\n"), 400),
        ("a CR in a value", read("X: a\rb\r\n"), 400),
        ("a CR at the end of a line", host("Host: localhost\rX: y\r\n"), 400),
        ("two CRs at the end of a line", host("Host: localhost\r\r\n"), 400),
        ("a nul in a value", read("X: a\0b\r\n"), 400),
        ("a control character in a value", read("X: a\u{1}b\r\n"), 400),
        ("a nul in Host", host("Host: local\0host\r\n"), 400),
        ("one nul", bytes("\0"), 400),
        ("a target without a host", target("http:///secret/a/b"), 400),
        ("an overlong slash as it is", target("/secret/a\u{c0}\u{af}b"), 400),
        ("Latin-1 in a target", target("/secret/a/b\u{e9}"), 400),
        ("a nul in a target", target("/secret/a/b\0"), 400),
        ("a tab in a target", target("/secret/a/b\tx"), 400),
        ("a space in a target", target("/secret/a b"), 400),
        ("a target over 16 KiB", target(&format!("/secret/a/{}", "x".repeat(16 << 10))), 431),
        ("a target over 64 KiB", target(&format!("/secret/a/{}", "x".repeat(64 << 10))), 431),
        ("a method that is no word", line("G@T /secret/a/b HTTP/1.1"), 400),
        ("no method", line(" /secret/a/b HTTP/1.1"), 400),
        ("a method over 16 KiB", line(&format!("{long} /secret/a/b HTTP/1.1")), 431),
        ("two spaces", line("GET  /secret/a/b HTTP/1.1"), 400),
        ("two spaces before the version", line("GET /secret/a/b  HTTP/1.1"), 400),
        ("tabs", line("GET\t/secret/a/b\tHTTP/1.1"), 400),
        ("HTTP/0.9", bytes("GET /secret/a/b\r\n"), 400),
        ("HTTP/0.9 by name", line("GET /secret/a/b HTTP/0.9"), 400),
        ("HTTP/1.2", line("GET /secret/a/b HTTP/1.2"), 400),
        ("HTTP/2.0", line("GET /secret/a/b HTTP/2.0"), 400),
        ("a version in lower case", line("GET /secret/a/b http/1.1"), 400),
        ("a version and more", line("GET /secret/a/b HTTP/1.1x"), 400),
        ("the preface of HTTP/2", bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0"), 0),
        (
            "a TLS hello",
            bytes(&format!("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}\u{fc}\u{3}\u{3}{}", "\0".repeat(64))),
            400,
        ),
        ("nonsense", bytes("hello\r\n\r\n"), 400),
    ];
    let daemon = daemon().await;
    for (what, bytes, status) in cases {
        for address in [daemon.unix(), daemon.tcp()] {
            let answers = exchange(&address, &bytes, usize::from(status > 0), Closed, what).await;
            for answer in answers {
                assert_eq!((answer.status, answer.text()), (status, ""), "{what} over {address:?}");
            }
        }
        check_next(&daemon, what).await;
    }
}

#[tokio::test]
async fn what_is_http_and_not_for_us_is_refused_with_its_reason() {
    let cases: Vec<(&str, Vec<u8>, u16, &str, Then)> = vec![
        // hyper drops the length, as RFC 9112 section 6.1 allows; it is a body all the same.
        (
            "a length and chunks",
            read("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"),
            413,
            "body_not_accepted",
            Closed,
        ),
        (
            "chunks and a length, with a call",
            post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"),
            400,
            "SerializationException",
            Closed,
        ),
        ("a body", read("Content-Length: 5\r\n\r\nhello"), 413, "body_not_accepted", Closed),
        (
            "a body in chunks",
            read("Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"),
            413,
            "body_not_accepted",
            Closed,
        ),
        (
            "no body in chunks",
            read("Transfer-Encoding: chunked\r\n\r\n0\r\n"),
            413,
            "body_not_accepted",
            Closed,
        ),
        (
            "two codings",
            post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n"),
            400,
            "ValidationException",
            Closed,
        ),
        (
            "chunked twice",
            post("Transfer-Encoding: chunked, chunked\r\n", "0\r\n\r\n"),
            400,
            "ValidationException",
            Closed,
        ),
        (
            "chunked twice, in two lines",
            post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            400,
            "ValidationException",
            Closed,
        ),
        (
            "a chunk's size that is none",
            chunks("zz\r\n{}\r\n0\r\n\r\n"),
            400,
            "SerializationException",
            Closed,
        ),
        ("a negative chunk", chunks("-1\r\n{}\r\n0\r\n\r\n"), 400, "SerializationException", Closed),
        (
            "a chunk's size with a plus",
            chunks("+2\r\n{}\r\n0\r\n\r\n"),
            400,
            "SerializationException",
            Closed,
        ),
        ("a chunk's size with 0x", chunks("0x2\r\n{}\r\n0\r\n\r\n"), 400, "SerializationException", Closed),
        (
            "a chunk over 64 bits",
            chunks("10000000000000002\r\n{}\r\n0\r\n\r\n"),
            400,
            "SerializationException",
            Closed,
        ),
        ("a chunk without a size", chunks("\r\n{}\r\n0\r\n\r\n"), 400, "SerializationException", Closed),
        ("a space before a size", chunks(" 2\r\n{}\r\n0\r\n\r\n"), 400, "SerializationException", Closed),
        ("a chunk without an end", chunks("2\r\n{}0\r\n\r\n"), 400, "SerializationException", Closed),
        ("chunks with bare LF", chunks("2\n{}\n0\n\n"), 400, "SerializationException", Closed),
        (
            "an LF in a chunk's extension",
            chunks("2;a\nb\r\n{}\r\n0\r\n\r\n"),
            400,
            "SerializationException",
            Closed,
        ),
        (
            "a long extension",
            chunks(&format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "a".repeat(20_000))),
            400,
            "SerializationException",
            Closed,
        ),
        (
            "many trailers",
            chunks(&format!("2\r\n{{}}\r\n0\r\n{}\r\n", "x: y\r\n".repeat(2000))),
            400,
            "SerializationException",
            Closed,
        ),
        (
            "a trailer that is none",
            chunks("2\r\n{}\r\n0\r\nnocolon\r\n\r\n"),
            400,
            "SerializationException",
            Closed,
        ),
        (
            "1 MB",
            post("Content-Length: 1048576\r\n", &"x".repeat(1 << 20)),
            413,
            "RequestEntityTooLargeException",
            Closed,
        ),
        (
            "1 MB in a chunk",
            chunks(&format!("100000\r\n{}\r\n0\r\n\r\n", "x".repeat(1 << 20))),
            413,
            "RequestEntityTooLargeException",
            Closed,
        ),
        ("a call without a length", post("", ""), 400, "SerializationException", Open),
        ("no Host", host(""), 400, "malformed_request", Open),
        ("two Hosts", host("Host: localhost\r\nHost: localhost\r\n"), 400, "malformed_request", Open),
        ("two Hosts in one", host("Host: localhost, localhost\r\n"), 400, "malformed_request", Open),
        ("a user in Host", host("Host: user:pass@localhost\r\n"), 400, "malformed_request", Open),
        ("a port that is none", host("Host: localhost:http\r\n"), 400, "malformed_request", Open),
        ("a path in Host", host("Host: localhost/x\r\n"), 400, "malformed_request", Open),
        ("a backslash in Host", host("Host: localhost\\x\r\n"), 400, "malformed_request", Open),
        ("an escape in Host", host("Host: localhos%74\r\n"), 400, "malformed_request", Open),
        ("UTF-8 in Host", host("Host: l\u{c3}\u{b6}calhost\r\n"), 400, "malformed_request", Open),
        ("half an address in Host", host("Host: [::1\r\n"), 400, "malformed_request", Open),
        (
            "another host in the target",
            target("http://evil.example/secret/a/b"),
            400,
            "malformed_request",
            Open,
        ),
        ("a user in the target", target("http://user@localhost/secret/a/b"), 400, "malformed_request", Open),
        ("a target of https", target("https://localhost/secret/a/b"), 400, "malformed_request", Open),
        ("a target of ftp", target("ftp://localhost/secret/a/b"), 400, "malformed_request", Open),
        ("a host for a target", target("localhost:80"), 400, "malformed_request", Open),
        ("a target without a path", target("http://localhost"), 404, "route_not_found", Open),
        ("CONNECT", line("CONNECT localhost HTTP/1.1"), 404, "route_not_found", Open),
        ("CONNECT with a path", line("CONNECT /secret/a/b HTTP/1.1"), 405, "method_not_allowed", Open),
        ("OPTIONS *", line("OPTIONS * HTTP/1.1"), 404, "route_not_found", Open),
        ("GET *", target("*"), 404, "route_not_found", Open),
        ("TRACE", line("TRACE /secret/a/b HTTP/1.1"), 405, "method_not_allowed", Open),
        ("DELETE", line("DELETE /secret/a/b HTTP/1.1"), 405, "method_not_allowed", Open),
        ("a method in lower case", line("get /secret/a/b HTTP/1.1"), 405, "method_not_allowed", Open),
        (
            "a method of 1,000 letters",
            line(&format!("{} /secret/a/b HTTP/1.1", "X".repeat(1000))),
            405,
            "method_not_allowed",
            Open,
        ),
        ("two slashes", target("//secret/a/b"), 404, "route_not_found", Open),
        ("two slashes and a host", target("//evil.example/secret/a/b"), 404, "route_not_found", Open),
        ("an empty group", target("/secret//a/b"), 400, "empty_segment", Open),
        ("an empty segment", target("/secret/a//b"), 400, "empty_segment", Open),
        ("half an escape", target("/secret/a/b%"), 400, "invalid_percent_encoding", Open),
        ("no escape", target("/secret/a/%zz"), 400, "invalid_percent_encoding", Open),
        ("an escaped nul", target("/secret/a/b%00"), 400, "invalid_character", Open),
        ("an escaped line break", target("/secret/a/b%0d%0aX:y"), 400, "invalid_character", Open),
        ("an overlong slash", target("/secret/a%c0%afb"), 400, "invalid_utf8", Open),
        ("UTF-8 as it is", target("/secret/a/b\u{c3}\u{a9}"), 400, "invalid_character", Open),
        ("a backslash", target("/secret/a\\b"), 400, "invalid_character", Open),
        ("a semicolon", target("/secret/a/b;x=y"), 400, "invalid_character", Open),
        ("dots", target("/secret/a/../a/b"), 400, "dot_segment", Open),
        ("escaped dots", target("/secret/a/%2e%2e/a/b"), 400, "dot_segment", Open),
        ("dots between escaped slashes", target("/secret/a%2f..%2fa%2fb"), 400, "dot_segment", Open),
        ("dots that are escaped twice", target("/secret/a/%252e%252e/b"), 400, "invalid_character", Open),
        ("dots before the route", target("/ping/../secret/a/b"), 404, "route_not_found", Open),
        ("two question marks", target("/secret/a/b?x?y"), 400, "unknown_parameter", Open),
        (
            "a target of 8 KiB",
            target(&format!("/secret/a/{}", "x".repeat((8 << 10) - 10))),
            400,
            "id_too_long",
            Open,
        ),
        (
            "a target over 8 KiB",
            target(&format!("/secret/a/{}", "x".repeat((8 << 10) - 9))),
            414,
            "uri_too_long",
            Open,
        ),
    ];
    let daemon = daemon().await;
    for (what, bytes, status, code, then) in cases {
        for address in [daemon.unix(), daemon.tcp()] {
            let answers = exchange(&address, &bytes, 1, then, what).await;
            let said = answers[0].json();
            let said = said.get("code").unwrap_or(&said["__type"]);
            assert_eq!((answers[0].status, said.as_str()), (status, Some(code)), "{what} over {address:?}");
        }
        check_next(&daemon, what).await;
    }
}

#[tokio::test]
async fn what_is_odd_and_legal_is_answered() {
    let cases: Vec<(&str, Vec<u8>, &[u16], Then)> = vec![
        ("one length, twice", read("Content-Length: 0\r\nContent-Length: 0\r\n"), &[200], Open),
        ("100 headers", read(&many_headers(99)), &[200], Open),
        ("15 KB of header", read(&format!("X: {}\r\n", "x".repeat(15_000))), &[200], Open),
        ("obs-text", read("X: a\u{ff}b\r\n"), &[200], Open),
        // RFC 9112 section 2.2 lets a recipient take a bare LF for the end of a line, and has it skip empty lines.
        ("bare LF", bytes("GET /secret/a/b HTTP/1.1\nHost: localhost\n\n"), &[200], Open),
        ("empty lines before", [bytes(&"\r\n".repeat(20)), read("")].concat(), &[200], Open),
        ("an empty line after", [read(""), bytes("\r\n")].concat(), &[200], Open),
        (
            "an empty line after the last",
            [read("Connection: close\r\n"), bytes("\r\n")].concat(),
            &[200],
            Closed,
        ),
        ("an empty Host", host("Host:\r\n"), &[200], Open),
        ("a port that no host has", host("Host: localhost:99999\r\n"), &[200], Open),
        ("an absolute target", target("http://localhost/secret/a/b"), &[200], Open),
        // hyper cuts it off.
        ("a fragment", target("/secret/a/b#x"), &[200], Open),
        ("an empty query", target("/secret/a/b?"), &[200], Open),
        ("HTTP/1.0", bytes("GET /secret/a/b HTTP/1.0\r\n\r\n"), &[200], Closed),
        ("HTTP/1.0, twice", bytes(&"GET /secret/a/b HTTP/1.0\r\n\r\n".repeat(2)), &[200], Closed),
        (
            "HTTP/1.0, twice and kept",
            bytes(&"GET /secret/a/b HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".repeat(2)),
            &[200, 200],
            Open,
        ),
        ("an expectation without a body", read("Expect: 100-continue\r\n"), &[200], Open),
        ("an unknown expectation", read("Expect: 200-ok\r\n"), &[200], Open),
        (
            "an expectation with a body",
            post(&format!("Expect: 100-continue\r\nContent-Length: {}\r\n", CALL.len()), CALL),
            &[100, 200],
            Open,
        ),
        (
            "an offer of HTTP/2",
            read("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
            &[200],
            Open,
        ),
        (
            "an offer of WebSocket",
            read("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
            &[200],
            Open,
        ),
        (
            "a call in chunks",
            chunks(&format!("1;x=y\r\n{{\r\n0012\r\n{}\r\n0\r\nX: y\r\n\r\n", &CALL[1..])),
            &[200],
            Open,
        ),
        (
            "a coding after a tab",
            post("Transfer-Encoding:\tCHUNKED\r\n", &format!("13\r\n{CALL}\r\n0\r\n\r\n")),
            &[200],
            Open,
        ),
        ("a call without a length, and its body", post("", CALL), &[400, 400], Closed),
        ("ten at once", read("").repeat(10), &[200; 10], Open),
        (
            "a malformed one among others",
            [read(""), read(""), read("X Y: z\r\n"), read("")].concat(),
            &[200, 200, 400],
            Closed,
        ),
        ("one without a Host among others", [read(""), host(""), read("")].concat(), &[200, 400, 200], Open),
        (
            "one with a body among others",
            [read(""), read("Content-Length: 5\r\n\r\nhello"), read("")].concat(),
            &[200, 413],
            Closed,
        ),
        (
            "the last one among others",
            [read(""), read("Connection: close\r\n"), read("")].concat(),
            &[200, 200],
            Closed,
        ),
    ];
    let daemon = daemon().await;
    for (what, bytes, statuses, then) in cases {
        for address in [daemon.unix(), daemon.tcp()] {
            let answers = exchange(&address, &bytes, statuses.len(), then, what).await;
            let said: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
            assert_eq!(said, statuses, "{what} over {address:?}");
        }
        check_next(&daemon, what).await;
    }
}
