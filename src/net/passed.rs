//! Sockets that another process has opened and passed to this one, as systemd does (`sd_listen_fds(3)`): they stay open
//! while the daemon is restarted, and whoever connects meanwhile waits in their queue. What the process before has left
//! with systemd comes along with them.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::close;
use thiserror::Error;

/// Where a socket listens. Shown as metrics, logs and policies call it: `tcp:<address>` or `unix:<path>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// An address and port.
    Tcp(SocketAddr),
    /// A socket of the file system.
    Unix(PathBuf),
}

/// Sockets that are to be served and have not been taken yet, by their addresses.
#[derive(Debug, Default)]
pub struct PassedSockets(Vec<(Address, OwnedFd)>);

/// What systemd calls the memory that one process leaves with it for the next (`FDNAME=` of `sd_notify(3)`).
pub const STORED: &str = "smcached-held";

/// What was passed to this process.
#[derive(Debug, Default)]
pub struct PassedToProcess {
    /// Sockets that others have opened.
    pub sockets: PassedSockets,
    /// What the process before has left under the name of [`STORED`]. A daemon starts without it too.
    pub stored: Option<io::Result<File>>,
}

/// Why a passed socket cannot be served.
#[derive(Debug, Error)]
pub enum PassedError {
    /// Something else was passed.
    #[error(
        "of what was passed to the daemon, number {number} cannot be used: {error}; accepted: TCP and Unix stream \
         sockets"
    )]
    Unusable {
        /// Its place, from 1 on.
        number: usize,
        /// What is wrong with it.
        error: io::Error,
    },
    /// No configured address has it.
    #[error(
        "the socket {given} was passed to the daemon, but no [[listener]] and not [ops] is configured for it; \
         configured: {accepted}"
    )]
    Unknown {
        /// The socket.
        given: Address,
        /// The addresses that are configured.
        accepted: String,
    },
    /// One address twice.
    #[error("the socket {0} was passed to the daemon more than once; pass it once")]
    Twice(Address),
}

impl PassedToProcess {
    /// Takes all of which the environment tells, and what it tells about it away, so that no child takes it for its own; with
    /// the names that they have there, if they have any. To be called before there is a second thread, and before any file
    /// is opened.
    pub fn from_process<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, PassedError> {
        let mut names = names.into_iter();
        let mut passed = ListenFd::from_env();
        let mut this = Self::default();
        for index in 0..passed.len() {
            let unusable = |error| PassedError::Unusable { number: index + 1, error };
            if names.next() == Some(STORED) {
                this.stored = take_file(&mut passed, index).transpose();
            } else {
                this.sockets.0.push(take(&mut passed, index).map_err(unusable)?);
            }
        }
        Ok(this)
    }
}

impl PassedSockets {
    /// Complains of the first that no configured address has, or that another has too.
    pub fn check(&self, configured: &[Address]) -> Result<(), PassedError> {
        for (at, (given, _)) in self.0.iter().enumerate() {
            if !configured.iter().any(|address| address.is_of(given)) {
                let accepted: Vec<_> = configured.iter().map(ToString::to_string).collect();
                return Err(PassedError::Unknown { given: given.clone(), accepted: accepted.join(", ") });
            }
            if self.0[..at].iter().any(|(earlier, _)| earlier == given) {
                return Err(PassedError::Twice(given.clone()));
            }
        }
        Ok(())
    }

    /// Takes the one that listens at a configured address.
    pub fn take(&mut self, configured: &Address) -> Option<OwnedFd> {
        let at = self.0.iter().position(|(given, _)| configured.is_of(given))?;
        Some(self.0.swap_remove(at).1)
    }
}

/// A socket and its address. Whether it is of either kind is checked by the library, whether it listens by us: with
/// `Accept=yes`, systemd passes a connection.
fn take(passed: &mut ListenFd, index: usize) -> io::Result<(Address, OwnedFd)> {
    let (address, socket) = if let Ok(Some(listener)) = passed.take_tcp_listener(index) {
        (Address::Tcp(listener.local_addr()?), OwnedFd::from(listener))
    } else {
        let listener = passed.take_unix_listener(index)?.ok_or(io::ErrorKind::NotFound)?;
        let address = listener.local_addr()?;
        let path = address.as_pathname().ok_or_else(|| io::Error::other("its address is no path"))?;
        (Address::Unix(path.to_owned()), OwnedFd::from(listener))
    };
    check_listens(&socket)?;
    Ok((address, socket))
}

/// A file, opened once more: only unsafe code could own the descriptor that was passed. That one is closed.
fn take_file(passed: &mut ListenFd, index: usize) -> io::Result<Option<File>> {
    let Some(descriptor) = passed.take_raw_fd(index)? else { return Ok(None) };
    let file = File::open(format!("/proc/self/fd/{descriptor}"));
    close(descriptor)?;
    file.map(Some)
}

fn check_listens(socket: &OwnedFd) -> io::Result<()> {
    if getsockopt(socket, sockopt::AcceptConn)? {
        Ok(())
    } else {
        Err(io::Error::other("it does not listen"))
    }
}

/// A socket for the runtime, if it listens.
pub(super) fn tcp(socket: OwnedFd) -> io::Result<tokio::net::TcpListener> {
    check_listens(&socket)?;
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// As [`tcp`], of the other kind.
pub(super) fn unix(socket: OwnedFd) -> io::Result<tokio::net::UnixListener> {
    check_listens(&socket)?;
    let listener = UnixListener::from(socket);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(listener)
}

impl Address {
    /// Whether a socket that was bound to `bound` is the one that this names: a path may lead through links.
    fn is_of(&self, bound: &Self) -> bool {
        match (self, bound) {
            (Self::Tcp(named), Self::Tcp(bound)) => named == bound,
            (Self::Unix(named), Self::Unix(bound)) => whole(named) == whole(bound),
            _ => false,
        }
    }
}

/// The path without links, if something is there.
fn whole(path: &Path) -> PathBuf {
    let there = fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    there.unwrap_or_else(|_| path.to_owned())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "tcp:{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::net::Listener;

    fn tcp_socket() -> (Address, OwnedFd) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (Address::Tcp(listener.local_addr().unwrap()), listener.into())
    }

    fn unix_socket(path: &Path) -> (Address, OwnedFd) {
        (Address::Unix(path.to_owned()), UnixListener::bind(path).unwrap().into())
    }

    #[test]
    fn a_socket_is_found_by_its_address_and_by_a_path_that_leads_to_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        symlink(directory.path(), directory.path().join("link")).unwrap();
        let by_link = Address::Unix(directory.path().join("link/s"));
        let (tcp, unix) = (tcp_socket(), unix_socket(&path));
        let tcp_address = tcp.0.clone();
        let mut passed = PassedSockets(vec![tcp, unix]);
        passed.check(&[by_link.clone(), tcp_address.clone()]).unwrap();
        assert!(passed.take(&Address::Unix(directory.path().join("other"))).is_none());
        assert!(passed.take(&by_link).is_some());
        assert!(passed.take(&by_link).is_none(), "it is taken once");
        assert!(passed.take(&tcp_address).is_some());
    }

    #[test]
    fn one_that_nothing_is_configured_for_is_named_with_what_is() {
        let passed = PassedSockets(vec![tcp_socket()]);
        let given = passed.0[0].0.to_string();
        let error = passed.check(&[Address::Unix("/run/s".into())]).unwrap_err().to_string();
        assert!(error.contains(&given) && error.contains("configured: unix:/run/s"), "{error}");
    }

    #[test]
    fn one_address_twice_is_refused() {
        let (address, socket) = tcp_socket();
        let again = (address.clone(), socket.try_clone().unwrap());
        let passed = PassedSockets(vec![(address.clone(), socket), again]);
        assert!(matches!(passed.check(&[address]), Err(PassedError::Twice(_))));
    }

    #[tokio::test]
    async fn its_file_stays_and_so_does_the_queue() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (address, socket) = unix_socket(&path);
        let kept = socket.try_clone().unwrap();
        let listener = Listener::passed(socket, address).unwrap();
        assert_eq!(listener.label(), format!("unix:{}", path.display()));
        let _waiting = UnixStream::connect(&path).unwrap();
        assert!(listener.close().is_empty(), "those who wait are for the next process");
        assert!(path.exists());
        UnixListener::from(kept).accept().unwrap();
    }

    #[tokio::test]
    async fn a_connection_is_not_taken_for_a_listener() {
        let directory = tempfile::tempdir().unwrap();
        let (connection, _other) = UnixStream::pair().unwrap();
        let address = Address::Unix(directory.path().join("s"));
        let error = Listener::passed(connection.into(), address).unwrap_err().to_string();
        assert!(error.contains("it does not listen"), "{error}");
    }
}
