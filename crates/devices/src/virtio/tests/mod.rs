//! Tests with a small driver that does what Linux does: finds the function through ECAM, sizes its
//! BARs, walks its capabilities, negotiates, builds rings in RAM, and answers interrupts.

mod block;
mod console;
mod driver;
mod hostile;
mod net;
mod transport;

pub(crate) use driver::{Driver, Rig};

/// A small deterministic generator, so that a seed reproduces every failure.
pub(crate) struct Dice(pub u64);

impl Dice {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub fn roll(&mut self, below: u64) -> u64 {
        self.bits() % below
    }
}
