//! A persistent tree from block numbers to what the run made of them.
//!
//! ```text
//!              root            level 3: covers 16^3 blocks
//!          /    |    \
//!       Base   Node   Zero     level 2: a whole subtree may be untouched or discarded
//!             / | \
//!         Node  …  Base        level 1
//!        / | \
//!    Block … Base              level 0: one block each
//! ```
//!
//! Nodes are shared: copying the tree copies its root, and changing a block copies the nodes on
//! the way to it if anyone else still holds them. Two versions are compared by walking only where
//! their pointers differ, and each node remembers the hash of what is below it, so both a
//! difference and a content hash cost what has changed.
//!
//! The shape is canonical: a node whose children are all `Base` or all `Zero` never exists, so
//! equal contents made of the same kinds of blocks have equal hashes, whatever the history.

use crate::{Block, DiskError};
use std::sync::{Arc, OnceLock};

const FAN_BITS: u32 = 4;
const FAN: usize = 1 << FAN_BITS;

/// What a block, or a whole subtree, is.
#[derive(Clone)]
pub(crate) enum Slot {
    /// As in the image.
    Base,
    /// Discarded: zeros.
    Zero,
    /// Written (level 0 only).
    Block(Arc<Block>),
    /// Mixed (levels above 0 only).
    Node(Arc<Node>),
}

#[derive(Clone)]
pub(crate) struct Node {
    children: [Slot; FAN],
    hash: OnceLock<blake3::Hash>,
}

impl Slot {
    fn same(&self, other: &Slot) -> bool {
        match (self, other) {
            (Slot::Base, Slot::Base) | (Slot::Zero, Slot::Zero) => true,
            (Slot::Block(a), Slot::Block(b)) => Arc::ptr_eq(a, b),
            (Slot::Node(a), Slot::Node(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// The child `i` of a slot above level 0.
    fn child(&self, i: usize) -> &Slot {
        match self {
            Slot::Node(node) => &node.children[i],
            uniform => uniform,
        }
    }

    /// The node of a slot above level 0, made if there was none, unshared, its hash forgotten.
    fn node_mut(&mut self) -> &mut Node {
        if !matches!(self, Slot::Node(_)) {
            let children = std::array::from_fn(|_| self.clone());
            *self = Slot::Node(Arc::new(Node { children, hash: OnceLock::new() }));
        }
        let Slot::Node(node) = self else { unreachable!("just made") };
        let node = Arc::make_mut(node);
        node.hash = OnceLock::new();
        node
    }

    /// Replaces a node whose children are all the same uniform slot by that slot.
    fn collapse(&mut self) {
        let Slot::Node(node) = self else { return };
        let first = &node.children[0];
        let uniform = matches!(first, Slot::Base | Slot::Zero);
        if uniform && node.children.iter().all(|child| child.same(first)) {
            *self = first.clone();
        }
    }

    fn digest(&self, hasher: &mut blake3::Hasher) -> Result<(), DiskError> {
        match self {
            Slot::Base => hasher.update(&[0]),
            Slot::Zero => hasher.update(&[1]),
            Slot::Block(block) => hasher.update(&[2]).update(block.hash()?.as_bytes()),
            Slot::Node(node) => hasher.update(&[3]).update(node.hash()?.as_bytes()),
        };
        Ok(())
    }
}

impl Node {
    fn hash(&self) -> Result<blake3::Hash, DiskError> {
        if let Some(hash) = self.hash.get() {
            return Ok(*hash);
        }
        let mut hasher = blake3::Hasher::new();
        for child in &self.children {
            child.digest(&mut hasher)?;
        }
        Ok(*self.hash.get_or_init(|| hasher.finalize()))
    }
}

/// The tree. Cloning is cheap and gives an independent version.
#[derive(Clone)]
pub(crate) struct Tree {
    root: Slot,
    levels: u32,
}

impl Tree {
    /// A tree for `blocks` blocks, all as in the image.
    pub(crate) fn new(blocks: u64) -> Self {
        let mut levels = 1;
        while levels * FAN_BITS < u64::BITS && blocks > 1 << (levels * FAN_BITS) {
            levels += 1;
        }
        Self { root: Slot::Base, levels }
    }

    fn digit(block: u64, level: u32) -> usize {
        (block >> ((level - 1) * FAN_BITS)) as usize & (FAN - 1)
    }

    /// What block number `block` is: never a node.
    pub(crate) fn get(&self, block: u64) -> &Slot {
        let mut slot = &self.root;
        for level in (1..=self.levels).rev() {
            slot = match slot {
                Slot::Node(node) => &node.children[Self::digit(block, level)],
                uniform => return uniform,
            };
        }
        slot
    }

    /// The slot of block number `block`, for putting a written block there.
    pub(crate) fn leaf_mut(&mut self, block: u64) -> &mut Slot {
        let mut slot = &mut self.root;
        for level in (1..=self.levels).rev() {
            slot = &mut slot.node_mut().children[Self::digit(block, level)];
        }
        slot
    }

    /// Makes `count` blocks from `first` on `Base` or `Zero`.
    pub(crate) fn fill(&mut self, first: u64, count: u64, with: &Slot) {
        debug_assert!(matches!(with, Slot::Base | Slot::Zero));
        if count > 0 {
            fill(&mut self.root, self.levels, 0, (first, first + count), with);
        }
    }

    /// Calls `visit(first, count, slot)` in ascending order for everything that differs from `old`;
    /// the slot is what it is in this tree.
    pub(crate) fn diff(&self, old: &Tree, visit: &mut dyn FnMut(u64, u64, &Slot)) {
        assert_eq!(self.levels, old.levels, "versions of the same disk");
        diff(&old.root, &self.root, self.levels, 0, visit);
    }

    /// A hash of everything that differs from the image.
    pub(crate) fn hash(&self) -> Result<blake3::Hash, DiskError> {
        let mut hasher = blake3::Hasher::new();
        self.root.digest(&mut hasher)?;
        Ok(hasher.finalize())
    }
}

/// Fills the part of `range` that lies below `slot`, which covers 16^level blocks from `start` on.
fn fill(slot: &mut Slot, level: u32, start: u64, range: (u64, u64), with: &Slot) {
    let span = span(level);
    if slot.same(with) {
        return;
    }
    if range.0 <= start && start.saturating_add(span) <= range.1 {
        *slot = with.clone();
        return;
    }
    let child_span = span >> FAN_BITS;
    let node = slot.node_mut();
    for (i, child) in node.children.iter_mut().enumerate() {
        let child_start = start + i as u64 * child_span;
        if child_start < range.1 && range.0 < child_start.saturating_add(child_span) {
            fill(child, level - 1, child_start, range, with);
        }
    }
    slot.collapse();
}

fn diff(old: &Slot, new: &Slot, level: u32, start: u64, visit: &mut dyn FnMut(u64, u64, &Slot)) {
    if old.same(new) {
        return;
    }
    let mixed = matches!(old, Slot::Node(_)) || matches!(new, Slot::Node(_));
    if !mixed {
        visit(start, span(level), new);
        return;
    }
    let child_span = span(level) >> FAN_BITS;
    for i in 0..FAN {
        diff(old.child(i), new.child(i), level - 1, start + i as u64 * child_span, visit);
    }
}

/// Blocks below a slot of `level`. At most 2^52 blocks exist (2^64 bytes), so this cannot overflow.
fn span(level: u32) -> u64 {
    1 << (level * FAN_BITS)
}
