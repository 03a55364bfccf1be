//! What the harness and its child process share: one slot per case of a batch.

use crate::layout::{FRAMES, PAGE};
use crate::state::Registers;
use std::sync::atomic::AtomicU32;

/// Cases in a batch. Small enough that a batch stays in the second-level cache.
pub const SLOTS: usize = 16;
/// Room for items in a slot.
pub const ITEMS: usize = 64;

/// `Reply::status`: the case ran.
pub const RAN: u32 = 1;
/// `Reply::status`: see [`crate::outcome::Discard::Runaway`].
pub const RUNAWAY: u32 = 2;
/// `Reply::status`: see [`crate::outcome::Discard::Strayed`].
pub const STRAYED: u32 = 3;

/// A case, as the child needs it.
#[repr(C)]
pub struct Request {
    /// Registers at the start.
    pub registers: Registers,
    /// Linear address of the first instruction.
    pub start: u64,
    /// Linear address of the end marker.
    pub end: u64,
    /// 64 or 32.
    pub bits: u32,
    /// How instructions are counted and control flow is watched: one of the constants below.
    pub trace: u32,
    /// Number of items.
    pub items: u32,
    /// Per frame: an [`crate::layout::Access`] as a number, or 0 for not mapped.
    pub access: [u8; FRAMES],
    /// Per item: offset of its first byte from `start`; the end marker's after the last.
    pub offsets: [u16; ITEMS],
    /// Per item: its bytes that may differ from the original when it is reached (offset, length).
    pub patched: [(u8, u8); ITEMS],
    /// Bit *i*: item *i* is a PUSHF.
    pub pushf: u64,
    /// Bit *i*: item *i* is a POPF.
    pub popf: u64,
    /// Bit *i*: item *i* may branch.
    pub branches: u64,
    /// Bit *i*: item *i* is a POPF or may branch to anywhere or back; it is run by itself.
    pub alone: u64,
    /// Per item: bits of the counter of a REP-prefixed string instruction, 0 for others.
    pub rep: [u8; ITEMS],
}

/// `Request::trace`: nothing to watch; the last instruction pointer tells all.
pub const NOT: u32 = 0;
/// `Request::trace`: run from branch to branch.
pub const BY_RUNS: u32 = 1;
/// `Request::trace`: step every instruction.
pub const BY_STEPS: u32 = 2;

/// What became of it.
#[repr(C)]
pub struct Reply {
    /// Registers at the end.
    pub registers: Registers,
    /// Registers at the end of the traced run, for the child's own use.
    pub traced: Registers,
    /// Instruction pointer of the exception frame.
    pub rip: u64,
    /// Retired instructions, when it was stepped.
    pub retired: u64,
    /// See [`crate::Outcome::visited`], when it was stepped.
    pub visited: u64,
    /// Page-fault address.
    pub cr2: u64,
    /// Vector number.
    pub vector: u32,
    /// Error code.
    pub error_code: u32,
    /// One of the constants above.
    pub status: u32,
}

/// One case's room.
#[repr(C, align(64))]
pub struct Slot {
    /// From the harness to the child.
    pub request: Request,
    /// From the child to the harness.
    pub reply: Reply,
    /// Page contents by frame: first the initial ones, in the end the final ones of writable pages.
    pub pages: [[u8; PAGE]; FRAMES],
}

/// The whole shared area.
#[repr(C)]
pub struct Shared {
    /// Which slot the child is working on.
    pub progress: AtomicU32,
    /// Why the child gave up while setting up: a step number, 0 for none.
    pub setup_failure: AtomicU32,
    /// `errno` of that.
    pub setup_errno: AtomicU32,
    /// Whether 32-bit code can be run.
    pub compatibility: AtomicU32,
    /// The slots.
    pub slots: [Slot; SLOTS],
}
