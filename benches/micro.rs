//! What the parts of a cached read cost, in time and in allocations: `cargo bench --bench micro [-- NAME]`.
//!
//! The parts one by one, then the whole of it from the bytes of a request to those of its answer, over a pipe in memory.
//! What hyper and the pipe have of that is shown beside it. Whether a change is felt, `floor` says, which drives the
//! daemon itself.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on says where")]

#[path = "../tests/support/in_process.rs"]
mod in_process;

use std::alloc::System;
use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use divan::{AllocProfiler, Bencher, black_box};
use futures_util::future::Either;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use smcached::access::{Gate, Patterns, Policy, Rule, User};
use smcached::cache::{Cache, Demand};
use smcached::net::{Activity, Service};
use smcached::secret::{Group, Origin, Resolver, SecretKey, SecretPath, Unlisted, VersionSelector};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::Runtime;
use zeroizing_alloc::ZeroAlloc;

/// Counts what goes through the daemon's own allocator.
#[global_allocator]
static ALLOCATOR: AllocProfiler<ZeroAlloc<System>> = AllocProfiler::new(ZeroAlloc(System));

const SIZES: [usize; 2] = [200, 64 << 10];
const USER: User = User { uid: 1000, gid: 1000 };

fn main() {
    divan::main();
}

#[divan::bench(args = ["team-a/db", "team-a/db%2Fmain", ARN], sample_size = 1000)]
fn parse_path(raw: &str) -> SecretPath {
    SecretPath::parse(black_box(raw)).unwrap()
}

/// As a caller of Flyte's spells it.
const ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:/team-a/db-AbCdEf";

#[divan::bench(args = ["team-a/db", "other/db", ARN], sample_size = 1000)]
fn resolve(bencher: Bencher<'_, '_>, raw: &str) {
    let resolver = resolver();
    bencher
        .with_inputs(|| SecretPath::parse(raw).unwrap())
        .bench_values(|path| resolver.resolve(path, VersionSelector::current()).unwrap());
}

/// A listener's own list, and five rules, the last of which lets the reader pass.
#[divan::bench(args = ["team-a/db", ARN], sample_size = 1000)]
fn policy(bencher: Bencher<'_, '_>, raw: &str) {
    let (gate, key) = (gate(), key(raw));
    bencher.bench(|| gate.may_ask(Some(USER), black_box(&key)).unwrap());
}

#[divan::bench(sample_size = 1000)]
fn lookup_of_what_is_held(bencher: Bencher<'_, '_>) {
    let (runtime, cache) = runtime_and_cache();
    let (key, demand) = (key("bench/200"), Demand::default());
    runtime.block_on(cache.read(&key, &demand)).unwrap();
    // Not the runtime's own way in and out of it.
    let _inside = runtime.enter();
    bencher.bench_local(|| {
        let read = std::pin::pin!(cache.read(black_box(&key), &demand));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match read.poll(&mut context) {
            std::task::Poll::Ready(answer) => answer.unwrap(),
            std::task::Poll::Pending => panic!("what is held is there at once"),
        }
    });
}

#[divan::bench(args = SIZES)]
fn whole_answer(bencher: Bencher<'_, '_>, size: usize) {
    let (runtime, cache) = runtime_and_cache();
    let service = Arc::new(in_process::service(cache, resolver()));
    let session = Arc::new(service.connected(in_process::PEER, Arc::<Activity>::default()));
    // As `net` calls it.
    let answer = move |request| match service.call_now(&request, &session) {
        Some(response) => Either::Left(ready(response)),
        None => {
            let (service, session) = (Arc::clone(&service), Arc::clone(&session));
            Either::Right(async move { service.call(request, &session).await })
        }
    };
    exchange(bencher, &runtime, answer, &format!("/secret/bench/{size}"), size);
}

/// The same way, with nobody who thinks at its end.
#[divan::bench(args = SIZES)]
fn whole_answer_of_bare_hyper(bencher: Bencher<'_, '_>, size: usize) {
    let body = Bytes::from(vec![b'x'; size]);
    let answer = move |_| ready(Response::new(Full::new(body.clone())));
    exchange(bencher, &runtime(), answer, "/", size);
}

/// One request after another over one connection, each answered with a body of so many bytes.
fn exchange<F: Future<Output = Response<Full<Bytes>>> + Send + 'static>(
    bencher: Bencher<'_, '_>,
    runtime: &Runtime,
    answer: impl Fn(Request<Incoming>) -> F + Send + 'static,
    path: &str,
    size: usize,
) {
    let (mut client, server) = tokio::io::duplex(256 << 10);
    let answer = service_fn(move |request| {
        let answer = answer(request);
        async { Ok::<_, Infallible>(answer.await) }
    });
    let serving =
        http1::Builder::new().auto_date_header(false).serve_connection(TokioIo::new(server), answer);
    runtime.spawn(serving);
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut buffer = vec![0; 128 << 10];
    // An answer is known by its length: its head is the same each time, but for an age of a few seconds.
    let mut once = || runtime.block_on(ask(&mut client, request.as_bytes(), &mut buffer, size));
    // Fetched, then found by its words.
    once();
    once();
    bencher.bench_local(once);
}

/// Sends a request and takes its answer.
async fn ask(client: &mut DuplexStream, request: &[u8], buffer: &mut [u8], size: usize) {
    client.write_all(request).await.unwrap();
    let mut came = 0;
    loop {
        came += client.read(&mut buffer[came..]).await.unwrap();
        let head = buffer[..came].windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(head) = head
            && came >= head + 4 + size
        {
            assert!(buffer.starts_with(b"HTTP/1.1 200 "));
            return;
        }
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn group(name: &str) -> Group {
    Group {
        name: name.into(),
        prefix: format!("prod/{name}/"),
        origin: Origin::default(),
        ttl: None,
        fallback_regions: Vec::new(),
    }
}

/// Five groups; what is read lies in none of them.
fn resolver() -> Resolver {
    Resolver::new(["team-a", "team-b", "team-c", "team-d", "team-e"].map(group), Unlisted::Allow)
}

fn key(raw: &str) -> SecretKey {
    resolver().resolve(SecretPath::parse(raw).unwrap(), VersionSelector::current()).unwrap()
}

fn gate() -> Gate {
    let patterns = |pattern: &str| Patterns::new(&[pattern.to_owned()]);
    let rule =
        |uid, pattern| Rule { uids: Some(vec![uid]), allow_secrets: patterns(pattern), ..Rule::default() };
    let rules = vec![
        rule(1, "a/*"),
        rule(USER.uid, "team-b/*"),
        rule(USER.uid, "*/public"),
        rule(2, "*"),
        rule(USER.uid, "*team-a/*"),
    ];
    let region = Some("us-west-2".to_owned());
    Gate {
        policy: Policy { allow_secrets: Some(patterns("*")), rules: Some(rules), default_region: region },
        ..Gate::default()
    }
}

/// A cache that gets `bench/<size>` from a file.
fn runtime_and_cache() -> (Runtime, Cache) {
    let runtime = runtime();
    let cache = {
        let _inside = runtime.enter();
        in_process::cache(&SIZES, resolver())
    };
    (runtime, cache)
}
