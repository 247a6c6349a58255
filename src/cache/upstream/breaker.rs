//! A circuit breaker: stops asking an endpoint that is dead, and probes it. Pure: the clock is an argument.

use std::time::Duration;

use tokio::time::Instant;

use crate::cache::schedule;
use crate::secret::SecretId;
use crate::source::SourceError;

/// So many failures in a row, of more than one secret, and the endpoint is taken for dead.
const OPENS_AFTER: u32 = 5;

/// A probe that has no outcome after this time is forgotten, and another may be made.
const PROBE_LEASE: Duration = Duration::from_secs(10);

/// One region and role's breaker.
#[derive(Debug, Default)]
pub struct Breaker {
    failures: u32,
    /// The secret whose failure began the streak. One that always fails says nothing of the endpoint.
    first: Option<SecretId>,
    is_of_several: bool,
    open: Option<Open>,
}

/// What is known while calls are refused.
#[derive(Debug, Clone)]
struct Open {
    since: Instant,
    probe_at: Instant,
    error: SourceError,
}

/// What a call's end did to the breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It stayed as it was.
    None,
    /// It opened: nothing is asked from now on but a probe now and then.
    Opened,
    /// It closed after having been open for this long.
    Closed {
        /// How long.
        after: Duration,
    },
}

impl Breaker {
    /// Whether a call would be refused now, and with what error.
    pub fn refusal(&self, now: Instant) -> Option<&SourceError> {
        self.open.as_ref().filter(|open| now < open.probe_at).map(|open| &open.error)
    }

    /// While calls are refused or probes: when the next probe may go out.
    pub fn probe_at(&self) -> Option<Instant> {
        self.open.as_ref().map(|open| open.probe_at)
    }

    /// Lets a call go out, as a probe where it must be one; else the error that calls end with at present.
    pub fn admit(&mut self, now: Instant) -> Result<(), SourceError> {
        if let Some(error) = self.refusal(now) {
            return Err(error.clone());
        }
        if let Some(open) = &mut self.open {
            open.probe_at = now + PROBE_LEASE;
        }
        Ok(())
    }

    /// Notes how a call about `id` ended; a call about several names any two.
    pub fn note<'a>(
        &mut self,
        ids: impl IntoIterator<Item = &'a SecretId>,
        error: Option<&SourceError>,
        now: Instant,
        random: f64,
    ) -> Change {
        let Some(error) = error.filter(|error| error.is_about_the_endpoint()) else {
            let closed = std::mem::take(self);
            return closed.open.map_or(Change::None, |open| Change::Closed { after: now - open.since });
        };
        self.failures = self.failures.saturating_add(1);
        for id in ids {
            self.is_of_several |= *self.first.get_or_insert_with(|| id.clone()) != *id;
        }
        if self.failures < OPENS_AFTER || !self.is_of_several {
            return Change::None;
        }
        let probe_at = now + schedule::backoff(self.failures - OPENS_AFTER + 1, None, random);
        let since = self.open.as_ref().map(|open| open.since);
        self.open = Some(Open { since: since.unwrap_or(now), probe_at, error: error.clone() });
        if since.is_none() { Change::Opened } else { Change::None }
    }

    /// Whether calls are refused or probes.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn id(name: &str) -> SecretId {
        SecretId::parse(name).unwrap()
    }

    fn fail(breaker: &mut Breaker, name: &str, now: Instant) -> Change {
        breaker.note([&id(name)], Some(&SourceError::Timeout), now, 1.0)
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        for name in ["a", "b", "a", "b"] {
            assert_eq!(fail(&mut breaker, name, now), Change::None);
        }
        assert_eq!(fail(&mut breaker, "a", now), Change::Opened);
        breaker
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_endpoint_is_left_alone_and_probed_ever_more_rarely() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(breaker.admit(now), Err(SourceError::Timeout));
        let first_probe = now + SECOND / 2;
        assert_eq!(breaker.probe_at(), Some(first_probe));
        assert_eq!(breaker.admit(first_probe), Ok(()));
        assert_eq!(breaker.admit(first_probe), Err(SourceError::Timeout), "one probe at a time");
        fail(&mut breaker, "a", first_probe);
        assert!(breaker.refusal(first_probe + SECOND - SECOND / 100).is_some());
        assert_eq!(breaker.admit(first_probe + SECOND), Ok(()));
        for _ in 0..20 {
            fail(&mut breaker, "a", first_probe);
        }
        assert_eq!(breaker.admit(first_probe + schedule::MAX_BACKOFF), Ok(()), "the cap of recovery");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_closes_it_be_it_a_refusal() {
        for answer in [None, Some(SourceError::NotFound), Some(SourceError::DecryptionFailure)] {
            let now = Instant::now();
            let mut breaker = opened(now);
            let change = breaker.note([&id("a")], answer.as_ref(), now + SECOND, 1.0);
            assert_eq!(change, Change::Closed { after: SECOND });
            assert_eq!(breaker.admit(now + SECOND), Ok(()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_secret_that_always_fails_says_nothing_of_the_endpoint() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(fail(&mut breaker, "a", now), Change::None);
        }
        assert_eq!(fail(&mut breaker, "b", now), Change::Opened);
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_without_an_outcome_is_forgotten() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.admit(now + SECOND).unwrap();
        assert!(breaker.admit(now + SECOND + PROBE_LEASE / 2).is_err());
        assert_eq!(breaker.admit(now + SECOND + PROBE_LEASE), Ok(()));
    }
}
