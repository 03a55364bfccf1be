//! Advisory locks that say "I read this image, nobody may write it".
//!
//! Two conventions exist and both are followed. `flock` is what scripts and most tools use. QEMU
//! uses open-file-description locks on single bytes: a process holds a read lock on byte `100+p`
//! for every permission `p` it uses, and on byte `200+p` for every permission it wants nobody else
//! to use; before it starts, it looks whether anyone holds a lock on the opposite byte
//! (QEMU `block/file-posix.c`, "RAW_LOCK_PERM_BASE"). Permission 0 is consistent reading,
//! permission 1 is writing, permission 3 is resizing.
//!
//! Storage without locks (some network file systems) is used without them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

const USED: i64 = 100;
const UNSHARED: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks `file` against writers for as long as it is open. `Ok(false)` when there is a writer.
pub(crate) fn lock_for_reading(file: &File) -> io::Result<bool> {
    // SAFETY: plain system call on a descriptor that `file` keeps open.
    if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) } != 0 {
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EWOULDBLOCK) => return Ok(false),
            Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL) => return Ok(true),
            _ => return Err(error),
        }
    }
    for byte in [USED + READ, UNSHARED + WRITE, UNSHARED + RESIZE] {
        if !byte_lock(file, byte)? {
            return Ok(false);
        }
    }
    for byte in [USED + WRITE, USED + RESIZE, UNSHARED + READ] {
        if !byte_is_free(file, byte)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn request(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Takes a shared lock on one byte; false when somebody holds it exclusively.
fn byte_lock(file: &File, byte: i64) -> io::Result<bool> {
    let lock = request(libc::F_RDLCK, byte);
    // SAFETY: `lock` is a complete `struct flock` and outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES) => Ok(false),
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL) => Ok(true),
        _ => Err(error),
    }
}

/// Whether nobody else holds any lock on one byte.
fn byte_is_free(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = request(libc::F_WRLCK, byte);
    // SAFETY: `lock` is a complete `struct flock`, exclusively ours during the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } == 0 {
        return Ok(i32::from(lock.l_type) == libc::F_UNLCK);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::EINVAL) => Ok(true),
        _ => Err(error),
    }
}
