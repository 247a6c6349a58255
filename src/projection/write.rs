//! Files that a reader never sees half done: written beside their place and renamed into it; or a whole set of
//! them, switched by renaming one symlink, as Kubernetes does for its volumes.
//!
//! Nothing is written through a symlink below the directory, nor through one of another user above it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path};

use zeroize::Zeroizing;

use crate::atomic_file::{AtomicFile, PREFIX, unused_name};
use crate::folder::{CAUTIOUS, DIRECTORY_MODE, Folder, read_whole};
use crate::net::Ownership;

/// How deep below the directory of a project its files may lie: whatever somebody else puts there is not walked for ever.
const MAX_DEPTH: usize = 64;

/// The symlink that leads to the set of files in force.
pub(super) const CURRENT: &str = "..data";

/// Puts `content` at `target` below `root`; false if it is there already.
pub(super) fn put(root: &Path, target: &Path, content: &[u8], owner: Ownership) -> io::Result<bool> {
    put_below(make_root(root)?, target, content, owner)
}

fn put_below(root: Folder, target: &Path, content: &[u8], owner: Ownership) -> io::Result<bool> {
    let (folders, name) = descend(root, target, |folder, name| folder.make_below(name, DIRECTORY_MODE))?;
    let folder = last(&folders)?;
    if holds(&folder.path().join(name), content, owner)? {
        return Ok(false);
    }
    let file = AtomicFile::create(folder)?;
    file.chown(owner.uid, owner.gid)?;
    file.fill(content, owner.mode)?;
    file.rename(name)?;
    Ok(true)
}

/// The folders from `root` on to the one in which `target` lies, each found by `next`; and the target's name there.
fn descend(
    root: Folder,
    target: &Path,
    next: impl Fn(&Folder, &OsStr) -> io::Result<Folder>,
) -> io::Result<(Vec<Folder>, &OsStr)> {
    let name = target.file_name().ok_or(ErrorKind::InvalidInput)?;
    let mut folders = vec![root];
    for part in target.parent().into_iter().flat_map(Path::components) {
        let Component::Normal(name) = part else { return Err(ErrorKind::InvalidInput.into()) };
        folders.push(next(last(&folders)?, name)?);
    }
    Ok((folders, name))
}

fn last(folders: &[Folder]) -> io::Result<&Folder> {
    folders.last().ok_or_else(|| ErrorKind::InvalidInput.into())
}

/// Whether a regular file with this content, mode and owner is there. Anything but a file or nothing is an error.
fn holds(place: &Path, content: &[u8], owner: Ownership) -> io::Result<bool> {
    let found = match fs::symlink_metadata(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    if found.is_dir() {
        return Err(io::Error::new(ErrorKind::IsADirectory, "a directory lies where the file belongs"));
    }
    let may_be = found.is_file()
        && found.permissions().mode() & 0o777 == owner.mode
        && owner.uid.is_none_or(|uid| uid == found.uid())
        && owner.gid.is_none_or(|gid| gid == found.gid())
        && found.len() == u64::try_from(content.len()).unwrap_or(u64::MAX);
    if !may_be {
        return Ok(false);
    }
    let file = OpenOptions::new().read(true).custom_flags(CAUTIOUS).open(place)?;
    let there = Zeroizing::new(read_whole(&file, found.len())?);
    Ok(*there == content)
}

pub(super) fn make_root(root: &Path) -> io::Result<Folder> {
    Folder::make(root, DIRECTORY_MODE)
}

/// Removes a file, and the directories above it that are empty then; false if there is none.
pub(super) fn remove(root: &Path, target: &Path) -> io::Result<bool> {
    let is_gone = |error: &io::Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory);
    let found = Folder::open(root).and_then(|root| descend(root, target, Folder::below));
    let (folders, name) = match found {
        Err(error) if is_gone(&error) => return Ok(false),
        found => found?,
    };
    let removed = match fs::remove_file(last(&folders)?.path().join(name)) {
        Err(error) if is_gone(&error) => false,
        removed => removed.map(|()| true)?,
    };
    let names = target.ancestors().skip(1).filter_map(Path::file_name);
    for (above, name) in folders.iter().rev().skip(1).zip(names) {
        if fs::remove_dir(above.path().join(name)).is_err() {
            break;
        }
    }
    Ok(removed)
}

/// Removes what an earlier process left half written below `root`, no deeper than files are put.
pub(super) fn clean(root: &Folder) {
    clean_to(root, MAX_DEPTH);
}

fn clean_to(root: &Folder, depth: usize) {
    for entry in fs::read_dir(root.path()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            let _ = fs::remove_file(entry.path());
        } else if depth > 0
            && let Ok(below) = root.below(&entry.file_name())
        {
            clean_to(&below, depth - 1);
        }
    }
}

/// Makes a new set of files and switches to it in one step. The set before stays until [`sweep`], for those who have
/// looked the old link up already.
pub(super) fn switch(root: &Path, files: &[(&Path, &[u8])], owner: Ownership) -> io::Result<()> {
    let folder = make_root(root)?;
    let root = &folder.path();
    let set = format!("..{:016x}", fastrand::u64(..));
    let directory = root.join(&set);
    let set_folder = folder.make_below(set.as_ref(), DIRECTORY_MODE)?;
    let made = (|| {
        for (target, content) in files {
            put_below(set_folder.try_clone()?, target, content, owner)?;
        }
        relink(root, CURRENT, Path::new(&set))
    })();
    if made.is_err() {
        let _ = fs::remove_dir_all(&directory);
        return made;
    }
    let tops: BTreeSet<_> = files.iter().filter_map(|(target, _)| target.components().next()).collect();
    for top in &tops {
        let leads_to = Path::new(CURRENT).join(top);
        let name = top.as_os_str();
        match fs::symlink_metadata(root.join(name)) {
            Ok(found) if !found.is_symlink() => {
                let what = format!("{} lies where a link to the set belongs", root.join(name).display());
                return Err(io::Error::new(ErrorKind::AlreadyExists, what));
            }
            Ok(_) if fs::read_link(root.join(name))? == leads_to => {}
            _ => relink(root, &name.to_string_lossy(), &leads_to)?,
        }
    }
    unlink(root, |name| !tops.contains(&Component::Normal(name)))
}

/// Removes those links of readers into the set whose names are `unwanted`.
fn unlink(root: &Path, unwanted: impl Fn(&OsStr) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(root)?.flatten() {
        let is_ours = fs::read_link(entry.path()).is_ok_and(|to| to.starts_with(CURRENT));
        if is_ours && unwanted(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a set with all that leads to it.
pub(super) fn dissolve(root: &Path) -> io::Result<()> {
    let folder = Folder::open(root)?;
    let root = &folder.path();
    unlink(root, |_| true)?;
    sweep(root)?;
    let set = set_in_force(&folder)?;
    fs::remove_file(root.join(CURRENT))?;
    remove_set(&folder, &set)
}

/// Where the link in force leads, if that is a set of ours: whoever may write to the directory could have it lead anywhere.
fn set_in_force(folder: &Folder) -> io::Result<OsString> {
    let set = fs::read_link(folder.path().join(CURRENT))?.into_os_string();
    if is_set(&set) {
        Ok(set)
    } else {
        Err(io::Error::other("the link to the files in force leads elsewhere"))
    }
}

fn is_set(name: &OsStr) -> bool {
    let digits = name.to_str().and_then(|name| name.strip_prefix(".."));
    digits.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn remove_set(folder: &Folder, set: &OsStr) -> io::Result<()> {
    if folder.has_own(set) { fs::remove_dir_all(folder.path().join(set)) } else { Ok(()) }
}

/// Has the link `name` lead elsewhere, in one step.
fn relink(root: &Path, name: &str, to: &Path) -> io::Result<()> {
    let temporary = unused_name(root);
    symlink(to, &temporary)?;
    fs::rename(&temporary, root.join(name)).inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Removes all sets but the one in force.
pub(super) fn sweep(root: &Path) -> io::Result<()> {
    let folder = Folder::open(root)?;
    let root = &folder.path();
    let current = set_in_force(&folder)?;
    for entry in fs::read_dir(root)?.flatten() {
        let name = entry.file_name();
        if is_set(&name) && name != current {
            remove_set(&folder, &name)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    const PUBLIC: Ownership = Ownership { mode: 0o444, uid: None, gid: None };

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_file_has_its_content_and_mode_and_is_not_written_again_without_need() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("made/here");
        let target = Path::new("group/key");
        assert!(put(&root, target, b"one", PUBLIC).unwrap());
        assert_eq!(fs::read(root.join(target)).unwrap(), b"one");
        assert_eq!((mode(&root.join(target)), mode(&root.join("group")), mode(&root)), (0o444, 0o755, 0o755));
        let before = fs::metadata(root.join(target)).unwrap().ino();
        assert!(!put(&root, target, b"one", PUBLIC).unwrap());
        assert_eq!(fs::metadata(root.join(target)).unwrap().ino(), before);
        assert!(put(&root, target, b"two", PUBLIC).unwrap());
        assert!(put(&root, target, b"two", Ownership { mode: 0o400, ..PUBLIC }).unwrap(), "another mode");
        assert_eq!(fs::read_dir(root.join("group")).unwrap().count(), 1, "nothing is left beside it");
        assert!(remove(&root, target).unwrap() && !root.join("group").exists() && root.exists());
        assert!(!remove(&root, target).unwrap());
    }

    #[test]
    fn nothing_is_written_through_a_link_or_over_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (directory.path().join("root"), directory.path().join("elsewhere"));
        fs::create_dir_all(&elsewhere).unwrap();
        fs::create_dir_all(root.join("folder")).unwrap();
        symlink(&elsewhere, root.join("group")).unwrap();
        assert!(put(&root, Path::new("group/key"), b"x", PUBLIC).is_err());
        assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
        fs::write(elsewhere.join("precious"), "p").unwrap();
        symlink(elsewhere.join("precious"), root.join("link")).unwrap();
        put(&root, Path::new("link"), b"x", PUBLIC).unwrap();
        assert_eq!(
            fs::read(elsewhere.join("precious")).unwrap(),
            b"p",
            "the link was replaced, not followed"
        );
        assert!(put(&root, Path::new("folder"), b"x", PUBLIC).is_err());
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_not_taken_for_a_set() {
        let directory = tempfile::tempdir().unwrap();
        let (root, precious) = (directory.path().join("root"), directory.path().join("precious"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir_all(precious.join("folder")).unwrap();
        for to in [precious.clone(), "../precious".into(), "..".into(), "folder".into()] {
            symlink(&to, root.join(CURRENT)).unwrap();
            assert!(dissolve(&root).is_err() && sweep(&root).is_err(), "{}", to.display());
            assert!(precious.join("folder").exists());
            fs::remove_file(root.join(CURRENT)).unwrap();
        }
    }

    #[test]
    fn a_tree_of_any_depth_is_cleaned_as_far_as_files_are_put() {
        let directory = tempfile::tempdir().unwrap();
        let root = Folder::open(directory.path()).unwrap();
        let mut folder = root.try_clone().unwrap();
        for _ in 0..5000 {
            folder = folder.make_below("d".as_ref(), 0o755).unwrap();
        }
        clean(&root);
        // std removes a tree by recursion: this one would be too deep for it.
        assert!(
            std::process::Command::new("rm")
                .arg("-rf")
                .arg(directory.path().join("d"))
                .status()
                .unwrap()
                .success()
        );
    }

    #[test]
    fn what_was_left_half_written_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("group")).unwrap();
        for name in [".smcached-1", "group/.smcached-2", "group/kept"] {
            fs::write(directory.path().join(name), "x").unwrap();
        }
        clean(&Folder::open(directory.path()).unwrap());
        assert!(directory.path().join("group/kept").exists());
        assert_eq!(fs::read_dir(directory.path().join("group")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    /// A value whose every byte tells which it is, of a length that tells it too.
    fn content(round: usize) -> Vec<u8> {
        vec![b'a' + u8::try_from(round % 26).unwrap(); 1000 + round % 26 * 500]
    }

    fn is_whole(read: &[u8]) -> bool {
        (0..26).any(|round| read == content(round))
    }

    #[test]
    fn a_reader_in_a_loop_never_sees_a_short_empty_or_mixed_file_over_ten_thousand_rotations() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let target = Path::new("group/key");
        put(&root, target, &content(0), PUBLIC).unwrap();
        let ended = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (path, ended) = (root.join(target), Arc::clone(&ended));
            move || {
                let mut reads = 0;
                while !ended.load(Ordering::Relaxed) {
                    let read = fs::read(&path).expect("the file is always there");
                    assert!(is_whole(&read), "{} bytes, mixed or short", read.len());
                    reads += 1;
                }
                reads
            }
        });
        for round in 1..=10_000 {
            assert!(put(&root, target, &content(round), PUBLIC).unwrap());
        }
        ended.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 1000);
    }

    #[test]
    fn a_set_is_switched_as_a_whole_and_old_ones_are_swept() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_owned();
        let publish = |round: usize, names: &[&str]| {
            let value = content(round);
            let files: Vec<_> = names.iter().map(|name| (Path::new(name), value.as_slice())).collect();
            switch(&root, &files, PUBLIC).unwrap();
        };
        publish(0, &["a", "group/b"]);
        let ended = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let (root, ended) = (root.clone(), Arc::clone(&ended));
            move || {
                let mut reads = 0;
                while !ended.load(Ordering::Relaxed) {
                    // Through one look at the link, both are of one set.
                    let set = root.join(fs::read_link(root.join(CURRENT)).unwrap());
                    let (Ok(a), Ok(b)) = (fs::read(set.join("a")), fs::read(set.join("group/b"))) else {
                        continue;
                    };
                    assert!(is_whole(&a) && a == b, "two files of one set differ");
                    assert!(is_whole(&fs::read(root.join("a")).unwrap()));
                    reads += 1;
                }
                reads
            }
        });
        for round in 1..=1000 {
            publish(round, &["a", "group/b"]);
            if round % 50 == 0 {
                sweep(&root).unwrap();
            }
        }
        ended.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 100);
        publish(7, &["group/b"]);
        sweep(&root).unwrap();
        assert!(!root.join("a").exists() && fs::symlink_metadata(root.join("a")).is_err());
        assert_eq!(fs::read(root.join("group/b")).unwrap(), content(7));
        assert_eq!(
            fs::read_dir(&root).unwrap().count(),
            3,
            "the set, the link to it, and one link for readers"
        );
        dissolve(&root).unwrap();
        assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
    }
}
