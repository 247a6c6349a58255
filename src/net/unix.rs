//! Unix sockets on the file system: made without a moment of wrong permissions, and removed again.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{BindError, Ownership};

/// A socket file of ours. Removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct UnixSocket {
    path: PathBuf,
    /// Device and inode: somebody else's socket of the same name is left alone.
    identity: (u64, u64),
    /// Settles who wins when two daemons start at once; released by the kernel however we end.
    _lock: File,
}

impl UnixSocket {
    /// Binds `path`, replacing a socket that nobody listens on and refusing anything else that is there.
    ///
    /// The socket is bound under another name, given its mode and owner, and renamed into place: between
    /// `bind` and `chmod` its mode would be whatever the umask makes it. The directory is made if only
    /// that is missing.
    pub fn bind(path: &Path, ownership: Ownership) -> Result<(Self, UnixListener), BindError> {
        let fail = |doing, error| BindError::Unix { path: path.to_owned(), doing, error };
        let name = path.file_name().ok_or_else(|| BindError::NoFileName { path: path.to_owned() })?;
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match fs::create_dir(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(fail("create its directory", error));
            }
            _ => {}
        }
        let beside = |prefix: &str, suffix: &str| {
            let mut beside = std::ffi::OsString::from(prefix);
            beside.push(name);
            beside.push(suffix);
            directory.join(beside)
        };
        let lock = File::create(beside(".", ".lock")).map_err(|error| fail("create its lock file", error))?;
        lock.try_lock().map_err(|_| BindError::InUse { path: path.to_owned() })?;
        refuse_what_is_there(path)?;
        let temporary = beside("~", "");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(fail("remove the remains of an earlier start", error));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(|error| fail("bind", error))?;
        let identity = put_in_place(&temporary, path, ownership)
            .inspect_err(|_| drop(fs::remove_file(&temporary)))
            .map_err(|error| fail("set the mode and owner of", error))?;
        listener.set_nonblocking(true).map_err(|error| fail("listen on", error))?;
        Ok((Self { path: path.to_owned(), identity, _lock: lock }, listener))
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Nothing, or a socket that nobody listens on, may be replaced.
fn refuse_what_is_there(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::Unix { path: path.to_owned(), doing: "look at", error }),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(BindError::Unix { path: path.to_owned(), doing: "find out who listens on", error }),
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
    }
}

fn put_in_place(temporary: &Path, path: &Path, ownership: Ownership) -> io::Result<(u64, u64)> {
    fs::set_permissions(temporary, fs::Permissions::from_mode(ownership.mode))?;
    if ownership.uid.is_some() || ownership.gid.is_some() {
        chown(temporary, ownership.uid, ownership.gid)?;
    }
    let made = fs::symlink_metadata(temporary)?;
    fs::rename(temporary, path)?;
    Ok((made.dev(), made.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: Ownership = Ownership { mode: 0o600, uid: None, gid: None };

    #[test]
    fn the_socket_has_its_mode_and_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/s.sock");
        let (socket, _listener) = UnixSocket::bind(&path, PRIVATE).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        UnixSocket::bind(&path, PRIVATE).unwrap();
    }

    #[test]
    fn a_live_socket_and_anything_else_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _live = UnixListener::bind(&path).unwrap();
        assert!(matches!(UnixSocket::bind(&path, PRIVATE), Err(BindError::InUse { .. })));
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(UnixSocket::bind(&file, PRIVATE), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn of_two_daemons_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _first = UnixSocket::bind(&path, PRIVATE).unwrap();
        assert!(matches!(UnixSocket::bind(&path, PRIVATE), Err(BindError::InUse { .. })));
    }

    #[test]
    fn a_socket_that_took_our_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let (socket, _listener) = UnixSocket::bind(&path, PRIVATE).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
