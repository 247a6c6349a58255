//! One field of a JSON secret: a top-level key, or a JSON Pointer (RFC 6901).

use std::borrow::Cow;
use std::collections::HashMap;

use bytes::Bytes;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

/// Which part of a JSON document is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// The reference tokens, outermost first. Never empty.
    path: Vec<String>,
    /// As it was asked for.
    text: String,
}

impl Field {
    /// A key, or a pointer if `text` starts with `/`; `None` for an empty text or a bad escape.
    pub fn parse(text: &str) -> Option<Self> {
        let path = match text.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(unescape).collect::<Option<_>>()?,
            None if text.is_empty() => return None,
            None => vec![text.to_owned()],
        };
        Some(Self { path, text: text.to_owned() })
    }

    /// As it was asked for.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The field's value: a string's own characters, anything else as the JSON text that it is, to the
    /// letter. `None` if the secret is not JSON or has no such field.
    pub fn of(&self, secret: &[u8]) -> Option<Bytes> {
        let mut json: &RawValue = serde_json::from_slice(secret).ok()?;
        // A plain name is a key and never an index.
        if !self.text.starts_with('/') && !json.get().starts_with('{') {
            return None;
        }
        for token in &self.path {
            json = step(json, token)?;
        }
        let bytes = if json.get().starts_with('"') {
            Zeroizing::new(serde_json::from_str::<String>(json.get()).ok()?.into_bytes())
        } else {
            Zeroizing::new(json.get().as_bytes().to_vec())
        };
        Some(Bytes::from_owner(bytes))
    }
}

/// RFC 6901 section 4: one reference token deeper.
fn step<'a>(json: &'a RawValue, token: &str) -> Option<&'a RawValue> {
    match json.get().as_bytes().first()? {
        b'{' => {
            let members: HashMap<Cow<'a, str>, &'a RawValue> = serde_json::from_str(json.get()).ok()?;
            members.get(token).copied()
        }
        b'[' => {
            let is_index =
                token == "0" || (!token.starts_with('0') && token.bytes().all(|b| b.is_ascii_digit()));
            let index: usize = if is_index { token.parse().ok()? } else { return None };
            let items: Vec<&'a RawValue> = serde_json::from_str(json.get()).ok()?;
            items.get(index).copied()
        }
        _ => None,
    }
}

/// RFC 6901 section 3: `~1` is a slash, `~0` a tilde, any other tilde an error.
fn unescape(token: &str) -> Option<String> {
    let mut plain = String::with_capacity(token.len());
    let mut rest = token.chars();
    while let Some(character) = rest.next() {
        match character {
            '~' => plain.push(match rest.next()? {
                '0' => '~',
                '1' => '/',
                _ => return None,
            }),
            other => plain.push(other),
        }
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(field: &str, secret: &str) -> Option<String> {
        let value = Field::parse(field).unwrap().of(secret.as_bytes())?;
        Some(String::from_utf8(value.to_vec()).unwrap())
    }

    #[test]
    fn a_string_comes_without_its_quotes_and_all_else_to_the_letter() {
        let secret = r#"{"user": "ada", "n": 1.10, "big": 12345678901234567890123, "o": {"a": [1, 2]}, "z": null, "e": "\u00e9\n"}"#;
        assert_eq!(of("user", secret).unwrap(), "ada");
        assert_eq!(of("n", secret).unwrap(), "1.10");
        assert_eq!(of("big", secret).unwrap(), "12345678901234567890123");
        assert_eq!(of("o", secret).unwrap(), r#"{"a": [1, 2]}"#);
        assert_eq!(of("z", secret).unwrap(), "null");
        assert_eq!(of("e", secret).unwrap(), "é\n");
    }

    #[test]
    fn pointers_follow_rfc_6901() {
        let secret = r#"{"a/b": {"m~n": ["x", "y"]}, "": 7, "k": 1}"#;
        assert_eq!(of("/a~1b/m~0n/1", secret).unwrap(), "y");
        assert_eq!(of("/", secret).unwrap(), "7");
        for missing in ["/a~1b/m~0n/2", "/a~1b/m~0n/01", "/a~1b/m~0n/-", "/k/0", "/none"] {
            assert_eq!(of(missing, secret), None, "{missing}");
        }
        assert_eq!(Field::parse("/a~2"), None);
        assert_eq!(Field::parse("/a~"), None);
        assert_eq!(Field::parse(""), None);
    }

    #[test]
    fn what_is_not_json_has_no_fields() {
        for secret in ["plain text", "", "{\"a\":1", "\"text\"", "[1]"] {
            assert_eq!(of("a", secret), None, "{secret}");
        }
        assert_eq!(Field::parse("a").unwrap().of(&[0xff, 0x00]), None);
        assert_eq!(
            (of("0", "[1]"), of("/0", "[1]").as_deref()),
            (None, Some("1")),
            "only a pointer has indices"
        );
    }

    proptest! {
        #[test]
        fn nothing_panics(field in ".{0,20}", secret in ".{0,60}") {
            if let Some(field) = Field::parse(&field) {
                field.of(secret.as_bytes());
            }
        }

        #[test]
        fn every_key_is_found_by_itself_and_by_its_pointer(key in "[^/].{0,10}", value in ".{0,20}") {
            let secret = serde_json::json!({ key.as_str(): value }).to_string();
            prop_assert_eq!(of(&key, &secret), Some(value.clone()));
            let pointer = format!("/{}", key.replace('~', "~0").replace('/', "~1"));
            prop_assert_eq!(of(&pointer, &secret), Some(value));
        }
    }
}
