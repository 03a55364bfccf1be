//! A 16550A serial port (National PC16550D).
//!
//! Sending takes no time: a byte written leaves at once and the transmitter is empty again, which
//! raises the THRE interrupt if enabled. Bytes from outside wait in a line buffer and move into
//! the receive FIFO when the guest has emptied it, and only while it asserts RTS, so nothing is lost
//! to overruns; the far end is always there (CTS, DSR, DCD). Between two fillings of the FIFO some
//! time passes ([`GAP_NS`]): a driver that found the port ready for ever would never leave its
//! interrupt handler.

use crate::data;
use crate::{Cx, Device, DeviceState, StateError};
use base::GuestTime;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

const KIND: &str = "16550a";
const VERSION: u32 = 1;
const FIFO: usize = 16;
/// Bytes that wait on the line; what does not fit is for the sender to offer again.
const LINE_MAX: usize = 64 * 1024;
/// From the moment the FIFO is empty to its next filling, in nanoseconds.
const GAP_NS: u64 = 50_000;

/// Interrupt enable bits.
mod ier {
    pub const RECEIVED: u8 = 1 << 0;
    pub const THR_EMPTY: u8 = 1 << 1;
    pub const LINE_STATUS: u8 = 1 << 2;
    pub const MODEM_STATUS: u8 = 1 << 3;
}

/// Interrupt identification, by priority.
mod iir {
    pub const NONE: u8 = 1;
    pub const LINE_STATUS: u8 = 6;
    pub const RECEIVED: u8 = 4;
    pub const TIMEOUT: u8 = 12;
    pub const THR_EMPTY: u8 = 2;
    pub const MODEM_STATUS: u8 = 0;
    pub const FIFOS_ON: u8 = 0xc0;
}

mod lcr {
    pub const BREAK: u8 = 1 << 6;
    pub const DIVISOR_LATCH: u8 = 1 << 7;
}

mod mcr {
    pub const DTR: u8 = 1 << 0;
    pub const RTS: u8 = 1 << 1;
    pub const OUT1: u8 = 1 << 2;
    pub const OUT2: u8 = 1 << 3;
    pub const LOOP: u8 = 1 << 4;
}

mod lsr {
    pub const DATA_READY: u8 = 1 << 0;
    pub const OVERRUN: u8 = 1 << 1;
    pub const BREAK: u8 = 1 << 4;
    pub const TRANSMITTER_EMPTY: u8 = 3 << 5;
    pub const ERRORS: u8 = 0x1e;
}

mod msr {
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RI: u8 = 1 << 6;
    pub const DCD: u8 = 1 << 7;
    pub const DELTAS: u8 = 0x0f;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Error bits of LSR.
    errors: u8,
    /// MSR with its deltas.
    msr: u8,
    scratch: u8,
    divisor: u16,
    /// The transmitter became empty and that has not been looked at.
    thr_empty_pending: bool,
    fifo: VecDeque<u8>,
    line: VecDeque<u8>,
    /// When the FIFO is filled from the line.
    refill_at: Option<GuestTime>,
}

/// A serial port.
pub struct Uart {
    port: u32,
    gsi: u8,
    fields: Fields,
}

impl Uart {
    /// Serial port number `port` (what [`crate::Outside`] is told), interrupting on `gsi`.
    pub fn new(port: u32, gsi: u8) -> Self {
        let fields = Fields {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            errors: 0,
            msr: msr::CTS | msr::DSR | msr::DCD,
            scratch: 0,
            divisor: 12,
            thr_empty_pending: false,
            fifo: VecDeque::new(),
            line: VecDeque::new(),
            refill_at: None,
        };
        Self { port, gsi, fields }
    }

    /// Takes bytes in from outside; how many. The rest does not fit and may be offered again.
    pub fn receive(&mut self, cx: &mut Cx, bytes: &[u8]) -> usize {
        let accepted = bytes.len().min(LINE_MAX.saturating_sub(self.fields.line.len()));
        self.fields.line.extend(&bytes[..accepted]);
        if self.fields.refill_at.is_none() && self.fields.fifo.is_empty() {
            self.refill();
        }
        self.update(cx);
        accepted
    }

    /// How many bytes [`Self::receive`] would accept now.
    pub fn room(&self) -> usize {
        LINE_MAX.saturating_sub(self.fields.line.len())
    }

    fn fifo_size(&self) -> usize {
        if self.fields.fcr & 1 != 0 { FIFO } else { 1 }
    }

    fn trigger(&self) -> usize {
        match self.fields.fcr {
            fcr if fcr & 1 == 0 => 1,
            fcr => [1, 4, 8, 14][usize::from(fcr >> 6)],
        }
    }

    fn looped(&self) -> bool {
        self.fields.mcr & mcr::LOOP != 0
    }

    /// Whether the far end sends: only while the guest requests it (RTS), so that a guest with flow
    /// control loses nothing. In loop-back the line is cut off.
    fn is_requested(&self) -> bool {
        self.fields.mcr & (mcr::RTS | mcr::LOOP) == mcr::RTS
    }

    /// Moves bytes from the line into the FIFO.
    fn refill(&mut self) {
        while self.is_requested() && self.fields.fifo.len() < self.fifo_size() {
            let Some(byte) = self.fields.line.pop_front() else { break };
            self.fields.fifo.push_back(byte);
        }
    }

    /// Has the empty FIFO filled soon, if there is anything to fill it with.
    fn schedule_refill(&mut self, now: GuestTime) {
        let wanted = self.is_requested() && self.fields.fifo.is_empty() && !self.fields.line.is_empty();
        if wanted && self.fields.refill_at.is_none() {
            self.fields.refill_at = Some(now.after_ns(GAP_NS));
        }
    }

    /// The highest-priority interrupt's identification.
    fn pending(&self) -> u8 {
        let f = &self.fields;
        if f.ier & ier::LINE_STATUS != 0 && f.errors != 0 {
            iir::LINE_STATUS
        } else if f.ier & ier::RECEIVED != 0 && f.fifo.len() >= self.trigger() {
            iir::RECEIVED
        } else if f.ier & ier::RECEIVED != 0 && !f.fifo.is_empty() {
            // Below the trigger level nothing more is on its way, so the time-out is now.
            iir::TIMEOUT
        } else if f.ier & ier::THR_EMPTY != 0 && f.thr_empty_pending {
            iir::THR_EMPTY
        } else if f.ier & ier::MODEM_STATUS != 0 && f.msr & msr::DELTAS != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// On a PC the OUT2 pin gates the interrupt.
    /// To be called after everything that happens.
    fn update(&mut self, cx: &mut Cx) {
        self.schedule_refill(cx.now);
        let gated = self.fields.mcr & (mcr::OUT2 | mcr::LOOP) == mcr::OUT2;
        cx.irq.line(self.gsi, gated && self.pending() != iir::NONE);
    }

    fn divisor_shown(&self) -> bool {
        self.fields.lcr & lcr::DIVISOR_LATCH != 0
    }

    fn read_register(&mut self, at: u64) -> u8 {
        let [divisor_low, divisor_high] = self.fields.divisor.to_le_bytes();
        match at {
            0 if self.divisor_shown() => divisor_low,
            0 => self.fields.fifo.pop_front().unwrap_or(0),
            1 if self.divisor_shown() => divisor_high,
            1 => self.fields.ier,
            2 => {
                let id = self.pending();
                if id == iir::THR_EMPTY {
                    self.fields.thr_empty_pending = false;
                }
                id | if self.fields.fcr & 1 != 0 { iir::FIFOS_ON } else { 0 }
            }
            3 => self.fields.lcr,
            4 => self.fields.mcr,
            5 => {
                let ready = if self.fields.fifo.is_empty() { 0 } else { lsr::DATA_READY };
                ready | lsr::TRANSMITTER_EMPTY | std::mem::take(&mut self.fields.errors)
            }
            6 => {
                let shown = self.fields.msr;
                self.fields.msr &= !msr::DELTAS;
                shown
            }
            7 => self.fields.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, cx: &mut Cx, at: u64, value: u8) {
        let f = &mut self.fields;
        let [divisor_low, divisor_high] = f.divisor.to_le_bytes();
        match at {
            0 if f.lcr & lcr::DIVISOR_LATCH != 0 => f.divisor = u16::from_le_bytes([value, divisor_high]),
            0 => self.transmit(cx, value),
            1 if f.lcr & lcr::DIVISOR_LATCH != 0 => f.divisor = u16::from_le_bytes([divisor_low, value]),
            1 => {
                if value & ier::THR_EMPTY != 0 && f.ier & ier::THR_EMPTY == 0 {
                    f.thr_empty_pending = true;
                }
                f.ier = value & 0x0f;
            }
            2 => self.write_fcr(value),
            3 => {
                let breaks = value & lcr::BREAK != 0 && f.lcr & lcr::BREAK == 0;
                f.lcr = value;
                if breaks && self.looped() {
                    self.fields.errors |= lsr::BREAK;
                }
            }
            4 => {
                f.mcr = value & 0x1f;
                self.update_modem_status();
            }
            7 => f.scratch = value,
            _ => {}
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let switched = (self.fields.fcr ^ value) & 1 != 0;
        // The other bits count only together with the enable bit.
        self.fields.fcr = if value & 1 != 0 { value & 0xc9 } else { 0 };
        if switched || (value & 1 != 0 && value & 2 != 0) {
            self.fields.fifo.clear();
        }
    }

    fn transmit(&mut self, cx: &mut Cx, value: u8) {
        if !self.looped() {
            cx.out.console(self.port, &[value]);
        } else if self.fields.fifo.len() < self.fifo_size() {
            self.fields.fifo.push_back(value);
        } else {
            self.fields.errors |= lsr::OVERRUN;
        }
        self.fields.thr_empty_pending = true;
    }

    fn update_modem_status(&mut self) {
        let control = self.fields.mcr;
        let lines = if self.looped() {
            let wire = |from: u8, to: u8| if control & from != 0 { to } else { 0 };
            wire(mcr::RTS, msr::CTS)
                | wire(mcr::DTR, msr::DSR)
                | wire(mcr::OUT1, msr::RI)
                | wire(mcr::OUT2, msr::DCD)
        } else {
            msr::CTS | msr::DSR | msr::DCD
        };
        let old = self.fields.msr;
        let changed = (lines ^ old) & !msr::DELTAS;
        // The delta of RI is only of its trailing edge.
        let ring = changed & msr::RI != 0 && lines & msr::RI == 0;
        let deltas = (changed & !msr::RI) >> 4 | if ring { msr::RI >> 4 } else { 0 };
        self.fields.msr = lines | old & msr::DELTAS | deltas;
    }
}

impl Device for Uart {
    fn kind(&self) -> &'static str {
        KIND
    }
    fn reset(&mut self) {
        *self = Self::new(self.port, self.gsi);
    }
    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, VERSION, &self.fields)
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let fields: Fields = state.decode(KIND, VERSION)?;
        if fields.fifo.len() > FIFO || fields.line.len() > LINE_MAX || fields.errors & !lsr::ERRORS != 0 {
            return Err(StateError::Damaged { kind: KIND, why: "FIFO length or line errors".into() });
        }
        self.fields = fields;
        Ok(())
    }

    /// Block 0: the eight registers.
    fn read(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        data::answer_bytes(data, offset, |at| self.read_register(at));
        self.update(cx);
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        for (i, &value) in data.iter().enumerate() {
            self.write_register(cx, offset + i as u64, value);
        }
        self.update(cx);
    }

    fn deadline(&self) -> Option<GuestTime> {
        self.fields.refill_at
    }

    fn expire(&mut self, cx: &mut Cx) {
        self.fields.refill_at = None;
        self.refill();
        self.update(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::testing::Bench;

    fn on() -> (Bench, Uart) {
        let (mut bench, mut uart) = (Bench::new(), Uart::new(0, 4));
        bench.write8(&mut uart, 0, 2, 0x81); // FIFO on, trigger at 8
        bench.write8(&mut uart, 0, 4, 0x0b);
        (bench, uart)
    }

    fn line(bench: &mut Bench) -> Option<bool> {
        bench.requests().into_iter().rev().find_map(|request| match request {
            Request::Line { gsi: 4, level } => Some(level),
            _ => None,
        })
    }

    #[test]
    fn a_byte_written_leaves_and_the_transmitter_is_empty_again() {
        let (mut bench, mut uart) = on();
        bench.write8(&mut uart, 0, 1, 2);
        assert_eq!(line(&mut bench), Some(true), "empty when enabled");
        assert_eq!(bench.read8(&mut uart, 0, 2), 0xc2);
        assert_eq!(line(&mut bench), Some(false), "reading IIR acknowledges");
        assert_eq!(bench.read8(&mut uart, 0, 2), 0xc1);
        bench.write8(&mut uart, 0, 0, b'x');
        assert_eq!(line(&mut bench), Some(true));
        assert_eq!(bench.read8(&mut uart, 0, 5), 0x60);
        assert_eq!(bench.out.console, vec![(0, vec![b'x'])]);
    }

    #[test]
    fn received_bytes_interrupt_until_they_are_read() {
        let (mut bench, mut uart) = on();
        bench.write8(&mut uart, 0, 1, 1);
        assert_eq!(uart.receive(&mut bench.cx(), b"0123456789"), 10);
        assert_eq!(bench.read8(&mut uart, 0, 2), 0xc4, "at or above the trigger level");
        for digit in b"0123" {
            assert_eq!(bench.read8(&mut uart, 0, 5) & 1, 1);
            assert_eq!(bench.read8(&mut uart, 0, 0), *digit);
        }
        let mut fresh = Uart::new(0, 4);
        bench.transplant(&uart, &mut fresh);
        assert_eq!(bench.read8(&mut fresh, 0, 2), 0xcc, "below: character time-out");
        for digit in b"456789" {
            assert_eq!(bench.read8(&mut fresh, 0, 0), *digit);
        }
        assert_eq!(line(&mut bench), Some(false));
        assert_eq!(bench.read8(&mut fresh, 0, 5) & 1, 0);
    }

    #[test]
    fn more_than_the_fifo_holds_waits_on_the_line_and_the_line_has_an_end() {
        let (mut bench, mut uart) = on();
        let many: Vec<u8> = (0..LINE_MAX + FIFO + 100).map(|i| i as u8).collect();
        assert_eq!(uart.receive(&mut bench.cx(), &many), LINE_MAX);
        assert_eq!(uart.room(), FIFO);
        assert_eq!(uart.receive(&mut bench.cx(), &many[LINE_MAX..]), FIFO);
        for (i, byte) in many[..LINE_MAX + FIFO].iter().enumerate() {
            if i > 0 && i % FIFO == 0 {
                assert_eq!(bench.read8(&mut uart, 0, 5) & 1, 0, "a pause after each filling");
                bench.now = uart.deadline().unwrap();
                uart.expire(&mut bench.cx());
            }
            assert_eq!(bench.read8(&mut uart, 0, 0), *byte, "byte {i}");
        }
        assert_eq!(uart.deadline(), None);
    }

    #[test]
    fn nothing_is_received_while_the_guest_does_not_request_it() {
        let (mut bench, mut uart) = on();
        bench.write8(&mut uart, 0, 4, 0x09);
        assert_eq!(uart.receive(&mut bench.cx(), b"held"), 4);
        assert_eq!(bench.read8(&mut uart, 0, 5) & 1, 0);
        assert_eq!(uart.deadline(), None);
        bench.write8(&mut uart, 0, 4, 0x0b);
        bench.now = uart.deadline().unwrap();
        uart.expire(&mut bench.cx());
        assert_eq!(bench.read8(&mut uart, 0, 0), b'h');
    }

    #[test]
    fn loop_back_turns_control_lines_and_data_around() {
        let (mut bench, mut uart) = on();
        bench.write8(&mut uart, 0, 4, 0x1a);
        assert_eq!(bench.read8(&mut uart, 0, 6) & 0xf0, 0x90, "as Linux's autoconfiguration expects");
        bench.write8(&mut uart, 0, 0, 0x5a);
        assert_eq!(bench.read8(&mut uart, 0, 0), 0x5a);
        assert!(bench.out.console.is_empty());
        bench.write8(&mut uart, 0, 4, 0x08);
        assert_eq!(bench.read8(&mut uart, 0, 6) & 0xf0, 0xb0);
    }

    #[test]
    fn the_divisor_latch_hides_data_and_interrupt_enable() {
        let (mut bench, mut uart) = on();
        bench.write8(&mut uart, 0, 3, 0x83);
        bench.write8(&mut uart, 0, 0, 0x01);
        bench.write8(&mut uart, 0, 1, 0x02);
        assert_eq!((bench.read8(&mut uart, 0, 0), bench.read8(&mut uart, 0, 1)), (1, 2));
        bench.write8(&mut uart, 0, 3, 0x03);
        assert_eq!(bench.read8(&mut uart, 0, 1), 0);
        assert!(bench.out.console.is_empty());
    }
}
