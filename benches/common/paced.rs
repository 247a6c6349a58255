//! Readers at a steady pace, and how long they waited: counted from the moment at which a request was due, so that a
//! stall is charged to every request that it held up (coordinated omission).

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::support::client::Connection;

/// What readers saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// In order, once all have ended.
    pub(crate) latencies: Vec<Duration>,
    pub(crate) stale: usize,
}

impl Seen {
    /// The latency that so many reads of a thousand do not exceed.
    pub(crate) fn at(&self, per_mille: usize) -> Duration {
        self.latencies[(self.latencies.len() - 1) * per_mille / 1000]
    }
}

/// Has each connection read by turns, every `pace`, from `start` until `end`; `path` names what the connection of this
/// number reads next, of its reads so far. Nothing but 200 will do.
pub(crate) async fn read(
    connections: Vec<Connection>,
    path: impl Fn(usize, usize) -> String + Clone + Send + 'static,
    pace: Duration,
    [start, end]: [Instant; 2],
) -> Seen {
    let mut readers = JoinSet::new();
    let count = u32::try_from(connections.len()).unwrap();
    for (number, mut connection) in connections.into_iter().enumerate() {
        let path = path.clone();
        readers.spawn(async move {
            let mut seen = Seen::default();
            let mut due = start + pace * u32::try_from(number).unwrap() / count;
            while due < end {
                let path = path(number, seen.latencies.len());
                sleep_until(due).await;
                let sent = Instant::now();
                let answer = connection.get(&path, &[]).await.unwrap();
                assert_eq!(answer.status, 200, "{path}");
                seen.stale += usize::from(answer.header("cache-status").contains("stale"));
                // The timer wakes at whole milliseconds: that lateness is the client's own.
                let client_late = sent.duration_since(due).min(Duration::from_millis(2));
                seen.latencies.push(due.elapsed().saturating_sub(client_late));
                due += pace;
            }
            seen
        });
    }
    let mut seen = Seen::default();
    for of_reader in readers.join_all().await {
        seen.latencies.extend(of_reader.latencies);
        seen.stale += of_reader.stale;
    }
    seen.latencies.sort_unstable();
    seen
}
