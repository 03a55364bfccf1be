//! Finding the block for an address, and translating what has none.

use super::blocks::{BlockId, BlockKey, Blocks, BuildMix, Mode};
use super::kept::Granted;
use super::mirror::Mirror;
use super::moves::is_movable;
use super::profile::{self, Work};
use super::tlb::Mapping;
use super::translate::{Place, Surroundings, Translator};
use super::vcpu::Vcpu;
use crate::Bus;
use crate::walk::{self, Access};
use base::{GuestPhys, GuestVirt, PAGE_SIZE};
use memory::Marks;
use std::collections::HashSet;
use x86::{Exception, paging};

impl Vcpu {
    /// The translated block for RIP, made if need be; `None` when the instruction must be
    /// executed from Rust (it is not in RAM).
    pub(super) fn block_at_rip(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        limit: u64,
    ) -> Result<Option<BlockId>, Exception> {
        let state = self.state();
        let virt = if mode.is64() {
            GuestVirt(state.rip)
        } else {
            GuestVirt(state.seg[1].base.wrapping_add(state.rip) & 0xffff_ffff)
        };
        if mode.is64() && !paging::is_canonical(virt.0) {
            return Err(Exception::gp(0));
        }
        if !mode.is64() && state.rip > state.seg[1].limit as u64 {
            return Err(Exception::gp(0));
        }
        // Translated code knows nothing of the limit: what has one is fetched by Rust, which looks.
        if !mode.is64() && !mode.has(Mode::FLAT[1]) {
            return Ok(None);
        }
        let Some(phys) = self.code_page(bus, mode, virt)? else { return Ok(None) };
        let phys = phys.offset(virt.page_offset() as u64);
        let key = BlockKey { phys: phys.0, virt: virt.0, mode, limit: limit as u8, shares: true };
        if let Some(block) = self.blocks.find(&key) {
            let Some(second) = self.blocks.get(block).second_page else { return Ok(Some(block)) };
            let next = GuestVirt(virt.page_base().0.wrapping_add(PAGE_SIZE as u64));
            match self.code_page(bus, mode, next)? {
                Some(page) if page.page() == second => return Ok(Some(block)),
                _ => self.blocks.forget(&mut self.arena, block),
            }
        }
        self.translate(bus, key)
    }

    /// The physical page behind `virt` for execution. `None`: not RAM.
    fn code_page(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        virt: GuestVirt,
    ) -> Result<Option<GuestPhys>, Exception> {
        match self.tlb.code(&self.arena, mode, virt) {
            Some(page) => Ok(Some(page)),
            None => self.map_code(bus, mode, virt),
        }
    }

    /// Walks the page tables for execution at `virt`. `None`: not RAM.
    fn map_code(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        virt: GuestVirt,
    ) -> Result<Option<GuestPhys>, Exception> {
        let state = self.state();
        let long = state.long_mode();
        let found = walk::translate(state, bus.ram(), virt, Access::fetch(state))?;
        let page = found.phys.page_base();
        if bus.ram().page_index(page).is_none() {
            return Ok(None);
        }
        let id = self.blocks.page_id(virt.page(), page.page(), mode);
        let mapping = Mapping { entries: &found.entries[..found.levels], long };
        self.tlb.fill_code(&self.arena, bus.ram(), mode, virt, page, id, &mapping);
        Ok(Some(page))
    }

    /// Translates the block of `key`; `None` when Rust must execute its first instruction.
    pub(super) fn translate(
        &mut self,
        bus: &mut dyn Bus,
        key: BlockKey,
    ) -> Result<Option<BlockId>, Exception> {
        let _work = profile::work(Work::Translate);
        if !self.blocks.has_room() {
            self.drop_code(bus);
            // Only our record that the page is mapped is gone, and found again here.
            self.map_code(bus, key.mode, GuestVirt(key.virt))?;
        }
        if let Some(copy) = self.copied(key) {
            return Ok(Some(copy));
        }
        let phys = GuestPhys(key.phys);
        let Some(page) = bus.ram().page_index(phys) else { return Ok(None) };
        let mut joined = Vec::new();
        let mut second = None;
        if Translator::crosses(key.mode, &bus.ram().page_bytes(page)[phys.page_offset()..]) {
            let next = GuestVirt(GuestVirt(key.virt).page_base().0.wrapping_add(PAGE_SIZE as u64));
            let wraps = !key.mode.is64() && next.0 > u32::MAX as u64 || next.0 == 0;
            if wraps || key.mode.is64() && !paging::is_canonical(next.0) {
                return Ok(None);
            }
            let Some(next_phys) = self.code_page(bus, key.mode, next)? else { return Ok(None) };
            let Some(next_page) = bus.ram().page_index(next_phys) else { return Ok(None) };
            joined.extend(bus.ram().page_bytes(page));
            joined.extend(&bus.ram().page_bytes(next_page)[..15]);
            self.mark_code(bus, next_page);
            let id = self.blocks.page_id(next.page(), next_phys.page(), key.mode);
            second = Some((id, next_phys.page()));
        }
        self.mark_code(bus, page);
        if let (None, Some(kept)) = (second, self.kept_block(bus, key, page)) {
            return Ok(Some(kept));
        }
        let bytes = if second.is_some() { &joined[..] } else { bus.ram().page_bytes(page) };
        let (origin, cold) = self.blocks.next_addresses();
        let place = Place {
            origin,
            cold,
            base: self.arena.base(),
            thunks: self.thunks,
            block: self.blocks.next_id(),
            exits: self.blocks.exits.len() as u32,
            page_id: self.blocks.page_id(key.virt >> 12, phys.page(), key.mode),
            second,
        };
        let limit = if second.is_some() {
            1
        } else if key.shares {
            key.limit
        } else {
            // A twin has the same instructions.
            let other = self.blocks.find(&BlockKey { shares: true, ..key });
            other.map_or(key.limit, |other| self.blocks.get(other).count)
        };
        let mut surroundings = Around {
            key,
            whole: key.is_whole(),
            covered: self.blocks.lines_of(phys.page()),
            blocks: &self.blocks,
            checked: &self.mirroring.checked,
            mirror: &mut self.tlb.mirror,
            granted: Granted::default(),
        };
        self.translator.read(key, bytes, limit, &self.debugging.breakpoints, &mut surroundings);
        let granted = surroundings.granted;
        let Blocks { exits, insns, .. } = &mut self.blocks;
        let mut translated = self.translator.block(key, bytes, place, exits, insns);
        self.arena.write_code(place.origin, &translated.code);
        self.arena.write_code(place.cold, &translated.cold);
        self.statistics.blocks_translated += 1;
        if let Some(kept) = &mut self.kept
            && self.debugging.breakpoints.is_empty()
        {
            kept.keep(&translated, bytes, &place, &self.blocks, &granted);
        }
        if let Some(notes) = translated.notes.filter(|_| translated.slides && is_movable(&key)) {
            translated.block.notes = self.blocks.keep_notes(&notes);
        }
        self.blocks.make_room_at(&mut self.arena, &key);
        Ok(Some(self.blocks.add(translated.block)))
    }

    fn mark_code(&mut self, bus: &mut dyn Bus, page: usize) {
        if !bus.ram().marks(page).any(Marks::CODE) {
            bus.ram().add_marks(page, Marks::CODE);
            self.tlb.forbid_writes(&self.arena, page);
        }
    }
}

/// What surrounds the block of `key` that is being read.
struct Around<'a> {
    key: BlockKey,
    /// It is a whole one, which ends where others begin.
    whole: bool,
    /// One bit per 64 bytes of the page that some block covers.
    covered: u64,
    blocks: &'a Blocks,
    checked: &'a HashSet<u64, BuildMix>,
    mirror: &'a mut Mirror,
    granted: Granted,
}

impl Surroundings for Around<'_> {
    fn begins_block(&self, at: usize) -> bool {
        if !self.whole || self.covered >> (at >> 6) & 1 == 0 {
            return false;
        }
        let away = (at as u64).wrapping_sub(self.key.phys % PAGE_SIZE as u64);
        let (phys, virt) = (self.key.phys.wrapping_add(away), self.key.virt.wrapping_add(away));
        let key = BlockKey { phys, virt, ..self.key };
        self.blocks.may_begin(phys) && self.blocks.find(&key).is_some()
    }

    fn is_checked(&mut self, virt: u64) -> bool {
        let checked = self.checked.contains(&virt);
        self.granted.special |= checked;
        checked
    }

    fn claims(&mut self, virt: u64) -> bool {
        let granted = self.mirror.claim(virt);
        match granted {
            true => self.granted.claims.push(virt),
            false => self.granted.special = true,
        }
        granted
    }
}
