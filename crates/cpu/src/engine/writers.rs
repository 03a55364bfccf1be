//! Through which addresses each page of RAM is written: what has to be dropped when the page is
//! marked, without searching the tables.
//!
//! Most pages have one address of the lower half of the address space (programs) and one of the upper (the
//! kernel). Memory that goes from one short program to the next has more, each elsewhere: those are kept
//! apart, up to a number that is not worth more than dropping everything.

use super::blocks::BuildMix;
use arrayvec::ArrayVec;
use std::collections::HashMap;

/// In place of an address: there are several.
const SEVERAL: u64 = 1 << 63;
/// Low bits of a record: in which round it was made; records of other rounds are void.
const ROUND: u64 = 0xfff;
/// How many addresses of one half are kept of a page.
const ADDRESSES_MAX: usize = 24;

type Addresses = ArrayVec<u64, ADDRESSES_MAX>;

/// For every page the addresses it was written through since all write translations were dropped.
pub struct Writers {
    /// For each half a record: the address, or [`SEVERAL`], and the round.
    pages: Vec<[u64; 2]>,
    round: u64,
    /// The addresses of a page's half of which there are several; too many, if there are as many as fit.
    several: HashMap<(usize, usize), Addresses, BuildMix>,
}

impl Default for Writers {
    fn default() -> Self {
        Self { pages: Vec::new(), round: 1, several: HashMap::default() }
    }
}

impl Writers {
    /// Notes a write translation from the page at `virt` to RAM page `page`.
    pub fn note(&mut self, page: usize, virt: u64) {
        if page >= self.pages.len() {
            self.pages.resize((page + 1).next_power_of_two(), [0; 2]);
        }
        let half = ((virt as i64) < 0) as usize;
        let record = &mut self.pages[page][half];
        let new = virt | self.round;
        if *record & ROUND != self.round {
            *record = new;
        } else if *record != new {
            let first = *record & !ROUND;
            *record = SEVERAL | self.round;
            let addresses = self.several.entry((page, half)).or_default();
            let first = (first != SEVERAL).then_some(first);
            for address in first.into_iter().chain([virt]) {
                if !addresses.contains(&address) && !addresses.is_full() {
                    addresses.push(address);
                }
            }
        }
    }

    /// Forgets page `page` and says through which addresses it may be written; `None`: unknown.
    pub fn take(&mut self, page: usize) -> Option<Vec<u64>> {
        let Some(records) = self.pages.get_mut(page) else { return Some(Vec::new()) };
        let mut all = Vec::new();
        for (half, record) in std::mem::take(records).into_iter().enumerate() {
            match record & !ROUND {
                _ if record & ROUND != self.round => {}
                SEVERAL => {
                    let addresses = self.several.remove(&(page, half)).unwrap_or_default();
                    if addresses.is_full() {
                        return None;
                    }
                    all.extend(addresses);
                }
                address => all.push(address),
            }
        }
        Some(all)
    }

    /// Forgets everything: no write translation is left.
    pub fn forget(&mut self) {
        self.several.clear();
        self.round += 1;
        if self.round > ROUND {
            self.round = 1;
            self.pages.fill([0; 2]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_each_half_are_remembered_up_to_a_number() {
        let mut writers = Writers::default();
        assert_eq!(writers.take(5), Some(vec![]));
        writers.note(5, 0x7000);
        writers.note(5, 0xffff_8880_0000_5000);
        writers.note(5, 0x7000);
        assert_eq!(writers.take(5), Some(vec![0x7000, 0xffff_8880_0000_5000]));
        assert_eq!(writers.take(5), Some(vec![]));
        [0x7000, 0x8000, 0x7000, 0x9000, 0].into_iter().for_each(|virt| writers.note(5, virt));
        writers.note(5, 0xffff_8880_0000_5000);
        assert_eq!(writers.take(5), Some(vec![0x7000, 0x8000, 0x9000, 0, 0xffff_8880_0000_5000]));
        assert_eq!(writers.take(5), Some(vec![]));
        (0..ADDRESSES_MAX as u64).for_each(|n| writers.note(5, n << 12));
        assert_eq!(writers.take(5), None);
    }

    #[test]
    fn what_was_forgotten_does_not_come_back() {
        let mut writers = Writers::default();
        for _ in 0..10_000 {
            writers.note(0, 0x3000);
            writers.note(0, 0x4000);
            writers.forget();
            assert_eq!(writers.take(0), Some(vec![]));
            writers.note(0, 0x5000);
            writers.note(0, 0x6000);
            assert_eq!(writers.take(0), Some(vec![0x5000, 0x6000]));
        }
    }
}
