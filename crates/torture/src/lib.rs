//! Hostile guests: small machines whose programs are generated from a seed and do what no kernel
//! does, to show that a guest harms neither the host nor the machine's determinism.
//!
//! * A [`Case`] is a machine, the guest in it and what comes from outside, all from one seed. Its
//!   guest is a list of [`Stage`]s: random bytes at CPL 3 and CPL 0, control registers,
//!   descriptors and page tables turned upside down, ports and device memory, virtqueues full of
//!   rubbish. A fault ends one slot of a stage, not the guest.
//! * [`run()`] runs it at a [`Pace`] for a bounded number of instructions, restarting the guest
//!   after each reset, triple fault or power-off.
//! * [`judge()`] runs it at several paces, which must end in the same state: whole, in pieces, with
//!   caches dropped at random, from Rust, and through a saved state.
//! * [`locate()`] names the instruction at which two paces part, and
//!   [`minimise()`] leaves out every stage and slot that a failure does not need.
//!
//! A crash of the process and a run that does not come back are for the parent of the process that
//! runs cases to see: the `torture` command.
//!
//! **What it may know:** the machine, as a guest and an embedder see it. **What it must never do:**
//! be used by anything but tests, or run anything on the host outside of a machine.
#![forbid(unsafe_code)]

mod assemble;
mod case;
mod firmware;
mod judge;
mod layout;
mod locate;
mod minimise;
mod run;
mod stage;

pub use case::{Case, Devices};
pub use judge::{Complaint, judge};
pub use locate::locate;
pub use minimise::minimise;
pub use run::{End, Outcome, Pace, run};
pub use stage::{Kind, Slot, Stage};
