//! SYSCALL, SYSRET, SYSENTER, SYSEXIT (Intel SDM vol. 2B).
//!
//! Where vendors differ: SYSCALL also works in compatibility mode, through CSTAR, as on AMD
//! processors, and SYSENTER works in IA-32e mode, as on Intel's; a kernel for either finds what it
//! expects. SYSRET checks RIP before it leaves CPL 0 and loads SS's attributes, as Intel's do.

use super::{Done, Outcome, next_rip, require_cpl0};
use crate::core::Core;
use iced_x86::{Code, Instruction};
use x86::control::efer;
use x86::{Exception, Segment, SegmentIndex, flags, gpr, paging};

const CS: usize = SegmentIndex::Cs as usize;
const SS: usize = SegmentIndex::Ss as usize;
/// RFLAGS bits that SYSRET takes from R11: not RF, VM or reserved ones. (VIF and VIP are reserved
/// on a processor without virtual-8086 mode extensions.)
pub const SYSRET_FLAGS: u64 = 0x24_7fd7;

/// A flat 4-GByte code segment: execute, read, accessed, present, page-granular.
fn flat_code(selector: u16, dpl: u16, size_bit: u16) -> Segment {
    let attributes = Segment::GRANULAR | size_bit | Segment::PRESENT | dpl << 5 | Segment::CODE_OR_DATA | 0xb;
    Segment { base: 0, limit: u32::MAX, attributes, selector }
}

/// A flat 4-GByte stack segment: read, write, accessed, 32-bit.
fn flat_stack(selector: u16, dpl: u16) -> Segment {
    let attributes =
        Segment::GRANULAR | Segment::DEFAULT_BIG | Segment::PRESENT | dpl << 5 | Segment::CODE_OR_DATA | 3;
    Segment { base: 0, limit: u32::MAX, attributes, selector }
}

pub(super) fn execute(core: &mut Core, instr: &Instruction) -> Done {
    match instr.code() {
        Code::Syscall => syscall(core, instr),
        Code::Sysretd => sysret(core, false),
        Code::Sysretq => sysret(core, true),
        Code::Sysenter => sysenter(core),
        Code::Sysexitd => sysexit(core, false),
        _ => sysexit(core, true),
    }
}

/// CS and SS after SYSCALL, from IA32_STAR.
pub fn syscall_segments(star: u64) -> [Segment; 2] {
    let selector = (star >> 32) as u16 & !3;
    [flat_code(selector, 0, Segment::LONG), flat_stack(selector.wrapping_add(8), 0)]
}

/// CS and SS after SYSRET to 64-bit code.
pub fn sysret_segments(star: u64) -> [Segment; 2] {
    let selector = (star >> 48) as u16;
    [flat_code(selector.wrapping_add(16) | 3, 3, Segment::LONG), flat_stack(selector.wrapping_add(8) | 3, 3)]
}

fn syscall(core: &mut Core, instr: &Instruction) -> Done {
    let next = next_rip(core, instr);
    let state = &mut *core.state;
    if state.efer & efer::SCE == 0 || !state.long_mode() {
        return Err(Exception::ud());
    }
    state.gpr[gpr::RCX] = next;
    state.gpr[gpr::R11] = state.rflags & !flags::RF;
    state.rip = if state.code64() { state.msr.lstar } else { state.msr.cstar };
    state.rflags = state.rflags & !state.msr.sfmask & !flags::RF | flags::FIXED;
    [state.seg[CS], state.seg[SS]] = syscall_segments(state.msr.star);
    state.cpl = 0;
    Ok(Outcome::BRANCH)
}

fn sysret(core: &mut Core, to_64: bool) -> Done {
    let state = &mut *core.state;
    if state.efer & efer::SCE == 0 || !state.code64() {
        return Err(Exception::ud());
    }
    if state.cpl != 0 || to_64 && !paging::is_canonical(state.gpr[gpr::RCX]) {
        return Err(Exception::gp(0));
    }
    state.rip = if to_64 { state.gpr[gpr::RCX] } else { state.gpr[gpr::RCX] & 0xffff_ffff };
    state.rflags = state.gpr[gpr::R11] & SYSRET_FLAGS | flags::FIXED;
    [state.seg[CS], state.seg[SS]] = sysret_segments(state.msr.star);
    if !to_64 {
        let selector = (state.msr.star >> 48) as u16;
        state.seg[CS] = flat_code(selector | 3, 3, Segment::DEFAULT_BIG);
    }
    state.cpl = 3;
    Ok(Outcome::BRANCH_RECHECK)
}

fn sysenter(core: &mut Core) -> Done {
    let protected = core.protected();
    let state = &mut *core.state;
    let selector = state.msr.sysenter_cs as u16 & !3;
    if !protected || selector == 0 {
        return Err(Exception::gp(0));
    }
    let long = state.long_mode();
    let width = if long { u64::MAX } else { 0xffff_ffff };
    state.rflags &= !(flags::VM | flags::IF | flags::RF);
    state.gpr[gpr::RSP] = state.msr.sysenter_esp & width;
    state.rip = state.msr.sysenter_eip & width;
    let size_bit = if long { Segment::LONG } else { Segment::DEFAULT_BIG };
    state.seg[CS] = flat_code(selector, 0, size_bit);
    state.seg[SS] = flat_stack(selector.wrapping_add(8), 0);
    state.cpl = 0;
    Ok(Outcome::BRANCH)
}

fn sysexit(core: &mut Core, to_64: bool) -> Done {
    let base = core.state.msr.sysenter_cs as u16;
    if !core.protected() || base & !3 == 0 {
        return Err(Exception::gp(0));
    }
    require_cpl0(core)?;
    let state = &mut *core.state;
    let (rip, rsp) = (state.gpr[gpr::RDX], state.gpr[gpr::RCX]);
    if to_64 && !(paging::is_canonical(rip) && paging::is_canonical(rsp)) {
        return Err(Exception::gp(0));
    }
    let (offset, size_bit) = if to_64 { (32, Segment::LONG) } else { (16, Segment::DEFAULT_BIG) };
    let width = if to_64 { u64::MAX } else { 0xffff_ffff };
    state.rip = rip & width;
    state.gpr[gpr::RSP] = rsp & width;
    state.seg[CS] = flat_code(base.wrapping_add(offset) | 3, 3, size_bit);
    state.seg[SS] = flat_stack(base.wrapping_add(offset + 8) | 3, 3);
    state.cpl = 3;
    Ok(Outcome::BRANCH)
}
