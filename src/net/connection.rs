//! The accept loop, and one task a connection. A panic in a request is a 500 for that request and
//! nothing to any other.

use std::convert::Infallible;
use std::future::{Future, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::time::sleep;

use super::listener::{Listener, Stream};
use super::patience::{Patience, Timed};
use super::room::{Place, Room};
use super::{Body, ConnectionMetrics, Peer};
use crate::lifecycle::DrainWatcher;

/// What answers requests.
pub trait Service: Send + Sync + 'static {
    /// What is kept for as long as a connection lives.
    type Session: Send + Sync + 'static;

    /// Somebody has connected.
    fn connected(&self, peer: Peer, activity: Arc<Activity>) -> Self::Session;

    /// Answers one request, if that takes no waiting; `None` leaves it to [`Service::call`], as if nothing had happened.
    fn call_now(&self, request: &Request<Incoming>, session: &Self::Session) -> Option<Response<Body>> {
        let _ = (request, session);
        None
    }

    /// Answers one request.
    fn call(
        &self,
        request: Request<Incoming>,
        session: &Self::Session,
    ) -> impl Future<Output = Response<Body>> + Send;

    /// The answer to a request whose handling panicked.
    fn panicked(&self) -> Response<Body>;
}

/// Bounds on connections.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionLimits {
    /// The most that are open at a time. Beyond it, those give way that have not been used for longest, and where all are in use
    /// newcomers wait.
    pub max_connections: usize,
    /// The most that one user may have open on a Unix socket; more are refused.
    pub max_per_user: usize,
    /// How long a connection may be idle.
    pub idle_timeout: Duration,
    /// How long the head of a request may take to arrive, and how long an answer may take to be read.
    pub patience: Patience,
}

/// The most bytes that a request's head may have; also bounds a connection's read buffer.
const MAX_HEAD: usize = 16 << 10;

/// At the end, a connection that is idle is kept this long, so that a request on its way is answered
/// (with `Connection: close`) instead of reset.
pub const LINGER: Duration = Duration::from_millis(500);

/// Accepts connections and serves them until the drain starts; returns when no more are accepted.
/// Connections under way hold the drain up until they end.
pub async fn serve<S: Service>(
    listener: Listener,
    service: Arc<S>,
    limits: ConnectionLimits,
    mut drain: DrainWatcher,
    metrics: ConnectionMetrics,
) {
    let room = Room::new(limits.max_connections, limits.max_per_user, metrics);
    let seat = |stream: Stream, peer: Peer, place: Option<Place>, drain: &DrainWatcher| match place {
        Some(place) => {
            tokio::spawn(connection(stream, peer, Arc::clone(&service), limits, drain.clone(), place));
        }
        None => stream.turn_away(),
    };
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = drain.started() => break,
            accepted = listener.accept() => accepted,
        };
        // One that cannot be served yet waits here, all others in the kernel's queue.
        let place = tokio::select! {
            biased;
            place = room.place_for(peer) => place,
            () = drain.started() => room.place_at_once(peer),
        };
        seat(stream, peer, place, &drain);
    }
    for (stream, peer) in listener.close() {
        seat(stream, peer, room.place_at_once(peer), &drain);
    }
}

/// What the requests of one connection share.
struct Shared<S: Service> {
    service: Arc<S>,
    session: S::Session,
    draining: DrainWatcher,
    activity: Arc<Activity>,
}

impl<S: Service> Shared<S> {
    /// What is done with every answer.
    fn finish(&self, mut response: Response<Body>) -> Response<Body> {
        self.activity.end();
        if self.draining.has_started() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// How a connection ends that would go on by itself.
enum End {
    /// It gives way, or has been idle for too long.
    Now,
    /// The daemon ends.
    Soon,
}

/// What a connection is at.
#[derive(Debug, Default)]
pub struct Activity {
    /// How many requests have begun, twice that, and one more while one is being answered.
    requests: AtomicU64,
    /// The peer is to send the rest of a request.
    is_receiving: AtomicBool,
    /// The peer is to take the rest of an answer.
    is_sending: AtomicBool,
}

impl Activity {
    pub(super) fn begin(&self) {
        self.requests.store(self.so_far() | 1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.requests.store(self.so_far() + 1, Ordering::Relaxed);
    }

    /// Another number after each request.
    pub(super) fn so_far(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Whether a request is being answered.
    pub(super) fn is_busy(&self) -> bool {
        self.so_far() % 2 == 1
    }

    pub(super) fn set_sending(&self, is_sending: bool) {
        self.is_sending.store(is_sending, Ordering::Relaxed);
    }

    /// Waits for more of a request. A connection may give way meanwhile: the time is the peer's and not ours.
    pub async fn receiving<T>(&self, body: impl Future<Output = T>) -> T {
        self.is_receiving.store(true, Ordering::Relaxed);
        let body = body.await;
        self.is_receiving.store(false, Ordering::Relaxed);
        body
    }

    /// Waits until nothing has been asked for, and nothing been under way, for so long or a little longer: no timer is moved
    /// with every request, but one looks now and then.
    async fn idle_for(&self, timeout: Duration) {
        const LOOKS: u32 = 4;
        let (mut before, mut quiet) = (self.so_far(), 0);
        while quiet < LOOKS {
            sleep(timeout / LOOKS).await;
            let is_quiet =
                self.so_far() == before && !self.is_busy() && !self.is_sending.load(Ordering::Relaxed);
            (before, quiet) = (self.so_far(), if is_quiet { quiet + 1 } else { 0 });
        }
    }

    /// Whether nobody would miss the connection at this moment.
    pub(super) fn is_idle(&self) -> bool {
        let is_busy = self.is_busy() && !self.is_receiving.load(Ordering::Relaxed);
        !is_busy && !self.is_sending.load(Ordering::Relaxed)
    }
}

async fn connection<S: Service>(
    stream: Stream,
    peer: Peer,
    service: Arc<S>,
    limits: ConnectionLimits,
    mut drain: DrainWatcher,
    place: Place,
) {
    let activity = Arc::new(Activity::default());
    let session = service.connected(peer, Arc::clone(&activity));
    let shared =
        Arc::new(Shared { service, session, draining: drain.clone(), activity: Arc::clone(&activity) });
    let answer = service_fn(|request| {
        shared.activity.begin();
        // Before a future is polled, hyper reads on, into another buffer for as long as the request occupies this one.
        match call_now_caught(&*shared.service, &request, &shared.session) {
            Some(response) => Either::Left(ready(Ok::<_, Infallible>(shared.finish(response)))),
            None => {
                let shared = Arc::clone(&shared);
                Either::Right(async move {
                    let response = call_caught(&*shared.service, request, &shared.session).await;
                    Ok(shared.finish(response))
                })
            }
        }
    });
    let stream = Timed::new(stream, limits.patience, Arc::clone(&activity));
    let connection = http1().serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);
    // An error is the peer's: it hung up, was slow for too long or spoke something else than HTTP.
    let mut ends = FuturesUnordered::from_iter([async {
        tokio::select! {
            () = place.given_up(&activity) => End::Now,
            () = activity.idle_for(limits.idle_timeout) => End::Now,
            () = drain.started() => End::Soon,
        }
    }]);
    // What is in `ends` is polled only when it is woken itself, not with every request.
    tokio::select! {
        biased;
        _ = connection.as_mut() => return,
        end = ends.next() => if matches!(end, Some(End::Now)) { return },
    }
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(LINGER) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// How HTTP is spoken on every connection. No `pipeline_flush`: it copies each body into a buffer that lives as long as
/// the connection, and holds back answers for what follows a request.
///
/// No timer of hyper's either, which it would move twice a request: [`Timed`] and [`Activity`] see to slow and idle peers.
pub(crate) fn http1() -> http1::Builder {
    let mut http1 = http1::Builder::new();
    http1.max_buf_size(MAX_HEAD).auto_date_header(false);
    http1
}

/// Calls the service for an answer at once; a panic becomes an answer.
fn call_now_caught<S: Service>(
    service: &S,
    request: &Request<Incoming>,
    session: &S::Session,
) -> Option<Response<Body>> {
    catch_unwind(AssertUnwindSafe(|| service.call_now(request, session)))
        .unwrap_or_else(|_| Some(service.panicked()))
}

/// Calls the service; a panic becomes an answer.
async fn call_caught<S: Service>(
    service: &S,
    request: Request<Incoming>,
    session: &S::Session,
) -> Response<Body> {
    let mut call = pin!(service.call(request, session));
    std::future::poll_fn(|cx| {
        // Whatever the panic left half done belongs to this request alone and is dropped with it.
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(cx)))
            .unwrap_or_else(|_| std::task::Poll::Ready(service.panicked()))
    })
    .await
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;
    use prometheus::{IntCounter, IntGauge};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::lifecycle::Drain;
    use crate::net::{Endpoint, PATIENCE, fetch};

    struct Moody;

    impl Service for Moody {
        type Session = ();

        fn connected(&self, _peer: Peer, _activity: Arc<Activity>) {}

        async fn call(&self, request: Request<Incoming>, (): &()) -> Response<Body> {
            match request.uri().path() {
                "/panic" => panic!("told to"),
                "/slow" => sleep(Duration::from_millis(300)).await,
                "/large" => return Response::new(Full::new(Bytes::from(vec![b'x'; 32 << 20]))),
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
        let open = IntGauge::new("open", "open").unwrap();
        let metrics = ConnectionMetrics { open: open.clone(), refused: IntCounter::new("no", "no").unwrap() };
        let patience = Duration::from_millis(300);
        let limits = ConnectionLimits {
            max_connections,
            max_per_user: max_connections,
            idle_timeout: Duration::from_secs(5),
            patience: Patience { head: patience, answer: patience },
        };
        tokio::spawn(serve(listener, Arc::new(Moody), limits, drain.watcher(), metrics));
        (endpoint, open)
    }

    async fn connect(endpoint: &Endpoint) -> TcpStream {
        let Endpoint::Tcp(address) = endpoint else { panic!() };
        TcpStream::connect(address).await.unwrap()
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

    #[tokio::test]
    async fn at_the_limit_those_who_are_idle_give_way_and_those_who_are_not_stay() {
        let drain = Drain::new();
        let (endpoint, gauge) = start(&drain, 3).await;
        let busy = tokio::spawn({
            let endpoint = endpoint.clone();
            async move { status(&endpoint, "/slow").await }
        });
        let (mut idle, mut half) = (connect(&endpoint).await, connect(&endpoint).await);
        half.write_all(b"GET / HT").await.unwrap();
        while gauge.get() < 3 {
            tokio::task::yield_now().await;
        }
        assert_eq!(status(&endpoint, "/").await, 200);
        assert_eq!(busy.await.unwrap(), 200);
        let mut rest = Vec::new();
        let closed = [idle.read_to_end(&mut rest).await.is_ok(), half.read_to_end(&mut rest).await.is_ok()];
        assert_eq!(closed, [true, true]);
    }

    #[tokio::test]
    async fn a_head_that_drips_in_is_cut_off_and_a_connection_that_rests_is_not() {
        let drain = Drain::new();
        let (endpoint, _gauge) = start(&drain, 10).await;
        let (mut drip, mut rest) = (connect(&endpoint).await, connect(&endpoint).await);
        let cut = async {
            for byte in b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ".iter().cycle() {
                drip.write_all(&[*byte]).await?;
                sleep(Duration::from_millis(40)).await;
            }
            Ok::<_, std::io::Error>(())
        };
        assert!(tokio::time::timeout(Duration::from_secs(5), cut).await.is_ok_and(|cut| cut.is_err()));
        let mut answer = [0; 12];
        for _ in 0..2 {
            rest.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
            rest.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
            sleep(Duration::from_millis(400)).await;
            while rest.try_read(&mut [0; 1000]).is_ok() {}
        }
    }

    #[tokio::test]
    async fn an_answer_that_nobody_reads_is_cut_off() {
        let drain = Drain::new();
        let (endpoint, gauge) = start(&drain, 10).await;
        let mut slow = connect(&endpoint).await;
        slow.write_all(b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        let cut = async {
            while gauge.get() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        sleep(Duration::from_millis(50)).await;
        assert_eq!(gauge.get(), 1);
        assert!(tokio::time::timeout(Duration::from_secs(5), cut).await.is_ok());
        drop(slow);
    }
}
