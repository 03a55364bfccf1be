//! What a case did: registers, memory and how it ended.

use crate::layout::{Frame, PAGE};
use crate::state::{Registers, flag};

/// The result of running a [`crate::Case`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Registers at the end. RF is clear whatever the exception frame showed.
    pub registers: Registers,
    /// The instruction pointer as an exception frame shows it: at the faulting instruction for a
    /// fault, after the instruction for a trap (#BP, #DB, #OF). For [`Ending::Completed`], the
    /// address of the end marker.
    pub rip: u64,
    /// Instructions retired before the end; every REP iteration counts as one, a REP of zero
    /// iterations as one. Not counted: the end marker, and the instruction that faulted or raised
    /// #BP or #OF. Counted: the instruction after which a single-step trap (#DB) came.
    pub retired: u64,
    /// How it ended.
    pub ending: Ending,
    /// Contents at the end of the pages the case may write to, in the order of the case's pages.
    pub memory: Vec<(Frame, Box<[u8; PAGE]>)>,
    /// Bit *i*: instruction *i* of the case was executed or faulted. Only the host fills this in,
    /// and it is not compared.
    pub visited: u64,
}

/// How a case ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It reached the end marker.
    Completed,
    /// An exception.
    Fault(Fault),
    /// Nothing to compare: see [`Discard`].
    Discarded(Discard),
}

/// An exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector number (SDM vol. 3A, table 6-1).
    pub vector: u8,
    /// Error code; 0 for vectors without one.
    pub error_code: u32,
    /// The address of a page fault; 0 for other vectors.
    pub cr2: u64,
}

/// Why a case says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Discard {
    /// It retired more instructions than [`crate::STEP_LIMIT`].
    Runaway,
    /// It was about to execute bytes of its code pages that are not one of its instructions (a
    /// jump into the middle of one, or one that was overwritten); such bytes were never vetted.
    Strayed,
    /// It did not end in time.
    Hung,
    /// The process that ran it died.
    Crashed,
}

impl Outcome {
    /// The outcome of a case that ended with `fault`, where an executor that runs it as a guest
    /// saw an exception frame with `rip`: tells the end marker (`end`, the address of the INT3
    /// after the last instruction) from the case's own exceptions, and clears RF.
    pub fn from_exception(
        mut registers: Registers,
        rip: u64,
        retired: u64,
        fault: Fault,
        end: u64,
        memory: Vec<(Frame, Box<[u8; PAGE]>)>,
    ) -> Self {
        registers.rflags &= !flag::RF;
        let completed = fault.vector == vector::BP && rip == end + 1;
        Self {
            registers,
            rip: if completed { end } else { rip },
            retired,
            ending: if completed { Ending::Completed } else { Ending::Fault(fault) },
            memory,
            visited: 0,
        }
    }
    /// Whether there is something to compare.
    pub fn is_discarded(&self) -> bool {
        matches!(self.ending, Ending::Discarded(_))
    }
}

/// Exception vectors a case can end with (SDM vol. 3A, table 6-1).
#[allow(missing_docs)] // each constant is the manual's own mnemonic
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;

    /// The manual's mnemonic, with `#`; `#?` for a vector no case raises.
    pub const fn name(vector: u8) -> &'static str {
        match vector {
            DE => "#DE",
            DB => "#DB",
            BP => "#BP",
            OF => "#OF",
            BR => "#BR",
            UD => "#UD",
            SS => "#SS",
            GP => "#GP",
            PF => "#PF",
            MF => "#MF",
            AC => "#AC",
            XM => "#XM",
            _ => "#?",
        }
    }
}
