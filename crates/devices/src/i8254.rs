//! The 8254 programmable interval timer, and port 0x61 beside it.
//!
//! Nothing counts: a channel knows the tick of the 1.193182 MHz clock at which it was loaded, and
//! its count and output at any time follow from that. Channel 0 drives IRQ 0 (GSI 2 on the
//! IOAPIC); channel 2's gate and output are bits of port 0x61, where kernels calibrate against it.

use crate::data;
use crate::{Cx, Device, DeviceState, StateError};
use base::GuestTime;
use serde::{Deserialize, Serialize};

const KIND: &str = "i8254";
const VERSION: u32 = 1;
/// Input clock in Hz.
pub const PIT_HZ: u64 = 1_193_182;
/// No run reaches this tick; a saved state that claims so is damaged.
const LATEST_TICK: u64 = 1 << 56;
/// Where IRQ 0 arrives on the IOAPIC.
const GSI: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Channel {
    mode: u8,
    bcd: bool,
    access: Access,
    /// Ticks per period or to terminal count: 1 to 65536.
    reload: u32,
    /// The clock tick at which the count was `reload`; `None` until a count has been written.
    loaded: Option<u64>,
    gate: bool,
    /// The count at which a low gate froze the counter.
    frozen: Option<u32>,
    /// First byte of a two-byte count.
    low_byte: Option<u8>,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    /// The next read gives the high byte.
    read_high: bool,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 3,
            bcd: false,
            access: Access::Both,
            reload: 0x1_0000,
            loaded: None,
            gate,
            frozen: None,
            low_byte: None,
            latched_count: None,
            latched_status: None,
            read_high: false,
        }
    }

    fn is_periodic(&self) -> bool {
        matches!(self.mode, 2 | 3)
    }

    /// Ticks since loading, or `None` while nothing counts.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        self.loaded.map(|at| tick.saturating_sub(at))
    }

    /// The counting element, binary.
    fn count(&self, tick: u64) -> u32 {
        if let Some(frozen) = self.frozen {
            return frozen;
        }
        let Some(elapsed) = self.elapsed(tick) else { return self.reload };
        let reload = u64::from(self.reload);
        let count = match self.mode {
            2 => reload - elapsed % reload,
            // Square wave: down by two, twice per period (an odd reload loses its low bit).
            3 => {
                let even = (reload & !1).max(2);
                even - (elapsed * 2) % even
            }
            // One-shot: past terminal count it wraps and goes on.
            _ => (reload as i64).wrapping_sub(elapsed as i64).rem_euclid(0x1_0000) as u64,
        };
        count as u32
    }

    fn output(&self, tick: u64) -> bool {
        let reload = u64::from(self.reload);
        let elapsed = match (self.frozen, self.elapsed(tick)) {
            (Some(frozen), _) => reload.saturating_sub(u64::from(frozen)),
            (None, Some(elapsed)) => elapsed,
            (None, None) => return self.mode != 0,
        };
        match self.mode {
            0 | 1 => elapsed >= reload,
            2 => elapsed % reload != reload - 1,
            3 => elapsed % reload < reload.div_ceil(2),
            _ => elapsed != reload,
        }
    }

    /// The tick of the next rising edge of the output after `tick`.
    fn next_rise(&self, tick: u64) -> Option<u64> {
        let loaded = self.loaded.filter(|_| self.frozen.is_none())?;
        let reload = u64::from(self.reload);
        if self.is_periodic() {
            let periods = tick.saturating_sub(loaded) / reload + 1;
            return Some(loaded + periods * reload);
        }
        let terminal = loaded + reload + u64::from(self.mode >= 4);
        (terminal > tick).then_some(terminal)
    }

    fn load(&mut self, tick: u64, written: u16) {
        self.reload = match (self.bcd, written) {
            (false, 0) => 0x1_0000,
            (true, 0) => 10_000,
            (false, n) => u32::from(n),
            (true, n) => {
                (0..4).rev().fold(0, |sum, digit| sum * 10 + u32::from(n >> (4 * digit) & 15)).max(1)
            }
        };
        // Modes 1 and 5 wait for a rising gate; the others start with the next tick.
        if matches!(self.mode, 1 | 5) {
            return;
        }
        self.loaded = Some(tick + 1);
        self.frozen = (!self.gate).then_some(self.reload);
    }

    fn write(&mut self, tick: u64, value: u8) {
        match (self.access, self.low_byte.take()) {
            (Access::Low, _) => self.load(tick, u16::from(value)),
            (Access::High, _) => self.load(tick, u16::from(value) << 8),
            (Access::Both, None) => {
                self.low_byte = Some(value);
                if self.mode == 0 {
                    // The first byte stops a count in mode 0.
                    self.loaded = None;
                }
            }
            (Access::Both, Some(low)) => self.load(tick, u16::from_le_bytes([low, value])),
        }
    }

    fn presented_count(&self, tick: u64) -> u16 {
        let count = self.count(tick);
        if !self.bcd {
            return count as u16;
        }
        (0..4).fold(0, |shown, digit| shown | ((count / 10u32.pow(digit) % 10) as u16) << (4 * digit))
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.presented_count(tick));
        let [low, high] = count.to_le_bytes();
        let (byte, done) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both if self.read_high => (high, true),
            Access::Both => (low, false),
        };
        self.read_high = !done;
        if done {
            self.latched_count = None;
        }
        byte
    }

    fn latch_count(&mut self, tick: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.presented_count(tick));
            self.read_high = false;
        }
    }

    fn latch_status(&mut self, tick: u64) {
        let access = match self.access {
            Access::Low => 1,
            Access::High => 2,
            Access::Both => 3,
        };
        let null_count = u8::from(self.loaded.is_none_or(|at| at > tick));
        let status = u8::from(self.output(tick)) << 7
            | null_count << 6
            | access << 4
            | self.mode << 1
            | u8::from(self.bcd);
        self.latched_status.get_or_insert(status);
    }

    fn control(&mut self, value: u8) {
        let gate = self.gate;
        let access = match value >> 4 & 3 {
            1 => Access::Low,
            2 => Access::High,
            _ => Access::Both,
        };
        // Modes 6 and 7 are 2 and 3.
        let mode = match value >> 1 & 7 {
            mode @ 0..6 => mode,
            mode => mode & 3,
        };
        *self = Self { mode, bcd: value & 1 != 0, access, ..Self::new(gate) };
    }

    fn set_gate(&mut self, tick: u64, gate: bool) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            1 | 5 if rises => self.loaded = Some(tick + 1),
            2 | 3 if rises => {
                self.frozen = None;
                self.loaded = self.loaded.map(|_| tick + 1);
            }
            0 | 4 if rises => {
                if let Some(frozen) = self.frozen.take() {
                    self.loaded = Some(tick.saturating_sub(u64::from(self.reload.saturating_sub(frozen))));
                }
            }
            0 | 2 | 3 | 4 if falls && self.loaded.is_some() => self.frozen = Some(self.count(tick)),
            _ => {}
        }
    }

    fn is_sane(&self) -> bool {
        let frozen = self.frozen.unwrap_or(0);
        self.mode < 6
            && (1..=0x1_0000).contains(&self.reload)
            && frozen <= 0x1_0000
            && self.loaded.unwrap_or(0) <= LATEST_TICK
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields {
    channels: [Channel; 3],
    /// The tick up to which rising edges of channel 0 have been signalled.
    signalled: u64,
    /// Level of the interrupt line as last driven. High at power-on, so that choosing a mode
    /// whose output idles high is no edge.
    line: bool,
    /// Port 0x61, bits 0 and 1: gate of channel 2, speaker enable.
    speaker: u8,
}

/// The timer.
pub struct I8254 {
    fields: Fields,
}

impl Default for I8254 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8254 {
    /// After power-on: no channel counts.
    pub fn new() -> Self {
        let channels = [Channel::new(true), Channel::new(true), Channel::new(false)];
        Self { fields: Fields { channels, signalled: 0, line: true, speaker: 0 } }
    }

    /// Channel 0's output falls and, at terminal count or each period's end, rises. Loading a
    /// count in mode 0 makes it low.
    fn write_register(&mut self, cx: &mut Cx, offset: u64, value: u8) {
        let tick = cx.now.ticks(PIT_HZ);
        match offset {
            0..3 => {
                self.fields.channels[offset as usize].write(tick, value);
            }
            3 if value >> 6 == 3 => {
                for (n, channel) in self.fields.channels.iter_mut().enumerate() {
                    if value >> (n + 1) & 1 == 0 {
                        continue;
                    }
                    if value & 0x20 == 0 {
                        channel.latch_count(tick);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(tick);
                    }
                }
            }
            3 => {
                let channel = &mut self.fields.channels[usize::from(value >> 6)];
                if value & 0x30 == 0 {
                    return channel.latch_count(tick);
                }
                channel.control(value);
            }
            _ => return,
        }
        if offset == 0 || (offset == 3 && value >> 6 == 0) {
            self.fields.signalled = tick;
            let output = self.fields.channels[0].output(tick);
            if output != self.fields.line {
                self.fields.line = output;
                cx.irq.line(GSI, output);
            }
        }
    }

    /// Port 0x61: bits 0–1 as written, 4 toggles with memory refresh, 5 is channel 2's output.
    fn speaker_port(&self, now: GuestTime) -> u8 {
        let refresh = (now.ns() / 15_085) as u8 & 1;
        let output = self.fields.channels[2].output(now.ticks(PIT_HZ));
        self.fields.speaker | refresh << 4 | u8::from(output) << 5
    }
}

impl Device for I8254 {
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
        if !fields.channels.iter().all(Channel::is_sane) || fields.signalled > LATEST_TICK {
            return Err(StateError::Damaged { kind: KIND, why: "channel mode, count or time".into() });
        }
        self.fields = fields;
        Ok(())
    }

    /// Block 0: ports 0x40–0x43, block 1: port 0x61.
    fn read(&mut self, cx: &mut Cx, block: u32, offset: u64, data: &mut [u8]) {
        let (now, tick) = (cx.now, cx.now.ticks(PIT_HZ));
        data::answer_bytes(data, offset, |at| match (block, at) {
            (0, 0..3) => self.fields.channels[at as usize].read(tick),
            (1, 0) => self.speaker_port(now),
            _ => 0xff,
        });
    }

    fn write(&mut self, cx: &mut Cx, block: u32, offset: u64, data: &[u8]) {
        for (i, &value) in data.iter().enumerate() {
            match (block, offset + i as u64) {
                (0, at) => self.write_register(cx, at, value),
                (1, 0) => {
                    self.fields.speaker = value & 3;
                    self.fields.channels[2].set_gate(cx.now.ticks(PIT_HZ), value & 1 != 0);
                }
                _ => {}
            }
        }
    }

    fn deadline(&self) -> Option<GuestTime> {
        let rise = self.fields.channels[0].next_rise(self.fields.signalled)?;
        Some(GuestTime::at_tick(rise, PIT_HZ))
    }

    fn expire(&mut self, cx: &mut Cx) {
        let tick = cx.now.ticks(PIT_HZ);
        let due = self.fields.channels[0].next_rise(self.fields.signalled).is_some_and(|rise| rise <= tick);
        self.fields.signalled = tick;
        if due {
            cx.irq.line(GSI, false);
            cx.irq.line(GSI, true);
            self.fields.line = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::testing::Bench;

    const PULSE: [Request; 2] =
        [Request::Line { gsi: 2, level: false }, Request::Line { gsi: 2, level: true }];

    #[test]
    fn a_rate_generator_interrupts_at_its_rate_for_ever() {
        let (mut bench, mut pit) = (Bench::new(), I8254::new());
        bench.write8(&mut pit, 0, 3, 0x34);
        bench.write8(&mut pit, 0, 0, 0x9c);
        bench.write8(&mut pit, 0, 0, 0x2e); // 11932 ticks: 100 Hz
        bench.requests();
        assert_eq!(bench.pass_to(&mut pit, 1_000_000_000), 99);
        assert_eq!(bench.requests()[..2], PULSE);
        let mut fresh = I8254::new();
        bench.transplant(&pit, &mut fresh);
        assert_eq!(bench.pass_to(&mut fresh, 1_010_000_000), 1);
    }

    #[test]
    fn a_one_shot_interrupts_once() {
        let (mut bench, mut pit) = (Bench::new(), I8254::new());
        bench.write8(&mut pit, 0, 3, 0x30);
        bench.write8(&mut pit, 0, 0, 0xe8);
        bench.write8(&mut pit, 0, 0, 0x03); // 1000 ticks
        assert_eq!(bench.requests().last(), Some(&Request::Line { gsi: 2, level: false }));
        assert_eq!(bench.pass_to(&mut pit, 838_000), 0);
        assert_eq!(bench.pass_to(&mut pit, 840_000), 1);
        assert_eq!(bench.pass_to(&mut pit, 10_000_000_000), 0);
    }

    #[test]
    fn channel_two_times_a_calibration_through_port_61() {
        let (mut bench, mut pit) = (Bench::new(), I8254::new());
        bench.write8(&mut pit, 1, 0, 1);
        bench.write8(&mut pit, 0, 3, 0xb0);
        bench.write8(&mut pit, 0, 2, 0xff);
        bench.write8(&mut pit, 0, 2, 0x2e);
        assert_eq!(bench.read8(&mut pit, 1, 0) & 0x20, 0);
        bench.now = GuestTime::at_tick(0x2eff, PIT_HZ);
        assert_eq!(bench.read8(&mut pit, 1, 0) & 0x20, 0);
        bench.now = GuestTime::at_tick(0x2eff + 1, PIT_HZ);
        assert_eq!(bench.read8(&mut pit, 1, 0) & 0x21, 0x21);
    }

    #[test]
    fn a_low_gate_holds_the_count() {
        let (mut bench, mut pit) = (Bench::new(), I8254::new());
        bench.write8(&mut pit, 1, 0, 1);
        bench.write8(&mut pit, 0, 3, 0xb0);
        bench.write8(&mut pit, 0, 2, 0);
        bench.write8(&mut pit, 0, 2, 1); // 256
        bench.now = GuestTime::at_tick(101, PIT_HZ);
        bench.write8(&mut pit, 1, 0, 0);
        bench.now = GuestTime::at_tick(5000, PIT_HZ);
        let mut read = || [bench.read8(&mut pit, 0, 2), bench.read8(&mut pit, 0, 2)];
        assert_eq!(u16::from_le_bytes(read()), 156);
        bench.write8(&mut pit, 1, 0, 1);
        bench.now = GuestTime::at_tick(5010, PIT_HZ);
        let mut read = || [bench.read8(&mut pit, 0, 2), bench.read8(&mut pit, 0, 2)];
        assert_eq!(u16::from_le_bytes(read()), 146);
    }

    #[test]
    fn latched_counts_and_status_are_read_back() {
        let (mut bench, mut pit) = (Bench::new(), I8254::new());
        bench.write8(&mut pit, 0, 3, 0x34);
        bench.write8(&mut pit, 0, 0, 0x10);
        bench.write8(&mut pit, 0, 0, 0x27); // 10000
        bench.now = GuestTime::at_tick(1001, PIT_HZ);
        bench.write8(&mut pit, 0, 3, 0xc2); // read back count and status of channel 0
        bench.now = GuestTime::at_tick(3000, PIT_HZ);
        assert_eq!(bench.read8(&mut pit, 0, 0), 0xb4, "status: output high, both bytes, mode 2");
        let count = [bench.read8(&mut pit, 0, 0), bench.read8(&mut pit, 0, 0)];
        assert_eq!(u16::from_le_bytes(count), 9000);
        let count = [bench.read8(&mut pit, 0, 0), bench.read8(&mut pit, 0, 0)];
        assert_eq!(u16::from_le_bytes(count), 7001, "no longer latched");
    }

    #[test]
    fn counting_in_decimal_shows_decimal() {
        let (mut bench, mut pit) = (Bench::new(), I8254::new());
        bench.write8(&mut pit, 0, 3, 0x35);
        bench.write8(&mut pit, 0, 0, 0x00);
        bench.write8(&mut pit, 0, 0, 0x10); // 1000 in BCD
        bench.now = GuestTime::at_tick(2, PIT_HZ);
        let count = [bench.read8(&mut pit, 0, 0), bench.read8(&mut pit, 0, 0)];
        assert_eq!(u16::from_le_bytes(count), 0x999);
    }
}
