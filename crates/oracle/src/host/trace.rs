//! Following a program with branches: how many instructions it retires, which ones it visits, and
//! that it never executes a byte that was not vetted.
//!
//! Stepping everything with the trap flag would do (and is done for programs that can write to
//! their own code), but a single-step trap costs microseconds, in a virtual machine ten. Instead
//! the code pages are filled with INT3, and only the piece about to run is put in place: some
//! instructions of which only the last may branch. Wherever it leads, an INT3 is waiting, and the
//! place is looked up before anything there executes:
//!
//! ```text
//!   cc cc cc cc cc cc cc cc cc cc        everything concealed
//!   mov add load jne cc cc cc cc         a piece revealed, run: RIP is at one of the INT3s
//!   cc cc cc cc cc cc xor ret cc         …which is an instruction of the case: the next piece
//! ```
//!
//! A program that reads its code page sees the INT3s. Therefore the end of the traced run must be
//! the end of the free run that follows; if not, it is traced again step by step.

use super::entry::{GPR_SLOT, UserContext, enter};
use super::slot::{RAN, RUNAWAY, STRAYED, Slot};
use crate::STEP_LIMIT;
use crate::case::{END_MARKER, Mode};
use crate::layout::{Access, Frame, PAGE};
use crate::outcome::vector;
use crate::state::flag;
use std::ptr;

/// What to do after a piece of the program has run.
enum Next {
    /// Go on at the context's instruction pointer.
    On,
    /// The case is over.
    Over,
}

/// One traced run.
pub struct Tracer<'a> {
    slot: &'a Slot,
    /// All case pages in a row, writable.
    alias: *mut u8,
    every_step: bool,
    /// The program itself has set TF.
    own_trap: bool,
    /// Single-step traps seen.
    steps: u64,
    /// Instructions retired.
    pub retired: u64,
    /// Bit *i*: item *i* was visited.
    pub visited: u64,
    /// How it went: a status of a reply.
    pub status: u32,
}

impl<'a> Tracer<'a> {
    /// A run of the case in `slot`, whose pages are in place.
    pub fn new(slot: &'a Slot, alias: *mut u8, every_step: bool) -> Self {
        let own_trap = slot.request.registers.rflags & flag::TF != 0;
        Self { slot, alias, every_step, own_trap, steps: 0, retired: 0, visited: 0, status: RAN }
    }

    /// Runs it from `context` to its end, which the context handed back shows. Leaves the code pages concealed.
    ///
    /// # Safety
    /// `context` must be loaded with the case's registers, and the case be vetted.
    pub unsafe fn run(&mut self, mut context: *mut UserContext) -> *mut UserContext {
        // SAFETY: frames handed back by `enter` are complete and may be entered again; what runs
        // is the case's own code, as `locate` has made sure.
        unsafe {
            if !self.every_step {
                ptr::write_bytes(self.alias.add(self.code()), END_MARKER, 2 * PAGE);
            }
            loop {
                let Ok(item) = self.locate((*context).rip) else {
                    self.status = STRAYED;
                    break;
                };
                let over = match item {
                    // Nothing there can be executed: the fetch faults. Or the end marker.
                    None => self.resume(&mut context, 0, Next::Over),
                    Some(item) if item == self.slot.request.items as usize => {
                        self.resume(&mut context, 0, Next::Over)
                    }
                    Some(item) if self.every_step || self.own_trap => self.step(&mut context, item),
                    Some(item) if self.slot.request.rep[item] != 0 => self.repeat(&mut context, item),
                    Some(item) => self.straight(&mut context, item),
                };
                if matches!(over, Next::Over) {
                    break;
                }
                if self.retired.max(self.steps) > STEP_LIMIT {
                    self.status = RUNAWAY;
                    break;
                }
            }
        }
        context
    }

    /// Offset of the code pages in the run of all pages; the two lie in a row there as well.
    fn code(&self) -> usize {
        let mode = if self.slot.request.bits == 32 { Mode::Compatibility } else { Mode::Long };
        mode.code() as usize * PAGE
    }

    unsafe fn resume(&self, context: &mut *mut UserContext, trap: u64, next: Next) -> Next {
        let registers = &self.slot.request.registers;
        // SAFETY: see `run`.
        unsafe {
            (**context).rflags = (**context).rflags & !flag::TF | trap;
            *context = enter(*context, registers.fs_base, registers.gs_base);
        }
        next
    }

    /// One instruction (or one iteration) with the trap flag on.
    unsafe fn step(&mut self, context: &mut *mut UserContext, item: usize) -> Next {
        self.visited |= 1 << item;
        // SAFETY: see `run`.
        unsafe {
            self.reveal(item, item + 1);
            self.resume(context, flag::TF, Next::On);
            self.conceal(item, item + 1);
            if (**context).vector != u64::from(vector::DB) {
                return Next::Over;
            }
            self.retired += u64::from(!self.is_interrupted_gather(&**context, item));
            self.steps += 1;
            if self.own_trap {
                return Next::Over;
            }
            if self.slot.request.pushf >> item & 1 != 0 {
                self.hide_trap_flag(&**context);
            }
            if self.slot.request.popf >> item & 1 != 0 {
                self.own_trap = (**context).rflags & flag::TF != 0;
            }
        }
        Next::On
    }

    /// Whether the trap came at a gather about to fault: it delivers a pending trap after its first
    /// elements, before the fault of a later one (SDM vol. 2, VGATHERDPS), and has not retired.
    fn is_interrupted_gather(&self, context: &UserContext, item: usize) -> bool {
        let request = &self.slot.request;
        let stays = context.rip == request.start + u64::from(request.offsets[item]);
        stays && request.rep[item] == 0 && request.branches >> item & 1 == 0
    }

    /// A REP-prefixed string instruction, all of it; its counter tells the iterations.
    unsafe fn repeat(&mut self, context: &mut *mut UserContext, item: usize) -> Next {
        self.visited |= 1 << item;
        let mask = u64::MAX >> (64 - u32::from(self.slot.request.rep[item]));
        // SAFETY: see `run`.
        unsafe {
            let before = (**context).gpr[GPR_SLOT[1]] & mask;
            let reached = self.piece(context, item, item + 1);
            let done = before.wrapping_sub((**context).gpr[GPR_SLOT[1]]) & mask;
            // A fetch right behind it may fault although it has done its zero iterations.
            let request = &self.slot.request;
            let left = reached || (**context).rip != request.start + u64::from(request.offsets[item]);
            self.retired += if left && before == 0 { 1 } else { done };
            if reached { Next::On } else { Next::Over }
        }
    }

    /// A piece that starts with `item`.
    unsafe fn straight(&mut self, context: &mut *mut UserContext, item: usize) -> Next {
        let until = self.end_of_piece(item);
        // SAFETY: see `run`.
        let (reached, rip, vector) = unsafe {
            let reached = self.piece(context, item, until);
            (reached, (**context).rip, (**context).vector)
        };
        let request = &self.slot.request;
        let (mut end, mut faulted) = (until, false);
        let offset = rip.wrapping_sub(request.start);
        let at = (item..=until).find(|&at| u64::from(request.offsets[at]) == offset);
        // After a branch to where nothing can be executed, all of the piece has retired.
        if let (false, Some(at)) = (reached, at) {
            // #BP and #OF show the address after the instruction that raised them.
            let trap = vector == u64::from(vector::BP) || vector == u64::from(vector::OF);
            end = if trap { at.saturating_sub(1).max(item) } else { at };
            faulted = true;
        }
        self.retired += (end - item) as u64;
        for at in item..(end + usize::from(faulted)).min(request.items as usize) {
            self.visited |= 1 << at;
        }
        if !reached {
            return Next::Over;
        }
        if request.popf >> (until - 1) & 1 != 0 {
            // SAFETY: the context of the signal.
            self.own_trap = unsafe { (**context).rflags & flag::TF != 0 };
        }
        Next::On
    }

    /// The item behind the piece that starts with `item`.
    fn end_of_piece(&self, item: usize) -> usize {
        let request = &self.slot.request;
        let count = request.items as usize;
        for at in item..count {
            let alone = request.alone >> at & 1 != 0 || request.rep[at] != 0;
            if alone && at > item {
                return at;
            }
            if alone || request.branches >> at & 1 != 0 {
                return at + 1;
            }
        }
        count
    }

    /// Runs items `from` up to `until`; false when that ended the case, otherwise the context's
    /// instruction pointer is where the program wants to go on.
    unsafe fn piece(&mut self, context: &mut *mut UserContext, from: usize, until: usize) -> bool {
        let request = &self.slot.request;
        // SAFETY: see `run`. The processor sees the revealed code: the return to the program is by
        // IRET, which serialises.
        unsafe {
            self.reveal(from, until);
            self.resume(context, 0, Next::On);
            self.conceal(from, until);
            let at = (**context).rip.wrapping_sub(1);
            let offset = at.wrapping_sub(request.start);
            let own = (u64::from(request.offsets[from])..u64::from(request.offsets[until])).contains(&offset);
            let reached = (**context).vector == u64::from(vector::BP) && !own;
            if reached {
                (**context).rip = at;
            }
            reached
        }
    }

    /// Where items `from` up to `until` are in the run of all pages, and their length.
    fn place(&self, from: usize, until: usize) -> (usize, usize) {
        let request = &self.slot.request;
        let code = self.code();
        let base = Frame::ALL[code / PAGE].address();
        let offset = (request.start - base) as usize + usize::from(request.offsets[from]);
        (code + offset, usize::from(request.offsets[until] - request.offsets[from]))
    }

    /// Puts items `from` up to `until` in place.
    unsafe fn reveal(&self, from: usize, until: usize) {
        if !self.every_step {
            let (at, length) = self.place(from, until);
            let pages = self.slot.pages.as_flattened().as_ptr();
            // SAFETY: the items lie in the two code pages, in the slot and the alias alike.
            unsafe { ptr::copy_nonoverlapping(pages.add(at), self.alias.add(at), length) };
        }
    }

    /// Takes them away again.
    unsafe fn conceal(&self, from: usize, until: usize) {
        if !self.every_step {
            let (at, length) = self.place(from, until);
            // SAFETY: as for `reveal`.
            unsafe { ptr::write_bytes(self.alias.add(at), END_MARKER, length) };
        }
    }

    /// Which item `rip` is the start of; `None` where nothing can be executed (the fetch faults).
    fn locate(&self, rip: u64) -> Result<Option<usize>, ()> {
        let request = &self.slot.request;
        let executable = Frame::containing(rip).is_some_and(|frame| {
            let access = request.access[frame as usize];
            access == Access::ReadExecute as u8 || access == Access::All as u8
        });
        if !executable {
            return Ok(None);
        }
        let count = request.items as usize;
        let offset = rip.wrapping_sub(request.start);
        let item = (0..=count).find(|&item| u64::from(request.offsets[item]) == offset).ok_or(())?;
        if self.every_step && !self.is_intact(item) { Err(()) } else { Ok(Some(item)) }
    }

    /// Whether the bytes of `item` are the vetted ones, but for those declared to change.
    fn is_intact(&self, item: usize) -> bool {
        let request = &self.slot.request;
        let from = request.offsets[item];
        let length = if item == request.items as usize { 1 } else { request.offsets[item + 1] - from };
        let (patch, patched) = request.patched[item];
        (0..length).all(|byte| {
            let address = request.start + u64::from(from + byte);
            let Some(frame) = Frame::containing(address) else { return true };
            let offset = address as usize & (PAGE - 1);
            let may_differ = (u16::from(patch)..u16::from(patch) + u16::from(patched)).contains(&byte);
            // SAFETY: `alias` holds all frames in a row.
            let now = unsafe { *self.alias.add(frame as usize * PAGE + offset) };
            request.access[frame as usize] == 0
                || may_differ
                || now == self.slot.pages[frame as usize][offset]
        })
    }

    /// Clears TF in the flags image a stepped PUSHF has just pushed: only the stepping set it.
    unsafe fn hide_trap_flag(&self, context: &UserContext) {
        let mask = u64::MAX >> (64 - self.slot.request.bits);
        let at = (context.gpr[GPR_SLOT[4]] & mask).wrapping_add(1);
        if let Some(frame) = Frame::containing(at) {
            // SAFETY: `alias` holds all frames in a row.
            unsafe { *self.alias.add(frame as usize * PAGE + (at as usize & (PAGE - 1))) &= !1 }
        }
    }
}
