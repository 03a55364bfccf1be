//! The machine: wires processors, memory, interrupt controllers and devices; describes itself
//! through ACPI; loads guests.
//!
//! **What it may know:** everything inside the machine. **What it must never do:** read the host's
//! clock, or let anything in but through the [`Gate`].
#![forbid(unsafe_code)]

pub mod acpi;
mod board;
pub mod boot;
mod clock;
mod console;
mod gate;
pub mod layout;
mod machine;
mod memory_hash;
pub mod pci;
mod processor;
mod processors;
mod scheduler;
#[cfg(test)]
mod testing;

pub use board::{Board, BoardConfig, BoardError, BoardState, Ending};
pub use clock::{Clock, Idle, Rate, RateError};
pub use console::PanicLine;
pub use gate::{
    Admitted, ClockCorrection, Event, Gate, GateError, Input, InputError, Journal, Moment, Source,
};
pub use machine::{Machine, MachineConfig, MachineState, RestoreError, StateHash, Stop};
pub use memory_hash::MemoryHash;
pub use pci::{PciBus, PciFull};
pub use processor::{Exit, Processor};
pub use processors::Turn;
