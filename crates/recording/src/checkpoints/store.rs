//! The page store: every distinct page once.
//!
//! A page is named by the first 16 bytes of its BLAKE3 hash, so equal pages are stored once and a
//! page that was damaged on disk is found out whenever it is read. The page of zeros is number 0
//! and takes no space. Pages are compressed one by one, because seeking reads them one by one, and
//! by LZ4: compressing them is most of what a checkpoint costs, zstd needs four times as long for a
//! page at its lowest level, mostly for tables, and to get a page back takes it as much longer.
//!
//! ```text
//! chunk contents = count:u32 (id[16] number:u32 stored:u16)* crc32:u32 page*
//! ```
//!
//! `stored` is 4096 for a page kept as it is. Checkpoints refer to pages by *number*: numbers
//! ascend through the file, from 1, and a page keeps its number when the store is rewritten without
//! the pages that nobody needs any more.

use super::map::PageNumber;
use crate::chunk::{ChunkAppender, ChunkedFile, LogKind};
use crate::id::{Digest, RecordingId};
use crate::{Error, Source};
use base::Position;
use std::collections::HashMap;
use std::io;

/// Bytes of a page; of guest memory and of disks alike.
pub const PAGE_BYTES: usize = 4096;
/// A page's contents.
pub type Page = [u8; PAGE_BYTES];
/// The number of the page of zeros.
pub(crate) const ZERO: PageNumber = 0;

/// How many pages make a chunk.
pub(crate) const PAGES_PER_CHUNK: usize = 64;
const ENTRY_LEN: usize = 22;
/// Numbers stay below this.
const PAGES_MAX: u32 = u32::MAX - 1;

/// A page ready to be stored.
pub(crate) struct Squeezed {
    id: Digest,
    number: PageNumber,
    bytes: Vec<u8>,
}

impl Squeezed {
    /// Compresses a page whose id is known, to be stored under `number`.
    pub(crate) fn new(id: Digest, number: PageNumber, page: &Page) -> Self {
        let mut squeezed = [0; lz4_flex::block::get_maximum_output_size(PAGE_BYTES)];
        let bytes = match lz4_flex::block::compress_into(page, &mut squeezed) {
            Ok(n) if n < PAGE_BYTES => &squeezed[..n],
            _ => &page[..],
        };
        Self { id, number, bytes: bytes.to_vec() }
    }
}

#[derive(Clone, Copy)]
struct Place {
    id: Digest,
    offset: u64,
    stored: u16,
}

/// The pages of one file.
pub(crate) struct Store {
    source: Source,
    /// Looked up only, never iterated; likewise `numbers`.
    places: HashMap<PageNumber, Place>,
    numbers: HashMap<Digest, PageNumber>,
    /// The highest number given.
    last: PageNumber,
    /// Chunks and seal, for checkpoints to refer to.
    pub(crate) chunks: u64,
    pub(crate) seal: Digest,
    pub(crate) bytes: u64,
}

impl Store {
    /// Reads the directories of all whole chunks. Returns the walked file too, to append to it.
    pub(crate) fn open(
        source: Source,
        id: RecordingId,
        generation: u32,
    ) -> Result<(Self, ChunkedFile), Error> {
        let file = ChunkedFile::open(source.clone(), LogKind::Pages, id)?;
        if file.head.generation != generation && !file.torn {
            let why = "its generation is not the one the checkpoints name";
            return Err(Error::damaged(source.path(), 12, None, why));
        }
        let mut store = Self {
            source,
            places: HashMap::new(),
            numbers: HashMap::new(),
            last: ZERO,
            chunks: file.chunks.len() as u64,
            seal: file.seal,
            bytes: file.end,
        };
        for number in 0..file.chunks.len() {
            store.read_directory(&file, number)?;
        }
        Ok((store, file))
    }

    /// An empty store over a file just made.
    pub(crate) fn empty(source: Source, log: &ChunkAppender) -> Self {
        let (chunks, seal, bytes) = (log.sequence(), log.seal(), log.end());
        Self { source, places: HashMap::new(), numbers: HashMap::new(), last: ZERO, chunks, seal, bytes }
    }

    fn read_directory(&mut self, file: &ChunkedFile, number: usize) -> Result<(), Error> {
        let chunk = &file.chunks[number];
        let damaged = |why: &str| {
            Err(Error::damaged(file.source.path(), chunk.offset, Some(chunk.header.sequence), why))
        };
        let mut count = [0; 4];
        if !file.read_part(number, 0, &mut count)? {
            return damaged("the chunk is too short for a page directory");
        }
        let count = u32::from_le_bytes(count) as usize;
        if count == 0 || count > PAGES_PER_CHUNK {
            return damaged("the chunk claims an impossible number of pages");
        }
        let mut directory = vec![0; 4 + count * ENTRY_LEN + 4];
        if !file.read_part(number, 0, &mut directory)? {
            return damaged("the chunk is too short for its page directory");
        }
        let (entries, crc) = directory.split_at(4 + count * ENTRY_LEN);
        if crc32fast::hash(entries).to_le_bytes() != *crc {
            return damaged("the checksum of the page directory does not match");
        }
        let mut offset = chunk.body() + directory.len() as u64;
        for entry in entries[4..].chunks_exact(ENTRY_LEN) {
            let id = Digest(entry[..16].try_into().expect("16 bytes"));
            let number = PageNumber::from_le_bytes(entry[16..20].try_into().expect("4 bytes"));
            let stored = u16::from_le_bytes(entry[20..].try_into().expect("2 bytes"));
            if usize::from(stored) > PAGE_BYTES {
                return damaged("a page claims to be larger than a page");
            }
            if number <= self.last || number > PAGES_MAX {
                return damaged("the pages' numbers do not ascend");
            }
            self.learn(number, Place { id, offset, stored });
            offset += u64::from(stored);
        }
        if offset != chunk.body() + u64::from(chunk.header.stored_len) {
            return damaged("the page directory does not describe the chunk");
        }
        Ok(())
    }

    fn learn(&mut self, number: PageNumber, place: Place) {
        self.last = number;
        self.places.insert(number, place);
        self.numbers.entry(place.id).or_insert(number);
    }

    /// The number of a page that is stored already.
    pub(crate) fn find(&self, id: Digest) -> Option<PageNumber> {
        self.numbers.get(&id).copied()
    }
    /// Whether there is a page of that number.
    pub(crate) fn has(&self, number: PageNumber) -> bool {
        number == ZERO || self.places.contains_key(&number)
    }
    /// What a page takes on disk, in bytes.
    pub(crate) fn cost(&self, number: PageNumber) -> u64 {
        self.places.get(&number).map_or(0, |place| u64::from(place.stored) + ENTRY_LEN as u64)
    }

    /// The number that the next page gets.
    pub(crate) fn next_number(&self) -> PageNumber {
        self.last + 1
    }

    /// Appends pages that are not there yet. Their numbers ascend from [`Store::next_number`] or higher.
    pub(crate) fn append(
        &mut self,
        log: &mut ChunkAppender,
        at: Position,
        pages: &[Squeezed],
    ) -> io::Result<()> {
        for group in pages.chunks(PAGES_PER_CHUNK) {
            if self.last > PAGES_MAX - PAGES_PER_CHUNK as u32 {
                return Err(io::Error::other("the page store is full"));
            }
            let mut raw = (group.len() as u32).to_le_bytes().to_vec();
            let mut highest = self.last;
            for page in group {
                assert!(page.number > highest);
                highest = page.number;
                raw.extend_from_slice(&page.id.0);
                raw.extend_from_slice(&page.number.to_le_bytes());
                raw.extend_from_slice(&(page.bytes.len() as u16).to_le_bytes());
            }
            raw.extend_from_slice(&crc32fast::hash(&raw).to_le_bytes());
            let directory_len = raw.len() as u64;
            group.iter().for_each(|page| raw.extend_from_slice(&page.bytes));
            let chunk = log.append(at, at, &raw, false)?;
            let mut offset = chunk.body() + directory_len;
            for page in group {
                self.learn(page.number, Place { id: page.id, offset, stored: page.bytes.len() as u16 });
                offset += page.bytes.len() as u64;
            }
        }
        (self.chunks, self.seal, self.bytes) = (log.sequence(), log.seal(), log.end());
        Ok(())
    }

    /// Reads a page, checking that it is the one it should be.
    pub(crate) fn read(&self, number: PageNumber, page: &mut Page) -> Result<(), Error> {
        if number == ZERO {
            page.fill(0);
            return Ok(());
        }
        let Some(&place) = self.places.get(&number) else {
            return Err(Error::damaged(self.source.path(), self.bytes, None, "a page is missing at the end"));
        };
        let mut stored = [0; PAGE_BYTES];
        let stored = &mut stored[..usize::from(place.stored)];
        self.source.read_at(place.offset, stored)?;
        let whole = if stored.len() == PAGE_BYTES {
            page.copy_from_slice(stored);
            true
        } else {
            lz4_flex::block::decompress_into(stored, page).is_ok_and(|n| n == PAGE_BYTES)
        };
        if !whole || Digest::of(page) != place.id {
            let why = "a page does not have the contents it is named after";
            return Err(Error::damaged(self.source.path(), place.offset, None, why));
        }
        Ok(())
    }

    /// A stored page as it lies in the file, for copying into another store.
    pub(crate) fn raw(&self, number: PageNumber) -> Result<Squeezed, Error> {
        let Some(place) = self.places.get(&number) else {
            return Err(Error::damaged(self.source.path(), self.bytes, None, "a page is missing at the end"));
        };
        let mut bytes = vec![0; usize::from(place.stored)];
        self.source.read_at(place.offset, &mut bytes)?;
        Ok(Squeezed { id: place.id, number, bytes })
    }
}
