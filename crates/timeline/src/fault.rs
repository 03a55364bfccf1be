//! An error that a machine makes on purpose.
//!
//! What finds divergences has to be tested with real ones. A machine with a [`Fault`] errs at one
//! position as a wrong translation would: a register and a byte of memory are other than they
//! should be when it arrives there. Nothing else about it differs.

use base::{PAGE_SIZE, Position};
use cpu::Vcpu;
use machine::Machine;

/// A deliberate error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The instruction before this position goes wrong.
    pub at: Position,
    /// It depends on what the machine has executed since power-on, as a stale translation does:
    /// a machine that takes up the run from a kept state does not err.
    pub needs_history: bool,
}

impl Fault {
    /// What it changes: breakpoint address 0, which nobody uses and everybody keeps, and the last
    /// byte of memory.
    pub(crate) fn strike(self, machine: &mut Machine<Vcpu>) {
        machine.processor_mut().state_mut().dr[0] ^= 0x1000;
        let ram = machine.board_mut().memory_mut();
        let last = ram.pages() - 1;
        let byte = ram.page_bytes(last)[PAGE_SIZE - 1] ^ 0x40;
        ram.write_page(last, PAGE_SIZE - 1, &[byte]);
    }
}
