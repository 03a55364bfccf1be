//! Blocks copied for another address.
//!
//! Programs that map the same file have the same physical pages, each at addresses of its own, as the
//! kernel places programs and libraries at random. Their code differs only in what follows from those
//! addresses, so a block that has been translated once is copied for the next program, and what depends
//! on its place is mended (see [`super::moves`]). That takes a fifth of the time of translating it.
//!
//! Jumps between blocks do not come along: a copy begins with none linked. But from a block that a program
//! comes to it will go on as the one before did. So the blocks of the same page that can be reached from it by
//! direct jumps are copied at once, and linked; a program that starts would leave translated code at each
//! of these jumps.
//!
//! Where a page has been translated for several addresses already, nothing is copied: all its blocks for one of these go
//! to the new one (see [`super::slides`]), and programs that start again and again do not fill the code cache.
//!
//! What translation decides by the address itself need not come out the same in a copy. So only whole blocks
//! of 64-bit programs are copied; blocks of mirrored code only if their addresses can be claimed, and if
//! none of their instructions is to be checked there; and none while a debugger has breakpoints.
//! The oracle's tests hold all of their blocks' copies against translations (see [`super::compare`]).

use super::arena::Arena;
use super::blocks::{
    Block, BlockId, BlockKey, Blocks, BuildMix, DecodedId, Exit, ExitId, ExitKind, Incoming, Mode, OUT,
    PageId,
};
use super::entered::is_open;
use super::hot::{CODE_SLOTS, Field, code_slot, tlb_entries};
use super::mirror::Mirror;
use super::moves::{Kind, Moves, is_movable};
use super::vcpu::Vcpu;
use crate::marks::mark;
use base::PAGE_SIZE;
use smallvec::SmallVec;
use std::collections::HashSet;

/// Blocks brought together.
const TOGETHER_MAX: usize = 48;
/// What an address has beyond its page's.
const OFFSET: u64 = PAGE_SIZE as u64 - 1;

/// What blocks of mirrored code at other addresses have to ask for.
pub(super) struct Permits<'a> {
    pub mirror: &'a mut Mirror,
    /// Instructions that are translated with a check.
    pub checked: &'a HashSet<u64, BuildMix>,
}

impl Permits<'_> {
    /// Whether one of the instructions at these addresses is translated with a check.
    pub fn has_checked(&self, mut addresses: impl Iterator<Item = u64>) -> bool {
        !self.checked.is_empty() && addresses.any(|virt| self.checked.contains(&virt))
    }

    pub fn allow(&mut self, blocks: &Blocks, id: BlockId, moves: Moves, arena: &Arena, slide: u64) -> bool {
        let block = blocks.get(id);
        if !block.key.mode.has(Mode::MIRRORED) {
            return true;
        }
        if self.has_checked((0..block.count).map(|k| blocks.virt_of(id, k).wrapping_add(slide))) {
            return false;
        }
        let start = block.checked - OUT;
        let mut addresses = moves.code().filter(|(_, kind)| *kind == Kind::Virt);
        addresses.all(|(at, _)| {
            let bytes = arena.code_at(start + at, 8).try_into().expect("eight bytes");
            self.mirror.claim(u64::from_le_bytes(bytes).wrapping_add(slide))
        })
    }
}

/// By how much a block's parts are away from their copies.
#[derive(Default)]
pub(super) struct Distance {
    code: u32,
    cold: u32,
    /// Where cold parts begin.
    boundary: u32,
    exit: u32,
}

impl Distance {
    /// Where the copy has what is at a host address of the block's; 0 is no address.
    fn of(&self, address: u32) -> u32 {
        match address {
            0 => 0,
            cold if cold >= self.boundary => cold.wrapping_add(self.cold),
            code => code.wrapping_add(self.code),
        }
    }
}

/// Where a block comes from that settles in this cache.
pub(super) struct Origin<'a> {
    /// Where its code and its cold part were.
    pub parts: [u32; 2],
    pub moves: Moves<'a>,
    /// By how much its guest address has changed.
    pub slide: u64,
    /// That of its page where it is now.
    pub page_id: PageId,
}

impl Blocks {
    /// Copies block `id` for `key`, which is of the same guest bytes at another address; `page_id` is
    /// that of its page there. `None` if it cannot be copied, or there is no room.
    fn copy(
        &mut self,
        arena: &mut Arena,
        id: BlockId,
        key: BlockKey,
        page_id: PageId,
        permits: &mut Permits,
    ) -> Option<BlockId> {
        if self.get(id).second_page.is_some() {
            return None;
        }
        let notes = std::mem::take(&mut self.notes);
        let copy = self.moves_of(&notes, id).and_then(|moves| {
            let slide = key.virt.wrapping_sub(self.get(id).key.virt);
            let may = permits.allow(self, id, moves, arena, slide) && self.has_room();
            may.then(|| {
                self.copy_as(arena, id, key, &Origin { parts: self.starts_of(id), moves, slide, page_id })
            })
        });
        self.notes = notes;
        copy
    }

    /// How a block is copied for other addresses, if it can be; `notes` are all blocks'.
    pub(super) fn moves_of<'a>(&self, notes: &'a [u8], id: BlockId) -> Option<Moves<'a>> {
        let (at, len) = self.get(id).notes;
        Moves::of(&notes[at as usize..][..usize::from(len)])
    }

    fn copy_as(&mut self, arena: &mut Arena, id: BlockId, key: BlockKey, origin: &Origin) -> BlockId {
        let (to, to_cold) = self.next_addresses();
        let block = self.get(id);
        let [start, cold] = origin.parts;
        arena.copy_code(start, to, (block.end - start) as usize);
        arena.copy_code(cold, to_cold, (block.cold_end - cold) as usize);
        let exits = self.exits_of(id);
        let ways = exits.clone().map(|exit| self.exits[exit as usize]);
        let ways: SmallVec<[_; 16]> = ways.map(|exit| (exit.insn, exit.kind)).collect();
        let copy = Block {
            key,
            live: true,
            indirect: false,
            exits: exits.start,
            incoming: Incoming::new(),
            ..*block
        };
        mark!(BlockCopied);
        self.settle(arena, copy, origin, &ways)
    }

    /// Makes a block of this cache of one that is as it was where it comes from, but for its key: its code is at
    /// [`Self::next_addresses`] already. `ways` are its ways out.
    pub(super) fn settle(
        &mut self,
        arena: &mut Arena,
        block: Block,
        origin: &Origin,
        ways: &[(u8, ExitKind)],
    ) -> BlockId {
        let Origin { parts: [start, cold], moves, slide, page_id } = *origin;
        let (to, to_cold) = self.next_addresses();
        let (new, first_exit) = (self.next_id(), self.exits.len() as u32);
        let distance = Distance {
            code: to.wrapping_sub(start),
            cold: to_cold.wrapping_sub(cold),
            boundary: self.cold_parts(),
            exit: first_exit.wrapping_sub(block.exits),
        };
        let block = Block {
            entry: distance.of(block.entry),
            checked: distance.of(block.checked),
            end: distance.of(block.end),
            cold_end: distance.of(block.cold_end),
            exits: first_exit,
            ..block
        };
        let mut mend =
            Mend { arena, distance: &distance, key: &block.key, slide, page_id, second: None, checks: 0 };
        moves.code().for_each(|(at, kind)| mend.field(to + at, distance.code, kind));
        moves.cold().for_each(|(at, kind)| mend.field(to_cold + at, distance.cold, kind));
        for (insn, kind) in ways {
            let kind = mend.exit(*kind);
            self.exits.push(Exit { block: new, insn: *insn, joined: false, kind });
        }
        self.add(block)
    }

    /// The key of what an exit jumps to, if that is on the same page.
    fn leads_on_page(&self, exit: ExitId) -> Option<BlockKey> {
        let Exit { block, kind, .. } = self.exits[exit.0 as usize];
        let ExitKind::Branch { target, mode, .. } = kind else { return None };
        let from = self.get(block).key;
        if mode != from.mode || target & !OFFSET != from.virt & !OFFSET {
            return None;
        }
        Some(BlockKey { phys: from.phys & !OFFSET | target & OFFSET, virt: target, ..from })
    }

    /// Where a block's code and its cold part begin.
    pub(super) fn starts_of(&self, id: BlockId) -> [u32; 2] {
        [self.get(id).checked - OUT, self.cold_start(id)]
    }
}

/// Mends what has been copied, or slid.
pub(super) struct Mend<'a> {
    pub arena: &'a mut Arena,
    pub distance: &'a Distance,
    /// Of the copy.
    pub key: &'a BlockKey,
    pub slide: u64,
    pub page_id: PageId,
    /// That of the page behind it, if the block reaches into that.
    pub second: Option<PageId>,
    /// Identities that have been mended: a block looks at its own page first, unless it is entered without looking.
    pub checks: u8,
}

impl Mend<'_> {
    /// Of the page that is looked at in the field to mend: how far it is behind the block's, and its identity.
    fn page_looked_at(&self) -> (u64, PageId) {
        let own = !is_open(self.key.mode, self.key.virt) && self.checks == 0;
        match self.second {
            Some(second) if !own => (1, second),
            _ => (0, self.page_id),
        }
    }

    /// The field at `at`, whose part has moved by `moved`.
    pub fn field(&mut self, at: u32, moved: u32, kind: Kind) {
        let old = u32::from_le_bytes(self.arena.code_at(at, 4).try_into().expect("four bytes"));
        let outside = old.wrapping_sub(moved);
        let new = match kind {
            Kind::Outside => outside,
            Kind::Across => outside.wrapping_add(self.distance.cold),
            Kind::Own => old.wrapping_add(self.distance.code),
            Kind::Exit => old.wrapping_add(self.distance.exit),
            Kind::PageId => {
                let (_, id) = self.page_looked_at();
                self.checks += 1;
                id.wrapping_neg()
            }
            Kind::Page => {
                let slots = CODE_SLOTS as u32;
                let tables = self.arena.base() + Field::set(self.key.mode.set()) + Field::CODE_PAGE;
                let slot = outside.wrapping_add(at + 4).wrapping_sub(tables) / 4;
                debug_assert!(slot < slots);
                let new = code_slot((self.key.virt >> 12).wrapping_add(self.page_looked_at().0)) as u32;
                outside.wrapping_add(4 * new).wrapping_sub(4 * slot)
            }
            Kind::Slot => {
                let slots = tlb_entries(self.key.mode.set()) as u32;
                let tables = self.arena.base() + Field::set(self.key.mode.set()) + Field::data(false);
                let slot = outside.wrapping_add(at + 4).wrapping_sub(tables) / 8 % slots;
                let new = slot.wrapping_add((self.slide >> 12) as u32) % slots;
                outside.wrapping_add(8 * new).wrapping_sub(8 * slot)
            }
            Kind::Virt if !self.key.mode.has(Mode::USER) => old.wrapping_add(self.slide as u32),
            Kind::Virt => {
                let old = u64::from_le_bytes(self.arena.code_at(at, 8).try_into().expect("eight bytes"));
                self.arena.write_code(at, &old.wrapping_add(self.slide).to_le_bytes());
                return;
            }
        };
        self.arena.write_code(at, &new.to_le_bytes());
    }

    /// A way out, linked to nothing.
    pub fn exit(&mut self, mut kind: ExitKind) -> ExitKind {
        match &mut kind {
            ExitKind::Branch { target, field, stub, .. } => {
                *target = target.wrapping_add(self.slide);
                (*field, *stub) = (self.distance.of(*field), self.distance.of(*stub));
                self.arena.patch_jump(*field, *stub);
            }
            ExitKind::Access { across, behind, decoded, .. } => {
                (*across, *behind) = (self.distance.of(*across), self.distance.of(*behind));
                if *across != 0 {
                    self.arena.patch_jump(*across, *across + 4);
                }
                *decoded = DecodedId::NONE;
            }
            ExitKind::Interpret { decoded } => *decoded = DecodedId::NONE,
            ExitKind::Indirect | ExitKind::FastCall | ExitKind::Head => {}
        }
        kind
    }
}

impl Vcpu {
    /// The block of `key` as a copy of what has been translated for another address, together with what
    /// it leads to; `None` if it has to be translated.
    pub(super) fn copied(&mut self, key: BlockKey) -> Option<BlockId> {
        if !is_movable(&key) || !self.debugging.breakpoints.is_empty() {
            return None;
        }
        if let Some(slid) = self.slid(&key) {
            return Some(slid);
        }
        let from = self.blocks.at_any_address(&key)?;
        let page_id = self.blocks.page_id(key.virt >> 12, key.phys >> 12, key.mode);
        let slide = key.virt.wrapping_sub(self.blocks.get(from).key.virt);
        let first = self.copy(from, key, page_id)?;
        self.bring_along(first, |vcpu, here| {
            let there = BlockKey { virt: here.virt.wrapping_sub(slide), ..here };
            vcpu.copy(vcpu.blocks.find(&there)?, here, page_id)
        });
        Some(first)
    }

    /// Links what a new block leads to on its page, and so on; what is not there yet is brought by `bring`.
    pub(super) fn bring_along(
        &mut self,
        first: BlockId,
        mut bring: impl FnMut(&mut Self, BlockKey) -> Option<BlockId>,
    ) {
        let mut open = vec![first];
        let mut brought = 1;
        while let Some(from) = open.pop() {
            for way in self.blocks.exits_of(from).map(ExitId) {
                let Some(key) = self.blocks.leads_on_page(way) else { continue };
                let next = match self.blocks.find(&key) {
                    Some(next) => next,
                    None if brought < TOGETHER_MAX => {
                        let Some(next) = bring(self, key) else { continue };
                        brought += 1;
                        open.push(next);
                        next
                    }
                    None => continue,
                };
                self.blocks.link(&mut self.arena, way, next);
            }
        }
    }

    pub(super) fn copy(&mut self, from: BlockId, key: BlockKey, page_id: PageId) -> Option<BlockId> {
        let mut permits = Permits { mirror: &mut self.tlb.mirror, checked: &self.mirroring.checked };
        let copy = self.blocks.copy(&mut self.arena, from, key, page_id, &mut permits)?;
        self.statistics.blocks_copied += 1;
        Some(copy)
    }
}
