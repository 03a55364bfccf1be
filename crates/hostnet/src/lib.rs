//! The host's side of the guest's network card: where frames go when they leave the machine, and
//! where they come from.
//!
//! ```text
//!   machine thread            this crate's thread ("network")          the host
//!   ──────────────            ───────────────────────────────          ────────
//!   Network::send ────────────── straight to the peer, if it has room ──────► passt, tap,
//!        │ else                                                               socket
//!        └──► outbox (bounded) ──────── flushed when there is room ────────►
//!   Network::receive ◄── inbox (bounded) ◄── read, framing checked ◄────────
//!                               └── then: wake()
//! ```
//!
//! Neither direction can stop the machine. What does not fit into the outbox is dropped and
//! counted, as by a network card. The inbox never drops: while it is full, nothing is read, so the
//! peer feels it (passt slows its TCP connections down, a tap's own queue fills up).
//!
//! Three kinds of peer, chosen by [`Net`]:
//!
//! * `user`: [passt](https://passt.top), a program of Debian's that leads frames to ordinary
//!   sockets of the host, with DHCP, NDP and ports forwarded, and needs no rights;
//! * `tap=IF`: a tap interface that the host's administrator made;
//! * `unix=PATH`: a listening stream socket with QEMU's framing (a frame's length in bytes as 32
//!   bits, big-endian, then the frame), such as another machine or a switch.
//!
//! **What it may know:** the host's sockets, processes and time; this is outside the machine.
//! **What it must never do:** put a frame into the machine by itself. Frames wait in the inbox until
//! the gate asks; when and where they enter is the gate's to decide and to log.

mod counters;
mod error;
mod framing;
mod link;
mod network;
mod passt;
mod pump;
mod queue;
mod stream;
mod sys;
mod tap;
mod values;

pub use counters::Counts;
pub use error::NetError;
pub use framing::Deframer;
pub use network::Network;
pub use passt::find as find_passt;
pub use values::{Forward, Net, Protocol};

/// Bytes of the shortest and of the longest frame, without FCS: an Ethernet header alone, and
/// 65,535 bytes behind it.
pub const FRAME_BYTES: std::ops::RangeInclusive<usize> = 14..=14 + 65_535;
