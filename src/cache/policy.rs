//! Which lifetimes and counters a key has, by the configured group that it belongs to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::freshness::Lifetimes;
use crate::metrics::{CacheMetrics, GroupMetrics};
use crate::secret::{DEFAULT_GROUP, Resolver, SecretKey};

/// How the cache treats what it holds. Durations as in `[cache]` of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// The lifetimes of keys whose group sets none.
    pub lifetimes: Lifetimes,
    /// How long a refusal is remembered; zero means not at all.
    pub negative_ttl: Duration,
    /// Entries not read for this long are dropped; zero means never.
    pub idle_timeout: Duration,
    /// The longest that a reader without a value waits.
    pub fetch_timeout: Duration,
    /// The longest that a reader of a stale value waits.
    pub revalidate_timeout: Duration,
    /// The bytes that held values may take; only the first word counts.
    pub max_bytes: u64,
}

/// What a group's keys have in common.
#[derive(Debug)]
pub struct GroupPolicy {
    /// The metrics label.
    pub label: Arc<str>,
    /// How long values may be used.
    pub lifetimes: Lifetimes,
    /// Regions that are asked when a secret's own fails.
    pub fallback_regions: Arc<[Arc<str>]>,
    /// The read counters.
    pub metrics: GroupMetrics,
}

/// The policies of all groups, ready-made.
#[derive(Debug)]
pub struct Policies {
    resolver: Arc<Resolver>,
    groups: HashMap<Arc<str>, Arc<GroupPolicy>>,
    default: Arc<GroupPolicy>,
}

impl Policies {
    /// Makes a policy for each of the resolver's groups, and one for all other keys.
    pub fn new(resolver: Arc<Resolver>, lifetimes: Lifetimes, metrics: &CacheMetrics) -> Self {
        let policy = |label: &Arc<str>, ttl: Option<Duration>, fallback_regions: &[Arc<str>]| {
            Arc::new(GroupPolicy {
                label: Arc::clone(label),
                lifetimes: Lifetimes { ttl: ttl.unwrap_or(lifetimes.ttl), ..lifetimes },
                fallback_regions: fallback_regions.into(),
                metrics: metrics.group(label),
            })
        };
        let groups = resolver
            .groups()
            .map(|group| (group.name.clone(), policy(&group.name, group.ttl, &group.fallback_regions)))
            .collect();
        Self { default: policy(&DEFAULT_GROUP.into(), None, &[]), groups, resolver }
    }

    /// The policy of a key, however it was spelt.
    pub fn of(&self, key: &SecretKey) -> &Arc<GroupPolicy> {
        self.resolver.group_of(key).and_then(|group| self.groups.get(&group.name)).unwrap_or(&self.default)
    }
}
