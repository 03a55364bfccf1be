//! A processor's state by name, for people who compare two of them, and its next instruction.

use crate::{CpuState, walk};
use base::GuestVirt;
use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter};
use memory::Ram;
use x86::Segment;

/// The longest instruction.
const INSTRUCTION_MAX: u64 = 15;
const GENERAL: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

/// Every register with its value, in a fixed order; the same names for every state.
pub fn registers(state: &CpuState) -> Vec<(String, String)> {
    let mut list: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: String| list.push((name.to_owned(), value));
    let number = |value: u64| format!("{value:#018x}");
    GENERAL.iter().zip(state.gpr).for_each(|(name, value)| add(name, number(value)));
    add("rip", number(state.rip));
    add("rflags", number(state.rflags));
    SEGMENTS.iter().zip(&state.seg).for_each(|(name, segment)| add(name, segment_text(segment)));
    add("ldtr", segment_text(&state.ldtr));
    add("tr", segment_text(&state.tr));
    add("gdtr", format!("{:x?}", state.gdtr));
    add("idtr", format!("{:x?}", state.idtr));
    let control = [("cr0", state.cr0), ("cr2", state.cr2), ("cr3", state.cr3), ("cr4", state.cr4)];
    control.iter().for_each(|(name, value)| add(name, number(*value)));
    add("efer", number(state.efer));
    add("xcr0", number(state.xcr0));
    state.dr.iter().enumerate().for_each(|(n, value)| add(&format!("dr{n}"), number(*value)));
    add("cpl", state.cpl.to_string());
    add("activity", format!("{:?}", state.activity));
    add("nmi_blocked", state.nmi_blocked.to_string());
    add("retired", state.retired.to_string());
    add("interrupt_shadow", state.in_interrupt_shadow().to_string());
    for line in format!("{:#x?}", state.msr).lines() {
        if let Some((name, value)) = line.trim().trim_end_matches(',').split_once(": ") {
            add(&format!("msr {name}"), value.to_owned());
        }
    }
    let mtrrs = state.msr.mtrr_fixed.iter().chain(&state.msr.mtrr_variable);
    mtrrs.enumerate().for_each(|(n, value)| add(&format!("mtrr {n}"), number(*value)));
    state.fpu.ymm.iter().enumerate().for_each(|(n, value)| add(&format!("ymm{n}"), bytes_text(value)));
    let mut fpu = state.fpu.clone();
    fpu.normalize();
    add("x87 control", bytes_text(&fpu.x87[..24]));
    for n in 0..8 {
        add(&format!("st{n}"), bytes_text(&fpu.x87[32 + 16 * n..][..10]));
    }
    add("mxcsr", format!("{:#x}", state.fpu.mxcsr));
    list
}

fn segment_text(segment: &Segment) -> String {
    let Segment { selector, base, limit, attributes } = segment;
    format!("{selector:04x} base {base:#x} limit {limit:#x} attributes {attributes:04x}")
}

/// A little-endian number of any width, most significant byte first.
fn bytes_text(bytes: &[u8]) -> String {
    bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect()
}

/// The instruction that the processor executes next, in GNU syntax; what is wrong with it if it
/// cannot be fetched or decoded.
pub fn next_instruction(state: &CpuState, ram: &Ram) -> String {
    let start = state.rip.wrapping_add(if state.code64() { 0 } else { state.seg[1].base });
    let mut bytes = Vec::new();
    for offset in 0..INSTRUCTION_MAX {
        let at = GuestVirt(start.wrapping_add(offset));
        let Some(found) = walk::probe(state, ram, at) else { break };
        let mut byte = [0];
        if !ram.read(found.phys, &mut byte) {
            break;
        }
        bytes.extend(byte);
    }
    if bytes.is_empty() {
        return "(not in memory)".to_owned();
    }
    let mut decoder = Decoder::with_ip(state.code_bits(), &bytes, state.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let mut text = String::new();
    if instruction.is_invalid() {
        text.push_str("(undefined)");
    } else {
        bytes.truncate(instruction.len());
        let mut formatter = GasFormatter::new();
        formatter.options_mut().set_uppercase_hex(false);
        formatter.format(&instruction, &mut text);
    }
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{text}  [{}]", hex.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::GuestPhys;

    #[test]
    fn every_register_has_one_name_and_a_change_shows() {
        let before = CpuState::power_on();
        let mut after = before.clone();
        after.gpr[15] = 7;
        after.fpu.ymm[3][31] = 1;
        after.msr.lstar = 9;
        let (a, b) = (registers(&before), registers(&after));
        let mut names: Vec<&str> = a.iter().map(|(name, _)| name.as_str()).collect();
        let changed: Vec<&str> =
            a.iter().zip(&b).filter(|(a, b)| a != b).map(|(a, _)| a.0.as_str()).collect();
        assert_eq!(changed, ["r15", "msr lstar", "ymm3"]);
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), a.len());
    }

    #[test]
    fn the_next_instruction_is_disassembled() {
        let mut ram = Ram::new(1 << 20).unwrap();
        let mut state = CpuState::power_on();
        (state.rip, state.seg[1].base) = (0x10, 0x8000);
        assert!(ram.write(GuestPhys(0x8010), &[0xb8, 0x34, 0x12]));
        assert_eq!(next_instruction(&state, &ram), "mov $0x1234,%ax  [b8 34 12]");
        state.seg[1].base = 0x8000_0000;
        assert_eq!(next_instruction(&state, &ram), "(not in memory)");
    }
}
