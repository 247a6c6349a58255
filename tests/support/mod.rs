//! What tests of the whole share: a Secrets Manager to talk to, a daemon to test, clients to ask it.
//!
//! Every wait has a deadline and says what it waited for. Nothing here sleeps to be safe.

#![allow(dead_code, reason = "each user of the rig takes what it needs")]
#![allow(unreachable_pub, reason = "included by more than one test binary")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

pub mod aws_agent;
pub mod client;
pub mod daemon;
pub mod fake_aws;
pub mod faults;
pub mod leaks;
pub mod memory;
pub mod moto;
pub mod prometheus;
pub mod proxy;
pub mod python;
pub mod tls;

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// The account and region of ARNs in tests.
pub const ARN: &str = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";

/// Waits until `holds` does; panics with `what` after `patience`.
pub async fn eventually<F: Future<Output = bool>>(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> F,
) {
    let deadline = Instant::now() + patience;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {patience:?} in vain: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A TCP port that nobody uses at this moment.
pub fn free_port() -> u16 {
    free_ports::<1>()[0]
}

/// Different ones.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let taken = [(); N].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}

/// Resident memory of a process, in bytes.
pub fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// A path in the repository.
pub fn in_repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Whether the tests run as root; if not, says that they cannot do `what`.
pub fn is_root(what: &str) -> bool {
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        // Past the test's captured output: nothing is left out in silence.
        let _ = writeln!(std::io::stderr(), "NOT CHECKED: only root can {what}");
    }
    is_root
}

/// Sends a process a signal, such as `TERM`.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    assert!(status.unwrap().success());
}
