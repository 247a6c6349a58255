//! Who may use a socket file: its mode, owner and group, as configured and as the system knows them.

use nix::unistd::{Group, User, getegid, geteuid};
use thiserror::Error;

/// Who may connect: the socket file's mode, owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// Permission bits, such as `0o660`.
    pub mode: u32,
    /// User id of the owner; `None` leaves it.
    pub uid: Option<u32>,
    /// Group id; `None` leaves it.
    pub gid: Option<u32>,
}

/// An owner or group that the system does not know.
#[derive(Debug, Error)]
#[error("there is no {kind} {name:?} on this system; give one that exists, or a number")]
pub struct UnknownOwner {
    kind: &'static str,
    name: String,
}

impl Ownership {
    /// Looks names up in the system's user database; numbers are taken as they are.
    pub fn resolve(mode: u32, owner: Option<&str>, group: Option<&str>) -> Result<Self, UnknownOwner> {
        let uid = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        let gid = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
        Ok(Self { mode, uid: look_up("user", owner, uid)?, gid: look_up("group", group, gid)? })
    }

    /// The user and the group that it comes to: where none are set `own`, or else those of this process.
    pub fn effective(&self, own: Option<(u32, u32)>) -> (u32, u32) {
        let (uid, gid) = own.unwrap_or_else(|| (geteuid().as_raw(), getegid().as_raw()));
        (self.uid.unwrap_or(uid), self.gid.unwrap_or(gid))
    }
}

fn look_up(
    kind: &'static str,
    name: Option<&str>,
    find: impl FnOnce(&str) -> Option<u32>,
) -> Result<Option<u32>, UnknownOwner> {
    let Some(name) = name else { return Ok(None) };
    let id = name.parse().ok().or_else(|| find(name));
    id.map(Some).ok_or_else(|| UnknownOwner { kind, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_numbers_taken_as_they_are() {
        let root = Ownership::resolve(0o600, Some("root"), Some("1234")).unwrap();
        assert_eq!(root, Ownership { mode: 0o600, uid: Some(0), gid: Some(1234) });
        let unknown = Ownership::resolve(0o600, None, Some("no-such-group")).unwrap_err();
        assert!(unknown.to_string().contains("no group \"no-such-group\""), "{unknown}");
    }
}
