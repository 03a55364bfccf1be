//! The one source of randomness: everything about a case follows from its seed through here.

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;

/// A seeded generator. PCG is specified bit for bit, so a seed means the same case on every host.
#[derive(Clone, Debug)]
pub(crate) struct Dice(Pcg64Mcg);

impl Dice {
    /// The dice of `seed`; `stream` gives independent dice for the same seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let low = spread(seed);
        let high = spread(low ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self(Pcg64Mcg::new(u128::from(high) << 64 | u128::from(low)))
    }
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }
    pub fn byte(&mut self) -> u8 {
        (self.bits() >> 56) as u8
    }
    /// A number in `0..limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
    /// One of `choices`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
    /// A number of a random size: small ones, masks and their neighbours are as likely as others.
    pub fn number(&mut self) -> u64 {
        let bits = self.bits();
        match self.below(8) {
            0 => bits >> 60,
            1 => bits >> 52,
            2 => 1 << (bits >> 58),
            3 => (1u64 << (bits >> 58)).wrapping_sub(1),
            4 => ((bits >> 60) as i64).wrapping_neg() as u64,
            5 => bits >> 32,
            _ => bits,
        }
    }
}

/// SplitMix64's finaliser: neighbouring seeds give unrelated dice.
fn spread(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
