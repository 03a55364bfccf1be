//! Accesses that the TLB does not know, and the twins of blocks.
//!
//! A miss fills the TLB and tries again, or Rust executes the instruction: where the operand is no RAM,
//! or is RAM that stores may not reach unseen.
//!
//! Some accesses may be made just this once: stores to a page that a debugger watches, but beside the
//! watched bytes, or to a page table, but to an entry of which nothing is cached, and reads of an operand
//! on two pages, from a copy. Such an instruction goes on behind its check, with an addend that nothing
//! else finds.
//!
//! A walk sets Accessed and Dirty bits. Should there be code where it does so, this very instruction or
//! one behind it, Rust executes the instruction, as it was before the walk.
//!
//! Where accesses share a check (see `groups`) there is a third case: each is fine by itself, but
//! together they lie on two pages, or on one that not all of them may go to unseen, or the addend put
//! aside for them is no longer good. Then execution goes on at the same instruction of the block's
//! *twin*, a translation of the same instructions without shared checks. The two count alike, so one
//! can be left for the other anywhere.

use super::blocks::{BlockId, BlockKey, Exit as BlockExit, ExitId, ExitKind, Mode};
use super::bounce::{check_vector_alignment, must_be_aligned};
use super::hot::KERNEL;
use super::interpret::waits_for_x87;
use super::profile::{self, Work};
use super::run::Next;
use super::strings::Shape;
use super::tlb::{Mapping, Touched, is_upper};
use super::vcpu::{Miss, Vcpu};
use super::x87;
use super::xstate;
use crate::Bus;
use crate::marks::mark;
use crate::system::operand;
use crate::walk::{self, Access, Translation};
use base::{GuestVirt, PAGE_SIZE};
use iced_x86::{Instruction, Mnemonic};
use memory::{Disturbance, Marks};
use x86::{Exception, gpr, paging};

/// How often the TLB is filled for one execution of an instruction before it is done from Rust.
const FILLS_MAX: u8 = 4;

/// How often a group's page may be one that is not to be written to unseen before its leader is translated by itself.
const GROUP_PATIENCE: u8 = 64;

/// What came of filling the TLB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Filled {
    Done,
    /// Stores to the page that this leads to have to be heard of.
    Hooked(Translation),
    Not,
}

/// An access that the TLB does not know.
pub struct Wanted {
    pub linear: u64,
    pub size: usize,
    pub write: bool,
}

impl Vcpu {
    /// A TLB miss: fill and retry, or execute the instruction from Rust.
    pub(super) fn access(&mut self, bus: &mut dyn Bus, mode: Mode, id: ExitId, wanted: Wanted) -> Next {
        let _work = profile::work(Work::TlbMiss);
        let Wanted { linear, size, write } = wanted;
        let BlockExit { block, insn: k, kind, .. } = self.blocks.exits[id.0 as usize];
        let leader = matches!(kind, ExitKind::Access { across: 1.., .. });
        let virt = GuestVirt(linear);
        let crossing = virt.page_offset() + size > PAGE_SIZE;
        if crossing {
            mark!(Crossing);
        }
        let early = (size >= 16 || self.x87_in_host && x87::exception_pending())
            && self.faults_before_access(bus, mode, id);
        let mut filled = Filled::Not;
        if !crossing && !early {
            let allowed = |vcpu: &mut Self| vcpu.may_fill(block, k);
            filled = self.fill(bus, mode, virt, write, allowed).unwrap_or(Filled::Not);
            if filled == Filled::Done && !bus.ram().is_disturbed() {
                if !self.groups_stale(block) {
                    return Next::Enter(self.blocks.host_of(block, k));
                }
                if let Some(twin) = self.twin(bus, block) {
                    return Next::Enter(self.blocks.host_of(twin, k));
                }
                self.arrive_at(block, k);
                return Next::Loop;
            }
        }
        let disturbed = bus.ram().is_disturbed();
        if !leader
            && !early
            && let Some(next) = self.admit_once(bus, mode, id, &wanted, filled)
        {
            return next;
        }
        // What holds for the leader need not hold for the others.
        if leader
            && !disturbed
            && let Some(twin) = self.twin(bus, block)
        {
            if crossing {
                mark!(GroupCrossing);
                self.blocks.link_across(&mut self.arena, id, twin);
            }
            let next = Next::Enter(self.blocks.host_of(twin, k));
            if matches!(filled, Filled::Hooked(_)) && self.note_failure(block, k, GROUP_PATIENCE) {
                mark!(GroupGivenUp);
            }
            return next;
        }
        self.arrive_at(block, k);
        self.interpret_in_block(bus, mode, id)
    }

    /// Fills the TLB for an access that is made at `virt`, unless it is at no canonical address, is not of RAM, is to
    /// be seen each time, or is not `allowed`, which is asked last.
    ///
    /// # Errors
    /// The page fault it makes.
    fn fill(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        virt: GuestVirt,
        write: bool,
        allowed: impl FnOnce(&mut Self) -> bool,
    ) -> Result<Filled, Exception> {
        if mode.is64() && !paging::is_canonical(virt.0) {
            return Ok(Filled::Not);
        }
        let state = &self.hot().state;
        let found = walk::translate(state, bus.ram(), virt, Access::data(state, write))?;
        let Some(page) = bus.ram().page_index(found.phys) else { return Ok(Filled::Not) };
        let long = state.long_mode();
        let marks = bus.ram().marks(page);
        if write && marks.any(Marks::HOOKED) {
            mark!(HookedStore);
            return Ok(Filled::Hooked(found));
        }
        if !write && marks.any(Marks::READ_WATCHED) || !allowed(self) {
            return Ok(Filled::Not);
        }
        if write {
            bus.ram().mark_dirty(page);
        }
        let mapping = Mapping { entries: &found.entries[..found.levels], long };
        let access = Touched { write, address: virt, page };
        self.tlb.fill_data(&self.arena, bus.ram(), mode, access, found.writable_now, &mapping);
        Ok(Filled::Done)
    }

    /// Has an access that is not to get into the TLB made once, if nobody need hear of it.
    fn admit_once(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        id: ExitId,
        wanted: &Wanted,
        filled: Filled,
    ) -> Option<Next> {
        let BlockExit { block, kind, .. } = self.blocks.exits[id.0 as usize];
        let ExitKind::Access { behind: behind @ 1.., moved, .. } = kind else { return None };
        let virt = GuestVirt(wanted.linear);
        let host = match (filled, virt.page_offset() + wanted.size > PAGE_SIZE) {
            (Filled::Hooked(found), _) => self.unheard(bus, &found, block, wanted)?,
            (_, true) if !wanted.write => self.copy_of(bus, mode, wanted)?,
            _ => return None,
        };
        if self.groups_stale(block) || bus.ram().is_disturbed() {
            return None;
        }
        let slot = self.tlb.lend_addend(&self.arena, mode, virt, wanted.write, host.wrapping_sub(virt.0));
        let hot = self.hot();
        hot.r10 = virt.0.wrapping_sub(moved as i64 as u64);
        hot.r11 = slot as u64;
        Some(Next::Enter(behind))
    }

    /// The host address of a copy of an operand on two pages of RAM.
    fn copy_of(&mut self, bus: &mut dyn Bus, mode: Mode, wanted: &Wanted) -> Option<u64> {
        let last = wanted.linear.wrapping_add(wanted.size as u64 - 1);
        let canonical = paging::is_canonical(wanted.linear) && paging::is_canonical(last);
        if !mode.is64() || wanted.size > 64 || !canonical {
            return None;
        }
        let first = PAGE_SIZE - GuestVirt(wanted.linear).page_offset();
        let state = &self.hot().state;
        let access = Access::data(state, false);
        let mut bytes = [0; 64];
        let (front, back) = bytes[..wanted.size].split_at_mut(first);
        for (at, part) in [(wanted.linear, front), (last & !(PAGE_SIZE as u64 - 1), back)] {
            let phys = walk::translate(state, bus.ram(), GuestVirt(at), access).ok()?.phys;
            let page = bus.ram().page_index(phys)?;
            if bus.ram().marks(page).any(Marks::READ_WATCHED) || !bus.ram().read(phys, part) {
                return None;
            }
        }
        mark!(CrossingRead);
        let place = wanted.linear as usize % 64;
        let bounce = &mut self.hot().bounce.0;
        bounce[place..place + wanted.size].copy_from_slice(&bytes[..wanted.size]);
        Some(bounce[place..].as_ptr() as u64)
    }

    /// The host address of what a store is to, on a page where some stores have to be heard of and this
    /// one has not, or no more: what it changes of a page table is acted on before it is made.
    fn unheard(
        &mut self,
        bus: &mut dyn Bus,
        found: &Translation,
        block: BlockId,
        wanted: &Wanted,
    ) -> Option<u64> {
        let page = bus.ram().page_index(found.phys)?;
        let marks = bus.ram().marks(page);
        if marks.any(Marks::CODE) {
            return None;
        }
        let virt = GuestVirt(wanted.linear);
        let offset = virt.page_offset();
        if marks.any(Marks::WATCHED) {
            let phys = bus.ram().page_address(page).offset(offset as u64);
            let watches = self.debugging.watch.as_ref()?;
            if watches.touched(phys, wanted.size, true).is_some() {
                return None;
            }
            mark!(BesideWatched);
        }
        if marks.any(Marks::TABLE) {
            let word = offset & !7;
            let old = &bus.ram().page_bytes(page)[word..word + 8];
            let old = u64::from_le_bytes(old.try_into().expect("8 bytes"));
            let whole = offset + wanted.size <= word + 8;
            if !whole {
                return None;
            }
            self.tlb.hide_table(&self.arena, virt, page);
            if self.tlb.table_written_in_vain(page, offset, wanted.size, old) {
                mark!(TableWrittenInVain);
            } else {
                let written =
                    Disturbance { page, offset: offset as u16, len: wanted.size as u16, old_word: Some(old) };
                self.tlb.table_written(&self.arena, bus.ram(), written);
                // What follows the store may be on a page that is not there any more.
                let BlockKey { virt, phys, mode, .. } = self.blocks.get(block).key;
                if self.tlb.code_behind(&self.arena, mode, virt >> 12) != Some(phys >> 12) {
                    return None;
                }
                mark!(TableWrittenAhead);
            }
        }
        bus.ram().mark_dirty(page);
        // Not where the store itself changes how one comes there.
        let goes_by_it = || found.entries.iter().any(|entry| entry.0 & !7 == found.phys.0 & !7);
        let kernels = self.blocks.get(block).key.mode.set() == KERNEL && is_upper(virt.0);
        if marks.any(Marks::TABLE) && kernels && !goes_by_it() {
            let mapping = Mapping { entries: &found.entries[..found.levels], long: self.state().long_mode() };
            self.tlb.show_table(&self.arena, bus.ram(), virt, page, &mapping);
        }
        Some(bus.ram().host_page(page) as u64 + offset as u64)
    }

    /// Fills the TLB for what a string instruction is about to access that has a thunk, which works only
    /// on what the TLB knows. The first element will be read, then written, so its pages may be walked
    /// to now, in that order. Whether the TLB knows them then, and the thunk can go on.
    fn fill_for_string(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        instr: &Instruction,
    ) -> Result<bool, Exception> {
        let Some(shape) = Shape::of(instr).filter(|_| mode.is64()) else { return Ok(false) };
        let [count, rsi, rdi] = [gpr::RCX, gpr::RSI, gpr::RDI].map(|r| self.state().gpr[r]);
        let whole = |at: u64| at % PAGE_SIZE as u64 + shape.element() <= PAGE_SIZE as u64;
        let long = mode.has(Mode::MIRRORED) && shape.is_long(count);
        if long || shape.is_repeated() && count == 0 || shape.moves() && !whole(rsi) || !whole(rdi) {
            return Ok(false);
        }
        let mut fill = |at, write| -> Result<bool, Exception> {
            Ok(self.fill(bus, mode, GuestVirt(at), write, |_| true)? == Filled::Done)
        };
        Ok((!shape.moves() || fill(rsi, false)?) && fill(rdi, true)?)
    }

    /// Fills the TLB for an XSAVEC or XRSTOR that Rust has just executed: the next one is likely to be of the same area,
    /// and its thunk works only on what the TLB knows. A kernel need not access that page otherwise.
    pub(super) fn fill_for_xstate(&mut self, bus: &mut dyn Bus, mode: Mode, instr: &Instruction) {
        let write = instr.mnemonic() == Mnemonic::Xsavec64;
        let core = self.core(bus);
        let Ok(at) = operand::address(&core, instr, xstate::END, write) else { return };
        for at in [at, at.wrapping_add(xstate::END as u64 - 1)] {
            // It has just been accessed there. If there were a fault, it would be for the next execution to make.
            _ = self.fill(bus, mode, GuestVirt(at), write, |_| true);
        }
    }

    /// Whether an instruction that Rust is asked to execute is a string instruction that may as well be tried
    /// again where it stands, now that the TLB knows its operands; once, as the thunk has other reasons to leave it
    /// to Rust.
    ///
    /// # Errors
    /// The page fault that its first element makes.
    pub(super) fn string_filled(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        (block, k): (BlockId, u8),
        instr: &Instruction,
    ) -> Result<bool, Exception> {
        Ok(self.fill_for_string(bus, mode, instr)?
            && !bus.ram().is_disturbed()
            && !self.groups_stale(block)
            && !self.has_breakpoint_here()
            && self.may_fill(block, k)
            && self.last_miss.fills == 1)
    }

    /// Whether an addend that the block has put aside may be out of date.
    pub(super) fn groups_stale(&self, block: BlockId) -> bool {
        let block = self.blocks.get(block);
        let stale = block.grouped && !self.tlb.drops.spared(self.drops_seen, block.key.mode.set());
        if stale {
            mark!(GroupsStale);
        }
        stale
    }

    /// Whether the instruction of an exit faults before its operand's page is looked at: a vector
    /// that has to be aligned and is not, or a pending x87 exception.
    fn faults_before_access(&mut self, bus: &mut dyn Bus, mode: Mode, id: ExitId) -> bool {
        let BlockExit { block, insn, .. } = self.blocks.exits[id.0 as usize];
        self.arrive_at(block, insn);
        let Ok((instr, _)) = self.decoded(bus, mode, id) else { return false };
        if waits_for_x87(&instr) {
            return self.x87_in_host && x87::exception_pending();
        }
        must_be_aligned(&instr) && check_vector_alignment(&self.core(bus), &instr).is_err()
    }

    /// Whether a retry of this instruction can succeed: two operands on pages that share a TLB slot
    /// would evict each other for ever.
    pub(super) fn may_fill(&mut self, block: BlockId, k: u8) -> bool {
        let (budget, horizon) = (self.hot().budget, self.horizon);
        let last = self.last_miss;
        let miss = Miss { budget, horizon, site: (block.0, k), fills: last.fills };
        let fills = if miss == last { last.fills + 1 } else { 1 };
        self.last_miss = Miss { fills, ..miss };
        fills <= FILLS_MAX
    }

    /// The twin of a block, made if need be; `None` if it can have none or there is no room.
    pub(super) fn twin(&mut self, bus: &mut dyn Bus, block: BlockId) -> Option<BlockId> {
        let b = self.blocks.get(block);
        if !b.live || b.second_page.is_some() {
            return None;
        }
        let key = BlockKey { shares: false, ..b.key };
        let twin = match self.blocks.find(&key) {
            Some(twin) => twin,
            None if self.blocks.has_room() => {
                mark!(Twin);
                self.translate(bus, key).ok()??
            }
            None => return None,
        };
        self.blocks.same_instructions(block, twin).then_some(twin)
    }
}
