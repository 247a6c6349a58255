//! How a URL path, or `<group>/<key>` on a command line, is cut into a group and a key.
//!
//! The raw text is split first and each segment decoded once, so that `%2F` is part of a name and never
//! a separator. Nothing is normalised: what is doubtful is refused, since clients and proxies differ in
//! what they fold.

use std::borrow::Cow;

use super::arn::Arn;
use super::id::{ReferenceError, SecretId};

/// A reference to a secret, cut and decoded, not yet resolved to an id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretPath {
    /// `<group>/<key>`.
    Grouped {
        /// The first segment, decoded.
        group: String,
        /// All the rest, decoded; with a leading `/` where the raw key began with one.
        key: String,
        /// Whether an empty segment stands before the key: legal only where the name begins with `/`.
        empty_segment: bool,
    },
    /// A name without a group, or a pasted ARN.
    Id(SecretId),
}

impl SecretPath {
    /// Cuts the raw text that follows `/secret/`.
    pub fn parse(raw: &str) -> Result<Self, ReferenceError> {
        let (head, tail) = match raw.split_once('/') {
            Some((head, tail)) => (head, Some(tail)),
            None => (raw, None),
        };
        let head = decode_segment(head)?;
        let pasted_arn = Arn::is_claimed_by(&head) && !Arn::parse(&head)?.name.is_empty();
        match tail {
            None => Ok(Self::Id(SecretId::parse(&head)?)),
            Some(tail) if pasted_arn => {
                let id = format!("{head}/{}", decode_segments(tail)?);
                Ok(Self::Id(SecretId::parse(&id)?))
            }
            Some(tail) => {
                let (key, empty_segment) = match tail.strip_prefix('/') {
                    Some(rest) => (format!("/{}", decode_segments(rest)?), true),
                    None => (decode_segments(tail)?, false),
                };
                Ok(Self::Grouped { group: head.into_owned(), key, empty_segment })
            }
        }
    }
}

/// Decodes each segment of `raw` and joins them again.
fn decode_segments(raw: &str) -> Result<String, ReferenceError> {
    let mut joined = String::with_capacity(raw.len());
    for (index, segment) in raw.split('/').enumerate() {
        if index > 0 {
            joined.push('/');
        }
        joined.push_str(&decode_segment(segment)?);
    }
    Ok(joined)
}

fn decode_segment(raw: &str) -> Result<Cow<'_, str>, ReferenceError> {
    if raw.is_empty() {
        return Err(ReferenceError::EmptySegment);
    }
    let segment = percent_decode(raw)?;
    // Not even within a segment: some clients and proxies decode `%2F` before they fold, and what stands after the
    // last colon of an ARN is the beginning of a name.
    if segment.split(['/', ':']).any(|part| matches!(part, "." | "..")) {
        return Err(ReferenceError::DotSegment);
    }
    Ok(segment)
}

/// Percent-decodes once, strictly: an incomplete escape is an error, not text. `+` stays a plus.
pub fn percent_decode(raw: &str) -> Result<Cow<'_, str>, ReferenceError> {
    let is_escape = |at: usize| {
        raw.as_bytes().get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if raw.match_indices('%').any(|(at, _)| !is_escape(at)) {
        return Err(ReferenceError::InvalidPercentEncoding);
    }
    percent_encoding::percent_decode_str(raw).decode_utf8().map_err(|_| ReferenceError::InvalidUtf8)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PREFIX: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn grouped(group: &str, key: &str) -> SecretPath {
        SecretPath::Grouped { group: group.into(), key: key.into(), empty_segment: key.starts_with('/') }
    }

    fn id(text: &str) -> SecretPath {
        SecretPath::Id(SecretId::parse(text).unwrap())
    }

    #[test]
    fn the_first_segment_is_the_group_and_all_the_rest_the_key() {
        assert_eq!(SecretPath::parse("team-a/db").unwrap(), grouped("team-a", "db"));
        assert_eq!(SecretPath::parse("team-a/db/main").unwrap(), grouped("team-a", "db/main"));
    }

    #[test]
    fn an_escaped_slash_is_part_of_a_name_and_a_plus_is_a_plus() {
        let expected = SecretPath::Grouped { group: "a/b".into(), key: "c/d+e".into(), empty_segment: false };
        assert_eq!(SecretPath::parse("a%2Fb/c%2fd+e").unwrap(), expected);
        assert_eq!(SecretPath::parse("%2Fname").unwrap(), id("/name"));
        let escaped = SecretPath::Grouped { group: "a".into(), key: "/b".into(), empty_segment: false };
        assert_eq!(SecretPath::parse("a/%2Fb").unwrap(), escaped);
    }

    #[test]
    fn a_colon_may_be_escaped() {
        let raw = format!("{}/k", PREFIX.replace(':', "%3A"));
        assert_eq!(SecretPath::parse(&raw).unwrap(), grouped(PREFIX, "k"));
    }

    #[test]
    fn a_key_that_begins_with_a_slash_follows_one_empty_segment() {
        assert_eq!(SecretPath::parse("g//name").unwrap(), grouped("g", "/name"));
        assert_eq!(SecretPath::parse("g///name"), Err(ReferenceError::EmptySegment));
    }

    #[test]
    fn a_pasted_arn_is_an_id_with_its_slashes() {
        let arn = format!("{PREFIX}team-a/db-AbCdEf");
        assert_eq!(SecretPath::parse(&arn).unwrap(), id(&arn));
        assert_eq!(SecretPath::parse(&format!("{PREFIX}a//b")), Err(ReferenceError::EmptySegment));
    }

    #[test]
    fn doubtful_paths_are_refused_with_their_own_code() {
        let cases = [
            ("", "empty_segment"),
            ("/", "empty_segment"),
            ("/b", "empty_segment"),
            ("a/", "empty_segment"),
            ("a/b/", "empty_segment"),
            ("a/b//c", "empty_segment"),
            ("./b", "dot_segment"),
            ("a/..", "dot_segment"),
            ("a/%2e%2E/b", "dot_segment"),
            ("a/b%2F..%2Fc", "dot_segment"),
            ("a/%2F.", "dot_segment"),
            ("arn:aws:secretsmanager:us-west-2:123456789012:secret:../b", "dot_segment"),
            ("a/b%", "invalid_percent_encoding"),
            ("a/b%2", "invalid_percent_encoding"),
            ("a/b%zz", "invalid_percent_encoding"),
            ("a/b%FF", "invalid_utf8"),
            ("arn:aws:s3:::bucket/key", "invalid_arn"),
            ("arn:x/k", "invalid_arn"),
            (PREFIX, "invalid_arn"),
            ("na%20me", "invalid_character"),
            ("na%00me", "invalid_character"),
        ];
        for (raw, code) in cases {
            assert_eq!(SecretPath::parse(raw).unwrap_err().code(), code, "{raw}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(raw in ".{0,120}") {
            let _ = SecretPath::parse(&raw);
        }

        #[test]
        fn escaping_every_byte_of_a_key_changes_nothing(key in "[A-Za-z0-9_+=@-][A-Za-z0-9_+=.@-]{0,30}") {
            let escaped: String = key.bytes().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(SecretPath::parse(&format!("g/{escaped}")), SecretPath::parse(&format!("g/{key}")));
        }
    }
}
