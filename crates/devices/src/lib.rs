//! The devices of the machine, one file or folder each, with one shared lifecycle.
//!
//! **What they may know:** guest time as handed to them, guest RAM by DMA, their own
//! configuration. **What they must never do:** read the host's clock, randomness or files on
//! their own; whatever comes from outside reaches them as an input through the gate.

mod device;
pub mod pci;
pub mod virtio;

pub use device::{Cx, Device, DeviceState, IrqSink, Outside, Request, StateError};
