//! A bound address that connections are accepted from.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::sleep;

use super::unix::UnixSocket;
use super::{Address, Ownership, Passed, PassedFile, PassedOn, Peer, passed};

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
    /// A socket that another process has opened.
    #[error("cannot serve the socket {address} that was passed to the daemon: {error}")]
    Passed {
        /// Where it listens.
        address: Address,
        /// What is wrong with it, or what the system says.
        error: io::Error,
    },
    /// Others may enter the directory of a socket that is for this user alone.
    #[error(
        "{path}: its directory must belong to the daemon's user, and nobody else may enter it (mode 0700)",
        path = .path.display()
    )]
    NotPrivate {
        /// The path.
        path: PathBuf,
    },
    /// No further handle of the socket can be had.
    #[error("a listener cannot be kept for the next process: {error}")]
    NotPassed {
        /// What the system says.
        error: io::Error,
    },
    /// The path ends in `/` or `..`.
    #[error("{path} does not name a file", path = .path.display())]
    NoFileName {
        /// The path.
        path: PathBuf,
    },
}

impl BindError {
    pub(super) fn unix(path: &Path, doing: &'static str, error: io::Error) -> Self {
        Self::Unix { path: path.to_owned(), doing, error }
    }
}

/// How long to wait when the system has no descriptors left, before accepting again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// For the user of this process alone.
const PRIVATE: Ownership = Ownership { mode: 0o600, uid: None, gid: None };

/// A bound address.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    label: String,
    passed_on: PassedOn,
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
        Ok(Self::of(Kind::Tcp(listener), &Address::Tcp(bound)))
    }

    /// Goes on listening on a TCP address for another process.
    pub fn passed_tcp(addr: SocketAddr, passed: Passed) -> Result<Self, BindError> {
        let take = || {
            let listener = passed::tcp(passed.socket)?;
            if listener.local_addr()? != addr {
                return Err(io::Error::other("what was passed is another address"));
            }
            Ok(listener)
        };
        let listener = take().map_err(|error| BindError::Tcp { addr, error })?;
        Ok(Self::of(Kind::Tcp(listener), &Address::Tcp(addr)))
    }

    /// Listens on a Unix socket. See [`UnixSocket::bind`].
    pub fn unix(path: &Path, ownership: Ownership, directory_mode: Option<u32>) -> Result<Self, BindError> {
        let (socket, listener) = UnixSocket::bind(path, ownership, directory_mode)?;
        Self::on_file(path, socket, listener)
    }

    /// Listens on a Unix socket that the user of this process alone can reach; its directory is made if absent.
    pub fn private(path: &Path) -> Result<Self, BindError> {
        let is_new = path.parent().is_some_and(|directory| !directory.exists());
        let (socket, listener) = UnixSocket::bind(path, PRIVATE, is_new.then_some(0o700))?;
        if !socket.is_private() {
            return Err(BindError::NotPrivate { path: path.to_owned() });
        }
        Self::on_file(path, socket, listener)
    }

    /// Goes on listening on a Unix socket for another process; its file gets the mode and owner that it is to have. If that is
    /// gone from where `path` leads, another one is made there, as by [`Listener::unix`].
    pub fn passed_unix(
        path: &Path,
        ownership: Ownership,
        directory_mode: Option<u32>,
        passed: Passed,
    ) -> Result<Self, BindError> {
        let file = Self::file(path, passed.file)?;
        match UnixSocket::passed(path, ownership, &file)
            .map_err(|error| BindError::unix(path, "take over", error))?
        {
            Some(socket) => Self::on_file(path, socket, passed.socket),
            None => {
                tracing::warn!(socket = %path.display(), "somebody has removed the socket of the old process: another one is made");
                let (socket, listener) = UnixSocket::bind_again(path, ownership, directory_mode, file.lock)?;
                Self::on_file(path, socket, listener)
            }
        }
    }

    /// The same of a [`Listener::private`], if its file is where `path` leads.
    pub fn passed_private(path: &Path, passed: Passed) -> Result<Self, BindError> {
        let file = Self::file(path, passed.file)?;
        let socket = UnixSocket::passed(path, PRIVATE, &file)
            .map_err(|error| BindError::unix(path, "take over", error))?;
        let socket =
            socket.ok_or_else(|| BindError::unix(path, "take over", io::Error::other("it is gone")))?;
        if !socket.is_private() {
            return Err(BindError::NotPrivate { path: path.to_owned() });
        }
        Self::on_file(path, socket, passed.socket)
    }

    fn file(path: &Path, file: Option<PassedFile>) -> Result<PassedFile, BindError> {
        file.ok_or_else(|| BindError::unix(path, "take over", io::Error::other("it has no file")))
    }

    fn on_file(path: &Path, socket: UnixSocket, listener: impl Into<OwnedFd>) -> Result<Self, BindError> {
        let listener =
            passed::unix(listener.into()).map_err(|error| BindError::unix(path, "listen on", error))?;
        let passed_on = socket.passed_on().clone();
        let address = Address::Unix(path.to_owned());
        Ok(Self { passed_on, ..Self::of(Kind::Unix(listener, Some(socket)), &address) })
    }

    /// Listens on a socket that the service manager has opened, and keeps open. What is the service manager's own is left to it: the
    /// file of a Unix socket is neither changed nor removed, and those who are in the queue when we end are left there.
    ///
    /// `address` is where it listens, which decides what it is called. A Unix socket cannot be asked: it knows the path by which it was
    /// bound, and may have been moved since.
    pub fn passed(socket: OwnedFd, address: Address) -> Result<Self, BindError> {
        let opened = match &address {
            Address::Tcp(_) => passed::tcp(socket).map(Kind::Tcp),
            Address::Unix(_) => passed::unix(socket).map(|listener| Kind::Unix(listener, None)),
        };
        let listener = match opened {
            Ok(kind) => Self::of(kind, &address),
            Err(error) => return Err(BindError::Passed { address, error }),
        };
        listener.passed_on.set(true);
        Ok(listener)
    }

    fn of(kind: Kind, address: &Address) -> Self {
        Self { kind, label: address.to_string(), passed_on: PassedOn::default() }
    }

    /// Whether another process has the address too.
    pub fn passed_on(&self) -> PassedOn {
        self.passed_on.clone()
    }

    /// Another handle of the socket, for another process; whoever passes it on says so.
    pub fn to_pass(&self) -> io::Result<(Passed, PassedOn)> {
        let (socket, file): (BorrowedFd<'_>, _) = match &self.kind {
            Kind::Tcp(listener) => (listener.as_fd(), None),
            Kind::Unix(listener, socket) => {
                (listener.as_fd(), socket.as_ref().map(UnixSocket::to_pass).transpose()?)
            }
        };
        let passed = Passed { label: self.label.clone(), socket: socket.try_clone_to_owned()?, file };
        Ok((passed, self.passed_on.clone()))
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

    /// Waits for somebody to connect. Where that cannot be accepted, the log says why.
    pub(super) async fn accept(&self) -> (Stream, Peer) {
        loop {
            match self.try_accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!(listener = self.label, %error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn try_accept(&self) -> io::Result<(Stream, Peer)> {
        match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, addr) = listener.accept().await?;
                Stream::tcp(stream, addr)
            }
            Kind::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Stream::unix(stream)
            }
        }
    }

    /// Waits for somebody to connect to a Unix socket, and says who it is. Nobody ever does to a listener of another kind.
    pub async fn accept_unix(&self) -> (UnixStream, Peer) {
        loop {
            if let (Stream::Unix(stream), peer) = self.accept().await {
                return (stream, peer);
            }
        }
    }

    /// Ends listening: nobody finds the way in any more, and those who are in the queue already are given to be served. Of a
    /// socket that another process has too they are left to that one, or to the next.
    ///
    /// The socket is closed at once after a look that finds the queue empty: who comes in between is reset.
    pub(super) fn close(self) -> Vec<(Stream, Peer)> {
        if self.passed_on.is_set() {
            return Vec::new();
        }
        match self.kind {
            Kind::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let queue = iter::from_fn(|| listener.accept().ok());
                queue.filter_map(|(stream, addr)| awaited_tcp(stream, addr).ok()).collect()
            }
            Kind::Unix(listener, file) => {
                drop(file);
                let Ok(listener) = listener.into_std() else { return Vec::new() };
                let queue = iter::from_fn(|| listener.accept().ok());
                queue.filter_map(|(stream, _)| awaited_unix(stream).ok()).collect()
            }
        }
    }
}

fn awaited_tcp(stream: std::net::TcpStream, addr: SocketAddr) -> io::Result<(Stream, Peer)> {
    stream.set_nonblocking(true)?;
    Stream::tcp(TcpStream::from_std(stream)?, addr)
}

fn awaited_unix(stream: std::os::unix::net::UnixStream) -> io::Result<(Stream, Peer)> {
    stream.set_nonblocking(true)?;
    Stream::unix(UnixStream::from_std(stream)?)
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
    fn tcp(stream: TcpStream, addr: SocketAddr) -> io::Result<(Self, Peer)> {
        stream.set_nodelay(true)?;
        Ok((Self::Tcp(stream), Peer::Tcp(addr)))
    }

    fn unix(stream: UnixStream) -> io::Result<(Self, Peer)> {
        let credentials = stream.peer_cred()?;
        // 0 is a process of another namespace (pid_namespaces(7)).
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let peer = Peer::Unix { uid: credentials.uid(), gid: credentials.gid(), pid };
        Ok((Self::Unix(stream), peer))
    }

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
