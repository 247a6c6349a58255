//! The API of AWS's agent: one list of requests, answered by us as it answers them, or otherwise for a reason. With
//! `SMCACHED_TEST_AGENT` set to that agent's binary (crate `aws_workload_credentials_provider`), the same list is put
//! to it too.

use std::process::{Child, Command};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::aws_agent::{self, TOKEN};
use crate::support::client::{Address, Answer, Connection};
use crate::support::daemon::Setup;
use crate::support::fake_aws::FakeAws;
use crate::support::{ARN, eventually, free_port};

const ROLE: &str = "arn:aws:iam::123456789012:role/reader";

/// What an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    /// A version of `db`, by its value.
    Db(&'static str),
    Binary,
    Text(u16, &'static str),
    /// An error of AWS: status and `__type`.
    Aws(u16, &'static str),
}

use Expected::{Aws, Binary, Db, Text};

/// A request, and what comes of it.
struct Case {
    method: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    ours: Expected,
    /// Where that agent answers otherwise: how, and why we don't.
    theirs: Option<(Expected, &'static str)>,
}

const TOKEN_HEADER: &[(&str, &str)] = &[("X-Aws-Parameters-Secrets-Token", TOKEN)];

fn get(target: &'static str, ours: Expected) -> Case {
    Case { method: "GET", target, headers: TOKEN_HEADER, ours, theirs: None }
}

impl Case {
    fn but_theirs(self, theirs: Expected, why: &'static str) -> Self {
        Self { theirs: Some((theirs, why)), ..self }
    }

    fn with(self, headers: &'static [(&'static str, &'static str)]) -> Self {
        Self { headers, ..self }
    }

    fn by(self, method: &'static str) -> Self {
        Self { method, ..self }
    }
}

fn cases() -> Vec<Case> {
    const DB: &str = "/secretsmanager/get?secretId=db";
    vec![
        get(DB, Db("new")),
        get("/v1/db", Db("new")),
        get("/secretsmanager/get?secretId=team-a%2Fkey", Binary),
        get("/v1/team-a/key", Binary),
        get("/v1/arn:aws:secretsmanager:us-west-2:123456789012:secret:db-AbCdEf", Db("new")),
        get(
            "/secretsmanager/get?secretId=arn:aws:secretsmanager:us-west-2:123456789012:secret:db",
            Db("new"),
        ),
        get("/secretsmanager/get?secretId=db&versionStage=AWSPREVIOUS", Db("old")),
        get("/v1/db?versionStage=AWSCURRENT", Db("new")),
        get("/v1/db?versionId=00000000-0000-4000-8000-000000000001", Db("old")),
        get("/v1/db?refreshNow=true", Db("new")),
        get("/v1/db?refreshNow=TRUE", Db("new")),
        get("/v1/db?refreshNow=0", Db("new")),
        get("/v1/db?refreshNow=yes", Text(400, "invalid refreshNow value")),
        get("/secretsmanager/get", Text(400, "missing parameter secretId")),
        get("/secretsmanager/get?secretId=", Text(400, "missing parameter secretId")),
        get("/secretsmanager/get?versionId=x", Text(400, "missing parameter secretId")),
        get("/secretsmanager/get?secretId=db&abc=1", Text(400, "unknown parameter: abc")),
        get("/v1/db?secretId=db", Text(400, "unknown parameter: secretId")),
        get("/v1/", Text(400, "missing secret ID")),
        get("/v1/none", Aws(400, "ResourceNotFoundException")),
        get("/v1/gone", Aws(400, "InvalidRequestException")),
        get("/v1/denied", Aws(400, "AccessDeniedException")),
        get("/ping", Text(200, "healthy")).with(&[]),
        get(DB, Text(403, "Bad Token")).with(&[]),
        get(DB, Text(403, "Bad Token")).with(&[("X-Aws-Parameters-Secrets-Token", "wrong")]),
        get(DB, Db("new")).with(&[("X-Vault-Token", TOKEN)]),
        get(DB, Text(400, "Forwarded"))
            .with(&[("X-Aws-Parameters-Secrets-Token", TOKEN), ("X-Forwarded-For", "1.2.3.4")]),
        get(DB, Text(405, "Not allowed")).by("DELETE"),
        get("/v1/db", Text(405, "Not allowed")).by("PUT"),
        // On purpose otherwise.
        get("/v1/team-a%2Fkey", Binary).but_theirs(
            Aws(400, "ResourceNotFoundException"),
            "the path is decoded, so that any client's escapes work",
        ),
        get("/v1/x/../db", Text(400, "dot"))
            .but_theirs(Db("new"), "dot segments are refused, never folded: a proxy may see another path"),
        get(
            "/v1/db?versionStage=AWSPREVIOUS&versionStage=AWSCURRENT",
            Text(400, "repeated parameter: versionStage"),
        )
        .but_theirs(Db("new"), "of a parameter that is repeated nobody can say which one counts"),
        get(DB, Text(400, "Forwarded"))
            .with(&[("X-Aws-Parameters-Secrets-Token", TOKEN), ("Via", "x")])
            .but_theirs(Db("new"), "a request with Via or Forwarded has come through a proxy as well"),
        get(DB, Db("new"))
            .with(&[("Authorization", "Bearer a-token-of-the-tests")])
            .but_theirs(Text(403, "Bad Token"), "a bearer token is the usual way"),
        get("/v1/db?roleArn=arn:aws:iam::123456789012:role/other", Aws(403, "AccessDeniedException"))
            .but_theirs(
                Aws(403, "AccessDeniedException"),
                "the configuration says which roles may be asked for",
            ),
    ]
}

async fn ask(port: u16, case: &Case) -> Answer {
    let mut connection = Connection::open(&Address::Tcp(port)).await.unwrap();
    connection.request(case.method, case.target, case.headers).await.unwrap()
}

/// Whether an answer is what is expected of it.
fn is(answer: &Answer, expected: Expected) -> bool {
    let json = || serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
    match expected {
        Text(status, text) => answer.status == status && answer.text().contains(text),
        Aws(status, kind) => {
            let body = json();
            answer.status == status && body["__type"] == kind && body["message"].is_string()
        }
        Db(value) => {
            let id = if value == "new" { 2 } else { 1 };
            let stage = if value == "new" { "AWSCURRENT" } else { "AWSPREVIOUS" };
            answer.status == 200
                && json()
                    == json!({
                        "ARN": format!("{ARN}db-AbCdEf"), "Name": "db", "SecretString": value,
                        "VersionId": format!("00000000-0000-4000-8000-{id:012}"), "VersionStages": [stage],
                        "CreatedDate": (1_523_477_144.5 + f64::from(id)).to_string(),
                    })
        }
        Binary => {
            let body = json();
            answer.status == 200 && body["SecretBinary"] == "AAH/" && body["Name"] == "team-a/key"
        }
    }
}

fn shown(answer: &Answer) -> String {
    format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body))
}

#[tokio::test]
async fn requests_to_awss_agent_are_answered_as_it_answers_them() {
    let aws = FakeAws::with_secrets_of_every_kind();
    let daemon = Setup::with_aws(&aws.url()).file("token", TOKEN).start().await;
    let mut wrong = Vec::new();
    for case in cases() {
        let answer = ask(daemon.tcp_port(), &case).await;
        if !is(&answer, case.ours) {
            wrong.push(format!(
                "{} {}: expected {:?}, got {}",
                case.method,
                case.target,
                case.ours,
                shown(&answer)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// That agent, killed when dropped.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn awss_agent_itself_answers_so_where_its_binary_is_given() {
    #[expect(clippy::disallowed_methods, reason = "who runs the tests says where the agent is")]
    let Ok(binary) = std::env::var("SMCACHED_TEST_AGENT") else {
        eprintln!("SMCACHED_TEST_AGENT is not set: the list is put to smcached alone");
        return;
    };
    let aws = FakeAws::with_secrets_of_every_kind();
    let directory = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut command = Command::new(binary);
    aws_agent::configure(&mut command, directory.path(), port, &aws.url(), "");
    let _agent = Agent(command.spawn().unwrap());
    eventually("the agent listens", Duration::from_secs(20), async || {
        Connection::open(&Address::Tcp(port)).await.is_ok()
    })
    .await;
    let mut wrong = Vec::new();
    for case in cases() {
        let expected = case.theirs.map_or(case.ours, |(theirs, _)| theirs);
        let answer = ask(port, &case).await;
        if !is(&answer, expected) {
            wrong.push(format!(
                "{} {}: expected {expected:?}, got {}",
                case.method,
                case.target,
                shown(&answer)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn refresh_now_asks_aws_is_limited_and_shared_and_served_from_memory_while_aws_fails() {
    use crate::support::faults::Fault;
    let aws = FakeAws::with_secrets_of_every_kind();
    let daemon = Setup::with_aws(&aws.url()).tcp("token = \"none\"").start().await;
    let ask = async |target: &str| {
        let mut connection = Connection::open(&daemon.tcp()).await.unwrap();
        connection.get(target, &[]).await.unwrap()
    };
    assert_eq!(ask("/v1/db").await.json()["SecretString"], "new");
    aws.put("db", "newer");
    assert_eq!(ask("/v1/db").await.json()["SecretString"], "new");
    assert_eq!(ask("/v1/db?refreshNow=true").await.json()["SecretString"], "newer");
    let calls = aws.calls();
    for _ in 0..50 {
        assert_eq!(ask("/v1/db?refreshNow=true").await.json()["SecretString"], "newer");
    }
    let made = aws.calls() - calls;
    assert!((1..=15).contains(&made), "{made} calls for 50 demands");
    aws.fail(Some(Fault::Http500));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(ask("/v1/db?refreshNow=true").await.json()["SecretString"], "newer");
}

#[tokio::test]
async fn a_role_is_assumed_only_where_the_listener_allows_it() {
    let moto = crate::support::moto::Moto::start().await;
    let arn = moto.create("db", "x").await;
    let daemon = Setup::with_aws(&moto.url())
        .tcp(&format!("token = \"none\"\nallow_roles = [\"{ROLE}\"]"))
        .start()
        .await;
    let ask = async |role: &str| {
        let mut connection = Connection::open(&daemon.tcp()).await.unwrap();
        connection.get(&format!("/secretsmanager/get?secretId={arn}&roleArn={role}"), &[]).await.unwrap()
    };
    assert_eq!(ask(ROLE).await.json()["SecretString"], "x");
    let refused = ask("arn:aws:iam::123456789012:role/admin").await;
    assert!(is(&refused, Aws(403, "AccessDeniedException")), "{refused:?}");
    assert!(refused.text().contains("allow_roles"));
    daemon.logs(&format!("\"role\":\"{ROLE}\"")).await;
}
