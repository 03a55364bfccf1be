use super::*;
use crate::{Activity, deliver};
use x86::vector;

fn frame(m: &Machine, words: usize) -> Vec<u64> {
    (0..words).map(|i| m.peek64(m.state.gpr[gpr::RSP] + i as u64 * 8)).collect()
}

#[test]
fn a_page_fault_from_user_code_pushes_a_full_frame_on_the_kernel_stack() {
    let mut m = Machine::user();
    m.gate(vector::PF, 0xe, 0, 0, 0xffff_8000_1234_5678);
    m.state.rflags |= flags::CF | flags::TF | flags::NT;
    let before = m.state.rflags;
    deliver::exception(&mut m.core(), Exception::page_fault(0xdead_b000, 6));
    assert_eq!(m.state.cr2, 0xdead_b000);
    assert_eq!(m.state.gpr[gpr::RSP], KERNEL_STACK - 48);
    let expected = [6, CODE, USER_CS as u64, before | flags::RF, STACK, USER_SS as u64];
    assert_eq!(frame(&m, 6), expected);
    assert_eq!((m.state.rip, m.state.cpl), (0xffff_8000_1234_5678, 0));
    assert_eq!(m.state.seg[SegmentIndex::Cs as usize].selector, KERNEL_CS);
    assert_eq!(m.state.seg[SegmentIndex::Ss as usize].selector, 0, "SS is null at CPL 0");
    let cleared = flags::IF | flags::TF | flags::NT | flags::RF;
    assert_eq!(m.state.rflags & cleared, 0);
    assert_eq!(m.state.rflags & flags::CF, flags::CF);
}

#[test]
fn a_trap_gate_leaves_if_set_and_an_interrupt_within_the_kernel_aligns_its_stack() {
    let mut m = Machine::kernel();
    m.gate(0x40, 0xf, 0, 0, 0x1_5000);
    m.state.rflags |= flags::IF;
    m.state.gpr[gpr::RSP] = STACK - 3;
    m.state.activity = Activity::Halted;
    deliver::interrupt(&mut m.core(), 0x40);
    assert_eq!(m.state.gpr[gpr::RSP], STACK - 16 - 40);
    assert_eq!(frame(&m, 5), [CODE, KERNEL_CS as u64, 0x202, STACK - 3, KERNEL_SS as u64]);
    assert_eq!(m.state.rflags & flags::IF, flags::IF);
    assert_eq!(m.state.activity, Activity::Running);
    assert_eq!(m.state.seg[SegmentIndex::Ss as usize].selector, KERNEL_SS, "no change of privilege");
}

#[test]
fn an_interrupt_stack_table_entry_is_used_even_without_a_change_of_privilege() {
    let mut m = Machine::kernel();
    m.gate(vector::NMI, 0xe, 0, 1, 0x1_5000);
    deliver::nmi(&mut m.core());
    assert_eq!(m.state.gpr[gpr::RSP], KERNEL_STACK + 0x1000 - 40);
    assert!(m.state.nmi_blocked);
}

#[test]
fn a_fault_while_delivering_a_page_fault_is_a_double_fault() {
    let mut m = Machine::user();
    m.gate(vector::DF, 0xe, 0, 1, 0x1_6000);
    // The #PF gate is not present: #NP while delivering #PF.
    deliver::exception(&mut m.core(), Exception::page_fault(0x123, 4));
    assert_eq!(m.state.rip, 0x1_6000);
    let pushed = frame(&m, 6);
    assert_eq!((pushed[0], pushed[1]), (0, CODE));
    assert_eq!(pushed[3] & flags::RF, 0, "a double fault is an abort");
}

#[test]
fn without_a_double_fault_gate_the_processor_shuts_down_and_keeps_its_state() {
    let mut m = Machine::user();
    let before = m.state.clone();
    deliver::exception(&mut m.core(), Exception::gp(0));
    assert_eq!(m.state.activity, Activity::Shutdown);
    assert_eq!((m.state.rip, m.state.gpr, m.state.cpl), (before.rip, before.gpr, 3));
}

#[test]
fn a_fault_while_delivering_a_benign_exception_is_delivered_in_its_place() {
    let mut m = Machine::user();
    m.gate(vector::NP, 0xe, 0, 0, 0x1_7000);
    m.gate(vector::GP, 0xe, 0, 0, 0x1_8000);
    // Vector 6 has an empty gate: not an interrupt gate at all, so #GP naming it, EXT set.
    deliver::exception(&mut m.core(), Exception::ud());
    assert_eq!(m.state.rip, 0x1_8000);
    assert_eq!(frame(&m, 1), [6 * 8 + 2 + 1]);
}

#[test]
fn a_page_fault_on_the_kernel_stack_is_reported_with_its_own_address() {
    let mut m = Machine::user();
    m.gate(vector::PF, 0xe, 0, 1, 0x1_7000);
    m.gate(0x50, 0xe, 0, 0, 0x1_8000);
    m.map((KERNEL_STACK - 0x1000) >> 12, 0);
    deliver::interrupt(&mut m.core(), 0x50);
    assert_eq!(m.state.rip, 0x1_7000);
    assert_eq!(m.state.cr2, KERNEL_STACK - 40);
    assert_eq!(frame(&m, 1), [2], "a write by the supervisor, not present");
}

#[test]
fn a_software_interrupt_checks_the_gate_privilege_and_pushes_the_next_address() {
    let mut m = Machine::user();
    m.gate(0x80, 0xe, 3, 0, 0x1_9000);
    m.gate(0x81, 0xe, 0, 0, 0x1_9000);
    assert_eq!(m.exec(&[0xcd, 0x81]), Err(Exception::gp(0x81 * 8 + 2)));
    assert_eq!(m.state.rip, CODE);
    m.exec(&[0xcd, 0x80]).unwrap();
    assert_eq!(frame(&m, 1), [CODE + 2]);
    assert_eq!((m.state.rip, m.state.cpl), (0x1_9000, 0));
}

#[test]
fn int1_ignores_the_gate_privilege() {
    let mut m = Machine::user();
    m.gate(vector::DB, 0xe, 0, 0, 0x1_9000);
    m.exec(&[0xf1]).unwrap();
    assert_eq!(m.state.rip, 0x1_9000);
}

#[test]
fn a_debug_exception_does_not_set_rf_in_its_frame_and_clears_gd() {
    let mut m = Machine::user();
    m.gate(vector::DB, 0xe, 0, 0, 0x1_9000);
    m.state.dr[7] |= x86::control::dr::GD;
    deliver::exception(&mut m.core(), Exception::plain(vector::DB));
    assert_eq!(frame(&m, 3)[2] & flags::RF, 0);
    assert_eq!(m.state.dr[7], x86::control::dr::DR7_FIXED);
}

#[test]
fn an_idt_that_is_too_short_names_the_vector_in_its_fault() {
    let mut m = Machine::user();
    m.gate(vector::GP, 0xe, 0, 0, 0x1_9000);
    m.state.idtr.limit = 0x20 * 16 - 1;
    deliver::interrupt(&mut m.core(), 0x40);
    assert_eq!(frame(&m, 1), [0x40 * 8 + 3]);
}

#[test]
fn real_mode_pushes_three_words_and_loads_a_far_pointer() {
    let mut m = Machine::real();
    m.poke(0x21 * 4, &[0x34, 0x12, 0x00, 0x20]);
    m.state.rflags |= flags::IF | flags::ZF;
    m.exec(&[0xcd, 0x21]).unwrap();
    assert_eq!(m.state.gpr[gpr::RSP], 0x7000 - 6);
    assert_eq!(m.bytes(0x7000 - 6, 6), [0x02, 0x80, 0, 0, 0x42, 0x02]);
    let cs = m.state.seg[SegmentIndex::Cs as usize];
    assert_eq!((m.state.rip, cs.selector, cs.base), (0x1234, 0x2000, 0x2_0000));
    assert_eq!(m.state.rflags & flags::IF, 0);
    // And back.
    m.exec(&[0xcf]).unwrap();
    assert_eq!((m.state.rip, m.state.rflags & flags::IF), (0x8002, flags::IF));
    assert_eq!(m.state.seg[SegmentIndex::Cs as usize].base, 0);
}
