//! Aiming memory operands: choose the address first, then a way to say it.

use super::Generator;
use super::encode::Memory;
use super::universe::MemoryUse;
use crate::case::Mode;
use crate::layout::{Frame, PAGE};

/// The data pages of one half of the address space.
#[derive(Clone, Copy)]
pub struct Data {
    left: u64,
    right: u64,
    constant: u64,
}

impl Data {
    /// Above 4 GiB.
    pub const HIGH: Data = Data {
        left: Frame::Left.address(),
        right: Frame::Right.address(),
        constant: Frame::Constant.address(),
    };
    /// Below.
    pub const LOW: Data = Data {
        left: Frame::LowLeft.address(),
        right: Frame::LowRight.address(),
        constant: Frame::LowConstant.address(),
    };
    /// Whether `address` is well inside the writable pages.
    pub fn holds(&self, address: u64) -> bool {
        (self.left + 64..self.right + PAGE as u64 - 64).contains(&address)
    }
}

impl Generator<'_> {
    /// Where the next access goes.
    pub(super) fn target(&mut self, data: Data, usage: MemoryUse) -> u64 {
        let size = usage.size.max(1) as u64;
        let page = PAGE as u64;
        let align = |address: u64| if size.is_power_of_two() { address & !(size - 1) } else { address };
        let dice = &mut self.dice;
        // An aligned access cannot cross pages; let most of them succeed.
        let roll = dice.below(if usage.aligned { 78 } else { 100 });
        let within = data.left + dice.below(2 * PAGE - 600) as u64;
        match roll {
            0..45 => align(within),
            45..60 if usage.aligned => align(within),
            45..60 => within,
            60..66 => align(data.left + dice.below(64) as u64),
            66..71 => align(data.right + page - size - dice.below(32) as u64),
            71..76 if usage.written && dice.percent(75) => align(within),
            71..76 => align(data.constant + dice.below(PAGE - 600) as u64),
            76..77 => {
                self.reads_code = true;
                align(self.mode.code().address() + dice.below(PAGE) as u64)
            }
            77..78 => within,
            78..94 => data.right - dice.below(size as usize + 1) as u64,
            94..96 => data.right + page - dice.below(size as usize) as u64,
            96..97 => data.left - dice.below(size as usize + 1) as u64,
            97..98 => data.constant + page - dice.below(size as usize + 1) as u64,
            98..99 => {
                dice.pick(&[0, 8, 1 << 47, (1 << 47) - 3, 1 << 63, u64::MAX - 6, 0xffff_8000_0000_0010])
            }
            _ => within ^ 1 << dice.below(64),
        }
    }

    /// A memory operand for an access like `usage`. Every way of saying an address occurs; most
    /// say one that [`Generator::target`] chose.
    pub(super) fn memory(&mut self, usage: MemoryUse, vector_index: bool) -> Memory {
        if self.dice.percent(2) && !vector_index {
            return self.arbitrary();
        }
        let short = self.mode == Mode::Long && self.low && self.dice.percent(60);
        let data = if self.mode == Mode::Compatibility || short { Data::LOW } else { self.data() };
        let target = self.target(data, usage);
        self.say(target, short, vector_index)
    }

    /// The pages 64-bit addresses mostly go to.
    pub(super) fn data(&mut self) -> Data {
        if self.mode == Mode::Compatibility || self.low && self.dice.percent(20) {
            Data::LOW
        } else {
            Data::HIGH
        }
    }

    /// A memory operand for the linear address `target`.
    pub(super) fn say(&mut self, target: u64, short: bool, vector_index: bool) -> Memory {
        let mut memory = Memory { short_address: short, ..Memory::default() };
        let mut effective = target;
        if self.mode == Mode::Long && self.dice.percent(8) {
            let (prefix, base) = if self.dice.percent(50) {
                (0x64, self.registers.fs_base)
            } else {
                (0x65, self.registers.gs_base)
            };
            memory.segment = prefix;
            effective = target.wrapping_sub(base);
        } else if self.mode == Mode::Compatibility && self.dice.percent(3) {
            memory.segment = self.dice.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64]);
        }
        memory.offset = effective;
        let plain = memory.segment == 0 && !short && !vector_index;
        if self.mode == Mode::Long && plain && self.dice.percent(15) && near_code(target) {
            memory.modrm = 5;
            memory.tail = vec![0; 4];
            memory.link = Some(target);
            return memory;
        }
        let index = if vector_index {
            Some((self.vector_index_register(), 0))
        } else {
            self.small_register().filter(|_| self.dice.percent(35))
        };
        let scale = self.dice.below(4) as u32;
        let rest = effective.wrapping_sub(index.map_or(0, |(_, value)| value << scale));
        let narrow = short || self.mode == Mode::Compatibility;
        match self.base_for(rest, narrow) {
            Some((base, displacement)) => {
                self.emit(&mut memory, Some(base), index.map(|(at, _)| (at, scale)), displacement);
            }
            None if reaches(rest, narrow) => {
                self.emit(&mut memory, None, index.map(|(at, _)| (at, scale)), rest as i32);
            }
            // No register is near: the caller sees to it that this is rare.
            None => {
                let base = self.dice.below(self.mode.registers());
                self.emit(&mut memory, Some(base), index.map(|(at, _)| (at, scale)), 0);
            }
        }
        memory
    }

    /// A register from which a 32-bit displacement reaches `rest`, and that displacement.
    fn base_for(&mut self, rest: u64, narrow: bool) -> Option<(usize, i32)> {
        let count = self.mode.registers();
        let first = self.dice.below(count);
        let near = |from: u64| {
            let distance = rest.wrapping_sub(from);
            let close = if narrow { distance as u32 as i32 } else { i32::try_from(distance as i64).ok()? };
            Some(close)
        };
        let mut found = None;
        for register in (0..count).map(|step| (first + step) % count) {
            let Some(displacement) = self.tracker.known[register].and_then(near) else { continue };
            // Prefer one that needs but a byte.
            if i8::try_from(displacement).is_ok() {
                return Some((register, displacement));
            }
            found = found.or(Some((register, displacement)));
        }
        found
    }

    /// A register other than RSP with a small value.
    pub(super) fn small_register(&mut self) -> Option<(usize, u64)> {
        let count = self.mode.registers();
        let first = self.dice.below(count);
        (0..count).map(|step| (first + step) % count).filter(|&register| register != 4).find_map(|register| {
            let value = self.tracker.known[register]?;
            let signed = if self.mode == Mode::Long { value as i64 } else { i64::from(value as i32) };
            (-64..=512).contains(&signed).then_some((register, value))
        })
    }

    fn vector_index_register(&mut self) -> usize {
        if self.dice.percent(85) {
            self.dice.pick(&self.index_vectors)
        } else {
            self.dice.below(self.mode.registers())
        }
    }

    /// Any ModRM, SIB and displacement.
    fn arbitrary(&mut self) -> Memory {
        let count = self.mode.registers();
        let base = (self.dice.percent(80)).then(|| self.dice.below(count));
        let index = (self.dice.percent(50)).then(|| self.dice.below(count)).filter(|&index| index != 4);
        let scale = self.dice.below(4) as u32;
        let displacement = self.dice.bits() as i32 >> self.dice.below(32);
        let mut memory = Memory::default();
        self.emit(&mut memory, base, index.map(|index| (index, scale)), displacement);
        memory.offset = self.dice.bits();
        memory
    }

    /// Encodes base + index·2^scale + displacement (SDM vol. 2, tables 2-2 and 2-3).
    fn emit(
        &mut self,
        memory: &mut Memory,
        base: Option<usize>,
        index: Option<(usize, u32)>,
        displacement: i32,
    ) {
        let low = |register: usize| (register & 7) as u8;
        memory.base_high = base.is_some_and(|base| base >= 8);
        memory.index_high = index.is_some_and(|(index, _)| index >= 8);
        let byte = i8::try_from(displacement).ok().filter(|_| self.dice.percent(85));
        let mode = match base {
            None => 0,
            Some(base) if displacement == 0 && low(base) != 5 && self.dice.percent(80) => 0,
            Some(_) if byte.is_some() => 1,
            Some(_) => 2,
        };
        let short_form = index.is_none() && base.is_some_and(|base| low(base) != 4) && self.dice.percent(90);
        // In 32-bit code an absolute address has a form without SIB; in 64-bit code that is RIP-relative.
        let absolute = base.is_none() && index.is_none() && self.mode == Mode::Compatibility;
        memory.tail.clear();
        if short_form {
            memory.modrm = mode << 6 | low(base.unwrap_or(0));
        } else if absolute {
            memory.modrm = 5;
        } else {
            memory.modrm = mode << 6 | 4;
            let (index, scale) = index.map_or((4, 0), |(index, scale)| (low(index), scale as u8));
            memory.tail.push(scale << 6 | index << 3 | base.map_or(5, low));
        }
        match (mode, base) {
            (1, _) => memory.tail.push(displacement as u8),
            (2, _) | (_, None) => memory.tail.extend_from_slice(&displacement.to_le_bytes()),
            _ => {}
        }
    }
}

fn near_code(target: u64) -> bool {
    target.abs_diff(Frame::Code.address()) < 1 << 30
}

fn reaches(address: u64, narrow: bool) -> bool {
    narrow || i32::try_from(address as i64).is_ok()
}
