//! How often memory is allocated for a cached read over a connection that is kept.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "support/bare.rs"]
mod bare;
#[path = "support/in_process.rs"]
mod in_process;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use prometheus::{IntCounter, IntGauge};
use smcached::lifecycle::Drain;
use smcached::net::{
    self, Activity, Body, ConnectionLimits, ConnectionMetrics, Listener, Ownership, Patience, Peer, Service,
};
use smcached::secret::Resolver;
use tokio::runtime::Builder;
use tokio::sync::mpsc;

const SIZE: usize = 200;
const PATIENCE: Duration = Duration::from_mins(1);

/// What hyper needs, if there is nobody who thinks: the same head, made anew for each answer.
struct Bare;

impl Service for Bare {
    type Session = ();

    fn connected(&self, _peer: Peer, _activity: Arc<Activity>) {}

    fn call_now(&self, _request: &Request<Incoming>, (): &()) -> Option<Response<Body>> {
        static BODY: [u8; SIZE] = [b'x'; SIZE];
        let mut response = Response::new(Full::new(Bytes::from_static(&BODY)));
        bare::add_head(response.headers_mut());
        Some(response)
    }

    async fn call(&self, _request: Request<Incoming>, (): &()) -> Response<Body> {
        unreachable!("it is answered at once")
    }

    fn panicked(&self) -> Response<Body> {
        unreachable!("nothing panics")
    }
}

/// Allocations of the serving thread for each of many reads.
fn per_read<S: Service>(service: impl FnOnce() -> S + Send + 'static) -> f64 {
    const READS: [u32; 2] = [1000, 5000];
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s.sock");
    let (done, mut all_read) = mpsc::channel::<()>(1);
    let (counted, counts) = std::sync::mpsc::channel();
    let path = socket.clone();
    let server = thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        // As long as it lives, connections do.
        let _drain = runtime.block_on(async {
            let listener =
                Listener::unix(&path, Ownership::resolve(0o600, None, None).unwrap(), None).unwrap();
            let open = IntGauge::new("open", "open").unwrap();
            let refused = IntCounter::new("refused", "refused").unwrap();
            let limits = ConnectionLimits {
                max_connections: 10,
                max_per_user: 10,
                idle_timeout: PATIENCE,
                patience: Patience { head: PATIENCE, answer: PATIENCE },
            };
            let drain = Drain::new();
            let metrics = ConnectionMetrics { open, refused };
            tokio::spawn(net::serve(listener, Arc::new(service()), limits, drain.watcher(), metrics));
            counted.send(0).unwrap();
            // What was allocated before it was warm.
            all_read.recv().await.unwrap();
            drain
        });
        for _ in READS {
            let info = allocation_counter::measure(|| runtime.block_on(all_read.recv()).unwrap_or_default());
            counted.send(info.count_total).unwrap();
        }
    });
    counts.recv().unwrap();
    let mut connection = UnixStream::connect(&socket).unwrap();
    let mut counted = Vec::new();
    read(&mut connection, 10);
    done.blocking_send(()).unwrap();
    for reads in READS {
        read(&mut connection, reads);
        done.blocking_send(()).unwrap();
        counted.push(counts.recv().unwrap());
    }
    server.join().unwrap();
    let [few, many] = counted[..] else { unreachable!() };
    #[allow(clippy::cast_precision_loss, reason = "thousands")]
    let more = (many - few) as f64;
    more / f64::from(READS[1] - READS[0])
}

fn read(connection: &mut UnixStream, reads: u32) {
    let mut answer = vec![0; 4096];
    for _ in 0..reads {
        let request = format!("GET /secret/bench/{SIZE} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        let mut came = 0;
        while !answer[..came].ends_with(&[b'x'; SIZE]) {
            came += connection.read(&mut answer[came..]).unwrap();
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    }
}

#[test]
fn a_cached_read_allocates_nothing_that_bare_hyper_does_not() {
    let bare = per_read(|| Bare);
    let cached = per_read(|| {
        in_process::service(in_process::cache(&[SIZE], Resolver::default()), Resolver::default())
    });
    println!("allocations of a cached read: {cached:.3}; of bare hyper: {bare:.3}");
    // Nothing runs beside it but, once a second, the making of another head.
    assert!(cached < bare + 0.5, "{cached} against {bare}");
    assert!(cached > 0.5, "nothing is counted");
}
