//! virtio 1.2 devices over PCI, without the legacy interface.
//!
//! ```text
//! PciHost ── VirtioPci<D> ── D: VirtioDevice      (block, net, console, rng)
//!            registers,      requests and their
//!            MSI-X, status   meaning
//!                └── Queue ── Ram
//! ```
//!
//! A device never waits for the host. What it does at once (console, network, entropy) happens in
//! the notification; what takes time (disk) is finished at a guest time computed from the request.
//! What comes from outside (keys, frames) enters through the `receive` functions, which only the
//! gate's side of the board calls.

pub mod block;
pub mod console;
pub mod net;
mod queue;
pub mod rng;
mod transport;

pub use queue::{Chain, Queue, QueueError, Segment, gather, pieces, scatter, total};
pub use transport::{CONFIG_SIZE, Io, VirtioDevice, VirtioPci};

/// Feature: descriptors may point to tables of descriptors (2.7.5.3).
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Feature: both sides say when they want to hear from the other (2.7.10).
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Feature: this is virtio 1, not legacy (6).
pub const F_VERSION_1: u64 = 1 << 32;

#[cfg(test)]
pub(crate) mod tests;
