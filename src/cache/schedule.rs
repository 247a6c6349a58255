//! What the clock does next to an entry. Pure: the refresher only waits, asks here, and does it.

use std::time::Duration;

use tokio::time::Instant;

use super::freshness::Lifetimes;

/// The first pause after a failure; each further one doubles it.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// The longest pause between two attempts, and so the longest time that recovery goes unnoticed.
pub const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The part of its ttl after which an entry in use may be refreshed.
const EARLIEST: f64 = 0.75;

/// What the clock needs to know of an entry.
#[derive(Debug, Clone, Copy)]
pub struct EntryClock {
    /// How long the value may be used.
    pub lifetimes: Lifetimes,
    /// When the last successful fetch began.
    pub fetched_at: Instant,
    /// When an entry in use is refreshed ahead of its expiry.
    pub refresh_at: Instant,
    /// When the next attempt may be made; only after a failure.
    pub retry_at: Option<Instant>,
    /// When it was last read.
    pub last_read: Instant,
    /// Whether anybody read it since the last successful fetch.
    pub read_since_fetch: bool,
    /// Whether it is kept fresh though nobody reads it.
    pub is_pinned: bool,
    /// Dropped when not read for this long; zero means never.
    pub idle_timeout: Duration,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing before this moment.
    Wait(Instant),
    /// Fetch it again.
    Refresh,
    /// Forget it, for this cause.
    Drop(DropCause),
}

/// Why the clock drops an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropCause {
    /// Past every window in which it may be served.
    Expired,
    /// Not read for `idle_timeout`.
    Idle,
}

impl EntryClock {
    /// What is to be done at `now`.
    pub fn next_step(&self, now: Instant) -> Step {
        let expires_at = self.fetched_at + self.lifetimes.expiry();
        if now >= expires_at {
            return Step::Drop(DropCause::Expired);
        }
        let idle_at = self.idle_at();
        if idle_at.is_some_and(|idle_at| now >= idle_at) {
            return Step::Drop(DropCause::Idle);
        }
        let in_use = self.read_since_fetch || self.is_pinned;
        let attempt_at = self.retry_at.unwrap_or(self.refresh_at);
        if in_use && now >= attempt_at {
            return Step::Refresh;
        }
        let end = idle_at.map_or(expires_at, |idle_at| idle_at.min(expires_at));
        // An entry that nobody reads is not refreshed; the read that comes later starts that itself.
        Step::Wait(if now < attempt_at { attempt_at.min(end) } else { end })
    }

    /// Whether it may be refreshed before its moment, in a call that is made for others: it will be due soon,
    /// and no failure holds it back.
    pub fn may_go_ahead(&self, now: Instant) -> bool {
        let in_use = self.read_since_fetch || self.is_pinned;
        let is_idle = self.idle_at().is_some_and(|idle_at| now >= idle_at);
        let earliest = self.fetched_at + self.lifetimes.ttl.mul_f64(EARLIEST);
        in_use && !is_idle && self.retry_at.is_none() && now >= earliest
    }

    fn idle_at(&self) -> Option<Instant> {
        (!self.is_pinned && !self.idle_timeout.is_zero()).then(|| self.last_read + self.idle_timeout)
    }
}

/// How long after a fetch an entry in use is refreshed: a random point in the last quarter of `ttl`, so
/// that a fleet does not refresh in step, and early enough that the value is back before `ttl` ends.
pub fn refresh_ahead(ttl: Duration, random: f64) -> Duration {
    ttl.mul_f64(EARLIEST + 0.15 * random.clamp(0.0, 1.0))
}

/// How long to wait after `failures` failures in a row: exponential, capped, jittered over its upper
/// half, and never shorter than the source asked for.
pub fn backoff(failures: u32, retry_after: Option<Duration>, random: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let longest = FIRST_BACKOFF.saturating_mul(1 << doublings).min(MAX_BACKOFF);
    let jittered = longest.mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
    jittered.max(retry_after.unwrap_or_default().min(MAX_BACKOFF))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// An entry fetched now: ttl 100 s, served until 1,100 s, refreshed ahead at 80 s, idle after 500 s.
    fn clock(now: Instant) -> EntryClock {
        EntryClock {
            lifetimes: Lifetimes {
                ttl: SECOND * 100,
                stale_while_revalidate: SECOND * 50,
                stale_if_error: SECOND * 1000,
            },
            fetched_at: now,
            refresh_at: now + SECOND * 80,
            retry_at: None,
            last_read: now,
            read_since_fetch: false,
            is_pinned: false,
            idle_timeout: SECOND * 500,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_in_use_is_refreshed_ahead() {
        let start = Instant::now();
        let used = EntryClock { read_since_fetch: true, ..clock(start) };
        assert_eq!(used.next_step(start), Step::Wait(start + SECOND * 80));
        assert_eq!(used.next_step(start + SECOND * 80), Step::Refresh);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_nobody_reads_is_left_alone_until_it_is_idle() {
        let start = Instant::now();
        let unread = clock(start);
        assert_eq!(unread.next_step(start + SECOND * 80), Step::Wait(start + SECOND * 500));
        assert_eq!(unread.next_step(start + SECOND * 500), Step::Drop(DropCause::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pinned_entry_is_refreshed_unread_and_never_idle() {
        let start = Instant::now();
        let pinned = EntryClock { is_pinned: true, ..clock(start) };
        assert_eq!(pinned.next_step(start + SECOND * 80), Step::Refresh);
        assert_eq!(pinned.next_step(start + SECOND * 600), Step::Refresh);
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_the_next_attempt_waits_for_its_turn() {
        let start = Instant::now();
        let failing =
            EntryClock { read_since_fetch: true, retry_at: Some(start + SECOND * 90), ..clock(start) };
        assert_eq!(failing.next_step(start + SECOND * 85), Step::Wait(start + SECOND * 90));
        assert_eq!(failing.next_step(start + SECOND * 90), Step::Refresh);
    }

    #[tokio::test(start_paused = true)]
    async fn in_its_last_quarter_an_entry_in_use_may_go_ahead_with_others() {
        let start = Instant::now();
        let used = EntryClock { read_since_fetch: true, ..clock(start) };
        assert!(!used.may_go_ahead(start + SECOND * 74) && used.may_go_ahead(start + SECOND * 75));
        assert!(!clock(start).may_go_ahead(start + SECOND * 75), "nobody reads it");
        let failing = EntryClock { retry_at: Some(start), ..used };
        assert!(!failing.may_go_ahead(start + SECOND * 75), "its own backoff counts");
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_past_every_window_is_dropped_even_when_in_use() {
        let start = Instant::now();
        let used = EntryClock { read_since_fetch: true, last_read: start + SECOND * 1099, ..clock(start) };
        assert_eq!(used.next_step(start + SECOND * 1100), Step::Drop(DropCause::Expired));
    }

    #[test]
    fn backoff_doubles_up_to_its_cap_and_heeds_the_source() {
        assert_eq!(backoff(1, None, 1.0), Duration::from_millis(500));
        assert_eq!(backoff(3, None, 1.0), Duration::from_secs(2));
        assert_eq!(backoff(30, None, 1.0), MAX_BACKOFF);
        assert_eq!(backoff(1, Some(SECOND * 7), 0.0), SECOND * 7);
    }

    proptest! {
        #[test]
        fn refreshing_ahead_lies_in_the_last_quarter(ttl in 1u64..1_000_000, random in 0.0f64..1.0) {
            let ttl = Duration::from_millis(ttl);
            let ahead = refresh_ahead(ttl, random);
            prop_assert!(ahead >= ttl.mul_f64(0.75) && ahead < ttl);
        }

        #[test]
        fn backoff_stays_within_its_bounds(failures in 0u32..10_000, random in 0.0f64..1.0) {
            let pause = backoff(failures, None, random);
            prop_assert!(pause >= FIRST_BACKOFF / 2 && pause <= MAX_BACKOFF);
        }

        #[test]
        fn waiting_always_ends_in_the_future(elapsed in 0u64..1200, read: bool, pinned: bool) {
            let start = Instant::now();
            let now = start + SECOND * u32::try_from(elapsed).unwrap();
            let clock = EntryClock { read_since_fetch: read, is_pinned: pinned, ..clock(start) };
            if let Step::Wait(until) = clock.next_step(now) {
                prop_assert!(until > now);
            }
        }
    }
}
