//! Files that nobody sees half done: made under a name of their own, given content and mode, and renamed into their
//! place. For what holds secrets: the files of projections and of `init`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

/// With this begin the names of files that are being written.
pub const PREFIX: &str = ".smcached-";

/// Mode of the directories that are made.
const DIRECTORY_MODE: u32 = 0o755;

/// A file under a name of its own, readable for nobody else. Removed when dropped, unless it was renamed.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    path: PathBuf,
}

impl AtomicFile {
    /// A new one in this folder. It must be new: a link that lies there is not followed.
    pub fn create(folder: &Path) -> io::Result<Self> {
        let path = unused_name(folder);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path })
    }

    /// Gives it to a user and a group; `None` leaves them.
    pub fn chown(&self, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
        if uid.is_none() && gid.is_none() { Ok(()) } else { fchown(&self.file, uid, gid) }
    }

    /// Writes its content, and lets those read it whom `mode` names.
    pub fn fill(&self, content: &[u8], mode: u32) -> io::Result<()> {
        (&self.file).write_all(content)?;
        self.file.set_permissions(Permissions::from_mode(mode))
    }

    /// Puts it in its place: whoever reads sees all of it, or what was there before.
    pub fn rename(mut self, to: &Path) -> io::Result<()> {
        fs::rename(&self.path, to)?;
        self.path = PathBuf::new();
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            // Nothing can be done about a failure, and nobody reads a file of this name.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// A path in this folder for what is not to be seen yet.
pub fn unused_name(folder: &Path) -> PathBuf {
    folder.join(format!("{PREFIX}{:016x}", fastrand::u64(..)))
}

/// Makes a directory that others may enter, whatever the umask is; one that is there is left as it is.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIRECTORY_MODE).create(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(DIRECTORY_MODE)),
        Err(_) if directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}
