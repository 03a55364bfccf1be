//! Disk images and what a run writes on top of them.
//!
//! Disk contents are part of the machine's state, not an input. So an [`Image`] is opened
//! read-only and known by the hash of its content, and everything the guest writes goes to an
//! [`Overlay`] that belongs to the run. The overlay is a persistent tree: a [`Snapshot`] costs
//! nothing when taken and shares every unchanged block with its neighbours, so that checkpoints
//! and travelling in time cost what has changed and no more.
//!
//! **What it may know:** image files, and one nameless temporary file for what does not fit in
//! memory. **What it must never do:** write to an image, open a file that an image merely
//! mentions, or know that there is a guest, a device or a time.

mod block;
mod error;
mod image;
mod lock;
mod overlay;
mod tree;

pub use block::{BLOCK_SIZE, Block, Store};
pub use error::DiskError;
pub use image::{Base, Format, Image, Stamp, Zeros};
pub use overlay::{Change, Content, Overlay, Snapshot};

/// Bytes of a sector: the grain of every disk's length and of every request.
pub const SECTOR_SIZE: u64 = 512;

#[cfg(test)]
mod tests;
