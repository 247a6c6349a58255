//! Readiness as guards: a part holds [`BlockReady`] until it is ready, so that "why not ready" is always
//! a list of names.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

/// Whether the process is ready, and if not, why. Clones see the same state.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    blockers: watch::Sender<BTreeSet<&'static str>>,
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Serving,
    StandingBy,
    Draining,
}

/// As long as it lives, the process is not ready.
#[derive(Debug)]
pub struct BlockReady {
    state: Arc<State>,
    name: &'static str,
}

impl Readiness {
    /// Not ready before the returned guard is dropped.
    pub fn block(&self, name: &'static str) -> BlockReady {
        self.state.blockers.send_modify(|blockers| _ = blockers.insert(name));
        BlockReady { state: Arc::clone(&self.state), name }
    }

    /// Waits until nothing stands between the process and readiness.
    pub async fn ready(&self) {
        // As below.
        let _ = self.state.blockers.subscribe().wait_for(BTreeSet::is_empty).await;
    }

    /// Never ready again: the process is about to end.
    pub fn start_draining(&self) {
        self.state.phase.send_replace(Phase::Draining);
    }

    /// Another process serves in the place of this one, which ends what it does and stays at hand. As far as anybody need know
    /// it is as ready as before.
    pub fn stand_by(&self) {
        self.state.phase.send_replace(Phase::StandingBy);
    }

    /// Waits until the process serves no longer: whoever holds a request up ends it then.
    pub async fn draining(&self) {
        // The sender lives as long as we do, so this ends only when it is so.
        let _ = self.state.phase.subscribe().wait_for(|phase| *phase != Phase::Serving).await;
    }

    /// What stands between the process and readiness; empty when it is ready.
    pub fn reasons(&self) -> Vec<&'static str> {
        let draining = (*self.state.phase.borrow() == Phase::Draining).then_some("draining");
        self.state.blockers.borrow().iter().copied().chain(draining).collect()
    }
}

impl BlockReady {
    /// Waits until nothing else stands between the process and readiness.
    pub async fn is_last(&self) {
        let is_last = |blockers: &BTreeSet<&str>| blockers.iter().all(|name| *name == self.name);
        // The sender lives as long as we do, so this ends only when it is so.
        let _ = self.state.blockers.subscribe().wait_for(is_last).await;
    }
}

impl Drop for BlockReady {
    fn drop(&mut self) {
        self.state.blockers.send_modify(|blockers| _ = blockers.remove(self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_for_the_end_is_told_of_it_even_late() {
        let readiness = Readiness::default();
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.draining().await }
        });
        tokio::task::yield_now().await;
        readiness.start_draining();
        waiting.await.unwrap();
        readiness.draining().await;
    }

    #[tokio::test]
    async fn who_waits_for_readiness_is_told_when_the_last_guard_is_dropped() {
        let readiness = Readiness::default();
        let (listeners, preload) = (readiness.block("listeners"), readiness.block("preload"));
        let waiting = tokio::spawn({
            let readiness = readiness.clone();
            async move { readiness.ready().await }
        });
        drop(listeners);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(preload);
        waiting.await.unwrap();
        readiness.ready().await;
    }

    #[tokio::test]
    async fn the_last_guard_knows_that_it_is_the_last() {
        let readiness = Readiness::default();
        let (last, preload) = (readiness.block("takeover"), readiness.block("preload"));
        let waiting = tokio::spawn(async move { last.is_last().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(preload);
        waiting.await.unwrap();
    }

    #[test]
    fn ready_once_every_guard_is_dropped_and_never_while_draining() {
        let readiness = Readiness::default();
        let (listeners, preload) = (readiness.block("listeners"), readiness.block("preload"));
        assert_eq!(readiness.reasons(), ["listeners", "preload"]);
        drop(listeners);
        assert_eq!(readiness.reasons(), ["preload"]);
        drop(preload);
        assert!(readiness.reasons().is_empty());
        readiness.stand_by();
        assert!(readiness.reasons().is_empty());
        readiness.start_draining();
        assert_eq!(readiness.reasons(), ["draining"]);
    }
}
