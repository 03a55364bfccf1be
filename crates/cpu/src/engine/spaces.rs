//! Generations: what tells the cached translations of one address space from another's.
//!
//! An entry of a tagged table holds its page's address plus a generation in the low 12 bits. The
//! current address space's generation is what searches compare with, so entering another space
//! changes a number, and coming back finds everything still there: the TLB is coherent, so it is
//! still right. Dropping everything of a kind gives out new numbers; when they run out, the tables
//! are wiped and numbering begins anew.
//!
//! A generation also says which way of a table its entries are in. Programs that take turns, and have
//! the same addresses because one was forked from the other, would throw out each other's entries if
//! they shared one, so a space gets a generation whose way none of those has that ran last.
//!
//! An address space is known by the physical address of its top page table. Whether the guest
//! tags it with a PCID makes no difference.

use super::hot::{SPILL_WAYS, spill_way};

/// What is cached, and dropped, apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read = 0,
    Write = 1,
    Code = 2,
}

/// All of them.
pub const KINDS: [Kind; 3] = [Kind::Read, Kind::Write, Kind::Code];
/// Generations run from 1 to this; 0 stands for none.
const GENERATION_MAX: u64 = 0xfff;
/// Address spaces remembered at once.
const SPACES_MAX: usize = 64;
/// No table's address.
const NO_ROOT: u64 = u64::MAX;

struct Space {
    root: u64,
    generation: [u64; 3],
    /// See [`Spaces::shown`].
    shown: [Vec<u64>; 2],
    /// When it was last entered.
    entered: u64,
}

impl Space {
    fn new(root: u64, generation: [u64; 3]) -> Self {
        Self { root, generation, shown: Default::default(), entered: 0 }
    }
}

/// The address spaces with cached translations.
pub struct Spaces {
    list: Vec<Space>,
    current: usize,
    /// The one to be forgotten next when there are too many.
    oldest: usize,
    /// Generations of the kernel's own set, which serves all spaces.
    kernel: [u64; 3],
    last: [u64; 3],
    /// How often a space was entered.
    entries: u64,
}

impl Spaces {
    /// One space, of no page tables.
    pub fn new() -> Self {
        let nowhere = Space::new(NO_ROOT, [2; 3]);
        Self { list: vec![nowhere], current: 0, oldest: 0, kernel: [1; 3], last: [2; 3], entries: 0 }
    }

    /// The current space's.
    pub fn current_root(&self) -> u64 {
        self.list[self.current].root
    }

    /// Virtual pages of code to be looked for as soon as the current space is entered again: what ran not
    /// mirrored, and mirrored.
    pub fn shown(&mut self) -> &mut [Vec<u64>; 2] {
        &mut self.list[self.current].shown
    }

    /// The generation that entries of a mode set have now.
    pub fn generation(&self, set: usize, kind: Kind) -> u64 {
        if set == 0 { self.kernel[kind as usize] } else { self.list[self.current].generation[kind as usize] }
    }

    /// The generation that a space's entries have, by its top table; `None` if it has none that are
    /// still good.
    pub fn generation_of(&self, root: u64, kind: Kind) -> Option<u64> {
        let space = self.list.iter().find(|space| space.root == root)?;
        Some(space.generation[kind as usize]).filter(|generation| *generation != 0)
    }

    /// Whether a space has this generation, so that its entries of a kind are good.
    pub fn is_good(&self, generation: u64, kind: Kind) -> bool {
        self.list.iter().any(|space| space.generation[kind as usize] == generation)
    }

    /// Makes a space the current one; the kinds of tables to be wiped, if numbers ran out.
    pub fn enter(&mut self, root: u64) -> Vec<Kind> {
        self.current = match self.list.iter().position(|space| space.root == root) {
            Some(known) => known,
            None if self.list.len() < SPACES_MAX => {
                self.list.push(Space::new(root, [0; 3]));
                self.list.len() - 1
            }
            None => {
                self.oldest = (self.oldest + 1) % SPACES_MAX;
                self.list[self.oldest] = Space::new(root, [0; 3]);
                self.oldest
            }
        };
        self.entries += 1;
        self.list[self.current].entered = self.entries;
        KINDS.into_iter().filter(|kind| self.number_current(*kind)).collect()
    }

    /// Drops everything of one space; the kinds of tables to be wiped, if numbers ran out.
    pub fn forget(&mut self, root: u64) -> Vec<Kind> {
        if let Some(space) = self.list.iter_mut().find(|space| space.root == root) {
            space.generation = [0; 3];
        }
        KINDS.into_iter().filter(|kind| self.number_current(*kind)).collect()
    }

    /// Gives the current space and the kernel's set new generations of a kind, and takes all other
    /// spaces' away. Whether the tables are to be wiped.
    pub fn renew(&mut self, kind: Kind) -> bool {
        self.list.iter_mut().for_each(|space| space.generation[kind as usize] = 0);
        self.kernel[kind as usize] = 0;
        self.number_current(kind)
    }

    /// Numbers what has no number; true if all numbering began anew.
    fn number_current(&mut self, kind: Kind) -> bool {
        let k = kind as usize;
        if self.kernel[k] != 0 && self.list[self.current].generation[k] != 0 {
            return false;
        }
        let wipe = self.last[k] + 1 + SPILL_WAYS as u64 > GENERATION_MAX;
        if wipe {
            self.list.iter_mut().for_each(|space| space.generation[k] = 0);
            (self.kernel[k], self.last[k]) = (0, 0);
        }
        if self.kernel[k] == 0 {
            self.last[k] += 1;
            self.kernel[k] = self.last[k];
        }
        if self.list[self.current].generation[k] == 0 {
            let taken = self.ways_taken(k);
            let free = |number: &u64| !taken[spill_way(*number)];
            self.last[k] = (self.last[k] + 1..).find(free).expect("one way is free");
            self.list[self.current].generation[k] = self.last[k];
        }
        wipe
    }

    /// The ways of the spaces that were entered last, as many as leave one free.
    fn ways_taken(&self, k: usize) -> [bool; SPILL_WAYS] {
        let mut taken = [false; SPILL_WAYS];
        let mut before = u64::MAX;
        for _ in 1..SPILL_WAYS {
            let numbered =
                self.list.iter().filter(|space| space.generation[k] != 0 && space.entered < before);
            let Some(latest) = numbered.max_by_key(|space| space.entered) else { break };
            taken[spill_way(latest.generation[k])] = true;
            before = latest.entered;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_found_again_until_everything_is_renewed() {
        let mut spaces = Spaces::new();
        assert!(spaces.enter(0x1000).is_empty());
        let first = spaces.generation(2, Kind::Read);
        spaces.enter(0x2000);
        assert_ne!(spaces.generation(2, Kind::Read), first);
        let kernel = spaces.generation(0, Kind::Read);
        spaces.enter(0x1000);
        assert_eq!(spaces.generation(2, Kind::Read), first);
        assert_eq!(spaces.generation(0, Kind::Read), kernel);
        assert!(!spaces.renew(Kind::Read));
        assert_ne!(spaces.generation(2, Kind::Read), first);
        assert_ne!(spaces.generation(0, Kind::Read), kernel);
    }

    #[test]
    fn programs_that_take_turns_have_ways_of_their_own() {
        let mut spaces = Spaces::new();
        for n in 1..1000_u64 {
            spaces.enter((n % 3 + 1) << 12);
            if n % 5 == 0 {
                spaces.forget((n % 3 + 1) << 12);
            }
            let ways =
                (1..=3_u64).filter_map(|root| spaces.generation_of(root << 12, Kind::Write)).map(spill_way);
            let distinct: std::collections::HashSet<_> = ways.clone().collect();
            assert_eq!(distinct.len(), ways.count(), "after {n}");
        }
    }

    #[test]
    fn no_number_is_given_twice_without_a_wipe() {
        let mut spaces = Spaces::new();
        let mut seen = std::collections::HashSet::new();
        for n in 0..20_000_u64 {
            let wiped = spaces.enter((n % 100) << 12).contains(&Kind::Code);
            let renewed = n % 7 == 0 && spaces.renew(Kind::Code);
            if wiped || renewed {
                seen.clear();
            }
            let number = spaces.generation(1, Kind::Code);
            assert!((1..=GENERATION_MAX).contains(&number));
            assert_ne!(number, spaces.generation(0, Kind::Code));
            // The same number only for the same space, and until the next renewal.
            if n % 7 == 0 {
                assert!(seen.insert(number), "{number} at {n}");
            }
        }
    }
}
