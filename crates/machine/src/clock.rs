//! From position to guest time and back.
//!
//! Guest time is `base_time + (position − base_position) × rate`. The base moves only by what the
//! machine itself does (skipping idle time while halted) and by corrections that came through the
//! gate, so time stays a function of the position, the configuration and the inputs. Time never
//! runs backwards.

use base::{GuestTime, Position};
use serde::{Deserialize, Serialize};

/// Nanoseconds of guest time per instruction, as a fraction of two numbers from 1 to
/// [`Rate::PART_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct Rate {
    ns: u32,
    instructions: u32,
}

/// A rate with a part out of range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a clock rate of {ns} ns per {instructions} instructions is out of range (1 to {max} each)", max = Rate::PART_MAX)]
pub struct RateError {
    ns: u32,
    instructions: u32,
}

impl Rate {
    /// The largest numerator and denominator.
    pub const PART_MAX: u32 = 1_000_000;
    /// One instruction, one nanosecond.
    pub const ONE: Rate = Rate { ns: 1, instructions: 1 };

    /// `ns` nanoseconds per `instructions` instructions.
    pub const fn new(ns: u32, instructions: u32) -> Result<Self, RateError> {
        if ns == 0 || instructions == 0 || ns > Self::PART_MAX || instructions > Self::PART_MAX {
            return Err(RateError { ns, instructions });
        }
        Ok(Self { ns, instructions })
    }
    /// The fraction: nanoseconds, instructions.
    pub const fn parts(self) -> (u32, u32) {
        (self.ns, self.instructions)
    }
}

impl TryFrom<(u32, u32)> for Rate {
    type Error = RateError;
    fn try_from((ns, instructions): (u32, u32)) -> Result<Self, RateError> {
        Self::new(ns, instructions)
    }
}

impl From<Rate> for (u32, u32) {
    fn from(rate: Rate) -> Self {
        rate.parts()
    }
}

/// What happens to guest time while every processor is halted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Idle {
    /// It jumps to the next deadline (`--clock virtual`).
    #[default]
    Skip,
    /// It stands until a correction comes through the gate (`--clock host`).
    Wait,
}

/// The clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    rate: Rate,
    base_position: Position,
    base_time: GuestTime,
    /// Guest time that passed without instructions, in nanoseconds.
    skipped_ns: u64,
}

impl Clock {
    /// A clock that shows zero at position zero.
    pub fn new(rate: Rate) -> Self {
        Self { rate, base_position: Position::START, base_time: GuestTime::ZERO, skipped_ns: 0 }
    }

    /// The rate now.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Nanoseconds of guest time that passed while no instruction ran.
    pub fn skipped_ns(&self) -> u64 {
        self.skipped_ns
    }

    /// Guest time at position `at`, which must not lie before the clock's last change.
    pub fn time_at(&self, at: Position) -> GuestTime {
        let instructions = at.since(self.base_position);
        if self.rate == Rate::ONE {
            return self.base_time.after_ns(instructions);
        }
        let ns = u128::from(instructions) * u128::from(self.rate.ns) / u128::from(self.rate.instructions);
        self.base_time.after_ns(u64::try_from(ns).unwrap_or(u64::MAX))
    }

    /// If guest time in nanoseconds is the position plus a constant: that constant.
    pub fn offset_ns(&self) -> Option<u64> {
        (self.rate == Rate::ONE).then(|| self.base_time.ns().wrapping_sub(self.base_position.count()))
    }

    /// The first position at which guest time is at or past `time` if nothing changes the clock
    /// before: the inverse of [`Self::time_at`]. Never before the clock's last change.
    pub fn position_of(&self, time: GuestTime) -> Position {
        let ns = time.ns_since(self.base_time);
        if self.rate == Rate::ONE {
            return self.base_position.after(ns);
        }
        let instructions =
            (u128::from(ns) * u128::from(self.rate.instructions)).div_ceil(u128::from(self.rate.ns));
        self.base_position.after(u64::try_from(instructions).unwrap_or(u64::MAX))
    }

    /// Moves time at position `at` forward to `time`; nothing when that is not later.
    pub fn skip_to(&mut self, at: Position, time: GuestTime) {
        let now = self.time_at(at);
        if time > now {
            self.skipped_ns = self.skipped_ns.saturating_add(time.ns_since(now));
            self.base_position = at;
            self.base_time = time;
        }
    }

    /// Changes the rate from position `at` on.
    pub fn set_rate(&mut self, at: Position, rate: Rate) {
        self.base_time = self.time_at(at);
        self.base_position = at;
        self.rate = rate;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn position_of_is_the_first_position_at_or_past_a_time() {
        for (ns, instructions) in [(1, 1), (1, 3), (7, 5), (1000, 1), (999_999, 1_000_000)] {
            let mut clock = Clock::new(Rate::new(ns, instructions).unwrap());
            clock.skip_to(Position::from_count(1000), GuestTime::from_ns(5_000_000));
            for time in (5_000_000u64..5_010_000).step_by(17) {
                let time = GuestTime::from_ns(time);
                let at = clock.position_of(time);
                assert!(clock.time_at(at) >= time);
                if at > Position::from_count(1000) {
                    assert!(clock.time_at(Position::from_count(at.count() - 1)) < time);
                }
            }
        }
    }

    #[test]
    fn skipping_moves_time_and_not_the_position() {
        let mut clock = Clock::new(Rate::ONE);
        let at = Position::from_count(100);
        clock.skip_to(at, GuestTime::from_ns(1_000));
        assert_eq!(clock.time_at(at).ns(), 1_000);
        assert_eq!(clock.time_at(at.after(5)).ns(), 1_005);
        assert_eq!(clock.skipped_ns(), 900);
        clock.skip_to(at.after(5), GuestTime::from_ns(10));
        assert_eq!(clock.time_at(at.after(5)).ns(), 1_005, "never backwards");
    }

    #[test]
    fn a_new_rate_applies_from_its_position_on() {
        let mut clock = Clock::new(Rate::ONE);
        clock.set_rate(Position::from_count(100), Rate::new(1, 2).unwrap());
        assert_eq!(clock.time_at(Position::from_count(300)).ns(), 200);
        assert_eq!(clock.position_of(GuestTime::from_ns(200)), Position::from_count(300));
        assert!(Rate::new(0, 1).is_err());
    }
}
