//! The accept loop, and one task a connection. A panic in a request is a 500 for that request and
//! nothing to any other.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::IntGauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;

use super::listener::{Listener, Stream};
use super::{Body, Peer};
use crate::lifecycle::DrainWatcher;

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request.
    fn call(&self, request: Request<Incoming>, peer: Peer) -> impl Future<Output = Response<Body>> + Send;

    /// The answer to a request whose handling panicked.
    fn panicked(&self) -> Response<Body>;
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The most that are open at a time; newcomers wait in the kernel's queue.
    pub max_connections: usize,
    /// How long a connection may be idle, and how long a request's head may take to arrive.
    pub idle_timeout: Duration,
}

/// The most bytes that a request's head may have; also bounds a connection's read buffer.
const MAX_HEAD: usize = 16 << 10;

/// At the end, a connection that is idle is kept this long, so that a request on its way is answered
/// (with `Connection: close`) instead of reset.
const LINGER: Duration = Duration::from_millis(500);

/// How long to wait when the system has no descriptors left, before accepting again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections and serves them until the drain starts; returns when no more are accepted.
/// Connections under way hold the drain up until they end.
pub async fn serve<S: Service>(
    mut listener: Listener,
    service: Arc<S>,
    limits: ConnectionLimits,
    mut drain: DrainWatcher,
    gauge: IntGauge,
) {
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let spawn = |stream: Stream, peer: Peer, permit: OwnedSemaphorePermit, drain: &DrainWatcher| {
        let open = OpenConnection::new(gauge.clone(), permit);
        tokio::spawn(connection(stream, peer, Arc::clone(&service), limits, drain.clone(), open));
    };
    loop {
        // The permit comes first: what cannot be served is left in the kernel's queue.
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await.ok()?;
            Some((listener.accept().await, permit))
        };
        tokio::select! {
            biased;
            () = drain.started() => break,
            accepted = next => match accepted {
                Some((Ok((stream, peer)), permit)) => spawn(stream, peer, permit, &drain),
                Some((Err(error), _)) => {
                    tracing::warn!(listener = listener.label(), %error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
                None => break,
            },
        }
    }
    // Nobody finds the way in any more; those who are in the queue did, and are served.
    listener.retire();
    while let Ok(permit) = Arc::clone(&permits).try_acquire_owned() {
        match tokio::time::timeout(Duration::ZERO, listener.accept()).await {
            Ok(Ok((stream, peer))) => spawn(stream, peer, permit, &drain),
            Ok(Err(_)) | Err(_) => break,
        }
    }
}

async fn connection<S: Service>(
    stream: Stream,
    peer: Peer,
    service: Arc<S>,
    limits: ConnectionLimits,
    mut drain: DrainWatcher,
    _open: OpenConnection,
) {
    let draining = drain.clone();
    let answer = service_fn(|request| {
        let (service, draining) = (Arc::clone(&service), draining.clone());
        async move {
            let mut response = call_caught(&*service, request, peer).await;
            if draining.has_started() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle_timeout)
        .max_buf_size(MAX_HEAD)
        .pipeline_flush(true)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    // An error is the peer's: it hung up, was idle too long or spoke something else than HTTP.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = drain.started() => {}
    }
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(LINGER) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// Calls the service; a panic becomes an answer.
async fn call_caught<S: Service>(service: &S, request: Request<Incoming>, peer: Peer) -> Response<Body> {
    let mut call = pin!(service.call(request, peer));
    std::future::poll_fn(|cx| {
        // Whatever the panic left half done belongs to this request alone and is dropped with it.
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)))
            .unwrap_or_else(|_| std::task::Poll::Ready(service.panicked()))
    })
    .await
}

/// Counts a connection for as long as it lives.
struct OpenConnection {
    gauge: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl OpenConnection {
    fn new(gauge: IntGauge, permit: OwnedSemaphorePermit) -> Self {
        gauge.inc();
        Self { gauge, _permit: permit }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;

    use super::*;
    use crate::lifecycle::Drain;
    use crate::net::{Endpoint, PATIENCE, fetch};

    struct Moody;

    impl Service for Moody {
        async fn call(&self, request: Request<Incoming>, _peer: Peer) -> Response<Body> {
            match request.uri().path() {
                "/panic" => panic!("told to"),
                "/slow" => sleep(Duration::from_millis(300)).await,
                _ => {}
            }
            Response::new(Full::new(Bytes::from_static(b"fine")))
        }

        fn panicked(&self) -> Response<Body> {
            let mut response = Response::new(Full::new(Bytes::from_static(b"sorry")));
            *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }

    async fn start(drain: &Drain, max_connections: usize) -> (Endpoint, IntGauge) {
        let listener = Listener::tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let endpoint = Endpoint::Tcp(listener.tcp_addr().unwrap().to_string());
        let gauge = IntGauge::new("open", "open").unwrap();
        let limits = ConnectionLimits { max_connections, idle_timeout: Duration::from_secs(5) };
        tokio::spawn(serve(listener, Arc::new(Moody), limits, drain.watcher(), gauge.clone()));
        (endpoint, gauge)
    }

    async fn status(endpoint: &Endpoint, path: &str) -> u16 {
        fetch(endpoint, path, &[], PATIENCE).await.unwrap().0.status.as_u16()
    }

    // Real sockets need real time: these waits are for the kernel, not for rules about age.

    #[tokio::test]
    async fn a_panic_in_one_request_is_a_500_for_it_alone() {
        let drain = Drain::new();
        let (endpoint, _gauge) = start(&drain, 10).await;
        assert_eq!(status(&endpoint, "/panic").await, 500);
        assert_eq!(status(&endpoint, "/").await, 200);
    }

    #[tokio::test]
    async fn a_request_under_way_is_finished_at_the_end_and_newcomers_are_refused() {
        let drain = Drain::new();
        let (endpoint, gauge) = start(&drain, 10).await;
        let slow = tokio::spawn({
            let endpoint = endpoint.clone();
            async move { status(&endpoint, "/slow").await }
        });
        while gauge.get() == 0 {
            tokio::task::yield_now().await;
        }
        sleep(Duration::from_millis(50)).await;
        drain.finish().await;
        assert_eq!(slow.await.unwrap(), 200);
        assert!(fetch(&endpoint, "/", &[], PATIENCE).await.is_err());
        assert_eq!(gauge.get(), 0);
    }

    #[tokio::test]
    async fn beyond_the_limit_newcomers_wait_and_are_served_in_the_end() {
        let drain = Drain::new();
        let (endpoint, _gauge) = start(&drain, 1).await;
        let mut callers = tokio::task::JoinSet::new();
        for _ in 0..5 {
            let endpoint = endpoint.clone();
            callers.spawn(async move { status(&endpoint, "/").await });
        }
        assert_eq!(callers.join_all().await, [200; 5]);
    }
}
