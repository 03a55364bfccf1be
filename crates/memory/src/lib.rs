//! Guest physical memory: pages, dirty epochs, and marks that tell the processor which pages
//! must not be written behind its back.
//!
//! **What it may know:** host memory mappings and guest physical addresses.
//! **What it must never do:** know what a page holds (code, page tables, disk data), or which
//! device or processor wrote it.

mod lending;
mod marks;
mod ram;

pub use lending::Loan;
pub use marks::Marks;
pub use ram::{Disturbance, LOW_RAM_MAX, Ram, RamError, WatchedWrite};
