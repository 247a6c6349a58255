//! `GET /secret/<group>/<key>`, as its callers see it.

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::support::ARN;
use crate::support::client::{self, Connection};
use crate::support::daemon::{Daemon, Setup};

fn secrets() -> String {
    format!(
        r#"
        [[secret]]
        name = "team-a/db"
        string = '{{"user": "ada", "n": 1.10, "nested": {{"a/b": ["x", "y"]}}}}'

        [[secret]]
        arn = "{ARN}MySecret-AbCdEf"
        string = "hello"

        [[secret]]
        arn = "{ARN}/leading-AbCdEf"
        string = "slash"

        [[secret]]
        name = "plain"
        string = "no group"

        [[secret]]
        name = "rotated/key"
        [[secret.version]]
        id = "11111111-2222-4333-8444-555555555555"
        stages = ["AWSCURRENT"]
        string = "new"
        [[secret.version]]
        id = "11111111-2222-4333-8444-666666666666"
        stages = ["AWSPREVIOUS", "mine"]
        string = "old"
        "#
    )
}

async fn daemon() -> Daemon {
    Setup::with_file(&secrets()).section("[groups.alias]\nprefix = \"team-a/\"").start().await
}

#[tokio::test]
async fn every_way_to_name_a_secret_finds_it() {
    let daemon = daemon().await;
    let group = ARN.trim_end_matches(':');
    let cases = [
        ("/secret/team-a/db?field=user".to_owned(), "ada"),
        ("/secret/alias/db?field=user".to_owned(), "ada"),
        ("/secret/team-a%2Fdb?field=user".to_owned(), "ada"),
        ("/secret/%74eam-a/%64b?field=user".to_owned(), "ada"),
        (format!("/secret/{ARN}/MySecret-AbCdEf"), "hello"),
        (format!("/secret/{group}/MySecret-AbCdEf"), "hello"),
        (format!("/secret/{}/MySecret-AbCdEf", ARN.replace(':', "%3a")), "hello"),
        (format!("/secret/{ARN}MySecret-AbCdEf"), "hello"),
        (format!("/secret/{ARN}MySecret"), "hello"),
        (format!("/secret/{ARN}//leading-AbCdEf"), "slash"),
        (format!("/secret/{ARN}%2Fleading-AbCdEf"), "slash"),
        ("/secret/plain".to_owned(), "no group"),
    ];
    for (path, expected) in cases {
        let answer = daemon.get(&path).await;
        assert_eq!((answer.status, answer.text()), (200, expected), "{path}");
    }
}

#[tokio::test]
async fn a_hit_has_these_headers_and_no_more() {
    let daemon = daemon().await;
    let miss = daemon.get("/secret/plain").await;
    assert_eq!(miss.header("cache-status"), "smcached; fwd=miss; stored");
    let hit = daemon.get("/secret/plain").await;
    let mut names: Vec<&str> = hit.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["age", "cache-control", "cache-status", "content-length", "content-type", "etag"]);
    assert_eq!(hit.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(hit.header("cache-control"), "no-store");
    let (age, ttl) = (hit.header("age"), hit.header("cache-status").rsplit_once('=').unwrap().1);
    assert!(hit.header("cache-status").starts_with("smcached; hit; ttl="));
    assert_eq!(age.parse::<u32>().unwrap() + ttl.parse::<u32>().unwrap(), 300);
}

/// What is read again in the same words takes a shorter way through the daemon, unless something special is asked for.
#[tokio::test]
async fn the_short_way_answers_as_the_long_one() {
    const LONG_WAY: &[(&str, &str)] = &[("accept", "text/plain, application/octet-stream")];
    let binary = "\n[[secret]]\nname = \"binary\"\nbinary = \"AAECAw==\"";
    let daemon = Setup::with_file(&(secrets() + binary)).start().await;
    let comparable = |answer: client::Answer| {
        let mut headers = answer.headers.clone();
        headers.retain(|(name, _)| !matches!(name.as_str(), "age" | "cache-status"));
        headers.sort();
        let status: String = answer.header("cache-status").chars().filter(|c| !c.is_ascii_digit()).collect();
        (answer.status, headers, status, answer.body)
    };
    for path in ["/secret/plain", "/secret/team-a/db", "/secret/%74eam-a/db", "/secret/binary"] {
        daemon.get(path).await;
        let expected = comparable(daemon.get_with(path, LONG_WAY).await);
        assert_eq!(expected.0, 200);
        for _ in 0..3 {
            assert_eq!(comparable(daemon.get(path).await), expected, "{path}");
            let by_curl = daemon.get_with(path, &[("accept", "*/*")]).await;
            assert_eq!(comparable(by_curl), expected, "{path}");
        }
    }
    let page = daemon.ops_page("/metrics").await;
    let is_count = |line: &&str| line.contains("route=\"secret\",status=\"200\"") && line.contains("unix:");
    let counted = page.text().lines().filter(is_count).find_map(|line| line.rsplit_once(' '));
    assert_eq!(counted.unwrap().1, "32");
    // All but the first of each secret, two of the paths being spellings of one.
    assert_eq!(daemon.metric("smcached_cache_requests_total{group=\"default\",result=\"hit\"}").await, 29);
}

#[tokio::test]
async fn what_the_short_way_knows_is_forgotten_with_the_groups() {
    let daemon = Setup::with_file(&secrets()).section("[groups.alias]\nprefix = \"team-a/\"").start().await;
    for _ in 0..4 {
        assert_eq!(daemon.get("/secret/alias/db").await.status, 200);
    }
    daemon.rewrite_config(|text| text.replace("prefix = \"team-a/\"", "prefix = \"rotated/\""));
    daemon.signal("HUP");
    daemon.logs("reloaded").await;
    assert_eq!(daemon.get("/secret/alias/db").await.status, 404);
    assert_eq!(daemon.get("/secret/alias/key").await.text(), "new");
}

#[tokio::test]
async fn versions_are_chosen_by_stage_and_id() {
    let daemon = daemon().await;
    let cases = [
        ("", "new"),
        ("?version_stage=AWSCURRENT", "new"),
        ("?version_stage=AWSPREVIOUS", "old"),
        ("?version_stage=mine", "old"),
        ("?version_id=11111111-2222-4333-8444-666666666666", "old"),
        ("?version_id=11111111-2222-4333-8444-666666666666&version_stage=AWSPREVIOUS", "old"),
    ];
    for (query, expected) in cases {
        assert_eq!(daemon.get(&format!("/secret/rotated/key{query}")).await.text(), expected, "{query}");
    }
    assert_eq!(
        daemon.get("/secret/rotated/key").await.header("etag"),
        "\"11111111-2222-4333-8444-555555555555\""
    );
    let missing = daemon.get("/secret/rotated/key?version_stage=none").await;
    assert_eq!((missing.status, missing.code().as_str()), (404, "secret_not_found"));
}

#[tokio::test]
async fn a_field_is_cut_out_of_a_json_secret() {
    let daemon = daemon().await;
    let field = async |field: &str| daemon.get(&format!("/secret/team-a/db?field={field}")).await;
    assert_eq!(field("n").await.text(), "1.10");
    assert_eq!(field("/nested/a~1b/1").await.text(), "y");
    let user = field("user").await;
    assert!(user.header("etag").ends_with("#user\""), "{}", user.header("etag"));
    for (path, code) in [("team-a/db?field=none", "field_not_found"), ("plain?field=x", "field_not_found")] {
        let answer = daemon.get(&format!("/secret/{path}")).await;
        assert_eq!((answer.status, answer.code().as_str()), (404, code));
    }
}

#[tokio::test]
async fn the_metadata_form_has_aws_own_names() {
    let daemon = daemon().await;
    let answer = daemon.get_with("/secret/rotated/key", &[("Accept", "application/json")]).await;
    assert_eq!(answer.header("content-type"), "application/json");
    let json = answer.json();
    assert_eq!(json["Name"], "rotated/key");
    assert_eq!(json["VersionId"], "11111111-2222-4333-8444-555555555555");
    assert_eq!(json["VersionStages"], serde_json::json!(["AWSCURRENT"]));
    assert_eq!(json["SecretString"], "new");
    assert!(json["ARN"].as_str().unwrap().starts_with("arn:aws:secretsmanager:"));
    assert!(json.get("SecretBinary").is_none());
}

#[tokio::test]
async fn head_and_conditional_requests_send_no_body() {
    let daemon = daemon().await;
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    let head = connection.request("HEAD", "/secret/plain", &[]).await.unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, "8"));
    let etag = head.header("etag").to_owned();
    let known = connection.get("/secret/plain", &[("If-None-Match", &etag)]).await.unwrap();
    assert_eq!((known.status, known.header("etag")), (304, etag.as_str()));
    assert!(!known.header("age").is_empty() && !known.header("cache-status").is_empty());
    let other = connection.get("/secret/plain", &[("If-None-Match", "\"other\"")]).await.unwrap();
    assert_eq!((other.status, other.text()), (200, "no group"));
}

#[tokio::test]
async fn every_malformed_name_or_parameter_has_its_code_and_the_connection_survives() {
    let daemon = daemon().await;
    let long = "a".repeat(2049);
    let cases = [
        ("/secret/", 400, "empty_segment"),
        ("/secret/a/", 400, "empty_segment"),
        ("/secret//a", 400, "empty_segment"),
        ("/secret/a//b", 400, "empty_segment"),
        ("/secret/a/./b", 400, "dot_segment"),
        ("/secret/a/%2e%2E/b", 400, "dot_segment"),
        ("/secret/a/b%20c", 400, "invalid_character"),
        ("/secret/a/b%00", 400, "invalid_character"),
        ("/secret/a/b%C3%A9", 400, "invalid_character"),
        ("/secret/a/b:c", 400, "invalid_character"),
        ("/secret/a/b%", 400, "invalid_percent_encoding"),
        ("/secret/a/b%FF", 400, "invalid_utf8"),
        ("/secret/arn:aws:s3:::bucket/key", 400, "invalid_arn"),
        ("/secret/arn:aws:secretsmanager:us-west-2:1:secret:/k", 400, "invalid_arn"),
        ("/secret/a/b?field=x&field=y", 400, "repeated_parameter"),
        ("/secret/a/b?what=x", 400, "unknown_parameter"),
        ("/secret/a/b?version_id=", 400, "invalid_parameter"),
        ("/secret", 404, "route_not_found"),
        ("/other", 404, "route_not_found"),
        ("/secret/a/none", 404, "secret_not_found"),
    ];
    let mut connection = Connection::open(&daemon.unix()).await.unwrap();
    for (path, status, code) in cases {
        let answer = connection.get(path, &[]).await.unwrap();
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path}");
    }
    let answer = connection.get(&format!("/secret/a/{long}"), &[]).await.unwrap();
    assert_eq!((answer.status, answer.code().as_str()), (400, "id_too_long"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = connection.request(method, "/secret/plain", &[]).await.unwrap();
        assert_eq!((answer.status, answer.header("allow")), (405, "GET, HEAD"), "{method}");
    }
    assert_eq!(connection.get("/secret/plain", &[]).await.unwrap().status, 200);
}

#[tokio::test]
async fn tcp_needs_the_token_in_either_header() {
    let daemon = daemon().await;
    let token = daemon.token();
    let bearer = format!("Bearer {token}");
    let ask = async |headers: &[(&str, &str)]| client::get(&daemon.tcp(), "/secret/plain", headers).await;
    let missing = ask(&[]).await;
    assert_eq!((missing.status, missing.code().as_str()), (401, "token_missing"));
    assert_eq!(missing.header("www-authenticate"), "Bearer");
    assert_eq!(ask(&[("X-Aws-Parameters-Secrets-Token", "wrong")]).await.code(), "token_wrong");
    assert_eq!(ask(&[("X-Aws-Parameters-Secrets-Token", &token)]).await.text(), "no group");
    assert_eq!(ask(&[("Authorization", &bearer)]).await.text(), "no group");
    for path in ["/healthz", "/ping"] {
        assert_eq!(client::get(&daemon.tcp(), path, &[]).await.status, 200, "{path} needs no token");
    }
    let forwarded = [("X-Aws-Parameters-Secrets-Token", token.as_str()), ("X-Forwarded-For", "1.2.3.4")];
    assert_eq!(ask(&forwarded).await.code(), "forwarded_request");
    let reason = format!(
        "smcached_rejected_total{{listener=\"tcp:127.0.0.1:{}\",reason=\"token_wrong\"}}",
        daemon.tcp_port()
    );
    assert!(daemon.metric(&reason).await >= 1);
}

#[tokio::test]
async fn a_listener_may_be_limited_to_patterns_and_users() {
    let daemon = Setup::with_file(&secrets())
        .unix("allow_secrets = [\"team-a/*\"]")
        .tcp("token = \"none\"")
        .start()
        .await;
    assert_eq!(daemon.get("/secret/team-a/db").await.status, 200);
    for path in ["/secret/plain", "/secret/none/such"] {
        let refused = daemon.get(path).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "caller_not_allowed"), "{path}");
    }
    assert_eq!(client::get(&daemon.tcp(), "/secret/plain", &[]).await.status, 200);

    let daemon = Setup::with_file(&secrets()).unix("allow_uids = [4242]").start().await;
    assert_eq!(daemon.get("/secret/plain").await.code(), "caller_not_allowed");
}

#[tokio::test]
async fn unlisted_groups_can_be_denied() {
    let daemon = Setup::with_file(&secrets())
        .cache("unlisted_groups = \"deny\"")
        .section("[groups.alias]\nprefix = \"team-a/\"")
        .start()
        .await;
    assert_eq!(daemon.get("/secret/alias/db").await.status, 200);
    assert_eq!(daemon.get(&format!("/secret/{ARN}/MySecret-AbCdEf")).await.status, 200);
    for path in ["/secret/team-a/db", "/secret/team-a%2Fdb", "/secret/plain"] {
        assert_eq!(daemon.get(path).await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn every_value_comes_back_byte_for_byte_through_curl() {
    let every_byte: Vec<u8> = (0..=255).collect();
    let values: [(&str, Vec<u8>, bool); 6] = [
        ("largest", vec![b'x'; 65_536], true),
        ("empty", Vec::new(), true),
        ("text", "grüße, 世界 🌍\r\n\ttab \"quotes\" \\ end\n".as_bytes().to_vec(), true),
        ("zeros", vec![0; 1000], false),
        ("bytes", every_byte, false),
        ("largest-binary", vec![0xff; 65_536], false),
    ];
    let legal = "AZaz09/_+=.@-";
    let mut file = format!("[[secret]]\nname = \"g/{legal}\"\nstring = \"legal\"\n");
    for (name, value, is_text) in &values {
        let value = if *is_text {
            format!("string = {}", toml::Value::from(std::str::from_utf8(value).unwrap()))
        } else {
            format!("binary = \"{}\"", STANDARD.encode(value))
        };
        file.push_str(&format!("[[secret]]\nname = \"g/{name}\"\n{value}\n"));
    }
    let daemon = Setup::with_file(&file).start().await;
    for (name, value, is_text) in values {
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--fail", "--unix-socket"])
            .arg(daemon.path("s.sock"))
            .args(["--write-out", "%{stderr}%{content_type}"])
            .arg(format!("http://localhost/secret/g/{name}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == value, "{name} differs");
        let expected = if is_text { "text/plain; charset=utf-8" } else { "application/octet-stream" };
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
    }
    assert_eq!(daemon.get(&format!("/secret/g/{legal}")).await.text(), "legal");
}
