//! The few calls to the operating system that have no safe interface.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes an open `/dev/net/tun` the other end of a tap interface, without packet information.
/// `name` must be shorter than `IFNAMSIZ`.
pub fn attach_tap(file: &File, name: &str) -> io::Result<()> {
    // SAFETY: a structure of integers and byte arrays, for which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is; the descriptor is open.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes of memory hold what was sent and the peer has not yet read.
pub fn unread_by_peer(stream: &UnixStream) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ) writes one int, which `bytes` is; the descriptor is open.
    match unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) } {
        0 => Ok(bytes),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets the program that `command` starts have `descriptor`, under the same number. It must stay open until
/// then.
///
/// Done after the fork: otherwise programs that other threads start meanwhile would have it too,
/// and keep the stream open.
pub fn inherit(command: &mut Command, descriptor: RawFd) {
    let keep = move || {
        // SAFETY: changes a flag of a descriptor in the child alone.
        match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe; making the
    // error from errno allocates nothing.
    unsafe { command.pre_exec(keep) };
}
