//! What can go wrong with a recording, and what to do about it.

use base::Position;
use std::io;
use std::path::{Path, PathBuf};

/// Why a recording cannot be read, written or replayed here. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused a file operation.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// What was attempted, as a verb: `"read"`.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// The bytes are not what Hindsight wrote.
    #[error("{} is damaged at byte {offset}{}: {why}", file.display(), in_chunk(*.chunk))]
    Damaged {
        /// The damaged file; inside a packed recording, the pack's path followed by the member.
        file: PathBuf,
        /// Where, in bytes from the start of the file.
        offset: u64,
        /// The number of the chunk, counted from 0, when the place lies in one.
        chunk: Option<u64>,
        /// What is wrong there.
        why: String,
    },
    /// The folder or file is something else.
    #[error("{} is not a recording: {why}; name a folder or packed file made by `hindsight record` or `hindsight pack`", path.display())]
    NotARecording {
        /// What was opened.
        path: PathBuf,
        /// What is missing or different.
        why: String,
    },
    /// Written by another version of the on-disk format.
    #[error("{} has recording format {found}, this version reads format {known}; replay it with the version that recorded it", path.display())]
    OtherFormat {
        /// The manifest.
        path: PathBuf,
        /// Its format version.
        found: u64,
        /// Ours.
        known: u32,
    },
    /// Recorded by a machine that behaves differently from this one.
    #[error("{} was recorded by machine version {found}, this is machine version {known}; replay it with the version that recorded it", path.display())]
    OtherMachine {
        /// The manifest.
        path: PathBuf,
        /// Its machine version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The guest used processor features that this host lacks.
    #[error("{} needs the processor feature {feature}, which this host lacks; replay it on a host that has it", path.display())]
    MissingCpuFeature {
        /// The manifest.
        path: PathBuf,
        /// The first missing feature.
        feature: String,
    },
    /// A kernel, initrd or disk image is not there any more.
    #[error("{what} {} is gone ({source}); put it back, or replay a recording that was packed with `hindsight pack`", path.display())]
    ImageMissing {
        /// `"kernel"`, `"initrd"` or `"disk 0"`.
        what: String,
        /// Where it was.
        path: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// A kernel, initrd or disk image has other contents than when the run was recorded.
    #[error("{what} {} has changed since the recording ({why}); restore the original file", path.display())]
    ImageChanged {
        /// `"kernel"`, `"initrd"` or `"disk 0"`.
        what: String,
        /// Where it is.
        path: PathBuf,
        /// Sizes or hashes, expected and found.
        why: String,
    },
    /// The recorder could not go on writing.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A name that cannot be used for a recording, or that is not known.
    #[error("{0}")]
    Name(String),
}

fn in_chunk(chunk: Option<u64>) -> String {
    chunk.map_or(String::new(), |n| format!(" (chunk {n})"))
}

impl Error {
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Error::Io { doing, path: path.to_owned(), source }
    }
    pub(crate) fn damaged(file: &Path, offset: u64, chunk: Option<u64>, why: impl Into<String>) -> Self {
        Error::Damaged { file: file.to_owned(), offset, chunk, why: why.into() }
    }
    /// Whether the recording itself is unusable here (exit status 5), as opposed to wrong usage.
    pub fn is_about_the_recording(&self) -> bool {
        !matches!(self, Error::Name(_) | Error::Stopped(_))
    }
}

/// The recorder stopped writing; what it wrote before stays replayable.
#[derive(Clone, Debug, thiserror::Error)]
#[error("recording stopped: {} cannot be written ({why}){}; everything up to position {flushed} can be replayed", path.display(), hint(*.kind))]
pub struct Stopped {
    /// The file that could not be written.
    pub path: PathBuf,
    /// The host's answer.
    pub why: String,
    /// The host's answer, by kind.
    pub kind: io::ErrorKind,
    /// The last position whose events are on disk.
    pub flushed: Position,
}

fn hint(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ": free some space or record elsewhere with -o"
        }
        _ => "",
    }
}
