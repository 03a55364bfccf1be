//! Making, opening and extending the checkpoints of a recording.

use super::map::{ABSENT, PageMap};
use super::record::Record;
use super::store::Store;
use super::worker::Worker;
use super::{Book, Checkpoint, Checkpoints, Options};
use crate::chunk::{ChunkAppender, ChunkedFile, Head, LogKind, checks};
use crate::reader::Place;
use crate::{Error, FileSource, ReadAt, Recording, RecordingId, Source, folder};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

/// Nodes of page maps that any log may make its reader build, and more per byte that is stored:
/// a hostile log cannot take more memory than its own size justifies.
const NODES_FREE: usize = 2 << 20;
const NODES_PER_BYTE: usize = 4;

impl Checkpoints {
    /// Begins the checkpoints of the recording `id` in `folder`, where there are none yet.
    pub fn create(folder: &Path, id: RecordingId, options: Options) -> Result<Self, Error> {
        let lock = folder::Lock::take(folder)?;
        Self::create_locked(folder, id, options, lock)
    }

    fn create_locked(
        folder: &Path,
        id: RecordingId,
        options: Options,
        lock: folder::Lock,
    ) -> Result<Self, Error> {
        let create = |kind, name: &str| {
            let path = folder.join(name);
            let head = Head { kind, id, generation: 0 };
            ChunkAppender::create(&path, head).map_err(|e| Error::io("create", &path, e))
        };
        let pages = create(LogKind::Pages, &folder::pages(0))?;
        let log = create(LogKind::Checkpoints, folder::CHECKPOINTS)?;
        let source = Arc::new(FileSource::open(pages.path())?);
        let store = Store::empty(source, &pages);
        let book = Book { store, list: BTreeMap::new(), issued: Vec::new(), log_bytes: log.end() };
        let worker = Worker {
            folder: folder.to_owned(),
            id,
            options,
            generation: 0,
            pages,
            log,
            written: Default::default(),
            recent: None,
            thin_above: options.budget_bytes,
        };
        Self::start(book, Some(worker), Some(lock))
    }

    /// Opens a recording's checkpoints for reading; `None` when it has none.
    pub fn open(recording: &Recording) -> Result<Option<Self>, Error> {
        match read(recording.place(), recording.manifest().id)? {
            None => Ok(None),
            Some(found) => Self::start(found.book, None, None).map(Some),
        }
    }

    /// Opens a recording's checkpoints to add to them, making them if there are none. Fails for a
    /// packed or read-only recording and while another process does the same: then use
    /// [`Checkpoints::extend_copy`].
    pub fn extend(recording: &Recording, options: Options) -> Result<Self, Error> {
        let Some(folder) = recording.folder() else {
            let why = format!("{} is packed and cannot be added to", recording.path().display());
            return Err(Error::Name(why));
        };
        let lock = folder::Lock::take(folder)?;
        Self::extend_locked(recording.place(), folder, recording.manifest().id, options, lock)
    }

    /// Copies a recording's checkpoints into the empty folder `scratch` and opens them there to
    /// add to them. The recording is left alone.
    pub fn extend_copy(recording: &Recording, scratch: &Path, options: Options) -> Result<Self, Error> {
        let id = recording.manifest().id;
        let lock = folder::Lock::take(scratch)?;
        if let Some(log) = recording.place().source(folder::CHECKPOINTS)? {
            let generation = Head::read(&*log, LogKind::Checkpoints, id)?.map_or(0, |head| head.generation);
            let name = folder::pages(generation);
            if let Some(pages) = recording.place().source(&name)? {
                copy(&*pages, &scratch.join(name))?;
                copy(&*log, &scratch.join(folder::CHECKPOINTS))?;
            }
        }
        Self::extend_locked(&Place::Folder(scratch.to_owned()), scratch, id, options, lock)
    }

    fn extend_locked(
        place: &Place,
        folder: &Path,
        id: RecordingId,
        options: Options,
        lock: folder::Lock,
    ) -> Result<Self, Error> {
        let Some(found) = read(place, id)? else {
            return Self::create_locked(folder, id, options, lock);
        };
        let resume = |file: &ChunkedFile| {
            let path = file.source.path();
            ChunkAppender::resume(path, file).map_err(|e| Error::io("write", path, e))
        };
        let pages = resume(&found.pages)?;
        let log = resume(&found.log)?;
        let worker = Worker {
            folder: folder.to_owned(),
            id,
            options,
            generation: found.log.head.generation,
            pages,
            log,
            written: found.book.list.values().map(|c| c.id).collect(),
            recent: None,
            thin_above: options.budget_bytes,
        };
        Self::start(found.book, Some(worker), Some(lock))
    }
}

pub(crate) fn copy(source: &dyn ReadAt, to: &Path) -> Result<(), Error> {
    let mut file = std::fs::File::create_new(to).map_err(|e| Error::io("create", to, e))?;
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < source.size() {
        let n = (source.size() - at).min(buf.len() as u64) as usize;
        source.read_at(at, &mut buf[..n])?;
        file.write_all(&buf[..n]).map_err(|e| Error::io("write", to, e))?;
        at += n as u64;
    }
    Ok(())
}

struct Found {
    book: Book,
    pages: ChunkedFile,
    log: ChunkedFile,
}

/// Reads the log and the directories of the store.
fn read(place: &Place, id: RecordingId) -> Result<Option<Found>, Error> {
    match read_once(place, id) {
        // The recorder may have put a thinned log in place between our two openings.
        Err(Error::Damaged { .. }) => read_once(place, id),
        result => result,
    }
}

fn read_once(place: &Place, id: RecordingId) -> Result<Option<Found>, Error> {
    let Some(log) = place.source(folder::CHECKPOINTS)? else { return Ok(None) };
    let log = ChunkedFile::open(log, LogKind::Checkpoints, id)?;
    let name = folder::pages(log.head.generation);
    let Some(pages) = place.source(&name)? else {
        let why = format!("the page store {name} that it refers to is missing");
        return Err(Error::damaged(log.source.path(), 12, None, why));
    };
    read_from(log, pages, id).map(Some)
}

fn read_from(log: ChunkedFile, pages: Source, id: RecordingId) -> Result<Found, Error> {
    let (store, pages) = Store::open(pages, id, log.head.generation)?;
    let mut book = Book { store, list: BTreeMap::new(), issued: Vec::new(), log_bytes: log.end };
    let mut by_id: BTreeMap<u64, Arc<Checkpoint>> = BTreeMap::new();
    let mut nodes_left = NODES_FREE.saturating_add(NODES_PER_BYTE.saturating_mul(log.end as usize));
    for (number, chunk) in log.chunks.iter().enumerate() {
        let record = Record::decode(&log.read(number)?);
        let checkpoint = record
            .ok_or("the checkpoint does not decode")
            .and_then(|record| {
                build(&book.store, &pages, &by_id, chunk.header.first, record, &mut nodes_left)
            })
            .map_err(|why| {
                Error::damaged(log.source.path(), chunk.offset, Some(chunk.header.sequence), why)
            })?;
        let checkpoint = Arc::new(Checkpoint { bytes: u64::from(chunk.header.stored_len), ..checkpoint });
        by_id.insert(checkpoint.id, checkpoint.clone());
        book.insert(checkpoint);
    }
    Ok(Found { book, pages, log })
}

fn build(
    store: &Store,
    pages: &ChunkedFile,
    by_id: &BTreeMap<u64, Arc<Checkpoint>>,
    at: base::Position,
    record: Record,
    nodes_left: &mut usize,
) -> Result<Checkpoint, &'static str> {
    if by_id.contains_key(&record.id) {
        return Err("two checkpoints have the same number");
    }
    let sealed = match record.store_chunks.checked_sub(1) {
        None => pages.chunks.first().map_or(pages.seal, |first| first.header.previous()),
        Some(last) => match pages.chunks.get(last as usize) {
            Some(chunk) => chunk.seal,
            None => return Err("the page store is shorter than it was when this checkpoint was written"),
        },
    };
    if !checks(sealed, record.store_seal) {
        return Err("the page store is not the one this checkpoint was written with");
    }
    let mut map = match record.parent {
        None => PageMap::default(),
        Some(parent) => by_id.get(&parent).ok_or("the checkpoint's parent is missing")?.map.clone(),
    };
    for &(space, index, page) in &record.changes {
        if page != ABSENT && !store.has(page) {
            return Err("the checkpoint refers to a page that is not in the store");
        }
        let made = map.set(space, index, page);
        *nodes_left = nodes_left.checked_sub(made).ok_or("the checkpoint's page map is absurdly large")?;
    }
    let changed_pages = record.changes.len() as u64;
    Ok(Checkpoint { id: record.id, at, map, state: record.state, changed_pages, bytes: 0 })
}

/// For fuzzing: reads both files from memory and then everything they describe.
pub(crate) fn probe(log: Source, pages: Source, id: RecordingId) -> Result<(), Error> {
    let log = ChunkedFile::open(log, LogKind::Checkpoints, id)?;
    let found = read_from(log, pages, id)?;
    let checkpoints = Checkpoints::start(found.book, None, None)?;
    let mut page = [0; super::PAGE_BYTES];
    let mut last: Option<Arc<Checkpoint>> = None;
    for checkpoint in checkpoints.list() {
        for change in checkpoints.diff(last.as_deref(), &checkpoint) {
            change.page.map_or(Ok(()), |stored| checkpoints.load(stored, &mut page))?;
        }
        let _ = checkpoint.state();
        last = Some(checkpoint);
    }
    Ok(())
}
