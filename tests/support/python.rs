//! Programs of the Python parts that `tests/run` installs: real clients, as their users run them.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::in_repository;

/// A program of the Python parts, with nothing of the tests' own environment.
pub fn program(part: &str, name: &str, home: &Path) -> Command {
    let path = in_repository(&format!("target/{part}/bin/{name}"));
    assert!(path.exists(), "{} is missing; tests/run installs it", path.display());
    let mut command = Command::new(path);
    command
        .env_clear()
        .env("HOME", home)
        .env("TMPDIR", home)
        .env("PATH", "/usr/bin:/bin")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .current_dir(home);
    command
}

/// One of the scripts in `tests/support/clients`.
pub fn script(part: &str, name: &str, home: &Path) -> Command {
    let mut command = program(part, "python", home);
    command.arg(in_repository(&format!("tests/support/clients/{name}")));
    command
}

/// Points an AWS client at a daemon, by what its user would set and nothing else.
pub fn through<'a>(command: &'a mut Command, port: u16, token: &str) -> &'a mut Command {
    command
        .env("AWS_ENDPOINT_URL_SECRETS_MANAGER", format!("http://127.0.0.1:{port}"))
        .env("AWS_ACCESS_KEY_ID", token)
        .env("AWS_SECRET_ACCESS_KEY", "unused")
        .env("AWS_DEFAULT_REGION", "us-west-2")
}

/// Standard output as text; panics with all of it if the program failed.
pub fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Runs it with something to read.
pub fn fed(command: &mut Command, input: &str) -> Output {
    let mut process =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // One that ends without reading all says why itself.
    process.stdin.take().unwrap().write_all(input.as_bytes()).unwrap_or_default();
    process.wait_with_output().unwrap()
}
