//! AWS's own protocol: what any AWS SDK sends and gets, byte by byte; `clients` has the SDKs themselves.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::client::{Answer, Connection, aws_json_as};
use crate::support::daemon::{Daemon, Setup};
use crate::support::fake_aws::{FakeAws, Stored};
use crate::support::faults::Fault;
use crate::support::{ARN, eventually};

struct Rig {
    aws: FakeAws,
    daemon: Daemon,
}

impl Rig {
    async fn new(setup: impl FnOnce(Setup) -> Setup) -> Self {
        let aws = FakeAws::start();
        aws.put("team-a/db", "old");
        aws.put("team-a/db", "new");
        aws.put("binary", Stored::Binary(vec![0, 1, 255]));
        let daemon = setup(Setup::with_aws(&aws.url())).start().await;
        Self { aws, daemon }
    }

    async fn call(&self, action: &str, body: Value) -> Answer {
        aws_json_as(self.daemon.tcp_port(), &self.daemon.token(), "us-west-2", action, &body).await
    }

    async fn get(&self, id: &str) -> Answer {
        self.call("GetSecretValue", json!({ "SecretId": id })).await
    }

    /// The code and text of an error, which must have AWS's shape.
    async fn error(&self, action: &str, body: Value) -> (u16, String, String) {
        error(&self.call(action, body).await)
    }
}

fn error(answer: &Answer) -> (u16, String, String) {
    assert_eq!(answer.header("content-type"), "application/x-amz-json-1.1", "{answer:?}");
    assert_eq!(answer.header("x-amzn-requestid").len(), 36, "{answer:?}");
    let body = answer.json();
    let text = |name: &str| body[name].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    (answer.status, text("__type"), text("Message"))
}

#[tokio::test]
async fn a_secret_is_read_by_id_in_every_form_version_and_stage_with_awss_types() {
    let rig = Rig::new(|setup| setup).await;
    let arn = format!("{ARN}team-a/db-AbCdEf");
    for id in ["team-a/db", arn.as_str(), &arn[..arn.len() - 7]] {
        let answer = rig.get(id).await;
        assert_eq!(answer.status, 200, "{id}");
        assert_eq!(answer.header("content-type"), "application/x-amz-json-1.1");
        assert_eq!(answer.header("x-amzn-requestid").len(), 36);
        let expected = json!({
            "ARN": arn, "Name": "team-a/db", "VersionId": "00000000-0000-4000-8000-000000000002",
            "SecretString": "new", "VersionStages": ["AWSCURRENT"], "CreatedDate": 1_523_477_146.5,
        });
        assert_eq!(answer.json(), expected, "{id}");
    }
    let previous = rig
        .call("GetSecretValue", json!({ "SecretId": "team-a/db", "VersionStage": "AWSPREVIOUS" }))
        .await
        .json();
    assert_eq!(previous["SecretString"], "old");
    let by_id = json!({ "SecretId": "team-a/db", "VersionId": previous["VersionId"], "Ignored": [1] });
    assert_eq!(rig.call("GetSecretValue", by_id).await.json()["SecretString"], "old");
    assert_eq!(rig.get("binary").await.json()["SecretBinary"], "AAH/");
    assert_eq!(rig.daemon.get("/secret/team-a/db").await.text(), "new", "one cache for all ways in");
    let calls = rig.aws.log().iter().filter(|call| call.ids[0].contains("team-a/db")).count();
    assert_eq!(calls, 4, "by name, by partial ARN, and two versions; the whole ARN was in an answer");
}

#[tokio::test]
async fn errors_are_awss_own() {
    let rig = Rig::new(|setup| setup.unix("allow_secrets = [\"*\"]").tcp("token_file = \"token\"\nallow_secrets = [\"*[!x]*\", \"team-*\", \"gone\", \"none\", \"denied\"]")).await;
    rig.aws.put("gone", "x");
    rig.aws.delete("gone");
    rig.aws.put("denied", "x");
    rig.aws.deny("denied", true);
    let cases = [
        ("none", "ResourceNotFoundException", "Secrets Manager can't find the specified secret."),
        ("gone", "InvalidRequestException", "marked for deletion"),
        ("denied", "AccessDeniedException", "the daemon's identity"),
        ("forbidden", "AccessDeniedException", "may not be read here"),
        ("a b", "ValidationException", "0x20"),
        ("", "ValidationException", "SecretId must be given"),
        ("arn:aws:s3:::x", "ValidationException", "ARN"),
    ];
    for (id, code, message) in cases {
        let (status, found, text) = rig.error("GetSecretValue", json!({ "SecretId": id })).await;
        assert_eq!((status, found.as_str()), (400, code), "{id}");
        assert!(text.contains(message), "{id}: {text}");
        assert!(!text.contains("arn:aws:sts"), "AWS's message names the principal: {text}");
    }
    let (_, code, text) = rig.error("GetSecretValue", json!({ "SecretId": ["hunter2-hunter2"] })).await;
    assert_eq!((code.as_str(), text.contains("hunter2-hunter2")), ("SerializationException", false));
    let wrong_version = json!({ "SecretId": "team-a/db", "VersionStage": "a b" });
    assert_eq!(rig.error("GetSecretValue", wrong_version).await.1, "ValidationException");
    assert!(rig.aws.log().iter().all(|call| call.ids[0] != "forbidden"), "a forbidden secret costs no call");
}

#[tokio::test]
async fn everything_that_writes_is_refused_by_name() {
    let rig = Rig::new(|setup| setup).await;
    for action in ["PutSecretValue", "CreateSecret", "DeleteSecret", "ListSecrets", "RotateSecret"] {
        let (status, code, text) = rig.error(action, json!({ "SecretId": "team-a/db" })).await;
        assert_eq!((status, code.as_str()), (400, "AccessDeniedException"), "{action}");
        assert!(text.starts_with("smcached only reads") && text.contains(action), "{text}");
    }
    let by_filter = json!({ "Filters": [{ "Key": "name", "Values": ["x"] }] });
    let (_, code, text) = rig.error("BatchGetSecretValue", by_filter).await;
    assert!(code == "AccessDeniedException" && text.contains("Filters"), "{code} {text}");
    let mut connection = Connection::open(&rig.daemon.tcp()).await.unwrap();
    let token = rig.daemon.token();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: localhost\r\nX-Aws-Parameters-Secrets-Token: {token}\r\n\
         X-Amz-Target: DynamoDB_20120810.GetItem\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    connection.send(request.as_bytes()).await.unwrap();
    let answer = connection.answer(false).await.unwrap().unwrap();
    assert_eq!(error(&answer).1, "UnknownOperationException");
    assert_eq!(rig.aws.calls(), 0);
}

#[tokio::test]
async fn the_access_key_id_is_the_token() {
    let rig = Rig::new(|setup| setup).await;
    let ask = async |key: &str| {
        let body = json!({ "SecretId": "team-a/db" });
        aws_json_as(rig.daemon.tcp_port(), key, "us-west-2", "GetSecretValue", &body).await
    };
    assert_eq!(ask(&rig.daemon.token()).await.status, 200);
    let (status, code, _) = error(&ask("AKIAIOSFODNN7EXAMPLE").await);
    assert_eq!((status, code.as_str()), (400, "UnrecognizedClientException"));
    let mut connection = Connection::open(&rig.daemon.tcp()).await.unwrap();
    connection
        .send(b"POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: secretsmanager.GetSecretValue\r\nContent-Length: 2\r\n\r\n{}")
        .await
        .unwrap();
    let answer = connection.answer(false).await.unwrap().unwrap();
    assert_eq!(error(&answer).1, "MissingAuthenticationTokenException");
}

#[tokio::test]
async fn a_batch_has_each_ids_value_or_error() {
    let rig = Rig::new(|setup| {
        setup.tcp("token_file = \"token\"\nallow_secrets = [\"team-a/*\", \"binary\", \"none\"]")
    })
    .await;
    let arn = format!("{ARN}team-a/db-AbCdEf");
    let ids = json!({ "SecretIdList": ["team-a/db", "none", "forbidden", "binary", arn, "a b"] });
    let answer = rig.call("BatchGetSecretValue", ids).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let body = answer.json();
    let values = body["SecretValues"].as_array().unwrap();
    let found: Vec<_> = values.iter().map(|value| &value["Name"]).collect();
    assert_eq!(found, [&json!("team-a/db"), &json!("binary"), &json!("team-a/db")]);
    assert_eq!((&values[0]["SecretString"], &values[1]["SecretBinary"]), (&json!("new"), &json!("AAH/")));
    let errors: Vec<_> = body["Errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|error| (error["SecretId"].as_str().unwrap(), error["ErrorCode"].as_str().unwrap()))
        .collect();
    let expected = [
        ("none", "ResourceNotFoundException"),
        ("forbidden", "AccessDeniedException"),
        ("a b", "ValidationException"),
    ];
    assert_eq!(errors, expected);
    for ids in [json!([]), json!(vec!["x"; 21])] {
        let (_, code, _) = rig.error("BatchGetSecretValue", json!({ "SecretIdList": ids })).await;
        assert_eq!(code, "ValidationException");
    }
}

#[tokio::test]
async fn a_description_is_awss_own_and_held_as_values_are() {
    let rig = Rig::new(|setup| setup).await;
    rig.aws.tag("team-a/db", "team", "a");
    let describe = async |id: &str| rig.call("DescribeSecret", json!({ "SecretId": id })).await;
    for id in ["team-a/db", "team-a/db", &format!("{ARN}team-a/db-AbCdEf")] {
        let body = describe(id).await.json();
        assert_eq!(body["Tags"], json!([{ "Key": "team", "Value": "a" }]), "{body}");
        assert_eq!(body["VersionIdsToStages"]["00000000-0000-4000-8000-000000000002"], json!(["AWSCURRENT"]));
        assert_eq!(
            body["VersionIdsToStages"]["00000000-0000-4000-8000-000000000001"],
            json!(["AWSPREVIOUS"])
        );
        assert_eq!(body["LastChangedDate"], 1_523_477_145.729);
    }
    assert_eq!((rig.aws.calls(), rig.aws.actions()), (1, vec!["DescribeSecret".to_owned()]));
    rig.aws.fail(Some(Fault::Refuse));
    assert_eq!(describe("team-a/db").await.status, 200, "held while AWS is down");
    let (_, code, _) = error(&describe("other").await);
    assert_eq!(code, "InternalServiceError");
}

#[tokio::test]
async fn where_descriptions_are_denied_what_is_held_answers_at_the_cost_of_one_call() {
    let rig = Rig::new(|setup| setup.cache("negative_ttl = \"0s\"")).await;
    rig.aws.deny_action("DescribeSecret", true);
    let previous = json!({ "SecretId": "team-a/db", "VersionStage": "AWSPREVIOUS" });
    rig.call("GetSecretValue", previous).await;
    for _ in 0..5 {
        let answer = rig.call("DescribeSecret", json!({ "SecretId": "team-a/db" })).await;
        let expected = json!({
            "ARN": format!("{ARN}team-a/db-AbCdEf"), "Name": "team-a/db",
            "VersionIdsToStages": {
                "00000000-0000-4000-8000-000000000001": ["AWSPREVIOUS"],
                "00000000-0000-4000-8000-000000000002": ["AWSCURRENT"],
            },
        });
        assert_eq!(answer.json(), expected);
    }
    assert_eq!(rig.aws.calls(), 3, "{:?}", rig.aws.log());
}

#[tokio::test]
async fn faults_of_aws_are_errors_that_sdks_try_again_and_held_values_hide() {
    let rig = Rig::new(|setup| {
        setup.aws("max_attempts = 1").cache("fetch_timeout = \"1s\"\nrevalidate_timeout = \"100ms\"")
    })
    .await;
    rig.get("binary").await;
    for (fault, status, code) in [
        (Fault::Http500, 500, "InternalServiceError"),
        (Fault::Hang, 500, "InternalServiceError"),
        (Fault::Garble, 500, "InternalServiceError"),
        (Fault::ExpiredToken, 500, "InternalServiceError"),
        (Fault::Throttle400, 400, "ThrottlingException"),
    ] {
        rig.aws.fail(Some(fault));
        let (found, word, _) = error(&rig.get("team-a/db").await);
        assert_eq!((found, word.as_str()), (status, code), "{fault:?}");
        assert_eq!(rig.get("binary").await.status, 200, "{fault:?}");
    }
}

#[tokio::test]
async fn a_client_of_another_region_reads_that_regions_secrets() {
    let rig = Rig::new(|setup| setup).await;
    let token = rig.daemon.token();
    let ask = async |region: &str, id: &str| {
        let body = json!({ "SecretId": id });
        aws_json_as(rig.daemon.tcp_port(), &token, region, "GetSecretValue", &body).await
    };
    let arn = ask("eu-west-1", "team-a/db").await.json()["ARN"].as_str().unwrap().to_owned();
    assert!(arn.starts_with("arn:aws:secretsmanager:eu-west-1:"), "{arn}");
    let own = format!("{ARN}team-a/db-AbCdEf");
    assert_eq!(ask("eu-west-1", &own).await.json()["ARN"], json!(own), "an ARN names its own region");
    let regions: Vec<String> = rig.aws.log().iter().map(|call| call.region.clone()).collect();
    assert_eq!(regions, ["eu-west-1", "us-west-2"]);
    let (_, code, _) = error(&ask("evil.example", "team-a/db").await);
    assert_eq!(code, "ValidationException");
}

#[tokio::test]
async fn a_body_that_is_too_long_or_never_comes_is_refused() {
    let rig = Rig::new(|setup| setup.tcp("token = \"none\"")).await;
    let head = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nX-Amz-Target: secretsmanager.GetSecretValue\r\n\
             Content-Length: {length}\r\n\r\n"
        )
    };
    let mut connection = Connection::open(&rig.daemon.tcp()).await.unwrap();
    connection.send(head(100_000).as_bytes()).await.unwrap();
    // The answer may come before all is sent.
    let _ = connection.send(&vec![b' '; 100_000]).await;
    let answer = connection.answer(false).await.unwrap().unwrap();
    assert_eq!((answer.status, error(&answer).1.as_str()), (413, "RequestEntityTooLargeException"));

    let mut silent = Connection::open(&rig.daemon.tcp()).await.unwrap();
    silent.send(head(10).as_bytes()).await.unwrap();
    let answer = silent.answer(false).await.unwrap().unwrap();
    assert_eq!(error(&answer).1, "SerializationException");
    assert!(silent.closes_within(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn the_daemon_never_calls_itself() {
    let aws = FakeAws::start();
    aws.put("a/b", "x");
    for variable in ["AWS_ENDPOINT_URL_SECRETS_MANAGER", "AWS_ENDPOINT_URL"] {
        let mut daemon =
            Setup::with_aws("").without("endpoint_url").section("[[listener]]\ntcp = \"127.0.0.1:27731\"");
        daemon = daemon.env(variable, "http://localhost:27731");
        let mut daemon = daemon.launch();
        assert_eq!(daemon.exit().await.code(), Some(2), "{}", daemon.log());
        let log = daemon.log();
        assert!(
            log.contains(&format!("{variable} is http://localhost:27731"))
                && log.contains("would call itself"),
            "{log}"
        );
    }
    // A daemon behind another one, by the variable alone: both read by the AWS SDK for Rust.
    let first = Setup::with_aws(&aws.url()).start().await;
    let second = Setup::with_aws("")
        .without("endpoint_url")
        .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", &format!("http://127.0.0.1:{}", first.tcp_port()))
        .env("AWS_ACCESS_KEY_ID", &first.token())
        .start()
        .await;
    assert_eq!(second.get("/secret/a/b").await.text(), "x");
    assert_eq!(aws.calls(), 1);
}

#[tokio::test]
async fn answers_that_nobody_reads_take_no_more_than_their_room() {
    let rig = Rig::new(Setup::quiet).await;
    // Each character takes six in JSON: twenty of these make an answer of more than 7 MiB.
    rig.aws.put("large", "\u{1}".repeat(65_000).as_str());
    assert_eq!(rig.get("large").await.status, 200);
    let body = json!({ "SecretIdList": vec!["large"; 20] }).to_string();
    let mut deaf = Vec::new();
    for _ in 0..20 {
        let mut connection = Connection::open(&rig.daemon.unix()).await.unwrap();
        let request = format!(
            "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: secretsmanager.BatchGetSecretValue\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.send(request.as_bytes()).await.unwrap();
        deaf.push(connection);
    }
    let refused = "smcached_rejected_total{listener=\"unix:s.sock\",reason=\"unread\"}";
    let patience = Duration::from_secs(20);
    eventually("some are refused", patience, async || rig.daemon.metric(refused).await >= 10).await;
    assert_eq!(rig.daemon.get("/secret/large").await.status, 200, "what is shared takes no room");
    drop(deaf);
    eventually("there is room again", patience, async || rig.get("large").await.status == 200).await;
}
