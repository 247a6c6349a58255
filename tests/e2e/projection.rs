//! Secrets as files, by the built daemon.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::ARN;
use crate::support::daemon::{Daemon, Setup};
use crate::support::eventually;
use crate::support::fake_aws::{FakeAws, Stored};
use crate::support::faults::Fault;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory in memory, removed in the end.
fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn project(dir: &Path, lines: &str) -> String {
    format!("[[project]]\ndir = \"{}\"\n{lines}", dir.display())
}

async fn holds(path: &Path, content: &[u8]) {
    eventually(&format!("{} is as expected", path.display()), PATIENCE, async || {
        fs::read(path).is_ok_and(|found| found == content)
    })
    .await;
}

async fn is_gone(path: &Path) {
    eventually(&format!("{} is gone", path.display()), PATIENCE, async || !path.exists()).await;
}

async fn start(aws: &FakeAws, section: &str) -> Daemon {
    Setup::with_aws(&aws.url()).cache("ttl = \"1s\"").section(section).start().await
}

#[tokio::test]
async fn flytes_layout_follows_rotations_revocations_and_restorations() {
    let (aws, directory) = (FakeAws::start(), memory());
    let dir = directory.path().join("secrets");
    aws.put("MySecret", "old");
    aws.put("MySecret", "new");
    aws.put("team/Key", Stored::Binary(vec![0, 10, 255]));
    let lines = format!(
        "layout = \"flyte\"\nsecrets = [\"{ARN}/MySecret-AbCdEf\", \"{ARN}team/Key-AbCdEf\", \
         {{ secret = \"{ARN}/MySecret-AbCdEf\", version = \"AWSPREVIOUS\" }}]"
    );
    let daemon = start(&aws, &project(&dir, &lines)).await;
    let group = dir.join(ARN);
    // Ready means written.
    assert_eq!(fs::read(group.join("mysecret-abcdef")).unwrap(), b"new");
    assert_eq!(fs::read(group.join("awsprevious/mysecret-abcdef")).unwrap(), b"old");
    assert_eq!(fs::read(group.join("team/key-abcdef")).unwrap(), [0, 10, 255]);
    assert_eq!(fs::metadata(group.join("mysecret-abcdef")).unwrap().mode() & 0o777, 0o444);

    aws.put("MySecret", "newest");
    holds(&group.join("mysecret-abcdef"), b"newest").await;
    holds(&group.join("awsprevious/mysecret-abcdef"), b"new").await;
    aws.fail(Some(Fault::Refuse));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(group.join("mysecret-abcdef").exists(), "it stays while AWS is down");
    aws.fail(None);
    aws.delete("team/Key");
    is_gone(&group.join("team")).await;
    assert!(daemon.log().contains("a projected secret is gone"));
    assert!(!daemon.log().contains("not a memory file system"));
    assert!(daemon.metric("smcached_projection_writes_total{result=\"removed\"}").await >= 1);
}

#[tokio::test]
async fn a_field_a_path_and_a_mode_are_as_they_are_said_and_files_outlast_the_daemon() {
    let directory = memory();
    let lines = "secrets = [\"Team-A/Db\", { secret = \"Team-A/Db\", field = \"password\", path = \"db/pw\" }, \
                 { secret = \"Team-A/Db\", field = \"none\", path = \"none\" }]\nmode = \"0440\"\nowner = \"65534\"";
    let daemon = Setup::with_file("[[secret]]\nname = \"Team-A/Db\"\nstring = '{\"password\": \"p\"}'\n")
        .section(&project(directory.path(), lines))
        .start()
        .await;
    let at = |name: &str| directory.path().join(name);
    assert_eq!(fs::read_to_string(at("Team-A/Db")).unwrap(), "{\"password\": \"p\"}");
    assert_eq!(fs::read_to_string(at("db/pw")).unwrap(), "p");
    let found = fs::metadata(at("db/pw")).unwrap();
    assert_eq!((found.mode() & 0o777, found.uid()), (0o440, 65534));
    assert!(!at("none").exists() && daemon.log().contains("has no such field"));
    drop(daemon);
    assert!(at("db/pw").exists());
}

#[tokio::test]
async fn a_directory_that_is_switched_together_is_never_mixed() {
    let (aws, directory) = (FakeAws::start(), memory());
    let names = ["a", "b", "c"];
    for name in names {
        aws.put(name, "0");
    }
    let lines = "together = true\nsecrets = [\"a\", \"b\", { secret = \"c\", path = \"deep/er/c\" }]";
    let _daemon = start(&aws, &project(directory.path(), lines)).await;
    let root = directory.path().to_owned();
    holds(&root.join("deep/er/c"), b"0").await;
    for round in 1..=3 {
        let value = round.to_string();
        aws.put_all(&names, &value);
        holds(&root.join("a"), value.as_bytes()).await;
        // Through one look at the link all are of one set: they come in one batch, and so in one switch.
        let set = root.join(fs::read_link(root.join("..data")).unwrap());
        let read: Vec<_> =
            ["a", "b", "deep/er/c"].iter().map(|name| fs::read_to_string(set.join(name)).unwrap()).collect();
        assert_eq!(read, vec![value; 3]);
    }
    eventually("old sets are gone", PATIENCE, async || {
        let sets = fs::read_dir(&root)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_dir() && !entry.path().is_symlink());
        sets.count() == 1
    })
    .await;
    aws.delete("b");
    is_gone(&root.join("b")).await;
    assert_eq!(fs::read(root.join("a")).unwrap(), b"3");
}

#[tokio::test]
async fn a_program_or_a_process_is_told_of_a_change_and_not_of_the_first_writing() {
    let (aws, directory) = (FakeAws::start(), memory());
    aws.put("a", "0");
    let at = |name: &str| directory.path().join(name);
    let told: PathBuf = at("told");
    // Whoever runs the tests may have SIGHUP ignored, as nohup does.
    let mut waiting = Command::new("env")
        .args([
            "--default-signal=HUP",
            "sh",
            "-c",
            &format!(
                "trap 'touch {}; exit' HUP; touch {}; while :; do sleep 0.05; done",
                at("signalled").display(),
                at("ready").display()
            ),
        ])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the process listens", PATIENCE, async || at("ready").exists()).await;
    fs::write(at("pid"), waiting.id().to_string()).unwrap();
    let command = format!(
        "secrets = [\"a\"]\non_change = {{ command = [\"/usr/bin/touch\", \"{}\"] }}",
        told.display()
    );
    let signal = format!(
        "secrets = [\"a\"]\non_change = {{ signal = \"HUP\", pid_file = \"{}\" }}",
        at("pid").display()
    );
    let section = format!("{}\n{}", project(&at("one"), &command), project(&at("two"), &signal));
    let _daemon = start(&aws, &section).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!told.exists() && !at("signalled").exists());
    aws.put("a", "1");
    holds(&at("one/a"), b"1").await;
    eventually("both are told", PATIENCE, async || told.exists() && at("signalled").exists()).await;
    waiting.wait().unwrap();
}

#[tokio::test]
async fn a_reload_adds_and_removes_files_and_leaves_the_others_alone() {
    let directory = memory();
    let at = |name: &str| directory.path().join(name);
    let secrets =
        ["a", "b", "c"].map(|name| format!("[[secret]]\nname = \"{name}\"\nstring = \"{name}\"\n")).concat();
    let section = format!(
        "{}\n{}",
        project(&at("one"), "secrets = [\"a\", \"b\"]"),
        project(&at("two"), "secrets = [\"c\"]")
    );
    let daemon = Setup::with_file(&secrets).section(&section).start().await;
    let untouched = fs::metadata(at("two/c")).unwrap().ino();
    daemon.rewrite_config(|text| text.replace("secrets = [\"a\", \"b\"]", "secrets = [\"b\", \"c\"]"));
    daemon.signal("HUP");
    holds(&at("one/c"), b"c").await;
    is_gone(&at("one/a")).await;
    assert!(at("one/b").exists());
    assert_eq!(fs::metadata(at("two/c")).unwrap().ino(), untouched);
    daemon.rewrite_config(|text| text.replace("secrets = [\"b\", \"c\"]", "secrets = [\"b\", \"b\"]"));
    daemon.signal("HUP");
    daemon.logs("land on one path").await;
    assert!(at("one/c").exists(), "a wrong configuration changes nothing");
    let together = "together = true\nsecrets = [\"a\", { secret = \"b\", path = \"deep/b\" }]";
    daemon.rewrite_config(|text| text.replace("secrets = [\"b\", \"b\"]", together));
    daemon.signal("HUP");
    holds(&at("one/deep/b"), b"b").await;
    assert!(at("one/..data").exists());
    daemon.rewrite_config(|text| text.replace("together = true", "together = false"));
    daemon.signal("HUP");
    eventually("plain files are there", PATIENCE, async || {
        !at("one/..data").exists()
            && !at("one/deep").is_symlink()
            && at("one/deep/b").is_file()
            && at("one/a").is_file()
    })
    .await;
    assert_eq!(fs::read_dir(at("one")).unwrap().count(), 2, "no set of files is left behind");
}

#[tokio::test]
async fn a_file_that_could_not_be_written_is_written_once_it_can_be() {
    let directory = memory();
    let root = directory.path().join("root");
    fs::write(&root, "in the way").unwrap();
    let daemon = Setup::with_file("[[secret]]\nname = \"a\"\nstring = \"x\"\n")
        .section(&project(&root, "secrets = [\"a\"]"))
        .start()
        .await;
    daemon.logs("a secret cannot be written to its file").await;
    fs::remove_file(&root).unwrap();
    holds(&root.join("a"), b"x").await;
}

#[tokio::test]
async fn a_directory_on_a_disk_is_warned_about() {
    let Ok(kind) = Command::new("stat").args(["--file-system", "--format", "%T", "target"]).output() else {
        return;
    };
    assert_ne!(kind.stdout, b"tmpfs\n", "the build directory is on a disk");
    let directory = tempfile::tempdir_in(crate::support::in_repository("target")).unwrap();
    let daemon = Setup::with_file("[[secret]]\nname = \"a\"\nstring = \"x\"\n")
        .section(&project(directory.path(), "secrets = [\"a\"]"))
        .start()
        .await;
    daemon.logs("not a memory file system").await;
    assert!(directory.path().join("a").exists());
}
