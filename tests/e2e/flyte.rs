//! Flyte's convention against moto, with the one permission that its users are told to grant.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::moto::Moto;
use crate::support::{eventually, python};

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

/// flytekit's own task in a directory of its own; prints the value.
fn task(home: &Path, group: &str, key: &str, version: &[&str]) -> Command {
    let mut command = python::script("flytekit", "flyte_task.py", home);
    command.args([group, key]).args(version);
    command
}

/// A secret at moto with two versions, and a daemon that writes both where flytekit looks.
async fn with_flytekit() -> (Moto, Daemon, String, String, tempfile::TempDir) {
    let moto = Moto::start().await;
    moto.create("MySecret", "one").await;
    moto.call("PutSecretValue", json!({ "SecretId": "MySecret", "SecretString": "two" })).await;
    let arn = moto.call("DescribeSecret", json!({ "SecretId": "MySecret" })).await["ARN"]
        .as_str()
        .unwrap()
        .to_owned();
    let (group, key) = arn.split_at(arn.find(":secret:").unwrap() + ":secret:".len());
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let dir = directory.path().display();
    let project = format!(
        "[[project]]\ndir = \"{dir}\"\nlayout = \"flyte\"\nsecrets = [\"{group}/{key}\", \
         {{ secret = \"{group}/{key}\", version = \"AWSPREVIOUS\" }}]"
    );
    let daemon = Setup::with_aws(&moto.url()).cache("ttl = \"1s\"").section(&project).start().await;
    (moto, daemon, group.to_owned(), key.to_owned(), directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flytekits_own_task_reads_a_secret_in_all_three_ways_and_again_after_a_rotation() {
    let (moto, daemon, group, key, directory) = with_flytekit().await;
    let home = daemon.path("");
    let volume = tempfile::tempdir().unwrap();
    let files = |version: &[&str]| {
        let mut command = task(&home, &group, &key, version);
        python::printed(&command.env("FLYTE_SECRETS_DEFAULT_DIR", directory.path()).output().unwrap())
    };
    let by_exec = || {
        let program = task(&home, &group, &key, &[]);
        let mut command = smcached(&home);
        command
            .args(["exec", "--socket", "s.sock", "--flyte", &format!("{group}/{key}"), "--"])
            .arg(program.get_program())
            .args(program.get_args());
        python::printed(&command.output().unwrap())
    };
    // As the webhook has it: an init container with two variables, then the task with the volume.
    let by_init = || {
        let mut init = smcached(&home);
        let filename = format!("/{}/{}", group.to_lowercase(), key.to_lowercase());
        let fetched = init
            .args(["init", "--dir"])
            .arg(volume.path())
            .env("SECRET_ARN", format!("{group}{key}"))
            .env("SECRET_FILENAME", filename)
            .env("SMCACHED_ADDRESS", format!("unix:{}", daemon.path("s.sock").display()))
            .output()
            .unwrap();
        assert!(fetched.status.success(), "{fetched:?}");
        let mut command = task(&home, &group, &key, &[]);
        python::printed(&command.env("FLYTE_SECRETS_DEFAULT_DIR", volume.path()).output().unwrap())
    };
    assert_eq!([files(&[]), by_exec(), by_init()], ["two"; 3]);
    assert_eq!(files(&["AWSPREVIOUS"]), "one");

    moto.call("PutSecretValue", json!({ "SecretId": "MySecret", "SecretString": "three" })).await;
    let path = format!("/secret/{group}/{key}");
    eventually("the rotation is seen", Duration::from_secs(20), async || {
        daemon.get(&path).await.text() == "three"
    })
    .await;
    let file = directory.path().join(group.to_lowercase()).join(key.to_lowercase());
    eventually("the file follows", Duration::from_secs(20), async || {
        std::fs::read_to_string(&file).is_ok_and(|text| text == "three")
    })
    .await;
    assert_eq!([files(&[]), by_exec(), by_init()], ["three"; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_pods_init_containers_cost_one_call_a_secret() {
    use crate::support::fake_aws::FakeAws;
    const PODS: usize = 1000;
    const SECRETS: usize = 5;
    let aws = FakeAws::start();
    for index in 0..SECRETS {
        aws.put(&format!("team/{index}"), "x");
    }
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"1h\"").start().await;
    let address = format!("unix:{}", daemon.path("s.sock").display());
    let volumes = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut pods = tokio::task::JoinSet::new();
    for pod in 0..PODS {
        let (address, home) = (address.clone(), daemon.path(""));
        let volume = volumes.path().join(pod.to_string());
        pods.spawn_blocking(move || {
            std::fs::create_dir(&volume).unwrap();
            let output = smcached(&home)
                .args(["init", "--dir"])
                .arg(&volume)
                .env("SECRET_ARN", format!("{}team/{}-AbCdEf", crate::support::ARN, pod % SECRETS))
                .env("SECRET_FILENAME", "/group/key")
                .env("SMCACHED_ADDRESS", address)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            assert_eq!(std::fs::read(volume.join("group/key")).unwrap(), b"x");
        });
        // So many run at a time on a node that starts pods in bulk.
        if pods.len() == 50 {
            pods.join_next().await.unwrap().unwrap();
        }
    }
    pods.join_all().await;
    assert_eq!(aws.calls(), SECRETS);
}
