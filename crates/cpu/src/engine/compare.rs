//! For tests: what has been copied or slid to another address is what a translation there is.

use super::blocks::{Block, BlockId, BlockKey, ExitId, ExitKind, PageId};
use super::mirror::Mirror;
use super::moves::{Moves, is_movable};
use super::translate::{Place, Surroundings, Translated};
use super::vcpu::Vcpu;
use crate::marks::mark;
use base::GuestPhys;
use memory::Ram;
use std::collections::{BTreeMap, BTreeSet};

/// How far blocks are copied, and sheets slid, in bytes: not a number of chunks of the mirror.
const SLIDE: u64 = 0x3_2101_3000;

impl Vcpu {
    /// Copies each block from the `from`th on that can be to another address, and slides each sheet that one of them is
    /// on; has what is there then translated as well. Returns where to go on, once there are more blocks.
    ///
    /// # Errors
    /// The first that is another block than its translation.
    pub fn compare_copies(&mut self, ram: &Ram, from: usize) -> Result<usize, String> {
        let all = self.blocks.list.len();
        let from = if from <= all { from } else { 0 };
        let ids = (from as u32..all as u32).map(BlockId);
        for id in ids.clone().filter(|id| self.is_comparable(*id)).collect::<Vec<_>>() {
            let key = self.slid_key(id);
            let page_id = self.blocks.page_id(key.virt >> 12, key.phys >> 12, key.mode);
            let Some(copy) = self.copy(id, key, page_id) else { continue };
            mark!(CopyCompared);
            self.compare(ram, copy, page_id)?;
            self.blocks.forget(&mut self.arena, copy);
        }
        let sheet_of = |key: BlockKey| (key.phys >> 12, key.virt >> 12, key.mode.0);
        let comparable = ids.filter(|id| self.is_comparable(*id));
        // One block of each sheet.
        let sheets: BTreeMap<_, _> = comparable.map(|id| (sheet_of(self.blocks.get(id).key), id)).collect();
        sheets.into_values().try_for_each(|id| self.compare_sheet(ram, id))?;
        Ok(self.blocks.list.len())
    }

    fn slid_key(&self, id: BlockId) -> BlockKey {
        let key = self.blocks.get(id).key;
        BlockKey { virt: key.virt.wrapping_add(SLIDE), ..key }
    }

    /// What of a block is checked was decided when it was translated.
    fn is_comparable(&self, id: BlockId) -> bool {
        let block = self.blocks.get(id);
        let checked = |virt| self.mirroring.checked.contains(&virt);
        block.live
            && block.notes.1 > 0
            && is_movable(&self.slid_key(id))
            && !(0..block.count).any(|k| checked(self.blocks.virt_of(id, k)))
    }

    /// Slides the sheet of block `id`, and compares what is on it then.
    fn compare_sheet(&mut self, ram: &Ram, id: BlockId) -> Result<(), String> {
        let from = self.blocks.get(id).key.virt >> 12;
        let key = self.slid_key(id);
        let (virt_page, phys_page) = (key.virt >> 12, key.phys >> 12);
        let on = |vcpu: &Self, page| vcpu.blocks.pages[&phys_page].blocks_at(page, key.mode).to_vec();
        let movable = |id: &BlockId| self.blocks.get(*id).live && self.blocks.get(*id).notes.1 > 0;
        if on(self, from).iter().any(|id| movable(id) && !self.is_comparable(*id)) {
            return Ok(());
        }
        self.close_left();
        self.blocks.close_page(&mut self.arena, (from, phys_page));
        // What has been slid there before.
        on(self, virt_page).into_iter().for_each(|id| self.blocks.forget(&mut self.arena, id));
        self.blocks.pages.get_mut(&phys_page).map(|code| code.take(virt_page, key.mode));
        self.slide(&key, from);
        let page_id = self.blocks.page_id(virt_page, phys_page, key.mode);
        for id in on(self, virt_page) {
            mark!(SlideCompared);
            self.unlink_all(id);
            self.compare(ram, id, page_id)?;
        }
        Ok(())
    }

    /// A translation is not linked yet.
    fn unlink_all(&mut self, id: BlockId) {
        for exit in self.blocks.exits_of(id).map(ExitId) {
            if matches!(self.blocks.exits[exit.0 as usize].kind, ExitKind::Branch { .. }) {
                self.blocks.unlink(&mut self.arena, exit);
                self.blocks.exits[exit.0 as usize].joined = false;
            }
        }
    }

    /// Compares a block that is not linked with its translation.
    pub(super) fn compare(&mut self, ram: &Ram, copy: BlockId, page_id: PageId) -> Result<(), String> {
        let Block { key, second_page, .. } = *self.blocks.get(copy);
        let next_page = (key.virt >> 12) + 1;
        let second = second_page.map(|page| (self.blocks.page_id(next_page, page, key.mode), page));
        let block = self.blocks.get(copy);
        let [start, cold] = self.blocks.starts_of(copy);
        let place = Place {
            origin: start,
            cold,
            base: self.arena.base(),
            thunks: self.thunks,
            block: copy,
            exits: block.exits,
            page_id,
            second,
        };
        let page = ram.page_index(GuestPhys(key.phys)).ok_or("a block of no RAM")?;
        let mut bytes = ram.page_bytes(page).to_vec();
        if let Some((_, next)) = second {
            let next = ram.page_index(GuestPhys(next << 12)).ok_or("a block that reaches into no RAM")?;
            bytes.extend(&ram.page_bytes(next)[..15]);
        }
        let bytes = &bytes[..];
        let mut around = Elsewhere(&mut self.tlb.mirror);
        self.translator.read(key, bytes, block.count, &BTreeSet::new(), &mut around);
        let (mut exits, mut insns) = (Vec::new(), Vec::new());
        let Translated { block: fresh, code, cold: cold_code, notes, .. } =
            self.translator.block(key, bytes, place, &mut exits, &mut insns);
        let same_code = self.arena.code_at(start, (block.end - start) as usize) == code
            && self.arena.code_at(cold, (block.cold_end - cold) as usize) == cold_code;
        let range = self.blocks.exits_of(copy);
        let same_exits = self.blocks.exits[range.start as usize..range.end as usize] == exits;
        let moves = self.blocks.moves_of(&self.blocks.notes, copy);
        let shape = |b: &Block| (b.count, b.entry, b.checked, b.end, b.cold_end, b.first, b.bytes, b.grouped);
        for (what, same) in [
            ("code", same_code),
            ("exits", same_exits),
            ("shape", shape(block) == shape(&fresh)),
            ("instructions", self.blocks.insns_of(block) == insns),
            ("notes", moves.is_none_or(|moves| notes.as_deref().and_then(Moves::of) == Some(moves))),
        ] {
            if !same {
                return Err(format!("{what} differ: {key:x?}, of {} instructions", block.count));
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

    fn is_checked(&mut self, _: u64) -> bool {
        false
    }

    fn claims(&mut self, virt: u64) -> bool {
        self.0.claim(virt)
    }
}
