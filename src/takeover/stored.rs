//! What is held, in sealed memory that somebody keeps while no process runs: the service manager, from the end of one
//! process to the start of the next. A label says whether the next one may take it: its length in four bytes, then JSON; the
//! entries follow.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::entries::{self, Held};
use super::{Terms, memory, withheld};
use crate::cache::Entry;

/// The longest label.
const MAX_LABEL: u32 = 1 << 16;

#[derive(Debug, Serialize, Deserialize)]
struct Label {
    /// In which it can be read.
    format: u32,
    source: Option<BTreeMap<String, String>>,
    /// When it was written, by [`since_boot`].
    at: Duration,
}

/// Entries, for a process with the same terms; where no other may have them, nothing.
pub fn stored(entries: &[Entry], terms: &Terms) -> io::Result<Option<File>> {
    if terms.source.is_none() {
        return Ok(None);
    }
    let label = Label { format: entries::FORMAT, source: terms.source.clone(), at: since_boot() };
    let label = serde_json::to_vec(&label)?;
    let length = u32::try_from(label.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let write = |file: &mut File| {
        file.write_all(&[&length.to_le_bytes()[..], &label].concat())?;
        entries::write(entries, file)
    };
    memory::sealed(write).map(Some)
}

/// What [`stored`] has made, if it could be had. Why it is of no use is said.
pub fn restored(file: io::Result<File>, terms: &Terms) -> Option<Held> {
    match file.and_then(|file| open(file, terms, since_boot())) {
        Ok(Ok(held)) => Some(held),
        Ok(Err(reason)) => {
            tracing::warn!(reason, "what the old process held is not taken over; starting cold");
            None
        }
        Err(error) => {
            tracing::warn!(%error, "what the old process has left cannot be read; starting cold");
            None
        }
    }
}

/// The inner error is why it is for another process.
pub(super) fn open(file: File, terms: &Terms, since_boot: Duration) -> io::Result<Result<Held, String>> {
    let mut file = memory::received(file)?;
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if length > MAX_LABEL {
        return Err(io::Error::new(ErrorKind::InvalidData, "a label that is too long"));
    }
    let mut label = vec![0; length as usize];
    file.read_exact(&mut label)?;
    let label: Label = serde_json::from_slice(&label)?;
    if let Some(reason) = withheld(label.format, label.source.as_ref(), terms.source.as_ref()) {
        return Ok(Err(reason));
    }
    let now = Instant::now();
    let as_of = now.checked_sub(since_boot.saturating_sub(label.at)).unwrap_or(now);
    Held::read(file, as_of).map(Ok)
}

/// By a clock that two processes have in common, which nobody sets, and which does not stop while the machine sleeps.
pub(super) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or_default())
}
