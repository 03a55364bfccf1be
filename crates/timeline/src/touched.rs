//! Which blocks of its disk images a run has read: what a packed recording has to carry.

use crate::replay::checked_guest;
use crate::{Replay, ReplayError, ReplayStop, Target, Tuning, Watcher};
use disk::{Base, Format};
use recording::{HashCache, Recording, TOUCHED_BLOCK};
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// An image that notes which blocks are read.
struct Noting {
    base: Arc<dyn Base>,
    touched: Mutex<BTreeSet<u64>>,
}

impl Base for Noting {
    fn len(&self) -> u64 {
        self.base.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if !buf.is_empty() {
            let last = (offset + buf.len() as u64 - 1) / TOUCHED_BLOCK;
            let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
            touched.extend(offset / TOUCHED_BLOCK..=last);
        }
        self.base.read_at(offset, buf)
    }
    fn name(&self) -> PathBuf {
        self.base.name()
    }
}

/// Replays the whole recording and tells for each disk which blocks of [`TOUCHED_BLOCK`] bytes of
/// its file were read; `None` for files that are not laid out byte for byte. `None` for everything
/// when the watcher stopped it.
///
/// # Errors
/// As [`Replay::run`].
pub fn touched_blocks(
    recording: &Recording,
    tuning: &Tuning,
    cache: &mut HashCache,
    watcher: &mut dyn Watcher,
) -> Result<Option<Vec<Option<BTreeSet<u64>>>>, ReplayError> {
    let mut guest = checked_guest(recording, cache)?;
    let mut noting = Vec::new();
    for disk in &mut guest.disks {
        let noter = Arc::new(Noting { base: disk.base.clone(), touched: Mutex::default() });
        disk.base = noter.clone();
        noting.push((disk.format, noter));
    }
    if Replay::of_guest(recording, guest, tuning)?.run(Target::End, watcher)? == ReplayStop::Stopped {
        return Ok(None);
    }
    let blocks = noting.iter().map(|(format, noter)| {
        let touched = noter.touched.lock().unwrap_or_else(PoisonError::into_inner);
        (*format == Format::Raw).then(|| touched.clone())
    });
    Ok(Some(blocks.collect()))
}
