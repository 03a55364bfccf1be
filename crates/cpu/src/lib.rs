//! A virtual x86-64 processor: a same-ISA dynamic binary translator, exact to the instruction.
//!
//! **What it may know:** the architecture, guest memory and the [`Bus`]. **What it must never
//! do:** know which devices exist, what is recorded, or what time it is on the host.
#![allow(missing_docs)] // lifted once the engine stands

mod bus;
mod state;

pub use bus::Bus;
pub use state::{Activity, CpuState, Fpu, SystemMsrs};
