//! Where on a run's number line something happens.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How many guest instructions have retired since power-on.
///
/// Each iteration of a REP-prefixed string instruction counts as one, and such an instruction
/// with a count of zero as one. An instruction that faults does not retire. Parallel processors
/// will make this a vector, so nothing outside the engine may treat it as more than an ordered
/// value that can be printed and parsed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Position(u64);

impl Position {
    /// Power-on: nothing has retired.
    pub const START: Position = Position(0);
    /// Later than any position a run can reach.
    pub const NEVER: Position = Position(u64::MAX);

    /// The position after `count` instructions.
    pub const fn from_count(count: u64) -> Self {
        Self(count)
    }
    /// The number of instructions retired.
    pub const fn count(self) -> u64 {
        self.0
    }
    /// The position `instructions` later, or [`Position::NEVER`].
    #[must_use]
    pub const fn after(self, instructions: u64) -> Self {
        Self(self.0.saturating_add(instructions))
    }
    /// How many instructions lie between `earlier` and this position (0 when it is not earlier).
    pub const fn since(self, earlier: Position) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Position({})", self.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
