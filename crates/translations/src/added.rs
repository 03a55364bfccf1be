//! What a run adds, in a nameless file that goes with it unless it becomes a segment.

use crate::ADDED;
use crate::segment::{self, ALIGN, ENTRY_HEAD, ENTRY_MAX, Entry, HEAD, Segment, UNFINISHED};
use crate::windows::Windows;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes that are written together.
const TOGETHER: usize = 64 << 10;

pub struct Added {
    file: File,
    /// What has not been written yet, and where it will be.
    pending: Vec<u8>,
    written: u64,
    index: Vec<Entry>,
    /// From where on it has grown since `windows` were told.
    grown_from: Option<u64>,
}

impl Added {
    /// Nothing yet; the file is on the folder's file system.
    pub fn new(folder: &Path) -> io::Result<Self> {
        let file = tempfile::tempfile_in(folder)?;
        Ok(Self { file, pending: Vec::new(), written: HEAD as u64, index: Vec::new(), grown_from: None })
    }

    /// Bytes of all entries.
    pub fn bytes(&self) -> u64 {
        self.written + self.pending.len() as u64 - HEAD as u64
    }

    pub fn entries(&self) -> usize {
        self.index.len()
    }

    /// Adds one; returns its place.
    pub fn add(&mut self, hash: u64, bytes: &[u8]) -> io::Result<u64> {
        if ENTRY_HEAD + bytes.len() > ENTRY_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = self.written + self.pending.len() as u64;
        self.pending.extend((bytes.len() as u32).to_le_bytes());
        self.pending.extend(crc32fast::hash(bytes).to_le_bytes());
        self.pending.extend(hash.to_le_bytes());
        self.pending.extend(bytes);
        self.pending.resize(self.pending.len().next_multiple_of(ALIGN as usize), 0);
        self.index.push(Entry { hash, at });
        if self.pending.len() >= TOGETHER {
            self.write()?;
        }
        Ok(at)
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.written)?;
        self.grown_from.get_or_insert(self.written);
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// The file, in which the entry at a place is now; `windows` have nothing older of it.
    pub fn file_with(&mut self, at: u64, windows: &mut Windows) -> Option<&File> {
        if at >= self.written {
            self.write().ok()?;
        }
        if let Some(from) = self.grown_from.take() {
            windows.forget(ADDED, from);
        }
        Some(&self.file)
    }

    /// Makes a segment of it and of what others have.
    pub fn publish(mut self, folder: &Path, fingerprint: u64, others: &[Segment]) -> io::Result<()> {
        self.write()?;
        let part = tempfile::Builder::new().suffix(UNFINISHED).tempfile_in(folder)?;
        let (file, mut end, mut index) = (part.as_file(), HEAD as u64, Vec::new());
        let bytes = self.bytes();
        let others = others.iter().map(|other| (other.file(), other.bytes(), other.entries()));
        for (from, bytes, entries) in others.chain([(&self.file, bytes, Some(self.index))]) {
            let Some(entries) = entries else { continue };
            copy(from, bytes, file, end)?;
            index
                .extend(entries.into_iter().map(|entry| Entry { at: entry.at - HEAD as u64 + end, ..entry }));
            end += bytes;
        }
        segment::complete(file, fingerprint, end, &index)?;
        part.persist(folder.join(segment::name(fingerprint))).map_err(|error| error.error)?;
        Ok(())
    }
}

/// Copies so many bytes behind a file's head.
fn copy(from: &File, bytes: u64, to: &File, to_at: u64) -> io::Result<()> {
    let mut buffer = vec![0; TOGETHER];
    let mut done = 0;
    while done < bytes {
        let part = &mut buffer[..TOGETHER.min((bytes - done) as usize)];
        from.read_exact_at(part, HEAD as u64 + done)?;
        to.write_all_at(part, to_at + done)?;
        done += part.len() as u64;
    }
    Ok(())
}
