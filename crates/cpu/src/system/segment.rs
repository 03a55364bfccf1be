//! Loads and stores of segment registers, far pointer loads, SWAPGS and the FS and GS base
//! instructions (Intel SDM vol. 2).

use super::operand::{self, read_far, read_register, segment_index, write_register};
use super::{Done, Outcome, inhibit_next, load_real_segment, require_code64, require_cpl0};
use crate::core::Core;
use crate::descriptor::is_null;
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use x86::control::cr4;
use x86::{Exception, Segment, SegmentIndex, paging, vector};

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Mov => mov(core, instr),
        M::Push => push(core, instr),
        M::Pop => pop(core, instr),
        M::Swapgs => {
            require_code64(core)?;
            require_cpl0(core)?;
            let gs = &mut core.state.seg[SegmentIndex::Gs as usize].base;
            std::mem::swap(gs, &mut core.state.msr.kernel_gs_base);
            Ok(Outcome::NEXT)
        }
        M::Rdfsbase => read_base(core, instr, SegmentIndex::Fs),
        M::Rdgsbase => read_base(core, instr, SegmentIndex::Gs),
        M::Wrfsbase => write_base(core, instr, SegmentIndex::Fs),
        M::Wrgsbase => write_base(core, instr, SegmentIndex::Gs),
        _ => far_pointer(core, instr),
    }
}

/// Loads a segment register other than CS with all its checks (SDM vol. 2B, MOV).
fn load(core: &mut Core, index: SegmentIndex, selector: u16) -> Result<(), Exception> {
    if core.state.real_segments() {
        load_real_segment(core, index, selector);
        return Ok(());
    }
    let segment =
        if index == SegmentIndex::Ss { stack(core, selector)? } else { core.data_segment(selector)? };
    core.state.seg[index as usize] = segment;
    Ok(())
}

fn stack(core: &mut Core, selector: u16) -> Result<Segment, Exception> {
    let cpl = core.state.cpl;
    if is_null(selector) {
        return if core.state.code64() && cpl < 3 && (selector & 3) as u8 == cpl {
            Ok(Segment { selector, ..Segment::default() })
        } else {
            Err(Exception::gp(0))
        };
    }
    Ok(core.stack_segment(selector, cpl, vector::GP)?.segment)
}

fn is_segment(register: Register) -> bool {
    register.is_segment_register()
}

fn mov(core: &mut Core, instr: &Instruction) -> Done {
    let to_segment = instr.op_kind(0) == OpKind::Register && is_segment(instr.op_register(0));
    if to_segment {
        let register = instr.op_register(0);
        if register == Register::CS {
            return Err(Exception::ud());
        }
        let selector = operand::read(core, instr, 1, 2)? as u16;
        load(core, segment_index(register), selector)?;
        return Ok(after_load(core, register));
    }
    if instr.op_kind(1) != OpKind::Register || !is_segment(instr.op_register(1)) {
        return Err(Exception::ud());
    }
    let selector = core.state.seg[segment_index(instr.op_register(1)) as usize].selector;
    operand::write(core, instr, 0, 2, selector as u64)?;
    Ok(Outcome::NEXT)
}

/// A load of SS holds interrupts back over the next instruction.
fn after_load(core: &mut Core, register: Register) -> Outcome {
    if register == Register::SS {
        inhibit_next(core);
    }
    Outcome::NEXT
}

/// Bytes that a push or pop of a segment register moves the stack pointer by.
fn stack_size(instr: &Instruction) -> usize {
    match instr.code() {
        Code::Pushw_CS
        | Code::Pushw_SS
        | Code::Pushw_DS
        | Code::Pushw_ES
        | Code::Pushw_FS
        | Code::Pushw_GS
        | Code::Popw_SS
        | Code::Popw_DS
        | Code::Popw_ES
        | Code::Popw_FS
        | Code::Popw_GS => 2,
        Code::Pushq_FS | Code::Pushq_GS | Code::Popq_FS | Code::Popq_GS => 8,
        _ => 4,
    }
}

fn push(core: &mut Core, instr: &Instruction) -> Done {
    if instr.op_kind(0) != OpKind::Register || !is_segment(instr.op_register(0)) {
        return Err(Exception::ud());
    }
    let selector = core.state.seg[segment_index(instr.op_register(0)) as usize].selector;
    core.push(&[selector as u64], stack_size(instr))?;
    Ok(Outcome::NEXT)
}

fn pop(core: &mut Core, instr: &Instruction) -> Done {
    if instr.op_kind(0) != OpKind::Register || !is_segment(instr.op_register(0)) {
        return Err(Exception::ud());
    }
    let size = stack_size(instr);
    let [value] = core.peek(0, size)?;
    let register = instr.op_register(0);
    // The stack pointer moves by the old stack segment's width.
    let top = core.stack_pointer().wrapping_add(size as u64);
    let before = core.stack_bits();
    load(core, segment_index(register), value as u16)?;
    let rsp = &mut core.state.gpr[x86::gpr::RSP];
    *rsp = match before {
        64 => top,
        32 => top & 0xffff_ffff,
        _ => *rsp & !0xffff | top & 0xffff,
    };
    Ok(after_load(core, register))
}

fn far_pointer(core: &mut Core, instr: &Instruction) -> Done {
    let index = match instr.mnemonic() {
        M::Lds => SegmentIndex::Ds,
        M::Les => SegmentIndex::Es,
        M::Lss => SegmentIndex::Ss,
        M::Lfs => SegmentIndex::Fs,
        _ => SegmentIndex::Gs,
    };
    let register = instr.op_register(0);
    let (selector, offset) = read_far(core, instr, register.size())?;
    load(core, index, selector)?;
    write_register(core.state, register, offset);
    // Unlike MOV and POP, LSS needs no shadow: it loads both halves (SDM vol. 3A, 6.8.3).
    Ok(Outcome::NEXT)
}

fn check_base_instructions(core: &Core) -> Result<(), Exception> {
    require_code64(core)?;
    if core.state.cr4 & cr4::FSGSBASE == 0 { Err(Exception::ud()) } else { Ok(()) }
}

fn read_base(core: &mut Core, instr: &Instruction, index: SegmentIndex) -> Done {
    check_base_instructions(core)?;
    let base = core.state.seg[index as usize].base;
    write_register(core.state, instr.op_register(0), base);
    Ok(Outcome::NEXT)
}

fn write_base(core: &mut Core, instr: &Instruction, index: SegmentIndex) -> Done {
    check_base_instructions(core)?;
    let base = read_register(core.state, instr.op_register(0));
    if !paging::is_canonical(base) {
        return Err(Exception::gp(0));
    }
    core.state.seg[index as usize].base = base;
    Ok(Outcome::NEXT)
}
