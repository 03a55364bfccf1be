//! passt for hosts that do not have it: Debian's package, unpacked into the cache.

use crate::cache::{Cache, Guard};
use crate::debian::Apt;
use crate::{GuestError, Notice};
use std::fs;
use std::path::PathBuf;

const PACKAGE: &str = "passt";

/// A passt in the cache, fetched if there is none. It needs nothing but the C library.
pub fn passt(cache: &Cache, notice: Notice) -> Result<PathBuf, GuestError> {
    if let Some(found) = cached_passt(cache) {
        return Ok(found);
    }
    let guard = cache.lock()?;
    // Another process may have fetched it while this one waited for the lock.
    if let Some(found) = cached_passt(cache) {
        return Ok(found);
    }
    match fetch(&Apt::of_host()?, cache, &guard, notice) {
        // The host's lists are missing, or name a version that the mirror no longer has.
        Err(GuestError::NoPackage { .. } | GuestError::Tool { .. }) => {
            let lists = guard.scratch("apt")?;
            let fresh = Apt::with_fresh_lists(&lists.folder("state")?, notice)?;
            fetch(&fresh, cache, &guard, notice)
        }
        result => result,
    }
}

/// The passt that was fetched earlier.
pub fn cached_passt(cache: &Cache) -> Option<PathBuf> {
    let program = fs::canonicalize(cache.path(PACKAGE)).ok()?.join("usr/bin/passt");
    program.is_file().then_some(program)
}

fn fetch(apt: &Apt, cache: &Cache, guard: &Guard, notice: Notice) -> Result<PathBuf, GuestError> {
    let (package, _) = apt.newest(PACKAGE)?;
    notice(&format!("fetching {} {}", package.name, package.version));
    let scratch = guard.scratch(PACKAGE)?;
    let (fetched, unpacked) = (scratch.folder("fetched")?, scratch.folder("unpacked")?);
    apt.unpack(&package, &fetched, &unpacked)?;
    let name = format!("{PACKAGE}_{}", package.version).replace([':', '/'], "-");
    guard.publish(&unpacked, &name)?;
    guard.point(PACKAGE, &name)?;
    cached_passt(cache).ok_or_else(|| GuestError::Odd { package: name, what: "usr/bin/passt".into() })
}
