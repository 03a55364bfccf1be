//! Where the host's processor is not of the model's vendor, and so is no oracle.
//!
//! The model is AMD's ([`x86::CpuModel`]). Processors of other vendors retire the same instructions
//! with the same results but for two encodings, and but for how much of some instructions is done
//! by the time they fault: which of a gather's mask elements are cleared, whether the return address
//! of a call to a non-canonical place is stored, whether an unmasked x87 exception comes before the
//! store's page fault, whether an operand's alignment or its segment's limit is looked at before its
//! page, whether BOUND reads its second bound at all, whether MOVSXD reads two bytes or four for a
//! 16-bit register, which of two absent pages FXRSTOR faults for. Nothing else is left out, and on hosts of the model's vendor nothing at all.

use crate::case::{Case, Mode};
use crate::compare::faulted_in;
use crate::outcome::{Ending, Outcome, vector};
use iced_x86::{Code, CpuidFeature, Instruction, Mnemonic};
use std::sync::LazyLock;

/// Whether the host's processor is of the model's vendor.
pub fn is_the_models() -> bool {
    static SAME: LazyLock<bool> = LazyLock::new(|| cpu::host_vendor() == "AuthenticAMD");
    *SAME
}

/// Whether a host of another vendor says nothing about this case.
pub fn leaves_open(case: &Case, expected: &Outcome, got: &Outcome) -> bool {
    !is_the_models()
        && (differs_always(case)
            || differs_in_faults(case, expected, got)
            || differs_in_page(case, expected, got))
}

/// FXRSTOR from two pages that both fault, each for a reason of its own: which of them is told of. Page
/// zero follows the last one.
fn differs_in_page(case: &Case, expected: &Outcome, got: &Outcome) -> bool {
    let (Ending::Fault(one), Ending::Fault(other)) = (expected.ending, got.ending) else { return false };
    let restores = |i: Instruction| matches!(i.mnemonic(), Mnemonic::Fxrstor | Mnemonic::Fxrstor64);
    let apart = (one.cr2 & !0xfff).wrapping_sub(other.cr2 & !0xfff);
    // Of the error code only whether the page was present is the page's own.
    [one, other].iter().all(|fault| fault.vector == vector::PF)
        && one.error_code | 1 == other.error_code | 1
        && (apart == 0x1000 || apart.wrapping_neg() == 0x1000)
        && faulted_in(case, got).is_some_and(restores)
}

/// PAUSE with REX.B, which AMD's processors execute as XCHG with R8, and PREFETCH of a register,
/// which they do not know and others do nothing for.
fn differs_always(case: &Case) -> bool {
    use Code::{Reservednop_rm16_r16_0F0D, Reservednop_rm32_r32_0F0D, Reservednop_rm64_r64_0F0D};
    case.instructions().zip(&case.items).any(|(instruction, item)| match instruction.code() {
        Code::Pause => item.bytes.iter().any(|byte| byte & 0xf1 == 0x41),
        Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D => true,
        _ => false,
    })
}

fn differs_in_faults(case: &Case, expected: &Outcome, got: &Outcome) -> bool {
    [expected, got].into_iter().any(|outcome| {
        let Ending::Fault(fault) = outcome.ending else { return false };
        // An operand that runs over the end of a 4 GiB segment exceeds its limit, or wraps around.
        let wraps = fault.cr2 < OPERAND_MAX || fault.cr2.abs_diff(1 << 32) <= OPERAND_MAX;
        let over = case.mode == Mode::Compatibility && fault.vector == vector::PF && wraps;
        let instruction = faulted_in(case, outcome);
        over || fault.vector == vector::AC || instruction.is_some_and(|i| is_vendors_affair(&i))
    })
}

/// Bytes of the largest operand whose place may matter: FXSAVE's.
const OPERAND_MAX: u64 = 512;

/// Whether what is left behind by this instruction's fault differs between vendors.
fn is_vendors_affair(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    let gather = instruction.is_vsib();
    let repeated = instruction.has_repne_prefix() || instruction.has_repe_prefix();
    let compared = matches!(mnemonic, Cmpsb | Cmpsw | Cmpsq | Cmpsd | Scasb | Scasw | Scasd | Scasq);
    let stores = instruction.op0_kind() == iced_x86::OpKind::Memory;
    let sha = instruction.cpuid_features().contains(&CpuidFeature::SHA);
    let masked = matches!(mnemonic, Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq);
    let mmx = (0..instruction.op_count()).any(|n| instruction.op_register(n).is_mm());
    let x87_store = matches!(mnemonic, Fst | Fstp | Fist | Fistp | Fisttp | Fbstp);
    gather
        || sha
        || masked
        || repeated && compared
        || instruction.is_call_near_indirect()
        || stores && (mmx || x87_store || mnemonic == Vcvtps2ph)
        || matches!(mnemonic, Maskmovdqu | Vmaskmovdqu | Maskmovq | Bound)
        || instruction.code() == Code::Movsxd_r16_rm16
}
