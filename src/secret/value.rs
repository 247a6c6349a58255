//! The secret itself. Wiped when its last holder lets go, and unprintable.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::id::SecretId;
use super::version::VersionSelector;

/// The bytes of a secret. Clones share one allocation, which is zeroed when the last of them drops.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue {
    bytes: Bytes,
    is_text: bool,
}

impl SecretValue {
    /// A `SecretString`. Takes the allocation over, so that no second copy is left behind.
    pub fn text(text: String) -> Self {
        Self { bytes: wiped(text.into_bytes()), is_text: true }
    }

    /// A `SecretBinary`, already base64-decoded.
    pub fn binary(bytes: Vec<u8>) -> Self {
        Self { bytes: wiped(bytes), is_text: false }
    }

    /// The only way out of a value. The clone of the returned bytes shares their memory.
    pub fn expose(&self) -> &Bytes {
        &self.bytes
    }

    /// Whether the secret is a `SecretString` and therefore UTF-8.
    pub fn is_text(&self) -> bool {
        self.is_text
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the secret is the empty string.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

fn wiped(bytes: Vec<u8>) -> Bytes {
    Bytes::from_owner(Zeroizing::new(bytes))
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// One version of a secret, as `GetSecretValue` returns it
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretVersion {
    /// The complete ARN.
    pub arn: String,
    /// The friendly name.
    pub name: String,
    /// The unique id of this version.
    pub version_id: Arc<str>,
    /// The staging labels attached to it.
    pub version_stages: Vec<String>,
    /// When this version was created.
    pub created_date: Option<SystemTime>,
    /// The value.
    pub value: SecretValue,
}

impl SecretVersion {
    /// Whether this is an answer to the question for `id` in the version that `selector` means. An
    /// upstream that mixes answers up must not make one caller read another's secret.
    pub fn answers(&self, id: &SecretId, selector: &VersionSelector) -> bool {
        id.is_answered_by(&self.arn, &self.name) && selector.id().is_none_or(|id| *id == *self.version_id)
    }

    /// The bytes of memory that holding this version takes, roughly.
    pub fn weight(&self) -> usize {
        let stages: usize = self.version_stages.iter().map(|stage| stage.len() + 24).sum();
        size_of::<Self>()
            + self.arn.len()
            + self.name.len()
            + self.version_id.len()
            + stages
            + self.value.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_shows_the_value() {
        let value = SecretValue::text("hunter2".to_owned());
        assert_eq!(format!("{value:?}"), "[redacted]");
        let version = SecretVersion {
            arn: "arn:aws:secretsmanager:us-west-2:123456789012:secret:db-AbCdEf".to_owned(),
            name: "db".to_owned(),
            version_id: "v1".into(),
            version_stages: vec!["AWSCURRENT".to_owned()],
            created_date: None,
            value,
        };
        assert!(!format!("{version:?}").contains("hunter2"));
    }

    #[test]
    fn clones_share_one_allocation() {
        let value = SecretValue::binary(vec![0, 1, 2]);
        assert_eq!(value.expose().as_ptr(), value.clone().expose().as_ptr());
        assert!(!value.is_text());
    }
}
