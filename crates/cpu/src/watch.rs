//! What a debugger watches, and which accesses touched it.
//!
//! Watching is by physical address, so a write through any mapping counts. Pages that hold watched
//! bytes bear [`memory::Marks::WATCHED`], which keeps them out of the TLB for writes, and where reads count
//! [`memory::Marks::READ_WATCHED`], which keeps them out of it altogether: every such access to them by
//! the processor that touches a watched byte comes through [`crate::Core`], which notes it here. What
//! devices write is noted by [`memory::Ram`] and fetched from there at the next boundary.

use base::{GuestPhys, Position};

/// A range of physical memory under watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The first byte.
    pub start: GuestPhys,
    /// How many bytes.
    pub bytes: u64,
    /// Reads count.
    pub reads: bool,
    /// Writes count.
    pub writes: bool,
}

/// An access to something watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchHit {
    /// The position before the instruction.
    pub at: Position,
    /// Which of the list's watches.
    pub watch: usize,
    /// The first byte that was both watched and accessed.
    pub phys: GuestPhys,
}

/// The ranges under watch, and the first and the last access to any of them.
#[derive(Clone, Debug, Default)]
pub struct WatchList {
    watches: Vec<Watch>,
    hits: Option<(WatchHit, WatchHit)>,
}

impl WatchList {
    /// A list of ranges.
    pub fn new(watches: Vec<Watch>) -> Self {
        Self { watches, hits: None }
    }

    /// The ranges.
    pub fn watches(&self) -> &[Watch] {
        &self.watches
    }

    /// The first watch that an access of `len` bytes touches.
    pub(crate) fn touched(&self, phys: GuestPhys, len: usize, write: bool) -> Option<usize> {
        let end = phys.0.saturating_add(len as u64);
        self.watches.iter().position(|w| {
            let counts = if write { w.writes } else { w.reads };
            counts && phys.0 < w.start.0.saturating_add(w.bytes) && w.start.0 < end
        })
    }

    /// Notes an access of `len` bytes if it touches anything watched.
    pub(crate) fn note(&mut self, at: Position, phys: GuestPhys, len: usize, write: bool) {
        if let Some(watch) = self.touched(phys, len, write) {
            let phys = GuestPhys(phys.0.max(self.watches[watch].start.0));
            let hit = WatchHit { at, watch, phys };
            self.hits = Some((self.hits.map_or(hit, |(first, _)| first), hit));
        }
    }

    /// The first and the last hit since the last call.
    pub fn take_hits(&mut self) -> Option<(WatchHit, WatchHit)> {
        self.hits.take()
    }

    pub(crate) fn has_hit(&self) -> bool {
        self.hits.is_some()
    }
}
