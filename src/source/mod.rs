//! Where secrets come from: the [`SecretSource`] trait, what can go wrong, and the sources themselves.
//!
//! A source answers one question at a time and remembers nothing: freshness, single flight and retries
//! over time belong to the cache. Only `aws` knows the AWS SDK.

pub mod aws;
pub mod file;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::watch;

use crate::secret::{SecretId, SecretKey, SecretVersion};

/// A boxed answer, so that sources can be chosen at start.
pub type Fetching<'a> = Pin<Box<dyn Future<Output = Result<SecretVersion, SourceError>> + Send + 'a>>;

/// A boxed look at whether a source could answer.
pub type Probing<'a> = Pin<Box<dyn Future<Output = Result<(), SourceError>> + Send + 'a>>;

/// A boxed answer about several secrets.
pub type FetchingBatch<'a> = Pin<Box<dyn Future<Output = Result<BatchAnswer, BatchError>> + Send + 'a>>;

/// What a batch says of each key, in the order in which they were asked for; `None` where it says nothing.
pub type BatchAnswer = Vec<Option<Result<SecretVersion, SourceError>>>;

/// Why a batch has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchError {
    /// The source does not do batches, or not for us.
    Unsupported,
    /// It failed as any call may fail.
    Failed(SourceError),
}

/// A boxed page of a list of secrets.
pub type Listing<'a> = Pin<Box<dyn Future<Output = Result<Page, SourceError>> + Send + 'a>>;

/// One page of a list of secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// Their names.
    pub ids: Vec<SecretId>,
    /// What to ask the next page with; `None` on the last.
    pub next: Option<String>,
}

/// A tag, by which secrets are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Its key.
    pub key: String,
    /// Its value; `None` is any.
    pub value: Option<String>,
}

impl Tag {
    /// From `<key>=<value>`, or `<key>` with any value.
    pub fn parse(text: &str) -> Self {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        Self { key: key.to_owned(), value: value.map(str::to_owned) }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "{}={value}", self.key),
            None => f.write_str(&self.key),
        }
    }
}

/// Something that knows secrets.
pub trait SecretSource: Send + Sync + 'static {
    /// A stable word for logs and `/status`.
    fn name(&self) -> &'static str;

    /// The `operation` label of what [`SecretSource::fetch`] does for `key`.
    fn operation(&self, key: &SecretKey) -> &'static str;

    /// Asks for one secret, once: for a version of it, or for its description as JSON text, as `DescribeSecret` has
    /// it (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DescribeSecret.html>). Bounded in
    /// time by the source itself.
    fn fetch<'a>(&'a self, key: &'a SecretKey) -> Fetching<'a>;

    /// The most keys of one batch; 1 where there are no batches.
    fn max_batch(&self) -> usize {
        1
    }

    /// The `operation` label of a batch.
    fn batch_operation(&self) -> &'static str {
        self.name()
    }

    /// Asks for the current versions of several secrets of one region and role in one call: at most
    /// [`SecretSource::max_batch`] of them.
    fn fetch_batch<'a>(&'a self, _keys: &'a [SecretKey]) -> FetchingBatch<'a> {
        Box::pin(std::future::ready(Err(BatchError::Unsupported)))
    }

    /// The `operation` label of a list.
    fn list_operation(&self) -> &'static str {
        self.name()
    }

    /// Asks for one page of the secrets with this tag; where nothing is tagged, there are none.
    fn list<'a>(&'a self, _tag: &'a Tag, _from: Option<String>) -> Listing<'a> {
        Box::pin(std::future::ready(Ok(Page::default())))
    }

    /// Finds out, without asking for a secret, what would keep every fetch from succeeding: so that it can be
    /// said before somebody needs one.
    fn probe(&self) -> Probing<'_> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Ticks whenever the source knows that its secrets may have changed; `None` where it cannot know.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// What an error means for a value that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The secret is gone or forbidden: drop the value, cache the refusal.
    Authoritative,
    /// The caller asked for something that AWS does not understand: neither drop nor retry.
    Caller,
    /// It may work later: keep the value, retry with backoff.
    Transient,
}

/// Everything that can go wrong when a secret is asked for. No variant carries AWS's message, which
/// names the principal, nor any part of a value.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SourceError {
    /// `ResourceNotFoundException`.
    #[error("the secret, or this version of it, does not exist")]
    NotFound,
    /// `InvalidRequestException` of a secret that is marked for deletion.
    #[error("the secret is marked for deletion")]
    Deleted,
    /// `AccessDeniedException`.
    #[error("AWS denied the daemon's identity access to this secret")]
    AccessDenied,
    /// `InvalidParameterException`, `ValidationException`, or another `InvalidRequestException`.
    #[error("AWS refused the request as invalid ({code})")]
    InvalidRequest {
        /// AWS's error code.
        code: String,
    },
    /// `DecryptionFailure`: the KMS key is disabled or out of reach.
    #[error("AWS could not decrypt the secret; check the KMS key")]
    DecryptionFailure,
    /// No credentials, no region, or a provider that failed.
    #[error("{advice}")]
    NoIdentity {
        /// What to do about it.
        advice: String,
    },
    /// Credentials that AWS did not accept, such as expired ones.
    #[error("AWS rejected the daemon's credentials ({code}); they are being loaded anew")]
    IdentityRejected {
        /// AWS's error code.
        code: String,
    },
    /// Throttled, by whatever name.
    #[error("AWS throttles the daemon's requests")]
    Throttled {
        /// How long AWS asked us to wait.
        retry_after: Option<Duration>,
    },
    /// A 5xx, or `InternalServiceError`.
    #[error("AWS failed with HTTP status {status}")]
    Upstream {
        /// The HTTP status.
        status: u16,
    },
    /// Refused, reset, unresolvable or not trusted.
    #[error("AWS cannot be reached: {reason}")]
    Unreachable {
        /// A short cause, without addresses or credentials.
        reason: String,
    },
    /// No answer in time.
    #[error("AWS did not answer in time")]
    Timeout,
    /// An answer that makes no sense: not JSON, without a value, about another secret.
    #[error("AWS gave an unusable answer: {reason}")]
    Unusable {
        /// What was wrong with it.
        reason: &'static str,
    },
    /// Our own bounds on calls, not the source's.
    #[error(
        "too many secrets are being asked for that the daemon does not hold; see [refresh] rate and max_concurrency"
    )]
    LocalLimit,
    /// A defect of ours: the fetch ended without an outcome.
    #[error("the fetch ended unexpectedly; this is a defect of smcached")]
    Aborted,
}

impl SourceError {
    /// What the error means for a held value. Nobody else classifies.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::NotFound | Self::Deleted | Self::AccessDenied => ErrorClass::Authoritative,
            Self::InvalidRequest { .. } => ErrorClass::Caller,
            Self::DecryptionFailure
            | Self::NoIdentity { .. }
            | Self::IdentityRejected { .. }
            | Self::Throttled { .. }
            | Self::Upstream { .. }
            | Self::Unreachable { .. }
            | Self::Timeout
            | Self::Unusable { .. }
            | Self::LocalLimit
            | Self::Aborted => ErrorClass::Transient,
        }
    }

    /// Whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        self.class() == ErrorClass::Transient
    }

    /// A stable `snake_case` word, for metrics, logs and `/status`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Deleted => "deleted",
            Self::AccessDenied => "access_denied",
            Self::InvalidRequest { .. } => "invalid_request",
            Self::DecryptionFailure => "decryption_failure",
            Self::NoIdentity { .. } => "no_credentials",
            Self::IdentityRejected { .. } => "credentials_rejected",
            Self::Throttled { .. } => "throttled",
            Self::Upstream { .. } => "server_error",
            Self::Unreachable { .. } => "unreachable",
            Self::Timeout => "timeout",
            Self::Unusable { .. } => "unusable_answer",
            Self::LocalLimit => "local_limit",
            Self::Aborted => "aborted",
        }
    }

    /// Whether it says something of the endpoint, or of our identity there, rather than of one secret: enough
    /// of these in a row and asking on is in vain.
    pub fn is_about_the_endpoint(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Timeout
                | Self::Upstream { .. }
                | Self::NoIdentity { .. }
                | Self::IdentityRejected { .. }
        )
    }

    /// Whether another attempt within a moment may succeed, as the AWS SDKs' standard retries see it.
    pub fn is_worth_another_attempt(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. } | Self::Timeout | Self::Upstream { .. } | Self::Throttled { .. }
        )
    }
}
