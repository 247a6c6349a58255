//! `[[project]]`: which secrets are written to which files. Where a file lies is settled here, so that no two
//! secrets can land on one path and none outside its directory.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::load::{mode, path, word};
use crate::atomic_file;
use crate::document::{Section, Value};
use crate::secret::{Field, SecretId, SecretPath, VersionSelector};

/// The longest name of a file (`NAME_MAX` of limits.h).
const MAX_NAME: usize = 255;

/// The signals by which programs are told that something has changed.
const SIGNALS: [&str; 6] = ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2"];

const SECRETS: &str = "a list of \"<group>/<key>\" or { secret = \"<group>/<key>\", version = \"..\", field = \"..\", path = \"..\" }";

/// One directory of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectConfig {
    /// The directory.
    pub dir: PathBuf,
    /// Where in it a file lies that is given no path.
    pub layout: Layout,
    /// What is written there.
    pub secrets: Vec<ProjectedSecret>,
    /// The files' permission bits.
    pub mode: u32,
    /// Their owner, by name or number.
    pub owner: Option<String>,
    /// Their group, by name or number.
    pub group: Option<String>,
    /// Whether all files change in one step.
    pub together: bool,
    /// What is done after a change.
    pub on_change: Option<OnChange>,
}

/// Where a file lies that is given no path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Where flytekit looks: `<group>/[<version>/]<key>`, all in lower case.
    Flyte,
    /// `<group>/<key>` as written, or the name.
    Plain,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectedSecret {
    /// The secret, as `<group>/<key>`, as in the URL path.
    pub secret: String,
    /// Its version: an id if it looks like one, else a staging label.
    pub version: Option<String>,
    /// One field of it.
    pub field: Option<String>,
    /// Where the file is to lie, if it was said.
    pub path: Option<String>,
    /// Where it lies, below the directory.
    pub target: String,
}

/// What is done after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnChange {
    /// A program is run with these arguments.
    Command(Vec<String>),
    /// A signal is sent to the process whose number is in a file.
    Signal {
        /// Its name, such as `HUP`.
        signal: &'static str,
        /// The file.
        pid_file: PathBuf,
    },
}

impl ProjectedSecret {
    /// The version that is meant: 32 to 64 characters of a UUID are an id, all else is a staging label.
    pub fn selector(&self) -> VersionSelector {
        selector(self.version.as_deref()).unwrap_or_default()
    }
}

fn selector(version: Option<&str>) -> Option<VersionSelector> {
    let is_id = |text: &str| {
        (32..=64).contains(&text.len())
            && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
    };
    match version {
        Some(id) if is_id(id) => VersionSelector::new(Some(id), None).ok(),
        stage => VersionSelector::new(None, stage).ok(),
    }
}

/// The name, without `SIG`, of a signal by which programs are told of a change: `HUP`, `INT`, `QUIT`, `TERM`, `USR1` or
/// `USR2`, with or without `SIG`.
pub fn signal_name(text: &str) -> Option<&'static str> {
    let name = text.strip_prefix("SIG").unwrap_or(text);
    SIGNALS.into_iter().find(|known| *known == name)
}

/// Reads one `[[project]]`.
pub(super) fn project(section: &Section<'_>) -> Option<ProjectConfig> {
    let dir = section.entry("dir", "the absolute path of a directory, without `.` or `..`", directory);
    let layout = section.get("layout", "\"flyte\" or \"plain\"", |value| match value.text()? {
        "flyte" => Some(Layout::Flyte),
        "plain" => Some(Layout::Plain),
        _ => None,
    });
    let layout = layout.unwrap_or(Layout::Plain);
    let together = section.get("together", "true or false", Value::boolean).unwrap_or_default();
    let items = section.texts_or_sections("secrets", SECRETS);
    let secrets: Vec<_> = items.iter().filter_map(|(text, item)| projected(layout, *text, item)).collect();
    let config = ProjectConfig {
        layout,
        mode: section.get("mode", "octal permissions such as \"0444\"", mode).unwrap_or(0o444),
        owner: section.get("owner", "a user's name or number", word),
        group: section.get("group", "a group's name or number", word),
        together,
        on_change: on_change(&section.section("on_change")),
        dir: dir.as_ref().map(|dir| dir.value.clone()).unwrap_or_default(),
        secrets,
    };
    section.refuse_the_rest();
    if items.is_empty() {
        section.complain(&format!("it needs secrets: {SECRETS}"));
    }
    if together && config.secrets.iter().any(|file| file.target.starts_with("..")) {
        section.complain("with together = true, names at the top that begin with `..` are the daemon's own");
    }
    if dir.is_none() {
        section.complain("it needs a dir: the absolute path of a directory");
        return None;
    }
    Some(config)
}

fn projected(layout: Layout, text: Option<&str>, item: &Section<'_>) -> Option<ProjectedSecret> {
    let asked = "\"<group>/<key>\", as in the URL path";
    let known =
        |value: Value<'_>| value.text().filter(|raw| SecretPath::parse(raw).is_ok()).map(str::to_owned);
    let (mut version, mut field, mut explicit) = (None, None, None);
    let secret = match text {
        Some(text) => Some(text.to_owned()).filter(|raw| SecretPath::parse(raw).is_ok()),
        None => {
            version = item.get("version", "a version id or a staging label", |value| {
                value.text().filter(|text| selector(Some(text)).is_some()).map(str::to_owned)
            });
            field = item.get("field", "a top-level key, or a JSON Pointer that starts with /", |value| {
                value.text().filter(|text| Field::parse(text).is_some()).map(str::to_owned)
            });
            explicit = item.get("path", "a relative path, without `.`, `..` or empty parts", |value| {
                value.text().filter(|path| check_target(path).is_ok()).map(str::to_owned)
            });
            let secret = item.get("secret", asked, known);
            item.refuse_the_rest();
            secret
        }
    };
    let Some(secret) = secret else {
        item.complain(&format!("accepted: {asked}"));
        return None;
    };
    let target = match &explicit {
        Some(path) => Ok(path.clone()),
        None => target(layout, &SecretPath::parse(&secret).ok()?, version.as_deref()),
    };
    match target.and_then(|target| check_target(&target).map(|()| target)) {
        Ok(target) => Some(ProjectedSecret { secret, version, field, path: explicit, target }),
        Err(what) => {
            item.complain(&format!("{what}; give it a path of its own"));
            None
        }
    }
}

/// Where a secret lies that is given no path.
fn target(layout: Layout, secret: &SecretPath, version: Option<&str>) -> Result<String, &'static str> {
    let (group, key) = match secret {
        SecretPath::Grouped { group, key, .. } => (Some(group.as_str()), key.as_str()),
        SecretPath::Id(id) => group_and_name(id),
    };
    if key.starts_with('/') {
        return Err("its name begins with `/`, which leaves the group's directory");
    }
    match (layout, group) {
        (Layout::Plain, Some(group)) => Ok(format!("{group}/{key}")),
        (Layout::Plain, None) => Ok(key.to_owned()),
        (Layout::Flyte, None) => Err("flytekit looks for a group and a key, and this has no group"),
        (Layout::Flyte, Some(group)) => {
            let version = version.map(|version| format!("{version}/")).unwrap_or_default();
            Ok(format!("{group}/{version}{key}").to_lowercase())
        }
    }
}

/// A pasted ARN, cut as Flyte cuts it: the group is all up to `:secret:`.
fn group_and_name(id: &SecretId) -> (Option<&str>, &str) {
    let name = id.name();
    let group = id.is_arn().then(|| &id.as_str()[..id.as_str().len() - name.len()]);
    (group, name)
}

/// Whether a path stays below its directory and can be made there.
fn check_target(path: &str) -> Result<(), &'static str> {
    for part in path.split('/') {
        match part {
            "" => return Err("its path has an empty part"),
            "." | ".." => return Err("its path has a part that is `.` or `..`"),
            part if part.len() > MAX_NAME => return Err("its path has a part of more than 255 bytes"),
            part if part.starts_with(atomic_file::PREFIX) => {
                return Err(
                    "its path has a part that begins with `.smcached-`, as files do that are being written",
                );
            }
            part if part.contains('\0') => return Err("its path has a NUL byte"),
            _ => {}
        }
    }
    Ok(())
}

fn on_change(section: &Section<'_>) -> Option<OnChange> {
    let command = section.entry("command", "a list: an absolute path and arguments", |value| {
        value.texts().filter(|words| words.first().is_some_and(|program| program.starts_with('/')))
    });
    let signal =
        section.entry("signal", "\"HUP\", \"INT\", \"QUIT\", \"TERM\", \"USR1\" or \"USR2\"", |value| {
            signal_name(value.text()?)
        });
    let pid_file = section.entry("pid_file", "the path of a file", path);
    section.refuse_the_rest();
    match (command, signal, pid_file) {
        (None, None, None) if section.is_there() => {
            section.complain("it needs a command, or a signal and a pid_file");
            None
        }
        (command, None, None) => command.map(|command| OnChange::Command(command.value)),
        (None, Some(signal), Some(pid_file)) => {
            Some(OnChange::Signal { signal: signal.value, pid_file: pid_file.value })
        }
        _ => {
            section.complain("give either a command, or both a signal and a pid_file");
            None
        }
    }
}

fn directory(value: Value<'_>) -> Option<PathBuf> {
    let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
    let has_dot = |text: &str| text.split('/').any(|part| part == ".");
    let text = value.text().filter(|text| !has_dot(text))?;
    path(value)
        .filter(|_| text.len() > 1 && text.starts_with('/') && Path::new(text).components().all(is_plain))
}

/// No two files may lie on one path, nor one where another's directory is.
pub(super) fn check_targets(root: &Section<'_>, projects: &[ProjectConfig]) {
    let mut files: BTreeMap<PathBuf, &str> = BTreeMap::new();
    let all = projects.iter().flat_map(|project| project.secrets.iter().map(move |file| (project, file)));
    for (project, file) in all {
        let place = project.dir.join(&file.target);
        if let Some(other) = files.insert(place.clone(), &file.secret) {
            let place = place.display();
            root.complain(&format!(
                "project: {other} and {} land on one path, {place}; give one of them a path of its own",
                file.secret
            ));
        }
    }
    for (place, secret) in &files {
        let above = place.ancestors().skip(1).find_map(|above| Some((above, files.get(above)?)));
        if let Some((above, other)) = above {
            let above = above.display();
            root.complain(&format!(
                "project: {secret} needs the directory {above}, where the file of {other} lies"
            ));
        }
    }
    for (index, project) in projects.iter().enumerate() {
        let others = projects.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
        let inside = others.map(|other| &other.dir).find(|dir| dir.starts_with(&project.dir));
        if let Some(dir) = inside.filter(|_| project.together) {
            let (dir, outer) = (dir.display(), project.dir.display());
            root.complain(&format!(
                "project: {outer} is switched as a whole (together = true), so no other [[project]] may lie in it: {dir}"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::Config;

    const GROUP: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

    fn load(lines: &str) -> Result<Vec<ProjectConfig>, String> {
        let text = format!("[[project]]\ndir = \"/d\"\n{lines}");
        Config::parse("t.toml", &text).map(|config| config.projects).map_err(|errors| errors.to_string())
    }

    fn targets(lines: &str) -> Vec<String> {
        let projects = load(lines).unwrap_or_else(|errors| panic!("{errors}"));
        projects.iter().flat_map(|project| &project.secrets).map(|file| file.target.clone()).collect()
    }

    #[test]
    fn flytes_layout_is_where_flytekit_looks() {
        let lines = format!(
            "layout = \"flyte\"\nsecrets = [\"{GROUP}/MySecret-AbCdEf\", \"{GROUP}team/Db-AbCdEf\", \"Team-A/Key\", \
             {{ secret = \"Team-A/Key\", version = \"AWSPREVIOUS\" }}, {{ secret = \"Name\", path = \"Free/Name\" }}]"
        );
        let expected = [
            format!("{GROUP}/mysecret-abcdef"),
            format!("{GROUP}/team/db-abcdef"),
            "team-a/key".to_owned(),
            "team-a/awsprevious/key".to_owned(),
            "Free/Name".to_owned(),
        ];
        assert_eq!(targets(&lines), expected);
    }

    #[test]
    fn the_plain_layout_keeps_names_as_they_are() {
        let lines = "secrets = [\"Team-A/Db\", \"Name\", \"a%2Fb/c\", { secret = \"x/y\", field = \"/a/0\", path = \"p\" }]";
        assert_eq!(targets(lines), ["Team-A/Db", "Name", "a/b/c", "p"]);
    }

    #[test]
    fn a_version_is_an_id_if_it_looks_like_one_and_else_a_stage() {
        let of = |version: &str| selector(Some(version)).unwrap();
        let id = "00000000-0000-4000-8000-000000000001";
        assert_eq!(of(id), VersionSelector::new(Some(id), None).unwrap());
        assert_eq!(of("AWSPREVIOUS"), VersionSelector::new(None, Some("AWSPREVIOUS")).unwrap());
        assert_eq!(of("abc"), VersionSelector::new(None, Some("abc")).unwrap());
    }

    #[test]
    fn whatever_cannot_be_a_file_of_its_own_is_refused() {
        let long = "x".repeat(256);
        let cases = [
            ("secrets = []".to_owned(), "it needs secrets"),
            ("secrets = [\"a/b\", \"a/b\"]".to_owned(), "land on one path, /d/a/b"),
            ("layout = \"flyte\"\nsecrets = [\"A/b\", \"a/B\"]".to_owned(), "land on one path, /d/a/b"),
            ("secrets = [\"a/b\", \"a/b/c\"]".to_owned(), "needs the directory /d/a/b"),
            ("secrets = [\"g//name\"]".to_owned(), "begins with `/`"),
            ("secrets = [\"%2Fname\"]".to_owned(), "begins with `/`"),
            ("layout = \"flyte\"\nsecrets = [\"name\"]".to_owned(), "has no group"),
            ("secrets = [\"a/../b\"]".to_owned(), "secrets[0]: accepted: \"<group>/<key>\""),
            (format!("secrets = [\"a/{long}\"]"), "more than 255 bytes"),
            ("secrets = [{ secret = \"a/b\", path = \"/x\" }]".to_owned(), "secrets[0].path"),
            ("secrets = [{ secret = \"a/b\", path = \"x/../y\" }]".to_owned(), "secrets[0].path"),
            ("secrets = [{ secret = \"a/b\", path = \"\" }]".to_owned(), "secrets[0].path"),
            ("secrets = [{ path = \"x\" }]".to_owned(), "secrets[0]: accepted"),
            ("secrets = [{ secret = \"a/b\", filed = \"x\" }]".to_owned(), "did you mean field?"),
            ("secrets = [7]".to_owned(), "secrets[0]: accepted: a list of"),
            ("secrets = \"a/b\"".to_owned(), "accepted: a list of"),
            ("secrets = [\"a/.smcached-x\"]".to_owned(), "files do that are being written"),
            ("together = true\nsecrets = [\"..x/b\"]".to_owned(), "the daemon's own"),
            ("secrets = [\"a/b\"]\non_change = { command = [\"reload\"] }".to_owned(), "an absolute path"),
            (
                "secrets = [\"a/b\"]\non_change = { signal = \"KILL\", pid_file = \"/x\" }".to_owned(),
                "accepted: \"HUP\"",
            ),
            (
                "secrets = [\"a/b\"]\non_change = { signal = \"HUP\" }".to_owned(),
                "both a signal and a pid_file",
            ),
            ("secrets = [\"a/b\"]\non_change = {}".to_owned(), "it needs a command"),
            (
                "secrets = [\"a/b\"]\n[[project]]\ndir = \"relative\"\nsecrets = [\"a/b\"]".to_owned(),
                "project[1].dir",
            ),
            (
                "secrets = [\"a/b\"]\n[[project]]\ndir = \"/d/./x\"\nsecrets = [\"a/b\"]".to_owned(),
                "project[1].dir",
            ),
            (
                "secrets = [\"a/b\"]\n[[project]]\ndir = \"/d/a\"\nsecrets = [\"b\"]".to_owned(),
                "land on one path, /d/a/b",
            ),
            (
                "together = true\nsecrets = [\"a/b\"]\n[[project]]\ndir = \"/d/x\"\nsecrets = [\"c\"]"
                    .to_owned(),
                "switched as a whole",
            ),
        ];
        for (lines, expected) in cases {
            let errors = load(&lines).expect_err(&lines);
            assert!(errors.contains(expected), "{lines}: {errors}");
        }
    }

    proptest! {
        #[test]
        fn no_file_ever_lies_outside_its_directory(secret in "[a-zA-Z0-9/._%2F+-]{1,40}", path in proptest::option::of("[a-z./]{0,12}"), flyte: bool) {
            let layout = if flyte { "flyte" } else { "plain" };
            let path = path.map(|path| format!(", path = {path:?}")).unwrap_or_default();
            let lines = format!("layout = {layout:?}\nsecrets = [{{ secret = {secret:?}{path} }}]");
            if let Ok(projects) = load(&lines) {
                let target = Path::new(&projects[0].secrets[0].target);
                prop_assert!(target.components().all(|part| matches!(part, Component::Normal(_))));
                prop_assert!(target.is_relative());
            }
        }
    }
}
