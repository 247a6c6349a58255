//! Flyte's convention against moto, with the one permission that its users are told to grant.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::moto::Moto;

#[tokio::test]
async fn an_arn_group_and_key_are_served_over_ttls_and_rotations_with_get_secret_value_alone() {
    let moto = Moto::start().await;
    let arn = moto.create("MySecret", "one").await;
    let (group, key) = arn.split_at(arn.find(":secret:").unwrap() + ":secret:".len());
    let (id, secret) = moto.only_allow("secretsmanager:GetSecretValue").await;
    let denied =
        crate::support::client::aws_json(moto.port(), "DescribeSecret", &json!({ "SecretId": arn })).await;
    assert_eq!(denied.status, 403, "IAM checks are on: {denied:?}");

    let daemon = Setup::with_aws(&moto.url())
        .env("AWS_ACCESS_KEY_ID", &id)
        .env("AWS_SECRET_ACCESS_KEY", &secret)
        .cache("ttl = \"1s\"")
        .start()
        .await;
    let path = format!("/secret/{group}/{key}");
    assert_eq!(daemon.get(&path).await.text(), "one");
    for _ in 0..12 {
        sleep(Duration::from_millis(300)).await;
        assert_eq!(daemon.get(&path).await.text(), "one");
    }
    let calls = "smcached_upstream_requests_total{operation=\"GetSecretValue\",result=\"success\"}";
    assert!(daemon.metric(calls).await >= 3, "it was refreshed over several ttls");

    moto.allow_all().await;
    moto.call("PutSecretValue", json!({ "SecretId": "MySecret", "SecretString": "two" })).await;
    eventually("the rotated value is served", Duration::from_secs(10), async || {
        daemon.get(&path).await.text() == "two"
    })
    .await;

    // Nothing but GetSecretValue was called: whatever else there was would be a series of its own.
    let page = daemon.ops_page("/metrics").await;
    let series: Vec<&str> =
        page.text().lines().filter(|line| line.starts_with("smcached_upstream_requests_total")).collect();
    assert!(series.iter().all(|line| line.starts_with(calls)), "{series:?}");
}

#[tokio::test]
async fn a_secret_deleted_at_moto_is_gone_from_the_cache() {
    let moto = Moto::start().await;
    moto.create("db", "x").await;
    let daemon = Setup::with_aws(&moto.url()).cache("ttl = \"500ms\"").start().await;
    assert_eq!(daemon.get("/secret/db").await.text(), "x");
    moto.call("DeleteSecret", json!({ "SecretId": "db" })).await;
    eventually("the secret is gone", Duration::from_secs(10), async || {
        daemon.get("/secret/db").await.status == 404
    })
    .await;
    assert_eq!(daemon.get("/secret/db").await.code(), "secret_deleted");
}
