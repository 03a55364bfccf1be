use super::*;
use crate::string::{StringFault, StringOutcome, string};
use memory::Marks;

const SRC: u64 = 0x5_0000;
const DST: u64 = 0x6_0000;

/// Executes an instruction again and again, as the loop does, until it is finished or something is due.
fn run(m: &mut Machine, code: &[u8], max: u64) -> Result<StringOutcome, StringFault> {
    let instr = m.decode(code);
    let mut all = StringOutcome { iterations: 0, finished: false, recheck: false };
    loop {
        let done = string(&mut m.core(), &instr, max - all.iterations)
            .map_err(|fault| StringFault { iterations: all.iterations + fault.iterations, ..fault })?;
        m.state.retired += done.iterations;
        all.iterations += done.iterations;
        (all.finished, all.recheck) = (done.finished, all.recheck || done.recheck);
        let due = all.recheck && m.bus.horizon <= m.state.retired;
        if all.finished || all.iterations >= max || due {
            return Ok(all);
        }
    }
}

fn pattern(m: &mut Machine, at: u64, len: usize) {
    let bytes: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
    m.poke(at, &bytes);
}

fn prepare(m: &mut Machine, rsi: u64, rdi: u64, rcx: u64) {
    m.state.gpr[gpr::RSI] = rsi;
    m.state.gpr[gpr::RDI] = rdi;
    m.state.gpr[gpr::RCX] = rcx;
}

const REP_MOVSB: &[u8] = &[0xf3, 0xa4];
const REP_MOVSQ: &[u8] = &[0xf3, 0x48, 0xa5];
const REP_STOSQ: &[u8] = &[0xf3, 0x48, 0xab];
const REPNE_SCASB: &[u8] = &[0xf2, 0xae];
const REPE_CMPSB: &[u8] = &[0xf3, 0xa6];

#[test]
fn rep_movsb_copies_across_pages_that_are_aligned_differently() {
    let mut m = Machine::user();
    pattern(&mut m, SRC + 5, 10_000);
    prepare(&mut m, SRC + 5, DST + 3, 10_000);
    let out = run(&mut m, REP_MOVSB, u64::MAX).unwrap();
    assert_eq!((out.iterations, out.finished), (10_000, true));
    assert_eq!(m.bytes(DST + 3, 10_000), m.bytes(SRC + 5, 10_000));
    assert_eq!(m.state.gpr[gpr::RSI], SRC + 5 + 10_000);
    assert_eq!((m.state.gpr[gpr::RDI], m.state.gpr[gpr::RCX]), (DST + 3 + 10_000, 0));
    assert_eq!(m.state.rip, CODE + 2);
}

#[test]
fn a_repeat_of_zero_counts_as_one_instruction() {
    let mut m = Machine::user();
    prepare(&mut m, 0, 0, 0);
    let out = run(&mut m, REP_MOVSB, 5).unwrap();
    assert_eq!(out, StringOutcome { iterations: 1, finished: true, recheck: false });
    assert_eq!(m.state.rip, CODE + 2);
}

/// What one element at a time gives, by the plainest possible code.
fn reference(memory: &mut [u8], from: usize, to: usize, size: usize, n: usize, backward: bool) {
    for i in 0..n {
        let shift = i * size;
        let (f, t) = if backward { (from - shift, to - shift) } else { (from + shift, to + shift) };
        let element = memory[f..f + size].to_vec();
        memory[t..t + size].copy_from_slice(&element);
    }
}

#[test]
fn overlapping_copies_equal_the_element_by_element_ones_in_both_directions() {
    for backward in [false, true] {
        for (size, code) in [(1, REP_MOVSB), (8, REP_MOVSQ)] {
            for distance in [1i64, 3, 8, 9, 16, 64, -1, -3, -8, -9, -16, -64, 0] {
                let mut m = Machine::user();
                pattern(&mut m, SRC, 0x2000);
                let n = 100;
                let from = if backward { 0x600 } else { 0x400 };
                let to = (from as i64 + distance) as usize;
                let mut expected = m.bytes(SRC, 0x2000);
                reference(&mut expected, from, to, size, n, backward);
                prepare(&mut m, SRC + from as u64, SRC + to as u64, n as u64);
                if backward {
                    m.state.rflags |= flags::DF;
                }
                run(&mut m, code, u64::MAX).unwrap();
                assert_eq!(m.bytes(SRC, 0x2000), expected, "size {size} distance {distance} {backward}");
                let end = |start: usize| {
                    let moved = (n * size) as u64;
                    let start = SRC + start as u64;
                    if backward { start - moved } else { start + moved }
                };
                assert_eq!((m.state.gpr[gpr::RSI], m.state.gpr[gpr::RDI]), (end(from), end(to)));
            }
        }
    }
}

#[test]
fn stopping_at_any_iteration_and_going_on_changes_nothing() {
    let mut whole = Machine::user();
    pattern(&mut whole, SRC, 0x3000);
    prepare(&mut whole, SRC + 0xff9, SRC + 0xff1 + 0x10, 700);
    let mut pieces = Machine::user();
    pattern(&mut pieces, SRC, 0x3000);
    prepare(&mut pieces, SRC + 0xff9, SRC + 0xff1 + 0x10, 700);
    run(&mut whole, REP_MOVSQ, u64::MAX).unwrap();
    let mut total = 0;
    for step in 1.. {
        let out = run(&mut pieces, REP_MOVSQ, step % 13 + 1).unwrap();
        total += out.iterations;
        if out.finished {
            break;
        }
        assert_eq!(pieces.state.rip, CODE);
        assert_eq!(pieces.state.gpr[gpr::RCX], 700 - total);
    }
    assert_eq!(total, 700);
    assert_eq!(whole.state.gpr, pieces.state.gpr);
    assert_eq!(whole.bytes(SRC, 0x3000), pieces.bytes(SRC, 0x3000));
}

#[test]
fn a_fault_in_the_middle_leaves_the_registers_at_the_faulting_element() {
    let mut m = Machine::user();
    pattern(&mut m, SRC, 0x2000);
    m.map((DST >> 12) + 1, 0);
    // 0x1000 - 0x10 bytes fit; the next element crosses into the absent page.
    prepare(&mut m, SRC, DST + 0x14, 0x400);
    let fault = run(&mut m, REP_MOVSQ, u64::MAX).unwrap_err();
    let done = (0x1000 - 0x14) / 8;
    assert_eq!(fault.iterations, done);
    assert_eq!(fault.exception, Exception::page_fault(DST + 0x1000, 6));
    assert_eq!(m.state.gpr[gpr::RCX], 0x400 - done);
    assert_eq!(m.state.gpr[gpr::RSI], SRC + done * 8);
    assert_eq!(m.state.gpr[gpr::RDI], DST + 0x14 + done * 8);
    assert_eq!(m.state.rip, CODE);
    assert_eq!(m.bytes(DST + 0x14, done as usize * 8), m.bytes(SRC, done as usize * 8));
}

#[test]
fn rep_stosq_fills_with_every_width_of_pattern() {
    let mut m = Machine::user();
    m.state.gpr[gpr::RAX] = 0x1122_3344_5566_7788;
    prepare(&mut m, 0, DST + 4, 0x300);
    run(&mut m, REP_STOSQ, u64::MAX).unwrap();
    for i in 0..0x300 {
        assert_eq!(m.peek64(DST + 4 + i * 8), 0x1122_3344_5566_7788, "element {i}");
    }
    assert_eq!(m.bytes(DST, 4), [0; 4]);
    assert_eq!(m.bytes(DST + 4 + 0x1800, 4), [0; 4]);
}

#[test]
fn repne_scasb_stops_behind_the_match_with_its_flags() {
    let mut m = Machine::user();
    m.poke(DST, &vec![b'x'; 0x1800]);
    m.poke(DST + 0x1234, &[0]);
    m.state.gpr[gpr::RAX] = 0;
    prepare(&mut m, 0, DST, u64::MAX);
    let out = run(&mut m, REPNE_SCASB, u64::MAX).unwrap();
    assert_eq!((out.iterations, out.finished), (0x1235, true));
    assert_eq!(m.state.gpr[gpr::RDI], DST + 0x1235);
    assert_eq!(m.state.gpr[gpr::RCX], !0x1235u64);
    assert_eq!(m.state.rflags & flags::STATUS, flags::ZF | flags::PF);
}

#[test]
fn repe_cmpsb_stops_at_the_difference_with_the_flags_of_the_subtraction() {
    let mut m = Machine::user();
    pattern(&mut m, SRC, 0x1100);
    pattern(&mut m, DST, 0x1100);
    let there = m.bytes(SRC + 0x1080, 1)[0];
    m.poke(DST + 0x1080, &[there.wrapping_add(1)]);
    prepare(&mut m, SRC, DST, 0x1100);
    let out = run(&mut m, REPE_CMPSB, u64::MAX).unwrap();
    assert_eq!((out.iterations, out.finished), (0x1081, true));
    // x - (x + 1) = -1.
    let borrow = if there == 0xff { 0 } else { flags::CF };
    assert_eq!(m.state.rflags & flags::CF, borrow);
    assert_eq!(m.state.rflags & flags::ZF, 0);
    assert_eq!(m.state.gpr[gpr::RCX], 0x1100 - 0x1081);
}

#[test]
fn comparison_flags_equal_the_hosts_own() {
    for (a, b) in [(0u8, 0u8), (1, 2), (0x80, 1), (0x7f, 0xff), (0x10, 0x01), (0xff, 0x0f), (5, 5)] {
        let mut m = Machine::user();
        m.poke(SRC, &[a]);
        m.poke(DST, &[b]);
        prepare(&mut m, SRC, DST, 1);
        run(&mut m, REPE_CMPSB, 1).unwrap();
        let host: u64;
        // SAFETY: compares two registers and reads the flags through the stack.
        unsafe {
            std::arch::asm!("cmp {a}, {b}", "pushfq", "pop {f}", a = in(reg_byte) a, b = in(reg_byte) b, f = out(reg) host);
        }
        assert_eq!(m.state.rflags & flags::STATUS, host & flags::STATUS, "{a:#x} - {b:#x}");
    }
}

#[test]
fn thirty_two_bit_addresses_wrap_and_clear_the_upper_halves() {
    let mut m = Machine::user();
    prepare(&mut m, 0xffff_ffff_0005_0000, 0xffff_ffff_0006_0000, 0xffff_ffff_0000_0003);
    m.poke(SRC, b"abc");
    run(&mut m, &[0x67, 0xf3, 0xa4], u64::MAX).unwrap();
    assert_eq!(m.bytes(DST, 4), b"abc\0");
    assert_eq!([m.state.gpr[gpr::RSI], m.state.gpr[gpr::RDI], m.state.gpr[gpr::RCX]], [SRC + 3, DST + 3, 0]);
}

#[test]
fn a_copy_onto_the_page_tables_it_runs_by_takes_effect_at_once() {
    // The copy replaces the lowest table, through linear page 0x53, by an equal one, except that
    // the entry of its own source page, 0x51, now leads to 0x7_0000. What comes after that entry
    // is read from there.
    let mut m = Machine::kernel();
    m.map(0x53, PT | 7);
    for i in 0..512 {
        let entry = m.peek64(PT + i * 8);
        m.poke64(0x5_1000 + i * 8, if i == 0x51 { 0x7_0007 } else { entry });
        m.poke64(0x7_0000 + i * 8, entry);
    }
    m.poke64(0x7_0000 + 0x60 * 8, 0x12_3007);
    prepare(&mut m, 0x5_1000, 0x5_3000, 512);
    let out = run(&mut m, REP_MOVSQ, u64::MAX).unwrap();
    assert_eq!((out.iterations, out.finished), (512, true));
    assert_eq!(m.peek64(PT + 0x51 * 8) & !0x60, 0x7_0007);
    assert_eq!(m.peek64(PT + 0x60 * 8), 0x12_3007);
}

#[test]
fn writes_to_marked_pages_are_noted() {
    let mut m = Machine::user();
    let page = m.bus.ram.page_index(GuestPhys(DST)).unwrap();
    m.bus.ram.add_marks(page, Marks::CODE);
    prepare(&mut m, 0, DST, 4);
    run(&mut m, REP_STOSQ, u64::MAX).unwrap();
    assert!(m.bus.ram.is_disturbed());
}

#[test]
fn rep_insb_reads_the_port_at_successive_positions_and_checks_memory_first() {
    let mut m = Machine::kernel();
    m.state.retired = 1000;
    m.state.gpr[gpr::RDX] = 0x1f0;
    m.map((DST >> 12) + 1, 0);
    prepare(&mut m, 0, DST + 0xffd, 5);
    let fault = run(&mut m, &[0xf3, 0x6c], u64::MAX).unwrap_err();
    assert_eq!(fault.iterations, 3);
    assert_eq!(m.bus.ports, [(1000, 0x1f0, u32::MAX), (1001, 0x1f0, u32::MAX), (1002, 0x1f0, u32::MAX)]);
    assert_eq!(m.bytes(DST + 0xffd, 3), [0x44; 3]);
}

#[test]
fn a_device_access_at_the_horizon_stops_the_repeat() {
    let mut m = Machine::kernel();
    m.bus.horizon = 2;
    m.state.gpr[gpr::RDX] = 0x80;
    prepare(&mut m, SRC, 0, 5);
    let out = run(&mut m, &[0xf3, 0x6e], u64::MAX).unwrap();
    assert_eq!(out, StringOutcome { iterations: 2, finished: false, recheck: true });
    assert_eq!((m.state.rip, m.state.gpr[gpr::RCX]), (CODE, 3));
}

#[test]
fn a_copy_from_a_device_goes_one_element_at_a_time() {
    let mut m = Machine::kernel();
    prepare(&mut m, MMIO + 0x10, DST, 3);
    run(&mut m, REP_MOVSQ, u64::MAX).unwrap();
    let expected: Vec<u8> = (0x10..0x28).collect();
    assert_eq!(m.bytes(DST, 24), expected);
}

#[test]
fn lods_takes_the_last_element_and_outs_honours_its_segment() {
    let mut m = Machine::kernel();
    pattern(&mut m, SRC, 0x2000);
    prepare(&mut m, SRC, 0, 0x1100);
    run(&mut m, &[0xf3, 0xac], u64::MAX).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX] as u8, m.bytes(SRC + 0x10ff, 1)[0]);
    m.state.seg[SegmentIndex::Fs as usize].base = 0x1000;
    m.state.gpr[gpr::RDX] = 0x80;
    prepare(&mut m, SRC, 0, 0);
    run(&mut m, &[0x64, 0x6e], 1).unwrap();
    assert_eq!(m.bus.ports[0].2 as u8, m.bytes(SRC + 0x1000, 1)[0]);
}
