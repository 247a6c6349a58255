//! Pauses between attempts: each twice as long as the one before up to a limit, and jittered, so that those who
//! failed together do not come back together.

use std::time::Duration;

/// The pauses of one row of failures.
#[derive(Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// How long to pause after another failure; `jitter` is from 0 to 1.
    pub(super) fn pause(&mut self, jitter: f64) -> Duration {
        let pause = self.next.mul_f64(0.5 + 0.5 * jitter);
        self.next = (self.next * 2).min(self.longest);
        pause
    }

    /// It went well: the next failure is the first of a row.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(seconds(1), seconds(5));
        let pauses: Vec<u64> = (0..5).map(|_| backoff.pause(1.0).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 5, 5]);
        assert_eq!(backoff.pause(0.0), Duration::from_millis(2500));
        backoff.reset();
        assert_eq!(backoff.pause(0.5), Duration::from_millis(750));
    }
}
