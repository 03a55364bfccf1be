//! The state in which a 64-bit kernel is entered: flat segments, identity-mapped low 4 GiB.

use base::GuestPhys;
use cpu::{Activity, CpuState};
use memory::Ram;
use x86::control::{cr0, cr4, efer};
use x86::{DescriptorTable, Segment, SegmentIndex, flags, gpr, paging};

/// Code selector of the boot protocol (`__BOOT_CS`).
const CODE_SELECTOR: u16 = 0x10;
/// Data selector of the boot protocol (`__BOOT_DS`).
const DATA_SELECTOR: u16 = 0x18;
const GDT: GuestPhys = super::linux::GDT;
const PML4: GuestPhys = GuestPhys(0x9000);
const PDPT: GuestPhys = GuestPhys(0xa000);
/// Four page directories.
const PDS: GuestPhys = GuestPhys(0xb000);
/// End of what [`write_tables`] writes.
pub(super) const END: GuestPhys = GuestPhys(0xf000);

/// Writes page tables and the GDT. False when RAM ends before them.
#[must_use]
pub(super) fn write_tables(ram: &mut Ram) -> bool {
    let table = paging::PRESENT | paging::WRITABLE;
    let mut written = ram.write_u64(PML4, PDPT.0 | table);
    for gib in 0..4u64 {
        written &= ram.write_u64(PDPT.offset(8 * gib), PDS.offset(gib << 12).0 | table);
    }
    for leaf in 0..2048u64 {
        let entry = leaf << 21 | table | paging::LARGE;
        written &= ram.write_u64(PDS.offset(8 * leaf), entry);
    }
    // Null, unused, 64-bit code, data: as the segments below say.
    for (i, descriptor) in [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        written &= ram.write_u64(GDT.offset(8 * i as u64), descriptor);
    }
    written
}

/// Puts the processor at `entry` in 64-bit mode with interrupts off (SDM vol. 3A, 9.8.5).
pub(super) fn enter(state: &mut CpuState, entry: u64, stack: u64) {
    let flat = |selector, attributes| Segment { base: 0, limit: u32::MAX, attributes, selector };
    let common = Segment::CODE_OR_DATA | Segment::PRESENT | Segment::GRANULAR;
    state.seg = [flat(DATA_SELECTOR, common | Segment::DEFAULT_BIG | 3); 6];
    state.seg[SegmentIndex::Cs as usize] = flat(CODE_SELECTOR, common | Segment::LONG | 0xb);
    state.gdtr = DescriptorTable { base: GDT.0, limit: 31 };
    state.idtr = DescriptorTable::default();
    state.ldtr = Segment { limit: 0xffff, attributes: Segment::PRESENT | 2, ..Segment::default() };
    state.tr = Segment { limit: 0xffff, attributes: Segment::PRESENT | 0xb, ..Segment::default() };
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG;
    state.cr2 = 0;
    state.cr3 = PML4.0;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.rflags = flags::FIXED;
    state.gpr = [0; 16];
    state.gpr[gpr::RSP] = stack;
    state.rip = entry;
    state.cpl = 0;
    state.activity = Activity::Running;
}
