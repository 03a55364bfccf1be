//! ACPI fixed hardware (ACPI 6.5, 4.8): the PM timer, PM1 status and enable with the power button,
//! and PM1 control, where S5 powers the machine off. The system is always in ACPI mode (the FADT
//! names no SMI command port), so SCI_EN reads as one.

use crate::data;
use crate::{Cx, Device, DeviceState, Request, StateError};
use base::GuestTime;
use serde::{Deserialize, Serialize};

const KIND: &str = "acpi-pm";
const VERSION: u32 = 1;
/// Frequency of the PM timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The SCI's global system interrupt.
const SCI_GSI: u8 = 9;

/// PM1 status and enable bits.
mod pm1 {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    /// The RTC's alarm as a wake event: can be enabled, but nothing here sleeps, so it never shows.
    pub const RTC: u16 = 1 << 10;
    /// Enable bits that exist.
    pub const ENABLES: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;
    pub const SCI_EN: u16 = 1 << 0;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
}

/// The sleep type that the DSDT's `\_S5` package names.
const SLEEP_TYPE_S5: u16 = 5;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Fields {
    /// Latched status bits except the timer's.
    status: u16,
    enable: u16,
    control: u16,
    /// Half turns (2^31 ticks) of the timer the guest has acknowledged.
    half_turns_seen: u64,
}

/// The fixed hardware's registers.
#[derive(Default)]
pub struct AcpiPm {
    fields: Fields,
}

impl AcpiPm {
    /// After power-on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Somebody pressed the power button.
    pub fn press_power_button(&mut self, cx: &mut Cx) {
        self.fields.status |= pm1::POWER_BUTTON;
        self.update(cx);
    }

    fn half_turns(now: GuestTime) -> u64 {
        now.ticks(PM_TIMER_HZ) >> 31
    }

    fn status(&self, now: GuestTime) -> u16 {
        let timer = Self::half_turns(now) != self.fields.half_turns_seen;
        self.fields.status | if timer { pm1::TIMER } else { 0 }
    }

    fn update(&self, cx: &mut Cx) {
        cx.irq.line(SCI_GSI, self.status(cx.now) & self.fields.enable != 0);
    }

    fn byte(&self, now: GuestTime, at: u64) -> u8 {
        let [status, enable] = [self.status(now), self.fields.enable].map(u16::to_le_bytes);
        let control = (self.fields.control | pm1::SCI_EN).to_le_bytes();
        let timer = (now.ticks(PM_TIMER_HZ) as u32).to_le_bytes();
        match at {
            0..2 => status[at as usize],
            2..4 => enable[at as usize - 2],
            4..6 => control[at as usize - 4],
            8..12 => timer[at as usize - 8],
            _ => 0,
        }
    }

    fn write_byte(&mut self, now: GuestTime, at: u64, value: u8) {
        let (shift, value) = (8 * (at as u32 & 1), u16::from(value));
        let keep = !(0xff << shift);
        let f = &mut self.fields;
        match at {
            0..2 => {
                f.status &= !(value << shift);
                if at == 0 && value & pm1::TIMER != 0 {
                    f.half_turns_seen = Self::half_turns(now);
                }
            }
            2..4 => f.enable = (f.enable & keep | value << shift) & pm1::ENABLES,
            4..6 => f.control = f.control & keep | value << shift,
            _ => {}
        }
    }
}

impl Device for AcpiPm {
    fn kind(&self) -> &'static str {
        KIND
    }
    fn reset(&mut self) {
        self.fields = Fields::default();
    }
    fn save(&self) -> DeviceState {
        DeviceState::encode(KIND, VERSION, &self.fields)
    }
    fn show(&self) -> String {
        format!("{:#?}", self.fields)
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        self.fields = state.decode(KIND, VERSION)?;
        Ok(())
    }

    /// Block 0: PM1a event at 0 (status, enable), PM1a control at 4, PM timer at 8.
    fn read(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &mut [u8]) {
        data::answer_bytes(data, offset, |at| self.byte(cx.now, at));
    }

    fn write(&mut self, cx: &mut Cx, _block: u32, offset: u64, data: &[u8]) {
        for (i, &value) in data.iter().enumerate() {
            self.write_byte(cx.now, offset + i as u64, value);
        }
        if self.fields.control & pm1::SLEEP_ENABLE != 0 {
            self.fields.control &= !pm1::SLEEP_ENABLE;
            if self.fields.control >> 10 & 7 == SLEEP_TYPE_S5 {
                cx.irq.requests.push(Request::PowerOff);
            }
        }
        self.update(cx);
    }

    fn deadline(&self) -> Option<GuestTime> {
        let f = &self.fields;
        let next = (f.half_turns_seen.checked_add(1)?).checked_mul(1 << 31)?;
        // Only the moment of the carry is an event; afterwards the status bit stands by itself.
        let waits = f.enable & pm1::TIMER != 0 && f.status & pm1::TIMER == 0;
        waits.then(|| GuestTime::at_tick(next, PM_TIMER_HZ))
    }

    fn expire(&mut self, cx: &mut Cx) {
        if self.status(cx.now) & pm1::TIMER != 0 {
            self.fields.status |= pm1::TIMER;
        }
        self.update(cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Bench;

    #[test]
    fn the_timer_runs_at_its_frequency() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::new());
        bench.now = GuestTime::from_ns(1_000_000_000);
        assert_eq!(bench.read32(&mut pm, 0, 8), 3_579_545);
    }

    #[test]
    fn sleep_type_five_powers_off_and_others_do_not() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::new());
        pm.write(&mut bench.cx(), 0, 4, &(1u16 << 13 | 1 << 10).to_le_bytes());
        assert!(!bench.requests().contains(&Request::PowerOff));
        pm.write(&mut bench.cx(), 0, 4, &(1u16 << 13 | 5 << 10).to_le_bytes());
        assert!(bench.requests().contains(&Request::PowerOff));
        assert_eq!(bench.read8(&mut pm, 0, 4) & 1, 1, "SCI_EN");
    }

    #[test]
    fn the_power_button_raises_the_sci_until_it_is_acknowledged() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::new());
        pm.write(&mut bench.cx(), 0, 2, &pm1::POWER_BUTTON.to_le_bytes());
        bench.requests();
        pm.press_power_button(&mut bench.cx());
        assert_eq!(bench.requests(), vec![Request::Line { gsi: 9, level: true }]);
        let mut fresh = AcpiPm::new();
        bench.transplant(&pm, &mut fresh);
        assert_eq!(bench.read8(&mut fresh, 0, 1), 1);
        bench.write8(&mut fresh, 0, 1, 1);
        assert_eq!(bench.requests(), vec![Request::Line { gsi: 9, level: false }]);
    }

    #[test]
    fn the_timer_carry_interrupts_every_ten_minutes() {
        let (mut bench, mut pm) = (Bench::new(), AcpiPm::new());
        pm.write(&mut bench.cx(), 0, 2, &[1, 0]);
        assert_eq!(bench.pass_to(&mut pm, 590_000_000_000), 0);
        assert_eq!(bench.pass_to(&mut pm, 610_000_000_000), 1);
        assert_eq!(bench.requests().last(), Some(&Request::Line { gsi: 9, level: true }));
        bench.write8(&mut pm, 0, 0, 1);
        assert_eq!(bench.requests().last(), Some(&Request::Line { gsi: 9, level: false }));
        assert_eq!(bench.pass_to(&mut pm, 1_300_000_000_000), 1);
    }
}
