//! The translation tables that emitted code reads, and what stands behind each entry.
//!
//! **The TLB is coherent.** Every guest page-table page that a cached translation came from bears
//! a mark, so that any store to it is heard of ([`memory::Disturbance`]); a changed present entry
//! drops what was derived from it. So Accessed and Dirty bits, faults and contents are a function
//! of what the guest did and never of what happened to be cached: dropping the tables at any
//! position changes nothing. It also means that INVLPG and CR3 loads have nothing to find stale.
//!
//! Marks cost the guest a slow store, so they go away again: a leaf table that nothing cached
//! comes from any more loses its mark after a few stores, and dropping everything drops all marks.

use super::arena::Arena;
use super::blocks::{Mode, PageId, empty_jump};
use super::hot::{
    CODE_SLOTS, DataTlb, GLOBAL, Hot, ModeSet, SETS, SPILL_ENTRIES, SpillEntry, TLB_ENTRIES, code_slot,
    empty_tag, tlb_slot,
};
use base::{GuestPhys, GuestVirt};
use memory::{Disturbance, Marks, Ram};
use std::collections::HashMap;

const NO_LEAF: u64 = u64::MAX;
/// Index of the tables for writes in a mode set.
const WRITE: usize = 1;
/// Generations of spill entries run from 1 to this.
const GENERATION_MAX: u64 = 0xfff;
/// Stores to a marked table after which it is asked whether the mark still serves.
const PATIENCE: u32 = 8;

/// What stands behind a code slot.
#[derive(Clone, Copy)]
pub struct CodeSide {
    /// The virtual page.
    pub virt_page: u64,
    /// The guest physical page.
    pub phys_page: u64,
    leaf: u64,
    global: bool,
}

struct SetSide {
    code: Box<[CodeSide; CODE_SLOTS]>,
    mode: Mode,
    used: bool,
}

const EMPTY_CODE: CodeSide = CodeSide { virt_page: u64::MAX, phys_page: 0, leaf: NO_LEAF, global: false };

/// A translation ready to be cached.
pub struct Mapping<'a> {
    /// Physical addresses of the table entries, leaf last; empty when paging is off.
    pub entries: &'a [GuestPhys],
    /// Survives a CR3 load.
    pub global: bool,
}

/// The Rust side of all mode sets.
pub struct Tlb {
    sets: Vec<SetSide>,
    epoch: u64,
    marked: Vec<u32>,
    stores: HashMap<u32, u32>,
    /// How often translations were dropped, one or many.
    pub drops: u64,
    /// Data-TLB fills, for profiles.
    pub fills: u64,
}

impl Tlb {
    /// Empty tables; also makes the arena's tables empty.
    pub fn new(arena: &Arena) -> Self {
        let sets = (0..SETS)
            .map(|_| SetSide { code: Box::new([EMPTY_CODE; CODE_SLOTS]), mode: Mode::default(), used: true })
            .collect();
        let mut tlb = Self { sets, epoch: 0, marked: Vec::new(), stores: HashMap::new(), drops: 0, fills: 0 };
        for set in 0..SETS {
            tlb.clear_set(hot(arena), set);
            hot(arena).sets[set].jump[0] = empty_jump(0);
        }
        tlb
    }

    /// Makes sure that the set of `mode` holds translations of just that mode.
    pub fn enter_mode(&mut self, arena: &Arena, mode: Mode) {
        let set = mode.set();
        if self.sets[set].mode != mode {
            self.clear_set(hot(arena), set);
            self.clear_jumps(arena, set);
            self.sets[set].mode = mode;
        }
        self.sets[set].used = true;
    }

    /// Makes the tables follow a new dirty epoch: nothing may be written unnoticed.
    pub fn follow_epoch(&mut self, arena: &Arena, ram: &Ram) {
        if self.epoch == ram.epoch() {
            return;
        }
        self.epoch = ram.epoch();
        self.drops += 1;
        for set in &mut hot(arena).sets {
            for slot in 0..TLB_ENTRIES {
                drop_entry(&mut set.data[WRITE], slot);
            }
            drop_spill(set, WRITE);
        }
    }

    /// Caches the translation of the page of `address` to RAM page `page` for reads or, where the
    /// page may be written without anyone hearing of it, for writes.
    #[allow(clippy::too_many_arguments)]
    pub fn fill_data(
        &mut self,
        arena: &Arena,
        ram: &mut Ram,
        mode: Mode,
        write: bool,
        address: GuestVirt,
        page: usize,
        mapping: &Mapping,
    ) {
        self.fills += 1;
        self.sets[mode.set()].used = true;
        self.mark_tables(arena, ram, mapping);
        let marks = ram.marks(page);
        // Marking the tables may just have marked this very page.
        let allowed = if write {
            marks.any(Marks::DIRTY) && !marks.any(Marks::HOOKED)
        } else {
            !marks.any(Marks::WATCHED)
        };
        if !allowed {
            return;
        }
        let virt = address.page_base().0;
        let set = &mut hot(arena).sets[mode.set()];
        let addend = (ram.host_page(page) as u64).wrapping_sub(virt);
        let info = page as u64 | if mapping.global { GLOBAL } else { 0 };
        let slot = tlb_slot(address.page());
        let table = &mut set.data[write as usize];
        table.tag[slot] = virt.wrapping_neg();
        table.addend[slot] = addend;
        table.leaf[slot] = leaf(mapping);
        table.page[slot] = info;
        // The kernel's spill entries outlive a CR3 load, so only global ones go there.
        if mode.set() != 0 || mapping.global {
            let generation = set.generation[write as usize];
            set.spill[write as usize][address.page() as usize % SPILL_ENTRIES] =
                SpillEntry { key: virt + generation, addend, leaf: leaf(mapping), page: info };
        }
    }

    /// Caches which page stands behind a virtual page for execution.
    #[allow(clippy::too_many_arguments)]
    pub fn fill_code(
        &mut self,
        arena: &Arena,
        ram: &mut Ram,
        mode: Mode,
        virt: GuestVirt,
        phys: GuestPhys,
        id: PageId,
        mapping: &Mapping,
    ) {
        self.sets[mode.set()].used = true;
        self.mark_tables(arena, ram, mapping);
        let slot = code_slot(virt.page());
        hot(arena).sets[mode.set()].code_page[slot] = id;
        self.sets[mode.set()].code[slot] = CodeSide {
            virt_page: virt.page(),
            phys_page: phys.page(),
            leaf: leaf(mapping),
            global: mapping.global,
        };
    }

    /// The cached physical page behind a virtual page for execution.
    pub fn code(&self, mode: Mode, virt: GuestVirt) -> Option<GuestPhys> {
        let side = &self.sets[mode.set()].code[code_slot(virt.page())];
        (side.virt_page == virt.page()).then_some(GuestPhys(side.phys_page << 12))
    }

    fn mark_tables(&mut self, arena: &Arena, ram: &mut Ram, mapping: &Mapping) {
        let Some((leaf, uppers)) = mapping.entries.split_last() else { return };
        self.mark_page(arena, ram, *leaf, Marks::TABLE_LEAF);
        for upper in uppers {
            self.mark_page(arena, ram, *upper, Marks::TABLE_UPPER);
        }
    }

    fn mark_page(&mut self, arena: &Arena, ram: &mut Ram, entry: GuestPhys, mark: Marks) {
        let Some(page) = ram.page_index(entry) else { return };
        if ram.marks(page).any(mark) {
            return;
        }
        ram.add_marks(page, mark);
        self.marked.push(page as u32);
        self.forbid_writes(arena, page);
    }

    /// Drops write translations of a page that has just been marked.
    pub fn forbid_writes(&mut self, arena: &Arena, page: usize) {
        self.drops += 1;
        for (number, _) in self.sets.iter().enumerate().filter(|(_, s)| s.used) {
            let set = &mut hot(arena).sets[number];
            for slot in 0..TLB_ENTRIES {
                if set.data[WRITE].page[slot] & !GLOBAL == page as u64 {
                    drop_entry(&mut set.data[WRITE], slot);
                }
            }
            drop_spill(set, WRITE);
        }
    }

    /// Acts on a store to a marked page-table page.
    pub fn table_written(&mut self, arena: &Arena, ram: &mut Ram, d: Disturbance) {
        let marks = ram.marks(d.page);
        let stores = self.stores.entry(d.page as u32).or_insert(0);
        *stores += 1;
        let tired = *stores >= PATIENCE;
        // Bit 32 is the present bit of a 4-byte entry in the word's upper half.
        let was_present = d.old_word.is_none_or(|old| old & (1 | 1 << 32) != 0);
        if marks.any(Marks::TABLE_UPPER) && (was_present || tired) {
            self.clear_all(arena, ram);
            return;
        }
        let table = ram.page_address(d.page).0;
        if was_present {
            let first = table + (d.offset as u64 & !7);
            let last = table + d.offset as u64 + d.len as u64;
            self.drop_leaf(arena, |leaf| leaf >= first && leaf < last);
        }
        if tired {
            self.stores.remove(&(d.page as u32));
            if !self.any_leaf(arena, |leaf| leaf & !0xfff == table) {
                ram.remove_marks(d.page, Marks::TABLE_LEAF);
                self.marked.retain(|p| *p != d.page as u32);
            }
        }
    }

    fn any_leaf(&self, arena: &Arena, wanted: impl Fn(u64) -> bool) -> bool {
        self.sets.iter().enumerate().filter(|(_, s)| s.used).any(|(number, side)| {
            let set = &hot(arena).sets[number];
            set.data.iter().any(|table| table.leaf.iter().any(|leaf| wanted(*leaf)))
                || side.code.iter().any(|c| wanted(c.leaf))
                || set.spill.iter().zip(set.generation).any(|(spill, generation)| {
                    spill.iter().any(|e| e.key & GENERATION_MAX == generation && wanted(e.leaf))
                })
        })
    }

    fn drop_leaf(&mut self, arena: &Arena, wanted: impl Fn(u64) -> bool) {
        self.drops += 1;
        for (number, side) in self.sets.iter_mut().enumerate().filter(|(_, s)| s.used) {
            let set = &mut hot(arena).sets[number];
            for kind in 0..2 {
                for slot in 0..TLB_ENTRIES {
                    if wanted(set.data[kind].leaf[slot]) {
                        drop_entry(&mut set.data[kind], slot);
                    }
                }
                drop_spill(set, kind);
            }
            for (slot, c) in side.code.iter_mut().enumerate() {
                if wanted(c.leaf) {
                    *c = EMPTY_CODE;
                    set.code_page[slot] = 0;
                }
            }
        }
    }

    /// After a CR3 load: only what is global in the kernel's own set stays.
    pub fn switch_space(&mut self, arena: &Arena, keep_global: bool) {
        self.drops += 1;
        if !keep_global {
            (0..SETS).for_each(|set| self.clear_set(hot(arena), set));
            return;
        }
        (1..SETS).for_each(|set| self.clear_set(hot(arena), set));
        let set = &mut hot(arena).sets[0];
        let side = &mut self.sets[0];
        for table in &mut set.data {
            for slot in 0..TLB_ENTRIES {
                if table.page[slot] & GLOBAL == 0 {
                    drop_entry(table, slot);
                }
            }
        }
        for (slot, c) in side.code.iter_mut().enumerate() {
            if !c.global && c.virt_page != u64::MAX {
                *c = EMPTY_CODE;
                set.code_page[slot] = 0;
            }
        }
    }

    /// Drops every translation, and with them every mark on page-table pages.
    pub fn clear_all(&mut self, arena: &Arena, ram: &mut Ram) {
        self.drops += 1;
        for set in 0..SETS {
            self.clear_set(hot(arena), set);
        }
        for page in self.marked.drain(..) {
            ram.remove_marks(page as usize, Marks::TABLE_LEAF.with(Marks::TABLE_UPPER));
        }
        self.stores.clear();
    }

    /// Empties every jump cache, after the code they lead to is gone.
    pub fn clear_all_jumps(&mut self, arena: &Arena) {
        (0..SETS).for_each(|set| self.clear_jumps(arena, set));
    }

    fn clear_jumps(&mut self, arena: &Arena, set: usize) {
        let jump = &mut hot(arena).sets[set].jump;
        // SAFETY: plain integers; zero is a valid value. Zeroing beats dropping the pages for a
        // table that is sparse only in small guests.
        unsafe { std::ptr::write_bytes(jump.as_mut_ptr(), 0, jump.len()) };
        jump[0] = empty_jump(0);
    }

    fn clear_set(&mut self, hot: &mut Hot, set: usize) {
        self.drops += 1;
        let side = &mut self.sets[set];
        if !side.used {
            return;
        }
        side.used = false;
        side.code.fill(EMPTY_CODE);
        let tables = &mut hot.sets[set];
        for kind in 0..2 {
            for slot in 0..TLB_ENTRIES {
                drop_entry(&mut tables.data[kind], slot);
            }
            drop_spill(tables, kind);
        }
        tables.code_page.fill(0);
    }
}

fn drop_entry(table: &mut DataTlb, slot: usize) {
    table.tag[slot] = empty_tag(slot);
    table.leaf[slot] = NO_LEAF;
    table.page[slot] = !GLOBAL;
}

/// Drops every spill entry of one kind by giving live ones another generation.
fn drop_spill(set: &mut ModeSet, kind: usize) {
    set.generation[kind] += 1;
    if set.generation[kind] > GENERATION_MAX {
        set.generation[kind] = 1;
        set.spill[kind].fill(SpillEntry { key: 0, addend: 0, leaf: NO_LEAF, page: !GLOBAL });
    }
}

fn leaf(mapping: &Mapping) -> u64 {
    mapping.entries.last().map_or(NO_LEAF, |e| e.0)
}

#[allow(clippy::mut_from_ref)]
fn hot(arena: &Arena) -> &mut Hot {
    // SAFETY: the arena's hot data is only touched by its vCPU's thread, and the tables only here
    // and in `blocks` while translated code is not running; each borrow ends before the next.
    unsafe { &mut *arena.hot() }
}
