//! Unix sockets on the file system: made without a moment of wrong permissions, and removed again.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::{BindError, Ownership, PassedFile, PassedOn};
use crate::folder::{CAUTIOUS, DIRECTORY_MODE, Folder};

/// A socket file of ours. Removed when dropped, if it is still ours.
#[derive(Debug)]
pub struct UnixSocket {
    folder: Folder,
    name: OsString,
    /// Device and inode: somebody else's socket of the same name is left alone.
    identity: (u64, u64),
    /// Settles who wins when two daemons start at once; released by the kernel however we end.
    lock: File,
    /// The file is another process's now.
    passed_on: PassedOn,
}

impl UnixSocket {
    /// Binds `path`, replacing a socket that nobody listens on and refusing anything else that is there.
    ///
    /// The socket is bound in a directory that nobody else can enter, given its mode and owner, and renamed into place:
    /// between `bind` and `chmod` its mode would be whatever the umask makes it, and what is changed by its name may
    /// have been replaced by a link. Directories that are missing are made; the last one gets `directory_mode`, and
    /// the socket's group, as it does if it is there and a mode is given. Its owner stays the daemon's user: who owns a
    /// directory can put another socket there.
    pub fn bind(
        path: &Path,
        ownership: Ownership,
        directory_mode: Option<u32>,
    ) -> Result<(Self, UnixListener), BindError> {
        let (folder, name) = Self::place(path, ownership, directory_mode)?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(CAUTIOUS)
            .open(folder.path().join(lock_name(name)))
            .map_err(|error| BindError::unix(path, "create the lock file of", error))?;
        lock.try_lock().map_err(|_| BindError::InUse { path: path.to_owned() })?;
        Self::bind_under(lock, path, folder, name, ownership)
    }

    /// As [`Self::bind`], where another process has passed the lock.
    pub(super) fn bind_again(
        path: &Path,
        ownership: Ownership,
        directory_mode: Option<u32>,
        lock: OwnedFd,
    ) -> Result<(Self, UnixListener), BindError> {
        let (folder, name) = Self::place(path, ownership, directory_mode)?;
        Self::bind_under(lock.into(), path, folder, name, ownership)
    }

    fn place(
        path: &Path,
        ownership: Ownership,
        directory_mode: Option<u32>,
    ) -> Result<(Folder, &OsStr), BindError> {
        let name = path.file_name().ok_or_else(|| BindError::NoFileName { path: path.to_owned() })?;
        let folder = directory(path.parent().unwrap_or(Path::new("")), ownership, directory_mode)
            .map_err(|error| BindError::unix(path, "open or make the directory of", error))?;
        if folder.is_open_to_others().unwrap_or(true) {
            tracing::warn!(
                socket = %path.display(),
                "all users may write to the socket's directory, and put another socket in its place"
            );
        }
        Ok((folder, name))
    }

    fn bind_under(
        lock: File,
        path: &Path,
        folder: Folder,
        name: &OsStr,
        ownership: Ownership,
    ) -> Result<(Self, UnixListener), BindError> {
        refuse_what_is_there(&folder.path().join(name), path)?;
        let (identity, listener) =
            bind_in(&folder, name, ownership).map_err(|error| BindError::unix(path, "bind", error))?;
        let passed_on = PassedOn::default();
        Ok((Self { folder, name: name.to_owned(), identity, lock, passed_on }, listener))
    }

    /// Takes a socket's file over from another process, and gives it its mode and owner; nothing if it is not the one at
    /// `path`.
    pub(super) fn passed(path: &Path, ownership: Ownership, file: &PassedFile) -> io::Result<Option<Self>> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let open = || {
            let folder = Folder::open(path.parent().unwrap_or(Path::new("")))?;
            let flags = (OFlag::O_PATH | OFlag::O_NOFOLLOW).bits();
            let itself = OpenOptions::new().read(true).custom_flags(flags).open(folder.path().join(name))?;
            io::Result::Ok((folder, itself))
        };
        let (folder, itself) = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let found = itself.metadata()?;
        if (found.dev(), found.ino()) != file.identity || !found.file_type().is_socket() {
            return Ok(None);
        }
        let itself = format!("/proc/self/fd/{}", itself.as_raw_fd());
        if found.mode() & 0o777 != ownership.mode {
            fs::set_permissions(&itself, fs::Permissions::from_mode(ownership.mode))?;
        }
        let is_other = |wanted: Option<u32>, has: u32| wanted.is_some_and(|wanted| wanted != has);
        if is_other(ownership.uid, found.uid()) || is_other(ownership.gid, found.gid()) {
            chown(&itself, ownership.uid, ownership.gid)?;
        }
        let (identity, lock) = (file.identity, file.lock.try_clone()?.into());
        Ok(Some(Self { folder, name: name.to_owned(), identity, lock, passed_on: PassedOn::default() }))
    }

    /// Another handle of what makes the file ours, for another process.
    pub(super) fn to_pass(&self) -> io::Result<PassedFile> {
        Ok(PassedFile { identity: self.identity, lock: self.lock.as_fd().try_clone_to_owned()? })
    }

    pub(super) fn passed_on(&self) -> &PassedOn {
        &self.passed_on
    }

    /// Whether its directory is this user's, and nobody else may enter it.
    pub(super) fn is_private(&self) -> bool {
        self.folder.is_private().unwrap_or(false)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if self.passed_on.is_set() {
            return;
        }
        let path = self.folder.path().join(&self.name);
        if fs::symlink_metadata(&path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity) {
            let _ = fs::remove_file(path);
        }
    }
}

fn lock_name(socket: &OsStr) -> OsString {
    let mut name = OsString::from(".");
    name.push(socket);
    name.push(".lock");
    name
}

fn directory(path: &Path, ownership: Ownership, mode: Option<u32>) -> io::Result<Folder> {
    let is_new = !path.as_os_str().is_empty() && !path.exists();
    let folder = Folder::make(path, DIRECTORY_MODE)?;
    if is_new || mode.is_some() {
        chown(folder.path(), None, ownership.gid)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode.unwrap_or(DIRECTORY_MODE)))?;
    }
    Ok(folder)
}

/// Binds a socket in a directory of its own, where nobody else can enter, and moves it to its place in `folder`; gives its
/// device and inode.
fn bind_in(folder: &Folder, name: &OsStr, ownership: Ownership) -> io::Result<((u64, u64), UnixListener)> {
    let mut private_name = OsString::from(".");
    private_name.push(name);
    private_name.push(format!("~{:016x}", fastrand::u64(..)));
    let private = folder.make_private(&private_name)?;
    let socket = private.path().join("s");
    let bound = (|| {
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(ownership.mode))?;
        lchown(&socket, ownership.uid, ownership.gid)?;
        let made = fs::symlink_metadata(&socket)?;
        fs::rename(&socket, folder.path().join(name))?;
        listener.set_nonblocking(true)?;
        Ok(((made.dev(), made.ino()), listener))
    })();
    if bound.is_err() {
        let _ = fs::remove_file(&socket);
    }
    // An empty directory of this name can be nobody's loss.
    let _ = fs::remove_dir(folder.path().join(private_name));
    bound
}

/// Nothing, or a socket that nobody listens on, may be replaced.
fn refuse_what_is_there(place: &Path, path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(BindError::unix(path, "look at", error)),
        Ok(found) => found,
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    // By its own path: no longer one may be connected to.
    match connect_at_once(path) {
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(()),
        // Somebody listens, and has more newcomers waiting than it takes.
        Ok(()) | Err(Errno::EAGAIN) => Err(BindError::InUse { path: path.to_owned() }),
        Err(error) => Err(BindError::unix(path, "find out who listens on", error.into())),
    }
}

/// Connects, but waits for nobody.
fn connect_at_once(path: &Path) -> nix::Result<()> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIVATE: Ownership = Ownership { mode: 0o600, uid: None, gid: None };

    #[test]
    fn the_socket_has_its_mode_and_is_removed_at_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/s.sock");
        let (socket, _listener) = UnixSocket::bind(&path, PRIVATE, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn its_directories_are_made_with_the_mode_that_is_given() {
        let root = tempfile::tempdir().unwrap();
        let mode = |path: &str| fs::metadata(root.path().join(path)).unwrap().mode() & 0o777;
        let path = root.path().join("ns/team-a/s.sock");
        let (socket, _listener) = UnixSocket::bind(&path, PRIVATE, Some(0o750)).unwrap();
        assert_eq!((mode("ns"), mode("ns/team-a")), (0o755, 0o750));
        assert_eq!(
            fs::read_dir(root.path().join("ns/team-a")).unwrap().count(),
            2,
            "the socket and its lock"
        );
        drop(socket);
        let (_socket, _listener) = UnixSocket::bind(&path, PRIVATE, None).unwrap();
        assert_eq!(mode("ns/team-a"), 0o750, "what is there is left as it is");
    }

    #[test]
    fn nothing_is_changed_through_a_link() {
        let root = tempfile::tempdir().unwrap();
        let precious = root.path().join("precious");
        for name in [".s.sock.lock", ".s.sock~", "s.sock"] {
            fs::write(&precious, "kept").unwrap();
            let link = root.path().join(name);
            std::os::unix::fs::symlink(&precious, &link).unwrap();
            let _ = UnixSocket::bind(&root.path().join("s.sock"), PRIVATE, None);
            assert_eq!(fs::read_to_string(&precious).unwrap(), "kept", "{name}");
            assert_ne!(fs::metadata(&precious).unwrap().mode() & 0o777, 0o600, "{name}");
            fs::remove_file(link).unwrap_or_default();
        }
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        UnixSocket::bind(&path, PRIVATE, None).unwrap();
    }

    #[test]
    fn a_stale_socket_with_the_longest_name_is_replaced() {
        let name = format!("{:x<100}", format!("smcached-test-{}-", std::process::id()));
        let path = Path::new("/tmp").join(name);
        drop(UnixListener::bind(&path).unwrap());
        let bound = UnixSocket::bind(&path, PRIVATE, None);
        let _ = fs::remove_file(Path::new("/tmp").join(lock_name(path.file_name().unwrap())));
        bound.unwrap();
    }

    #[test]
    fn a_live_socket_and_anything_else_is_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _live = UnixListener::bind(&path).unwrap();
        assert!(matches!(UnixSocket::bind(&path, PRIVATE, None), Err(BindError::InUse { .. })));
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(UnixSocket::bind(&file, PRIVATE, None), Err(BindError::NotASocket { .. })));
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn of_two_daemons_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let _first = UnixSocket::bind(&path, PRIVATE, None).unwrap();
        assert!(matches!(UnixSocket::bind(&path, PRIVATE, None), Err(BindError::InUse { .. })));
    }

    #[test]
    fn a_socket_that_was_passed_on_is_the_other_ones_to_remove_and_its_lock_never_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let (first, _listener) = UnixSocket::bind(&path, PRIVATE, None).unwrap();
        let public = Ownership { mode: 0o666, ..PRIVATE };
        let second = UnixSocket::passed(&path, public, &first.to_pass().unwrap()).unwrap().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o666);
        first.passed_on().set(true);
        drop(first);
        assert!(path.exists());
        assert!(matches!(UnixSocket::bind(&path, PRIVATE, None), Err(BindError::InUse { .. })));
        drop(second);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_that_is_not_there_any_more_is_not_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let (first, _listener) = UnixSocket::bind(&path, PRIVATE, None).unwrap();
        let passed = first.to_pass().unwrap();
        fs::remove_file(&path).unwrap();
        assert!(UnixSocket::passed(&path, PRIVATE, &passed).unwrap().is_none());
        let precious = directory.path().join("precious");
        fs::write(&precious, "kept").unwrap();
        fs::set_permissions(&precious, fs::Permissions::from_mode(0o644)).unwrap();
        std::os::unix::fs::symlink(&precious, &path).unwrap();
        assert!(UnixSocket::passed(&path, PRIVATE, &passed).unwrap().is_none());
        assert_eq!(fs::metadata(&precious).unwrap().mode() & 0o777, 0o644);
    }

    #[test]
    fn a_socket_that_took_our_place_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s.sock");
        let (socket, _listener) = UnixSocket::bind(&path, PRIVATE, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(socket);
        assert!(path.exists());
    }
}
