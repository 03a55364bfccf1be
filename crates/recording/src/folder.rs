//! The names inside a recording's folder, replacing a file all at once, and locks.

use crate::Error;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const EVENTS: &str = "events.log";
pub(crate) const TAIL: &str = "events.tail";
pub(crate) const CHECKPOINTS: &str = "checkpoints.log";
pub(crate) const BOOKMARKS: &str = "bookmarks.json";
pub(crate) const FILES: &str = "files";

/// The page store that checkpoints of `generation` refer to.
pub(crate) fn pages(generation: u32) -> String {
    if generation == 0 { "pages.store".to_owned() } else { format!("pages.{generation}.store") }
}

/// Puts `bytes` in place of the file at `path`: readers see the old contents or the new, whole.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&temporary);
    })?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Makes renames and removals in a folder last through a power failure.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Has the host begin to write these bytes of a file to its disk, if it can, without waiting.
#[allow(unsafe_code)]
pub(crate) fn begin_sync(file: &File, bytes: Range<u64>) {
    let (from, count) = (bytes.start as libc::off64_t, (bytes.end - bytes.start) as libc::off64_t);
    // SAFETY: an open file; the call touches no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, count, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The right to change a folder's checkpoints, or proof that a recorder is alive. Given back when
/// dropped, and by the kernel when the process ends in any way.
pub(crate) struct Lock {
    held: File,
}

impl Drop for Lock {
    /// Closing the file would not do at once: a child process that is just being started holds a copy
    /// of the descriptor until it executes its program.
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: flock on a descriptor we own touches no memory.
        unsafe { libc::flock(self.held.as_raw_fd(), libc::LOCK_UN) };
    }
}

impl Lock {
    /// Takes the lock of a folder; fails at once when another process or opener has it.
    pub(crate) fn take(folder: &Path) -> Result<Self, Error> {
        match Self::try_on(folder) {
            Ok(Some(lock)) => Ok(lock),
            Ok(None) => Err(Error::Name(format!("{} is being written by another process", folder.display()))),
            Err(e) => Err(Error::io("lock", folder, e)),
        }
    }

    /// Takes the lock of a file or folder; `None` when it is taken.
    pub(crate) fn try_on(path: &Path) -> io::Result<Option<Self>> {
        Self::of(File::open(path)?)
    }

    /// Takes the lock of an open file; `None` when another opener has it.
    #[allow(unsafe_code)]
    pub(crate) fn of(file: File) -> io::Result<Option<Self>> {
        // SAFETY: flock on a descriptor we own touches no memory.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Some(Self { held: file }));
        }
        let error = io::Error::last_os_error();
        if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) }
    }
}
