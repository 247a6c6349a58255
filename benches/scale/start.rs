//! How the daemon begins, and its size at rest: many starts of each binary, one after another.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::fake_aws::FakeAws;
use crate::support::{aws_agent, free_ports, in_repository, resident};
use crate::{SMCACHED, write};

const STARTS: usize = 40;
const PATIENCE: Duration = Duration::from_secs(20);

/// Names the binary of AWS's agent, where it is to be started too.
const AWS_AGENT: &str = "SMCACHED_BENCH_AWS_AGENT";

/// What is started.
struct Subject {
    name: &'static str,
    binary: PathBuf,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    /// The daemon, with secrets from a file.
    File,
    /// The daemon, with secrets from AWS.
    Aws,
    /// AWS's agent.
    Agent,
}

/// One start.
struct Started {
    listening: Duration,
    ready: Duration,
    resident: u64,
}

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn run(runtime: &Runtime) {
    let _inside = runtime.enter();
    let aws = FakeAws::start();
    let subjects = subjects();
    let mut starts: Vec<Vec<Started>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..STARTS {
        for (subject, starts) in subjects.iter().zip(&mut starts) {
            starts.push(subject.start(&aws));
        }
    }
    println!("{STARTS} starts each, by turns; medians, and the slowest; a binary as it ships");
    println!(
        "{:>24} {:>14} {:>14} {:>14} {:>12}",
        "", "listening, ms", "ready, ms", "resident, MB", "binary, MB"
    );
    let mut figures = Vec::new();
    for (subject, starts) in subjects.iter().zip(&starts) {
        figures.push(subject.print(starts));
    }
    let crates = crates();
    println!("crates in the binary besides our own: {crates}");
    write("start", &json!({ "binaries": figures, "crates": crates }));
}

/// The daemon with either source, and AWS's agent if it is there.
fn subjects() -> Vec<Subject> {
    let subject = |name, kind| Subject { name, binary: PathBuf::from(SMCACHED), kind };
    let mut subjects = vec![subject("file", Kind::File), subject("AWS", Kind::Aws)];
    match std::env::var(AWS_AGENT) {
        Ok(binary) => {
            subjects.push(Subject { name: "AWS's agent", binary: binary.into(), kind: Kind::Agent });
        }
        Err(_) => println!("{AWS_AGENT} does not name the binary of AWS's agent, which is not started"),
    }
    subjects
}

impl Subject {
    fn start(&self, aws: &FakeAws) -> Started {
        let directory = tempfile::tempdir().unwrap();
        let [port, ops] = free_ports();
        let mut command = Command::new(&self.binary);
        command.stdout(Stdio::null()).stderr(Stdio::null()).current_dir(directory.path());
        self.configure(&mut command, directory.path(), port, ops, aws);
        let start = Instant::now();
        let running = Running(command.spawn().unwrap());
        let wait_for = |what: &str, holds: &dyn Fn() -> bool| {
            while !holds() {
                assert!(start.elapsed() < PATIENCE, "{} is not {what}", self.name);
                sleep(Duration::from_micros(100));
            }
            start.elapsed()
        };
        let listening = wait_for("listening", &|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        let ready = wait_for("ready", &|| match self.kind {
            Kind::File | Kind::Aws => is_ok(ops, "/readyz"),
            Kind::Agent => is_ok(port, "/ping"),
        });
        // What is put off until after the start.
        sleep(Duration::from_millis(300));
        Started { listening, ready, resident: resident(running.0.id()) }
    }

    fn configure(&self, command: &mut Command, directory: &Path, port: u16, ops: u16, aws: &FakeAws) {
        let source = match self.kind {
            Kind::Agent => return aws_agent::configure(command, directory, port, &aws.url(), ""),
            Kind::File => {
                fs::write(directory.join("secrets.toml"), "").unwrap();
                "[source]\nkind = \"file\"\npath = \"secrets.toml\"".to_owned()
            }
            Kind::Aws => format!("[aws]\nregion = \"us-west-2\"\nendpoint_url = \"{}\"", aws.url()),
        };
        let config = format!(
            "{source}\n[[listener]]\nunix = \"s.sock\"\n[[listener]]\ntcp = \"127.0.0.1:{port}\"\ntoken = \"none\"\n\
             [ops]\ntcp = \"127.0.0.1:{ops}\"\n"
        );
        fs::write(directory.join("smcached.toml"), config).unwrap();
        command
            .args(["serve", "--config", "smcached.toml"])
            .env_clear()
            .env("HOME", directory)
            .envs([("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "test")]);
    }

    fn print(&self, starts: &[Started]) -> Value {
        let sorted = |part: fn(&Started) -> f64| {
            let mut parts: Vec<f64> = starts.iter().map(part).collect();
            parts.sort_unstable_by(f64::total_cmp);
            [parts[parts.len() / 2], parts[parts.len() - 1]]
        };
        let listening = sorted(|start| start.listening.as_secs_f64() * 1e3);
        let ready = sorted(|start| start.ready.as_secs_f64() * 1e3);
        let resident = sorted(|start| start.resident as f64);
        let binary = fs::metadata(&self.binary).unwrap().len();
        println!(
            "{:>24} {:>14} {:>14} {:>14} {:>12.1}",
            self.name,
            format!("{:.1}, {:.1}", listening[0], listening[1]),
            format!("{:.1}, {:.1}", ready[0], ready[1]),
            format!("{:.1}, {:.1}", resident[0] / 1e6, resident[1] / 1e6),
            binary as f64 / 1e6
        );
        json!({
            "name": self.name, "starts": starts.len(), "binary_bytes": binary,
            "listening_milliseconds": { "median": listening[0], "max": listening[1] },
            "ready_milliseconds": { "median": ready[0], "max": ready[1] },
            "resident_bytes": { "median": resident[0], "max": resident[1] },
        })
    }
}

/// Whether a path is answered with 200.
fn is_ok(port: u16, path: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let mut answer = Vec::new();
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_to_end(&mut answer).is_ok()
        && answer.starts_with(b"HTTP/1.1 200")
}

/// How many crates are linked into the binary, not counting our own.
fn crates() -> usize {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let arguments =
        ["tree", "--locked", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let output = Command::new(cargo).args(arguments).current_dir(in_repository("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    // A crate that is in more than one place is there once, and what is below it is not repeated.
    let mut crates: Vec<&str> =
        text.lines().map(|line| line.trim_end_matches(" (*)")).filter(|line| !line.is_empty()).collect();
    crates.sort_unstable();
    crates.dedup();
    crates.len() - 1
}
