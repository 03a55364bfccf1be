//! Sheets slid to other addresses.
//!
//! A program that starts anew comes to the pages of its files at addresses of its own. What has been translated of a
//! page for the one before, which has ended, is what it needs: so the blocks stay where they are in the code
//! cache, and only what follows from their addresses is mended (see [`super::moves`]). Jumps between them
//! remain linked, and the code cache does not fill.
//!
//! Nothing may lead to a sheet from where the program before had something, nor out of it to there: links from and to
//! other pages are undone, and its blocks leave the jump caches (for code that is entered without looking that
//! has been done when its page was closed). Pages that have come along to the same program are linked
//! again (see [`super::links`]). The sheet has another identity, as translations cached for
//! other address spaces may know the one before.
//!
//! Which sheet is taken, and whether one is, [`super::sheets`] decides. Blocks that cannot be at any address are
//! forgotten.

use super::arena::Arena;
use super::blocks::{BlockId, BlockKey, Blocks, DecodedId, Exit, ExitId, ExitKind, PageId};
use super::copies::{Distance, Mend, Permits};
use super::entered::is_open;
use super::moves::{Kind, is_movable};
use super::sheets::Use;
use super::vcpu::Vcpu;
use crate::marks::mark;

/// Where a sheet goes.
#[derive(Clone, Copy)]
struct Way {
    /// The virtual pages it is at, and will be.
    from: u64,
    to: u64,
    /// Its identity there.
    page_id: PageId,
}

impl Way {
    fn slide(&self) -> u64 {
        self.to.wrapping_sub(self.from) << 12
    }
}

/// What there is of a sheet that has been slid.
#[derive(Default)]
struct Slid {
    blocks: usize,
    /// Its jumps to other pages that have been linked.
    apart: Vec<ExitId>,
}

impl Blocks {
    /// Slides the sheet of `key`'s page and mode that is at `way.from` to where there is none.
    fn slide(&mut self, arena: &mut Arena, key: &BlockKey, way: Way, permits: &mut Permits) -> Slid {
        let page = key.phys >> 12;
        let mut slid = Slid::default();
        let Some(code) = self.pages.get_mut(&page) else { return slid };
        debug_assert!(code.blocks_at(way.to, key.mode).is_empty());
        let mut ids = code.take(way.from, key.mode);
        let notes = std::mem::take(&mut self.notes);
        ids.retain(|id| {
            let can = self.slide_block(arena, *id, way, &notes, permits, &mut slid.apart);
            if !can {
                self.forget(arena, *id);
            }
            can
        });
        self.notes = notes;
        if !is_open(key.mode, key.virt) {
            ids.iter().for_each(|id| self.rejoin(arena, *id, true));
        }
        slid.blocks = ids.len();
        if let Some(code) = self.pages.get_mut(&page) {
            code.sheet(way.to, key.mode).blocks = ids;
        }
        slid
    }

    /// Whether a block can be slid; if so, it has been.
    fn slide_block(
        &mut self,
        arena: &mut Arena,
        id: BlockId,
        way: Way,
        notes: &[u8],
        permits: &mut Permits,
        apart: &mut Vec<ExitId>,
    ) -> bool {
        let block = self.get(id);
        let key = BlockKey { virt: block.key.virt.wrapping_add(way.slide()), ..block.key };
        let Some(moves) = self.moves_of(notes, id).filter(|_| block.live && is_movable(&key)) else {
            return false;
        };
        if !is_movable(&block.key) || !permits.allow(self, id, moves, arena, way.slide()) {
            return false;
        }
        let [start, cold] = self.starts_of(id);
        let distance = Distance::default();
        let second = block.second_page.map(|page| self.page_id(way.to + 1, page, key.mode));
        let mut mend = Mend {
            arena,
            distance: &distance,
            key: &key,
            slide: way.slide(),
            page_id: way.page_id,
            second,
            checks: 0,
        };
        let stays = |kind: Kind| matches!(kind, Kind::Outside | Kind::Across | Kind::Own | Kind::Exit);
        let in_code = moves.code().map(|(at, kind)| (start + at, kind));
        let in_cold = moves.cold().map(|(at, kind)| (cold + at, kind));
        for (at, kind) in in_code.chain(in_cold).filter(|(_, kind)| !stays(*kind)) {
            mend.field(at, 0, kind);
        }
        for at in self.exits_of(id) {
            self.slide_exit(at, way, &mut mend, apart);
        }
        mark!(BlockSlid);
        if second.is_some() {
            mark!(SlidOnTwoPages);
        }
        if !is_open(key.mode, key.virt) {
            self.leave_jump_caches(arena, id);
        }
        self.list[id.0 as usize].key = key;
        true
    }

    /// Jumps to the same sheet remain linked.
    fn slide_exit(&mut self, at: u32, way: Way, mend: &mut Mend, apart: &mut Vec<ExitId>) {
        let exit = &mut self.exits[at as usize];
        match &mut exit.kind {
            ExitKind::Branch { target, mode, field, stub } => {
                let same_sheet = *mode == mend.key.mode && *target >> 12 == way.from;
                *target = target.wrapping_add(mend.slide);
                if exit.joined && !same_sheet {
                    mend.arena.patch_jump(*field, *stub);
                    apart.push(ExitId(at));
                }
            }
            ExitKind::Indirect | ExitKind::FastCall | ExitKind::Head => {}
            ExitKind::Access { across: 0, decoded: DecodedId::NONE, .. }
            | ExitKind::Interpret { decoded: DecodedId::NONE } => {}
            kind => {
                let exit = Exit { kind: mend.exit(*kind), ..*exit };
                self.put_exit(at, exit);
            }
        }
    }
}

impl Vcpu {
    /// The block of `key`, if its page's sheet for another address has been taken over for it and has that block.
    pub(super) fn slid(&mut self, key: &BlockKey) -> Option<BlockId> {
        let (virt_page, phys_page) = (key.virt >> 12, key.phys >> 12);
        let (tlb, arena) = (&self.tlb, &self.arena);
        let use_of = |page| match () {
            () if tlb.runs_code(arena, key.mode, page, phys_page) => Use::Now,
            () if tlb.knows_code(key.mode, page, phys_page) => Use::Later,
            () => Use::LeftBehind,
        };
        let from = self.blocks.pages.get(&phys_page)?.to_take(virt_page, key.mode, use_of)?;
        self.close_left();
        self.slide(key, from);
        self.blocks.find(key)
    }

    /// Slides the sheet at virtual page `from` to `key`'s page, where there is none.
    pub(super) fn slide(&mut self, key: &BlockKey, from: u64) {
        let to = key.virt >> 12;
        let way = Way { from, to, page_id: self.blocks.page_id(to, key.phys >> 12, key.mode) };
        let mut permits = Permits { mirror: &mut self.tlb.mirror, checked: &self.mirroring.checked };
        let slid = self.blocks.slide(&mut self.arena, key, way, &mut permits);
        self.statistics.blocks_slid += slid.blocks as u64;
        for exit in slid.apart {
            let behind = |mode, virt_page| self.tlb.code_behind(&self.arena, mode, virt_page);
            if let Some(block) = self.blocks.joins_again(exit, behind) {
                self.blocks.link(&mut self.arena, exit, block);
            }
        }
    }
}
