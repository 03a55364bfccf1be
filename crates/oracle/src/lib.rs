//! The host CPU is the oracle: short random programs, run natively and by another executor (the
//! translator), and compared in registers, flags, memory, fault and instruction count.
//!
//! * A [`Case`] is a program of a few instructions with the state it starts from; everything about
//!   it follows from a seed.
//! * [`EngineExecutor`] runs it as a guest of the translator.
//! * [`HostExecutor`] runs it on the host CPU, in 64-bit or in compatibility mode, in a child process.
//! * Anything else that runs cases implements [`Executor`]; [`compare()`] says how two [`Outcome`]s
//!   differ and [`minimise()`] drops what a mismatch does not need.
//! * [`campaign()`] does that for a range of seeds and accounts which instructions were exercised.
//!
//! **What it may know:** the architecture as the host's CPU and a decoder's tables tell it, and
//! Linux's signal frames. **What it must never do:** know how the translator works, or be used by
//! anything but tests and fuzzing.

mod campaign;
mod case;
mod compare;
mod engine;
mod executor;
mod flags;
mod generate;
mod host;
mod layout;
mod minimise;
mod outcome;
mod state;
mod vendor;

pub use campaign::{Budget, Coverage, Failure, Report, campaign, campaign_of};
pub use case::{AssembleError, Case, END_MARKER, ITEMS_MAX, Item, Link, Mode, Target};
pub use compare::{Mismatch, Strictness, compare, compare_with};
pub use engine::{EngineExecutor, Pace, UNLIKE_HOST};
pub use executor::Executor;
pub use generate::{Class, Options, Universe};
pub use host::{HostError, HostExecutor};
pub use layout::{Access, FRAMES, Frame, PAGE, Page};
pub use minimise::minimise;
pub use outcome::{Discard, Ending, Fault, Outcome, vector};
pub use state::{FXSAVE, GPR_NAMES, MXCSR_DEFAULT, Registers, flag};

/// A program with branches that retires more instructions than this is discarded. Above what a
/// REP-prefixed instruction can do before it leaves the data pages.
pub const STEP_LIMIT: u64 = 10_000;
