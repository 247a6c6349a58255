//! How commands ask a daemon: where it is, the token, the path of a secret, one request, and what the answer means.
//!
//! It asks once and judges; who asks again, and when, is the command's affair.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::Exit;
use crate::config::{ClientAddress, Environment, EnvironmentError};
use crate::net::{ClientError, Endpoint, PATIENCE, fetch};

/// What needs no escape within a name.
const NAME: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b':');

/// Within a key, a slash is part of the name.
const KEY: &AsciiSet = &NAME.remove(b'/');

/// `<group>/<key>` in one word is split, and unescaped, as in a URL.
const WORD: &AsciiSet = &KEY.remove(b'%');

/// The path and query by which a secret is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Target(String);

impl Target {
    /// Two names, in which nothing is an escape.
    pub(super) fn of_names(group: &str, key: &str) -> Self {
        let group = utf8_percent_encode(group, NAME);
        Self(format!("/secret/{group}/{}", utf8_percent_encode(key, KEY)))
    }

    /// An ARN prefix or a group, and a name whose slashes are never taken for separators.
    pub(super) fn of_exact_names(group: &str, key: &str) -> Self {
        Self(format!("/secret/{}/{}", utf8_percent_encode(group, NAME), utf8_percent_encode(key, NAME)))
    }

    /// `<group>/<key>` in one word.
    pub(super) fn of_word(word: &str) -> Self {
        Self(format!("/secret/{}", utf8_percent_encode(word, WORD)))
    }

    /// With another query parameter.
    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        let separator = if self.0.contains('?') { '&' } else { '?' };
        self.0.push(separator);
        self.0.extend([name, "="]);
        self.0.extend(utf8_percent_encode(value, NON_ALPHANUMERIC));
        self
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A daemon, whether it is there or not.
#[derive(Debug, Clone)]
pub(super) struct Daemon {
    endpoint: Endpoint,
    environment: Environment,
}

/// A version of a secret. Not printable.
#[derive(PartialEq, Eq)]
pub(super) struct Version {
    /// The value's bytes.
    pub(super) value: Bytes,
    /// The entity tag; empty if there is none.
    pub(super) etag: String,
}

/// What a daemon says to those who may read a secret.
#[derive(PartialEq, Eq)]
pub(super) enum Reply {
    /// Another version than the caller has.
    Version(Version),
    /// Still the version that the caller has.
    Unchanged,
}

/// Why there is no value.
#[derive(Debug)]
pub(super) enum Failure {
    /// Nobody answered.
    NoAnswer(ClientError),
    /// The token that is to be presented cannot be had.
    NoToken(EnvironmentError),
    /// There is an answer, and it is an error.
    Refused(Refusal),
}

/// An answer that is an error.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub(super) status: u16,
    /// What a daemon of ours says about it.
    pub(super) problem: Option<Problem>,
    /// Whether the answer is a daemon's of ours, rather than that of something else in its place.
    pub(super) is_ours: bool,
    /// How long to wait before the next request.
    pub(super) retry_after: Option<Duration>,
}

/// The members of a problem (RFC 9457) that are heeded.
#[derive(Debug, Deserialize)]
pub(super) struct Problem {
    pub(super) detail: String,
    pub(super) code: String,
}

impl Daemon {
    /// `--socket`, else where the environment says.
    pub(super) fn find(socket: Option<&Path>, environment: &Environment) -> Result<Self, EnvironmentError> {
        let address = ClientAddress::find(socket, environment)?;
        Ok(Self::at(address, environment))
    }

    /// At this address.
    pub(super) fn at(address: ClientAddress, environment: &Environment) -> Self {
        let endpoint = match address {
            ClientAddress::Unix(path) => Endpoint::Unix(path),
            ClientAddress::Tcp(address) => Endpoint::Tcp(address),
        };
        Self { endpoint, environment: environment.clone() }
    }

    /// One request for a secret, with the patience of any read.
    pub(super) async fn read(&self, target: &Target) -> Result<Version, Failure> {
        self.read_within(target, PATIENCE).await
    }

    /// One request for a secret, with this patience.
    pub(super) async fn read_within(&self, target: &Target, patience: Duration) -> Result<Version, Failure> {
        match self.ask(target, None, patience).await? {
            Reply::Version(version) => Ok(version),
            // Nothing was said of a version that is known.
            Reply::Unchanged => Err(Failure::Refused(Refusal {
                status: 304,
                problem: None,
                is_ours: true,
                retry_after: None,
            })),
        }
    }

    /// One request for a secret, unless its version is the one with this entity tag.
    pub(super) async fn read_unless(
        &self,
        target: &Target,
        etag: &str,
        patience: Duration,
    ) -> Result<Reply, Failure> {
        self.ask(target, Some(etag), patience).await
    }

    async fn ask(&self, target: &Target, etag: Option<&str>, patience: Duration) -> Result<Reply, Failure> {
        // Read each time, since a daemon that starts anew may have made another.
        let token = match &self.endpoint {
            Endpoint::Unix(_) => None,
            Endpoint::Tcp(_) => self.environment.read_token().map_err(Failure::NoToken)?,
        };
        let token = token.as_ref().map(|token| ("x-aws-parameters-secrets-token", token.as_str()));
        let headers: Vec<_> = token.into_iter().chain(etag.map(|etag| ("if-none-match", etag))).collect();
        let asked = fetch(&self.endpoint, &target.0, &headers, patience).await;
        let (head, body) = asked.map_err(Failure::NoAnswer)?;
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
        let has_status = header("cache-status").is_some_and(|status| status.starts_with("smcached"));
        match head.status.as_u16() {
            200 if has_status => {
                let etag = header("etag").unwrap_or_default().to_owned();
                Ok(Reply::Version(Version { value: body, etag }))
            }
            304 if has_status => Ok(Reply::Unchanged),
            status => Err(Failure::Refused(Refusal {
                status,
                problem: serde_json::from_slice(&body).ok(),
                is_ours: has_status || header("content-type") == Some("application/problem+json"),
                retry_after: header("retry-after")
                    .and_then(|seconds| seconds.parse().ok())
                    .map(Duration::from_secs),
            })),
        }
    }
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Unix(_) => write!(f, "unix:{}", self.endpoint),
            Endpoint::Tcp(_) => write!(f, "http://{}", self.endpoint),
        }
    }
}

impl Failure {
    /// What the command that fails for it tells its parent.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::NoAnswer(_) => Exit::Unavailable,
            Self::NoToken(_) => Exit::Usage,
            Self::Refused(refusal) if !refusal.is_ours => Exit::Unavailable,
            Self::Refused(refusal) => match refusal.status {
                400 | 405 | 413 | 414 | 431 => Exit::Usage,
                401 | 403 => Exit::Denied,
                404 => Exit::NotFound,
                429 | 502..=504 => Exit::Unavailable,
                _ => Exit::Failure,
            },
        }
    }

    /// Whether the secret is gone, or forbidden to us: no passing trouble.
    pub(super) fn is_revocation(&self) -> bool {
        matches!(self, Self::Refused(Refusal { status: 403 | 404, is_ours: true, .. }))
    }

    /// Whether the daemon is too old for a parameter of the query.
    pub(super) fn is_unknown_parameter(&self) -> bool {
        let problem = match self {
            Self::Refused(Refusal { status: 400, problem, .. }) => problem.as_ref(),
            _ => None,
        };
        problem.is_some_and(|problem| problem.code == "unknown_parameter")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAnswer(error) => error.fmt(f),
            Self::NoToken(error) => error.fmt(f),
            Self::Refused(Refusal { is_ours: false, status, .. }) => {
                write!(f, "what answers with status {status} is not smcached")
            }
            Self::Refused(Refusal { problem: Some(problem), .. }) => {
                write!(f, "{} ({})", problem.detail, problem.code)
            }
            Self::Refused(Refusal { status, .. }) => write!(f, "the daemon answers with status {status}"),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An error as a daemon of ours gives it.
    pub(in crate::cli) fn refused(status: u16, code: &str) -> Failure {
        let problem = Some(Problem { detail: "why".to_owned(), code: code.to_owned() });
        Failure::Refused(Refusal { status, problem, is_ours: true, retry_after: None })
    }

    #[test]
    fn a_group_and_a_key_are_names_and_one_word_is_a_path() {
        assert_eq!(Target::of_names("a/b", "c/d").0, "/secret/a%2Fb/c/d");
        assert_eq!(Target::of_word("a/b%2Fc").0, "/secret/a/b%2Fc");
        assert_eq!(Target::of_names("100%", "a b").0, "/secret/100%25/a%20b");
        assert_eq!(Target::of_exact_names("a", "/b/..").0, "/secret/a/%2Fb%2F..");
        let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
        assert_eq!(Target::of_names(arn, "/Name-AbCdEf").0, format!("/secret/{arn}//Name-AbCdEf"));
    }

    #[test]
    fn parameters_follow_one_another() {
        let asked = Target::of_names("g", "k").with("field", "/a b").with("version_id", "v1");
        assert_eq!(asked.0, "/secret/g/k?field=%2Fa%20b&version_id=v1");
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let cases = [
            (400, Exit::Usage),
            (401, Exit::Denied),
            (403, Exit::Denied),
            (404, Exit::NotFound),
            (429, Exit::Unavailable),
            (503, Exit::Unavailable),
            (500, Exit::Failure),
        ];
        for (status, exit) in cases {
            assert_eq!(refused(status, "x").exit(), exit, "{status}");
            assert_eq!(refused(status, "x").is_revocation(), matches!(status, 403 | 404));
        }
    }

    #[test]
    fn an_answer_of_something_else_says_nothing_about_the_secret() {
        let failure =
            Failure::Refused(Refusal { status: 404, problem: None, is_ours: false, retry_after: None });
        assert_eq!((failure.exit(), failure.is_revocation()), (Exit::Unavailable, false));
        assert!(failure.to_string().contains("is not smcached"));
    }
}
