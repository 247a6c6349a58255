//! Noticing that a secret has another version, for the commands that follow one.
//!
//! The daemon is asked to answer as soon as there is another version (`?wait=`), and, where it is too old to
//! know that, every few seconds. What a change means is the command's affair.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep};

use super::backoff::Backoff;
use super::daemon::{Daemon, Failure, Reply, Target};
use crate::net::PATIENCE;

/// How long the daemon is asked to wait for a change.
const WAIT: Duration = Duration::from_secs(30);

/// How often a daemon is asked that does not wait.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The least time from one request to the next, however fast the answers.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What there is to be told about a secret. Not printable.
pub(super) enum Event {
    /// There is another version.
    Changed(Bytes),
    /// The secret is gone, or forbidden; told once in a row.
    Revoked(Failure),
    /// The daemon cannot be asked, or cannot tell; told once in a row.
    Troubled(Failure),
}

/// Follows one secret.
#[derive(Debug)]
pub(super) struct Watch {
    daemon: Daemon,
    target: Target,
    state: State,
}

impl Watch {
    /// From the version with this entity tag on.
    pub(super) fn new(daemon: Daemon, target: Target, etag: String) -> Self {
        Self { daemon, target, state: State::new(etag) }
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> Event {
        loop {
            sleep(self.state.pause).await;
            let asked_at = Instant::now();
            let (target, patience) = if self.state.can_wait {
                let wait = format!("{}s", WAIT.as_secs());
                (self.target.clone().with("wait", &wait), WAIT + PATIENCE)
            } else {
                (self.target.clone(), PATIENCE)
            };
            let reply = self.daemon.read_unless(&target, &self.state.etag, patience).await;
            if let Some(event) = self.state.heed(reply, asked_at.elapsed(), fastrand::f64()) {
                return event;
            }
        }
    }
}

/// What is known, and when to ask again.
#[derive(Debug)]
struct State {
    etag: String,
    can_wait: bool,
    backoff: Backoff,
    /// What the last answer was, if it was no good.
    trouble: Option<Trouble>,
    /// How long to pause before the next request.
    pause: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Revoked,
    Passing,
}

impl State {
    fn new(etag: String) -> Self {
        let backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        Self { etag, can_wait: true, backoff, trouble: None, pause: Duration::ZERO }
    }

    /// What an answer that took this long means; sets when to ask again.
    fn heed(&mut self, reply: Result<Reply, Failure>, took: Duration, jitter: f64) -> Option<Event> {
        match reply {
            Ok(reply) => {
                self.backoff.reset();
                self.trouble = None;
                self.pause = if self.can_wait {
                    MIN_INTERVAL.saturating_sub(took)
                } else {
                    POLL_INTERVAL.mul_f64(0.75 + 0.5 * jitter)
                };
                match reply {
                    Reply::Version(version) if version.etag != self.etag => {
                        self.etag = version.etag;
                        Some(Event::Changed(version.value))
                    }
                    Reply::Version(_) | Reply::Unchanged => None,
                }
            }
            Err(failure) if self.can_wait && failure.is_unknown_parameter() => {
                self.can_wait = false;
                self.pause = Duration::ZERO;
                None
            }
            Err(failure) => {
                self.pause = self.backoff.pause(jitter);
                let (trouble, event) = if failure.is_revocation() {
                    (Trouble::Revoked, Event::Revoked(failure))
                } else {
                    (Trouble::Passing, Event::Troubled(failure))
                };
                // A daemon that cannot be asked for a while has not given a secret back.
                let is_known = match self.trouble.replace(trouble) {
                    Some(Trouble::Revoked) => {
                        self.trouble = Some(Trouble::Revoked);
                        true
                    }
                    known => known == Some(trouble),
                };
                (!is_known).then_some(event)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::super::daemon::Version;
    use super::super::daemon::tests::refused;
    use super::*;
    use crate::config::Environment;

    const SLOW: Duration = Duration::from_secs(30);
    const FAST: Duration = Duration::from_millis(1);

    fn version(etag: &str) -> Reply {
        Reply::Version(Version { value: Bytes::from_static(b"x"), etag: etag.to_owned() })
    }

    #[test]
    fn another_tag_is_a_change_and_the_same_is_none() {
        let mut state = State::new("\"v1\"".to_owned());
        assert!(state.heed(Ok(Reply::Unchanged), SLOW, 0.5).is_none());
        assert_eq!(state.pause, Duration::ZERO);
        assert!(matches!(state.heed(Ok(version("\"v2\"")), SLOW, 0.5), Some(Event::Changed(_))));
        assert_eq!(state.etag, "\"v2\"");
        assert!(state.heed(Ok(version("\"v2\"")), FAST, 0.5).is_none());
    }

    #[test]
    fn a_daemon_that_answers_at_once_is_not_asked_without_end() {
        let mut state = State::new(String::new());
        state.heed(Ok(Reply::Unchanged), FAST, 0.5);
        assert!(state.pause > MIN_INTERVAL / 2);
    }

    #[test]
    fn a_daemon_that_does_not_know_waiting_is_polled() {
        let mut state = State::new("\"v1\"".to_owned());
        assert!(state.heed(Err(refused(400, "unknown_parameter")), FAST, 0.5).is_none());
        assert_eq!((state.can_wait, state.pause), (false, Duration::ZERO));
        state.heed(Ok(Reply::Unchanged), FAST, 0.5);
        assert_eq!(state.pause, POLL_INTERVAL);
    }

    #[test]
    fn trouble_is_told_once_a_row_and_each_pause_is_longer() {
        let mut state = State::new("\"v1\"".to_owned());
        let mut pauses = Vec::new();
        for row in 0..2 {
            for attempt in 0..3 {
                let event = state.heed(Err(refused(503, "x")), FAST, 1.0);
                assert_eq!(matches!(event, Some(Event::Troubled(_))), attempt == 0, "row {row}");
                pauses.push(state.pause.as_secs());
            }
            state.heed(Ok(Reply::Unchanged), SLOW, 1.0);
        }
        assert_eq!(pauses, [1, 2, 4, 1, 2, 4]);
    }

    #[test]
    fn a_revocation_is_told_once_and_another_version_ends_it() {
        let mut state = State::new("\"v1\"".to_owned());
        assert!(matches!(state.heed(Err(refused(503, "x")), FAST, 0.0), Some(Event::Troubled(_))));
        assert!(matches!(state.heed(Err(refused(404, "x")), FAST, 0.0), Some(Event::Revoked(_))));
        assert!(state.heed(Err(refused(503, "x")), FAST, 0.0).is_none());
        assert!(state.heed(Err(refused(404, "x")), FAST, 0.0).is_none());
        assert!(matches!(state.heed(Ok(version("\"v2\"")), FAST, 0.0), Some(Event::Changed(_))));
        assert!(matches!(state.heed(Err(refused(403, "x")), FAST, 0.0), Some(Event::Revoked(_))));
    }

    /// A daemon that gives these answers, one a connection, and returns the requests.
    async fn scripted(listener: UnixListener, answers: Vec<String>) -> Vec<String> {
        let mut requests = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut read = vec![0; 4096];
            let length = stream.read(&mut read).await.unwrap();
            requests.push(String::from_utf8_lossy(&read[..length]).to_lowercase());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        requests
    }

    fn answer(status: &str, more: &str, body: &str) -> String {
        let status = format!("HTTP/1.1 {status}\r\nCache-Status: smcached; hit\r\n{more}");
        format!("{status}Content-Length: {}\r\n\r\n{body}", body.len())
    }

    fn at(socket: &Path) -> Daemon {
        let environment = Environment::from_lookup(|_| None);
        Daemon::find(Some(socket), &environment).unwrap()
    }

    #[tokio::test]
    async fn the_daemon_is_asked_to_wait_for_another_version_than_the_last() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s.sock");
        let answers = vec![
            answer("200 OK", "ETag: \"v2\"\r\n", "two"),
            answer("304 Not Modified", "ETag: \"v2\"\r\n", ""),
            answer("200 OK", "ETag: \"v3\"\r\n", "three"),
        ];
        let requests = tokio::spawn(scripted(UnixListener::bind(&socket).unwrap(), answers));
        let mut watch = Watch::new(at(&socket), Target::of_word("a/b"), "\"v1\"".to_owned());
        assert!(matches!(watch.next().await, Event::Changed(value) if value == "two"));
        assert!(matches!(watch.next().await, Event::Changed(value) if value == "three"));
        let requests = requests.await.unwrap();
        for (request, known) in requests.iter().zip(["v1", "v2", "v2"]) {
            assert!(request.starts_with("get /secret/a/b?wait=30s http/1.1"), "{request}");
            assert!(request.contains(&format!("if-none-match: \"{known}\"")), "{request}");
        }
        assert!(matches!(watch.next().await, Event::Troubled(Failure::NoAnswer(_))));
    }

    #[tokio::test]
    async fn a_daemon_that_does_not_wait_is_asked_without() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s.sock");
        let refusal = r#"{"detail": "x", "code": "unknown_parameter"}"#;
        let answers = vec![
            answer("400 Bad Request", "Content-Type: application/problem+json\r\n", refusal),
            answer("200 OK", "ETag: \"v2\"\r\n", "two"),
        ];
        let requests = tokio::spawn(scripted(UnixListener::bind(&socket).unwrap(), answers));
        let mut watch = Watch::new(at(&socket), Target::of_word("a/b"), "\"v1\"".to_owned());
        assert!(matches!(watch.next().await, Event::Changed(value) if value == "two"));
        assert!(requests.await.unwrap()[1].starts_with("get /secret/a/b http/1.1"));
    }
}
