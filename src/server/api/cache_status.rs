//! What every way in tells of an answer's origin: its age, and how the cache came by it.

use hyper::header::{AGE, CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue};

use crate::cache::{Answer, Forward, ReadError, Served};
use crate::server::headers::rendered;
use crate::server::problem::Problem;

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Adds `Age`, `Cache-Control` and `Cache-Status`.
pub(super) fn note_source(headers: &mut HeaderMap, answer: &Answer) {
    headers.insert(AGE, answer.age.as_secs().into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CACHE_STATUS, cache_status(answer));
}

/// How the answer came about (RFC 9211). `ttl` and `Age` add up to the entry's whole lifetime.
fn cache_status(answer: &Answer) -> HeaderValue {
    let (ttl, age) = (answer.held.policy.lifetimes.ttl.as_secs(), answer.age.as_secs());
    let detail = match answer.served {
        Served::Hit => return rendered(&format!("smcached; hit; ttl={}", ttl.saturating_sub(age))),
        Served::StaleWhileRevalidate => "stale-while-revalidate",
        Served::StaleIfError => "stale-if-error",
        Served::Fetched { forward, collapsed } => {
            let reason = match forward {
                Forward::Miss => "miss",
                Forward::Stale => "stale",
                Forward::Request => "request",
            };
            let collapsed = if collapsed { "; collapsed" } else { "" };
            return rendered(&format!("smcached; fwd={reason}; stored{collapsed}"));
        }
    };
    let sign = if age > ttl { "-" } else { "" };
    rendered(&format!("smcached; hit; ttl={sign}{}; detail={detail}", age.abs_diff(ttl)))
}

/// A read that failed, as an answer that tells how.
pub(in crate::server) fn failed(error: ReadError) -> Problem {
    let status = failed_status(&error);
    Problem::from(error).cache_status(status)
}

/// The `Cache-Status` of a read that failed.
fn failed_status(error: &ReadError) -> HeaderValue {
    match error {
        ReadError::NotHeld => HeaderValue::from_static("smcached; detail=only-if-cached"),
        ReadError::ForcedTooOften { .. } => {
            HeaderValue::from_static("smcached; detail=forced-refresh-limited")
        }
        ReadError::CallerOverBudget { .. } => {
            HeaderValue::from_static("smcached; detail=caller-rate-limited")
        }
        ReadError::Source { remembered_for: Some(left), .. } => {
            rendered(&format!("smcached; hit; ttl={}; detail=negative", left.as_secs()))
        }
        ReadError::Source { error, remembered_for: None } => {
            rendered(&format!("smcached; fwd=miss; detail={}", error.kind()))
        }
    }
}
