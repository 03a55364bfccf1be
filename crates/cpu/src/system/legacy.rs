//! Instructions that 64-bit mode gave up (PUSHA, POPA, BOUND, decimal adjustment, SALC), and
//! ENTER, LEAVE and XLAT, which it kept (Intel SDM vol. 2).

use super::operand::{address, address_bits, effective_offset, operand_segment, read_register};
use super::{Done, Outcome};
use crate::core::{Core, Intent, mask};
use iced_x86::{Code, Instruction, Mnemonic as M};
use x86::{Exception, SegmentIndex, flags, gpr, vector};

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Pusha => push_all(core, 2),
        M::Pushad => push_all(core, 4),
        M::Popa => pop_all(core, 2),
        M::Popad => pop_all(core, 4),
        M::Bound => bound(core, instr),
        M::Enter => enter(core, instr),
        M::Leave => leave(core, instr),
        M::Xlatb => {
            let at = address(core, instr, 1, false)?;
            let value = core.read_uint(at, 1, Intent::Explicit)?;
            set_al(core, value as u8);
            Ok(Outcome::NEXT)
        }
        M::Salc => {
            let carry = core.state.rflags & flags::CF != 0;
            set_al(core, if carry { 0xff } else { 0 });
            Ok(Outcome::NEXT)
        }
        _ => decimal(core, instr),
    }
}

fn al(core: &Core) -> u8 {
    core.state.gpr[gpr::RAX] as u8
}

fn set_al(core: &mut Core, value: u8) {
    let rax = &mut core.state.gpr[gpr::RAX];
    *rax = *rax & !0xff | value as u64;
}

fn set_ax(core: &mut Core, value: u16) {
    let rax = &mut core.state.gpr[gpr::RAX];
    *rax = *rax & !0xffff | value as u64;
}

fn push_all(core: &mut Core, size: usize) -> Done {
    // AX, CX, DX, BX, SP as it was, BP, SI, DI: the order of their numbers.
    let values: [u64; 8] = std::array::from_fn(|i| core.state.gpr[i]);
    core.push(&values, size)?;
    Ok(Outcome::NEXT)
}

fn pop_all(core: &mut Core, size: usize) -> Done {
    let values: [u64; 8] = core.peek(0, size)?;
    for (i, value) in values.iter().enumerate() {
        let number = 7 - i;
        if number == gpr::RSP {
            continue;
        }
        let register = &mut core.state.gpr[number];
        *register = if size == 2 { *register & !0xffff | value } else { *value };
    }
    core.release(8 * size as u64);
    Ok(Outcome::NEXT)
}

fn bound(core: &mut Core, instr: &Instruction) -> Done {
    let register = instr.op_register(0);
    let size = register.size();
    let segment = operand_segment(core, instr);
    let lower_at = effective_offset(core, instr, 0);
    let upper_at = lower_at.wrapping_add(size as u64) & mask(address_bits(core, instr));
    let signed = |value: u64| ((value << (64 - 8 * size)) as i64) >> (64 - 8 * size);
    let at = core.linear(segment, lower_at, size, false)?;
    let lower = signed(core.read_uint(at, size, Intent::Explicit)?);
    let at = core.linear(segment, upper_at, size, false)?;
    let upper = signed(core.read_uint(at, size, Intent::Explicit)?);
    let index = signed(read_register(core.state, register));
    if index < lower || index > upper { Err(Exception::plain(vector::BR)) } else { Ok(Outcome::NEXT) }
}

fn frame_size(code: Code) -> usize {
    match code {
        Code::Enterw_imm16_imm8 | Code::Leavew => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved => 4,
        _ => 8,
    }
}

/// Writes RBP at an operand size: 16-bit operands keep the upper bits.
fn set_rbp(core: &mut Core, size: usize, value: u64) {
    let rbp = &mut core.state.gpr[gpr::RBP];
    *rbp = match size {
        2 => *rbp & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    };
}

fn enter(core: &mut Core, instr: &Instruction) -> Done {
    let (rsp, rbp) = (core.state.gpr[gpr::RSP], core.state.gpr[gpr::RBP]);
    let size = frame_size(instr.code());
    enter_frame(core, size, instr.immediate16(), instr.immediate8_2nd() & 31).inspect_err(|_| {
        core.state.gpr[gpr::RSP] = rsp;
        core.state.gpr[gpr::RBP] = rbp;
    })
}

fn enter_frame(core: &mut Core, size: usize, allocate: u16, level: u8) -> Done {
    let rbp = core.state.gpr[gpr::RBP];
    core.push(&[rbp], size)?;
    let frame = core.state.gpr[gpr::RSP];
    let width = mask(core.stack_bits());
    let mut display = rbp;
    for _ in 1..level {
        display = display.wrapping_sub(size as u64) & width;
        let at = core.linear(SegmentIndex::Ss, display, size, false)?;
        let value = core.read_uint(at, size, Intent::Explicit)?;
        core.push(&[value], size)?;
    }
    if level > 0 {
        core.push(&[frame], size)?;
    }
    let top = core.stack_pointer().wrapping_sub(allocate as u64) & width;
    let at = core.linear(SegmentIndex::Ss, top, size, true)?;
    core.check_alignment(at, size)?;
    core.check_write(at, size, Intent::Explicit)?;
    core.set_stack_pointer(top);
    set_rbp(core, size, frame);
    Ok(Outcome::NEXT)
}

fn leave(core: &mut Core, instr: &Instruction) -> Done {
    let size = frame_size(instr.code());
    let rsp = core.state.gpr[gpr::RSP];
    let frame = core.state.gpr[gpr::RBP];
    core.set_stack_pointer(frame);
    let popped = core.peek(0, size);
    match popped {
        Ok([value]) => {
            core.release(size as u64);
            set_rbp(core, size, value);
            Ok(Outcome::NEXT)
        }
        Err(e) => {
            core.state.gpr[gpr::RSP] = rsp;
            Err(e)
        }
    }
}

fn set_flags(core: &mut Core, which: u64, value: u64) {
    core.state.rflags = core.state.rflags & !which | value & which;
}

/// SF, ZF and PF of a byte.
fn byte_flags(value: u8) -> u64 {
    let mut out = 0;
    if value & 0x80 != 0 {
        out |= flags::SF;
    }
    if value == 0 {
        out |= flags::ZF;
    }
    if value.count_ones().is_multiple_of(2) {
        out |= flags::PF;
    }
    out
}

const SZP: u64 = flags::SF | flags::ZF | flags::PF;

/// The six decimal adjustments. Flags the manual calls undefined keep their values.
fn decimal(core: &mut Core, instr: &Instruction) -> Done {
    let ax = core.state.gpr[gpr::RAX] as u16;
    let adjust = al(core) & 0xf > 9 || core.state.rflags & flags::AF != 0;
    match instr.mnemonic() {
        M::Aaa | M::Aas => {
            let step = if instr.mnemonic() == M::Aaa { 0x106 } else { 0x106u16.wrapping_neg() };
            let value = if adjust { ax.wrapping_add(step) } else { ax };
            set_ax(core, value & 0xff0f);
            set_flags(core, flags::AF | flags::CF, if adjust { u64::MAX } else { 0 });
        }
        M::Aam => {
            let base = instr.immediate8();
            if base == 0 {
                return Err(Exception::plain(vector::DE));
            }
            let value = al(core);
            set_ax(core, ((value / base) as u16) << 8 | (value % base) as u16);
            set_flags(core, SZP, byte_flags(value % base));
        }
        M::Aad => {
            let high = (ax >> 8) as u8;
            let value = al(core).wrapping_add(high.wrapping_mul(instr.immediate8()));
            set_ax(core, value as u16);
            set_flags(core, SZP, byte_flags(value));
        }
        M::Daa | M::Das => adjust_packed(core, instr.mnemonic() == M::Daa),
        _ => return Err(Exception::ud()),
    }
    Ok(Outcome::NEXT)
}

/// DAA and DAS (SDM vol. 2A).
fn adjust_packed(core: &mut Core, add: bool) {
    let old = al(core);
    let old_carry = core.state.rflags & flags::CF != 0;
    let low = old & 0xf > 9 || core.state.rflags & flags::AF != 0;
    let high = old > 0x99 || old_carry;
    let mut value = old;
    let mut carry = false;
    if low {
        let (next, wrapped) = if add { value.overflowing_add(6) } else { value.overflowing_sub(6) };
        value = next;
        carry = old_carry || wrapped;
    }
    if high {
        value = if add { value.wrapping_add(0x60) } else { value.wrapping_sub(0x60) };
        carry = true;
    } else if add {
        carry = false;
    }
    set_al(core, value);
    let mut out = byte_flags(value);
    if carry {
        out |= flags::CF;
    }
    if low {
        out |= flags::AF;
    }
    set_flags(core, SZP | flags::CF | flags::AF, out);
}
