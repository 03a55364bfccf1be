//! What a bisection found, for people and for programs.

use super::compare::Differences;
use base::Position;
use serde::Serialize;
use std::fmt;

/// Why a replay differs, as far as it can be told from here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Cause {
    /// Two ways to execute the same instruction, from the same state, come to different states:
    /// the engine is wrong.
    Instruction {
        /// Its linear address.
        address: u64,
        /// Its disassembly and bytes.
        text: String,
        /// The privilege level it ran at.
        privilege: u8,
    },
    /// Two ways to execute come to different states in this interval, but no longer when they are
    /// stopped more often.
    Elusive,
    /// Every way to execute comes to the same states, which are not the recorded ones: the
    /// recording, or the machine while it recorded, is at fault.
    Recording {
        /// Whether the recorded state behind the difference, where there is one, leads to the next
        /// recorded state hash.
        resumes: Option<bool>,
    },
    /// A second replay of the same recording came to other states than the first.
    Unsteady,
}

/// What a bisection found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Up to here both sides are equal.
    pub from: Position,
    /// Here they differ.
    pub to: Position,
    /// Why.
    pub cause: Cause,
    /// What the first side is.
    pub first: String,
    /// What the second side is.
    pub second: String,
    /// Where the differences below were taken: at `to`, or at a later checkpoint.
    pub compared_at: Option<Position>,
    /// What differs there.
    pub differences: Differences,
    /// Recorded inputs that enter between the two positions.
    pub inputs: Vec<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, .. } = self;
        match &self.cause {
            Cause::Instruction { address, text, privilege } => {
                writeln!(f, "the first instruction that differs is the one at position {from}:")?;
                writeln!(f, "  {address:#018x} (privilege level {privilege})  {text}")?;
                writeln!(f, "two ways to execute it from the same state differ, so the engine is wrong")?;
            }
            Cause::Elusive => {
                writeln!(f, "two ways to execute differ between positions {from} and {to}")?;
                writeln!(
                    f,
                    "stopped more often in between, they do not: the error depends on where runs stop"
                )?;
            }
            Cause::Recording { resumes } => {
                writeln!(f, "the difference arises between positions {from} and {to}")?;
                writeln!(
                    f,
                    "translated and executed singly the replay comes to the same states, so what was recorded \
                     is at fault: its files were altered, or the machine erred while it recorded"
                )?;
                match resumes {
                    Some(true) => {
                        writeln!(f, "from the recorded state behind it the recording replays again")?
                    }
                    Some(false) => {
                        writeln!(f, "from the recorded state behind it the replay differs once more")?
                    }
                    None => {}
                }
            }
            Cause::Unsteady => {
                writeln!(
                    f,
                    "between positions {from} and {to} a second replay came to other states than the first"
                )?;
                writeln!(f, "the machine's state there depends on something that is not recorded")?;
            }
        }
        if let Some(at) = self.compared_at {
            writeln!(f, "what differs at position {at}:")?;
            writeln!(f, "  first:  {}", self.first)?;
            writeln!(f, "  second: {}", self.second)?;
            write!(f, "{}", self.differences)?;
        }
        for input in &self.inputs {
            writeln!(f, "  input {input}")?;
        }
        Ok(())
    }
}
