//! The one source of randomness: everything about a case follows from its seed through here.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;

/// A seeded generator with the few draws the generators need.
///
/// PCG is specified bit for bit, and the seed is spread by hand (SplitMix64), so that a seed means
/// the same case on every host and with every later version of the library.
#[derive(Clone, Debug)]
pub struct Dice(Pcg64Mcg);

impl Dice {
    /// The dice of `seed`; `stream` gives independent dice for the same seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let low = spread(seed);
        let high = spread(low ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self(Pcg64Mcg::new((u128::from(high) << 64) | u128::from(low)))
    }
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
    /// A random byte.
    pub fn byte(&mut self) -> u8 {
        (self.bits() >> 56) as u8
    }
    /// A number in `0..limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }
    /// True in `percent` of 100 throws.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    /// One of `choices`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// SplitMix64's finaliser: neighbouring seeds give unrelated dice.
fn spread(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
