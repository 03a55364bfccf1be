//! Where things are in the guest's memory. The first 4 GiB are mapped at their own addresses, so
//! linear and physical ones agree until a stage turns the tables upside down.
//!
//! ```text
//! 0_1000 PML4, PDPT, four page directories, two page tables
//! 0_a000 IDT    0_b000 GDT and TSS    0_c000 firmware: stubs, handlers, the dispatcher
//! 0_e000 its counters    1_0000 stages' start states    1_4000 stacks
//! 2_0000 code of stages, two pages each
//! 8_0000 data, of users too    a_0000 virtqueues    1f_f000 the last page
//! ```

use std::ops::Range;

/// RAM: 2 MiB, and what a case adds.
pub const RAM: u64 = 2 << 20;
pub const PML4: u64 = 0x1000;
pub const PDPT: u64 = 0x2000;
pub const PDS: u64 = 0x3000;
/// Two page tables: the low 4 MiB.
pub const PTS: u64 = 0x7000;
/// Everything that translates addresses.
pub const TABLES: Range<u64> = PML4..0x9000;
pub const IDT: u64 = 0xa000;
pub const GDT: u64 = 0xb000;
/// Entries of the GDT, the TSS descriptor's two among them.
pub const GDT_ENTRIES: u64 = 32;
pub const LDT: u64 = 0xb400;
pub const TSS: u64 = 0xb800;
pub const FIRMWARE: Range<u64> = 0xc000..0xe000;
/// The number of the stage that runs, 32 bits.
pub const STAGE: u64 = 0xe000;
/// How many faults the stage may still have, 32 bits.
pub const FAULTS_LEFT: u64 = 0xe008;
/// Pointers to descriptor tables, ten bytes each: GDT, IDT.
pub const GDT_POINTER: u64 = 0xe010;
pub const IDT_POINTER: u64 = 0xe020;
/// Start states of stages.
pub const STARTS: u64 = 0x1_0000;
/// Bytes of one.
pub const START_SIZE: u64 = 256;
/// Tops of the stacks: interrupts', double faults', NMIs', kernel stages', user stages'.
pub const STACK_TOPS: [u64; 5] = [0x1_5000, 0x1_6000, 0x1_7000, 0x1_9000, 0x1_b000];
/// Code of stages.
pub const CODE: u64 = 0x2_0000;
/// Bytes of a stage's code.
pub const CODE_SIZE: u64 = 0x2000;
/// The most stages of a case.
pub const STAGES_MAX: usize = 40;
pub const CODE_END: u64 = CODE + STAGES_MAX as u64 * CODE_SIZE;
/// Bytes of a slot: after a fault the stage goes on at the next one.
pub const SLOT: u64 = 64;
/// What programs work on.
pub const DATA: Range<u64> = 0x8_0000..0x9_0000;
/// Virtqueues: a page for each ring's descriptors, then one for its two rings.
pub const QUEUES: u64 = 0xa_0000;
pub const QUEUE_SIZE: u64 = 0x2000;
/// The ones of a function.
pub const QUEUES_EACH: u64 = 4;
/// Buffers of virtqueues.
pub const BUFFERS: Range<u64> = 0xe_0000..0x10_0000;

/// BARs of function `n` as the guest sets them.
pub const fn msix_bar(n: u64) -> u64 {
    0xc000_0000 + n * 0x1_0000
}
/// The registers of function `n`.
pub const fn register_bar(n: u64) -> u64 {
    0xc000_8000 + n * 0x1_0000
}
/// Configuration space of slot `n` in the ECAM.
pub const fn ecam(n: u64) -> u64 {
    0xe000_0000 + (n << 15)
}

/// Selectors.
pub mod selector {
    pub const KERNEL_CODE: u16 = 0x08;
    pub const KERNEL_DATA: u16 = 0x10;
    pub const USER_CODE32: u16 = 0x1b;
    pub const USER_DATA: u16 = 0x23;
    pub const USER_CODE64: u16 = 0x2b;
    pub const KERNEL_CODE32: u16 = 0x30;
    pub const KERNEL_CODE16: u16 = 0x38;
    pub const CONFORMING: u16 = 0x40;
    pub const USER_CODE16: u16 = 0x4b;
    pub const TSS: u16 = 0x50;
    pub const LDT: u16 = 0x60;
}
