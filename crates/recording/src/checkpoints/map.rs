//! A page map: which stored page stands at which index of which space.
//!
//! A persistent radix tree: cloning is free, changing a clone copies one path of nodes, and two
//! maps are compared by walking only the nodes they do not share. So a thousand checkpoints cost
//! what changed between them, and the way from any one to any other is found in time proportional
//! to the difference.
//!
//! ```text
//! space ─► root ─► 64 ─► 64 ─► … six levels of 6 bits … ─► leaf: 64 page numbers
//! ```

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// A page in the store, by number; see [`super::store::Store`].
pub(crate) type PageNumber = u32;
/// No page: the index is as it was at power-on.
pub(crate) const ABSENT: PageNumber = u32::MAX;

const BITS: u32 = 6;
const FANOUT: usize = 1 << BITS;
const LEVELS: u32 = 6;
/// Indexes run below this.
pub(crate) const INDEX_END: u64 = 1 << (BITS * LEVELS);

// A leaf is the larger one on purpose: boxing it would cost every look-up another step.
#[allow(clippy::large_enum_variant)]
#[derive(Clone)]
enum Node {
    /// Boxed, so that leaves, of which there are most, stay small.
    Inner(Box<[Option<Arc<Node>>; FANOUT]>),
    Leaf([PageNumber; FANOUT]),
}

impl Node {
    fn empty(level: u32) -> Node {
        if level == 0 {
            Node::Leaf([ABSENT; FANOUT])
        } else {
            Node::Inner(Box::new([const { None }; FANOUT]))
        }
    }
}

fn slot(index: u64, level: u32) -> usize {
    (index >> (BITS * level)) as usize & (FANOUT - 1)
}

/// The map.
#[derive(Clone, Default)]
pub(crate) struct PageMap {
    spaces: BTreeMap<u16, Arc<Node>>,
}

impl PageMap {
    /// Which page stands there.
    pub(crate) fn get(&self, space: u16, index: u64) -> PageNumber {
        let Some(mut node) = self.spaces.get(&space).filter(|_| index < INDEX_END) else { return ABSENT };
        for level in (0..LEVELS).rev() {
            match &**node {
                Node::Leaf(pages) => return pages[slot(index, 0)],
                Node::Inner(children) => match &children[slot(index, level)] {
                    Some(child) => node = child,
                    None => return ABSENT,
                },
            }
        }
        ABSENT
    }

    /// Puts a page there. `index` is below [`INDEX_END`]. Returns how many nodes that took, for
    /// those who count them against a limit.
    pub(crate) fn set(&mut self, space: u16, index: u64, page: PageNumber) -> usize {
        assert!(index < INDEX_END);
        let mut node = self.spaces.entry(space).or_insert_with(|| Arc::new(Node::empty(LEVELS - 1)));
        let mut made = 0;
        for level in (0..LEVELS).rev() {
            made += usize::from(Arc::get_mut(node).is_none());
            match Arc::make_mut(node) {
                Node::Leaf(pages) => {
                    pages[slot(index, 0)] = page;
                    break;
                }
                Node::Inner(children) => {
                    let child = &mut children[slot(index, level)];
                    made += usize::from(child.is_none());
                    node = child.get_or_insert_with(|| Arc::new(Node::empty(level - 1)));
                }
            }
        }
        made
    }

    /// Calls `each(space, index, page here, page in other)` wherever the two maps differ, in order.
    pub(crate) fn differences(
        &self,
        other: &PageMap,
        each: &mut impl FnMut(u16, u64, PageNumber, PageNumber),
    ) {
        let spaces: std::collections::BTreeSet<u16> =
            self.spaces.keys().chain(other.spaces.keys()).copied().collect();
        for space in spaces {
            let (a, b) = (self.spaces.get(&space), other.spaces.get(&space));
            compare(a, b, LEVELS - 1, 0, &mut |index, a, b| each(space, index, a, b));
        }
    }

    /// Calls `each` for every page in the map, possibly repeatedly, skipping what `seen` knows.
    pub(crate) fn mark(&self, seen: &mut Seen, each: &mut impl FnMut(PageNumber)) {
        self.spaces.values().for_each(|root| mark(root, seen, each));
    }
}

/// Nodes already visited by [`PageMap::mark`]; valid while the maps it was used on live.
#[derive(Default)]
pub(crate) struct Seen(HashSet<usize>);

fn mark(node: &Arc<Node>, seen: &mut Seen, each: &mut impl FnMut(PageNumber)) {
    if !seen.0.insert(Arc::as_ptr(node) as usize) {
        return;
    }
    match &**node {
        Node::Leaf(pages) => pages.iter().filter(|&&page| page != ABSENT).for_each(|&page| each(page)),
        Node::Inner(children) => children.iter().flatten().for_each(|child| mark(child, seen, each)),
    }
}

fn compare(
    a: Option<&Arc<Node>>,
    b: Option<&Arc<Node>>,
    level: u32,
    base: u64,
    each: &mut impl FnMut(u64, PageNumber, PageNumber),
) {
    let same = match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (a, b) => a.is_none() && b.is_none(),
    };
    if same {
        return;
    }
    for slot in 0..FANOUT {
        let index = base | (slot as u64) << (BITS * level);
        if level == 0 {
            let (a, b) = (page_in(a, slot), page_in(b, slot));
            if a != b {
                each(index, a, b);
            }
        } else {
            compare(child_of(a, slot), child_of(b, slot), level - 1, index, each);
        }
    }
}

fn page_in(node: Option<&Arc<Node>>, slot: usize) -> PageNumber {
    match node.map(|node| &**node) {
        Some(Node::Leaf(pages)) => pages[slot],
        _ => ABSENT,
    }
}

fn child_of(node: Option<&Arc<Node>>, slot: usize) -> Option<&Arc<Node>> {
    match node.map(|node| &**node) {
        Some(Node::Inner(children)) => children[slot].as_ref(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(a: &PageMap, b: &PageMap) -> Vec<(u16, u64, PageNumber, PageNumber)> {
        let mut found = Vec::new();
        a.differences(b, &mut |space, index, a, b| found.push((space, index, a, b)));
        found
    }

    #[test]
    fn a_clone_differs_only_where_it_was_changed() {
        let mut a = PageMap::default();
        for index in 0..1000 {
            a.set(0, index * 7, index as u32);
        }
        let mut b = a.clone();
        assert!(differences(&a, &b).is_empty());
        b.set(0, 14, 99);
        b.set(3, INDEX_END - 1, 5);
        b.set(0, 21, ABSENT);
        assert_eq!(differences(&a, &b), [(0, 14, 2, 99), (0, 21, 3, ABSENT), (3, INDEX_END - 1, ABSENT, 5)]);
        assert_eq!((a.get(0, 14), b.get(0, 14), b.get(3, INDEX_END - 1), b.get(1, 0)), (2, 99, 5, ABSENT));
        assert_eq!(b.get(0, INDEX_END), ABSENT);
    }

    #[test]
    fn marking_visits_shared_pages_once() {
        let mut a = PageMap::default();
        for index in 0..640 {
            a.set(0, index, index as u32);
        }
        let mut b = a.clone();
        b.set(0, 0, 1000);
        let (mut seen, mut count) = (Seen::default(), 0);
        a.mark(&mut seen, &mut |_| count += 1);
        b.mark(&mut seen, &mut |_| count += 1);
        assert_eq!(count, 640 + 64, "only the changed leaf is visited again");
    }
}
