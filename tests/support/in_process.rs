//! The way of a read within one process: a cache over a file of secrets, and a listener's service over that.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use smcached::access::Gate;
use smcached::audit::Audit;
use smcached::cache::{Cache, CacheOptions, CallOptions, Lifetimes, Policies, Settings};
use smcached::lifecycle::Readiness;
use smcached::metrics::Metrics;
use smcached::net::Peer;
use smcached::secret::Resolver;
use smcached::server::{Rules, SecretService, Shared};
use smcached::source::file::FileSource;

/// Who reads.
#[allow(dead_code, reason = "not everybody who includes this file makes connections up")]
pub(crate) const PEER: Peer = Peer::Unix { uid: 1000, gid: 1000, pid: None };

/// What serves on a Unix socket, for whomever it lets in.
pub(crate) fn service(cache: Cache, resolver: Resolver) -> SecretService {
    let shared = Shared::new(cache, Arc::new(resolver), Readiness::default(), None, Audit::off());
    let rules = Arc::new(ArcSwap::from_pointee(Rules::new(Gate::default(), None)));
    SecretService::new(Arc::new(shared), rules, "unix".to_owned(), Metrics::new().http, 1)
}

/// A cache that gets `bench/<size>` from a file, for each of the sizes. To be called within a runtime.
pub(crate) fn cache(sizes: &[usize], resolver: Resolver) -> Cache {
    let file = tempfile::NamedTempFile::new().unwrap();
    let secret =
        |size: &usize| format!("[[secret]]\nname = \"bench/{size}\"\nstring = \"{}\"\n", "x".repeat(*size));
    fs::write(file.path(), sizes.iter().map(secret).collect::<String>()).unwrap();
    let source = FileSource::open(file.path()).unwrap();
    let hour = Duration::from_hours(1);
    let lifetimes = Lifetimes { ttl: hour, stale_while_revalidate: hour, stale_if_error: hour };
    let options = CacheOptions {
        lifetimes,
        negative_ttl: hour,
        idle_timeout: Duration::ZERO,
        fetch_timeout: hour,
        revalidate_timeout: hour,
        max_bytes: 1 << 20,
    };
    let calls = CallOptions {
        fetch_timeout: hour,
        max_attempts: 1,
        max_concurrency: 10,
        rate: 100,
        rate_per_caller: 100,
        batch: false,
    };
    let metrics = Metrics::new();
    let policies = Policies::new(Arc::new(resolver), lifetimes, &metrics.cache);
    Cache::new(Arc::new(source), Settings { options, calls, policies }, metrics)
}
