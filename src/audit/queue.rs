//! Between the readers and the writer's thread: a bounded queue whose lock is held for a few instructions.
//!
//! To wake a thread costs a reader more than all the rest, so the writer wakes seldom: it sleeps until there is a
//! first event, then leaves events alone for [`GATHER`] and takes all that have come.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::Event;
use crate::metrics::AuditMetrics;

/// How long events are gathered, and so how late a line may be.
const GATHER: Duration = Duration::from_millis(20);

/// An event and when it was handed in.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) time: SystemTime,
    pub(super) event: Event,
}

/// What the writer finds besides events.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// So many more came than could wait, after those that did.
    pub(super) dropped: u64,
    /// The output is to be opened again.
    pub(super) reopen: bool,
    /// Nothing follows.
    pub(super) is_end: bool,
}

#[derive(Debug)]
pub(super) struct Queue {
    /// A std mutex: nobody waits or does I/O while holding it.
    state: Mutex<State>,
    /// Wakes the writer.
    changed: Condvar,
    capacity: usize,
    metrics: AuditMetrics,
    /// Becomes true when the writer has ended.
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    told: Told,
    /// The writer waits for a first event, and must be woken.
    is_asleep: bool,
    /// Nobody takes events any more.
    is_over: bool,
}

impl State {
    fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.told.dropped == 0 && !self.is_urgent()
    }

    fn is_urgent(&self) -> bool {
        self.told.reopen || self.told.is_end
    }
}

impl Queue {
    pub(super) fn new(capacity: usize, metrics: AuditMetrics) -> Self {
        let ended = watch::Sender::new(false);
        Self { state: Mutex::default(), changed: Condvar::new(), capacity, metrics, ended }
    }

    pub(super) fn push(&self, entry: Entry) {
        let mut state = self.lock();
        if state.is_over || state.entries.len() >= self.capacity {
            state.told.dropped += 1;
            drop(state);
            self.metrics.dropped(1);
            return;
        }
        state.entries.push(entry);
        let must_wake = mem::take(&mut state.is_asleep) || state.entries.len() == self.capacity / 2;
        drop(state);
        if must_wake {
            self.changed.notify_one();
        }
    }

    /// Waits until there is something, gathers more, and takes all.
    pub(super) fn take(&self, entries: &mut Vec<Entry>) -> Told {
        let mut state = self.lock();
        state.is_asleep = state.is_idle();
        let state = self.changed.wait_while(state, |state| state.is_idle());
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let gathered = self.changed.wait_timeout_while(state, GATHER, |state| {
            state.entries.len() < self.capacity / 2 && !state.is_urgent()
        });
        let (mut state, _) = gathered.unwrap_or_else(PoisonError::into_inner);
        state.is_asleep = false;
        mem::swap(&mut state.entries, entries);
        let is_end = state.told.is_end;
        mem::replace(&mut state.told, Told { is_end, ..Told::default() })
    }

    pub(super) fn reopen(&self) {
        self.lock().told.reopen = true;
        self.changed.notify_one();
    }

    pub(super) fn close(&self) {
        self.lock().told.is_end = true;
        self.changed.notify_one();
    }

    /// The writer ends, in whatever way: what still comes, or waits, is dropped.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.is_over = true;
        let left = mem::take(&mut state.entries);
        drop(state);
        self.metrics.dropped(left.len() as u64);
        self.ended.send_replace(true);
    }

    /// Waits until the writer has ended.
    pub(super) async fn ended(&self) {
        // It cannot fail: the sender is here.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
