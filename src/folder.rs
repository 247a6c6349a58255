//! Directories that are held by a descriptor. What is done in one is done in it, whoever moves or replaces it meanwhile,
//! and no symbolic link leads there that another user has laid: root must not be led astray in a directory that
//! others may write to, such as `/tmp` or an `emptyDir`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat, readlinkat};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use nix::unistd::geteuid;

/// The most links on one way, as in Linux (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Mode of directories that others may enter; what lies in them has modes of its own.
pub const DIRECTORY_MODE: u32 = 0o755;

/// For `custom_flags` of what is opened by name: the last part of the path must not be a link, and nobody is waited for who
/// may be at the other end of a named pipe.
pub const CAUTIOUS: i32 = OFlag::O_NOFOLLOW.union(OFlag::O_NONBLOCK).bits();

/// An open directory.
#[derive(Debug)]
pub struct Folder {
    descriptor: OwnedFd,
    /// How it was asked for; for errors.
    name: PathBuf,
}

/// What is found under a name.
enum Found {
    Directory(OwnedFd),
    Link(OsString),
}

impl Folder {
    /// Opens a directory. Links on the way are followed if they belong to root or to the user of this process.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::walk(path, None)
    }

    /// As [`Folder::open`], and makes the directories that are missing, with this mode whatever the umask is.
    pub fn make(path: &Path, mode: u32) -> io::Result<Self> {
        Self::walk(path, Some(mode))
    }

    /// As [`Folder::make`], but makes the last directory only.
    pub fn make_last(path: &Path, mode: u32) -> io::Result<Self> {
        match (path.parent(), path.file_name()) {
            (Some(parent), Some(name)) if !path.exists() => Self::open(parent)?.make_below(name, mode),
            _ => Self::open(path),
        }
    }

    fn walk(path: &Path, make: Option<u32>) -> io::Result<Self> {
        let start = if path.is_absolute() { "/" } else { "." };
        let mut folder = Self { descriptor: open(start, DIRECTORY, Mode::empty())?, name: start.into() };
        let mut ahead: VecDeque<OsString> = parts(path);
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            let found = match folder.find(&name) {
                Err(error) if error.kind() == ErrorKind::NotFound && make.is_some() => {
                    folder = folder.make_below(&name, make.unwrap_or_default())?;
                    continue;
                }
                found => found?,
            };
            match found {
                Found::Directory(descriptor) => folder = Self { descriptor, name: folder.name.join(&name) },
                Found::Link(to) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    let to = Path::new(&to);
                    if to.is_absolute() {
                        folder = Self { descriptor: open("/", DIRECTORY, Mode::empty())?, name: "/".into() };
                    }
                    ahead = parts(to).into_iter().chain(ahead).collect();
                }
            }
        }
        Ok(folder)
    }

    /// What lies in this folder under a name: a directory, or a link that may be followed.
    fn find(&self, name: &OsStr) -> io::Result<Found> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let found = openat(&self.descriptor, name, flags, Mode::empty())?;
        let status = fstat(&found)?;
        match SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFDIR => Ok(Found::Directory(found)),
            SFlag::S_IFLNK if status.st_uid == 0 || status.st_uid == geteuid().as_raw() => {
                Ok(Found::Link(readlinkat(&found, "")?))
            }
            SFlag::S_IFLNK => {
                let (name, uid) = (self.name.join(name), status.st_uid);
                let what = format!(
                    "{} is a symbolic link of user {uid}; only those of root and of the daemon's user are followed",
                    name.display()
                );
                Err(io::Error::new(ErrorKind::PermissionDenied, what))
            }
            _ => Err(self.no_directory(name)),
        }
    }

    /// The directory of this name in this one, which must not be a link.
    pub fn below(&self, name: &OsStr) -> io::Result<Self> {
        match self.find(name)? {
            Found::Directory(descriptor) => Ok(Self { descriptor, name: self.name.join(name) }),
            Found::Link(_) => Err(self.no_directory(name)),
        }
    }

    /// A new directory in this one that nobody else can enter. Whatever takes its place meanwhile is not taken for it.
    pub fn make_private(&self, name: &OsStr) -> io::Result<Self> {
        mkdirat(&self.descriptor, name, Mode::from_bits_truncate(0o700))?;
        let folder = self.below(name)?;
        let status = fstat(&folder.descriptor)?;
        let is_private = status.st_uid == geteuid().as_raw() && status.st_mode & 0o7777 == 0o700;
        if !is_private || fs::read_dir(folder.path())?.next().is_some() {
            let what = format!("{} is not the directory that was made there", folder.name.display());
            return Err(io::Error::new(ErrorKind::PermissionDenied, what));
        }
        Ok(folder)
    }

    /// Another handle of the same directory.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { descriptor: self.descriptor.try_clone()?, name: self.name.clone() })
    }

    /// Whether what lies here under a name is a directory of the user of this process.
    pub fn has_own(&self, name: &OsStr) -> bool {
        let Ok(folder) = self.below(name) else { return false };
        fstat(&folder.descriptor).is_ok_and(|status| status.st_uid == geteuid().as_raw())
    }

    /// As [`Folder::below`]; makes it with this mode if it is missing.
    pub fn make_below(&self, name: &OsStr, mode: u32) -> io::Result<Self> {
        match mkdirat(&self.descriptor, name, Mode::from_bits_truncate(0o700)) {
            Ok(()) => {
                let folder = self.below(name)?;
                fs::set_permissions(folder.path(), Permissions::from_mode(mode))?;
                Ok(folder)
            }
            Err(Errno::EEXIST) => self.below(name),
            Err(error) => Err(error.into()),
        }
    }

    fn no_directory(&self, name: &OsStr) -> io::Error {
        let what = format!("{} is no directory, and is left as it is", self.name.join(name).display());
        io::Error::new(ErrorKind::NotADirectory, what)
    }

    /// A path that leads to this directory and no other, for as long as it is open (proc(5)).
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.descriptor.as_raw_fd()))
    }

    /// Whether it belongs to the user of this process, and no other may enter it.
    pub fn is_private(&self) -> io::Result<bool> {
        let status = fs::metadata(self.path())?;
        Ok(status.uid() == geteuid().as_raw() && status.mode().trailing_zeros() >= 6)
    }

    /// Whether users other than its owner may put something else in the place of what lies in it.
    pub fn is_open_to_others(&self) -> io::Result<bool> {
        let mode = fs::metadata(self.path())?.permissions().mode();
        Ok(mode & 0o002 != 0 && mode & 0o1000 == 0)
    }
}

/// Opens a regular file for reading, and nothing else: no link of another user on the way to it, no pipe, no device.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let name = path.file_name().ok_or(ErrorKind::InvalidFilename)?.to_owned();
        let folder = Folder::open(path.parent().unwrap_or(Path::new("")))?;
        match folder.find(&name) {
            Ok(Found::Link(to)) => path = folder.name.join(to),
            Ok(Found::Directory(_)) => return Err(ErrorKind::IsADirectory.into()),
            Err(error) if error.kind() != ErrorKind::NotADirectory => return Err(error),
            Err(_) => {
                let file =
                    OpenOptions::new().read(true).custom_flags(CAUTIOUS).open(folder.path().join(name))?;
                if !file.metadata()?.is_file() {
                    return Err(io::Error::other("it is no regular file"));
                }
                return Ok(file);
            }
        }
    }
    Err(Errno::ELOOP.into())
}

/// Reads a small file as [`open_file`] opens it; one of more than `limit` bytes is an error.
pub fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    read_whole(&open_file(path)?, limit)
}

/// Reads an open file; one of more than `limit` bytes is an error.
pub fn read_whole(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.size();
    if size > limit {
        return Err(io::Error::new(
            ErrorKind::FileTooLarge,
            format!("it has {size} bytes; at most {limit} are read"),
        ));
    }
    // Room for all at once: no piece of it is left behind in memory.
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(limit + 1).read_to_end(&mut content)?;
    Ok(content)
}

const DIRECTORY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// The names along a path. `..` is one, and leads up from where the links before it lead.
fn parts(path: &Path) -> VecDeque<OsString> {
    let name = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, lchown, symlink};

    use super::*;

    #[test]
    fn directories_are_made_with_their_mode_and_kept_by_their_descriptor() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::make(&root.path().join("a/b"), 0o755).unwrap();
        assert_eq!(fs::metadata(root.path().join("a/b")).unwrap().mode() & 0o777, 0o755);
        fs::rename(root.path().join("a/b"), root.path().join("moved")).unwrap();
        fs::create_dir(root.path().join("a/b")).unwrap();
        fs::write(folder.path().join("x"), "x").unwrap();
        assert!(root.path().join("moved/x").exists() && !root.path().join("a/b/x").exists());
    }

    #[test]
    fn own_links_are_followed_and_those_of_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("link");
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("real", &link).unwrap();
        assert!(Folder::open(&link).is_ok());
        assert!(Folder::open(&link.join("../real")).is_ok());
        if lchown(&link, Some(65534), None).is_err() {
            // Only root can give files away.
            return;
        }
        for refused in [Folder::open(&link), Folder::make(&link.join("below"), 0o755)] {
            let error = refused.unwrap_err();
            assert!(error.to_string().contains("symbolic link of user 65534"), "{error}");
        }
    }

    #[test]
    fn below_a_folder_no_link_is_followed_and_a_circle_ends() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("real")).unwrap();
        symlink("real", root.path().join("link")).unwrap();
        symlink("circle", root.path().join("circle")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let folder = Folder::open(root.path()).unwrap();
        assert!(folder.below("real".as_ref()).is_ok());
        for name in ["link", "file", "missing"] {
            assert!(folder.below(name.as_ref()).is_err(), "{name}");
        }
        assert!(folder.make_below("link".as_ref(), 0o755).is_err());
        assert_eq!(
            Folder::open(&root.path().join("circle")).unwrap_err().raw_os_error(),
            Some(Errno::ELOOP as i32)
        );
    }

    #[test]
    fn only_regular_files_of_bounded_size_are_read() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name);
        fs::write(path("file"), "content").unwrap();
        symlink("file", path("link")).unwrap();
        for name in ["file", "link"] {
            assert_eq!(read_file(&path(name), 7).unwrap(), b"content", "{name}");
            assert_eq!(read_file(&path(name), 6).unwrap_err().kind(), ErrorKind::FileTooLarge);
        }
        nix::unistd::mkfifo(&path("pipe"), Mode::from_bits_truncate(0o666)).unwrap();
        for refused in [path("pipe"), path(""), path("none"), "/dev/zero".into()] {
            assert!(read_file(&refused, 100).is_err(), "{}", refused.display());
        }
        if lchown(path("link"), Some(65534), None).is_ok() {
            assert_eq!(read_file(&path("link"), 100).unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn what_takes_the_place_of_a_private_directory_is_not_taken_for_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        let private = folder.make_private("private".as_ref()).unwrap();
        assert_eq!(fs::metadata(root.path().join("private")).unwrap().mode() & 0o777, 0o700);
        assert!(folder.make_private("private".as_ref()).is_err(), "it is there already");
        fs::rename(root.path().join("private"), root.path().join("moved")).unwrap();
        fs::write(private.path().join("x"), "").unwrap();
        assert!(root.path().join("moved/x").exists());
    }

    #[test]
    fn a_directory_that_all_may_write_to_is_known() {
        let root = tempfile::tempdir().unwrap();
        for (mode, expected) in [(0o755, false), (0o777, true), (0o1777, false)] {
            fs::set_permissions(root.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(Folder::open(root.path()).unwrap().is_open_to_others().unwrap(), expected, "{mode:o}");
        }
    }
}
