//! The clock's side: a thin loop that waits, asks `schedule` what is due, and does it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::Shared;
use super::schedule::{DropCause, Step};
use super::slot::Slot;
use crate::secret::Origin;

/// How often moka is given the occasion to free what it put off.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// So many slots at most are looked at to fill a batch.
const MAX_LOOKS: usize = 256;

/// When which slot is to be looked at again.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    items: Mutex<Items>,
    /// Wakes the loop when an item comes before all others.
    sooner: Notify,
}

/// Slots in the order in which they are due; each has one moment.
#[derive(Debug, Default)]
struct Items {
    by_moment: BTreeMap<(Instant, u64), Weak<Slot>>,
    moments: HashMap<u64, Instant>,
}

impl Items {
    fn put(&mut self, slot: &Arc<Slot>, at: Instant) {
        if let Some(before) = self.moments.insert(slot.id, at) {
            self.by_moment.remove(&(before, slot.id));
        }
        self.by_moment.insert((at, slot.id), Arc::downgrade(slot));
    }

    fn remove(&mut self, (at, id): (Instant, u64)) -> Option<Arc<Slot>> {
        self.moments.remove(&id);
        self.by_moment.remove(&(at, id))?.upgrade()
    }

    fn first(&self) -> Option<(Instant, u64)> {
        self.by_moment.first_key_value().map(|(key, _)| *key)
    }
}

impl Agenda {
    /// Has the slot looked at when `at` has come, and no longer at any other moment.
    pub(super) fn reconsider(&self, slot: &Arc<Slot>, at: Instant) {
        let mut items = self.lock();
        let is_first = items.first().is_none_or(|(first, _)| at < first);
        items.put(slot, at);
        drop(items);
        if is_first {
            self.sooner.notify_one();
        }
    }

    /// Takes the next slot that is due.
    fn next_due(&self, now: Instant) -> Option<Arc<Slot>> {
        let mut items = self.lock();
        while let Some(first) = items.first().filter(|(at, _)| *at <= now) {
            if let Some(slot) = items.remove(first) {
                return Some(slot);
            }
        }
        None
    }

    /// Takes up to `count` slots of one region and role that may be refreshed before they are due, those first
    /// that are due first. They come back with the end of their refresh.
    pub(super) fn take_ahead(&self, place: &Origin, count: usize, now: Instant) -> Vec<Arc<Slot>> {
        if count == 0 {
            return Vec::new();
        }
        let mut items = self.lock();
        let may_go = |slot: &Slot| {
            // The idle timeout is looked at when the slot is due.
            let may_go = slot.clock(Duration::ZERO).is_some_and(|clock| clock.may_go_ahead(now));
            may_go && !slot.is_refreshing() && slot.key.selector.is_current() && slot.key.place() == *place
        };
        let found: Vec<_> = items
            .by_moment
            .iter()
            .take(MAX_LOOKS)
            .filter(|(_, slot)| slot.upgrade().is_some_and(|slot| may_go(&slot)))
            .map(|(key, _)| *key)
            .take(count)
            .collect();
        found.into_iter().filter_map(|key| items.remove(key)).collect()
    }

    fn next_moment(&self) -> Option<Instant> {
        self.lock().first().map(|(at, _)| at)
    }

    fn lock(&self) -> MutexGuard<'_, Items> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for what is due and does it, for as long as the cache lives.
pub(super) async fn run(shared: &Arc<Shared>) {
    let mut tidying = interval(TIDY_INTERVAL);
    tidying.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut changes = shared.upstream.source().changes();
    loop {
        let due = shared.agenda.next_moment();
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => do_what_is_due(shared),
            () = shared.agenda.sooner.notified() => {}
            _ = tidying.tick() => shared.store.tidy(),
            () = changed(&mut changes) => refetch_everything(shared),
            () = shared.upstream.recovered() => retry_what_failed(shared),
        }
    }
}

fn do_what_is_due(shared: &Arc<Shared>) {
    let now = Instant::now();
    let idle_timeout = shared.settings.load().options.idle_timeout;
    while let Some(slot) = shared.agenda.next_due(now) {
        match slot.clock(idle_timeout).map(|clock| clock.next_step(now)) {
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

/// An endpoint answers again: whoever waits for his backoff to end goes now. The limits spread them.
fn retry_what_failed(shared: &Arc<Shared>) {
    let now = Instant::now();
    for slot in shared.store.slots().filter(|slot| slot.is_troubled()) {
        slot.forget_failures();
        shared.agenda.reconsider(&slot, now);
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
