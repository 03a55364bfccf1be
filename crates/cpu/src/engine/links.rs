//! Jumps from block to block, without Rust.
//!
//! A direct jump is *linked* when it has first led somewhere: it goes straight to that block from then on. What jumps
//! through registers and returns goes by the jump caches. Both are undone where the block is not to be
//! entered any more: it is forgotten, its page is closed (see [`super::entered`]), or its sheet is slid to
//! another address (see [`super::slides`]).
//!
//! A program that comes back to its pages, or the next one that gets the ones of a program that has ended, goes the
//! same ways again. So a block keeps who was linked to it and whether it was in the jump caches, and gets both back
//! as soon as its page may be entered again ([`Blocks::rejoin`]), instead of one at a time from Rust. Whoever has
//! been slid away since, to where its jump leads to another address, stays out; where the source of a jump comes
//! to its new address later than the block that it is for, that is looked for ([`Blocks::joins_again`]).
//!
//! A jump may lead to a block whenever it is of the jump's target and mode and what [`super::entered`] says
//! of its page holds.

use super::arena::Arena;
use super::blocks::{Block, BlockId, BlockKey, Blocks, Exit, ExitId, ExitKind, Link, Mode};
use super::entered::{CodeAt, is_open};
use super::hot::{JUMP_ENTRIES, JumpEntry, spread};
use super::regs;
use crate::marks::mark;

/// Exits linked to a block that are looked through for what is there twice.
const INCOMING_LOOKED_THROUGH: usize = 64;

impl Blocks {
    /// Makes exit `from` (a direct jump) go straight to block `to`.
    pub fn link(&mut self, arena: &mut Arena, from: ExitId, to: BlockId) {
        let exit = &mut self.exits[from.0 as usize];
        let ExitKind::Branch { target, field, .. } = exit.kind else { return };
        exit.joined = true;
        let source = &self.list[exit.block.0 as usize];
        let to_block = &self.list[to.0 as usize];
        debug_assert_eq!(target, to_block.key.virt);
        lead(arena, source, field, to_block);
        let sheet = |key: &BlockKey| (key.virt >> 12, key.phys >> 12, key.mode);
        let link = Link::new(from, sheet(&source.key) == sheet(&to_block.key));
        let incoming = &mut self.list[to.0 as usize].incoming;
        if incoming.len() < INCOMING_LOOKED_THROUGH {
            if !incoming.contains(&link) {
                incoming.push(link);
            }
            return;
        }
        if incoming.len() == incoming.capacity() {
            incoming.sort_unstable();
            incoming.dedup();
        }
        incoming.push(link);
    }

    /// Makes the way out of `from`, a group of accesses that are not all on one page, go straight to
    /// the same instruction of the block's twin.
    pub fn link_across(&mut self, arena: &mut Arena, from: ExitId, twin: BlockId) {
        let Exit { insn, kind, .. } = self.exits[from.0 as usize];
        let ExitKind::Access { across: field @ 1.., .. } = kind else { return };
        arena.patch_jump(field, self.host_of(twin, insn));
        self.list[twin.0 as usize].incoming.push(Link::new(from, true));
    }

    /// Makes a jump lead out of translated code again.
    pub fn unlink(&self, arena: &mut Arena, exit: ExitId) {
        mark!(Unlinked);
        match self.exits[exit.0 as usize].kind {
            ExitKind::Branch { field, stub, .. } => arena.patch_jump(field, stub),
            ExitKind::Access { across, .. } => arena.patch_jump(across, across + 4),
            _ => unreachable!("only jumps are linked"),
        }
    }

    /// Undoes what leads from other pages to blocks that are entered without looking: they are not to be
    /// entered until the page is opened.
    pub fn close_page(&mut self, arena: &mut Arena, page: CodeAt) {
        for id in self.open_blocks_at(page) {
            mark!(PageClosed);
            self.part(arena, id);
            self.leave_jump_caches(arena, id);
        }
    }

    /// Has blocks that are entered without looking be led to as before: they may be entered again. `runs` says
    /// whether a mode is the one that the jump caches of its set are for.
    pub fn open_page(&mut self, arena: &mut Arena, page: CodeAt, runs: impl Fn(Mode) -> bool) {
        for id in self.open_blocks_at(page) {
            self.rejoin(arena, id, runs(self.get(id).key.mode));
        }
    }

    fn open_blocks_at(&self, (virt_page, phys_page): CodeAt) -> Vec<BlockId> {
        let Some(code) = self.pages.get(&phys_page) else { return Vec::new() };
        let sheets = code.sheets().iter();
        let here = sheets.filter(|s| s.virt_page == virt_page && is_open(s.mode, virt_page << 12));
        here.flat_map(|sheet| sheet.blocks.iter().copied()).filter(|id| self.get(*id).live).collect()
    }

    /// Undoes what leads to a block from other pages, which it keeps in mind.
    fn part(&mut self, arena: &mut Arena, id: BlockId) {
        let mut incoming = std::mem::take(&mut self.list[id.0 as usize].incoming);
        let BlockKey { virt, mode, .. } = self.get(id).key;
        let inside = |source: &Block| source.key.virt >> 12 == virt >> 12 && is_open(source.key.mode, virt);
        incoming.retain(|link| {
            if link.is_inside() {
                return true;
            }
            let exit = link.from();
            let Exit { block: source, kind, .. } = self.exits[exit.0 as usize];
            let source = self.get(source);
            if inside(source) {
                return true;
            }
            let led_here =
                matches!(kind, ExitKind::Branch { target, mode: to, .. } if (target, to) == (virt, mode));
            if led_here {
                self.unlink(arena, exit);
            }
            led_here && source.live
        });
        self.list[id.0 as usize].incoming = incoming;
    }

    /// Has a block that may be entered be led to as before, by jumps that are for where it is now; by the jump caches
    /// only if they are for its mode.
    pub fn rejoin(&mut self, arena: &mut Arena, id: BlockId, runs: bool) {
        let mut incoming = std::mem::take(&mut self.list[id.0 as usize].incoming);
        let block = self.get(id);
        let BlockKey { virt, mode, .. } = block.key;
        incoming.retain(|link| {
            if link.is_inside() {
                return true;
            }
            let exit = link.from();
            let Exit { block: source, kind, .. } = self.exits[exit.0 as usize];
            let ExitKind::Branch { target, mode: to, field, .. } = kind else { return true };
            let leads = (target, to) == (virt, mode);
            if leads {
                mark!(Rejoined);
                lead(arena, self.get(source), field, block);
            } else {
                self.unlink(arena, exit);
            }
            leads
        });
        if block.indirect && runs {
            enter_jump_caches(arena, block);
        }
        self.list[id.0 as usize].incoming = incoming;
    }

    /// The block that an exit, which has been linked before, may be linked to; `behind` says which physical page
    /// is behind a virtual one, if code may be entered there.
    pub fn joins_again(&self, exit: ExitId, behind: impl Fn(Mode, u64) -> Option<u64>) -> Option<BlockId> {
        let ExitKind::Branch { target: virt, mode, .. } = self.exits[exit.0 as usize].kind else {
            return None;
        };
        let phys = behind(mode, virt >> 12)? << 12 | virt & 0xfff;
        self.find(&BlockKey { phys, virt, mode, limit: regs::MAX_BLOCK as u8, shares: true })
    }

    /// Has a block be found by the jump caches.
    pub fn join_jump_caches(&mut self, arena: &Arena, id: BlockId) {
        let block = &mut self.list[id.0 as usize];
        block.indirect = true;
        enter_jump_caches(arena, block);
    }

    /// Has a block not be found by the jump caches any more.
    pub fn leave_jump_caches(&self, arena: &Arena, id: BlockId) {
        let block = self.get(id);
        if !block.indirect {
            return;
        }
        let checked = block.checked as u64;
        for_jump_entries(arena, block, |entry, slot| {
            if entry.code == checked {
                *entry = empty_jump(slot);
            }
        });
    }
}

/// Has the jump at `field` of a block go to another one.
fn lead(arena: &mut Arena, from: &Block, field: u32, to: &Block) {
    let same_page = from.key.virt >> 12 == to.key.virt >> 12;
    arena.patch_jump(field, if same_page { to.entry } else { to.checked });
}

/// A jump-cache entry that matches nothing.
pub fn empty_jump(slot: usize) -> JumpEntry {
    JumpEntry { neg_target: u64::from(slot == 0), code: 0 }
}

fn enter_jump_caches(arena: &Arena, block: &Block) {
    let found = JumpEntry { neg_target: block.key.virt.wrapping_neg(), code: block.checked as u64 };
    for_jump_entries(arena, block, |entry, _| *entry = found);
}

/// The two entries that a block may have.
fn for_jump_entries(arena: &Arena, block: &Block, mut each: impl FnMut(&mut JumpEntry, usize)) {
    // SAFETY: the arena's hot data; translated code is not running.
    let hot = unsafe { &mut *arena.hot() };
    let set = &mut hot.sets[block.key.mode.set()];
    let (slot, behind) = (block.key.virt as usize % JUMP_ENTRIES, spread(block.key.virt));
    each(&mut set.jump[slot], slot);
    each(&mut set.jump_behind[behind], behind);
}
