//! Patterns of secrets, as in IAM policies: `*` stands for any text, slashes and nothing included, `?` for one
//! character, all else for itself.
//!
//! A pattern with a colon is compared with a secret's ARN; one without with its name, and with its name and the random
//! characters that AWS puts behind it. What counts is the secret and not how it was asked for: before it is fetched some
//! of its names may be unknown, and then the answer may be that it depends.

use crate::secret::{CompleteArn, SecretKey, partition_of};

/// Stands for one letter or digit that is not known yet. No name, ARN or pattern has it.
const UNKNOWN: u8 = 1;

/// An account that is not known yet: twelve digits.
const UNKNOWN_ACCOUNT: [u8; 12] = [UNKNOWN; 12];

/// A hyphen and six random characters that are not known yet.
const UNKNOWN_SUFFIX: [u8; 7] = [b'-', UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN];

/// Whether a secret is among those that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Whatever its other names turn out to be.
    Yes,
    /// Only the names that AWS's answer gives can tell.
    Depends,
    /// Whatever its other names turn out to be.
    No,
}

impl Verdict {
    /// What holds if both must.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::No, _) | (_, Self::No) => Self::No,
            (Self::Yes, Self::Yes) => Self::Yes,
            _ => Self::Depends,
        }
    }

    /// What holds if one suffices.
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::Yes, _) | (_, Self::Yes) => Self::Yes,
            (Self::No, Self::No) => Self::No,
            _ => Self::Depends,
        }
    }
}

/// A list of patterns.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Patterns {
    of_names: Vec<Box<str>>,
    of_arns: Vec<Box<str>>,
}

/// A secret's names, as far as they are known.
struct Names<'a> {
    name: &'a [u8],
    /// The name and the random characters.
    resource: &'a [u8],
    /// `None` where its region is not known.
    arn: Option<&'a [u8]>,
}

impl Patterns {
    /// Any text is a pattern.
    pub fn new(patterns: &[String]) -> Self {
        let (of_arns, of_names) = patterns
            .iter()
            .map(|pattern| pattern.clone().into_boxed_str())
            .partition(|pattern| pattern.contains(':'));
        Self { of_names, of_arns }
    }

    /// Whether the secret of this name and complete ARN, as AWS gives them, is meant.
    pub fn contain(&self, name: &str, arn: &str) -> bool {
        let resource = CompleteArn::parse(arn).map_or(name, |arn| arn.resource);
        self.certain(&Names {
            name: name.as_bytes(),
            resource: resource.as_bytes(),
            arn: Some(arn.as_bytes()),
        })
    }

    /// Whether the secret that a key leads to is meant. A name without a region is one of `default_region`.
    pub fn verdict(&self, key: &SecretKey, default_region: Option<&str>) -> Verdict {
        let (id, name) = (key.id.as_str(), key.id.name());
        if !key.id.is_arn() {
            let resource = [name.as_bytes(), &UNKNOWN_SUFFIX].concat();
            let arn = key.origin.region.as_deref().or(default_region).filter(|_| !self.of_arns.is_empty());
            let arn = arn.map(|region| {
                let head = format!("arn:{}:secretsmanager:{region}:", partition_of(region));
                [head.as_bytes(), &UNKNOWN_ACCOUNT, b":secret:", &resource].concat()
            });
            return self.of(&Names { name: name.as_bytes(), resource: &resource, arn: arn.as_deref() });
        }
        // An ARN may be complete, or lack the random characters; where it looks complete both are possible, since a name
        // may end in what looks like them.
        let [resource, arn] = [name, id].map(|text| [text.as_bytes(), &UNKNOWN_SUFFIX].concat());
        let cut_off = self.of(&Names { name: name.as_bytes(), resource: &resource, arn: Some(&arn) });
        let Some(complete) = CompleteArn::parse(id) else { return cut_off };
        let (name, arn) = (complete.name.as_bytes(), id.as_bytes());
        let complete = self.of(&Names { name, resource: complete.resource.as_bytes(), arn: Some(arn) });
        if complete == cut_off { complete } else { Verdict::Depends }
    }

    fn of(&self, names: &Names<'_>) -> Verdict {
        if self.certain(names) {
            Verdict::Yes
        } else if self.possible(names) {
            Verdict::Depends
        } else {
            Verdict::No
        }
    }

    fn certain(&self, names: &Names<'_>) -> bool {
        let matches = |pattern: &str, text: &[u8]| matches(pattern, text, |known, wanted| known == wanted);
        self.of_names.iter().any(|pattern| matches(pattern, names.name) || matches(pattern, names.resource))
            || names.arn.is_some_and(|arn| self.of_arns.iter().any(|pattern| matches(pattern, arn)))
    }

    fn possible(&self, names: &Names<'_>) -> bool {
        let may_match = |pattern: &str, text: &[u8]| {
            matches(pattern, text, |known, wanted| {
                known == wanted || (known == UNKNOWN && wanted.is_ascii_alphanumeric())
            })
        };
        self.of_names.iter().any(|pattern| may_match(pattern, names.resource))
            || names.arn.map_or(!self.of_arns.is_empty(), |arn| {
                self.of_arns.iter().any(|pattern| may_match(pattern, arn))
            })
    }
}

/// Takes the shortest text for each star and, where the rest does not fit, one character more for the last one: an
/// earlier star need never be tried again.
fn matches(pattern: &str, text: &[u8], same: impl Fn(u8, u8) -> bool) -> bool {
    let pattern = pattern.as_bytes();
    let (mut at, mut in_text) = (0, 0);
    let mut last_star = None;
    while in_text < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                last_star = Some((at, in_text));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || same(text[in_text], wanted) => {
                at += 1;
                in_text += 1;
            }
            _ => match last_star {
                Some((star, taken)) => {
                    last_star = Some((star, taken + 1));
                    at = star + 1;
                    in_text = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::secret::{Origin, SecretId, VersionSelector};

    const ACCOUNT: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn matches(pattern: &str, text: &str) -> bool {
        super::matches(pattern, text.as_bytes(), |known, wanted| known == wanted)
    }

    fn key(id: &str) -> SecretKey {
        let id = SecretId::parse(id).unwrap();
        SecretKey { origin: Origin::default(), id, selector: VersionSelector::current() }
    }

    fn verdict(pattern: &str, id: &str) -> Verdict {
        Patterns::new(&[pattern.to_owned()]).verdict(&key(id), Some("us-west-2"))
    }

    #[test]
    fn a_star_matches_any_text_and_a_question_mark_one_character() {
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
            ("db-??????", "db-AbCdEf", true),
            ("db-??????", "db-AbCdE", false),
            ("?*", "", false),
            ("", "x", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} against {text}");
        }
    }

    #[test]
    fn what_is_known_before_the_fetch_decides_if_it_can() {
        use Verdict::{Depends, No, Yes};
        let arn = |rest: &str| format!("{ACCOUNT}{rest}");
        let anywhere = "arn:aws:secretsmanager:us-west-2:*:secret:team-a/*";
        for (pattern, id, expected) in [
            ("team-a/*", "team-a/db".to_owned(), Yes),
            ("team-a/*", arn("team-a/db-AbCdEf"), Yes),
            ("team-a/*", arn("team-b/db-AbCdEf"), No),
            ("team-a/*", "team-b/db".to_owned(), No),
            (anywhere, "team-a/db".to_owned(), Yes),
            (anywhere, arn("team-a/db"), Yes),
            (anywhere, arn("team-a/db").replace("us-west-2", "us-east-1"), No),
            (anywhere, "team-b/db".to_owned(), No),
            // The account of a name is known to AWS alone.
            (&arn("team-a/*"), "team-a/db".to_owned(), Depends),
            (&arn("team-a/*"), "team-b/db".to_owned(), No),
            (&arn("team-a/db-??????"), arn("team-a/db-AbCdEf"), Depends),
            (&arn("team-a/db-??????"), arn("team-a/db"), Yes),
            // A name may end in what looks like random characters.
            ("team-a/db", arn("team-a/db-AbCdEf"), Depends),
            ("team-a/db", "team-a/db".to_owned(), Yes),
            ("team-a/db-AbCdEf", "team-a/db".to_owned(), Depends),
            ("team-a/db-/bCdEf", "team-a/db".to_owned(), No),
            ("team-a/db-*", "team-a/db".to_owned(), Yes),
            ("team-a/db-AbCdEf", arn("team-a/db-AbCdEf"), Yes),
        ] {
            assert_eq!(verdict(pattern, &id), expected, "{pattern} for {id}");
        }
        let patterns = Patterns::new(&[anywhere.to_owned()]);
        assert_eq!(patterns.verdict(&key("team-a/db"), None), Depends, "no region is known");
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

        /// However one secret is spelt, nobody gets it by one spelling who would not by another.
        #[test]
        fn every_spelling_of_a_secret_has_one_verdict(
            name in "[ab/-]{1,6}(-[ab]{6})?",
            suffix in "[ab]{6}",
            pattern in r"((arn:aws:secretsmanager:(us-west-2|\*|us-east-1):(\*|123456789012|\?{12}):secret:)?[ab/*?-]{1,12})|\*",
        ) {
            let arn = format!("{ACCOUNT}{name}-{suffix}");
            let patterns = Patterns::new(std::slice::from_ref(&pattern));
            let truth = patterns.contain(&name, &arn);
            for id in [&name, &arn, &format!("{ACCOUNT}{name}")] {
                for region in [Some("us-west-2"), None] {
                    match patterns.verdict(&key(id), region) {
                        Verdict::Yes => prop_assert!(truth, "{pattern} lets {id} in"),
                        Verdict::No => prop_assert!(!truth, "{pattern} keeps {id} out"),
                        Verdict::Depends => {}
                    }
                }
            }
        }
    }
}
