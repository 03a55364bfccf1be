//! The connection: one thread that reads, so that an interrupt is seen while the machine runs.
//!
//! The thread waits in `poll` for the client, for others who would like to be one, and for being
//! woken. It cuts what the client sends into packets, numbers them and queues them. An interrupt is
//! not queued: it is remembered with the number of the packet before it. The run that packet `n`
//! started is to stop when that number is at least `n`; an interrupt from before, when the machine
//! stood still, has a smaller one and is forgotten, as gdb expects.

use crate::Listener;
use crate::framing::{self, Frame, Framer};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// How many unanswered packets a client may have; gdb has at most a few.
pub(crate) const QUEUE_MAX: usize = 1024;
/// How many refused clients are remembered until they hang up.
const REFUSED_MAX: usize = 8;
/// How long a client may refuse to take our answer before it counts as gone.
const WRITE_SECONDS_MAX: u64 = 30;

/// A connected client.
pub(crate) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Reading never blocks; writing does, for a while.
    pub fn prepare(&self) -> io::Result<()> {
        let limit = Some(Duration::from_secs(WRITE_SECONDS_MAX));
        match self {
            Self::Tcp(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(limit)
            }
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(limit)
            }
        }
    }
    pub fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).write_all(bytes),
            Self::Unix(stream) => (&mut &*stream).write_all(bytes),
        }
    }
    /// Call only when `poll` says that there is something.
    fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => (&mut &*stream).read(into),
            Self::Unix(stream) => (&mut &*stream).read(into),
        }
    }
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

/// What the reading thread queues.
pub(crate) enum Event {
    /// A packet's body and its number, from 1.
    Packet(Vec<u8>, u64),
    /// Something that is no packet.
    Damaged,
    /// The last answer is to be sent again.
    Nack,
    /// The client is gone, or we were asked to stop.
    Closed,
}

/// What the two threads share besides the queue.
#[derive(Default)]
pub(crate) struct Signals {
    /// The number of the packet after which the client last asked for an interrupt.
    interrupted_after: AtomicU64,
    closed: AtomicBool,
    /// The session is over.
    done: AtomicBool,
}

impl Signals {
    /// Whether the run that packet `number` started should stop.
    pub fn should_stop(&self, number: u64) -> bool {
        self.closed.load(Ordering::Relaxed) || self.interrupted_after.load(Ordering::Relaxed) >= number
    }
    /// Tells the reading thread to end at its next waking.
    pub fn finish(&self) {
        self.done.store(true, Ordering::SeqCst);
    }
}

/// The reading thread.
pub(crate) fn read(listener: &Listener, client: &Stream, signals: &Signals, queue: &SyncSender<Event>) {
    let mut reader = Reader { signals, queue, framer: Framer::default(), packets: 0 };
    let mut refused: Vec<Stream> = Vec::new();
    let mut client_open = true;
    while !signals.done.load(Ordering::SeqCst) {
        let ready = match wait(listener, client_open.then_some(client), &refused) {
            Ok(ready) => ready,
            Err(_) => break,
        };
        if ready.woken {
            let _ = (&listener.wake).read(&mut [0; 64]);
            if listener.stopper().asked() {
                break;
            }
        }
        if ready.client && !reader.take(client) {
            client_open = false;
            reader.close();
        }
        if ready.listener
            && let Ok(Some(stream)) = listener.accept()
        {
            if refused.len() == REFUSED_MAX {
                refused.remove(0);
            }
            refused.push(stream);
            continue;
        }
        let mut answered = ready.refused.into_iter();
        refused.retain(|stream| !answered.next().unwrap_or(false) || refuse(stream));
    }
    reader.close();
}

struct Ready {
    woken: bool,
    client: bool,
    listener: bool,
    refused: Vec<bool>,
}

/// Waits until there is something to do.
fn wait(listener: &Listener, client: Option<&Stream>, refused: &[Stream]) -> io::Result<Ready> {
    let wake = listener.wake.as_fd();
    let mut all = vec![wake, listener.fd()];
    all.extend(client.map(Stream::fd));
    all.extend(refused.iter().map(Stream::fd));
    let mut fds: Vec<_> = all.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    loop {
        match poll(&mut fds, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let woken = ready.next().unwrap_or(false);
    let knocked = ready.next().unwrap_or(false);
    let client = client.is_some() && ready.next().unwrap_or(false);
    Ok(Ready { woken, client, listener: knocked, refused: ready.collect() })
}

/// Tells someone who asks that the place is taken; false when it hung up or was told.
fn refuse(stream: &Stream) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) | Err(_) => false,
        Ok(n) if buffer[..n].contains(&b'#') => {
            let mut answer = b"+".to_vec();
            answer.extend(framing::error("another gdb is connected to this session; only one can be"));
            stream.write_all(&answer).is_ok()
        }
        Ok(_) => true,
    }
}

struct Reader<'a> {
    signals: &'a Signals,
    queue: &'a SyncSender<Event>,
    framer: Framer,
    packets: u64,
}

impl Reader<'_> {
    /// Reads what there is; false when the client is gone, or so far ahead of us that it is no gdb.
    fn take(&mut self, client: &Stream) -> bool {
        let mut buffer = [0; 0x4000];
        let count = match client.read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(error) => {
                return matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock);
            }
        };
        for byte in &buffer[..count] {
            let event = match self.framer.push(*byte) {
                None => continue,
                Some(Frame::Interrupt) => {
                    self.signals.interrupted_after.store(self.packets, Ordering::Relaxed);
                    continue;
                }
                Some(Frame::Packet(body)) => {
                    self.packets += 1;
                    Event::Packet(body, self.packets)
                }
                Some(Frame::Damaged) => Event::Damaged,
                Some(Frame::Nack) => Event::Nack,
            };
            if self.queue.try_send(event).is_err() {
                return false;
            }
        }
        true
    }

    fn close(&self) {
        if !self.signals.closed.swap(true, Ordering::SeqCst) {
            // When the queue is full, the session finds the flag set behind it.
            let _ = self.queue.try_send(Event::Closed);
        }
    }
}

impl Signals {
    /// Whether the client is gone.
    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}
