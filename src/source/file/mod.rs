//! A TOML file in the place of AWS: for laptops and tests. Watched; a broken edit keeps what was read
//! before. Ids and versions are resolved as AWS resolves them.

mod parse;

use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use zeroize::Zeroizing;

use self::parse::{Snapshot, VersionIds};
use super::{Fetching, SecretSource, SourceError};
use crate::document::Complaints;
use crate::file_watch::FileWatch;
use crate::secret::{SecretKey, SecretVersion};

/// How often the file is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// Why there is nothing to serve. Never quotes the file.
#[derive(Debug, Error)]
pub enum FileSourceError {
    /// The file cannot be read.
    #[error("the file of secrets {path} cannot be read: {error}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is wrong.
    #[error("{0}")]
    Broken(#[from] Complaints),
}

/// A file of secrets.
#[derive(Debug)]
pub struct FileSource {
    path: PathBuf,
    version_ids: Arc<VersionIds>,
    snapshot: ArcSwap<Snapshot>,
    changes: watch::Sender<u64>,
}

impl FileSource {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Self, FileSourceError> {
        let version_ids = Arc::new(VersionIds::default());
        let snapshot = read(path, &version_ids)?;
        let changes = watch::Sender::new(0);
        Ok(Self { path: path.to_owned(), version_ids, snapshot: ArcSwap::from_pointee(snapshot), changes })
    }

    /// As if the file had this text, for fuzzing.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str) -> Result<Self, Complaints> {
        let version_ids = Arc::new(VersionIds::default());
        let snapshot = Snapshot::parse("s.toml", text, &version_ids)?;
        let (snapshot, changes) = (ArcSwap::from_pointee(snapshot), watch::Sender::new(0));
        Ok(Self { path: PathBuf::new(), version_ids, snapshot, changes })
    }

    /// Rereads the file whenever it changes, for ever; on a thread of its own, since a file of thousands of secrets takes
    /// longer than a reader would wait.
    pub async fn run(&self) {
        let mut file = FileWatch::new(&self.path);
        loop {
            file.changed(POLL_INTERVAL).await;
            let (path, version_ids) = (self.path.clone(), Arc::clone(&self.version_ids));
            let reread = match spawn_blocking(move || read(&path, &version_ids)).await {
                Ok(reread) => reread,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The runtime ends.
                Err(_) => return,
            };
            let path = self.path.display();
            match reread {
                Ok(snapshot) => {
                    tracing::info!(%path, secrets = snapshot.len(), "the file of secrets was reread");
                    self.snapshot.store(snapshot.into());
                    self.changes.send_modify(|count| *count += 1);
                }
                Err(error) => tracing::warn!(%error, "the file of secrets is broken; the old content stays"),
            }
        }
    }

    fn find(&self, key: &SecretKey) -> Result<SecretVersion, SourceError> {
        if key.selector.is_description() {
            let description = self.snapshot.load().describe(&key.id).ok_or(SourceError::NotFound)?;
            return Ok(description.into_version());
        }
        self.snapshot.load().find(&key.id, &key.selector).cloned().ok_or(SourceError::NotFound)
    }
}

impl SecretSource for FileSource {
    fn name(&self) -> &'static str {
        "file"
    }

    fn operation(&self, _key: &SecretKey) -> &'static str {
        "ReadFile"
    }

    fn fetch<'a>(&'a self, key: &'a SecretKey) -> Fetching<'a> {
        Box::pin(std::future::ready(self.find(key)))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}

fn read(path: &Path, version_ids: &VersionIds) -> Result<Snapshot, FileSourceError> {
    let unreadable = |error| FileSourceError::Unreadable { path: path.to_owned(), error };
    let text = Zeroizing::new(fs::read_to_string(path).map_err(unreadable)?);
    Ok(Snapshot::parse(&path.display().to_string(), &text, version_ids)?)
}

#[cfg(test)]
mod tests {

    use tokio::time::sleep;

    use super::*;
    use crate::secret::{Resolver, SecretPath, VersionSelector};

    fn key(raw: &str) -> SecretKey {
        Resolver::default().resolve(SecretPath::parse(raw).unwrap(), VersionSelector::current()).unwrap()
    }

    async fn value(source: &FileSource, raw: &str) -> Result<Vec<u8>, SourceError> {
        let version = source.fetch(&key(raw)).await?;
        Ok(version.value.expose().to_vec())
    }

    fn secret(name: &str, value: &str) -> String {
        format!("[[secret]]\nname = {name:?}\nstring = {value:?}\n")
    }

    #[tokio::test]
    async fn the_embedded_example_is_served() {
        let source = FileSource::open(Path::new("config/local-secrets.toml")).unwrap();
        let flyte = "arn:aws:secretsmanager:us-west-2:123456789012:secret:/MySecret-AbCdEf";
        assert_eq!(value(&source, flyte).await.unwrap(), b"hello from smcached");
        assert_eq!(value(&source, "team-a/key").await.unwrap(), [0, 1, 2, 3, 255]);
        assert_eq!(value(&source, "team-a/none").await, Err(SourceError::NotFound));
    }

    #[tokio::test(start_paused = true)]
    async fn an_edit_is_seen_and_a_broken_one_keeps_the_old_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.toml");
        fs::write(&path, secret("a", "one")).unwrap();
        let source = Arc::new(FileSource::open(&path).unwrap());
        let mut changes = source.changes().unwrap();
        let watched = Arc::clone(&source);
        tokio::spawn(async move { watched.run().await });
        tokio::task::yield_now().await;

        fs::write(&path, secret("a", "second")).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(value(&source, "a").await.unwrap(), b"second");

        fs::write(&path, "[[secret]]\nname = \"a\"\nstring = \"no end").unwrap();
        sleep(POLL_INTERVAL * 3).await;
        assert_eq!(value(&source, "a").await.unwrap(), b"second");
        fs::remove_file(&path).unwrap();
        sleep(POLL_INTERVAL * 3).await;
        assert_eq!(value(&source, "a").await.unwrap(), b"second");

        fs::write(&path, secret("a", "mended")).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(value(&source, "a").await.unwrap(), b"mended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_symlink_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("one"), secret("a", "1")).unwrap();
        fs::write(at("two"), secret("a", "2")).unwrap();
        std::os::unix::fs::symlink("one", at("current")).unwrap();
        let source = Arc::new(FileSource::open(&at("current")).unwrap());
        let mut changes = source.changes().unwrap();
        let watched = Arc::clone(&source);
        tokio::spawn(async move { watched.run().await });
        tokio::task::yield_now().await;
        std::os::unix::fs::symlink("two", at("next")).unwrap();
        fs::rename(at("next"), at("current")).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(value(&source, "a").await.unwrap(), b"2");
    }

    #[test]
    fn errors_never_quote_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secrets.toml");
        for broken in
            ["[[secret]]\nname = \"a\"\nstring = \"hunter2", "[[secret]]\nname = 7\nbinary = \"hunter2!\""]
        {
            fs::write(&path, broken).unwrap();
            let error = FileSource::open(&path).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }
}
