//! IRETQ from the kernel to a 64-bit program without leaving translated code.
//!
//! Every page fault and every interrupt of a program ends with one. What it depends on beyond its frame is two
//! descriptors of the GDT, nearly always the same two: so Rust executes the first, and keeps of it which
//! selectors it was with, what the descriptors' eight bytes were and what CS and SS became ([`Known`]). As long as the
//! frame has these selectors and the GDT those bytes, the next one does the same. The bytes are read anew each
//! time, through a translation in the kernel's spill table: it is gone when the page tables change.
//!
//! For the rest see [`super::fast_calls`]: the same family of modes, and the same things left to Rust.

use super::asm::{Mem, Reg, Width};
use super::blocks::Mode;
use super::emit::Emitter;
use super::fast_calls::{SYSRET_CARE, Thunk, go, second_half};
use super::hot::{Field, Hot, KERNEL, SpillEntry};
use super::spaces::Kind;
use super::tlb::{Mapping, Touched};
use super::vcpu::Vcpu;
use crate::descriptor::TABLE_LOCAL;
use crate::marks::mark;
use crate::system::DROPPED;
use crate::walk::{self, Access};
use crate::{Bus, CpuState};
use base::{GuestVirt, PAGE_SIZE};
use std::mem::offset_of;
use x86::{SegmentIndex, flags};

/// Bytes of IRETQ's frame.
const FRAME: usize = 40;

/// A return to a program, to be done again likewise.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Known {
    /// Host address of the spill-table entry for the GDT's page; 0: nothing is known.
    entry: u64,
    /// What its key has to be.
    key: u64,
    /// CS and SS, as in the frame.
    selectors: [u64; 2],
    /// Linear addresses of their descriptors, and what stands there.
    places: [u64; 2],
    descriptors: [u64; 2],
    /// What they become, as in [`super::fast_calls::Ready`].
    segments: [u64; 2],
    /// Where the GDT is, and its limit.
    table: (u64, u16),
    /// What the segments were that it did not change.
    kept: [u64; 4],
}

#[allow(missing_docs)]
impl Known {
    pub const ENTRY: u32 = offset_of!(Known, entry) as u32;
    pub const KEY: u32 = offset_of!(Known, key) as u32;
    pub const SEGMENTS: u32 = offset_of!(Known, segments) as u32;
    pub const fn selector(n: usize) -> u32 {
        (offset_of!(Known, selectors) + 8 * n) as u32
    }
    pub const fn place(n: usize) -> u32 {
        (offset_of!(Known, places) + 8 * n) as u32
    }
    pub const fn descriptor(n: usize) -> u32 {
        (offset_of!(Known, descriptors) + 8 * n) as u32
    }
}

/// Forgets what is known if what it went by has changed.
pub fn ready(hot: &mut Hot) {
    let (known, state) = (&hot.known, &hot.state);
    let same = || {
        let generation = hot.sets[KERNEL].generation[Kind::Read as usize];
        known.key & 0xfff == generation && known.table == table(state) && known.kept == kept(state)
    };
    if known.entry != 0 && !same() {
        hot.known.entry = 0;
    }
}

fn table(state: &CpuState) -> (u64, u16) {
    (state.gdtr.base, state.gdtr.limit)
}

fn kept(state: &CpuState) -> [u64; 4] {
    DROPPED.map(|index| second_half(state.seg[index as usize]))
}

/// Emits IRETQ in the kernel's code.
pub fn emit(e: &mut Emitter) {
    mark!(FastIretq);
    let frame = e.stack(0);
    let frame = e.check(frame, FRAME, false);
    e.asm.lea(Width::W64, Reg::R10, frame);
    go(e, e.thunks.fast_calls.iretq);
}

impl Thunk<'_> {
    /// With the frame's host address in R10.
    pub(super) fn iretq(&mut self) -> u32 {
        let start = self.begin();
        self.load(Width::W64, Reg::R11, Field::KNOWN + Known::ENTRY);
        self.asm.bytes(&[0x4d, 0x85, 0xdb]); // test r11, r11
        self.slow.push(self.asm.jcc_forward(4));
        let part = |offset: usize| Mem::base(Reg::R11, offset as i32);
        self.unless_same(part(offset_of!(SpillEntry, key)), Known::KEY);
        self.asm.load(Width::W64, Reg::R11, part(offset_of!(SpillEntry, addend)));
        for n in 0..2 {
            self.load(Width::W64, Reg::RCX, Field::KNOWN + Known::place(n));
            let place = Mem::base_index(Reg::R11, Reg::RCX, 0);
            self.unless_same(place, Known::descriptor(n));
            self.unless_same(frame(1 + 3 * n), Known::selector(n));
        }
        self.load(Width::W32, Reg::RAX, Field::NMI_BLOCKED);
        self.asm.bytes(&[0x84, 0xc0]); // test al, al
        self.slow.push(self.asm.jcc_forward(5));
        self.asm.load(Width::W32, Reg::RCX, frame(2));
        self.asm.bytes(&[0x81, 0xe1]); // and ecx, !RF
        self.asm.bytes(&(!flags::RF as u32).to_le_bytes());
        self.asm.mov(Width::W32, Reg::RAX, Reg::RCX);
        self.load(Width::W32, Reg::R11, Field::OTHER_FLAGS);
        self.asm.bytes(&[0x44, 0x31, 0xd8]); // xor eax, r11d
        self.unless_clear(&[0xa9], SYSRET_CARE); // test eax, …
        self.unless_clear(&[0x41, 0xf7, 0xc3], flags::NT as u32); // test r11d, …
        self.asm.load(Width::W64, Reg::RAX, frame(0));
        self.asm.bytes(&[0x48, 0xc1, 0xe8, 47]); // shr rax, 47
        self.slow.push(self.asm.jcc_forward(5));
        self.unless_quiet();
        self.asm.load(Width::W64, Reg::RAX, frame(3));
        self.unless_claimed();
        self.asm.load(Width::W64, Reg::RSP, frame(3));
        self.asm.load(Width::W64, Reg::R10, frame(0));
        self.finish(None, Field::KNOWN + Known::SEGMENTS, 3);
        start
    }

    /// Away if memory is not what is known; RAX is lost.
    fn unless_same(&mut self, mem: Mem, known: u32) {
        self.asm.load(Width::W64, Reg::RAX, mem);
        let known = self.field(Field::KNOWN + known);
        self.asm.op_cmp(Reg::RAX, known);
        self.slow.push(self.asm.jcc_forward(5));
    }
}

fn frame(word: usize) -> Mem {
    Mem::base(Reg::R10, 8 * word as i32)
}

impl Vcpu {
    /// Keeps what an IRETQ, which Rust has executed in the kernel's code of a mode, has done to CS and SS.
    pub(super) fn note_return(&mut self, bus: &mut dyn Bus, mode: Mode) {
        self.hot().known.entry = 0;
        let state = self.state();
        let segments = [SegmentIndex::Cs, SegmentIndex::Ss].map(|index| state.seg[index as usize]);
        let flat = segments.iter().all(|segment| segment.base == 0 && segment.selector & TABLE_LOCAL == 0);
        if mode.set() != KERNEL || state.cpl != 3 || !state.code64() || !flat {
            return;
        }
        let table = table(state);
        let places = segments.map(|segment| table.0.wrapping_add(u64::from(segment.selector & !7)));
        let page = GuestVirt(places[0]).page_base();
        let inside = |at: u64| at.checked_sub(page.0).is_some_and(|offset| offset <= PAGE_SIZE as u64 - 8);
        if !places.into_iter().all(inside) {
            return;
        }
        let Ok(found) = walk::translate(state, bus.ram(), page, Access::system(false)) else { return };
        let (long, kept) = (state.long_mode(), kept(state));
        let Some(index) = bus.ram().page_index(found.phys) else { return };
        let mapping = Mapping { entries: &found.entries[..found.levels], long };
        let access = Touched { write: false, address: page, page: index };
        self.tlb.fill_data(&self.arena, bus.ram(), mode, access, false, &mapping);
        if bus.ram().is_disturbed() {
            return;
        }
        let bytes = bus.ram().page_bytes(index);
        let descriptors = places.map(|at| {
            let at = GuestVirt(at).page_offset();
            u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
        });
        let Some((entry, key)) = self.tlb.spilled(&self.arena, page) else { return };
        let selectors = segments.map(|segment| u64::from(segment.selector));
        let segments = segments.map(second_half);
        self.hot().known = Known { entry, key, selectors, places, descriptors, segments, table, kept };
    }
}
