//! The guest around a case: a small operating system's worth of tables, and no devices.
//!
//! ```text
//!   physical   linear                what
//!   0x1000     K + 0x1000            GDT
//!   0x2000     K + 0x2000            IDT: each gate leads to its own HLT
//!   0x3000     K + 0x3000            TSS, for the handlers' stack pointer
//!   0x4000     K + 0x4000            the handlers, 16 bytes apart
//!   0x5000     K + 0x5000            their stack, growing down from its end
//!   0x6000     -                     page tables
//!   0x20000    see `layout`          the case's pages, user
//! ```
//!
//! `K` is [`KERNEL`]; those pages are supervisor-only, so a case that strays there faults.

use crate::case::Mode;
use crate::layout::{Access, Frame, PAGE};
use base::{GuestPhys, Position};
use cpu::{Bus, CpuState};
use memory::Ram;
use std::collections::BTreeMap;
use x86::Segment;
use x86::control::{cr0, cr4, efer};

/// Linear address of physical address 0 in the supervisor's half.
pub const KERNEL: u64 = 0xffff_8000_0000_0000;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const HANDLERS: u64 = 0x4000;
const STACK_END: u64 = 0x6000;
const TABLES: u64 = 0x6000;
const PAGES: u64 = 0x2_0000;
const RAM_BYTES: u64 = 0x4_0000;

/// Selectors as 64-bit Linux has them.
pub const KERNEL_CODE: u16 = 0x10;
const TASK: u16 = 0x40;
/// 32-bit user code.
pub const USER_CODE_32: u16 = 0x23;
/// User data.
pub const USER_DATA: u16 = 0x2b;
/// 64-bit user code.
pub const USER_CODE_64: u16 = 0x33;

/// Bits of page-table entries.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;

/// RAM and nothing else.
pub struct Board {
    pub ram: Ram,
    /// Physical address of the page-table entry of each frame.
    leaves: BTreeMap<Frame, u64>,
}

impl Board {
    /// RAM with all tables in it; no page of a case is mapped yet.
    pub fn new() -> Self {
        let ram = Ram::new(RAM_BYTES).expect("a quarter of a megabyte");
        let mut board = Self { ram, leaves: BTreeMap::new() };
        let mut next = TABLES + PAGE as u64;
        for page in 1..STACK_END / PAGE as u64 {
            let phys = page * PAGE as u64;
            let leaf = board.walk(KERNEL + phys, 0, &mut next);
            board.put(leaf, phys | PRESENT | WRITABLE);
        }
        for frame in Frame::ALL {
            let leaf = board.walk(frame.address(), USER, &mut next);
            board.leaves.insert(frame, leaf);
        }
        assert!(next <= PAGES, "the page tables have room");
        board.descriptors();
        board
    }

    fn put(&mut self, at: u64, value: u64) {
        assert!(self.ram.write_u64(GuestPhys(at), value), "the tables are in RAM");
    }

    fn get(&self, at: u64) -> u64 {
        self.ram.read_u64(GuestPhys(at)).expect("the tables are in RAM")
    }

    /// Where the leaf entry of `linear` is; makes the tables above it.
    fn walk(&mut self, linear: u64, user: u64, next: &mut u64) -> u64 {
        let mut table = TABLES;
        for level in [39, 30, 21] {
            let entry = table + (linear >> level & 511) * 8;
            if self.get(entry) & PRESENT == 0 {
                self.put(entry, *next | PRESENT | WRITABLE | user);
                *next += PAGE as u64;
            }
            table = self.get(entry) & !0xfff;
        }
        table + (linear >> 12 & 511) * 8
    }

    fn descriptors(&mut self) {
        let flat = |kind: u64| 0x000f_0000_0000_ffff | kind << 40;
        let (long, big, granular) = (1 << 53, 1 << 54, 1 << 55);
        self.put(GDT + u64::from(KERNEL_CODE), flat(0x9b) | long | granular);
        self.put(GDT + 0x18, flat(0x93) | big | granular);
        self.put(GDT + u64::from(USER_CODE_32 & !7), flat(0xfb) | big | granular);
        self.put(GDT + u64::from(USER_DATA & !7), flat(0xf3) | big | granular);
        self.put(GDT + u64::from(USER_CODE_64 & !7), flat(0xfb) | long | granular);
        let tss = KERNEL + TSS;
        self.put(GDT + 0x40, 0x67 | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56);
        self.put(GDT + 0x48, tss >> 32);
        // RSP0 lies at offset 4.
        assert!(self.ram.write(GuestPhys(TSS + 4), &(KERNEL + STACK_END).to_le_bytes()));
        // The I/O permission bitmap lies beyond the limit: every port is refused.
        assert!(self.ram.write(GuestPhys(TSS + 0x66), &0x68_u16.to_le_bytes()));
        for vector in 0..256 {
            let handler = KERNEL + HANDLERS + vector * 16;
            // Programs may use INT3 and INTO.
            let privilege = if vector == 3 || vector == 4 { 3 } else { 0 };
            let kind = 0x8e | privilege << 5;
            let low = handler & 0xffff | u64::from(KERNEL_CODE) << 16 | kind << 40;
            self.put(IDT + vector * 16, low | (handler >> 16 & 0xffff) << 48);
            self.put(IDT + vector * 16 + 8, handler >> 32);
            assert!(self.ram.write(GuestPhys(handler - KERNEL), &[0xf4]), "HLT");
        }
    }

    /// Physical address of the memory behind `frame`.
    pub fn phys(frame: Frame) -> GuestPhys {
        GuestPhys(PAGES + frame as u64 * PAGE as u64)
    }

    /// Maps `frame` as `access` says, or unmaps it; Accessed and Dirty bits are clear afterwards.
    pub fn map(&mut self, frame: Frame, access: Option<Access>) {
        let entry = access.map_or(0, |access| {
            let writable = if access.writable() { WRITABLE } else { 0 };
            let no_execute = if access.executable() { 0 } else { NO_EXECUTE };
            Self::phys(frame).0 | PRESENT | USER | writable | no_execute
        });
        let leaf = self.leaves[&frame];
        if self.get(leaf) != entry {
            self.put(leaf, entry);
        }
    }

    /// What an exception handler finds on its stack, if the last exception pushed an error code or
    /// if not: error code, RIP, CS, RFLAGS, RSP, SS.
    pub fn pushed(&self, with_code: bool) -> [u64; 6] {
        let words = if with_code { 6 } else { 5 };
        let mut frame = [0; 6];
        for word in 0..words {
            frame[6 - words + word] = self.get(STACK_END - 8 * (words - word) as u64);
        }
        frame
    }

    /// The vector of the handler that halted with `rip`.
    pub fn vector(rip: u64) -> Option<u8> {
        let offset = rip.checked_sub(KERNEL + HANDLERS + 1)?;
        (offset % 16 == 0).then(|| u8::try_from(offset / 16).ok())?
    }
}

/// Everything of the state that is the same for all cases of a mode.
pub fn system_state(state: &mut CpuState, mode: Mode) {
    state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    state.xcr0 = 7;
    state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.cr3 = TABLES;
    state.gdtr.base = KERNEL + GDT;
    state.gdtr.limit = 0x4f;
    state.idtr.base = KERNEL + IDT;
    state.idtr.limit = 0xfff;
    state.ldtr = Segment::default();
    state.tr = Segment { base: KERNEL + TSS, limit: 0x67, attributes: 0x8b, selector: TASK };
    state.activity = cpu::Activity::Running;
    state.cpl = 3;
    let flat = |attributes, selector| Segment { base: 0, limit: u32::MAX, attributes, selector };
    let data = flat(0xc0f3, USER_DATA);
    state.seg = [Segment::default(); 6];
    match mode {
        Mode::Long => state.seg[1] = flat(0xa0fb, USER_CODE_64),
        Mode::Compatibility => {
            state.seg[1] = flat(0xc0fb, USER_CODE_32);
            (state.seg[0], state.seg[3]) = (data, data);
        }
    }
    state.seg[2] = data;
}

impl Bus for Board {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }
    fn mmio_read(&mut self, _: Position, _: GuestPhys, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _: Position, _: GuestPhys, _: &[u8]) {}
    fn io_read(&mut self, _: Position, _: u16, _: usize) -> u32 {
        u32::MAX
    }
    fn io_write(&mut self, _: Position, _: u16, _: usize, _: u32) {}
    fn msr_read(&mut self, _: Position, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&mut self, _: Position, _: u32, _: u64) -> bool {
        false
    }
    fn tsc(&mut self, at: Position) -> u64 {
        at.count()
    }
    fn read_cr8(&mut self) -> u64 {
        0
    }
    fn write_cr8(&mut self, _: Position, _: u64) {}
    fn interrupt_pending(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self, _: Position) -> Option<u8> {
        None
    }
    fn horizon(&self) -> Position {
        Position::NEVER
    }
}
