//! What documents refer to is there: pages and their sections, files, commands and their options.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use crate::support::in_repository;

/// One document, taken apart.
struct Page {
    /// Within the repository.
    path: PathBuf,
    /// All but code.
    prose: String,
    /// What stands in backticks.
    spans: Vec<String>,
    /// Code blocks, with their language.
    blocks: Vec<(String, String)>,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(in_repository("").join(&path)).unwrap();
        let (mut outside, mut blocks) = (String::new(), Vec::<(String, String)>::new());
        let mut is_in_block = false;
        for line in text.lines() {
            match line.trim_start().strip_prefix("```") {
                Some(_) if is_in_block => is_in_block = false,
                Some(language) => {
                    is_in_block = true;
                    blocks.push((language.to_owned(), String::new()));
                }
                None if is_in_block => {
                    let block = &mut blocks.last_mut().unwrap().1;
                    block.push_str(line.trim_start());
                    block.push('\n');
                }
                None => {
                    outside.push_str(line);
                    outside.push('\n');
                }
            }
        }
        assert!(!is_in_block, "{}: a code block is not closed", path.display());
        let spans = outside.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let prose = outside.split('`').step_by(2).collect();
        Self { path, prose, spans, blocks }
    }

    /// The targets of its links within the repository: the file, and the section if one is named.
    fn links(&self) -> Vec<(PathBuf, Option<String>)> {
        let targets = self.prose.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        let inside = targets.filter(|target| !target.contains("://"));
        inside
            .map(|target| {
                let (file, section) =
                    target.split_once('#').map_or((target, None), |(file, section)| (file, Some(section)));
                let file = match file {
                    "" => self.path.clone(),
                    file => folded(&self.path.parent().unwrap().join(file)),
                };
                (file, section.map(str::to_owned))
            })
            .collect()
    }

    /// The anchors of its sections, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(in_repository("").join(&self.path)).unwrap();
        let code: BTreeSet<&str> = self.blocks.iter().flat_map(|(_, code)| code.lines()).collect();
        let headings = text.lines().filter(|line| line.starts_with('#') && !code.contains(line));
        let mut seen = BTreeMap::<String, usize>::new();
        headings
            .map(|heading| {
                let heading = heading.trim_start_matches('#').trim().to_lowercase();
                let is_kept = |c: &char| c.is_alphanumeric() || ['-', '_', ' '].contains(c);
                let anchor: String = heading.chars().filter(is_kept).collect::<String>().replace(' ', "-");
                let count = seen.entry(anchor.clone()).or_default();
                *count += 1;
                if *count == 1 { anchor } else { format!("{anchor}-{}", *count - 1) }
            })
            .collect()
    }

    /// Its commands: those of shell blocks, without their prompts, and what stands in backticks.
    fn commands(&self) -> Vec<String> {
        let mut commands = self.spans.clone();
        for (language, code) in &self.blocks {
            let code = code.replace("\\\n", " ");
            match language.as_str() {
                "sh" => commands.extend(code.lines().map(str::to_owned)),
                "console" => {
                    commands
                        .extend(code.lines().filter_map(|line| line.strip_prefix("$ ")).map(str::to_owned));
                }
                _ => {}
            }
        }
        let parts = commands.iter().flat_map(|command| command.split(['|', ';', '\n', '(', ')']));
        parts.flat_map(|part| part.split("&&")).map(|part| part.trim().to_owned()).collect()
    }
}

/// A path without its `..`.
fn folded(path: &Path) -> PathBuf {
    let mut folded = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => assert!(folded.pop(), "{} leaves the repository", path.display()),
            Component::CurDir => {}
            part => folded.push(part),
        }
    }
    folded
}

/// Every file below a folder of the repository.
fn files_below(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(in_repository("").join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = folder.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files
}

fn pages() -> BTreeMap<PathBuf, Page> {
    let is_page = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "md");
    let paths = files_below("docs").into_iter().filter(is_page).chain([PathBuf::from("README.md")]);
    paths.map(|path| (path.clone(), Page::read(path))).collect()
}

#[test]
fn every_link_leads_to_a_file_and_to_a_section_that_it_has() {
    let pages = pages();
    let (mut wrong, mut sections) = (Vec::new(), 0);
    for page in pages.values() {
        for (file, section) in page.links() {
            if !in_repository("").join(&file).exists() {
                wrong.push(format!("{}: there is no {}", page.path.display(), file.display()));
            }
            let Some(section) = section else { continue };
            sections += 1;
            if !pages.get(&file).is_some_and(|target| target.anchors().contains(&section)) {
                wrong.push(format!("{}: {} has no section #{section}", page.path.display(), file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "links that lead nowhere:\n{}", wrong.join("\n"));
    assert!(sections >= 10, "only {sections} links to sections were found");
}

#[test]
fn every_document_is_reached_from_the_readme() {
    let pages = pages();
    let mut reached = BTreeSet::new();
    let mut ahead = vec![PathBuf::from("README.md")];
    while let Some(path) = ahead.pop() {
        if !reached.insert(path.clone()) {
            continue;
        }
        if let Some(page) = pages.get(&path) {
            ahead.extend(page.links().into_iter().map(|(file, _)| file));
        }
    }
    let lost: Vec<_> = files_below("docs").into_iter().filter(|path| !reached.contains(path)).collect();
    assert!(lost.is_empty(), "no way leads from README.md to {lost:?}");
}

#[test]
fn the_index_lists_every_document_once() {
    let index = Page::read("docs/README.md".into());
    let mut listed: Vec<_> = index.links().into_iter().map(|(file, _)| file).collect();
    listed.sort();
    let mut documents = files_below("docs");
    // Pictures belong to the page that shows them.
    documents.retain(|path| path != &index.path && path.extension().is_none_or(|kind| kind != "svg"));
    documents.sort();
    assert_eq!(listed, documents);
}

#[test]
fn every_file_that_a_document_names_is_there() {
    const FOLDERS: [&str; 7] = [".ci/", "benches/", "config/", "docs/", "fuzz/", "src/", "tests/"];
    // Made by what runs there.
    const MADE: [&str; 2] = ["fuzz/found/", "fuzz/artifacts/"];
    let is_plain = |word: &str| word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    let (mut wrong, mut found) = (Vec::new(), 0);
    for page in pages().values() {
        let code = page.spans.iter().chain(page.blocks.iter().map(|(_, code)| code));
        for word in code.flat_map(|code| code.split_whitespace()).filter(|word| is_plain(word)) {
            let starts_with_one_of = |folders: &[&str]| folders.iter().any(|folder| word.starts_with(folder));
            if !starts_with_one_of(&FOLDERS) || starts_with_one_of(&MADE) {
                continue;
            }
            found += 1;
            if !in_repository(word).exists() {
                wrong.push(format!("{}: there is no {word}", page.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(found >= 20, "only {found} files are named");
}

#[test]
fn every_crate_that_is_depended_on_has_its_reason() {
    let manifest = fs::read_to_string(in_repository("Cargo.toml")).unwrap();
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let crates: Vec<&str> =
        section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    assert!(crates.len() >= 30, "{crates:?}");
    let page = Page::read("docs/security.md".into());
    let rows: BTreeSet<&str> = page.spans.iter().map(String::as_str).collect();
    let missing: Vec<_> = crates.iter().filter(|name| !rows.contains(*name)).collect();
    assert!(missing.is_empty(), "docs/security.md does not say why there are {missing:?}");
}

/// The words after the program's name, where a command runs smcached.
fn arguments_of_smcached(command: &str) -> Option<Vec<&str>> {
    let is_assignment = |word: &&str| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
    let mut words = command.split_whitespace().skip_while(is_assignment);
    match words.next()? {
        "cargo" if words.next() == Some("run") => {
            Some(words.skip_while(|word| *word != "--").skip(1).collect())
        }
        program if Path::new(program).file_name()? == "smcached" => Some(words.collect()),
        _ => None,
    }
}

/// Which options a command knows, by its help; `None` if there is no such command.
fn options_of(command: Option<&str>) -> Option<BTreeSet<String>> {
    let output = Command::new(crate::SMCACHED).args(command).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'));
    let options = words.filter(|word| word.starts_with('-')).map(str::to_owned);
    output.status.success().then(|| options.collect())
}

#[test]
fn every_command_of_smcached_in_a_document_exists_with_its_options() {
    let (mut wrong, mut used) = (Vec::new(), BTreeSet::new());
    let mut known = BTreeMap::<Option<String>, Option<BTreeSet<String>>>::new();
    for page in pages().values() {
        for command in page.commands() {
            let Some(arguments) = arguments_of_smcached(&command) else { continue };
            let name = arguments.first().filter(|word| !word.starts_with('-')).map(|word| (*word).to_owned());
            let options = known.entry(name.clone()).or_insert_with(|| options_of(name.as_deref()));
            let Some(options) = options else {
                wrong.push(format!("{}: no such command: {command}", page.path.display()));
                continue;
            };
            // What follows `--` is another program's.
            let own = arguments.iter().take_while(|word| **word != "--");
            for option in own.filter(|word| word.starts_with('-')).map(|word| word.split('=').next().unwrap())
            {
                if !options.contains(option) {
                    wrong.push(format!("{}: no such option {option}: {command}", page.path.display()));
                }
            }
            used.extend(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for name in ["serve", "check", "get", "exec", "init", "healthcheck"] {
        assert!(used.contains(name), "no document shows `smcached {name}`");
    }
}

#[test]
fn every_test_and_benchmark_that_a_document_runs_exists() {
    let mut found = 0;
    for page in pages().values() {
        for command in page.commands().iter().filter(|command| command.starts_with("cargo ")) {
            let words: Vec<_> = command.split_whitespace().collect();
            for pair in words.windows(2) {
                let folder = match pair[0] {
                    "--bench" => "benches",
                    "--test" => "tests",
                    _ => continue,
                };
                let exists = [format!("{folder}/{}.rs", pair[1]), format!("{folder}/{}/main.rs", pair[1])]
                    .iter()
                    .any(|path| in_repository(path).exists());
                assert!(exists, "{}: {command}", page.path.display());
                found += 1;
            }
        }
    }
    assert!(found >= 5, "only {found} are run");
}

#[test]
fn the_version_is_the_same_in_the_changelog_and_in_task_definitions() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = fs::read_to_string(in_repository("docs/changelog.md")).unwrap();
    let releases: Vec<_> = changelog.lines().filter_map(|line| line.strip_prefix("## [")).collect();
    let newest = releases.get(1).map_or(changelog.as_str(), |release| *release);
    assert!(
        releases[0] == "Unreleased]" && newest.contains(version),
        "the changelog does not know {version}"
    );
    let tasks = fs::read_to_string(in_repository("docs/ecs.md")).unwrap();
    let images: Vec<_> =
        tasks.split("/smcached:").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
    assert!(images.len() >= 2 && images.iter().all(|image| *image == version), "{images:?}");
}
