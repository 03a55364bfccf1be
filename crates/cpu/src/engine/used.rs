//! What an instruction uses, as bit masks: iced's answer in the form that the translator asks for
//! it more than once.

use super::emit::guest_of;
use iced_x86::{InstructionInfo, OpAccess};

/// Registers and memory that one instruction uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// General registers used in any way, by guest number.
    pub any: u16,
    /// Those that may be written.
    pub written: u16,
    /// Those of which nothing is left, and that are not read.
    pub overwritten: u16,
    /// Whether memory may be written.
    pub memory_written: bool,
}

impl Used {
    /// From iced's.
    pub fn of(info: &InstructionInfo) -> Self {
        let mut used = Self::default();
        let mut kept = 0_u16;
        for register in info.used_registers() {
            let Some(guest) = guest_of(register.register()) else { continue };
            used.any |= 1 << guest;
            use OpAccess::{CondRead, NoMemAccess, Read};
            let written = !matches!(register.access(), Read | CondRead | NoMemAccess);
            used.written |= (written as u16) << guest;
            let whole = register.access() == OpAccess::Write && register.register().size() == 8;
            let set = if whole { &mut used.overwritten } else { &mut kept };
            *set |= 1 << guest;
        }
        used.overwritten &= !kept;
        used.memory_written = info.used_memory().iter().any(|m| {
            use OpAccess::{CondWrite, ReadCondWrite, ReadWrite, Write};
            matches!(m.access(), Write | CondWrite | ReadWrite | ReadCondWrite)
        });
        used
    }

    /// The general registers used, with whether they may be written, in order of their numbers.
    pub fn guests(self) -> impl Iterator<Item = (usize, bool)> + Clone {
        (0..16).filter(move |g| self.any >> g & 1 != 0).map(move |g| (g, self.written >> g & 1 != 0))
    }
}
