//! What mirrored code does not find, and which address space is mirrored.
//!
//! The host's fault says that a page is not mapped, may not be written yet, or that the guard held an access
//! back. The page is walked to and mapped, or the chunk claimed, and the instruction tried again; where
//! that cannot be, Rust executes it. An instruction for which Rust had to do that a few times is
//! translated with a TLB check instead, and is then as good as code that is not mirrored.
//!
//! Where the one access of two that carried the guard for both was executed by Rust, the other must not go
//! unguarded: execution goes on in the block's twin, in which each has its own.

use super::blocks::{BlockId, BlockKey, BuildMix, Mode};
use super::classify::Class;
use super::flow::linear_address_unchecked;
use super::hot::HostFault;
use super::interpret::{Done, Faulted};
use super::mirror::{GUARD_LOAD, Run};
use super::profile::{self, Work};
use super::run::Next;
use super::stack::NOWHERE;
use super::strings::Shape;
use super::tlb::{Mapping, Touched};
use super::vcpu::Vcpu;
use crate::Bus;
use crate::marks::mark;
use crate::walk::{self, Access, Translation};
use base::{GuestVirt, PAGE_SHIFT, PAGE_SIZE};
use iced_x86::{Instruction, OpKind};
use memory::Marks;
use std::collections::{HashMap, HashSet};
use x86::{flags, gpr, paging};

/// Executions from Rust after which an instruction is translated with a check.
const PATIENCE: u8 = 6;
/// Pages around one just mapped that are mapped too if they have been accessed; where the guest has large
/// pages, which are next to each other in RAM too.
const AROUND: u64 = 16;
const AROUND_IN_LARGE: u64 = 512;
/// Pages behind those, as far as they are next to each other in RAM.
const BEHIND: u64 = 256;
/// Faults that may be had at once, or instructions executed from Rust for their stack pointer, and the instructions
/// that have to retire for each other one.
const CREDIT: i64 = 4000;
const PER_PAGE: u64 = 40_000;
/// Instructions for which an address space that needed too many pages is left alone.
const PENALTY: u64 = 400_000_000;
/// An address space takes the mirror from one that ran within so many instructions only after running
/// for more of them itself.
const RECENT: u64 = 30_000_000;
const CONTESTED: u64 = 8_000_000;
/// The one that has the mirror, but nothing in it, waits for so much less than one that comes to it.
const SOONER: u64 = 8;
/// Iterations of a string instruction executed at once.
const ITERATIONS_MAX: u64 = 1 << 22;
/// Instructions of which it is known that they are to be checked.
const CHECKED_MAX: usize = 1 << 20;
/// The longest operand.
const OPERAND_MAX: u64 = 64;
/// Vectors of the host's faults at an access: #SS, #GP, #PF.
const ACCESS_FAULTS: [u64; 3] = [12, 13, 14];
/// In a page fault's error code: it was a write.
const WRITE: u64 = 2;

/// Which address space is mirrored, and what about it is not.
#[derive(Default)]
pub(super) struct Mirroring {
    /// Instructions after which an address space is mirrored; never without.
    after: Option<u64>,
    /// The current one is.
    pub on: bool,
    /// The current one, and since when.
    root: u64,
    since: u64,
    /// When the mirrored one was last seen.
    seen: u64,
    /// What may still be needed, as of a position.
    credit: i64,
    credited: u64,
    /// Address spaces not to be mirrored before a position.
    penalties: HashMap<u64, u64>,
    /// How often Rust executed an instruction, by its address.
    pub failures: HashMap<u64, u8, BuildMix>,
    /// What the last page fault raised in mirrored code was for.
    faulted: Option<u64>,
    /// Those to be translated with checks of their own.
    pub checked: HashSet<u64, BuildMix>,
}

impl Mirroring {
    /// Mirrors address spaces after so many instructions, or never.
    pub fn new(after: Option<u64>) -> Self {
        Self { after, ..Self::default() }
    }

    /// One thing more is needed; false if there have been too many lately.
    fn afford(&mut self, now: u64) -> bool {
        let earned = now.saturating_sub(self.credited) / PER_PAGE;
        self.credited += earned * PER_PAGE;
        self.credit = (self.credit + earned as i64).min(CREDIT) - 1;
        self.credit >= 0
    }
}

impl Vcpu {
    /// Decides whether the address space just entered, or still current, is mirrored.
    pub(super) fn follow_mirror(&mut self, bus: &mut dyn Bus, root: u64, long: bool) {
        let Some(after) = self.mirroring.after else { return };
        let now = self.state().retired;
        let m = &mut self.mirroring;
        if m.root != root || now < m.since {
            (m.root, m.since) = (root, now);
        }
        let owner = self.tlb.mirror.owner();
        // Another program may have got the ended one's top table; and who forks has nothing mapped any more.
        let lasts = !self.tlb.mirror.is_empty() || now - m.since >= after / SOONER;
        m.on = long && owner == Some(root) && lasts;
        if owner == Some(root) {
            m.seen = now;
            return;
        }
        let contested = after > 0 && owner.is_some() && (m.seen..m.seen + RECENT).contains(&now);
        if !long || root == 0 || now - m.since < if contested { CONTESTED } else { after } {
            return;
        }
        if m.penalties.get(&root).is_some_and(|until| now < *until) {
            return;
        }
        if self.tlb.mirror.is_worn() {
            self.renew_claims(bus);
        }
        let m = &mut self.mirroring;
        m.on = self.tlb.mirror.adopt(root);
        if m.on {
            mark!(MirrorAdopted);
            self.tlb.mirror.arm();
            (m.seen, m.credit, m.credited) = (now, CREDIT, now);
        } else {
            m.after = None;
        }
    }

    /// Programs that come and go leave claims behind, each at addresses of its own: begins anew, with no code that
    /// relies on any.
    fn renew_claims(&mut self, bus: &mut dyn Bus) {
        mark!(ClaimsRenewed);
        self.drop_code(bus);
        self.tlb.mirror.release();
        self.hot().stack_at = NOWHERE;
    }

    /// Whether the mirrored address space has not needed too much lately, and may need one thing more; else it is not
    /// mirrored any more.
    pub(super) fn mirror_affords(&mut self) -> bool {
        let now = self.state().retired;
        let affords = self.mirroring.afford(now);
        if !affords {
            mark!(MirrorAbandoned);
            self.mirroring.penalties.insert(self.mirroring.root, now + PENALTY);
            self.tlb.mirror.abandon();
            self.mirroring.on = false;
        }
        affords
    }

    /// A host fault at instruction `k` of a mirrored block, which the state is at; `None` if it is none of
    /// an access.
    pub(super) fn mirror_fault(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        block: BlockId,
        k: u8,
        fault: HostFault,
    ) -> Option<Next> {
        if !mode.has(Mode::MIRRORED) || !ACCESS_FAULTS.contains(&fault.vector) {
            return None;
        }
        let _work = profile::work(Work::TlbMiss);
        let paging = fault.vector == 14;
        let guarded = self.arena.code_at(fault.rip as u32, GUARD_LOAD.len()) == GUARD_LOAD;
        let tried = if guarded {
            let address = self.tlb.mirror.guarded(fault.address).filter(|_| paging);
            address.is_some_and(|address| self.tlb.mirror.claim(address))
        } else {
            paging && self.mirror_page(bus, fault.address, fault.error & WRITE != 0)
        };
        if !self.mirroring.on {
            return Some(Next::Loop);
        }
        if tried && self.may_fill(block, k) && !bus.ram().is_disturbed() {
            mark!(MirrorFilled);
            return Some(Next::Enter(self.blocks.host_of(block, k)));
        }
        mark!(MirrorRefused);
        let missing = paging && !guarded && !self.tlb.mirror.has(GuestVirt(fault.address).page_base().0);
        if guarded {
            // Nothing will ever be mapped there.
            self.check_from_now_on(block, k);
        }
        Some(self.execute_unmirrored(bus, mode, block, k, Some(fault.address).filter(|_| missing)))
    }

    /// Maps the page of an access by the instruction at RIP to `linear`, and some around it: false if it
    /// faults, is not of RAM, is to be seen each time, or is to two pages.
    fn mirror_page(&mut self, bus: &mut dyn Bus, linear: u64, write: bool) -> bool {
        let virt = GuestVirt(linear);
        if linear >> 47 != 0 || self.may_cross(bus, virt) {
            return false;
        }
        if !self.mirror_affords() {
            return false;
        }
        let known = self.tlb.mirror.has(virt.page_base().0);
        let state = &self.hot().state;
        let Ok(found) = walk::translate(state, bus.ram(), virt, Access::data(state, write)) else {
            return false;
        };
        let Some(page) = bus.ram().page_index(found.phys) else { return false };
        let marks = bus.ram().marks(page);
        if write && marks.any(Marks::HOOKED) || marks.any(Marks::READ_WATCHED) {
            return false;
        }
        if write {
            bus.ram().mark_dirty(page);
        }
        let run = self.admit(bus, Touched { write, address: virt, page }, &found);
        let mapped = run.is_some_and(|run| self.tlb.mirror.map(bus.ram(), run));
        if mapped && !known {
            self.mirror_around(bus, virt, &found);
        } else if mapped && write {
            self.write_around(bus, virt);
        }
        mapped
    }

    fn admit(&mut self, bus: &mut dyn Bus, access: Touched, found: &Translation) -> Option<Run> {
        let mapping = Mapping { entries: &found.entries[..found.levels], long: true };
        self.tlb.admit_to_mirror(&self.arena, bus.ram(), access, &mapping, found.writable_now)
    }

    /// Maps what the program has accessed before around a page, which costs it no faults then: near it, the page itself
    /// too if it is not mapped yet, and behind that for as long as the pages are next to each other in RAM too.
    fn mirror_around(&mut self, bus: &mut dyn Bus, virt: GuestVirt, found: &Translation) {
        let window = (if found.page_shift > 12 { AROUND_IN_LARGE } else { AROUND }) * PAGE_SIZE as u64;
        let start = virt.0 / window * window;
        let mut runs: Vec<Run> = Vec::new();
        for at in (start..start + window + BEHIND * PAGE_SIZE as u64).step_by(PAGE_SIZE) {
            let near = at < start + window;
            if self.tlb.mirror.has(at) {
                if near { continue } else { break }
            }
            let drops = self.tlb.drops;
            let run = self.accessed(bus, GuestVirt(at));
            if self.tlb.drops != drops {
                // One table stands in two places; what was found of it may be gone.
                return;
            }
            match (run, runs.last_mut()) {
                (Some(run), Some(last)) if last.is_followed_by(run) => last.pages += 1,
                (Some(run), _) if near => runs.push(run),
                (None, _) if near => {}
                _ => break,
            }
        }
        self.mirroring.credit -= runs.len() as i64;
        for run in runs {
            self.tlb.mirror.map(bus.ram(), run);
        }
    }

    /// Executes iterations of a long MOVS or STOS whose operands are mirrored, at once, as far as they are
    /// mapped; the pages of the first one are if need be. `None` if that cannot be done.
    pub(super) fn string_in_mirror(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        instr: &Instruction,
        budget: u64,
    ) -> Option<Done> {
        let [count, rsi, rdi] = [gpr::RCX, gpr::RSI, gpr::RDI].map(|r| self.state().gpr[r]);
        let shape = Shape::of(instr).filter(|shape| mode.has(Mode::MIRRORED) && shape.is_long(count))?;
        if self.state().rflags & flags::DF != 0 || self.has_breakpoint_here() {
            return None;
        }
        let element = shape.element();
        let wanted = count.min(budget).min(ITERATIONS_MAX);
        let readable = |vcpu: &mut Self| match shape.moves() {
            true => vcpu.tlb.mirror.mapped_from(rsi, wanted * element, false) / element,
            false => wanted,
        };
        let possible = |vcpu: &mut Self| {
            let writable = vcpu.tlb.mirror.mapped_from(rdi, wanted * element, true) / element;
            readable(vcpu).min(writable)
        };
        let mut iterations = possible(self);
        if iterations == 0 {
            let reads = !shape.moves()
                || self.tlb.mirror.mapped_from(rsi, 1, false) != 0
                || self.mirror_page(bus, rsi, false);
            let written = self.tlb.mirror.mapped_from(rdi, 1, true) != 0;
            let fresh = self.state().cr2 >> PAGE_SHIFT == rdi >> PAGE_SHIFT;
            if reads && !written && fresh {
                let readable = readable(self);
                return self.string_to_fresh_page(bus, instr, shape, readable);
            }
            let writes = reads && (written || self.mirror_page(bus, rdi, true));
            if !writes || !self.mirroring.on || bus.ram().is_disturbed() {
                return None;
            }
            iterations = possible(self);
        }
        if iterations == 0 {
            return None;
        }
        mark!(MirrorString);
        // SAFETY: both operands are pages of the mirror, mapped for what is done with them.
        unsafe { shape.execute(iterations, rsi, rdi, self.state().gpr[gpr::RAX]) };
        Some(self.string_done(instr, shape, iterations))
    }

    /// The same, of as many iterations, whose source is mapped, as the page at RDI has room for, which has just been
    /// paged in: it will be mapped together with what follows it, when it is used.
    fn string_to_fresh_page(
        &mut self,
        bus: &mut dyn Bus,
        instr: &Instruction,
        shape: Shape,
        iterations: u64,
    ) -> Option<Done> {
        let [rsi, rdi, rax] = [gpr::RSI, gpr::RDI, gpr::RAX].map(|r| self.state().gpr[r]);
        let offset = rdi % PAGE_SIZE as u64;
        let iterations = iterations.min((PAGE_SIZE as u64 - offset) / shape.element());
        if iterations == 0 || rdi >> 47 != 0 {
            return None;
        }
        let state = &self.hot().state;
        let access = Access::data(state, true);
        let phys = walk::translate(state, bus.ram(), GuestVirt(rdi), access).ok()?.phys;
        let page = bus.ram().page_index(phys)?;
        // Operands that overlap must do so at the host's addresses too: one at a time is what the host owes to
        // those. (Zen 4 copies aliases as well, so that no test can show this check missing there.)
        let last = rsi.wrapping_add(iterations * shape.element() - 1);
        let overlap = shape.moves() && [rsi, last].iter().any(|at| self.tlb.mirror.holds(*at, page));
        if overlap || bus.ram().marks(page).any(Marks::HOOKED) || bus.ram().is_disturbed() {
            return None;
        }
        mark!(FreshString);
        bus.ram().mark_dirty(page);
        let to = bus.ram().host_page(page) as u64 + offset;
        // SAFETY: the source is mapped in the mirror, and what is written is the rest of a page of RAM which nobody
        // has to hear of, now that it is dirty.
        unsafe { shape.execute(iterations, rsi, to, rax) };
        Some(self.string_done(instr, shape, iterations))
    }

    /// Moves on by so many iterations.
    fn string_done(&mut self, instr: &Instruction, shape: Shape, iterations: u64) -> Done {
        let gpr = &mut self.hot().state.gpr;
        gpr[gpr::RCX] -= iterations;
        gpr[gpr::RDI] += iterations * shape.element();
        if shape.moves() {
            gpr[gpr::RSI] += iterations * shape.element();
        }
        if gpr[gpr::RCX] == 0 {
            self.hot().state.rip = instr.next_ip();
        }
        Done { retired: iterations, data_hits: 0 }
    }

    /// Goes on with a string instruction of which some iterations are done, through pages that are mapped or can be,
    /// until it is done or faults: who copies to fresh memory is to come to Rust once for each page.
    pub(super) fn string_goes_on(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        (instr, class): (&Instruction, Class),
        budget: u64,
        mut done: Done,
    ) -> Result<Done, Faulted> {
        while self.state().gpr[gpr::RCX] != 0 && done.retired < budget && !bus.ram().is_disturbed() {
            let left = budget - done.retired;
            if let Some(more) = self.string_in_mirror(bus, mode, instr, left) {
                done.retired += more.retired;
                continue;
            }
            // What this does may have to be looked at in the loop.
            let more = self
                .interpret_as(bus, instr, class, left)
                .map_err(|fault| Faulted { retired: fault.retired + done.retired, ..fault })?;
            return Ok(Done { retired: done.retired + more.retired, ..more });
        }
        Ok(done)
    }

    /// What to map at `virt` if the program has accessed it, without its noticing.
    fn accessed(&mut self, bus: &mut dyn Bus, virt: GuestVirt) -> Option<Run> {
        let found = walk::probe(&self.hot().state, bus.ram(), virt)?;
        let leaf = *found.entries[..found.levels].last()?;
        if !found.user || bus.ram().read_u64(leaf)? & paging::ACCESSED == 0 {
            return None;
        }
        let page = bus.ram().page_index(found.phys)?;
        self.admit(bus, Touched { write: false, address: virt, page }, &found)
    }

    /// Maps the pages of an access to two of them, which Rust has made and at least one of which is not mapped: that of
    /// `virt`, where it found this, and the other one. Who reads on from there is not to come to Rust at each
    /// of the next accesses. Whether they are mapped now.
    fn mirror_crossed(&mut self, bus: &mut dyn Bus, virt: GuestVirt) -> bool {
        let first = virt.page_base().0;
        let pages = if virt.0 == first { 1 } else { 2 };
        (first..).step_by(PAGE_SIZE).take(pages).all(|at| {
            at >> 47 == 0
                && (self.tlb.mirror.has(at)
                    || self.mirror_affords() && self.mirror_accessed(bus, GuestVirt(at)))
        })
    }

    /// Maps a page that the program has accessed, and some around it; false if it has not.
    fn mirror_accessed(&mut self, bus: &mut dyn Bus, virt: GuestVirt) -> bool {
        let Some(found) = walk::probe(&self.hot().state, bus.ram(), virt) else { return false };
        self.mirror_around(bus, virt, &found);
        let mapped = self.tlb.mirror.has(virt.0);
        if mapped {
            mark!(MirrorCrossed);
        }
        mapped
    }

    /// Allows writes to pages near one just written, to which they were allowed until lately.
    fn write_around(&mut self, bus: &mut dyn Bus, virt: GuestVirt) {
        let mut pages = self.tlb.mirror.written_near(virt.0);
        pages.retain(|(virt, page)| self.tlb.admit_writes_to_mirror(bus.ram(), *virt, *page));
        let pages: Vec<u64> = pages.into_iter().map(|(virt, _)| virt).collect();
        self.tlb.mirror.allow_writes(&pages);
    }

    /// Whether the instruction at RIP may access two pages, `virt` on one of them. Then Rust executes it,
    /// which knows in what order they are walked to.
    fn may_cross(&mut self, bus: &mut dyn Bus, virt: GuestVirt) -> bool {
        let offset = virt.page_offset() as u64;
        if offset != 0 && offset <= PAGE_SIZE as u64 - OPERAND_MAX {
            return false;
        }
        let Ok(instr) = self.fetch(bus) else { return true };
        let crosses = |at: u64, size: usize| at % PAGE_SIZE as u64 + size as u64 > PAGE_SIZE as u64;
        let rsp = self.state().gpr[gpr::RSP];
        let pushes = instr.stack_pointer_increment() < 0;
        let stack = instr.is_stack_instruction() || instr.is_call_near() || instr.is_call_near_indirect();
        let rbp = self.state().gpr[gpr::RBP];
        let in_stack =
            stack && (crosses(if pushes { rsp.wrapping_sub(8) } else { rsp }, 8) || crosses(rbp, 8));
        in_stack
            || has_memory(&instr) && {
                let size = instr.memory_size().size().max(super::plain::operand_size(&instr));
                let at = linear_address_unchecked(&self.core(bus), &instr);
                crosses(at, size)
            }
    }

    /// Whether pages have to be unmapped, or one mapped, before a program runs.
    pub(super) fn mirror_waits(&self) -> bool {
        self.tlb.mirror.has_stale() || self.mirroring.faulted.is_some()
    }

    /// Maps the page that the program's last page fault was for, if that has mended it.
    pub(super) fn mirror_after_fault(&mut self, bus: &mut dyn Bus) {
        let Some(virt) = self.mirroring.faulted.take() else { return };
        let virt = GuestVirt(virt).page_base();
        if virt.0 >> 47 == 0
            && !self.tlb.mirror.has(virt.0)
            && let Some(run) = self.accessed(bus, virt)
        {
            mark!(MirrorMended);
            self.tlb.mirror.map(bus.ram(), run);
        }
    }

    /// An instruction could not do without Rust. It may not go on like that: after so many times it is translated
    /// with a check of its own. Whether it is now.
    pub(super) fn note_failure(&mut self, block: BlockId, k: u8, patience: u8) -> bool {
        let virt = self.blocks.virt_of(block, k);
        if self.mirroring.failures.len() >= CHECKED_MAX {
            self.mirroring.failures.clear();
        }
        let failures = self.mirroring.failures.entry(virt).or_default();
        *failures = failures.saturating_add(1);
        let enough = *failures >= patience;
        if enough {
            self.check_from_now_on(block, k);
        }
        enough
    }

    /// Has an instruction translated with a check.
    fn check_from_now_on(&mut self, block: BlockId, k: u8) {
        mark!(MirrorChecked);
        let virt = self.blocks.virt_of(block, k);
        if self.mirroring.checked.len() >= CHECKED_MAX {
            return;
        }
        self.mirroring.checked.insert(virt);
        let twin = BlockKey { shares: false, ..self.blocks.get(block).key };
        for id in [Some(block), self.blocks.find(&twin)].into_iter().flatten() {
            self.blocks.forget(&mut self.arena, id);
        }
    }

    /// Executes instruction `k` of a block, which the state is at, from Rust, and goes on behind it.
    /// `missing` is the address that nothing was mapped at.
    fn execute_unmirrored(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        block: BlockId,
        k: u8,
        missing: Option<u64>,
    ) -> Next {
        let budget = self.horizon - self.state().retired;
        let fetched = match self.before_disturbance(bus, block, k) {
            Some(instr) => Ok(instr),
            None => self.fetch(bus),
        };
        let done = match fetched {
            Ok(instr) => {
                profile::interpreted(instr.mnemonic(), true);
                self.interpret(bus, &instr, budget)
            }
            Err(exception) => Err(exception.into()),
        };
        match done {
            Ok(done) => {
                self.hot().state.retired += done.retired;
                if !missing.is_some_and(|virt| self.mirror_crossed(bus, GuestVirt(virt))) {
                    self.note_failure(block, k, PATIENCE);
                }
                let go_on = if self.blocks.get(block).grouped { self.twin(bus, block) } else { Some(block) };
                match go_on {
                    Some(block) => self.resume_after(bus, mode, block, k, done.retired),
                    None => Next::Loop,
                }
            }
            Err(fault) => {
                self.hot().state.retired += fault.retired;
                self.mirroring.faulted = fault.exception.cr2;
                self.raise(bus, fault.exception);
                Next::Loop
            }
        }
    }
}

fn has_memory(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory)
}
