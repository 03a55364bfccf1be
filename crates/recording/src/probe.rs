//! The readers as functions from arbitrary bytes, for fuzzing and for seeded tests.
//!
//! Each must return, in reasonable time and memory, whatever the bytes. Results carry no meaning
//! beyond that, except what is asserted inside: what was read must be readable again.

use crate::chunk::{HEAD_LEN, Head, LogKind};
use crate::reader::{EventLog, Place};
use crate::tail::Tail;
use crate::{BytesSource, Error, Manifest, ReadAt, Recording, RecordingId, Source};
use std::path::Path;
use std::sync::Arc;

/// `manifest.json`: what decodes must encode to something that decodes to the same.
pub fn manifest(bytes: &[u8]) -> Result<(), Error> {
    let path = Path::new("manifest.json");
    let manifest = Manifest::decode(path, bytes)?;
    let again = Manifest::decode(path, &manifest.encode()?)?;
    assert_eq!(manifest, again);
    Ok(())
}

/// `events.log`, as that of an incomplete recording whose id is in the file's head: every event is
/// read. Returns how many there were.
pub fn log(bytes: &[u8]) -> Result<u64, Error> {
    let id = id_in(bytes);
    let log = EventLog::open_for_probe(source("events.log", bytes), None, id)?;
    log.events().try_fold(0, |n, event| event.map(|_| n + 1))
}

/// `events.tail` beside an empty log.
pub fn tail(bytes: &[u8]) -> Result<u64, Error> {
    let id = id_in(bytes);
    let head = Head { kind: LogKind::Events, id, generation: 0 };
    let tail = Tail::read(&BytesSource::new("events.tail", bytes.to_vec()), id)?;
    let log = EventLog::open_for_probe(source("events.log", &head.encode()), tail, id)?;
    log.events().try_fold(0, |n, event| event.map(|_| n + 1))
}

/// `checkpoints.log` and `pages.store`, cut from one input: the first four bytes are the length of
/// the log.
pub fn checkpoints(bytes: &[u8]) -> Result<(), Error> {
    let split = bytes.first_chunk::<4>().map_or(0, |n| u32::from_le_bytes(*n) as usize);
    let rest = bytes.get(4..).unwrap_or_default();
    let (log, pages) = rest.split_at(split.min(rest.len()));
    crate::checkpoints::probe(source("checkpoints.log", log), source("pages.store", pages), id_in(log))
}

/// A packed recording: every member is read.
pub fn packed(bytes: &[u8]) -> Result<(), Error> {
    let pack = crate::pack::Pack::open(source("recording.hindsight", bytes))?;
    pack.read_everything()?;
    let recording = Recording::open_place(Place::Packed(Arc::new(pack)))?;
    recording.events().try_for_each(|event| event.map(|_| ()))
}

fn source(name: &str, bytes: &[u8]) -> Source {
    Arc::new(BytesSource::new(name, bytes.to_vec())) as Arc<dyn ReadAt>
}

fn id_in(bytes: &[u8]) -> RecordingId {
    let id = bytes.get(16..32).filter(|_| bytes.len() as u64 >= HEAD_LEN);
    RecordingId(id.map_or([0; 16], |id| id.try_into().expect("16 bytes")))
}
