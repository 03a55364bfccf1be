//! Where two paces part: the first position at which their states differ, and what stands there.

use crate::run::finish;
use crate::{Case, Pace, run};
use cpu::{CpuState, Vcpu};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
use machine::Machine;
use std::fmt::Write;

/// The first position at which `case` differs between [`Pace::Whole`] and `pace`, and both states
/// around it, for people. `None` when the ends are the same.
pub fn locate(case: &Case, pace: Pace) -> Option<String> {
    let differs = |instructions: u64| {
        let case = Case { instructions, ..case.clone() };
        run(&case, Pace::Whole) != run(&case, pace)
    };
    if !differs(case.instructions) {
        return None;
    }
    let (mut same, mut other) = (0, case.instructions);
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        if differs(middle) { other = middle } else { same = middle }
    }
    let mut text = format!("the same at {same}, different at {other}\n");
    for (at, pace) in [(same, Pace::Whole), (other, Pace::Whole), (other, pace)] {
        let machine = finish(&Case { instructions: at, ..case.clone() }, pace);
        let _ = writeln!(text, "{pace:?} at {at}: {}", describe(&machine));
    }
    let machines =
        [Pace::Whole, pace].map(|pace| finish(&Case { instructions: other, ..case.clone() }, pace));
    let [a, b] = machines.each_ref().map(|machine| machine.board().memory());
    for page in (0..a.pages()).filter(|page| a.page_bytes(*page) != b.page_bytes(*page)).take(4) {
        let (x, y) = (a.page_bytes(page), b.page_bytes(page));
        for at in (0..0x1000).step_by(8).filter(|at| x[*at..*at + 8] != y[*at..*at + 8]).take(8) {
            let word = |bytes: &[u8]| {
                bytes[at..at + 8].iter().rev().fold(String::new(), |s, b| s + &format!("{b:02x}"))
            };
            let _ = writeln!(text, "  memory at {:#x}: {} against {}", page * 0x1000 + at, word(x), word(y));
        }
    }
    Some(text)
}

/// Registers and the instruction at RIP.
fn describe(machine: &Machine<Vcpu>) -> String {
    let state = machine.processor().state();
    let mut text = format!("rip {:#x} ", state.rip);
    let base = if state.code64() { 0 } else { state.seg[1].base };
    let mut bytes = [0; 15];
    for (n, byte) in bytes.iter_mut().enumerate() {
        // Good enough for people: the guest's tables map most addresses to themselves.
        let at = base::GuestPhys(base.wrapping_add(state.rip).wrapping_add(n as u64));
        *byte = machine.board().memory().read_array::<1>(at).map_or(0, |[byte]| byte);
    }
    let mut decoder = Decoder::with_ip(state.code_bits(), &bytes, state.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    IntelFormatter::new().format(&instruction, &mut text);
    let _ = write!(text, " ({:02x?})\n{}", &bytes[..decoder.position()], registers(state));
    text
}

fn registers(state: &CpuState) -> String {
    let mut text = String::new();
    for (n, value) in state.gpr.iter().enumerate() {
        let _ = write!(text, "  {n:2} {value:016x}{}", if n % 4 == 3 { "\n" } else { "" });
    }
    let _ = write!(
        text,
        "  flags {:x} cpl {} cs {:x?} ss {:x?} cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} dr6 {:x} dr7 {:x} shadow {:x} {:?} mxcsr {:x}",
        state.rflags,
        state.cpl,
        state.seg[1],
        state.seg[2],
        state.cr0,
        state.cr2,
        state.cr3,
        state.cr4,
        state.dr[6],
        state.dr[7],
        state.shadow_at,
        state.activity,
        state.fpu.mxcsr
    );
    text
}
