//! A secret's id as AWS takes it (`SecretId`), and every reason for which a reference is refused.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use thiserror::Error;

use super::arn::{Arn, ArnError};

/// The longest id that AWS accepts, in bytes
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>).
pub const MAX_ID_BYTES: usize = 2048;

/// Why a group and key do not name a secret. The text is for the caller, and never quotes more of the
/// request than one byte.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReferenceError {
    /// Two slashes in a row, a slash at an end, or nothing at all.
    #[error("a path segment is empty; write a slash within a name as it is, or as %2F")]
    EmptySegment,
    /// A segment that is `.` or `..`, which some clients and proxies fold away.
    #[error("a path segment is `.` or `..`; dot segments are refused, never folded")]
    DotSegment,
    /// A byte that no secret's name can have.
    #[error("byte 0x{byte:02x} cannot be part of a secret's name; accepted are letters, digits and /_+=.@-")]
    InvalidCharacter {
        /// The offending byte, after percent-decoding.
        byte: u8,
    },
    /// A `%` that two hexadecimal digits do not follow.
    #[error("a percent sign must be followed by two hexadecimal digits")]
    InvalidPercentEncoding,
    /// The decoded bytes are not UTF-8.
    #[error("the percent-decoded text is not valid UTF-8")]
    InvalidUtf8,
    /// A malformed ARN, or one of something that is not a secret.
    #[error("{0}")]
    InvalidArn(#[from] ArnError),
    /// An ARN prefix alone, without a key.
    #[error("the ARN ends at `:secret:`; a key must follow it")]
    MissingName,
    /// Longer than [`MAX_ID_BYTES`].
    #[error("the secret's id has {length} bytes; at most {MAX_ID_BYTES} are accepted")]
    TooLong {
        /// The length in bytes.
        length: usize,
    },
    /// The group is not in the configuration and `unlisted_groups = "deny"`.
    #[error("only groups listed in the configuration, and ARNs, may be read here")]
    UnlistedGroup,
}

impl ReferenceError {
    /// The stable word for this error (the `code` member of a problem).
    pub fn code(&self) -> &'static str {
        match self {
            Self::EmptySegment => "empty_segment",
            Self::DotSegment => "dot_segment",
            Self::InvalidCharacter { .. } => "invalid_character",
            Self::InvalidPercentEncoding => "invalid_percent_encoding",
            Self::InvalidUtf8 => "invalid_utf8",
            Self::InvalidArn(_) | Self::MissingName => "invalid_arn",
            Self::TooLong { .. } => "id_too_long",
            Self::UnlistedGroup => "caller_not_allowed",
        }
    }
}

/// A well-formed secret id: a name, a complete ARN, or an ARN without its six random characters.
///
/// Which of the last two an ARN is cannot be told from its text (`..:secret:my-secret` is either), so
/// the type does not pretend to know. Cloning is cheap.
#[derive(Clone)]
pub struct SecretId {
    text: Arc<str>,
    /// Where the name starts; 0 unless the id is an ARN.
    name_at: usize,
}

impl SecretId {
    /// Checks `text` against what AWS accepts: a name of `A-Za-z0-9/_+=.@-`, or an ARN that ends in one.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > MAX_ID_BYTES {
            return Err(ReferenceError::TooLong { length: text.len() });
        }
        let name = if Arn::is_claimed_by(text) {
            let name = Arn::parse(text)?.name;
            if name.is_empty() {
                return Err(ReferenceError::MissingName);
            }
            name
        } else {
            text
        };
        if name.is_empty() {
            return Err(ReferenceError::EmptySegment);
        }
        if let Some(byte) = name.bytes().find(|byte| !is_name_byte(*byte)) {
            return Err(ReferenceError::InvalidCharacter { byte });
        }
        Ok(Self { name_at: text.len() - name.len(), text: text.into() })
    }

    /// The id as it is sent to AWS.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The same, shared.
    pub fn to_shared(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// Whether the id is an ARN, complete or not.
    pub fn is_arn(&self) -> bool {
        self.name_at > 0
    }

    /// The name: the id itself, or what stands after `:secret:` (with the random characters, if any).
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }

    /// The region that an ARN names.
    pub fn region(&self) -> Option<&str> {
        self.is_arn().then(|| Arn::parse(&self.text).ok().map(|arn| arn.region)).flatten()
    }

    /// Whether an answer that calls itself `arn` and `name` is about this id.
    pub fn is_answered_by(&self, arn: &str, name: &str) -> bool {
        if !self.is_arn() {
            return self.as_str() == name;
        }
        match arn.strip_prefix(self.as_str()) {
            Some("") => true,
            Some(rest) => rest.len() == 7 && rest.starts_with('-'),
            None => false,
        }
    }
}

/// Whether AWS allows this byte in a secret's name.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/_+=.@-".contains(&byte)
}

impl PartialEq for SecretId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SecretId {}

impl Hash for SecretId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl fmt::Debug for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for SecretId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    #[test]
    fn an_arn_knows_its_region_and_name() {
        let id = SecretId::parse(&format!("{ARN}team-a/db-AbCdEf")).unwrap();
        assert_eq!((id.name(), id.region()), ("team-a/db-AbCdEf", Some("us-west-2")));
        let id = SecretId::parse("team-a/db").unwrap();
        assert_eq!((id.name(), id.region()), ("team-a/db", None));
    }

    #[test]
    fn length_is_bounded_at_2048_bytes() {
        assert!(SecretId::parse(&"a".repeat(2048)).is_ok());
        assert_eq!(SecretId::parse(&"a".repeat(2049)).unwrap_err().code(), "id_too_long");
    }

    #[test]
    fn an_answer_must_be_about_the_id_that_was_asked_for() {
        let complete = format!("{ARN}db-AbCdEf");
        let by_name = SecretId::parse("db").unwrap();
        assert!(by_name.is_answered_by(&complete, "db"));
        assert!(!by_name.is_answered_by(&complete, "other"));
        let by_arn = SecretId::parse(&complete).unwrap();
        assert!(by_arn.is_answered_by(&complete, "db"));
        let partial = SecretId::parse(&format!("{ARN}db")).unwrap();
        assert!(partial.is_answered_by(&complete, "db"));
        assert!(!partial.is_answered_by(&format!("{ARN}db2-AbCdEf"), "db2"));
        assert!(!partial.is_answered_by(&format!("{ARN}db-other-AbCdEf"), "db-other"));
    }

    proptest! {
        #[test]
        fn whatever_parses_is_made_of_legal_bytes_and_is_kept_as_it_was(text in ".{0,100}") {
            if let Ok(id) = SecretId::parse(&text) {
                prop_assert_eq!(id.as_str(), text.as_str());
                prop_assert!(id.name().bytes().all(is_name_byte));
            }
        }

        #[test]
        fn every_legal_name_parses(name in "[A-Za-z0-9/_+=.@-]{1,512}") {
            let id = SecretId::parse(&name).unwrap();
            prop_assert_eq!(id.name(), name.as_str());
        }
    }
}
