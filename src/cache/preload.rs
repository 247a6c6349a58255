//! Secrets that are fetched at start and held whether anybody reads them or not.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::Cache;
use crate::secret::SecretKey;

/// How often it is checked that all are held. The refresher keeps them fresh; this only brings back what
/// was refused, revoked or evicted.
const CHECK_INTERVAL: Duration = Duration::from_secs(15);

/// Fetches `keys`, calls `ready` when all have been tried or `patience` is over, and goes on holding them.
pub async fn preload(cache: Cache, keys: Vec<SecretKey>, patience: Duration, ready: impl FnOnce()) {
    let deadline = Instant::now() + patience;
    let mut tries = fetch_missing(&cache, &keys);
    let all_tried = timeout_at(deadline, async { while tries.join_next().await.is_some() {} }).await;
    let missing = keys.iter().filter(|key| !cache.holds(key)).count();
    if missing == 0 {
        tracing::info!(secrets = keys.len(), "preloaded");
    } else {
        let timed_out = all_tried.is_err();
        tracing::warn!(missing, of = keys.len(), timed_out, "not all secrets could be preloaded; trying on");
    }
    ready();
    tries.join_all().await;
    loop {
        sleep(CHECK_INTERVAL).await;
        fetch_missing(&cache, &keys).join_all().await;
    }
}

fn fetch_missing(cache: &Cache, keys: &[SecretKey]) -> JoinSet<()> {
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
