//! The file into which the secret goes: all of it or nothing, readable for all who see the volume.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::atomic_file::AtomicFile;
use crate::folder::{DIRECTORY_MODE, Folder};

/// The task's container may run as any user.
const FILE_MODE: u32 = 0o444;

/// A path below a directory, and never beside it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    directory: PathBuf,
    /// The path's components; there is at least one.
    components: Vec<String>,
}

/// Why there is no file.
#[derive(Debug)]
pub(super) enum PlaceError {
    /// `SECRET_FILENAME` does not lead to a file below the directory.
    Filename(String),
    /// The system does not allow it.
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Where the volume should be.
        directory: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Filename(name) => write!(
                f,
                "SECRET_FILENAME: got {name:?}; accepted: / and a path without empty, `.` and `..` components"
            ),
            Self::Io { doing, path, directory, error } => write!(
                f,
                "cannot {doing} {}: {error}; check that {} is a volume mounted writable for this user",
                path.display(),
                directory.display()
            ),
        }
    }
}

impl Place {
    /// `filename` begins with a slash and is a path from `directory` on.
    pub(super) fn parse(directory: &Path, filename: &str) -> Result<Self, PlaceError> {
        let wrong = || PlaceError::Filename(filename.to_owned());
        let components: Vec<String> =
            filename.strip_prefix('/').ok_or_else(wrong)?.split('/').map(str::to_owned).collect();
        if components.iter().any(|component| matches!(component.as_str(), "" | "." | "..")) {
            return Err(wrong());
        }
        Ok(Self { directory: directory.to_owned(), components })
    }

    pub(super) fn path(&self) -> PathBuf {
        let mut path = self.directory.clone();
        path.extend(&self.components);
        path
    }

    /// Writes the file beside its place and renames it into it: whoever reads sees all of it, or what was there before.
    pub(super) fn write(&self, value: &[u8]) -> Result<(), PlaceError> {
        let (name, folder) = self.make_folders()?;
        let path = self.path();
        let temporary = AtomicFile::create(&folder)
            .map_err(|error| self.failed("write to the directory of", &path, error))?;
        temporary.fill(value, FILE_MODE).map_err(|error| self.failed("write", &path, error))?;
        temporary.rename(name).map_err(|error| self.failed("write", &path, error))
    }

    /// Makes the folders that are missing, but never the directory itself: that is where the volume should be. Gives the
    /// file's name in the last of them.
    fn make_folders(&self) -> Result<(&OsStr, Folder), PlaceError> {
        let (name, folders) = self.components.split_last().unwrap_or((&self.components[0], &[]));
        let mut path = self.directory.clone();
        let mut folder =
            Folder::open(&path).map_err(|error| self.failed("open the directory", &path, error))?;
        for component in folders {
            path.push(component);
            folder = folder
                .make_below(component.as_ref(), DIRECTORY_MODE)
                .map_err(|error| self.failed("make the directory", &path, error))?;
        }
        Ok((name.as_ref(), folder))
    }

    fn failed(&self, doing: &'static str, path: &Path, error: io::Error) -> PlaceError {
        PlaceError::Io { doing, path: path.to_owned(), directory: self.directory.clone(), error }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_name_that_leaves_the_directory_is_refused() {
        let directory = Path::new("/tmp");
        for name in ["", "a", "/", "//a", "/a/", "/a//b", "/.", "/..", "/../a", "/a/../b", "/a/./b", "/a/.."]
        {
            let error = Place::parse(directory, name).unwrap_err().to_string();
            assert!(error.contains(&format!("got {name:?}")), "{error}");
        }
        let place = Place::parse(directory, "/arn:aws:x:secret:/mysecret-abcdef").unwrap();
        assert_eq!(place.path(), Path::new("/tmp/arn:aws:x:secret:/mysecret-abcdef"));
        assert!(Place::parse(directory, "/..a/b..").is_ok());
    }

    #[test]
    fn a_file_has_its_bytes_and_modes_and_takes_the_place_of_another() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("known")).unwrap();
        fs::set_permissions(directory.path().join("known"), Permissions::from_mode(0o777)).unwrap();
        let place = Place::parse(directory.path(), "/known/new/file").unwrap();
        for value in [&b"\0one\n\xff"[..], b"", b"two"] {
            place.write(value).unwrap();
            assert_eq!(fs::read(place.path()).unwrap(), value);
        }
        assert_eq!(mode(&place.path()), 0o444);
        assert_eq!(mode(&directory.path().join("known/new")), 0o755);
        assert_eq!(mode(&directory.path().join("known")), 0o777, "what was there before is left alone");
        assert_eq!(fs::read_dir(directory.path().join("known/new")).unwrap().count(), 1);
    }

    #[test]
    fn a_link_in_its_place_is_replaced_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (victim, link) = (directory.path().join("victim"), directory.path().join("link"));
        fs::write(&victim, "kept").unwrap();
        symlink(&victim, &link).unwrap();
        Place::parse(directory.path(), "/link").unwrap().write(b"secret").unwrap();
        assert_eq!(
            (fs::read(&victim).unwrap(), fs::read(&link).unwrap()),
            (b"kept".to_vec(), b"secret".to_vec())
        );
    }

    #[test]
    fn a_failure_leaves_nothing_behind_and_says_what_to_check() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("taken")).unwrap();
        fs::write(directory.path().join("taken/x"), "").unwrap();
        for name in ["/taken", "/taken/x/file"] {
            let error = Place::parse(directory.path(), name).unwrap().write(b"x").unwrap_err().to_string();
            let advice = format!("check that {} is a volume", directory.path().display());
            assert!(error.contains(&advice), "{error}");
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        assert!(Place::parse(&directory.path().join("none"), "/x").unwrap().write(b"x").is_err());
    }
}
