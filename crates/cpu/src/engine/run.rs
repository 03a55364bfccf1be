//! The run loop: finding and linking blocks, and acting on every reason for leaving them.

use super::access::Wanted;
use super::blocks::{BlockId, DecodedId, EXIT_BITS, Exit as BlockExit, ExitId, ExitKind, HOST_FAULT, Mode};
use super::classify::Class;
use super::fast_calls;
use super::hot::Hot;
use super::interpret::{Faulted, MAX_BYTES};
use super::profile::{self, Work};
use super::regs;
use super::signals::{self, Running};
use super::vcpu::{Exit, Vcpu};
use super::xstate;
use crate::core::{Intent, alignment_checked};
use crate::marks::mark;
use crate::{Activity, Bus, debug, deliver};
use base::{GuestPhys, PAGE_SIZE, Position};
use iced_x86::{Instruction, Mnemonic};
use memory::Marks;
use x86::{Exception, flags, paging};

/// What to do after an exit was handled.
pub(super) enum Next {
    /// Go on in translated code at this address.
    Enter(u32),
    /// Return to the loop: RIP, the count and everything else are in the state.
    Loop,
}

impl Vcpu {
    /// Runs until the position is `limit` or the bus's horizon, or nothing can run.
    pub fn run(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        let _guard = signals::guard(Running {
            hot: self.arena.hot(),
            code_start: self.arena.code_start(),
            code_end: self.arena.code_end(),
            exit_thunk: self.thunks.exit,
        });
        let _work = profile::work(Work::Loop);
        self.tlb.mirror.arm();
        let exit = self.run_loop(bus, limit);
        self.look_up_samples();
        self.store_x87();
        self.statistics.tlb_fills = self.tlb.fills;
        self.statistics.cache_flushes = self.blocks.flushes;
        exit
    }

    fn run_loop(&mut self, bus: &mut dyn Bus, limit: Position) -> Exit {
        loop {
            if std::mem::take(&mut self.contexts.paused) {
                return Exit::Pause;
            }
            self.settle(bus);
            if self.debugging.is_on() {
                self.note_device_writes(bus);
                if self.debugger_stops() {
                    return Exit::Debugger;
                }
            }
            match self.state().activity {
                Activity::Running => {}
                Activity::Halted if self.interruptible(bus) => self.hot().state.activity = Activity::Running,
                Activity::Halted | Activity::WaitForSipi => return Exit::Halted,
                Activity::Shutdown => return Exit::Shutdown,
            }
            let horizon = limit.min(bus.horizon()).count();
            if self.state().retired >= horizon {
                return Exit::Limit;
            }
            if self.interruptible(bus) {
                self.take_interrupt(bus);
                continue;
            }
            // An interrupt held back by STI or a load of SS comes after one instruction.
            let held = bus.interrupt_pending() && self.state().in_interrupt_shadow();
            let horizon = if held { self.state().retired + 1 } else { horizon };
            self.horizon = horizon;
            let precise = debug::debug_traps_armed(self.state()) || alignment_checked(self.state());
            if self.interpret_all || precise {
                self.step(bus);
                continue;
            }
            let mode = self.mode();
            if self.runs_singly(mode) {
                self.step(bus);
                continue;
            }
            self.enter_mode(mode);
            if mode.has(Mode::MIRRORED) {
                self.mirror_after_fault(bus);
            }
            if !self.stack_is_claimed(mode) {
                if self.mirror_affords() {
                    self.step(bus);
                }
                continue;
            }
            let left = (horizon - self.state().retired).min(self.stretch());
            self.horizon = self.state().retired + left;
            match self.block_at_rip(bus, mode, regs::MAX_BLOCK) {
                // The walk has set Accessed bits where there is code, perhaps this.
                Ok(Some(_)) if bus.ram().is_disturbed() => {}
                Ok(Some(block)) => self.execute(bus, block),
                Ok(None) => self.step(bus),
                Err(exception) => self.raise(bus, exception),
            }
        }
    }

    /// What tells address spaces apart: where their top page table is. That of PAE paging, four
    /// entries, is only a part of a page.
    fn root(&self) -> u64 {
        let state = self.state();
        let pae = state.cr4 & x86::control::cr4::PAE != 0 && !state.long_mode();
        match state.cr0 & x86::control::cr0::PG != 0 {
            true if pae => state.cr3 & !0x1f,
            true => state.cr3 & !0xfff,
            false => 0,
        }
    }

    fn interruptible(&self, bus: &dyn Bus) -> bool {
        bus.interrupt_pending() && self.state().rflags & flags::IF != 0 && !self.state().in_interrupt_shadow()
    }

    fn take_interrupt(&mut self, bus: &mut dyn Bus) {
        let _work = profile::work(Work::Event);
        let at = self.position();
        if let Some(vector) = bus.acknowledge_interrupt(at) {
            self.note_event();
            let mut core = self.core(bus);
            deliver::interrupt(&mut core, vector);
        }
    }

    pub(super) fn raise(&mut self, bus: &mut dyn Bus, exception: Exception) {
        let _work = profile::work(Work::Event);
        self.note_event();
        let mut core = self.core(bus);
        deliver::exception(&mut core, exception);
    }

    /// Acts on whatever happened to memory and control registers since translated code last ran.
    fn settle(&mut self, bus: &mut dyn Bus) {
        if self.chaos.is_some() {
            self.make_chaos(bus);
        }
        if !self.flush.is_empty() {
            self.apply_flush(bus);
        }
        if bus.ram().is_disturbed() {
            self.apply_disturbances(bus);
        }
        self.tlb.follow_epoch(&self.arena, bus.ram());
        let (root, long) = (self.root(), self.state().long_mode());
        if self.debugging.follow_spaces && !self.tlb.in_space(root) {
            self.debugging.space_changed = true;
        }
        self.tlb.enter_space(&self.arena, bus.ram(), root, long);
        self.follow_mirror(bus, root, long);
    }

    /// Drops code or translations now and then, and ends the coming stretch early.
    fn make_chaos(&mut self, bus: &mut dyn Bus) {
        let Some(seed) = &mut self.chaos else { return };
        *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let dice = *seed >> 33;
        match dice % 4096 {
            0 => self.drop_code(bus),
            1..=63 => self.tlb.clear_all(&self.arena, bus.ram()),
            _ => {}
        }
    }

    /// The longest stretch until the loop is next entered.
    fn stretch(&self) -> u64 {
        self.chaos.map_or(regs::BUDGET_MAX, |seed| 1 + (seed >> 40) % 20_000)
    }

    fn apply_flush(&mut self, bus: &mut dyn Bus) {
        let _work = profile::work(Work::Coherence);
        if self.flush.mode {
            self.tlb.clear_all(&self.arena, bus.ram());
        }
        // To drop translations, single ones or all, needs nothing: the TLB is coherent.
        self.flush.clear();
    }

    fn apply_disturbances(&mut self, bus: &mut dyn Bus) {
        let _work = profile::work(Work::Coherence);
        for d in bus.ram().take_disturbances() {
            let marks = bus.ram().marks(d.page);
            let (offset, len) = (d.offset as usize, d.len as usize);
            if marks.any(Marks::CODE) {
                let page = bus.ram().page_address(d.page).page();
                if self.blocks.invalidate(&mut self.arena, page, offset, len) {
                    bus.ram().remove_marks(d.page, Marks::CODE);
                }
            }
            if marks.any(Marks::TABLE) {
                self.tlb.table_written(&self.arena, bus.ram(), d);
            }
        }
    }

    pub(super) fn drop_code(&mut self, bus: &mut dyn Bus) {
        mark!(CodeDropped);
        self.look_up_samples();
        for page in self.blocks.clear() {
            if let Some(page) = bus.ram().page_index(GuestPhys(page << 12)) {
                bus.ram().remove_marks(page, Marks::CODE);
            }
        }
        self.tlb.clear_all(&self.arena, bus.ram());
        self.tlb.clear_all_jumps(&self.arena);
    }

    /// Executes one instruction from Rust, with debug traps.
    fn step(&mut self, bus: &mut dyn Bus) {
        let _work = profile::work(Work::Interpret);
        if let Some(fault) = self.code_breakpoint() {
            self.raise(bus, fault);
            return;
        }
        let before = self.state().rflags;
        let budget = self.horizon - self.state().retired;
        // A string instruction traps after each iteration.
        let budget = if debug::debug_traps_armed(self.state()) { 1 } else { budget };
        let outcome = match self.fetch(bus) {
            Ok(instr) => {
                let keeps_rf = instr.mnemonic() == iced_x86::Mnemonic::Iretq
                    || instr.mnemonic() == iced_x86::Mnemonic::Iretd
                    || instr.mnemonic() == iced_x86::Mnemonic::Iret;
                use iced_x86::Mnemonic::{Int, Int3, Into, Syscall};
                let reloads_tf = matches!(instr.mnemonic(), Int | Int3 | Into | Syscall);
                // A load of SS holds debug traps back; STI holds back interrupts only.
                let loads_ss = instr.op0_register() == iced_x86::Register::SS;
                self.interpret(bus, &instr, budget).map(|done| (done, keeps_rf, reloads_tf, loads_ss))
            }
            Err(exception) => Err(Faulted::from(exception)),
        };
        match outcome {
            Ok((done, keeps_rf, reloads_tf, loads_ss)) => {
                let state = &mut self.hot().state;
                state.retired += done.retired;
                if !state.code64() {
                    state.rip &= 0xffff_ffff;
                }
                if !keeps_rf {
                    state.rflags &= !flags::RF;
                }
                // Software interrupts clear TF, and SYSCALL goes by the TF that it leaves.
                let single_step = before & if reloads_tf { state.rflags } else { u64::MAX } & flags::TF != 0;
                if loads_ss && state.in_interrupt_shadow() {
                    return;
                }
                if single_step {
                    mark!(SingleStep);
                }
                if let Some(trap) = debug::trap_after(state, done.data_hits, single_step) {
                    self.raise(bus, trap);
                }
            }
            Err(fault) => {
                self.hot().state.retired += fault.retired;
                self.raise(bus, fault.exception);
            }
        }
    }

    /// Calls translated code at `address`; returns the exit taken.
    pub(super) fn enter(&mut self, address: u32) -> ExitId {
        self.statistics.exits += 1;
        let hot = self.hot();
        hot.target = address as u64;
        spread_flags(hot);
        // SAFETY: the thunk follows the C calling convention and saves what it must; translated
        // code touches only the arena and guest pages behind TLB entries.
        let enter: extern "C" fn() = unsafe { std::mem::transmute(self.thunks.enter as usize) };
        enter();
        let hot = self.hot();
        gather_flags(hot);
        if hot.sti_budget != 0 {
            let left = regs::decode_budget(hot.sti_budget) + hot.sti_rest as i64;
            hot.state.shadow_at = self.horizon.wrapping_sub(left as u64);
            hot.sti_budget = 0;
        }
        ExitId(hot.exit as u32 & ((1 << EXIT_BITS) - 1))
    }

    /// Runs translated code from `block` until something needs the loop.
    fn execute(&mut self, bus: &mut dyn Bus, block: BlockId) {
        self.load_x87();
        self.hot().budget = regs::encode_budget(self.horizon - self.state().retired);
        let mut address = self.blocks.get(block).checked;
        loop {
            self.prepare_entry(bus);
            self.drops_seen = self.tlb.drops;
            let id = self.enter(address);
            if id == ExitId(HOST_FAULT) {
                match self.host_fault(bus) {
                    Next::Enter(at) => address = at,
                    Next::Loop => return,
                }
                continue;
            }
            let exit = self.blocks.exits[id.0 as usize];
            let overdrawn = regs::decode_budget(self.hot().budget) < 0;
            profile::left(&exit.kind, overdrawn);
            // Links lead from one mode to another (STAC, CLAC): the block left says which this is.
            let mode = self.blocks.get(exit.block).key.mode;
            let next = match exit.kind {
                ExitKind::Access { size, write, .. } => {
                    let linear = self.hot().r10;
                    self.access(bus, mode, id, Wanted { linear, size: size as usize, write })
                }
                ExitKind::Branch { target, mode: to, .. } => {
                    self.arrive();
                    if to != mode {
                        self.enter_mode(to);
                    }
                    self.branch(bus, to, id, target)
                }
                ExitKind::Indirect => {
                    self.arrive();
                    self.indirect(bus, mode, exit.block, exit.insn)
                }
                ExitKind::FastCall => {
                    self.arrive();
                    let to = self.mode();
                    self.enter_mode(to);
                    self.jump(bus, to)
                }
                ExitKind::Interpret { .. } => {
                    self.arrive_at(exit.block, exit.insn);
                    self.interpret_in_block(bus, mode, id)
                }
                ExitKind::Head => {
                    if overdrawn {
                        mark!(Expired);
                        let count = self.blocks.get(exit.block).count as u64;
                        self.hot().budget += count * regs::UNIT;
                    }
                    self.arrive();
                    self.set_rip_of(exit.block, 0);
                    self.go_on(bus, mode)
                }
            };
            match next {
                Next::Enter(at) => address = at,
                Next::Loop => return,
            }
        }
    }

    /// Opens pages of code that have been found again.
    fn open_come(&mut self) {
        while let Some(come) = self.tlb.next_come() {
            self.blocks.open_page(&mut self.arena, come, |mode| self.tlb.runs(mode));
        }
    }

    /// Undoes what leads to pages of code that have been dropped.
    pub(super) fn close_left(&mut self) {
        while let Some(left) = self.tlb.next_left() {
            self.blocks.close_page(&mut self.arena, left);
        }
    }

    /// Tells translated code what it may not ask the bus itself.
    fn prepare_entry(&mut self, bus: &mut dyn Bus) {
        let horizon = self.horizon;
        self.close_left();
        self.open_come();
        if self.state().cpl == 3 {
            self.tlb.mirror.unmap_stale();
        }
        let stale = self.mirror_waits() as u32;
        let hot = self.hot();
        hot.stale = stale;
        hot.pending = bus.interrupt_pending() as u32;
        fast_calls::ready(hot);
        hot.yields = bus.yields_at_pause() as u32;
        let offset = bus.tsc_offset();
        hot.tsc_linear = offset.is_some() as u32;
        hot.tsc_base = offset
            .unwrap_or(0)
            .wrapping_add(hot.state.msr.tsc_adjust)
            .wrapping_add(horizon)
            .wrapping_add(regs::MAX_BLOCK);
    }

    /// At a block boundary: the count is what the budget says.
    fn arrive(&mut self) {
        let left = regs::decode_budget(self.hot().budget);
        self.hot().state.retired = self.horizon.wrapping_sub(left as u64);
    }

    /// At the start of instruction `k` of a block: the count, and RIP.
    pub(super) fn arrive_at(&mut self, block: BlockId, k: u8) {
        let left = regs::decode_budget(self.hot().budget);
        let count = self.blocks.get(block).count;
        let unused = left + (count - k) as i64;
        self.hot().state.retired = self.horizon.wrapping_sub(unused as u64);
        self.set_rip_of(block, k);
    }

    fn set_rip_of(&mut self, block: BlockId, k: u8) {
        let b = self.blocks.get(block);
        let virt = self.blocks.virt_of(block, k);
        let is64 = b.key.mode.is64();
        let state = &mut self.hot().state;
        state.rip = if is64 { virt } else { virt.wrapping_sub(state.seg[1].base) & 0xffff_ffff };
    }

    fn host_fault(&mut self, bus: &mut dyn Bus) -> Next {
        let fault = self.hot().fault;
        let Some((block, k)) = self.blocks.at_host(fault.rip as u32) else {
            panic!("host exception {} at {:#x} outside of any block", fault.vector, fault.rip);
        };
        self.arrive_at(block, k);
        let mode = self.blocks.get(block).key.mode;
        if let Some(next) = self.mirror_fault(bus, mode, block, k, fault) {
            return next;
        }
        mark!(HostFault);
        let exception = self.host_exception();
        self.raise(bus, exception);
        Next::Loop
    }

    /// The block for RIP in the same mode that the budget in hand covers, and whether it is a whole
    /// one; `None` when the loop must take over.
    fn follow(&mut self, bus: &mut dyn Bus, mode: Mode) -> Option<(BlockId, bool)> {
        let left = self.horizon - self.state().retired;
        if left == 0 {
            return None;
        }
        if self.at_breakpoint() || !self.stack_is_claimed(mode) {
            return None;
        }
        let mut limit = regs::MAX_BLOCK;
        loop {
            match self.block_at_rip(bus, mode, limit) {
                Ok(Some(_)) if bus.ram().is_disturbed() => return None,
                Ok(Some(block)) if self.blocks.get(block).count as u64 <= left => {
                    return Some((block, limit == regs::MAX_BLOCK));
                }
                Ok(Some(_)) => {
                    mark!(LimitedBlock);
                    limit = left;
                }
                Ok(None) => {
                    self.step(bus);
                    return None;
                }
                Err(exception) => {
                    self.raise(bus, exception);
                    return None;
                }
            }
        }
    }

    fn go_on(&mut self, bus: &mut dyn Bus, mode: Mode) -> Next {
        match self.follow(bus, mode) {
            Some((block, _)) => Next::Enter(self.blocks.get(block).checked),
            None => Next::Loop,
        }
    }

    fn branch(&mut self, bus: &mut dyn Bus, mode: Mode, from: ExitId, target: u64) -> Next {
        let state = &mut self.hot().state;
        state.rip = if mode.is64() { target } else { target.wrapping_sub(state.seg[1].base) & 0xffff_ffff };
        let source = |vcpu: &Self| vcpu.blocks.source_of(from);
        let before = (self.blocks.flushes, source(self));
        let Some((block, whole)) = self.follow(bus, mode) else { return Next::Loop };
        // Its block may be gone, or another one in its place.
        if whole && self.blocks.flushes == before.0 && source(self) == before.1 {
            mark!(Linked);
            self.blocks.link(&mut self.arena, from, block);
        }
        Next::Enter(self.blocks.get(block).checked)
    }

    fn indirect(&mut self, bus: &mut dyn Bus, mode: Mode, block: BlockId, k: u8) -> Next {
        let target = self.hot().r10;
        if mode.is64() && !paging::is_canonical(target) {
            // The branch itself faults and must look as if it had not begun.
            mark!(BranchUndone);
            self.undo_branch(bus, block, k);
            self.step(bus);
            return Next::Loop;
        }
        self.jump(bus, mode)
    }

    /// To the address in host R10, and into the jump cache with it.
    fn jump(&mut self, bus: &mut dyn Bus, mode: Mode) -> Next {
        let target = self.hot().r10;
        self.hot().state.rip = target;
        let Some((block, whole)) = self.follow(bus, mode) else { return Next::Loop };
        if whole {
            self.blocks.join_jump_caches(&self.arena, block);
        }
        Next::Enter(self.blocks.get(block).checked)
    }

    /// Takes back the stack pointer's move, the return address stored and the count of an indirect
    /// branch in 64-bit mode.
    fn undo_branch(&mut self, bus: &mut dyn Bus, block: BlockId, k: u8) {
        self.set_rip_of(block, k);
        self.hot().state.retired -= 1;
        // It was executed a moment ago, so it is still mapped; it may lie on two pages.
        let Ok(instr) = self.fetch(bus) else { return };
        let moved = instr.stack_pointer_increment() as i64;
        if instr.is_call_near_indirect() {
            let old = self.hot().overwritten;
            let mut core = self.core(bus);
            let restored = core.write(core.state.gpr[x86::gpr::RSP], &old.to_le_bytes(), Intent::Explicit);
            debug_assert!(restored.is_ok(), "the return address was stored there a moment ago");
        }
        let rsp = &mut self.hot().state.gpr[x86::gpr::RSP];
        *rsp = rsp.wrapping_sub(moved as u64);
    }

    /// Executes the instruction of an exit from Rust and goes on behind it if nothing changed.
    pub(super) fn interpret_in_block(&mut self, bus: &mut dyn Bus, mode: Mode, id: ExitId) -> Next {
        let _work = profile::work(Work::Interpret);
        let budget = self.horizon - self.state().retired;
        let BlockExit { block, insn, kind, .. } = self.blocks.exits[id.0 as usize];
        let done = match self.decoded(bus, mode, id) {
            Ok((instr, class)) => {
                let in_mirror = self.string_in_mirror(bus, mode, &instr, budget);
                let filled = match in_mirror {
                    Some(_) => Ok(false),
                    None => self.string_filled(bus, mode, (block, insn), &instr),
                };
                if filled == Ok(true) {
                    mark!(StringFilled);
                    return Next::Enter(self.blocks.host_of(block, insn));
                }
                profile::interpreted(instr.mnemonic(), matches!(kind, ExitKind::Access { .. }));
                match (filled, in_mirror) {
                    (Err(fault), _) => Err(Faulted::from(fault)),
                    (_, Some(done)) => self.string_goes_on(bus, mode, (&instr, class), budget, done),
                    (_, None) => {
                        let done = self.interpret_as(bus, &instr, class, budget);
                        if done.is_ok() && instr.mnemonic() == Mnemonic::Iretq && !self.mirror_waits() {
                            self.note_return(bus, mode);
                        }
                        if done.is_ok() && xstate::has_thunk(&instr, mode) {
                            self.fill_for_xstate(bus, mode, &instr);
                        }
                        done
                    }
                }
            }
            Err(exception) => Err(Faulted::from(exception)),
        };
        let retired = match done {
            Ok(done) => done.retired,
            Err(fault) => {
                self.hot().state.retired += fault.retired;
                self.raise(bus, fault.exception);
                return Next::Loop;
            }
        };
        self.hot().state.retired += retired;
        // The leader of a group has left nothing for the others.
        if matches!(kind, ExitKind::Access { leads: true, .. }) || self.groups_stale(block) {
            return match self.twin(bus, block) {
                Some(twin) => self.resume_after(bus, mode, twin, insn, retired),
                None => Next::Loop,
            };
        }
        self.resume_after(bus, mode, block, insn, retired)
    }

    /// The instruction of an exit, decoded and classified once for all its executions.
    pub(super) fn decoded(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        id: ExitId,
    ) -> Result<(Instruction, Class), Exception> {
        let kept = match self.blocks.exits[id.0 as usize].kind {
            ExitKind::Interpret { decoded } | ExitKind::Access { decoded, .. } => decoded,
            _ => DecodedId::NONE,
        };
        if kept != DecodedId::NONE {
            return Ok(self.blocks.decoded[kept.0 as usize]);
        }
        let BlockExit { block, insn, .. } = self.blocks.exits[id.0 as usize];
        let instr = match self.before_disturbance(bus, block, insn) {
            Some(instr) => instr,
            None => self.fetch(bus)?,
        };
        let class = self.class_of(&instr);
        let start = self.blocks.virt_of(block, insn) as usize % PAGE_SIZE;
        let inside = start + instr.len() <= PAGE_SIZE;
        // Only what lies in the block's own page is thrown away together with the block; outside
        // of a flat code segment RIP is not the address the instruction was decoded for.
        if inside && (mode.is64() || mode.has(Mode::FLAT[1])) {
            let new = self.blocks.keep_decoded((instr, class));
            match &mut self.blocks.exits[id.0 as usize].kind {
                ExitKind::Interpret { decoded } | ExitKind::Access { decoded, .. } => *decoded = new,
                _ => {}
            }
        }
        Ok((instr, class))
    }

    /// An instruction as it was before its own page walks set Accessed and Dirty bits where code is.
    pub(super) fn before_disturbance(&self, bus: &mut dyn Bus, block: BlockId, k: u8) -> Option<Instruction> {
        if !bus.ram().is_disturbed() {
            return None;
        }
        let b = self.blocks.get(block);
        let start = self.blocks.virt_of(block, k) as usize % PAGE_SIZE;
        let ram = bus.ram();
        let mut bytes = Vec::new();
        for (page, from) in [(b.key.phys >> 12, start), (b.second_page.unwrap_or(0), 0)] {
            if bytes.len() >= MAX_BYTES || !bytes.is_empty() && b.second_page.is_none() {
                break;
            }
            let page = ram.page_index(GuestPhys(page << 12))?;
            let mut whole = *ram.page_bytes(page);
            for d in ram.disturbances().iter().rev().filter(|d| d.page == page) {
                let word = d.offset as usize & !7;
                whole[word..word + 8].copy_from_slice(&d.old_word?.to_le_bytes());
            }
            bytes.extend_from_slice(&whole[from..(from + MAX_BYTES - bytes.len()).min(PAGE_SIZE)]);
        }
        Some(self.decode(&bytes)).filter(|instr| !instr.is_invalid())
    }

    pub(super) fn resume_after(
        &mut self,
        bus: &mut dyn Bus,
        mode: Mode,
        block: BlockId,
        k: u8,
        retired: u64,
    ) -> Next {
        let quiet = self.flush.is_empty()
            && self.tlb.in_space(self.root())
            && !bus.ram().is_disturbed()
            && self.state().activity == Activity::Running
            && !bus.interrupt_pending()
            && bus.horizon().count() >= self.horizon
            && !self.debugging.has_hit()
            && !self.contexts.paused
            && !debug::debug_traps_armed(self.state());
        if !quiet || self.mode() != mode || !self.stack_is_claimed(mode) {
            return Next::Loop;
        }
        let b = self.blocks.get(block);
        let next = k + 1;
        let virt = self.blocks.virt_of(block, next);
        let state = self.state();
        let linear =
            if mode.is64() { state.rip } else { state.seg[1].base.wrapping_add(state.rip) & 0xffff_ffff };
        if next >= b.count || linear != virt || !b.live {
            return Next::Loop;
        }
        // The block counted this instruction as one.
        let rest = (b.count - next) as u64;
        let left = self.horizon - self.state().retired;
        if retired == 0 || left < rest {
            return Next::Loop;
        }
        let host = self.blocks.host_of(block, next);
        self.hot().budget = regs::encode_budget(left) - rest * regs::UNIT;
        self.load_x87();
        mark!(Resumed);
        Next::Enter(host)
    }
}

/// The flags that translated code keeps apart from the rest; see `privileged`.
const APART: u64 = flags::STATUS | flags::IF | flags::DF | flags::AC;

fn spread_flags(hot: &mut Hot) {
    let rflags = hot.state.rflags;
    hot.flags = rflags & flags::STATUS | flags::FIXED;
    hot.interrupts = (rflags & flags::IF != 0) as u32;
    hot.direction = (rflags & flags::DF != 0) as u32;
    hot.alignment = (rflags & flags::AC != 0) as u32;
    hot.other_flags = (rflags & !(APART | flags::RF | flags::VM)) as u32;
}

fn gather_flags(hot: &mut Hot) {
    let bit = |word: u32, flag: u64| if word != 0 { flag } else { 0 };
    // What is not kept apart may have changed too: SYSCALL masks any flag.
    hot.state.rflags = hot.state.rflags & (flags::RF | flags::VM)
        | u64::from(hot.other_flags)
        | hot.flags & flags::STATUS
        | bit(hot.interrupts, flags::IF)
        | bit(hot.direction, flags::DF)
        | bit(hot.alignment, flags::AC);
}
