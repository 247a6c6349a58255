//! A command whose secrets may change: it runs as a child, gets our signals, and is started again with new values, or
//! told of them. When it ends by itself, so do we.
//!
//! `Course` decides and does nothing; `run` does what it decides.

use std::future::pending;
use std::io::{self, IsTerminal};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::not_run;
use super::values::Values;
use super::variables::Variables;
use crate::cli::backoff::Backoff;
use crate::cli::daemon::Daemon;
use crate::cli::watch::{Event, Watch};
use crate::cli::{Exit, complain};
use crate::config::signal_name;

/// Changes within this time are one.
const SETTLING: Duration = Duration::from_millis(200);

/// How long a command may take to end when it is to be started again.
const GRACE: Duration = Duration::from_secs(10);

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What is passed on to the command.
const PASSED_ON: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];

/// What to do when a secret has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaction {
    /// Start the command again, with the new values.
    Restart,
    /// Send it this signal.
    Signal(Signal),
}

impl Reaction {
    /// `restart`, or `signal=HUP` with or without `SIG`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let named = |name: &str| format!("SIG{}", signal_name(name)?).parse().ok();
        match text.strip_prefix("signal=") {
            None if text == "restart" => Some(Self::Restart),
            None => None,
            Some(name) => named(name).map(Self::Signal),
        }
        .ok_or_else(|| "accepted: restart, or signal= with HUP, USR1, USR2, INT, TERM or QUIT".to_owned())
    }
}

/// Runs the command until it ends by itself.
pub(super) async fn run(
    command: &dyn Fn(&Values) -> Command,
    daemon: &Daemon,
    variables: &Variables,
    values: Values,
    reaction: Reaction,
) -> Result<ExitCode, Exit> {
    let failed = |what: &str, error: &io::Error| {
        complain(&format!("cannot {what}: {error}"));
        Exit::Failure
    };
    // Before there is a command, so that no signal is lost on it.
    let mut tasks = JoinSet::new();
    let mut signals = catch_signals(&mut tasks).map_err(|error| failed("catch signals", &error))?;
    let mut child = match spawn(command(&values)) {
        Ok(child) => child,
        Err(exit) => return Ok(exit),
    };
    let changes = watch_secrets(&mut tasks, daemon, &values);
    let mut renewals = renew(&mut tasks, changes, daemon, variables, reaction);
    let mut course = Course::new(values);
    loop {
        let action = tokio::select! {
            ended = child.wait() => course.ended(ended.map_err(|error| failed("wait for the command", &error))?),
            Some(signal) = signals.recv() => course.sent(signal, io::stdin().is_terminal()),
            Some(renewal) = renewals.recv() => match child.try_wait() {
                // Its end was its own, though we learn of it only now.
                Ok(Some(status)) => course.ended(status),
                _ => course.renewed(renewal, Instant::now()),
            },
            () = at(course.kill_at) => course.overdue(),
        };
        match action {
            Action::Nothing => {}
            Action::Send(signal) => send(&child, signal),
            Action::Start => match spawn(command(&course.values)) {
                Ok(started) => child = started,
                Err(exit) => return Ok(exit),
            },
            Action::Exit(status) => return Ok(exit_code(status)),
        }
    }
}

/// What a change has come to.
enum Renewal {
    /// These are the values now.
    Values(Values),
    /// The command is to be sent this.
    Notice(Signal),
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    /// Send the command a signal.
    Send(Signal),
    /// Start the command, with the values of the course.
    Start,
    /// End as the command did.
    Exit(ExitStatus),
}

/// Where things stand with the command.
struct Course {
    /// What the command was started with.
    values: Values,
    /// What it is to be started with once it has ended.
    next: Option<Values>,
    /// When it has taken too long to end.
    kill_at: Option<Instant>,
    /// Somebody wants it to end: it is not started again.
    is_to_end: bool,
}

impl Course {
    fn new(values: Values) -> Self {
        Self { values, next: None, kill_at: None, is_to_end: false }
    }

    fn renewed(&mut self, renewal: Renewal, now: Instant) -> Action {
        match renewal {
            _ if self.is_to_end => Action::Nothing,
            Renewal::Notice(signal) => Action::Send(signal),
            Renewal::Values(values) if self.next.is_some() => {
                self.next = Some(values);
                Action::Nothing
            }
            // Another version need not have another value.
            Renewal::Values(values) if values.are_those_of(&self.values) => Action::Nothing,
            Renewal::Values(values) => {
                self.next = Some(values);
                self.kill_at = Some(now + GRACE);
                Action::Send(Signal::SIGTERM)
            }
        }
    }

    /// The command has ended.
    fn ended(&mut self, status: ExitStatus) -> Action {
        self.kill_at = None;
        match self.next.take() {
            Some(values) => {
                self.values = values;
                Action::Start
            }
            None => Action::Exit(status),
        }
    }

    /// The command was to end and has not.
    fn overdue(&mut self) -> Action {
        self.kill_at = None;
        Action::Send(Signal::SIGKILL)
    }

    /// We were sent a signal.
    fn sent(&mut self, signal: Signal, by_terminal: bool) -> Action {
        if matches!(signal, Signal::SIGTERM | Signal::SIGINT) {
            self.is_to_end = true;
            self.next = None;
            self.kill_at = None;
        }
        // A terminal sends these to all its foreground processes, the command among them.
        if by_terminal && matches!(signal, Signal::SIGINT | Signal::SIGQUIT) {
            return Action::Nothing;
        }
        Action::Send(signal)
    }
}

fn catch_signals(tasks: &mut JoinSet<()>) -> io::Result<mpsc::Receiver<Signal>> {
    let (sender, receiver) = mpsc::channel(PASSED_ON.len());
    for caught in PASSED_ON {
        let mut stream = signal(SignalKind::from_raw(caught as i32))?;
        let sender = sender.clone();
        tasks.spawn(
            async move { while stream.recv().await.is_some() && sender.send(caught).await.is_ok() {} },
        );
    }
    Ok(receiver)
}

/// Ticks whenever one of the secrets has another version.
fn watch_secrets(tasks: &mut JoinSet<()>, daemon: &Daemon, values: &Values) -> watch::Receiver<()> {
    let (sender, receiver) = watch::channel(());
    for (secret, etag) in values.secrets() {
        let mut watch = Watch::new(daemon.clone(), secret.clone(), etag.to_owned());
        let (sender, secret) = (sender.clone(), secret.clone());
        tasks.spawn(async move {
            loop {
                match watch.next().await {
                    Event::Changed(_) => sender.send_replace(()),
                    Event::Troubled(failure) | Event::Revoked(failure) => {
                        complain(&format!("{secret}: {failure}; the command goes on with what it has"));
                    }
                }
            }
        });
    }
    receiver
}

/// Makes of changes what the command is to be given.
fn renew(
    tasks: &mut JoinSet<()>,
    mut changes: watch::Receiver<()>,
    daemon: &Daemon,
    variables: &Variables,
    reaction: Reaction,
) -> mpsc::Receiver<Renewal> {
    let (sender, receiver) = mpsc::channel(1);
    let (daemon, variables) = (daemon.clone(), variables.clone());
    tasks.spawn(async move {
        while changes.changed().await.is_ok() {
            sleep(SETTLING).await;
            changes.mark_unchanged();
            let renewal = match reaction {
                Reaction::Restart => Renewal::Values(new_values(&daemon, &variables).await),
                Reaction::Signal(signal) => Renewal::Notice(signal),
            };
            if sender.send(renewal).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Fetches until all values can be had; meanwhile the command keeps those that it has.
async fn new_values(daemon: &Daemon, variables: &Variables) -> Values {
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let mut is_told = false;
    loop {
        match Values::fetch(daemon, variables).await {
            Ok(values) => return values,
            Err(failed) if !is_told => {
                for failed in failed {
                    complain(&format!("{failed}; the command goes on with what it has"));
                }
                is_told = true;
            }
            Err(_) => {}
        }
        sleep(backoff.pause(fastrand::f64())).await;
    }
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

fn spawn(command: Command) -> Result<Child, ExitCode> {
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true).spawn().map_err(|error| not_run(command.as_std(), &error))
}

fn send(child: &Child, signal: Signal) {
    // A child that has ended has no id any more, so it is never another process's.
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else { return };
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => complain(&format!("cannot send {signal} to the command: {error}")),
    }
}

/// As a shell has it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    let code = code.and_then(|code| u8::try_from(code).ok());
    code.map_or_else(|| Exit::Failure.into(), ExitCode::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: i32 = 3 << 8;

    fn ended(course: &mut Course) -> Action {
        course.ended(ExitStatus::from_raw(STATUS))
    }

    fn is_exit(action: &Action) -> bool {
        *action == Action::Exit(ExitStatus::from_raw(STATUS))
    }

    fn values(value: &'static str) -> Values {
        Values::of(&[("A", value)])
    }

    fn renewed(course: &mut Course, value: &'static str) -> Action {
        course.renewed(Renewal::Values(values(value)), Instant::now())
    }

    #[test]
    fn a_reaction_is_restart_or_one_of_six_signals() {
        assert_eq!(Reaction::parse("restart"), Ok(Reaction::Restart));
        for name in ["HUP", "USR1", "USR2", "INT", "TERM", "QUIT"] {
            let Ok(Reaction::Signal(signal)) = Reaction::parse(&format!("signal={name}")) else {
                panic!("{name}")
            };
            assert_eq!(signal.as_str(), format!("SIG{name}"));
            assert_eq!(Reaction::parse(&format!("signal=SIG{name}")), Ok(Reaction::Signal(signal)));
        }
        for text in ["", "signal", "signal=", "signal=KILL", "signal=hup", "HUP", "restart=1"] {
            assert!(Reaction::parse(text).unwrap_err().starts_with("accepted: restart"), "{text}");
        }
    }

    #[test]
    fn a_command_that_ends_by_itself_is_not_started_again() {
        assert!(is_exit(&ended(&mut Course::new(values("1")))));
    }

    #[test]
    fn new_values_end_the_command_and_start_it_again() {
        let mut course = Course::new(values("1"));
        assert_eq!(renewed(&mut course, "1"), Action::Nothing, "the value is the same");
        assert_eq!(renewed(&mut course, "2"), Action::Send(Signal::SIGTERM));
        assert!(course.kill_at.is_some());
        assert_eq!(renewed(&mut course, "3"), Action::Nothing, "it is ending already");
        assert_eq!(course.overdue(), Action::Send(Signal::SIGKILL));
        assert_eq!((ended(&mut course), course.kill_at), (Action::Start, None));
        assert!(course.values.are_those_of(&values("3")));
        assert!(is_exit(&ended(&mut course)));
    }

    #[test]
    fn a_command_that_is_told_to_end_is_not_started_again() {
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let mut course = Course::new(values("1"));
            renewed(&mut course, "2");
            assert_eq!(course.sent(signal, false), Action::Send(signal));
            assert_eq!(renewed(&mut course, "3"), Action::Nothing);
            assert!(is_exit(&ended(&mut course)));
        }
        let mut course = Course::new(values("1"));
        assert_eq!(course.sent(Signal::SIGHUP, false), Action::Send(Signal::SIGHUP));
        assert_eq!(renewed(&mut course, "2"), Action::Send(Signal::SIGTERM));
    }

    #[test]
    fn what_a_terminal_sends_to_all_is_not_sent_twice() {
        let mut course = Course::new(values("1"));
        assert_eq!(course.sent(Signal::SIGINT, true), Action::Nothing);
        assert_eq!(course.sent(Signal::SIGQUIT, true), Action::Nothing);
        assert_eq!(course.sent(Signal::SIGTERM, true), Action::Send(Signal::SIGTERM));
    }
}
