//! A real Prometheus that scrapes once a second, with the rules of `config/monitoring/` run sixty times as
//! fast.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{eventually, free_port, in_repository};

const PATIENCE: Duration = Duration::from_secs(20);

/// The rules as they ship.
pub const RULES: &str = "config/monitoring/smcached.rules.yml";

/// The rules with seconds in the place of minutes: the durations of `for` and of ranges, and nothing else.
pub fn hurried(rules: &str) -> String {
    let hurry = |line: &str| {
        let is_duration = line.trim_start().starts_with("for: ");
        let mut parts = line.split("m]");
        let mut hurried = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            hurried.push_str("s]");
            hurried.push_str(part);
        }
        if is_duration {
            hurried = hurried.strip_suffix('m').expect("durations are in minutes").to_owned() + "s";
        }
        hurried + "\n"
    };
    rules.lines().map(hurry).collect()
}

/// The server. Killed when dropped.
pub struct Prometheus {
    process: Child,
    port: u16,
    directory: TempDir,
}

impl Prometheus {
    /// Starts it without a target.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let config = "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\n\
                      rule_files: [rules.yml]\n\
                      scrape_configs:\n  - job_name: smcached\n    \
                      file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]\n";
        fs::write(path("prometheus.yml"), config).unwrap();
        fs::write(path("rules.yml"), hurried(&fs::read_to_string(in_repository(RULES)).unwrap())).unwrap();
        fs::write(path("targets.json"), "[]").unwrap();
        let port = free_port();
        let process = Command::new("prometheus")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .args(["--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=warn"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(fs::File::create(path("log")).unwrap())
            .spawn()
            .expect("prometheus is missing; tests/run installs it");
        let server = Self { process, port, directory };
        eventually("Prometheus is ready", PATIENCE, async || server.get("/-/ready", "").await.is_ok()).await;
        server
    }

    /// Scrapes these ports of loopback, each under a name of its own.
    pub fn scrape(&self, targets: &[(&str, u16)]) {
        let target = |(name, port): &(&str, u16)| {
            let address = format!("127.0.0.1:{port}");
            json!({ "targets": [address], "labels": { "instance": name } })
        };
        let path = |name: &str| self.directory.path().join(name);
        let targets: Vec<Value> = targets.iter().map(target).collect();
        fs::write(path("next.json"), Value::from(targets).to_string()).unwrap();
        fs::rename(path("next.json"), path("targets.json")).unwrap();
    }

    /// The results of an instant query; panics with what Prometheus says of a wrong one.
    pub async fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.get("/api/v1/query", expression).await;
        let answer = answer.unwrap_or_else(|error| panic!("{expression}: {error}"));
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// The alerts that fire: their names, and the instances that they are about.
    pub async fn firing(&self) -> Vec<(String, String)> {
        let of =
            |series: &Value, label: &str| series["metric"][label].as_str().unwrap_or_default().to_owned();
        let series = self.query("ALERTS{alertstate=\"firing\"}").await;
        series.iter().map(|series| (of(series, "alertname"), of(series, "instance"))).collect()
    }

    /// All rules as Prometheus has read them.
    pub async fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules", "").await.unwrap();
        let groups = answer["data"]["groups"].as_array().unwrap();
        groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone()).collect()
    }

    /// An answer with status 200, empty if it is no JSON; else all there is to say of why not.
    async fn get(&self, path: &str, query: &str) -> Result<Value, String> {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let mut command = tokio::process::Command::new("curl");
        command.args(["--silent", "--show-error", "--fail-with-body", "--noproxy", "*", "--get"]);
        command.args(["--data-urlencode", &format!("query={query}"), &url]);
        let output = command.output().await.unwrap();
        if output.status.success() {
            return Ok(serde_json::from_slice(&output.stdout).unwrap_or_default());
        }
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap();
        Err(format!("{output:?}; the log: {log}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs `promtool` in a directory; panics with what it says if it is not content.
pub fn promtool(arguments: &[&str], directory: &Path) {
    let output = Command::new("promtool").args(arguments).current_dir(directory).output();
    let output = output.expect("promtool is missing; tests/run installs it");
    assert!(output.status.success(), "promtool {arguments:?}: {output:?}");
}
