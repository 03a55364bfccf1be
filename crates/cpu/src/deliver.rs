//! Delivery of exceptions and interrupts (Intel SDM vol. 3A, chapter 6).
//!
//! A fault met while an event is being delivered is judged against the event (table 6-5): benign
//! pairs are delivered one after the other, contributory pairs become a double fault, and a fault
//! while delivering a double fault shuts the processor down.
//!
//! Nothing of the state changes before the last check has passed and the frame is written, so an
//! event that cannot be delivered leaves the interrupted program as it was.
//!
//! An interrupt between two iterations of a repeated string instruction pushes RF as it is, not set:
//! a processor cannot be told whether it stopped there or resumed from a checkpoint there.

use crate::core::{Core, Intent, mask};
use crate::descriptor::{Descriptor, SegmentExt, is_null, selector_error};
use crate::system::task;
use crate::walk::Access;
use crate::{Activity, debug};
use base::GuestVirt;
use x86::control::dr;
use x86::{Exception, Segment, SegmentIndex, flags, gpr, paging, vector};

/// What is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// INT n, INT3, INTO: gates are checked against the CPL, error codes have EXT clear.
    Software,
    /// INT1 and exceptions of the processor.
    Exception,
    /// An interrupt or NMI from outside.
    External,
}

/// An event on its way through a gate.
#[derive(Clone, Copy, Debug)]
struct Event {
    vector: u8,
    source: Source,
    error_code: Option<u32>,
    /// RFLAGS as pushed.
    flags: u64,
    /// RIP as pushed.
    return_rip: u64,
}

impl Event {
    /// The EXT bit of error codes raised while delivering this event.
    fn ext(&self) -> u32 {
        (self.source != Source::Software) as u32
    }
    /// The error code that names this event's gate.
    fn gate_error(&self) -> u32 {
        self.vector as u32 * 8 + 2 + self.ext()
    }
}

/// Classes of table 6-5.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(vector: u8) -> Class {
    match vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// Benign exceptions met one after the other while delivering one event before the processor gives
/// up. (Only an alignment check while pushing its own frame can go on for ever.)
const SERIAL_MAX: usize = 8;

/// Whether RF is set in the pushed flags: for faults, so that an instruction breakpoint that was
/// taken before does not hit again; not for traps, aborts and debug exceptions (17.3.1.1).
fn sets_resume_flag(vector: u8) -> bool {
    !matches!(vector, vector::DB | vector::NMI | vector::BP | vector::OF | vector::DF | vector::MC)
}

/// A code segment and offset out of a gate, with where the handler's stack begins.
struct Handler {
    code: Descriptor,
    offset: u64,
    cpl: u8,
    clears_if: bool,
}

/// Delivers an exception that an instruction raised. RIP is the pushed one: for faults that of the
/// instruction, for traps that of the next. Ends in a double fault or in
/// [`Activity::Shutdown`] where the guest leaves no other way.
pub fn exception(core: &mut Core, raised: Exception) {
    let mut current = raised;
    for _ in 0..SERIAL_MAX {
        if let Some(cr2) = current.cr2 {
            core.state.cr2 = cr2;
        }
        let rf = if sets_resume_flag(current.vector) { flags::RF } else { 0 };
        let event = Event {
            vector: current.vector,
            source: Source::Exception,
            error_code: current.error_code,
            flags: core.state.rflags | rf,
            return_rip: core.state.rip,
        };
        let Err(second) = deliver(core, event) else {
            if current.vector == vector::DB {
                core.state.dr[7] &= !dr::GD;
            }
            core.state.activity = Activity::Running;
            return;
        };
        current = match (class(current.vector), class(second.vector)) {
            (Class::DoubleFault, _) => {
                core.state.activity = Activity::Shutdown;
                return;
            }
            (Class::Contributory, Class::Contributory)
            | (Class::PageFault, Class::Contributory | Class::PageFault) => {
                if let Some(cr2) = second.cr2 {
                    core.state.cr2 = cr2;
                }
                Exception::with_code(vector::DF, 0)
            }
            _ => second,
        };
    }
    core.state.activity = Activity::Shutdown;
}

/// Delivers a maskable interrupt; the caller has checked IF, the shadow and the priority.
pub fn interrupt(core: &mut Core, vector: u8) {
    external(core, vector);
}

/// Delivers an NMI and blocks further ones until IRET.
pub fn nmi(core: &mut Core) {
    core.state.nmi_blocked = true;
    external(core, vector::NMI);
}

fn external(core: &mut Core, vector: u8) {
    core.state.activity = Activity::Running;
    let event = Event {
        vector,
        source: Source::External,
        error_code: None,
        flags: core.state.rflags,
        return_rip: core.state.rip,
    };
    if let Err(fault) = deliver(core, event) {
        exception(core, fault);
    }
}

/// INT n, INT3, INTO (`checked`), or INT1, whose gate any program may use: delivers `vector` with
/// `return_rip`, that of the next instruction, pushed. A fault is the instruction's own.
pub fn software(core: &mut Core, vector: u8, return_rip: u64, checked: bool) -> Result<(), Exception> {
    let event = Event {
        vector,
        source: if checked { Source::Software } else { Source::Exception },
        error_code: None,
        flags: core.state.rflags & !flags::RF,
        return_rip,
    };
    deliver(core, event)?;
    if vector == vector::DB && !checked {
        core.state.dr[7] &= !dr::GD;
    }
    Ok(())
}

fn deliver(core: &mut Core, event: Event) -> Result<(), Exception> {
    if !core.protected() {
        deliver_real(core, event)
    } else if core.state.long_mode() {
        deliver_long(core, event)
    } else {
        deliver_legacy(core, event)
    }
}

/// Real mode: a far pointer of four bytes per vector (SDM vol. 3B, 20.1.4).
fn deliver_real(core: &mut Core, event: Event) -> Result<(), Exception> {
    let at = event.vector as u64 * 4;
    if at + 3 > core.state.idtr.limit as u64 {
        return Err(Exception::gp(event.gate_error()));
    }
    let pointer =
        core.read_uint(core.system_linear(core.state.idtr.base.wrapping_add(at)), 4, Intent::Implicit)?;
    let cs = core.state.seg[SegmentIndex::Cs as usize].selector as u64;
    core.push(&[event.flags & 0xffff, cs, event.return_rip & 0xffff], 2)?;
    let selector = (pointer >> 16) as u16;
    let segment = &mut core.state.seg[SegmentIndex::Cs as usize];
    segment.selector = selector;
    segment.base = (selector as u64) << 4;
    core.state.rip = pointer & 0xffff;
    core.state.rflags &= !(flags::IF | flags::TF | flags::AC | flags::RF);
    Ok(())
}

/// The code segment a gate names, checked (SDM vol. 2A, INT n, "protected mode").
fn handler_segment(core: &mut Core, selector: u16, ext: u32) -> Result<(Descriptor, u8), Exception> {
    if is_null(selector) {
        return Err(Exception::gp(ext));
    }
    let code = selector_error(selector) + ext;
    let descriptor = core.read_descriptor(selector, vector::GP).map_err(|e| add_ext(e, ext))?;
    if !descriptor.is_code() || descriptor.segment.dpl() > core.state.cpl {
        return Err(Exception::gp(code));
    }
    // Handlers of virtual-8086 mode run at CPL 0.
    if core.state.virtual_8086() && (descriptor.is_conforming_code() || descriptor.segment.dpl() != 0) {
        return Err(Exception::gp(code));
    }
    if core.state.long_mode() && (!descriptor.segment.is_long_code() || descriptor.has_bad_size()) {
        return Err(Exception::gp(code));
    }
    if !descriptor.segment.present() {
        return Err(Exception::with_code(vector::NP, code));
    }
    let cpl = if descriptor.is_conforming_code() { core.state.cpl } else { descriptor.segment.dpl() };
    Ok((descriptor, cpl))
}

/// Sets EXT in the error code of a selector fault (page faults have no such bit).
fn add_ext(e: Exception, ext: u32) -> Exception {
    match e.error_code {
        Some(code) if e.vector != vector::PF => Exception { error_code: Some(code | ext), ..e },
        _ => e,
    }
}

/// Type and privilege checks of a gate, common to both sizes.
fn check_gate(core: &Core, event: &Event, access: u8) -> Result<(), Exception> {
    if event.source == Source::Software && (access >> 5 & 3) < core.state.cpl {
        return Err(Exception::gp(event.gate_error()));
    }
    if access & 0x80 == 0 {
        return Err(Exception::with_code(vector::NP, event.gate_error()));
    }
    Ok(())
}

fn deliver_long(core: &mut Core, event: Event) -> Result<(), Exception> {
    let ext = event.ext();
    let at = event.vector as u64 * 16;
    if at + 15 > core.state.idtr.limit as u64 {
        return Err(Exception::gp(event.gate_error()));
    }
    let mut gate = [0; 16];
    core.read(core.state.idtr.base.wrapping_add(at), &mut gate, Intent::Implicit)?;
    let access = gate[5];
    if !matches!(access & 0x1f, 0xe | 0xf) {
        return Err(Exception::gp(event.gate_error()));
    }
    check_gate(core, &event, access)?;
    let selector = u16::from_le_bytes([gate[2], gate[3]]);
    let offset =
        u64::from_le_bytes([gate[0], gate[1], gate[6], gate[7], gate[8], gate[9], gate[10], gate[11]]);
    let (code, cpl) = handler_segment(core, selector, ext)?;
    if !paging::is_canonical(offset) {
        return Err(Exception::gp(ext));
    }
    let ist = gate[4] & 7;
    let top = if ist != 0 {
        task_stack(core, 0x24 + ist as u64 * 8 - 8, ext)?
    } else if cpl < core.state.cpl {
        task_stack(core, 4 + cpl as u64 * 8, ext)?
    } else {
        core.state.gpr[gpr::RSP]
    };
    let handler = Handler { code, offset, cpl, clears_if: access & 1 == 0 };
    enter_long(core, event, handler, top)
}

/// A stack pointer out of the 64-bit task state segment (SDM vol. 3A, 7.7).
pub(crate) fn task_stack(core: &mut Core, at: u64, ext: u32) -> Result<u64, Exception> {
    let tr = core.state.tr;
    if at + 7 > tr.limit as u64 {
        return Err(Exception::with_code(vector::TS, selector_error(tr.selector) + ext));
    }
    let top = core.read_uint(tr.base.wrapping_add(at), 8, Intent::Implicit)?;
    if !paging::is_canonical(top) { Err(Exception::ss(ext)) } else { Ok(top) }
}

/// Writes the 64-bit frame and switches to the handler.
fn enter_long(core: &mut Core, event: Event, mut handler: Handler, top: u64) -> Result<(), Exception> {
    let inner = handler.cpl < core.state.cpl;
    let mut frame = [0; 48];
    let old_ss = core.state.seg[SegmentIndex::Ss as usize].selector as u64;
    let old_cs = core.state.seg[SegmentIndex::Cs as usize].selector as u64;
    let words = [
        event.error_code.unwrap_or(0) as u64,
        event.return_rip,
        old_cs,
        event.flags,
        core.state.gpr[gpr::RSP],
        old_ss,
    ];
    for (i, word) in words.iter().enumerate() {
        frame[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    let image = if event.error_code.is_some() { &frame[..] } else { &frame[8..] };
    let new_rsp = (top & !0xf).wrapping_sub(image.len() as u64);
    if !paging::is_canonical(new_rsp) || !paging::is_canonical(new_rsp.wrapping_add(image.len() as u64 - 1)) {
        return Err(Exception::ss(event.ext()));
    }
    core.mark_accessed(&mut handler.code)?;
    let access = Access { user: handler.cpl == 3, ..Access::system(true) };
    core.write_as(new_rsp, image, access)?;
    core.data_hits |= debug::data_breakpoints(core.state, new_rsp, image.len(), true);
    if inner {
        let null = Segment { selector: handler.cpl as u16, ..Segment::default() };
        core.state.seg[SegmentIndex::Ss as usize] = null;
    }
    core.state.gpr[gpr::RSP] = new_rsp;
    enter(core, &handler);
    Ok(())
}

/// Loads CS and RIP and clears what a gate clears in RFLAGS.
fn enter(core: &mut Core, handler: &Handler) {
    let state = &mut *core.state;
    state.cpl = handler.cpl;
    state.seg[SegmentIndex::Cs as usize] =
        Segment { selector: handler.code.segment.selector & !3 | handler.cpl as u16, ..handler.code.segment };
    state.rip = handler.offset;
    state.rflags &= !(flags::TF | flags::NT | flags::RF | flags::VM);
    if handler.clears_if {
        state.rflags &= !flags::IF;
    }
}

/// A task gate: the handler is a task, which finds an error code on its own stack.
fn deliver_to_task(core: &mut Core, event: Event, gate: u64) -> Result<(), Exception> {
    check_gate(core, &event, (gate >> 40) as u8)?;
    let left = (event.return_rip, event.flags);
    let size = task::switch(core, (gate >> 16) as u16, task::Reason::Call, left, event.ext())?;
    match event.error_code {
        Some(code) => core.push(&[code as u64], size).map_err(|e| add_ext(e, event.ext())),
        None => Ok(()),
    }
}

/// Protected mode without IA-32e: task gates, 16- and 32-bit interrupt and trap gates.
fn deliver_legacy(core: &mut Core, event: Event) -> Result<(), Exception> {
    let ext = event.ext();
    let at = event.vector as u64 * 8;
    if at + 7 > core.state.idtr.limit as u64 {
        return Err(Exception::gp(event.gate_error()));
    }
    let address = core.system_linear(core.state.idtr.base.wrapping_add(at));
    let gate = core.read_uint(address, 8, Intent::Implicit)?;
    let access = (gate >> 40) as u8;
    let size = match access & 0x1f {
        0xe | 0xf => 4,
        6 | 7 => 2,
        5 => return deliver_to_task(core, event, gate),
        _ => return Err(Exception::gp(event.gate_error())),
    };
    check_gate(core, &event, access)?;
    let (mut code, cpl) = handler_segment(core, (gate >> 16) as u16, ext)?;
    let offset = (gate & 0xffff | gate >> 32 & 0xffff_0000) & mask(size as u32 * 8);
    if offset > code.segment.limit as u64 {
        return Err(Exception::gp(ext));
    }
    core.mark_accessed(&mut code)?;
    let handler = Handler { code, offset, cpl, clears_if: access & 1 == 0 };
    let old_cs = core.state.seg[SegmentIndex::Cs as usize].selector as u64;
    let mut words = Vec::with_capacity(10);
    let inner = cpl < core.state.cpl;
    let from_virtual = core.state.virtual_8086();
    if from_virtual {
        words.extend(DATA_SEGMENTS.map(|index| core.state.seg[index as usize].selector as u64));
    }
    if inner {
        words.push(core.state.seg[SegmentIndex::Ss as usize].selector as u64);
        words.push(core.state.gpr[gpr::RSP]);
    }
    words.extend([event.flags, old_cs, event.return_rip]);
    words.extend(event.error_code.map(u64::from));
    if inner {
        push_inner(core, &words, size, cpl, ext)?
    } else {
        core.push(&words, size)?
    }
    if from_virtual {
        DATA_SEGMENTS.iter().for_each(|index| core.state.seg[*index as usize] = Segment::default());
    }
    enter(core, &handler);
    Ok(())
}

/// What an interrupt in virtual-8086 mode pushes first, in order.
const DATA_SEGMENTS: [SegmentIndex; 4] =
    [SegmentIndex::Gs, SegmentIndex::Fs, SegmentIndex::Ds, SegmentIndex::Es];

/// Switches to the inner stack that the task state segment names and pushes the frame there, words of
/// `size` bytes. Without room for it: #SS with the new stack's selector.
pub(crate) fn push_inner(
    core: &mut Core,
    words: &[u64],
    size: usize,
    cpl: u8,
    ext: u32,
) -> Result<(), Exception> {
    let tr = core.state.tr;
    let ts = |selector: u16| Exception::with_code(vector::TS, selector_error(selector) + ext);
    let wide = tr.kind() & 8 != 0;
    let at = if wide { 4 + cpl as u64 * 8 } else { 2 + cpl as u64 * 4 };
    let pointer_size = if wide { 4 } else { 2 };
    if at + pointer_size as u64 + 1 > tr.limit as u64 {
        return Err(ts(tr.selector));
    }
    let base = tr.base.wrapping_add(at);
    let top = core.read_uint(core.system_linear(base), pointer_size, Intent::Implicit)?;
    let ss_at = core.system_linear(base.wrapping_add(pointer_size as u64));
    let selector = core.read_uint(ss_at, 2, Intent::Implicit)? as u16;
    if is_null(selector) {
        return Err(ts(selector));
    }
    let stack = core.stack_segment(selector, cpl, vector::TS).map_err(|e| add_ext(e, ext))?;
    // Push with the new stack in place; put the old one back where that faults.
    let (old_ss, old_rsp, old_cpl) =
        (core.state.seg[SegmentIndex::Ss as usize], core.state.gpr[gpr::RSP], core.state.cpl);
    core.state.seg[SegmentIndex::Ss as usize] = stack.segment;
    core.state.gpr[gpr::RSP] = top;
    core.state.cpl = cpl;
    core.push(words, size).map_err(|e| {
        core.state.seg[SegmentIndex::Ss as usize] = old_ss;
        core.state.gpr[gpr::RSP] = old_rsp;
        core.state.cpl = old_cpl;
        if e.vector == vector::SS { Exception::ss(selector_error(selector) + ext) } else { add_ext(e, ext) }
    })
}

/// The linear address of the next instruction, for breakpoints and messages.
pub fn instruction_address(core: &Core) -> GuestVirt {
    let state = &*core.state;
    GuestVirt(if state.code64() {
        state.rip
    } else {
        state.seg[SegmentIndex::Cs as usize].base.wrapping_add(state.rip) & 0xffff_ffff
    })
}
