//! What `SECRET_ARN` asks for.

use std::fmt;

use crate::cli::daemon::Target;
use crate::secret::{Arn, Origin, ReferenceError, SecretId, SecretKey, VersionSelector};

/// A secret as the daemon and as AWS are asked for it.
#[derive(Debug)]
pub(super) struct Request {
    /// For the daemon, which may know the group.
    pub(super) target: Target,
    /// For AWS.
    pub(super) key: SecretKey,
}

/// Why `SECRET_ARN` names no secret.
#[derive(Debug)]
pub(super) enum WrongRequest {
    /// Neither an ARN nor `<group>:<key>`.
    Shape,
    /// Made of something that no secret's name has.
    Reference(ReferenceError),
}

impl fmt::Display for WrongRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let advice = "check the group and key of the task's secret request";
        match self {
            Self::Shape => write!(f, "SECRET_ARN is neither an ARN nor <group>:<key>; {advice}"),
            Self::Reference(error) => write!(f, "SECRET_ARN names no secret: {error}; {advice}"),
        }
    }
}

impl Request {
    /// A secret's ARN, or `<group>:<key>`: the webhook joins the two that a task gives with a colon.
    pub(super) fn parse(text: &str) -> Result<Self, WrongRequest> {
        let (group, key, id) = if Arn::is_claimed_by(text) {
            let id = SecretId::parse(text).map_err(WrongRequest::Reference)?;
            let (prefix, name) = text.split_at(text.len() - id.name().len());
            (prefix, name, id)
        } else {
            let (group, key) = text.rsplit_once(':').ok_or(WrongRequest::Shape)?;
            if group.is_empty() || key.is_empty() {
                return Err(WrongRequest::Shape);
            }
            let id = SecretId::parse(&format!("{group}/{key}")).map_err(WrongRequest::Reference)?;
            (group, key, id)
        };
        let target = Target::of_exact_names(group, key);
        Ok(Self {
            target,
            key: SecretKey { origin: Origin::default(), id, selector: VersionSelector::current() },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn parsed(text: &str) -> (String, String) {
        let request = Request::parse(text).unwrap();
        (request.target.to_string(), request.key.id.as_str().to_owned())
    }

    #[test]
    fn an_arn_is_asked_for_as_it_is() {
        for (name, escaped) in [("Db-AbCdEf", "Db-AbCdEf"), ("a/b-AbCdEf", "a%2Fb-AbCdEf"), ("/a", "%2Fa")] {
            let arn = format!("{PREFIX}{name}");
            assert_eq!(parsed(&arn), (format!("/secret/{PREFIX}/{escaped}"), arn));
        }
    }

    #[test]
    fn what_is_no_arn_is_a_group_and_a_key() {
        assert_eq!(parsed("team-a:db"), ("/secret/team-a/db".to_owned(), "team-a/db".to_owned()));
        assert_eq!(parsed("team/a:d/b"), ("/secret/team%2Fa/d%2Fb".to_owned(), "team/a/d/b".to_owned()));
    }

    #[test]
    fn what_names_no_secret_is_refused_with_advice() {
        for text in ["", "plain", ":", ":key", "group:", "a:b:c", "a:b c", PREFIX, "arn:aws:s3:::bucket"] {
            let error = Request::parse(text).unwrap_err().to_string();
            assert!(
                error.ends_with("check the group and key of the task's secret request"),
                "{text}: {error}"
            );
        }
    }
}
