//! Opening a recording and reading its events.

use crate::chunk::{ChunkedFile, LogKind};
use crate::event::{Decoder, Event, EventKind};
use crate::pack::Pack;
use crate::tail::Tail;
use crate::{Completion, Error, FileSource, Manifest, RecordingId, Source, folder};
use base::Position;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A recording opened for reading: a folder, or one packed file.
pub struct Recording {
    place: Place,
    manifest: Manifest,
    log: Arc<EventLog>,
}

pub(crate) enum Place {
    Folder(PathBuf),
    Packed(Arc<Pack>),
}

impl Place {
    /// A member file; `None` when there is none of that name.
    pub(crate) fn source(&self, name: &str) -> Result<Option<Source>, Error> {
        match self {
            Place::Folder(folder) => {
                let path = folder.join(name);
                match FileSource::open(&path) {
                    Ok(file) => Ok(Some(Arc::new(file))),
                    Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                        Ok(None)
                    }
                    Err(e) => Err(e),
                }
            }
            Place::Packed(pack) => Ok(pack.member(name)),
        }
    }
    pub(crate) fn path(&self) -> &Path {
        match self {
            Place::Folder(folder) => folder,
            Place::Packed(pack) => pack.path(),
        }
    }
}

/// How far a recording's events reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The position of the last event.
    pub last: Position,
    /// Whether the run's end was recorded. If not, the recorder was killed or is still running,
    /// and replay stops at `last`.
    pub ended: bool,
    /// Whether an incomplete piece at the end was left out.
    pub torn: bool,
}

impl Recording {
    /// Opens the folder or packed file at `path`. Nothing is written: read-only places will do.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let meta = std::fs::metadata(path).map_err(|e| Error::io("open", path, e))?;
        let place = if meta.is_dir() {
            Place::Folder(path.to_owned())
        } else {
            Place::Packed(Arc::new(Pack::open(Arc::new(FileSource::open(path)?))?))
        };
        Self::open_place(place)
    }

    pub(crate) fn open_place(place: Place) -> Result<Self, Error> {
        let none = |why: &str| Error::NotARecording { path: place.path().to_owned(), why: why.into() };
        let manifest = place.source(folder::MANIFEST)?.ok_or_else(|| none("it has no manifest.json"))?;
        let manifest = Manifest::read(&*manifest)?;
        // The tail first: a recorder still running may move it into the log meanwhile.
        let tail = match place.source(folder::TAIL)? {
            Some(tail) if manifest.completion().is_none() => Tail::read(&*tail, manifest.id)?,
            _ => None,
        };
        let log = place.source(folder::EVENTS)?.ok_or_else(|| none("it has no events.log"))?;
        let log = EventLog::open(log, tail, &manifest)?;
        Ok(Self { place, manifest, log: Arc::new(log) })
    }

    /// What was recorded.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    /// The folder or packed file.
    pub fn path(&self) -> &Path {
        self.place.path()
    }
    /// Where the manifest is, for messages.
    pub fn manifest_path(&self) -> PathBuf {
        self.path().join(folder::MANIFEST)
    }
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }
    /// The recording's folder; `None` for a packed one.
    pub fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Folder(folder) => Some(folder),
            Place::Packed(_) => None,
        }
    }

    /// How far the events reach.
    pub fn extent(&self) -> Extent {
        self.log.extent
    }

    /// All events, in order.
    pub fn events(&self) -> Events {
        self.events_from(Position::START)
    }

    /// The events at `from` and later, in order.
    pub fn events_from(&self, from: Position) -> Events {
        self.log.clone().events_from(from)
    }

    /// Bytes of the event log on disk.
    pub fn log_bytes(&self) -> u64 {
        self.log.file.source.size() + self.log.tail.as_ref().map_or(0, |t| t.raw.len() as u64)
    }

    /// An image's contents: the copy carried inside of the recording when there is one, otherwise
    /// the original file, which is *not* verified here.
    pub fn image(&self, image: &crate::ImageRef) -> Result<Source, Error> {
        if !image.packed {
            return Ok(Arc::new(FileSource::open(&image.path)?));
        }
        let gone = || Error::damaged(&self.manifest_path(), 0, None, "it names a file that was not packed");
        let name = crate::pack::member_name(&image.path).ok_or_else(gone)?;
        self.place.source(&name)?.ok_or_else(gone)
    }

    /// Checks every image, also those carried inside, against its hash. Only whole recordings
    /// whose images check are worth replaying.
    pub fn verify_images(&self, cache: &mut crate::HashCache) -> Result<(), Error> {
        for (what, image) in self.manifest.guest.images() {
            if !image.packed {
                image.verify_at(&image.path, &what, cache)?;
                continue;
            }
            let source = self.image(image)?;
            if source.size() != image.size || crate::pack::hash_source(&*source)? != image.blake3 {
                let why = "the packed copy does not have the hash in the manifest".to_owned();
                let path = source.path().to_owned();
                return Err(Error::ImageChanged { what, path, why });
            }
        }
        Ok(())
    }
}

/// The chunks of `events.log`, and the tail if it goes on from them.
pub(crate) struct EventLog {
    file: ChunkedFile,
    tail: Option<Tail>,
    extent: Extent,
    complete: bool,
}

impl EventLog {
    pub(crate) fn open(source: Source, tail: Option<Tail>, manifest: &Manifest) -> Result<Self, Error> {
        Self::open_parts(source, tail, manifest.id, manifest.completion())
    }

    /// An incomplete recording's log on its own.
    pub(crate) fn open_for_probe(
        source: Source,
        tail: Option<Tail>,
        id: RecordingId,
    ) -> Result<Arc<Self>, Error> {
        Self::open_parts(source, tail, id, None).map(Arc::new)
    }

    pub(crate) fn events(self: Arc<Self>) -> Events {
        self.events_from(Position::START)
    }

    fn events_from(self: Arc<Self>, from: Position) -> Events {
        let chunk = self.file.chunks.partition_point(|c| c.header.last < from);
        // The end mark is checked even when nothing lies after `from`.
        let chunk = chunk.min(self.file.chunks.len().saturating_sub(1));
        Events { log: self, chunk, open: None, skip_before: from, last: Position::START, over: false }
    }

    fn open_parts(
        source: Source,
        tail: Option<Tail>,
        id: RecordingId,
        completion: Option<&Completion>,
    ) -> Result<Self, Error> {
        let file = ChunkedFile::open(source, LogKind::Events, id)?;
        let path = file.source.path();
        for pair in file.chunks.windows(2) {
            if pair[1].header.first < pair[0].header.last {
                let number = pair[1].header.sequence;
                let why = "the chunk goes back in time";
                return Err(Error::damaged(path, pair[1].offset, Some(number), why));
            }
        }
        let mut torn = file.torn;
        let mut last = file.chunks.last().map_or(Position::START, |c| c.header.last);
        let tail = match tail {
            Some(tail) if tail.continues(&file)? => Some(tail),
            _ => None,
        };
        if let Some(tail) = &tail {
            torn |= tail.torn;
            last = last.max(last_position(tail)?.unwrap_or(last));
        }
        let Some(completion) = completion else {
            return Ok(Self { file, tail, extent: Extent { last, ended: false, torn }, complete: false });
        };
        let chunks = file.chunks.len() as u64;
        let cut = |why: String| Err(Error::damaged(path, file.end, Some(chunks), why));
        if torn || chunks != completion.chunks {
            return cut(format!("{} chunks were recorded, {chunks} whole ones are here", completion.chunks));
        }
        if file.seal != completion.seal {
            return cut("the last chunk is not the one the manifest names".into());
        }
        if last != completion.at {
            return cut("the last chunk does not end where the manifest says".into());
        }
        Ok(Self { file, tail, extent: Extent { last, ended: true, torn: false }, complete: true })
    }

    /// The contents of chunk `number`, counting the tail as the last; `None` after that.
    fn read(&self, number: usize) -> Result<Option<Vec<u8>>, Error> {
        if number < self.file.chunks.len() {
            return self.file.read(number).map(Some);
        }
        let tail = self.tail.as_ref().filter(|_| number == self.file.chunks.len());
        Ok(tail.map(|tail| tail.raw.clone()))
    }

    fn damaged(&self, number: usize, offset: usize, why: &str) -> Error {
        let in_contents = format!("{why} (byte {offset} of the chunk's contents)");
        match (self.file.chunks.get(number), &self.tail) {
            (Some(chunk), _) => {
                Error::damaged(self.file.source.path(), chunk.offset, Some(number as u64), in_contents)
            }
            (None, Some(tail)) => Error::damaged(&tail.path, 0, None, in_contents),
            (None, None) => Error::damaged(self.file.source.path(), self.file.end, None, why),
        }
    }
}

fn last_position(tail: &Tail) -> Result<Option<Position>, Error> {
    let mut decoder = Decoder::new(tail.raw.clone());
    let mut last = None;
    while !decoder.is_done() {
        let event = decoder.next().map_err(|why| Error::damaged(&tail.path, 0, None, why))?;
        last = Some(event.at);
    }
    Ok(last)
}

/// Iterates over events. After an error there is nothing more.
pub struct Events {
    log: Arc<EventLog>,
    /// The next chunk to open.
    chunk: usize,
    open: Option<Decoder>,
    skip_before: Position,
    last: Position,
    over: bool,
}

impl Events {
    fn advance(&mut self) -> Result<Option<Event>, Error> {
        loop {
            let Some(decoder) = &mut self.open else {
                match self.log.read(self.chunk)? {
                    Some(raw) => {
                        self.chunk += 1;
                        self.open = Some(Decoder::new(raw));
                        continue;
                    }
                    None if self.log.complete => {
                        return Err(self.log.damaged(self.chunk, 0, "the end mark is missing"));
                    }
                    None => return Ok(None),
                }
            };
            let number = self.chunk - 1;
            let header = self.log.file.chunks.get(number).map(|chunk| chunk.header);
            let offset = decoder.offset();
            if decoder.is_done() {
                self.open = None;
                if header.is_some_and(|h| h.last != self.last) {
                    let why = "the events do not reach the position in the chunk's header";
                    return Err(self.log.damaged(number, offset, why));
                }
                continue;
            }
            let event = decoder.next().map_err(|why| self.log.damaged(number, offset, why))?;
            let first_differs = offset == 0 && header.is_some_and(|h| h.first != event.at);
            if first_differs || event.at < self.last {
                return Err(self.log.damaged(number, offset, "an event stands out of order"));
            }
            self.last = event.at;
            if matches!(event.kind, EventKind::End(_)) {
                let more = !decoder.is_done() || number + 1 < self.log.file.chunks.len();
                if more || event.at != self.log.extent.last {
                    return Err(self.log.damaged(number, offset, "events follow the end mark"));
                }
                self.over = true;
            }
            if event.at >= self.skip_before {
                return Ok(Some(event));
            }
            if self.over {
                return Ok(None);
            }
        }
    }
}

impl Iterator for Events {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.advance().transpose();
        self.over |= !matches!(next, Some(Ok(_)));
        next
    }
}
