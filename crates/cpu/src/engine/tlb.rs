//! The translation tables that emitted code reads, and what stands behind each entry.
//!
//! **The TLB is coherent.** Every guest page-table page that a cached translation came from bears
//! a mark, so that any store to it is heard of ([`memory::Disturbance`]); a changed present entry
//! drops what was derived from it. So Accessed and Dirty bits, faults and contents are a function
//! of what the guest did and never of what happened to be cached: dropping the tables at any
//! position changes nothing. It also means that INVLPG and CR3 loads have nothing to find stale,
//! and that translations of many address spaces can be kept: see [`super::spaces`].
//!
//! Two levels: small direct-mapped tables for the current address space, which emitted code checks
//! in line; behind them tables tagged by address space, which emitted code searches on a miss
//! (`thunks`) and, for code pages, the run loop.
//!
//! What a store to a page table drops is found by virtual address ([`super::tables`]). What marking
//! a page (as code or page table) drops is found by noting for each page where it is written
//! through ([`super::writers`]).

use super::arena::Arena;
use super::blocks::{Mode, PageId};
use super::entered::{CodeAt, Entered, is_open};
use super::fast_calls::Family;
use super::hot::{
    CODE_SLOTS, DataTlb, Hot, KERNEL, LIFTED, ModeSet, SETS, SPILL_WAYS, SpillEntry, code_slot, empty_tag,
    spill_slot, spill_way, spill_way_offset, tlb_entries, tlb_slot,
};
use super::links::empty_jump;
use super::mirror::{Mirror, Run};
use super::spaces::{KINDS, Kind, Spaces};
use super::table_stores::{self, TablePage};
use super::tables::{Range, Tables, Written};
use super::writers::Writers;
use crate::marks::mark;
use base::{GuestPhys, GuestVirt, PAGE_SIZE};
use memory::{Disturbance, Marks, Ram};

/// Index of the tables for writes in a mode set.
const WRITE: usize = Kind::Write as usize;
/// The present bits of an 8-byte entry, and of a 4-byte one in the word's upper half.
const PRESENT: u64 = 1 | 1 << 32;
/// Entries of one way of the tagged table of code pages, which has as many ways as spill tables.
const CODE_ENTRIES: usize = 8192;
/// Code pages of a program that are shown to emitted code again when its address space returns.
const SHOWN_AGAIN: usize = 64;
/// The mode sets of 64-bit programs, not mirrored and mirrored.
const PROGRAMS: [usize; 2] = [2, 3];
/// Pages from which on a range is dropped by giving everything a new generation.
const LARGE_RANGE: u64 = 2048;

/// What stands behind a code slot.
#[derive(Clone, Copy, Default)]
struct CodeSide {
    virt_page: u64,
    phys_page: u64,
}

/// A code page kept beside the direct-mapped table.
#[derive(Clone, Copy, Default)]
struct CodeEntry {
    /// Address of the page, plus generation; 0: none.
    key: u64,
    phys_page: u64,
    id: PageId,
    set: u8,
}

/// Which slots of a table were filled, as long as they are few.
#[derive(Default)]
struct Filled(Vec<u16>);

impl Filled {
    const FEW: usize = 512;

    fn note(&mut self, slot: usize) {
        if self.0.len() <= Self::FEW {
            self.0.push(slot as u16);
        }
    }

    fn forget(&mut self) {
        self.0.clear();
    }

    /// Those noted since the last time; `None` if they were too many.
    fn take(&mut self) -> Option<std::vec::Drain<'_, u16>> {
        if self.0.len() > Self::FEW {
            self.0.clear();
            return None;
        }
        Some(self.0.drain(..))
    }
}

struct SetSide {
    code: Box<[CodeSide]>,
    /// The slots of it that were filled since it was emptied, or too many.
    filled: Filled,
    mode: Mode,
    /// The direct-mapped tables may hold something: filled from here, or by emitted code, which
    /// fills them from the tables behind.
    used: bool,
    /// The tables for data or for code may hold what is not right in other address spaces, in the
    /// kernel's sets.
    local_data: bool,
    local_code: bool,
    /// In which slots the kernel's own set has such data, or too many. Nothing but Rust puts it there.
    local_slots: Filled,
}

/// How often translations were dropped.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    all: u64,
    /// Those that may have been in the kernel's own set.
    kernels: u64,
}

impl Drops {
    /// Once more, from any set.
    fn count(&mut self) {
        self.all += 1;
        self.kernels += 1;
    }

    /// Whether none that the tables of a set had were dropped since.
    pub fn spared(self, earlier: Drops, set: usize) -> bool {
        if set == KERNEL { self.kernels == earlier.kernels } else { self.all == earlier.all }
    }
}

/// An access whose page is in RAM.
pub struct Touched {
    pub write: bool,
    pub address: GuestVirt,
    /// Index of the RAM page.
    pub page: usize,
}

/// A translation ready to be cached.
pub struct Mapping<'a> {
    /// Physical addresses of the table entries, leaf last; empty when paging is off.
    pub entries: &'a [GuestPhys],
    /// Four levels of 8-byte entries (IA-32e paging).
    pub long: bool,
}

/// The Rust side of all mode sets.
pub struct Tlb {
    sets: Vec<SetSide>,
    spaces: Spaces,
    tables: Tables,
    writers: Writers,
    code: Box<[CodeEntry]>,
    /// What mirrored code may access.
    pub mirror: Mirror,
    /// Where the kernel's code may be entered without looking.
    entered: Entered,
    epoch: u64,
    /// The address space, by its top table, of whose lower half nothing is cached: a program ends with one
    /// store after the other that takes large parts of it away.
    empty_space: Option<u64>,
    /// How often translations were dropped, one or many.
    pub drops: Drops,
    /// Data-TLB fills, for profiles.
    pub fills: u64,
}

impl Tlb {
    /// Empty tables; also makes the arena's tables empty.
    pub fn new(arena: &Arena) -> Self {
        let side = || SetSide {
            code: vec![CodeSide::default(); CODE_SLOTS].into_boxed_slice(),
            filled: Filled::default(),
            mode: Mode::default(),
            used: true,
            local_data: false,
            local_code: false,
            local_slots: Filled::default(),
        };
        let mut tlb = Self {
            sets: (0..SETS).map(|_| side()).collect(),
            spaces: Spaces::new(),
            tables: Tables::default(),
            writers: Writers::default(),
            code: vec![CodeEntry::default(); SPILL_WAYS * CODE_ENTRIES].into_boxed_slice(),
            mirror: Mirror::default(),
            entered: Entered::default(),
            epoch: 0,
            empty_space: None,
            drops: Drops::default(),
            fills: 0,
        };
        for set in 0..SETS {
            tlb.clear_set(arena, set);
            hot(arena).sets[set].jump[0] = empty_jump(0);
            hot(arena).sets[set].jump_behind[0] = empty_jump(0);
        }
        tlb.show_generations(arena);
        tlb
    }

    /// Makes sure that the set of `mode` holds translations of just that mode, and those of the
    /// family the modes that lead to each other without asking (STAC, CLAC, SYSCALL, SYSRET). To be
    /// called before emitted code of that mode runs.
    pub fn enter_mode(&mut self, arena: &Arena, family: &Family, mode: Mode) {
        for mode in [family.kernel, family.lifted, family.program, mode] {
            let set = mode.set();
            if self.sets[set].mode != mode {
                self.clear_set(arena, set);
                KINDS.into_iter().for_each(|kind| self.renew(arena, kind));
                self.clear_jumps(arena, set);
                self.sets[set].mode = mode;
            }
            self.sets[set].used = true;
        }
    }

    /// Whether the tables of a mode's set, and its jump caches, are for that mode.
    pub fn runs(&self, mode: Mode) -> bool {
        self.sets[mode.set()].mode == mode
    }

    /// Makes the tables follow a new dirty epoch: nothing may be written unnoticed.
    pub fn follow_epoch(&mut self, arena: &Arena, ram: &Ram) {
        if self.epoch == ram.epoch() {
            return;
        }
        self.epoch = ram.epoch();
        self.drop_writes(arena);
    }

    /// Caches the translation behind an access, for reads and, where the page may be written without anyone hearing
    /// of it, for writes: if it was one, or `writable` tells that the tables have nothing against one. Who reads
    /// mostly has written, or will.
    pub fn fill_data(
        &mut self,
        arena: &Arena,
        ram: &mut Ram,
        mode: Mode,
        access: Touched,
        writable: bool,
        mapping: &Mapping,
    ) {
        let Touched { write, address, page } = access;
        self.fills += 1;
        self.note_tables(arena, ram, address, mapping);
        let marks = ram.marks(page);
        // Marking the tables may just have marked this very page.
        let unheard = marks.any(Marks::DIRTY) && !marks.any(Marks::HOOKED);
        let for_writes = (write || writable) && unheard;
        let for_reads = !marks.any(Marks::READ_WATCHED);
        if !if write { for_writes } else { for_reads } {
            return;
        }
        let virt = address.page_base().0;
        let addend = (ram.host_page(page) as u64).wrapping_sub(virt);
        if for_reads {
            show_data(arena, mode.set(), Kind::Read, virt, addend);
        }
        if for_writes {
            self.writers.note(page, virt);
            show_data(arena, mode.set(), Kind::Write, virt, addend);
        }
        let set = &mut self.sets[mode.set()];
        set.used = true;
        if !is_upper(virt) {
            self.empty_space = None;
            set.local_data = true;
            if mode.set() == KERNEL {
                set.local_slots.note(tlb_slot(KERNEL, address.page()));
            }
        }
    }

    /// Prepares the mirror for holding the translation behind an access by a program, for writes too if it
    /// was one, or if a write (`writable`: the tables have nothing against it) need not be heard of. What
    /// is to be mapped; `None` if it cannot be held.
    pub fn admit_to_mirror(
        &mut self,
        arena: &Arena,
        ram: &mut Ram,
        access: Touched,
        mapping: &Mapping,
        writable: bool,
    ) -> Option<Run> {
        let Touched { write, address, page } = access;
        self.fills += 1;
        self.note_tables(arena, ram, address, mapping);
        let marks = ram.marks(page);
        let unheard = marks.any(Marks::DIRTY) && !marks.any(Marks::HOOKED);
        if marks.any(Marks::READ_WATCHED) || write && !unheard {
            return None;
        }
        let write = write || writable && unheard;
        let virt = address.page_base().0;
        if write {
            self.writers.note(page, virt);
        }
        self.empty_space = None;
        Some(Run { virt, index: page, pages: 1, write })
    }

    /// The entry of the kernel's spill table that holds the translation of its page at `virt` for reads, and its key.
    pub fn spilled(&self, arena: &Arena, virt: GuestVirt) -> Option<(u64, u64)> {
        let (entry, key) = spill_entry(arena, KERNEL, Kind::Read, virt.page_base().0);
        (entry.key == key).then_some((std::ptr::from_ref(entry) as u64, key))
    }

    /// Has the mirror allow writes to a page of RAM that it holds at `virt`, which the tables have nothing
    /// against; whether that may be.
    pub fn admit_writes_to_mirror(&mut self, ram: &mut Ram, virt: u64, page: usize) -> bool {
        if ram.marks(page).any(Marks::HOOKED) {
            return false;
        }
        ram.mark_dirty(page);
        self.writers.note(page, virt);
        true
    }

    /// Has the next access at `virt` that does not look whether it may be made find `addend`. Those that
    /// look find nothing. Returns the slot.
    pub fn lend_addend(
        &mut self,
        arena: &Arena,
        mode: Mode,
        virt: GuestVirt,
        write: bool,
        addend: u64,
    ) -> usize {
        let slot = tlb_slot(mode.set(), virt.page());
        let table = &mut hot(arena).sets[mode.set()].data[write as usize];
        table.tag[slot] = empty_tag(mode.set(), slot);
        table.addend[slot] = addend;
        slot
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
        self.note_tables(arena, ram, virt, mapping);
        let set = mode.set();
        self.show_code(arena, set, virt.page(), phys.page(), id);
        self.note_entered(mode, virt, phys);
        if !is_upper(virt.0) {
            self.empty_space = None;
        }
        if is_upper(virt.0) || set != 0 {
            let generation = self.spaces.generation(set, Kind::Code);
            let key = virt.page_base().0 + generation;
            let entry = CodeEntry { key, phys_page: phys.page(), id, set: set as u8 };
            self.code[code_entry(virt.page(), spill_way(generation))] = entry;
        }
    }

    fn show_code(&mut self, arena: &Arena, set: usize, virt_page: u64, phys_page: u64, id: PageId) {
        let slot = code_slot(virt_page);
        hot(arena).sets[set].code_page[slot] = id;
        self.sets[set].code[slot] = CodeSide { virt_page, phys_page };
        let side = &mut self.sets[set];
        side.filled.note(slot);
        side.used = true;
        side.local_code |= !is_upper(virt_page << 12);
    }

    /// The cached physical page behind a virtual page for execution, which emitted code is told of
    /// too.
    pub fn code(&mut self, arena: &Arena, mode: Mode, virt: GuestVirt) -> Option<GuestPhys> {
        let (set, page) = (mode.set(), virt.page());
        let shown = self.shown_code(arena, set, page).map(|phys_page| GuestPhys(phys_page << 12));
        let found = shown.or_else(|| self.find_code(arena, set, virt));
        if let Some(phys) = found {
            self.note_entered(mode, virt, phys);
        }
        found
    }

    fn note_entered(&mut self, mode: Mode, virt: GuestVirt, phys: GuestPhys) {
        if is_open(mode, virt.0) {
            let entered = if is_upper(virt.0) { &mut self.entered } else { &mut self.mirror.entered };
            entered.note(virt, phys);
        }
    }

    /// Whether code of a physical page may be running, or be entered without being found anew, at a virtual
    /// page.
    pub fn runs_code(&self, arena: &Arena, mode: Mode, virt_page: u64, phys_page: u64) -> bool {
        let known = [self.shown_code(arena, mode.set(), virt_page), self.code_behind(arena, mode, virt_page)];
        known.contains(&Some(phys_page))
    }

    /// The physical page that emitted code is told to be behind a virtual one.
    fn shown_code(&self, arena: &Arena, set: usize, virt_page: u64) -> Option<u64> {
        let slot = code_slot(virt_page);
        let side = self.sets[set].code[slot];
        let shown = side.virt_page == virt_page && hot(arena).sets[set].code_page[slot] != 0;
        shown.then_some(side.phys_page)
    }

    /// Whether an address space is known to have a physical page at a virtual one, so that a program may come
    /// back to it.
    pub fn knows_code(&self, mode: Mode, virt_page: u64, phys_page: u64) -> bool {
        (0..SPILL_WAYS).any(|way| {
            let entry = self.code[code_entry(virt_page, way)];
            entry.key >> 12 == virt_page
                && (entry.phys_page, entry.set as usize) == (phys_page, mode.set())
                && self.spaces.is_good(entry.key & 0xfff, Kind::Code)
        })
    }

    /// The physical page whose code may be entered at a virtual page, if any is known.
    pub fn code_behind(&self, arena: &Arena, mode: Mode, virt_page: u64) -> Option<u64> {
        let virt = virt_page << 12;
        match is_open(mode, virt) {
            true if is_upper(virt) => self.entered.behind(virt_page),
            true => self.mirror.entered.behind(virt_page),
            false => self.shown_code(arena, mode.set(), virt_page),
        }
    }

    /// A page at which code may be entered again, once.
    pub fn next_come(&mut self) -> Option<CodeAt> {
        self.mirror.entered.next_come().or_else(|| self.entered.next_come())
    }

    /// A page at which code may not be entered any more unless it is found anew, once.
    pub fn next_left(&mut self) -> Option<CodeAt> {
        self.mirror.entered.next_left().or_else(|| self.entered.next_left())
    }

    /// The same, looked for in the tagged table only.
    fn find_code(&mut self, arena: &Arena, set: usize, virt: GuestVirt) -> Option<GuestPhys> {
        let page = virt.page();
        let generation = self.spaces.generation(set, Kind::Code);
        let entry = self.code[code_entry(page, spill_way(generation))];
        let key = virt.page_base().0 + generation;
        if entry.key != key || entry.set as usize != set {
            return None;
        }
        self.show_code(arena, set, page, entry.phys_page, entry.id);
        Some(GuestPhys(entry.phys_page << 12))
    }

    fn note_tables(&mut self, arena: &Arena, ram: &mut Ram, virt: GuestVirt, mapping: &Mapping) {
        for (depth, entry) in mapping.entries.iter().enumerate() {
            let Some(page) = ram.page_index(*entry) else { continue };
            self.note_table(arena, ram, page, virt.0, mapping.long.then_some(depth));
        }
    }

    fn note_table(&mut self, arena: &Arena, ram: &mut Ram, page: usize, virt: u64, depth: Option<usize>) {
        self.tables.make_room(ram.pages());
        if let Some(before) = self.tables.note(page, virt, depth, self.spaces.current_root()) {
            before.into_iter().for_each(|range| self.drop_range(arena, range));
            // What has been shown of it may not hold any more.
            self.forbid_writes(arena, page);
        }
        if !ram.marks(page).any(Marks::TABLE) {
            ram.add_marks(page, Marks::TABLE);
            self.forbid_writes(arena, page);
        }
    }

    /// Drops write translations of a page that has just been marked.
    pub fn forbid_writes(&mut self, arena: &Arena, page: usize) {
        match self.writers.take(page) {
            Some(addresses) => {
                for virt in addresses {
                    self.drops.count();
                    self.mirror.forbid_write(virt);
                    for set in 0..SETS {
                        drop_data(set, &mut hot(arena).sets[set], Kind::Write, virt, 0..SPILL_WAYS);
                    }
                }
            }
            None => self.drop_writes(arena),
        }
    }

    /// Whether a store of `len` bytes at `offset` of a marked page-table page, into the one word `old`,
    /// concerns nothing that is cached, and notes that it is made if so.
    pub fn table_written_in_vain(&mut self, page: usize, offset: usize, len: usize, old: u64) -> bool {
        self.tables.written_in_vain(page, offset, len, old & PRESENT != 0)
    }

    /// Shows emitted code the table on page `page`, which the kernel writes to at `virt` of its half, by way of
    /// `mapping`, if it may make stores to it by itself.
    pub fn show_table(
        &mut self,
        arena: &Arena,
        ram: &mut Ram,
        virt: GuestVirt,
        page: usize,
        mapping: &Mapping,
    ) {
        self.note_tables(arena, ram, virt, mapping);
        let virt = virt.page_base().0;
        if ram.marks(page) != Marks::TABLE.with(Marks::DIRTY) {
            return;
        }
        if let Some((used, given)) = self.tables.lend(page) {
            self.writers.note(page, virt);
            let addend = (ram.host_page(page) as u64).wrapping_sub(virt);
            let (shown, key) = shown_table(arena, virt);
            *shown = TablePage { key, addend, used: used as u64, left: given, given };
        }
    }

    /// Hides it again, and notes which stores were made.
    pub fn hide_table(&mut self, arena: &Arena, virt: GuestVirt, page: usize) {
        let (shown, key) = shown_table(arena, virt.page_base().0);
        if shown.key == key {
            if shown.left < shown.given {
                mark!(TableStoresMade);
                self.tables.made(page, shown.given - shown.left);
            }
            shown.key = 0;
        }
    }

    /// Acts on a store to a marked page-table page.
    pub fn table_written(&mut self, arena: &Arena, ram: &mut Ram, d: Disturbance) {
        let was_present = d.old_word.is_none_or(|old| old & PRESENT != 0);
        match self.tables.written(d.page, d.offset as usize, d.len as usize, was_present) {
            Written::Nothing => {}
            Written::Range(range) => self.drop_range(arena, range),
            Written::Retire(ranges) => {
                ranges.into_iter().for_each(|range| self.drop_range(arena, range));
                ram.remove_marks(d.page, Marks::TABLE);
            }
            Written::Unknown => self.clear_all(arena, ram),
        }
    }

    /// Drops what is cached of a range, in every address space.
    fn drop_range(&mut self, arena: &Arena, range: Range) {
        if range.is_low() && range.root.is_some() && range.root == self.empty_space {
            return;
        }
        self.drops.all += 1;
        // What the kernel's own set has of the lower half is in its direct-mapped table alone (see [`show_data`]).
        let kernels = !range.is_low() || self.sets[KERNEL].local_data;
        if kernels {
            self.drops.kernels += 1;
        }
        if range.pages > LARGE_RANGE {
            self.drop_large(arena, range);
            return;
        }
        let Range { virt, pages, .. } = range;
        self.mirror.drop_range(range.root, virt, pages);
        self.entered.leave(GuestVirt(virt).page(), pages);
        let addresses = || (0..pages).map(move |n| virt.wrapping_add(n * PAGE_SIZE as u64));
        // In one address space only? Then the direct-mapped tables hold it only if that is current.
        let only = range.root.filter(|_| range.is_low());
        let shown = only.is_none_or(|root| root == self.spaces.current_root());
        for kind in [Kind::Read, Kind::Write] {
            let ways = self.ways(only, kind);
            for (number, set) in hot(arena).sets.iter_mut().enumerate() {
                if self.sets[number].mode != Mode::default() && (number != KERNEL || kernels) {
                    addresses().for_each(|virt| drop_data(number, set, kind, virt, ways.clone()));
                }
            }
        }
        let ways = self.ways(only, Kind::Code);
        for address in addresses() {
            let page = GuestVirt(address).page();
            for (set, side) in self.sets.iter().enumerate().filter(|_| shown) {
                let slot = code_slot(page);
                if side.code[slot].virt_page == page {
                    hot(arena).sets[set].code_page[slot] = 0;
                }
            }
            for way in ways.clone() {
                let entry = &mut self.code[code_entry(page, way)];
                if entry.key & !0xfff == address {
                    entry.key = 0;
                }
            }
        }
    }

    /// The ways in which the tagged tables may hold translations of a kind: of one address space, by
    /// its top table, or of all.
    fn ways(&self, only: Option<u64>, kind: Kind) -> std::ops::Range<usize> {
        match only.map(|root| self.spaces.generation_of(root, kind)) {
            None => 0..SPILL_WAYS,
            Some(None) => 0..0,
            Some(Some(generation)) => spill_way(generation)..spill_way(generation) + 1,
        }
    }

    /// The same for a range too large to be looked through.
    fn drop_large(&mut self, arena: &Arena, range: Range) {
        let current = range.root == Some(self.spaces.current_root());
        let Some(root) = range.root.filter(|_| range.is_low() || range.top && !current) else {
            self.drop_everything(arena);
            return;
        };
        self.mirror.drop_space(root);
        if current {
            self.clear_local(arena);
        }
        for kind in self.spaces.forget(root) {
            self.wipe(arena, kind);
        }
        self.show_generations(arena);
        self.empty_space = Some(root);
    }

    /// Empties the direct-mapped tables but for what all address spaces share: what the kernel's
    /// own set holds, and what code its other set knows.
    fn clear_local(&mut self, arena: &Arena) {
        for set in 0..SETS {
            let SetSide { used, local_data, local_code, .. } = self.sets[set];
            if set == KERNEL && local_data {
                self.clear_kernels_local_data(arena);
            } else if set != KERNEL && used {
                self.clear_data(arena, set);
            }
            if set > 1 && used || local_code {
                self.clear_code(arena, set);
            }
            self.sets[set].used &= set == 0;
        }
    }

    /// Makes the address space of the page tables at `root` the current one; `long`: they are those
    /// of IA-32e paging.
    ///
    /// What the kernel's own set keeps is right in the new space as well if the upper halves of the
    /// two top tables are the same, Accessed bits included. From then on the new table is watched.
    pub fn enter_space(&mut self, arena: &Arena, ram: &mut Ram, root: u64, long: bool) {
        let old = self.spaces.current_root();
        if old == root {
            return;
        }
        self.drops.count();
        if !long || upper_half(ram, old) != upper_half(ram, root) {
            self.drop_everything(arena);
        }
        self.remember_code();
        let wiped = self.spaces.enter(root);
        wiped.into_iter().for_each(|kind| self.wipe(arena, kind));
        self.clear_local(arena);
        self.show_generations(arena);
        self.show_code_again(arena);
        if let (true, Some(page)) = (long, ram.page_index(GuestPhys(root))) {
            self.note_table(arena, ram, page, 0, Some(0));
        }
    }

    /// Notes for the address space being left which code pages of its program emitted code knew.
    fn remember_code(&mut self) {
        for (set, shown) in PROGRAMS.into_iter().zip(self.spaces.shown()) {
            let SetSide { filled, code, .. } = &self.sets[set];
            let latest = &filled.0[filled.0.len().saturating_sub(SHOWN_AGAIN)..];
            shown.clear();
            shown.extend(latest.iter().map(|slot| code[*slot as usize].virt_page));
        }
    }

    /// Tells emitted code of them as far as they are still there. Without it each costs an exit.
    fn show_code_again(&mut self, arena: &Arena) {
        let mut shown = std::mem::take(self.spaces.shown());
        for (set, shown) in PROGRAMS.into_iter().zip(&mut shown) {
            for page in shown.drain(..) {
                self.find_code(arena, set, GuestVirt(page << 12));
            }
        }
        *self.spaces.shown() = shown;
    }

    /// Whether the address space of the page tables at `root` is the current one.
    pub fn in_space(&self, root: u64) -> bool {
        self.spaces.current_root() == root
    }

    /// Drops every translation, and with them every mark on page-table pages.
    pub fn clear_all(&mut self, arena: &Arena, ram: &mut Ram) {
        self.drop_everything(arena);
        for page in self.tables.take() {
            ram.remove_marks(page, Marks::TABLE);
        }
    }

    fn drop_everything(&mut self, arena: &Arena) {
        self.mirror.clear();
        self.entered.leave_all();
        (0..SETS).for_each(|set| self.clear_set(arena, set));
        KINDS.into_iter().for_each(|kind| self.renew(arena, kind));
    }

    /// Drops all write translations.
    fn drop_writes(&mut self, arena: &Arena) {
        self.drops.count();
        self.writers.forget();
        self.mirror.forbid_writes();
        self.renew(arena, Kind::Write);
        for (number, set) in hot(arena).sets.iter_mut().enumerate() {
            clear_data(number, &mut set.data[WRITE]);
        }
    }

    /// Empties every jump cache, after the code they lead to is gone.
    pub fn clear_all_jumps(&mut self, arena: &Arena) {
        (0..SETS).for_each(|set| self.clear_jumps(arena, set));
    }

    fn clear_jumps(&mut self, arena: &Arena, set: usize) {
        let set = &mut hot(arena).sets[set];
        for jump in [&mut set.jump[..], &mut set.jump_behind] {
            // Looking first leaves alone what was never used, and is no memory of ours yet.
            jump.iter_mut().filter(|entry| entry.code != 0).for_each(|entry| *entry = empty_jump(1));
            jump[0] = empty_jump(0);
        }
    }

    /// Empties the direct-mapped tables of a set.
    fn clear_set(&mut self, arena: &Arena, set: usize) {
        self.clear_data(arena, set);
        self.clear_code(arena, set);
    }

    fn clear_data(&mut self, arena: &Arena, set: usize) {
        self.drops.count();
        self.sets[set].local_data = false;
        self.sets[set].local_slots.forget();
        hot(arena).sets[set].data.iter_mut().for_each(|table| clear_data(set, table));
    }

    /// Empties the slots of the kernel's own set that have data of one address space: the whole is large.
    fn clear_kernels_local_data(&mut self, arena: &Arena) {
        let Some(slots) = self.sets[KERNEL].local_slots.take() else { return self.clear_data(arena, KERNEL) };
        for slot in slots.map(usize::from) {
            let tables = &mut hot(arena).sets[KERNEL].data;
            tables.iter_mut().for_each(|table| table.tag[slot] = empty_tag(KERNEL, slot));
        }
        self.drops.count();
        self.sets[KERNEL].local_data = false;
    }

    fn clear_code(&mut self, arena: &Arena, set: usize) {
        self.sets[set].local_code = false;
        let code_page = &mut hot(arena).sets[set].code_page;
        match self.sets[set].filled.take() {
            Some(slots) => slots.into_iter().for_each(|slot| code_page[slot as usize] = 0),
            None => code_page.fill(0),
        }
    }

    /// Makes everything of one kind that is kept behind the direct-mapped tables invalid.
    fn renew(&mut self, arena: &Arena, kind: Kind) {
        self.drops.count();
        if self.spaces.renew(kind) {
            self.wipe(arena, kind);
        }
        self.show_generations(arena);
    }

    /// Generations of a kind begin anew: no entry may bear an old one.
    fn wipe(&mut self, arena: &Arena, kind: Kind) {
        match kind {
            Kind::Code => self.code.fill(CodeEntry::default()),
            Kind::Read | Kind::Write => {
                for set in &mut hot(arena).sets {
                    // Looking first leaves alone what was never used, and is no memory of ours yet.
                    let used = set.spill[kind as usize].as_flattened_mut().iter_mut().filter(|e| e.key != 0);
                    used.for_each(|entry| entry.key = 0);
                    if kind == Kind::Write {
                        set.table_pages.iter_mut().filter(|page| page.key != 0).for_each(|page| page.key = 0);
                    }
                }
            }
        }
    }

    fn show_generations(&self, arena: &Arena) {
        for (number, set) in hot(arena).sets.iter_mut().enumerate() {
            for kind in [Kind::Read, Kind::Write] {
                let generation = self.spaces.generation(number, kind);
                set.generation[kind as usize] = generation;
                set.way[kind as usize] = spill_way_offset(generation);
            }
        }
    }
}

/// Whether an address is in the kernel's half, which all address spaces between which nothing is
/// dropped have in common (see [`Tlb::enter_space`]), global or not: the tables are coherent.
pub fn is_upper(virt: u64) -> bool {
    (virt as i64) < 0
}

/// The entries of a top table for the kernel's half of the address space.
fn upper_half(ram: &Ram, root: u64) -> Option<&[u8]> {
    let page = ram.page_index(GuestPhys(root))?;
    Some(&ram.page_bytes(page)[PAGE_SIZE / 2..])
}

fn code_entry(page: u64, way: usize) -> usize {
    way * CODE_ENTRIES + page as usize % CODE_ENTRIES
}

/// Has emitted code find a data translation, in the direct-mapped table and in the one behind it.
fn show_data(arena: &Arena, number: usize, kind: Kind, virt: u64, addend: u64) {
    let set = &mut hot(arena).sets[number];
    let (page, table) = (GuestVirt(virt).page(), kind as usize);
    let slot = tlb_slot(number, page);
    set.data[table].tag[slot] = virt.wrapping_neg();
    set.data[table].addend[slot] = addend;
    if is_upper(virt) || number != 0 {
        let (entry, key) = spill_entry(arena, number, kind, virt);
        *entry = SpillEntry { key, addend };
    }
}

/// The entry of a set's spill table that may hold the translation of the page at `virt`, and the key that says so.
fn spill_entry(arena: &Arena, number: usize, kind: Kind, virt: u64) -> (&mut SpillEntry, u64) {
    // The kernel's half is the same in all address spaces, whichever of its sets it is in.
    let like = if is_upper(virt) && number == LIFTED { KERNEL } else { number };
    let generation = hot(arena).sets[like].generation[kind as usize];
    let way = &mut hot(arena).sets[number].spill[kind as usize][spill_way(generation)];
    (&mut way[spill_slot(GuestVirt(virt).page())], virt + generation)
}

/// Likewise what may be shown of a page table that the kernel writes to at `virt`.
fn shown_table(arena: &Arena, virt: u64) -> (&mut TablePage, u64) {
    let kernel = &mut hot(arena).sets[KERNEL];
    let key = virt + kernel.generation[WRITE];
    (&mut kernel.table_pages[table_stores::slot(GuestVirt(virt).page())], key)
}

/// Drops a page from the tables of one kind, of the tagged one in these ways.
fn drop_data(number: usize, set: &mut ModeSet, kind: Kind, virt: u64, ways: std::ops::Range<usize>) {
    let (page, kind) = (GuestVirt(virt).page(), kind as usize);
    let slot = tlb_slot(number, page);
    if set.data[kind].tag[slot] == virt.wrapping_neg() {
        set.data[kind].tag[slot] = empty_tag(number, slot);
    }
    for way in &mut set.spill[kind][ways] {
        let spilled = &mut way[spill_slot(page)];
        if spilled.key & !0xfff == virt {
            spilled.key = 0;
        }
    }
    if kind == WRITE && is_upper(virt) {
        let shown = &mut set.table_pages[table_stores::slot(page)];
        if shown.key & !0xfff == virt {
            shown.key = 0;
        }
    }
}

/// Empties a table of a mode set.
fn clear_data(set: usize, table: &mut DataTlb) {
    let entries = tlb_entries(set);
    table.tag[..entries].fill(0);
    for slot in [0, entries - 1] {
        table.tag[slot] = empty_tag(set, slot);
    }
}

#[allow(clippy::mut_from_ref)]
fn hot(arena: &Arena) -> &mut Hot {
    // SAFETY: the arena's hot data is only touched by its vCPU's thread, and the tables only here
    // and in `blocks` while translated code is not running; each borrow ends before the next.
    unsafe { &mut *arena.hot() }
}
