//! The built binary, run as an operator would, in a directory and on ports of its own.

use std::fs::{self, File, Permissions};
use std::io::PipeWriter;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::client::{self, Address, Answer};
use super::leaks;
use super::{eventually, free_ports, signal};

const PATIENCE: Duration = Duration::from_secs(20);

/// Stands for the port of the TCP listener in a [`Setup`].
pub const TCP_PORT: &str = "<tcp port>";

/// How a daemon is to be configured.
#[derive(Debug, Clone, Default)]
pub struct Setup {
    /// Keys before all sections.
    top: String,
    /// The configuration lies as Kubernetes mounts a `ConfigMap`.
    is_linked: bool,
    is_quiet: bool,
    /// A program and its arguments that run the daemon.
    under: Vec<String>,
    /// The `[source]` and `[aws]` sections.
    source: String,
    /// Lines of `[cache]`.
    cache: String,
    /// Whole sections.
    more: String,
    /// Keys of the Unix listener.
    unix: String,
    /// Keys of the TCP listener in the place of its token file.
    tcp: Option<String>,
    environment: Vec<(String, String)>,
    /// Where its standard output goes; else nowhere.
    stdout: Option<Arc<PipeWriter>>,
    /// Names and contents of files in the daemon's directory.
    files: Vec<(String, String)>,
}

impl Setup {
    /// Secrets from a file of this content.
    pub fn with_file(secrets: &str) -> Self {
        let source = "[source]\nkind = \"file\"\npath = \"secrets.toml\"\n".to_owned();
        Self { source, ..Self::default() }.file("secrets.toml", secrets)
    }

    /// Secrets from an API at this URL, with static credentials.
    pub fn with_aws(url: &str) -> Self {
        let source = format!("[aws]\nregion = \"us-west-2\"\nendpoint_url = \"{url}\"\n");
        let setup = Self { source, ..Self::default() };
        setup.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE").env("AWS_SECRET_ACCESS_KEY", "test")
    }

    /// More lines for `[aws]`.
    pub fn aws(mut self, lines: &str) -> Self {
        self.source.push_str(&format!("{lines}\n"));
        self
    }

    /// Without this key of `[aws]`.
    pub fn without(mut self, key: &str) -> Self {
        self.source = self
            .source
            .lines()
            .filter(|line| !line.starts_with(key))
            .map(|line| format!("{line}\n"))
            .collect();
        self
    }

    /// Keys before all sections.
    pub fn top(mut self, lines: &str) -> Self {
        self.top.push_str(&format!("{lines}\n"));
        self
    }

    /// Has it run by another program, which may make it another user's.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Has it log errors only.
    pub fn quiet(mut self) -> Self {
        self.is_quiet = true;
        self
    }

    /// Puts the configuration where links lead to it, as Kubernetes mounts a `ConfigMap`.
    pub fn linked_config(mut self) -> Self {
        self.is_linked = true;
        self
    }

    /// Lines for `[cache]`.
    pub fn cache(mut self, lines: &str) -> Self {
        self.cache.push_str(&format!("{lines}\n"));
        self
    }

    /// More sections.
    pub fn section(mut self, text: &str) -> Self {
        self.more.push_str(&format!("{text}\n"));
        self
    }

    /// Keys for the Unix listener.
    pub fn unix(mut self, lines: &str) -> Self {
        self.unix.push_str(&format!("{lines}\n"));
        self
    }

    /// Keys for the TCP listener, instead of its token file.
    pub fn tcp(mut self, lines: &str) -> Self {
        self.tcp = Some(lines.to_owned());
        self
    }

    /// A file in the daemon's directory, which is its home and working directory.
    pub fn file(mut self, name: &str, content: &str) -> Self {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    /// A pipe for its standard output.
    pub fn stdout(mut self, pipe: PipeWriter) -> Self {
        self.stdout = Some(Arc::new(pipe));
        self
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts the daemon and waits until it is ready.
    pub async fn start(self) -> Daemon {
        let daemon = self.launch();
        daemon.wait_ready().await;
        daemon
    }

    /// Starts the daemon and waits for nothing.
    pub fn launch(self) -> Daemon {
        self.launch_in(tempfile::tempdir().unwrap())
    }

    /// As [`Setup::launch`], in a directory where things may lie already.
    pub fn launch_in(self, directory: TempDir) -> Daemon {
        let path = |name: &str| directory.path().join(name);
        let level = if self.is_quiet { "error" } else { "trace" };
        let [tcp_port, ops_port] = free_ports();
        let token = self.tcp.unwrap_or_else(|| "token_file = \"token\"".to_owned());
        let config = format!(
            "{}\n{}\n[cache]\n{}\n[[listener]]\nunix = \"s.sock\"\n{}\n[[listener]]\ntcp = \"127.0.0.1:{tcp_port}\"\n\
             {token}\n[ops]\ntcp = \"127.0.0.1:{ops_port}\"\n[log]\nlevel = \"{}\"\n{}\n",
            self.top, self.source, self.cache, self.unix, level, self.more
        );
        let config = config.replace(TCP_PORT, &tcp_port.to_string());
        if self.is_linked {
            fs::create_dir(path("..first")).unwrap();
            fs::write(path("..first/smcached.toml"), config).unwrap();
            symlink("..first", path("..data")).unwrap();
            symlink("..data/smcached.toml", path("smcached.toml")).unwrap();
        } else {
            fs::write(path("smcached.toml"), config).unwrap();
        }
        for (_, value) in self.environment.iter().filter(|(name, _)| is_secret(name)) {
            leaks::note(value.as_bytes());
        }
        for (name, content) in &self.files {
            leaks::note_file(content);
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            fs::write(path(name), content).unwrap();
        }
        if !self.under.is_empty() {
            fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        }
        let mut words: Vec<String> =
            self.under.iter().map(|word| word.replace(TCP_PORT, &tcp_port.to_string())).collect();
        words.push(crate::SMCACHED.to_owned());
        let mut command = in_directory(Command::new(&words[0]), directory.path());
        command
            .args(&words[1..])
            .args(["serve", "--config", "smcached.toml"])
            .envs(self.environment.clone())
            .stdout(self.stdout.map_or_else(Stdio::null, |pipe| pipe.try_clone().unwrap().into()))
            .stderr(File::create(path("log")).unwrap());
        let process = command.spawn().unwrap();
        let log = path("log");
        Daemon { process, tcp_port, ops_port, directory: Some(directory), log, environment: self.environment }
    }
}

/// As a pod has one; for [`Daemon::replace`]. Only root can do it.
pub const IN_A_NETWORK_OF_ITS_OWN: [&str; 6] =
    ["unshare", "--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"];

/// A process that another one is to take the place of. Killed when dropped, and its log searched for secrets.
pub struct Predecessor {
    process: Child,
    log: PathBuf,
}

impl Predecessor {
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub async fn logs(&self, text: &str) {
        eventually(&format!("a log line with {text:?}"), PATIENCE, async || self.log().contains(text)).await;
    }

    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    pub async fn exit(&mut self) -> ExitStatus {
        exit(&mut self.process, &self.log).await
    }
}

impl Drop for Predecessor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        leaks::check("a log", &fs::read(&self.log).unwrap_or_default());
    }
}

/// Waits for the end of a process.
async fn exit(process: &mut Child, log: &Path) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            return status;
        }
        let log = || fs::read_to_string(log).unwrap_or_default();
        assert!(Instant::now() < deadline, "the daemon does not end:\n{}", log());
        sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a variable holds a secret itself.
fn is_secret(name: &str) -> bool {
    ["SECRET_ACCESS_KEY", "SESSION_TOKEN", "AUTHORIZATION_TOKEN", "SMCACHED_TOKEN"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// The binary, in a directory, with an environment that the tests' own cannot touch.
pub fn smcached(directory: &Path) -> Command {
    in_directory(Command::new(crate::SMCACHED), directory)
}

fn in_directory(mut command: Command, directory: &Path) -> Command {
    command
        .env_clear()
        .env("HOME", directory)
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .current_dir(directory);
    command
}

/// A running daemon. Killed when dropped, and its log searched for secrets.
pub struct Daemon {
    process: Child,
    tcp_port: u16,
    ops_port: u16,
    directory: Option<TempDir>,
    log: PathBuf,
    environment: Vec<(String, String)>,
}

impl Daemon {
    /// Starts another process in the same place, run by another program if that is given. It is the daemon from now on;
    /// the one before is returned.
    pub fn replace(&mut self, under: &[&str]) -> Predecessor {
        let log = self.path(&format!("log of {}", fastrand::u32(..)));
        let words = [under, &[crate::SMCACHED, "serve", "--config", "smcached.toml"]].concat();
        let mut command = in_directory(Command::new(words[0]), &self.path(""));
        command.args(&words[1..]).envs(self.environment.clone());
        let process = command.stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        Predecessor {
            process: std::mem::replace(&mut self.process, process),
            log: std::mem::replace(&mut self.log, log),
        }
    }

    /// The other way round: the one before is the daemon again, and the other is returned.
    pub fn swap(&mut self, other: Predecessor) -> Predecessor {
        let mut other = other;
        std::mem::swap(&mut self.process, &mut other.process);
        std::mem::swap(&mut self.log, &mut other.log);
        other
    }

    pub fn unix(&self) -> Address {
        Address::Unix(self.path("s.sock"))
    }

    pub fn tcp(&self) -> Address {
        Address::Tcp(self.tcp_port)
    }

    pub fn ops(&self) -> Address {
        Address::Tcp(self.ops_port)
    }

    pub fn tcp_port(&self) -> u16 {
        self.tcp_port
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A file in the daemon's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.as_ref().unwrap().path().join(name)
    }

    /// Replaces its configuration in one step.
    pub fn rewrite_config(&self, change: impl FnOnce(String) -> String) {
        let path = self.path("smcached.toml");
        let text = change(fs::read_to_string(&path).unwrap());
        fs::write(self.path("next.toml"), text).unwrap();
        fs::rename(self.path("next.toml"), path).unwrap();
    }

    /// The token of the TCP listener.
    pub fn token(&self) -> String {
        fs::read_to_string(self.path("token")).unwrap()
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// One `GET` over the Unix socket.
    pub async fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[]).await
    }

    /// One `GET` over the Unix socket, with headers.
    pub async fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        client::get(&self.unix(), path, headers).await
    }

    /// A page of the ops listener.
    pub async fn ops_page(&self, path: &str) -> Answer {
        let answer = client::get(&self.ops(), path, &[]).await;
        leaks::check(path, &answer.body);
        answer
    }

    /// The value of a metric that is a whole number, by its line up to the value; 0 if it is absent.
    pub async fn metric(&self, line: &str) -> u64 {
        let page = self.ops_page("/metrics").await;
        let found = page
            .text()
            .lines()
            .find_map(|known| known.strip_prefix(line)?.strip_prefix(' '))
            .map(str::to_owned);
        found.map_or(0, |value| value.parse().unwrap())
    }

    pub async fn wait_ready(&self) {
        let ops = self.ops();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(mut connection) = client::Connection::open(&ops).await
                && connection.get("/readyz", &[]).await.is_ok_and(|answer| answer.status == 200)
            {
                return;
            }
            assert!(Instant::now() < deadline, "the daemon is not ready:\n{}", self.log());
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Sends it a signal, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        exit(&mut self.process, &self.log).await
    }

    /// Ends it in whatever way, and keeps its directory for another.
    pub async fn into_directory(mut self, signal: &str) -> TempDir {
        self.signal(signal);
        self.exit().await;
        self.check_log();
        self.directory.take().unwrap()
    }

    /// Runs a client command against it.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = smcached(self.directory.as_ref().unwrap().path()).args(arguments).output().unwrap();
        self.note_secrets();
        leaks::check(&format!("the errors of {arguments:?}"), &output.stderr);
        output
    }

    /// What may have come into its files since it started: its token, and secrets that a test has written.
    fn note_secrets(&self) {
        if let Ok(token) = fs::read(self.path("token")) {
            leaks::note(token.trim_ascii());
        }
        if let Ok(secrets) = fs::read_to_string(self.path("secrets.toml")) {
            leaks::note_file(&secrets);
        }
    }

    /// Nothing of a secret is in its log.
    fn check_log(&self) {
        self.note_secrets();
        leaks::check("a log", &fs::read(&self.log).unwrap());
    }

    /// Waits until the log has a line with this text.
    pub async fn logs(&self, text: &str) {
        eventually(&format!("a log line with {text:?}"), PATIENCE, async || self.log().contains(text)).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if self.directory.is_some() {
            self.check_log();
        }
    }
}
