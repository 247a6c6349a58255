//! AWS's own agent, where somebody has its binary (crate `aws_workload_credentials_provider`).

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// What callers must present to it.
pub const TOKEN: &str = "a-token-of-the-tests";

/// Has a command that runs its binary serve on this port, from an API at this URL, in a directory of its own. `more` are
/// lines of its configuration.
pub fn configure(command: &mut Command, directory: &Path, port: u16, aws: &str, more: &str) {
    let config =
        format!("http_port = {port}\nvalidate_credentials = false\nregion = \"us-west-2\"\n{more}\n");
    fs::write(directory.join("agent.toml"), config).unwrap();
    command
        .args(["sm", "start", "--config", "agent.toml"])
        .env_clear()
        .envs([("AWS_TOKEN", TOKEN), ("AWS_ENDPOINT_URL", aws), ("AWS_REGION", "us-west-2")])
        .envs([("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "test")])
        .env("HOME", directory)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
}
