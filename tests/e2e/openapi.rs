//! The HTTP API is what `docs/openapi.yaml` says: schemathesis makes requests of every kind from it, right and wrong ones,
//! and holds the daemon's answers against it.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use crate::support::client::Address;
use crate::support::daemon::Setup;
use crate::support::{in_repository, python};

const SECRETS: &str = r#"
[[secret]]
name = "team-a/db"
string = '{"username": "ada", "password": "correct horse battery staple"}'

[[secret]]
name = "team-a/key"
binary = "AAECAw=="
"#;

const DESCRIPTION: &str = "docs/openapi.yaml";

/// Puts the operations with these tags to a server; returns how many requests were made.
fn put_to(port: u16, token: Option<&str>, tags: &[&str]) -> u64 {
    let home = tempfile::tempdir().unwrap();
    let mut command = python::program("python", "schemathesis", home.path());
    command.env("SCHEMATHESIS_HOOKS", in_repository("tests/support/clients/schemathesis_hooks.py"));
    command.arg("--config-file").arg(in_repository("tests/support/schemathesis.toml"));
    command.arg("run").arg(in_repository(DESCRIPTION)).args(["--url", &format!("http://127.0.0.1:{port}")]);
    command.args(["--phases", "examples,coverage,fuzzing", "--seed", "1", "--no-color"]);
    for tag in tags {
        command.args(["--include-tag", tag]);
    }
    if let Some(token) = token {
        command.arg("--header").arg(format!("X-Aws-Parameters-Secrets-Token:{token}"));
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    let counted = said.lines().find_map(|line| line.trim().split_once(" generated, "));
    counted.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap()
}

#[tokio::test]
async fn the_daemon_answers_as_it_is_described() {
    let daemon = Setup::with_file(SECRETS).quiet().start().await;
    let token = daemon.token();
    let (port, Address::Tcp(ops)) = (daemon.tcp_port(), daemon.ops()) else { panic!("ops is on TCP") };
    let requests = put_to(port, Some(token.trim()), &["native", "agent", "aws", "health"]);
    println!("{requests} requests to a listener of secrets");
    assert!(requests > 300, "{requests}");
    let requests = put_to(ops, None, &["operations"]);
    println!("{requests} requests to the ops listener");
    assert!(requests > 30, "{requests}");
}

/// The description, read by a parser of YAML.
fn description() -> Value {
    let mut command = python::program("python", "python", &in_repository("docs"));
    command.args(["-c", "import json, yaml; print(json.dumps(yaml.safe_load(open('openapi.yaml'))))"]);
    serde_json::from_str(&python::printed(&command.output().unwrap())).unwrap()
}

/// Status and code of every problem in this part of the description.
fn problems(responses: &Value) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for response in responses.as_object().unwrap().values() {
        let schema = &response["content"]["application/problem+json"]["schema"]["properties"];
        for code in schema["code"]["enum"].as_array().into_iter().flatten() {
            found.insert((schema["status"]["const"].to_string(), code.as_str().unwrap().to_owned()));
        }
    }
    found
}

#[test]
fn the_description_and_the_page_list_the_same_errors() {
    let description = description();
    let described = problems(&description["components"]["responses"]);
    let page = fs::read_to_string(in_repository("docs/http-api.md")).unwrap();
    let table = page.split("## Errors").nth(1).unwrap().split("\n## ").next().unwrap();
    let mut listed = BTreeSet::new();
    for row in table.lines().filter(|line| line.starts_with("| ") && line.contains('`')) {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let statuses: Vec<&str> = columns[1].split(", ").collect();
        for (index, code) in columns[2].split('`').skip(1).step_by(2).enumerate() {
            // A row of several statuses has a code for each.
            listed.insert((statuses[index.min(statuses.len() - 1)].to_owned(), code.to_owned()));
        }
    }
    assert_eq!(described, listed);
    let all = description["components"]["schemas"]["ProblemCode"]["enum"].as_array().unwrap();
    let all: BTreeSet<String> = all.iter().map(|code| code.as_str().unwrap().to_owned()).collect();
    assert_eq!(all, described.into_iter().map(|(_, code)| code).collect());
}

/// The paths that a source file matches requests against, by their literals outside its tests.
fn paths_in(source: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(in_repository(source)).unwrap();
    let code = text.split("#[cfg(test)]").next().unwrap();
    let code = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<String>();
    let literals = code.split('"').skip(1).step_by(2).filter(|literal| literal.starts_with('/'));
    literals.map(str::to_owned).collect()
}

#[test]
fn the_description_and_the_code_have_the_same_paths() {
    let described: BTreeSet<String> = description()["paths"]
        .as_object()
        .unwrap()
        .keys()
        .map(|path| path.split(['{', '#']).next().unwrap().to_owned())
        .collect();
    let mut known = paths_in("src/server/router.rs");
    known.extend(paths_in("src/ops/mod.rs"));
    assert_eq!(described, known);
}
