//! Following a program with branches: how many instructions it retires, which ones it visits, and
//! that it never executes a byte that was not vetted.
//!
//! Stepping everything with the trap flag would do (and is done for programs that can write to
//! their own code), but a single-step trap costs microseconds, in a virtual machine several. So
//! runs of instructions that cannot branch run freely up to a breakpoint planted behind them;
//! only what may branch is stepped, and the place it leads to is looked up before anything there
//! executes:
//!
//! ```text
//!   mov  add  load  int3──▶ planted over the branch; taken out again, branch stepped
//!   └── one run ──┘  jne ──▶ its target is an instruction of the case? go on there
//! ```
//!
//! A program can read a planted breakpoint from its code page. Therefore the end of the traced run
//! must be the end of the free run that follows; if not, it is traced again step by step.

use super::entry::{GPR_SLOT, UserContext, enter};
use super::slot::{RAN, RUNAWAY, STRAYED, Slot};
use crate::STEP_LIMIT;
use crate::case::END_MARKER;
use crate::layout::{Access, Frame, PAGE};
use crate::outcome::vector;
use crate::state::flag;

/// Where a run ended: enough to tell two runs of one program apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Last {
    gpr: [u64; 16],
    rip: u64,
    vector: u64,
    cr2: u64,
}

impl Last {
    /// From the context of the signal that ended it.
    pub fn of(context: &UserContext) -> Self {
        Self { gpr: context.gpr, rip: context.rip, vector: context.vector, cr2: context.cr2 }
    }
}

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
    /// Instructions retired.
    pub retired: u64,
    /// Bit *i*: item *i* was visited.
    pub visited: u64,
    /// How it went: a status of a reply.
    pub status: u32,
    /// Where it ended.
    pub last: Last,
}

impl<'a> Tracer<'a> {
    /// A run of the case in `slot`, whose pages are in place.
    pub fn new(slot: &'a Slot, alias: *mut u8, every_step: bool) -> Self {
        let last = Last { gpr: [0; 16], rip: 0, vector: 0, cr2: 0 };
        let own_trap = slot.request.registers.rflags & flag::TF != 0;
        Self { slot, alias, every_step, own_trap, retired: 0, visited: 0, status: RAN, last }
    }

    /// Runs it from `context` to its end.
    ///
    /// # Safety
    /// `context` must be loaded with the case's registers, and the case be vetted.
    pub unsafe fn run(mut self, mut context: *mut UserContext) -> Self {
        // SAFETY: frames handed back by `enter` are complete and may be entered again; what runs
        // is the case's own code, as `locate` has made sure.
        unsafe {
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
                    Some(item) if self.must_step(item) => self.step(&mut context, item),
                    Some(item) if self.slot.request.rep[item] != 0 => self.repeat(&mut context, item),
                    Some(item) => self.straight(&mut context, item),
                };
                if matches!(over, Next::Over) {
                    self.last = Last::of(&*context);
                    break;
                }
                if self.retired > STEP_LIMIT {
                    self.status = RUNAWAY;
                    break;
                }
            }
        }
        self
    }

    fn must_step(&self, item: usize) -> bool {
        self.every_step || self.own_trap || self.slot.request.stepped >> item & 1 != 0
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
            self.resume(context, flag::TF, Next::On);
            if (**context).vector != u64::from(vector::DB) {
                return Next::Over;
            }
            self.retired += 1;
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

    /// A REP-prefixed string instruction, all of it; its counter tells the iterations.
    unsafe fn repeat(&mut self, context: &mut *mut UserContext, item: usize) -> Next {
        self.visited |= 1 << item;
        let mask = u64::MAX >> (64 - u32::from(self.slot.request.rep[item]));
        // SAFETY: see `run`.
        unsafe {
            let before = (**context).gpr[GPR_SLOT[1]] & mask;
            let reached = self.up_to(context, item + 1);
            let done = before.wrapping_sub((**context).gpr[GPR_SLOT[1]]) & mask;
            self.retired += if reached && before == 0 { 1 } else { done };
            if reached { Next::On } else { Next::Over }
        }
    }

    /// From `item` up to the next one that needs care.
    unsafe fn straight(&mut self, context: &mut *mut UserContext, item: usize) -> Next {
        let request = &self.slot.request;
        let count = request.items as usize;
        let until = (item + 1..count).find(|&at| self.must_step(at) || request.rep[at] != 0).unwrap_or(count);
        // SAFETY: see `run`.
        let reached = unsafe { self.up_to(context, until) };
        let (mut end, mut faulted) = (until, false);
        if !reached {
            // SAFETY: the context of the signal.
            let (rip, vector) = unsafe { ((**context).rip, (**context).vector) };
            let offset = rip.wrapping_sub(request.start);
            let at = (item..=until).find(|&at| u64::from(request.offsets[at]) == offset).unwrap_or(until);
            // #BP and #OF show the address after the instruction that raised them.
            let trap = vector == u64::from(vector::BP) || vector == u64::from(vector::OF);
            end = if trap { at.saturating_sub(1).max(item) } else { at };
            faulted = true;
        }
        self.retired += (end - item) as u64;
        for at in item..(end + usize::from(faulted)).min(count) {
            self.visited |= 1 << at;
        }
        if reached { Next::On } else { Next::Over }
    }

    /// Runs up to item `until`, with a breakpoint there; false when something else came first.
    unsafe fn up_to(&mut self, context: &mut *mut UserContext, until: usize) -> bool {
        let request = &self.slot.request;
        let address = request.start + u64::from(request.offsets[until]);
        let place = Frame::containing(address).filter(|&frame| request.access[frame as usize] != 0);
        // SAFETY: `alias` holds all frames in a row; see `run`. The processor sees the change: the
        // return to the program is by IRET, which serialises.
        unsafe {
            let byte =
                place.map(|frame| self.alias.add(frame as usize * PAGE + (address as usize & (PAGE - 1))));
            let original = byte.map(|byte| *byte);
            if let Some(byte) = byte {
                *byte = END_MARKER;
            }
            self.resume(context, 0, Next::On);
            if let (Some(byte), Some(original)) = (byte, original) {
                *byte = original;
            }
            let reached = (**context).vector == u64::from(vector::BP) && (**context).rip == address + 1;
            if reached {
                (**context).rip = address;
            }
            reached
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
