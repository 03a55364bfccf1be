//! How a replay differs from its recording.

use base::Position;
use recording::StateHash;
use std::fmt;

/// A part of a machine's state, or of its behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The processor's registers.
    Registers,
    /// The devices, the clock, and the disks' contents.
    Devices,
    /// Guest memory.
    Memory,
    /// The guest stopped, or went on, where the recording says otherwise.
    Course,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Registers => "registers",
            Part::Devices => "devices",
            Part::Memory => "memory",
            Part::Course => "where the guest stopped",
        })
    }
}

/// A replay that differs from its recording: where first, and in what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Up to here everything was equal.
    pub from: Position,
    /// Here something differs.
    pub to: Position,
    /// What differs, at least one part.
    pub what: Vec<Part>,
}

impl Divergence {
    /// Compares two states at `to`; `None` when they are equal.
    pub fn between(from: Position, to: Position, recorded: &StateHash, replayed: &StateHash) -> Option<Self> {
        let parts = [
            (Part::Registers, recorded.registers != replayed.registers),
            (Part::Devices, recorded.devices != replayed.devices),
            (Part::Memory, recorded.memory != replayed.memory),
        ];
        let what: Vec<Part> = parts.iter().filter(|(_, differs)| *differs).map(|(part, _)| *part).collect();
        (!what.is_empty()).then_some(Self { from, to, what })
    }

    /// A guest that stopped at `to` where it should not have, or the other way round.
    pub fn of_course(from: Position, to: Position) -> Self {
        Self { from, to, what: vec![Part::Course] }
    }
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what: Vec<String> = self.what.iter().map(ToString::to_string).collect();
        write!(
            f,
            "the replay differs from the recording between positions {} and {}: {}",
            self.from,
            self.to,
            what.join(", ")
        )
    }
}
