//! From a group and a key to the one thing that counts: a [`SecretKey`].
//!
//! Policy, cache, audit and metrics see keys only, so they cannot depend on how a caller spelt or split
//! a name.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::arn::Arn;
use super::id::{ReferenceError, SecretId};
use super::path::SecretPath;
use super::version::VersionSelector;

/// The `group` label of secrets that belong to no configured group.
pub const DEFAULT_GROUP: &str = "default";

/// Where a secret is asked for: a region and a role. `None` is the daemon's own default. The region is
/// also `None` for ids that carry one themselves, so that every spelling of an ARN is one key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The region of a plain name.
    pub region: Option<Arc<str>>,
    /// The role to assume.
    pub role_arn: Option<Arc<str>>,
}

/// What one cached value is the value of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretKey {
    /// Whom to ask.
    pub origin: Origin,
    /// For which secret.
    pub id: SecretId,
    /// In which version.
    pub selector: VersionSelector,
}

impl SecretKey {
    /// The key under which the same secret is found by its complete ARN.
    pub fn by_arn(&self, arn: &str) -> Result<Self, ReferenceError> {
        let origin = Origin { region: None, role_arn: self.origin.role_arn.clone() };
        Ok(Self { origin, id: SecretId::parse(arn)?, selector: self.selector.clone() })
    }

    /// The current version of the same secret.
    pub fn current(&self) -> Self {
        Self { selector: VersionSelector::current(), ..self.clone() }
    }

    /// What is known of the same secret besides its value.
    pub fn description(&self) -> Self {
        Self { selector: VersionSelector::description(), ..self.clone() }
    }

    /// Whom the question goes to: a region and a role.
    pub fn place(&self) -> Origin {
        Origin { region: self.region().map(Into::into), role_arn: self.origin.role_arn.clone() }
    }

    /// The same secret as replicated to another region: a replica's ARN differs in its region only
    /// (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/replicate-secrets.html>).
    pub fn in_region(&self, region: &str) -> Result<Self, ReferenceError> {
        let mut key = self.clone();
        if self.id.is_arn() {
            key.id = SecretId::parse(&with_region(self.id.as_str(), region))?;
        } else {
            key.origin.region = Some(region.into());
        }
        Ok(key)
    }

    /// The region to ask, where the id or the group names one.
    pub fn region(&self) -> Option<&str> {
        self.id.region().or(self.origin.region.as_deref())
    }
}

/// The ARN with another region in it.
pub fn with_region(arn: &str, region: &str) -> String {
    let parts = arn.splitn(5, ':').enumerate().map(|(index, part)| if index == 3 { region } else { part });
    parts.collect::<Vec<_>>().join(":")
}

/// A configured group: `[groups.<name>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The name by which callers ask, and the metrics label.
    pub name: Arc<str>,
    /// What is put before the key.
    pub prefix: String,
    /// The region and role to ask.
    pub origin: Origin,
    /// How long its values are fresh, where that differs from the cache's `ttl`.
    pub ttl: Option<Duration>,
    /// Regions to which its secrets are replicated, asked in this order when its own fails.
    pub fallback_regions: Vec<Arc<str>>,
}

/// What to do with a group that is neither configured nor an ARN.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unlisted {
    /// Read `<group>/<key>` in the default region.
    #[default]
    Allow,
    /// Refuse.
    Deny,
}

/// The configured groups, and the rules by which a path becomes a key.
#[derive(Debug, Default)]
pub struct Resolver {
    groups: HashMap<Arc<str>, Group>,
    unlisted: Unlisted,
}

impl Resolver {
    /// A resolver that knows `groups`.
    pub fn new(groups: impl IntoIterator<Item = Group>, unlisted: Unlisted) -> Self {
        let groups = groups.into_iter().map(|group| (Arc::clone(&group.name), group)).collect();
        Self { groups, unlisted }
    }

    /// Resolves a path: a configured group first, then an ARN prefix, then `<group>/<key>` as a name.
    pub fn resolve(&self, path: SecretPath, selector: VersionSelector) -> Result<SecretKey, ReferenceError> {
        let (group, key, empty_segment) = match path {
            SecretPath::Id(id) if id.is_arn() => return Ok(key_of(Origin::default(), id, selector)),
            SecretPath::Id(id) => {
                self.check_unlisted()?;
                return Ok(key_of(Origin::default(), id, selector));
            }
            SecretPath::Grouped { group, key, empty_segment } => (group, key, empty_segment),
        };
        let (origin, text) = if let Some(listed) = self.groups.get(group.as_str()) {
            (listed.origin.clone(), format!("{}{key}", listed.prefix))
        } else if Arn::is_claimed_by(&group) {
            let colon = if Arn::parse(&group)?.lacks_last_colon { ":" } else { "" };
            (Origin::default(), format!("{group}{colon}{key}"))
        } else {
            self.check_unlisted()?;
            (Origin::default(), format!("{group}/{key}"))
        };
        let id = SecretId::parse(&text)?;
        if empty_segment && !id.name().starts_with('/') {
            return Err(ReferenceError::EmptySegment);
        }
        Ok(key_of(origin, id, selector))
    }

    /// Resolves an id as AWS's own API takes it: no group is named there. Where only listed groups may be read, a
    /// name must be one of theirs.
    pub fn resolve_id(
        &self,
        id: SecretId,
        origin: Origin,
        selector: VersionSelector,
    ) -> Result<SecretKey, ReferenceError> {
        let key = key_of(origin, id, selector);
        if !key.id.is_arn() && self.group_of(&key).is_none() {
            self.check_unlisted()?;
        }
        Ok(key)
    }

    /// All configured groups, in no order.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.groups.values()
    }

    /// The configured group that a key belongs to, however it was spelt: the one with the longest prefix
    /// among those that ask the same region and role.
    pub fn group_of(&self, key: &SecretKey) -> Option<&Group> {
        self.groups
            .values()
            .filter(|group| contains(group, key))
            .max_by_key(|group| (group.prefix.len(), &group.name))
    }

    fn check_unlisted(&self) -> Result<(), ReferenceError> {
        match self.unlisted {
            Unlisted::Allow => Ok(()),
            Unlisted::Deny => Err(ReferenceError::UnlistedGroup),
        }
    }
}

fn key_of(mut origin: Origin, id: SecretId, selector: VersionSelector) -> SecretKey {
    if id.is_arn() {
        origin.region = None;
    }
    SecretKey { origin, id, selector }
}

fn contains(group: &Group, key: &SecretKey) -> bool {
    if group.origin.role_arn != key.origin.role_arn {
        return false;
    }
    if Arn::is_claimed_by(&group.prefix) {
        return key.id.as_str().starts_with(&group.prefix);
    }
    let same_region = match (&group.origin.region, key.region()) {
        (Some(group_region), Some(region)) => **group_region == *region,
        (None, Some(_)) => key.id.is_arn(),
        (Some(_), None) => false,
        (None, None) => true,
    };
    same_region && key.id.name().starts_with(&group.prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn team_a() -> Group {
        Group {
            name: "team-a".into(),
            prefix: "prod/team-a/".into(),
            origin: Origin { region: Some("us-west-2".into()), role_arn: None },
            ttl: Some(Duration::from_mins(1)),
            fallback_regions: Vec::new(),
        }
    }

    fn resolve(resolver: &Resolver, raw: &str) -> Result<SecretKey, ReferenceError> {
        resolver.resolve(SecretPath::parse(raw)?, VersionSelector::current())
    }

    #[test]
    fn a_configured_group_wins_and_sets_prefix_and_region() {
        let resolver = Resolver::new([team_a()], Unlisted::Allow);
        let key = resolve(&resolver, "team-a/db").unwrap();
        assert_eq!(key.id.as_str(), "prod/team-a/db");
        assert_eq!(key.region(), Some("us-west-2"));
        assert_eq!(resolver.group_of(&key).unwrap(), &team_a());
    }

    #[test]
    fn an_arn_prefix_and_key_make_an_arn_with_or_without_the_last_colon() {
        let resolver = Resolver::default();
        let with = resolve(&resolver, &format!("{PREFIX}/MySecret-AbCdEf")).unwrap();
        let without =
            resolve(&resolver, &format!("{}/MySecret-AbCdEf", PREFIX.trim_end_matches(':'))).unwrap();
        assert_eq!(with, without);
        assert_eq!(with.id.as_str(), format!("{PREFIX}MySecret-AbCdEf"));
        assert_eq!(with.region(), Some("us-west-2"));
    }

    #[test]
    fn anything_else_is_a_name_unless_unlisted_groups_are_denied() {
        let allow = Resolver::new([team_a()], Unlisted::Allow);
        assert_eq!(resolve(&allow, "other/db").unwrap().id.as_str(), "other/db");
        let deny = Resolver::new([team_a()], Unlisted::Deny);
        for raw in ["other/db", "db", "prod/team-a/db", "prod%2Fteam-a/db", "%2Fname"] {
            assert_eq!(resolve(&deny, raw), Err(ReferenceError::UnlistedGroup), "{raw}");
        }
        assert!(resolve(&deny, "team-a/db").is_ok());
        assert!(resolve(&deny, &format!("{PREFIX}/db-AbCdEf")).is_ok());
    }

    #[test]
    fn only_a_name_that_begins_with_a_slash_may_follow_an_empty_segment() {
        let resolver = Resolver::new([team_a()], Unlisted::Allow);
        let key = resolve(&resolver, &format!("{PREFIX}//name-AbCdEf")).unwrap();
        assert_eq!(key.id.as_str(), format!("{PREFIX}/name-AbCdEf"));
        assert_eq!(resolve(&resolver, "other//db"), Err(ReferenceError::EmptySegment));
        assert_eq!(resolve(&resolver, "team-a//db"), Err(ReferenceError::EmptySegment));
    }

    #[test]
    fn a_key_belongs_to_its_group_however_it_is_spelt() {
        let resolver = Resolver::new([team_a()], Unlisted::Allow);
        let by_arn = resolve(&resolver, &format!("{PREFIX}prod/team-a/db-AbCdEf")).unwrap();
        assert_eq!(&*resolver.group_of(&by_arn).unwrap().name, "team-a");
        let elsewhere = by_arn.by_arn(&by_arn.id.as_str().replace("us-west-2", "eu-west-1")).unwrap();
        assert_eq!(resolver.group_of(&elsewhere), None);
        let other_region = resolve(&resolver, "prod/team-a/db").unwrap();
        assert_eq!(resolver.group_of(&other_region), None);
    }

    #[test]
    fn a_replica_differs_in_its_region_only() {
        let resolver = Resolver::new([team_a()], Unlisted::Allow);
        let by_name = resolve(&resolver, "team-a/db").unwrap().in_region("eu-west-1").unwrap();
        assert_eq!((by_name.id.as_str(), by_name.region()), ("prod/team-a/db", Some("eu-west-1")));
        let by_arn = resolve(&resolver, &format!("{PREFIX}/db-AbCdEf")).unwrap();
        let replica = by_arn.in_region("eu-west-1").unwrap();
        assert_eq!(replica.id.as_str(), format!("{PREFIX}db-AbCdEf").replace("us-west-2", "eu-west-1"));
        assert_eq!(replica.place().region.as_deref(), Some("eu-west-1"));
        assert_eq!(replica.in_region("us-west-2").unwrap(), by_arn);
    }

    #[test]
    fn a_colon_in_a_key_is_no_part_of_a_name() {
        let resolver = Resolver::new([team_a()], Unlisted::Allow);
        assert_eq!(resolve(&resolver, "team-a/a:b").unwrap_err().code(), "invalid_character");
        assert_eq!(resolve(&resolver, "other/a:b").unwrap_err().code(), "invalid_character");
    }

    #[test]
    fn an_id_of_awss_api_is_taken_as_it_is_and_names_no_group() {
        let resolver = Resolver::new([team_a()], Unlisted::Deny);
        let resolve = |id: &str, region: Option<&str>| {
            let origin = Origin { region: region.map(Into::into), role_arn: None };
            resolver.resolve_id(SecretId::parse(id).unwrap(), origin, VersionSelector::current())
        };
        assert_eq!(resolve("team-a/db", None), Err(ReferenceError::UnlistedGroup));
        assert_eq!(resolve("prod/team-a/db", None), Err(ReferenceError::UnlistedGroup), "another region");
        assert_eq!(resolve("prod/team-a/db", Some("us-west-2")).unwrap().id.as_str(), "prod/team-a/db");
        let arn = format!("{PREFIX}x-AbCdEf");
        assert_eq!(
            resolve(&arn, Some("eu-west-1")).unwrap().region(),
            Some("us-west-2"),
            "an ARN names its own"
        );
        let open = Resolver::new([team_a()], Unlisted::Allow);
        let id = SecretId::parse("team-a/db").unwrap();
        let key = open.resolve_id(id, Origin::default(), VersionSelector::current()).unwrap();
        assert_eq!(key.id.as_str(), "team-a/db");
    }
}
