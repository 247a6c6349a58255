//! A bound address that connections are accepted from.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::unix::UnixSocket;
use super::{Ownership, Peer};

/// Why an address cannot be listened on.
#[derive(Debug, Error)]
pub enum BindError {
    /// A TCP address.
    #[error("cannot listen on {addr}: {error}")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// A Unix socket.
    #[error("cannot {doing} {path}: {error}", path = .path.display())]
    Unix {
        /// The path.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// Somebody listens there.
    #[error("{path} is in use by another process; stop that one, or configure another path", path = .path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something else than a socket is there.
    #[error("{path} exists and is not a socket; it is left as it is: remove it, or configure another path", path = .path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The path ends in `/` or `..`.
    #[error("{path} does not name a file", path = .path.display())]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
}

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    label: String,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix(UnixListener, Option<UnixSocket>),
}

impl Listener {
    /// Listens on a TCP address.
    pub async fn tcp(addr: SocketAddr) -> Result<Self, BindError> {
        let listener = TcpListener::bind(addr).await.map_err(|error| BindError::Tcp { addr, error })?;
        let bound = listener.local_addr().map_err(|error| BindError::Tcp { addr, error })?;
        Ok(Self { kind: Kind::Tcp(listener), label: format!("tcp:{bound}") })
    }

    /// Listens on a Unix socket. See [`UnixSocket::bind`].
    pub fn unix(path: &Path, ownership: Ownership, directory_mode: Option<u32>) -> Result<Self, BindError> {
        let (socket, listener) = UnixSocket::bind(path, ownership, directory_mode)?;
        let listener = UnixListener::from_std(listener).map_err(|error| BindError::Unix {
            path: path.to_owned(),
            doing: "listen on",
            error,
        })?;
        let label = format!("unix:{}", path.display());
        Ok(Self { kind: Kind::Unix(listener, Some(socket)), label })
    }

    /// `tcp:<address>` or `unix:<path>`: how metrics, logs and policies call it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The bound TCP address, with the port that the system chose where 0 was asked for.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix(..) => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(addr)))
            }
            Kind::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred()?;
                // 0 is a process of another namespace (pid_namespaces(7)).
                let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
                let peer = Peer::Unix { uid: credentials.uid(), gid: credentials.gid(), pid };
                Ok((Stream::Unix(stream), peer))
            }
        }
    }

    /// Makes the address vanish for newcomers where that is possible while those in the queue are still
    /// accepted: a Unix socket's file is removed.
    pub(super) fn retire(&mut self) {
        if let Kind::Unix(_, socket) = &mut self.kind {
            *socket = None;
        }
    }
}

/// A connection of either kind.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What a peer is told who has too many connections: `503` as a problem of RFC 9457.
const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\n\
retry-after: 1\r\ncache-control: no-store\r\nconnection: close\r\ncontent-length: 141\r\n\r\n\
{\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
\"detail\":\"too many connections are open here\",\"code\":\"too_many_connections\"}";

impl Stream {
    /// Says that there is no room, if the peer takes it at once, and hangs up.
    pub(super) fn turn_away(self) {
        let _ = match self {
            Self::Tcp(stream) => stream.try_write(TURNED_AWAY),
            Self::Unix(stream) => stream.try_write(TURNED_AWAY),
        };
    }
}

/// Passes a poll on to whichever stream it is.
macro_rules! delegate {
    ($self:ident, $method:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_read, cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write, cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write_vectored, cx, bufs)
    }

    /// Both kinds are: a large body is sent from where it lies.
    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown, cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_turned_away_gets_a_whole_answer() {
        let text = std::str::from_utf8(TURNED_AWAY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("content-length: {}", body.len())));
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!((&problem["status"], &problem["code"]), (&503.into(), &"too_many_connections".into()));
    }
}
