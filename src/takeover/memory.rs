//! A file that exists in memory only, without a name, and that nobody can change once it is there (`memfd_create(2)`). The
//! kernel frees it when the last descriptor is closed.

use std::fs::File;
use std::io::{self, Seek};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, memfd_create};
use rustix::io::Errno;

/// What the reader relies on.
const UNCHANGING: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW);

/// Has the content written, and seals it.
pub(super) fn sealed(write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = match memfd_create("smcached", flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux knows it since 6.3.
        Err(Errno::INVAL) => memfd_create("smcached", flags),
        made => made,
    };
    let mut file = File::from(made?);
    write(&mut file)?;
    fcntl_add_seals(&file, UNCHANGING | SealFlags::SEAL)?;
    Ok(file)
}

/// A file that somebody else has sealed, from its beginning.
pub(super) fn received(file: File) -> io::Result<File> {
    if !fcntl_get_seals(&file)?.contains(UNCHANGING) {
        return Err(io::Error::other("the memory that was passed is not sealed"));
    }
    let mut file = file;
    file.rewind()?;
    Ok(file)
}
