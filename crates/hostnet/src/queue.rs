//! The two bounded queues between the machine's thread and the network's.

use crate::link::Link;
use std::collections::VecDeque;
use std::io;

/// Bytes of frames that may wait for the peer. A fast guest sends that much in a few milliseconds:
/// enough for a peer that is only busy, too little to hide one that is stuck.
pub const OUTBOX_BYTES_MAX: usize = 4 << 20;
/// Bytes of frames that may wait for the guest before reading stops.
pub const INBOX_BYTES_MAX: usize = 4 << 20;
/// What a waiting frame costs beside its bytes, so that tiny ones are bounded too.
const FRAME_OVERHEAD_BYTES: usize = 64;

/// Frames on their way to the peer, of which the first may have gone in part.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Vec<u8>>,
    first_written_bytes: usize,
    bytes: usize,
    closed: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// The peer has it.
    Gone,
    /// It waits; the network's thread takes care of the rest.
    Waiting,
    /// There was no room, or no peer.
    Dropped,
}

impl Outbox {
    /// Hands a frame to the link, or keeps it while the link takes none.
    pub fn send(&mut self, link: &Link, frame: &[u8]) -> Sent {
        if self.closed {
            return Sent::Dropped;
        }
        let mut written = 0;
        if self.frames.is_empty() {
            match link.write(frame, 0) {
                Ok(bytes) if bytes == link.wire_bytes(frame) => return Sent::Gone,
                Ok(bytes) => written = bytes,
                Err(error) if is_for_later(&error) => (),
                Err(_) => {
                    self.closed = matches!(link, Link::Stream(_));
                    return Sent::Dropped;
                }
            }
        }
        // A frame that has begun must be completed, or the stream would lose its boundaries.
        let cost = frame.len() + FRAME_OVERHEAD_BYTES;
        if self.bytes + cost > OUTBOX_BYTES_MAX && written == 0 {
            return Sent::Dropped;
        }
        if self.frames.is_empty() {
            self.first_written_bytes = written;
        }
        self.bytes += cost;
        self.frames.push_back(frame.to_vec());
        Sent::Waiting
    }

    /// Whether frames wait.
    pub fn is_waiting(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Hands on what the link takes now. Returns the number of frames that were lost to errors.
    pub fn flush(&mut self, link: &Link) -> u64 {
        let mut lost = 0;
        while let Some(frame) = self.frames.front() {
            let wire = link.wire_bytes(frame);
            match link.write(frame, self.first_written_bytes) {
                Ok(bytes) => self.first_written_bytes += bytes,
                Err(error) if is_for_later(&error) => return lost,
                Err(_) if matches!(link, Link::Stream(_)) => return lost + self.close(),
                // A tap refuses frames while its interface is down.
                Err(_) => {
                    lost += 1;
                    self.first_written_bytes = wire;
                }
            }
            if self.first_written_bytes >= wire {
                self.bytes -= frame.len() + FRAME_OVERHEAD_BYTES;
                self.first_written_bytes = 0;
                self.frames.pop_front();
            }
        }
        lost
    }

    /// Takes no more frames. Returns how many were waiting.
    pub fn close(&mut self) -> u64 {
        self.closed = true;
        self.bytes = 0;
        self.first_written_bytes = 0;
        std::mem::take(&mut self.frames).len() as u64
    }
}

/// Whether a link that refused may take the same bytes later.
pub fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

/// Frames for the guest.
#[derive(Debug, Default)]
pub struct Inbox {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// The network's thread does not read until it is rung.
    paused: bool,
}

impl Inbox {
    /// Adds a frame; the caller stops reading when [`Inbox::pause_if_full`] says so.
    pub fn push(&mut self, frame: &[u8]) {
        self.bytes += frame.len() + FRAME_OVERHEAD_BYTES;
        self.frames.push_back(frame.to_vec());
    }

    /// Takes the oldest frame, and says whether reading must be resumed by ringing.
    pub fn pop(&mut self) -> Option<(Vec<u8>, bool)> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len() + FRAME_OVERHEAD_BYTES;
        let resume = self.paused && self.bytes <= INBOX_BYTES_MAX / 2;
        if resume {
            self.paused = false;
        }
        Some((frame, resume))
    }

    /// Whether reading must wait; remembered, so that [`Inbox::pop`] says when to resume.
    pub fn pause_if_full(&mut self) -> bool {
        self.paused |= self.bytes >= INBOX_BYTES_MAX;
        self.paused
    }
}
