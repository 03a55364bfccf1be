//! Descriptor tables, the task register, and the instructions that ask about descriptors
//! (Intel SDM vol. 2A and 2B).

use super::operand::{self, address, write_register};
use super::{Done, Outcome, require_cpl0, require_protected};
use crate::core::{Core, Intent};
use crate::descriptor::{Descriptor, is_null, selector_error, system_type};
use iced_x86::{Instruction, Mnemonic as M, OpKind};
use x86::control::cr4;
use x86::{DescriptorTable, Exception, Segment, flags, paging, vector};

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Lgdt | M::Lidt => load_table(core, instr),
        M::Sgdt | M::Sidt => store_table(core, instr),
        M::Lldt => load_local(core, instr),
        M::Ltr => load_task(core, instr),
        M::Sldt | M::Str => store_selector(core, instr),
        M::Lar | M::Lsl => query(core, instr),
        M::Verr | M::Verw => verify(core, instr),
        _ => adjust_rpl(core, instr),
    }
}

/// Bytes of the base in a table operand: 8 in 64-bit mode, 4 elsewhere.
fn base_size(core: &Core) -> usize {
    if core.state.code64() { 8 } else { 4 }
}

fn load_table(core: &mut Core, instr: &Instruction) -> Done {
    require_cpl0(core)?;
    let size = base_size(core);
    let at = address(core, instr, size + 2, false)?;
    let mut bytes = [0; 10];
    core.read(at, &mut bytes[..size + 2], Intent::Explicit)?;
    let limit = u16::from_le_bytes([bytes[0], bytes[1]]);
    let mut base = u64::from_le_bytes(bytes[2..].try_into().expect("eight bytes"));
    if matches!(instr.code(), iced_x86::Code::Lgdt_m1632_16 | iced_x86::Code::Lidt_m1632_16) {
        base &= 0xff_ffff; // a 16-bit operand size loads 24 bits
    }
    if size == 8 && !paging::is_canonical(base) {
        return Err(Exception::gp(0));
    }
    let table = DescriptorTable { base, limit };
    match instr.mnemonic() {
        M::Lgdt => core.state.gdtr = table,
        _ => core.state.idtr = table,
    }
    Ok(Outcome::NEXT)
}

/// #GP(0) for the instructions that UMIP keeps from user programs.
fn check_umip(core: &Core) -> Result<(), Exception> {
    if core.state.cpl != 0 && core.state.cr4 & cr4::UMIP != 0 { Err(Exception::gp(0)) } else { Ok(()) }
}

fn store_table(core: &mut Core, instr: &Instruction) -> Done {
    check_umip(core)?;
    let table = if instr.mnemonic() == M::Sgdt { core.state.gdtr } else { core.state.idtr };
    let size = base_size(core);
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let at = address(core, instr, size + 2, true)?;
    core.write(at, &bytes[..size + 2], Intent::Explicit)?;
    Ok(Outcome::NEXT)
}

fn store_selector(core: &mut Core, instr: &Instruction) -> Done {
    require_protected(core)?;
    check_umip(core)?;
    let selector =
        if instr.mnemonic() == M::Sldt { core.state.ldtr.selector } else { core.state.tr.selector };
    operand::write(core, instr, 0, 2, selector as u64)?;
    Ok(Outcome::NEXT)
}

/// A system descriptor for LLDT or LTR: of one of `kinds`, present, with its full base.
fn system_descriptor(core: &mut Core, selector: u16, kinds: &[u16]) -> Result<Descriptor, Exception> {
    let code = selector_error(selector);
    if selector & 4 != 0 {
        return Err(Exception::gp(code)); // must be in the GDT
    }
    let mut descriptor = core.read_descriptor(selector, vector::GP)?;
    if !descriptor.is_system() || !kinds.contains(&descriptor.segment.kind()) {
        return Err(Exception::gp(code));
    }
    if core.state.long_mode() {
        let upper = core.read_upper(&descriptor)?;
        descriptor.segment.base |= upper << 32;
        if upper >> 40 & 0x1f != 0 || !paging::is_canonical(descriptor.segment.base) {
            return Err(Exception::gp(code));
        }
    }
    if !descriptor.segment.present() {
        return Err(Exception::with_code(vector::NP, code));
    }
    Ok(descriptor)
}

fn load_local(core: &mut Core, instr: &Instruction) -> Done {
    require_protected(core)?;
    require_cpl0(core)?;
    let selector = operand::read(core, instr, 0, 2)? as u16;
    core.state.ldtr = if is_null(selector) {
        Segment { selector, ..Segment::default() }
    } else {
        system_descriptor(core, selector, &[system_type::LDT])?.segment
    };
    Ok(Outcome::NEXT)
}

fn load_task(core: &mut Core, instr: &Instruction) -> Done {
    require_protected(core)?;
    require_cpl0(core)?;
    let selector = operand::read(core, instr, 0, 2)? as u16;
    if is_null(selector) {
        return Err(Exception::gp(0));
    }
    // A 16-bit task state segment exists outside IA-32e mode only.
    let kinds: &[u16] =
        if core.state.long_mode() { &[system_type::TSS_AVAILABLE] } else { &[system_type::TSS_AVAILABLE, 1] };
    let mut descriptor = system_descriptor(core, selector, kinds)?;
    descriptor.segment.attributes |= system_type::TSS_BUSY & !system_type::TSS_AVAILABLE;
    let access = descriptor.segment.attributes as u8;
    core.write(descriptor.address.wrapping_add(5), &[access], Intent::Implicit)?;
    core.state.tr = descriptor.segment;
    Ok(Outcome::NEXT)
}

/// The descriptor LAR, LSL, VERR or VERW asks about; `None` where they answer no.
fn visible(core: &mut Core, selector: u16) -> Result<Option<Descriptor>, Exception> {
    if is_null(selector) || core.descriptor_address(selector, 8).is_none() {
        return Ok(None);
    }
    let descriptor = core.read_descriptor(selector, vector::GP)?;
    let reach = core.state.cpl.max((selector & 3) as u8);
    if !descriptor.is_conforming_code() && descriptor.segment.dpl() < reach {
        return Ok(None);
    }
    Ok(Some(descriptor))
}

fn set_zero_flag(core: &mut Core, on: bool) {
    if on {
        core.state.rflags |= flags::ZF;
    } else {
        core.state.rflags &= !flags::ZF;
    }
}

fn query(core: &mut Core, instr: &Instruction) -> Done {
    require_protected(core)?;
    let selector = operand::read(core, instr, 1, 2)? as u16;
    let lar = instr.mnemonic() == M::Lar;
    let found = visible(core, selector)?.filter(|descriptor| {
        let kind = descriptor.segment.kind();
        // System types that have access rights, and those that have a limit.
        let legacy = !core.state.long_mode();
        !descriptor.is_system()
            || match kind {
                2 | 9 | 0xb => true,
                1 | 3 => legacy,
                4 | 5 => legacy && lar,
                0xc => lar,
                _ => false,
            }
    });
    if let Some(descriptor) = found {
        let value = if lar {
            // Bits 23:8 of the upper doubleword; those the limit occupies are undefined, here kept.
            descriptor.low >> 32 & 0x00ff_ff00
        } else {
            descriptor.segment.limit as u64
        };
        write_register(core.state, instr.op_register(0), value);
    }
    set_zero_flag(core, found.is_some());
    Ok(Outcome::NEXT)
}

fn verify(core: &mut Core, instr: &Instruction) -> Done {
    require_protected(core)?;
    let selector = operand::read(core, instr, 0, 2)? as u16;
    let write = instr.mnemonic() == M::Verw;
    let ok =
        visible(core, selector)?.is_some_and(|d| if write { d.is_writable_data() } else { d.is_readable() });
    set_zero_flag(core, ok);
    Ok(Outcome::NEXT)
}

fn adjust_rpl(core: &mut Core, instr: &Instruction) -> Done {
    require_protected(core)?;
    let wanted = operand::read(core, instr, 1, 2)? & 3;
    let selector = operand::read(core, instr, 0, 2)?;
    let raise = selector & 3 < wanted;
    if raise {
        let value = selector & !3 | wanted;
        if instr.op_kind(0) == OpKind::Register {
            let number = instr.op_register(0).full_register().number() & 15;
            let full = &mut core.state.gpr[number];
            *full = *full & !0xffff | value;
        } else {
            operand::write(core, instr, 0, 2, value)?;
        }
    }
    set_zero_flag(core, raise);
    Ok(Outcome::NEXT)
}
