//! Random choices of tests and of generated guests: everything about a case follows from its seed through here.
//!
//! **What it may know:** numbers. **What it must never do:** reach for a source of randomness of the
//! host's, or give other numbers for a seed than it ever did: seeds are how a failure is told to others.
#![forbid(unsafe_code)]

use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng;

/// A seeded generator with the few draws that generators and tests need.
///
/// PCG is specified bit for bit (O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms
/// for Random Number Generation"), and the seed is spread by hand, so that a seed means the same on
/// every host and with every later version of the library.
#[derive(Clone, Debug)]
pub struct Dice(Pcg64Mcg);

impl Dice {
    /// The dice of `seed`; `stream` gives independent dice for the same seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let low = spread(seed);
        let high = spread(low ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self(Pcg64Mcg::new(u128::from(high) << 64 | u128::from(low)))
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
        self.under(limit as u64) as usize
    }
    /// The same for numbers that are no indices.
    pub fn under(&mut self, limit: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u64
    }
    /// True in `percent` of 100 throws.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the seeds that people have written down must stay what they are.
    #[test]
    fn a_seed_means_the_same_numbers_for_ever() {
        let mut dice = Dice::new(7, 1);
        assert_eq!(
            [dice.bits(), dice.bits(), dice.number()],
            [11759643691987947469, 6485836845059863242, 18446744073709551609]
        );
        assert_eq!((dice.below(1000), dice.byte(), dice.pick(&[2, 3, 5, 7])), (889, 88, 7));
    }

    #[test]
    fn streams_of_a_seed_and_neighbouring_seeds_differ() {
        let firsts = [(1, 0), (1, 1), (2, 0), (2, 1)].map(|(seed, stream)| Dice::new(seed, stream).bits());
        for (i, first) in firsts.iter().enumerate() {
            assert!(!firsts[..i].contains(first), "{firsts:x?}");
        }
    }

    #[test]
    fn a_limit_is_never_reached_and_each_number_below_it_is() {
        let mut dice = Dice::new(3, 0);
        let mut seen = [false; 5];
        (0..200).for_each(|_| seen[dice.below(5)] = true);
        assert_eq!(seen, [true; 5]);
        assert_eq!((dice.below(0), dice.under(1)), (0, 0));
    }
}
