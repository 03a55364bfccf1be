//! CPUID, RDTSC, RDTSCP, RDPID, RDPMC (Intel SDM vol. 2).

use super::operand::write_register;
use super::{Done, Outcome};
use crate::core::Core;
use iced_x86::{Instruction, Mnemonic as M};
use x86::control::cr4;
use x86::cpuid::CpuidContext;
use x86::{Exception, gpr};

/// The time-stamp counter as the guest reads it now.
pub(super) fn tsc(core: &mut Core) -> u64 {
    let at = core.at();
    core.bus.tsc(at).wrapping_add(core.state.msr.tsc_adjust)
}

fn split(core: &mut Core, value: u64) {
    core.state.gpr[gpr::RAX] = value & 0xffff_ffff;
    core.state.gpr[gpr::RDX] = value >> 32;
}

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Cpuid => cpuid(core),
        M::Rdpid => {
            let value = core.state.msr.tsc_aux;
            write_register(core.state, instr.op_register(0), value);
        }
        M::Rdpmc => {
            // There are no counters, so any number is out of range.
            return Err(Exception::gp(0));
        }
        which => {
            if core.state.cr4 & cr4::TSD != 0 && core.state.cpl != 0 {
                return Err(Exception::gp(0));
            }
            let value = tsc(core);
            split(core, value);
            if which == M::Rdtscp {
                core.state.gpr[gpr::RCX] = core.state.msr.tsc_aux & 0xffff_ffff;
            }
        }
    }
    Ok(Outcome::NEXT)
}

fn cpuid(core: &mut Core) {
    let context = CpuidContext { apic_id: core.state.apic_id, cr4: core.state.cr4, xcr0: core.state.xcr0 };
    let (leaf, subleaf) = (core.state.gpr[gpr::RAX] as u32, core.state.gpr[gpr::RCX] as u32);
    let answer = core.model.cpuid(leaf, subleaf, &context);
    core.state.gpr[gpr::RAX] = answer.eax as u64;
    core.state.gpr[gpr::RBX] = answer.ebx as u64;
    core.state.gpr[gpr::RCX] = answer.ecx as u64;
    core.state.gpr[gpr::RDX] = answer.edx as u64;
}
