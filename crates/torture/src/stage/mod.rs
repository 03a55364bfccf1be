//! Stages: what a hostile guest does, in slots that a fault leads from one to the next.

mod paging;
mod ports;
mod soup;
mod system;
mod virtio;

use crate::assemble::Code;
use crate::case::Devices;
use crate::layout::{self, selector};
use dice::Dice;

pub(crate) use system::any_descriptor;
pub(crate) use virtio::memory as virtio_memory;

/// What a stage is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Random bytes, mostly at CPL 3.
    Bytes,
    /// Bytes with the structure of instructions.
    Soup,
    /// Control registers, MSRs, segments, descriptor tables, interrupts.
    System,
    /// Page tables and what is translated by them.
    Paging,
    /// Port accesses.
    Ports,
    /// Accesses to device memory.
    Mmio,
    /// A driver of virtio devices that breaks the rules.
    Virtio,
}

impl Kind {
    /// Every kind, with its weight.
    pub(crate) const WEIGHTED: [Kind; 14] = [
        Kind::Bytes,
        Kind::Bytes,
        Kind::Bytes,
        Kind::Soup,
        Kind::Soup,
        Kind::Soup,
        Kind::System,
        Kind::System,
        Kind::Paging,
        Kind::Paging,
        Kind::Ports,
        Kind::Mmio,
        Kind::Virtio,
        Kind::Virtio,
    ];
}

/// A piece of a stage: at most `layout::SLOT` bytes of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot(pub Vec<u8>);

impl Slot {
    /// A slot that does nothing.
    pub fn empty() -> Self {
        Self(Vec::new())
    }
}

/// A stage.
#[derive(Clone, Debug)]
pub struct Stage {
    /// What it is about.
    pub kind: Kind,
    /// Which of the places for code it has.
    pub place: u64,
    /// Its code.
    pub slots: Vec<Slot>,
    /// The privilege level it starts at.
    pub user: bool,
    pub(crate) gpr: [u64; 16],
    pub(crate) cs: u16,
    pub(crate) ss: u16,
    pub(crate) rflags: u64,
    pub(crate) watchdog: u32,
    pub(crate) faults: u32,
    pub(crate) reload: bool,
}

impl Stage {
    /// The stage at `place`, from its own dice.
    pub(crate) fn new(kind: Kind, place: u64, devices: &Devices, dice: &mut Dice) -> Self {
        let user = match kind {
            Kind::Bytes => dice.percent(65),
            Kind::Soup => dice.percent(50),
            _ => false,
        };
        let (cs, ss) = segments(kind, user, dice);
        let count = (layout::CODE_SIZE / layout::SLOT) as usize - 1;
        let slots = match kind {
            Kind::Bytes => (0..count).map(|_| soup::bytes(dice)).collect(),
            Kind::Soup => (0..count)
                .map(|_| soup::soup(dice, cs == selector::USER_CODE64 || cs == selector::KERNEL_CODE))
                .collect(),
            Kind::System => (0..count).map(|_| system::slot(dice)).collect(),
            Kind::Paging => (0..count).map(|_| paging::slot(dice)).collect(),
            Kind::Ports => (0..count).map(|_| ports::port(dice)).collect(),
            Kind::Mmio => (0..count).map(|_| ports::mmio(dice)).collect(),
            Kind::Virtio => virtio::driver(dice, devices, count),
        };
        let mut gpr = std::array::from_fn(|_| value(dice));
        let stack = layout::STACK_TOPS[if user { 4 } else { 3 }];
        gpr[4] = if dice.percent(90) { stack - 256 } else { value(dice) };
        let interrupts = if dice.percent(85) { x86::flags::IF } else { 0 };
        let random = if dice.percent(20) { dice.bits() & 0x24_4dd5 } else { 0 };
        Self {
            kind,
            place,
            slots,
            user,
            gpr,
            cs,
            ss,
            rflags: x86::flags::FIXED | interrupts | random,
            watchdog: 2000 + dice.below(20_000) as u32,
            faults: 32 + dice.below(200) as u32,
            reload: dice.percent(60),
        }
    }

    /// Where its code begins.
    pub(crate) fn address(&self) -> u64 {
        layout::CODE + self.place * layout::CODE_SIZE
    }

    /// Its code: each slot filled up with NOPs, an undefined instruction at the end.
    pub(crate) fn code(&self) -> Vec<u8> {
        let mut code = Vec::with_capacity(layout::CODE_SIZE as usize);
        for (n, slot) in self.slots.iter().enumerate() {
            code.extend_from_slice(&slot.0[..slot.0.len().min(layout::SLOT as usize)]);
            code.resize((n + 1) * layout::SLOT as usize, 0x90);
        }
        code.extend([0x0f, 0x0b]);
        code.resize(layout::CODE_SIZE as usize, 0x90);
        code
    }
}

fn segments(kind: Kind, user: bool, dice: &mut Dice) -> (u16, u16) {
    let data = if user { selector::USER_DATA } else { selector::KERNEL_DATA };
    if !matches!(kind, Kind::Bytes | Kind::Soup) {
        return (selector::KERNEL_CODE, data);
    }
    let code = match (user, dice.below(10)) {
        (true, 0..=5) => selector::USER_CODE64,
        (true, 6..=8) => selector::USER_CODE32,
        (true, _) => selector::USER_CODE16,
        (false, 0..=6) => selector::KERNEL_CODE,
        (false, 7) => selector::KERNEL_CODE32,
        (false, 8) => selector::KERNEL_CODE16,
        (false, _) => selector::CONFORMING,
    };
    (code, data)
}

/// An address somebody cares about, or next to one.
pub(crate) fn address(dice: &mut Dice) -> u64 {
    let range = |dice: &mut Dice, range: std::ops::Range<u64>| {
        range.start + dice.below((range.end - range.start) as usize) as u64
    };
    let base = match dice.below(16) {
        0..=5 => range(dice, layout::DATA),
        6 => range(dice, layout::TABLES),
        7 => range(dice, layout::IDT..layout::FIRMWARE.end),
        8 => range(dice, layout::CODE..layout::CODE_END),
        9 => ports::device_address(dice),
        10 => range(dice, layout::STARTS..layout::CODE),
        11 => layout::RAM + dice.number() % 0x20_0000,
        12 => [
            0x0000_7fff_ffff_fff0,
            0x0000_8000_0000_0000,
            0xffff_7fff_ffff_fff8,
            0xffff_8000_0000_0000,
            0xffff_ffff_ffff_fff8,
            0xffff_fff0,
        ][dice.below(6)],
        13 => dice.number(),
        _ => range(dice, layout::QUEUES..layout::BUFFERS.end),
    };
    match dice.below(6) {
        0 => (base | 0xfff).wrapping_sub(dice.below(16) as u64),
        1 => base & !0xfff,
        2 => base & !0x3f,
        _ => base,
    }
}

/// A register's value.
pub(crate) fn value(dice: &mut Dice) -> u64 {
    match dice.below(10) {
        0..=5 => address(dice),
        _ => dice.number(),
    }
}

/// Puts values into some registers.
fn aim(code: &mut Code, dice: &mut Dice, most: usize) {
    for _ in 0..dice.below(most + 1) {
        let register = dice.below(16) as u8;
        // A lost stack is interesting, but not all the time.
        if register != crate::assemble::reg::RSP || dice.percent(10) {
            code.mov(register, value(dice));
        }
    }
}
