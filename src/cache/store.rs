//! What is held: a map from each spelling to its slot, over a map of slots that is bounded in bytes.
//!
//! moka bounds and forgets; freshness is ours. It may keep a dropped slot for seconds, so a slot is
//! emptied the moment that it is dropped: a value dies with its last reader.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::notification::RemovalCause;
use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use super::freshness::Freshness;
use super::policy::GroupPolicy;
use super::slot::{Fetch, Held, Slot};
use crate::metrics::CacheMetrics;
use crate::secret::{ReferenceError, SecretKey, SecretVersion};

/// The most spellings that are remembered. A spelling is forgotten with its slot; this only bounds a
/// caller who finds ever new ones.
const MAX_NAMES: u64 = 200_000;

/// The held secrets.
#[derive(Debug)]
pub(super) struct Store {
    names: Cache<SecretKey, Arc<Slot>>,
    slots: Cache<u64, Arc<Slot>>,
    next_id: AtomicU64,
    /// Held while an answer is put in its place, so that two spellings cannot make two slots of one secret.
    landing: Mutex<()>,
    /// Nothing is kept any more. Changes under `landing`.
    is_closed: AtomicBool,
    metrics: CacheMetrics,
}

impl Store {
    pub(super) fn new(max_bytes: u64, metrics: CacheMetrics) -> Self {
        let names = Cache::builder().max_capacity(MAX_NAMES).eviction_policy(EvictionPolicy::lru()).build();
        let listener = {
            let (names, metrics) = (names.clone(), metrics.clone());
            move |_: Arc<u64>, slot: Arc<Slot>, cause: RemovalCause| {
                if cause == RemovalCause::Size && forget(&names, &slot) {
                    metrics.evicted("size");
                }
            }
        };
        let slots = Cache::builder()
            .max_capacity(max_bytes)
            .eviction_policy(EvictionPolicy::lru())
            .weigher(|_, slot: &Arc<Slot>| u32::try_from(slot.weight()).unwrap_or(u32::MAX))
            .eviction_listener(listener)
            .build();
        Self {
            names,
            slots,
            next_id: AtomicU64::new(0),
            landing: Mutex::new(()),
            is_closed: AtomicBool::new(false),
            metrics,
        }
    }

    /// The slot that a spelling leads to. It may have been emptied since.
    pub(super) fn find(&self, key: &SecretKey) -> Option<Arc<Slot>> {
        self.names.get(key)
    }

    /// Notes a read, so that what is used last is evicted last.
    pub(super) fn mark_read(&self, slot: &Slot, now: Instant) {
        if slot.mark_read(now) {
            self.slots.get(&slot.id);
        }
    }

    /// Puts a version in its place: the slot that its spelling or its complete ARN leads to, else a new one.
    pub(super) fn land(
        &self,
        key: &SecretKey,
        version: SecretVersion,
        policy: &Arc<GroupPolicy>,
        fetch: Fetch,
        is_pinned: bool,
    ) -> Result<Landed, ReferenceError> {
        let canonical = key.by_arn(&version.arn)?;
        let landed = {
            let _landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut known = self.find(key).filter(|slot| slot.held().is_some());
            if let Some(slot) = known.take_if(|slot| slot.canonical != canonical) {
                // A secret of the same name was made anew: it is another secret.
                self.drop_slot(&slot, "revoked");
            }
            let slot = known.or_else(|| self.find(&canonical).filter(|slot| slot.held().is_some()));
            match slot.and_then(|slot| self.update(&slot, key, &version, fetch, is_pinned)) {
                Some(landed) => landed,
                None => self.insert(key, &canonical, version, policy, fetch, is_pinned),
            }
        };
        self.slots.run_pending_tasks();
        Ok(landed)
    }

    /// Stores into a slot that is there; `None` if it was emptied meanwhile.
    fn update(
        &self,
        slot: &Arc<Slot>,
        key: &SecretKey,
        version: &SecretVersion,
        fetch: Fetch,
        is_pinned: bool,
    ) -> Option<Landed> {
        let current = slot.held()?;
        let is_changed = *current.version != *version;
        let version = if is_changed { Arc::new(version.clone()) } else { Arc::clone(&current.version) };
        let held = slot.store(Arc::new(Held::new(version, Arc::clone(&current.policy), fetch)))?;
        self.name(slot, key, is_pinned);
        self.slots.insert(slot.id, Arc::clone(slot));
        Some(Landed { slot: Arc::clone(slot), held, is_changed })
    }

    fn insert(
        &self,
        key: &SecretKey,
        canonical: &SecretKey,
        version: SecretVersion,
        policy: &Arc<GroupPolicy>,
        fetch: Fetch,
        is_pinned: bool,
    ) -> Landed {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot::new(id, key.clone(), canonical.clone(), fetch.at));
        let held = Arc::new(Held::new(Arc::new(version), Arc::clone(policy), fetch));
        slot.store(Arc::clone(&held));
        if self.is_closed.load(Ordering::Relaxed) {
            slot.close();
            return Landed { slot, held, is_changed: true };
        }
        self.name(&slot, key, is_pinned);
        self.name(&slot, canonical, is_pinned);
        self.slots.insert(id, Arc::clone(&slot));
        Landed { slot, held, is_changed: true }
    }

    /// Has one more spelling lead to a slot.
    pub(super) fn name(&self, slot: &Arc<Slot>, key: &SecretKey, is_pinned: bool) {
        if is_pinned {
            slot.pin();
        }
        if slot.add_name(key.clone()) {
            self.names.insert(key.clone(), Arc::clone(slot));
        }
    }

    /// Empties a slot and forgets every spelling that leads to it; counts it under `cause`.
    pub(super) fn drop_slot(&self, slot: &Slot, cause: &'static str) {
        if forget(&self.names, slot) {
            self.slots.invalidate(&slot.id);
            self.metrics.evicted(cause);
        }
    }

    /// Empties all slots, and keeps nothing from now on: what lands is answered with and forgotten.
    pub(super) fn close(&self) {
        let _landing = self.landing.lock().unwrap_or_else(PoisonError::into_inner);
        self.is_closed.store(true, Ordering::Relaxed);
        for slot in self.slots() {
            forget(&self.names, &slot);
        }
        self.slots.invalidate_all();
        self.tidy();
    }

    /// Lets moka do what it put off. To be called about once a second.
    pub(super) fn tidy(&self) {
        self.names.run_pending_tasks();
        self.slots.run_pending_tasks();
    }

    /// Every slot that holds something.
    pub(super) fn slots(&self) -> impl Iterator<Item = Arc<Slot>> + '_ {
        self.slots.iter().map(|(_, slot)| slot).filter(|slot| slot.held().is_some())
    }

    /// How much is held, by group.
    pub(super) fn summary(&self, now: Instant) -> StoreSummary {
        let mut summary = StoreSummary::default();
        for slot in self.slots() {
            let Some(held) = slot.held() else { continue };
            let age = held.age(now);
            summary.entries += 1;
            summary.bytes += slot.weight();
            summary.oldest = summary.oldest.max(age);
            let is_stale = held.freshness(now) != Freshness::Fresh;
            summary.stale += usize::from(is_stale);
            let group = summary.groups.entry(Arc::clone(&held.policy.label)).or_default();
            group.entries += 1;
            group.stale += usize::from(is_stale);
            group.oldest = group.oldest.max(age);
        }
        summary
    }
}

/// Empties a slot and forgets its spellings; false if it had been emptied.
fn forget(names: &Cache<SecretKey, Arc<Slot>>, slot: &Slot) -> bool {
    let Some(spellings) = slot.close() else { return false };
    for key in &spellings {
        if names.get(key).is_some_and(|named| named.id == slot.id) {
            names.invalidate(key);
        }
    }
    true
}

/// Where an answer came to lie.
#[derive(Debug)]
pub(super) struct Landed {
    pub(super) slot: Arc<Slot>,
    /// What the slot holds now: the answer, or something fetched later.
    pub(super) held: Arc<Held>,
    pub(super) is_changed: bool,
}

/// How much is held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreSummary {
    /// Secrets held.
    pub entries: usize,
    /// Bytes that they account for.
    pub bytes: usize,
    /// How many are past their ttl.
    pub stale: usize,
    /// The age of the oldest.
    pub oldest: Duration,
    /// The same by group label.
    pub groups: std::collections::BTreeMap<Arc<str>, GroupSummary>,
}

/// How much is held of one group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GroupSummary {
    /// Secrets held.
    pub entries: usize,
    /// How many are past their ttl.
    pub stale: usize,
    /// The age of the oldest.
    pub oldest: Duration,
}
