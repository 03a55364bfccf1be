//! One self-contained file: a recording with everything that replay needs.
//!
//! ```text
//! pack      = "HSPACK\0\0" block* directory trailer
//! directory = zstd(postcard(members)): name, size, and per 128 KiB block a hole, or where the
//!             block's bytes are, how they are stored and their digest
//! trailer   = directory offset:u64 stored:u64 raw:u64 digest[16] format:u32 crc32:u32 "HSPACKED"
//! ```
//!
//! Blocks are checked when they are read, so that a pack is replayed in place: any byte of any
//! member costs reading one block. All-zero blocks are holes, which keeps sparse disk images small.

use crate::chunk::checks;
use crate::id::{ContentHash, Digest};
use crate::{Error, FORMAT, ImageRef, Manifest, ReadAt, Recording, Source, folder};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

const MAGIC: [u8; 8] = *b"HSPACK\0\0";
const END_MAGIC: [u8; 8] = *b"HSPACKED";
const TRAILER_LEN: u64 = 56;
const BLOCK: usize = 128 << 10;
const DIRECTORY_BYTES_MAX: u64 = 64 << 20;
const MEMBERS_MAX: usize = 4096;
const CACHED_BLOCKS_MAX: usize = 16;
const LEVEL: i32 = 6;
/// The grain at which disk images are cut down to what the run touched, in bytes.
pub const TOUCHED_BLOCK: u64 = 4096;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    name: String,
    size: u64,
    blocks: Vec<Block>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Block {
    Hole,
    Plain { offset: u64, digest: [u8; 16] },
    Squeezed { offset: u64, stored: u32, digest: [u8; 16] },
}

impl Entry {
    fn block_len(&self, number: usize) -> usize {
        (self.size - number as u64 * BLOCK as u64).min(BLOCK as u64) as usize
    }
}

/// A packed recording opened for reading.
pub(crate) struct Pack {
    path: PathBuf,
    members: BTreeMap<String, Arc<Member>>,
}

impl Pack {
    pub(crate) fn open(file: Source) -> Result<Self, Error> {
        let path = file.path().to_owned();
        let foreign = |why: &str| Err(Error::NotARecording { path: path.clone(), why: why.into() });
        if file.size() < MAGIC.len() as u64 {
            return foreign("it is too short");
        }
        let mut magic = [0; 8];
        file.read_at(0, &mut magic)?;
        if magic != MAGIC {
            return foreign("it is not a packed recording");
        }
        let end = file.size() - TRAILER_LEN.min(file.size());
        let damaged = |offset, why: &str| Err(Error::damaged(&path, offset, None, why));
        if end < MAGIC.len() as u64 {
            return damaged(end, "the pack is cut off");
        }
        let mut trailer = [0; TRAILER_LEN as usize];
        file.read_at(end, &mut trailer)?;
        let word = |at: usize| u64::from_le_bytes(trailer[at..at + 8].try_into().expect("8 bytes"));
        let half = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("4 bytes"));
        if trailer[48..] != END_MAGIC {
            return damaged(end, "the pack's end is missing; the file was cut off");
        }
        if !checks(half(44), crc32fast::hash(&trailer[..44])) {
            return damaged(end, "the checksum of the pack's end does not match");
        }
        if half(40) != FORMAT {
            return Err(Error::OtherFormat { path, found: u64::from(half(40)), known: FORMAT });
        }
        let (offset, stored, raw) = (word(0), word(8), word(16));
        if raw > DIRECTORY_BYTES_MAX || stored > raw + 1024 || offset.checked_add(stored) != Some(end) {
            return damaged(end, "the directory's place makes no sense");
        }
        let mut bytes = vec![0; stored as usize];
        file.read_at(offset, &mut bytes)?;
        if Digest::of(&bytes).0 != trailer[24..40] {
            return damaged(offset, "the checksum of the directory does not match");
        }
        let entries = zstd::bulk::decompress(&bytes, raw as usize)
            .ok()
            .and_then(|bytes| postcard::from_bytes::<Vec<Entry>>(&bytes).ok());
        let Some(entries) = entries else {
            return damaged(offset, "the directory does not decode");
        };
        match check_directory(&entries, offset) {
            Err(why) => damaged(offset, why),
            Ok(()) => {
                let member = |entry: Entry| (entry.name.clone(), Arc::new(Member::new(&file, entry)));
                Ok(Self { members: entries.into_iter().map(member).collect(), path })
            }
        }
    }

    /// Reads every block of every member.
    pub(crate) fn read_everything(&self) -> Result<(), Error> {
        for member in self.members.values() {
            let stored = |n: &usize| !matches!(member.entry.blocks[*n], Block::Hole);
            (0..member.entry.blocks.len()).filter(stored).try_for_each(|n| member.load(n).map(|_| ()))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    pub(crate) fn member(&self, name: &str) -> Option<Source> {
        self.members.get(name).map(|member| member.clone() as Source)
    }
}

fn check_directory(entries: &[Entry], blocks_end: u64) -> Result<(), &'static str> {
    let mut names = BTreeSet::new();
    if entries.len() > MEMBERS_MAX {
        return Err("the directory has too many members");
    }
    for entry in entries {
        if !is_member_name(&entry.name) || !names.insert(&entry.name) {
            return Err("a member's name is not acceptable");
        }
        if entry.blocks.len() as u64 != entry.size.div_ceil(BLOCK as u64) {
            return Err("a member's size and its number of blocks disagree");
        }
        for (number, block) in entry.blocks.iter().enumerate() {
            let (offset, stored) = match *block {
                Block::Hole => continue,
                Block::Plain { offset, .. } => (offset, entry.block_len(number) as u64),
                Block::Squeezed { offset, stored, .. } => (offset, u64::from(stored)),
            };
            if stored > BLOCK as u64 || offset.checked_add(stored).is_none_or(|end| end > blocks_end) {
                return Err("a member's block lies outside of the pack");
            }
        }
    }
    Ok(())
}

/// Names are flat, or directly below `files/`, of harmless characters.
fn is_member_name(name: &str) -> bool {
    let plain = name.strip_prefix("files/").unwrap_or(name);
    let harmless = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
    !plain.is_empty() && plain.len() <= 255 && !plain.starts_with('.') && plain.bytes().all(harmless)
}

/// The member that a packed image's path names.
pub(crate) fn member_name(path: &Path) -> Option<String> {
    path.to_str().filter(|name| is_member_name(name)).map(str::to_owned)
}

/// One file inside a pack.
struct Member {
    file: Source,
    entry: Entry,
    path: PathBuf,
    recent: Mutex<Vec<(usize, Arc<Vec<u8>>)>>,
}

impl Member {
    fn new(file: &Source, entry: Entry) -> Self {
        let path = file.path().join(&entry.name);
        Self { file: file.clone(), entry, path, recent: Mutex::default() }
    }

    fn block(&self, number: usize) -> Result<Arc<Vec<u8>>, Error> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = recent.iter().position(|(n, _)| *n == number) {
            let hit = recent.remove(at);
            recent.push(hit.clone());
            return Ok(hit.1);
        }
        let bytes = Arc::new(self.load(number)?);
        if recent.len() >= CACHED_BLOCKS_MAX {
            recent.remove(0);
        }
        recent.push((number, bytes.clone()));
        Ok(bytes)
    }

    fn load(&self, number: usize) -> Result<Vec<u8>, Error> {
        let len = self.entry.block_len(number);
        let at = number as u64 * BLOCK as u64;
        let damaged = |why: &str| Err(Error::damaged(&self.path, at, None, why));
        let (offset, stored, digest) = match self.entry.blocks[number] {
            Block::Hole => return Ok(vec![0; len]),
            Block::Plain { offset, digest } => (offset, len, digest),
            Block::Squeezed { offset, stored, digest } => (offset, stored as usize, digest),
        };
        let mut bytes = vec![0; stored];
        self.file.read_at(offset, &mut bytes)?;
        if Digest::of(&bytes).0 != digest {
            return damaged("the checksum of a packed block does not match");
        }
        if matches!(self.entry.blocks[number], Block::Plain { .. }) {
            return Ok(bytes);
        }
        match zstd::bulk::decompress(&bytes, len) {
            Ok(raw) if raw.len() == len => Ok(raw),
            _ => damaged("a packed block does not decompress"),
        }
    }
}

impl ReadAt for Member {
    fn size(&self) -> u64 {
        self.entry.size
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > self.entry.size) {
            return Err(Error::damaged(&self.path, offset, None, "bytes expected here are missing"));
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let block = self.block((at / BLOCK as u64) as usize)?;
            let from = (at % BLOCK as u64) as usize;
            let n = (block.len() - from).min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&block[from..from + n]);
            done += n;
        }
        Ok(())
    }
    fn path(&self) -> &Path {
        &self.path
    }
}

/// The BLAKE3 hash of all of a source.
pub(crate) fn hash_source(source: &dyn ReadAt) -> Result<ContentHash, Error> {
    let mut hasher = blake3::Hasher::new();
    let mut buf = vec![0; BLOCK];
    let mut at = 0;
    while at < source.size() {
        let n = (source.size() - at).min(BLOCK as u64) as usize;
        source.read_at(at, &mut buf[..n])?;
        hasher.update(&buf[..n]);
        at += n as u64;
    }
    Ok(ContentHash(*hasher.finalize().as_bytes()))
}

/// How much of an image to pack.
pub enum Contents {
    /// All of it (holes and zeros cost nothing).
    Whole,
    /// Only these blocks of [`TOUCHED_BLOCK`] bytes, by number; enough to replay the run that
    /// touched them.
    Touched(BTreeSet<u64>),
}

/// Writes `recording` and the images it refers to into the new file `out`.
///
/// `contents` says for each image, by role (`"kernel"`, `"disk 0"`) how much of it to take. Images
/// must be unchanged; call [`Recording::verify_images`] before.
pub fn pack(
    recording: &Recording,
    out: &Path,
    mut contents: impl FnMut(&str, &ImageRef) -> Contents,
) -> Result<(), Error> {
    let mut writer = PackWriter::create(out)?;
    let mut manifest = recording.manifest().clone();
    let place = recording.place();
    for name in member_files(recording)? {
        if let Some(source) = place.source(&name)? {
            writer.add(&name, &*source, &Contents::Whole)?;
        }
    }
    for (number, (what, image)) in manifest.guest.images_mut().into_iter().enumerate() {
        let source = recording.image(image)?;
        let wanted = contents(&what, image);
        let name = format!("files/{number}-{}", what.replace(' ', "-"));
        image.size = source.size();
        image.blake3 = writer.add(&name, &*source, &wanted)?;
        image.partial |= matches!(wanted, Contents::Touched(_));
        image.packed = true;
        image.path = name.into();
    }
    let path = out.join(folder::MANIFEST);
    writer.add(folder::MANIFEST, &crate::BytesSource::new(path, manifest.encode()?), &Contents::Whole)?;
    writer.finish()
}

/// The logs of a recording.
fn member_files(recording: &Recording) -> Result<Vec<String>, Error> {
    let mut names = vec![folder::EVENTS.to_owned(), folder::BOOKMARKS.to_owned()];
    if recording.manifest().completion().is_none() {
        names.push(folder::TAIL.to_owned());
    }
    if let Some(log) = recording.place().source(folder::CHECKPOINTS)? {
        let head =
            crate::chunk::Head::read(&*log, crate::chunk::LogKind::Checkpoints, recording.manifest().id)?;
        names.push(folder::pages(head.map_or(0, |head| head.generation)));
        names.push(folder::CHECKPOINTS.to_owned());
    }
    Ok(names)
}

struct PackWriter {
    file: File,
    path: PathBuf,
    temporary: PathBuf,
    end: u64,
    entries: Vec<Entry>,
}

impl PackWriter {
    fn create(out: &Path) -> Result<Self, Error> {
        if out.exists() {
            return Err(Error::Name(format!("{} exists already; choose another name", out.display())));
        }
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let temporary = out.with_file_name(name);
        let file = File::create_new(&temporary).map_err(|e| Error::io("create", &temporary, e))?;
        let mut writer = Self { file, path: out.to_owned(), temporary, end: 0, entries: Vec::new() };
        writer.put(&MAGIC)?;
        Ok(writer)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<u64, Error> {
        let at = self.end;
        self.file.write_all(bytes).map_err(|e| Error::io("write", &self.path, e))?;
        self.end += bytes.len() as u64;
        Ok(at)
    }

    fn add(&mut self, name: &str, source: &dyn ReadAt, wanted: &Contents) -> Result<ContentHash, Error> {
        assert!(is_member_name(name));
        let mut entry = Entry { name: name.to_owned(), size: source.size(), blocks: Vec::new() };
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; BLOCK];
        for number in 0..source.size().div_ceil(BLOCK as u64) {
            let bytes = &mut buf[..entry.block_len(number as usize)];
            read_wanted(source, number * BLOCK as u64, bytes, wanted)?;
            hasher.update(bytes);
            entry.blocks.push(self.add_block(bytes)?);
        }
        self.entries.push(entry);
        Ok(ContentHash(*hasher.finalize().as_bytes()))
    }

    fn add_block(&mut self, bytes: &[u8]) -> Result<Block, Error> {
        if bytes.iter().all(|&b| b == 0) {
            return Ok(Block::Hole);
        }
        let squeezed =
            zstd::bulk::compress(bytes, LEVEL).map_err(|e| Error::io("compress", &self.path, e))?;
        if squeezed.len() < bytes.len() {
            let digest = Digest::of(&squeezed).0;
            return Ok(Block::Squeezed {
                offset: self.put(&squeezed)?,
                stored: squeezed.len() as u32,
                digest,
            });
        }
        Ok(Block::Plain { digest: Digest::of(bytes).0, offset: self.put(bytes)? })
    }

    fn finish(mut self) -> Result<(), Error> {
        let raw = postcard::to_stdvec(&self.entries).expect("plain data");
        let io = |e| Error::io("write", &self.path, e);
        if raw.len() as u64 > DIRECTORY_BYTES_MAX {
            return Err(Error::Name("the images are too large for one pack".into()));
        }
        let stored = zstd::bulk::compress(&raw, LEVEL).map_err(io)?;
        let offset = self.put(&stored)?;
        let mut trailer = Vec::new();
        for word in [offset, stored.len() as u64, raw.len() as u64] {
            trailer.extend_from_slice(&word.to_le_bytes());
        }
        trailer.extend_from_slice(&Digest::of(&stored).0);
        trailer.extend_from_slice(&FORMAT.to_le_bytes());
        trailer.extend_from_slice(&crc32fast::hash(&trailer).to_le_bytes());
        trailer.extend_from_slice(&END_MAGIC);
        self.put(&trailer)?;
        let io = |e| Error::io("write", &self.path, e);
        self.file.sync_all().map_err(io)?;
        std::fs::rename(&self.temporary, &self.path).map_err(io)
    }
}

impl Drop for PackWriter {
    fn drop(&mut self) {
        // After `finish` there is nothing of this name any more.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn read_wanted(source: &dyn ReadAt, at: u64, bytes: &mut [u8], wanted: &Contents) -> Result<(), Error> {
    let Contents::Touched(touched) = wanted else { return source.read_at(at, bytes) };
    for (n, piece) in bytes.chunks_mut(TOUCHED_BLOCK as usize).enumerate() {
        if touched.contains(&(at / TOUCHED_BLOCK + n as u64)) {
            source.read_at(at + n as u64 * TOUCHED_BLOCK, piece)?;
        } else {
            piece.fill(0);
        }
    }
    Ok(())
}

/// Spreads a packed recording out into the new folder `folder`, which replays just the same.
pub fn unpack(packed: &Path, folder: &Path) -> Result<(), Error> {
    let pack = Pack::open(Arc::new(crate::FileSource::open(packed)?))?;
    let Some(manifest) = pack.members.get(folder::MANIFEST) else {
        let why = "it has no manifest.json".to_owned();
        return Err(Error::NotARecording { path: packed.to_owned(), why });
    };
    let manifest = Manifest::read(&**manifest)?;
    std::fs::create_dir(folder).map_err(|e| Error::io("create", folder, e))?;
    let files = folder.join(folder::FILES);
    std::fs::create_dir(&files).map_err(|e| Error::io("create", &files, e))?;
    for (name, member) in pack.members.iter().filter(|(name, _)| *name != folder::MANIFEST) {
        let path = folder.join(name);
        spread(member, &path).map_err(|e| match e {
            Spread::Read(e) => e,
            Spread::Write(e) => Error::io("write", &path, e),
        })?;
    }
    manifest.write(folder)
}

enum Spread {
    Read(Error),
    Write(std::io::Error),
}

fn spread(member: &Member, path: &Path) -> Result<(), Spread> {
    let mut file = File::create_new(path).map_err(Spread::Write)?;
    for (number, block) in member.entry.blocks.iter().enumerate() {
        if matches!(block, Block::Hole) {
            file.seek(SeekFrom::Start((number as u64 + 1) * BLOCK as u64)).map_err(Spread::Write)?;
        } else {
            file.write_all(&member.load(number).map_err(Spread::Read)?).map_err(Spread::Write)?;
        }
    }
    file.set_len(member.entry.size).and_then(|()| file.sync_all()).map_err(Spread::Write)
}
