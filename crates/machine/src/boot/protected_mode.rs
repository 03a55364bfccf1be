//! The state in which a kernel is entered in 32-bit protected mode, paging off: what Multiboot
//! (version 0.6.96, 3.2), PVH (Xen, `docs/misc/pvh.pandoc`) and Linux's 32-bit boot protocol have in
//! common.

use base::GuestPhys;
use cpu::{Activity, CpuState};
use memory::Ram;
use x86::control::cr0;
use x86::{DescriptorTable, Segment, SegmentIndex, flags};

/// Selectors as loaded; Multiboot and PVH leave them and the GDT undefined.
const CODE_SELECTOR: u16 = 0x08;
const DATA_SELECTOR: u16 = 0x10;
/// Limit of a 32-bit task state segment without an I/O map.
const TASK_LIMIT: u32 = 0x67;

/// Puts the processor at `entry` with flat segments and interrupts off. There is no GDT, no IDT and
/// no stack: the kernel makes its own first.
pub(super) fn enter(state: &mut CpuState, entry: u32) {
    let flat = |selector, attributes| Segment { base: 0, limit: u32::MAX, attributes, selector };
    let common = Segment::CODE_OR_DATA | Segment::PRESENT | Segment::GRANULAR | Segment::DEFAULT_BIG;
    state.seg = [flat(DATA_SELECTOR, common | 3); 6];
    state.seg[SegmentIndex::Cs as usize] = flat(CODE_SELECTOR, common | 0xb);
    state.gdtr = DescriptorTable::default();
    state.idtr = DescriptorTable::default();
    state.ldtr = Segment { limit: 0xffff, attributes: Segment::PRESENT | 2, ..Segment::default() };
    state.tr = Segment { limit: TASK_LIMIT, attributes: Segment::PRESENT | 0xb, ..Segment::default() };
    state.cr0 = cr0::PE | cr0::ET;
    state.cr2 = 0;
    state.cr3 = 0;
    state.cr4 = 0;
    state.efer = 0;
    state.rflags = flags::FIXED;
    state.gpr = [0; 16];
    state.rip = u64::from(entry);
    state.cpl = 0;
    state.activity = Activity::Running;
}

/// Selectors of Linux's 32-bit protocol: `__BOOT_CS` and `__BOOT_DS`.
const LINUX_SELECTORS: (u16, u16) = (0x10, 0x18);

/// Writes the GDT that Linux's protocol wants at entry. False when RAM ends before it.
#[must_use]
pub(super) fn write_gdt(ram: &mut Ram, at: GuestPhys) -> bool {
    let descriptors = [0, 0, 0x00cf_9b00_0000_ffffu64, 0x00cf_9300_0000_ffff];
    (0..).zip(descriptors).all(|(i, descriptor)| ram.write_u64(at.offset(8 * i), descriptor))
}

/// Loads that GDT and its selectors; the descriptors are those that [`enter`] loads.
pub(super) fn use_gdt(state: &mut CpuState, at: GuestPhys) {
    let (code, data) = LINUX_SELECTORS;
    state.seg.iter_mut().for_each(|segment| segment.selector = data);
    state.seg[SegmentIndex::Cs as usize].selector = code;
    state.gdtr = DescriptorTable { base: at.0, limit: 31 };
}
