//! The high precision event timer (IA-PC HPET specification 1.0a): a 64-bit counter of 100 MHz and
//! three comparators, periodic or one-shot, edge or level, with legacy replacement routing.
//!
//! With legacy replacement on, comparators 0 and 1 take over IRQ 0 and IRQ 8, and the board cuts
//! off the 8254 and the RTC ([`Hpet::replaces_legacy`]).

use crate::data;
use crate::{Cx, Device, DeviceState, StateError};
use base::GuestTime;
use serde::{Deserialize, Serialize};

const KIND: &str = "hpet";
const VERSION: u32 = 1;
const TIMERS: usize = 3;
/// Nanoseconds per tick of the main counter.
const TICK_NS: u64 = 10;
/// General capabilities: period in femtoseconds, vendor 8086, legacy routes, 64 bits, revision 1.
const CAPABILITIES: u64 =
    (TICK_NS * 1_000_000) << 32 | 0x8086 << 16 | 1 << 15 | 1 << 13 | (TIMERS as u64 - 1) << 8 | 1;
/// IOAPIC pins a comparator can be routed to: 20 to 23, which PCI leaves free.
const ROUTES: u64 = 0x00f0_0000;

/// Bits of a comparator's configuration register.
mod config {
    pub const LEVEL: u64 = 1 << 1;
    pub const ENABLE: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const PERIODIC_CAPABLE: u64 = 1 << 4;
    pub const SIZE_64: u64 = 1 << 5;
    pub const SET_VALUE: u64 = 1 << 6;
    pub const FORCE_32: u64 = 1 << 8;
    pub const ROUTE_SHIFT: u32 = 9;
    pub const WRITABLE: u64 = LEVEL | ENABLE | PERIODIC | SET_VALUE | FORCE_32 | 31 << ROUTE_SHIFT;
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Comparator {
    config: u64,
    /// The counter value it matches next.
    value: u64,
    period: u64,
    /// The count of ticks (see [`Fields::ticks`]) at which it matches; `None` when it does not.
    due: Option<u64>,
}

impl Comparator {
    fn is(&self, bits: u64) -> bool {
        self.config & bits != 0
    }
    fn mask(&self) -> u64 {
        if self.is(config::FORCE_32) { u64::from(u32::MAX) } else { u64::MAX }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Fields {
    enabled: bool,
    legacy: bool,
    /// The main counter when it was last enabled, set or stopped, and the guest time of that.
    counter: u64,
    since: GuestTime,
    status: u8,
    comparators: [Comparator; TIMERS],
}

impl Fields {
    /// Ticks since the counter was last started.
    fn ticks(&self, now: GuestTime) -> u64 {
        if self.enabled { now.ns_since(self.since) / TICK_NS } else { 0 }
    }
    fn counter(&self, now: GuestTime) -> u64 {
        self.counter.wrapping_add(self.ticks(now))
    }
}

/// The timer block.
pub struct Hpet {
    fields: Fields,
}

impl Default for Hpet {
    fn default() -> Self {
        Self::new()
    }
}

impl Hpet {
    /// After power-on: stopped at zero.
    pub fn new() -> Self {
        let mut fields = Fields::default();
        fields.comparators.iter_mut().for_each(|c| c.value = u64::MAX);
        Self { fields }
    }

    /// Whether comparators 0 and 1 have taken over IRQ 0 and IRQ 8.
    pub fn replaces_legacy(&self) -> bool {
        self.fields.legacy
    }

    /// The GSI comparator `n` interrupts on.
    fn gsi(&self, n: usize) -> Option<u8> {
        match (self.fields.legacy, n) {
            (true, 0) => Some(2),
            (true, 1) => Some(8),
            _ => {
                let route = (self.fields.comparators[n].config >> config::ROUTE_SHIFT & 31) as u8;
                (ROUTES >> route & 1 != 0).then_some(route)
            }
        }
    }

    /// Works out when comparator `n` matches next, counting from now.
    fn schedule(&mut self, n: usize, now: GuestTime) {
        let (ticks, counter) = (self.fields.ticks(now), self.fields.counter(now));
        let enabled = self.fields.enabled;
        let c = &mut self.fields.comparators[n];
        let away = c.value.wrapping_sub(counter) & c.mask();
        // A value that the counter shows at this moment matches after a full turn.
        let away = if away == 0 { c.mask() } else { away };
        c.due = if enabled { ticks.checked_add(away) } else { None };
    }

    fn schedule_all(&mut self, now: GuestTime) {
        (0..TIMERS).for_each(|n| self.schedule(n, now));
    }

    fn fire(&mut self, cx: &mut Cx, n: usize) {
        let c = &self.fields.comparators[n];
        let (level, enabled) = (c.is(config::LEVEL), c.is(config::ENABLE));
        if level {
            self.fields.status |= 1 << n;
        }
        let Some(gsi) = self.gsi(n).filter(|_| enabled) else { return };
        if !level {
            cx.irq.line(gsi, false);
        }
        cx.irq.line(gsi, true);
    }

    /// Everything a comparator does up to now.
    fn advance(&mut self, cx: &mut Cx, n: usize) {
        let ticks = self.fields.ticks(cx.now);
        let c = &mut self.fields.comparators[n];
        let Some(due) = c.due.filter(|due| *due <= ticks) else { return };
        let mask = c.mask();
        if c.is(config::PERIODIC) && c.period & mask != 0 {
            let period = c.period & mask;
            let periods = (ticks - due) / period + 1;
            c.value = c.value.wrapping_add(period.wrapping_mul(periods)) & mask;
            c.due = due.checked_add(period.saturating_mul(periods));
        } else {
            // Once round the whole counter.
            c.due = due.checked_add(mask).and_then(|turn| turn.checked_add(1));
            if c.due.is_some_and(|next| next <= ticks) {
                self.schedule(n, cx.now);
            }
        }
        self.fire(cx, n);
    }

    fn settle(&mut self, cx: &mut Cx) {
        (0..TIMERS).for_each(|n| self.advance(cx, n));
    }

    fn read_register(&self, now: GuestTime, offset: u64) -> u64 {
        let f = &self.fields;
        match offset {
            0x000 => CAPABILITIES,
            0x010 => u64::from(f.enabled) | u64::from(f.legacy) << 1,
            0x020 => u64::from(f.status),
            0x0f0 => f.counter(now),
            0x100..0x160 => {
                let c = &f.comparators[(offset as usize - 0x100) / 0x20];
                match offset & 0x1f {
                    0x00 => c.config | config::PERIODIC_CAPABLE | config::SIZE_64 | ROUTES << 32,
                    0x08 => c.value & c.mask(),
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Writes a whole register (`value`), of which the guest wrote the bits in `written`.
    fn write_register(&mut self, cx: &mut Cx, offset: u64, value: u64, written: u64) {
        let now = cx.now;
        match offset {
            0x010 => {
                self.fields.counter = self.fields.counter(now);
                self.fields.since = now;
                self.fields.enabled = value & 1 != 0;
                self.fields.legacy = value & 2 != 0;
                self.schedule_all(now);
            }
            0x020 => self.clear_status(cx, value & written),
            0x0f0 if !self.fields.enabled => self.fields.counter = value,
            0x100..0x160 => {
                let n = (offset as usize - 0x100) / 0x20;
                match offset & 0x1f {
                    0x00 => self.write_config(cx, n, value),
                    0x08 => self.write_comparator(now, n, value),
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn clear_status(&mut self, cx: &mut Cx, ones: u64) {
        for n in 0..TIMERS {
            if ones >> n & 1 != 0 && self.fields.status >> n & 1 != 0 {
                self.fields.status &= !(1 << n);
                if let Some(gsi) = self.gsi(n) {
                    cx.irq.line(gsi, false);
                }
            }
        }
    }

    fn write_config(&mut self, cx: &mut Cx, n: usize, value: u64) {
        if let Some(gsi) = self.gsi(n).filter(|_| self.fields.status >> n & 1 != 0) {
            cx.irq.line(gsi, false);
        }
        let c = &mut self.fields.comparators[n];
        c.config = value & config::WRITABLE;
        if c.is(config::FORCE_32) {
            c.value &= c.mask();
            c.period &= c.mask();
        }
        if !c.is(config::LEVEL) {
            self.fields.status &= !(1 << n);
        } else if let Some(gsi) = self.gsi(n).filter(|_| self.fields.status >> n & 1 != 0) {
            cx.irq.line(gsi, true);
        }
        self.schedule(n, cx.now);
    }

    /// In periodic mode a write sets the period, and the comparator itself only when the
    /// configuration's SET_VALUE bit asks for it (specification 2.3.9.2.2).
    fn write_comparator(&mut self, now: GuestTime, n: usize, value: u64) {
        let c = &mut self.fields.comparators[n];
        let value = value & c.mask();
        if !c.is(config::PERIODIC) || c.is(config::SET_VALUE) {
            c.value = value;
        }
        if c.is(config::PERIODIC) {
            c.period = value;
        }
        c.config &= !config::SET_VALUE;
        self.schedule(n, now);
    }
}

impl Device for Hpet {
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
        if fields.status >> TIMERS != 0 {
            return Err(StateError::Damaged { kind: KIND, why: format!("status {:#x}", fields.status) });
        }
        self.fields = fields;
        Ok(())
    }

    /// Block 0: 1 KiB of registers, accessed in 32 or 64 bits.
    fn read(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        self.settle(cx);
        let value = self.read_register(cx.now, offset & !7);
        data::answer(data, value >> (8 * (offset & 7)));
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        self.settle(cx);
        let (register, byte) = (offset & !7, offset & 7);
        let old = match register {
            // A half write of the comparator in periodic mode must not mix in the other register.
            0x100..0x160 if register & 0x1f == 8 => {
                let c = &self.fields.comparators[(register as usize - 0x100) / 0x20];
                if c.is(config::PERIODIC) && !c.is(config::SET_VALUE) { c.period } else { c.value }
            }
            _ => self.read_register(cx.now, register),
        };
        let written = data::merge(0, byte, &[0xff; 8][..data.len().min(8)]);
        let value = data::merge(old, byte, data);
        self.write_register(cx, register, value, written);
    }

    fn deadline(&self) -> Option<GuestTime> {
        let f = &self.fields;
        let ticks = f.comparators.iter().filter(|c| c.is(config::ENABLE)).filter_map(|c| c.due).min()?;
        let ns = ticks.checked_mul(TICK_NS)?;
        Some(f.since.after_ns(ns))
    }

    fn expire(&mut self, cx: &mut Cx) {
        self.settle(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Request;
    use crate::testing::Bench;

    fn write64(bench: &mut Bench, hpet: &mut Hpet, offset: u64, value: u64) {
        hpet.write(&mut bench.cx(), 0, offset, &value.to_le_bytes());
    }

    fn read64(bench: &mut Bench, hpet: &mut Hpet, offset: u64) -> u64 {
        let mut data = [0; 8];
        hpet.read(&mut bench.cx(), 0, offset, &mut data);
        u64::from_le_bytes(data)
    }

    #[test]
    fn the_counter_counts_guest_time_while_enabled() {
        let (mut bench, mut hpet) = (Bench::new(), Hpet::new());
        assert_eq!(read64(&mut bench, &mut hpet, 0) >> 32, 10_000_000, "femtoseconds");
        bench.now = GuestTime::from_ns(1000);
        assert_eq!(read64(&mut bench, &mut hpet, 0xf0), 0);
        write64(&mut bench, &mut hpet, 0x10, 1);
        bench.now = GuestTime::from_ns(2009);
        assert_eq!(bench.read32(&mut hpet, 0, 0xf0), 100);
        write64(&mut bench, &mut hpet, 0x10, 0);
        bench.now = GuestTime::from_ns(9000);
        assert_eq!(read64(&mut bench, &mut hpet, 0xf0), 100);
    }

    #[test]
    fn legacy_periodic_interrupts_come_at_the_period_on_irq_0() {
        let (mut bench, mut hpet) = (Bench::new(), Hpet::new());
        bench.write32(&mut hpet, 0, 0x100, 0x14c); // enable, periodic, set value, 32 bits
        bench.write32(&mut hpet, 0, 0x108, 100_000);
        bench.write32(&mut hpet, 0, 0x108, 400_000); // period: 4 ms
        write64(&mut bench, &mut hpet, 0x10, 3);
        assert!(hpet.replaces_legacy());
        assert_eq!(bench.pass_to(&mut hpet, 1_000_000), 1, "first at 1 ms");
        assert_eq!(
            bench.requests(),
            vec![Request::Line { gsi: 2, level: false }, Request::Line { gsi: 2, level: true }]
        );
        let mut fresh = Hpet::new();
        bench.transplant(&hpet, &mut fresh);
        assert_eq!(bench.pass_to(&mut fresh, 13_000_000), 3);
    }

    #[test]
    fn a_one_shot_comparator_fires_when_the_counter_gets_there() {
        let (mut bench, mut hpet) = (Bench::new(), Hpet::new());
        write64(&mut bench, &mut hpet, 0x10, 1);
        write64(&mut bench, &mut hpet, 0x120, 1 << 2 | 21 << 9);
        bench.now = GuestTime::from_ns(5_000);
        write64(&mut bench, &mut hpet, 0x128, 1500);
        assert_eq!(hpet.deadline(), Some(GuestTime::from_ns(15_000)));
        assert_eq!(bench.pass_to(&mut hpet, 20_000), 1);
        assert_eq!(bench.requests().last(), Some(&Request::Line { gsi: 21, level: true }));
        assert_eq!(bench.pass_to(&mut hpet, 1_000_000_000_000), 0);
    }

    #[test]
    fn a_level_interrupt_stays_until_its_status_is_cleared() {
        let (mut bench, mut hpet) = (Bench::new(), Hpet::new());
        write64(&mut bench, &mut hpet, 0x140, 1 << 2 | 1 << 1 | 22 << 9);
        write64(&mut bench, &mut hpet, 0x148, 10);
        write64(&mut bench, &mut hpet, 0x10, 1);
        bench.pass_to(&mut hpet, 100);
        assert_eq!(bench.requests(), vec![Request::Line { gsi: 22, level: true }]);
        assert_eq!(read64(&mut bench, &mut hpet, 0x20), 4);
        write64(&mut bench, &mut hpet, 0x20, 4);
        assert_eq!(bench.requests(), vec![Request::Line { gsi: 22, level: false }]);
    }
}
