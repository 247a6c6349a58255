//! Whether batches work at an endpoint. Pure: the clock is an argument.
//!
//! Where they are denied or unknown that is noticed once, and single calls are made; much later they are tried
//! again. The same for a while where they are throttled or garbled again and again: AWS allows 100 batches
//! a second in an account and region, but 10,000 single calls
//! (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).

use std::time::Duration;

use tokio::time::Instant;

use crate::source::{BatchError, SourceError};

/// Where batches are not supported, they are tried again after this time, jittered by a quarter.
const UNSUPPORTED_FOR: Duration = Duration::from_hours(1);

/// Where they are supported and fail, after this time, jittered likewise.
const FAILING_FOR: Duration = Duration::from_mins(5);

/// So many batches in a row that were throttled or garbled, and single calls are made for a while.
const MAX_STRIKES: u32 = 9;

/// Whether batches work at an endpoint.
#[derive(Debug, Default)]
pub struct Ability {
    /// The last batch was answered. Until then batches go one by one, so that their lack costs one call.
    is_proven: bool,
    missing_until: Option<Instant>,
    strikes: u32,
}

impl Ability {
    /// Whether the last batch was answered.
    pub fn is_proven(&self) -> bool {
        self.is_proven
    }

    /// Whether batches are to be made.
    pub fn is_there(&self, now: Instant) -> bool {
        self.missing_until.is_none_or(|until| now >= until)
    }

    /// Notes how a batch ended; true if batches are given up for now.
    pub fn note(&mut self, error: Option<&BatchError>, now: Instant, random: f64) -> bool {
        let pause = match error {
            Some(BatchError::Unsupported) => UNSUPPORTED_FOR,
            Some(BatchError::Failed(SourceError::Throttled { .. } | SourceError::Unusable { .. })) => {
                self.strikes += 1;
                if self.strikes < MAX_STRIKES {
                    return false;
                }
                FAILING_FOR
            }
            // These say nothing of batches as such.
            Some(BatchError::Failed(_)) => return false,
            None => {
                *self = Self { is_proven: true, ..Self::default() };
                return false;
            }
        };
        let until = now + pause.mul_f64(0.75 + 0.5 * random);
        *self = Self { missing_until: Some(until), ..Self::default() };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_unsupported_is_tried_again_much_later_and_what_fails_a_little_later() {
        let start = Instant::now();
        let mut ability = Ability::default();
        assert!(ability.note(Some(&BatchError::Unsupported), start, 0.5));
        assert!(!ability.is_there(start + UNSUPPORTED_FOR / 2) && ability.is_there(start + UNSUPPORTED_FOR));
        let throttled = BatchError::Failed(SourceError::Throttled { retry_after: None });
        let mut ability = Ability::default();
        for _ in 0..3 {
            for _ in 1..MAX_STRIKES {
                assert!(!ability.note(Some(&throttled), start, 0.5));
            }
            assert!(!ability.note(None, start, 0.5), "an answer in between");
        }
        for strike in 1..=MAX_STRIKES {
            assert_eq!(ability.note(Some(&throttled), start, 0.5), strike == MAX_STRIKES);
        }
        assert!(!ability.is_there(start) && ability.is_there(start + FAILING_FOR));
        let refused = BatchError::Failed(SourceError::Timeout);
        assert!((0..9).all(|_| !ability.note(Some(&refused), start, 0.5)), "the breaker's business");
    }
}
