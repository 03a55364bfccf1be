//! Virtual-8086 mode (Intel SDM vol. 3B, 20.2), without the extensions of CR4.VME, which the
//! processor models do not have.
//!
//! It is 16-bit code at CPL 3 whose segments are paragraphs, as in real mode. It begins with an IRET
//! (or a task switch) and ends with an interrupt or exception; in between, what looks at the interrupt flag asks IOPL,
//! and ports always ask the I/O permission map.

use super::{Done, Outcome};
use crate::CpuState;
use crate::core::Core;
use crate::debug;
use x86::{Exception, Segment, flags, gpr};

/// Present data of DPL 3, writable and accessed: what every segment is, the code segment too.
const ATTRIBUTES: u16 = Segment::PRESENT | 3 << 5 | Segment::CODE_OR_DATA | 3;
const LIMIT: u32 = 0xffff;
/// Flags that the IRET loads, besides VM: it runs at CPL 0.
const LOADED: u64 = flags::STATUS
    | flags::TF
    | flags::IF
    | flags::DF
    | flags::IOPL
    | flags::NT
    | flags::AC
    | flags::ID
    | flags::VM;

fn segment(selector: u16) -> Segment {
    Segment { base: (selector as u64) << 4, limit: LIMIT, attributes: ATTRIBUTES, selector }
}

/// IRET at CPL 0 with VM set in the image of EFLAGS: pops the whole frame, nine doublewords.
pub(super) fn enter(core: &mut Core) -> Done {
    let [eip, cs, image, esp, ss, es, ds, fs, gs] = core.peek(0, 4)?;
    if eip > LIMIT as u64 {
        return Err(Exception::gp(0));
    }
    let state = &mut *core.state;
    // As with any IRET: see the debug module.
    let rf = if debug::breakpoints_enabled(state) { flags::RF } else { 0 };
    state.rip = eip;
    state.rflags = image & (LOADED | rf) | flags::FIXED;
    state.gpr[gpr::RSP] = esp;
    load_segments(state, [es, cs, ss, ds, fs, gs].map(|selector| selector as u16));
    Ok(Outcome::BRANCH_RECHECK)
}

/// Loads all segments, in the order of their numbers, and the privilege level that goes with them.
pub(super) fn load_segments(state: &mut CpuState, selectors: [u16; 6]) {
    state.seg = selectors.map(segment);
    state.cpl = 3;
}
