//! What a reader gets at this age. Pure: no clock, no state, one table.
//!
//! The words are those of RFC 9111 (fresh, stale) and RFC 5861 (stale-while-revalidate,
//! stale-if-error); both windows of the latter are counted from the moment at which a value goes stale.

use std::time::Duration;

/// How long a value may be used, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Fresh for this long.
    pub ttl: Duration,
    /// After `ttl`, served at once for this long while a refresh runs.
    pub stale_while_revalidate: Duration,
    /// After `ttl`, served for this long when the source fails.
    pub stale_if_error: Duration,
}

/// What may be done with a value of a certain age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Serve it.
    Fresh,
    /// Serve it at once; one refresh starts.
    StaleWhileRevalidate,
    /// Wait a moment for one shared fetch; serve it when that fails or takes longer.
    StaleIfError,
    /// Never serve it again.
    Expired,
}

impl Lifetimes {
    /// The freshness of a value that was fetched `age` ago.
    pub fn freshness(&self, age: Duration) -> Freshness {
        if age < self.ttl {
            Freshness::Fresh
        } else if age < self.ttl.saturating_add(self.stale_while_revalidate) {
            Freshness::StaleWhileRevalidate
        } else if age < self.ttl.saturating_add(self.stale_if_error) {
            Freshness::StaleIfError
        } else {
            Freshness::Expired
        }
    }

    /// The age from which on a value is never served.
    pub fn expiry(&self) -> Duration {
        self.ttl.saturating_add(self.stale_while_revalidate.max(self.stale_if_error))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lifetimes(ttl: u32, swr: u32, sie: u32) -> Lifetimes {
        Lifetimes { ttl: SECOND * ttl, stale_while_revalidate: SECOND * swr, stale_if_error: SECOND * sie }
    }

    #[test]
    fn the_table() {
        let hour = lifetimes(300, 60, 3600);
        let cases = [
            (0, Freshness::Fresh),
            (299, Freshness::Fresh),
            (300, Freshness::StaleWhileRevalidate),
            (359, Freshness::StaleWhileRevalidate),
            (360, Freshness::StaleIfError),
            (3899, Freshness::StaleIfError),
            (3900, Freshness::Expired),
        ];
        for (age, expected) in cases {
            assert_eq!(hour.freshness(SECOND * age), expected, "{age} s");
        }
    }

    #[test]
    fn windows_of_zero_are_empty() {
        assert_eq!(lifetimes(10, 0, 0).freshness(SECOND * 10), Freshness::Expired);
        assert_eq!(lifetimes(10, 0, 5).freshness(SECOND * 10), Freshness::StaleIfError);
        assert_eq!(lifetimes(10, 5, 0).freshness(SECOND * 12), Freshness::StaleWhileRevalidate);
    }

    proptest! {
        #[test]
        fn a_value_never_gets_fresher_and_expires_exactly_at_its_expiry(
            ttl in 1u32..1000, swr in 0u32..1000, sie in 0u32..1000, age in 0u32..4000
        ) {
            let lifetimes = lifetimes(ttl, swr, sie);
            let rank = |age: u32| match lifetimes.freshness(SECOND * age) {
                Freshness::Fresh => 0,
                Freshness::StaleWhileRevalidate => 1,
                Freshness::StaleIfError => 2,
                Freshness::Expired => 3,
            };
            prop_assert!(rank(age) <= rank(age + 1));
            prop_assert_eq!(rank(age) == 3, SECOND * age >= lifetimes.expiry());
        }
    }
}
