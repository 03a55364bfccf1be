//! Parts of segments in memory.
//!
//! Who starts as the run before did, asks for entries in about the order that they were added in: what is
//! read of a file serves for those that follow.

use crate::segment::{self, ENTRY_HEAD, ENTRY_MAX};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes that are read together.
const WINDOW: u64 = 16 << 10;
/// How many such parts are in memory.
const WINDOWS: usize = 32;

pub struct Windows {
    windows: Vec<Vec<u8>>,
    /// What is in them: see [`tag`].
    tags: [u64; WINDOWS],
    /// The one that is read over next.
    next: usize,
    /// An entry that is not in one of them.
    entry: Vec<u8>,
}

impl Windows {
    pub fn new() -> Self {
        Self { windows: vec![Vec::new(); WINDOWS], tags: [0; WINDOWS], next: 0, entry: Vec::new() }
    }

    /// The bytes of the entry at a place of the file of segment `number`, if they are whole and of that hash.
    pub fn read(&mut self, number: usize, file: &File, at: u64, hash: u64) -> Option<&[u8]> {
        let offset = (at % WINDOW) as usize;
        let window = self.window(number, file, at / WINDOW)?;
        let bytes = self.windows[window].get(offset..)?;
        let head = bytes.first_chunk::<ENTRY_HEAD>()?;
        let end = ENTRY_HEAD + segment::u32_at(head, 0) as usize;
        if end > ENTRY_MAX {
            return None;
        }
        if end <= bytes.len() {
            return segment::whole(&self.windows[window][offset..offset + end], hash);
        }
        self.entry.clear();
        self.entry.extend(bytes);
        let mut part = at / WINDOW;
        while self.entry.len() < end {
            part += 1;
            let window = self.window(number, file, part)?;
            let more = &self.windows[window];
            if more.is_empty() {
                return None;
            }
            self.entry.extend(&more[..more.len().min(end - self.entry.len())]);
        }
        segment::whole(&self.entry, hash)
    }

    /// Forgets what has been read of a segment from a place on: it has grown there.
    pub fn forget(&mut self, number: usize, from: u64) {
        let grown = tag(number, from / WINDOW)..tag(number + 1, 0);
        self.tags.iter_mut().filter(|tag| grown.contains(tag)).for_each(|tag| *tag = 0);
    }

    /// The window of part `part` of a segment.
    fn window(&mut self, number: usize, file: &File, part: u64) -> Option<usize> {
        let tag = tag(number, part);
        if let Some(known) = self.tags.iter().position(|known| *known == tag) {
            return Some(known);
        }
        self.next = (self.next + 1) % WINDOWS;
        let bytes = &mut self.windows[self.next];
        self.tags[self.next] = 0;
        bytes.resize(WINDOW as usize, 0);
        let mut got = 0;
        loop {
            match file.read_at(&mut bytes[got..], part * WINDOW + got as u64).ok()? {
                0 => break,
                more => got += more,
            }
        }
        bytes.truncate(got);
        self.tags[self.next] = tag;
        Some(self.next)
    }
}

/// Of part `part` of segment `number`; not 0.
fn tag(number: usize, part: u64) -> u64 {
    (number as u64 + 1) << 48 | part
}
