//! The open door to the peer: a descriptor, and how frames pass through it.

use crate::framing;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Both never block.
#[derive(Debug)]
pub enum Link {
    /// A stream with QEMU's framing.
    Stream(UnixStream),
    /// A tap: one read or write is one frame.
    Tap(File),
}

impl Link {
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Link::Stream(stream) => stream.as_fd(),
            Link::Tap(file) => file.as_fd(),
        }
    }

    /// How many bytes a frame is on this link.
    pub fn wire_bytes(&self, frame: &[u8]) -> usize {
        match self {
            Link::Stream(_) => framing::header(frame).len() + frame.len(),
            Link::Tap(_) => frame.len(),
        }
    }

    /// Writes what the link takes at once of a frame's wire bytes after the first `written`.
    /// Returns how many that were; `WouldBlock` when it takes none.
    pub fn write(&self, frame: &[u8], written: usize) -> io::Result<usize> {
        match self {
            Link::Stream(stream) => {
                let header = framing::header(frame);
                let rest = &frame[written.saturating_sub(header.len())..];
                let parts = [IoSlice::new(header.get(written..).unwrap_or(&[])), IoSlice::new(rest)];
                let mut nothing = SendAncillaryBuffer::default();
                // A peer that went away is an error here, and no signal for the whole process.
                Ok(rustix::net::sendmsg(stream, &parts, &mut nothing, SendFlags::NOSIGNAL)?)
            }
            Link::Tap(file) => Ok(rustix::io::write(file, frame)?),
        }
    }
}
