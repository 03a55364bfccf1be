//! Where the host's clock meets a live guest's.
//!
//! Two policies, and neither is ever asked while replaying:
//!
//! * with `--clock virtual` guest time needs no host; but while a person could type, an idle guest
//!   must not race through hours of empty guest time. After a second of it ([`FREE_NS`]) idle time
//!   passes no faster than the host's. What is decided here reaches the machine only as *how far it
//!   goes before it looks for input*, which it cannot see, and as the moment of that input, which is
//!   recorded.
//! * with `--clock host` the guest's clock follows the host's by corrections through the gate: now
//!   and then while it works, and when it wakes.

use base::{GuestTime, Position};
use machine::{ClockCorrection, Moment, Rate};
use std::time::{Duration, Instant};

/// How much idle time is skipped at once after the guest last took or gave something.
const FREE_NS: u64 = 1_000_000_000;

/// Paces an idle guest while somebody may give it input.
#[derive(Default)]
pub struct Pacer {
    /// When the guest last took or gave something.
    active: GuestTime,
    /// Since when idle time passes no faster than the host's.
    since: Option<(Instant, GuestTime)>,
}

impl Pacer {
    /// The guest took or gave something.
    pub fn stir(&mut self, now: GuestTime) {
        self.active = now;
        self.since = None;
    }

    /// How far idle time may jump by itself.
    pub fn horizon(&self) -> GuestTime {
        let free = self.active.after_ns(FREE_NS);
        self.since.map_or(free, |(_, since)| free.max(since))
    }

    /// When guest time `due` comes for a guest that idles at `now`.
    pub fn due(&mut self, now: GuestTime, due: GuestTime) -> Instant {
        let (wall, since) = *self.since.get_or_insert_with(|| (Instant::now(), now));
        wall + Duration::from_nanos(due.ns_since(since))
    }

    /// The guest time that is due now for a guest that idles at `now` and next acts at `until`:
    /// always before that, because what happens by itself then comes first.
    pub fn time(&mut self, now: GuestTime, until: Option<GuestTime>) -> GuestTime {
        let (wall, since) = *self.since.get_or_insert_with(|| (Instant::now(), now));
        let time = since.after_ns(nanos(wall.elapsed()));
        let last = until.map_or(u64::MAX, |until| until.ns().saturating_sub(1));
        GuestTime::from_ns(time.ns().min(last)).max(now)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// How often a working guest's clock is corrected at most.
const STEER_EVERY: Duration = Duration::from_millis(100);
/// Errors below are let be.
const TOLERANCE_NS: i64 = 1_000_000;
/// The rate aims at staying this much behind, in thousandths, because time can jump ahead only.
const BEHIND: f64 = 0.998;
/// Rates are fractions of this denominator.
const RATE_PARTS: u32 = 10_000;

/// Makes guest time follow the host's.
pub struct Steering {
    /// Host and guest time that belong together.
    origin: (Instant, GuestTime),
    /// The last look at a working guest.
    last: (Instant, Position),
    rate: Rate,
}

impl Steering {
    /// From here and now on.
    pub fn new(now: Moment, rate: Rate) -> Self {
        let wall = Instant::now();
        Self { origin: (wall, now.time), last: (wall, now.position), rate }
    }

    /// The guest time that belongs to the host's.
    pub fn target(&self) -> GuestTime {
        self.origin.1.after_ns(nanos(self.origin.0.elapsed()))
    }

    /// The host's time that belongs to guest time `time`.
    pub fn due(&self, time: GuestTime) -> Instant {
        self.origin.0 + Duration::from_nanos(time.ns_since(self.origin.1))
    }

    /// The guest begins to work after a pause: what it does from here on says how fast it is.
    pub fn woke(&mut self, at: Position) {
        self.last = (Instant::now(), at);
    }

    /// A jump to the host's time for a guest that stands at `now`, if it lags.
    pub fn catch_up(&self, now: GuestTime) -> Option<ClockCorrection> {
        let advance_ns = self.target().ns_since(now);
        (advance_ns > 0).then_some(ClockCorrection { advance_ns, rate: None })
    }

    /// What a working guest's clock needs, if it is time to look and something is needed.
    pub fn steer(&mut self, now: Moment) -> Option<ClockCorrection> {
        let (wall, position) = self.last;
        let elapsed = wall.elapsed();
        if elapsed < STEER_EVERY {
            return None;
        }
        self.last = (Instant::now(), now.position);
        let instructions = now.position.since(position).max(1) as f64;
        let error_ns = self.target().ns() as i64 - now.time.ns() as i64;
        // Time cannot go back: a guest that is ahead is slowed down until the host has caught up.
        let ahead = if error_ns < 0 { error_ns as f64 / nanos(STEER_EVERY) as f64 } else { 0.0 };
        let wanted = nanos(elapsed) as f64 / instructions * (BEHIND + ahead).max(0.2);
        let rate = rate_of(wanted);
        let (old, new) = (ratio(self.rate), ratio(rate));
        let changed = (new / old - 1.0).abs() > 0.03;
        if error_ns.abs() <= TOLERANCE_NS && !changed {
            return None;
        }
        self.rate = rate;
        let advance_ns = error_ns.max(0) as u64;
        Some(ClockCorrection { advance_ns, rate: changed.then_some(rate) })
    }
}

fn ratio(rate: Rate) -> f64 {
    let (ns, instructions) = rate.parts();
    f64::from(ns) / f64::from(instructions)
}

fn rate_of(ns_per_instruction: f64) -> Rate {
    let ns = (ns_per_instruction * f64::from(RATE_PARTS)).round().clamp(1.0, f64::from(Rate::PART_MAX));
    Rate::new(ns as u32, RATE_PARTS).unwrap_or(Rate::ONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_time_is_free_for_a_second_and_then_takes_its_time() {
        let mut pacer = Pacer::default();
        let second = GuestTime::from_ns(1_000_000_000);
        assert_eq!(pacer.horizon(), second);
        let began = Instant::now();
        let due = pacer.due(second, second.after_ns(50_000_000));
        assert!(due >= began + Duration::from_millis(50));
        let until = Some(second.after_ns(5));
        std::thread::sleep(Duration::from_millis(1));
        assert_eq!(pacer.time(second, until), second.after_ns(4), "an input comes before what is due next");
        assert_eq!(pacer.time(second.after_ns(5), until), second.after_ns(5), "and never before now");
        pacer.stir(second);
        assert_eq!(pacer.horizon(), second.after_ns(FREE_NS));
    }

    #[test]
    fn a_rate_is_a_fraction_in_range() {
        assert_eq!(rate_of(1.0).parts(), (RATE_PARTS, RATE_PARTS));
        assert_eq!(rate_of(0.0).parts().0, 1);
        assert_eq!(rate_of(1e9).parts().0, Rate::PART_MAX);
        assert!((ratio(rate_of(0.4321)) - 0.4321).abs() < 1e-9);
    }
}
