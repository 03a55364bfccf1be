//! Debug registers and single-stepping (Intel SDM vol. 3B, chapter 17).
//!
//! Translated code knows nothing of breakpoints. While [`debug_traps_armed`] holds, the caller
//! runs one instruction at a time, in this order:
//!
//! 1. [`code_breakpoint`] before the instruction; a fault, delivered instead of it.
//! 2. The instruction, noting whether TF was set before it, and its data accesses
//!    ([`data_breakpoints`]; [`crate::core::Core`] collects its own in `data_hits`).
//! 3. If it retired: clear RF unless the instruction was IRET, then [`trap_after`] (held back while
//!    [`CpuState::in_interrupt_shadow`], as after a load of SS).
//!
//! RF is kept in RFLAGS only while some breakpoint could be hit: IRET drops it otherwise (see
//! [`crate::system`]), so that translated code need not clear it after every instruction.

use crate::CpuState;
use x86::control::{cr4, dr};
use x86::{Exception, flags, vector};

/// Condition codes of DR7's R/W fields.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const IO: u64 = 2;

/// Whether any breakpoint is enabled in DR7.
pub fn breakpoints_enabled(state: &CpuState) -> bool {
    state.dr[7] & 0xff != 0
}

/// Whether the next instruction may raise a debug exception, so that it must run by itself.
pub fn debug_traps_armed(state: &CpuState) -> bool {
    state.rflags & flags::TF != 0 || breakpoints_enabled(state)
}

struct Breakpoint {
    number: usize,
    address: u64,
    kind: u64,
    len: u64,
}

fn enabled(state: &CpuState) -> impl Iterator<Item = Breakpoint> {
    (0..4).filter(|n| state.dr[7] >> (2 * n) & 3 != 0).map(|n| Breakpoint {
        number: n,
        address: state.dr[n],
        kind: state.dr[7] >> (16 + 4 * n) & 3,
        len: [1, 2, 8, 4][(state.dr[7] >> (18 + 4 * n) & 3) as usize],
    })
}

/// The fault of an instruction breakpoint at the linear address of the next instruction, with DR6
/// set; `None` while RF is set or nothing matches.
pub fn code_breakpoint(state: &mut CpuState, linear: u64) -> Option<Exception> {
    if state.rflags & flags::RF != 0 || !breakpoints_enabled(state) {
        return None;
    }
    let hits = enabled(state)
        .filter(|b| b.kind == EXECUTE && b.address == linear)
        .fold(0, |hits, b| hits | 1 << b.number);
    (hits != 0).then(|| raise(state, hits))
}

/// The DR6 bits of data breakpoints that an access of `len` bytes hits.
#[inline]
pub fn data_breakpoints(state: &CpuState, linear: u64, len: usize, write: bool) -> u64 {
    if !breakpoints_enabled(state) {
        return 0;
    }
    enabled(state)
        .filter(|b| b.kind == 3 || b.kind == WRITE && write)
        .filter(|b| {
            let start = b.address & !(b.len - 1);
            linear < start.saturating_add(b.len) && start < linear.saturating_add(len as u64)
        })
        .fold(0, |hits, b| hits | 1 << b.number)
}

/// The DR6 bits of I/O breakpoints (CR4.DE) that an access of `len` ports hits.
pub fn io_breakpoints(state: &CpuState, port: u16, len: usize) -> u64 {
    if state.cr4 & cr4::DE == 0 || !breakpoints_enabled(state) {
        return 0;
    }
    enabled(state)
        .filter(|b| b.kind == IO)
        .filter(|b| {
            let start = b.address & !(b.len - 1);
            (port as u64) < start.saturating_add(b.len) && start < port as u64 + len as u64
        })
        .fold(0, |hits, b| hits | 1 << b.number)
}

/// The trap after an instruction that retired: `data_hits` as collected, and whether TF was set
/// before it. Sets DR6.
pub fn trap_after(state: &mut CpuState, data_hits: u64, single_step: bool) -> Option<Exception> {
    let bits = data_hits | if single_step { dr::BS } else { 0 };
    (bits != 0).then(|| raise(state, bits))
}

/// #DB with `bits` of DR6. B0–B3 show this exception's causes only; BS and BD stay until software
/// clears them (SDM vol. 3B, 17.2.3).
pub(crate) fn raise(state: &mut CpuState, bits: u64) -> Exception {
    state.dr[6] = state.dr[6] & !0xf | bits | dr::DR6_FIXED;
    Exception::plain(vector::DB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_breakpoint_is_hit_by_writes_that_touch_its_bytes_only() {
        let mut state = CpuState::power_on();
        state.dr[1] = 0x1004;
        state.dr[7] = 0x400 | 1 << 2 | WRITE << 20 | 3 << 22; // DR1, four bytes
        assert_eq!(data_breakpoints(&state, 0x1000, 4, true), 0);
        assert_eq!(data_breakpoints(&state, 0x1000, 5, true), 2);
        assert_eq!(data_breakpoints(&state, 0x1007, 1, true), 2);
        assert_eq!(data_breakpoints(&state, 0x1008, 8, true), 0);
        assert_eq!(data_breakpoints(&state, 0x1004, 4, false), 0, "reads do not count");
    }

    #[test]
    fn the_resume_flag_skips_an_instruction_breakpoint_once() {
        let mut state = CpuState::power_on();
        state.dr[0] = 0x2000;
        state.dr[7] |= 2;
        state.rflags |= flags::RF;
        assert_eq!(code_breakpoint(&mut state, 0x2000), None);
        state.rflags &= !flags::RF;
        assert_eq!(code_breakpoint(&mut state, 0x2000), Some(Exception::plain(vector::DB)));
        assert_eq!(state.dr[6], dr::DR6_FIXED | 1);
    }

    #[test]
    fn a_single_step_trap_sets_bs() {
        let mut state = CpuState::power_on();
        assert_eq!(trap_after(&mut state, 0, false), None);
        assert!(trap_after(&mut state, 0, true).is_some());
        assert_eq!(state.dr[6], dr::DR6_FIXED | dr::BS);
    }
}
