use super::*;
use x86::vector;

fn push_frame(m: &mut Machine, words: &[u64]) {
    for (i, word) in words.iter().enumerate() {
        m.poke64(STACK + i as u64 * 8, *word);
    }
}

const IRETQ: &[u8] = &[0x48, 0xcf];

#[test]
fn iret_to_user_code_loads_everything_and_unblocks_nmis() {
    let mut m = Machine::kernel();
    m.state.nmi_blocked = true;
    push_frame(&mut m, &[0x40_0000, USER_CS as u64, 0x246 | 3 << 12, 0x7fff_0000, USER_SS as u64]);
    m.exec(IRETQ).unwrap();
    let s = &m.state;
    assert_eq!((s.rip, s.cpl, s.gpr[gpr::RSP]), (0x40_0000, 3, 0x7fff_0000));
    assert_eq!(s.rflags, 0x246 | 3 << 12, "at CPL 0 IRET sets IF and IOPL");
    assert_eq!(s.seg[SegmentIndex::Ss as usize].selector, USER_SS);
    assert!(!s.nmi_blocked && s.code64());
}

#[test]
fn iret_to_compatibility_mode_runs_thirty_two_bit_code() {
    let mut m = Machine::kernel();
    push_frame(&mut m, &[0x40_0000, USER_CS32 as u64, 0x202, 0x1_2345_6789, USER_SS as u64]);
    m.exec(IRETQ).unwrap();
    assert_eq!((m.state.code_bits(), m.state.cpl), (32, 3));
    assert_eq!(m.state.gpr[gpr::RSP], 0x2345_6789);
}

#[test]
fn iret_to_a_sixteen_bit_stack_takes_only_sp() {
    let mut m = Machine::kernel();
    push_frame(&mut m, &[0x40_0000, USER_CS32 as u64, 0x202, 0x1_2345_6789, STACK16 as u64]);
    m.exec(IRETQ).unwrap();
    assert_eq!(m.state.gpr[gpr::RSP], STACK & !0xffff | 0x6789);
}

#[test]
fn iret_within_user_code_cannot_touch_if_or_iopl() {
    let mut m = Machine::user();
    push_frame(&mut m, &[CODE + 9, USER_CS as u64, 3 << 12 | flags::CF, STACK, USER_SS as u64]);
    m.exec(IRETQ).unwrap();
    assert_eq!(m.state.rflags, flags::FIXED | flags::IF | flags::CF);
}

#[test]
fn iret_keeps_rf_only_while_a_breakpoint_is_enabled() {
    for (dr7, expected) in [(0x400, 0), (0x401, flags::RF)] {
        let mut m = Machine::kernel();
        m.state.dr[7] = dr7;
        push_frame(&mut m, &[CODE, KERNEL_CS as u64, flags::RF | 2, STACK, 0]);
        m.exec(IRETQ).unwrap();
        assert_eq!(m.state.rflags & flags::RF, expected);
    }
}

#[test]
fn iret_refuses_what_the_manual_refuses() {
    let us = USER_SS as u64;
    let cases = [
        ("null code segment", [CODE, 0, 2, STACK, us], Exception::gp(0)),
        ("beyond the table", [CODE, 0xfff3, 2, STACK, us], Exception::gp(0xfff0)),
        ("data as code", [CODE, us, 2, STACK, us], Exception::gp(0x20)),
        ("absent code", [CODE, NOT_PRESENT as u64, 2, STACK, 0x10], Exception::with_code(vector::NP, 0x48)),
        ("wrong privilege", [CODE, KERNEL_CS as u64 | 3, 2, STACK, us], Exception::gp(8)),
        ("null stack at CPL 3", [CODE, USER_CS as u64, 2, STACK, 3], Exception::gp(0)),
        ("kernel stack at CPL 3", [CODE, USER_CS as u64, 2, STACK, 0x13], Exception::gp(0x10)),
        ("address not canonical", [1 << 47, USER_CS as u64, 2, STACK, us], Exception::gp(0)),
    ];
    for (what, words, expected) in cases {
        let mut m = Machine::kernel();
        push_frame(&mut m, &words);
        let before = m.state.clone();
        assert_eq!(m.exec(IRETQ), Err(expected), "{what}");
        assert_eq!((m.state.rip, m.state.gpr, m.state.rflags), (before.rip, before.gpr, before.rflags));
        assert_eq!(m.state.seg, before.seg, "{what}");
    }
    let mut m = Machine::kernel();
    m.state.rflags |= flags::NT;
    push_frame(&mut m, &[CODE, KERNEL_CS as u64, 2, STACK, 0]);
    assert_eq!(m.exec(IRETQ), Err(Exception::gp(0)), "nested task");
}

#[test]
fn returning_outwards_takes_the_privilege_off_null_selectors() {
    let mut m = Machine::kernel();
    m.state.seg[SegmentIndex::Fs as usize] = Segment { base: 0x1234, selector: 3, ..segment(0, 0) };
    push_frame(&mut m, &[CODE, USER_CS as u64, 0x202, STACK, USER_SS as u64]);
    m.exec(IRETQ).unwrap();
    let fs = m.state.seg[SegmentIndex::Fs as usize];
    assert_eq!((fs.selector, fs.base), (0, 0x1234), "as the kernel's 32-bit sigreturn counts on");
}

#[test]
fn returning_outwards_makes_kernel_data_segments_null() {
    let mut m = Machine::kernel();
    m.state.seg[SegmentIndex::Ds as usize] = segment(KERNEL_SS, 0xc093);
    m.state.seg[SegmentIndex::Es as usize] = segment(USER_SS, 0xc0f3);
    push_frame(&mut m, &[CODE, USER_CS as u64, 2, STACK, USER_SS as u64]);
    m.exec(IRETQ).unwrap();
    assert_eq!(m.state.seg[SegmentIndex::Ds as usize], Segment::default());
    assert_eq!(m.state.seg[SegmentIndex::Es as usize].selector, USER_SS);
}

#[test]
fn syscall_and_sysret_are_inverse() {
    let mut m = Machine::user();
    m.state.msr.star = 0x001b_0008_0000_0000;
    m.state.msr.lstar = 0xffff_8000_0000_1000;
    m.state.msr.sfmask = flags::IF | flags::DF;
    m.state.rflags |= flags::DF | flags::CF;
    let before = m.state.rflags;
    m.exec(&[0x0f, 0x05]).unwrap();
    assert_eq!((m.state.rip, m.state.cpl), (0xffff_8000_0000_1000, 0));
    assert_eq!((m.state.gpr[gpr::RCX], m.state.gpr[gpr::R11]), (CODE + 2, before));
    assert_eq!(m.state.rflags, flags::FIXED | flags::CF);
    assert_eq!(m.state.seg[SegmentIndex::Cs as usize].attributes, 0xa09b);
    m.exec(&[0x48, 0x0f, 0x07]).unwrap();
    assert_eq!((m.state.rip, m.state.cpl, m.state.rflags), (CODE + 2, 3, before));
    let cs = m.state.seg[SegmentIndex::Cs as usize];
    assert_eq!((cs.selector, cs.attributes), (0x2b, 0xa0fb));
    let ss = m.state.seg[SegmentIndex::Ss as usize];
    assert_eq!((ss.selector, ss.attributes), (0x23, 0xc0f3));
}

#[test]
fn syscall_from_compatibility_mode_enters_at_cstar() {
    let mut m = Machine::user32();
    m.state.msr.star = 0x001b_0008_0000_0000;
    m.state.msr.cstar = 0xffff_8000_0000_2000;
    m.exec(&[0x0f, 0x05]).unwrap();
    assert_eq!(m.state.rip, 0xffff_8000_0000_2000);
    assert!(m.state.code64());
    m.exec(&[0x0f, 0x07]).unwrap();
    let cs = m.state.seg[SegmentIndex::Cs as usize];
    assert_eq!((m.state.code_bits(), cs.selector), (32, 0x1b));
}

#[test]
fn sysret_to_an_address_that_is_not_canonical_faults_in_the_kernel() {
    let mut m = Machine::kernel();
    m.state.gpr[gpr::RCX] = 1 << 63;
    assert_eq!(m.exec(&[0x48, 0x0f, 0x07]), Err(Exception::gp(0)));
    assert_eq!(m.state.cpl, 0);
}

#[test]
fn a_far_return_to_user_code_pops_the_stack_after_the_parameters() {
    let mut m = Machine::kernel();
    // Offset, selector, 16 bytes of parameters, then RSP and SS.
    push_frame(&mut m, &[0x40_0000, USER_CS as u64, 1, 2, 0x7000_0000, USER_SS as u64]);
    m.exec(&[0x48, 0xca, 0x10, 0x00]).unwrap();
    assert_eq!((m.state.rip, m.state.cpl, m.state.gpr[gpr::RSP]), (0x40_0000, 3, 0x7000_0010));
}

#[test]
fn a_call_gate_switches_to_the_inner_stack() {
    let mut m = Machine::user();
    m.poke(0x8_0000, &[0, 0, 0, 0, CALL_GATE as u8, 0]);
    m.exec(&[0xff, 0x1c, 0x25, 0x00, 0x00, 0x08, 0x00]).unwrap(); // call far [0x80000]
    assert_eq!((m.state.rip, m.state.cpl), (0x1234, 0));
    assert_eq!(m.state.gpr[gpr::RSP], KERNEL_STACK - 32);
    let at = m.state.gpr[gpr::RSP];
    let pushed: Vec<u64> = (0..4).map(|i| m.peek64(at + i * 8)).collect();
    assert_eq!(pushed, [CODE + 7, USER_CS as u64, STACK, USER_SS as u64]);
}

#[test]
fn conforming_code_runs_at_the_callers_privilege() {
    let mut m = Machine::user();
    m.poke(0x8_0000, &[0, 0x30, 0, 0, CONFORMING as u8, 0]);
    m.exec(&[0xff, 0x2c, 0x25, 0x00, 0x00, 0x08, 0x00]).unwrap(); // jmp far [0x80000]
    assert_eq!((m.state.rip, m.state.cpl), (0x3000, 3));
    assert_eq!(m.state.seg[SegmentIndex::Cs as usize].selector, CONFORMING | 3);
}

#[test]
fn a_far_jump_from_user_code_into_the_kernel_is_refused() {
    let mut m = Machine::user();
    m.poke(0x8_0000, &[0, 0x30, 0, 0, KERNEL_CS as u8, 0]);
    assert_eq!(m.exec(&[0xff, 0x2c, 0x25, 0x00, 0x00, 0x08, 0x00]), Err(Exception::gp(8)));
}
