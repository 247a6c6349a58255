//! Imports point one way. This reads the source and fails on any arrow that the map does not allow.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our modules each module may import. `app` and `cli` import everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("secret", &[]),
    ("metrics", &[]),
    ("lifecycle", &[]),
    ("telemetry", &[]),
    ("units", &[]),
    ("atomic_file", &["folder"]),
    ("folder", &[]),
    ("audit", &["folder", "metrics"]),
    ("document", &[]),
    ("file_watch", &[]),
    ("hardening", &[]),
    ("config", &["atomic_file", "document", "secret", "units"]),
    ("source", &["document", "file_watch", "hardening", "secret"]),
    ("cache", &["source", "secret", "metrics"]),
    ("access", &["atomic_file", "file_watch", "folder", "secret"]),
    ("net", &["folder", "lifecycle"]),
    ("takeover", &["cache", "net", "secret"]),
    ("projection", &["atomic_file", "cache", "folder", "metrics", "net", "secret", "source"]),
    ("server", &["access", "audit", "cache", "lifecycle", "metrics", "net", "secret", "source", "units"]),
    ("ops", &["cache", "lifecycle", "metrics", "net", "units"]),
    (
        "app",
        &[
            "access",
            "audit",
            "cache",
            "config",
            "file_watch",
            "hardening",
            "lifecycle",
            "metrics",
            "net",
            "ops",
            "projection",
            "secret",
            "server",
            "source",
            "takeover",
        ],
    ),
    (
        "cli",
        &[
            "app",
            "atomic_file",
            "config",
            "folder",
            "hardening",
            "net",
            "ops",
            "secret",
            "source",
            "telemetry",
            "units",
        ],
    ),
    // Compiled for fuzzing and for tests only.
    (
        "fuzzing",
        &[
            "access",
            "audit",
            "cache",
            "cli",
            "config",
            "lifecycle",
            "metrics",
            "net",
            "secret",
            "server",
            "source",
            "units",
        ],
    ),
];

/// Crates that only some modules may know.
const CONFINED: &[(&str, &[&str])] = &[
    ("aws_", &["source/aws"]),
    ("hyper", &["net", "server", "ops", "fuzzing"]),
    ("http_body_util", &["net", "server", "ops"]),
    ("moka", &["cache/store.rs", "cache/refusals.rs"]),
    ("toml", &["config", "document.rs"]),
    ("clap", &["cli", "main.rs"]),
    ("nix", &["net", "projection", "cli/exec", "folder.rs", "hardening.rs"]),
    ("listenfd", &["net"]),
    ("sd_notify", &["lifecycle"]),
    ("rustix", &["takeover"]),
    ("tracing_subscriber", &["telemetry.rs"]),
    ("prometheus", &["metrics.rs", "net"]),
];

#[test]
fn imports_follow_the_map() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    for (path, code) in sources() {
        let Some(module) = module_of(&path) else { continue };
        let allowed = allowed.get(module).unwrap_or_else(|| panic!("{module} is not on the map"));
        for imported in imported_modules(&code) {
            seen.insert((module.to_owned(), imported.clone()));
            if imported != module && !allowed.contains(&imported.as_str()) {
                wrong.push(format!("{}: {module} -> {imported}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the map does not allow:\n{}", wrong.join("\n"));
    assert!(seen.contains(&("app".to_owned(), "cache".to_owned())), "the scan finds no imports at all");
    for (module, imports) in ARROWS {
        for import in *imports {
            let arrow = ((*module).to_owned(), (*import).to_owned());
            assert!(seen.contains(&arrow), "the map allows {module} -> {import}, which nobody needs");
        }
    }
}

#[test]
fn crates_stay_where_they_belong() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let inside = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        for (name, places) in CONFINED {
            let is_used = without_comments(before_tests(&code)).any(|line| mentions_crate(line, name));
            let is_allowed = places.iter().any(|place| inside.starts_with(place)) || is_test(&path);
            if is_used && !is_allowed {
                wrong.push(format!("{inside} uses {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "crates outside their place:\n{}", wrong.join("\n"));
}

#[test]
fn secrets_leave_only_by_name() {
    // Every place where a value is taken out of its wrapper; a new one is a decision, not an accident.
    let exposing: BTreeSet<String> = sources()
        .into_iter()
        .filter(|(path, code)| !is_test(path) && before_tests(code).contains(".expose()"))
        .map(|(path, _)| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned())
        .collect();
    // The ways in send it; `init` and projections write it to files; the file source hashes it into a version id; the next
    // process gets it.
    let expected = BTreeSet::from(
        [
            "cli/init/fetch.rs",
            "projection/mod.rs",
            "server/api/metadata.rs",
            "server/api/native.rs",
            "server/api/sdk.rs",
            "source/file/parse.rs",
            "takeover/entries.rs",
        ]
        .map(str::to_owned),
    );
    assert_eq!(exposing, expected);
}

#[test]
fn what_may_hold_a_value_does_not_derive_debug() {
    // Both show their bytes: whoever holds them says itself how it is shown.
    const SHOWING: &[&str] = &["Bytes", "Zeroizing<"];
    // An entity tag is made of a version id.
    const HARMLESS: &[(&str, &str)] = &[("cache/slot.rs", "pub etag: Bytes,")];
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for (path, code) in sources() {
        let inside = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let code: Vec<&str> = without_comments(before_tests(&code)).collect();
        for (at, line) in code.iter().enumerate() {
            if !(line.trim_start().starts_with("#[derive(") && line.contains("Debug")) {
                continue;
            }
            seen += 1;
            let indent = line.len() - line.trim_start().len();
            let is_end =
                |line: &&&str| line.len() - line.trim_start().len() == indent && line.ends_with(['}', ';']);
            let length = code[at..].iter().position(|line| is_end(&line)).unwrap_or(0);
            for field in &code[at..=at + length] {
                let field = field.trim();
                let is_harmless = HARMLESS.contains(&(inside.as_str(), field));
                if SHOWING.iter().any(|name| field.contains(name)) && !is_harmless {
                    wrong.push(format!("{inside}: {field}"));
                }
            }
        }
    }
    assert!(seen > 50, "only {seen} types that derive Debug were found");
    assert!(wrong.is_empty(), "these would show a value to whoever prints them:\n{}", wrong.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let code = fs::read_to_string(&path).unwrap();
                found.push((path, code));
            }
        }
    }
    assert!(found.len() > 20, "only {} source files found", found.len());
    found
}

/// The top-level module of a file; `None` for `main.rs` and `lib.rs`, which name them all, and for the
/// tests of a module, which may build what the module itself may not know.
fn module_of(path: &Path) -> Option<&str> {
    let inside = path.strip_prefix(root()).ok()?;
    if is_test(path) {
        return None;
    }
    let first = inside.components().next()?.as_os_str().to_str()?;
    let module = first.strip_suffix(".rs").unwrap_or(first);
    (!matches!(module, "main" | "lib")).then(|| {
        let known = ARROWS.iter().find(|(name, _)| *name == module);
        known.unwrap_or_else(|| panic!("{module} is not on the map")).0
    })
}

/// Whether a file holds nothing but tests: `tests.rs`, or one in a folder `tests`.
fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.parent().is_some_and(|folder| folder.ends_with("tests"))
}

/// Every `crate::<module>` of the shipped code, whether in a `use` line or in a path.
fn imported_modules(code: &str) -> BTreeSet<String> {
    let code = before_tests(code);
    let mut modules = BTreeSet::new();
    for line in without_comments(code) {
        for rest in line.split("crate::").skip(1) {
            let names = match rest.strip_prefix('{') {
                Some(list) => list.split(',').collect::<Vec<_>>(),
                None => vec![rest],
            };
            for name in names {
                let name: String =
                    name.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if !name.is_empty() {
                    modules.insert(name);
                }
            }
        }
    }
    modules
}

fn mentions_crate(line: &str, name: &str) -> bool {
    let line = line.trim_start();
    let as_path = |at: usize| {
        let before = line[..at].chars().next_back();
        let after = line[at + name.len()..].trim_start_matches(|c: char| c.is_ascii_lowercase() || c == '_');
        before.is_none_or(|c| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
            && (after.starts_with("::") || (line.starts_with("use ") && after.starts_with(';')))
    };
    line.match_indices(name).any(|(at, _)| as_path(at))
}

fn without_comments(code: &str) -> impl Iterator<Item = &str> {
    code.lines().filter(|line| !line.trim_start().starts_with("//"))
}

fn before_tests(code: &str) -> &str {
    code.split("#[cfg(test)]\nmod tests {").next().unwrap_or(code)
}
