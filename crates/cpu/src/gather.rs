//! Gathers and masked moves (Intel SDM vol. 2C, VPGATHER*, VGATHER*, VMASKMOV*, VPMASKMOV*; vol. 2B,
//! MASKMOVQ, MASKMOVDQU).
//!
//! They touch memory only where their mask says, one element at a time, so their faults are exact
//! here by construction. A gather that faults keeps the elements it has loaded and has cleared
//! their mask elements, lowest first, so that it goes on where it stopped. A masked load changes
//! nothing unless all of it succeeds; a masked store checks every element before it writes one.
//! MASKMOVQ and MASKMOVDQU check their whole operand.

use crate::core::{Core, Intent, mask};
use crate::system::{Done, Outcome, address_bits, effective_offset, operand_segment};
use crate::{FpuKind, fpu_available};
use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use x86::{Exception, SegmentIndex, gpr, vector};

pub(crate) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Maskmovq => mask_move_bytes(core, instr, FpuKind::Mmx, 8),
        M::Maskmovdqu => mask_move_bytes(core, instr, FpuKind::Sse, 16),
        M::Vmaskmovdqu => mask_move_bytes(core, instr, FpuKind::Avx, 16),
        M::Vmaskmovps | M::Vpmaskmovd => mask_move(core, instr, 4),
        M::Vmaskmovpd | M::Vpmaskmovq => mask_move(core, instr, 8),
        _ => gather(core, instr),
    }
}

/// Element and index sizes in bytes, and the number of elements.
struct Shape {
    element: usize,
    index: usize,
    count: usize,
}

fn shape(code: Code) -> Option<Shape> {
    let (element, index, count) = match code {
        Code::VEX_Vpgatherdd_xmm_vm32x_xmm | Code::VEX_Vgatherdps_xmm_vm32x_xmm => (4, 4, 4),
        Code::VEX_Vpgatherdd_ymm_vm32y_ymm | Code::VEX_Vgatherdps_ymm_vm32y_ymm => (4, 4, 8),
        Code::VEX_Vpgatherdq_xmm_vm32x_xmm | Code::VEX_Vgatherdpd_xmm_vm32x_xmm => (8, 4, 2),
        Code::VEX_Vpgatherdq_ymm_vm32x_ymm | Code::VEX_Vgatherdpd_ymm_vm32x_ymm => (8, 4, 4),
        Code::VEX_Vpgatherqd_xmm_vm64x_xmm | Code::VEX_Vgatherqps_xmm_vm64x_xmm => (4, 8, 2),
        Code::VEX_Vpgatherqd_xmm_vm64y_xmm | Code::VEX_Vgatherqps_xmm_vm64y_xmm => (4, 8, 4),
        Code::VEX_Vpgatherqq_xmm_vm64x_xmm | Code::VEX_Vgatherqpd_xmm_vm64x_xmm => (8, 8, 2),
        Code::VEX_Vpgatherqq_ymm_vm64y_ymm | Code::VEX_Vgatherqpd_ymm_vm64y_ymm => (8, 8, 4),
        _ => return None,
    };
    Some(Shape { element, index, count })
}

fn field(vector: &[u8; 32], i: usize, size: usize) -> &[u8] {
    &vector[i * size..(i + 1) * size]
}

/// Whether the topmost bit of mask element `i` is set.
fn selected(mask: &[u8; 32], i: usize, size: usize) -> bool {
    mask[(i + 1) * size - 1] & 0x80 != 0
}

/// A signed index, extended to 64 bits.
fn index_value(vector: &[u8; 32], i: usize, size: usize) -> u64 {
    let bytes = field(vector, i, size);
    if size == 4 {
        i32::from_le_bytes(bytes.try_into().expect("four bytes")) as i64 as u64
    } else {
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }
}

fn gather(core: &mut Core, instr: &Instruction) -> Done {
    let shape = shape(instr.code()).ok_or(Exception::ud())?;
    fpu_available(core.state, FpuKind::Avx)?;
    let destination = instr.op_register(0).number();
    let mask = instr.op_register(2).number();
    let index = instr.memory_index().number();
    if destination == mask || destination == index || mask == index {
        return Err(Exception::ud());
    }
    let segment = operand_segment(core, instr);
    let indices = core.state.fpu.ymm[index];
    for i in 0..shape.count {
        let masks = &mut core.state.fpu.ymm[mask];
        if selected(masks, i, shape.element) {
            let offset = effective_offset(core, instr, index_value(&indices, i, shape.index));
            let linear = core.linear(segment, offset, shape.element, false)?;
            let mut value = [0; 8];
            core.read(linear, &mut value[..shape.element], Intent::Explicit)?;
            let place = i * shape.element..(i + 1) * shape.element;
            core.state.fpu.ymm[destination][place].copy_from_slice(&value[..shape.element]);
        }
        core.state.fpu.ymm[mask][i * shape.element..(i + 1) * shape.element].fill(0);
    }
    // Above the elements the destination and the mask become zero.
    core.state.fpu.ymm[destination][shape.count * shape.element..].fill(0);
    core.state.fpu.ymm[mask].fill(0);
    Ok(Outcome::NEXT)
}

/// Bytes of a vector register operand.
fn width(register: Register) -> usize {
    register.size()
}

fn mask_move(core: &mut Core, instr: &Instruction, size: usize) -> Done {
    fpu_available(core.state, FpuKind::Avx)?;
    let store = instr.op_kind(0) == OpKind::Memory;
    let chosen = core.state.fpu.ymm[instr.op_register(1).number()];
    let data = instr.op_register(if store { 2 } else { 0 });
    let count = width(data) / size;
    let segment = operand_segment(core, instr);
    let base = effective_offset(core, instr, 0);
    // Offsets wrap around at the width of addresses from one element to the next.
    let width = mask(address_bits(core, instr));
    let place = |core: &Core, i: usize| {
        core.linear(segment, base.wrapping_add((i * size) as u64) & width, size, store)
    };
    if store {
        let value = core.state.fpu.ymm[data.number()];
        for i in (0..count).filter(|&i| selected(&chosen, i, size)) {
            let linear = place(core, i)?;
            core.check_write(linear, size, Intent::Explicit)?;
        }
        for i in (0..count).filter(|&i| selected(&chosen, i, size)) {
            let linear = place(core, i)?;
            core.write(linear, field(&value, i, size), Intent::Explicit)?;
        }
    } else {
        let mut value = [0; 32];
        for i in (0..count).filter(|&i| selected(&chosen, i, size)) {
            let linear = place(core, i)?;
            core.read(linear, &mut value[i * size..(i + 1) * size], Intent::Explicit)?;
        }
        core.state.fpu.ymm[data.number()] = value;
    }
    Ok(Outcome::NEXT)
}

/// MASKMOVQ and MASKMOVDQU: bytes to DS:rDI.
fn mask_move_bytes(core: &mut Core, instr: &Instruction, kind: FpuKind, len: usize) -> Done {
    fpu_available(core.state, kind)?;
    if kind == FpuKind::Mmx && core.state.fpu.exception_pending() {
        return Err(Exception::plain(vector::MF));
    }
    let (data, mask) = (instr.op_register(1).number(), instr.op_register(2).number());
    let (value, mask) = if kind == FpuKind::Mmx {
        let wide = |i: usize| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&core.state.fpu.mm(i).to_le_bytes());
            bytes
        };
        (wide(data), wide(mask))
    } else {
        (core.state.fpu.ymm[data], core.state.fpu.ymm[mask])
    };
    let address_mask = match instr.op_kind(0) {
        OpKind::MemorySegDI => 0xffff,
        OpKind::MemorySegEDI => 0xffff_ffff,
        _ => u64::MAX,
    };
    let segment: SegmentIndex = operand_segment(core, instr);
    let base = core.state.gpr[gpr::RDI] & address_mask;
    let place =
        |core: &Core, i: usize| core.linear(segment, base.wrapping_add(i as u64) & address_mask, 1, true);
    // The manual leaves open whether bytes that are not selected may fault; with the model's vendor
    // they do.
    let whole = core.linear(segment, base, len, true)?;
    core.check_alignment(whole, 8)?;
    core.check_write(whole, len, Intent::Explicit)?;
    for i in (0..len).filter(|&i| selected(&mask, i, 1)) {
        let linear = place(core, i)?;
        core.write(linear, &value[i..=i], Intent::Explicit)?;
    }
    if kind == FpuKind::Mmx {
        core.state.fpu.enter_mmx();
    }
    Ok(Outcome::NEXT)
}
