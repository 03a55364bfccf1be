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
//! Where a block is there for several addresses already, the copy takes the place of the oldest, which is of the
//! same size: programs that start again and again do not fill the code cache.
//!
//! What translation decides by the address itself need not come out the same in a copy. So only whole blocks
//! of 64-bit programs are copied; blocks of mirrored code only if their addresses can be claimed, and if
//! none of their instructions is to be checked there; and none while a debugger has breakpoints.
//! [`Vcpu::compare_copies`] has blocks translated from scratch where their copies stand, and compares every
//! byte; the oracle's tests do that with all blocks of theirs.

use super::arena::Arena;
use super::blocks::{
    Block, BlockId, BlockKey, Blocks, DecodedId, Exit, ExitId, ExitKind, Incoming, Mode, OUT, PageId,
};
use super::hot::{CODE_SLOTS, Field, TLB_ENTRIES, code_slot};
use super::mirror::Mirror;
use super::moves::{Kind, Moves, is_movable};
use super::translate::{Place, Surroundings};
use super::vcpu::Vcpu;
use crate::marks::mark;
use base::{GuestPhys, PAGE_SIZE};
use memory::Ram;
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

/// Blocks copied together.
const TOGETHER_MAX: usize = 48;
/// What an address has beyond its page's.
const OFFSET: u64 = PAGE_SIZE as u64 - 1;

/// What a copy in mirrored code has to ask for.
struct Permits<'a> {
    mirror: &'a mut Mirror,
    /// Instructions that are translated with a check.
    checked: &'a HashSet<u64>,
}

impl Permits<'_> {
    fn allow(&mut self, block: &Block, moves: &Moves, arena: &Arena, slide: u64) -> bool {
        if !block.key.mode.has(Mode::MIRRORED) {
            return true;
        }
        let mut starts = (0..block.count).map(|k| block.virt_of(k).wrapping_add(slide));
        if !self.checked.is_empty() && starts.any(|virt| self.checked.contains(&virt)) {
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
struct Distance {
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
        let block = self.get(id);
        let moves = block.moves.clone()?;
        let slide = key.virt.wrapping_sub(block.key.virt);
        if !permits.allow(block, &moves, arena, slide) {
            return None;
        }
        // Copies of one another have their instructions in common, and are of one size.
        let alike = |old: &BlockId| *old != id && Arc::ptr_eq(&self.get(*old).insns, &block.insns);
        let reused = self.oldest(&key).filter(alike);
        let (new, [to, to_cold], first_exit) = match reused {
            Some(old) => {
                mark!(BlockReused);
                self.forget(arena, old);
                (old, self.starts_of(old), self.get(old).exits)
            }
            None if self.has_room() => {
                (self.next_id(), self.next_addresses().into(), self.exits.len() as u32)
            }
            None => return None,
        };
        let block = self.get(id);
        let [start, cold] = self.starts_of(id);
        let exits = self.exits_of(id);
        let distance = Distance {
            code: to.wrapping_sub(start),
            cold: to_cold.wrapping_sub(cold),
            boundary: self.cold_parts(),
            exit: first_exit.wrapping_sub(exits.start),
        };
        arena.copy_code(start, to, (block.end - start) as usize);
        arena.copy_code(cold, to_cold, (block.cold_end - cold) as usize);
        let copy = Block {
            key,
            entry: distance.of(block.entry),
            checked: distance.of(block.checked),
            end: distance.of(block.end),
            cold_end: distance.of(block.cold_end),
            insns: Arc::clone(&block.insns),
            second_page: None,
            live: true,
            next: BlockId::NONE,
            alike: 0,
            exits: first_exit,
            incoming: Incoming::new(),
            moves: Some(moves.clone()),
            ..*block
        };
        let mut mend = Mend { arena, distance: &distance, key: &key, slide, page_id };
        moves.code().for_each(|(at, kind)| mend.field(to + at, distance.code, kind));
        moves.cold().for_each(|(at, kind)| mend.field(to_cold + at, distance.cold, kind));
        for (nth, exit) in exits.enumerate() {
            let Exit { insn, kind, .. } = self.exits[exit as usize];
            let exit = Exit { block: new, insn, kind: mend.exit(kind) };
            self.put_exit(first_exit + nth as u32, exit);
        }
        mark!(BlockCopied);
        match reused {
            Some(old) => self.replace(old, copy),
            None => {
                self.add(copy);
            }
        }
        Some(new)
    }

    /// The block that an exit jumps to, if it is on the same page, and its key.
    fn on_same_page(&self, exit: ExitId) -> Option<(BlockId, BlockKey)> {
        let Exit { block, kind, .. } = self.exits[exit.0 as usize];
        let ExitKind::Branch { target, mode, .. } = kind else { return None };
        let from = self.get(block).key;
        if mode != from.mode || target & !OFFSET != from.virt & !OFFSET {
            return None;
        }
        let key = BlockKey { phys: from.phys & !OFFSET | target & OFFSET, virt: target, ..from };
        Some((self.find(&key)?, key))
    }

    /// Where a block's code and its cold part begin.
    fn starts_of(&self, id: BlockId) -> [u32; 2] {
        [self.get(id).checked - OUT, self.cold_start(id)]
    }
}

/// Mends what has been copied.
struct Mend<'a> {
    arena: &'a mut Arena,
    distance: &'a Distance,
    /// Of the copy.
    key: &'a BlockKey,
    slide: u64,
    page_id: PageId,
}

impl Mend<'_> {
    /// The field at `at`, whose part has moved by `moved`.
    fn field(&mut self, at: u32, moved: u32, kind: Kind) {
        let old = u32::from_le_bytes(self.arena.code_at(at, 4).try_into().expect("four bytes"));
        let outside = old.wrapping_sub(moved);
        let new = match kind {
            Kind::Outside => outside,
            Kind::Across => outside.wrapping_add(self.distance.cold),
            Kind::Own => old.wrapping_add(self.distance.code),
            Kind::Exit => old.wrapping_add(self.distance.exit),
            Kind::PageId => self.page_id.wrapping_neg(),
            Kind::Page => {
                let slots = CODE_SLOTS as u32;
                let tables = self.arena.base() + Field::set(self.key.mode.set()) + Field::CODE_PAGE;
                let slot = outside.wrapping_add(at + 4).wrapping_sub(tables) / 4;
                debug_assert!(slot < slots);
                let new = code_slot(self.key.virt >> 12) as u32;
                outside.wrapping_add(4 * new).wrapping_sub(4 * slot)
            }
            Kind::Slot => {
                let slots = TLB_ENTRIES as u32;
                let tables = self.arena.base() + Field::set(self.key.mode.set()) + Field::data(false);
                let slot = outside.wrapping_add(at + 4).wrapping_sub(tables) / 8 % slots;
                let new = slot.wrapping_add((self.slide >> 12) as u32) % slots;
                outside.wrapping_add(8 * new).wrapping_sub(8 * slot)
            }
            Kind::Virt => {
                let old = u64::from_le_bytes(self.arena.code_at(at, 8).try_into().expect("eight bytes"));
                self.arena.write_code(at, &old.wrapping_add(self.slide).to_le_bytes());
                return;
            }
        };
        self.arena.write_code(at, &new.to_le_bytes());
    }

    /// A way out, linked to nothing.
    fn exit(&mut self, mut kind: ExitKind) -> ExitKind {
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
        let from = self.blocks.at_any_address(&key)?;
        let page_id = self.blocks.page_id(key.virt >> 12, key.phys >> 12, key.mode);
        let slide = key.virt.wrapping_sub(self.blocks.get(from).key.virt);
        let first = self.copy(from, key, page_id)?;
        let mut open = vec![(from, first)];
        let mut copies = 1;
        while let Some((from, to)) = open.pop() {
            let ways = self.blocks.exits_of(from).zip(self.blocks.exits_of(to));
            for (way, new_way) in ways {
                let Some((block, there)) = self.blocks.on_same_page(ExitId(way)) else { continue };
                let here = BlockKey { virt: there.virt.wrapping_add(slide), ..there };
                let next = match self.blocks.find(&here) {
                    Some(next) => next,
                    None if copies < TOGETHER_MAX => {
                        let Some(copy) = self.copy(block, here, page_id) else { continue };
                        copies += 1;
                        open.push((block, copy));
                        copy
                    }
                    None => continue,
                };
                self.blocks.link(&mut self.arena, ExitId(new_way), next);
            }
        }
        Some(first)
    }

    fn copy(&mut self, from: BlockId, key: BlockKey, page_id: PageId) -> Option<BlockId> {
        let mut permits = Permits { mirror: &mut self.tlb.mirror, checked: &self.mirroring.checked };
        let copy = self.blocks.copy(&mut self.arena, from, key, page_id, &mut permits)?;
        self.statistics.blocks_copied += 1;
        Some(copy)
    }

    /// For tests: copies each block from the `from`th on that can be to another address, and has it translated
    /// there as well. Returns where to go on, once there are more blocks.
    ///
    /// # Errors
    /// The first copy that is another block than that.
    pub fn compare_copies(&mut self, ram: &Ram, from: usize) -> Result<usize, String> {
        const SLIDE: u64 = 0x3_2101_3000;
        let all = self.blocks.list.len();
        let from = if from <= all { from } else { 0 };
        for id in (from as u32..all as u32).map(BlockId) {
            let block = self.blocks.get(id);
            let key = BlockKey { virt: block.key.virt.wrapping_add(SLIDE), ..block.key };
            // What of it is checked was decided when it was translated.
            let checked = (0..block.count).any(|k| self.mirroring.checked.contains(&block.virt_of(k)));
            if !block.live || block.moves.is_none() || !is_movable(&key) || checked {
                continue;
            }
            let page_id = self.blocks.page_id(key.virt >> 12, key.phys >> 12, key.mode);
            let Some(copy) = self.copy(id, key, page_id) else { continue };
            mark!(CopyCompared);
            self.compare_copy(ram, copy, page_id)?;
            self.blocks.forget(&mut self.arena, copy);
        }
        Ok(self.blocks.list.len())
    }

    fn compare_copy(&mut self, ram: &Ram, copy: BlockId, page_id: PageId) -> Result<(), String> {
        let block = self.blocks.get(copy);
        let key = block.key;
        let [start, cold] = self.blocks.starts_of(copy);
        let place = Place {
            origin: start,
            cold,
            base: self.arena.base(),
            thunks: self.thunks,
            block: copy,
            page_id,
            second: None,
        };
        let page = ram.page_index(GuestPhys(key.phys)).ok_or("a block of no RAM")?;
        let bytes = ram.page_bytes(page);
        let mut around = Elsewhere(&mut self.tlb.mirror);
        self.translator.read(key, bytes, block.count, &BTreeSet::new(), &mut around);
        let mut exits = self.blocks.exits[..block.exits as usize].to_vec();
        let (fresh, code, cold_code) = self.translator.block(key, bytes, place, &mut exits);
        let same_code = self.arena.code_at(start, (block.end - start) as usize) == code
            && self.arena.code_at(cold, (block.cold_end - cold) as usize) == cold_code;
        let range = self.blocks.exits_of(copy);
        let same_exits =
            self.blocks.exits[range.start as usize..range.end as usize] == exits[range.start as usize..];
        let shape = |b: &Block| {
            (b.count, b.entry, b.checked, b.end, b.cold_end, b.first, b.bytes, b.grouped, b.moves.clone())
        };
        for (what, same) in [
            ("code", same_code),
            ("exits", same_exits),
            ("shape", shape(block) == shape(&fresh)),
            ("instructions", block.insns == fresh.insns),
        ] {
            if !same {
                return Err(format!("a copy's {what} differ: {key:x?}, of {} instructions", block.count));
            }
        }
        Ok(())
    }
}

/// What surrounds a block translated to be compared with a copy.
struct Elsewhere<'a>(&'a mut Mirror);

impl Surroundings for Elsewhere<'_> {
    fn begins_block(&self, _: usize) -> bool {
        false
    }

    fn is_checked(&self, _: u64) -> bool {
        false
    }

    fn claims(&mut self, virt: u64) -> bool {
        self.0.claim(virt)
    }
}
