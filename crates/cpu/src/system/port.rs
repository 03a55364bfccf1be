//! IN and OUT, and who may use which port (Intel SDM vol. 1, 18.5).

use super::operand::{read_register, write_register};
use super::{Done, Outcome, flags::iopl};
use crate::core::{Core, Intent};
use crate::debug;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use x86::Exception;

/// Offset of the I/O map base in a 32- or 64-bit task state segment.
const IO_MAP_BASE: u64 = 0x66;

/// Checks IOPL (not in virtual-8086 mode) and the I/O permission bitmap for `size` ports from `port`: #GP(0) where they forbid.
pub(crate) fn check_io(core: &mut Core, port: u16, size: usize) -> Result<(), Exception> {
    let privileged = core.state.cpl <= iopl(core) && !core.state.virtual_8086();
    if !core.protected() || privileged {
        return Ok(());
    }
    let denied = Err(Exception::gp(0));
    let tr = core.state.tr;
    let limit = tr.limit as u64;
    if !tr.present() || tr.kind() & 0xd != 9 || IO_MAP_BASE + 1 > limit {
        return denied;
    }
    let base = core.read_uint(core.system_linear(tr.base.wrapping_add(IO_MAP_BASE)), 2, Intent::Implicit)?;
    let at = base + port as u64 / 8;
    // Two bytes are always read, so the map needs one more byte of ones at its end.
    if at + 1 > limit {
        return denied;
    }
    let map = core.read_uint(core.system_linear(tr.base.wrapping_add(at)), 2, Intent::Implicit)?;
    let wanted = (1u64 << size) - 1;
    if map >> (port % 8) & wanted != 0 { denied } else { Ok(()) }
}

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    let (data, port) = match instr.mnemonic() {
        Mnemonic::In => (instr.op_register(0), port_operand(core, instr, 1)),
        _ => (instr.op_register(1), port_operand(core, instr, 0)),
    };
    let size = data.size();
    check_io(core, port, size)?;
    core.data_hits |= debug::io_breakpoints(core.state, port, size);
    let at = core.at();
    if instr.mnemonic() == Mnemonic::In {
        let value = core.bus.io_read(at, port, size);
        write_register(core.state, data, value as u64);
    } else {
        let value = read_register(core.state, data) as u32;
        core.bus.io_write(at, port, size, value);
    }
    Ok(Outcome::RECHECK)
}

fn port_operand(core: &Core, instr: &Instruction, op: u32) -> u16 {
    if instr.op_kind(op) == OpKind::Register {
        read_register(core.state, Register::DX) as u16
    } else {
        instr.immediate8() as u16
    }
}
