//! RDMSR and WRMSR (Intel SDM vol. 4; AMD APM vol. 2, appendix A).
//!
//! Registers that steer something are honoured; those a kernel sets up once and that steer nothing
//! here (memory types, speculation) are stored, or read as zero and ignore writes; everything else
//! is #GP(0). A value that the manual reserves is #GP(0) everywhere.

use super::identify::tsc;
use super::{Done, Outcome, require_cpl0};
use crate::core::Core;
use iced_x86::{Instruction, Mnemonic};
use x86::control::{cr0, efer};
use x86::cpuid::ARCH_CAPABILITIES_VALUE;
use x86::{Exception, SegmentIndex, gpr, msr, paging};

/// MTRR capabilities: eight variable ranges, fixed ranges, write-combining.
const MTRRCAP_VALUE: u64 = 8 | 1 << 8 | 1 << 10;
/// HWCR bits that can be written: those a kernel or a test of one touches (INVDWBINVD, FFDIS,
/// McStatusWrEn, TscFreqSel, IRPerfEn).
const HWCR_WRITABLE: u64 = 1 << 4 | 1 << 6 | 1 << 18 | 1 << 24 | 1 << 30;
/// MISC_ENABLE bits that can be written: fast strings, limit CPUID, execute-disable.
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 22 | 1 << 34;
/// SPEC_CTRL: IBRS, STIBP, SSBD.
const SPEC_CTRL_WRITABLE: u64 = 7;

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    require_cpl0(core)?;
    let index = core.state.gpr[gpr::RCX] as u32;
    if instr.mnemonic() == Mnemonic::Rdmsr {
        let value = read(core, index).ok_or(Exception::gp(0))?;
        core.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        core.state.gpr[gpr::RDX] = value >> 32;
        return Ok(Outcome::NEXT);
    }
    let value = core.state.gpr[gpr::RDX] << 32 | core.state.gpr[gpr::RAX] & 0xffff_ffff;
    if !write(core, index, value) {
        return Err(Exception::gp(0));
    }
    Ok(Outcome::RECHECK)
}

/// Registers that lie outside the core.
fn is_outside(index: u32) -> bool {
    matches!(index, msr::APIC_BASE | msr::X2APIC_FIRST..=msr::X2APIC_LAST)
}

/// The place of a fixed-range MTRR in [`crate::SystemMsrs::mtrr_fixed`].
fn fixed_range(index: u32) -> Option<usize> {
    match index {
        msr::MTRR_FIX64K_00000 => Some(0),
        msr::MTRR_FIX16K_80000 => Some(1),
        msr::MTRR_FIX16K_A0000 => Some(2),
        msr::MTRR_FIX4K_C0000..=msr::MTRR_FIX4K_F8000 => Some(3 + (index - msr::MTRR_FIX4K_C0000) as usize),
        _ => None,
    }
}

/// IA32_TSC_DEADLINE as the guest sees it: compared with the counter that IA32_TSC_ADJUST shifts,
/// while the timer outside compares with the machine's own. 0: disarmed.
fn read_deadline(core: &mut Core) -> Option<u64> {
    let at = core.at();
    let outside = core.bus.msr_read(at, msr::TSC_DEADLINE)?;
    Some(if outside == 0 { 0 } else { outside.wrapping_add(core.state.msr.tsc_adjust) })
}

fn write_deadline(core: &mut Core, deadline: u64) -> bool {
    let at = core.at();
    let outside = match deadline.checked_sub(tsc(core)) {
        _ if deadline == 0 => 0,
        Some(left) => core.bus.tsc(at).saturating_add(left),
        // Over already: any deadline in the past expires at once.
        None => 1,
    };
    core.bus.msr_write(at, msr::TSC_DEADLINE, outside)
}

/// Sets IA32_TSC_ADJUST; an armed deadline stays the number it is and so moves in time.
fn set_tsc_adjust(core: &mut Core, value: u64) {
    let armed = read_deadline(core).filter(|deadline| *deadline != 0);
    core.state.msr.tsc_adjust = value;
    if let Some(deadline) = armed {
        write_deadline(core, deadline);
    }
}

fn read(core: &mut Core, index: u32) -> Option<u64> {
    if index == msr::TSC_DEADLINE {
        return read_deadline(core);
    }
    if is_outside(index) {
        let at = core.at();
        return core.bus.msr_read(at, index);
    }
    if index == msr::TSC {
        return Some(tsc(core));
    }
    let state = &*core.state;
    let m = &state.msr;
    Some(match index {
        msr::TSC_ADJUST => m.tsc_adjust,
        msr::EFER => state.efer,
        msr::STAR => m.star,
        msr::LSTAR => m.lstar,
        msr::CSTAR => m.cstar,
        msr::SFMASK => m.sfmask,
        msr::FS_BASE => state.seg[SegmentIndex::Fs as usize].base,
        msr::GS_BASE => state.seg[SegmentIndex::Gs as usize].base,
        msr::KERNEL_GS_BASE => m.kernel_gs_base,
        msr::TSC_AUX => m.tsc_aux,
        msr::SYSENTER_CS => m.sysenter_cs,
        msr::SYSENTER_ESP => m.sysenter_esp,
        msr::SYSENTER_EIP => m.sysenter_eip,
        msr::PAT => m.pat,
        msr::MISC_ENABLE => m.misc_enable,
        msr::MTRRCAP => MTRRCAP_VALUE,
        msr::MTRR_DEF_TYPE => m.mtrr_def_type,
        msr::MTRR_PHYSBASE0..=msr::MTRR_PHYSMASK7 => m.mtrr_variable[(index - msr::MTRR_PHYSBASE0) as usize],
        msr::SPEC_CTRL => m.spec_ctrl,
        msr::ARCH_CAPABILITIES => ARCH_CAPABILITIES_VALUE,
        msr::HWCR => m.hwcr,
        msr::DE_CFG => m.de_cfg,
        // No machine-check banks, no microcode, no branch recording, no power states, no map of
        // memory in the northbridge.
        msr::MCG_CAP | msr::MCG_STATUS | msr::BIOS_SIGN_ID | msr::PLATFORM_ID | msr::DEBUGCTL => 0,
        msr::SYSCFG | msr::NB_CFG | msr::INT_PENDING | msr::MMIO_CFG_BASE | msr::TOP_MEM => 0,
        msr::TOP_MEM2 | msr::PSTATE_LIMIT..=msr::PSTATE_STATUS | msr::DC_CFG | msr::BU_CFG2 => 0,
        _ => return fixed_range(index).map(|i| m.mtrr_fixed[i]),
    })
}

/// Stores `value` if `valid`; says which.
fn set(place: &mut u64, value: u64, valid: bool) -> bool {
    if valid {
        *place = value;
    }
    valid
}

fn is_memory_type(byte: u8) -> bool {
    matches!(byte, 0 | 1 | 4 | 5 | 6)
}

/// Eight memory-type bytes; PAT entries may also be UC− (7).
fn are_memory_types(value: u64, uncached_minus: bool) -> bool {
    value.to_le_bytes().iter().all(|&b| is_memory_type(b) || uncached_minus && b == 7)
}

/// False: #GP.
fn write(core: &mut Core, index: u32, value: u64) -> bool {
    if index == msr::TSC_DEADLINE {
        return write_deadline(core, value);
    }
    if is_outside(index) {
        let at = core.at();
        return core.bus.msr_write(at, index, value);
    }
    match index {
        msr::EFER => return write_efer(core, value),
        msr::TSC => {
            let ahead = value.wrapping_sub(tsc(core));
            set_tsc_adjust(core, core.state.msr.tsc_adjust.wrapping_add(ahead));
            return true;
        }
        msr::TSC_ADJUST => {
            set_tsc_adjust(core, value);
            return true;
        }
        _ => {}
    }
    let canonical = paging::is_canonical(value);
    let state = &mut *core.state;
    let m = &mut state.msr;
    match index {
        msr::STAR => set(&mut m.star, value, true),
        msr::LSTAR => set(&mut m.lstar, value, canonical),
        msr::CSTAR => set(&mut m.cstar, value, canonical),
        msr::SFMASK => set(&mut m.sfmask, value, value >> 32 == 0),
        msr::FS_BASE => set(&mut state.seg[SegmentIndex::Fs as usize].base, value, canonical),
        msr::GS_BASE => set(&mut state.seg[SegmentIndex::Gs as usize].base, value, canonical),
        msr::KERNEL_GS_BASE => set(&mut m.kernel_gs_base, value, canonical),
        msr::TSC_AUX => set(&mut m.tsc_aux, value, value >> 32 == 0),
        msr::SYSENTER_CS => set(&mut m.sysenter_cs, value & 0xffff_ffff, true),
        msr::SYSENTER_ESP => set(&mut m.sysenter_esp, value, canonical),
        msr::SYSENTER_EIP => set(&mut m.sysenter_eip, value, canonical),
        msr::PAT => set(&mut m.pat, value, are_memory_types(value, true)),
        msr::MISC_ENABLE => set(&mut m.misc_enable, value, value & !MISC_ENABLE_WRITABLE == 0),
        msr::MTRR_DEF_TYPE => {
            let valid = value & !0xcff == 0 && is_memory_type(value as u8);
            set(&mut m.mtrr_def_type, value, valid)
        }
        msr::MTRR_PHYSBASE0..=msr::MTRR_PHYSMASK7 => {
            let i = (index - msr::MTRR_PHYSBASE0) as usize;
            set(&mut m.mtrr_variable[i], value, valid_variable_range(i, value))
        }
        msr::SPEC_CTRL => set(&mut m.spec_ctrl, value, value & !SPEC_CTRL_WRITABLE == 0),
        msr::PRED_CMD => value & !1 == 0,
        msr::HWCR => set(&mut m.hwcr, value, value & !HWCR_WRITABLE == 0),
        msr::DE_CFG => set(&mut m.de_cfg, value, true),
        // Writes of these have no effect (a microcode update's first step writes zero).
        msr::BIOS_SIGN_ID | msr::MCG_STATUS | msr::DEBUGCTL => value == 0,
        msr::SYSCFG | msr::NB_CFG | msr::INT_PENDING | msr::DC_CFG | msr::BU_CFG2 => true,
        _ => match fixed_range(index) {
            Some(i) => set(&mut m.mtrr_fixed[i], value, are_memory_types(value, false)),
            None => false,
        },
    }
}

/// A variable-range base (even) or mask (odd).
fn valid_variable_range(i: usize, value: u64) -> bool {
    let address = (1 << paging::PHYSICAL_BITS) - 0x1000;
    if i.is_multiple_of(2) {
        value & !(address | 0xff) == 0 && is_memory_type(value as u8)
    } else {
        value & !(address | 1 << 11) == 0
    }
}

fn write_efer(core: &mut Core, value: u64) -> bool {
    let state = &mut *core.state;
    let changed = state.efer ^ value;
    if value & !efer::DEFINED != 0 || state.cr0 & cr0::PG != 0 && changed & efer::LME != 0 {
        return false;
    }
    // LMA is the processor's to set; what is written there does not matter.
    state.efer = value & !efer::LMA | state.efer & efer::LMA;
    if changed & (efer::NXE | efer::LME) != 0 {
        core.flush.mode = true;
        core.flush.everything = true;
    }
    if changed & efer::SCE != 0 {
        core.flush.mode = true;
    }
    true
}
