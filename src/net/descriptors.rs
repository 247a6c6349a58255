//! Room for connections: each takes a file descriptor, and the usual soft limit of 1,024 is for programs that use
//! `select` (systemd.exec(5), `LimitNOFILE`).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit on open files as far as the system lets us; returns it.
pub fn raise_descriptor_limit() -> Option<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).ok()?;
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        Some(hard)
    } else {
        Some(soft)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_raised_to_what_is_allowed() {
        let raised = raise_descriptor_limit().unwrap();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (raised, raised));
    }
}
