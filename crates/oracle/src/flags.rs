//! Which flags an instruction defines and which it leaves undefined, as RFLAGS bits.

use crate::state::flag;
use iced_x86::{Instruction, RflagsBits};

/// Flags the manual calls undefined after `instruction`.
pub fn undefined(instruction: &Instruction) -> u64 {
    to_rflags(instruction.rflags_undefined())
}

/// Flags that have a defined value after `instruction` because it writes them.
pub fn defined(instruction: &Instruction) -> u64 {
    to_rflags(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set())
}

fn to_rflags(bits: u32) -> u64 {
    let table = [
        (RflagsBits::OF, flag::OF),
        (RflagsBits::SF, flag::SF),
        (RflagsBits::ZF, flag::ZF),
        (RflagsBits::AF, flag::AF),
        (RflagsBits::CF, flag::CF),
        (RflagsBits::PF, flag::PF),
        (RflagsBits::DF, flag::DF),
    ];
    table.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, flag)| flag).sum()
}
