//! Room for what a boot loader puts beside the kernel: start information, strings, modules.

use super::memory_map;
use base::{GuestPhys, PAGE_SIZE};
use memory::Ram;
use std::ops::Range;

/// Nothing is put below: interrupt vectors, and pages where kernels like to put their trampolines.
const LOWEST: u64 = 0x1_0000;

/// Which parts of the usable RAM below 4 GiB are taken.
pub(super) struct Places {
    usable: Vec<Range<u64>>,
    taken: Vec<Range<u64>>,
}

impl Places {
    /// Everything usable but `taken`.
    pub fn new(ram: &Ram, taken: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut usable = memory_map::usable(ram);
        usable.retain(|range| range.end <= 1 << 32);
        let taken = taken.into_iter().filter(|range| !range.is_empty()).collect();
        Self { usable, taken }
    }

    /// The lowest free place of `size` bytes at a multiple of `align` (a power of two) at or above
    /// `from`, which is then taken.
    pub fn lowest(&mut self, from: u64, size: u64, align: u64) -> Option<u64> {
        // A place begins where a usable range does, or behind something.
        let starts = self.usable.iter().map(|range| range.start);
        let ends = self.taken.iter().map(|range| range.end);
        let candidates = starts.chain(ends).chain([from]);
        let at = candidates
            .filter_map(|start| start.max(from).max(LOWEST).checked_next_multiple_of(align))
            .filter(|start| self.is_free(*start, size))
            .min()?;
        self.taken.push(at..at + size.max(1));
        Some(at)
    }

    /// The highest free place of `size` bytes at a page's start, which is then taken.
    pub fn highest(&mut self, size: u64) -> Option<u64> {
        let ends = self.usable.iter().map(|range| range.end);
        let starts = self.taken.iter().map(|range| range.start);
        let at = ends
            .chain(starts)
            .filter_map(|end| Some(end.checked_sub(size)? & !(PAGE_SIZE as u64 - 1)))
            .filter(|start| *start >= LOWEST && self.is_free(*start, size))
            .max()?;
        self.taken.push(at..at + size.max(1));
        Some(at)
    }

    fn is_free(&self, start: u64, size: u64) -> bool {
        let Some(end) = start.checked_add(size.max(1)) else { return false };
        self.usable.iter().any(|range| range.start <= start && end <= range.end)
            && self.taken.iter().all(|range| end <= range.start || range.end <= start)
    }
}

/// Writes into RAM; false when some of it is none.
#[must_use]
pub(super) fn write(ram: &mut Ram, at: u64, bytes: &[u8]) -> bool {
    bytes.is_empty() || ram.write(GuestPhys(at), bytes)
}

/// Writes `size` zeros; pages that are zero already are left alone.
#[must_use]
pub(super) fn zero(ram: &mut Ram, at: u64, size: u64) -> bool {
    let mut buffer = [0; PAGE_SIZE];
    let mut done = 0;
    while done < size {
        let here = GuestPhys(at + done);
        let len = (PAGE_SIZE - here.page_offset()).min((size - done) as usize);
        if !ram.read(here, &mut buffer[..len]) {
            return false;
        }
        if buffer[..len].iter().any(|byte| *byte != 0) && !ram.write(here, &[0; PAGE_SIZE][..len]) {
            return false;
        }
        done += len as u64;
    }
    true
}
