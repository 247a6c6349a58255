//! Credentials that stay in use until they expire, though renewing them fails; and noticing that the files from
//! which the SDK takes them have changed, since it reads some of them only once.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, Result, SharedCredentialsProvider, future};
use tokio::time::Instant;

use crate::file_watch::FileWatch;

/// Credentials are renewed this long before they expire.
pub(super) const RENEWED_BEFORE: Duration = Duration::from_mins(2);

/// After a failure to renew them, the next attempt is made no sooner than this.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// Files are looked at once in this time.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A provider that gives the last credentials again while it has no new ones.
#[derive(Debug)]
pub(super) struct Keeping {
    inner: SharedCredentialsProvider,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    credentials: Option<Credentials>,
    failed_at: Option<Instant>,
}

impl Keeping {
    pub(super) fn new(inner: SharedCredentialsProvider) -> Self {
        Self { inner, last: Mutex::default() }
    }

    async fn provide(&self) -> Result {
        if let Some(last) = self.last_good(|failed_at| failed_at.elapsed() < RETRY_INTERVAL) {
            return Ok(last);
        }
        let renewed = self.inner.provide_credentials().await;
        match &renewed {
            Ok(credentials) => {
                *self.lock() = Last { credentials: Some(credentials.clone()), failed_at: None };
            }
            Err(_) => {
                self.lock().failed_at = Some(Instant::now());
                if let Some(last) = self.last_good(|_| true) {
                    tracing::warn!(
                        "AWS credentials cannot be renewed; those at hand are used until they expire"
                    );
                    return Ok(last);
                }
            }
        }
        renewed
    }

    /// The last credentials, if they are valid and renewing them failed at a moment for which `holds` does.
    fn last_good(&self, holds: impl Fn(Instant) -> bool) -> Option<Credentials> {
        #[expect(clippy::disallowed_methods, reason = "AWS says by the wall clock when they expire")]
        let now = SystemTime::now();
        let last = self.lock();
        last.failed_at.filter(|at| holds(*at))?;
        let is_valid = |credentials: &&Credentials| credentials.expiry().is_none_or(|expiry| now < expiry);
        last.credentials.as_ref().filter(is_valid).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProvideCredentials for Keeping {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(self.provide())
    }
}

/// The files from which the SDK takes credentials.
#[derive(Debug)]
pub(super) struct Files {
    watched: Mutex<Watched>,
}

#[derive(Debug)]
struct Watched {
    files: Vec<FileWatch>,
    looked_at: Instant,
}

impl Files {
    pub(super) fn new(paths: &[PathBuf]) -> Self {
        let files = paths.iter().map(|path| FileWatch::new(path)).collect();
        Self { watched: Mutex::new(Watched { files, looked_at: Instant::now() }) }
    }

    /// Whether any of them is another than before. Looks no more often than it must.
    pub(super) fn have_changed(&self) -> bool {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if watched.looked_at.elapsed() < LOOK_INTERVAL {
            return false;
        }
        watched.looked_at = Instant::now();
        // All are looked at, not only the first that has changed.
        let mut changed = false;
        for file in &mut watched.files {
            changed |= file.has_changed();
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use aws_credential_types::provider::error::CredentialsError;
    use tokio::time::advance;

    use super::*;

    /// Gives the first of these each time, and fails when none is left.
    #[derive(Debug)]
    struct Scripted(Mutex<Vec<Credentials>>);

    impl ProvideCredentials for Scripted {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let next = self.0.lock().unwrap().pop();
            future::ProvideCredentials::ready(next.ok_or_else(|| CredentialsError::not_loaded("none")))
        }
    }

    fn expiring(name: &str, after: Duration) -> Credentials {
        #[expect(clippy::disallowed_methods, reason = "as AWS says it")]
        let expiry = SystemTime::now() + after;
        Credentials::new(name, "x", None, Some(expiry), "test")
    }

    fn keeping(mut credentials: Vec<Credentials>) -> Keeping {
        credentials.reverse();
        Keeping::new(SharedCredentialsProvider::new(Scripted(Mutex::new(credentials))))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_valid_is_used_while_renewing_fails() {
        let provider = keeping(vec![expiring("a", RENEWED_BEFORE), expiring("b", RENEWED_BEFORE)]);
        let name =
            async || provider.provide_credentials().await.map(|given| given.access_key_id().to_owned());
        assert_eq!(name().await.unwrap(), "a");
        assert_eq!(name().await.unwrap(), "b", "it is asked each time while it gives");
        assert_eq!(name().await.unwrap(), "b");
        advance(RETRY_INTERVAL * 2).await;
        assert_eq!(name().await.unwrap(), "b");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_is_never_used() {
        let provider = keeping(vec![expiring("a", Duration::ZERO)]);
        assert!(provider.provide_credentials().await.is_ok());
        assert!(provider.provide_credentials().await.is_err());
        assert!(keeping(Vec::new()).provide_credentials().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_is_noticed_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        let files = Files::new(&[directory.path().join("none"), path.clone()]);
        std::fs::write(&path, "x").unwrap();
        assert!(!files.have_changed(), "not so soon");
        advance(LOOK_INTERVAL).await;
        assert!(files.have_changed());
        advance(LOOK_INTERVAL).await;
        assert!(!files.have_changed());
    }
}
