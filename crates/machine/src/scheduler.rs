//! Which processor runs, and for how long: several take turns on one host thread.
//!
//! Every decision falls at a position, and is a function of the configuration, the seed and what
//! happened before: nothing of it needs a log. A processor runs until its slice ends, it halts, or it
//! executes PAUSE while another could run.
//!
//! * The **plain** schedule (seed 0) goes round, with slices so long that a change of processors
//!   costs nothing that could be measured.
//! * Any **other seed** explores: phases of long, short and very short slices follow one another,
//!   in some of them a few processors are starved, one whose slice is over may be held back for
//!   long, and one that is woken may run at once. How often each of that happens is a matter of the
//!   seed too, so that seeds differ in kind. This is what rr calls chaos mode.
//!
//! Spinning processors would pass the turn to one another for ever where all of them wait for
//! time to pass, at the price of a change of processors every few instructions. So when everyone who
//! could run has done nothing but PAUSE for a while, PAUSE is ignored for longer and longer.

use base::Position;
use serde::{Deserialize, Serialize};

/// The plain schedule's slice, in instructions.
const SLICE: u64 = 2_000_000;
/// How long a processor that was woken waits for its turn at most, in the plain schedule.
const WAKE_DELAY: u64 = 50_000;
/// A processor that executes PAUSE after fewer instructions than this is spinning.
const SPIN: u64 = 256;
/// For how long PAUSE is ignored at first when everyone spins, and how often that is doubled.
const DEAF: u64 = 1024;
const DEAF_DOUBLINGS: u32 = 6;

/// Why the running processor may have to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its slice is over.
    Slice,
    /// It waits for an interrupt.
    Halt,
    /// It executed PAUSE, and another could run.
    Pause,
}

/// A saved schedule that this machine cannot have had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the saved schedule is damaged: {0}")]
pub struct ScheduleError(&'static str);

/// The scheduler's state: part of the machine's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduler {
    /// Where the running processor's slice ends.
    slice_end: Position,
    /// Where it began to run.
    since: Position,
    /// How often in a row processors did nothing but PAUSE in their turn.
    spins: u32,
    /// Up to here PAUSE is ignored.
    deaf_until: Position,
    /// `None`: the plain schedule.
    chaos: Option<Chaos>,
}

impl Scheduler {
    /// The schedule of a seed, at power-on; 0 is the plain one.
    pub fn new(seed: u64) -> Self {
        Self {
            slice_end: if seed == 0 { Position::START.after(SLICE) } else { Position::START },
            since: Position::START,
            spins: 0,
            deaf_until: Position::START,
            chaos: (seed != 0).then(|| Chaos::new(seed)),
        }
    }

    /// Whether a machine with this seed can have it at `at`.
    pub(crate) fn check(&self, at: Position, seed: u64) -> Result<(), ScheduleError> {
        let require = |ok: bool, why| if ok { Ok(()) } else { Err(ScheduleError(why)) };
        require(self.since <= at, "a turn that has not begun")?;
        require(self.chaos.is_some() == (seed != 0), "it follows another seed")?;
        let Some(chaos) = &self.chaos else { return Ok(()) };
        require(chaos.short.max(chaos.storms) <= 16, "shares of phases")?;
        require(chaos.shortest <= chaos.longest && chaos.longest < 40, "a slice's length")
    }

    /// Whether the slice is over at `at`.
    pub fn is_over(&self, at: Position) -> bool {
        at >= self.slice_end
    }

    /// Whether PAUSE gives way at `at`.
    pub fn hears_pause(&self, at: Position) -> bool {
        at >= self.deaf_until
    }

    /// The next position after `at` at which the scheduler wants to be asked.
    pub fn horizon(&self, at: Position) -> Position {
        if self.hears_pause(at) { self.slice_end } else { self.slice_end.min(self.deaf_until) }
    }

    /// Chooses who runs from `at` on, and begins a slice. Bit n of `runnable`, which is not zero,
    /// stands for processor n.
    pub fn choose(&mut self, at: Position, current: u32, runnable: u32, why: Why) -> u32 {
        let own = 1 << current;
        let others = if runnable & !own != 0 { runnable & !own } else { runnable };
        let all_spin = self.count_spins(at, runnable.count_ones(), why);
        let length = match &mut self.chaos {
            Some(chaos) if runnable & !own != 0 => chaos.slice(at),
            _ => SLICE,
        };
        let next = match &mut self.chaos {
            None => after(current, if why == Why::Pause { others } else { runnable }),
            Some(chaos) => {
                let candidates = if why == Why::Pause { others } else { runnable };
                if why == Why::Slice {
                    chaos.hold_back(at, current);
                }
                let favoured = candidates & !chaos.unfavoured(at);
                // Whoever spins may wait for one that is starved.
                let from = if favoured == 0 || all_spin { candidates } else { favoured };
                chaos.pick(from)
            }
        };
        self.since = at;
        self.slice_end = at.after(length);
        next
    }

    /// Whether everyone who could run has done nothing but PAUSE in the last turns.
    fn count_spins(&mut self, at: Position, runnable: u32, why: Why) -> bool {
        let ran = at.since(self.since.max(self.deaf_until.min(at)));
        if why != Why::Pause || ran >= SPIN {
            self.spins = 0;
            return false;
        }
        self.spins = self.spins.saturating_add(1);
        let rounds = self.spins / runnable.max(1);
        if rounds >= 2 {
            self.deaf_until = at.after(DEAF << (rounds - 2).min(DEAF_DOUBLINGS));
        }
        rounds >= 1
    }

    /// A processor that was halted could run from `at` on.
    pub fn woken(&mut self, at: Position) {
        let delay = self.chaos.as_mut().map_or(Some(WAKE_DELAY), Chaos::wake_delay);
        if let Some(delay) = delay {
            self.slice_end = self.slice_end.min(at.after(delay));
        }
    }
}

/// The processor after `current`, in turn, of those in `set`, which is not empty.
fn after(current: u32, set: u32) -> u32 {
    let later = u64::from(set) & (!1u64 << current);
    if later != 0 { later.trailing_zeros() } else { set.trailing_zeros() }
}

/// A schedule to explore with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Chaos {
    random: u64,
    /// How many phases of sixteen have short, and how many very short slices, and in how many
    /// processors are starved.
    short: u8,
    storms: u8,
    starving: u8,
    /// At how many of sixteen ends of a slice the processor is held back.
    holding: u8,
    /// Where the phase ends.
    until: Position,
    /// Slices have 2^`shortest` to 2^`longest` instructions.
    shortest: u8,
    longest: u8,
    /// Processors that run only if no other can.
    starved: u32,
    /// The same until this position.
    held: u32,
    held_until: Position,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut chaos = Self {
            random: seed,
            short: 0,
            storms: 0,
            starving: 0,
            holding: 0,
            until: Position::START,
            shortest: 0,
            longest: 0,
            starved: 0,
            held: 0,
            held_until: Position::START,
        };
        chaos.short = 2 + chaos.below(7) as u8;
        chaos.storms = 1 + chaos.below(3) as u8;
        chaos.starving = chaos.below(9) as u8;
        chaos.holding = chaos.below(9) as u8;
        chaos
    }

    /// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// A number of 2^`low` to 2^`high`, each power as likely as another.
    fn scale(&mut self, low: u8, high: u8) -> u64 {
        let power = u64::from(low) + self.below(u64::from(high - low));
        (1 << power) + self.below(1 << power)
    }

    /// The length of a slice that begins at `at`.
    fn slice(&mut self, at: Position) -> u64 {
        if at >= self.until {
            self.begin_phase(at);
        }
        self.scale(self.shortest, self.longest)
    }

    fn begin_phase(&mut self, at: Position) {
        let dice = self.below(16) as u8;
        // Very short slices take long to run, so there are few instructions of them.
        let (shortest, longest, length) = if dice < self.storms {
            (4, 10, self.scale(12, 18))
        } else if dice < self.storms + self.short {
            (8, 16, self.scale(15, 22))
        } else {
            (14, 21, self.scale(17, 24))
        };
        let starves = (self.below(16) as u8) < self.starving;
        self.starved = if starves { (self.next() & self.next()) as u32 } else { 0 };
        (self.shortest, self.longest, self.until) = (shortest, longest, at.after(length));
    }

    /// Perhaps keeps `cpu`, whose slice is over, from running for a while.
    fn hold_back(&mut self, at: Position, cpu: u32) {
        if at >= self.held_until && (self.below(16) as u8) < self.holding {
            (self.held, self.held_until) = (1 << cpu, at.after(self.scale(10, 20)));
        }
    }

    /// Who runs only if no other can.
    fn unfavoured(&self, at: Position) -> u32 {
        if at < self.held_until { self.starved | self.held } else { self.starved }
    }

    /// One of the processors in `set`, which is not empty.
    fn pick(&mut self, set: u32) -> u32 {
        let mut left = set;
        for _ in 0..self.below(u64::from(set.count_ones())) {
            left &= left - 1;
        }
        left.trailing_zeros()
    }

    /// How soon a processor that was woken may have its turn; `None`: when it comes.
    fn wake_delay(&mut self) -> Option<u64> {
        match self.below(4) {
            0 => Some(1 + self.below(64)),
            1 | 2 => Some(self.scale(6, 16)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(count: u64) -> Position {
        Position::from_count(count)
    }

    /// Who runs from where, if all that ever happens is that slices end.
    fn turns(seed: u64, runnable: u32, count: usize) -> Vec<(Position, u32)> {
        let mut scheduler = Scheduler::new(seed);
        let (mut here, mut cpu) = (Position::START, 0);
        (0..count)
            .map(|_| {
                here = scheduler.horizon(here);
                cpu = scheduler.choose(here, cpu, runnable, Why::Slice);
                (here, cpu)
            })
            .collect()
    }

    #[test]
    fn the_plain_schedule_goes_round() {
        let order: Vec<u32> = turns(0, 0b1011, 6).into_iter().map(|(_, cpu)| cpu).collect();
        assert_eq!(order, [1, 3, 0, 1, 3, 0]);
    }

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another() {
        assert_eq!(turns(7, 0xf, 500), turns(7, 0xf, 500));
        assert_ne!(turns(7, 0xf, 500), turns(8, 0xf, 500));
    }

    #[test]
    fn everybody_has_a_turn_under_every_seed() {
        for seed in 0..100 {
            let mut ran = 0u32;
            for (_, cpu) in turns(seed, 0xffff, 60_000) {
                ran |= 1 << cpu;
            }
            assert_eq!(ran, 0xffff, "seed {seed}");
        }
    }

    #[test]
    fn whoever_runs_could() {
        for seed in 0..50 {
            for set in [0b1, 0b1000, 0b1010, 0x8001] {
                assert!(turns(seed, set, 200).iter().all(|(_, cpu)| set >> cpu & 1 != 0), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_pause_gives_way_to_another() {
        let mut plain = Scheduler::new(0);
        assert_eq!(plain.choose(at(1000), 2, 0b0101, Why::Pause), 0);
        for seed in 1..50 {
            assert_eq!(Scheduler::new(seed).choose(at(1000), 2, 0b0101, Why::Pause), 0);
        }
    }

    #[test]
    fn when_all_spin_pause_is_ignored_for_longer_and_longer() {
        for seed in [0, 1, 2] {
            let mut scheduler = Scheduler::new(seed);
            let (mut here, mut cpu, mut changes) = (at(0), 0, 0);
            while here < at(10_000_000) {
                here = if scheduler.hears_pause(here) { here.after(10) } else { scheduler.horizon(here) };
                let why = if scheduler.is_over(here) { Why::Slice } else { Why::Pause };
                if why == Why::Slice || scheduler.hears_pause(here) {
                    cpu = scheduler.choose(here, cpu, 0b11, why);
                    changes += 1;
                }
            }
            assert!(changes < 60_000, "seed {seed}: {changes} changes in ten million instructions");
        }
    }

    #[test]
    fn one_that_works_between_pauses_is_not_held_to_spin() {
        let mut scheduler = Scheduler::new(0);
        let mut here = at(0);
        for _ in 0..100 {
            here = here.after(5);
            scheduler.choose(here, 0, 0b11, Why::Pause);
            here = here.after(5000);
            scheduler.choose(here, 1, 0b11, Why::Pause);
            assert!(scheduler.hears_pause(here));
        }
    }

    #[test]
    fn one_that_is_woken_waits_a_twentieth_of_a_slice_at_most() {
        let mut scheduler = Scheduler::new(0);
        scheduler.choose(at(0), 0, 1, Why::Slice);
        scheduler.woken(at(100));
        assert_eq!(scheduler.horizon(at(100)), at(100 + WAKE_DELAY));
        scheduler.woken(at(200));
        assert_eq!(scheduler.horizon(at(200)), at(100 + WAKE_DELAY), "the first one's wait does not grow");
    }
}
