//! Bounds on all calls to the source together: how many at a time, how many a second.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// One concurrency limit and one token bucket over all upstream calls.
#[derive(Debug)]
pub(super) struct Limits {
    slots: Arc<Semaphore>,
    bucket: Mutex<Bucket>,
}

/// A token bucket in its virtual-scheduling form (GCRA): it keeps a moment, not a count.
#[derive(Debug)]
struct Bucket {
    /// The time that one call takes from the bucket.
    interval: Duration,
    /// How far the schedule may run behind the clock: a full bucket, one second's worth.
    burst: Duration,
    /// When the bucket would be full again.
    full_at: Instant,
}

impl Bucket {
    fn new(rate: u32, now: Instant) -> Self {
        let interval = Duration::from_secs(1) / rate.max(1);
        Self { interval, burst: Duration::from_secs(1).saturating_sub(interval), full_at: now }
    }

    /// Takes a token and says how long to wait before using it.
    fn take(&mut self, now: Instant) -> Duration {
        let start = self.full_at.max(now);
        self.full_at = start + self.interval;
        (start - now).saturating_sub(self.burst)
    }
}

impl Limits {
    pub(super) fn new(max_concurrency: u32, rate: u32) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(max_concurrency.max(1) as usize)),
            bucket: Mutex::new(Bucket::new(rate, Instant::now())),
        }
    }

    /// Waits for this call's turn. The call is under way until the permit is dropped; `None` only at
    /// shutdown.
    pub(super) async fn enter(&self) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        let pause = self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Some(permit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_second_never_sees_more_than_a_bucketful_and_then_the_rate() {
        let limits = Limits::new(1000, 50);
        let start = Instant::now();
        for _ in 0..50 {
            drop(limits.enter().await);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            drop(limits.enter().await);
        }
        assert_eq!(start.elapsed().as_millis(), 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_at_a_time_than_allowed() {
        let limits = Limits::new(2, 1000);
        let (first, _second) = (limits.enter().await, limits.enter().await);
        let third = tokio::time::timeout(Duration::from_secs(1), limits.enter());
        assert!(third.await.is_err());
        drop(first);
        assert!(limits.enter().await.is_some());
    }
}
