//! Patterns of secrets: `*` matches anything, slashes and nothing included; all else matches itself.

/// A list of patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    patterns: Vec<Box<str>>,
}

impl Patterns {
    /// Any text is a pattern.
    pub fn new(patterns: &[String]) -> Self {
        Self { patterns: patterns.iter().map(|pattern| pattern.as_str().into()).collect() }
    }

    /// Whether some pattern matches some of `texts`.
    pub fn match_any<'a>(&self, texts: impl IntoIterator<Item = &'a str>) -> bool {
        texts.into_iter().any(|text| self.patterns.iter().any(|pattern| matches(pattern, text)))
    }
}

/// The parts between stars must follow one another; taking the leftmost place for each is enough.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(head) else { return false };
    let (middle, tail) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_matches_anything() {
        let cases = [
            ("team-a/*", "team-a/db", true),
            ("team-a/*", "team-a/", true),
            ("team-a/*", "team-a", false),
            ("team-a/*", "x/team-a/db", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("*b", "abab", true),
            ("ab*ba", "aba", false),
            ("a**b", "ab", true),
            ("exact", "exact", true),
            ("exact", "exactly", false),
            ("", "x", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} against {text}");
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_whatever_its_stars_stand_for(
            parts in proptest::collection::vec("[ab/]{0,4}", 1..5), fill in "[ab/]{0,4}"
        ) {
            prop_assert!(matches(&parts.join("*"), &parts.join(&fill)));
        }

        #[test]
        fn matching_never_panics(pattern in ".{0,20}", text in ".{0,20}") {
            matches(&pattern, &text);
        }
    }
}
