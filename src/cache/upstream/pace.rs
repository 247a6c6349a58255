//! How many calls may start. Pure: the clock is an argument.
//!
//! A bucket of `rate` tokens, each of which comes back one second after it was taken, so that no second ever
//! sees more than `rate` calls. Being throttled shrinks the bucket at once; it grows back along the curve of
//! CUBIC (RFC 9438 section 4.2), as the AWS SDKs' adaptive mode does: quickly at first, slowly around the rate
//! at which it was throttled, and quickly again when that turns out to be history.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// CUBIC's `C`: how fast the rate grows, in calls per second and cubic second.
const GROWTH: f64 = 0.4;

/// What is left of the rate right after throttling.
const CUT: f64 = 0.5;

/// Where the rate settles, as a part of the rate at which it was throttled: below, so that it stays there a while.
const PLATEAU: f64 = 0.9;

/// Throttling is heeded once in this time: the answers of one crowded moment are one event.
const CUT_INTERVAL: Duration = Duration::from_secs(1);

/// The longest `Retry-After` that is heeded. A longer one would outlast the caches that wait for it.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// The lowest rate, in calls a second.
const MIN_RATE: f64 = 0.2;

/// Says when calls may start.
#[derive(Debug)]
pub struct Pace {
    /// The configured bound, in calls a second.
    rate: f64,
    cut: Option<Cut>,
    /// Nothing starts before this: the source asked for a pause.
    not_before: Option<Instant>,
    /// When the latest calls started, oldest first.
    starts: VecDeque<Instant>,
}

/// How the rate was lowered.
#[derive(Debug, Clone, Copy)]
struct Cut {
    at: Instant,
    /// Where growth slows down, in calls a second.
    plateau: f64,
    /// From the cut until the plateau, in seconds.
    rise: f64,
}

impl Cut {
    fn allowed(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        GROWTH.mul_add((since - self.rise).powi(3), self.plateau)
    }
}

impl Pace {
    /// A full bucket of `rate` tokens, at least one.
    pub fn new(rate: u32) -> Self {
        Self { rate: f64::from(rate.max(1)), cut: None, not_before: None, starts: VecDeque::new() }
    }

    /// Changes the configured bound and forgets nothing else.
    pub fn set_rate(&mut self, rate: u32) {
        self.rate = f64::from(rate.max(1));
    }

    /// The calls a second that are allowed now: the configured rate, or less after throttling.
    pub fn allowed(&self, now: Instant) -> f64 {
        self.cut.map_or(self.rate, |cut| cut.allowed(now).clamp(MIN_RATE.min(self.rate), self.rate))
    }

    /// How much longer the source wants to be left alone.
    pub fn pause(&self, now: Instant) -> Option<Duration> {
        self.not_before.map(|until| until.saturating_duration_since(now)).filter(|pause| !pause.is_zero())
    }

    /// Whether throttling has lowered the rate.
    pub fn is_slowed(&self, now: Instant) -> bool {
        self.allowed(now) < self.rate
    }

    /// When there is a token, as things are.
    pub fn next(&self, now: Instant) -> Instant {
        let allowed = self.allowed(now);
        let tokens = allowed.ceil();
        let returned_after = Duration::from_secs_f64(tokens / allowed);
        let token = self.nth_last_start(tokens).map_or(now, |taken| taken + returned_after);
        token.max(now).max(self.not_before.unwrap_or(now))
    }

    /// Takes a token for a call that starts now; else says when to ask again.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let next = self.next(now);
        if next > now {
            return Err(next);
        }
        if !self.is_slowed(now) {
            self.cut = None;
        }
        self.starts.push_back(now);
        while self.nth_last_start(self.rate + 1.0).is_some() {
            self.starts.pop_front();
        }
        Ok(())
    }

    /// The source throttles: halves the rate at which calls were in fact made, and heeds its `Retry-After`.
    pub fn throttled(&mut self, now: Instant, retry_after: Option<Duration>) {
        if let Some(pause) = retry_after {
            self.not_before = self.not_before.max(Some(now + pause.min(MAX_PAUSE)));
        }
        if self.cut.is_some_and(|cut| now < cut.at + CUT_INTERVAL) {
            return;
        }
        let made = self.starts.iter().rev().take_while(|start| now < **start + CUT_INTERVAL).count();
        let made = u32::try_from(made).map_or(self.rate, f64::from);
        let throttled_at = self.allowed(now).min(made.max(1.0));
        let plateau = throttled_at * PLATEAU;
        let rise = ((plateau - throttled_at * CUT) / GROWTH).cbrt();
        self.cut = Some(Cut { at: now, plateau, rise });
    }

    /// The start of the last call but `count - 1`; `count` is a whole number.
    fn nth_last_start(&self, count: f64) -> Option<Instant> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to 10,001")]
        let index = self.starts.len().checked_sub(count as usize)?;
        self.starts.get(index).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Takes whatever it can for `length` and returns the moments.
    fn run(pace: &mut Pace, start: Instant, length: Duration, quota: Option<f64>) -> Vec<Instant> {
        let (mut now, mut taken) = (start, Vec::new());
        while now < start + length {
            match pace.take(now) {
                Ok(()) => {
                    taken.push(now);
                    let recent = taken.iter().rev().take_while(|at| now < **at + SECOND).count();
                    if quota.is_some_and(|quota| f64::from(u32::try_from(recent).unwrap()) > quota) {
                        pace.throttled(now, None);
                    }
                    now += Duration::from_millis(1);
                }
                Err(again) => {
                    assert!(again > now);
                    now = again;
                }
            }
        }
        taken
    }

    fn within(moments: &[Instant], from: Instant, length: Duration) -> usize {
        moments.iter().filter(|at| **at >= from && **at < from + length).count()
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_sees_more_than_the_rate_and_every_second_may_see_it() {
        let (mut pace, start) = (Pace::new(50), Instant::now());
        let taken = run(&mut pace, start, SECOND * 10, None);
        for at in &taken {
            assert!(within(&taken, *at, SECOND) <= 50);
        }
        assert_eq!(taken.len(), 500);
    }

    #[tokio::test(start_paused = true)]
    async fn throttled_at_half_of_what_is_asked_the_rate_settles_below_and_recovers() {
        let (mut pace, start) = (Pace::new(100), Instant::now());
        let taken = run(&mut pace, start, SECOND * 60, Some(50.0));
        let settled = within(&taken, start + SECOND * 20, SECOND * 40) / 40;
        assert!((35..50).contains(&settled), "{settled} a second");
        let later = start + SECOND * 60;
        let recovered = run(&mut pace, later, SECOND * 20, None);
        assert!(within(&recovered, later + SECOND * 15, SECOND) >= 95);
        assert!(!pace.is_slowed(later + SECOND * 20));
    }

    #[tokio::test(start_paused = true)]
    async fn one_crowded_moment_is_one_cut() {
        let (mut pace, start) = (Pace::new(100), Instant::now());
        for _ in 0..40 {
            pace.take(start).unwrap();
        }
        for _ in 0..40 {
            pace.throttled(start, None);
        }
        assert!((pace.allowed(start) - 20.0).abs() < 0.1, "half of what was asked, not of what was allowed");
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_is_heeded_up_to_half_a_minute() {
        let (mut pace, start) = (Pace::new(100), Instant::now());
        pace.throttled(start, Some(SECOND * 7));
        assert_eq!(pace.take(start), Err(start + SECOND * 7));
        pace.throttled(start, Some(SECOND * 3));
        assert_eq!(pace.pause(start), Some(SECOND * 7), "the longer pause counts");
        assert_eq!(pace.take(start + SECOND * 7), Ok(()));
        pace.throttled(start, Some(SECOND * 7000));
        assert_eq!(pace.pause(start), Some(MAX_PAUSE));
    }

    #[tokio::test(start_paused = true)]
    async fn however_often_it_is_throttled_some_calls_go_out() {
        let (mut pace, start) = (Pace::new(50), Instant::now());
        let taken = run(&mut pace, start, SECOND * 300, Some(0.0));
        assert!(within(&taken, start + SECOND * 200, SECOND * 100) >= 15);
        assert!(within(&taken, start + SECOND * 200, SECOND * 100) <= 100);
    }
}
