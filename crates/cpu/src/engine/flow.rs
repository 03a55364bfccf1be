//! Near branches and stack instructions, executed by Rust.
//!
//! Translated code does these itself where it can; here they serve 16-bit code, odd operand
//! sizes, stacks on device memory or across page boundaries, and single steps.

use crate::core::{Core, Intent, mask};
use crate::system::operand_segment;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};
use x86::{Exception, SegmentIndex, flags, gpr};

use super::emit::guest_of;

/// Executes a near branch or a PUSH, POP or LEAVE; `state.rip` becomes the next instruction's.
pub fn execute(core: &mut Core, instr: &Instruction) -> Result<(), Exception> {
    let next = instr.next_ip();
    match instr.mnemonic() {
        Mnemonic::Push => {
            let size = stack_size(instr);
            let value = operand(core, instr, size)?;
            core.push(&[value], size)?;
            core.state.rip = next;
        }
        Mnemonic::Pop => pop(core, instr)?,
        Mnemonic::Leave => leave(core, instr)?,
        Mnemonic::Jmp => {
            let target = branch_target(core, instr)?;
            go(core, target)?;
        }
        Mnemonic::Call => {
            let size = stack_size(instr);
            let target = branch_target(core, instr)?;
            // A stack that cannot be written comes before a bad target, which pushes nothing.
            let top = core.stack_pointer().wrapping_sub(size as u64) & mask(core.stack_bits());
            let linear = core.linear(SegmentIndex::Ss, top, size, true)?;
            core.check_alignment(linear, size)?;
            core.check_write(linear, size, Intent::Explicit)?;
            check_target(core, target)?;
            core.push(&[next], size)?;
            go(core, target)?;
        }
        Mnemonic::Ret => {
            let size = if matches!(instr.code(), Code::Retnw | Code::Retnw_imm16) {
                2
            } else if matches!(instr.code(), Code::Retnd | Code::Retnd_imm16) {
                4
            } else {
                8
            };
            let [target] = core.peek::<1>(0, size)?;
            check_target(core, target)?;
            let extra = if instr.op_count() == 1 { instr.immediate16() as u64 } else { 0 };
            core.release(size as u64 + extra);
            go(core, target)?;
        }
        _ if instr.is_loop() || instr.is_loopcc() || instr.is_jcx_short() => counted(core, instr)?,
        _ => {
            let taken = condition(core.state.rflags, instr.condition_code());
            let target = if taken { instr.near_branch_target() } else { next };
            go(core, target)?;
        }
    }
    Ok(())
}

fn stack_size(instr: &Instruction) -> usize {
    instr.stack_pointer_increment().unsigned_abs() as usize
}

fn check_target(core: &Core, target: u64) -> Result<(), Exception> {
    let bad = if core.state.code64() {
        !x86::paging::is_canonical(target)
    } else {
        target > core.state.seg[SegmentIndex::Cs as usize].limit as u64
    };
    if bad { Err(Exception::gp(0)) } else { Ok(()) }
}

fn go(core: &mut Core, target: u64) -> Result<(), Exception> {
    check_target(core, target)?;
    core.state.rip = target;
    Ok(())
}

fn branch_target(core: &mut Core, instr: &Instruction) -> Result<u64, Exception> {
    match instr.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => Ok(instr.near_branch_target()),
        OpKind::Register => operand(core, instr, instr.op0_register().size()),
        _ => operand(core, instr, instr.memory_size().size()),
    }
}

fn operand(core: &mut Core, instr: &Instruction, size: usize) -> Result<u64, Exception> {
    match instr.op0_kind() {
        OpKind::Register => Ok(read_register(core, instr.op0_register())),
        OpKind::Memory => {
            let linear = linear_address(core, instr, size, false)?;
            core.read_uint(linear, size, Intent::Explicit)
        }
        _ => Ok(instr.immediate(0)),
    }
}

/// A general register's value, at its size.
pub fn read_register(core: &Core, register: Register) -> u64 {
    let Some(guest) = guest_of(register) else { return 0 };
    let value = core.state.gpr[guest];
    match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => value & 0xffff,
        _ if matches!(register, Register::AH | Register::BH | Register::CH | Register::DH) => {
            value >> 8 & 0xff
        }
        _ => value & 0xff,
    }
}

/// Writes a general register as the processor does: 32 bits clear the upper half.
pub fn write_register(core: &mut Core, register: Register, value: u64) {
    let Some(guest) = guest_of(register) else { return };
    let old = &mut core.state.gpr[guest];
    *old = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => *old & !0xffff | value & 0xffff,
        _ if matches!(register, Register::AH | Register::BH | Register::CH | Register::DH) => {
            *old & !0xff00 | (value & 0xff) << 8
        }
        _ => *old & !0xff | value & 0xff,
    };
}

/// The linear address of the memory operand, checked for `len` bytes.
pub fn linear_address(core: &Core, instr: &Instruction, len: usize, write: bool) -> Result<u64, Exception> {
    linear_address_at(core, instr, 0, len, write)
}

/// The linear address of the memory operand without any checks.
pub fn linear_address_unchecked(core: &Core, instr: &Instruction) -> u64 {
    let segment = operand_segment(core, instr);
    let based = !core.state.code64() || matches!(segment, SegmentIndex::Fs | SegmentIndex::Gs);
    let base = if based { core.state.seg[segment as usize].base } else { 0 };
    base.wrapping_add(effective_address(core, instr))
}

/// The same `displacement` bytes on: the part of a bit string that an instruction means. It counts
/// within the width of addresses.
pub fn linear_address_at(
    core: &Core,
    instr: &Instruction,
    displacement: u64,
    len: usize,
    write: bool,
) -> Result<u64, Exception> {
    let segment = operand_segment(core, instr);
    core.linear(segment, effective_address_at(core, instr, displacement), len, write)
}

/// The offset of the memory operand within its segment.
pub fn effective_address(core: &Core, instr: &Instruction) -> u64 {
    effective_address_at(core, instr, 0)
}

fn effective_address_at(core: &Core, instr: &Instruction, displacement: u64) -> u64 {
    if instr.is_ip_rel_memory_operand() {
        let sum = instr.memory_displacement64().wrapping_add(displacement);
        return if instr.memory_base() == Register::EIP { sum & 0xffff_ffff } else { sum };
    }
    let base = read_register(core, instr.memory_base());
    let index = read_register(core, instr.memory_index());
    let sum = base
        .wrapping_add(index.wrapping_mul(instr.memory_index_scale() as u64))
        .wrapping_add(instr.memory_displacement64())
        .wrapping_add(displacement);
    let register = match instr.memory_base() {
        Register::None => instr.memory_index(),
        base => base,
    };
    let size = match register {
        Register::None => instr.memory_displ_size() as usize,
        r => r.size(),
    };
    match size {
        2 => sum & 0xffff,
        4 => sum & 0xffff_ffff,
        8 => sum,
        // A displacement alone, of a size that says nothing.
        _ => sum & crate::core::mask(core.state.code_bits()),
    }
}

fn pop(core: &mut Core, instr: &Instruction) -> Result<(), Exception> {
    let size = stack_size(instr);
    let [value] = core.peek::<1>(0, size)?;
    if instr.op0_kind() == OpKind::Register {
        core.release(size as u64);
        write_register(core, instr.op0_register(), value);
    } else {
        // The address is computed with the stack pointer already moved; on a fault it moves back.
        let before = core.state.gpr[gpr::RSP];
        core.release(size as u64);
        let stored = linear_address(core, instr, size, true)
            .and_then(|linear| core.write_uint(linear, size, value, Intent::Explicit));
        if let Err(exception) = stored {
            core.state.gpr[gpr::RSP] = before;
            return Err(exception);
        }
    }
    core.state.rip = instr.next_ip();
    Ok(())
}

fn leave(core: &mut Core, instr: &Instruction) -> Result<(), Exception> {
    let before = core.state.gpr[gpr::RSP];
    core.set_stack_pointer(core.state.gpr[gpr::RBP]);
    let size = match instr.code() {
        Code::Leavew => 2,
        Code::Leaved => 4,
        _ => 8,
    };
    match core.peek::<1>(0, size) {
        Ok([value]) => {
            core.release(size as u64);
            let register = [Register::BP, Register::EBP, Register::RBP][size.trailing_zeros() as usize - 1];
            write_register(core, register, value);
            core.state.rip = instr.next_ip();
            Ok(())
        }
        Err(exception) => {
            core.state.gpr[gpr::RSP] = before;
            Err(exception)
        }
    }
}

fn counted(core: &mut Core, instr: &Instruction) -> Result<(), Exception> {
    use Code::*;
    let register = match instr.code() {
        Jcxz_rel8_16 | Jcxz_rel8_32 | Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX
        | Loope_rel8_32_CX | Loopne_rel8_16_CX | Loopne_rel8_32_CX => Register::CX,
        Jrcxz_rel8_16 | Jrcxz_rel8_64 | Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX
        | Loope_rel8_64_RCX | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX => Register::RCX,
        _ => Register::ECX,
    };
    let count = read_register(core, register);
    let zero_flag = core.state.rflags & flags::ZF != 0;
    let (left, taken) = if instr.is_jcx_short() {
        (count, count == 0)
    } else {
        let left = count.wrapping_sub(1) & crate::core::mask(register.size() as u32 * 8);
        let wanted = match instr.mnemonic() {
            Mnemonic::Loope => zero_flag,
            Mnemonic::Loopne => !zero_flag,
            _ => true,
        };
        (left, left != 0 && wanted)
    };
    let target = if taken { instr.near_branch_target() } else { instr.next_ip() };
    check_target(core, target)?;
    if !instr.is_jcx_short() {
        write_register(core, register, left);
    }
    core.state.rip = target;
    Ok(())
}

/// Whether a condition holds (SDM vol. 1, appendix B).
pub fn condition(rflags: u64, condition: ConditionCode) -> bool {
    let flag = |mask: u64| rflags & mask != 0;
    let less = flag(flags::SF) != flag(flags::OF);
    match condition {
        ConditionCode::None => true,
        ConditionCode::o => flag(flags::OF),
        ConditionCode::no => !flag(flags::OF),
        ConditionCode::b => flag(flags::CF),
        ConditionCode::ae => !flag(flags::CF),
        ConditionCode::e => flag(flags::ZF),
        ConditionCode::ne => !flag(flags::ZF),
        ConditionCode::be => flag(flags::CF | flags::ZF),
        ConditionCode::a => !flag(flags::CF | flags::ZF),
        ConditionCode::s => flag(flags::SF),
        ConditionCode::ns => !flag(flags::SF),
        ConditionCode::p => flag(flags::PF),
        ConditionCode::np => !flag(flags::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || flag(flags::ZF),
        ConditionCode::g => !less && !flag(flags::ZF),
    }
}
