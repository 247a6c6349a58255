//! The ways to the secret: the daemon that the environment names, else one on this host, else AWS itself.
//!
//! A daemon's word about the secret is final. What is no daemon of ours, or none for us, is passed by.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::failed::Failed;
use super::request::Request;
use super::retry;
use crate::cli::daemon::{Daemon, Failure, Refusal, Version};
use crate::config::{AwsConfig, ClientAddress, Environment, EnvironmentError};
use crate::net::{ClientError, PATIENCE};
use crate::source::aws::{AwsOptions, AwsSource, IDENTITY_TIMEOUT};
use crate::source::{SecretSource, SourceError};

/// How long a daemon that the environment names may take to start listening.
const CONNECT_GRACE: Duration = Duration::from_secs(2);

/// How often it is tried meanwhile.
const CONNECT_INTERVAL: Duration = Duration::from_millis(100);

/// How long something on this host may take to show that it is a daemon of ours: longer than one takes that has to
/// ask AWS.
const INTRODUCTION: Duration = Duration::from_secs(10);

/// What there is to ask.
pub(super) struct Ways {
    daemon: Daemon,
    /// Whether the environment names the daemon, so that it is expected to be there.
    is_named: bool,
    has_token: bool,
    aws: AwsSource,
}

/// The secret, and whence it came. Not printable.
pub(super) struct Fetched {
    pub(super) value: Bytes,
    pub(super) way: Way,
}

/// How the secret was had.
#[derive(Debug)]
pub(super) enum Way {
    /// From the daemon there.
    Daemon(String),
    /// From AWS; the reason is why not from the daemon, if that is worth a word.
    Aws(Option<String>),
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon(address) => write!(f, "from the daemon at {address}"),
            Self::Aws(None) => f.write_str("from AWS"),
            Self::Aws(Some(reason)) => write!(f, "from AWS: {reason}"),
        }
    }
}

/// What became of asking the daemon.
enum Asked {
    Answered(Version),
    /// There is none, or none for us; the reason is why, if that is worth a word.
    PassedBy(Option<String>),
    Failed(Failed),
}

impl Ways {
    pub(super) fn find(environment: &Environment, local_daemon: &str) -> Result<Self, EnvironmentError> {
        let named = environment.daemon_address()?;
        let is_named = named.is_some();
        let address = named.unwrap_or_else(|| ClientAddress::Tcp(local_daemon.to_owned()));
        let defaults = AwsConfig::default();
        let aws = AwsSource::new(AwsOptions {
            region: None,
            endpoint_url: None,
            sts_endpoint_url: None,
            profile: None,
            role_arn: None,
            connect_timeout: defaults.connect_timeout,
            attempt_timeout: defaults.attempt_timeout,
            operation_timeout: IDENTITY_TIMEOUT + defaults.attempt_timeout,
            identity_timeout: IDENTITY_TIMEOUT,
            ca_bundle: environment.ca_bundle()?,
            credential_files: environment.credential_files(),
        });
        Ok(Self {
            daemon: Daemon::at(address, environment),
            is_named,
            has_token: environment.read_token()?.is_some(),
            aws,
        })
    }

    pub(super) async fn fetch(&self, request: &Request, deadline: Instant) -> Result<Fetched, Failed> {
        let reason = match self.ask_daemon(request, deadline).await {
            Asked::Answered(version) => {
                return Ok(Fetched { value: version.value, way: Way::Daemon(self.daemon.to_string()) });
            }
            Asked::Failed(failed) => return Err(failed),
            Asked::PassedBy(reason) => reason,
        };
        let fetched = retry::until(deadline, async || {
            let version = self.aws.fetch(&request.key).await?;
            // Nothing that mixes answers up may make one task read another's secret.
            if version.answers(&request.key.id, &request.key.selector) {
                Ok(version)
            } else {
                Err(SourceError::Unusable { reason: "it is about another secret" })
            }
        });
        match fetched.await {
            Ok(version) => Ok(Fetched { value: version.value.expose().clone(), way: Way::Aws(reason) }),
            Err(Failed::Unavailable { detail, retry_after }) => {
                let detail = reason.map_or(detail.clone(), |reason| format!("{detail}; {reason}"));
                Err(Failed::Unavailable { detail, retry_after })
            }
            Err(failed) => Err(failed),
        }
    }

    async fn ask_daemon(&self, request: &Request, deadline: Instant) -> Asked {
        let first = match self.introduce(request, deadline).await {
            Ok(first) => first,
            Err(reason) => return Asked::PassedBy(reason),
        };
        let mut first = Some(first);
        let answered = retry::until(deadline, async || match first.take() {
            Some(first) => first,
            None => self.daemon.read_within(&request.target, PATIENCE).await,
        });
        match answered.await {
            Ok(version) => Asked::Answered(version),
            Err(failed) => Asked::Failed(failed),
        }
    }

    /// The first answer of a daemon that is there for us, or why there is none.
    async fn introduce(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Result<Version, Failure>, Option<String>> {
        let grace = Instant::now() + if self.is_named { CONNECT_GRACE } else { Duration::ZERO };
        // Some of the time is left for AWS, should nobody answer.
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = if self.is_named { PATIENCE } else { INTRODUCTION.min(left / 2) };
        loop {
            let answer = match timeout_at(deadline, self.daemon.read_within(&request.target, patience)).await
            {
                Ok(answer) => answer,
                Err(_) => Err(Failure::NoAnswer(ClientError::Timeout(left))),
            };
            return match answer {
                Err(Failure::NoAnswer(ClientError::Connect { .. }))
                    if Instant::now() < grace.min(deadline) =>
                {
                    tokio::time::sleep(CONNECT_INTERVAL).await;
                    continue;
                }
                Err(failure) if self.is_passed_by(&failure) => {
                    // That no daemon is where none was said to be is no news.
                    Err(self
                        .is_named
                        .then(|| format!("the daemon at {} is not used: {failure}", self.daemon)))
                }
                answer => Ok(answer),
            };
        }
    }

    /// Whether what answers, or does not, is no daemon for us.
    fn is_passed_by(&self, failure: &Failure) -> bool {
        match failure {
            Failure::NoAnswer(ClientError::Connect { .. })
            | Failure::Refused(Refusal { is_ours: false, .. }) => true,
            Failure::NoAnswer(_) => !self.is_named,
            // Without having been given a token, we are not among those for whom it is there.
            Failure::Refused(Refusal { status: 401 | 403, problem, .. }) => {
                let is_upstream =
                    problem.as_ref().is_some_and(|problem| problem.code == "upstream_access_denied");
                !self.is_named && !self.has_token && !is_upstream
            }
            Failure::NoToken(_) | Failure::Refused(_) => false,
        }
    }
}
