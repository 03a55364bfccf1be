//! What translated code reads and writes directly, at fixed addresses in the arena.
//!
//! All tables are flushed by zeroing, so zero must never match. That holds because a slot's index
//! is part of what it is compared with; the slots that could match the zero tag of page (or target)
//! zero get a value belonging to another slot instead.

use super::blocks::Mode;
use super::fast_calls::Ready;
use super::groups::GROUP_SLOTS;
use super::returns::Known;
use super::table_stores::{TABLE_PAGES, TablePage};
use super::xstate::Area;
use crate::CpuState;
use std::mem::offset_of;

/// Entries of a data TLB: its index is a zero extension, the cheapest without flags, of 16 bits in the kernel's own set,
/// which is not emptied when the address space changes, and of 8 bits elsewhere.
pub const fn tlb_entries(set: usize) -> usize {
    if set == KERNEL { TLB_ENTRIES_MAX } else { 1 << 8 }
}
/// See there. Each set has room for so many; what it does not use is never touched, so no memory of the host's.
const TLB_ENTRIES_MAX: usize = 1 << 16;
/// Slots that say which translated page stands behind a virtual page.
pub const CODE_SLOTS: usize = 8192;
/// Entries of the jump cache (the index is a 16-bit zero extension of the target).
pub const JUMP_ENTRIES: usize = 1 << 16;
/// Entries of the second jump cache, and how far [`spread`] shifts.
const JUMPS_BEHIND: usize = 1 << (64 - SPREAD_SHIFT);
/// See there.
pub const SPREAD_SHIFT: u8 = 47;
/// Entries of one way of a spill table.
pub const SPILL_ENTRIES: usize = 16384;
/// Ways of a spill table. Which one an address space uses follows from its generation, so that
/// programs with the same addresses (after a fork) do not evict each other's.
pub const SPILL_WAYS: usize = 4;
/// Number of mode sets.
pub const SETS: usize = 6;
/// The set of the kernel's code.
pub const KERNEL: usize = Mode::of_bits(64).set();
/// That of the same while SMAP is lifted, which accesses both halves of the address space.
pub const LIFTED: usize = Mode::of_bits(64).with(Mode::AC).set();

/// One entry of the jump cache.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct JumpEntry {
    /// Minus the target's address, so that one `lea` gives zero on a match.
    pub neg_target: u64,
    /// Host address of the target's checked entry.
    pub code: u64,
}

/// A direct-mapped table of data translations, for one kind of access.
#[repr(C, align(64))]
pub struct DataTlb {
    /// Minus the page address.
    pub tag: [u64; TLB_ENTRIES_MAX],
    /// Host address less guest address.
    pub addend: [u64; TLB_ENTRIES_MAX],
}

/// A translation kept beside the direct-mapped table.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SpillEntry {
    /// Page address plus generation (see `spaces`); 0: none.
    pub key: u64,
    /// As in [`DataTlb`].
    pub addend: u64,
}

/// Tables of one processor mode (kernel, kernel with SMAP lifted, user, user mirrored, 32-bit user, others):
/// translated code has its mode's tables wired in, so that a mode switch flushes nothing.
#[repr(C, align(64))]
pub struct ModeSet {
    /// Data translations for reads and for writes, apart so that a copy between two buffers does
    /// not make them evict each other.
    pub data: [DataTlb; 2],
    /// What does not fit there; searched by emitted code on a miss.
    pub spill: [[[SpillEntry; SPILL_ENTRIES]; SPILL_WAYS]; 2],
    /// Pages with page tables; of the kernel's set only.
    pub table_pages: [TablePage; TABLE_PAGES],
    /// The low 12 bits of a spill entry's key of the current address space; never zero.
    pub generation: [u64; 2],
    /// Where that address space's way of the spill table begins, in bytes.
    pub way: [u64; 2],
    /// Identity of the code page behind each virtual page (see `blocks`); 0: unknown.
    pub code_page: [u32; CODE_SLOTS],
    /// Indirect jump targets, by their low 16 bits.
    pub jump: [JumpEntry; JUMP_ENTRIES],
    /// The same by [`spread`], for what has been overwritten there.
    pub jump_behind: [JumpEntry; JUMPS_BEHIND],
}

/// A host fault in translated code, noted by the signal handler.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct HostFault {
    /// Exception vector (the kernel's `trapno`).
    pub vector: u64,
    /// Host instruction pointer.
    pub rip: u64,
    /// The address accessed, of a page fault.
    pub address: u64,
    /// The error code.
    pub error: u64,
}

/// See the module's head.
#[repr(C, align(64))]
pub struct Hot {
    pub state: CpuState,
    /// Rust's stack pointer while translated code runs.
    pub host_rsp: u64,
    /// Where `enter` jumps.
    pub target: u64,
    /// The budget register while outside (see `regs`).
    pub budget: u64,
    /// Status flags on the way in and out.
    pub flags: u64,
    /// Which exit was taken (index into the exit table).
    pub exit: u64,
    /// Host R10 and R11 at an exit, address and scratch of the site, and when it is gone back to.
    pub r10: u64,
    pub r11: u64,
    /// The interrupt, direction and alignment flags (0 or 1), and all that are neither these nor
    /// status flags, while translated code runs.
    pub interrupts: u32,
    pub direction: u32,
    pub alignment: u32,
    pub other_flags: u32,
    /// Whether a maskable interrupt waits.
    pub pending: u32,
    /// Whether PAUSE gives way to another processor.
    pub yields: u32,
    /// Whether pages have to be unmapped, or one mapped, before a program runs (see `mirror`).
    pub stale: u32,
    /// Budget register at the last STI that enabled interrupts (0: none since the last entry), and
    /// how many instructions counted by then had not run.
    pub sti_rest: u32,
    pub sti_budget: u64,
    /// Whether the time-stamp counter is `tsc_base - (budget >> 6)`.
    pub tsc_linear: u32,
    pub tsc_base: u64,
    /// Where a memory access whose translation was found in the spill table is tried again.
    pub retry: u64,
    /// See there.
    pub ready: Ready,
    /// See there.
    pub known: Known,
    /// Where a thunk that comes back goes on (see [`super::emit::Emitter::call`]).
    pub behind: u64,
    /// The jump cache of the mode that SYSRET leads to.
    pub program_jump: u64,
    /// In which bits a program's stack pointer may not differ from where one was found to be well, for SYSRET to lead
    /// there without a look from Rust.
    pub stack_mask: u64,
    pub stack_at: u64,
    /// Address of the last byte of the access that it is searched for, in the kernel's writes.
    pub last_byte: u64,
    /// The guest's RAX while the spill table is searched.
    pub temporary_rax: u64,
    /// Status flags meanwhile.
    pub searching: u64,
    /// The addends that groups of accesses share; see `groups`.
    pub groups: [u64; GROUP_SLOTS],
    /// The linear address of an operand of XSAVEC or XRSTOR.
    pub operand: u64,
    /// Holds a value between the two memory accesses of one instruction.
    pub temporary: u64,
    /// What an indirect call's return address has overwritten, should the call fault after all.
    pub overwritten: u64,
    /// Rust's MXCSR.
    pub host_mxcsr: u32,
    pub fault: HostFault,
    /// Operands of instructions that are executed precisely.
    pub bounce: Bounce,
    /// What XSAVEC looks at, and what XRSTOR takes an initial configuration from.
    pub xsave_area: Area,
    pub initial_area: Area,
    pub sets: [ModeSet; SETS],
}

/// Room for a memory operand at any alignment below 64.
#[repr(C, align(64))]
pub struct Bounce(pub [u8; 256]);

/// Offsets of `Hot`'s fields from the arena's base.
pub struct Field;

#[allow(missing_docs)]
impl Field {
    pub const fn gpr(n: usize) -> u32 {
        (offset_of!(Hot, state) + offset_of!(CpuState, gpr) + 8 * n) as u32
    }
    pub const fn segment_base(n: usize) -> u32 {
        (offset_of!(Hot, state) + offset_of!(CpuState, seg) + n * size_of::<x86::Segment>()) as u32
    }
    pub const fn selector(n: usize) -> u32 {
        Self::segment_base(n) + offset_of!(x86::Segment, selector) as u32
    }
    pub const INTERRUPTS: u32 = offset_of!(Hot, interrupts) as u32;
    pub const DIRECTION: u32 = offset_of!(Hot, direction) as u32;
    pub const ALIGNMENT: u32 = offset_of!(Hot, alignment) as u32;
    pub const OTHER_FLAGS: u32 = offset_of!(Hot, other_flags) as u32;
    pub const PENDING: u32 = offset_of!(Hot, pending) as u32;
    pub const YIELDS: u32 = offset_of!(Hot, yields) as u32;
    pub const STALE: u32 = offset_of!(Hot, stale) as u32;
    pub const STI_REST: u32 = offset_of!(Hot, sti_rest) as u32;
    pub const STI_BUDGET: u32 = offset_of!(Hot, sti_budget) as u32;
    pub const TSC_LINEAR: u32 = offset_of!(Hot, tsc_linear) as u32;
    pub const TSC_BASE: u32 = offset_of!(Hot, tsc_base) as u32;
    const MSR: usize = offset_of!(Hot, state) + offset_of!(CpuState, msr);
    pub const KERNEL_GS_BASE: u32 = (Self::MSR + offset_of!(crate::SystemMsrs, kernel_gs_base)) as u32;
    pub const LSTAR: u32 = (Self::MSR + offset_of!(crate::SystemMsrs, lstar)) as u32;
    pub const SFMASK: u32 = (Self::MSR + offset_of!(crate::SystemMsrs, sfmask)) as u32;
    pub const CR0: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, cr0)) as u32;
    pub const CR2: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, cr2)) as u32;
    pub const CR3: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, cr3)) as u32;
    pub const CR4: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, cr4)) as u32;
    pub const EFER: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, efer)) as u32;
    pub const CPL: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, cpl)) as u32;
    pub const READY_SYSCALL: u32 = (offset_of!(Hot, ready) + offset_of!(Ready, syscall)) as u32;
    pub const READY_SYSRET: u32 = (offset_of!(Hot, ready) + offset_of!(Ready, sysret)) as u32;
    pub const KNOWN: u32 = offset_of!(Hot, known) as u32;
    pub const NMI_BLOCKED: u32 = (offset_of!(Hot, state) + offset_of!(CpuState, nmi_blocked)) as u32;
    pub const TSC_AUX: u32 = (Self::MSR + offset_of!(crate::SystemMsrs, tsc_aux)) as u32;
    pub const fn ymm(n: usize) -> u32 {
        (offset_of!(Hot, state) + offset_of!(CpuState, fpu) + offset_of!(crate::Fpu, ymm) + 32 * n) as u32
    }
    pub const MXCSR: u32 =
        (offset_of!(Hot, state) + offset_of!(CpuState, fpu) + offset_of!(crate::Fpu, mxcsr)) as u32;
    pub const HOST_RSP: u32 = offset_of!(Hot, host_rsp) as u32;
    pub const TARGET: u32 = offset_of!(Hot, target) as u32;
    pub const BUDGET: u32 = offset_of!(Hot, budget) as u32;
    pub const FLAGS: u32 = offset_of!(Hot, flags) as u32;
    pub const EXIT: u32 = offset_of!(Hot, exit) as u32;
    pub const R10: u32 = offset_of!(Hot, r10) as u32;
    pub const R11: u32 = offset_of!(Hot, r11) as u32;
    pub const fn group(slot: u8) -> u32 {
        (offset_of!(Hot, groups) + 8 * slot as usize) as u32
    }
    pub const TEMPORARY: u32 = offset_of!(Hot, temporary) as u32;
    pub const OVERWRITTEN: u32 = offset_of!(Hot, overwritten) as u32;
    pub const HOST_MXCSR: u32 = offset_of!(Hot, host_mxcsr) as u32;
    pub const OPERAND: u32 = offset_of!(Hot, operand) as u32;
    pub const XSAVE_AREA: u32 = offset_of!(Hot, xsave_area) as u32;
    pub const INITIAL_AREA: u32 = offset_of!(Hot, initial_area) as u32;
    pub const BOUNCE: u32 = offset_of!(Hot, bounce) as u32;
    pub const fn set(n: usize) -> u32 {
        (offset_of!(Hot, sets) + n * size_of::<ModeSet>()) as u32
    }
    pub const RETRY: u32 = offset_of!(Hot, retry) as u32;
    pub const BEHIND: u32 = offset_of!(Hot, behind) as u32;
    pub const PROGRAM_JUMP: u32 = offset_of!(Hot, program_jump) as u32;
    pub const STACK_MASK: u32 = offset_of!(Hot, stack_mask) as u32;
    pub const STACK_AT: u32 = offset_of!(Hot, stack_at) as u32;
    pub const LAST_BYTE: u32 = offset_of!(Hot, last_byte) as u32;
    pub const TEMPORARY_RAX: u32 = offset_of!(Hot, temporary_rax) as u32;
    pub const SEARCHING: u32 = offset_of!(Hot, searching) as u32;
    /// A mode set's table for reads or writes.
    pub const fn data(write: bool) -> u32 {
        (offset_of!(ModeSet, data) + write as usize * size_of::<DataTlb>()) as u32
    }
    pub const TAG: u32 = offset_of!(DataTlb, tag) as u32;
    pub const ADDEND: u32 = offset_of!(DataTlb, addend) as u32;
    pub const fn spill(write: bool) -> u32 {
        (offset_of!(ModeSet, spill) + write as usize * SPILL_WAYS * SPILL_WAY) as u32
    }
    pub const fn generation(write: bool) -> u32 {
        (offset_of!(ModeSet, generation) + 8 * write as usize) as u32
    }
    pub const fn way(write: bool) -> u32 {
        (offset_of!(ModeSet, way) + 8 * write as usize) as u32
    }
    pub const TABLE_PAGES: u32 = offset_of!(ModeSet, table_pages) as u32;
    pub const CODE_PAGE: u32 = offset_of!(ModeSet, code_page) as u32;
    pub const JUMP: u32 = offset_of!(ModeSet, jump) as u32;
    pub const JUMP_BEHIND: u32 = offset_of!(ModeSet, jump_behind) as u32;
}

/// The tag of an entry that matches nothing.
///
/// Zero does for every slot but two: an access matches it whose *last* byte lies on page zero, so
/// slot 0, of that page, and the last slot, of the page at the end of the address space, from which
/// an access can run over into page zero. They get the tag of page two, which only accesses that
/// begin on pages one and two can match, and those look at other slots.
pub const fn empty_tag(set: usize, slot: usize) -> u64 {
    if slot == 0 || slot == tlb_entries(set) - 1 { 0x2000_u64.wrapping_neg() } else { 0 }
}

/// What jump targets are multiplied with to spread them.
pub const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The slot of a target in the second jump cache.
pub const fn spread(target: u64) -> usize {
    (target.wrapping_mul(SPREAD) >> SPREAD_SHIFT) as usize
}

/// Bytes of one way of a spill table.
const SPILL_WAY: usize = size_of::<[SpillEntry; SPILL_ENTRIES]>();

/// The way of a spill table that a generation uses.
pub const fn spill_way(generation: u64) -> usize {
    generation as usize % SPILL_WAYS
}

/// Where that begins, in bytes.
pub const fn spill_way_offset(generation: u64) -> u64 {
    (spill_way(generation) * SPILL_WAY) as u64
}

/// The slot of a virtual page in the data TLBs of a set.
pub const fn tlb_slot(set: usize, page: u64) -> usize {
    page as usize % tlb_entries(set)
}

/// By how many bits a page's number is shifted and folded into its slot of a spill table. The kernel knows
/// a page by several addresses, which like to be the same in their low bits.
pub const SPILL_FOLD: u8 = 14;

/// The slot of a virtual page in a way of a spill table.
pub const fn spill_slot(page: u64) -> usize {
    (page ^ page >> SPILL_FOLD) as usize % SPILL_ENTRIES
}

/// The slot of a virtual page in the code-page table.
pub const fn code_slot(page: u64) -> usize {
    page as usize % CODE_SLOTS
}
