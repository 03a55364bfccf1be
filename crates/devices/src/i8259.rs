//! The pair of 8259A interrupt controllers of a PC: master, and a slave on the master's input 2.
//!
//! The board drives ISA interrupt lines 0 to 15 and watches [`I8259Pair::output`], which goes to
//! LINT0 of the boot processor; [`I8259Pair::acknowledge`] is the INTA cycle.

use crate::data;
use crate::{Cx, Device, DeviceState, StateError};
use serde::{Deserialize, Serialize};

const KIND: &str = "i8259";
const VERSION: u32 = 1;

/// What the next write to the data port means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    #[default]
    Mask,
    Icw2,
    Icw3,
    Icw4,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Chip {
    irr: u8,
    isr: u8,
    imr: u8,
    lines: u8,
    /// Edge/level control: a one bit makes the input level-triggered.
    elcr: u8,
    vector_base: u8,
    expect: Expect,
    icw4_needed: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    read_isr: bool,
    poll: bool,
    /// The input with the lowest priority; 7 unless rotated.
    lowest: u8,
}

impl Chip {
    fn new() -> Self {
        Self { lowest: 7, ..Self::default() }
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1 << input;
        let rises = level && self.lines & bit == 0;
        if level {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
            self.irr &= !bit;
        }
        if rises || (level && self.elcr & bit != 0) {
            self.irr |= bit;
        }
    }

    /// How many inputs have a higher priority; 8 for an empty set.
    fn rank_of_highest(&self, set: u8) -> u8 {
        (0..8).find(|rank| set >> ((self.lowest + 1 + rank) & 7) & 1 != 0).unwrap_or(8)
    }

    fn input_of_rank(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// The input that asks for service with enough priority.
    fn pending(&self) -> Option<u8> {
        let asking = self.rank_of_highest(self.irr & !self.imr);
        let serving = if self.special_mask { self.isr & !self.imr } else { self.isr };
        (asking < self.rank_of_highest(serving)).then(|| self.input_of_rank(asking))
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            let (lines, elcr) = (self.lines, self.elcr);
            let level = lines & elcr;
            *self = Self { lines, elcr, irr: level, expect: Expect::Icw2, ..Self::new() };
            self.icw4_needed = value & 1 != 0;
        } else if value & 0x08 != 0 {
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
            self.poll = value & 0x04 != 0;
            if value & 0x02 != 0 {
                self.read_isr = value & 1 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let named = value & 7;
        let (rotate, specific, eoi) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        if eoi {
            let ended = if specific {
                Some(named)
            } else {
                let rank = self.rank_of_highest(self.isr);
                (rank < 8).then(|| self.input_of_rank(rank))
            };
            if let Some(input) = ended {
                self.isr &= !(1 << input);
                if rotate {
                    self.lowest = input;
                }
            }
        } else if specific {
            if rotate {
                self.lowest = named;
            }
        } else {
            self.rotate_on_auto_eoi = rotate;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expect = match self.expect {
            Expect::Mask => {
                self.imr = value;
                Expect::Mask
            }
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                Expect::Icw3
            }
            Expect::Icw3 if self.icw4_needed => Expect::Icw4,
            Expect::Icw3 => Expect::Mask,
            Expect::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                Expect::Mask
            }
        };
    }

    fn read(&mut self, port: u64) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.pending() {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match port {
            0 if self.read_isr => self.isr,
            0 => self.irr,
            _ => self.imr,
        }
    }

    fn is_sane(&self) -> bool {
        self.lowest < 8
    }
}

/// Both controllers.
pub struct I8259Pair {
    chips: [Chip; 2],
}

impl Default for I8259Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl I8259Pair {
    /// After power-on. Everything is masked, as firmware leaves it.
    pub fn new() -> Self {
        let mut chips = [Chip::new(), Chip::new()];
        chips.iter_mut().for_each(|chip| chip.imr = 0xff);
        Self { chips }
    }

    /// Drives ISA interrupt line `irq`, 0 to 15 (2 is the cascade and ignored, as is the rest).
    pub fn set_line(&mut self, irq: u8, level: bool) {
        match irq {
            2 | 16.. => return,
            0..8 => self.chips[0].set_line(irq, level),
            _ => self.chips[1].set_line(irq - 8, level),
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        let asks = self.chips[1].pending().is_some();
        self.chips[0].set_line(2, asks);
    }

    /// The master's INT pin.
    pub fn output(&self) -> bool {
        self.chips[0].pending().is_some()
    }

    /// The INTA cycle: the vector; of input 7 when the request has gone (spurious).
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.chips[0].pending() else { return self.chips[0].vector_base | 7 };
        self.chips[0].acknowledge(input);
        if input != 2 {
            return self.chips[0].vector_base | input;
        }
        let vector = match self.chips[1].pending() {
            Some(inner) => {
                self.chips[1].acknowledge(inner);
                self.chips[1].vector_base | inner
            }
            None => self.chips[1].vector_base | 7,
        };
        // The slave drops its line for the moment between two requests.
        self.chips[0].set_line(2, false);
        self.cascade();
        vector
    }
}

impl Device for I8259Pair {
    fn kind(&self) -> &'static str {
        KIND
    }
    fn reset(&mut self) {
        *self = Self::new();
    }
    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, VERSION, &self.chips)
    }
    fn show(&self) -> String {
        format!("{:#?}", self.chips)
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let chips: [Chip; 2] = state.decode(KIND, VERSION)?;
        if !chips.iter().all(Chip::is_sane) {
            return Err(StateError::Damaged { kind: KIND, why: "lowest priority above 7".into() });
        }
        self.chips = chips;
        Ok(())
    }

    /// Block 0: master (0x20), block 1: slave (0xa0), block 2: edge/level control (0x4d0).
    fn read(&mut self, _cx: &mut Cx, block: u32, offset: u64, data: &mut [u8]) {
        data::answer_bytes(data, offset, |at| match (block, at) {
            (0 | 1, 0 | 1) => self.chips[block as usize].read(at),
            (2, 0 | 1) => self.chips[at as usize].elcr,
            _ => 0xff,
        });
        self.cascade();
    }

    fn write(&mut self, _cx: &mut Cx, block: u32, offset: u64, data: &[u8]) {
        for (i, &value) in data.iter().enumerate() {
            match (block, offset + i as u64) {
                (0 | 1, 0) => self.chips[block as usize].write_command(value),
                (0 | 1, 1) => self.chips[block as usize].write_data(value),
                // Lines 0, 1, 2, 8 and 13 are always edge-triggered.
                (2, 0) => self.chips[0].elcr = value & 0xf8,
                (2, 1) => self.chips[1].elcr = value & 0xde,
                _ => {}
            }
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    fn initialised(bench: &mut Bench) -> I8259Pair {
        let mut pic = I8259Pair::new();
        for (chip, base, icw3) in [(0, 0x30, 4), (1, 0x38, 2)] {
            bench.write8(&mut pic, chip, 0, 0x11);
            bench.write8(&mut pic, chip, 1, base);
            bench.write8(&mut pic, chip, 1, icw3);
            bench.write8(&mut pic, chip, 1, 1);
        }
        pic
    }

    #[test]
    fn the_mask_can_be_probed_for_as_linux_does() {
        let mut bench = Bench::new();
        let mut pic = initialised(&mut bench);
        bench.write8(&mut pic, 1, 1, 0xff);
        bench.write8(&mut pic, 0, 1, 0xfb);
        assert_eq!(bench.read8(&mut pic, 0, 1), 0xfb);
    }

    #[test]
    fn a_request_of_the_slave_comes_through_the_master() {
        let mut bench = Bench::new();
        let mut pic = initialised(&mut bench);
        pic.set_line(8, true);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x38);
        assert!(!pic.output());
        pic.set_line(4, true);
        assert!(!pic.output(), "input 4 waits behind input 2");
        bench.write8(&mut pic, 1, 0, 0x20);
        bench.write8(&mut pic, 0, 0, 0x20);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn higher_priority_interrupts_nest_and_a_vanished_one_is_spurious() {
        let mut bench = Bench::new();
        let mut pic = initialised(&mut bench);
        pic.set_line(5, true);
        assert_eq!(pic.acknowledge(), 0x35);
        pic.set_line(1, true);
        assert!(pic.output());
        let mut fresh = I8259Pair::new();
        bench.transplant(&pic, &mut fresh);
        assert_eq!(fresh.acknowledge(), 0x31);
        bench.write8(&mut fresh, 0, 0, 0x0b);
        assert_eq!(bench.read8(&mut fresh, 0, 0), 0x22, "ISR shows both");
        assert_eq!(fresh.acknowledge(), 0x37);
    }

    #[test]
    fn a_level_triggered_line_asks_again_until_it_drops() {
        let mut bench = Bench::new();
        let mut pic = initialised(&mut bench);
        bench.write8(&mut pic, 2, 1, 0x0c);
        pic.set_line(10, true);
        for _ in 0..2 {
            assert_eq!(pic.acknowledge(), 0x3a);
            bench.write8(&mut pic, 1, 0, 0x62);
            bench.write8(&mut pic, 0, 0, 0x62);
        }
        pic.set_line(10, false);
        assert!(!pic.output());
    }
}
