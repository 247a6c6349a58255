//! Who may come in and what they may read. Plain values in, allowed or not out; knows no HTTP.

mod pattern;
mod policy;
mod token;

pub use pattern::{Candidates, Patterns, Verdict};
pub use policy::{Policy, Rule};
pub use token::{TOKEN_POLL_INTERVAL, TokenError, TokenFile};

use std::sync::Arc;

use thiserror::Error;

use crate::secret::{SecretKey, SecretVersion};

/// Who asks, as far as the listener can tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller<'a> {
    /// The peer's user and primary group; only on Unix sockets.
    pub user: Option<User>,
    /// The token that was presented.
    pub token: Option<&'a [u8]>,
}

/// A user of this system, by the kernel's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
}

/// Why a caller is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Denied {
    /// No token, where one is needed.
    #[error("this listener needs a token, in X-Aws-Parameters-Secrets-Token or Authorization: Bearer")]
    TokenMissing,
    /// Another token.
    #[error("the token is wrong; it is in the daemon's token file, and may have been replaced")]
    TokenWrong,
    /// The user id is not listed, or unknown.
    #[error("this user may not read secrets here")]
    Uid,
    /// The role is not among those that may be asked for here.
    #[error("this role may not be used here; the listener's allow_roles lists those that may")]
    Role,
    /// The secret is not among those that may be read here.
    #[error("this secret may not be read here")]
    Secret,
}

/// The rules of one listener.
#[derive(Debug, Default)]
pub struct Gate {
    /// The token that callers must present, where one is needed.
    pub token: Option<Arc<TokenFile>>,
    /// The user ids that may come in; empty means whoever the socket's mode lets in.
    pub allow_uids: Vec<u32>,
    /// The secrets that may be read, and by whom.
    pub policy: Policy,
    /// The roles that a caller may have the daemon assume; none by default.
    pub allow_roles: Vec<String>,
}

/// A secret that a caller may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Permit {
    /// Its names in the answer decide whether the caller gets it.
    depends: bool,
}

impl Gate {
    /// Whether the caller may come in at all.
    pub fn admit(&self, caller: &Caller<'_>) -> Result<(), Denied> {
        if let Some(token) = &self.token {
            match caller.token {
                None => return Err(Denied::TokenMissing),
                Some(presented) if !token.matches(presented) => return Err(Denied::TokenWrong),
                Some(_) => {}
            }
        }
        let is_listed = |user: User| self.allow_uids.contains(&user.uid);
        if !self.allow_uids.is_empty() && !caller.user.is_some_and(is_listed) {
            return Err(Denied::Uid);
        }
        Ok(())
    }

    /// Whether a caller may have the daemon assume this role.
    pub fn may_assume(&self, role_arn: &str) -> Result<(), Denied> {
        if self.allow_roles.iter().any(|allowed| allowed == role_arn) { Ok(()) } else { Err(Denied::Role) }
    }

    /// Whether a user may ask for a secret. Looks at the resolved key only, so that how a caller spelt it makes no
    /// difference, and whether there is such a secret neither.
    pub fn may_ask(&self, user: Option<User>, key: &SecretKey) -> Result<Permit, Denied> {
        match self.policy.verdict(user, key) {
            Verdict::Yes => Ok(Permit { depends: false }),
            Verdict::Depends => Ok(Permit { depends: true }),
            Verdict::No => Err(Denied::Secret),
        }
    }

    /// Whether a user who had this permit may have the version that it led to.
    pub fn may_have(
        &self,
        user: Option<User>,
        permit: Permit,
        version: &SecretVersion,
    ) -> Result<(), Denied> {
        if permit.depends && !self.policy.allows(user, version) { Err(Denied::Secret) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_uid_comes_in_and_an_unknown_one_does_not() {
        let gate = Gate { allow_uids: vec![1000], ..Gate::default() };
        let caller = |uid| Caller { user: Some(User { uid, gid: 1000 }), token: None };
        assert_eq!(gate.admit(&caller(1000)), Ok(()));
        assert_eq!(gate.admit(&caller(0)), Err(Denied::Uid));
        assert_eq!(gate.admit(&Caller::default()), Err(Denied::Uid));
    }
}
