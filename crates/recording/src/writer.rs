//! Writing a recording while the guest runs.
//!
//! The recorder's hot path encodes an event into a buffer under a lock that is hardly ever
//! contended: no system call, no compression. A thread takes what is new at most
//! [`FLUSH_EVERY`] later and appends it to the tail; when a chunk's worth has gathered, or
//! [`CHUNK_AGE_MAX`] has passed, it compresses all of it into one chunk of the log instead.
//!
//! ```text
//! input() ─► open chunk (memory) ──≤ 50 ms──► events.tail ──256 KiB or 20 s──► events.log
//! ```
//!
//! So a killed recorder loses a twentieth of a second, an idle guest costs a few bytes a second,
//! and payloads compress in large pieces. On a loaded host the thread may come late. What must not be
//! lost then, because somebody has seen what came of it, the recorder puts into the tail itself
//! ([`Writer::flush`]): one small write.

use crate::chunk::{ChunkAppender, Head, LogKind};
use crate::event::{Encoder, End, StateHash};
use crate::tail::TailWriter;
use crate::{Completion, Error, Manifest, PAYLOAD_MAX, Status, Stopped, folder};
use base::Position;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an event may wait for the disk.
pub const FLUSH_EVERY: Duration = Duration::from_millis(50);
/// How long events may wait in the tail once others follow them.
pub const CHUNK_AGE_MAX: Duration = Duration::from_secs(20);
/// How many bytes of events make a chunk.
const CHUNK_BYTES: usize = 256 << 10;
/// How many bytes may wait for the disk before the recorder waits too.
const WAITING_BYTES_MAX: usize = 32 << 20;

/// Records events into a folder.
///
/// Dropping it without [`Writer::finish`] flushes what is there and leaves the recording without
/// an end mark, as if the recorder had been killed.
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    folder: PathBuf,
    manifest: Manifest,
    started: Instant,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the thread: something is there, or the writer closes.
    work: Condvar,
    /// Wakes the recorder: there is room again.
    room: Condvar,
    failed: AtomicBool,
    /// Taken before `state`, so that what is taken from there is written in that order.
    files: Mutex<Files>,
}

#[derive(Default)]
struct State {
    open: OpenChunk,
    closing: bool,
    /// Position of the last event that is on disk.
    flushed: Position,
    /// Number of events recorded.
    recorded: u64,
    log_bytes: u64,
    error: Option<Stopped>,
}

/// The events that will become the next chunk.
#[derive(Default)]
struct OpenChunk {
    encoder: Encoder,
    raw: Vec<u8>,
    first: Position,
    last: Position,
    /// How many of `raw`'s bytes are in the tail.
    in_tail: usize,
    /// When some first were put there.
    began: Option<Instant>,
}

/// The files.
struct Files {
    log: ChunkAppender,
    tail: TailWriter,
    tail_path: PathBuf,
}

impl Writer {
    /// Begins a recording in `folder`, which must exist and not hold one. The manifest appears
    /// last, so that a folder with a manifest is always a whole recording.
    pub fn create(folder: &Path, manifest: Manifest) -> Result<Self, Error> {
        let log_path = folder.join(folder::EVENTS);
        let tail_path = folder.join(folder::TAIL);
        let head = Head { kind: LogKind::Events, id: manifest.id, generation: 0 };
        let log = ChunkAppender::create(&log_path, head).map_err(|e| Error::io("create", &log_path, e))?;
        let tail = TailWriter::create(&tail_path, manifest.id)
            .and_then(|mut tail| tail.restart(0, log.seal()).map(|()| tail))
            .map_err(|e| Error::io("create", &tail_path, e))?;
        let manifest = Manifest { status: Status::Recording, ..manifest };
        manifest.write(folder)?;

        let state = State { log_bytes: log.end(), ..State::default() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            failed: AtomicBool::new(false),
            files: Mutex::new(Files { log, tail, tail_path }),
        });
        let thread = std::thread::Builder::new()
            .name("recorder".into())
            .spawn({
                let shared = shared.clone();
                move || shared.flush_until_closed()
            })
            .map_err(|e| Error::io("start the writing thread for", folder, e))?;
        Ok(Self {
            shared,
            thread: Some(thread),
            folder: folder.to_owned(),
            manifest,
            started: Instant::now(),
        })
    }

    /// The recording's manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// The recording's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Names the kinds of input for `hindsight info`. Call it before the first input.
    pub fn name_inputs(&mut self, names: BTreeMap<u16, String>) -> Result<(), Error> {
        self.manifest.input_kinds = names;
        self.manifest.write(&self.folder)
    }

    /// Records an input of at most [`PAYLOAD_MAX`] bytes (longer ones panic). Positions never
    /// decrease. After a failure this does nothing: see [`Writer::check`].
    pub fn input(&self, at: Position, kind: u16, payload: &[u8]) {
        assert!(payload.len() <= PAYLOAD_MAX, "an input of {} bytes", payload.len());
        self.push(at, |encoder, raw| encoder.input(raw, at, kind, payload));
    }

    /// Records the machine's state at a position.
    pub fn hash(&self, at: Position, hash: &StateHash) {
        self.push(at, |encoder, raw| encoder.hash(raw, at, hash));
    }

    /// Says that the run has got to `at`, so that a replay can if nothing is recorded after it.
    pub fn reached(&self, at: Position) {
        self.push(at, |encoder, raw| encoder.reached(raw, at));
    }

    fn push(&self, at: Position, encode: impl FnOnce(&mut Encoder, &mut Vec<u8>)) {
        let mut state = self.shared.lock();
        if state.error.is_some() {
            return;
        }
        while state.open.raw.len() > WAITING_BYTES_MAX && state.error.is_none() {
            state = self.shared.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let open = &mut state.open;
        if open.raw.is_empty() {
            open.first = at;
        }
        let nothing_waited = open.raw.len() == open.in_tail;
        let was_small = open.raw.len() < CHUNK_BYTES;
        encode(&mut open.encoder, &mut open.raw);
        open.last = at;
        let is_small = open.raw.len() < CHUNK_BYTES;
        state.recorded += 1;
        drop(state);
        if nothing_waited || was_small && !is_small {
            self.shared.work.notify_one();
        }
    }

    /// Whether writing still works. Cheap enough to ask at every exit from the guest.
    pub fn check(&self) -> Result<(), Stopped> {
        if !self.shared.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.shared.lock().error.clone().map_or(Ok(()), Err)
    }

    /// Puts everything recorded so far into the files: mostly a write to the tail by the calling thread,
    /// if the writing thread has not got to it yet. A process killed after that loses none of it.
    pub fn flush(&self) -> Result<(), Stopped> {
        self.shared.settle();
        self.check()
    }

    /// Number of events recorded so far and bytes of log they have taken on disk.
    pub fn size(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.recorded, state.log_bytes)
    }

    /// Ends the recording: writes the end mark, makes everything last, and marks the manifest
    /// complete. `guest_ns` is guest time at `at`. Returns the finished manifest.
    pub fn finish(
        mut self,
        at: Position,
        end: End,
        hash: StateHash,
        guest_ns: u64,
    ) -> Result<Manifest, Error> {
        self.push(at, |encoder, raw| encoder.end(raw, at, end));
        self.close();
        self.check()?;
        let files = self.shared.files();
        let (log, tail_path) = (&files.log, &files.tail_path);
        log.sync().map_err(|e| Error::io("write", log.path(), e))?;
        std::fs::remove_file(tail_path).map_err(|e| Error::io("remove", tail_path, e))?;
        self.manifest.status = Status::Complete(Completion {
            end,
            at,
            hash,
            guest_ns,
            wall_ms: self.started.elapsed().as_millis() as u64,
            chunks: log.sequence(),
            seal: log.seal(),
        });
        drop(files);
        self.manifest.write(&self.folder)?;
        Ok(self.manifest.clone())
    }

    fn close(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It only writes, and what it cannot write it says.
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.close();
    }
}

/// What was taken from the open chunk.
enum Batch {
    /// Bytes to append to the tail, up to an event at this position.
    Frame(Vec<u8>, Position),
    /// A whole chunk.
    Chunk(OpenChunk),
}

impl State {
    /// Whether the thread has anything to do, now or soon.
    fn has_work(&self) -> bool {
        self.closing || self.open.raw.len() > self.open.in_tail || self.open.raw.len() >= CHUNK_BYTES
    }

    fn take(&mut self) -> Option<Batch> {
        let open = &mut self.open;
        if open.raw.is_empty() {
            return None;
        }
        let began = *open.began.get_or_insert_with(Instant::now);
        let due = self.closing || open.raw.len() >= CHUNK_BYTES || began.elapsed() >= CHUNK_AGE_MAX;
        if due {
            return Some(Batch::Chunk(std::mem::take(open)));
        }
        let frame = open.raw[open.in_tail..].to_vec();
        open.in_tail = open.raw.len();
        (!frame.is_empty()).then_some(Batch::Frame(frame, open.last))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere cannot leave the buffer half-written: encoding is the only change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        // What a panic left half-written fails its checksum.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flush_until_closed(&self) {
        let mut closing = false;
        while !closing && !self.failed.load(Ordering::Acquire) {
            closing = self.wait_until_due();
            self.settle();
        }
    }

    /// Takes what there is and writes it.
    fn settle(&self) {
        let mut files = self.files();
        let mut state = self.lock();
        if state.error.is_some() {
            return;
        }
        let Some(batch) = state.take() else { return };
        drop(state);
        let last = match &batch {
            Batch::Frame(_, last) => *last,
            Batch::Chunk(open) => open.last,
        };
        let result = files.write(batch);
        let mut state = self.lock();
        match result {
            Ok(()) => {
                state.flushed = last;
                state.log_bytes = files.log.end();
            }
            Err((path, e)) => {
                let (why, kind, flushed) = (e.to_string(), e.kind(), state.flushed);
                state.error = Some(Stopped { path, why, kind, flushed });
                self.failed.store(true, Ordering::Release);
            }
        }
        drop(state);
        self.room.notify_all();
    }

    /// Waits until something has waited for long enough, and says whether the writer is closed.
    fn wait_until_due(&self) -> bool {
        let mut state = self.lock();
        while !state.has_work() {
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let due = Instant::now() + FLUSH_EVERY;
        while !state.closing && state.open.raw.len() < CHUNK_BYTES {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.closing
    }
}

impl Files {
    fn write(&mut self, batch: Batch) -> Result<(), (PathBuf, io::Error)> {
        match batch {
            Batch::Frame(bytes, _) => self.tail.append(&bytes).map_err(|e| (self.tail_path.clone(), e)),
            Batch::Chunk(open) => {
                self.log
                    .append(open.first, open.last, &open.raw, true)
                    .map_err(|e| (self.log.path().to_owned(), e))?;
                self.tail
                    .restart(self.log.sequence(), self.log.seal())
                    .map_err(|e| (self.tail_path.clone(), e))
            }
        }
    }
}
