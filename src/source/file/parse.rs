//! The format of the file, and how an id finds its secret in it.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::document::{Complaints, Document, Quoting, Section, Value};
use crate::secret::{
    CURRENT_STAGE, SecretDescription, SecretId, SecretValue, SecretVersion, VersionSelector,
};

/// The account and region of made-up ARNs.
const MADE_UP_PREFIX: &str = "arn:aws:secretsmanager:us-east-1:000000000000:secret:";

/// The hyphen and six characters that end a complete ARN.
const SUFFIX: usize = 7;

/// All secrets of a file, as they were at one moment.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    secrets: Vec<Vec<SecretVersion>>,
    /// Names, complete ARNs and ARNs without their random characters.
    ids: HashMap<String, usize>,
}

impl Snapshot {
    pub(super) fn parse(file: &str, text: &str, version_ids: &VersionIds) -> Result<Self, Complaints> {
        Document::read(file, text, Quoting::Forbidden, |root| {
            let mut snapshot = Self::default();
            for section in root.sections("secret") {
                if let Some(versions) = secret(&section, version_ids) {
                    snapshot.add(&section, versions);
                }
            }
            Some(snapshot)
        })
    }

    pub(super) fn len(&self) -> usize {
        self.secrets.len()
    }

    /// As AWS finds it: a version must have the id and the stage that are asked for, if they are.
    pub(super) fn find(&self, id: &SecretId, selector: &VersionSelector) -> Option<&SecretVersion> {
        let versions = &self.secrets[*self.ids.get(id.as_str())?];
        versions.iter().find(|version| {
            selector.id().is_none_or(|id| *version.version_id == *id)
                && selector.stage().is_none_or(|stage| version.version_stages.iter().any(|has| has == stage))
        })
    }

    /// What the file tells of a secret besides its values.
    pub(super) fn describe(&self, id: &SecretId) -> Option<SecretDescription> {
        let versions: Vec<_> = self.secrets[*self.ids.get(id.as_str())?].iter().collect();
        SecretDescription::of_versions(&versions)
    }

    fn add(&mut self, section: &Section<'_>, versions: Vec<SecretVersion>) {
        let Some(first) = versions.first() else { return };
        let (name, arn) = (first.name.clone(), first.arn.clone());
        if self.ids.contains_key(&arn) || (section.is_there() && self.ids.contains_key(&name)) {
            section.complain("its name or arn is that of another secret in this file");
            return;
        }
        let at = self.secrets.len();
        // A complete ARN may look like another one without its random characters: the complete one wins.
        self.ids.entry(arn[..arn.len() - SUFFIX].to_owned()).or_insert(at);
        self.ids.insert(arn, at);
        self.ids.insert(name, at);
        self.secrets.push(versions);
    }
}

/// Version ids of values that are given none: the same while the value is, different when it changes, and
/// telling nothing about it, since the key of the hash is random and never leaves the process.
#[derive(Debug, Default)]
pub(super) struct VersionIds {
    high: RandomState,
    low: RandomState,
}

impl VersionIds {
    /// In the shape of a UUID, as AWS's are.
    fn of(&self, name: &str, value: &SecretValue) -> String {
        let hash = |state: &RandomState| {
            let mut hasher = state.build_hasher();
            hasher.write(name.as_bytes());
            hasher.write_u8(u8::from(value.is_text()));
            hasher.write(value.expose());
            hasher.finish()
        };
        let hex = format!("{:016x}{:016x}", hash(&self.high), hash(&self.low));
        format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
    }
}

fn secret(section: &Section<'_>, version_ids: &VersionIds) -> Option<Vec<SecretVersion>> {
    let id = |is_arn: bool| {
        move |value: Value<'_>| {
            SecretId::parse(value.text()?)
                .ok()
                .filter(|id| id.is_arn() == is_arn)
                .map(|id| id.as_str().to_owned())
        }
    };
    let name = section.entry("name", "a name of letters, digits and /_+=.@-", id(false));
    let arn = section.entry("arn", "a complete ARN, which ends in a hyphen and six characters", |value| {
        id(true)(value).filter(|arn| {
            arn.rsplit_once('-')
                .is_some_and(|(head, random)| random.len() == SUFFIX - 1 && !head.ends_with(':'))
        })
    });
    let given = value(section);
    let sections = section.sections("version");
    let whole = given.map(|value| (value, None, vec![CURRENT_STAGE.to_owned()]));
    let single = sections.len() == 1;
    let versions: Vec<_> = sections.iter().filter_map(|section| version(section, single)).collect();
    section.refuse_the_rest();
    let versions = match (whole, sections.is_empty()) {
        (Some(whole), true) => vec![whole],
        (None, false) => versions,
        (Some(_), false) => {
            section.complain("it has a value and versions; give one or the other");
            return None;
        }
        (None, true) => {
            section.complain("it needs one of string, binary and [[secret.version]]");
            return None;
        }
    };
    let (name, arn) = match (name.map(|name| name.value), arn.map(|arn| arn.value)) {
        (None, None) => {
            section.complain("it needs a name or an arn");
            return None;
        }
        (Some(name), None) => {
            let arn = made_up_arn(&name);
            (name, arn)
        }
        (name, Some(arn)) => {
            let id = SecretId::parse(&arn).ok()?;
            let own = &id.name()[..id.name().len() - SUFFIX];
            if name.as_deref().is_some_and(|name| name != own) {
                section.complain("its name is not the one in its arn");
                return None;
            }
            (own.to_owned(), arn)
        }
    };
    let mut seen: Vec<SecretVersion> = Vec::new();
    for (value, id, stages) in versions {
        let version_id = id.unwrap_or_else(|| version_ids.of(&name, &value));
        let is_taken = |known: &SecretVersion| {
            *known.version_id == *version_id
                || known.version_stages.iter().any(|stage| stages.contains(stage))
        };
        if seen.iter().any(is_taken) {
            section.complain("two of its versions have the same id or stage");
            return None;
        }
        seen.push(SecretVersion {
            arn: arn.clone(),
            name: name.clone(),
            version_id: version_id.into(),
            version_stages: stages,
            created_date: None,
            value,
        });
    }
    Some(seen)
}

/// One `[[secret.version]]`: its value, id and stages.
fn version(section: &Section<'_>, single: bool) -> Option<(SecretValue, Option<String>, Vec<String>)> {
    let given = value(section);
    let id = section.get("id", "1 to 64 visible characters", |value| {
        value.text().filter(|id| VersionSelector::new(Some(id), None).is_ok()).map(str::to_owned)
    });
    let stages = section.get("stages", "a list of staging labels such as [\"AWSCURRENT\"]", |value| {
        value
            .texts()
            .filter(|stages| stages.iter().all(|stage| VersionSelector::new(None, Some(stage)).is_ok()))
    });
    section.refuse_the_rest();
    let stages = stages.unwrap_or_else(|| if single { vec![CURRENT_STAGE.to_owned()] } else { Vec::new() });
    match given {
        Some(value) => Some((value, id, stages)),
        None => {
            section.complain("it needs one of string and binary");
            None
        }
    }
}

fn value(section: &Section<'_>) -> Option<SecretValue> {
    let text = section.entry("string", "a string", |value| value.text().map(str::to_owned));
    let binary = section.entry("binary", "base64", |value| STANDARD.decode(value.text()?).ok());
    match (text, binary) {
        (Some(_), Some(binary)) => {
            section.contradicts("binary", &binary, "it has a string too; give one or the other");
            None
        }
        (Some(text), None) => Some(SecretValue::text(text.value)),
        (None, Some(binary)) => Some(SecretValue::binary(binary.value)),
        (None, None) => None,
    }
}

/// A complete ARN whose six characters follow from the name (FNV-1a), so that it is the same everywhere.
fn made_up_arn(name: &str) -> String {
    const LETTERS: &[u8; 52] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let mut arn = format!("{MADE_UP_PREFIX}{name}-");
    for _ in 1..SUFFIX {
        arn.push(char::from(LETTERS[usize::try_from(hash % 52).unwrap_or_default()]));
        hash /= 52;
    }
    arn
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn parse(text: &str) -> Result<Snapshot, Complaints> {
        Snapshot::parse("s.toml", text, &VersionIds::default())
    }

    fn find<'a>(
        snapshot: &'a Snapshot,
        id: &str,
        version: Option<&str>,
        stage: Option<&str>,
    ) -> Option<&'a [u8]> {
        let selector = VersionSelector::new(version, stage).unwrap();
        let found = snapshot.find(&SecretId::parse(id).unwrap(), &selector)?;
        Some(found.value.expose())
    }

    #[test]
    fn a_secret_is_found_by_every_form_of_its_id() {
        let text = format!("[[secret]]\narn = \"{ARN}team/db-AbCdEf\"\nstring = \"x\"\n");
        let snapshot = parse(&text).unwrap();
        for id in ["team/db".to_owned(), format!("{ARN}team/db-AbCdEf"), format!("{ARN}team/db")] {
            assert_eq!(find(&snapshot, &id, None, None), Some(&b"x"[..]), "{id}");
        }
        assert_eq!(find(&snapshot, "team/db-AbCdEf", None, None), None);
    }

    #[test]
    fn versions_are_chosen_by_id_stage_or_both() {
        let text = r#"
            [[secret]]
            name = "a"
            [[secret.version]]
            id = "v2"
            stages = ["AWSCURRENT"]
            string = "new"
            [[secret.version]]
            id = "v1"
            stages = ["AWSPREVIOUS"]
            string = "old"
        "#;
        let snapshot = parse(text).unwrap();
        let cases = [
            (None, None, Some("new")),
            (None, Some("AWSPREVIOUS"), Some("old")),
            (Some("v1"), None, Some("old")),
            (Some("v1"), Some("AWSPREVIOUS"), Some("old")),
            (Some("v1"), Some("AWSCURRENT"), None),
            (Some("v3"), None, None),
        ];
        for (version, stage, expected) in cases {
            assert_eq!(
                find(&snapshot, "a", version, stage),
                expected.map(str::as_bytes),
                "{version:?} {stage:?}"
            );
        }
    }

    #[test]
    fn a_version_id_follows_the_value_and_tells_nothing_about_it() {
        let ids = VersionIds::default();
        let of = |value: &str| ids.of("a", &SecretValue::text(value.to_owned()));
        assert_eq!(of("x"), of("x"));
        assert_ne!(of("x"), of("y"));
        assert_ne!(of("x"), VersionIds::default().of("a", &SecretValue::text("x".to_owned())));
        assert_eq!(of("x").len(), 36);
    }

    #[test]
    fn a_made_up_arn_is_complete_and_always_the_same() {
        let arn = made_up_arn("team/db");
        assert_eq!(arn, made_up_arn("team/db"));
        let id = SecretId::parse("team/db").unwrap();
        assert!(
            id.is_answered_by(&arn, "team/db") && arn.len() == MADE_UP_PREFIX.len() + "team/db".len() + 7
        );
    }

    #[test]
    fn what_is_wrong_is_said_without_values() {
        let cases = [
            ("[[secret]]\nstring = \"x\"", "needs a name or an arn"),
            ("[[secret]]\nname = \"a\"", "needs one of string, binary"),
            ("[[secret]]\nname = \"a b\"\nstring = \"x\"", "accepted: a name"),
            ("[[secret]]\narn = \"arn:aws:s3:::x\"\nstring = \"x\"", "accepted: a complete ARN"),
            ("[[secret]]\nname = \"a\"\nstring = \"x\"\nbinary = \"eA==\"", "give one or the other"),
            ("[[secret]]\nname = \"a\"\nbinary = \"not base64\"", "accepted: base64"),
            (
                "[[secret]]\nname = \"a\"\nstring = \"x\"\n[[secret.version]]\nstring = \"y\"",
                "a value and versions",
            ),
            (
                "[[secret]]\nname = \"a\"\nstring = \"x\"\n[[secret]]\nname = \"a\"\nstring = \"y\"",
                "another secret",
            ),
            ("[[secret]]\nname = \"a\"\nvalue = \"x\"", "unknown key"),
            (
                "[[secret]]\nname = \"a\"\n[[secret.version]]\nid = \"1\"\nstring = \"x\"\n[[secret.version]]\nid = \"1\"\nstring = \"y\"",
                "same id or stage",
            ),
        ];
        for (text, expected) in cases {
            let complaints = parse(text).unwrap_err().to_string();
            assert!(complaints.contains(expected), "{text}: {complaints}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "(\\[\\[secret\\]\\]\n)?[a-z]{0,8} ?= ?.{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn every_value_comes_back_as_it_is(value: String, bytes: Vec<u8>) {
            let quoted = toml::Value::from(value.as_str());
            let text = format!(
                "[[secret]]\nname = \"a\"\nstring = {quoted}\n[[secret]]\nname = \"b\"\nbinary = \"{}\"",
                STANDARD.encode(&bytes)
            );
            let snapshot = parse(&text).unwrap();
            prop_assert_eq!(find(&snapshot, "a", None, None), Some(value.as_bytes()));
            prop_assert_eq!(find(&snapshot, "b", None, None), Some(bytes.as_slice()));
        }
    }
}
