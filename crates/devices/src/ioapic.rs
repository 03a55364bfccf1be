//! The IOAPIC (Intel 82093AA, with the EOI register of version 0x20): turns interrupt lines into
//! messages for the local APICs.
//!
//! An edge-triggered pin sends a message when it rises unmasked. A level-triggered one sends one
//! and sets Remote IRR, then waits for the EOI of its vector and sends again if the line is still
//! asserted. The board drives `asserted`, so the polarity bit is kept but changes nothing.

use crate::data;
use crate::{ApicMessage, Audience, Cx, DeliveryMode, Device, DeviceState, Request, StateError};
use serde::{Deserialize, Serialize};

const KIND: &str = "ioapic";
const VERSION: u32 = 1;
/// Number of input pins.
pub const IOAPIC_PINS: usize = 24;

/// Redirection entry bits (82093AA, 3.2.4).
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields {
    select: u8,
    id: u32,
    entries: [u64; IOAPIC_PINS],
    lines: u32,
}

/// The IOAPIC.
pub struct IoApic {
    fields: Fields,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// After reset: every pin masked, all lines low.
    pub fn new() -> Self {
        Self { fields: Fields { select: 0, id: 0, entries: [entry::MASKED; IOAPIC_PINS], lines: 0 } }
    }

    /// Drives pin `pin`; numbers beyond the last pin are ignored.
    pub fn set_line(&mut self, cx: &mut Cx, pin: u8, level: bool) {
        let Some(&redirection) = self.fields.entries.get(usize::from(pin)) else { return };
        let bit = 1 << pin;
        let rises = level && self.fields.lines & bit == 0;
        if level {
            self.fields.lines |= bit;
        } else {
            self.fields.lines &= !bit;
        }
        if redirection & entry::LEVEL != 0 {
            self.service_level(cx, usize::from(pin));
        } else if rises && redirection & entry::MASKED == 0 {
            send(cx, redirection);
        }
    }

    /// A local APIC ended the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&mut self, cx: &mut Cx, vector: u8) {
        for pin in 0..IOAPIC_PINS {
            let redirection = &mut self.fields.entries[pin];
            if *redirection as u8 == vector && *redirection & entry::LEVEL != 0 {
                *redirection &= !entry::REMOTE_IRR;
                self.service_level(cx, pin);
            }
        }
    }

    fn service_level(&mut self, cx: &mut Cx, pin: usize) {
        let redirection = &mut self.fields.entries[pin];
        let blocked = *redirection & (entry::MASKED | entry::REMOTE_IRR) != 0;
        if self.fields.lines >> pin & 1 != 0 && !blocked {
            *redirection |= entry::REMOTE_IRR;
            send(cx, *redirection);
        }
    }

    fn read_register(&self) -> u32 {
        match self.fields.select {
            0 | 2 => self.fields.id,
            1 => (IOAPIC_PINS as u32 - 1) << 16 | 0x20,
            n => match self.fields.entries.get(usize::from(n.wrapping_sub(0x10) / 2)) {
                Some(redirection) if n >= 0x10 => (redirection >> (32 * (n & 1))) as u32,
                _ => 0,
            },
        }
    }

    fn write_register(&mut self, cx: &mut Cx, value: u32) {
        let n = self.fields.select;
        if n == 0 {
            self.fields.id = value & 0x0f00_0000;
        }
        let pin = usize::from(n.wrapping_sub(0x10) / 2);
        if n < 0x10 || pin >= IOAPIC_PINS {
            return;
        }
        let old = self.fields.entries[pin];
        let half = u64::from(value) << (32 * (n & 1));
        let kept = if n & 1 == 0 { 0xffff_ffff_0000_0000 } else { 0xffff_ffff };
        let mut new = (old & kept | half) & entry::WRITABLE | old & entry::REMOTE_IRR & kept;
        if n & 1 == 0 {
            new |= old & entry::REMOTE_IRR;
        }
        if new & entry::LEVEL == 0 {
            // Switching a pin to edge is how kernels clear a stuck Remote IRR.
            new &= !entry::REMOTE_IRR;
        }
        self.fields.entries[pin] = new;
        if new & entry::LEVEL != 0 {
            self.service_level(cx, pin);
        }
    }
}

fn send(cx: &mut Cx, redirection: u64) {
    cx.irq.requests.push(Request::Apic(ApicMessage {
        audience: Audience::from_8bit((redirection >> 56) as u8, redirection & entry::LOGICAL != 0),
        mode: DeliveryMode::from_bits(redirection >> 8),
        vector: redirection as u8,
        level: redirection & entry::LEVEL != 0,
    }));
}

impl Device for IoApic {
    fn kind(&self) -> &'static str {
        KIND
    }
    fn reset(&mut self) {
        *self = Self::new();
    }
    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, VERSION, &self.fields)
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let fields: Fields = state.decode(KIND, VERSION)?;
        if fields.lines >> IOAPIC_PINS != 0 {
            return Err(StateError::Damaged { kind: KIND, why: format!("lines {:#x}", fields.lines) });
        }
        self.fields = fields;
        Ok(())
    }

    /// Block 0: index at 0x00, data at 0x10, EOI at 0x40.
    fn read(&mut self, _cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        let value = match offset {
            0x00 => u32::from(self.fields.select),
            0x10 => self.read_register(),
            _ => 0,
        };
        data::answer(data, u64::from(value));
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        let value = data::value(data) as u32;
        match offset {
            0x00 => self.fields.select = value as u8,
            0x10 => self.write_register(cx, value),
            0x40 => self.end_of_interrupt(cx, value as u8),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    fn program(bench: &mut Bench, io: &mut IoApic, pin: u32, redirection: u64) {
        for half in 0..2 {
            bench.write32(io, 0, 0, 0x10 + 2 * pin + half);
            bench.write32(io, 0, 0x10, (redirection >> (32 * half)) as u32);
        }
    }

    fn entry_of(bench: &mut Bench, io: &mut IoApic, pin: u32) -> u32 {
        bench.write32(io, 0, 0, 0x10 + 2 * pin);
        bench.read32(io, 0, 0x10)
    }

    #[test]
    fn it_has_twenty_four_masked_pins_after_reset() {
        let (mut bench, mut io) = (Bench::new(), IoApic::new());
        bench.write32(&mut io, 0, 0, 1);
        assert_eq!(bench.read32(&mut io, 0, 0x10), 0x0017_0020);
        assert_eq!(entry_of(&mut bench, &mut io, 23), 0x10000);
        bench.write32(&mut io, 0, 0, 0x40);
        assert_eq!(bench.read32(&mut io, 0, 0x10), 0, "past the last pin there is nothing");
    }

    #[test]
    fn an_edge_is_sent_once_and_lost_while_masked() {
        let (mut bench, mut io) = (Bench::new(), IoApic::new());
        io.set_line(&mut bench.cx(), 4, true);
        program(&mut bench, &mut io, 4, 0x0300_0000_0000_0034);
        assert!(bench.requests().is_empty());
        io.set_line(&mut bench.cx(), 4, false);
        io.set_line(&mut bench.cx(), 4, true);
        io.set_line(&mut bench.cx(), 4, true);
        let message = ApicMessage {
            audience: Audience::Physical(3),
            mode: DeliveryMode::Fixed,
            vector: 0x34,
            level: false,
        };
        assert_eq!(bench.requests(), vec![Request::Apic(message)]);
    }

    #[test]
    fn a_level_is_sent_again_after_its_eoi_for_as_long_as_it_is_asserted() {
        let (mut bench, mut io) = (Bench::new(), IoApic::new());
        program(&mut bench, &mut io, 16, 0xff00_0000_0000_8851);
        io.set_line(&mut bench.cx(), 16, true);
        assert_eq!(bench.requests().len(), 1);
        assert_eq!(entry_of(&mut bench, &mut io, 16) & 1 << 14, 1 << 14, "Remote IRR is set");
        io.set_line(&mut bench.cx(), 16, true);
        assert!(bench.requests().is_empty());
        io.end_of_interrupt(&mut bench.cx(), 0x50);
        assert!(bench.requests().is_empty(), "another vector's end is not ours");
        io.end_of_interrupt(&mut bench.cx(), 0x51);
        assert_eq!(bench.requests().len(), 1);
        io.set_line(&mut bench.cx(), 16, false);
        bench.write32(&mut io, 0, 0x40, 0x51);
        assert!(bench.requests().is_empty());
        assert_eq!(entry_of(&mut bench, &mut io, 16) & 1 << 14, 0);
    }

    #[test]
    fn a_level_that_was_masked_is_sent_when_unmasked_and_survives_a_save_before() {
        let (mut bench, mut io) = (Bench::new(), IoApic::new());
        program(&mut bench, &mut io, 10, 0x1_8042);
        io.set_line(&mut bench.cx(), 10, true);
        let mut fresh = IoApic::new();
        bench.transplant(&io, &mut fresh);
        assert!(bench.requests().is_empty());
        program(&mut bench, &mut fresh, 10, 0x8042);
        assert_eq!(bench.requests().len(), 1);
    }
}
