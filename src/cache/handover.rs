//! What is held, as it passes from one process to the next. What follows from the configuration is left out: the next
//! process has its own.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Cache;
use super::freshness::Freshness;
use super::slot::{Fetch, Slot};
use crate::secret::{SecretKey, SecretVersion};

/// One secret that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// How it is asked for upstream.
    pub key: SecretKey,
    /// Other spellings that lead to it, but for its complete ARN.
    pub names: Vec<SecretKey>,
    /// What is held.
    pub version: Arc<SecretVersion>,
    /// How long ago it was fetched.
    pub age: Duration,
    /// How long ago it was read; longer than `age` if nobody has read it since.
    pub idle: Duration,
}

impl Entry {
    fn of(slot: &Slot, now: Instant) -> Option<Self> {
        let held = slot.held().filter(|held| held.freshness(now) != Freshness::Expired)?;
        let mut names = slot.names();
        names.retain(|name| *name != slot.key && *name != slot.canonical);
        Some(Self {
            key: slot.key.clone(),
            names: names.into_iter().collect(),
            version: Arc::clone(&held.version),
            age: held.age(now),
            idle: now.saturating_duration_since(slot.last_read()),
        })
    }
}

impl Cache {
    /// All that is held and may still be served, what was read last at the end.
    pub fn hand_over(&self) -> Vec<Entry> {
        let now = Instant::now();
        let mut entries: Vec<_> =
            self.shared.store.slots().filter_map(|slot| Entry::of(&slot, now)).collect();
        entries.sort_by_key(|entry| Reverse(entry.idle));
        entries
    }

    /// Holds what another process held; false where it is too old by the settings of this one.
    pub fn take(&self, entry: Entry) -> bool {
        let shared = &self.shared;
        let now = Instant::now();
        let settings = shared.settings.load();
        let policy = settings.policies.of(&entry.key);
        let fetched_at = now.checked_sub(entry.age).filter(|_| entry.age < policy.lifetimes.expiry());
        let Some(at) = fetched_at else { return false };
        let version = Arc::unwrap_or_clone(entry.version);
        let fetch = Fetch { at, jitter: fastrand::f64() };
        let is_pinned = shared.is_pinned(&entry.key);
        let Ok(landed) = shared.store.land(&entry.key, version, policy, fetch, is_pinned) else {
            return false;
        };
        for name in &entry.names {
            shared.store.name(&landed.slot, name, shared.is_pinned(name));
        }
        if entry.idle < entry.age {
            landed.slot.mark_read(now.checked_sub(entry.idle).unwrap_or(now));
        }
        shared.agenda.reconsider(&landed.slot, landed.held.refresh_at);
        true
    }
}
