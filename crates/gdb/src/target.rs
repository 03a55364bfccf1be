//! What the debugger needs of a machine with a history: the seam to the sessions below.

use crate::Registers;
use base::{GuestPhys, GuestTime, GuestVirt, Position};
use std::collections::BTreeSet;

/// The number of a processor, from 0.
pub type CpuId = usize;

/// Which way to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the future.
    Forward,
    /// Into the past.
    Back,
}

/// Which accesses a watchpoint stops at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WatchKind {
    /// Writes.
    Write,
    /// Reads.
    Read,
    /// Both.
    Access,
}

/// A range of guest virtual memory under watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Watchpoint {
    /// The first byte.
    pub start: GuestVirt,
    /// How many bytes; at least 1, and the range does not wrap.
    pub bytes: u64,
    /// Which accesses.
    pub kind: WatchKind,
}

impl Watchpoint {
    /// Whether an access of `bytes` bytes at `at` touches the range.
    pub fn touches(&self, at: GuestVirt, bytes: u64) -> bool {
        let last = self.start.0.saturating_add(self.bytes - 1);
        bytes > 0 && at.0 <= last && at.0.saturating_add(bytes - 1) >= self.start.0
    }
}

/// What ends a run, besides the ends of history and an interrupt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Stop where the next instruction of any processor is at one of these addresses.
    pub breakpoints: BTreeSet<GuestVirt>,
    /// Stop at an access to any of these.
    pub watchpoints: BTreeSet<Watchpoint>,
    /// Stop after so many instructions of this processor (at least 1).
    pub step: Option<(CpuId, u64)>,
}

/// Why a run stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The next instruction is at this breakpoint.
    Breakpoint(GuestVirt),
    /// An access to a watchpoint.
    Watchpoint {
        /// The kind of the watchpoint (not of the access).
        kind: WatchKind,
        /// An address that lies in the watched range and was accessed.
        address: GuestVirt,
    },
    /// The steps are done.
    Step,
    /// The first position of history.
    Start,
    /// The last position of history.
    End,
    /// The interrupt was asked for.
    Interrupted,
    /// A branch's machine powered off or died; there is no more to run.
    Exited(u8),
}

/// Where and why a run stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// The processor that it concerns.
    pub cpu: CpuId,
    /// Why.
    pub why: Stopped,
}

/// A line of the guest's console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleLine {
    /// The position at which its last byte was printed.
    pub at: Position,
    /// The line without its end.
    pub text: String,
}

/// A checkpoint of the recording.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where.
    pub at: Position,
    /// Bytes that it occupies on disk, if it is there.
    pub disk_bytes: Option<u64>,
}

/// A named position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// Its name.
    pub name: String,
    /// Where.
    pub at: Position,
}

/// Why a target could not do something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No memory is mapped at a virtual address, or none exists at a physical one.
    #[error("nothing is mapped at {0:#x}")]
    Unmapped(u64),
    /// History cannot be changed.
    #[error("history cannot be changed: {0}")]
    ReadOnly(String),
    /// There is no such processor.
    #[error("there is no processor {0}")]
    NoCpu(CpuId),
    /// Anything else, as a sentence for people.
    #[error("{0}")]
    Failed(String),
}

/// A machine with a history, standing at one position of it.
///
/// # When runs stop
///
/// Let `s(p)` be the machine's state at position `p`, and instruction `p` the one that leads from
/// `s(p)` to `s(p + 1)`. A run from position `p0` never stops at `p0` itself for a breakpoint or a
/// step: it moves by at least one instruction, unless it stands at the end it runs towards.
///
/// | condition | forwards: the first `p > p0` where | backwards: the last `p < p0` where |
/// | --- | --- | --- |
/// | breakpoint at `a` | RIP of `s(p)` is `a` | RIP of `s(p)` is `a` |
/// | watchpoint on `w` | instruction `p - 1` accessed `w` | instruction `p` accesses `w` |
/// | `step` | `p - p0` is the count | `p0 - p` is the count |
///
/// So a forward run stands behind the access and a backward run before it, in both cases with the
/// access between the two states that gdb compares. When several hold at the same position, a
/// watchpoint is reported before a breakpoint, and that before a step.
pub trait Target {
    /// How many processors there are; at least 1.
    fn cpus(&self) -> usize;
    /// What processor `cpu` is doing, in a word or two ("running", "halted").
    fn activity(&self, cpu: CpuId) -> String {
        let _ = cpu;
        String::new()
    }
    /// The registers at the current position.
    fn registers(&mut self, cpu: CpuId) -> Result<Registers, TargetError>;
    /// Sets the registers; [`TargetError::ReadOnly`] in history.
    fn write_registers(&mut self, cpu: CpuId, registers: &Registers) -> Result<(), TargetError>;

    /// Reads memory as processor `cpu` would see it in supervisor mode with its current page
    /// tables, without any effect on the machine (no accessed bits, no faults, no device access).
    /// Returns how many of the first bytes could be read; an error when none.
    fn read_virtual(&mut self, cpu: CpuId, at: GuestVirt, into: &mut [u8]) -> Result<usize, TargetError>;
    /// Reads physical memory (RAM and ROM, not devices); otherwise as [`Target::read_virtual`].
    fn read_physical(&mut self, at: GuestPhys, into: &mut [u8]) -> Result<usize, TargetError>;
    /// Writes memory, all or nothing; [`TargetError::ReadOnly`] in history.
    fn write_virtual(&mut self, cpu: CpuId, at: GuestVirt, bytes: &[u8]) -> Result<(), TargetError>;
    /// As [`Target::write_virtual`], at a physical address.
    fn write_physical(&mut self, at: GuestPhys, bytes: &[u8]) -> Result<(), TargetError>;

    /// Where the machine stands.
    fn position(&self) -> Position;
    /// The first position of history.
    fn start(&self) -> Position;
    /// The last position of history (of a live branch: the furthest reached so far).
    fn end(&self) -> Position;
    /// Guest time at the current position.
    fn time(&self) -> GuestTime;
    /// The first position whose guest time is at least `time` ([`Target::end`] when none is).
    fn position_at(&mut self, time: GuestTime) -> Result<Position, TargetError>;

    /// Moves to a position between [`Target::start`] and [`Target::end`].
    fn seek(&mut self, to: Position) -> Result<(), TargetError>;
    /// Runs until a condition holds (see [`Target`] for when exactly), an end of history,
    /// or `interrupt` returns true; it is called often enough to answer a person at once (every few
    /// milliseconds) and costs an atomic load. After an error the machine stands somewhere valid.
    fn run(
        &mut self,
        until: &Conditions,
        direction: Direction,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Stop, TargetError>;

    /// The checkpoints there are, by position.
    fn checkpoints(&mut self) -> Vec<Checkpoint>;
    /// The recording's bookmarks, by name.
    fn bookmarks(&mut self) -> Result<Vec<Bookmark>, TargetError>;
    /// Names the current position and keeps the name in the recording.
    fn set_bookmark(&mut self, name: &str) -> Result<(), TargetError>;
    /// The console's complete lines up to the current position, the last `count` of them.
    fn console(&mut self, count: usize) -> Result<Vec<ConsoleLine>, TargetError>;
    /// The first line anywhere in history whose text contains `text`.
    fn find_console(&mut self, text: &str) -> Result<Option<ConsoleLine>, TargetError>;
    /// Facts about the recording and its machine, as names and values.
    fn info(&mut self) -> Vec<(String, String)>;
    /// Whether registers and memory may be written: true in a branch only.
    fn writable(&self) -> bool;
    /// Begins a branch here: a machine whose past is that of history up to here, in which registers
    /// and memory may be written and which runs on without an outside. A branch that is open is given
    /// up for it.
    fn begin_branch(&mut self) -> Result<(), TargetError> {
        Err(TargetError::Failed("this machine has no branches".into()))
    }
    /// Gives a branch up and stands in history where it began; nothing happens in history.
    fn end_branch(&mut self) -> Result<(), TargetError> {
        Ok(())
    }
    /// Lets bytes arrive at the console's serial port; [`TargetError::ReadOnly`] in history.
    fn type_bytes(&mut self, bytes: &[u8]) -> Result<(), TargetError> {
        let _ = bytes;
        Err(TargetError::Failed("this machine has no console".into()))
    }
    /// Commands of `monitor` beyond this crate's own, such as a later analysis; `None` when there
    /// is no such command.
    fn extra_command(&mut self, command: &str) -> Option<Result<String, TargetError>> {
        let _ = command;
        None
    }
}
