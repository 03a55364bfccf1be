//! The project's words as types: positions, guest time, guest addresses.
//!
//! **What it may know:** nothing but numbers. **What it must never do:** read a clock, a file
//! or any other part of the host.
#![forbid(unsafe_code)]

mod address;
mod position;
mod time;

pub use address::{GuestPhys, GuestVirt, PAGE_SHIFT, PAGE_SIZE};
pub use position::Position;
pub use time::GuestTime;
