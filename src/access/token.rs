//! The token of a TCP listener, kept in a file that callers can read and the daemon rereads.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::file_watch::FileWatch;

/// Random bytes in a token that the daemon makes.
const TOKEN_BYTES: usize = 32;

/// The owner writes, the group reads.
const MODE: u32 = 0o640;

/// How often the file is to be looked at.
pub const TOKEN_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Why there is no token.
#[derive(Debug, Error)]
pub enum TokenError {
    /// The file can be neither read nor made.
    #[error("cannot {doing} the token file {path}: {error}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// What the system says.
        error: io::Error,
    },
    /// The file has no token in it.
    #[error("the token file {path} is empty; remove it to have a token made", path = .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The system has no random bytes.
    #[error("the system gives no random bytes for a token: {0}")]
    Random(getrandom::Error),
}

/// A token file and the token that was last read from it.
pub struct TokenFile {
    path: PathBuf,
    token: ArcSwap<Zeroizing<Vec<u8>>>,
    watch: Mutex<FileWatch>,
}

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TokenFile {
    /// Reads the token; makes a file with a random one, mode 0640, where there is none.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let watch = Mutex::new(FileWatch::new(path));
        let token = match read(path) {
            Err(TokenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                read(path)?
            }
            token => token?,
        };
        Ok(Self { path: path.to_owned(), token: ArcSwap::from_pointee(token), watch })
    }

    /// Whether this is the token. Takes the same time wherever the two differ.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.token.load().as_slice().ct_eq(presented).into()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rereads the file if it has changed. One that is gone or empty changes nothing.
    pub fn look(&self) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if !watch.has_changed() {
            return;
        }
        match read(&self.path) {
            Ok(token) if **self.token.load() == token => {}
            Ok(token) => {
                self.token.store(Arc::new(token));
                tracing::info!(path = %self.path.display(), "the token was reread");
            }
            Err(error) => tracing::warn!(%error, "the token cannot be reread; the old one stays valid"),
        }
    }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TokenError> {
    let fail = |error| TokenError::Io { path: path.to_owned(), doing: "read", error };
    let text = Zeroizing::new(fs::read(path).map_err(fail)?);
    let token = text.trim_ascii();
    if token.is_empty() {
        return Err(TokenError::Empty { path: path.to_owned() });
    }
    Ok(Zeroizing::new(token.to_vec()))
}

/// Makes the file under another name and links it into place, so that nobody ever reads half a token,
/// and of two daemons that start at once one gives way.
fn create(path: &Path) -> Result<(), TokenError> {
    let fail = |doing| move |error| TokenError::Io { path: path.to_owned(), doing, error };
    let mut random = Zeroizing::new([0_u8; TOKEN_BYTES]);
    getrandom::fill(random.as_mut()).map_err(TokenError::Random)?;
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_ref()));
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
        && let Err(error) = fs::create_dir(directory)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(fail("create the directory of")(error));
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary)?;
        file.set_permissions(Permissions::from_mode(MODE))?;
        file.write_all(token.as_bytes())?;
        match fs::hard_link(&temporary, path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    })();
    let _ = fs::remove_file(&temporary);
    written.map_err(fail("create"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/token");
        let first = TokenFile::open(&path).unwrap();
        let text = fs::read(&path).unwrap();
        assert_eq!(text.len(), 43);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert!(first.matches(&text));
        assert!(TokenFile::open(&path).unwrap().matches(&text));
        assert!(!first.matches(b"") && !first.matches(&text[1..]) && !first.matches(b"wrong"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn white_space_around_a_token_is_ignored_and_an_empty_file_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, " sesame\n").unwrap();
        assert!(TokenFile::open(&path).unwrap().matches(b"sesame"));
        fs::write(&path, "\n").unwrap();
        assert!(matches!(TokenFile::open(&path), Err(TokenError::Empty { .. })));
    }

    #[test]
    fn a_new_token_is_reread_and_a_missing_file_keeps_the_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "old").unwrap();
        let token = TokenFile::open(&path).unwrap();
        fs::write(&path, "newer").unwrap();
        token.look();
        assert!(token.matches(b"newer") && !token.matches(b"old"));
        fs::remove_file(&path).unwrap();
        token.look();
        assert!(token.matches(b"newer"));
    }

    #[test]
    fn debug_does_not_show_the_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "sesame").unwrap();
        assert!(!format!("{:?}", TokenFile::open(&path).unwrap()).contains("sesame"));
    }
}
