//! The keyboard controller (8042) with a keyboard behind it.
//!
//! There is no mouse: the auxiliary port's tests answer the way a controller without one does, so
//! that drivers find out at once instead of waiting. Answers appear immediately; scan codes
//! from outside enter through the gate with [`I8042::key`].

use crate::data;
use crate::{Cx, Device, DeviceState, Request, StateError};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const KIND: &str = "i8042";
const VERSION: u32 = 1;
const GSI: u8 = 1;
/// Bytes the keyboard keeps when nobody reads.
const QUEUE_MAX: usize = 64;

/// Status register bits.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const UNLOCKED: u8 = 1 << 4;
}

/// Controller configuration ("command byte") bits.
mod config {
    pub const KEYBOARD_IRQ: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    pub const AUX_OFF: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields {
    config: u8,
    output_port: u8,
    /// A controller command that waits for its data byte.
    command: Option<u8>,
    /// The last write was a command (status bit 3).
    last_was_command: bool,
    /// Answers of the controller itself, before anything from the keyboard.
    answers: VecDeque<u8>,
    /// Bytes from the keyboard.
    keys: VecDeque<u8>,
    /// A keyboard command that waits for its argument.
    keyboard_command: Option<u8>,
    scanning: bool,
    /// Scan code set, 1 to 3.
    set: u8,
}

/// The controller and its keyboard.
pub struct I8042 {
    fields: Fields,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// As firmware leaves it: keyboard on, translating, with interrupts; auxiliary port off.
    pub fn new() -> Self {
        Self {
            fields: Fields {
                config: config::KEYBOARD_IRQ | config::SYSTEM | config::AUX_OFF | config::TRANSLATE,
                output_port: 0xdf, // A20 open, reset line high
                command: None,
                last_was_command: false,
                answers: VecDeque::new(),
                keys: VecDeque::new(),
                keyboard_command: None,
                scanning: true,
                set: 2,
            },
        }
    }

    /// A key makes or breaks: the bytes of scan code set 1 as a translating controller gives them.
    /// False when the keyboard's buffer has no room for all of them; then none is taken.
    #[must_use]
    pub fn key(&mut self, cx: &mut Cx, scan_code: &[u8]) -> bool {
        if self.fields.keys.len() + scan_code.len() > QUEUE_MAX {
            return false;
        }
        if self.fields.scanning {
            self.fields.keys.extend(scan_code);
            self.update(cx);
        }
        true
    }

    fn keyboard_on(&self) -> bool {
        self.fields.config & config::KEYBOARD_OFF == 0
    }

    fn output_full(&self) -> bool {
        !self.fields.answers.is_empty() || (self.keyboard_on() && !self.fields.keys.is_empty())
    }

    fn update(&self, cx: &mut Cx) {
        let interrupts = self.fields.config & config::KEYBOARD_IRQ != 0;
        cx.irq.line(GSI, interrupts && self.output_full());
    }

    fn read_data(&mut self, cx: &mut Cx) -> u8 {
        let byte = match self.fields.answers.pop_front() {
            Some(answer) => answer,
            None if self.keyboard_on() => self.fields.keys.pop_front().unwrap_or(0),
            None => 0,
        };
        // The line drops between two bytes, so that each makes an edge.
        cx.irq.line(GSI, false);
        self.update(cx);
        byte
    }

    fn status(&self) -> u8 {
        let f = &self.fields;
        status::SYSTEM
            | status::UNLOCKED
            | if self.output_full() { status::OUTPUT_FULL } else { 0 }
            | if f.last_was_command { status::COMMAND } else { 0 }
    }

    /// One answer at a time, as in the hardware's single output buffer.
    fn answer(&mut self, byte: u8) {
        self.fields.answers.clear();
        self.fields.answers.push_back(byte);
    }

    fn write_command(&mut self, cx: &mut Cx, command: u8) {
        self.fields.last_was_command = true;
        self.fields.command = None;
        match command {
            0x20 => self.answer(self.fields.config),
            0x60 | 0xd1 | 0xd2 | 0xd3 | 0xd4 => self.fields.command = Some(command),
            0xa7 => self.fields.config |= config::AUX_OFF,
            0xa8 => self.fields.config &= !config::AUX_OFF,
            0xa9 => self.answer(0x02), // auxiliary clock line stuck: nothing there
            0xaa => self.answer(0x55),
            0xab => self.answer(0x00),
            0xad => self.fields.config |= config::KEYBOARD_OFF,
            0xae => self.fields.config &= !config::KEYBOARD_OFF,
            0xc0 => self.answer(0x80),
            0xd0 => self.answer(self.fields.output_port),
            // Pulse output lines low; line 0 is the processor's reset.
            0xf0..=0xff if command & 1 == 0 => cx.irq.requests.push(Request::Reset),
            _ => {}
        }
    }

    fn write_data(&mut self, cx: &mut Cx, value: u8) {
        self.fields.last_was_command = false;
        match self.fields.command.take() {
            Some(0x60) => self.fields.config = value & 0x7f,
            Some(0xd1) => {
                self.fields.output_port = value;
                if value & 1 == 0 {
                    cx.irq.requests.push(Request::Reset);
                }
            }
            // Also for the auxiliary loop-back: without the hardware there it comes back as the
            // keyboard's, which is how drivers see that there is no auxiliary port.
            Some(0xd2 | 0xd3) => self.answer(value),
            Some(0xd4) => self.answer(0xfe),
            _ => {
                // Writing to the keyboard switches it on.
                self.fields.config &= !config::KEYBOARD_OFF;
                self.keyboard(value);
            }
        }
    }

    fn say(&mut self, bytes: &[u8]) {
        if self.fields.keys.len() + bytes.len() <= QUEUE_MAX {
            self.fields.keys.extend(bytes);
        }
    }

    fn keyboard(&mut self, value: u8) {
        const ACK: u8 = 0xfa;
        match (self.fields.keyboard_command.take(), value) {
            (Some(0xf0), 0) => self.say(&[ACK, self.fields.set]),
            (Some(0xf0), 1..=3) => {
                self.fields.set = value;
                self.say(&[ACK]);
            }
            (Some(0xed | 0xf3), _) => self.say(&[ACK]),
            (_, 0xed | 0xf0 | 0xf3) => {
                self.fields.keyboard_command = Some(value);
                self.say(&[ACK]);
            }
            (_, 0xee) => self.say(&[0xee]),
            (_, 0xf2) => {
                let translated = self.fields.config & config::TRANSLATE != 0;
                self.say(&[ACK, 0xab, if translated { 0x41 } else { 0x83 }]);
            }
            (_, 0xf4) => {
                self.fields.scanning = true;
                self.say(&[ACK]);
            }
            (_, 0xf5 | 0xf6) => {
                self.fields.scanning = value == 0xf6;
                self.fields.set = 2;
                self.fields.keys.clear();
                self.say(&[ACK]);
            }
            (_, 0xff) => {
                self.fields.scanning = true;
                self.fields.set = 2;
                self.fields.keys.clear();
                self.say(&[ACK, 0xaa]);
            }
            _ => self.say(&[0xfe]),
        }
    }
}

impl Device for I8042 {
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
        if fields.keys.len() > QUEUE_MAX || fields.answers.len() > 1 || !(1..=3).contains(&fields.set) {
            return Err(StateError::Damaged { kind: KIND, why: "queue length or scan code set".into() });
        }
        self.fields = fields;
        Ok(())
    }

    /// Block 0: port 0x60 at 0, port 0x64 at 4.
    fn read(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        data::answer_bytes(data, offset, |at| match at {
            0 => self.read_data(cx),
            4 => self.status(),
            _ => 0xff,
        });
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        match offset {
            0 => self.write_data(cx, value),
            4 => self.write_command(cx, value),
            _ => return,
        }
        self.update(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn the_controller_tests_itself_and_finds_no_auxiliary_port() {
        let (mut bench, mut kbd) = (Bench::new(), I8042::new());
        for (command, answer) in [(0xaa, 0x55), (0xab, 0x00), (0xa9, 0x02)] {
            bench.write8(&mut kbd, 0, 4, command);
            assert_eq!(bench.read8(&mut kbd, 0, 4) & 1, 1);
            assert_eq!(bench.read8(&mut kbd, 0, 0), answer);
            assert_eq!(bench.read8(&mut kbd, 0, 4) & 1, 0);
        }
    }

    #[test]
    fn the_keyboard_answers_reset_and_identify_with_interrupts() {
        let (mut bench, mut kbd) = (Bench::new(), I8042::new());
        bench.write8(&mut kbd, 0, 0, 0xff);
        assert_eq!(bench.requests(), vec![Request::Line { gsi: 1, level: true }]);
        let mut fresh = I8042::new();
        bench.transplant(&kbd, &mut fresh);
        assert_eq!(bench.read8(&mut fresh, 0, 0), 0xfa);
        assert_eq!(bench.read8(&mut fresh, 0, 0), 0xaa);
        assert_eq!(bench.requests().last(), Some(&Request::Line { gsi: 1, level: false }));
        bench.write8(&mut fresh, 0, 0, 0xf2);
        let answer = [0; 3].map(|_| bench.read8(&mut fresh, 0, 0));
        assert_eq!(answer, [0xfa, 0xab, 0x41]);
    }

    #[test]
    fn the_pulse_command_resets_the_machine() {
        let (mut bench, mut kbd) = (Bench::new(), I8042::new());
        bench.write8(&mut kbd, 0, 4, 0xff);
        assert!(!bench.requests().contains(&Request::Reset));
        bench.write8(&mut kbd, 0, 4, 0xfe);
        assert!(bench.requests().contains(&Request::Reset));
    }

    #[test]
    fn keys_wait_while_the_keyboard_is_off_and_do_not_overflow() {
        let (mut bench, mut kbd) = (Bench::new(), I8042::new());
        bench.write8(&mut kbd, 0, 4, 0xad);
        assert!(kbd.key(&mut bench.cx(), &[0x1e, 0x9e]));
        assert_eq!(bench.read8(&mut kbd, 0, 4) & 1, 0);
        bench.write8(&mut kbd, 0, 4, 0xae);
        assert_eq!(bench.read8(&mut kbd, 0, 0), 0x1e);
        assert_eq!(bench.read8(&mut kbd, 0, 0), 0x9e);
        assert!(kbd.key(&mut bench.cx(), &[0; QUEUE_MAX]));
        assert!(!kbd.key(&mut bench.cx(), &[1]));
    }
}
