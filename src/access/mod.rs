//! Who may come in and what they may read. Plain values in, allowed or not out; knows no HTTP.

mod pattern;
mod token;

pub use pattern::Patterns;
pub use token::{TOKEN_POLL_INTERVAL, TokenError, TokenFile};

use std::sync::Arc;

use thiserror::Error;

use crate::secret::SecretKey;

/// Who asks, as far as the listener can tell.
#[derive(Debug, Clone, Copy, Default)]
pub struct Caller<'a> {
    /// The peer's user id; only on Unix sockets.
    pub uid: Option<u32>,
    /// The token that was presented.
    pub token: Option<&'a [u8]>,
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
    /// The secrets that may be read; `None` means all.
    pub allow_secrets: Option<Patterns>,
    /// The roles that a caller may have the daemon assume; none by default.
    pub allow_roles: Vec<String>,
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
        let is_listed = |uid: Option<u32>| uid.is_some_and(|uid| self.allow_uids.contains(&uid));
        if !self.allow_uids.is_empty() && !is_listed(caller.uid) {
            return Err(Denied::Uid);
        }
        Ok(())
    }

    /// Whether a caller may have the daemon assume this role.
    pub fn may_assume(&self, role_arn: &str) -> Result<(), Denied> {
        if self.allow_roles.iter().any(|allowed| allowed == role_arn) { Ok(()) } else { Err(Denied::Role) }
    }

    /// Whether a secret may be read: one of its names must match. Looks at the resolved key only, so that
    /// how a caller spelt it makes no difference.
    pub fn may_read(&self, key: &SecretKey) -> Result<(), Denied> {
        match &self.allow_secrets {
            Some(patterns) if !patterns.match_any([key.id.as_str(), key.id.name()]) => Err(Denied::Secret),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::{Resolver, SecretPath, VersionSelector};

    #[test]
    fn a_listed_uid_comes_in_and_an_unknown_one_does_not() {
        let gate = Gate { allow_uids: vec![1000], ..Gate::default() };
        assert_eq!(gate.admit(&Caller { uid: Some(1000), token: None }), Ok(()));
        assert_eq!(gate.admit(&Caller { uid: Some(0), token: None }), Err(Denied::Uid));
        assert_eq!(gate.admit(&Caller::default()), Err(Denied::Uid));
    }

    #[test]
    fn only_matching_secrets_may_be_read_however_they_are_spelt() {
        let patterns = Patterns::new(&["team-a/*".to_owned()]);
        let gate = Gate { allow_secrets: Some(patterns), ..Gate::default() };
        let arn = "arn:aws:secretsmanager:us-west-2:123456789012:secret:";
        let allowed = ["team-a/db".to_owned(), "team-a%2Fdb".to_owned(), format!("{arn}/team-a%2Fdb-AbCdEf")];
        let refused = ["team-b/db".to_owned(), "x/team-a/db".to_owned(), format!("{arn}/team-b-AbCdEf")];
        let may_read = |raw: &str| {
            let path = SecretPath::parse(raw).unwrap();
            gate.may_read(&Resolver::default().resolve(path, VersionSelector::current()).unwrap())
        };
        for raw in allowed {
            assert_eq!(may_read(&raw), Ok(()), "{raw}");
        }
        for raw in refused {
            assert_eq!(may_read(&raw), Err(Denied::Secret), "{raw}");
        }
    }
}
