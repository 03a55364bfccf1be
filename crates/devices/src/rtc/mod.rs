//! The real-time clock and CMOS memory (Motorola MC146818A, with the century at 0x32).
//!
//! The time of day is the start-of-day time that configuration gave, plus guest time, plus what
//! the guest has set it to since. While register B's SET bit is one the time registers are plain
//! memory, taken over when it is cleared.
//!
//! The three interrupt flags of register C are found by comparing the moment of the last look
//! (`looked`) with now, so that polling costs no deadlines.

mod calendar;

use crate::data;
use crate::{Cx, Device, DeviceState, StateError};
use base::GuestTime;
use calendar::Civil;
use serde::{Deserialize, Serialize};

const KIND: &str = "rtc";
const VERSION: u32 = 1;
const GSI: u8 = 8;
const SECOND: u64 = 1_000_000_000;
/// How long before an update the UIP bit rises (MC146818A: tBUC), in nanoseconds.
const UPDATE_WARNING: u64 = 244_000;
/// Saved times beyond this many seconds from 1970 (about 34,000 years) are damage.
const SECONDS_MAX: i64 = 1 << 40;

/// A point in time as configuration gives it: seconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixTime(pub i64);

/// Register numbers.
mod register {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
}

/// Bits of registers B and C; enables and flags have the same places.
mod bit {
    pub const SET: u8 = 1 << 7;
    pub const PERIODIC: u8 = 1 << 6;
    pub const ALARM: u8 = 1 << 5;
    pub const UPDATE: u8 = 1 << 4;
    pub const BINARY: u8 = 1 << 2;
    pub const HOURS_24: u8 = 1 << 1;
    pub const SOURCES: u8 = PERIODIC | ALARM | UPDATE;
    /// Register C: any enabled flag.
    pub const IRQ: u8 = 1 << 7;
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Fields {
    index: u8,
    /// The 128 bytes; those of the time registers count only while SET is one.
    cmos: Vec<u8>,
    /// Nanoseconds since 1970 at guest time zero, as the clock is set now.
    offset_ns: i128,
    /// Flags latched in register C.
    flags: u8,
    /// Up to when events have been turned into flags.
    looked: GuestTime,
}

/// The clock.
pub struct Rtc {
    start: UnixTime,
    fields: Fields,
}

impl Rtc {
    /// A clock that shows `start` at guest time zero.
    pub fn new(start: UnixTime) -> Self {
        let mut cmos = vec![0; 128];
        cmos[usize::from(register::A)] = 0x26;
        cmos[usize::from(register::B)] = bit::HOURS_24;
        cmos[usize::from(register::D)] = 0x80;
        let fields = Fields {
            index: 0,
            cmos,
            offset_ns: i128::from(start.0) * i128::from(SECOND),
            flags: 0,
            looked: GuestTime::ZERO,
        };
        Self { start, fields }
    }

    fn b(&self) -> u8 {
        self.fields.cmos[usize::from(register::B)]
    }

    /// Nanoseconds since 1970 on this clock.
    fn clock_ns(&self, now: GuestTime) -> i128 {
        self.fields.offset_ns + i128::from(now.ns())
    }

    fn unix(&self, now: GuestTime) -> i64 {
        self.clock_ns(now).div_euclid(i128::from(SECOND)) as i64
    }

    /// The guest time at which the clock shows the start of second `unix`.
    fn when(&self, unix: i64) -> Option<GuestTime> {
        let ns = i128::from(unix) * i128::from(SECOND) - self.fields.offset_ns;
        u64::try_from(ns).ok().map(GuestTime::from_ns)
    }

    fn encode(&self, value: i64) -> u8 {
        let value = value as u8;
        if self.b() & bit::BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> i64 {
        i64::from(if self.b() & bit::BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) })
    }

    fn encode_hour(&self, hour: i64) -> u8 {
        if self.b() & bit::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = if hour % 12 == 0 { 12 } else { hour % 12 };
        self.encode(twelve) | if hour >= 12 { 0x80 } else { 0 }
    }

    fn decode_hour(&self, value: u8) -> i64 {
        if self.b() & bit::HOURS_24 != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// What the time register `index` shows when running; `None` for other registers.
    fn time_register(&self, now: GuestTime, index: u8) -> Option<u8> {
        let unix = self.unix(now);
        let civil = Civil::from_unix(unix);
        Some(match index {
            register::SECONDS => self.encode(civil.second),
            register::MINUTES => self.encode(civil.minute),
            register::HOURS => self.encode_hour(civil.hour),
            register::WEEKDAY => self.encode(Civil::weekday(unix)),
            register::DAY => self.encode(civil.day),
            register::MONTH => self.encode(civil.month),
            register::YEAR => self.encode(civil.year.rem_euclid(100)),
            register::CENTURY => self.encode(civil.year.div_euclid(100).rem_euclid(100)),
            _ => return None,
        })
    }

    /// Copies the running time into memory, when it stops or is about to be changed.
    fn freeze(&mut self, now: GuestTime) {
        for index in (0..=register::YEAR).chain([register::CENTURY]) {
            if let Some(value) = self.time_register(now, index) {
                self.fields.cmos[usize::from(index)] = value;
            }
        }
    }

    /// Starts the clock from what memory holds.
    fn thaw(&mut self, now: GuestTime) {
        let raw = |index: u8| self.fields.cmos[usize::from(index)];
        let civil = Civil {
            year: self.decode(raw(register::CENTURY)) * 100 + self.decode(raw(register::YEAR)),
            month: self.decode(raw(register::MONTH)),
            day: self.decode(raw(register::DAY)),
            hour: self.decode_hour(raw(register::HOURS)),
            minute: self.decode(raw(register::MINUTES)),
            second: self.decode(raw(register::SECONDS)),
        };
        let into_second = self.clock_ns(now).rem_euclid(i128::from(SECOND));
        let clock = i128::from(civil.to_unix()) * i128::from(SECOND) + into_second;
        self.fields.offset_ns = clock - i128::from(now.ns());
    }

    fn is_set(&self) -> bool {
        self.b() & bit::SET != 0
    }

    /// Nanoseconds between periodic interrupts (MC146818A, table 5); `None` when off.
    fn period(&self) -> Option<u64> {
        match self.fields.cmos[usize::from(register::A)] & 15 {
            0 => None,
            rate @ 1..=2 => Some(SECOND / (256 >> (rate - 1))),
            rate => Some((SECOND << (rate - 1)) / 32_768),
        }
    }

    /// The next second after `unix` that the alarm registers match.
    fn next_alarm(&self, unix: i64) -> Option<i64> {
        let field = |index: u8| self.fields.cmos[usize::from(index)];
        // 0xc0 to 0xff match anything.
        let wanted = |raw: u8, value: i64| (raw < 0xc0).then_some(value);
        let raws = [register::HOURS_ALARM, register::MINUTES_ALARM, register::SECONDS_ALARM].map(field);
        let hour = wanted(raws[0], self.decode_hour(raws[0]));
        let minute = wanted(raws[1], self.decode(raws[1]));
        let second = wanted(raws[2], self.decode(raws[2]));
        let (mut at, end) = (unix + 1, unix + 2 * 86_400);
        while at <= end {
            let civil = Civil::from_unix(at);
            if hour.is_some_and(|h| h != civil.hour) {
                at += 3600 - civil.minute * 60 - civil.second;
            } else if minute.is_some_and(|m| m != civil.minute) {
                at += 60 - civil.second;
            } else if second.is_some_and(|s| s != civil.second) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// The first event of each source after `time`: register C's bit and when.
    fn next_events(&self, time: GuestTime) -> [(u8, Option<GuestTime>); 3] {
        let periodic = self.period().map(|period| GuestTime::from_ns((time.ns() / period + 1) * period));
        if self.is_set() {
            return [(bit::PERIODIC, periodic), (bit::UPDATE, None), (bit::ALARM, None)];
        }
        let unix = self.unix(time);
        let update = self.when(unix + 1);
        let alarm = self.next_alarm(unix).and_then(|at| self.when(at));
        [(bit::PERIODIC, periodic), (bit::UPDATE, update), (bit::ALARM, alarm)]
    }

    /// Turns the events up to now into flags, and drives the interrupt line.
    fn look(&mut self, cx: &mut Cx) {
        for (flag, event) in self.next_events(self.fields.looked) {
            if event.is_some_and(|at| at <= cx.now) {
                self.fields.flags |= flag;
            }
        }
        self.fields.looked = cx.now;
        cx.irq.line(GSI, self.interrupting());
    }

    fn interrupting(&self) -> bool {
        self.fields.flags & self.b() & bit::SOURCES != 0
    }

    fn read_data(&mut self, cx: &mut Cx) -> u8 {
        self.look(cx);
        let index = self.fields.index;
        match index {
            register::A => {
                let into_second = self.clock_ns(cx.now).rem_euclid(i128::from(SECOND)) as u64;
                let updating = !self.is_set() && into_second >= SECOND - UPDATE_WARNING;
                self.fields.cmos[usize::from(index)] & 0x7f | u8::from(updating) << 7
            }
            register::C => {
                let flags = self.fields.flags | if self.interrupting() { bit::IRQ } else { 0 };
                self.fields.flags = 0;
                cx.irq.line(GSI, false);
                flags
            }
            _ if self.is_set() => self.fields.cmos[usize::from(index)],
            _ => self.time_register(cx.now, index).unwrap_or(self.fields.cmos[usize::from(index)]),
        }
    }

    fn write_data(&mut self, cx: &mut Cx, value: u8) {
        self.look(cx);
        let index = self.fields.index;
        match index {
            register::A => self.fields.cmos[usize::from(index)] = value & 0x7f,
            register::B => self.write_b(cx.now, value),
            register::C | register::D => {}
            _ if self.is_set() || self.time_register(cx.now, index).is_none() => {
                self.fields.cmos[usize::from(index)] = value;
            }
            _ => {
                self.freeze(cx.now);
                self.fields.cmos[usize::from(index)] = value;
                self.thaw(cx.now);
            }
        }
        cx.irq.line(GSI, self.interrupting());
    }

    fn write_b(&mut self, now: GuestTime, value: u8) {
        let (was, will) = (self.is_set(), value & bit::SET != 0);
        if !was && will {
            self.freeze(now);
        }
        // SET also clears the update-ended enable.
        let value = if will { value & !bit::UPDATE } else { value };
        self.fields.cmos[usize::from(register::B)] = value;
        if was && !will {
            self.thaw(now);
        }
    }
}

impl Device for Rtc {
    fn kind(&self) -> &'static str {
        KIND
    }
    /// The clock is battery-backed: only a new machine starts it again.
    fn reset(&mut self) {
        *self = Self::new(self.start);
    }
    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, VERSION, &self.fields)
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let fields: Fields = state.decode(KIND, VERSION)?;
        let farthest = i128::from(SECONDS_MAX) * i128::from(SECOND);
        if fields.cmos.len() != 128 || fields.index > 127 || fields.offset_ns.abs() > farthest {
            return Err(StateError::Damaged { kind: KIND, why: "memory size, index or time".into() });
        }
        self.fields = fields;
        Ok(())
    }

    /// Block 0: index at 0 (port 0x70), data at 1 (port 0x71).
    fn read(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        data::answer_bytes(data, offset, |at| if at == 1 { self.read_data(cx) } else { 0xff });
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        for (i, &value) in data.iter().enumerate() {
            match offset + i as u64 {
                0 => self.fields.index = value & 0x7f,
                1 => self.write_data(cx, value),
                _ => {}
            }
        }
    }

    fn deadline(&self) -> Option<GuestTime> {
        if self.b() & bit::SOURCES == 0 || self.interrupting() {
            return None;
        }
        let events = self.next_events(self.fields.looked);
        events.into_iter().filter(|(flag, _)| self.b() & flag != 0).filter_map(|(_, at)| at).min()
    }

    fn expire(&mut self, cx: &mut Cx) {
        self.look(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::testing::Bench;

    const START: UnixTime = UnixTime(1_709_210_096); // 2024-02-29 12:34:56

    fn get(bench: &mut Bench, rtc: &mut Rtc, index: u8) -> u8 {
        bench.write8(rtc, 0, 0, index);
        bench.read8(rtc, 0, 1)
    }
    fn set(bench: &mut Bench, rtc: &mut Rtc, index: u8, value: u8) {
        bench.write8(rtc, 0, 0, index);
        bench.write8(rtc, 0, 1, value);
    }

    #[test]
    fn it_shows_the_configured_time_plus_guest_time() {
        let (mut bench, mut rtc) = (Bench::new(), Rtc::new(START));
        bench.now = GuestTime::from_ns(5 * SECOND);
        let shown = [0x32, 9, 8, 7, 4, 2, 0, 6].map(|index| get(&mut bench, &mut rtc, index));
        assert_eq!(shown, [0x20, 0x24, 0x02, 0x29, 0x12, 0x35, 0x01, 0x05]);
        assert_eq!(get(&mut bench, &mut rtc, 0x0d), 0x80);
    }

    #[test]
    fn a_set_time_goes_on_from_there_across_a_save() {
        let (mut bench, mut rtc) = (Bench::new(), Rtc::new(START));
        set(&mut bench, &mut rtc, 0x0b, 0x82);
        for (index, value) in [(0, 0x59), (2, 0x59), (4, 0x23), (7, 0x31), (8, 0x12), (9, 0x99)] {
            set(&mut bench, &mut rtc, index, value);
        }
        let mut fresh = Rtc::new(UnixTime(0));
        bench.transplant(&rtc, &mut fresh);
        bench.now = GuestTime::from_ns(7 * SECOND);
        assert_eq!(get(&mut bench, &mut fresh, 0), 0x59, "stopped while SET");
        set(&mut bench, &mut fresh, 0x0b, 0x02);
        bench.now = GuestTime::from_ns(8 * SECOND);
        let shown = [0x32, 9, 8, 7, 4, 2, 0].map(|index| get(&mut bench, &mut fresh, index));
        assert_eq!(shown, [0x21, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn twelve_hour_binary_mode_marks_the_afternoon() {
        let (mut bench, mut rtc) = (Bench::new(), Rtc::new(START));
        set(&mut bench, &mut rtc, 0x0b, 0x04);
        assert_eq!(get(&mut bench, &mut rtc, 4), 0x8c);
    }

    #[test]
    fn the_update_interrupt_comes_every_second_once_acknowledged() {
        let (mut bench, mut rtc) = (Bench::new(), Rtc::new(START));
        set(&mut bench, &mut rtc, 0x0b, 0x12);
        assert_eq!(bench.pass_to(&mut rtc, 10 * SECOND), 1, "the flag stands until read");
        assert_eq!(bench.requests().last(), Some(&Request::Line { gsi: 8, level: true }));
        assert_eq!(get(&mut bench, &mut rtc, 0x0c), 0xd0, "update and periodic flags, IRQ");
        assert_eq!(bench.pass_to(&mut rtc, 11 * SECOND), 1);
    }

    #[test]
    fn the_alarm_comes_at_its_time() {
        let (mut bench, mut rtc) = (Bench::new(), Rtc::new(START));
        for (index, value) in [(1, 0x00), (3, 0x36), (5, 0xff), (0x0b, 0x22)] {
            set(&mut bench, &mut rtc, index, value);
        }
        assert_eq!(bench.pass_to(&mut rtc, 63 * SECOND), 0);
        assert_eq!(bench.pass_to(&mut rtc, 64 * SECOND), 1);
        assert_eq!(get(&mut bench, &mut rtc, 0x0c) & 0xa0, 0xa0);
    }

    #[test]
    fn the_periodic_interrupt_runs_at_its_rate() {
        let (mut bench, mut rtc) = (Bench::new(), Rtc::new(START));
        set(&mut bench, &mut rtc, 0x0b, 0x42); // 1024 Hz
        let mut interrupts = 0;
        for ms in 1..=1000 {
            interrupts += bench.pass_to(&mut rtc, ms * 1_000_000);
            get(&mut bench, &mut rtc, 0x0c);
        }
        assert!((990..=1000).contains(&interrupts), "{interrupts}, some coalesced by polling");
    }
}
