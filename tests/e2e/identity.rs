//! How the daemon comes by its identity and its way to AWS: roles, profiles, certificates, regions.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::daemon::Setup;
use crate::support::eventually;
use crate::support::fake_aws::FakeAws;
use crate::support::moto::Moto;
use crate::support::tls::self_signed;

#[tokio::test]
async fn a_group_is_read_by_the_role_that_it_names() {
    let moto = Moto::start().await;
    moto.create("prod/team-a/db", "x").await;
    let daemon = Setup::with_aws(&moto.url())
        .section("[groups.team-a]\nprefix = \"prod/team-a/\"\nrole_arn = \"arn:aws:iam::123456789012:role/reader\"")
        .start()
        .await;
    assert_eq!(daemon.get("/secret/team-a/db").await.text(), "x");
    let line = daemon.log().lines().find(|line| line.contains("using Secrets Manager")).map(str::to_owned);
    assert!(line.is_some_and(|line| line.contains("role/reader")), "{}", daemon.log());
}

#[tokio::test]
async fn a_role_that_cannot_be_assumed_is_said() {
    let aws = FakeAws::start();
    let daemon =
        Setup::with_aws(&aws.url()).aws("role_arn = \"arn:aws:iam::123456789012:role/none\"").start().await;
    let refused = daemon.get("/secret/db").await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "upstream_no_credentials"), "{refused:?}");
    assert!(refused.text().contains("check that the role exists"), "{refused:?}");
}

#[tokio::test]
async fn a_profile_of_the_shared_files_is_used() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    let daemon = Setup::with_aws(&aws.url())
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .aws("profile = \"reader\"")
        .file(
            ".aws/credentials",
            "[reader]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = x\n",
        )
        .start()
        .await;
    assert_eq!(daemon.get("/secret/db").await.text(), "x");
}

#[tokio::test]
async fn credentials_that_change_on_disk_are_picked_up() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    let file = |id: &str| format!("[default]\naws_access_key_id = {id}\naws_secret_access_key = x\n");
    let daemon = Setup::with_aws(&aws.url())
        .env("AWS_ACCESS_KEY_ID", "")
        .env("AWS_SECRET_ACCESS_KEY", "")
        .file(".aws/credentials", &file("AKIAFIRST"))
        .cache("ttl = \"500ms\"")
        .start()
        .await;
    assert_eq!(daemon.get("/secret/db").await.text(), "x");
    assert_eq!(aws.log()[0].access_key_id, "AKIAFIRST");
    // Half an edit: what is held is served on.
    std::fs::write(daemon.path(".aws/credentials"), "[default\n").unwrap();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(daemon.get("/secret/db").await.text(), "x");
    std::fs::write(daemon.path(".aws/credentials"), file("AKIASECOND")).unwrap();
    eventually("the new ones are used", Duration::from_secs(30), async || {
        daemon.get("/secret/db").await;
        aws.log().last().unwrap().access_key_id == "AKIASECOND"
    })
    .await;
    assert_eq!(daemon.get("/secret/db").await.text(), "x");
}

#[tokio::test]
async fn the_sdks_own_endpoint_variable_is_heeded() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    let daemon = Setup::with_aws("unused")
        .without("endpoint_url")
        .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", &aws.url())
        .start()
        .await;
    assert_eq!(daemon.get("/secret/db").await.text(), "x");
}

#[tokio::test]
async fn without_a_region_a_name_is_refused_with_advice_and_an_arn_is_read() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    let without_region = Setup::with_aws(&aws.url()).without("region");
    let daemon = without_region.start().await;
    let refused = daemon.get("/secret/db").await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "upstream_no_credentials"), "{refused:?}");
    assert!(refused.text().contains("no AWS region is known"), "{refused:?}");
    assert_eq!(daemon.get(&format!("/secret/{}/db-AbCdEf", crate::support::ARN)).await.text(), "x");
}

#[tokio::test]
async fn certificates_of_aws_ca_bundle_are_trusted_and_others_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(directory.path());
    let moto = Moto::start_tls(&certificate, &key).await;
    let url = format!("https://localhost:{}", moto.port());
    let trusting = Setup::with_aws(&url).env("AWS_CA_BUNDLE", certificate.to_str().unwrap()).start().await;
    let missing = trusting.get("/secret/none").await;
    assert_eq!((missing.status, missing.code().as_str()), (404, "secret_not_found"), "{}", trusting.log());

    let distrusting = Setup::with_aws(&url).start().await;
    let refused = distrusting.get("/secret/none").await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "upstream_unreachable"), "{refused:?}");

    let mut broken = Setup::with_aws(&url).env("AWS_CA_BUNDLE", "/none/such.pem").launch();
    assert_eq!(broken.exit().await.code(), Some(2));
    assert!(broken.log().contains("AWS_CA_BUNDLE names /none/such.pem"), "{}", broken.log());
}

#[tokio::test]
async fn two_roles_of_one_secret_are_two_values() {
    // moto answers whoever asks; what counts is that neither caller is served from the other's entry.
    let moto = Moto::start().await;
    moto.create("db", "x").await;
    let role = |name: &str| format!("[groups.{name}]\nrole_arn = \"arn:aws:iam::123456789012:role/{name}\"");
    let daemon = Setup::with_aws(&moto.url()).section(&role("one")).section(&role("two")).start().await;
    for path in ["/secret/one/db", "/secret/two/db", "/secret/db"] {
        let answer = daemon.get(path).await;
        assert_eq!(answer.header("cache-status"), "smcached; fwd=miss; stored", "{path}");
    }
}
