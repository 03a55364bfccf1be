//! Where the page tables that cached translations came from stand in linear address space, so that
//! a store to one says which addresses it concerns.
//!
//! A table page is known by the lowest address it translates and its level. When it is found at
//! another place, what came from it at the old one is dropped. Tables of other formats than IA-32e
//! are *anywhere*: a change of one drops everything.
//!
//! Most stores concern nothing that is cached: what was not present is not, nor what no walk has come by.
//! For the latter each table has a bit for each entry, at which translated code looks as well (see [`super::table_stores`]).
//!
//! Marked pages cost the guest a slow store, so marks go away again: after a few stores a table is
//! retired, that is, what came from it is dropped and the mark removed. A table that proves to be
//! in use is given more time at each return.

use base::PAGE_SIZE;
use std::collections::HashMap;

/// Stores to a table after which it is retired for the first time, and at most.
const PATIENCE: u32 = 8;
const PATIENCE_MAX: u32 = 1024;
/// In `roots`: more than one.
const MANY: u32 = u32::MAX;
/// In a place: the page holds a table; its entries may translate any address.
const TABLE: u64 = 1 << 9;
const ANYWHERE: u64 = 1 << 8;
/// In a place: the shift that turns an entry's index into an address.
const SHIFT: u64 = 0xff;
/// That of top tables.
const TOP_SHIFT: u64 = 39;

/// What a store to a table means.
#[derive(Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing cached is concerned.
    Nothing,
    /// These addresses are.
    Range(Range),
    /// All that came from the table is, and its mark is to go.
    Retire(Vec<Range>),
    /// Any address may be.
    Unknown,
}

/// Linear addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Where they begin.
    pub virt: u64,
    /// How many pages.
    pub pages: u64,
    /// The only address space in which they are meant, by its top table, if there is only one.
    pub root: Option<u64>,
    /// The table is itself the top one.
    pub top: bool,
}

impl Range {
    /// Whether it lies in the lower half of the address space, the programs'.
    pub fn is_low(&self) -> bool {
        self.virt.checked_add(self.pages << 12).is_some_and(|end| end <= 1 << 47)
    }
}

#[derive(Clone, Copy)]
struct Life {
    stores: u32,
    patience: u32,
}

/// All tables that cached translations came from.
#[derive(Default)]
pub struct Tables {
    /// By RAM page: 0, or lowest address, shift and flags.
    places: Vec<u64>,
    /// By RAM page: number of the top table's page through which the table was found.
    roots: Vec<u32>,
    /// By RAM page: a bit for each entry by which a walk came since it was last written.
    used: Vec<[u64; 8]>,
    lives: HashMap<usize, Life>,
}

/// The bits of a table's entries from `first` to `last`, by word.
fn bits(first: usize, last: usize) -> impl Iterator<Item = (usize, u64)> {
    (first..=last).map(|entry| (entry / 64, 1 << (entry % 64)))
}

impl Tables {
    /// Notes that RAM page `page` holds a table which translates `virt`, `depth` levels below the
    /// top of the IA-32e hierarchy at `root`; `None` for other formats. If it stood elsewhere, the addresses to be
    /// dropped for that are returned.
    pub fn note(&mut self, page: usize, virt: u64, depth: Option<usize>, root: u64) -> Option<Vec<Range>> {
        self.make_room(page + 1);
        let root = u32::try_from(root >> 12).unwrap_or(MANY);
        let place = match depth {
            Some(0) => TABLE | TOP_SHIFT,
            Some(depth) if depth <= 3 => {
                let shift = TOP_SHIFT - 9 * depth as u64;
                virt & !0 << (shift + 9) | TABLE | shift
            }
            _ => TABLE | ANYWHERE,
        };
        let known = self.places[page];
        let before = (known != place && known != 0).then(|| self.whole(page));
        if known != place {
            self.used[page] = [0; 8];
        }
        let entry = (virt >> (place & SHIFT) & 511) as usize;
        self.used[page][entry / 64] |= 1 << (entry % 64);
        if known == place && self.roots[page] == root || known & ANYWHERE != 0 {
            return None;
        }
        if known == place {
            self.roots[page] = MANY;
            return None;
        }
        self.places[page] = place;
        self.roots[page] = root;
        self.lives.entry(page).or_insert(Life { stores: 0, patience: PATIENCE }).stores = 0;
        before
    }

    /// Makes room for tables in so many pages, if there is none yet.
    pub fn make_room(&mut self, pages: usize) {
        if pages > self.places.len() {
            self.places.resize(pages.next_power_of_two(), 0);
            self.roots.resize(self.places.len(), 0);
            // Only what is written takes memory.
            let mut used = vec![[0; 8]; self.places.len()];
            used[..self.used.len()].copy_from_slice(&self.used);
            self.used = used;
        }
    }

    /// What emitted code has to know of a table to make stores that are in vain by itself: the bits of its
    /// entries, which stay where they are as long as there is room, and how many it may make. `None` if it may make none.
    pub fn lend(&self, page: usize) -> Option<(*const u64, u32)> {
        let place = self.places.get(page).copied().filter(|place| *place != 0)?;
        if place & ANYWHERE != 0 || place & SHIFT == TOP_SHIFT {
            return None;
        }
        let life = self.lives.get(&page)?;
        let given = life.patience.saturating_sub(life.stores + 1);
        (given > 0).then_some((self.used[page].as_ptr(), given))
    }

    /// Emitted code has made so many.
    pub fn made(&mut self, page: usize, stores: u32) {
        if let Some(life) = self.lives.get_mut(&page) {
            life.stores += stores;
        }
    }

    /// All that a table translates: of a last one, that by which a walk came; of a top one, from the lower
    /// half of the address space on.
    fn whole(&self, page: usize) -> Vec<Range> {
        let place = self.places[page];
        let shift = place & SHIFT;
        if shift != 12 {
            return vec![self.range(page, place & !0xfff, 1 << (shift.max(12) - 12 + 9))];
        }
        let used = |entry: &usize| self.used[page][entry / 64] >> (entry % 64) & 1 != 0;
        let one = |entry| self.range(page, (place & !0xfff) + ((entry as u64) << 12), 1);
        (0..512).filter(used).map(one).collect()
    }

    fn range(&self, page: usize, virt: u64, pages: u64) -> Range {
        let root = self.roots[page];
        let root = (root != MANY).then_some((root as u64) << 12);
        Range { virt, pages, root, top: self.places[page] & SHIFT == TOP_SHIFT }
    }

    /// What a store of `len` bytes at `offset` of a page means; `was_present` if it may have
    /// changed an entry that was present.
    pub fn written(&mut self, page: usize, offset: usize, len: usize, was_present: bool) -> Written {
        let place = self.places.get(page).copied().unwrap_or(0);
        if place == 0 {
            return Written::Nothing;
        }
        let life = self.lives.entry(page).or_insert(Life { stores: 0, patience: PATIENCE });
        life.stores += 1;
        let tired = life.stores >= life.patience;
        // Nobody clears a whole table that is in use.
        let cleared = len >= PAGE_SIZE;
        if place & ANYWHERE != 0 {
            return if was_present || tired { Written::Unknown } else { Written::Nothing };
        }
        let shift = place & SHIFT;
        let (base, pages_each) = (place & !0xfff, 1 << (shift - 12));
        if tired || cleared {
            if tired {
                life.patience = (life.patience * 2).min(PATIENCE_MAX);
            }
            let ranges = self.whole(page);
            self.places[page] = 0;
            return Written::Retire(ranges);
        }
        let (first, last) = (offset >> 3, (offset + len.max(1) - 1) >> 3);
        if !was_present || !self.is_used(page, first, last) {
            return Written::Nothing;
        }
        bits(first, last).for_each(|(word, bit)| self.used[page][word] &= !bit);
        let (first, last) = (first as u64, last as u64);
        let virt = sign_extended(base + (first << shift));
        Written::Range(self.range(page, virt, (last - first + 1) * pages_each))
    }

    /// Whether anything cached may have come by one of these entries. What is cached of an address space
    /// may be shown in another whose top table says the same there, and no walk comes by that one.
    fn is_used(&self, page: usize, first: usize, last: usize) -> bool {
        let used = &self.used[page];
        self.places[page] & SHIFT == TOP_SHIFT || bits(first, last).any(|(word, bit)| used[word] & bit != 0)
    }

    /// Whether a store of `len` bytes at `offset` of a page means [`Written::Nothing`], and notes that it
    /// is made if so.
    pub fn written_in_vain(&mut self, page: usize, offset: usize, len: usize, was_present: bool) -> bool {
        let place = self.places.get(page).copied().unwrap_or(0);
        let may_be_cached = || was_present && self.is_used(page, offset >> 3, (offset + len - 1) >> 3);
        if place == 0 || place & ANYWHERE != 0 || may_be_cached() {
            return false;
        }
        let life = self.lives.get_mut(&page).filter(|life| life.stores + 1 < life.patience);
        life.map(|life| life.stores += 1).is_some()
    }

    /// Forgets all tables, and says which pages they are.
    pub fn take(&mut self) -> Vec<usize> {
        let pages = self.lives.keys().copied().filter(|page| self.places[*page] != 0).collect();
        self.places.fill(0);
        self.lives.clear();
        pages
    }
}

fn sign_extended(address: u64) -> u64 {
    ((address << 16) as i64 >> 16) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_which_addresses_it_concerns() {
        let mut tables = Tables::default();
        let virt = 0xffff_8881_2345_6000;
        assert!((0..4).all(|depth| tables.note(depth, virt, Some(depth), 0).is_none()));
        let index = |shift: u64| (virt >> shift & 511) as usize * 8;
        for (page, shift) in [(0, 39), (1, 30), (2, 21), (3, 12)] {
            let (virt, pages, top) = (virt & !0 << shift, 1 << (shift - 12), page == 0);
            let range = Range { virt, pages, root: Some(0), top };
            assert_eq!(tables.written(page, index(shift), 8, true), Written::Range(range));
        }
        assert_eq!(tables.written(3, 0, 8, false), Written::Nothing);
        assert_eq!(tables.written(4, 0, 8, true), Written::Nothing);
    }

    #[test]
    fn an_entry_that_no_walk_came_by_concerns_nothing() {
        let mut tables = Tables::default();
        tables.note(3, 0x5000, Some(3), 0);
        tables.note(0, 0x5000, Some(0), 0);
        assert!(tables.written_in_vain(3, 6 * 8, 8, true) && tables.written_in_vain(3, 5 * 8, 8, false));
        assert!(!tables.written_in_vain(3, 5 * 8 + 4, 4, true), "a walk came by it");
        assert!(!tables.written_in_vain(0, 6 * 8, 8, true), "a top table");
        assert_eq!(tables.written(3, 6 * 8, 8, true), Written::Nothing);
        assert!(matches!(tables.written(3, 5 * 8, 8, true), Written::Range(_)));
        assert_eq!(tables.written(3, 5 * 8, 8, true), Written::Nothing, "no walk has come by it since");
        let stores = (4..).take_while(|_| tables.written_in_vain(3, 6 * 8, 8, true)).last();
        assert!(stores < Some(PATIENCE), "it is retired in time");
    }

    #[test]
    fn a_table_found_elsewhere_gives_up_what_it_translated() {
        let mut tables = Tables::default();
        assert_eq!(tables.note(7, 0x1000, Some(3), 0x9000), None);
        assert_eq!(tables.note(7, 0x1f_f000, Some(3), 0x8000), None);
        let old = |virt| Range { virt, pages: 1, root: None, top: false };
        assert_eq!(tables.note(7, 0x20_1000, Some(3), 0x8000), Some(vec![old(0x1000), old(0x1f_f000)]));
        let entry = Range { virt: 0x20_1000, pages: 1, root: Some(0x8000), top: false };
        assert_eq!(tables.written(7, 8, 8, true), Written::Range(entry));
        tables.note(7, 0, None, 0);
        assert_eq!(tables.written(7, 0, 8, true), Written::Unknown);
        assert_eq!(tables.take(), [7]);
        assert_eq!(tables.written(7, 0, 8, true), Written::Nothing);
    }

    #[test]
    fn a_table_that_comes_back_is_given_more_time() {
        let mut tables = Tables::default();
        let mut stores_until_retired = || {
            tables.note(1, 0x40_0000, Some(3), 0);
            (1..).find(|_| matches!(tables.written(1, 8, 8, false), Written::Retire { .. }))
        };
        assert_eq!(stores_until_retired(), Some(8));
        assert_eq!(stores_until_retired(), Some(16));
    }

    #[test]
    fn stores_that_are_made_elsewhere_count_as_well() {
        let mut tables = Tables::default();
        tables.note(1, 0x40_0000, Some(3), 0);
        let (bits, given) = tables.lend(1).unwrap();
        assert_eq!(given, PATIENCE - 1);
        // SAFETY: nobody else has the tables, and there is room for this one.
        assert_eq!(unsafe { *bits }, 1, "a walk came by the first entry");
        tables.made(1, given - 1);
        assert_eq!(tables.lend(1).map(|(_, given)| given), Some(1));
        tables.made(1, 1);
        assert_eq!(tables.lend(1), None);
        assert!(!tables.written_in_vain(1, 8, 8, false));
        assert!(matches!(tables.written(1, 8, 8, false), Written::Retire { .. }));
        assert_eq!(tables.lend(1), None, "it is none any more");
        tables.note(2, 0, Some(0), 0);
        tables.note(3, 0, None, 0);
        assert!(
            tables.lend(2).is_none() && tables.lend(3).is_none(),
            "a top table, and one of another format"
        );
    }
}
