//! A caller's way to the cache, whatever API it came by: what it may read, and what that may cost.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use hyper::header::{HeaderMap, HeaderName};

use super::Shared;
use super::api::cache_status::failed;
use super::problem::Problem;
use crate::access::{Caller, Denied, Gate, Permit, User};
use crate::audit::{Event, program_of};
use crate::cache::{Answer, Demand, Payer, ReadError, Served};
use crate::net::Peer;
use crate::secret::SecretKey;

/// What a client calls its request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Visitor {
    user: Option<User>,
    pid: Option<u32>,
    /// Looked up when it is first needed: later the process may have ended.
    program: OnceLock<Option<Arc<str>>>,
    payer: Payer,
}

impl Visitor {
    /// Somebody who connected to the listener of this number.
    pub(super) fn new(listener: u32, peer: Peer) -> Self {
        let (user, pid) = match peer {
            Peer::Unix { uid, gid, pid } => (Some(User { uid, gid }), pid),
            Peer::Tcp(_) => (None, None),
        };
        let payer = Payer { listener, uid: user.map(|user| user.uid) };
        Self { user, pid, program: OnceLock::new(), payer }
    }

    /// What the gate looks at.
    pub(super) fn caller<'a>(&self, token: Option<&'a [u8]>) -> Caller<'a> {
        Caller { user: self.user, token }
    }

    /// What the audit trail says of every request of this visitor.
    pub(super) fn event(&self, listener: &Arc<str>, request: &HeaderMap) -> Event {
        let program = self.program.get_or_init(|| self.pid.and_then(program_of));
        let request_id = request.get(REQUEST_ID).map(|id| String::from_utf8_lossy(id.as_bytes()).into());
        Event {
            listener: Arc::clone(listener),
            uid: self.user.map(|user| user.uid),
            gid: self.user.map(|user| user.gid),
            pid: self.pid,
            program: program.clone(),
            request_id,
            ..Event::default()
        }
    }
}

/// What became of one secret of a request.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) secret_id: Arc<str>,
    pub(super) version_id: Option<Arc<str>>,
    pub(super) outcome: &'static str,
    pub(super) age: Option<u64>,
}

/// One request of a visitor who was let in.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    pub(super) shared: &'a Shared,
    gate: &'a Gate,
    visitor: &'a Visitor,
    /// For the audit trail; empty where there is none.
    notes: &'a Notes,
}

/// The secrets that a request was about.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Vec<Note>>);

impl Notes {
    pub(super) fn into_inner(self) -> Vec<Note> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<'a> Visit<'a> {
    pub(super) fn new(shared: &'a Shared, gate: &'a Gate, visitor: &'a Visitor, notes: &'a Notes) -> Self {
        Self { shared, gate, visitor, notes }
    }

    /// Whether the visitor may have the daemon assume this role.
    pub(super) fn may_assume(&self, role_arn: &str) -> Result<(), Problem> {
        Ok(self.gate.may_assume(role_arn)?)
    }

    /// One read, at the visitor's expense.
    pub(super) async fn read(&self, key: &SecretKey, demand: Demand) -> Result<Answer, Problem> {
        self.read_by(key, demand, |demand| async move { self.shared.cache.read(key, &demand).await }).await
    }

    /// Reads by `read`, which is given what is asked of the cache. Before that it is settled whether the visitor may
    /// ask, so that nobody learns what exists who may not read it; and after it whether what came is what it may have.
    pub(super) async fn read_by<F>(
        &self,
        key: &SecretKey,
        demand: Demand,
        read: impl FnOnce(Demand) -> F,
    ) -> Result<Answer, Problem>
    where
        F: Future<Output = Result<Answer, ReadError>>,
    {
        let read = self.try_read_by(key, demand, read).await;
        let read = read.and_then(|answer| answer.map_err(failed));
        self.note(key, &read);
        read
    }

    /// Has the audit trail say what became of a secret.
    pub(super) fn note(&self, key: &SecretKey, read: &Result<Answer, Problem>) {
        if !self.shared.audit.is_on() {
            return;
        }
        let note = match read {
            Ok(answer) => Note {
                secret_id: key.id.to_shared(),
                version_id: Some(Arc::clone(&answer.held.version.version_id)),
                outcome: match answer.served {
                    Served::Hit => "hit",
                    Served::StaleWhileRevalidate | Served::StaleIfError => "stale",
                    Served::Fetched { .. } => "fetched",
                },
                age: Some(answer.age.as_secs()),
            },
            Err(problem) => {
                Note { secret_id: key.id.to_shared(), version_id: None, outcome: problem.code(), age: None }
            }
        };
        self.notes.0.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// As [`Visit::read_by`], for those who want to know how the cache failed, and note themselves what came of it.
    pub(super) async fn try_read_by<F>(
        &self,
        key: &SecretKey,
        demand: Demand,
        read: impl FnOnce(Demand) -> F,
    ) -> Result<Result<Answer, ReadError>, Problem>
    where
        F: Future<Output = Result<Answer, ReadError>>,
    {
        let permit = self.gate.may_ask(self.visitor.user, key)?;
        let answer = read(Demand { payer: Some(self.visitor.payer), ..demand }).await;
        if let Ok(answer) = &answer {
            self.may_have(permit, answer)?;
        }
        Ok(answer)
    }

    fn may_have(&self, permit: Permit, answer: &Answer) -> Result<(), Denied> {
        self.gate.may_have(self.visitor.user, permit, &answer.held.version)
    }
}
