//! Listening sockets that pass from one process to the next. Both hold the same socket, and with it the same queue of
//! newcomers: whichever accepts one serves it, so none is lost between the two.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A listening socket on its way.
#[derive(Debug)]
pub struct Passed {
    /// What it is called: [`Listener::label`](super::Listener::label).
    pub label: String,
    /// The socket.
    pub socket: OwnedFd,
    /// What belongs to a Unix socket.
    pub file: Option<PassedFile>,
}

/// A Unix socket's file.
#[derive(Debug)]
pub struct PassedFile {
    /// Device and inode.
    pub identity: (u64, u64),
    /// The lock that says whose it is. It is held as long as one process has it open.
    pub lock: OwnedFd,
}

/// Whether another process has a listener's address now, as the next one has it, or the service manager all the time. Then what
/// there is of it on the file system is that process's, and so are those who wait in its queue.
#[derive(Debug, Clone, Default)]
pub struct PassedOn(Arc<AtomicBool>);

impl PassedOn {
    /// Says so, or takes it back.
    pub fn set(&self, is_passed_on: bool) {
        self.0.store(is_passed_on, Ordering::Release);
    }

    /// Whether it is so.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
