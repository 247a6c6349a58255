//! Trying again until a deadline.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::failed::Failed;
use crate::cli::backoff::Backoff;

const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Whatever is asked for: a pod waits for us.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Attempts until one succeeds, one fails for good, or there is no time for another.
pub(super) async fn until<T, E: Into<Failed>>(
    deadline: Instant,
    mut attempt: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, Failed> {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut last = None;
    loop {
        let failed: Failed = match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => error.into(),
            // The failure before says more.
            Err(_) => return Err(last.unwrap_or_else(no_answer)),
        };
        let pause = pause(&failed, backoff.pause(fastrand::f64()));
        if !failed.may_pass() || Instant::now() + pause >= deadline {
            return Err(failed);
        }
        last = Some(failed);
        sleep(pause).await;
    }
}

/// At least as long as we are asked to wait, within bounds.
fn pause(failed: &Failed, planned: Duration) -> Duration {
    failed.retry_after().map_or(planned, |asked| asked.max(planned)).min(LONGEST_PAUSE)
}

fn no_answer() -> Failed {
    Failed::Unavailable { detail: "no answer in time".to_owned(), retry_after: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttled(seconds: u64) -> Failed {
        Failed::Throttled { retry_after: Some(Duration::from_secs(seconds)) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_and_retry_after_is_heeded() {
        let began = Instant::now();
        let mut attempts = 0;
        let outcome = until(began + Duration::from_mins(1), async || {
            attempts += 1;
            if attempts < 4 { Err(throttled(2)) } else { Ok(attempts) }
        });
        assert_eq!(outcome.await, Ok(4));
        assert!(began.elapsed() >= Duration::from_secs(6) && began.elapsed() < Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_final_is_not_tried_again() {
        let mut attempts = 0;
        let outcome: Result<(), _> = until(Instant::now() + Duration::from_mins(1), async || {
            attempts += 1;
            Err(Failed::NotFound)
        })
        .await;
        assert_eq!((outcome, attempts), (Err(Failed::NotFound), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds_whatever_happens() {
        for timeout in [0, 1, 7, 60].map(Duration::from_secs) {
            let began = Instant::now();
            let outcome: Result<(), _> = until(began + timeout, async || Err(throttled(3600))).await;
            assert_eq!(outcome, Err(throttled(3600)));
            assert!(began.elapsed() <= timeout && began.elapsed() + LONGEST_PAUSE >= timeout);
            let hanging: Result<(), _> =
                until(Instant::now() + timeout, async || std::future::pending::<Result<(), Failed>>().await)
                    .await;
            assert_eq!(hanging, Err(no_answer()));
            assert!(began.elapsed() <= timeout * 2);
        }
    }

    #[test]
    fn no_pause_is_longer_than_the_longest() {
        let planned = Duration::from_secs(1);
        let pauses = [0, 2, 3600].map(|asked| pause(&throttled(asked), planned).as_secs());
        assert_eq!(pauses, [1, 2, 5]);
    }
}
