//! The tail: events that are on disk but not in a chunk yet.
//!
//! Chunks compress well and cost little only when they are large, but a killed recorder may lose
//! at most a tenth of a second, and nothing of what was shown. So what a chunk will hold is first
//! appended here, as it is, in small frames; once the chunk is written the tail starts over.
//!
//! ```text
//! events.tail = head sequence:u64 previous[16] crc32:u32 frame*
//! frame       = length:u32 crc32:u32 bytes
//! ```
//!
//! `sequence` and `previous` are those of the chunk that the bytes will become. A tail whose chunk
//! is already in the log is *stale*: the recorder was killed between the two steps. Each frame's
//! checksum goes on from the one before it.

use crate::chunk::{CHUNK_BYTES_MAX, ChunkedFile, HEAD_LEN, Head, LogKind, checks};
use crate::folder::Lock;
use crate::id::{Digest, RecordingId};
use crate::{Error, ReadAt};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const START_LEN: u64 = 28;
const FRAME_LEN: u64 = 8;

/// Writes the tail.
pub(crate) struct TailWriter {
    file: File,
    /// A locked tail is how others see that the recorder is alive.
    _alive: Option<Lock>,
    head: Head,
    end: u64,
    crc: u32,
}

impl TailWriter {
    pub(crate) fn create(path: &Path, id: RecordingId) -> io::Result<Self> {
        let file = File::options().write(true).create_new(true).open(path)?;
        let alive = Lock::of(file.try_clone()?)?;
        Ok(Self {
            file,
            _alive: alive,
            head: Head { kind: LogKind::Tail, id, generation: 0 },
            end: 0,
            crc: 0,
        })
    }

    /// Forgets everything; the next bytes will become chunk `sequence` after `previous`.
    pub(crate) fn restart(&mut self, sequence: u64, previous: Digest) -> io::Result<()> {
        self.file.set_len(0)?;
        let mut start = [0; START_LEN as usize];
        start[..8].copy_from_slice(&sequence.to_le_bytes());
        start[8..24].copy_from_slice(&previous.0);
        self.crc = crc32fast::hash(&start[..24]);
        start[24..].copy_from_slice(&self.crc.to_le_bytes());
        let bytes = [&self.head.encode()[..], &start].concat();
        self.file.write_all_at(&bytes, 0)?;
        self.end = bytes.len() as u64;
        Ok(())
    }

    /// Appends a frame. On failure the tail is cut back to its last whole frame.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let crc = frame_crc(self.crc, bytes);
        let len = (bytes.len() as u32).to_le_bytes();
        let frame = [&len[..], &crc.to_le_bytes(), bytes].concat();
        if let Err(e) = self.file.write_all_at(&frame, self.end) {
            let _ = self.file.set_len(self.end);
            return Err(e);
        }
        self.end += frame.len() as u64;
        self.crc = crc;
        Ok(())
    }
}

fn frame_crc(before: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(&(bytes.len() as u32).to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// What a tail holds.
pub(crate) struct Tail {
    pub(crate) path: std::path::PathBuf,
    sequence: u64,
    previous: Digest,
    /// The contents that the next chunk would have begun with.
    pub(crate) raw: Vec<u8>,
    /// Whether an incomplete frame follows.
    pub(crate) torn: bool,
}

impl Tail {
    /// Reads and checks a tail; `None` when it holds nothing.
    pub(crate) fn read(source: &dyn ReadAt, id: RecordingId) -> Result<Option<Tail>, Error> {
        if Head::read(source, LogKind::Tail, id)?.is_none() || source.size() < HEAD_LEN + START_LEN {
            return Ok(None);
        }
        let mut start = [0; START_LEN as usize];
        source.read_at(HEAD_LEN, &mut start)?;
        let mut crc = crc32fast::hash(&start[..24]);
        if !checks(&start[24..], &crc.to_le_bytes()[..]) {
            let why = "the checksum of the tail's start does not match";
            return Err(Error::damaged(source.path(), HEAD_LEN, None, why));
        }
        let mut tail = Tail {
            path: source.path().to_owned(),
            sequence: u64::from_le_bytes(start[..8].try_into().expect("8 bytes")),
            previous: Digest(start[8..24].try_into().expect("16 bytes")),
            raw: Vec::new(),
            torn: false,
        };
        let mut at = HEAD_LEN + START_LEN;
        while at < source.size() {
            match tail.read_frame(source, at, &mut crc)? {
                Some(next) => at = next,
                None => {
                    tail.torn = true;
                    break;
                }
            }
        }
        Ok(Some(tail))
    }

    /// Takes in the frame at `at` and says where the next begins; `None` when it is incomplete.
    fn read_frame(&mut self, source: &dyn ReadAt, at: u64, crc: &mut u32) -> Result<Option<u64>, Error> {
        let left = source.size() - at;
        if left < FRAME_LEN {
            return Ok(None);
        }
        let mut prefix = [0; FRAME_LEN as usize];
        source.read_at(at, &mut prefix)?;
        let len = u32::from_le_bytes(prefix[..4].try_into().expect("4 bytes"));
        let damaged = |why: &str| Err(Error::damaged(source.path(), at, None, why));
        if self.raw.len() as u64 + u64::from(len) > u64::from(CHUNK_BYTES_MAX) {
            return damaged("a frame claims to be larger than any may be");
        }
        if left - FRAME_LEN < u64::from(len) {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        source.read_at(at + FRAME_LEN, &mut bytes)?;
        if len == 0 && prefix == [0; FRAME_LEN as usize] {
            return Ok(None); // zeros after a power failure
        }
        *crc = frame_crc(*crc, &bytes);
        if !checks(&prefix[4..], &crc.to_le_bytes()[..]) {
            return damaged("the checksum of a frame does not match");
        }
        self.raw.extend_from_slice(&bytes);
        Ok(Some(at + FRAME_LEN + u64::from(len)))
    }

    /// Whether the tail goes on where `log` ends; false when it is stale, an error when it does
    /// not belong to that log.
    pub(crate) fn continues(&self, log: &ChunkedFile) -> Result<bool, Error> {
        let chunks = log.chunks.len() as u64;
        if self.sequence > chunks {
            let why = format!(
                "{chunks} whole chunks are here, but {} continues after {}; the log was cut",
                self.path.display(),
                self.sequence
            );
            return Err(Error::damaged(log.source.path(), log.end, Some(chunks), why));
        }
        let previous = match log.chunks.get(self.sequence as usize) {
            Some(next) => next.header.previous(),
            None => log.seal,
        };
        if previous != self.previous {
            let why = "the tail does not continue the log beside it";
            return Err(Error::damaged(&self.path, HEAD_LEN, None, why));
        }
        Ok(self.sequence == chunks)
    }
}
