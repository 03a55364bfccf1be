//! Control and debug registers, XCR0, and the TLB instructions (Intel SDM vol. 2A MOV CRn, MOV DRn,
//! LMSW; vol. 2B XSETBV; vol. 3A 2.5).

use super::operand::{self, address, read_register, write_register};
use super::{Done, Outcome, require_cpl0};
use crate::core::{Core, Intent};
use crate::debug;
use base::{GuestPhys, GuestVirt};
use iced_x86::{Instruction, Mnemonic as M, Register};
use x86::control::{cr0, cr4, dr, efer, xcr0};
use x86::{Exception, SegmentIndex, gpr, paging};

/// CR3 bit 63 in a MOV: keep the translations of the new PCID.
const CR3_NO_FLUSH: u64 = 1 << 63;
/// The PCID field of CR3.
const CR3_PCID: u64 = 0xfff;
/// Bits of CR3 that must be zero.
const CR3_RESERVED: u64 = !((1 << paging::PHYSICAL_BITS) - 1);
/// CR4 bits that change how linear addresses translate.
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Mov => mov(core, instr),
        M::Clts => {
            require_cpl0(core)?;
            core.state.cr0 &= !cr0::TS;
            Ok(Outcome::NEXT)
        }
        M::Smsw => smsw(core, instr),
        M::Lmsw => {
            require_cpl0(core)?;
            let value = operand::read(core, instr, 0, 2)?;
            let taken = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
            // PE can be set but not cleared.
            let pe = core.state.cr0 & cr0::PE;
            let new = core.state.cr0 & !taken | value & taken | pe;
            write_cr0(core, new)?;
            Ok(Outcome::NEXT)
        }
        M::Invlpg => {
            require_cpl0(core)?;
            // No fault for an address that is not canonical: then there is nothing to drop.
            let offset = operand::effective_offset(core, instr, 0);
            let segment = operand::segment_index(instr.memory_segment());
            let base = match segment {
                SegmentIndex::Fs | SegmentIndex::Gs => core.state.seg[segment as usize].base,
                _ if core.state.code64() => 0,
                _ => core.state.seg[segment as usize].base,
            };
            core.flush.pages.push(GuestVirt(core.system_linear(base.wrapping_add(offset))));
            Ok(Outcome::NEXT)
        }
        M::Invpcid => invpcid(core, instr),
        M::Xgetbv => xgetbv(core),
        _ => xsetbv(core),
    }
}

fn mov(core: &mut Core, instr: &Instruction) -> Done {
    let (to, from) = (instr.op_register(0), instr.op_register(1));
    if to.is_cr() {
        let number = to.number();
        check_control_number(number)?;
        require_cpl0(core)?;
        let value = read_register(core.state, from);
        return write_control(core, number, value);
    }
    if from.is_cr() {
        let number = from.number();
        check_control_number(number)?;
        require_cpl0(core)?;
        let value = match number {
            0 => core.state.cr0,
            2 => core.state.cr2,
            3 => core.state.cr3,
            4 => core.state.cr4,
            _ => core.bus.read_cr8(),
        };
        write_register(core.state, to, value);
        return Ok(Outcome::NEXT);
    }
    mov_debug(core, to, from)
}

fn check_control_number(number: usize) -> Result<(), Exception> {
    if matches!(number, 0 | 2 | 3 | 4 | 8) { Ok(()) } else { Err(Exception::ud()) }
}

fn write_control(core: &mut Core, number: usize, value: u64) -> Done {
    match number {
        0 => write_cr0(core, value)?,
        2 => {
            core.state.cr2 = value;
            return Ok(Outcome::NEXT);
        }
        3 => write_cr3(core, value)?,
        4 => write_cr4(core, value)?,
        _ => {
            if value > 15 {
                return Err(Exception::gp(0));
            }
            let at = core.at();
            core.bus.write_cr8(at, value);
            return Ok(Outcome::RECHECK);
        }
    }
    Ok(Outcome::NEXT)
}

/// MOV to CR0 and LMSW.
fn write_cr0(core: &mut Core, value: u64) -> Result<(), Exception> {
    let state = &mut *core.state;
    let denied = Err(Exception::gp(0));
    let old = state.cr0;
    let new = value & cr0::DEFINED | cr0::ET;
    let paging_on = new & cr0::PG != 0 && old & cr0::PG == 0;
    let paging_off = new & cr0::PG == 0 && old & cr0::PG != 0;
    if value >> 32 != 0
        || new & cr0::PG != 0 && new & cr0::PE == 0
        || new & cr0::NW != 0 && new & cr0::CD == 0
    {
        return denied;
    }
    if paging_on && state.efer & efer::LME != 0 {
        let cs_long = state.seg[SegmentIndex::Cs as usize].attributes & x86::Segment::LONG != 0;
        // A busy 16-bit task state segment is refused as well (SDM vol. 3A, 9.8.5).
        if state.cr4 & cr4::PAE == 0 || cs_long || state.tr.present() && state.tr.kind() == 3 {
            return denied;
        }
    }
    if paging_off && (state.code64() || state.cr4 & cr4::PCIDE != 0) {
        return denied;
    }
    let legacy_pae = new & cr0::PG != 0 && state.efer & efer::LME == 0 && state.cr4 & cr4::PAE != 0;
    if legacy_pae && (old ^ new) & (cr0::PG | cr0::CD | cr0::NW) != 0 {
        let cr3 = core.state.cr3;
        check_pdptes(core, cr3)?;
    }
    let state = &mut *core.state;
    state.cr0 = new;
    if paging_on && state.efer & efer::LME != 0 {
        state.efer |= efer::LMA;
    } else if paging_off {
        state.efer &= !efer::LMA;
    }
    if (old ^ new) & (cr0::PG | cr0::WP | cr0::PE) != 0 {
        core.flush.mode = true;
    }
    if (old ^ new) & cr0::PG != 0 {
        core.flush.everything = true;
    }
    Ok(())
}

/// Legacy PAE paging: loading CR3 faults on present top-level entries with reserved bits
/// (SDM vol. 3A, 4.4.1).
fn check_pdptes(core: &mut Core, cr3: u64) -> Result<(), Exception> {
    let reserved = 0xfff0_0000_0000_01e6 | paging::ADDRESS_RESERVED;
    for i in 0..4 {
        let at = GuestPhys((cr3 & 0xffff_ffe0) + i * 8);
        let entry = core.bus.ram().read_u64(at).unwrap_or(u64::MAX);
        if entry & paging::PRESENT != 0 && entry & reserved != 0 {
            return Err(Exception::gp(0));
        }
    }
    Ok(())
}

fn write_cr3(core: &mut Core, value: u64) -> Result<(), Exception> {
    let pcide = core.state.cr4 & cr4::PCIDE != 0;
    let keep = pcide && value & CR3_NO_FLUSH != 0;
    let new = if pcide { value & !CR3_NO_FLUSH } else { value };
    if core.state.long_mode() && new & CR3_RESERVED != 0 {
        return Err(Exception::gp(0));
    }
    let paging = core.state.cr0 & cr0::PG != 0;
    if paging && !core.state.long_mode() && core.state.cr4 & cr4::PAE != 0 {
        check_pdptes(core, new)?;
    }
    let old = core.state.cr3;
    core.state.cr3 = new & !CR3_RESERVED;
    // What is cached is not tagged by PCID, so whatever the guest may keep, another address space
    // has none of it.
    if !keep || core.state.cr3 != old {
        core.flush.non_global = true;
    }
    Ok(())
}

fn write_cr4(core: &mut Core, value: u64) -> Result<(), Exception> {
    let old = core.state.cr4;
    let changed = old ^ value;
    let long = core.state.long_mode();
    let sets_pcide = changed & value & cr4::PCIDE != 0;
    if value & !core.model.cr4_supported() != 0
        || long && value & cr4::PAE == 0
        || sets_pcide && (!long || core.state.cr3 & CR3_PCID != 0)
    {
        return Err(Exception::gp(0));
    }
    let pae_paging = core.state.cr0 & cr0::PG != 0 && !long && value & cr4::PAE != 0;
    if pae_paging && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 {
        let cr3 = core.state.cr3;
        check_pdptes(core, cr3)?;
    }
    core.state.cr4 = value;
    if changed & CR4_PAGING != 0 {
        core.flush.mode = true;
        core.flush.everything = true;
    }
    if changed & cr4::PGE != 0 {
        core.flush.everything = true;
    }
    if changed & (cr4::OSFXSR | cr4::OSXSAVE | cr4::FSGSBASE | cr4::TSD | cr4::DE | cr4::UMIP) != 0 {
        core.flush.mode = true;
    }
    Ok(())
}

fn smsw(core: &mut Core, instr: &Instruction) -> Done {
    if core.state.cpl != 0 && core.state.cr4 & cr4::UMIP != 0 {
        return Err(Exception::gp(0));
    }
    let value = core.state.cr0;
    operand::write(core, instr, 0, 2, value)?;
    Ok(Outcome::NEXT)
}

fn mov_debug(core: &mut Core, to: Register, from: Register) -> Done {
    let writes = to.is_dr();
    let mut number = if writes { to.number() } else { from.number() };
    if number > 7 || matches!(number, 4 | 5) && core.state.cr4 & cr4::DE != 0 {
        return Err(Exception::ud());
    }
    require_cpl0(core)?;
    if core.state.dr[7] & dr::GD != 0 {
        return Err(debug::raise(core.state, dr::BD));
    }
    if matches!(number, 4 | 5) {
        number += 2;
    }
    if !writes {
        let value = core.state.dr[number];
        write_register(core.state, to, value);
        return Ok(Outcome::NEXT);
    }
    let value = read_register(core.state, from);
    if number >= 6 && value >> 32 != 0 {
        return Err(Exception::gp(0));
    }
    core.state.dr[number] = match number {
        6 => value & dr::DR6_WRITABLE | dr::DR6_FIXED,
        7 => value & dr::DR7_WRITABLE | dr::DR7_FIXED,
        _ => value,
    };
    Ok(Outcome::RECHECK)
}

fn invpcid(core: &mut Core, instr: &Instruction) -> Done {
    require_cpl0(core)?;
    let kind = read_register(core.state, instr.op_register(0));
    let at = address(core, instr, 16, false)?;
    let mut descriptor = [0; 16];
    core.read(at, &mut descriptor, Intent::Explicit)?;
    let word = |i: usize| u64::from_le_bytes(descriptor[i..i + 8].try_into().expect("eight bytes"));
    let (pcid, linear) = (word(0), word(8));
    let pcide = core.state.cr4 & cr4::PCIDE != 0;
    let pcid_valid = pcid >> 12 == 0 && (pcide || pcid == 0);
    match kind {
        0 if pcid_valid && paging::is_canonical(linear) => core.flush.pages.push(GuestVirt(linear)),
        1 if pcid_valid => core.flush.non_global = true,
        2 => core.flush.everything = true,
        3 => core.flush.non_global = true,
        _ => return Err(Exception::gp(0)),
    }
    Ok(Outcome::NEXT)
}

fn xgetbv(core: &mut Core) -> Done {
    if core.state.cr4 & cr4::OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    let value = match core.state.gpr[gpr::RCX] as u32 {
        0 => core.state.xcr0,
        1 => core.state.xcr0 & core.state.fpu.in_use(),
        _ => return Err(Exception::gp(0)),
    };
    core.state.gpr[gpr::RAX] = value & 0xffff_ffff;
    core.state.gpr[gpr::RDX] = value >> 32;
    Ok(Outcome::NEXT)
}

fn xsetbv(core: &mut Core) -> Done {
    if core.state.cr4 & cr4::OSXSAVE == 0 {
        return Err(Exception::ud());
    }
    require_cpl0(core)?;
    let value = core.state.gpr[gpr::RDX] << 32 | core.state.gpr[gpr::RAX] & 0xffff_ffff;
    let avx_alone = value & xcr0::AVX != 0 && value & xcr0::SSE == 0;
    if core.state.gpr[gpr::RCX] as u32 != 0
        || value & !core.model.xcr0_supported() != 0
        || value & xcr0::X87 == 0
        || avx_alone
    {
        return Err(Exception::gp(0));
    }
    core.state.xcr0 = value;
    core.flush.mode = true;
    Ok(Outcome::NEXT)
}
