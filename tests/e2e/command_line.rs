//! What the command line says of itself: help, completions, manual pages, and the page of the documents on it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::support::daemon::smcached;
use crate::support::in_repository;

fn run(arguments: &[&str]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let output = smcached(directory.path()).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that `--help` lists.
fn commands() -> Vec<String> {
    let help = run(&["--help"]);
    let list = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names = list.lines().filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let names: Vec<String> =
        names.filter(|name| !name.is_empty() && *name != "help").map(str::to_owned).collect();
    assert!(names.len() >= 9, "{names:?}");
    names
}

/// The options of a command, each as `--name VALUE`.
fn options(command: &str) -> BTreeSet<String> {
    let help = run(&[command, "--help"]);
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with("--") || line.starts_with("-h, "));
    let names = lines.filter_map(|line| line.find("--").map(|at| line[at..].replace(['<', '>'], "")));
    names
        .map(|name| name.split("  ").next().unwrap().to_owned())
        .filter(|name| !name.starts_with("--help"))
        .collect()
}

/// Whether a program that a check needs is here; if not, says that there was none.
fn is_here(program: &str) -> bool {
    let is_here =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success();
    if !is_here {
        // Past the test's captured output: nothing is left out in silence.
        let _ = writeln!(std::io::stderr(), "NOT CHECKED: {program} is not here");
    }
    is_here
}

#[test]
fn the_help_of_every_command_has_examples_and_exit_codes() {
    for command in commands() {
        let help = run(&[&command, "--help"]);
        let [examples, codes] = ["\nExamples:\n", "\nExit codes:\n"].map(|title| help.find(title));
        assert!(examples.is_some() && examples < codes, "{command}: {help}");
        assert!(help.contains(&format!("smcached {command}")), "{command}");
        assert!(
            help.lines().all(|line| line.chars().count() <= 100 || !line.starts_with(' ')),
            "{command}: {help}"
        );
    }
}

#[test]
fn examples_of_the_help_are_commands_that_are_understood() {
    let mut tried = 0;
    let config = tempfile::tempdir().unwrap();
    for command in commands() {
        let help = run(&[&command, "--help"]);
        let examples = help.split("\nExamples:\n").nth(1).unwrap().split("\n\n").next().unwrap();
        for line in examples.lines().filter_map(|line| line.trim().strip_prefix("smcached ")) {
            let line = line.split([';', '|', '&', '>', '#']).next().unwrap().trim();
            let line = line.replace("password", "field");
            // What clap does not understand ends with 2 and says "Usage".
            let mut words: Vec<&str> = line.split_whitespace().collect();
            words.truncate(words.iter().position(|word| *word == "--").map_or(words.len(), |at| at + 2));
            if matches!(words[0], "serve" | "exec") {
                continue;
            }
            let output = smcached(config.path()).args(&words).output().unwrap();
            assert!(!String::from_utf8_lossy(&output.stderr).contains("Usage:"), "{line}: {output:?}");
            tried += 1;
        }
    }
    assert!(tried >= 12, "only {tried} examples were found");
}

#[test]
fn the_document_has_every_command_and_option() {
    let document = fs::read_to_string(in_repository("docs/cli.md")).unwrap();
    let section = |command: &str| {
        let title = format!("\n## smcached {command}\n");
        let text = document.split(&title).nth(1).unwrap_or_else(|| panic!("no section on {command}"));
        text.split("\n## ").next().unwrap().to_owned()
    };
    for command in commands() {
        let text = section(&command);
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `--")?.split('`').next());
        let documented: BTreeSet<String> = rows.map(|name| format!("--{name}")).collect();
        assert_eq!(documented, options(&command), "{command}");
    }
    let sections = document.matches("\n## smcached ").count();
    assert_eq!(sections, commands().len(), "a section on a command that does not exist");
}

#[test]
fn shells_understand_their_completions() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(&["completions", shell]);
        for word in commands().iter().map(String::as_str).chain(["output", "version-stage"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
        assert!(!script.contains("man.1") && is_parsed(shell, &script, directory.path()), "{shell}");
    }
    if is_here("bash") {
        let script = run(&["completions", "bash"]);
        let typed = "COMP_WORDS=(smcached st); COMP_CWORD=1; _smcached smcached st smcached";
        let program = format!("{script}\n{typed}; echo \"${{COMPREPLY[@]}}\"");
        let output = Command::new("bash").args(["--norc", "-c", &program]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), "status");
    }
}

fn is_parsed(shell: &str, script: &str, directory: &Path) -> bool {
    let path = directory.join(shell);
    fs::write(&path, script).unwrap();
    if !is_here(shell) {
        return true;
    }
    let output = Command::new(shell).arg("-n").arg(&path).env("HOME", directory).output().unwrap();
    assert!(output.stderr.is_empty(), "{shell}: {output:?}");
    output.status.success()
}

#[test]
fn there_is_a_manual_page_for_each_command() {
    let directory = tempfile::tempdir().unwrap();
    let pages = directory.path().join("man1");
    run(&["man", "--dir", pages.to_str().unwrap()]);
    let mut wanted: Vec<String> = commands().iter().map(|command| format!("smcached-{command}.1")).collect();
    wanted.push("smcached.1".to_owned());
    for page in &wanted {
        let path = pages.join(page);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".TH smcached") && text.contains("Exit codes:"), "{page}: {text}");
        if is_here("mandoc") {
            let output =
                Command::new("mandoc").args(["-T", "lint", "-W", "error"]).arg(&path).output().unwrap();
            assert!(output.status.success(), "{page}: {output:?}");
        }
        if is_here("groff") {
            let output = Command::new("groff").args(["-man", "-ww", "-z"]).arg(&path).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{page}: {output:?}");
        }
    }
}
