//! Remembered refusals: "not found" and "access denied", for a short while.
//!
//! They live apart from values, so that asking for unknown names never evicts a secret.

use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::Cache;
use tokio::time::Instant;

use crate::secret::SecretKey;
use crate::source::SourceError;

/// The bytes that remembered refusals may take, names included.
const MAX_BYTES: u64 = 4 << 20;

/// What one takes besides its name, roughly.
const PARTS: usize = 256;

/// A remembered refusal.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) error: SourceError,
    pub(super) since: Instant,
    pub(super) until: Instant,
}

/// The refusals of the last while.
#[derive(Debug)]
pub(super) struct Refusals {
    refusals: Cache<SecretKey, Refusal>,
}

impl Refusals {
    pub(super) fn new() -> Self {
        let refusals = Cache::builder()
            .max_capacity(MAX_BYTES)
            .weigher(|key: &SecretKey, _: &Refusal| {
                u32::try_from(PARTS + key.id.as_str().len()).unwrap_or(u32::MAX)
            })
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { refusals }
    }

    /// Remembers for `ttl`; zero remembers nothing.
    pub(super) fn remember(&self, key: &SecretKey, error: &SourceError, ttl: Duration, now: Instant) {
        if !ttl.is_zero() {
            self.refusals.insert(key.clone(), Refusal { error: error.clone(), since: now, until: now + ttl });
        }
    }

    pub(super) fn find(&self, key: &SecretKey, now: Instant) -> Option<Refusal> {
        self.refusals.get(key).filter(|refusal| now < refusal.until)
    }

    pub(super) fn forget(&self, key: &SecretKey) {
        self.refusals.invalidate(key);
    }

    pub(super) fn forget_all(&self) {
        self.refusals.invalidate_all();
    }
}
