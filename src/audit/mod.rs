//! The audit trail: one JSON object a line for every answer about a secret, on standard output or in a file.
//!
//! Readers hand over an [`Event`] and go on: it waits in a bounded queue for a thread of its own, which renders and
//! writes. A trail that cannot keep up loses events and says so, in the metrics and in the trail itself; it never
//! holds up a reader. No event has a field that could hold a value.

mod client;
mod file;
mod line;
mod queue;
#[cfg(test)]
mod tests;
mod writer;

pub use self::client::program_of;
pub use self::file::FileOptions;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tokio::time::timeout;

use self::file::TrailFile;
use self::queue::{Entry, Queue};
use self::writer::{Sink, Writer};
use crate::metrics::AuditMetrics;

/// How many events may wait.
const CAPACITY: usize = 8192;

/// One answer about one secret: who asked, for what, and what became of it. Absent parts are left out of the line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Label of the listener, as in the metrics.
    pub listener: Arc<str>,
    /// User id of the client, as the kernel says.
    pub uid: Option<u32>,
    /// Its primary group id.
    pub gid: Option<u32>,
    /// Its process id.
    pub pid: Option<u32>,
    /// Its program, from [`program_of`].
    pub program: Option<Arc<str>>,
    /// The way in: the route's label in the metrics.
    pub surface: &'static str,
    /// The secret that was meant, as it was resolved.
    pub secret_id: Option<Arc<str>>,
    /// The version that was served.
    pub version_id: Option<Arc<str>>,
    /// `hit`, `stale`, `fetched`, or the code of the problem.
    pub outcome: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Age of what was served, in seconds.
    pub age: Option<u64>,
    /// What the client calls its request.
    pub request_id: Option<Arc<str>>,
}

/// Where the trail goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// A file.
    File(FileOptions),
}

/// The trail cannot be begun.
#[derive(Debug, Error)]
pub enum AuditError {
    /// Its file cannot be opened.
    #[error("the audit trail {} cannot be opened: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Standard output is closed, or there can be no more threads.
    #[error("the audit trail cannot be begun: {0}")]
    Start(#[from] io::Error),
}

/// Where events are handed in. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    queue: Option<Arc<Queue>>,
}

impl Audit {
    /// No trail: events are dropped, uncounted.
    pub fn off() -> Self {
        Self::default()
    }

    /// Opens the output and starts the thread that writes to it.
    pub fn start(output: Output, metrics: AuditMetrics) -> Result<Self, AuditError> {
        let sink = match output {
            // Unbuffered: the writer has a buffer, and lines are to be out when it is idle.
            Output::Stdout => Sink::Stream(Box::new(File::from(io::stdout().as_fd().try_clone_to_owned()?))),
            Output::File(options) => {
                let path = options.path.clone();
                Sink::File(TrailFile::open(options).map_err(|error| AuditError::File { path, error })?)
            }
        };
        Ok(Self::begin(sink, CAPACITY, metrics)?)
    }

    /// A trail that goes to any writer.
    #[cfg(test)]
    fn to_writer(writer: impl io::Write + Send + 'static, capacity: usize, metrics: AuditMetrics) -> Self {
        Self::begin(Sink::Stream(Box::new(writer)), capacity, metrics).unwrap()
    }

    fn begin(sink: Sink, capacity: usize, metrics: AuditMetrics) -> io::Result<Self> {
        let queue = Arc::new(Queue::new(capacity, metrics.clone()));
        let writer = Writer::new(sink, metrics);
        let consumed = Arc::clone(&queue);
        thread::Builder::new().name("audit".to_owned()).spawn(move || writer.run(&consumed))?;
        Ok(Self { queue: Some(queue) })
    }

    /// Whether events go anywhere. If not, they need not be made.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Hands an event over. Never waits for the output; when too many are waiting, the event is dropped and counted.
    pub fn record(&self, event: Event) {
        let Some(queue) = &self.queue else { return };
        #[expect(clippy::disallowed_methods, reason = "a trail says when things happened by the wall clock")]
        let time = SystemTime::now();
        queue.push(Entry { time, event });
    }

    /// Has the file opened again, for after it was moved away.
    pub fn reopen(&self) {
        if let Some(queue) = &self.queue {
            queue.reopen();
        }
    }

    /// Ends the trail: what waits is written, for at most `patience`. Later events are dropped and counted.
    pub async fn finish(&self, patience: Duration) {
        let Some(queue) = &self.queue else { return };
        queue.close();
        if timeout(patience, queue.ended()).await.is_err() {
            tracing::warn!("the audit trail could not be finished in time; its last events are lost");
        }
    }
}
