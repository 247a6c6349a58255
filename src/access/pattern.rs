//! Patterns of secrets, as in IAM policies: `*` stands for any text, slashes and nothing included, `?` for one
//! character, all else for itself.
//!
//! A pattern with a colon is compared with a secret's ARN; one without with its name, and with its name and the random
//! characters that AWS puts behind it. What counts is the secret and not how it was asked for: before it is fetched some
//! of its names may be unknown, and then the answer may be that it depends.

use std::borrow::Cow;

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
#[derive(Debug)]
struct Names<'a> {
    name: Cow<'a, [u8]>,
    /// The name and the random characters.
    resource: Cow<'a, [u8]>,
    /// `None` where its region is not known.
    arn: Option<Cow<'a, [u8]>>,
}

/// What the secret may be called that a key leads to: one set of names, or two of which AWS knows the right one.
#[derive(Debug)]
pub struct Candidates<'a> {
    names: Names<'a>,
    others: Option<Names<'a>>,
}

impl<'a> Candidates<'a> {
    /// A name without a region is one of `default_region`.
    pub fn of(key: &'a SecretKey, default_region: Option<&str>) -> Self {
        let (id, name) = (key.id.as_str(), key.id.name());
        let resource: Vec<u8> = [name.as_bytes(), &UNKNOWN_SUFFIX].concat();
        if !key.id.is_arn() {
            let arn = key.origin.region.as_deref().or(default_region).map(|region| {
                let head = format!("arn:{}:secretsmanager:{region}:", partition_of(region));
                [head.as_bytes(), &UNKNOWN_ACCOUNT, b":secret:", &resource].concat().into()
            });
            return Self {
                names: Names { name: name.as_bytes().into(), resource: resource.into(), arn },
                others: None,
            };
        }
        // An ARN may be complete, or lack the random characters; where it looks complete both are possible, since a name
        // may end in what looks like them.
        let arn = [id.as_bytes(), &UNKNOWN_SUFFIX].concat();
        let names = Names { name: name.as_bytes().into(), resource: resource.into(), arn: Some(arn.into()) };
        let others = CompleteArn::parse(id).map(|complete| Names::of(complete.name, id));
        Self { names, others }
    }
}

impl<'a> Names<'a> {
    /// Those that AWS gives.
    fn of(name: &'a str, arn: &'a str) -> Self {
        let resource = CompleteArn::parse(arn).map_or(name, |arn| arn.resource);
        Self {
            name: name.as_bytes().into(),
            resource: resource.as_bytes().into(),
            arn: Some(arn.as_bytes().into()),
        }
    }
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
        self.certain(&Names::of(name, arn))
    }

    /// Whether the secret is meant that may be called so.
    pub fn verdict(&self, candidates: &Candidates<'_>) -> Verdict {
        let verdict = self.of(&candidates.names);
        match &candidates.others {
            Some(others) if self.of(others) != verdict => Verdict::Depends,
            _ => verdict,
        }
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
        let matches = |pattern: &str, text: &[u8]| {
            matches(pattern, text, |known, wanted| known == wanted && known != UNKNOWN)
        };
        self.of_names.iter().any(|pattern| matches(pattern, &names.name) || matches(pattern, &names.resource))
            || names.arn.as_ref().is_some_and(|arn| self.of_arns.iter().any(|pattern| matches(pattern, arn)))
    }

    fn possible(&self, names: &Names<'_>) -> bool {
        let may_match = |pattern: &str, text: &[u8]| {
            matches(pattern, text, |known, wanted| {
                known == wanted || (known == UNKNOWN && wanted.is_ascii_alphanumeric())
            })
        };
        self.of_names.iter().any(|pattern| may_match(pattern, &names.resource))
            || names.arn.as_ref().map_or(!self.of_arns.is_empty(), |arn| {
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
        Patterns::new(&[pattern.to_owned()]).verdict(&Candidates::of(&key(id), Some("us-west-2")))
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
        assert_eq!(patterns.verdict(&Candidates::of(&key("team-a/db"), None)), Depends, "no region is known");
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
                    match patterns.verdict(&Candidates::of(&key(id), region)) {
                        Verdict::Yes => prop_assert!(truth, "{pattern} lets {id} in"),
                        Verdict::No => prop_assert!(!truth, "{pattern} keeps {id} out"),
                        Verdict::Depends => {}
                    }
                }
            }
        }
    }
}
