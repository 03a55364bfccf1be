//! The x87 environment, and MXCSR (Intel SDM vol. 1, 8.1.10; vol. 2).
//!
//! Pointers and opcode are stored as zero and dropped when loaded, so the real-mode and
//! protected-mode layouts, which differ in nothing else, coincide.

use super::operand;
use super::xstate::checked_mxcsr;
use super::{Done, Outcome};
use crate::core::{Core, Intent};
use crate::{FpuKind, fpu_available};
use iced_x86::{Code, Instruction, Mnemonic as M};
use x86::{Exception, vector};

/// Every x87 exception masked.
const ALL_MASKED: u16 = 0x3f;

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Ldmxcsr | M::Stmxcsr => mxcsr(core, instr, FpuKind::Sse),
        M::Vldmxcsr | M::Vstmxcsr => mxcsr(core, instr, FpuKind::Avx),
        _ => environment(core, instr),
    }
}

fn mxcsr(core: &mut Core, instr: &Instruction, kind: FpuKind) -> Done {
    fpu_available(core.state, kind)?;
    if matches!(instr.mnemonic(), M::Ldmxcsr | M::Vldmxcsr) {
        let value = operand::read(core, instr, 0, 4)? as u32;
        core.state.fpu.mxcsr = checked_mxcsr(value)?;
    } else {
        let value = core.state.fpu.mxcsr as u64;
        operand::write(core, instr, 0, 4, value)?;
    }
    Ok(Outcome::NEXT)
}

fn environment(core: &mut Core, instr: &Instruction) -> Done {
    fpu_available(core.state, FpuKind::X87)?;
    // Bytes of the environment and of the whole operand.
    let (environment, total, store) = match instr.code() {
        Code::Fnstenv_m14byte => (14, 14, true),
        Code::Fnstenv_m28byte => (28, 28, true),
        Code::Fldenv_m14byte => (14, 14, false),
        Code::Fldenv_m28byte => (28, 28, false),
        Code::Fnsave_m94byte => (14, 94, true),
        Code::Fnsave_m108byte => (28, 108, true),
        Code::Frstor_m94byte => (14, 94, false),
        Code::Frstor_m108byte => (28, 108, false),
        _ => return Err(Exception::ud()),
    };
    if !store && core.state.fpu.exception_pending() {
        return Err(Exception::plain(vector::MF));
    }
    let at = operand::address(core, instr, total, store)?;
    core.check_alignment(at, environment / 7)?;
    if store {
        save(core, at, environment, total)?
    } else {
        load(core, at, environment, total)?
    }
    Ok(Outcome::NEXT)
}

fn save(core: &mut Core, at: u64, environment: usize, total: usize) -> Result<(), Exception> {
    let fpu = &core.state.fpu;
    let mut image = [0; 108];
    let words = [fpu.control(), fpu.status(), fpu.full_tags()];
    // In the 32-bit layout each field has four bytes; the upper halves of the words, and of the
    // last selector, are stored as ones.
    let step = environment / 7;
    if step == 4 {
        for i in [2, 6, 10, 26] {
            image[i..i + 2].fill(0xff);
        }
    }
    for (i, word) in words.iter().enumerate() {
        image[i * step..i * step + 2].copy_from_slice(&word.to_le_bytes());
    }
    if total > environment {
        for i in 0..8 {
            let from = environment + 10 * i;
            image[from..from + 10].copy_from_slice(&fpu.st(i));
        }
    }
    core.write(at, &image[..total], Intent::Explicit)?;
    let fpu = &mut core.state.fpu;
    if total > environment {
        fpu.finit();
    } else {
        fpu.set_control(fpu.control() | ALL_MASKED);
        fpu.update_summary();
    }
    Ok(())
}

fn load(core: &mut Core, at: u64, environment: usize, total: usize) -> Result<(), Exception> {
    let mut image = [0; 108];
    core.read(at, &mut image[..total], Intent::Explicit)?;
    let step = environment / 7;
    let word = |i: usize| u16::from_le_bytes([image[i * step], image[i * step + 1]]);
    let fpu = &mut core.state.fpu;
    fpu.set_control(word(0));
    fpu.normalize();
    fpu.set_status_around(word(1));
    fpu.set_full_tags(word(2));
    if total > environment {
        for i in 0..8 {
            let from = environment + 10 * i;
            let value = image[from..from + 10].try_into().expect("ten bytes");
            fpu.set_st(i, value);
        }
    }
    fpu.update_summary();
    Ok(())
}
