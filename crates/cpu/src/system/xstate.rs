//! FXSAVE, XSAVE and their kin (Intel SDM vol. 1, 10.5 and chapter 13).
//!
//! Which components are "in use" follows from their contents alone, so that what an optimized save
//! writes does not depend on the host's own tracking. XSAVEOPT does without the modified
//! optimization, which the manual leaves to the processor.
//!
//! The compacted layout differs from the standard one only in what is recorded in the header: with
//! the three components of the model, every part lies at the same offset.

use super::operand::address;
use super::{Done, Outcome};
use crate::core::{Core, Intent};
use crate::fpu::{MXCSR_MASK, ST_AT};
use crate::reset::MXCSR_RESET;
use crate::{Fpu, FpuKind, fpu_available};
use iced_x86::{Instruction, Mnemonic as M};
use x86::control::xcr0;
use x86::cpuid::xsave_size;
use x86::{Exception, gpr};

/// Offset of MXCSR; its mask follows.
pub(crate) const MXCSR_AT: usize = 24;
/// Offset of XMM0.
pub(crate) const XMM_AT: usize = 160;
/// Offset of the XSAVE header: XSTATE_BV, XCOMP_BV, reserved bytes.
pub(crate) const HEADER_AT: usize = 512;
/// Offset of the upper halves of the YMM registers.
pub(crate) const YMM_HIGH_AT: usize = 576;
/// XCOMP_BV bit: the layout is compacted.
pub(crate) const COMPACTED: u64 = 1 << 63;

impl Fpu {
    /// XINUSE: the components not in their initial configuration.
    pub fn in_use(&self) -> u64 {
        let mut initial = Fpu { ymm: [[0; 32]; 16], x87: [0; 512], mxcsr: 0 };
        initial.init_x87();
        let mut used = 0;
        if self.x87[..ST_AT] != initial.x87[..ST_AT] || self.x87[ST_AT..XMM_AT].iter().any(|&b| b != 0) {
            used |= xcr0::X87;
        }
        if self.ymm.iter().any(|y| y[..16] != [0; 16]) {
            used |= xcr0::SSE;
        }
        if self.ymm.iter().any(|y| y[16..] != [0; 16]) {
            used |= xcr0::AVX;
        }
        used
    }

    /// Takes the x87 part of a save area: what can be chosen freely, without pointers.
    fn load_x87(&mut self, area: &[u8]) {
        self.x87[..ST_AT].copy_from_slice(&area[..ST_AT]);
        self.x87[ST_AT..XMM_AT].copy_from_slice(&area[ST_AT..XMM_AT]);
        self.normalize();
        self.update_summary();
    }
}

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Fxsave | M::Fxsave64 => fxsave(core, instr),
        M::Fxrstor | M::Fxrstor64 => fxrstor(core, instr),
        M::Xrstor | M::Xrstor64 => xrstor(core, instr),
        M::Xsave | M::Xsave64 => xsave(core, instr, Form::Plain),
        M::Xsaveopt | M::Xsaveopt64 => xsave(core, instr, Form::Optimized),
        _ => xsave(core, instr, Form::Compacted),
    }
}

/// How many XMM and YMM registers the mode can name.
fn vector_registers(core: &Core) -> usize {
    if core.state.code64() { 16 } else { 8 }
}

fn put_mxcsr(core: &Core, area: &mut [u8]) {
    area[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&core.state.fpu.mxcsr.to_le_bytes());
    area[MXCSR_AT + 4..MXCSR_AT + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
}

fn put_xmm(core: &Core, area: &mut [u8]) {
    for (i, ymm) in core.state.fpu.ymm.iter().enumerate().take(vector_registers(core)) {
        area[XMM_AT + 16 * i..XMM_AT + 16 * (i + 1)].copy_from_slice(&ymm[..16]);
    }
}

fn load_xmm(core: &mut Core, area: &[u8]) {
    let count = vector_registers(core);
    for (i, ymm) in core.state.fpu.ymm.iter_mut().enumerate().take(count) {
        ymm[..16].copy_from_slice(&area[XMM_AT + 16 * i..XMM_AT + 16 * (i + 1)]);
    }
}

fn mxcsr_in(area: &[u8]) -> Result<u32, Exception> {
    let bytes = area[MXCSR_AT..MXCSR_AT + 4].try_into().expect("four bytes");
    checked_mxcsr(u32::from_le_bytes(bytes))
}

/// #GP(0) where a value for MXCSR sets reserved bits.
pub(super) fn checked_mxcsr(value: u32) -> Result<u32, Exception> {
    if value & !MXCSR_MASK != 0 { Err(Exception::gp(0)) } else { Ok(value) }
}

fn aligned(core: &Core, instr: &Instruction, len: usize, align: u64, write: bool) -> Result<u64, Exception> {
    let at = address(core, instr, len, write)?;
    if at & (align - 1) != 0 { Err(Exception::gp(0)) } else { Ok(at) }
}

fn fxsave(core: &mut Core, instr: &Instruction) -> Done {
    fpu_available(core.state, FpuKind::Fxsave)?;
    let at = aligned(core, instr, 512, 16, true)?;
    let mut area = [0; 512];
    area[..XMM_AT].copy_from_slice(&core.state.fpu.x87[..XMM_AT]);
    put_mxcsr(core, &mut area);
    put_xmm(core, &mut area);
    // Reserved bytes and those for software stay as they are in memory.
    core.check_write(at, 512, Intent::Explicit)?;
    let end = XMM_AT + 16 * vector_registers(core);
    core.write(at, &area[..end], Intent::Explicit)?;
    Ok(Outcome::NEXT)
}

fn fxrstor(core: &mut Core, instr: &Instruction) -> Done {
    fpu_available(core.state, FpuKind::Fxsave)?;
    let at = aligned(core, instr, 512, 16, false)?;
    let mut area = [0; 512];
    core.read(at, &mut area, Intent::Explicit)?;
    core.state.fpu.mxcsr = mxcsr_in(&area)?;
    core.state.fpu.load_x87(&area);
    load_xmm(core, &area);
    Ok(Outcome::NEXT)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Optimized,
    Compacted,
}

/// The requested-feature bitmap: XCR0 and EDX:EAX.
fn requested(core: &Core) -> u64 {
    let mask = core.state.gpr[gpr::RDX] << 32 | core.state.gpr[gpr::RAX] & 0xffff_ffff;
    core.state.xcr0 & mask
}

fn xsave(core: &mut Core, instr: &Instruction, form: Form) -> Done {
    fpu_available(core.state, FpuKind::Xsave)?;
    let rfbm = requested(core);
    let size = xsave_size(rfbm) as usize;
    let at = aligned(core, instr, size, 64, true)?;
    core.check_write(at, size, Intent::Explicit)?;
    let mut in_use = core.state.fpu.in_use();
    if core.state.fpu.mxcsr != MXCSR_RESET {
        in_use |= xcr0::SSE;
    }
    let saved = if form == Form::Plain { rfbm } else { rfbm & in_use };
    let mut area = [0; 832];
    area[..XMM_AT].copy_from_slice(&core.state.fpu.x87[..XMM_AT]);
    put_mxcsr(core, &mut area);
    put_xmm(core, &mut area);
    for (i, ymm) in core.state.fpu.ymm.iter().enumerate().take(vector_registers(core)) {
        area[YMM_HIGH_AT + 16 * i..YMM_HIGH_AT + 16 * (i + 1)].copy_from_slice(&ymm[16..]);
    }
    let count = vector_registers(core);
    let mut store =
        |from: usize, to: usize| core.write(at.wrapping_add(from as u64), &area[from..to], Intent::Explicit);
    if saved & xcr0::X87 != 0 {
        store(0, MXCSR_AT)?;
        store(ST_AT, XMM_AT)?;
    }
    let mxcsr_wanted = match form {
        Form::Compacted => saved & xcr0::SSE != 0,
        _ => rfbm & (xcr0::SSE | xcr0::AVX) != 0,
    };
    if mxcsr_wanted {
        store(MXCSR_AT, MXCSR_AT + 8)?;
    }
    if saved & xcr0::SSE != 0 {
        store(XMM_AT, XMM_AT + 16 * count)?;
    }
    if saved & xcr0::AVX != 0 {
        store(YMM_HIGH_AT, YMM_HIGH_AT + 16 * count)?;
    }
    store_header(core, at, form, rfbm, in_use)?;
    Ok(Outcome::NEXT)
}

fn store_header(core: &mut Core, at: u64, form: Form, rfbm: u64, in_use: u64) -> Result<(), Exception> {
    let header = at.wrapping_add(HEADER_AT as u64);
    if form == Form::Compacted {
        let mut fields = [0; 16];
        fields[..8].copy_from_slice(&(rfbm & in_use).to_le_bytes());
        fields[8..].copy_from_slice(&(rfbm | COMPACTED).to_le_bytes());
        return core.write(header, &fields, Intent::Explicit);
    }
    let mut old = [0; 8];
    core.read(header, &mut old, Intent::Explicit)?;
    let new = u64::from_le_bytes(old) & !rfbm | rfbm & in_use;
    core.write(header, &new.to_le_bytes(), Intent::Explicit)
}

/// Checks an XSAVE header; says which components to load and whether the layout is compacted
/// (SDM vol. 1, 13.8).
fn check_header(core: &Core, header: &[u8]) -> Result<(u64, bool), Exception> {
    let word = |i: usize| u64::from_le_bytes(header[i..i + 8].try_into().expect("eight bytes"));
    let (present, layout) = (word(0), word(8));
    let compacted = layout & COMPACTED != 0;
    let valid = if compacted {
        let parts = layout & !COMPACTED;
        parts & !core.state.xcr0 == 0 && present & !parts == 0 && header[16..64].iter().all(|&b| b == 0)
    } else {
        layout == 0 && present & !core.state.xcr0 == 0 && header[16..24].iter().all(|&b| b == 0)
    };
    if valid { Ok((present, compacted)) } else { Err(Exception::gp(0)) }
}

fn xrstor(core: &mut Core, instr: &Instruction) -> Done {
    fpu_available(core.state, FpuKind::Xsave)?;
    let rfbm = requested(core);
    let size = xsave_size(rfbm) as usize;
    let at = aligned(core, instr, size, 64, false)?;
    let mut area = [0; 832];
    core.read(at, &mut area[..size], Intent::Explicit)?;
    let (present, compacted) = check_header(core, &area[HEADER_AT..YMM_HIGH_AT])?;
    let load = rfbm & present;
    // MXCSR: with SSE or AVX in the standard layout, with SSE alone in the compacted one.
    let mxcsr = if compacted {
        match (rfbm & xcr0::SSE != 0, load & xcr0::SSE != 0) {
            (true, true) => Some(mxcsr_in(&area)?),
            (true, false) => Some(MXCSR_RESET),
            _ => None,
        }
    } else if rfbm & (xcr0::SSE | xcr0::AVX) != 0 {
        Some(mxcsr_in(&area)?)
    } else {
        None
    };
    if let Some(mxcsr) = mxcsr {
        core.state.fpu.mxcsr = mxcsr;
    }
    load_components(core, &area, rfbm, load);
    Ok(Outcome::NEXT)
}

/// Loads the components in `load` and initializes the rest of `rfbm`.
fn load_components(core: &mut Core, area: &[u8], rfbm: u64, load: u64) {
    let count = vector_registers(core);
    if load & xcr0::X87 != 0 {
        core.state.fpu.load_x87(area);
    } else if rfbm & xcr0::X87 != 0 {
        core.state.fpu.init_x87();
    }
    if load & xcr0::SSE != 0 {
        load_xmm(core, area);
    } else if rfbm & xcr0::SSE != 0 {
        core.state.fpu.ymm[..count].iter_mut().for_each(|y| y[..16].fill(0));
    }
    if rfbm & xcr0::AVX != 0 {
        for (i, ymm) in core.state.fpu.ymm.iter_mut().enumerate().take(count) {
            if load & xcr0::AVX != 0 {
                ymm[16..].copy_from_slice(&area[YMM_HIGH_AT + 16 * i..YMM_HIGH_AT + 16 * (i + 1)]);
            } else {
                ymm[16..].fill(0);
            }
        }
    }
}
