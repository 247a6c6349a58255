//! Another configuration while the daemon runs: nothing held is lost, no connection is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::client::{self, Connection};
use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::fake_aws::FakeAws;

const PATIENCE: Duration = Duration::from_secs(20);

async fn reloads(daemon: &Daemon, result: &str) -> u64 {
    daemon.metric(&format!("smcached_config_reloads_total{{result=\"{result}\"}}")).await
}

/// Sends SIGHUP and waits until that has had its effect.
async fn hang_up(daemon: &Daemon, result: &str) {
    let before = reloads(daemon, result).await;
    daemon.signal("HUP");
    eventually(&format!("a reload with {result}"), PATIENCE, async || {
        reloads(daemon, result).await == before + 1
    })
    .await;
}

#[tokio::test]
async fn groups_lifetimes_tokens_and_rules_change_and_the_cache_and_connections_stay() {
    let aws = FakeAws::start();
    for name in ["team-a/db", "prod/db", "other"] {
        aws.put(name, name);
    }
    let daemon = Setup::with_aws(&aws.url()).file("new-token", "sesame").start().await;
    let mut kept = Connection::open(&daemon.unix()).await.unwrap();
    for path in ["/secret/team-a/db", "/secret/other"] {
        assert_eq!(kept.get(path, &[]).await.unwrap().status, 200);
    }
    let old_token = daemon.token();
    let presented = async |token: &str| {
        let headers = [("X-Aws-Parameters-Secrets-Token", token)];
        client::get(&daemon.tcp(), "/secret/team-a/db", &headers).await.status
    };
    assert_eq!((presented(&old_token).await, presented("sesame").await), (200, 401));
    daemon.rewrite_config(|text| {
        let text = text.replace("token_file = \"token\"", "token_file = \"new-token\"");
        let text = text
            .replace("unix = \"s.sock\"", "unix = \"s.sock\"\nallow_secrets = [\"team-a/*\", \"prod/*\"]");
        format!("{text}[groups.prod]\nprefix = \"prod/\"\nttl = \"1s\"\n")
    });
    let calls = aws.calls();
    hang_up(&daemon, "success").await;
    let held = kept.get("/secret/team-a/db", &[]).await.unwrap();
    assert!(held.header("cache-status").starts_with("smcached; hit; ttl="), "{held:?}");
    assert_eq!(aws.calls(), calls, "what was held is held");
    assert_eq!(kept.get("/secret/other", &[]).await.unwrap().code(), "caller_not_allowed");
    assert_eq!((presented(&old_token).await, presented("sesame").await), (401, 200));
    assert_eq!(kept.get("/secret/prod/db", &[]).await.unwrap().text(), "prod/db");
    assert_eq!(daemon.metric("smcached_cache_requests_total{group=\"prod\",result=\"miss\"}").await, 1);
    aws.put("prod/db", "rotated");
    eventually("the group's own ttl holds", PATIENCE, async || {
        daemon.get("/secret/prod/db").await.text() == "rotated"
    })
    .await;
}

#[tokio::test]
async fn a_bad_file_is_refused_with_its_error_and_the_old_one_stays() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    let daemon = Setup::with_aws(&aws.url()).start().await;
    daemon.rewrite_config(|text| text.replace("[cache]", "[cache]\nttl = \"soon\""));
    hang_up(&daemon, "failure").await;
    assert!(daemon.log().contains("the old one stays in effect"));
    assert!(daemon.log().contains("smcached.toml:"), "the log has the place: {}", daemon.log());
    assert_eq!(daemon.get("/secret/db").await.status, 200);
    daemon.rewrite_config(|text| text.replace("ttl = \"soon\"", "ttl = \"30s\"\nmax_bytes = \"1MiB\""));
    hang_up(&daemon, "success").await;
    daemon.logs("cache.max_bytes").await;
    assert!(daemon.log().contains("take effect with the next start"));
    // A token file that cannot be made is an error of the new configuration, too.
    daemon.rewrite_config(|text| {
        text.replace("token_file = \"token\"", "token_file = \"no/such/place/token\"")
    });
    hang_up(&daemon, "failure").await;
    std::fs::remove_file(daemon.path("smcached.toml")).unwrap();
    hang_up(&daemon, "failure").await;
    assert_eq!(reloads(&daemon, "success").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_fail_no_read_and_are_counted() {
    let aws = FakeAws::start();
    for index in 0..20 {
        aws.put(&format!("hot/{index}"), "x");
    }
    let daemon = Setup::with_aws(&aws.url()).cache("ttl = \"1s\"").start().await;
    let is_over = Arc::new(AtomicBool::new(false));
    let mut readers = JoinSet::new();
    for _ in 0..16 {
        let (address, is_over) = (daemon.unix(), Arc::clone(&is_over));
        readers.spawn(async move {
            // One connection throughout.
            let mut connection = Connection::open(&address).await.unwrap();
            let mut reads = 0;
            while !is_over.load(Ordering::Relaxed) {
                let answer = connection.get(&format!("/secret/hot/{}", reads % 20), &[]).await.unwrap();
                assert_eq!((answer.status, answer.text()), (200, "x"));
                reads += 1;
            }
            reads
        });
    }
    let good = std::fs::read_to_string(daemon.path("smcached.toml")).unwrap();
    for round in 0..100 {
        let text = match round % 4 {
            0 => good.replace("ttl = \"1s\"", "ttl = \"2s\""),
            1 => good.replace("ttl = \"1s\"", "ttl = 1"),
            2 => format!("{good}[refresh]\nrate = 20\n[groups.hot]\nprefix = \"hot/\"\n"),
            _ => format!("{good}[[listener]\n"),
        };
        daemon.rewrite_config(|_| text);
        hang_up(&daemon, if round % 2 == 0 { "success" } else { "failure" }).await;
    }
    is_over.store(true, Ordering::Relaxed);
    let reads = readers.join_all().await.into_iter().sum::<u32>();
    assert!(reads > 1000, "{reads}");
    assert_eq!((reloads(&daemon, "success").await, reloads(&daemon, "failure").await), (50, 50));
}

#[tokio::test]
async fn a_watched_file_is_reloaded_when_kubernetes_swaps_its_directory() {
    let aws = FakeAws::start();
    aws.put("prod/db", "x");
    // As a ConfigMap is mounted: the file is a link into `..data`, which is a link to a dated directory.
    let daemon = Setup::with_aws(&aws.url()).top("reload = \"watch\"").linked_config().start().await;
    assert_eq!(daemon.get("/secret/live/db").await.status, 404);
    let text = std::fs::read_to_string(daemon.path("smcached.toml")).unwrap();
    std::fs::create_dir(daemon.path("..second")).unwrap();
    let text = format!("{text}[groups.live]\nprefix = \"prod/\"\n");
    std::fs::write(daemon.path("..second/smcached.toml"), text).unwrap();
    std::os::unix::fs::symlink("..second", daemon.path("..data_tmp")).unwrap();
    std::fs::rename(daemon.path("..data_tmp"), daemon.path("..data")).unwrap();
    eventually("the new group is known", PATIENCE, async || {
        daemon.get("/secret/live/db").await.status == 200
    })
    .await;
    assert_eq!(reloads(&daemon, "success").await, 1);
}

#[tokio::test]
async fn secrets_with_a_tag_are_preloaded_and_what_is_wanted_may_change() {
    let aws = FakeAws::start();
    aws.set_page(2);
    for index in 0..5 {
        aws.put(&format!("tagged/{index}"), "x");
        aws.tag(&format!("tagged/{index}"), "smcached", "preload");
    }
    for (name, key, value) in
        [("near", "smcached", "preload-not"), ("far", "smcached-2", "preload"), ("b", "tier", "1")]
    {
        aws.put(name, "x");
        aws.tag(name, key, value);
    }
    let daemon = Setup::with_aws(&aws.url())
        .cache("ttl = \"1s\"\npreload_tags = [\"smcached=preload\"]")
        .start()
        .await;
    assert_eq!(daemon.metric("smcached_cache_entries").await, 5, "before it is ready");
    assert!(daemon.get("/secret/tagged/3").await.header("cache-status").contains("; hit;"));
    aws.put("tagged/4", "rotated");
    eventually("kept fresh, though nobody reads it", PATIENCE, async || {
        let only = [("Cache-Control", "only-if-cached")];
        daemon.get_with("/secret/tagged/4", &only).await.text() == "rotated"
    })
    .await;
    daemon.rewrite_config(|text| text.replace("[\"smcached=preload\"]", "[\"smcached=preload\", \"tier\"]"));
    hang_up(&daemon, "success").await;
    eventually("the new tag counts", PATIENCE, async || daemon.metric("smcached_cache_entries").await == 6)
        .await;
}

#[tokio::test]
async fn that_listing_is_denied_is_said_once_and_readiness_comes() {
    let aws = FakeAws::start();
    aws.put("db", "x");
    aws.deny_action("ListSecrets", true);
    let daemon =
        Setup::with_aws(&aws.url()).cache("preload = [\"db\"]\npreload_tags = [\"smcached\"]").start().await;
    assert_eq!(daemon.metric("smcached_cache_entries").await, 1);
    assert_eq!(daemon.log().matches("the secrets with this tag cannot be listed").count(), 1);
}
