//! `smcached init`, as Flyte's pod webhook starts it: by two variables, with a directory to write to.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::support::daemon::{Daemon, Setup, smcached};
use crate::support::fake_aws::{FakeAws, Stored};
use crate::support::faults::Fault;
use crate::support::{ARN, free_port};
use crate::support::{is_root, leaks};

/// A user who is not us.
const NOBODY: u32 = 65534;

/// By whom AWS is asked when it is the pod.
const POD: &str = "AKIAIOSFODNN7EXAMPOD";

/// A container: its directory, its environment, its user.
struct Container {
    directory: TempDir,
    aws: String,
    local_daemon: String,
    timeout: &'static str,
    environment: Vec<(&'static str, String)>,
    user: Option<u32>,
}

impl Container {
    /// With AWS there, and no daemon on its host.
    fn new(aws: &FakeAws) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("volume")).unwrap();
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(directory.path().join("volume"), Permissions::from_mode(0o777)).unwrap();
        let local_daemon = format!("127.0.0.1:{}", free_port());
        Self { directory, aws: aws.url(), local_daemon, timeout: "10s", environment: Vec::new(), user: None }
    }

    fn timeout(mut self, timeout: &'static str) -> Self {
        self.timeout = timeout;
        self
    }

    fn local_daemon(mut self, port: u16) -> Self {
        self.local_daemon = format!("127.0.0.1:{port}");
        self
    }

    fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    fn volume(&self) -> PathBuf {
        self.directory.path().join("volume")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.volume().join(name)
    }

    /// Runs it for a secret and a file.
    async fn init(&self, arn: &str, filename: &str) -> Output {
        let mut command = smcached(self.directory.path());
        if let Some(user) = self.user {
            command = as_user(user, self.directory.path());
        }
        command
            .env_clear()
            .args([
                "init",
                "--dir",
                "volume",
                "--timeout",
                self.timeout,
                "--local-daemon",
                &self.local_daemon,
            ])
            .env("AWS_ENDPOINT_URL", &self.aws)
            .env("AWS_ACCESS_KEY_ID", POD)
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("SECRET_ARN", arn)
            .env("SECRET_FILENAME", filename)
            .envs(self.environment.iter().map(|(name, value)| (*name, value)));
        // Whatever the umask takes, the modes are as they should be.
        let output = tokio::process::Command::from(with_umask(&command)).stdin(Stdio::null()).output();
        let output = output.await.unwrap();
        assert!(output.stdout.is_empty(), "{output:?}");
        assert_eq!(said(&output).lines().count(), 1, "{output:?}");
        output
    }

    /// Runs it and expects the file to have this value.
    async fn gets(&self, arn: &str, value: &[u8], way: &str) {
        let output = self.init(arn, "/group:secret:/key").await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            said(&output).starts_with("smcached: wrote volume/group:secret:/key (")
                && said(&output).contains(way),
            "{output:?}"
        );
        let file = self.file("group:secret:/key");
        assert_eq!(fs::read(&file).unwrap(), value);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o444);
        assert_eq!(fs::metadata(self.file("group:secret:")).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(fs::read_dir(self.file("group:secret:")).unwrap().count(), 1);
    }

    /// Runs it and expects an exit code, a line with these parts and no file.
    async fn fails(&self, arn: &str, code: i32, parts: &[&str]) {
        let output = self.init(arn, "/group:secret:/key").await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        for part in parts.iter().chain([&arn]) {
            assert!(said(&output).contains(part), "{part}: {output:?}");
        }
        assert!(!self.file("group:secret:").exists(), "nothing is left behind");
    }
}

/// The same under the strictest umask.
fn with_umask(command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask 777; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    shell.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(command.get_current_dir().unwrap());
    shell
}

/// The binary, run by another user, who need not see where it was built.
fn as_user(user: u32, directory: &Path) -> Command {
    let binary = directory.join("smcached");
    if !binary.exists() {
        fs::copy(crate::SMCACHED, &binary).unwrap();
        fs::set_permissions(&binary, Permissions::from_mode(0o755)).unwrap();
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user.to_string(), "--regid", &user.to_string(), "--clear-groups"]);
    command.arg(binary).current_dir(directory);
    command
}

fn said(output: &Output) -> &str {
    leaks::check("what init says", &output.stderr);
    std::str::from_utf8(&output.stderr).unwrap()
}

fn arn(name: &str) -> String {
    format!("{ARN}{name}-AbCdEf")
}

/// Something at a port of loopback that answers every connection with these bytes, or with nothing ever.
fn something_else(answer: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            if let Some(answer) = answer {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            } else {
                kept.push(stream);
            }
        }
    });
    port
}

fn every_byte() -> Vec<u8> {
    (0..=255).cycle().take(64 << 10).collect()
}

fn filled() -> FakeAws {
    let aws = FakeAws::start();
    aws.put("text", "caf\u{e9}\n");
    aws.put("team-a/db", "nested");
    aws.put("/begins", "with a slash");
    aws.put("binary", Stored::Binary(every_byte()));
    aws.put("denied", "x");
    aws.deny("denied", true);
    aws.put("deleted", "x");
    aws.delete("deleted");
    aws
}

/// A daemon whose TCP listener has these keys.
async fn daemon(aws: &FakeAws, tcp: &str) -> Daemon {
    Setup::with_aws(&aws.url()).tcp(tcp).start().await
}

#[tokio::test]
async fn every_way_gives_the_exact_bytes() {
    let aws = filled();
    let open = daemon(&aws, "token = \"none\"").await;
    let closed = daemon(&aws, "token_file = \"token\"").await;
    let ways: [(&str, Container); 4] = [
        ("(from AWS)", Container::new(&aws).env("AWS_REGION", "us-west-2")),
        ("(from the daemon at http://127.0.0.1:", Container::new(&aws).local_daemon(open.tcp_port())),
        (
            "(from the daemon at unix:",
            Container::new(&aws).env("SMCACHED_ADDRESS", format!("unix:{}", open.path("s.sock").display())),
        ),
        (
            "(from the daemon at http://127.0.0.1:",
            Container::new(&aws).local_daemon(closed.tcp_port()).env("SMCACHED_TOKEN", closed.token()),
        ),
    ];
    for (way, container) in ways {
        aws.clear_log();
        for (name, value) in [
            ("text", "caf\u{e9}\n".as_bytes()),
            ("team-a/db", b"nested"),
            ("/begins", b"with a slash"),
            ("binary", &every_byte()),
        ] {
            container.gets(&arn(name), value, way).await;
        }
        container.gets("team-a:db", b"nested", way).await;
        let by_pod = aws.log().iter().filter(|call| call.access_key_id == POD).count();
        assert_eq!(by_pod, if way == "(from AWS)" { 5 } else { 0 }, "{way}");
    }
}

#[tokio::test]
async fn each_failure_has_its_exit_code_and_advice_and_leaves_no_file() {
    let aws = filled();
    let daemon = daemon(&aws, "token = \"none\"\nallow_secrets = [\"arn:*\"]").await;
    for container in [Container::new(&aws), Container::new(&aws).local_daemon(daemon.tcp_port())] {
        aws.clear_log();
        container.fails(&arn("denied"), 4, &["grant secretsmanager:GetSecretValue on it to the"]).await;
        container.fails(&arn("deleted"), 3, &["marked for deletion"]).await;
        container.fails(&arn("none"), 3, &["six characters"]).await;
        container.fails("no-arn", 2, &["neither an ARN nor <group>:<key>"]).await;
        container.fails("arn:aws:s3:::bucket", 2, &["not one of a Secrets Manager secret"]).await;
        let callers: Vec<_> = aws.log().into_iter().map(|call| call.access_key_id == POD).collect();
        assert!(
            callers.windows(2).all(|pair| pair[0] == pair[1]),
            "the word of a daemon is final: {callers:?}"
        );
    }
}

#[tokio::test]
async fn without_its_variables_or_with_a_name_that_leaves_the_directory_it_refuses() {
    let aws = filled();
    let container = Container::new(&aws);
    for filename in ["key", "/../key", "/a/../../key", "/a//key", "/a/", "/"] {
        let output = container.init(&arn("text"), filename).await;
        assert_eq!(output.status.code(), Some(2), "{filename}");
        assert!(said(&output).contains("SECRET_FILENAME: got"), "{output:?}");
    }
    for (arn, filename) in [("", "/a"), ("x:y", "")] {
        let output = container.init(arn, filename).await;
        assert_eq!(output.status.code(), Some(2));
        assert!(said(&output).contains("SECRET_ARN and SECRET_FILENAME must be set"), "{output:?}");
    }
    assert_eq!((fs::read_dir(container.volume()).unwrap().count(), aws.calls()), (0, 0));
}

#[tokio::test]
async fn throttling_is_waited_out_and_has_a_code_of_its_own() {
    for through_daemon in [false, true] {
        let aws = filled();
        let daemon = daemon(&aws, "token = \"none\"").await;
        let container = Container::new(&aws);
        let container = if through_daemon { container.local_daemon(daemon.tcp_port()) } else { container };
        aws.fail(Some(Fault::Throttle400));
        let began = Instant::now();
        let relenting = async {
            sleep(Duration::from_secs(3)).await;
            aws.fail(None);
        };
        let (arn, container) = (arn("text"), container.timeout("30s"));
        tokio::join!(container.gets(&arn, "caf\u{e9}\n".as_bytes(), "from"), relenting);
        assert!(began.elapsed() >= Duration::from_secs(3));
        aws.fail(Some(Fault::Throttle429));
        let impatient = Container { directory: tempfile::tempdir().unwrap(), ..container }.timeout("2s");
        fs::create_dir(impatient.volume()).unwrap();
        let began = Instant::now();
        impatient.fails(&self::arn("binary"), 6, &["throttled"]).await;
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn what_fails_is_tried_until_the_timeout() {
    let aws = filled();
    let container = Container::new(&aws).timeout("1500ms");
    for fault in [Fault::Refuse, Fault::Http500, Fault::Hang, Fault::Garble, Fault::WrongSecret] {
        aws.clear_log();
        aws.fail(Some(fault));
        let began = Instant::now();
        container.fails(&arn("text"), 5, &["tried until the timeout"]).await;
        assert!(began.elapsed() < Duration::from_secs(4), "{fault:?} {:?}", began.elapsed());
        assert!(matches!(fault, Fault::Refuse | Fault::Hang) || aws.calls() > 1, "{fault:?}");
        aws.fail(None);
    }
}

#[tokio::test]
async fn what_is_no_daemon_for_us_is_passed_by() {
    let aws = filled();
    let closed = daemon(&aws, "token_file = \"token\"").await;
    let not_for_us = daemon(&aws, "token = \"none\"\nallow_secrets = [\"team-b/*\"]").await;
    let agent = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let web = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello";
    for port in [
        closed.tcp_port(),
        not_for_us.tcp_port(),
        something_else(Some(agent)),
        something_else(Some(web)),
        something_else(Some("SSH-2.0-OpenSSH_9.2\r\n")),
        something_else(None),
    ] {
        let container = Container::new(&aws).local_daemon(port).timeout("4s");
        container.gets(&arn("text"), "caf\u{e9}\n".as_bytes(), "(from AWS)").await;
    }
}

#[tokio::test]
async fn a_daemon_that_the_environment_names_is_waited_for_and_missed() {
    let aws = filled();
    let container = Container::new(&aws);
    let address = format!("unix:{}", container.directory.path().join("none.sock").display());
    let container = container.env("SMCACHED_ADDRESS", address);
    let began = Instant::now();
    container.gets(&arn("text"), "caf\u{e9}\n".as_bytes(), "(from AWS: the daemon at unix:").await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    let closed = daemon(&aws, "token_file = \"token\"").await;
    let refused =
        Container::new(&aws).env("SMCACHED_ADDRESS", format!("http://127.0.0.1:{}", closed.tcp_port()));
    refused.fails(&arn("text"), 4, &["token_missing", "SMCACHED_TOKEN"]).await;
    let wrong = Container::new(&aws).env("SMCACHED_ADDRESS", "localhost:1");
    wrong.fails(&arn("text"), 2, &["SMCACHED_ADDRESS: got"]).await;
}

#[tokio::test]
async fn an_existing_file_is_replaced_in_one_step_and_a_link_is_not_followed() {
    let aws = filled();
    let container = Container::new(&aws);
    fs::create_dir(container.file("group:secret:")).unwrap();
    let (victim, file) = (container.directory.path().join("victim"), container.file("group:secret:/key"));
    fs::write(&victim, "kept").unwrap();
    symlink(&victim, &file).unwrap();
    container.gets(&arn("text"), "caf\u{e9}\n".as_bytes(), "from AWS").await;
    assert_eq!(fs::read(&victim).unwrap(), b"kept");
    let held = fs::File::open(&file).unwrap();
    aws.put("text", "new");
    container.gets(&arn("text"), b"new", "from AWS").await;
    let mut before = String::new();
    (&held).read_to_string(&mut before).unwrap();
    assert_eq!(before, "caf\u{e9}\n", "who had it open still reads all of the old one");
}

#[tokio::test]
async fn any_user_may_run_it_and_any_other_read_the_file() {
    if !is_root("run a command as another user") {
        return;
    }
    let aws = filled();
    let read = |user: u32, file: &Path| {
        let mut command = Command::new("cat");
        command.arg(file).uid(user).output().unwrap()
    };
    for user in [None, Some(NOBODY)] {
        let container = Container { user, ..Container::new(&aws) };
        container.gets(&arn("binary"), &every_byte(), "from AWS").await;
        let output = read(NOBODY - 1, &container.file("group:secret:/key"));
        assert!(output.status.success() && output.stdout == every_byte());
    }
    let container = Container { user: Some(NOBODY), ..Container::new(&aws) };
    fs::set_permissions(container.volume(), Permissions::from_mode(0o755)).unwrap();
    container
        .fails(
            &arn("text"),
            1,
            &["cannot make the directory", "check that volume is a volume mounted writable"],
        )
        .await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_not_made() {
    let aws = filled();
    let container = Container::new(&aws);
    fs::remove_dir(container.volume()).unwrap();
    container.fails(&arn("text"), 1, &["cannot open the directory volume"]).await;
    assert!(!container.volume().exists());
}
