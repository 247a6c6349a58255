//! The secret listeners: guards, routes and the APIs over one cache.
//!
//! One way in: `guards -> router -> api (parse, resolve to a key) -> visit (gate) -> cache`. Only
//! `problem` turns an error into an answer.

mod api;
mod dialect;
mod guards;
mod headers;
mod problem;
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
use tokio::time::Instant;

use self::api::{agent, native, sdk};
use self::dialect::Dialect;
use self::guards::Guards;
use self::headers::HitHeaders;
use self::problem::Problem;
use self::router::Route;
pub use self::visit::Visitor;
use self::visit::{Note, Notes, Visit};
use crate::access::Gate;
use crate::audit::{Audit, Event};
use crate::cache::Cache;
use crate::lifecycle::Readiness;
use crate::metrics::{HttpMetrics, RouteMetrics};
use crate::net::{Activity, Body, Peer, Service};
use crate::secret::Resolver;

/// What all secret listeners share.
#[derive(Debug)]
pub struct Shared {
    cache: Cache,
    resolver: ArcSwap<Resolver>,
    readiness: Readiness,
    hit_headers: HitHeaders,
    /// The daemon's own region, where it is known.
    default_region: Option<String>,
    listeners: AtomicU32,
    audit: Audit,
    /// Room for bodies that are made for one request, in KiB, until the client has read them.
    bodies: Arc<Semaphore>,
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
        let hit_headers = HitHeaders::default();
        Self {
            cache,
            resolver: resolver.into(),
            readiness,
            hit_headers,
            default_region,
            listeners: AtomicU32::new(0),
            audit,
            bodies: Arc::new(Semaphore::new(MAX_BODIES)),
        }
    }

    /// Other groups from now on.
    pub fn set_resolver(&self, resolver: Arc<Resolver>) {
        self.resolver.store(resolver);
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

    /// Whether the request may come in at all.
    fn enter(
        &self,
        request: &Request<Incoming>,
        route: Route<'_>,
        visitor: &Visitor,
    ) -> Result<Arc<Rules>, Problem> {
        let rules = self.rules.load_full();
        rules.guards.check(request)?;
        // Health is everybody's; all else is for those who may come in, be it to learn that a path does not exist.
        if !route.is_health() {
            rules.gate.admit(&visitor.caller(guards::presented_token(request.headers())))?;
        }
        if let Some(allowed) = route.methods() {
            guards::check_method(request, allowed)?;
        }
        Ok(rules)
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        visitor: &Visitor,
        notes: &Notes,
    ) -> Result<Response<Body>, Problem> {
        let route = Route::of(request.method(), request.uri().path());
        let rules = self.enter(&request, route, visitor)?;
        let visit = Visit::new(&self.shared, &self.rules, &rules.gate, visitor, notes);
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

    /// A line of the audit trail for each secret that a request was about, and one for a request that came to none.
    fn report(&self, event: &Event, mut notes: Vec<Note>, refusal: Option<&'static str>) {
        match (refusal, notes.last_mut()) {
            (Some(code), None) => self.shared.audit.record(Event { outcome: code, ..event.clone() }),
            // It was read, and then there was no such field.
            (Some(code), Some(note)) => note.outcome = code,
            (None, _) => {}
        }
        for note in notes {
            self.shared.audit.record(Event {
                secret_id: Some(note.secret_id),
                version_id: note.version_id,
                outcome: note.outcome,
                age: note.age,
                ..event.clone()
            });
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

    async fn call(&self, request: Request<Incoming>, visitor: &Visitor) -> Response<Body> {
        let start = Instant::now();
        let route = Route::of(request.method(), request.uri().path());
        let (metrics, dialect) = (self.metrics_of(route, request.uri().query()), route.dialect());
        // What the audit trail says of the request, while that is still to be seen.
        let is_audited = !route.is_health() && self.shared.audit.is_on();
        let event = is_audited.then(|| visitor.event(&self.label, request.headers()));
        let is_read = !matches!(route, Route::Unmatched);
        let notes = Notes::default();
        let answer = self.answer(request, visitor, &notes).await;
        let refusal = answer.as_ref().err().map(|problem| (problem.code(), problem.rejection()));
        let (notes, rejections) = notes.into_inner();
        for reason in rejections.into_iter().chain(refusal.and_then(|(_, rejection)| rejection)) {
            self.http.rejected(&self.label, reason);
        }
        let mut response = answer.unwrap_or_else(|problem| problem.into_response(dialect));
        let request_id = (dialect == Dialect::Aws).then(|| sdk::note_request_id(&mut response));
        if let Some(event) = event
            && (is_read || refusal.is_some_and(|(_, rejection)| rejection.is_some()))
        {
            let event = Event {
                surface: metrics.name(),
                status: response.status().as_u16(),
                request_id: request_id.map(Into::into).or(event.request_id),
                ..event
            };
            self.report(&event, notes, refusal.map(|(code, _)| code));
        }
        metrics.answered(response.status().as_u16(), start.elapsed());
        response
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
