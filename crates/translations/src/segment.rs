//! A segment: a complete file of entries.
//!
//! ```text
//!   magic (8)  fingerprint (8)  where the index begins (8)  its checksum (4)  zero (4)
//!   entries, each at a multiple of 16: length (4)  checksum (4)  hash (8)  bytes
//!   index: hash (8)  place (8), of each
//! ```
//!
//! All numbers are little-endian, places are from the file's beginning, and checksums CRC-32.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Entries begin at multiples of this.
pub const ALIGN: u64 = 16;
pub const HEAD: usize = 32;
const MAGIC: [u8; 8] = *b"HSCODE\x01\n";
const SUFFIX: &str = ".code";
/// Ends the name of what is to become a segment.
pub const UNFINISHED: &str = ".part";
/// Nobody writes a segment for so long.
const ABANDONED: Duration = Duration::from_secs(3600);
/// What stands before an entry's bytes.
pub const ENTRY_HEAD: usize = 16;
const INDEX_BYTES: usize = 16;
/// Lines of an index that are read and written together.
const LINES: usize = 4096;
/// The longest entry, with what stands before it.
pub const ENTRY_MAX: usize = 1 << 20;

/// A line of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub hash: u64,
    pub at: u64,
}

/// An open segment.
pub struct Segment {
    path: PathBuf,
    file: File,
    index_at: u64,
    index_checksum: u32,
    /// An entry of it has been used.
    pub has_served: bool,
}

impl Segment {
    /// With its index, which it does not keep in memory; `None` if it is for another fingerprint, or damaged.
    fn open(path: PathBuf, fingerprint: u64) -> Option<(Self, Vec<Entry>)> {
        let file = File::open(&path).ok()?;
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).ok()?;
        let (index_at, index_checksum) = (u64_at(&head, 16), u32_at(&head, 24));
        if head[..8] != MAGIC || u64_at(&head, 8) != fingerprint || index_at < HEAD as u64 {
            return None;
        }
        let segment = Self { path, file, index_at, index_checksum, has_served: false };
        let entries = segment.entries()?;
        Some((segment, entries))
    }

    /// The index.
    pub fn entries(&self) -> Option<Vec<Entry>> {
        let len = self.file.metadata().ok()?.len().checked_sub(self.index_at)?;
        let mut entries = Vec::with_capacity(usize::try_from(len).ok()? / INDEX_BYTES);
        let mut checksum = crc32fast::Hasher::new();
        let mut part = vec![0; LINES * INDEX_BYTES];
        let mut done = 0;
        while done < len {
            let part = &mut part[..((len - done) as usize).min(LINES * INDEX_BYTES)];
            self.file.read_exact_at(part, self.index_at + done).ok()?;
            checksum.update(part);
            let lines = part.chunks_exact(INDEX_BYTES);
            entries.extend(lines.map(|line| Entry { hash: u64_at(line, 0), at: u64_at(line, 8) }));
            done += part.len() as u64;
        }
        (checksum.finalize() == self.index_checksum).then_some(entries)
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.index_at - HEAD as u64
    }

    /// Notes when it served last.
    pub fn set_served(&self, at: SystemTime) {
        // A folder that cannot be written to is used as it is.
        let _ = self.file.set_modified(at);
    }

    /// Removes the file; who has it open goes on reading it.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The bytes of an entry, given with what stands before them, if they are whole and of that hash.
pub fn whole(entry: &[u8], hash: u64) -> Option<&[u8]> {
    let (head, bytes) = entry.split_at(ENTRY_HEAD);
    let same = u64_at(head, 8) == hash && u32_at(head, 0) as usize == bytes.len();
    (same && crc32fast::hash(bytes) == u32_at(head, 4)).then_some(bytes)
}

/// Writes a segment's head and index around the entries, which have been or will be written.
pub fn complete(file: &File, fingerprint: u64, index_at: u64, index: &[Entry]) -> io::Result<()> {
    let mut checksum = crc32fast::Hasher::new();
    let mut end = index_at;
    for part in index.chunks(LINES) {
        let lines = part.iter().flat_map(|entry| [entry.hash.to_le_bytes(), entry.at.to_le_bytes()]);
        let lines: Vec<u8> = lines.flatten().collect();
        file.write_all_at(&lines, end)?;
        checksum.update(&lines);
        end += lines.len() as u64;
    }
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&MAGIC);
    head[8..16].copy_from_slice(&fingerprint.to_le_bytes());
    head[16..24].copy_from_slice(&index_at.to_le_bytes());
    head[24..28].copy_from_slice(&checksum.finalize().to_le_bytes());
    file.write_all_at(&head, 0)
}

/// Name of a new segment.
pub fn name(fingerprint: u64) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{fingerprint:016x}-{:x}-{:x}{SUFFIX}", now.as_nanos(), std::process::id())
}

/// The segments of a folder for a fingerprint with their indices, the largest first.
pub fn all(folder: &Path, fingerprint: u64) -> io::Result<Vec<(Segment, Vec<Entry>)>> {
    let prefix = format!("{fingerprint:016x}-");
    let ours = files(folder)?.into_iter().filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&prefix) && has_suffix(path, SUFFIX)
    });
    let mut segments: Vec<_> = ours.filter_map(|path| Segment::open(path, fingerprint)).collect();
    segments.sort_by_key(|(segment, _)| std::cmp::Reverse(segment.bytes()));
    Ok(segments)
}

/// Segments, and such that are being written.
fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(paths.filter(|path| has_suffix(path, SUFFIX) || has_suffix(path, UNFINISHED)).collect())
}

fn has_suffix(path: &Path, suffix: &str) -> bool {
    path.to_string_lossy().ends_with(suffix)
}

/// Removes what a process that was killed has left, and the segments, of whichever fingerprint, that have not served for the longest time, until the others
/// have no more than `most` bytes.
pub fn make_room(folder: &Path, most: u64) -> io::Result<()> {
    let with_age = |path: PathBuf| {
        let about = fs::metadata(&path).ok()?;
        Some((about.modified().ok()?, about.len(), path))
    };
    let (mut files, unfinished): (Vec<_>, Vec<_>) =
        files(folder)?.into_iter().filter_map(with_age).partition(|(_, _, path)| has_suffix(path, SUFFIX));
    for (modified, _, path) in unfinished {
        if modified.elapsed().is_ok_and(|age| age > ABANDONED) {
            fs::remove_file(path)?;
        }
    }
    files.sort_unstable();
    let mut bytes: u64 = files.iter().map(|(_, len, _)| len).sum();
    for (_, len, path) in files {
        if bytes <= most {
            break;
        }
        fs::remove_file(path)?;
        bytes -= len;
    }
    Ok(())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
