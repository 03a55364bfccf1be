//! The folder where fetched and built guests are kept, safe against two processes and a kill.
//!
//! A result appears under its final name only when it is complete: it is built in a folder of
//! its own beside it and renamed. One builder at a time holds the lock; what a killed builder
//! left behind is cleared by the next one.

use crate::GuestError;
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

const SCRATCH_PREFIX: &str = "scratch-";

/// A cache folder.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The user's own: `$XDG_CACHE_HOME/hindsight`, else `~/.cache/hindsight`.
    ///
    /// Errors when neither variable holds an absolute path.
    pub fn of_user() -> Result<Self, GuestError> {
        let absolute =
            |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
            .ok_or(GuestError::NoCache)?;
        Ok(Self::at(base.join("hindsight")))
    }

    /// A cache in the given folder, which need not exist yet.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where an entry is or will be.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Waits until this process alone may build in the cache; the guard ends that.
    pub(crate) fn lock(&self) -> Result<Guard<'_>, GuestError> {
        fs::create_dir_all(&self.root).map_err(GuestError::at(&self.root))?;
        let path = self.root.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(GuestError::at(&path))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|errno| GuestError::Io { path, source: errno.into() })?;
        let guard = Guard { cache: self, lock: file };
        guard.clear_scratch();
        Ok(guard)
    }
}

/// The right to build in a cache.
#[derive(Debug)]
pub(crate) struct Guard<'a> {
    cache: &'a Cache,
    lock: File,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Closing the file would not do at once: a child process that is just being started holds a
        // copy of the descriptor until it executes its program.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Guard<'_> {
    /// A new empty folder to build in; it goes away with the value unless published.
    pub fn scratch(&self, purpose: &str) -> Result<Scratch, GuestError> {
        let path = self.cache.root.join(format!("{SCRATCH_PREFIX}{purpose}"));
        fs::create_dir(&path).map_err(GuestError::at(&path))?;
        Ok(Scratch { path })
    }

    /// Puts a finished folder under its name; an entry that is already there is kept instead.
    pub fn publish(&self, built: &Path, name: &str) -> Result<PathBuf, GuestError> {
        let target = self.cache.path(name);
        if !target.is_dir() {
            fs::rename(built, &target).map_err(GuestError::at(&target))?;
        }
        Ok(target)
    }

    /// Lets `alias` name the entry `name`, at once and for all readers.
    pub fn point(&self, alias: &str, name: &str) -> Result<(), GuestError> {
        let fresh = self.cache.root.join(format!("{SCRATCH_PREFIX}alias"));
        std::os::unix::fs::symlink(name, &fresh).map_err(GuestError::at(&fresh))?;
        let target = self.cache.path(alias);
        fs::rename(&fresh, &target).map_err(GuestError::at(&target))
    }

    /// Removes what a killed builder left; only the holder of the lock can have scratch folders.
    fn clear_scratch(&self) {
        for entry in fs::read_dir(&self.cache.root).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX) {
                let path = entry.path();
                // Failure is no harm here: the next scratch() of that name reports it.
                let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
            }
        }
    }
}

/// A folder to build in.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// A new empty folder inside.
    pub fn folder(&self, name: &str) -> Result<PathBuf, GuestError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(GuestError::at(&path))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next holder of the lock.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_appears_whole_and_scratch_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("deep/cache"));
        let guard = cache.lock().unwrap();
        let scratch = guard.scratch("one").unwrap();
        let built = scratch.folder("built").unwrap();
        fs::write(built.join("file"), "new").unwrap();
        let entry = guard.publish(&built, "entry").unwrap();
        guard.point("latest", "entry").unwrap();
        guard.point("latest", "entry").unwrap();
        let left = scratch.path.clone();
        drop(scratch);
        assert!(!left.exists());
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "new");
        assert_eq!(fs::read_to_string(cache.path("latest").join("file")).unwrap(), "new");
    }

    #[test]
    fn what_a_killed_builder_left_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        std::mem::forget(cache.lock().unwrap().scratch("build").unwrap());
        let left = folder.path().join("scratch-build");
        assert!(left.is_dir());
        let guard = cache.lock().unwrap();
        assert!(!left.exists());
        drop(guard);
    }

    #[test]
    fn a_second_builder_waits() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let guard = cache.lock().unwrap();
        let other = File::open(folder.path().join(".lock")).unwrap();
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_err());
        drop(guard);
        assert!(flock(&other, FlockOperation::NonBlockingLockExclusive).is_ok());
    }
}
