//! Targets that send bytes all the way: HTTP, guards, routes, policy, cache, and an answer that says no more than
//! it may.

use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::Method;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::access::{Gate, Patterns, Policy, TokenFile};
use crate::audit::Audit;
use crate::cache::{Cache, CacheOptions, CallOptions, Lifetimes, Policies, Settings};
use crate::lifecycle::Readiness;
use crate::metrics::Metrics;
use crate::net::{Peer, Service, http1};
use crate::secret::{Group, Origin, Resolver, Unlisted};
use crate::server::{Rules, SecretService, Shared};
use crate::source::file::FileSource;

/// The token of the TCP listener, for seeds to present.
const TOKEN: &str = "open-sesame";

/// No request may take longer: nothing that is asked for is far away.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an answer may have for headers. A line that an input smuggled in would be another.
const HEADERS: &[&str] = &[
    "age",
    "allow",
    "cache-control",
    "cache-status",
    "connection",
    "content-length",
    "content-type",
    "etag",
    "retry-after",
    "www-authenticate",
    "x-amzn-requestid",
];

thread_local! {
    // Built once a thread: a fuzzer runs its function some thousand times a second.
    static DAEMON: Daemon = Daemon::new("public/*");
}

/// A connection's bytes, as they come.
pub fn request(data: &[u8]) {
    check(data);
}

/// What follows the `?`, in each API.
pub fn query(data: &[u8]) {
    for path in ["/secret/public/json", "/secretsmanager/get", "/v1/public/json"] {
        check(&[b"GET ", path.as_bytes(), b"?", data, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat());
    }
}

/// The headers of a read.
pub fn headers(data: &[u8]) {
    for path in ["/secret/public/json?field=user", "/secret/public/json?wait=1s", "/v1/public/text"] {
        let head = [b"GET ", path.as_bytes(), b" HTTP/1.1\r\nHost: localhost\r\n"].concat();
        check(&[&head, data, b"\r\n\r\n"].concat());
    }
}

/// The body of each operation of AWS's protocol.
pub fn sdk_body(data: &[u8]) {
    for operation in ["GetSecretValue", "BatchGetSecretValue", "DescribeSecret"] {
        let head = format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: secretsmanager.{operation}\r\nContent-Length: {}\r\n\r\n",
            data.len()
        );
        check(&[head.as_bytes(), data].concat());
    }
}

fn check(input: &[u8]) {
    DAEMON.with(|daemon| daemon.check(input));
}

/// The secret listeners of a daemon, in memory.
struct Daemon {
    runtime: Runtime,
    tcp: Arc<SecretService>,
    unix: Arc<SecretService>,
    /// The value of what may be read, and of what may not; made anew each time, so that no seed can know them.
    permitted: String,
    forbidden: String,
}

/// What went over a connection.
struct Exchange {
    /// The requests that were understood, in their order.
    methods: Vec<Method>,
    output: Vec<u8>,
}

impl Daemon {
    /// Secrets that match the pattern may be read.
    fn new(allowed: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime of one thread");
        let word = || (0..24).map(|_| fastrand::alphanumeric()).collect::<String>();
        let (permitted, forbidden) = (word(), word());
        let shared = runtime.block_on(async { Arc::new(shared(&permitted, &forbidden)) });
        let gate = |token| Gate {
            token,
            policy: Policy { allow_secrets: Some(Patterns::new(&[allowed.to_owned()])), ..Policy::default() },
            allow_roles: vec!["arn:aws:iam::123456789012:role/reader".to_owned()],
            ..Gate::default()
        };
        let http = Metrics::new().http;
        let service = |rules: Rules, label: &str| {
            let rules = Arc::new(ArcSwap::from_pointee(rules));
            Arc::new(SecretService::new(Arc::clone(&shared), rules, label.to_owned(), http.clone(), 10))
        };
        let tcp = service(Rules::new(gate(Some(token())), Some(Vec::new())), "tcp");
        let unix = service(Rules::new(gate(None), None), "unix");
        Self { runtime, tcp, unix, permitted, forbidden }
    }

    /// Sends the input to both listeners and looks at what comes back.
    fn check(&self, input: &[u8]) {
        // A fuzzer watches comparisons and learns the words by them; what it sends may be quoted to it.
        let is_known = |word: &String| tells(input, word);
        let has_token = contains(input, TOKEN.as_bytes());
        let over_tcp = self.exchange(&self.tcp, Peer::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1))), input);
        let over_unix = self.exchange(&self.unix, Peer::Unix { uid: 1000, gid: 1000, pid: None }, input);
        for exchange in [&over_tcp, &over_unix] {
            exchange.check_form();
            assert!(
                !tells(&exchange.output, &self.forbidden) || is_known(&self.forbidden),
                "a forbidden value"
            );
        }
        let is_told = tells(&over_tcp.output, &self.permitted) && !is_known(&self.permitted);
        assert!(!is_told || has_token, "a value without the token");
    }

    /// One connection, from its first byte to its end, as `net` serves it.
    fn exchange(&self, service: &Arc<SecretService>, peer: Peer, input: &[u8]) -> Exchange {
        let methods = Mutex::new(Vec::new());
        let session = service.connected(peer, Arc::default());
        let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| {
            methods.lock().unwrap_or_else(PoisonError::into_inner).push(request.method().clone());
            async {
                let now = service.call_now(&request, &session);
                Ok::<_, Infallible>(match now {
                    Some(response) => response,
                    None => service.call(request, &session).await,
                })
            }
        });
        let (client, server) = tokio::io::duplex(64 << 10);
        let connection = http1()
            // All is sent at once, and the answers are wanted all the same.
            .half_close(true)
            .serve_connection(TokioIo::new(server), answer);
        let output = self.runtime.block_on(async {
            let (mut from, mut to) = tokio::io::split(client);
            let send = async {
                // Whoever is refused may be hung up on.
                let _ = to.write_all(input).await;
                let _ = to.shutdown().await;
            };
            let mut output = Vec::new();
            let exchange = async {
                // An error of the connection is the sender's.
                let (_, read, ()) = tokio::join!(connection, from.read_to_end(&mut output), send);
                read.expect("memory can be read");
            };
            tokio::time::timeout(PATIENCE, exchange).await.expect("the connection hangs");
            output
        });
        Exchange { methods: methods.into_inner().unwrap_or_else(PoisonError::into_inner), output }
    }
}

impl Exchange {
    /// The output is a sequence of whole answers, one a request at most, and says nothing of its own but that.
    fn check_form(&self) {
        let mut rest = self.output.as_slice();
        let mut methods = self.methods.iter();
        let mut refusals = 0;
        while !rest.is_empty() {
            let end = rest.windows(4).position(|window| window == b"\r\n\r\n").expect("half a head");
            let head = std::str::from_utf8(&rest[..end]).expect("a head that is not text");
            rest = &rest[end + 4..];
            let mut lines = head.split("\r\n");
            let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.")).map(|line| &line[2..5]);
            let status = status.unwrap_or_default();
            if status == "100" {
                continue;
            }
            assert!(status != "500", "a defect: {head}");
            // hyper answers by itself to what is not HTTP, and hangs up.
            let method = methods.next();
            refusals += usize::from(method.is_none());
            assert!(refusals <= 1, "more answers than requests");
            let mut length = 0;
            for line in lines {
                let (name, value) = line.split_once(": ").expect("a header line without a value");
                assert!(HEADERS.contains(&name), "an unknown header: {line}");
                assert!(value.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()), "{line:?}");
                if name == "content-length" {
                    length = value.parse().expect("a length");
                }
            }
            if method != Some(&Method::HEAD) && status != "304" {
                rest = rest.get(length..).expect("half a body");
            }
        }
    }
}

/// Whether the text is in the output, be it in the base64 of a value that is nothing else.
fn tells(output: &[u8], word: &str) -> bool {
    contains(output, word.as_bytes()) || contains(output, STANDARD.encode(word).as_bytes())
}

fn contains(output: &[u8], word: &[u8]) -> bool {
    // The first byte by itself: a sanitizer's comparison of slices is what a run would spend its time on.
    output.windows(word.len()).any(|window| window[0] == word[0] && window == word)
}

/// What the listeners share: secrets in every form, under `public/` and `private/`.
fn shared(permitted: &str, forbidden: &str) -> Shared {
    let source = FileSource::of_text(&[secrets("public", permitted), secrets("private", forbidden)].concat());
    let source = Arc::new(source.expect("they are well formed"));
    let group = |name: &str, prefix: &str| Group {
        name: name.into(),
        prefix: prefix.to_owned(),
        origin: Origin::default(),
        ttl: None,
        fallback_regions: Vec::new(),
    };
    let groups = [group("open", "public/"), group("closed", "private/")];
    let resolver = Arc::new(Resolver::new(groups, Unlisted::Allow));
    let metrics = Metrics::new();
    let lifetimes = Lifetimes {
        ttl: Duration::from_mins(5),
        stale_while_revalidate: Duration::from_mins(1),
        stale_if_error: Duration::from_hours(1),
    };
    let settings = Settings {
        options: CacheOptions {
            lifetimes,
            negative_ttl: Duration::from_secs(1),
            idle_timeout: Duration::ZERO,
            fetch_timeout: Duration::from_secs(3),
            revalidate_timeout: Duration::from_millis(250),
            max_bytes: 1 << 20,
        },
        // A fuzzer asks more often than any task, and is not to be told to wait.
        calls: CallOptions {
            fetch_timeout: Duration::from_secs(3),
            max_attempts: 1,
            max_concurrency: 1000,
            rate: 10_000_000,
            rate_per_caller: 10_000_000,
            batch: false,
        },
        policies: Policies::new(Arc::clone(&resolver), lifetimes, &metrics.cache),
    };
    let readiness = Readiness::default();
    // So that nobody waits for a change that never comes.
    readiness.start_draining();
    Shared::new(
        Cache::new(source, settings, metrics),
        resolver,
        readiness,
        Some("us-east-1".to_owned()),
        Audit::off(),
    )
}

fn secrets(prefix: &str, value: &str) -> String {
    let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
    format!(
        r#"
        [[secret]]
        name = "{prefix}/text"
        [[secret.version]]
        id = "v1"
        stages = ["AWSCURRENT"]
        string = "{value}"
        [[secret.version]]
        id = "v0"
        stages = ["AWSPREVIOUS"]
        string = "{value}"
        [[secret]]
        name = "{prefix}/json"
        string = '{{"user": "{value}", "list": [1.10, {{"a/b": "{value}"}}]}}'
        [[secret]]
        name = "{prefix}/binary"
        binary = "{}"
        [[secret]]
        arn = "{arn}{prefix}/arn-AbCdEf"
        string = "{value}"
        "#,
        STANDARD.encode(value)
    )
}

/// From a file that is there for a moment only: a token has no other way in.
fn token() -> Arc<TokenFile> {
    let name = format!("smcached-fuzzing-{}-{:016x}", std::process::id(), fastrand::u64(..));
    let path = std::env::temp_dir().join(name);
    fs::write(&path, TOKEN).expect("a file in the temporary directory");
    let token = TokenFile::open(&path);
    let _ = fs::remove_file(&path);
    Arc::new(token.expect("it was just written"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &[u8] = b"GET /secret/private/text HTTP/1.1\r\nHost: localhost\r\n\r\n";

    #[test]
    fn who_may_read_is_told_the_value() {
        let daemon = Daemon::new("public/*");
        for path in [
            "/secret/public/text",
            "/secret/open/json",
            "/secret/public/binary",
            "/v1/arn:aws:secretsmanager:us-west-2:123456789012:secret:public/arn-AbCdEf",
        ] {
            let input = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nX-Vault-Token: {TOKEN}\r\n\r\n");
            let peer = Peer::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
            let exchange = daemon.exchange(&daemon.tcp, peer, input.as_bytes());
            assert!(
                tells(&exchange.output, &daemon.permitted),
                "{}",
                String::from_utf8_lossy(&exchange.output)
            );
            daemon.check(input.as_bytes());
        }
    }

    #[test]
    #[should_panic(expected = "a forbidden value")]
    fn a_value_that_gets_out_is_noticed() {
        Daemon::new("*").check(READ);
    }

    #[test]
    #[should_panic(expected = "a value without the token")]
    fn a_value_that_needs_no_token_is_noticed() {
        let mut daemon = Daemon::new("public/*");
        daemon.tcp = Arc::clone(&daemon.unix);
        daemon.check(b"GET /secret/public/binary HTTP/1.1\r\nHost: localhost\r\n\r\n");
    }

    #[test]
    #[should_panic(expected = "an unknown header")]
    fn a_header_that_was_smuggled_in_is_noticed() {
        let output = b"HTTP/1.1 200 OK\r\netag: x\r\nset-cookie: y\r\n\r\n".to_vec();
        Exchange { methods: vec![Method::GET], output }.check_form();
    }

    #[test]
    #[should_panic(expected = "more answers than requests")]
    fn an_answer_within_an_answer_is_noticed() {
        let output = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".repeat(3);
        Exchange { methods: vec![Method::GET], output }.check_form();
    }
}
