//! Which version of a secret is meant.

use thiserror::Error;

/// The staging label that AWS moves to the newest version at a rotation.
pub const CURRENT_STAGE: &str = "AWSCURRENT";

/// Why a version id or stage is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum VersionSelectorError {
    /// Empty, too long or with control characters.
    #[error("a version id has 1 to 64 visible ASCII characters")]
    Id,
    /// Empty, too long or with control characters.
    #[error("a version stage has 1 to 256 visible ASCII characters")]
    Stage,
}

/// A version by id, by staging label, or both; without either, the one that is `AWSCURRENT`. Or no version, but what
/// `DescribeSecret` says of them all: it is held and refreshed as versions are.
///
/// Asking for `AWSCURRENT` by name is the same as asking for nothing, so that both share one entry
/// (<https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetSecretValue.html>).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct VersionSelector {
    id: Option<Box<str>>,
    stage: Option<Box<str>>,
    is_description: bool,
}

impl VersionSelector {
    /// The version that carries [`CURRENT_STAGE`].
    pub fn current() -> Self {
        Self::default()
    }

    /// What is known of the secret besides its value.
    pub fn description() -> Self {
        Self { is_description: true, ..Self::default() }
    }

    /// A selector from what a caller gave.
    pub fn new(id: Option<&str>, stage: Option<&str>) -> Result<Self, VersionSelectorError> {
        let visible = |text: &str, longest: usize| {
            (1..=longest).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        };
        if !id.is_none_or(|id| visible(id, 64)) {
            return Err(VersionSelectorError::Id);
        }
        if !stage.is_none_or(|stage| visible(stage, 256)) {
            return Err(VersionSelectorError::Stage);
        }
        let stage = stage.filter(|stage| id.is_some() || *stage != CURRENT_STAGE);
        Ok(Self { id: id.map(Into::into), stage: stage.map(Into::into), is_description: false })
    }

    /// Whether this is the version that carries [`CURRENT_STAGE`].
    pub fn is_current(&self) -> bool {
        self.id.is_none() && self.stage.is_none() && !self.is_description
    }

    /// Whether this is no version, but the secret's description.
    pub fn is_description(&self) -> bool {
        self.is_description
    }

    /// The version id that was asked for.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// The stage to send upstream: the one asked for, [`CURRENT_STAGE`] where nothing was, none with an id alone.
    pub fn stage(&self) -> Option<&str> {
        match (&self.stage, &self.id) {
            (Some(stage), _) => Some(stage),
            (None, None) => Some(CURRENT_STAGE),
            (None, Some(_)) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explicit_current_is_the_default() {
        let explicit = VersionSelector::new(None, Some("AWSCURRENT")).unwrap();
        assert_eq!(explicit, VersionSelector::current());
        assert_eq!(explicit.stage(), Some("AWSCURRENT"));
    }

    #[test]
    fn an_id_alone_sends_no_stage_and_both_are_kept() {
        let by_id = VersionSelector::new(Some("v1"), None).unwrap();
        assert_eq!((by_id.id(), by_id.stage()), (Some("v1"), None));
        let both = VersionSelector::new(Some("v1"), Some("AWSCURRENT")).unwrap();
        assert_eq!((both.id(), both.stage()), (Some("v1"), Some("AWSCURRENT")));
    }

    #[test]
    fn empty_long_or_invisible_text_is_refused() {
        assert_eq!(VersionSelector::new(Some(""), None), Err(VersionSelectorError::Id));
        assert_eq!(VersionSelector::new(Some(&"a".repeat(65)), None), Err(VersionSelectorError::Id));
        assert_eq!(VersionSelector::new(None, Some("a b")), Err(VersionSelectorError::Stage));
        assert_eq!(VersionSelector::new(None, Some(&"a".repeat(257))), Err(VersionSelectorError::Stage));
    }
}
