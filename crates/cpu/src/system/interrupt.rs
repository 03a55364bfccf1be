//! INT n, INT3, INTO, INT1 and IRET (Intel SDM vol. 2A).

use super::far::{
    check_instruction_pointer, drop_inaccessible_segments, return_code_segment, return_stack_segment,
};
use super::flags::{iopl, writable};
use super::{Done, Outcome, load_real_segment, next_rip, task, virtual_8086};
use crate::core::{Core, Intent, mask};
use crate::descriptor::SegmentExt;
use crate::{debug, deliver};
use iced_x86::{Instruction, Mnemonic as M};
use x86::{Exception, Segment, SegmentIndex, flags, gpr, vector};

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    let next = next_rip(core, instr);
    let virtual_mode = core.state.virtual_8086();
    let (vector, checked) = match instr.mnemonic() {
        M::Int | M::Iret | M::Iretd if virtual_mode && iopl(core) < 3 => return Err(Exception::gp(0)),
        M::Int => (instr.immediate8(), true),
        M::Int3 => (vector::BP, true),
        M::Into if core.state.rflags & flags::OF == 0 => return Ok(Outcome::NEXT),
        M::Into => (vector::OF, true),
        M::Int1 => (vector::DB, false),
        M::Iret => return iret(core, 2, next),
        M::Iretd => return iret(core, 4, next),
        _ => return iret(core, 8, next),
    };
    deliver::software(core, vector, next, checked)?;
    Ok(Outcome::BRANCH_RECHECK)
}

fn iret(core: &mut Core, size: usize, next: u64) -> Done {
    // NMIs are unblocked even where IRET faults (SDM vol. 3A, 6.7.1).
    core.state.nmi_blocked = false;
    if core.state.real_segments() {
        return iret_real(core, size);
    }
    if core.state.rflags & flags::NT != 0 {
        return if core.state.long_mode() { Err(Exception::gp(0)) } else { return_to_task(core, next) };
    }
    let [rip, cs, image] = core.peek(0, size)?;
    if !core.state.long_mode() && core.state.cpl == 0 && size == 4 && image & flags::VM != 0 {
        return virtual_8086::enter(core);
    }
    let code = return_code_segment(core, cs as u16)?;
    let cpl = (cs & 3) as u8;
    let outer = cpl > core.state.cpl;
    let pops_stack = core.state.code64() || outer;
    let stack = if pops_stack {
        let [rsp, ss] = core.peek(3 * size as u64, size)?;
        let long = core.state.long_mode() && code.segment.is_long_code();
        let segment = return_stack_segment(core, ss as u16, cpl, long)?;
        Some((rsp, segment))
    } else {
        None
    };
    check_instruction_pointer(core, &code.segment, rip)?;
    let writable = writable(core, size);
    core.state.rip = rip;
    match stack {
        None => core.release(3 * size as u64),
        Some((rsp, segment)) => load_stack(core, rsp, segment, &code.segment),
    }
    core.state.seg[SegmentIndex::Cs as usize] = Segment { selector: cs as u16, ..code.segment };
    core.state.cpl = cpl;
    if outer {
        drop_inaccessible_segments(core, cpl);
    }
    load_flags(core, image, writable, size);
    Ok(Outcome::BRANCH_RECHECK)
}

/// IRET with NT set: back to the task that the current one's link names.
fn return_to_task(core: &mut Core, next: u64) -> Done {
    let link = core.system_linear(core.state.tr.base);
    let selector = core.read_uint(link, 2, Intent::Implicit)? as u16;
    let rflags = core.state.rflags;
    task::switch(core, selector, task::Reason::Return, (next, rflags), 0)?;
    Ok(Outcome::BRANCH_RECHECK)
}

/// SS and RSP on a return that pops them: a 16-bit stack takes only SP, so that the rest of the
/// inner RSP shows through, as it does on hardware.
pub(super) fn load_stack(core: &mut Core, rsp: u64, segment: Segment, code: &Segment) {
    let long = core.state.long_mode() && code.is_long_code();
    let old = core.state.gpr[gpr::RSP];
    core.state.gpr[gpr::RSP] = if long {
        rsp
    } else if segment.attributes & Segment::DEFAULT_BIG != 0 {
        rsp & 0xffff_ffff
    } else {
        old & !0xffff | rsp & 0xffff
    };
    core.state.seg[SegmentIndex::Ss as usize] = segment;
}

fn load_flags(core: &mut Core, image: u64, mut writable: u64, size: usize) {
    // RF is kept only while an instruction breakpoint could be hit: see the debug module.
    if size > 2 && debug::breakpoints_enabled(core.state) {
        writable |= flags::RF;
    }
    let old = core.state.rflags & !flags::RF;
    core.state.rflags = old & !writable | image & writable | flags::FIXED;
}

fn iret_real(core: &mut Core, size: usize) -> Done {
    let [rip, cs, image] = core.peek(0, size)?;
    if rip > core.state.seg[SegmentIndex::Cs as usize].limit as u64 {
        return Err(Exception::gp(0));
    }
    core.release(3 * size as u64);
    core.state.rip = rip & mask(32);
    load_real_segment(core, SegmentIndex::Cs, cs as u16);
    let writable = writable(core, size);
    load_flags(core, image, writable, size);
    Ok(Outcome::BRANCH_RECHECK)
}
