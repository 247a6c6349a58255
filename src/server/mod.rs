//! The secret listeners: guards, routes and the APIs over one cache.
//!
//! One way in: `guards -> router -> api (parse, resolve to a key) -> visit (gate) -> cache`. Only
//! `problem` turns an error into an answer.

mod api;
mod dialect;
mod guards;
mod headers;
mod known_paths;
mod problem;
mod record;
mod router;
mod visit;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Request, Response, StatusCode};
use tokio::sync::Semaphore;

use self::api::{agent, native, sdk};
use self::dialect::Dialect;
use self::guards::Guards;
use self::known_paths::KnownPaths;
use self::problem::Problem;
use self::record::Record;
use self::router::Route;
use self::visit::Visit;
pub use self::visit::Visitor;
use crate::access::Gate;
use crate::audit::Audit;
use crate::cache::Cache;
use crate::lifecycle::Readiness;
use crate::metrics::{HttpMetrics, RouteMetrics};
use crate::net::{Activity, Body, Peer, Service};
use crate::secret::Resolver;

/// What all secret listeners share.
#[derive(Debug)]
pub struct Shared {
    cache: Cache,
    resolving: ArcSwap<Resolving>,
    readiness: Readiness,
    /// The daemon's own region, where it is known.
    default_region: Option<String>,
    listeners: AtomicU32,
    audit: Audit,
    /// Room for bodies that are made for one request, in KiB, until the client has read them.
    bodies: Arc<Semaphore>,
}

/// How a path becomes a key.
#[derive(Debug)]
struct Resolving {
    resolver: Arc<Resolver>,
    /// What it made of paths.
    paths: KnownPaths,
}

impl Resolving {
    fn by(resolver: Arc<Resolver>) -> Self {
        Self { resolver, paths: KnownPaths::default() }
    }
}

/// The most memory that such bodies may take, in KiB: what is held is shared by all who read it and not counted.
const MAX_BODIES: usize = 64 << 10;

impl Shared {
    /// The parts that every listener serves from.
    pub fn new(
        cache: Cache,
        resolver: Arc<Resolver>,
        readiness: Readiness,
        default_region: Option<String>,
        audit: Audit,
    ) -> Self {
        Self {
            cache,
            resolving: ArcSwap::from_pointee(Resolving::by(resolver)),
            readiness,
            default_region,
            listeners: AtomicU32::new(0),
            audit,
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
        }
    }

    /// Other groups from now on.
    pub fn set_resolver(&self, resolver: Arc<Resolver>) {
        self.resolving.store(Arc::new(Resolving::by(resolver)));
    }
}

/// Who may come in by a listener, and what they may read there. A reload replaces it as a whole.
#[derive(Debug)]
pub struct Rules {
    gate: Gate,
    guards: Guards,
}

impl Rules {
    /// `allowed_hosts` are the names other than loopback's by which TCP callers may address the listener; `None`
    /// for a Unix socket, where the `Host` header means nothing.
    pub fn new(gate: Gate, allowed_hosts: Option<Vec<String>>) -> Self {
        Self { gate, guards: Guards::new(allowed_hosts) }
    }

    /// Who may come in.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// Whether the request may come in at all.
    fn let_in(
        &self,
        request: &Request<Incoming>,
        route: Route<'_>,
        visitor: &Visitor,
    ) -> Result<(), Problem> {
        self.guards.check(request)?;
        // Health is everybody's; all else is for those who may come in, be it to learn that a path does not exist.
        if !route.is_health() {
            let token = self.gate.token.as_ref().and_then(|_| guards::presented_token(request.headers()));
            self.gate.admit(&visitor.caller(token))?;
        }
        if let Some(allowed) = route.methods() {
            guards::check_method(request, allowed)?;
        }
        Ok(())
    }
}

/// One secret listener.
#[derive(Debug)]
pub struct SecretService {
    shared: Arc<Shared>,
    rules: Arc<ArcSwap<Rules>>,
    label: Arc<str>,
    /// Its number among the listeners.
    number: u32,
    /// Room for readers that wait for a change.
    waiting: Semaphore,
    http: HttpMetrics,
    secret: RouteMetrics,
    wait: RouteMetrics,
    agent: RouteMetrics,
    sdk: RouteMetrics,
    health: RouteMetrics,
    unmatched: RouteMetrics,
}

impl SecretService {
    /// A listener with its own rules, which the caller may replace, and room for so many readers that wait for a change.
    pub fn new(
        shared: Arc<Shared>,
        rules: Arc<ArcSwap<Rules>>,
        label: String,
        http: HttpMetrics,
        max_waiting: usize,
    ) -> Self {
        Self {
            number: shared.listeners.fetch_add(1, Ordering::Relaxed),
            waiting: Semaphore::new(max_waiting),
            secret: http.route(&label, "secret"),
            wait: http.route(&label, "wait"),
            agent: http.route(&label, "agent"),
            sdk: http.route(&label, "sdk"),
            health: http.route(&label, "health"),
            unmatched: http.route(&label, "unmatched"),
            shared,
            rules,
            label: label.into(),
            http,
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        visitor: &Visitor,
        record: &Record<'_>,
    ) -> Result<Response<Body>, Problem> {
        let route = Route::of(request.method(), request.uri().path());
        let rules = self.rules.load_full();
        rules.let_in(&request, route, visitor)?;
        let visit = Visit::new(&self.shared, &self.rules, &rules.gate, visitor, &record.notes, record.began);
        match route {
            Route::Secret(raw) => native::read(&visit, &request, raw, &self.waiting).await,
            Route::AgentQuery => agent::read(&visit, &request, None).await,
            Route::AgentPath(raw) => agent::read(&visit, &request, Some(raw)).await,
            Route::Sdk => sdk::answer(&visit, request).await,
            Route::Ping => Ok(text(StatusCode::OK, "healthy")),
            Route::Health => Ok(self.health()),
            Route::Unmatched => Err(Problem::no_route()),
        }
    }

    fn metrics_of(&self, route: Route<'_>, query: Option<&str>) -> &RouteMetrics {
        match route {
            Route::Secret(_) if native::waits(query) => &self.wait,
            Route::Secret(_) => &self.secret,
            Route::AgentQuery | Route::AgentPath(_) => &self.agent,
            Route::Sdk => &self.sdk,
            Route::Ping | Route::Health => &self.health,
            Route::Unmatched => &self.unmatched,
        }
    }

    /// What the ops listener's `/readyz` says, without its details.
    fn health(&self) -> Response<Body> {
        if self.shared.readiness.reasons().is_empty() {
            text(StatusCode::OK, "ok")
        } else {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready")
        }
    }
}

impl Service for SecretService {
    type Session = Visitor;

    fn connected(&self, peer: Peer, activity: Arc<Activity>) -> Visitor {
        Visitor::new(self.number, peer, activity)
    }

    fn call_now(&self, request: &Request<Incoming>, visitor: &Visitor) -> Option<Response<Body>> {
        let route = Route::of(request.method(), request.uri().path());
        let Route::Secret(raw) = route else { return None };
        let rules = self.rules.load();
        rules.let_in(request, route, visitor).ok()?;
        let record = Record::begin(self, request, route, visitor);
        let visit = Visit::new(&self.shared, &self.rules, &rules.gate, visitor, &record.notes, record.began);
        let response = native::read_held(&visit, request, raw)?;
        Some(record.end_well(response))
    }

    async fn call(&self, request: Request<Incoming>, visitor: &Visitor) -> Response<Body> {
        let route = Route::of(request.method(), request.uri().path());
        let record = Record::begin(self, &request, route, visitor);
        let answer = self.answer(request, visitor, &record).await;
        record.end(answer)
    }

    fn panicked(&self) -> Response<Body> {
        tracing::error!(listener = &*self.label, "a request handler panicked; this is a defect of smcached");
        Problem::internal().into_response(Dialect::Native)
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from_static(body.as_bytes())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
