//! One suite of what Secrets Manager answers, run on the fake and on moto: each checks the other. What
//! moto is known to do otherwise than AWS is listed, and checked to be still so.

use serde_json::{Value, json};

use crate::support::client::{Answer, aws_json};
use crate::support::fake_aws::FakeAws;
use crate::support::moto::Moto;

/// Whose answers are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Fake,
    Moto,
}

/// The name of an error, as AWS has it in its body.
fn code(answer: &Answer) -> String {
    let json = answer.json();
    json["__type"].as_str().unwrap_or_default().rsplit('#').next().unwrap().to_owned()
}

/// What the suite needs to be there: `db` with a value `new` and one before, `gone` marked for deletion.
async fn check(whose: Whose, port: u16, arn: &str) {
    let get = async |body: Value| aws_json(port, "GetSecretValue", &body).await;

    let by_name = get(json!({ "SecretId": "db", "VersionStage": "AWSCURRENT" })).await;
    assert_eq!(by_name.status, 200, "{whose:?}");
    let current = by_name.json();
    assert_eq!((&current["Name"], &current["SecretString"]), (&json!("db"), &json!("new")), "{whose:?}");
    assert_eq!(current["ARN"], json!(arn), "{whose:?}");
    assert_eq!(current["VersionStages"], json!(["AWSCURRENT"]), "{whose:?}");
    assert!(current["CreatedDate"].is_number(), "{whose:?}");

    for id in [arn, &arn[..arn.len() - 7]] {
        let by_arn = get(json!({ "SecretId": id, "VersionStage": "AWSCURRENT" })).await.json();
        assert_eq!(by_arn["VersionId"], current["VersionId"], "{whose:?} {id}");
    }

    let previous = get(json!({ "SecretId": "db", "VersionStage": "AWSPREVIOUS" })).await.json();
    assert_eq!(previous["SecretString"], "old", "{whose:?}");
    let by_id = get(json!({ "SecretId": "db", "VersionId": previous["VersionId"] })).await.json();
    assert_eq!(by_id["SecretString"], "old", "{whose:?}");

    let missing = get(json!({ "SecretId": "none", "VersionStage": "AWSCURRENT" })).await;
    assert_eq!(code(&missing), "ResourceNotFoundException", "{whose:?}");
    // Known difference: AWS says 400 where moto says 404.
    assert_eq!(missing.status, if whose == Whose::Moto { 404 } else { 400 });

    let no_stage = get(json!({ "SecretId": "db", "VersionStage": "none" })).await;
    assert_eq!(code(&no_stage), "ResourceNotFoundException", "{whose:?}");

    let deleted = get(json!({ "SecretId": "gone", "VersionStage": "AWSCURRENT" })).await;
    assert_eq!((deleted.status, code(&deleted).as_str()), (400, "InvalidRequestException"), "{whose:?}");
    assert!(deleted.text().to_lowercase().contains("marked"), "{whose:?}: {}", deleted.text());

    let batch =
        aws_json(port, "BatchGetSecretValue", &json!({ "SecretIdList": ["db", "none"] })).await.json();
    assert_eq!(batch["SecretValues"][0]["SecretString"], "new", "{whose:?}");
    assert_eq!(batch["Errors"][0]["SecretId"], "none", "{whose:?}");
    assert_eq!(batch["Errors"][0]["ErrorCode"], "ResourceNotFoundException", "{whose:?}");
}

#[tokio::test]
async fn the_fake_answers_as_aws_does() {
    let aws = FakeAws::start();
    aws.put("db", "old");
    aws.put("db", "new");
    aws.put("gone", "x");
    aws.delete("gone");
    check(Whose::Fake, aws.port(), &format!("{}db-AbCdEf", crate::support::ARN)).await;
}

#[tokio::test]
async fn moto_answers_as_the_fake_does() {
    let moto = Moto::start().await;
    let arn = moto.create("db", "old").await;
    moto.call("PutSecretValue", json!({ "SecretId": "db", "SecretString": "new" })).await;
    moto.create("gone", "x").await;
    moto.call("DeleteSecret", json!({ "SecretId": "gone" })).await;
    check(Whose::Moto, moto.port(), &arn).await;
}
