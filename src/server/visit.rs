//! A caller's way to the cache, whatever API it came by: what it may read, and what that may cost.

use std::future::Future;

use super::Shared;
use super::api::cache_status::failed;
use super::problem::Problem;
use crate::access::{Caller, Denied, Gate, Permit, User};
use crate::cache::{Answer, Demand, Payer, ReadError};
use crate::net::Peer;
use crate::secret::SecretKey;

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Visitor {
    user: Option<User>,
    payer: Payer,
}

impl Visitor {
    /// Somebody who connected to the listener of this number.
    pub(super) fn new(listener: u32, peer: Peer) -> Self {
        let user = match peer {
            Peer::Unix { uid, gid, .. } => Some(User { uid, gid }),
            Peer::Tcp(_) => None,
        };
        Self { user, payer: Payer { listener, uid: user.map(|user| user.uid) } }
    }

    /// What the gate looks at.
    pub(super) fn caller<'a>(&self, token: Option<&'a [u8]>) -> Caller<'a> {
        Caller { user: self.user, token }
    }
}

/// One request of a visitor who was let in.
#[derive(Debug)]
pub(super) struct Visit<'a> {
    pub(super) shared: &'a Shared,
    gate: &'a Gate,
    visitor: &'a Visitor,
}

impl<'a> Visit<'a> {
    pub(super) fn new(shared: &'a Shared, gate: &'a Gate, visitor: &'a Visitor) -> Self {
        Self { shared, gate, visitor }
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
        self.try_read_by(key, demand, read).await?.map_err(failed)
    }

    /// As [`Visit::read_by`], for those who want to know how the cache failed.
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
