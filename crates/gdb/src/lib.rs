//! The gdb remote protocol, forwards and backwards in time.
//!
//! A [`Target`] is anything with registers, memory and a history to move in; [`serve`] lets one gdb
//! at a time debug it, over TCP or a Unix socket. The protocol itself is the `gdbstub` crate's; this
//! crate adds what a time-travelling x86-64 machine needs: the full register file and its
//! description, watchpoints of any length and number, the way back, `monitor` commands, and a
//! connection that survives nonsense.
//!
//! The code map: `target` is the seam to the sessions below; `registers` and
//! `description` say what gdb shows; `stub` and `resume` translate between gdbstub and a target;
//! `monitor` holds the commands; `framing`, `wire` and `session` are the connection, from bytes to
//! whole packets to a conversation, and `probe` all three without a socket; `script` is what a gdb that we start ourselves is told first.
//!
//! **What it may know:** the [`Target`] and sockets. **What it must never do:** move a machine by
//! any other means than the target's `seek` and `run`, or change anything in history.
#![forbid(unsafe_code)]

mod arch;
mod description;
mod framing;
mod listener;
mod monitor;
mod place;
pub mod probe;
mod registers;
mod resume;
mod script;
mod session;
mod stub;
mod target;
mod wire;

pub use description::target_description;
pub use listener::{Address, Listener, Stopper};
pub use place::Place;
pub use registers::Registers;
pub use script::{SymbolFile, SymbolPlace, startup_script};
pub use session::{Ended, ServeError, serve};
pub use target::{
    Bookmark, Checkpoint, Conditions, ConsoleLine, CpuId, Direction, Stop, Stopped, Target, TargetError,
    WatchKind, Watchpoint,
};
