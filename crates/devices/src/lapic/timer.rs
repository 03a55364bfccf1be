//! The local APIC's timer (SDM vol. 3A, 10.5.4): one-shot, periodic and TSC-deadline.
//!
//! The count is never stored as it runs: it is computed from the guest time at which it was last
//! known (`base`, `base_count`).

use crate::{LAPIC_TIMER_HZ, TSC_HZ};
use base::GuestTime;
use serde::{Deserialize, Serialize};

/// Timer modes, bits 17 and 18 of the LVT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

impl Mode {
    pub(super) fn of(lvt: u32) -> Self {
        match (lvt >> 17) & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            // 3 is reserved; the manual leaves it undefined, and here it means the same as 2.
            _ => Self::TscDeadline,
        }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Divide configuration register as written.
    pub divide: u32,
    /// Initial count register.
    pub initial: u32,
    /// When the count was `base_count`.
    base: GuestTime,
    base_count: u32,
    running: bool,
    /// IA32_TSC_DEADLINE; zero when disarmed.
    tsc_deadline: u64,
}

impl Timer {
    /// Nanoseconds a count takes: the divisor of 1 to 128 (SDM figure 10-10).
    fn ns_per_count(&self) -> u64 {
        let code = (self.divide & 3) | ((self.divide >> 1) & 4);
        let divisor = if code == 7 { 1 } else { 2 << code };
        divisor * (1_000_000_000 / LAPIC_TIMER_HZ)
    }

    /// The current count register.
    pub(super) fn current(&self, now: GuestTime, mode: Mode) -> u32 {
        if !self.running || mode == Mode::TscDeadline {
            return 0;
        }
        let passed = now.ns_since(self.base) / self.ns_per_count();
        if passed < u64::from(self.base_count) {
            return self.base_count - passed as u32;
        }
        match mode {
            Mode::Periodic if self.initial > 0 => {
                let into = (passed - u64::from(self.base_count)) % u64::from(self.initial);
                self.initial - into as u32
            }
            _ => 0,
        }
    }

    /// A write of the initial count starts (or with 0 stops) the count.
    pub(super) fn start(&mut self, now: GuestTime, initial: u32) {
        self.initial = initial;
        self.base = now;
        self.base_count = initial;
        self.running = initial > 0;
    }

    /// A new divisor applies to what is left of the count.
    pub(super) fn set_divide(&mut self, now: GuestTime, mode: Mode, divide: u32) {
        let left = self.current(now, mode);
        self.divide = divide & 0xb;
        if self.running {
            self.base = now;
            self.base_count = left;
            self.running = left > 0;
        }
    }

    /// Entering or leaving TSC-deadline mode disarms the timer.
    pub(super) fn disarm(&mut self) {
        self.running = false;
        self.tsc_deadline = 0;
    }

    pub(super) fn tsc_deadline(&self, now: GuestTime) -> u64 {
        match self.deadline_expiry() {
            Some(expiry) if expiry > now => self.tsc_deadline,
            _ => 0,
        }
    }

    pub(super) fn set_tsc_deadline(&mut self, tsc: u64) {
        self.tsc_deadline = tsc;
    }

    fn deadline_expiry(&self) -> Option<GuestTime> {
        (self.tsc_deadline != 0).then(|| GuestTime::at_tick(self.tsc_deadline, TSC_HZ))
    }

    /// When it next reaches zero or its deadline.
    pub(super) fn expiry(&self, mode: Mode) -> Option<GuestTime> {
        match mode {
            Mode::TscDeadline => self.deadline_expiry(),
            _ => {
                let ns = u64::from(self.base_count) * self.ns_per_count();
                self.running.then(|| self.base.after_ns(ns))
            }
        }
    }

    /// If it has expired by `now`: disarms it, or goes on to the period that `now` lies in.
    pub(super) fn settle(&mut self, now: GuestTime, mode: Mode) -> bool {
        let Some(expiry) = self.expiry(mode).filter(|expiry| *expiry <= now) else { return false };
        match mode {
            Mode::TscDeadline => self.tsc_deadline = 0,
            Mode::OneShot => self.running = false,
            Mode::Periodic => {
                let period = (u64::from(self.initial) * self.ns_per_count()).max(1);
                self.base = expiry.after_ns(now.ns_since(expiry) / period * period);
                self.base_count = self.initial;
                self.running = self.initial > 0;
            }
        }
        true
    }
}
