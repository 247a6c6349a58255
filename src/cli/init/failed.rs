//! What can go wrong on any way to the secret, whether trying again may help, and what to do about it.

use std::fmt;
use std::time::Duration;

use crate::cli::Exit;
use crate::cli::daemon::{Failure, Refusal};
use crate::source::SourceError;

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failed {
    NotFound,
    Deleted,
    /// AWS denies it to whoever asked.
    Denied {
        /// Whose identity AWS saw.
        whose: Identity,
    },
    /// The daemon denies it to us.
    NotAllowed {
        /// What it says.
        detail: String,
    },
    /// It names no secret, says the daemon or AWS.
    Malformed {
        /// What they say.
        detail: String,
    },
    /// There were too many requests.
    Throttled {
        /// How long to wait, if that was said.
        retry_after: Option<Duration>,
    },
    /// Nobody answers, or AWS or the daemon fails.
    Unavailable {
        /// What is known of it.
        detail: String,
        /// How long to wait, if that was said.
        retry_after: Option<Duration>,
    },
}

/// Whose identity AWS was asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Identity {
    Pod,
    Daemon,
}

impl Failed {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Malformed { .. } => Exit::Usage,
            Self::NotFound | Self::Deleted => Exit::NotFound,
            Self::Denied { .. } | Self::NotAllowed { .. } => Exit::Denied,
            Self::Unavailable { .. } => Exit::Unavailable,
            Self::Throttled { .. } => Exit::Throttled,
        }
    }

    /// Whether trying again later may help.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }

    /// How long whoever answered asks us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str(
                "no such secret; check the ARN with its region, account and the six characters at its end",
            ),
            Self::Deleted => f.write_str("the secret is marked for deletion; restore it or ask for another"),
            Self::Denied { whose } => {
                let role = match whose {
                    Identity::Pod => "pod's role",
                    Identity::Daemon => "smcached daemon's role",
                };
                write!(
                    f,
                    "AWS denies access; grant secretsmanager:GetSecretValue on it to the {role}, and kms:Decrypt if \
                     it has a KMS key of its own"
                )
            }
            Self::NotAllowed { detail } => {
                write!(f, "the smcached daemon refuses: {detail}; check its allow_secrets and SMCACHED_TOKEN")
            }
            Self::Malformed { detail } => write!(f, "not a secret that can be asked for: {detail}"),
            Self::Throttled { .. } => f.write_str(
                "throttled all the time; start fewer pods at once, or run a smcached daemon on the node so that they \
                 share their calls",
            ),
            Self::Unavailable { detail, .. } => write!(f, "{detail}; tried until the timeout"),
        }
    }
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        let said = failure.to_string();
        let Failure::Refused(Refusal { status, problem, is_ours, retry_after }) = failure else {
            return Self::Unavailable { detail: said, retry_after: None };
        };
        let code = problem.as_ref().map_or("", |problem| problem.code.as_str());
        match status {
            _ if !is_ours => Self::Unavailable { detail: said, retry_after },
            404 if code == "secret_deleted" => Self::Deleted,
            404 => Self::NotFound,
            403 if code == "upstream_access_denied" => Self::Denied { whose: Identity::Daemon },
            401 | 403 => Self::NotAllowed { detail: said },
            429 => Self::Throttled { retry_after },
            503 if code == "upstream_throttled" => Self::Throttled { retry_after },
            400..500 => Self::Malformed { detail: said },
            _ => Self::Unavailable { detail: format!("the smcached daemon says: {said}"), retry_after },
        }
    }
}

impl From<SourceError> for Failed {
    fn from(error: SourceError) -> Self {
        match error {
            SourceError::NotFound => Self::NotFound,
            SourceError::Deleted => Self::Deleted,
            SourceError::AccessDenied => Self::Denied { whose: Identity::Pod },
            SourceError::InvalidRequest { .. } => Self::Malformed { detail: error.to_string() },
            SourceError::Throttled { retry_after } => Self::Throttled { retry_after },
            SourceError::NoIdentity { .. } => Self::Unavailable {
                detail: "no AWS credentials, or no region, could be found; give the pod an IAM role (EKS Pod Identity \
                         or IRSA) and ask by ARN, which names its region, or run a smcached daemon"
                    .to_owned(),
                retry_after: None,
            },
            SourceError::IdentityRejected { code } => Self::Unavailable {
                detail: format!("AWS rejects the pod's credentials ({code})"),
                retry_after: None,
            },
            error => Self::Unavailable { detail: error.to_string(), retry_after: None },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::daemon::tests::refused;
    use super::*;

    #[test]
    fn what_a_daemon_answers_has_an_exit_code_and_is_final_or_may_pass() {
        let cases = [
            (400, "invalid_arn", Exit::Usage, false),
            (401, "token_missing", Exit::Denied, false),
            (403, "caller_not_allowed", Exit::Denied, false),
            (403, "upstream_access_denied", Exit::Denied, false),
            (404, "secret_not_found", Exit::NotFound, false),
            (404, "secret_deleted", Exit::NotFound, false),
            (429, "upstream_rate_limited", Exit::Throttled, true),
            (500, "internal_error", Exit::Unavailable, true),
            (502, "upstream_error", Exit::Unavailable, true),
            (503, "upstream_throttled", Exit::Throttled, true),
            (503, "upstream_unreachable", Exit::Unavailable, true),
            (504, "upstream_timeout", Exit::Unavailable, true),
        ];
        for (status, code, exit, may_pass) in cases {
            let failed = Failed::from(refused(status, code));
            assert_eq!((failed.exit(), failed.may_pass()), (exit, may_pass), "{status} {code}");
        }
        let advice = Failed::from(refused(403, "upstream_access_denied")).to_string();
        assert!(
            advice.contains("secretsmanager:GetSecretValue on it to the smcached daemon's role"),
            "{advice}"
        );
    }

    #[test]
    fn what_aws_answers_has_an_exit_code_and_is_final_or_may_pass() {
        let cases = [
            (SourceError::NotFound, Exit::NotFound, false),
            (SourceError::Deleted, Exit::NotFound, false),
            (SourceError::AccessDenied, Exit::Denied, false),
            (SourceError::InvalidRequest { code: "x".into() }, Exit::Usage, false),
            (SourceError::Throttled { retry_after: None }, Exit::Throttled, true),
            (SourceError::Upstream { status: 500 }, Exit::Unavailable, true),
            (SourceError::Unreachable { reason: "x".into() }, Exit::Unavailable, true),
            (SourceError::Timeout, Exit::Unavailable, true),
            (SourceError::NoIdentity { advice: "x".into() }, Exit::Unavailable, true),
            (SourceError::IdentityRejected { code: "x".into() }, Exit::Unavailable, true),
            (SourceError::DecryptionFailure, Exit::Unavailable, true),
        ];
        for (error, exit, may_pass) in cases {
            let failed = Failed::from(error.clone());
            assert_eq!((failed.exit(), failed.may_pass()), (exit, may_pass), "{error}");
        }
    }
}
