//! The head of a cached read, as a server sends it that thinks of nothing.

use hyper::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue};

/// Adds the same header fields that a hit has.
pub(crate) fn add_head(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(ETAG, HeaderValue::from_static("\"0123456789abcdef0123456789abcdef\""));
    headers.insert(AGE, HeaderValue::from_static("1"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let cache_status = HeaderValue::from_static("smcached; hit; ttl=3599");
    headers.insert(HeaderName::from_static("cache-status"), cache_status);
}
