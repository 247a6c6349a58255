//! The thread that renders and writes. It alone waits for the output; nothing that goes wrong there reaches a reader.

use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::file::{TrailFile, write_counting};
use super::line;
use super::queue::{Entry, Queue};
use crate::metrics::AuditMetrics;

/// How many bytes are written at a time, about.
const CHUNK: usize = 64 << 10;

/// How often it is said that something lasts.
const SAID_EVERY: Duration = Duration::from_mins(1);

/// Where lines go.
pub(super) enum Sink {
    Stream(Box<dyn Write + Send>),
    File(TrailFile),
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(_) => f.write_str("Stream"),
            Self::File(file) => file.fmt(f),
        }
    }
}

/// Holds down how often something is said.
#[derive(Debug, Default)]
pub(super) struct Pace {
    said: Option<Instant>,
}

impl Pace {
    /// Whether it is time to say it; if so, the next time is later.
    pub(super) fn is_due(&mut self) -> bool {
        let is_due = self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY);
        if is_due {
            self.said = Some(Instant::now());
        }
        is_due
    }
}

#[derive(Debug)]
pub(super) struct Writer {
    sink: Sink,
    metrics: AuditMetrics,
    /// The end of a line whose beginning was written before the output failed: it comes first when that is over.
    rest: Rest,
    /// Events that could not be written, and of which the trail does not know yet.
    failed: u64,
    /// Events that found no place in the queue, likewise.
    dropped: u64,
    /// It was said that the output fails.
    is_failing: bool,
    failing: Pace,
    dropping: Pace,
}

#[derive(Debug, Default)]
struct Rest {
    bytes: Vec<u8>,
    /// It belongs to an event, not to a line about gaps.
    is_event: bool,
}

/// Tells the queue that nobody takes from it any more, even after a panic.
struct EndGuard<'a>(&'a Queue);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Writer {
    pub(super) fn new(sink: Sink, metrics: AuditMetrics) -> Self {
        Self {
            sink,
            metrics,
            rest: Rest::default(),
            failed: 0,
            dropped: 0,
            is_failing: false,
            failing: Pace::default(),
            dropping: Pace::default(),
        }
    }

    /// Takes and writes until the queue says that it is the end.
    pub(super) fn run(mut self, queue: &Queue) {
        let _guard = EndGuard(queue);
        let mut entries = Vec::new();
        let mut lines = Vec::with_capacity(CHUNK);
        loop {
            let told = queue.take(&mut entries);
            if told.reopen {
                self.reopen();
            }
            self.write(&mut entries, &mut lines);
            if told.dropped > 0 {
                self.dropped += told.dropped;
                if self.dropping.is_due() {
                    tracing::warn!(
                        count = told.dropped,
                        "audit events were dropped: the output of the audit trail is too slow"
                    );
                }
                self.catch_up();
            }
            if told.is_end {
                self.end();
                return;
            }
        }
    }

    pub(super) fn write(&mut self, entries: &mut Vec<Entry>, lines: &mut Vec<u8>) {
        for entry in entries.drain(..) {
            line::event(&entry, lines);
            if lines.len() >= CHUNK {
                self.flush(lines);
            }
        }
        self.flush(lines);
    }

    fn flush(&mut self, lines: &mut Vec<u8>) {
        if self.catch_up() {
            self.attempt(lines, true, false);
        } else {
            self.lose(lines);
        }
        lines.clear();
    }

    /// Ends the line that was cut, and says what is missing. False if that does not work either.
    fn catch_up(&mut self) -> bool {
        let rest = mem::take(&mut self.rest);
        if !self.attempt(&rest.bytes, rest.is_event, true) {
            return false;
        }
        let mut line = Vec::new();
        if self.failed > 0 {
            line::gap(now(), "failed", self.failed, &mut line);
            let is_out = self.attempt(&line, false, false);
            // One that was cut will be ended.
            if is_out || !self.rest.bytes.is_empty() {
                self.failed = 0;
            }
            if !is_out {
                return false;
            }
        }
        if self.dropped > 0 {
            line.clear();
            line::gap(now(), "dropped", self.dropped, &mut line);
            let is_out = self.attempt(&line, false, false);
            if is_out || !self.rest.bytes.is_empty() {
                self.dropped = 0;
            }
            return is_out;
        }
        true
    }

    /// Writes lines; those of events are counted. `is_rest`: they begin within a line.
    fn attempt(&mut self, lines: &[u8], are_events: bool, is_rest: bool) -> bool {
        if lines.is_empty() {
            return true;
        }
        let (count, outcome) = match &mut self.sink {
            Sink::Stream(stream) => write_counting(stream, lines),
            Sink::File(file) => file.write(lines),
        };
        let (written, left) = lines.split_at(count);
        if are_events {
            self.metrics.written(count_of(written));
        }
        let Err(error) = outcome else {
            if mem::take(&mut self.is_failing) {
                tracing::info!("the audit trail is written again");
            }
            return true;
        };
        let is_cut = written.last().map_or(is_rest, |last| *last != b'\n');
        let cut = if is_cut {
            left.iter().position(|byte| *byte == b'\n').map_or(left.len(), |at| at + 1)
        } else {
            0
        };
        self.rest = Rest { bytes: left[..cut].to_vec(), is_event: are_events };
        if are_events {
            self.lose(&left[cut..]);
        }
        self.complain(&error);
        false
    }

    fn complain(&mut self, error: &io::Error) {
        if self.failing.is_due() {
            self.is_failing = true;
            tracing::error!(%error, "the audit trail cannot be written; its events are lost until it can");
        }
    }

    /// These lines are given up.
    fn lose(&mut self, lines: &[u8]) {
        self.failed += count_of(lines);
        self.metrics.failed(count_of(lines));
    }

    pub(super) fn reopen(&mut self) {
        if let Sink::File(file) = &mut self.sink {
            let outcome = file.reopen();
            self.give_up_rest();
            if let Err(error) = outcome {
                self.complain(&error);
            }
        }
    }

    fn end(&mut self) {
        self.catch_up();
        self.give_up_rest();
    }

    fn give_up_rest(&mut self) {
        let rest = mem::take(&mut self.rest);
        if rest.is_event {
            self.lose(&rest.bytes);
        }
    }
}

fn count_of(lines: &[u8]) -> u64 {
    lines.iter().map(|byte| u64::from(*byte == b'\n')).sum()
}

fn now() -> SystemTime {
    #[expect(clippy::disallowed_methods, reason = "a trail says when things happened by the wall clock")]
    SystemTime::now()
}
