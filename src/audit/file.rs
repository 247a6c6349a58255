//! A trail in a file: appended to, moved away when it has grown, opened again on demand. Never through a symbolic
//! link, nor through one of another user above it, which would let whoever laid it choose what is appended to.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::writer::Pace;
use crate::folder::{CAUTIOUS, Folder};

/// A file that the trail goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileOptions {
    /// The file.
    pub path: PathBuf,
    /// It is moved away before it would grow larger.
    pub max_bytes: u64,
    /// How many files that were moved away are kept, as `<path>.1` (the latest) and so on; at least one.
    pub keep: u32,
    /// Its permissions when it is made.
    pub mode: u32,
    /// The user whose it is when it is made; else whoever makes it.
    pub owner: Option<u32>,
}

#[derive(Debug)]
pub(super) struct TrailFile {
    options: FileOptions,
    /// `None` after it could not be opened again.
    file: Option<File>,
    size: u64,
    /// The last line that was written is not whole, so what is written next belongs to it.
    is_mid_line: bool,
    /// How often it is said that it cannot be moved away.
    pace: Pace,
}

impl TrailFile {
    pub(super) fn open(options: FileOptions) -> io::Result<Self> {
        let mut trail = Self { options, file: None, size: 0, is_mid_line: false, pace: Pace::default() };
        trail.opened()?;
        Ok(trail)
    }

    /// Lets go of the file, and opens the one that is there now, or a new one. If it cannot, the next write tries
    /// again.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = None;
        self.opened()
    }

    /// Appends lines. Says how many bytes were written, and what kept it from writing all.
    pub(super) fn write(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < lines.len() {
            let (count, outcome) = self.write_piece(&lines[written..]);
            written += count;
            if outcome.is_err() {
                return (written, outcome);
            }
        }
        (written, Ok(()))
    }

    /// Appends as many whole lines as there is room for, or one to an empty file.
    fn write_piece(&mut self, lines: &[u8]) -> (usize, io::Result<()>) {
        if let Err(error) = self.opened() {
            return (0, Err(error));
        }
        let room = usize::try_from(self.options.max_bytes.saturating_sub(self.size)).unwrap_or(usize::MAX);
        let mut end = whole_lines(lines, room);
        if end == 0 && self.size > 0 && !self.is_mid_line {
            if let Err(error) = self.rotate() {
                if self.pace.is_due() {
                    tracing::error!(%error, "the audit trail cannot be moved away; its file grows");
                }
            } else if let Err(error) = self.opened() {
                return (0, Err(error));
            }
            end = whole_lines(lines, usize::try_from(self.options.max_bytes).unwrap_or(usize::MAX));
        }
        if end == 0 {
            end = first_line(lines);
        }
        let Some(file) = &mut self.file else { return (0, Err(io::ErrorKind::NotFound.into())) };
        let (count, outcome) = write_counting(file, &lines[..end]);
        self.size += count as u64;
        if count > 0 {
            self.is_mid_line = lines[count - 1] != b'\n';
        }
        (count, outcome)
    }

    fn opened(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            let file = open(&self.options)?;
            self.size = file.metadata()?.len();
            self.is_mid_line = false;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Moves the file to `<path>.1`, what is there to `<path>.2`, and so on; the last is lost.
    fn rotate(&mut self) -> io::Result<()> {
        let (folder, name) = place(&self.options.path)?;
        let path = folder.path();
        let moved = |place: u32| {
            let mut name = name.to_owned();
            name.push(format!(".{place}"));
            path.join(name)
        };
        // Where an earlier attempt came this far, the place is free, and moving on would lose the last for nothing.
        if fs::symlink_metadata(moved(1)).is_ok() {
            for place in (1..self.options.keep).rev() {
                rename(&moved(place), &moved(place + 1))?;
            }
        }
        rename(&path.join(name), &moved(1))?;
        self.file = None;
        Ok(())
    }
}

/// The folder of a file, and its name there.
fn place(path: &Path) -> io::Result<(Folder, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
    Ok((Folder::open(path.parent().unwrap_or(Path::new("")))?, name))
}

/// What is not there need not be moved.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The file to append to, made if absent.
fn open(options: &FileOptions) -> io::Result<File> {
    let (folder, name) = place(&options.path)?;
    let path = folder.path().join(name);
    let mut how = OpenOptions::new();
    how.append(true).custom_flags(CAUTIOUS);
    let file = match how.open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = how.create_new(true).mode(0o600).open(&path)?;
            // Whatever the umask is.
            file.set_permissions(Permissions::from_mode(options.mode))?;
            if options.owner.is_some() {
                fchown(&file, options.owner, None)?;
            }
            file
        }
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// How many of the first `most` bytes are whole lines.
fn whole_lines(lines: &[u8], most: usize) -> usize {
    let most = most.min(lines.len());
    lines[..most].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1)
}

fn first_line(lines: &[u8]) -> usize {
    lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |at| at + 1)
}

/// As [`Write::write_all`], and says how much was written.
pub(super) fn write_counting(to: &mut dyn Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match to.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
