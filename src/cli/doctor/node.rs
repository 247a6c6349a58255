//! What is to be seen on this host: the daemon's sockets, its ops listener, the limits that it runs under.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use super::Findings;
use crate::app;
use crate::cli::{ops, status};
use crate::config::{Bind, Config, TokenConfig};
use crate::hardening;
use crate::net::{ClientError, Endpoint, Ownership, fetch};

/// How long a daemon on this host may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(5);

const START: &str = "start the daemon with `smcached serve`; if it runs, its log says where it listens";

pub(super) async fn examine(config: &Config, findings: &mut Findings) {
    ops_listener(config, findings).await;
    let mut pid = None;
    for listener in &config.listeners {
        match &listener.bind {
            Bind::Unix { path, mode, owner, group, .. } => {
                let wanted = Ownership::resolve(*mode, owner.as_deref(), group.as_deref());
                match wanted {
                    Ok(wanted) => unix_socket(path, wanted, findings).await,
                    Err(error) => {
                        findings.problem(SOCKETS, error.to_string(), "make it, or configure another");
                    }
                }
                pid = pid.or(listening(path).await);
            }
            Bind::Tcp { addr, token, .. } => {
                let endpoint = Endpoint::Tcp(ops::reachable(*addr).to_string());
                tcp_socket(&endpoint, token, findings).await;
            }
        }
    }
    limits(config, pid, findings);
}

async fn ops_listener(config: &Config, findings: &mut Findings) {
    const CHECK: &str = "ops";
    let Some(endpoint) = ops::endpoint(config) else {
        findings.note(CHECK, ops::OFF, "set ops.tcp, to have metrics and health");
        return;
    };
    match status::ask(&endpoint).await {
        Err(problem) => findings.problem(CHECK, problem, START),
        Ok((_, status)) => match status.reasons() {
            None => findings.ok(CHECK, format!("{endpoint} answers; the daemon is ready")),
            Some(reasons) => {
                let mend = "wait for what it names; `smcached status` says how the source fares";
                findings.problem(CHECK, format!("the daemon is not ready: {reasons}"), mend);
            }
        },
    }
}

const SOCKETS: &str = "sockets";

async fn unix_socket(path: &Path, wanted: Ownership, findings: &mut Findings) {
    let name = path.display();
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return findings.problem(SOCKETS, format!("{name} does not exist"), START);
        }
        Err(error) => {
            let mend = "give the directories above it the right x for whoever is to connect";
            return findings.problem(SOCKETS, format!("{name} cannot be looked at: {error}"), mend);
        }
    };
    if !found.file_type().is_socket() {
        let mend = "remove it, or configure another path; then start the daemon again";
        return findings.problem(SOCKETS, format!("{name} is not a socket"), mend);
    }
    let before = findings.problems();
    let mode = found.mode() & 0o7777;
    if mode != wanted.mode {
        let message = format!("{name} has the mode {mode:04o}; configured is {:04o}", wanted.mode);
        findings.problem(SOCKETS, message, "start the daemon again, which makes the socket anew");
    }
    for (what, found, wanted) in [("owner", found.uid(), wanted.uid), ("group", found.gid(), wanted.gid)] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let message = format!("{name} has the {what} {found}; configured is {wanted}");
            findings.problem(SOCKETS, message, "start the daemon again, which makes the socket anew");
        }
    }
    match fetch(&Endpoint::Unix(path.to_owned()), "/ping", &[], PATIENCE).await {
        Err(error) => findings.problem(SOCKETS, error.to_string(), mend_of(&error)),
        Ok(_) if findings.problems() == before => {
            findings.ok(
                SOCKETS,
                format!("{name} answers; mode {mode:04o}, owner {}, group {}", found.uid(), found.gid()),
            );
        }
        Ok(_) => {}
    }
}

fn mend_of(error: &ClientError) -> &'static str {
    match error {
        ClientError::Connect { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
            "connect as the socket's owner or as a member of its group, or configure listener.group or mode"
        }
        ClientError::Connect { .. } => START,
        _ => "see the daemon's log: it listens, and does not answer",
    }
}

async fn tcp_socket(endpoint: &Endpoint, token: &TokenConfig, findings: &mut Findings) {
    if let Err(error) = fetch(endpoint, "/ping", &[], PATIENCE).await {
        return findings.problem(SOCKETS, error.to_string(), mend_of(&error));
    }
    let TokenConfig::File(path) = token else {
        return findings.ok(SOCKETS, format!("{endpoint} answers; no token is needed"));
    };
    match fs::metadata(path) {
        Ok(_) => findings.ok(SOCKETS, format!("{endpoint} answers; its token is in {}", path.display())),
        Err(error) => {
            let message = format!("the token file {} cannot be looked at: {error}", path.display());
            findings.problem(
                SOCKETS,
                message,
                "start the daemon again, which makes the file, or correct its rights",
            );
        }
    }
}

/// The process that listens on a socket, where it is one of our own namespace.
async fn listening(path: &Path) -> Option<u32> {
    let stream = UnixStream::connect(path).await.ok()?;
    u32::try_from(stream.peer_cred().ok()?.pid()?).ok().filter(|pid| *pid > 0)
}

/// Limits of the daemon if its process is known; else of this one, which may be started otherwise.
fn limits(config: &Config, pid: Option<u32>, findings: &mut Findings) {
    const CHECK: &str = "limits";
    let process = pid.map_or_else(|| "/proc/self".to_owned(), |pid| format!("/proc/{pid}"));
    let whose = if pid.is_some() { "the daemon" } else { "a daemon that is started from here" };
    let read = |name: &str| fs::read_to_string(format!("{process}/{name}"));
    let (limits, state) = match (read("limits"), read("status")) {
        (Ok(limits), Ok(state)) => (limits, state),
        (Err(error), _) | (_, Err(error)) => {
            let mend = "run this as the daemon's user or as root";
            return findings.note(CHECK, format!("those of {whose} cannot be read: {error}"), mend);
        }
    };
    let wanted = app::wanted_descriptors(config);
    match hard_limit(&limits, "Max open files") {
        Some(limit) if limit < wanted => findings.problem(
            CHECK,
            format!("{whose} may open {limit} files, and server.max_connections needs {wanted}"),
            "raise LimitNOFILE (systemd) or the container runtime's, or lower server.max_connections",
        ),
        _ => findings
            .ok(CHECK, format!("{whose} may open as many files as server.max_connections needs ({wanted})")),
    }
    let locked = kilobytes(&state, "VmLck:").unwrap_or(0) > 0;
    let may_lock = pid.is_none()
        && (hard_limit(&limits, "Max locked memory") == Some(u64::MAX)
            || hardening::may_lock_at_will(&state));
    if locked || may_lock {
        findings.ok(CHECK, format!("{whose} {} its memory", if locked { "has locked" } else { "can lock" }));
    } else if has_no_swap() {
        findings.ok(CHECK, "memory is not locked, and there is no swap where secrets could go");
    } else {
        let mend = "set LimitMEMLOCK=infinity (systemd), --ulimit memlock=-1 or the capability IPC_LOCK \
                    (containers), or have no swap";
        findings.problem(CHECK, format!("{whose} cannot lock its memory: secrets may be swapped out"), mend);
    }
}

/// A hard limit of `proc_pid_limits(5)`: the daemon raises its soft ones itself.
fn hard_limit(limits: &str, name: &str) -> Option<u64> {
    let hard = limits.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().nth(1)?;
    if hard == "unlimited" { Some(u64::MAX) } else { hard.parse().ok() }
}

/// A size of `proc_pid_status(5)`.
fn kilobytes(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()
}

/// By `proc_swaps(5)`: a heading, and a line for each.
fn has_no_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().count() <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n\
                      Max locked memory         65536                unlimited            bytes     \n";
        assert_eq!(hard_limit(limits, "Max open files"), Some(524_288));
        assert_eq!(hard_limit(limits, "Max locked memory"), Some(u64::MAX));
        assert_eq!(hard_limit(limits, "Max nonsense"), None);
        let status = "VmLck:\t    128 kB\n";
        assert_eq!((kilobytes(status, "VmLck:"), kilobytes(status, "VmRSS:")), (Some(128), None));
    }

    #[test]
    fn the_kernel_here_writes_them_so() {
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        assert!(hard_limit(&limits, "Max open files").is_some_and(|limit| limit > 0));
        assert!(hard_limit(&limits, "Max locked memory").is_some());
    }
}
