//! Clients that know nothing of smcached read through it, no code of theirs changed: boto3, the AWS CLI, the AWS SDK for
//! Rust, and AWS's caching library for Python. One table: client by case.

use std::path::Path;
use std::process::Command;

use aws_sdk_secretsmanager::Client;
use aws_sdk_secretsmanager::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_secretsmanager::error::ProvideErrorMetadata;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::support::ARN;
use crate::support::daemon::{Daemon, Setup};
use crate::support::fake_aws::FakeAws;
use crate::support::python;

const OLD: &str = "00000000-0000-4000-8000-000000000001";

/// What is asked, and what any client must make of it: a value, or `!` and AWS's code.
const CASES: [(&str, &str); 11] = [
    ("string by name", "new"),
    ("string by ARN", "new"),
    ("string by ARN without its six characters", "new"),
    ("binary", "AAH/"),
    ("by stage AWSPREVIOUS", "old"),
    ("by version id", "old"),
    ("missing", "!ResourceNotFoundException"),
    ("deleted", "!InvalidRequestException"),
    ("denied", "!AccessDeniedException"),
    ("batch", "new AAH/ !ResourceNotFoundException"),
    ("write", "!AccessDeniedException"),
];

/// `GetSecretValue` as each case asks it; `None` for a batch and a write.
fn get_secret_value(case: &str) -> Option<Value> {
    let arn = format!("{ARN}db-AbCdEf");
    Some(match case {
        "string by name" => json!({ "SecretId": "db" }),
        "string by ARN" => json!({ "SecretId": arn }),
        "string by ARN without its six characters" => json!({ "SecretId": format!("{ARN}db") }),
        "binary" => json!({ "SecretId": "team-a/key" }),
        "by stage AWSPREVIOUS" => json!({ "SecretId": "db", "VersionStage": "AWSPREVIOUS" }),
        "by version id" => json!({ "SecretId": "db", "VersionId": OLD }),
        "missing" => json!({ "SecretId": "none" }),
        "deleted" => json!({ "SecretId": "gone" }),
        "denied" => json!({ "SecretId": "denied" }),
        _ => return None,
    })
}

const BATCH: [&str; 3] = ["db", "team-a/key", "none"];

async fn rig() -> (FakeAws, Daemon) {
    let aws = FakeAws::with_secrets_of_every_kind();
    let daemon = Setup::with_aws(&aws.url()).start().await;
    (aws, daemon)
}

/// The value of a `GetSecretValue` or of an entry of a batch, or the code of an error.
fn value(answer: &Value) -> String {
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    let error = answer["error"]["code"].as_str().or_else(|| answer["ErrorCode"].as_str());
    error
        .map(|code| format!("!{code}"))
        .or_else(|| text("SecretString"))
        .or_else(|| text("SecretBinary"))
        .unwrap_or_else(|| panic!("neither value nor error: {answer}"))
}

fn batch(answer: &Value) -> String {
    let entries = [&answer["SecretValues"], &answer["Errors"]];
    let all = entries.iter().flat_map(|list| list.as_array().unwrap());
    all.map(value).collect::<Vec<_>>().join(" ")
}

/// One line of JSON for each of these calls of boto3 or of AWS's caching library.
fn calls(script: &str, daemon: &Daemon, calls: &Value) -> Vec<Value> {
    let mut command = python::script("python", script, &daemon.path(""));
    let output =
        python::through(&mut command, daemon.tcp_port(), &daemon.token()).arg(calls.to_string()).output();
    let printed = python::printed(&output.unwrap());
    printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check(client: &str, found: &[(&str, String)]) {
    let wrong: Vec<String> = found
        .iter()
        .filter_map(|(case, found)| {
            let expected = CASES.iter().find(|(known, _)| known == case).unwrap().1;
            (found != expected).then(|| format!("{client}, {case}: expected {expected}, got {found}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn boto3_reads_everything_and_gets_awss_exceptions() {
    let (aws, daemon) = rig().await;
    let asked: Vec<Value> = CASES
        .iter()
        .map(|(case, _)| match (get_secret_value(case), *case) {
            (Some(arguments), _) => json!(["get_secret_value", arguments]),
            (None, "batch") => json!(["batch_get_secret_value", { "SecretIdList": BATCH }]),
            (None, _) => json!(["put_secret_value", { "SecretId": "db", "SecretString": "x" }]),
        })
        .collect();
    let answers = calls("boto3_calls.py", &daemon, &json!(asked));
    let found: Vec<_> = CASES
        .iter()
        .zip(&answers)
        .map(|((case, _), answer)| (*case, if *case == "batch" { batch(answer) } else { value(answer) }))
        .collect();
    check("boto3", &found);
    // Types, request ids and messages are AWS's own.
    assert_eq!(answers[0]["CreatedDate"], "2018-04-11T20:05:46.500000+00:00");
    assert!(answers.iter().all(|answer| answer.get("error").is_some() || answer["RequestId"].is_string()));
    let missing = &answers[6]["error"];
    assert_eq!((&missing["type"], &missing["status"]), (&json!("ResourceNotFoundException"), &json!(400)));
    assert_eq!(missing["message"], "Secrets Manager can't find the specified secret.");
    assert!(answers[10]["error"]["message"].as_str().unwrap().starts_with("smcached only reads"));

    aws.tag("db", "team", "a");
    let described = calls("boto3_calls.py", &daemon, &json!([["describe_secret", { "SecretId": "db" }]]));
    assert_eq!(described[0]["Tags"], json!([{ "Key": "team", "Value": "a" }]));
    assert_eq!(described[0]["LastChangedDate"], "2018-04-11T20:05:45.729000+00:00");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awss_caching_library_for_python_reads_everything_it_can_ask_for() {
    let (aws, daemon) = rig().await;
    let cases = [
        ("string by name", json!(["get_secret_string", { "secret_id": "db" }])),
        ("string by ARN", json!(["get_secret_string", { "secret_id": format!("{ARN}db-AbCdEf") }])),
        ("binary", json!(["get_secret_binary", { "secret_id": "team-a/key" }])),
        (
            "by stage AWSPREVIOUS",
            json!(["get_secret_string", { "secret_id": "db", "version_stage": "AWSPREVIOUS" }]),
        ),
        ("missing", json!(["get_secret_string", { "secret_id": "none" }])),
        ("deleted", json!(["get_secret_string", { "secret_id": "gone" }])),
        ("denied", json!(["get_secret_string", { "secret_id": "denied" }])),
    ];
    let ask = || {
        let asked: Vec<_> = cases.iter().map(|(_, call)| call).collect();
        let answers = calls("caching_calls.py", &daemon, &json!(asked));
        let found = cases.iter().zip(&answers).map(|((case, _), answer)| {
            (*case, answer["value"].as_str().map_or_else(|| value(answer), str::to_owned))
        });
        found.collect::<Vec<_>>()
    };
    check("the caching library", &ask());
    let calls = aws.calls();
    check("the caching library again", &ask());
    assert_eq!(aws.calls(), calls, "a second process costs AWS nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn awss_caching_library_works_where_only_get_secret_value_is_granted() {
    let (aws, daemon) = rig().await;
    aws.deny_action("DescribeSecret", true);
    let ask = json!([["get_secret_string", { "secret_id": "db" }]]);
    assert_eq!(calls("caching_calls.py", &daemon, &ask), [json!({ "value": "new" })]);
    assert_eq!(aws.calls(), 2, "{:?}", aws.log());
}

/// What the AWS CLI prints: JSON, or an error that names its code.
fn cli(daemon_port: u16, token: &str, home: &Path, arguments: &[String]) -> Value {
    let mut command: Command = python::program("python", "aws", home);
    let output = python::through(&mut command, daemon_port, token)
        .arg("secretsmanager")
        .args(arguments)
        .output()
        .unwrap();
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).unwrap();
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let code = said.split_once("An error occurred (").and_then(|(_, rest)| rest.split_once(')'));
    let (code, message) = code.unwrap_or_else(|| panic!("{output:?}"));
    json!({ "error": { "code": code, "message": message } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_aws_cli_reads_everything_and_says_awss_errors() {
    let (_aws, daemon) = rig().await;
    let words = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let mut running = tokio::task::JoinSet::new();
    for (index, (case, _)) in CASES.iter().enumerate() {
        let arguments = match (get_secret_value(case), *case) {
            (Some(asked), _) => {
                let mut arguments = words(&["get-secret-value"]);
                for (name, flag) in [
                    ("SecretId", "--secret-id"),
                    ("VersionId", "--version-id"),
                    ("VersionStage", "--version-stage"),
                ] {
                    if let Some(value) = asked[name].as_str() {
                        arguments.extend(words(&[flag, value]));
                    }
                }
                arguments
            }
            (None, "batch") => {
                [words(&["batch-get-secret-value", "--secret-id-list"]), words(&BATCH)].concat()
            }
            (None, _) => words(&["put-secret-value", "--secret-id", "db", "--secret-string", "x"]),
        };
        let (port, token, home) = (daemon.tcp_port(), daemon.token(), daemon.path(""));
        let case = *case;
        running.spawn_blocking(move || {
            let answer = cli(port, &token, &home, &arguments);
            (index, (case, if case == "batch" { batch(&answer) } else { value(&answer) }))
        });
        // Two at a time: each is a Python of its own.
        if running.len() == 2 {
            let (_, found) = running.join_next().await.unwrap().unwrap();
            check("the AWS CLI", &[found]);
        }
    }
    for (_, found) in running.join_all().await {
        check("the AWS CLI", &[found]);
    }
}

/// What came of a call of the AWS SDK for Rust.
fn outcome<T, E: ProvideErrorMetadata>(
    answer: Result<T, aws_sdk_secretsmanager::error::SdkError<E>>,
    value: impl FnOnce(T) -> String,
) -> String {
    match answer {
        Ok(output) => value(output),
        Err(error) => format!("!{}", error.code().unwrap_or("without a code")),
    }
}

#[tokio::test]
async fn the_aws_sdk_for_rust_reads_everything_and_gets_awss_errors() {
    let (_aws, daemon) = rig().await;
    let config = aws_sdk_secretsmanager::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(format!("http://127.0.0.1:{}", daemon.tcp_port()))
        .region(Region::new("us-west-2"))
        .credentials_provider(Credentials::new(daemon.token(), "unused", None, None, "test"));
    let client = Client::from_conf(config.build());
    let shown = |text: Option<String>, binary: Option<aws_sdk_secretsmanager::primitives::Blob>| {
        text.or_else(|| binary.map(|blob| STANDARD.encode(blob))).unwrap()
    };
    let mut found = Vec::new();
    for (case, _) in CASES {
        let text = |name: &str, asked: &Value| asked[name].as_str().map(str::to_owned);
        let came = match (get_secret_value(case), case) {
            (Some(asked), _) => {
                let call = client
                    .get_secret_value()
                    .set_secret_id(text("SecretId", &asked))
                    .set_version_id(text("VersionId", &asked))
                    .set_version_stage(text("VersionStage", &asked));
                outcome(call.send().await, |output| shown(output.secret_string, output.secret_binary))
            }
            (None, "batch") => {
                let ids = BATCH.map(str::to_owned).to_vec();
                let call = client.batch_get_secret_value().set_secret_id_list(Some(ids));
                outcome(call.send().await, |output| {
                    let values = output.secret_values.unwrap().into_iter();
                    let values = values.map(|entry| shown(entry.secret_string, entry.secret_binary));
                    let errors = output.errors.unwrap().into_iter();
                    let errors = errors.map(|error| format!("!{}", error.error_code.unwrap()));
                    values.chain(errors).collect::<Vec<_>>().join(" ")
                })
            }
            (None, _) => {
                let call = client.put_secret_value().secret_id("db").secret_string("x");
                outcome(call.send().await, |_| "written".to_owned())
            }
        };
        found.push((case, came));
    }
    check("the AWS SDK for Rust", &found);
}
