//! A new process takes the place of the old one: its listening sockets, so that no newcomer is turned away, and what it
//! holds, so that nothing is asked for again.
//!
//! The old one waits at a private Unix socket for a process of the same user. The two say what they are, then the old one
//! passes its sockets (`SCM_RIGHTS` of unix(7)) and what it holds in sealed memory, and goes on serving. Only when the
//! new one says that it is in charge does the old one end; if the new one dies before that, nothing has happened.
//!
//! - `channel`: messages with descriptors over a Unix socket.
//! - `entries`: what is held, as bytes.
//! - `memory`: a file that is only in memory, and that nobody can change.
//! - `heir` and `estate`: the new process's side, and the old one's.
//! - `stored`: what is held, where no process runs between the old one and the new one.

mod channel;
mod entries;
mod estate;
mod heir;
mod memory;
mod stored;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::entries::Held;
pub use self::estate::{Estate, Successor};
pub use self::heir::Inheritance;
pub use self::stored::{restored, stored};

/// The version of the messages. Members may be added to them without another one.
const PROTOCOL: u32 = 1;

/// How long the exchange may take, with all that is held.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a process must have in common with the other.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The user as whom this process was started. The other must be the same.
    pub uid: u32,
    /// Where secrets come from, in words that can be compared. `None` where nothing that is held passes on: the source
    /// is at hand, and may have changed.
    pub source: Option<BTreeMap<String, String>>,
}

/// What the new process says first.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    protocol: u32,
    /// Of `smcached`, for the log.
    version: String,
    /// In which it can read what is held.
    format: u32,
    source: Option<BTreeMap<String, String>>,
    network: Option<(u64, u64)>,
}

/// What the old process answers.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// It passes nothing on.
    Refused { reason: String },
    /// That many listeners follow, each in a message of its own, and then what is held.
    Granted {
        version: String,
        listeners: usize,
        /// Why what is held does not follow, if it does not.
        withheld: Option<String>,
    },
}

/// A listener; its descriptors come along: the socket, and the lock of its file.
#[derive(Debug, Serialize, Deserialize)]
struct Listener {
    label: String,
    /// Device and inode of a Unix socket's file.
    file: Option<(u64, u64)>,
}

/// What is held; its descriptor comes along.
#[derive(Debug, Serialize, Deserialize)]
struct Holdings {}

/// What the new process says last: that it serves, by these listeners.
#[derive(Debug, Serialize, Deserialize)]
struct Taken {
    listeners: Vec<String>,
}

/// The network that this process is in. A TCP address means something else in another one.
fn network() -> Option<(u64, u64)> {
    fs::metadata("/proc/self/ns/net").ok().map(|namespace| (namespace.dev(), namespace.ino()))
}

/// Why what is held in a format, by a process with one source, is of no use to another; `None` if it is.
fn withheld(
    format: u32,
    theirs: Option<&BTreeMap<String, String>>,
    ours: Option<&BTreeMap<String, String>>,
) -> Option<String> {
    if format == entries::FORMAT {
        difference(theirs, ours)
    } else {
        Some(format!("its format is {format}, and the other's {}", entries::FORMAT))
    }
}

/// Why what is held by a process with one source is of no use to one with another; `None` if it is.
fn difference(
    theirs: Option<&BTreeMap<String, String>>,
    ours: Option<&BTreeMap<String, String>>,
) -> Option<String> {
    let (Some(theirs), Some(ours)) = (theirs, ours) else {
        return Some("secrets that come from a file are read anew".to_owned());
    };
    let differing: Vec<_> = theirs
        .keys()
        .chain(ours.keys().filter(|key| !theirs.contains_key(*key)))
        .filter(|key| theirs.get(*key) != ours.get(*key))
        .map(String::as_str)
        .collect();
    (!differing.is_empty()).then(|| format!("the two have another source: {} differ", differing.join(", ")))
}

#[cfg(test)]
mod tests;
