//! A version as JSON, with AWS's own names and types
//! (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>).

use std::time::UNIX_EPOCH;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use crate::secret::SecretVersion;

/// What the members of the smallest document take, names and punctuation included.
const MEMBERS: usize = 512;

/// A version, ready to be written.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Metadata<'a> {
    #[serde(rename = "ARN")]
    arn: &'a str,
    name: &'a str,
    version_id: &'a str,
    #[serde(flatten)]
    value: Exposed<'a>,
    version_stages: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    created_date: Option<CreatedDate>,
}

/// The value: a string, or binary in base64.
#[derive(Serialize)]
enum Exposed<'a> {
    #[serde(rename = "SecretString")]
    Text(&'a str),
    #[serde(rename = "SecretBinary", serialize_with = "base64")]
    Binary(&'a [u8]),
}

/// How a date is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DateForm {
    /// Seconds since 1970 as a number, as in AWS JSON 1.1.
    Number,
    /// The same as a string, as in AWS's agent.
    Text,
}

#[derive(Serialize)]
#[serde(untagged)]
enum CreatedDate {
    Number(f64),
    Text(String),
}

impl<'a> Metadata<'a> {
    /// `field` is the part of the value that was asked for, if one was: always a string.
    pub(super) fn new(version: &'a SecretVersion, field: Option<&'a Bytes>, dates: DateForm) -> Self {
        let exposed = field.unwrap_or_else(|| version.value.expose());
        let text =
            if field.is_some() || version.value.is_text() { std::str::from_utf8(exposed).ok() } else { None };
        let created = version.created_date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
        let created_date = created.map(|since| match dates {
            DateForm::Number => CreatedDate::Number(since.as_secs_f64()),
            DateForm::Text => CreatedDate::Text(since.as_secs_f64().to_string()),
        });
        Self {
            arn: &version.arn,
            name: &version.name,
            version_id: &version.version_id,
            value: text.map_or(Exposed::Binary(exposed), Exposed::Text),
            version_stages: &version.version_stages,
            created_date,
        }
    }

    /// The document as it is sent.
    pub(super) fn render(&self) -> Bytes {
        render(self, self.room())
    }

    /// At least the bytes that it takes.
    pub(super) fn room(&self) -> usize {
        let value = match self.value {
            Exposed::Text(text) => text.len() + escapes(text) * 5,
            Exposed::Binary(bytes) => bytes.len().div_ceil(3) * 4,
        };
        let stages: usize = self.version_stages.iter().map(|stage| stage.len() + 3).sum();
        value + self.arn.len() + self.name.len() + self.version_id.len() + stages + MEMBERS
    }
}

/// Characters that JSON writes as up to six.
fn escapes(text: &str) -> usize {
    text.bytes().filter(|byte| *byte < 0x20 || matches!(byte, b'"' | b'\\')).count()
}

fn base64<S: Serializer>(bytes: &&[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&Zeroizing::new(STANDARD.encode(bytes)))
}

/// Writes a document that holds secrets into `room` bytes at once, which are wiped in the end: a buffer that grows
/// leaves copies behind.
pub(super) fn render(document: &impl Serialize, room: usize) -> Bytes {
    let mut rendered = Zeroizing::new(Vec::with_capacity(room));
    // Strings and numbers always serialize into memory.
    let _ = serde_json::to_writer(&mut *rendered, document);
    Bytes::from_owner(rendered)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use proptest::prelude::*;

    use super::*;
    use crate::secret::SecretValue;

    fn version(value: SecretValue) -> SecretVersion {
        SecretVersion {
            arn: "arn:aws:secretsmanager:us-west-2:123456789012:secret:db-AbCdEf".to_owned(),
            name: "db".to_owned(),
            version_id: "v1".into(),
            version_stages: vec!["AWSCURRENT".to_owned()],
            created_date: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_523_477_145_713)),
            value,
        }
    }

    #[test]
    fn members_are_those_of_aws_in_the_order_of_its_agent() {
        let text = version(SecretValue::text("a\"b".to_owned()));
        let shown = String::from_utf8(Metadata::new(&text, None, DateForm::Text).render().to_vec()).unwrap();
        let expected = "{\"ARN\":\"arn:aws:secretsmanager:us-west-2:123456789012:secret:db-AbCdEf\",\"Name\":\"db\",\
                        \"VersionId\":\"v1\",\"SecretString\":\"a\\\"b\",\"VersionStages\":[\"AWSCURRENT\"],\
                        \"CreatedDate\":\"1523477145.713\"}";
        assert_eq!(shown, expected);
        let binary = version(SecretValue::binary(vec![0, 255]));
        let shown: serde_json::Value =
            serde_json::from_slice(&Metadata::new(&binary, None, DateForm::Number).render()).unwrap();
        assert_eq!(
            (&shown["SecretBinary"], &shown["CreatedDate"]),
            (&"AP8=".into(), &1_523_477_145.713.into())
        );
        assert!(shown.get("SecretString").is_none());
    }

    proptest! {
        #[test]
        fn the_room_is_always_enough(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for value in [SecretValue::text(text), SecretValue::binary(bytes)] {
                let version = version(value);
                let metadata = Metadata::new(&version, None, DateForm::Number);
                prop_assert!(metadata.render().len() <= metadata.room());
            }
        }
    }
}
