//! What is done after files have changed: a program is run, or a signal sent. Once for changes that come together, and
//! never two at a time.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::process::Command;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use crate::folder::{open_file, read_whole};

/// Changes that come within this time are one.
const LINGER: Duration = Duration::from_millis(200);

/// The most bytes of a file with the number of a process.
const MAX_PID_FILE: u64 = 4096;

/// The longest that a program may run.
const PATIENCE: Duration = Duration::from_secs(30);

/// All that a program finds in its environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is done after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// A program is run, directly: its path and its arguments.
    Command(Vec<String>),
    /// A signal, such as `HUP`, is sent to the process whose number is in a file.
    Signal {
        /// Its name without `SIG`.
        name: &'static str,
        /// The file.
        pid_file: PathBuf,
    },
}

/// Does what is to be done whenever it is told of a change.
pub(super) async fn follow(hook: Hook, dir: PathBuf, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        sleep(LINGER).await;
        if let Err(error) = hook.run().await {
            tracing::warn!(dir = %dir.display(), error, "what is to be done after a change failed");
        }
    }
}

impl Hook {
    async fn run(&self) -> Result<(), String> {
        match self {
            Self::Command(words) => {
                let (program, arguments) = words.split_first().ok_or("no program")?;
                let mut command = Command::new(program);
                command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                // The daemon's own environment may hold its credentials.
                command.env_clear().env("PATH", PATH);
                let mut child =
                    command.kill_on_drop(true).spawn().map_err(|error| format!("{program}: {error}"))?;
                match timeout(PATIENCE, child.wait()).await {
                    Ok(Ok(status)) if status.success() => Ok(()),
                    Ok(Ok(status)) => Err(format!("{program}: {status}")),
                    Ok(Err(error)) => Err(format!("{program}: {error}")),
                    Err(_) => Err(format!("{program} was ended, since it ran for {} s", PATIENCE.as_secs())),
                }
            }
            Self::Signal { name, pid_file } => {
                let pid = pid_in(pid_file).map_err(|error| format!("{}: {error}", pid_file.display()))?;
                let signal: Signal = format!("SIG{name}").parse().map_err(|_| "unknown signal".to_owned())?;
                kill(Pid::from_raw(pid), signal).map_err(|error| format!("process {pid}: {error}"))
            }
        }
    }
}

/// The process whose number is in a file. Who owns the file must be root, the daemon's own user or that of the process:
/// else whoever may write it could have root signal any process.
fn pid_in(path: &Path) -> io::Result<i32> {
    let file = open_file(path)?;
    let content = read_whole(&file, MAX_PID_FILE)?;
    let number = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    let pid: i32 = number.ok_or_else(|| io::Error::other("it holds no number of a process"))?;
    if pid <= 1 {
        return Err(io::Error::other(format!("process {pid} gets no signals from here")));
    }
    let owner = file.metadata()?.uid();
    let of_process = fs::metadata(format!("/proc/{pid}")).map(|process| process.uid());
    if owner != 0 && owner != geteuid().as_raw() && of_process.is_ok_and(|uid| uid != owner) {
        return Err(io::Error::other(format!("it belongs to user {owner}, and process {pid} to another")));
    }
    Ok(pid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_process_is_named_by_a_file_of_somebody_who_may_signal_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        let own = std::process::id().to_string();
        fs::write(&path, format!("{own}\n")).unwrap();
        assert_eq!(pid_in(&path).unwrap().to_string(), own);
        for wrong in ["", "x", "0", "1", "-1"] {
            fs::write(&path, wrong).unwrap();
            assert!(pid_in(&path).is_err(), "{wrong}");
        }
        fs::write(&path, own).unwrap();
        if chown(&path, Some(65534), None).is_ok() {
            assert!(pid_in(&path).unwrap_err().to_string().contains("belongs to user 65534"));
        }
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o666)).unwrap();
        assert!(pid_in(&path).is_err(), "nobody is waited for");
    }
}
