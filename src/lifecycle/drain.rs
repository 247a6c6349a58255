//! An orderly end: every part holds a watcher, and the end has come when all are dropped.

use tokio::sync::{mpsc, watch};

/// Starts the end and waits for it.
#[derive(Debug)]
pub struct Drain {
    started: watch::Sender<bool>,
    /// Held by every watcher; closed when the last is gone.
    alive: mpsc::Sender<()>,
    all_gone: mpsc::Receiver<()>,
}

/// Tells a part when to end; that it is dropped tells that the part has ended.
#[derive(Debug, Clone)]
pub struct DrainWatcher {
    started: watch::Receiver<bool>,
    _alive: mpsc::Sender<()>,
}

impl Drain {
    /// A drain that nobody watches yet.
    pub fn new() -> Self {
        let (alive, all_gone) = mpsc::channel(1);
        Self { started: watch::Sender::new(false), alive, all_gone }
    }

    /// A watcher for one more part.
    pub fn watcher(&self) -> DrainWatcher {
        DrainWatcher { started: self.started.subscribe(), _alive: self.alive.clone() }
    }

    /// Tells every part to end, and waits until all have.
    pub async fn finish(mut self) {
        self.started.send_replace(true);
        drop(self.alive);
        self.all_gone.recv().await;
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self::new()
    }
}

impl DrainWatcher {
    /// Waits for the start of the end.
    pub async fn started(&mut self) {
        // An error means that the drain itself is gone: the process is ending in another way.
        let _ = self.started.wait_for(|started| *started).await;
    }

    /// Whether the end has started.
    pub fn has_started(&self) -> bool {
        *self.started.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finishing_waits_for_every_part() {
        let drain = Drain::new();
        for seconds in [1, 3] {
            let mut watcher = drain.watcher();
            tokio::spawn(async move {
                watcher.started().await;
                sleep(Duration::from_secs(seconds)).await;
                drop(watcher);
            });
        }
        let start = Instant::now();
        drain.finish().await;
        assert_eq!(start.elapsed().as_secs(), 3);
    }
}
