//! CLI, STI, PUSHF, POPF, CLAC, STAC, CLD, STD (Intel SDM vol. 2).

use super::{Done, Outcome, inhibit_next, require_cpl0};
use crate::core::Core;
use iced_x86::{Instruction, Mnemonic as M};
use x86::control::cr4;
use x86::{Exception, flags};

/// Flags any program can set with POPF.
const FREE: u64 = flags::STATUS | flags::TF | flags::DF | flags::NT;

/// The I/O privilege level.
pub(super) fn iopl(core: &Core) -> u8 {
    (core.state.rflags >> 12 & 3) as u8
}

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.mnemonic() {
        M::Cli => {
            require_iopl(core)?;
            core.state.rflags &= !flags::IF;
            Ok(Outcome::NEXT)
        }
        M::Sti => {
            require_iopl(core)?;
            if core.state.rflags & flags::IF == 0 {
                core.state.rflags |= flags::IF;
                inhibit_next(core);
            }
            Ok(Outcome::RECHECK)
        }
        // What CLI and STI may not touch, these may not even look at in virtual-8086 mode.
        _ if core.state.virtual_8086() && iopl(core) < 3 && is_image(instr) => Err(Exception::gp(0)),
        M::Pushf => push(core, 2),
        M::Pushfd => push(core, 4),
        M::Pushfq => push(core, 8),
        M::Popf => pop(core, 2),
        M::Popfd => pop(core, 4),
        M::Popfq => pop(core, 8),
        M::Clac | M::Stac => {
            if core.model.cr4_supported() & cr4::SMAP == 0 || core.state.cpl != 0 {
                return Err(Exception::ud());
            }
            match instr.mnemonic() {
                M::Clac => core.state.rflags &= !flags::AC,
                _ => core.state.rflags |= flags::AC,
            }
            Ok(Outcome::NEXT)
        }
        M::Cld => {
            core.state.rflags &= !flags::DF;
            Ok(Outcome::NEXT)
        }
        M::Std => {
            core.state.rflags |= flags::DF;
            Ok(Outcome::NEXT)
        }
        _ => require_cpl0(core).and(Err(Exception::ud())),
    }
}

/// Whether it is a PUSHF or POPF.
fn is_image(instr: &Instruction) -> bool {
    matches!(instr.mnemonic(), M::Pushf | M::Pushfd | M::Popf | M::Popfd)
}

fn require_iopl(core: &Core) -> Result<(), Exception> {
    if core.protected() && core.state.cpl > iopl(core) { Err(Exception::gp(0)) } else { Ok(()) }
}

fn push(core: &mut Core, size: usize) -> Done {
    let image = core.state.rflags & !(flags::RF | flags::VM);
    core.push(&[image], size)?;
    Ok(Outcome::NEXT)
}

fn pop(core: &mut Core, size: usize) -> Done {
    let [image] = core.peek(0, size)?;
    core.release(size as u64);
    let writable = writable(core, size);
    let old = core.state.rflags & !flags::RF;
    core.state.rflags = old & !writable | image & writable | flags::FIXED;
    Ok(Outcome::RECHECK)
}

/// The flags that POPF and IRET with an operand of `size` bytes can change at this privilege
/// (SDM vol. 2B, POPF, table 4-16). RF is IRET's alone.
pub(super) fn writable(core: &Core, size: usize) -> u64 {
    let mut writable = FREE;
    if core.state.cpl <= iopl(core) || !core.protected() {
        writable |= flags::IF;
    }
    if core.state.cpl == 0 {
        writable |= flags::IOPL;
    }
    if size > 2 {
        writable |= flags::AC | flags::ID;
    }
    writable
}
