//! The on-disk format of recordings: manifest, event log, checkpoints, and one-file packs.
//!
//! A recording is what a run leaves on disk; `docs/recording-format.md` describes every byte.
//! [`Writer`] makes one while the guest runs, [`Recording`] reads one, [`Checkpoints`] keeps full
//! machine states that share their unchanged pages, [`pack()`] makes one file of everything, and
//! [`Library`] knows the recordings by name.
//!
//! **What it may know:** files, positions, hashes and bytes. **What it must never do:** interpret
//! a guest's state or an input's payload, or trust a byte that it reads: every length has a limit
//! before anything is allocated, and whatever does not check is an [`Error`] naming file and place.
#![deny(unsafe_code)]

mod bookmarks;
mod branch;
mod checkpoints;
mod chunk;
mod error;
mod event;
mod folder;
mod id;
mod image;
mod info;
mod library;
mod manifest;
mod pack;
pub mod probe;
mod reader;
mod source;
mod tail;
mod varint;
mod writer;

pub use bookmarks::{Bookmark, Bookmarks};
pub use branch::{copy_checkpoints, copy_events, copy_images};
pub use checkpoints::{
    Change, Checkpoint, Checkpoints, Draft, Options, PAGE_BYTES, Page, Pages, SPACE_RAM, StoredPage,
};
pub use error::{Error, Stopped};
pub use event::{End, EndReason, Event, EventKind, PAYLOAD_MAX, StateHash};
pub use id::{ContentHash, Digest, RecordingId};
pub use image::{HashCache, ImageRef};
pub use info::{Info, Integrity};
pub use library::{Entry, Library};
pub use manifest::{Clock, Completion, Guest, Manifest, Origin, Status};
pub use pack::{Contents, TOUCHED_BLOCK, pack, unpack};
pub use reader::{Events, Extent, Recording};
pub use source::{BytesSource, FileSource, ReadAt, Source};
pub use writer::{CHUNK_AGE_MAX, FLUSH_EVERY, Writer};

/// The version of the on-disk format. It changes whenever an older program could misread a newer
/// recording or the other way round.
pub const FORMAT: u32 = 3;
