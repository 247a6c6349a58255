//! The clock's side: a thin loop that waits, asks `schedule` what is due, and does it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Shared;
use super::schedule::{DropCause, Step};
use super::slot::Slot;

/// How often moka is given the occasion to free what it put off.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// When which slot is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    items: Mutex<BinaryHeap<Reverse<Item>>>,
    /// Wakes the loop when an item comes before all others.
    sooner: Notify,
}

/// A slot and a moment. Only a slot's latest item counts.
#[derive(Debug)]
struct Item {
    at: Instant,
    turn: u64,
    slot: Weak<Slot>,
}

impl Agenda {
    /// Has the slot looked at when `at` has come, and no longer at any other moment.
    pub(super) fn reconsider(&self, slot: &Arc<Slot>, at: Instant) {
        let turn = slot.agenda_turn.fetch_add(1, Ordering::Relaxed) + 1;
        let item = Item { at, turn, slot: Arc::downgrade(slot) };
        let mut items = self.lock();
        let is_first = items.peek().is_none_or(|Reverse(first)| at < first.at);
        items.push(Reverse(item));
        drop(items);
        if is_first {
            self.sooner.notify_one();
        }
    }

    /// Takes the next slot that is due.
    fn next_due(&self, now: Instant) -> Option<Arc<Slot>> {
        let mut items = self.lock();
        while items.peek().is_some_and(|Reverse(first)| first.at <= now) {
            let Reverse(item) = items.pop()?;
            if let Some(slot) = item.slot.upgrade()
                && slot.agenda_turn.load(Ordering::Relaxed) == item.turn
            {
                return Some(slot);
            }
        }
        None
    }

    fn next_moment(&self) -> Option<Instant> {
        self.lock().peek().map(|Reverse(first)| first.at)
    }

    fn lock(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Item>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

/// Waits for what is due and does it, for as long as the cache lives.
pub(super) async fn run(shared: &Arc<Shared>) {
    let mut tidying = interval(TIDY_INTERVAL);
    tidying.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut changes = shared.source.changes();
    loop {
        let due = shared.agenda.next_moment();
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => do_what_is_due(shared),
            () = shared.agenda.sooner.notified() => {}
            _ = tidying.tick() => shared.store.tidy(),
            () = changed(&mut changes) => refetch_everything(shared),
        }
    }
}

fn do_what_is_due(shared: &Arc<Shared>) {
    let now = Instant::now();
    while let Some(slot) = shared.agenda.next_due(now) {
        match slot.clock(shared.options.idle_timeout).map(|clock| clock.next_step(now)) {
            Some(Step::Wait(until)) => shared.agenda.reconsider(&slot, until),
            Some(Step::Refresh) => shared.refresh(&slot, now),
            Some(Step::Drop(DropCause::Expired)) => shared.store.drop_slot(&slot, "expired"),
            Some(Step::Drop(DropCause::Idle)) => shared.store.drop_slot(&slot, "idle"),
            None => {}
        }
    }
}

/// The source says that its secrets may have changed: nothing that is held is known to be current.
fn refetch_everything(shared: &Arc<Shared>) {
    shared.refusals.forget_all();
    let now = Instant::now();
    for slot in shared.store.slots() {
        shared.refresh(&slot, now);
    }
}

/// Waits for a source's word that something changed; for ever where it never says so.
async fn changed(changes: &mut Option<watch::Receiver<u64>>) {
    let ended = match changes {
        Some(receiver) => receiver.changed().await.is_err(),
        None => std::future::pending().await,
    };
    if ended {
        *changes = None;
    }
}
