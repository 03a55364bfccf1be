//! Translated code that is kept from run to run: the *persistent code cache* on disk.
//!
//! Most of what a guest executes while it starts has been translated before: by the run before this one, of the same
//! kernel and the same programs. Here are the results, as entries of bytes that are found by a hash. What an entry
//! means, and whether it fits, its owner says (the `cpu` crate); what it is worth is time only: without it
//! everything is translated as if for the first time, and nothing the guest can see differs.
//!
//! **What it may know:** files of entries, and hashes. **What it must never do:** know what an entry means, change a
//! file that others may read, fail somebody who could do without it, or read a folder that others may write to.
//!
//! ```text
//!   FOLDER/FINGERPRINT-….code     segments: complete files of many entries each, never changed
//!   (a nameless file)             what this run has added, which becomes one more when it ends
//! ```
//!
//! A *fingerprint* stands for all that entries rely on without saying so, such as the translator itself. A segment of
//! another one is never read. Several processes may use a folder at a time: a segment appears under its name
//! when it is complete, and who has opened one that is removed goes on reading it. A process that is killed leaves
//! nothing behind.
//!
//! A new segment takes in others that are not larger than itself, so that there are few of them. When all
//! together are [too large](FOLDER_MAX), those that have not served for the longest time go.
//!
//! Every entry has a checksum. Files that cannot be read or written are done without.

mod added;
mod segment;
#[cfg(test)]
mod tests;
mod windows;

use added::Added;
use hashbrown::HashTable;
use segment::{Entry, Segment};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use windows::Windows;

/// Bytes of all segments in a folder, about: some distributions' boots and programs, at 100 MB each.
pub const FOLDER_MAX: u64 = 384 << 20;
/// Bytes that one run adds at most: guests that write code themselves have ever new one. What a boot to a login
/// and some programs translate has to fit, or only every third run finds what the first has translated.
pub const ADDED_MAX: u64 = 160 << 20;
/// Entries that are worth a segment.
const WORTH: usize = 100;
/// Entries of one hash: more are not kept. What never fits does not come to be looked through again and again.
const SAME_MAX: usize = 12;
/// Segments that are read: a number of them fits in [`Found`].
const SEGMENTS_MAX: usize = 62;
/// The number of what has been added, among segments.
const ADDED: usize = 63;

/// Where an entry is: the upper bits of its hash, its segment's number, and its place in units of
/// [`segment::ALIGN`] bytes.
#[derive(Clone, Copy)]
struct Found {
    hash: u32,
    place: u32,
}

const PLACE_BITS: u32 = 26;

impl Found {
    fn segment(self) -> usize {
        (self.place >> PLACE_BITS) as usize
    }

    fn at(self) -> u64 {
        u64::from(self.place & ((1 << PLACE_BITS) - 1)) * segment::ALIGN
    }

    /// The table needs no more than the upper bits: they are spread over all.
    fn spread(&self) -> u64 {
        spread(self.hash)
    }
}

fn spread(hash: u32) -> u64 {
    u64::from(hash).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Where all entries are.
struct Index(HashTable<Found>);

impl Index {
    /// Notes an entry, unless it is too far behind its segment's beginning.
    fn add(&mut self, segment: usize, Entry { hash, at }: Entry) {
        let units = u32::try_from(at / segment::ALIGN).ok().filter(|units| units >> PLACE_BITS == 0);
        if let Some(units) = units {
            let found = Found { hash: (hash >> 32) as u32, place: (segment as u32) << PLACE_BITS | units };
            self.0.insert_unique(found.spread(), found, Found::spread);
        }
    }

    /// Entries that may be of a hash.
    fn of(&self, hash: u64) -> impl Iterator<Item = Found> {
        let upper = (hash >> 32) as u32;
        self.0.iter_hash(spread(upper)).copied().filter(move |found| found.hash == upper)
    }
}

/// Makes a folder to keep translations in, if it is not there yet.
///
/// # Errors
/// It cannot be made, or somebody else may write to it: what is in it is executed.
pub fn prepare(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let about = std::fs::metadata(folder)?;
    let own = about.uid() == rustix::process::geteuid().as_raw() && about.mode() & 0o022 == 0;
    match about.is_dir() && own {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it has to be a folder that is yours and that nobody else may write to",
        )),
    }
}

/// See the module's head. Adding ends, and becomes a segment, when it is dropped.
pub struct Translations {
    folder: PathBuf,
    fingerprint: u64,
    /// The largest first.
    segments: Vec<Segment>,
    added: Option<Added>,
    index: Index,
    windows: Windows,
}

impl Translations {
    /// What the folder, which is made if need be, has for a fingerprint.
    ///
    /// # Errors
    /// As of [`prepare`]; or the folder cannot be read.
    pub fn open(folder: &Path, fingerprint: u64) -> io::Result<Self> {
        prepare(folder)?;
        let mut found = segment::all(folder, fingerprint)?;
        found.truncate(SEGMENTS_MAX);
        let mut index = Index(HashTable::with_capacity(found.iter().map(|(_, entries)| entries.len()).sum()));
        let mut segments = Vec::with_capacity(found.len());
        for (segment, entries) in found {
            entries.into_iter().for_each(|entry| index.add(segments.len(), entry));
            segments.push(segment);
        }
        let added = Added::new(folder).ok();
        Ok(Self { folder: folder.into(), fingerprint, segments, added, index, windows: Windows::new() })
    }

    /// What `fit` makes of the first entry of that hash that it makes something of.
    pub fn find<T>(&mut self, hash: u64, mut fit: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        let Self { segments, added, index, windows, .. } = self;
        for found in index.of(hash) {
            let file = match found.segment() {
                ADDED => added.as_mut().and_then(|added| added.file_with(found.at(), windows)),
                number => Some(segments[number].file()),
            };
            let entry = file.and_then(|file| windows.read(found.segment(), file, found.at(), hash));
            if let Some(made) = entry.and_then(&mut fit) {
                if let Some(segment) = segments.get_mut(found.segment()) {
                    segment.has_served = true;
                }
                return Some(made);
            }
        }
        None
    }

    /// Keeps an entry, for this run and later ones, if there is room.
    pub fn add(&mut self, hash: u64, entry: &[u8]) {
        let Some(added) = &mut self.added else { return };
        if added.bytes() > ADDED_MAX || self.index.of(hash).count() >= SAME_MAX {
            return;
        }
        match added.add(hash, entry) {
            Ok(at) => self.index.add(ADDED, Entry { hash, at }),
            Err(_) => self.added = None,
        }
    }

    /// Makes a segment of what has been added, if it is worth one.
    fn finish(&mut self) -> io::Result<()> {
        for segment in self.segments.iter().filter(|segment| segment.has_served) {
            segment.set_served(SystemTime::now());
        }
        let Some(added) = self.added.take().filter(|added| added.entries() >= WORTH) else { return Ok(()) };
        let mut taken_in = Vec::new();
        let mut bytes = added.bytes();
        while let Some(segment) = self.segments.pop_if(|segment| segment.bytes() <= bytes) {
            bytes += segment.bytes();
            taken_in.push(segment);
        }
        added.publish(&self.folder, self.fingerprint, &taken_in)?;
        taken_in.iter().for_each(Segment::remove);
        segment::make_room(&self.folder, FOLDER_MAX)
    }
}

impl Drop for Translations {
    fn drop(&mut self) {
        // What cannot be kept is translated again.
        let _ = self.finish();
    }
}
