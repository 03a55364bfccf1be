//! Where blocks are found: by their keys, and by their keys but for the address.
//!
//! A program that starts has its blocks looked for at ever new addresses, most of which are not there: that takes
//! one look at a table that is four bytes and a tag for each block. What is there at other addresses is
//! looked for by the *place*. The blocks of one place are a ring, each followed by the next newer one and the
//! newest by the oldest, so that both ends are at hand and the oldest is replaced without walking along.

use super::blocks::{Block, BlockId, BlockKey, BuildMix};
use hashbrown::HashTable;
use std::hash::BuildHasher;

/// See the module's head. The blocks are the caller's.
pub struct Places {
    by_key: HashTable<BlockId>,
    /// The newest block of each place.
    newest: HashTable<BlockId>,
}

impl BlockKey {
    /// Whether it differs in no more than the address.
    fn same_place(&self, other: &BlockKey) -> bool {
        BlockKey { virt: other.virt, ..*self } == *other
    }

    fn place(&self) -> u64 {
        // Physical addresses have 52 bits at most, modes 21.
        let rest = u64::from(self.mode.0) << 8 | u64::from(self.limit) << 1 | u64::from(self.shares);
        self.phys ^ rest.rotate_right(12)
    }

    fn place_hash(&self) -> u64 {
        BuildMix.hash_one(self.place())
    }

    fn hash_of_all(&self) -> u64 {
        BuildMix.hash_one((self.place(), self.virt))
    }
}

impl Places {
    /// With room for so many blocks.
    pub fn new(expected: usize) -> Self {
        Self { by_key: HashTable::with_capacity(expected), newest: HashTable::with_capacity(expected) }
    }

    /// The block of that key.
    pub fn find(&self, list: &[Block], key: &BlockKey) -> Option<BlockId> {
        self.by_key.find(key.hash_of_all(), |id| key_of(list, *id) == key).copied()
    }

    /// The newest block of that key but for the address.
    pub fn newest(&self, list: &[Block], key: &BlockKey) -> Option<BlockId> {
        self.newest.find(key.place_hash(), |id| key_of(list, *id).same_place(key)).copied()
    }

    /// The oldest block of the key's place, and how many there are.
    pub fn oldest(&self, list: &[Block], key: &BlockKey) -> Option<(BlockId, usize)> {
        let newest = &list[self.newest(list, key)?.0 as usize];
        Some((newest.next, newest.alike as usize))
    }

    /// Has block `id`, the newest of its place, found.
    pub fn add(&mut self, list: &mut [Block], id: BlockId) {
        let key = *key_of(list, id);
        let place = |id: &BlockId| key_of(list, *id).place_hash();
        let whole = |id: &BlockId| key_of(list, *id).hash_of_all();
        self.by_key.insert_unique(key.hash_of_all(), id, whole);
        let same_place = |other: &BlockId| key_of(list, *other).same_place(&key);
        match self.newest.find_mut(key.place_hash(), same_place) {
            Some(newest) => {
                let before = std::mem::replace(newest, id).0 as usize;
                let oldest = std::mem::replace(&mut list[before].next, id);
                let alike = list[before].alike.saturating_add(1);
                let block = &mut list[id.0 as usize];
                (block.next, block.alike) = (oldest, alike);
            }
            None => {
                self.newest.insert_unique(key.place_hash(), id, place);
                let block = &mut list[id.0 as usize];
                (block.next, block.alike) = (id, 1);
            }
        }
    }

    /// Has block `id` found no more.
    pub fn remove(&mut self, list: &mut [Block], id: BlockId) {
        let key = *key_of(list, id);
        let Ok(entry) = self.by_key.find_entry(key.hash_of_all(), |other| *other == id) else { return };
        entry.remove();
        let same_place = |other: &BlockId| key_of(list, *other).same_place(&key);
        let Ok(mut entry) = self.newest.find_entry(key.place_hash(), same_place) else { return };
        let newest = *entry.get();
        let mut before = newest;
        while list[before.0 as usize].next != id {
            before = list[before.0 as usize].next;
        }
        if before == id {
            entry.remove();
            return;
        }
        list[before.0 as usize].next = list[id.0 as usize].next;
        let alike = list[newest.0 as usize].alike - 1;
        if newest == id {
            *entry.get_mut() = before;
        }
        list[entry.get().0 as usize].alike = alike;
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.by_key.clear();
        self.newest.clear();
    }
}

fn key_of(list: &[Block], id: BlockId) -> &BlockKey {
    &list[id.0 as usize].key
}
