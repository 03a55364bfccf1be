//! Chunks: how every log of a recording is cut, checked and chained.
//!
//! ```text
//! file  = head (36 bytes) chunk*
//! head  = magic[8] format:u32 generation:u32 id[16] crc32:u32
//! chunk = "HSck" codec:u8 0 0 0 sequence:u64 first:u64 last:u64
//!         raw_len:u32 stored_len:u32 previous[16] stored_crc:u32 header_crc:u32    (64 bytes)
//!         stored bytes
//!         seal[16]
//! ```
//!
//! All integers are little-endian. `seal` is a BLAKE3 hash, keyed by the file's head, over header
//! and stored bytes; the header names the seal of the chunk before it. A chunk that was altered
//! fails its checksum, one that was moved, repeated or dropped breaks the sequence and the chain,
//! and one from another recording or another kind of file fails the key.
//!
//! A recorder that is killed leaves at most one incomplete chunk, at the end. So a chunk that the
//! file is too short for is *torn* and ends the log; anything else that does not check is *damage*.

use crate::id::{Digest, RecordingId};
use crate::{Error, FORMAT, ReadAt, Source, folder};
use base::Position;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a file's head.
pub(crate) const HEAD_LEN: u64 = 36;
/// Bytes of a chunk's header.
pub(crate) const HEADER_LEN: u64 = 64;
/// Bytes of a chunk's seal.
pub(crate) const SEAL_LEN: u64 = 16;
/// Most bytes a chunk may hold, before and after compression.
pub(crate) const CHUNK_BYTES_MAX: u32 = 128 << 20;

const CHUNK_MAGIC: [u8; 4] = *b"HSck";
const CODEC_PLAIN: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const COMPRESSION_LEVEL: i32 = 3;

/// Which log a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogKind {
    Events,
    Tail,
    Pages,
    Checkpoints,
}

impl LogKind {
    fn magic(self) -> [u8; 8] {
        match self {
            LogKind::Events => *b"HSEVENTS",
            LogKind::Tail => *b"HSTAIL\0\0",
            LogKind::Pages => *b"HSPAGES\0",
            LogKind::Checkpoints => *b"HSCHECKS",
        }
    }
}

/// The first bytes of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: LogKind,
    pub(crate) id: RecordingId,
    /// Which of a recording's files of this kind; the page store is rewritten under a new number.
    pub(crate) generation: u32,
}

impl Head {
    pub(crate) fn encode(&self) -> [u8; HEAD_LEN as usize] {
        let mut out = [0; HEAD_LEN as usize];
        out[..8].copy_from_slice(&self.kind.magic());
        out[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&self.generation.to_le_bytes());
        out[16..32].copy_from_slice(&self.id.0);
        let crc = crc32fast::hash(&out[..32]);
        out[32..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks a file's head; `None` when the file is too short to have one.
    pub(crate) fn read(source: &dyn ReadAt, kind: LogKind, id: RecordingId) -> Result<Option<Head>, Error> {
        if source.size() < HEAD_LEN {
            return Ok(None);
        }
        let mut bytes = [0; HEAD_LEN as usize];
        source.read_at(0, &mut bytes)?;
        let bad = |offset, why: &str| Err(Error::damaged(source.path(), offset, None, why));
        if bytes[..8] != kind.magic() {
            return bad(0, "it does not begin as such a file does");
        }
        if !checks(u32_at(&bytes, 32), crc32fast::hash(&bytes[..32])) {
            return bad(32, "the checksum of its head does not match");
        }
        if u32_at(&bytes, 8) != FORMAT {
            return bad(8, "its format version is not the manifest's");
        }
        if bytes[16..32] != id.0 {
            return bad(16, "it belongs to another recording");
        }
        Ok(Some(Head { kind, id, generation: u32_at(&bytes, 12) }))
    }

    /// The key of the file's seals and the seal before the first chunk.
    fn chain(&self) -> ([u8; 32], Digest) {
        let key = blake3::derive_key("hindsight 2026 recording chunk chain", &self.encode());
        (key, Digest::from_hash(&blake3::keyed_hash(&key, b"")))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    codec: u8,
    pub(crate) sequence: u64,
    pub(crate) first: Position,
    pub(crate) last: Position,
    raw_len: u32,
    pub(crate) stored_len: u32,
    previous: Digest,
    stored_crc: u32,
}

impl Header {
    pub(crate) fn previous(&self) -> Digest {
        self.previous
    }
    fn encode(&self) -> [u8; HEADER_LEN as usize] {
        let mut out = [0; HEADER_LEN as usize];
        out[..4].copy_from_slice(&CHUNK_MAGIC);
        out[4] = self.codec;
        out[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        out[16..24].copy_from_slice(&self.first.count().to_le_bytes());
        out[24..32].copy_from_slice(&self.last.count().to_le_bytes());
        out[32..36].copy_from_slice(&self.raw_len.to_le_bytes());
        out[36..40].copy_from_slice(&self.stored_len.to_le_bytes());
        out[40..56].copy_from_slice(&self.previous.0);
        out[56..60].copy_from_slice(&self.stored_crc.to_le_bytes());
        let crc = crc32fast::hash(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEADER_LEN as usize]) -> Result<Header, &'static str> {
        if bytes[..4] != CHUNK_MAGIC {
            return Err("no chunk begins here");
        }
        if !checks(u32_at(bytes, 60), crc32fast::hash(&bytes[..60])) {
            return Err("the checksum of the chunk's header does not match");
        }
        let header = Header {
            codec: bytes[4],
            sequence: u64_at(bytes, 8),
            first: Position::from_count(u64_at(bytes, 16)),
            last: Position::from_count(u64_at(bytes, 24)),
            raw_len: u32_at(bytes, 32),
            stored_len: u32_at(bytes, 36),
            previous: Digest(bytes[40..56].try_into().expect("16 bytes")),
            stored_crc: u32_at(bytes, 56),
        };
        if header.codec > CODEC_ZSTD || bytes[5..8] != [0; 3] {
            return Err("the chunk is stored in an unknown way");
        }
        if header.raw_len > CHUNK_BYTES_MAX || header.stored_len > CHUNK_BYTES_MAX {
            return Err("the chunk claims to be larger than any chunk may be");
        }
        if header.codec == CODEC_PLAIN && header.raw_len != header.stored_len {
            return Err("the chunk's two lengths disagree");
        }
        if header.first > header.last {
            return Err("the chunk ends before it begins");
        }
        Ok(header)
    }
}

/// A whole chunk's place in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub(crate) offset: u64,
    pub(crate) header: Header,
    pub(crate) seal: Digest,
}

impl Chunk {
    /// Where the stored bytes begin.
    pub(crate) fn body(&self) -> u64 {
        self.offset + HEADER_LEN
    }
}

/// A log's chunks, found by walking their headers. Contents are checked when they are read.
pub(crate) struct ChunkedFile {
    pub(crate) source: Source,
    pub(crate) head: Head,
    key: [u8; 32],
    pub(crate) chunks: Vec<Chunk>,
    /// The seal of the last chunk, or of the empty log.
    pub(crate) seal: Digest,
    /// Where the last whole chunk ends.
    pub(crate) end: u64,
    /// Whether bytes of an incomplete chunk follow.
    pub(crate) torn: bool,
}

impl ChunkedFile {
    /// Walks the headers. A file too short for its head is an empty, torn log.
    pub(crate) fn open(source: Source, kind: LogKind, id: RecordingId) -> Result<Self, Error> {
        let head = Head::read(&*source, kind, id)?;
        let short = head.is_none();
        let head = head.unwrap_or(Head { kind, id, generation: 0 });
        let (key, seal) = head.chain();
        let mut file = Self { source, head, key, chunks: Vec::new(), seal, end: HEAD_LEN, torn: short };
        if !short {
            file.walk()?;
        }
        Ok(file)
    }

    fn walk(&mut self) -> Result<(), Error> {
        let size = self.source.size();
        while self.end < size {
            let number = self.chunks.len() as u64;
            if size - self.end < HEADER_LEN {
                self.torn = true;
                return Ok(());
            }
            let mut bytes = [0; HEADER_LEN as usize];
            self.source.read_at(self.end, &mut bytes)?;
            let damaged = |why: &str| Err(Error::damaged(self.source.path(), self.end, Some(number), why));
            let header = match Header::decode(&bytes) {
                Ok(header) => header,
                Err(_) if self.rest_is_zero()? => {
                    self.torn = true;
                    return Ok(());
                }
                Err(why) => return damaged(why),
            };
            if header.sequence != number {
                return damaged(&format!("chunk {} stands where chunk {number} belongs", header.sequence));
            }
            if !checks(header.previous, self.seal) {
                return damaged("the chunk does not continue the one before it");
            }
            let body = self.end + HEADER_LEN;
            let end = body + u64::from(header.stored_len) + SEAL_LEN;
            if end > size {
                self.torn = true;
                return Ok(());
            }
            let mut seal = [0; SEAL_LEN as usize];
            self.source.read_at(end - SEAL_LEN, &mut seal)?;
            self.chunks.push(Chunk { offset: self.end, header, seal: Digest(seal) });
            self.seal = Digest(seal);
            self.end = end;
        }
        Ok(())
    }

    /// After a power failure a file may end in zeros that were never written.
    fn rest_is_zero(&self) -> Result<bool, Error> {
        let mut at = self.end;
        let mut buf = vec![0; 64 << 10];
        while at < self.source.size() {
            let n = (self.source.size() - at).min(buf.len() as u64) as usize;
            self.source.read_at(at, &mut buf[..n])?;
            if buf[..n].iter().any(|&b| b != 0) {
                return Ok(false);
            }
            at += n as u64;
        }
        Ok(true)
    }

    /// A chunk's contents, after checking all of it.
    pub(crate) fn read(&self, number: usize) -> Result<Vec<u8>, Error> {
        let chunk = &self.chunks[number];
        let damaged = |why: String| {
            Err(Error::damaged(self.source.path(), chunk.offset, Some(chunk.header.sequence), why))
        };
        let mut stored = vec![0; chunk.header.stored_len as usize];
        self.source.read_at(chunk.body(), &mut stored)?;
        if !checks(crc32fast::hash(&stored), chunk.header.stored_crc) {
            return damaged("the checksum of the chunk's contents does not match".into());
        }
        if !checks(seal_of(&self.key, &chunk.header.encode(), &stored), chunk.seal) {
            return damaged("the chunk's seal does not match; it is not part of this file".into());
        }
        if chunk.header.codec == CODEC_PLAIN {
            return Ok(stored);
        }
        match zstd::bulk::decompress(&stored, chunk.header.raw_len as usize) {
            Ok(raw) if raw.len() == chunk.header.raw_len as usize => Ok(raw),
            Ok(raw) => damaged(format!("{} bytes came out, {} expected", raw.len(), chunk.header.raw_len)),
            Err(e) => damaged(format!("the contents do not decompress ({e})")),
        }
    }

    /// Reads a part of a chunk's stored bytes without checking it; the caller has its own check.
    pub(crate) fn read_part(&self, number: usize, from: u64, buf: &mut [u8]) -> Result<bool, Error> {
        let chunk = &self.chunks[number];
        if from + buf.len() as u64 > u64::from(chunk.header.stored_len) {
            return Ok(false);
        }
        self.source.read_at(chunk.body() + from, buf)?;
        Ok(true)
    }
}

/// Whether a checksum is what it should be. A fuzzer cannot guess one, and what lies behind has to
/// stand arbitrary bytes as well: a hostile recording has good checksums.
pub(crate) fn checks<T: PartialEq>(found: T, expected: T) -> bool {
    cfg!(fuzzing) || found == expected
}

fn seal_of(key: &[u8; 32], header: &[u8], stored: &[u8]) -> Digest {
    Digest::from_hash(&blake3::Hasher::new_keyed(key).update(header).update(stored).finalize())
}

/// A log being written, always at a chunk's boundary.
pub(crate) struct ChunkAppender {
    file: File,
    path: PathBuf,
    key: [u8; 32],
    sequence: u64,
    seal: Digest,
    end: u64,
    /// Up to where the host has been asked to write it to its disk.
    sent: u64,
}

impl ChunkAppender {
    /// Makes a new file; fails if it exists.
    pub(crate) fn create(path: &Path, head: Head) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.write_all_at(&head.encode(), 0)?;
        let (key, seal) = head.chain();
        Ok(Self { file, path: path.to_owned(), key, sequence: 0, seal, end: HEAD_LEN, sent: 0 })
    }

    /// Goes on after the last whole chunk of an existing file, cutting off a torn one.
    pub(crate) fn resume(path: &Path, found: &ChunkedFile) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        if found.torn {
            file.write_all_at(&found.head.encode(), 0)?;
            file.set_len(found.end)?;
        }
        Ok(Self {
            file,
            path: path.to_owned(),
            key: found.key,
            sequence: found.chunks.len() as u64,
            seal: found.seal,
            end: found.end,
            sent: found.end,
        })
    }

    /// Appends one chunk, compressed when `compress` is set and that makes it smaller. On failure
    /// the file is cut back to its last whole chunk.
    pub(crate) fn append(
        &mut self,
        first: Position,
        last: Position,
        raw: &[u8],
        compress: bool,
    ) -> io::Result<Chunk> {
        assert!(raw.len() <= CHUNK_BYTES_MAX as usize && first <= last);
        let squeezed = if compress { Some(zstd::bulk::compress(raw, COMPRESSION_LEVEL)?) } else { None };
        let squeezed = squeezed.filter(|s| s.len() < raw.len());
        let stored = squeezed.as_deref().unwrap_or(raw);
        let header = Header {
            codec: if squeezed.is_some() { CODEC_ZSTD } else { CODEC_PLAIN },
            sequence: self.sequence,
            first,
            last,
            raw_len: raw.len() as u32,
            stored_len: stored.len() as u32,
            previous: self.seal,
            stored_crc: crc32fast::hash(stored),
        };
        let encoded = header.encode();
        let seal = seal_of(&self.key, &encoded, stored);
        let mut out = Vec::with_capacity(encoded.len() + stored.len() + seal.0.len());
        out.extend_from_slice(&encoded);
        out.extend_from_slice(stored);
        out.extend_from_slice(&seal.0);
        if let Err(e) = self.file.write_all_at(&out, self.end) {
            // If cutting back fails too, the reader still recognises the torn chunk.
            let _ = self.file.set_len(self.end);
            return Err(e);
        }
        let chunk = Chunk { offset: self.end, header, seal };
        self.end += out.len() as u64;
        self.sequence += 1;
        self.seal = seal;
        Ok(chunk)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    /// The file has another name now.
    pub(crate) fn renamed(&mut self, path: PathBuf) {
        self.path = path;
    }
    pub(crate) fn end(&self) -> u64 {
        self.end
    }
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }
    pub(crate) fn seal(&self) -> Digest {
        self.seal
    }
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    /// Has the host begin to write what there is to its disk, without waiting: then [`Self::sync`] finds
    /// little left to do. Whether it does makes no difference otherwise.
    pub(crate) fn begin_sync(&mut self) {
        folder::begin_sync(&self.file, self.sent..self.end);
        self.sent = self.end;
    }
}
