//! How often checkpoints and state hashes are taken.
//!
//! What one costs depends on the pages written since the last, and what it is worth on how long the
//! way from there takes. Instructions say little about either: in the time of one that computes a
//! thousand bytes are copied. So unless somebody wants exact distances it is time that counts: that of
//! the thread that runs the guest on a processor, which other load on the host does not change. The
//! guest cannot see where they are taken, and the log says where they were.

use base::Position;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// The way from a checkpoint to any position behind it takes about this long at most...
const WORK: Duration = Duration::from_millis(430);
/// ... or this long, when much is written:
const WORK_MAX: Duration = Duration::from_millis(900);
/// for each page written that much work has to have been done: about 15 times what the page costs
/// the thread that writes checkpoints.
const WORK_PER_PAGE: Duration = Duration::from_micros(95);

/// The distance between two checkpoints, or two state hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// So many instructions, at least one.
    Instructions(u64),
    /// Nearly half a second of the host's work, up to twice that when much was written. Checkpoints and state
    /// hashes are then taken together: to learn which pages are written makes the guest miss once for
    /// each of them, and both need to know.
    Work,
}

impl Every {
    /// So many instructions, or as it comes.
    pub fn instructions(count: Option<u64>) -> Self {
        count.map_or(Self::Work, Self::Instructions)
    }

    /// Where the next one is to be taken after one at `at`, if that is known before.
    pub(crate) fn next(self, at: Position) -> Position {
        match self {
            Self::Instructions(count) => at.after(count.max(1)),
            Self::Work => Position::NEVER,
        }
    }
}

/// Measures work.
pub(crate) struct Meter {
    since: Duration,
}

impl Meter {
    /// From now on.
    pub fn new() -> Self {
        Self { since: now() }
    }

    /// Whether it is time again when `pages` were written; then measures from here.
    pub fn is_due(&mut self, pages: usize) -> bool {
        self.is_due_at(now(), pages)
    }

    fn is_due_at(&mut self, now: Duration, pages: usize) -> bool {
        let wanted = WORK_PER_PAGE.saturating_mul(u32::try_from(pages).unwrap_or(u32::MAX));
        let due = now.saturating_sub(self.since) >= wanted.clamp(WORK, WORK_MAX);
        if due {
            self.since = now;
        }
        due
    }
}

/// How long this thread has been on a processor.
fn now() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_work_is_wanted_the_more_was_written_up_to_a_limit() {
        let since = Duration::from_secs(5);
        let due = |work: Duration, pages| Meter { since }.is_due_at(since + work, pages);
        assert!(due(WORK, 0) && due(WORK, 4000));
        assert!(!due(WORK - Duration::from_nanos(1), 0));
        assert!(!due(WORK, 8000), "much was written");
        assert!(due(WORK_MAX, usize::MAX), "much more");
        let mut meter = Meter { since };
        assert!(meter.is_due_at(since + WORK, 0));
        assert!(!meter.is_due_at(since + WORK, 0), "it measures anew");
    }

    #[test]
    fn exact_distances_are_exact() {
        let at = Position::from_count(1000);
        assert_eq!(Every::instructions(Some(500)).next(at), at.after(500));
        assert_eq!(Every::instructions(Some(0)).next(at), at.after(1), "it has to get on");
        assert_eq!(Every::instructions(None).next(at), Position::NEVER);
    }
}
