//! A virtual x86-64 processor: a same-ISA dynamic binary translator, exact to the instruction.
//!
//! **What it may know:** the architecture, guest memory and the [`Bus`]. **What it must never
//! do:** know which devices exist, what is recorded, or what time it is on the host.
#![allow(missing_docs)] // lifted once the engine stands

mod bus;
pub mod core;
pub mod debug;
pub mod deliver;
mod descriptor;
mod engine;
mod fpu;
mod gather;
mod host;
pub mod marks;
mod reset;
mod saved;
pub mod show;
mod state;
pub mod string;
pub mod system;
pub mod walk;
mod watch;

pub use bus::Bus;
pub use core::{Core, Flush, Intent};
pub use engine::profile;
pub use engine::{CpuError, Exit, PROCESSORS_MAX, Statistics, Vcpu, VcpuConfig};
pub use fpu::{FpuKind, MXCSR_MASK, fpu_available};
pub use host::{host_features, host_vendor};
pub use saved::{RestoreError, SavedCpu};
pub use state::{Activity, CpuState, Fpu, SystemMsrs};
pub use watch::{Watch, WatchHit, WatchList};

#[cfg(test)]
mod tests;
