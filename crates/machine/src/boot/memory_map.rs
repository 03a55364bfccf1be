//! The memory map that every kernel is told, in the form of its boot protocol.

use crate::layout;
use memory::{LOW_RAM_MAX, Ram};

/// Kinds of memory in an E820 map (ACPI 6.5, table 15.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM for the guest to use.
    Usable = 1,
    /// Not for use.
    Reserved = 2,
}

/// An entry of the E820 map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// The memory map the guest is told, in order of address.
pub fn memory_map(ram: &Ram) -> Vec<MemoryRange> {
    let range = |start: u64, end: u64, kind| MemoryRange { start, length: end - start, kind };
    let low = ram.size().min(LOW_RAM_MAX);
    let acpi = layout::ACPI_AREA;
    let mut map = vec![
        range(0, layout::LOW_MEMORY_END.min(low), MemoryKind::Usable),
        range(layout::LOW_MEMORY_END, 0xa_0000, MemoryKind::Reserved),
        range(acpi.start, acpi.end, MemoryKind::Reserved),
    ];
    if low > acpi.end {
        map.push(range(acpi.end, low, MemoryKind::Usable));
    }
    map.push(range(layout::PCI_ECAM.start, layout::PCI_ECAM.end, MemoryKind::Reserved));
    for (start, length) in ram.ranges().into_iter().skip(1) {
        map.push(MemoryRange { start: start.0, length, kind: MemoryKind::Usable });
    }
    map
}

/// The ranges of RAM that are the guest's to use, in order of address.
pub(super) fn usable(ram: &Ram) -> Vec<std::ops::Range<u64>> {
    let map = memory_map(ram).into_iter().filter(|range| range.kind == MemoryKind::Usable);
    map.map(|range| range.start..range.start + range.length).collect()
}
