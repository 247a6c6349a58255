//! Header values of a hit that are rendered once and shared: small numbers, and what contains them.

use std::sync::OnceLock;

use hyper::header::HeaderValue;

/// Ages and remaining lifetimes below this many seconds are kept; those above are rendered each time.
const KEPT: usize = 512;

/// The `Age` and `Cache-Status` values of hits.
#[derive(Debug)]
pub(super) struct HitHeaders {
    ages: Box<[OnceLock<HeaderValue>]>,
    hits: Box<[OnceLock<HeaderValue>]>,
}

impl Default for HitHeaders {
    fn default() -> Self {
        let empty = || (0..KEPT).map(|_| OnceLock::new()).collect();
        Self { ages: empty(), hits: empty() }
    }
}

impl HitHeaders {
    /// `Age` (RFC 9111 section 5.1).
    pub(super) fn age(&self, seconds: u64) -> HeaderValue {
        kept(&self.ages, seconds, || HeaderValue::from(seconds))
    }

    /// `Cache-Status` of a fresh hit (RFC 9211).
    pub(super) fn fresh_hit(&self, ttl: u64) -> HeaderValue {
        kept(&self.hits, ttl, || rendered(&format!("smcached; hit; ttl={ttl}")))
    }
}

fn kept(values: &[OnceLock<HeaderValue>], at: u64, render: impl Fn() -> HeaderValue) -> HeaderValue {
    let cell = usize::try_from(at).ok().and_then(|at| values.get(at));
    cell.map_or_else(&render, |cell| cell.get_or_init(&render).clone())
}

/// A value from text of ours, which is ASCII; what is not becomes empty rather than a panic.
pub(super) fn rendered(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_and_rendered_values_read_the_same() {
        let headers = HitHeaders::default();
        for seconds in [0, 7, KEPT as u64 - 1, KEPT as u64, 86_400] {
            for _ in 0..2 {
                assert_eq!(headers.age(seconds), seconds.to_string());
                assert_eq!(headers.fresh_hit(seconds), format!("smcached; hit; ttl={seconds}"));
            }
        }
    }
}
