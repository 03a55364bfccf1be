//! The network's thread: reads what the peer sends, and writes what it would not take at once.
//!
//! It sleeps in poll(2) on two descriptors: the link, and an eventfd ("the bell") that the
//! machine's thread rings when frames wait, when the inbox has room again, or at the end.

use crate::counters::{Counters, count};
use crate::link::Link;
use crate::passt::Complaints;
use crate::queue::{Inbox, Outbox, is_for_later};
use crate::{Deframer, FRAME_BYTES, NetError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes read at once: several of the longest frames.
const READ_BYTES: usize = 256 << 10;
/// Frames read from a tap before the other direction has its turn.
const TAP_BATCH_FRAMES: usize = 64;

/// What both threads see.
#[derive(Debug)]
pub struct Shared {
    pub link: Link,
    /// The other end, for messages.
    pub peer: String,
    /// What passt has said, when that is the peer.
    pub complaints: Option<Complaints>,
    pub counters: Counters,
    pub failure: OnceLock<NetError>,
    outbox: Mutex<Outbox>,
    inbox: Mutex<Inbox>,
    bell: OwnedFd,
    stopping: AtomicBool,
}

impl Shared {
    pub fn new(link: Link, peer: String, complaints: Option<Complaints>) -> io::Result<Self> {
        Ok(Self {
            link,
            peer,
            complaints,
            counters: Counters::default(),
            failure: OnceLock::new(),
            outbox: Mutex::default(),
            inbox: Mutex::default(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
        })
    }

    pub fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the network's thread.
    pub fn ring(&self) {
        // It fails only when the bell has rung 2^64-2 times unheard, and then it rings anyway.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.ring();
    }

    fn io(&self, source: impl Into<io::Error>) -> NetError {
        NetError::Io { peer: self.peer.clone(), source: source.into() }
    }
}

/// Runs until the network is stopped or fails. `wake` is called after frames came, and once at a
/// failure.
pub fn run(shared: &Shared, wake: &dyn Fn()) {
    let mut reader = Reader { deframer: Deframer::default(), buffer: vec![0; READ_BYTES] };
    loop {
        match turn(shared, &mut reader) {
            Ok(Turn::Nothing) => (),
            Ok(Turn::Received) => wake(),
            Ok(Turn::Stop) => return,
            Err(error) => {
                let lost = shared.outbox().close();
                shared.counters.dropped.fetch_add(lost, Ordering::Relaxed);
                // This thread is the only one to set it, and only here.
                let _ = shared.failure.set(error);
                return wake();
            }
        }
    }
}

enum Turn {
    Nothing,
    Received,
    Stop,
}

/// Waits for something to do and does it.
fn turn(shared: &Shared, reader: &mut Reader) -> Result<Turn, NetError> {
    let mut wanted = PollFlags::empty();
    wanted.set(PollFlags::IN, !shared.inbox().pause_if_full());
    wanted.set(PollFlags::OUT, shared.outbox().is_waiting());
    let link = shared.link.fd();
    let mut polled = [PollFd::new(&shared.bell, PollFlags::IN), PollFd::from_borrowed_fd(link, wanted)];
    // A hangup is reported unasked, again and again; it has to wait while nothing may be read.
    let watched = if wanted.is_empty() { 1 } else { 2 };
    match poll(&mut polled[..watched], None) {
        Ok(_) | Err(Errno::INTR) => (),
        Err(error) => return Err(shared.io(error)),
    }
    let [bell, link] = polled.map(|fd| fd.revents());
    if !bell.is_empty() {
        let _ = rustix::io::read(&shared.bell, &mut [0; 8]);
    }
    if shared.stopping.load(Ordering::Acquire) {
        return Ok(Turn::Stop);
    }
    let ended = PollFlags::HUP | PollFlags::ERR;
    if wanted.contains(PollFlags::OUT) && link.intersects(PollFlags::OUT | ended) {
        let lost = shared.outbox().flush(&shared.link);
        shared.counters.dropped.fetch_add(lost, Ordering::Relaxed);
    }
    if wanted.contains(PollFlags::IN) && link.intersects(PollFlags::IN | ended) {
        return reader.read(shared);
    }
    Ok(Turn::Nothing)
}

struct Reader {
    deframer: Deframer,
    buffer: Vec<u8>,
}

impl Reader {
    fn read(&mut self, shared: &Shared) -> Result<Turn, NetError> {
        match &shared.link {
            Link::Stream(stream) => {
                let bytes = match rustix::io::read(stream, &mut self.buffer) {
                    Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => return Err(self.closed(shared)),
                    Ok(bytes) => bytes,
                    Err(error) if is_for_later(&error.into()) => return Ok(Turn::Nothing),
                    Err(error) => return Err(shared.io(error)),
                };
                let mut inbox = shared.inbox();
                let each = |frame: &[u8]| deliver(shared, &mut inbox, frame);
                self.deframer
                    .push(&self.buffer[..bytes], each)
                    .map_err(|error| NetError::TooLong { peer: shared.peer.clone(), bytes: error.bytes })?;
            }
            Link::Tap(file) => {
                for _ in 0..TAP_BATCH_FRAMES {
                    match rustix::io::read(file, &mut self.buffer) {
                        Ok(bytes) => deliver(shared, &mut shared.inbox(), &self.buffer[..bytes]),
                        Err(error) if is_for_later(&error.into()) => break,
                        Err(error) => return Err(shared.io(error)),
                    }
                }
            }
        }
        Ok(Turn::Received)
    }

    /// Why the stream ended here.
    fn closed(&self, shared: &Shared) -> NetError {
        let peer = shared.peer.clone();
        match self.deframer.missing_bytes() {
            Ok(missing_bytes) if !self.deframer.is_between_frames() => NetError::Torn { peer, missing_bytes },
            _ => {
                let said = shared.complaints.as_ref().and_then(Complaints::last_words);
                NetError::Closed { peer, said: said.map(|line| format!(": {line}")).unwrap_or_default() }
            }
        }
    }
}

fn deliver(shared: &Shared, inbox: &mut Inbox, frame: &[u8]) {
    if FRAME_BYTES.contains(&frame.len()) {
        inbox.push(frame);
        count(&shared.counters.received);
    } else {
        count(&shared.counters.odd);
    }
}
