//! Sessions: a guest from its description to a machine that runs, is recorded, or is replayed.
//!
//! ```text
//! Guest ──► Session ──► run_live  (a Host gives input, a Recorder may take notes)
//!   ▲          └──────► Replay    (a Recording gives input, every state hash is checked)
//! Manifest
//! ```
//!
//! [`Session`] puts a machine together and moves it; whether its inputs come from a person or from
//! a log is only a matter of its gate. [`run_live`] is the one loop in which the host's clock and
//! inputs meet a machine. [`Replay`] never looks at either.
//!
//! **What it may know:** the machine, recordings, and, while live, the host's clock.
//! **What it must never do:** let anything into the machine but through the gate, or let a replay
//! depend on anything but the recording.
#![forbid(unsafe_code)]

mod bisect;
mod branch;
mod capture;
mod checkpointing;
mod divergence;
mod fault;
mod guest;
mod images;
mod live;
mod manifest;
mod output;
mod pace;
mod record;
mod replay;
mod rhythm;
mod session;
mod touched;
mod travel;

pub use bisect::{Cause, Difference, Differences, Finding, bisect};
pub use branch::Past;
pub use checkpointing::{Checkpointer, Spacing};
pub use divergence::{Divergence, Part};
pub use fault::Fault;
pub use guest::{Card, ClockMode, DiskSpec, Guest, KernelFile, Tuning};
pub use images::DiskOpenError;
pub use live::{Ended, Host, HostFailed, LiveError, SLICE, Verdict, Watcher, run_live};
pub use manifest::{Files, describe, guest_of, host_feature};
pub use output::Output;
pub use record::{RecordError, Recorder};
pub use replay::{Replay, ReplayError, ReplayStop, Target};
pub use rhythm::Every;
pub use session::{Session, SessionError};
pub use touched::touched_blocks;
pub use travel::{Change, ChangeError, ConsoleText, Hit, Marked, Over, Pause, Travel, Until, WatchRange};

/// The version of the machine's behaviour. A recording replays only on the same one, so it changes
/// with everything a guest can see or a state hash covers.
pub const MACHINE_VERSION: u32 = 2;
