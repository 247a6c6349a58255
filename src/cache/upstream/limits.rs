//! Bounds on all calls to the source together: how many a second, how many at a time, and whose turn it is.
//!
//! Readers who have nothing come before refreshes, which only renew what is held; but neither can starve
//! the other: each has a share of the places, and while both wait they take turns.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::pace::Pace;
use crate::source::SourceError;

/// Who waits for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// A reader who has nothing.
    Cold,
    /// Nobody, or a reader who has a stale value.
    Refresh,
}

/// One token bucket and one concurrency limit over all upstream calls.
#[derive(Debug)]
pub(super) struct Limits {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    pace: Pace,
    max_concurrency: usize,
    cold: Line,
    refresh: Line,
    /// Whose turn it was last.
    was_cold: bool,
    /// When the next look at the bucket is planned.
    wakes_at: Option<Instant>,
}

/// Those of one class.
#[derive(Debug, Default)]
struct Line {
    under_way: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// A call under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    limits: Option<Arc<Limits>>,
    class: Class,
}

impl Limits {
    pub(super) fn new(max_concurrency: u32, rate: u32) -> Arc<Self> {
        let state = State {
            pace: Pace::new(rate),
            max_concurrency: max_concurrency.max(1) as usize,
            cold: Line::default(),
            refresh: Line::default(),
            was_cold: false,
            wakes_at: None,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Other bounds from now on. Calls under way are not touched.
    pub(super) fn reconfigure(self: &Arc<Self>, max_concurrency: u32, rate: u32) {
        let mut state = self.lock();
        state.pace.set_rate(rate);
        state.max_concurrency = max_concurrency.max(1) as usize;
        state.wakes_at = None;
        self.let_in(&mut state);
    }

    /// Waits for a turn: a refresh for as long as it takes, a cold read for `patience` at most and not at all
    /// where that is bound to be in vain.
    pub(super) async fn enter(
        self: &Arc<Self>,
        class: Class,
        patience: Option<Duration>,
    ) -> Result<Turn, SourceError> {
        let turn = {
            let mut state = self.lock();
            if patience.is_some_and(|patience| state.expected_wait(class) > patience) {
                return Err(state.reason());
            }
            let (teller, turn) = oneshot::channel();
            state.line(class).waiting.push_back(teller);
            self.let_in(&mut state);
            turn
        };
        let turn = match patience {
            Some(patience) => timeout(patience, turn).await.map_err(|_| self.lock().reason())?,
            None => turn.await,
        };
        turn.map_err(|_| SourceError::Aborted)
    }

    /// The source throttles.
    pub(super) fn throttled(&self, retry_after: Option<Duration>) {
        self.lock().pace.throttled(Instant::now(), retry_after);
    }

    /// Whether a newcomer would wait longer than this for a turn, or the source has throttled us of late.
    pub(super) fn would_keep_waiting(&self, class: Class, patience: Duration) -> bool {
        let state = self.lock();
        state.expected_wait(class) > patience || state.pace.is_slowed(Instant::now())
    }

    /// The calls a second that are allowed at present.
    pub(super) fn allowed(&self) -> f64 {
        self.lock().pace.allowed(Instant::now())
    }

    /// Gives turns to those who wait, as far as the bounds allow.
    fn let_in(self: &Arc<Self>, state: &mut State) {
        while let Some(class) = state.next_class() {
            let now = Instant::now();
            if let Err(again) = state.pace.take(now) {
                if state.wakes_at.is_none_or(|at| again < at || at <= now) {
                    state.wakes_at = Some(again);
                    let limits = Arc::clone(self);
                    tokio::spawn(async move {
                        sleep_until(again).await;
                        let mut state = limits.lock();
                        state.wakes_at = None;
                        limits.let_in(&mut state);
                    });
                }
                return;
            }
            state.was_cold = class == Class::Cold;
            let line = state.line(class);
            let Some(teller) = line.waiting.pop_front() else { return };
            line.under_way += 1;
            if let Err(mut refused) = teller.send(Turn { limits: Some(Arc::clone(self)), class }) {
                // Whoever asked has gone; the lock is held, so the turn must not end by itself.
                refused.limits = None;
                state.line(class).under_way -= 1;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn line(&mut self, class: Class) -> &mut Line {
        match class {
            Class::Cold => &mut self.cold,
            Class::Refresh => &mut self.refresh,
        }
    }

    /// Whose turn it is; `None` if nobody waits who may go.
    fn next_class(&mut self) -> Option<Class> {
        for line in [&mut self.cold, &mut self.refresh] {
            while line.waiting.front().is_some_and(oneshot::Sender::is_closed) {
                line.waiting.pop_front();
            }
        }
        if self.cold.under_way + self.refresh.under_way >= self.max_concurrency {
            return None;
        }
        // The rest is kept for the other class.
        let share = self.max_concurrency - self.max_concurrency / 4;
        let may_go = |line: &Line| !line.waiting.is_empty() && line.under_way < share;
        match (may_go(&self.cold), may_go(&self.refresh)) {
            (true, true) if self.was_cold => Some(Class::Refresh),
            (true, _) => Some(Class::Cold),
            (false, true) => Some(Class::Refresh),
            (false, false) => None,
        }
    }

    /// At least how long a newcomer would wait.
    fn expected_wait(&self, class: Class) -> Duration {
        let now = Instant::now();
        let line = match class {
            Class::Cold => &self.cold,
            Class::Refresh => &self.refresh,
        };
        let before = u32::try_from(line.waiting.len()).unwrap_or(u32::MAX);
        let in_line = Duration::from_secs_f64(f64::from(before) / self.pace.allowed(now));
        in_line.max(self.pace.next(now) - now)
    }

    /// Why there is no turn in time: the source slows us down, or we ourselves do.
    fn reason(&self) -> SourceError {
        let now = Instant::now();
        if self.pace.is_slowed(now) || self.pace.pause(now).is_some() {
            return SourceError::Throttled { retry_after: self.pace.pause(now) };
        }
        SourceError::LocalLimit
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(limits) = self.limits.take() {
            let mut state = limits.lock();
            state.line(self.class).under_way -= 1;
            limits.let_in(&mut state);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinSet;
    use tokio::time::{advance, sleep};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_second_never_sees_more_than_the_rate() {
        let limits = Limits::new(1000, 50);
        let start = Instant::now();
        for _ in 0..50 {
            drop(limits.enter(Class::Refresh, None).await.unwrap());
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        drop(limits.enter(Class::Cold, None).await.unwrap());
        assert_eq!(start.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_calls_at_a_time_than_allowed_and_a_part_is_kept_for_the_other_class() {
        let limits = Limits::new(8, 1000);
        for (many, few) in [(Class::Refresh, Class::Cold), (Class::Cold, Class::Refresh)] {
            let mut turns = Vec::new();
            for _ in 0..6 {
                turns.push(limits.enter(many, None).await.unwrap());
            }
            assert!(timeout(SECOND, limits.enter(many, None)).await.is_err());
            turns.push(limits.enter(few, None).await.unwrap());
            turns.push(limits.enter(few, None).await.unwrap());
            assert!(timeout(SECOND, limits.enter(few, None)).await.is_err());
            turns.pop();
            assert!(limits.enter(few, None).await.is_ok());
        }
        let one = Limits::new(1, 1000);
        let _turn = one.enter(Class::Refresh, None).await.unwrap();
        assert!(timeout(SECOND, one.enter(Class::Cold, None)).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn cold_reads_go_first_and_a_flood_of_them_cannot_starve_the_refreshes() {
        let limits = Limits::new(1, 1000);
        let first = limits.enter(Class::Refresh, None).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut all = JoinSet::new();
        for class in [[Class::Refresh; 10], [Class::Cold; 10]].concat() {
            let (limits, order) = (Arc::clone(&limits), Arc::clone(&order));
            all.spawn(async move {
                let _turn = limits.enter(class, None).await.unwrap();
                order.lock().unwrap().push(class);
                sleep(SECOND).await;
            });
        }
        sleep(SECOND).await;
        drop(first);
        all.join_all().await;
        let order = order.lock().unwrap().clone();
        assert_eq!(order, [Class::Cold, Class::Refresh].repeat(10));
    }

    #[tokio::test(start_paused = true)]
    async fn who_would_wait_in_vain_is_told_at_once_and_who_does_wait_in_the_end() {
        let limits = Limits::new(1, 10);
        let _turn = limits.enter(Class::Cold, None).await.unwrap();
        let start = Instant::now();
        assert_eq!(limits.enter(Class::Cold, Some(SECOND)).await.unwrap_err(), SourceError::LocalLimit);
        assert_eq!(start.elapsed(), SECOND);
        let mut crowd = JoinSet::new();
        for _ in 0..11 {
            let limits = Arc::clone(&limits);
            crowd.spawn(async move { limits.enter(Class::Cold, None).await });
        }
        tokio::task::yield_now().await;
        let start = Instant::now();
        assert_eq!(limits.enter(Class::Cold, Some(SECOND)).await.unwrap_err(), SourceError::LocalLimit);
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_the_source_asked_for_is_kept_and_told() {
        let limits = Limits::new(10, 10);
        limits.throttled(Some(SECOND * 7));
        let refused = limits.enter(Class::Cold, Some(SECOND * 3)).await.unwrap_err();
        assert_eq!(refused, SourceError::Throttled { retry_after: Some(SECOND * 7) });
        let start = Instant::now();
        limits.enter(Class::Refresh, None).await.unwrap();
        assert_eq!(start.elapsed(), SECOND * 7);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_the_line_takes_no_turn() {
        let limits = Limits::new(1, 1000);
        let turn = limits.enter(Class::Cold, None).await.unwrap();
        for class in [Class::Cold, Class::Refresh, Class::Cold] {
            assert!(timeout(SECOND, limits.enter(class, None)).await.is_err());
        }
        let waiting = tokio::spawn({
            let limits = Arc::clone(&limits);
            async move { limits.enter(Class::Refresh, None).await.is_ok() }
        });
        advance(SECOND).await;
        drop(turn);
        assert!(waiting.await.unwrap());
    }
}
