//! Which program asks.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

/// The longest path of a program, in bytes.
pub(super) const MAX_PROGRAM: usize = 256;

/// The program of a process, for its connection: the path of its executable, or its name in brackets, as ps(1) shows
/// it, where the path may not be read (another user's process). Never its arguments, which may be secrets.
///
/// The name in brackets is what the process calls itself. A process that is not visible from here, as from another
/// PID namespace, has neither.
pub fn program_of(pid: u32) -> Option<Arc<str>> {
    let path = fs::read_link(format!("/proc/{pid}/exe")).map(|path| text(path.into_os_string()));
    let name = || fs::read(format!("/proc/{pid}/comm")).map(|name| format!("[{}]", in_line(name)));
    path.or_else(|_| name()).ok().map(Into::into)
}

/// The beginning of a path. What is no Unicode is replaced.
fn text(path: OsString) -> String {
    let mut bytes = path.into_vec();
    bytes.truncate(MAX_PROGRAM);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The kernel ends the name with a newline.
fn in_line(name: Vec<u8>) -> String {
    let name = text(OsString::from_vec(name));
    name.strip_suffix('\n').unwrap_or(&name).to_owned()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_program_is_its_path_and_never_its_arguments() {
        let mut sleeper = Command::new("sleep").args(["1000"]).stdin(Stdio::null()).spawn().unwrap();
        let program = program_of(sleeper.id());
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
        let program = program.unwrap();
        assert!(program.starts_with('/') && !program.contains("1000"), "{program}");
    }

    #[test]
    fn a_process_that_is_not_there_has_no_program() {
        assert_eq!(program_of(0), None);
        assert_eq!(program_of(u32::MAX), None);
    }

    #[test]
    fn a_name_stands_in_brackets_so_that_it_cannot_pass_for_a_path() {
        // What has no executable shows its name: a kernel thread, or a process that has ended and was not waited for.
        let mut child = Command::new("true").spawn().unwrap();
        let stat = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        while !stat().contains(") Z ") {
            std::thread::yield_now();
        }
        assert_eq!(program_of(child.id()).as_deref(), Some("[true]"));
        child.wait().unwrap();
    }

    #[test]
    fn long_and_broken_paths_are_cut_and_mended() {
        assert_eq!(text(OsString::from_vec(vec![b'x'; 1000])).len(), MAX_PROGRAM);
        assert_eq!(text(OsString::from_vec(b"/bin/\xff".to_vec())), "/bin/\u{fffd}");
        assert_eq!(in_line(b"two\nlines\n".to_vec()), "two\nlines");
    }
}
