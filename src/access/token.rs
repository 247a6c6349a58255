//! The token of a TCP listener, kept in a file that callers can read and the daemon rereads.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::{Choice, ConstantTimeEq};
use thiserror::Error;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::atomic_file::AtomicFile;
use crate::file_watch::FileWatch;
use crate::folder::{CAUTIOUS, DIRECTORY_MODE, Folder, read_file};

/// Random bytes in a token that the daemon makes.
const TOKEN_BYTES: usize = 32;

/// The most bytes of a token file.
const MAX_BYTES: u64 = 64 << 10;

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

/// How long a token that was replaced stays valid: callers may have read it a moment before.
const TOKEN_OVERLAP: Duration = Duration::from_secs(10);

/// A caller with a token that is not known has the file looked at, so that a new one is valid at once; no more often
/// than this.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// What a file holds: a token a line.
type Tokens = Vec<Zeroizing<Vec<u8>>>;

/// A token file and the tokens that were last read from it: one, or as many as it has lines.
pub struct TokenFile {
    path: PathBuf,
    tokens: ArcSwap<Valid>,
    look: Mutex<Look>,
    /// Whether the file was made here, and is ours to give away.
    is_made: bool,
}

/// The tokens that are accepted.
struct Valid {
    current: Tokens,
    /// Those before, and until when they are.
    replaced: Tokens,
    replaced_until: Instant,
}

struct Look {
    watch: FileWatch,
    not_before: Instant,
}

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TokenFile {
    /// Reads the tokens; makes a file with a random one, mode 0640, where there is none.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let watch = FileWatch::new(path);
        let (current, is_made) = match read(path) {
            Err(TokenError::Io { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
                create(path)?;
                (read(path)?, true)
            }
            tokens => (tokens?, false),
        };
        let now = Instant::now();
        let valid = Valid { current, replaced: Tokens::new(), replaced_until: now };
        Ok(Self {
            path: path.to_owned(),
            tokens: ArcSwap::from_pointee(valid),
            look: Mutex::new(Look { watch, not_before: now }),
            is_made,
        })
    }

    /// Makes a file that was made here another user's, who then may reread it.
    pub fn hand_over(&self, uid: u32) -> Result<(), TokenError> {
        if !self.is_made {
            return Ok(());
        }
        let fail = |error| TokenError::Io { path: self.path.clone(), doing: "change the owner of", error };
        let no_link = OpenOptions::new().read(true).custom_flags(CAUTIOUS).open(&self.path);
        let file = no_link.map_err(fail)?;
        // Where others may write to the directory, another name of another file may lie there by now.
        if file.metadata().map_err(fail)?.nlink() > 1 {
            return Err(fail(io::Error::other("it has another name")));
        }
        fchown(&file, Some(uid), None).map_err(fail)
    }

    /// Whether this is a token. Takes the same time wherever it differs from those that are.
    pub fn matches(&self, presented: &[u8]) -> bool {
        self.is_valid(presented) || (self.look() && self.is_valid(presented))
    }

    fn is_valid(&self, presented: &[u8]) -> bool {
        let valid = self.tokens.load();
        let is_among = |tokens: &Tokens| {
            tokens.iter().fold(Choice::from(0), |found, token| found | token.as_slice().ct_eq(presented))
        };
        let is_current = is_among(&valid.current);
        if !valid.replaced.is_empty() && Instant::now() < valid.replaced_until {
            return (is_current | is_among(&valid.replaced)).into();
        }
        is_current.into()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Rereads the file if it has changed. One that is gone or empty changes nothing. True where there are new tokens.
    pub fn look(&self) -> bool {
        let Ok(mut look) = self.look.try_lock() else { return false };
        let now = Instant::now();
        if now < look.not_before {
            return false;
        }
        look.not_before = now + LOOK_PAUSE;
        if !look.watch.has_changed() {
            return false;
        }
        match read(&self.path) {
            Ok(tokens) if self.tokens.load().current == tokens => false,
            Ok(current) => {
                let replaced = self.tokens.load().current.clone();
                self.tokens.store(Arc::new(Valid { current, replaced, replaced_until: now + TOKEN_OVERLAP }));
                tracing::info!(path = %self.path.display(), "the token was reread");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the token cannot be reread; the old one stays valid");
                false
            }
        }
    }
}

fn read(path: &Path) -> Result<Tokens, TokenError> {
    let fail = |error| TokenError::Io { path: path.to_owned(), doing: "read", error };
    let text = Zeroizing::new(read_file(path, MAX_BYTES).map_err(fail)?);
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
    let tokens: Tokens = lines.map(|line| Zeroizing::new(line.to_vec())).collect();
    if tokens.is_empty() {
        return Err(TokenError::Empty { path: path.to_owned() });
    }
    Ok(tokens)
}

/// Makes the file under another name and links it into place, so that nobody ever reads half a token,
/// and of two daemons that start at once one gives way.
fn create(path: &Path) -> Result<(), TokenError> {
    let fail = |doing| move |error| TokenError::Io { path: path.to_owned(), doing, error };
    let mut random = Zeroizing::new([0_u8; TOKEN_BYTES]);
    getrandom::fill(random.as_mut()).map_err(TokenError::Random)?;
    let token = Zeroizing::new(URL_SAFE_NO_PAD.encode(random.as_ref()));
    let name = path.file_name().ok_or_else(|| fail("create")(io::ErrorKind::InvalidFilename.into()))?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let folder =
        Folder::make_last(directory, DIRECTORY_MODE).map_err(fail("open or make the directory of"))?;
    let file = AtomicFile::create(&folder).map_err(fail("create"))?;
    file.fill(token.as_bytes(), MODE).map_err(fail("create"))?;
    match file.link(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(fail("create")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::time::advance;

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

    #[tokio::test(start_paused = true)]
    async fn a_new_token_is_valid_at_once_and_the_old_one_for_a_while() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "old").unwrap();
        let token = TokenFile::open(&path).unwrap();
        fs::write(&path, "newer").unwrap();
        assert!(token.matches(b"newer") && token.matches(b"old"));
        advance(TOKEN_OVERLAP).await;
        assert!(token.matches(b"newer") && !token.matches(b"old"));
        fs::remove_file(&path).unwrap();
        token.look();
        assert!(token.matches(b"newer"));
    }

    #[test]
    fn each_line_is_a_token() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "one\n\n two \n").unwrap();
        let token = TokenFile::open(&path).unwrap();
        assert!(token.matches(b"one") && token.matches(b"two") && !token.matches(b"one\n\n two"));
    }

    #[tokio::test(start_paused = true)]
    async fn guesses_do_not_have_the_file_looked_at_each_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "old").unwrap();
        let token = TokenFile::open(&path).unwrap();
        assert!(!token.matches(b"guess"));
        fs::write(&path, "newer").unwrap();
        assert!(!token.matches(b"newer"), "looked at a moment ago");
        advance(LOOK_PAUSE).await;
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
