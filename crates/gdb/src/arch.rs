//! x86-64 as gdbstub sees it: numbers, and a block of registers.

use crate::registers::{self, Registers, Slot};
use gdbstub::arch;
use std::num::NonZeroUsize;

/// The architecture.
pub(crate) enum X86_64 {}

impl arch::Arch for X86_64 {
    type Usize = u64;
    type Registers = Registers;
    type BreakpointKind = usize;
    type RegId = Number;
}

/// A register's number in the description.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Number(usize);

impl Number {
    /// What it stands for.
    pub fn slot(self) -> Option<Slot> {
        registers::layout().nth(self.0).map(|entry| entry.slot)
    }
}

impl arch::RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let entry = registers::layout().nth(id)?;
        Some((Number(id), NonZeroUsize::new(entry.bytes())))
    }
    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

impl arch::Registers for Registers {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.rip
    }
    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        for entry in registers::layout() {
            for byte in self.get(entry.slot) {
                write_byte(Some(byte));
            }
        }
    }
    fn gdb_deserialize(&mut self, mut bytes: &[u8]) -> Result<(), ()> {
        for entry in registers::layout() {
            let (value, rest) = bytes.split_at_checked(entry.bytes()).ok_or(())?;
            if !self.set(entry.slot, value) {
                return Err(());
            }
            bytes = rest;
        }
        if bytes.is_empty() { Ok(()) } else { Err(()) }
    }
}
