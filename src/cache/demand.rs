//! What a reader asks of the cache: the request directives of `Cache-Control`, in the meaning of RFC 9111
//! section 5.2.1 and, for `stale-if-error`, RFC 5861 section 4.

use std::time::Duration;

use super::Payer;

/// A reader's demands on freshness. The default takes whatever the cache's own rules allow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Demand {
    /// `no-cache`: ask the source now.
    pub no_cache: bool,
    /// `only-if-cached`: never ask the source.
    pub only_if_cached: bool,
    /// `max-age`: a value older than this is to be revalidated.
    pub max_age: Option<Duration>,
    /// `min-fresh`: a value that stays fresh for less than this is to be revalidated.
    pub min_fresh: Option<Duration>,
    /// `stale-if-error`: with `no-cache`, a held value up to this long stale will do if the source fails.
    pub stale_if_error: Option<Duration>,
    /// Who is charged if the source must be asked; nobody where the daemon reads for itself.
    pub payer: Option<Payer>,
}

impl Demand {
    /// Reads one `Cache-Control` field value into the demand; several are combined.
    ///
    /// Unknown directives are ignored (section 5.2.3). Where a number is missing or malformed the
    /// directive is read in its strictest sense, since a cache must not guess in favour of staleness.
    pub fn add_cache_control(&mut self, value: &str) {
        for directive in value.split(',') {
            let (name, argument) = match directive.split_once('=') {
                Some((name, argument)) => (name.trim(), Some(argument.trim())),
                None => (directive.trim(), None),
            };
            let seconds = || argument.and_then(delta_seconds);
            match name.to_ascii_lowercase().as_str() {
                "no-cache" => self.no_cache = true,
                "only-if-cached" => self.only_if_cached = true,
                "max-age" => {
                    let given = seconds().unwrap_or(Duration::ZERO);
                    self.max_age = Some(self.max_age.map_or(given, |known| known.min(given)));
                }
                "min-fresh" => {
                    let given = seconds().unwrap_or(Duration::MAX);
                    self.min_fresh = Some(self.min_fresh.map_or(given, |known| known.max(given)));
                }
                "stale-if-error" => self.stale_if_error = seconds(),
                _ => {}
            }
        }
    }

    /// Whether a value of this age and ttl is too old for the reader, whatever the cache's own rules.
    pub(super) fn is_too_old(&self, age: Duration, ttl: Duration) -> bool {
        self.max_age.is_some_and(|max_age| age > max_age)
            || self.min_fresh.is_some_and(|min_fresh| ttl.saturating_sub(age) < min_fresh)
    }
}

/// Section 1.2.2: a non-negative integer of seconds; what is too large to represent counts as 2^31.
fn delta_seconds(text: &str) -> Option<Duration> {
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Duration::from_secs(text.parse::<u32>().map_or(1 << 31, u64::from)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand(value: &str) -> Demand {
        let mut demand = Demand::default();
        demand.add_cache_control(value);
        demand
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn directives_are_read_in_any_case_and_order() {
        let expected = Demand {
            no_cache: true,
            only_if_cached: true,
            max_age: Some(SECOND * 30),
            min_fresh: Some(SECOND * 5),
            stale_if_error: Some(SECOND * 60),
            payer: None,
        };
        let value = "Max-Age=30,  no-cache ,ONLY-IF-CACHED, min-fresh=5, stale-if-error=\"60\", no-transform";
        assert_eq!(demand(value), expected);
        assert_eq!(demand("max-stale, no-store, x=1"), Demand::default());
    }

    #[test]
    fn a_malformed_number_is_read_in_its_strictest_sense() {
        for value in ["max-age", "max-age=", "max-age=-1", "max-age=abc", "max-age=1.5"] {
            assert_eq!(demand(value).max_age, Some(Duration::ZERO), "{value}");
        }
        assert_eq!(demand("max-age=30, max-age=10").max_age, Some(SECOND * 10));
        assert_eq!(demand("max-age=99999999999999999999").max_age, Some(SECOND * (1 << 31)));
        assert_eq!(demand("stale-if-error=x").stale_if_error, None);
    }

    #[test]
    fn age_and_remaining_freshness_are_compared_with_what_was_asked() {
        assert!(demand("max-age=10").is_too_old(SECOND * 11, SECOND * 300));
        assert!(!demand("max-age=10").is_too_old(SECOND * 10, SECOND * 300));
        assert!(demand("min-fresh=10").is_too_old(SECOND * 291, SECOND * 300));
        assert!(!demand("min-fresh=10").is_too_old(SECOND * 290, SECOND * 300));
        assert!(demand("min-fresh").is_too_old(Duration::ZERO, SECOND * 300));
    }

    proptest! {
        #[test]
        fn reading_never_panics(value in ".{0,100}") {
            demand(&value);
        }

        #[test]
        fn every_number_of_seconds_is_kept(seconds in 0u32..=u32::MAX) {
            let expected = Some(Duration::from_secs(u64::from(seconds)));
            prop_assert_eq!(demand(&format!("max-age={seconds}")).max_age, expected);
        }
    }
}
