//! Operands of decoded instructions: registers of any width, and memory.

use crate::CpuState;
use crate::core::{Core, Intent, mask};
use iced_x86::{Instruction, OpKind, Register};
use x86::{Exception, SegmentIndex};

/// The segment register number of iced's register.
pub(crate) fn segment_index(register: Register) -> SegmentIndex {
    match register {
        Register::ES => SegmentIndex::Es,
        Register::CS => SegmentIndex::Cs,
        Register::SS => SegmentIndex::Ss,
        Register::FS => SegmentIndex::Fs,
        Register::GS => SegmentIndex::Gs,
        _ => SegmentIndex::Ds,
    }
}

/// The segment of the instruction's memory operand. In 64-bit mode prefixes other than FS and GS
/// are ignored, which shows in what a non-canonical address raises: #SS for the stack's, else #GP.
pub(crate) fn operand_segment(core: &Core, instr: &Instruction) -> SegmentIndex {
    let named = segment_index(instr.memory_segment());
    if !core.state.code64() || matches!(named, SegmentIndex::Fs | SegmentIndex::Gs) {
        return named;
    }
    match instr.memory_base() {
        Register::RSP | Register::ESP | Register::RBP | Register::EBP => SegmentIndex::Ss,
        _ => SegmentIndex::Ds,
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// The value of a general register of any width, zero-extended.
pub(crate) fn read_register(state: &CpuState, register: Register) -> u64 {
    let full = state.gpr[register.full_register().number() & 15];
    if is_high_byte(register) {
        return full >> 8 & 0xff;
    }
    full & mask(register.size() as u32 * 8)
}

/// Writes a general register as instructions do: 32-bit writes clear the upper half, narrower ones
/// keep what is around them.
pub(crate) fn write_register(state: &mut CpuState, register: Register, value: u64) {
    let full = &mut state.gpr[register.full_register().number() & 15];
    *full = match register.size() {
        1 if is_high_byte(register) => *full & !0xff00 | (value & 0xff) << 8,
        1 => *full & !0xff | value & 0xff,
        2 => *full & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

/// Width in bits of the addresses the instruction's memory operand is made of.
pub(crate) fn address_bits(core: &Core, instr: &Instruction) -> u32 {
    let base = instr.memory_base();
    let index = instr.memory_index();
    if base != Register::None {
        base.size() as u32 * 8
    } else if index.is_gpr() {
        index.size() as u32 * 8
    } else {
        match instr.memory_displ_size() {
            2 => 16,
            4 => 32,
            8 => 64,
            _ => core.state.code_bits(),
        }
    }
}

/// The offset a memory operand names inside its segment; a vector index (VSIB) counts as
/// `vector_index`, already sign-extended.
pub(crate) fn effective_offset(core: &Core, instr: &Instruction, vector_index: u64) -> u64 {
    let displacement = instr.memory_displacement64();
    let base = match instr.memory_base() {
        // iced has already added the next instruction's address.
        Register::RIP => return displacement,
        Register::EIP => return displacement & 0xffff_ffff,
        Register::None => 0,
        register => read_register(core.state, register),
    };
    let index = match instr.memory_index() {
        Register::None => 0,
        register if register.is_gpr() => read_register(core.state, register),
        _ => vector_index,
    };
    let scaled = index.wrapping_mul(instr.memory_index_scale() as u64);
    base.wrapping_add(scaled).wrapping_add(displacement) & mask(address_bits(core, instr))
}

/// The linear address of the memory operand, `len` bytes of which are accessed.
pub(crate) fn address(core: &Core, instr: &Instruction, len: usize, write: bool) -> Result<u64, Exception> {
    let offset = effective_offset(core, instr, 0);
    core.linear(operand_segment(core, instr), offset, len, write)
}

/// Reads operand `op`, a register or `size` bytes of memory, zero-extended.
pub(crate) fn read(core: &mut Core, instr: &Instruction, op: u32, size: usize) -> Result<u64, Exception> {
    if instr.op_kind(op) == OpKind::Register {
        return Ok(read_register(core.state, instr.op_register(op)) & mask(size as u32 * 8));
    }
    let linear = address(core, instr, size, false)?;
    core.read_uint(linear, size, Intent::Explicit)
}

/// Writes operand `op`: a register, at its own width, or `size` bytes of memory.
pub(crate) fn write(
    core: &mut Core,
    instr: &Instruction,
    op: u32,
    size: usize,
    value: u64,
) -> Result<(), Exception> {
    if instr.op_kind(op) == OpKind::Register {
        write_register(core.state, instr.op_register(op), value);
        return Ok(());
    }
    let linear = address(core, instr, size, true)?;
    core.write_uint(linear, size, value, Intent::Explicit)
}

/// Reads a far pointer operand in memory: offset of `size` bytes, then the selector.
pub(crate) fn read_far(core: &mut Core, instr: &Instruction, size: usize) -> Result<(u16, u64), Exception> {
    let linear = address(core, instr, size + 2, false)?;
    let mut bytes = [0; 10];
    core.read(linear, &mut bytes[..size + 2], Intent::Explicit)?;
    let mut offset = [0; 8];
    offset[..size].copy_from_slice(&bytes[..size]);
    Ok((u16::from_le_bytes([bytes[size], bytes[size + 1]]), u64::from_le_bytes(offset)))
}
