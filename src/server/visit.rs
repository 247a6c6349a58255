//! A caller's way to the cache, whatever API it came by: what it may read, and what that may cost.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::api::cache_status::failed;
use super::problem::Problem;
use super::{Rules, Shared};
use crate::access::{Caller, Gate, User};
use crate::audit::{Event, program_of};
use crate::cache::{Answer, Demand, Held, Payer, Place, ReadError, Served};
use crate::net::{Activity, Peer};
use crate::secret::{MAX_ID_BYTES, SecretKey, SecretVersion};

/// What a client calls its request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// As much of it is kept, in bytes: events may wait by the thousand.
const MAX_REQUEST_ID: usize = 64;

/// Who is at the other end of a connection.
#[derive(Debug)]
pub struct Visitor {
    user: Option<User>,
    pid: Option<u32>,
    /// Looked up when it is first needed: later the process may have ended.
    program: OnceLock<Option<Arc<str>>>,
    payer: Payer,
    activity: Arc<Activity>,
}

impl Visitor {
    /// Somebody who connected to the listener of this number.
    pub(super) fn new(listener: u32, peer: Peer, activity: Arc<Activity>) -> Self {
        let (user, pid) = match peer {
            Peer::Unix { uid, gid, pid } => (Some(User { uid, gid }), pid),
            Peer::Tcp(_) => (None, None),
        };
        let payer = Payer { listener, uid: user.map(|user| user.uid) };
        Self { user, pid, program: OnceLock::new(), payer, activity }
    }

    /// What the gate looks at.
    pub(super) fn caller<'a>(&self, token: Option<&'a [u8]>) -> Caller<'a> {
        Caller { user: self.user, token }
    }

    /// What the audit trail says of every request of this visitor.
    pub(super) fn event(&self, listener: &Arc<str>, request: &HeaderMap) -> Event {
        let program = self.program.get_or_init(|| self.pid.and_then(program_of));
        let request_id = request.get(REQUEST_ID).map(|id| {
            let id = id.as_bytes();
            String::from_utf8_lossy(&id[..id.len().min(MAX_REQUEST_ID)]).into()
        });
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
    /// What holds now, while a request may wait.
    rules: &'a ArcSwap<Rules>,
    /// What held when the request came.
    gate: &'a Gate,
    visitor: &'a Visitor,
    /// For the audit trail; empty where there is none.
    notes: &'a Notes,
    /// When the request came.
    began: Instant,
}

/// A body, and its place among those of all requests.
struct Counted {
    body: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// What is to be said of a request besides its answer.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// The secrets that it was about.
    secrets: Mutex<Vec<Note>>,
    /// Why parts of it were refused.
    rejections: Mutex<Vec<&'static str>>,
}

impl Notes {
    fn push(&self, note: Note) {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    /// The secrets, and the reasons of refusals.
    pub(super) fn into_inner(self) -> (Vec<Note>, Vec<&'static str>) {
        let secrets = self.secrets.into_inner().unwrap_or_else(PoisonError::into_inner);
        (secrets, self.rejections.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<'a> Visit<'a> {
    pub(super) fn new(
        shared: &'a Shared,
        rules: &'a ArcSwap<Rules>,
        gate: &'a Gate,
        visitor: &'a Visitor,
        notes: &'a Notes,
        began: Instant,
    ) -> Self {
        Self { shared, rules, gate, visitor, notes, began }
    }

    /// What the visitor's connection is at.
    pub(super) fn activity(&self) -> &Activity {
        &self.visitor.activity
    }

    /// Whether the visitor may have the daemon assume this role.
    pub(super) fn may_assume(&self, role_arn: &str) -> Result<(), Problem> {
        Ok(self.gate.may_assume(role_arn)?)
    }

    /// One read, at the visitor's expense.
    pub(super) async fn read(&self, key: &SecretKey, demand: Demand) -> Result<Answer, Problem> {
        let read = self.try_read(key, demand).await.and_then(|answer| answer.map_err(failed));
        self.note(key, &read);
        read
    }

    /// As [`Visit::read`]; while the visitor knows what is held, waits for another version in one of the `places`, at most
    /// until `until`. What the rules say then counts, whatever they said before.
    pub(super) async fn read_changed(
        &self,
        key: &SecretKey,
        demand: Demand,
        until: Instant,
        is_known: impl Fn(&Held) -> bool,
        places: &Semaphore,
        token: Option<&[u8]>,
    ) -> Result<Answer, Problem> {
        let read = async {
            let answer = self.try_read(key, demand).await?.map_err(failed)?;
            if !is_known(&answer.held) || Instant::now() >= until {
                return Ok(answer);
            }
            let _place = places.try_acquire().map_err(|_| Problem::too_many_waiting())?;
            let (cache, payer) = (&self.shared.cache, Some(self.visitor.payer));
            let held = answer.clone();
            let answer = tokio::select! {
                biased;
                answer = cache.next(key, answer, payer, until, is_known) => answer.map_err(failed)?,
                // Nobody is to be waited for at the end.
                () = self.shared.readiness.draining() => held,
            };
            let rules = self.rules.load();
            rules.gate.admit(&self.visitor.caller(token))?;
            let permit = rules.gate.may_ask(self.visitor.user, key)?;
            rules.gate.may_have(self.visitor.user, permit, &answer.held.version)?;
            Ok(answer)
        };
        let read = read.await;
        self.note(key, &read);
        read
    }

    /// As [`Visit::read`], for those who want to know how the cache failed, and note themselves what came of it. Before the
    /// read it is settled whether the visitor may ask, so that nobody learns what exists who may not read it; and after
    /// it whether what came is what it may have.
    pub(super) async fn try_read(
        &self,
        key: &SecretKey,
        demand: Demand,
    ) -> Result<Result<Answer, ReadError>, Problem> {
        let permit = self.gate.may_ask(self.visitor.user, key)?;
        let demand = Demand { payer: Some(self.visitor.payer), ..demand };
        let answer = self.shared.cache.read(key, &demand).await;
        if let Ok(answer) = &answer {
            self.gate.may_have(self.visitor.user, permit, &answer.held.version)?;
        }
        Ok(answer)
    }

    /// As [`Visit::read`] without demands, where that takes no waiting and is refused nothing.
    pub(super) fn read_held(&self, key: &SecretKey, place: &Place) -> Option<Answer> {
        let user = self.visitor.user;
        let permit = self.gate.may_ask(user, key).ok()?;
        let may_have = |version: &SecretVersion| self.gate.may_have(user, permit, version).is_ok();
        let read = Ok(self.shared.cache.read_held(place, self.began, may_have)?);
        self.note(key, &read);
        read.ok()
    }

    /// Counts a body that was made for this request alone, for as long as it is in memory: clients that ask for much and
    /// read nothing would have the daemon hold all of it.
    pub(super) fn counted(&self, body: Bytes) -> Result<Bytes, Problem> {
        let size = u32::try_from(body.len() >> 10).unwrap_or(u32::MAX).saturating_add(1);
        let room = Arc::clone(&self.shared.bodies).try_acquire_many_owned(size);
        let room = room.map_err(|_| Problem::too_many_bodies())?;
        Ok(Bytes::from_owner(Counted { body, _room: room }))
    }

    /// Has the audit trail say what became of a secret.
    pub(super) fn note(&self, key: &SecretKey, read: &Result<Answer, Problem>) {
        if !self.shared.audit.is_on() {
            return;
        }
        let secret_id = key.id.to_shared();
        self.notes.push(match read {
            Ok(answer) => Note {
                secret_id,
                version_id: Some(&answer.held.version.version_id).filter(|id| !id.is_empty()).cloned(),
                outcome: match answer.served {
                    Served::Hit => "hit",
                    Served::StaleWhileRevalidate | Served::StaleIfError => "stale",
                    Served::Fetched { .. } => "fetched",
                },
                age: Some(answer.age.as_secs()),
            },
            Err(problem) => Note { secret_id, version_id: None, outcome: problem.code(), age: None },
        });
    }

    /// Has the audit trail say that what was asked for is the id of no secret.
    pub(super) fn note_malformed(&self, id: &str, problem: &Problem) {
        if self.shared.audit.is_on() {
            let secret_id = id.chars().take(MAX_ID_BYTES).collect::<String>().into();
            self.notes.push(Note { secret_id, version_id: None, outcome: problem.code(), age: None });
        }
    }

    /// Has a refusal counted that is only a part of an answer.
    pub(super) fn note_rejection(&self, problem: &Problem) {
        if let Some(reason) = problem.rejection() {
            self.notes.rejections.lock().unwrap_or_else(PoisonError::into_inner).push(reason);
        }
    }
}
