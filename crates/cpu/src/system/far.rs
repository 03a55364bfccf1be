//! Far jumps, calls and returns (Intel SDM vol. 2A CALL, JMP; vol. 2B RET; vol. 3A, 5.8).
//!
//! Code segments, conforming and not, and call gates are done in full; task gates and task
//! state segments lead to task switches.

use super::gate;
use super::interrupt::load_stack;
use super::operand::read_far;
use super::{Done, Outcome, load_real_segment, next_rip};
use crate::core::Core;
use crate::deliver::task_stack;
use crate::descriptor::{Descriptor, SegmentExt, is_null, selector_error, system_type};
use crate::walk::Access;
use iced_x86::{Code, Instruction, OpKind};
use x86::{Exception, Segment, SegmentIndex, gpr, paging, vector};

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.code() {
        Code::Jmp_ptr1616 | Code::Jmp_m1616 => transfer(core, instr, 2, false),
        Code::Jmp_ptr1632 | Code::Jmp_m1632 => transfer(core, instr, 4, false),
        Code::Jmp_m1664 => transfer(core, instr, 8, false),
        Code::Call_ptr1616 | Code::Call_m1616 => transfer(core, instr, 2, true),
        Code::Call_ptr1632 | Code::Call_m1632 => transfer(core, instr, 4, true),
        Code::Call_m1664 => transfer(core, instr, 8, true),
        Code::Retfw => ret(core, 2, 0),
        Code::Retfd => ret(core, 4, 0),
        Code::Retfq => ret(core, 8, 0),
        Code::Retfw_imm16 => ret(core, 2, instr.immediate16()),
        Code::Retfd_imm16 => ret(core, 4, instr.immediate16()),
        Code::Retfq_imm16 => ret(core, 8, instr.immediate16()),
        _ => Err(Exception::ud()),
    }
}

fn transfer(core: &mut Core, instr: &Instruction, size: usize, call: bool) -> Done {
    let (selector, offset) = match instr.op_kind(0) {
        OpKind::FarBranch16 => (instr.far_branch_selector(), instr.far_branch16() as u64),
        OpKind::FarBranch32 => (instr.far_branch_selector(), instr.far_branch32() as u64),
        _ => read_far(core, instr, size)?,
    };
    let back = next_rip(core, instr);
    if core.state.real_segments() {
        if offset > core.state.seg[CS].limit as u64 {
            return Err(Exception::gp(0));
        }
        if call {
            let cs = core.state.seg[CS].selector as u64;
            core.push(&[cs, back], size)?;
        }
        load_real_segment(core, SegmentIndex::Cs, selector);
        core.state.rip = offset;
        return Ok(Outcome::BRANCH);
    }
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let target = core.read_descriptor(selector, vector::GP)?;
    if target.is_system() {
        return if core.state.long_mode() {
            through_gate(core, target, back, call)
        } else {
            gate::transfer(core, &target, back, call)
        };
    }
    let rpl = (selector & 3) as u8;
    enter_segment(core, target, rpl, offset, call.then_some((back, size)))
}

/// Goes to a code segment at the current privilege, pushing a return address of the given size for
/// a call.
fn enter_segment(
    core: &mut Core,
    mut target: Descriptor,
    rpl: u8,
    offset: u64,
    back: Option<(u64, usize)>,
) -> Done {
    let selector = target.segment.selector;
    let code = selector_error(selector);
    let cpl = core.state.cpl;
    let dpl = target.segment.dpl();
    let reachable = if target.is_conforming_code() { dpl <= cpl } else { rpl <= cpl && dpl == cpl };
    if !target.is_code() || !reachable || core.state.long_mode() && target.has_bad_size() {
        return Err(Exception::gp(code));
    }
    if !target.segment.present() {
        return Err(Exception::with_code(vector::NP, code));
    }
    check_instruction_pointer(core, &target.segment, offset)?;
    core.mark_accessed(&mut target)?;
    if let Some((back, size)) = back {
        let cs = core.state.seg[CS].selector as u64;
        core.push(&[cs, back], size)?;
    }
    core.state.seg[CS] = Segment { selector: selector & !3 | cpl as u16, ..target.segment };
    core.state.rip = offset;
    Ok(Outcome::BRANCH)
}

/// A 64-bit call gate (SDM vol. 3A, 5.8.3.1).
fn through_gate(core: &mut Core, gate: Descriptor, back: u64, call: bool) -> Done {
    let gate_code = selector_error(gate.segment.selector);
    let gate_fault = Err(Exception::gp(gate_code));
    if gate.segment.kind() != system_type::CALL_GATE {
        return gate_fault;
    }
    let upper = core.read_upper(&gate)?;
    let rpl = (gate.segment.selector & 3) as u8;
    if gate.segment.dpl() < core.state.cpl.max(rpl) || upper >> 40 & 0x1f != 0 {
        return gate_fault;
    }
    if !gate.segment.present() {
        return Err(Exception::with_code(vector::NP, gate_code));
    }
    let selector = (gate.low >> 16) as u16;
    let offset = gate.low & 0xffff | gate.low >> 32 & 0xffff_0000 | upper << 32;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = selector_error(selector);
    let mut target = core.read_descriptor(selector, vector::GP)?;
    let dpl = target.segment.dpl();
    let cpl = core.state.cpl;
    let reachable = if call || target.is_conforming_code() { dpl <= cpl } else { dpl == cpl };
    let bad = !target.is_code() || !target.segment.is_long_code() || target.has_bad_size();
    if bad || !reachable {
        return Err(Exception::gp(code));
    }
    if !target.segment.present() {
        return Err(Exception::with_code(vector::NP, code));
    }
    if !paging::is_canonical(offset) {
        return Err(Exception::gp(0));
    }
    if call && !target.is_conforming_code() && dpl < cpl {
        call_inner(core, target, offset, back)?;
        return Ok(Outcome::BRANCH);
    }
    core.mark_accessed(&mut target)?;
    if call {
        let cs = core.state.seg[CS].selector as u64;
        core.push(&[cs, back], 8)?;
    }
    core.state.seg[CS] = Segment { selector: selector & !3 | cpl as u16, ..target.segment };
    core.state.rip = offset;
    Ok(Outcome::BRANCH)
}

/// A call to a more privileged segment: onto the stack that the task state segment names.
fn call_inner(core: &mut Core, mut target: Descriptor, offset: u64, back: u64) -> Result<(), Exception> {
    let cpl = target.segment.dpl();
    let top = task_stack(core, 4 + cpl as u64 * 8, 0)?;
    let words = [
        back,
        core.state.seg[CS].selector as u64,
        core.state.gpr[gpr::RSP],
        core.state.seg[SS].selector as u64,
    ];
    let mut frame = [0; 32];
    for (i, word) in words.iter().enumerate() {
        frame[i * 8..i * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    let rsp = top.wrapping_sub(32);
    if !paging::is_canonical(rsp) || !paging::is_canonical(rsp.wrapping_add(31)) {
        return Err(Exception::ss(0));
    }
    core.mark_accessed(&mut target)?;
    core.write_as(rsp, &frame, Access::system(true))?;
    let state = &mut *core.state;
    state.seg[SS] = Segment { selector: cpl as u16, ..Segment::default() };
    state.seg[CS] = Segment { selector: target.segment.selector & !3 | cpl as u16, ..target.segment };
    state.gpr[gpr::RSP] = rsp;
    state.rip = offset;
    state.cpl = cpl;
    Ok(())
}

/// #GP(0) unless `rip` can be executed in `code`: canonical in a 64-bit segment, inside the limit
/// of another.
pub(super) fn check_instruction_pointer(core: &Core, code: &Segment, rip: u64) -> Result<(), Exception> {
    let fits = if core.state.long_mode() && code.is_long_code() {
        paging::is_canonical(rip)
    } else {
        rip <= code.limit as u64
    };
    if fits { Ok(()) } else { Err(Exception::gp(0)) }
}

/// The code segment a far return or IRET goes back to, checked, with its accessed bit set.
pub(super) fn return_code_segment(core: &mut Core, selector: u16) -> Result<Descriptor, Exception> {
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = selector_error(selector);
    let rpl = (selector & 3) as u8;
    let mut target = core.read_descriptor(selector, vector::GP)?;
    let dpl = target.segment.dpl();
    let matching = if target.is_conforming_code() { dpl <= rpl } else { dpl == rpl };
    let bad_size = core.state.long_mode() && target.has_bad_size();
    if rpl < core.state.cpl || !target.is_code() || !matching || bad_size {
        return Err(Exception::gp(code));
    }
    if !target.segment.present() {
        return Err(Exception::with_code(vector::NP, code));
    }
    core.mark_accessed(&mut target)?;
    Ok(target)
}

/// The stack segment of a return to `cpl`; null only in 64-bit code below CPL 3.
pub(super) fn return_stack_segment(
    core: &mut Core,
    selector: u16,
    cpl: u8,
    to_long: bool,
) -> Result<Segment, Exception> {
    if is_null(selector) {
        return if to_long && cpl != 3 && (selector & 3) as u8 == cpl {
            Ok(Segment { selector, ..Segment::default() })
        } else {
            Err(Exception::gp(0))
        };
    }
    Ok(core.stack_segment(selector, cpl, vector::GP)?.segment)
}

/// What a return to an outer level makes null if that may not use it.
pub const DROPPED: [SegmentIndex; 4] =
    [SegmentIndex::Es, SegmentIndex::Ds, SegmentIndex::Fs, SegmentIndex::Gs];

/// Makes data segments that the outer level may not use null (SDM vol. 2B, RET).
pub(super) fn drop_inaccessible_segments(core: &mut Core, cpl: u8) {
    for index in DROPPED {
        let seg = &mut core.state.seg[index as usize];
        let conforming_code = seg.kind() & 0xc == 0xc;
        if seg.present() && seg.dpl() < cpl && !conforming_code {
            *seg = Segment::default();
        } else if is_null(seg.selector) {
            // The requested privilege goes; the bases of FS and GS stay.
            seg.selector = 0;
        }
    }
}

fn ret(core: &mut Core, size: usize, extra: u16) -> Done {
    let [rip, cs] = core.peek(0, size)?;
    let popped = 2 * size as u64 + extra as u64;
    if core.state.real_segments() {
        if rip > core.state.seg[CS].limit as u64 {
            return Err(Exception::gp(0));
        }
        core.release(popped);
        load_real_segment(core, SegmentIndex::Cs, cs as u16);
        core.state.rip = rip;
        return Ok(Outcome::BRANCH);
    }
    let target = return_code_segment(core, cs as u16)?;
    let cpl = (cs & 3) as u8;
    if cpl == core.state.cpl {
        check_instruction_pointer(core, &target.segment, rip)?;
        core.release(popped);
    } else {
        let [rsp, ss] = core.peek(popped, size)?;
        let long = core.state.long_mode() && target.segment.is_long_code();
        let stack = return_stack_segment(core, ss as u16, cpl, long)?;
        check_instruction_pointer(core, &target.segment, rip)?;
        load_stack(core, rsp.wrapping_add(extra as u64), stack, &target.segment);
        core.state.cpl = cpl;
        drop_inaccessible_segments(core, cpl);
    }
    core.state.seg[CS] = Segment { selector: cs as u16, ..target.segment };
    core.state.rip = rip;
    Ok(Outcome::BRANCH)
}
