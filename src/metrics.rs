//! Every metric, defined once, one struct a layer. Names and labels are a public contract.
//!
//! Counters are resolved when a part is built and incremented through methods named after the event.
//! No label ever holds a secret's name: groups come from the configuration, all else is fixed words.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{
    Encoder, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

/// Upper bounds for requests that are mostly answered from memory, in seconds.
const REQUEST_BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0,
];

/// Upper bounds for calls over a network, in seconds.
const UPSTREAM_BUCKETS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// All metrics of one daemon. Built once and handed to each layer; there is no global registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    ready: IntGauge,
    /// What listeners count.
    pub http: HttpMetrics,
    /// What the cache counts.
    pub cache: CacheMetrics,
    /// What calls to the source count.
    pub upstream: UpstreamMetrics,
    /// What reloads count.
    pub config: ConfigMetrics,
    /// What is written to files.
    pub projection: ProjectionMetrics,
    /// What becomes of audit events.
    pub audit: AuditMetrics,
}

impl Metrics {
    /// Registers every metric in a registry of its own.
    ///
    /// # Panics
    /// When two metrics are defined under one name, which is a defect that any test finds.
    pub fn new() -> Self {
        let registry = Registry::new();
        let define = Definer { registry: &registry };
        define
            .int_gauge_vec("smcached_build_info", "Always 1; labelled with the version.", &["version"])
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
        let ready = define.int_gauge("smcached_ready", "1 while /readyz answers 200, else 0.");
        let http = HttpMetrics::new(&define);
        let cache = CacheMetrics::new(&define);
        let upstream = UpstreamMetrics::new(&define);
        let config = ConfigMetrics::new(&define);
        let projection = ProjectionMetrics::new(&define);
        let audit = AuditMetrics::new(&define);
        #[cfg(target_os = "linux")]
        define.register(prometheus::process_collector::ProcessCollector::for_self());
        Self { registry, ready, http, cache, upstream, config, projection, audit }
    }

    /// Whether the process is ready at this moment.
    pub fn readiness(&self, is_ready: bool) {
        self.ready.set(is_ready.into());
    }

    /// The page that Prometheus scrapes, in its text format.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        Ok(page)
    }

    /// The names of all metrics that have been touched, for the test that compares them with the docs.
    pub fn names(&self) -> Vec<String> {
        self.registry.gather().iter().map(|family| family.name().to_owned()).collect()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// What listeners count.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    connections: IntGaugeVec,
    connection_limits: IntGaugeVec,
    rejected: IntCounterVec,
}

impl HttpMetrics {
    fn new(define: &Definer<'_>) -> Self {
        Self {
            requests: define.int_counter_vec(
                "smcached_http_requests_total",
                "Requests answered.",
                &["listener", "route", "status"],
            ),
            durations: define.histogram_vec(
                "smcached_http_request_duration_seconds",
                "Time from a request's head to its answer's head.",
                REQUEST_BUCKETS,
                &["listener", "route"],
            ),
            connections: define.int_gauge_vec(
                "smcached_http_connections",
                "Open connections.",
                &["listener"],
            ),
            connection_limits: define.int_gauge_vec(
                "smcached_http_connections_limit",
                "The most connections that may be open at a time.",
                &["listener"],
            ),
            rejected: define.int_counter_vec(
                "smcached_rejected_total",
                "Requests and connections that the daemon itself refused.",
                &["listener", "reason"],
            ),
        }
    }

    /// The counters of one route of one listener; resolve once, not per request.
    pub fn route(&self, listener: &str, route: &'static str) -> RouteMetrics {
        RouteMetrics {
            requests: self.requests.clone(),
            listener: listener.into(),
            route,
            ok: self.requests.with_label_values(&[listener, route, "200"]),
            duration: self.durations.with_label_values(&[listener, route]),
        }
    }

    /// The gauge of a listener's open connections, of which there may be `limit`, and the counter of those that
    /// were refused.
    pub fn connections(&self, listener: &str, limit: usize) -> (IntGauge, IntCounter) {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.connection_limits.with_label_values(&[listener]).set(limit);
        let refused = self.rejected.with_label_values(&[listener, "connections"]);
        (self.connections.with_label_values(&[listener]), refused)
    }

    /// The listeners by label, and how many connections each has open.
    pub fn open_connections(&self) -> Vec<(String, i64)> {
        let families = self.connections.collect();
        let listeners = families.iter().flat_map(MetricFamily::get_metric);
        let open = |metric: &Metric| {
            let label = metric.get_label().first()?.value().to_owned();
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a gauge of whole numbers, as the library hands it out"
            )]
            Some((label, metric.get_gauge().get_value() as i64))
        };
        listeners.filter_map(open).collect()
    }

    /// A request was refused by a guard.
    pub fn rejected(&self, listener: &str, reason: &'static str) {
        self.rejected.with_label_values(&[listener, reason]).inc();
    }
}

/// The counters of one route of one listener.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    requests: IntCounterVec,
    listener: Arc<str>,
    route: &'static str,
    ok: IntCounter,
    duration: Histogram,
}

impl RouteMetrics {
    /// The route, as the label says it.
    pub fn name(&self) -> &'static str {
        self.route
    }

    /// A request was answered with `status` after `elapsed`.
    pub fn answered(&self, status: u16, elapsed: Duration) {
        if status == 200 {
            self.ok.inc();
        } else {
            let status = status.to_string();
            self.requests.with_label_values(&[&*self.listener, self.route, &status]).inc();
        }
        self.duration.observe(elapsed.as_secs_f64());
    }
}

/// What is written to files.
#[derive(Debug, Clone)]
pub struct ProjectionMetrics {
    writes: IntCounterVec,
}

impl ProjectionMetrics {
    fn new(define: &Definer<'_>) -> Self {
        let writes = define.int_counter_vec(
            "smcached_projection_writes_total",
            "Changes of projected files, or of sets that are switched together: written, removed or failed.",
            &["result"],
        );
        for result in ["written", "removed", "failed"] {
            writes.with_label_values(&[result]);
        }
        Self { writes }
    }

    /// A file, or a set of files, was written or removed, or could not be.
    pub fn wrote(&self, result: &'static str) {
        self.writes.with_label_values(&[result]).inc();
    }
}

/// What becomes of audit events: each ends in one of these.
#[derive(Debug, Clone)]
pub struct AuditMetrics {
    written: IntCounter,
    dropped: IntCounter,
    failed: IntCounter,
}

impl AuditMetrics {
    fn new(define: &Definer<'_>) -> Self {
        let events = define.int_counter_vec(
            "smcached_audit_events_total",
            "Events of the audit trail: written, dropped because the output is too slow, or failed to be written.",
            &["result"],
        );
        let counter = |result| events.with_label_values(&[result]);
        Self { written: counter("written"), dropped: counter("dropped"), failed: counter("failed") }
    }

    /// So many lines are out.
    pub fn written(&self, count: u64) {
        self.written.inc_by(count);
    }

    /// So many events found no place in the queue.
    pub fn dropped(&self, count: u64) {
        self.dropped.inc_by(count);
    }

    /// So many events could not be written.
    pub fn failed(&self, count: u64) {
        self.failed.inc_by(count);
    }
}

/// What the cache counts.
#[derive(Debug, Clone)]
pub struct CacheMetrics {
    requests: IntCounterVec,
    evictions: IntCounterVec,
    refreshes: IntCounterVec,
    entries: IntGauge,
    bytes: IntGauge,
    stale_entries: IntGauge,
    oldest_entry_age: Gauge,
}

impl CacheMetrics {
    fn new(define: &Definer<'_>) -> Self {
        let metrics = Self {
            requests: define.int_counter_vec(
                "smcached_cache_requests_total",
                "Reads, by group and by how they were served: hit, stale, miss or negative.",
                &["group", "result"],
            ),
            evictions: define.int_counter_vec(
                "smcached_cache_evictions_total",
                "Entries dropped: for size, when idle, when expired, or because AWS revoked them.",
                &["cause"],
            ),
            refreshes: define.int_counter_vec(
                "smcached_refreshes_total",
                "Refreshes of held entries: changed, unchanged, failed (kept), or dropped.",
                &["result"],
            ),
            entries: define.int_gauge("smcached_cache_entries", "Secrets held."),
            bytes: define.int_gauge("smcached_cache_bytes", "Memory that the held secrets account for."),
            stale_entries: define
                .int_gauge("smcached_stale_entries", "Held secrets that are past their ttl."),
            oldest_entry_age: define.gauge(
                "smcached_oldest_entry_age_seconds",
                "Age of the held secret that was fetched longest ago.",
            ),
        };
        for cause in ["size", "idle", "expired", "revoked"] {
            metrics.evictions.with_label_values(&[cause]);
        }
        for result in ["changed", "unchanged", "failed", "dropped"] {
            metrics.refreshes.with_label_values(&[result]);
        }
        metrics
    }

    /// The read counters of one group; resolve once, not per read.
    pub fn group(&self, group: &str) -> GroupMetrics {
        let counter = |result| self.requests.with_label_values(&[group, result]);
        GroupMetrics {
            hit: counter("hit"),
            stale: counter("stale"),
            miss: counter("miss"),
            negative: counter("negative"),
        }
    }

    /// An entry was dropped for `cause`.
    pub fn evicted(&self, cause: &'static str) {
        self.evictions.with_label_values(&[cause]).inc();
    }

    /// A refresh of a held entry ended with `result`.
    pub fn refreshed(&self, result: &'static str) {
        self.refreshes.with_label_values(&[result]).inc();
    }

    /// Sets the gauges that describe what is held.
    pub fn describe(&self, entries: usize, bytes: usize, stale: usize, oldest: Duration) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.entries.set(gauge(entries));
        self.bytes.set(gauge(bytes));
        self.stale_entries.set(gauge(stale));
        self.oldest_entry_age.set(oldest.as_secs_f64());
    }
}

/// The read counters of one group.
#[derive(Debug, Clone)]
pub struct GroupMetrics {
    hit: IntCounter,
    stale: IntCounter,
    miss: IntCounter,
    negative: IntCounter,
}

impl GroupMetrics {
    /// A fresh value was served from memory.
    pub fn hit(&self) {
        self.hit.inc();
    }

    /// A value past its ttl was served.
    pub fn stale(&self) {
        self.stale.inc();
    }

    /// A read had to wait for the source, or asked for that.
    pub fn miss(&self) {
        self.miss.inc();
    }

    /// A cached refusal was served.
    pub fn negative(&self) {
        self.negative.inc();
    }
}

/// What reloads of the configuration count.
#[derive(Debug, Clone)]
pub struct ConfigMetrics {
    reloads: IntCounterVec,
    last_successful: IntGauge,
    last_success: Gauge,
}

impl ConfigMetrics {
    fn new(define: &Definer<'_>) -> Self {
        let metrics = Self {
            reloads: define.int_counter_vec(
                "smcached_config_reloads_total",
                "Times that the configuration was read again: success, or failure (the old one stays).",
                &["result"],
            ),
            last_successful: define.int_gauge(
                "smcached_config_last_reload_successful",
                "1 if the configuration was right when it was last read, else 0: the one before is in effect.",
            ),
            last_success: define.gauge(
                "smcached_config_last_reload_success_timestamp_seconds",
                "When the configuration in effect was read.",
            ),
        };
        for result in ["success", "failure"] {
            metrics.reloads.with_label_values(&[result]);
        }
        metrics
    }

    /// The configuration was read at start.
    pub fn loaded(&self) {
        #[expect(clippy::disallowed_methods, reason = "Prometheus compares it with the wall clock")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_success.set(now.as_secs_f64());
        self.last_successful.set(1);
    }

    /// It was read again and is in effect.
    pub fn reloaded(&self) {
        self.reloads.with_label_values(&["success"]).inc();
        self.loaded();
    }

    /// It was read again and is wrong.
    pub fn reload_failed(&self) {
        self.reloads.with_label_values(&["failure"]).inc();
        self.last_successful.set(0);
    }
}

/// What calls to the source count.
#[derive(Debug, Clone)]
pub struct UpstreamMetrics {
    requests: IntCounterVec,
    durations: HistogramVec,
    throttled: IntCounter,
    failovers: IntCounter,
    open_breakers: IntGauge,
    rate: Gauge,
}

impl UpstreamMetrics {
    fn new(define: &Definer<'_>) -> Self {
        Self {
            requests: define.int_counter_vec(
                "smcached_upstream_requests_total",
                "Calls to the source, by outcome: success, or the kind of error.",
                &["operation", "result"],
            ),
            durations: define.histogram_vec(
                "smcached_upstream_request_duration_seconds",
                "How long calls to the source took.",
                UPSTREAM_BUCKETS,
                &["operation"],
            ),
            throttled: define
                .int_counter("smcached_upstream_throttled_total", "Calls that the source throttled."),
            failovers: define.int_counter(
                "smcached_upstream_failovers_total",
                "Answers that came from a fallback region.",
            ),
            open_breakers: define.int_gauge(
                "smcached_upstream_breakers_open",
                "Regions and roles that do not answer and are only probed.",
            ),
            rate: define.gauge(
                "smcached_upstream_rate_limit",
                "Calls a second that are allowed at present: less than configured after throttling.",
            ),
        }
    }

    /// A call ended; `result` is `success` or the kind of error.
    pub fn called(&self, operation: &'static str, result: &'static str, elapsed: Duration) {
        self.requests.with_label_values(&[operation, result]).inc();
        self.durations.with_label_values(&[operation]).observe(elapsed.as_secs_f64());
        if result == "throttled" {
            self.throttled.inc();
        }
    }

    /// A fallback region answered in the place of another.
    pub fn failed_over(&self) {
        self.failovers.inc();
    }

    /// So many regions and roles are only probed.
    pub fn breakers_open(&self, count: usize) {
        self.open_breakers.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// So many calls a second are allowed.
    pub fn rate_allowed(&self, rate: f64) {
        self.rate.set(rate);
    }
}

/// Creates metrics and registers them. Names are constants of this file, so a failure is a defect.
struct Definer<'a> {
    registry: &'a Registry,
}

impl Definer<'_> {
    #[expect(
        clippy::expect_used,
        reason = "two metrics of one name, or a bad name, can only be a typo in this file"
    )]
    fn register(&self, collector: impl Collector + 'static) {
        self.registry.register(Box::new(collector)).expect("metric names are unique");
    }

    #[expect(clippy::expect_used, reason = "as above")]
    fn made<C: Collector + Clone + 'static>(&self, metric: prometheus::Result<C>) -> C {
        let metric = metric.expect("metric names and labels are valid");
        self.register(metric.clone());
        metric
    }

    fn int_counter(&self, name: &str, help: &str) -> IntCounter {
        self.made(IntCounter::new(name, help))
    }

    fn int_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.made(IntGauge::new(name, help))
    }

    fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.made(Gauge::new(name, help))
    }

    fn int_counter_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.made(IntCounterVec::new(Opts::new(name, help), labels))
    }

    fn int_gauge_vec(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.made(IntGaugeVec::new(Opts::new(name, help), labels))
    }

    fn histogram_vec(&self, name: &str, help: &str, buckets: &[f64], labels: &[&str]) -> HistogramVec {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        self.made(HistogramVec::new(options, labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_daemons_in_one_process_never_meet() {
        let (first, second) = (Metrics::new(), Metrics::new());
        first.cache.group("team-a").hit();
        let page = |metrics: &Metrics| String::from_utf8(metrics.render().unwrap()).unwrap();
        assert!(page(&first).contains("smcached_cache_requests_total{group=\"team-a\",result=\"hit\"} 1"));
        assert!(!page(&second).contains("team-a"));
    }

    #[test]
    fn the_page_has_the_process_metrics() {
        let page = String::from_utf8(Metrics::new().render().unwrap()).unwrap();
        assert!(page.contains("process_resident_memory_bytes"), "{page}");
    }
}
