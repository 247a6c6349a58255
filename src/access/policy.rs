//! Which secrets may be read, and by whom: the `allow_secrets` of a listener, and the `[[policy]]` rules of the whole.

use super::User;
use super::pattern::{Candidates, Patterns, Verdict};
use crate::secret::{SecretKey, SecretVersion};

/// What may be read by a listener. Without any limit, all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// What nobody gets past; `None` is no limit.
    pub allow_secrets: Option<Patterns>,
    /// What some rule must allow, where there are rules at all: `None` where there are none.
    pub rules: Option<Vec<Rule>>,
    /// The region of names that say none, where it is known.
    pub default_region: Option<String>,
}

/// A `[[policy]]`: it holds for a caller that meets all its conditions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// The user must be one of these; `None` is no condition.
    pub uids: Option<Vec<u32>>,
    /// The user's primary group must be one of these; `None` is no condition.
    pub gids: Option<Vec<u32>>,
    /// What the caller may read.
    pub allow_secrets: Patterns,
}

impl Rule {
    fn holds_for(&self, user: Option<User>) -> bool {
        let meets = |wanted: &Option<Vec<u32>>, has: fn(User) -> u32| {
            wanted.as_ref().is_none_or(|ids| user.is_some_and(|user| ids.contains(&has(user))))
        };
        meets(&self.uids, |user| user.uid) && meets(&self.gids, |user| user.gid)
    }
}

impl Policy {
    /// Whether a user may ask for the secret that a key leads to.
    pub fn verdict(&self, user: Option<User>, key: &SecretKey) -> Verdict {
        if self.allow_secrets.is_none() && self.rules.is_none() {
            return Verdict::Yes;
        }
        let candidates = &Candidates::of(key, self.default_region.as_deref());
        let listener =
            self.allow_secrets.as_ref().map_or(Verdict::Yes, |patterns| patterns.verdict(candidates));
        match &self.rules {
            Some(rules) if listener != Verdict::No => {
                let held = rules.iter().filter(|rule| rule.holds_for(user));
                let any =
                    held.fold(Verdict::No, |known, rule| known.or(rule.allow_secrets.verdict(candidates)));
                listener.and(any)
            }
            _ => listener,
        }
    }

    /// Whether a user may have this version, of which all names are known.
    pub fn allows(&self, user: Option<User>, version: &SecretVersion) -> bool {
        let contain = |patterns: &Patterns| patterns.contain(&version.name, &version.arn);
        self.allow_secrets.as_ref().is_none_or(contain)
            && self.rules.as_ref().is_none_or(|rules| {
                rules.iter().any(|rule| rule.holds_for(user) && contain(&rule.allow_secrets))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Resolver, SecretPath, VersionSelector};

    const ALICE: Option<User> = Some(User { uid: 1000, gid: 100 });
    const BOB: Option<User> = Some(User { uid: 1001, gid: 100 });

    fn patterns(pattern: &str) -> Patterns {
        Patterns::new(&[pattern.to_owned()])
    }

    fn may_read(policy: &Policy, user: Option<User>, raw: &str) -> bool {
        let path = SecretPath::parse(raw).unwrap();
        let key = Resolver::default().resolve(path, VersionSelector::current()).unwrap();
        match policy.verdict(user, &key) {
            Verdict::Yes => true,
            Verdict::No => false,
            Verdict::Depends => panic!("{raw} depends"),
        }
    }

    #[test]
    fn only_matching_secrets_may_be_read_however_they_are_spelt() {
        let policy = Policy { allow_secrets: Some(patterns("team-a/*")), ..Policy::default() };
        let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
        for raw in ["team-a/db", "team-a%2Fdb", &format!("{arn}/team-a%2Fdb-AbCdEf")] {
            assert!(may_read(&policy, None, raw), "{raw}");
        }
        for raw in ["team-b/db", "x/team-a/db", &format!("{arn}/team-b-AbCdEf")] {
            assert!(!may_read(&policy, None, raw), "{raw}");
        }
    }

    #[test]
    fn once_there_is_a_rule_what_none_allows_is_refused() {
        let rules = vec![
            Rule { uids: Some(vec![1000]), allow_secrets: patterns("team-a/*"), ..Rule::default() },
            Rule { gids: Some(vec![100]), allow_secrets: patterns("shared/*"), ..Rule::default() },
            Rule { uids: Some(vec![1001]), gids: Some(vec![7]), allow_secrets: patterns("*") },
            Rule { allow_secrets: patterns("public/*"), ..Rule::default() },
        ];
        let policy = Policy { rules: Some(rules), ..Policy::default() };
        for (user, raw, expected) in [
            (ALICE, "team-a/db", true),
            (BOB, "team-a/db", false),
            (None, "team-a/db", false),
            (ALICE, "shared/db", true),
            (BOB, "shared/db", true),
            (None, "shared/db", false),
            (None, "public/db", true),
            (ALICE, "other/db", false),
            (BOB, "other/db", false),
        ] {
            assert_eq!(may_read(&policy, user, raw), expected, "{user:?} {raw}");
        }
        let nobody = Policy { rules: Some(Vec::new()), ..Policy::default() };
        assert!(!may_read(&nobody, ALICE, "team-a/db"), "rules of other listeners only");
        assert!(may_read(&Policy::default(), None, "team-a/db"));
    }

    #[test]
    fn a_rule_gives_nothing_that_the_listener_withholds() {
        let rules = Some(vec![Rule { allow_secrets: patterns("*"), ..Rule::default() }]);
        let policy = Policy { allow_secrets: Some(patterns("team-a/*")), rules, default_region: None };
        assert!(may_read(&policy, ALICE, "team-a/db") && !may_read(&policy, ALICE, "team-b/db"));
    }
}
