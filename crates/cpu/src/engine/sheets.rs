//! Where blocks are found: by their keys, and by the sheet that they are on.
//!
//! A *sheet* is what has been translated of one physical page as it is seen at one virtual page, in one mode.
//! Programs that map the same file have sheets of the same physical pages, each at addresses of its own: from
//! one sheet blocks are copied to another ([`super::copies`]), and a whole one is slid to the addresses of the next
//! program ([`super::slides`]).
//!
//! Blocks are found by one look at a table that is four bytes and a tag for each. It goes by all of a key but the
//! address, so blocks of a few sheets are looked at together, and a sheet that is slid leaves the table as it is.

use super::blocks::{Block, BlockId, BlockKey, BuildMix, Mode};
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// Sheets of a page in a mode. One more takes over the oldest: the more there may be, the sooner programs that
/// start again and again fill the code cache. As long as there are fewer, a program that finds that its own has
/// been taken gets copies: it lives beside the other.
const SHEETS_MAX: usize = 6;
/// Sheets that have been taken over and are known to have been there.
const EMPTY_MAX: usize = 8;

/// Blocks by their keys. The blocks are the caller's.
pub struct Keys(HashTable<BlockId>);

impl BlockKey {
    /// Of all but the address.
    fn hash(&self) -> u64 {
        // Physical addresses have 52 bits at most, modes 21.
        let rest = u64::from(self.mode.0) << 8 | u64::from(self.limit) << 1 | u64::from(self.shares);
        BuildMix.hash_one(self.phys ^ rest.rotate_right(12))
    }
}

impl Keys {
    /// With room for so many blocks.
    pub fn new(expected: usize) -> Self {
        Self(HashTable::with_capacity(expected))
    }

    /// The block of that key.
    pub fn find(&self, list: &[Block], key: &BlockKey) -> Option<BlockId> {
        self.0.find(key.hash(), |id| list[id.0 as usize].key == *key).copied()
    }

    /// Has block `id` found.
    pub fn add(&mut self, list: &[Block], id: BlockId) {
        let hash = |id: &BlockId| list[id.0 as usize].key.hash();
        self.0.insert_unique(hash(&id), id, hash);
    }

    /// Has block `id` found no more.
    pub fn remove(&mut self, list: &[Block], id: BlockId) {
        let hash = list[id.0 as usize].key.hash();
        if let Ok(entry) = self.0.find_entry(hash, |other| *other == id) {
            entry.remove();
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// See the module's head.
pub struct Sheet {
    pub virt_page: u64,
    pub mode: Mode,
    /// Blocks that begin there, some of which may be dead. None if another program has taken it over.
    pub blocks: Vec<BlockId>,
}

/// Who has use for a sheet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// It may be running.
    Now,
    /// A program has the page where it is.
    Later,
    /// None does, as far as is known.
    LeftBehind,
}

/// What has been translated of a physical page.
#[derive(Default)]
pub struct CodePage {
    /// One bit per 64 bytes that some block covers.
    pub lines: u64,
    /// The oldest first.
    sheets: Vec<Sheet>,
    /// Blocks of another page that reach into this one.
    pub reaching: Vec<BlockId>,
}

impl CodePage {
    fn known(&self, virt_page: u64, mode: Mode) -> Option<usize> {
        self.sheets.iter().rposition(|sheet| sheet.virt_page == virt_page && sheet.mode == mode)
    }

    /// The sheet at a virtual page, made if need be. One without blocks is as new.
    pub fn sheet(&mut self, virt_page: u64, mode: Mode) -> &mut Sheet {
        let known = self.known(virt_page, mode);
        let at = known.filter(|at| !self.sheets[*at].blocks.is_empty()).unwrap_or_else(|| {
            known.inspect(|at| drop(self.sheets.remove(*at)));
            self.sheets.push(Sheet { virt_page, mode, blocks: Vec::new() });
            self.sheets.len() - 1
        });
        &mut self.sheets[at]
    }

    /// All of them.
    pub fn sheets(&self) -> &[Sheet] {
        &self.sheets
    }

    /// The virtual pages of a mode's sheets that have blocks, the newest first.
    pub fn places(&self, mode: Mode) -> impl Iterator<Item = u64> {
        let filled = move |sheet: &&Sheet| sheet.mode == mode && !sheet.blocks.is_empty();
        self.sheets.iter().rev().filter(filled).map(|sheet| sheet.virt_page)
    }

    /// The blocks of the sheet at a virtual page.
    pub fn blocks_at(&self, virt_page: u64, mode: Mode) -> &[BlockId] {
        self.known(virt_page, mode).map_or(&[], |at| &self.sheets[at].blocks)
    }

    /// Whether there are as many of a mode as may be.
    fn is_full(&self, mode: Mode) -> bool {
        self.places(mode).count() >= SHEETS_MAX
    }

    /// The virtual page of the sheet to take over for another one, where there is none yet or the one there was
    /// has been taken: the newest that is left behind, or, where there are many, the oldest that is not in use.
    pub fn to_take(&self, virt_page: u64, mode: Mode, use_of: impl Fn(u64) -> Use) -> Option<u64> {
        if !self.blocks_at(virt_page, mode).is_empty() {
            return None;
        }
        let left_behind = || self.places(mode).find(|page| use_of(*page) == Use::LeftBehind);
        let oldest = || self.places(mode).filter(|page| use_of(*page) != Use::Now).last();
        match self.known(virt_page, mode) {
            _ if self.is_full(mode) => left_behind().or_else(oldest),
            None => left_behind(),
            Some(_) => None,
        }
    }

    /// The virtual page of the oldest sheet, if one more than these would be too many.
    pub fn too_old(&self, virt_page: u64, mode: Mode) -> Option<u64> {
        let one_more = self.is_full(mode) && self.blocks_at(virt_page, mode).is_empty();
        self.places(mode).last().filter(|_| one_more)
    }

    /// The blocks of a sheet, which has none any more.
    pub fn take(&mut self, virt_page: u64, mode: Mode) -> Vec<BlockId> {
        let Some(at) = self.known(virt_page, mode) else { return Vec::new() };
        let blocks = std::mem::take(&mut self.sheets[at].blocks);
        let mut empty = (0..self.sheets.len()).filter(|at| self.sheets[*at].blocks.is_empty());
        if let (Some(oldest), true) = (empty.next(), empty.count() >= EMPTY_MAX) {
            self.sheets.remove(oldest);
        }
        blocks
    }

    /// Leaves out the blocks, on whichever sheet, that `keep` does not want. True if none is left.
    pub fn retain(&mut self, mut keep: impl FnMut(BlockId) -> bool) -> bool {
        self.sheets.iter_mut().for_each(|sheet| sheet.blocks.retain(|id| keep(*id)));
        self.reaching.retain(|id| keep(*id));
        self.reaching.is_empty() && self.sheets.iter().all(|sheet| sheet.blocks.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODE: Mode = Mode::of_bits(64);

    fn page(sheets: &[u64]) -> CodePage {
        let mut page = CodePage::default();
        sheets.iter().for_each(|virt| page.sheet(*virt, MODE).blocks.push(BlockId(*virt as u32)));
        page
    }

    #[test]
    fn who_comes_anew_takes_what_is_left_behind_and_who_comes_back_only_where_there_are_many() {
        let mut page = page(&[10, 11, 12]);
        let older = |page| if page < 12 { Use::LeftBehind } else { Use::Later };
        assert_eq!(page.to_take(11, MODE, older), None, "it has blocks");
        assert_eq!(page.to_take(13, MODE, older), Some(11));
        assert_eq!(page.to_take(13, MODE, |_| Use::Later), None);
        assert_eq!(page.to_take(13, Mode::of_bits(32), older), None, "another mode");
        let blocks = page.take(11, MODE);
        page.sheet(13, MODE).blocks = blocks;
        assert_eq!(page.to_take(11, MODE, older), None, "taken from one that lives");
        page.sheet(11, MODE).blocks.push(BlockId(1));
        assert_eq!(page.places(MODE).collect::<Vec<_>>(), [11, 13, 12, 10]);
        (14..16).for_each(|virt| page.sheet(virt, MODE).blocks.push(BlockId(2)));
        assert_eq!(page.to_take(16, MODE, |_| Use::Later), Some(10));
        assert_eq!(page.to_take(16, MODE, |page| if page == 10 { Use::Now } else { Use::Later }), Some(12));
        assert_eq!(page.to_take(16, MODE, |_| Use::Now), None);
        assert_eq!((page.too_old(15, MODE), page.too_old(16, MODE)), (None, Some(10)));
    }

    #[test]
    fn what_has_been_taken_is_not_remembered_for_ever() {
        let mut page = page(&[1, 2]);
        for virt in 3..100 {
            let old = page.to_take(virt, MODE, |_| Use::LeftBehind).unwrap();
            let blocks = page.take(old, MODE);
            page.sheet(virt, MODE).blocks = blocks;
            assert!(page.sheets.len() <= 2 + EMPTY_MAX);
        }
        assert!(!page.retain(|id| id == BlockId(1)));
        assert!(page.retain(|_| false));
    }
}
