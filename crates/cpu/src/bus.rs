//! What a processor sees of the machine around it.

use base::{GuestPhys, Position};
use memory::Ram;

/// Everything outside the processor. `at` is always the position *before* the instruction that
/// makes the access (its own retirement not yet counted); devices derive guest time from it.
///
/// Contract: every answer is a function of the machine's state, its inputs and `at`.
pub trait Bus {
    /// Guest memory.
    fn ram(&mut self) -> &mut Ram;
    /// Reads 1, 2, 4 or 8 bytes of non-RAM physical memory; all ones where nothing answers.
    fn mmio_read(&mut self, at: Position, address: GuestPhys, data: &mut [u8]);
    /// Writes 1, 2, 4 or 8 bytes of non-RAM physical memory; ignored where nothing answers.
    fn mmio_write(&mut self, at: Position, address: GuestPhys, data: &[u8]);
    /// Reads `size` (1, 2 or 4) bytes of port `port`; all ones where nothing answers.
    fn io_read(&mut self, at: Position, port: u16, size: usize) -> u32;
    /// Writes `size` (1, 2 or 4) bytes to port `port`.
    fn io_write(&mut self, at: Position, port: u16, size: usize, value: u32);
    /// Reads a model-specific register that lies outside the core (APIC base, x2APIC,
    /// TSC deadline); `None` when the machine has no such register, or refuses (#GP).
    fn msr_read(&mut self, at: Position, index: u32) -> Option<u64>;
    /// Writes such a register; false: #GP.
    #[must_use]
    fn msr_write(&mut self, at: Position, index: u32, value: u64) -> bool;
    /// The time-stamp counter at `at`, without IA32_TSC_ADJUST.
    fn tsc(&mut self, at: Position) -> u64;
    /// If [`Self::tsc`] is the position plus a constant until the processor next returns to the
    /// machine: that constant.
    fn tsc_offset(&self) -> Option<u64> {
        None
    }
    /// The task priority as CR8 shows it (0 to 15).
    fn read_cr8(&mut self) -> u64;
    /// Sets it.
    fn write_cr8(&mut self, at: Position, value: u64);
    /// Whether a maskable interrupt waits to be taken (its priority above the task's).
    fn interrupt_pending(&self) -> bool;
    /// Takes the interrupt: its vector. `None` when it went away (spurious 8259 vectors are `Some`).
    fn acknowledge_interrupt(&mut self, at: Position) -> Option<u8>;
    /// Whether PAUSE gives way to another processor: it then ends the run. Asked again after each
    /// access above.
    fn yields_at_pause(&self) -> bool {
        false
    }
    /// The position at which the machine next wants control, re-read after each access above.
    fn horizon(&self) -> Position;
}
