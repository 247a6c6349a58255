//! What keeps secrets inside the process: no core dump, no debugger of the same user, no page on a swap device, no
//! more rights than are needed.
//!
//! A leaf. Commands call it before they hold a value. What is freed is wiped by the binary's allocator, in `main.rs`.

use std::ffi::CString;
use std::fs;
use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Group, Uid, User, getegid, geteuid, initgroups, setgid, setgroups, setuid};
use thiserror::Error;

/// `CAP_IPC_LOCK` of capabilities(7).
const CAP_IPC_LOCK: u32 = 14;

/// Keeps the kernel from writing the memory of this process to disk when it crashes, and other processes of the same
/// user from reading it (`PR_SET_DUMPABLE` in prctl(2)). A program that is executed later is dumpable again.
///
/// `MADV_DONTDUMP` would add nothing: it leaves pages out of a dump that is never made.
pub fn forbid_reading() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Besides, sets the limit on core dumps to nothing, for this process and what it starts (`RLIMIT_CORE` in
/// getrlimit(2)): dumps that go to a program ignore the limit, all others ignore nothing.
pub fn forbid_dumps() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    forbid_reading()
}

/// Gives up what the daemon never needs: rights that a file would give it when executed (`PR_SET_NO_NEW_PRIVS`
/// in prctl(2)), and files that others may read unless their mode is set. Holds for the commands that it starts.
pub fn give_up_spare_rights() -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    Ok(prctl::set_no_new_privs()?)
}

/// Why the memory may be swapped out.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum NotLocked {
    /// Locking would make allocations beyond the limit fail.
    #[error("locked memory is limited to {limit} bytes")]
    Limited {
        /// The limit in effect.
        limit: u64,
    },
    /// The system does not let us.
    #[error("the system refuses: {0}")]
    Refused(Errno),
}

/// Keeps all pages of this process in memory from the moment that they are used (mlockall(2)). Does so only where no
/// later allocation can fail for it: without a limit, or with `CAP_IPC_LOCK`, which is lost where the user changes.
pub fn lock_memory(user_changes: bool) -> Result<(), NotLocked> {
    // It may be allowed; what counts is what is in effect then.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).map_err(NotLocked::Refused)?;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let is_exempt = !user_changes && may_lock_at_will(&status);
    if limit != RLIM_INFINITY && !is_exempt {
        return Err(NotLocked::Limited { limit });
    }
    // Not yet in nix. Without it every page that is merely reserved would be made, and idle memory grow.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    mlockall(flags).map_err(NotLocked::Refused)
}

/// Whether a process may lock more memory than its limit says, by its `proc_pid_status(5)`: it has `CAP_IPC_LOCK`.
pub fn may_lock_at_will(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    effective.is_some_and(|set| set & (1 << CAP_IPC_LOCK) != 0)
}

/// How much of the stack is overwritten: more than whatever parses an answer of AWS uses, unoptimised too.
const SCRUBBED: usize = 512 << 10;

/// Overwrites what earlier calls have left on this thread's stack, below its caller: pieces of a value that were in
/// registers, such as those with which the SDK decodes base64. To be called by who called those who had the value.
#[inline(never)]
#[expect(clippy::large_stack_arrays, reason = "the stack is what is meant; a worker has 2 MiB")]
pub fn scrub_stack() {
    let block = [0_u8; SCRUBBED];
    // It must be there to be looked at.
    std::hint::black_box(&block);
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// The user as whom this process runs.
pub fn own_uid() -> u32 {
    geteuid().as_raw()
}

/// A user and group to go on as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// Of a user that the system knows: it has further groups.
    name: Option<CString>,
}

/// Why the process cannot go on as somebody else.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// A name that the system does not know.
    #[error(
        "[process] names the {kind} {name:?}, which is not on this system; give one that exists, or a number"
    )]
    Unknown {
        /// User or group.
        kind: &'static str,
        /// As configured.
        name: String,
    },
    /// A number without an entry, so without a group.
    #[error("[process] names the user {uid}, of whom this system knows no group; give process.group as well")]
    NoGroup {
        /// As configured.
        uid: u32,
    },
    /// Only root may become somebody else.
    #[error(
        "[process] names the user {wanted}, but the daemon was started as {current}, or names another group than its; \
         start it as root or as that user, or leave process.user out"
    )]
    NotRoot {
        /// As configured.
        wanted: u32,
        /// The user that it was started as.
        current: u32,
    },
    /// The system does not let us.
    #[error("cannot change to the user that [process] names: {0}")]
    Refused(#[from] Errno),
}

impl Identity {
    /// Looks names up in the system's user database; numbers need not be in it.
    pub fn resolve(user: &str, group: Option<&str>) -> Result<Self, IdentityError> {
        let unknown = |kind, name: &str| IdentityError::Unknown { kind, name: name.to_owned() };
        let number = user.parse().ok().map(Uid::from_raw);
        let entry = match number {
            Some(uid) => User::from_uid(uid),
            None => User::from_name(user),
        };
        let entry = entry.ok().flatten();
        let uid = number.or(entry.as_ref().map(|entry| entry.uid)).ok_or_else(|| unknown("user", user))?;
        let gid = match group {
            Some(name) => {
                let number = name.parse().ok().map(Gid::from_raw);
                let by_name = || Group::from_name(name).ok().flatten().map(|group| group.gid);
                number.or_else(by_name).ok_or_else(|| unknown("group", name))?
            }
            None => {
                let own = entry.as_ref().map(|entry| entry.gid);
                own.ok_or(IdentityError::NoGroup { uid: uid.as_raw() })?
            }
        };
        let current = geteuid();
        if !current.is_root() && (current != uid || getegid() != gid) {
            return Err(IdentityError::NotRoot { wanted: uid.as_raw(), current: current.as_raw() });
        }
        let name = entry.and_then(|entry| CString::new(entry.name).ok());
        Ok(Self { uid, gid, name })
    }

    /// The user's number.
    pub fn uid(&self) -> u32 {
        self.uid.as_raw()
    }

    /// The group's number.
    pub fn gid(&self) -> u32 {
        self.gid.as_raw()
    }

    /// Goes on as this user, with the user's groups and no others, for good. Does nothing where the process runs as
    /// that user already.
    pub fn assume(&self) -> Result<(), IdentityError> {
        if !geteuid().is_root() {
            return Ok(());
        }
        match &self.name {
            Some(name) => initgroups(name, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setgid(self.gid)?;
        setuid(self.uid)?;
        // The kernel sets it anew when the user changes.
        Ok(prctl::set_dumpable(false)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What changes a process for good is tested with the built binary, in `tests/e2e/memory.rs`.

    #[test]
    fn a_capability_is_a_bit() {
        assert!(may_lock_at_will("Name:\tx\nCapEff:\t0000000000004000\n"));
        for other in ["CapEff:\t0000000000002000\n", "CapPrm:\t0000000000004000\n", "CapEff:\tx\n", ""] {
            assert!(!may_lock_at_will(other), "{other}");
        }
    }

    #[test]
    fn names_are_looked_up_and_numbers_taken_as_they_are() {
        let root = Identity::resolve("root", None).unwrap();
        assert_eq!((root.uid(), root.gid()), (0, 0));
        let named = Identity::resolve("0", Some("1234")).unwrap();
        assert_eq!((named.uid(), named.gid()), (0, 1234));
    }

    #[test]
    fn what_the_system_does_not_know_is_refused_by_name() {
        let error = |user, group| Identity::resolve(user, group).unwrap_err().to_string();
        assert!(error("no-such-user", None).contains("the user \"no-such-user\""));
        assert!(error("root", Some("no-such-group")).contains("the group \"no-such-group\""));
        assert!(error("4123456789", None).contains("give process.group"));
    }
}
