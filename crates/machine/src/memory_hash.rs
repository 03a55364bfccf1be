//! A hash of guest memory that costs as much as was written, and the ledger of pages written.
//!
//! [`Ram`] has one set of dirty pages, and two parties want to know what changed: the state hash
//! and checkpoints. The ledger ends epochs and remembers for each party what it has not seen.
//!
//! The hash is a tree: page hashes (XXH3, 16 bytes), hashes of 256 page hashes, and a root over
//! those (BLAKE3). A page of zeros that was never written costs nothing.
//!
//! A page's hash need not withstand anybody who makes two pages alike on purpose. It tells whether a
//! replay does what the recording did, and whoever makes a recording says what its hashes are anyway;
//! a guest that could make two states look alike would hide a fault of ours from us and nothing else.
//! (What names a page of a checkpoint is another matter, and another hash.) The thread that runs the
//! guest takes the hash, and XXH3 goes as fast as memory is read, BLAKE3 a sixth of that.

use base::PAGE_SIZE;
use memory::Ram;
use twox_hash::XxHash3_128;

/// A page's XXH3 hash, or a BLAKE3 hash cut to half.
type Short = [u8; 16];

const GROUP: usize = 256;

/// A set of page indexes that can be drained in order.
#[derive(Clone, Debug, Default)]
struct Pages {
    bits: Vec<u64>,
}

impl Pages {
    fn insert(&mut self, page: usize) {
        if self.bits.len() <= page / 64 {
            self.bits.resize(page / 64 + 1, 0);
        }
        self.bits[page / 64] |= 1 << (page % 64);
    }

    fn drain(&mut self) -> Vec<u32> {
        let mut pages = Vec::new();
        for (i, word) in self.bits.iter_mut().enumerate() {
            while *word != 0 {
                pages.push(i as u32 * 64 + word.trailing_zeros());
                *word &= *word - 1;
            }
        }
        pages
    }
}

/// Hashes of pages, and which pages have changed since when.
pub struct MemoryHash {
    leaves: Vec<Short>,
    groups: Vec<Short>,
    unhashed: Pages,
    unsaved: Pages,
}

fn short(hash: blake3::Hash) -> Short {
    let mut cut = [0; 16];
    cut.copy_from_slice(&hash.as_bytes()[..16]);
    cut
}

fn page_hash(page: &[u8; PAGE_SIZE]) -> Short {
    XxHash3_128::oneshot(page).to_le_bytes()
}

fn group_hash(leaves: &[Short]) -> Short {
    short(blake3::hash(leaves.as_flattened()))
}

impl MemoryHash {
    /// For a fresh `ram`: zeros, but for the pages dirty in its current epoch.
    pub fn new(ram: &Ram) -> Self {
        let zero = page_hash(&[0; PAGE_SIZE]);
        let leaves = vec![zero; ram.pages()];
        let whole = group_hash(&[zero; GROUP]);
        let groups = leaves
            .chunks(GROUP)
            .map(|chunk| if chunk.len() == GROUP { whole } else { group_hash(chunk) })
            .collect();
        Self { leaves, groups, unhashed: Pages::default(), unsaved: Pages::default() }
    }

    /// Takes the pages written in this epoch into the ledger and begins a new epoch.
    pub fn collect(&mut self, ram: &mut Ram) {
        for page in ram.dirty_pages() {
            self.unhashed.insert(*page as usize);
            self.unsaved.insert(*page as usize);
        }
        ram.begin_epoch();
    }

    /// Pages written since the last call, in order: what a checkpoint has to keep.
    pub fn take_changed(&mut self, ram: &mut Ram) -> Vec<u32> {
        self.collect(ram);
        self.unsaved.drain()
    }

    /// The hash of all of memory as it is now.
    pub fn hash(&mut self, ram: &mut Ram) -> [u8; 32] {
        self.collect(ram);
        let mut group = usize::MAX;
        for page in self.unhashed.drain() {
            let page = page as usize;
            if page / GROUP != group && group != usize::MAX {
                self.rehash_group(group);
            }
            group = page / GROUP;
            self.leaves[page] = page_hash(ram.page_bytes(page));
        }
        if group != usize::MAX {
            self.rehash_group(group);
        }
        let mut root = blake3::Hasher::new();
        root.update(&ram.size().to_le_bytes());
        root.update(self.groups.as_flattened());
        *root.finalize().as_bytes()
    }

    fn rehash_group(&mut self, group: usize) {
        let end = (group * GROUP + GROUP).min(self.leaves.len());
        self.groups[group] = group_hash(&self.leaves[group * GROUP..end]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::GuestPhys;

    #[test]
    fn the_hash_depends_on_contents_and_not_on_the_way_there() {
        let mut ram = Ram::new(0x30_1000).unwrap();
        let mut hash = MemoryHash::new(&ram);
        let zero = hash.hash(&mut ram);
        assert!(ram.write(GuestPhys(0x30_0ff0), b"tail"));
        assert!(ram.write(GuestPhys(0x1000), b"head"));
        let both = hash.hash(&mut ram);
        assert_ne!(zero, both);

        let mut other = Ram::new(0x30_1000).unwrap();
        assert!(other.write(GuestPhys(0x1000), b"head"));
        let mut other_hash = MemoryHash::new(&other);
        assert_ne!(other_hash.hash(&mut other), both);
        assert!(other.write(GuestPhys(0x30_0ff0), b"tail"));
        assert_eq!(other_hash.hash(&mut other), both);

        assert!(ram.write(GuestPhys(0x30_0ff0), &[0; 4]));
        assert!(ram.write(GuestPhys(0x1000), &[0; 4]));
        assert_eq!(hash.hash(&mut ram), zero);
    }

    #[test]
    fn hashing_does_not_hide_changes_from_checkpoints() {
        let mut ram = Ram::new(0x10_0000).unwrap();
        let mut hash = MemoryHash::new(&ram);
        assert!(ram.write(GuestPhys(0x5000), &[1]));
        hash.hash(&mut ram);
        assert!(ram.write(GuestPhys(0x2000), &[1]));
        hash.hash(&mut ram);
        assert_eq!(hash.take_changed(&mut ram), [2, 5]);
        assert!(hash.take_changed(&mut ram).is_empty());
    }
}
