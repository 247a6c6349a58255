//! Secrets that are fetched at start and held whether anybody reads them or not: those that are listed, and those
//! that bear a tag.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::Cache;
use crate::secret::SecretKey;
use crate::source::{SourceError, Tag};

/// How often it is checked that all are held. The refresher keeps them fresh; this only brings back what
/// was refused, revoked or evicted.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// How often tags are looked for anew, jittered by a quarter. AWS allows 100 such calls a second in an account and
/// region (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html>).
const LIST_INTERVAL: Duration = Duration::from_mins(10);

/// What is to be held.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// These.
    pub keys: Vec<SecretKey>,
    /// Those that bear one of these tags, in the daemon's own region and role.
    pub tags: Vec<Tag>,
}

impl Wanted {
    /// Whether it is nothing.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.tags.is_empty()
    }
}

/// Fetches what is wanted, calls `ready` when all has been tried or `patience` is over, and goes on holding it;
/// what is wanted may change.
pub async fn preload(
    cache: Cache,
    mut wanted: watch::Receiver<Wanted>,
    patience: Duration,
    ready: impl FnOnce(),
) {
    let deadline = Instant::now() + patience;
    let mut tagged = Tagged::default();
    let mut now_wanted = wanted.borrow_and_update().clone();
    let trying = async {
        tagged.list(&cache, &now_wanted.tags).await;
        let keys = tagged.and(&now_wanted.keys);
        cache.pin(keys.clone());
        fetch_missing(&cache, &keys).join_all().await;
        keys
    };
    let in_time = timeout_at(deadline, trying).await;
    let keys = in_time.as_ref().ok().cloned().unwrap_or_else(|| now_wanted.keys.iter().cloned().collect());
    let missing = keys.iter().filter(|key| !cache.holds(key)).count();
    if missing > 0 || in_time.is_err() {
        let timed_out = in_time.is_err();
        tracing::warn!(missing, of = keys.len(), timed_out, "not all secrets could be preloaded; trying on");
    } else if !now_wanted.is_empty() {
        tracing::info!(secrets = keys.len(), "preloaded");
    }
    ready();
    loop {
        if tagged.is_due() {
            tagged.list(&cache, &now_wanted.tags).await;
        }
        let keys = tagged.and(&now_wanted.keys);
        cache.pin(keys.clone());
        let mut tries = fetch_missing(&cache, &keys);
        // Their flights go on if what is wanted changes meanwhile.
        let changed = tokio::select! {
            changed = wanted.changed() => changed,
            never = async {
                while tries.join_next().await.is_some() {}
                sleep(CHECK_INTERVAL).await;
                Ok(())
            } => never,
        };
        if changed.is_err() {
            // Nobody is left who could want something else.
            sleep_until(Instant::now() + CHECK_INTERVAL).await;
        }
        let wanted = wanted.borrow_and_update().clone();
        if wanted != now_wanted {
            tagged = Tagged::default();
            now_wanted = wanted;
        }
    }
}

/// The secrets that bear a tag, as last listed.
#[derive(Debug, Default)]
struct Tagged {
    keys: Vec<SecretKey>,
    list_at: Option<Instant>,
    denial_is_said: bool,
}

impl Tagged {
    fn is_due(&self) -> bool {
        self.list_at.is_none_or(|at| Instant::now() >= at)
    }

    /// Lists anew. While that fails, what was listed before counts.
    async fn list(&mut self, cache: &Cache, tags: &[Tag]) {
        let mut keys = Vec::new();
        let mut pause = LIST_INTERVAL.mul_f64(0.75 + 0.5 * fastrand::f64());
        for tag in tags {
            match cache.list(tag).await {
                Ok(found) => keys.extend(found),
                Err(error) => {
                    if error != SourceError::AccessDenied {
                        pause = CHECK_INTERVAL;
                    }
                    if error != SourceError::AccessDenied || !self.denial_is_said {
                        tracing::warn!(tag = %tag, %error, "the secrets with this tag cannot be listed");
                    }
                    self.denial_is_said |= error == SourceError::AccessDenied;
                    self.list_at = Some(Instant::now() + pause);
                    return;
                }
            }
        }
        self.denial_is_said = false;
        self.list_at = Some(Instant::now() + pause);
        self.keys = keys;
    }

    fn and(&self, listed: &[SecretKey]) -> HashSet<SecretKey> {
        listed.iter().chain(&self.keys).cloned().collect()
    }
}

fn fetch_missing(cache: &Cache, keys: &HashSet<SecretKey>) -> JoinSet<()> {
    let mut tries = JoinSet::new();
    for key in keys.iter().filter(|key| !cache.holds(key)).cloned() {
        let cache = cache.clone();
        tries.spawn(async move {
            if let Err(error) = cache.warm(&key).await {
                tracing::warn!(secret = %key.id, %error, "a secret to preload could not be fetched");
            }
        });
    }
    tries
}
