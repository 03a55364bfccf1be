//! Through which addresses each page of RAM is written: what has to be dropped when the page is
//! marked, without searching the tables.
//!
//! One address of the lower half of the address space (programs) and one of the upper (the kernel)
//! are remembered for each page; a page written through two of a kind is not worth more.

/// Not an address of a page.
const MANY: u64 = 1 << 63;
/// Low bits of a record: in which round it was made; records of other rounds are void.
const ROUND: u64 = 0xfff;

/// For every page the addresses it was written through since all write translations were dropped.
pub struct Writers {
    pages: Vec<[u64; 2]>,
    round: u64,
}

impl Default for Writers {
    fn default() -> Self {
        Self { pages: Vec::new(), round: 1 }
    }
}

impl Writers {
    /// Notes a write translation from the page at `virt` to RAM page `page`.
    pub fn note(&mut self, page: usize, virt: u64) {
        if page >= self.pages.len() {
            self.pages.resize((page + 1).next_power_of_two(), [0; 2]);
        }
        let record = &mut self.pages[page][((virt as i64) < 0) as usize];
        let new = virt | self.round;
        if *record & ROUND != self.round {
            *record = new;
        } else if *record != new {
            *record = MANY | self.round;
        }
    }

    /// Forgets page `page` and says through which addresses it may be written; `None`: unknown.
    pub fn take(&mut self, page: usize) -> Option<[Option<u64>; 2]> {
        let Some(records) = self.pages.get_mut(page) else { return Some([None; 2]) };
        let records = std::mem::take(records);
        let live = |record: u64| (record & ROUND == self.round).then_some(record & !ROUND);
        if records.into_iter().any(|record| live(record) == Some(MANY)) {
            return None;
        }
        Some(records.map(live))
    }

    /// Forgets everything: no write translation is left.
    pub fn forget(&mut self) {
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
    fn one_address_of_each_half_is_remembered() {
        let mut writers = Writers::default();
        assert_eq!(writers.take(5), Some([None, None]));
        writers.note(5, 0x7000);
        writers.note(5, 0xffff_8880_0000_5000);
        writers.note(5, 0x7000);
        assert_eq!(writers.take(5), Some([Some(0x7000), Some(0xffff_8880_0000_5000)]));
        assert_eq!(writers.take(5), Some([None, None]));
        writers.note(5, 0x7000);
        writers.note(5, 0x8000);
        assert_eq!(writers.take(5), None);
    }

    #[test]
    fn what_was_forgotten_does_not_come_back() {
        let mut writers = Writers::default();
        for _ in 0..10_000 {
            writers.note(0, 0x3000);
            writers.forget();
            assert_eq!(writers.take(0), Some([None, None]));
        }
    }
}
