//! Listening, accepting and serving connections, over TCP and Unix sockets; and a small client.
//!
//! Used by `server` and `ops`, which bring a [`Service`]; knows nothing of secrets.

mod accept;
mod client;
mod connection;
mod descriptors;
mod listener;
mod ownership;
mod passed;
mod passing;
mod patience;
mod room;
mod unix;

pub use accept::wish_for;
pub use client::{ClientError, Endpoint, PATIENCE, fetch};
#[cfg(any(test, fuzzing))]
pub(crate) use connection::http1;
pub use connection::{Activity, ConnectionLimits, LINGER, Service, serve};
pub use descriptors::raise_descriptor_limit;
pub use listener::{BindError, Listener};
pub use ownership::{Ownership, UnknownOwner};
pub use passed::{Address, PassedError, PassedSockets, PassedToProcess, STORED};
pub use passing::{Passed, PassedFile, PassedOn};
pub use patience::Patience;
pub use unix::UnixSocket;

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::Full;
use prometheus::{IntCounter, IntGauge};

/// What every answer's body is: bytes that are there already, shared and not copied.
pub type Body = Full<Bytes>;

/// Who is at the other end of a connection, as the kernel says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Tcp(SocketAddr),
    /// Over a Unix socket: the credentials at the time of `connect` (`SO_PEERCRED`, unix(7)).
    Unix {
        /// User id.
        uid: u32,
        /// Primary group id.
        gid: u32,
        /// Process id, where it is one of our own namespace.
        pid: Option<u32>,
    },
}

/// What is counted of a listener's connections.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    /// Those that are open.
    pub open: IntGauge,
    /// Those that were refused since their user had too many.
    pub refused: IntCounter,
}
