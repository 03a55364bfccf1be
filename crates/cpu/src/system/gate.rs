//! Far calls and jumps to system descriptors in legacy protected mode: 32- and 16-bit call gates,
//! task gates and task state segments (Intel SDM vol. 3A, 5.8.3, 5.8.5 and 7.2; vol. 2A, CALL).

use super::far::check_instruction_pointer;
use super::task::{self, Reason};
use super::{Done, Outcome};
use crate::core::{Core, Intent, mask};
use crate::deliver::push_inner;
use crate::descriptor::{Descriptor, is_null, selector_error, system_type};
use x86::{Exception, Segment, SegmentIndex, gpr, vector};

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;

/// What a gate leads to.
struct Target {
    code: Descriptor,
    offset: u64,
    /// Bytes of each word pushed.
    size: usize,
    /// Words copied from the caller's stack to an inner one.
    parameters: usize,
}

/// Goes through `gate`, a system descriptor; `back` is the return address of a call.
pub(super) fn transfer(core: &mut Core, gate: &Descriptor, back: u64, call: bool) -> Done {
    use system_type::{TASK_GATE, TSS_AVAILABLE, TSS_AVAILABLE_16, TSS_BUSY, TSS_BUSY_16};
    if matches!(gate.segment.kind(), TASK_GATE | TSS_AVAILABLE | TSS_AVAILABLE_16 | TSS_BUSY | TSS_BUSY_16) {
        return to_task(core, gate, back, call);
    }
    let mut target = target(core, gate, call)?;
    let cpl = core.state.cpl;
    let dpl = target.code.segment.dpl();
    check_instruction_pointer(core, &target.code.segment, target.offset)?;
    let inner = call && !target.code.is_conforming_code() && dpl < cpl;
    let cs = core.state.seg[CS].selector as u64;
    if inner {
        let mut words = vec![core.state.seg[SS].selector as u64, core.state.gpr[gpr::RSP]];
        for n in (0..target.parameters).rev() {
            words.push(parameter(core, n, target.size)?);
        }
        words.extend([cs, back]);
        core.mark_accessed(&mut target.code)?;
        push_inner(core, &words, target.size, dpl, 0)?;
    } else {
        core.mark_accessed(&mut target.code)?;
        if call {
            core.push(&[cs, back], target.size)?;
        }
    }
    let new_cpl = if inner { dpl } else { cpl };
    let selector = target.code.segment.selector & !3 | new_cpl as u16;
    core.state.cpl = new_cpl;
    core.state.seg[CS] = Segment { selector, ..target.code.segment };
    core.state.rip = target.offset;
    Ok(Outcome::BRANCH)
}

/// Goes to another task, through a task gate or by its task state segment.
fn to_task(core: &mut Core, found: &Descriptor, back: u64, call: bool) -> Done {
    let code = selector_error(found.segment.selector);
    let rpl = (found.segment.selector & 3) as u8;
    if found.segment.dpl() < core.state.cpl.max(rpl) {
        return Err(Exception::gp(code));
    }
    let mut selector = found.segment.selector;
    if found.segment.kind() == system_type::TASK_GATE {
        if !found.segment.present() {
            return Err(Exception::with_code(vector::NP, code));
        }
        selector = (found.low >> 16) as u16;
    }
    let reason = if call { Reason::Call } else { Reason::Jump };
    let rflags = core.state.rflags;
    task::switch(core, selector, reason, (back, rflags), 0)?;
    Ok(Outcome::BRANCH_RECHECK)
}

/// The gate's checks, and those of the code segment it names.
fn target(core: &mut Core, gate: &Descriptor, call: bool) -> Result<Target, Exception> {
    let gate_code = selector_error(gate.segment.selector);
    let size = match gate.segment.kind() {
        system_type::CALL_GATE => 4,
        system_type::CALL_GATE_16 => 2,
        _ => return Err(Exception::gp(gate_code)),
    };
    let rpl = (gate.segment.selector & 3) as u8;
    if gate.segment.dpl() < core.state.cpl.max(rpl) {
        return Err(Exception::gp(gate_code));
    }
    if !gate.segment.present() {
        return Err(Exception::with_code(vector::NP, gate_code));
    }
    let selector = (gate.low >> 16) as u16;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    let code = core.read_descriptor(selector, vector::GP)?;
    let cpl = core.state.cpl;
    let dpl = code.segment.dpl();
    let reachable = if call || code.is_conforming_code() { dpl <= cpl } else { dpl == cpl };
    if !code.is_code() || !reachable {
        return Err(Exception::gp(selector_error(selector)));
    }
    if !code.segment.present() {
        return Err(Exception::with_code(vector::NP, selector_error(selector)));
    }
    let offset = (gate.low & 0xffff | gate.low >> 32 & 0xffff_0000) & mask(size as u32 * 8);
    Ok(Target { code, offset, size, parameters: (gate.low >> 32 & 0x1f) as usize })
}

/// The `n`th word on the caller's stack.
fn parameter(core: &mut Core, n: usize, size: usize) -> Result<u64, Exception> {
    let offset = core.stack_pointer().wrapping_add((n * size) as u64) & mask(core.stack_bits());
    let linear = core.linear(SegmentIndex::Ss, offset, size, false)?;
    core.read_uint(linear, size, Intent::Explicit)
}
