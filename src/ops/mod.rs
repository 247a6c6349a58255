//! The ops listener: metrics, health and status. It imports nothing that serves secrets, and sees the
//! cache through a view that has no values.

mod html;
mod report;
mod status;

pub use self::report::{Level, Report, Row, Section};
pub use self::status::Status;

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderValue, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::time::Instant;

use crate::cache::CacheView;
use crate::lifecycle::Readiness;
use crate::metrics::{Metrics, RouteMetrics};
use crate::net::{Activity, Body, Peer, Service, wish_for};

/// The text format of Prometheus
/// (<https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format>).
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";

/// The ops listener.
#[derive(Debug)]
pub struct OpsService {
    metrics: Metrics,
    readiness: Readiness,
    cache: CacheView,
    started: Instant,
    routes: Routes,
}

#[derive(Debug)]
struct Routes {
    metrics: RouteMetrics,
    livez: RouteMetrics,
    readyz: RouteMetrics,
    status: RouteMetrics,
    unmatched: RouteMetrics,
}

impl OpsService {
    /// An ops listener, called `label` in its own metrics.
    pub fn new(metrics: Metrics, readiness: Readiness, cache: CacheView, label: &str) -> Self {
        let route = |name| metrics.http.route(label, name);
        let routes = Routes {
            metrics: route("metrics"),
            livez: route("livez"),
            readyz: route("readyz"),
            status: route("status"),
            unmatched: route("unmatched"),
        };
        Self { routes, metrics, readiness, cache, started: Instant::now() }
    }

    fn answer(&self, request: &Request<Incoming>) -> (&RouteMetrics, Response<Body>) {
        let routes = &self.routes;
        let (metrics, answer): (_, fn(&Self, &HeaderMap) -> Response<Body>) = match request.uri().path() {
            "/metrics" => (&routes.metrics, |ops, _| ops.metrics_page()),
            "/livez" => (&routes.livez, |_, _| response(StatusCode::OK, PLAIN_TEXT, "ok\n")),
            "/readyz" | "/healthz" => (&routes.readyz, |ops, _| ops.readyz()),
            "/status" => (&routes.status, Self::status),
            _ => (&routes.unmatched, |_, _| response(StatusCode::NOT_FOUND, PLAIN_TEXT, "no such path\n")),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refusal =
                response(StatusCode::METHOD_NOT_ALLOWED, PLAIN_TEXT, "accepted methods: GET, HEAD\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return (metrics, refusal);
        }
        (metrics, answer(self, request.headers()))
    }

    fn metrics_page(&self) -> Response<Body> {
        self.cache.summary();
        self.metrics.readiness(self.readiness.reasons().is_empty());
        match self.metrics.render() {
            Ok(page) => response(StatusCode::OK, PROMETHEUS_TEXT, page),
            Err(error) => {
                tracing::error!(%error, "the metrics cannot be rendered; this is a defect of smcached");
                response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN_TEXT, "the metrics cannot be rendered\n")
            }
        }
    }

    fn readyz(&self) -> Response<Body> {
        let reasons = self.readiness.reasons();
        if reasons.is_empty() {
            return response(StatusCode::OK, PLAIN_TEXT, "ok\n");
        }
        let reasons = format!("not ready: {}\n", reasons.join(", "));
        response(StatusCode::SERVICE_UNAVAILABLE, PLAIN_TEXT, reasons)
    }

    /// JSON, or a page for a browser.
    fn status(&self, headers: &HeaderMap) -> Response<Body> {
        let uptime = self.started.elapsed();
        let status = Status::of(&self.cache, &self.readiness, &self.metrics.http, uptime);
        if !prefers_html(headers) {
            return response(StatusCode::OK, JSON, status.to_json());
        }
        let mut page = response(StatusCode::OK, HTML, html::page(&Report::of(&status)));
        let headers = page.headers_mut();
        headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(html::POLICY));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
        page
    }
}

/// Whether HTML is wanted more than JSON, as by browsers.
fn prefers_html(headers: &HeaderMap) -> bool {
    wish_for("text/html", headers) > wish_for("application/json", headers)
}

impl Service for OpsService {
    type Session = ();

    fn connected(&self, _peer: Peer, _activity: Arc<Activity>) {}

    async fn call(&self, request: Request<Incoming>, (): &()) -> Response<Body> {
        let start = Instant::now();
        let (metrics, response) = self.answer(&request);
        metrics.answered(response.status().as_u16(), start.elapsed());
        response
    }

    fn panicked(&self) -> Response<Body> {
        tracing::error!("a handler of the ops listener panicked; this is a defect of smcached");
        response(StatusCode::INTERNAL_SERVER_ERROR, PLAIN_TEXT, "internal error\n")
    }
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use hyper::header::ACCEPT;

    use super::*;

    #[test]
    fn browsers_get_html_and_all_others_json() {
        let prefers_html = |values: &[&str]| {
            let values = values.iter().map(|value| (ACCEPT, HeaderValue::from_str(value).unwrap()));
            prefers_html(&values.collect())
        };
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for html in [browser, "text/html", "TEXT/HTML; Q=0.1", "application/json;q=0.5, text/html"] {
            assert!(prefers_html(&[html]), "{html}");
        }
        let json =
            ["", "*/*", "text/*", "application/json", "application/json, text/html;q=0.9", "text/html;q=0"];
        for json in json.into_iter().chain(["text/html, application/json", "text/html;q=x", "text/htmlx"]) {
            assert!(!prefers_html(&[json]), "{json}");
        }
        assert!(prefers_html(&["*/*;q=0.1", "text/html"]), "of several fields");
        assert!(!prefers_html(&[]));
    }
}
