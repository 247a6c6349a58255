//! Files that nobody sees half done: made under a name of their own, given content and mode, and renamed into their
//! place. For what holds secrets: the files of projections and of `init`, and tokens.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use crate::folder::Folder;

/// With this begin the names of files that are being written.
pub const PREFIX: &str = ".smcached-";

/// A file under a name of its own, readable for nobody else. Removed when dropped, unless it was renamed.
#[derive(Debug)]
pub struct AtomicFile<'a> {
    file: File,
    path: PathBuf,
    folder: &'a Folder,
}

impl<'a> AtomicFile<'a> {
    /// A new one in this folder. It must be new: a link that lies there is not followed.
    pub fn create(folder: &'a Folder) -> io::Result<Self> {
        let path = unused_name(&folder.path());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, folder })
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

    /// Gives it its name in the folder: whoever reads sees all of it, or what was there before.
    pub fn rename(mut self, name: &OsStr) -> io::Result<()> {
        fs::rename(&self.path, self.folder.path().join(name))?;
        self.path = PathBuf::new();
        Ok(())
    }

    /// As [`AtomicFile::rename`], but fails where something of this name is there.
    pub fn link(self, name: &OsStr) -> io::Result<()> {
        fs::hard_link(&self.path, self.folder.path().join(name))
    }
}

impl Drop for AtomicFile<'_> {
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
