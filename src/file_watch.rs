//! Noticing that a file changed, by looking.
//!
//! Polling sees a rename, a symlink swapped as Kubernetes does and an edit over a network file system alike.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::sleep;

/// A file that is looked at now and then.
#[derive(Debug)]
pub struct FileWatch {
    path: PathBuf,
    known: Option<Identity>,
}

/// What changes when a file does, followed through symlinks: device, inode, modification time, size.
type Identity = (u64, u64, i64, i64, u64);

impl FileWatch {
    /// Watches from the file's present state on.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), known: identity(path) }
    }

    /// Waits until the file is another than before, looking once per `interval`; that it vanished counts too.
    pub async fn changed(&mut self, interval: Duration) {
        loop {
            sleep(interval).await;
            if self.has_changed() {
                return;
            }
        }
    }

    /// Whether the file is another than when it was last looked at.
    pub fn has_changed(&mut self) -> bool {
        let now = identity(&self.path);
        let before = std::mem::replace(&mut self.known, now);
        before != self.known
    }
}

fn identity(path: &Path) -> Option<Identity> {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn writing_replacing_and_removing_are_seen_once_each() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let second = Duration::from_secs(1);
        let mut watch = FileWatch::new(&path);
        fs::write(&path, "x").unwrap();
        watch.changed(second).await;
        assert!(timeout(second * 10, watch.changed(second)).await.is_err());
        fs::write(directory.path().join("other"), "y").unwrap();
        fs::rename(directory.path().join("other"), &path).unwrap();
        watch.changed(second).await;
        fs::remove_file(&path).unwrap();
        watch.changed(second).await;
    }
}
