//! IRETQ to a program, which translated code does itself, beside the same done from Rust.

use super::fast_calls::take_calls_at;
use super::mirrored::{FREE, map, program, show_entry};
use super::stack::{KERNEL, given_stacks_are_looked_at};
use super::*;
use x86::flags;

const LOG: u64 = 0x6_0000;
/// The GDT, a page of it to change to, and where they are seen: in the kernel's half.
const TABLE: u64 = 0x7_0000;
const OTHER_TABLE: u64 = 0x7_1000;
const SEEN_AT: u64 = 0xffff_ff80_0000_0000;
/// Operands of LGDT.
const POINTER: u64 = 0x7_2000;

const CODE64: u64 = 0x00af_fb00_0000_ffff;
const FLAT: u64 = 0x00cf_f300_0000_ffff;
const TO_CODE: u64 = 0x2b;
const TO_FLAT: u64 = 0x23;

/// What the kernel does before it returns, and a value for it.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Before {
    Nothing,
    CodeDescriptor,
    StackDescriptor,
    /// Puts another page behind the GDT's address.
    Remaps,
    LoadsTable,
    LoadsDs,
    /// Sets flags of its own.
    SetsFlags,
}

/// How it does that.
type Way = fn(&mut CodeAssembler);
/// One return: the frame, and what comes before it.
type Return = ([u64; 5], Before, u64);

const PLAIN: [u64; 5] = [CODE, TO_CODE, 0x202, STACK, TO_FLAT];
const USUAL: Return = (PLAIN, Before::Nothing, 0);

/// A program that calls the kernel, which returns to it as each of these says. Both write down what they see.
fn guest(returns: &[Return]) -> Guest {
    let mut guest = program(|a| {
        a.mov(dword_ptr(rdi + 32), ebx).unwrap();
        a.mov(ebx, cs).unwrap();
        a.mov(dword_ptr(rdi + 36), ebx).unwrap();
        a.mov(ebx, ss).unwrap();
        a.mov(dword_ptr(rdi + 40), ebx).unwrap();
        a.mov(ebx, ds).unwrap();
        a.syscall().unwrap();
    });
    let mut free = FREE;
    map(&mut guest, SEEN_AT, TABLE, &mut free);
    set_up_table(&mut guest);
    let entry = show_entry(&mut guest, SEEN_AT, &mut free);
    assert!(guest.board.ram.write(GuestPhys(KERNEL), &kernel(entry)));
    for (n, (frame, before, value)) in returns.iter().enumerate() {
        let words = frame.iter().copied().chain([*before as u64, *value]);
        for (k, word) in words.enumerate() {
            assert!(guest.board.ram.write_u64(GuestPhys(DATA + 64 * n as u64 + 8 * k as u64), word));
        }
    }
    let state = guest.cpu.state_mut();
    take_calls_at(state, KERNEL);
    state.gpr[gpr::RDI] = LOG;
    state.gpr[gpr::R8] = DATA;
    state.gpr[gpr::RBP] = returns.len() as u64 + 1;
    guest
}

fn set_up_table(guest: &mut Guest) {
    for table in [TABLE, OTHER_TABLE] {
        for (n, descriptor) in
            [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0, FLAT, CODE64].into_iter().enumerate()
        {
            assert!(guest.board.ram.write_u64(GuestPhys(table + 8 * n as u64), descriptor));
        }
    }
    let state = guest.cpu.state_mut();
    (state.gdtr.base, state.gdtr.limit) = (SEEN_AT, 0x37);
    state.nmi_blocked = true;
    assert!(guest.board.ram.write(GuestPhys(POINTER), &pointer(0x27, SEEN_AT)));
    assert!(guest.board.ram.write(GuestPhys(POINTER + 16), &pointer(0x37, OTHER_TABLE)));
    let state = guest.cpu.state_mut();
    // The null selectors of 64-bit code.
    [0, 3, 4, 5].into_iter().for_each(|n| state.seg[n] = Segment::default());
}

/// An operand of LGDT.
fn pointer(limit: u16, base: u64) -> Vec<u8> {
    [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat()
}

/// `entry` is the page-table entry of the GDT's page.
fn kernel(entry: u64) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(qword_ptr(rdi), rcx).unwrap();
    a.mov(qword_ptr(rdi + 8), r11).unwrap();
    a.mov(qword_ptr(rdi + 16), rsp).unwrap();
    a.add(rdi, 64).unwrap();
    a.dec(rbp).unwrap();
    let mut done = a.create_label();
    a.jz(done).unwrap();
    a.mov(r9, qword_ptr(r8 + 40)).unwrap();
    a.mov(rbx, qword_ptr(r8 + 48)).unwrap();
    a.mov(r10, SEEN_AT).unwrap();
    a.mov(rdx, entry).unwrap();
    let ways: [(Before, Way); 6] = [
        (Before::CodeDescriptor, |a| a.mov(qword_ptr(r10 + 0x28), rbx).unwrap()),
        (Before::StackDescriptor, |a| a.mov(qword_ptr(r10 + 0x20), rbx).unwrap()),
        (Before::Remaps, |a| {
            a.mov(qword_ptr(rdx), rbx).unwrap();
            a.invlpg(ptr(r10)).unwrap();
        }),
        (Before::LoadsTable, |a| a.lgdt(ptr(rbx)).unwrap()),
        (Before::LoadsDs, |a| a.mov(ds, ebx).unwrap()),
        (Before::SetsFlags, |a| {
            a.push(rbx).unwrap();
            a.popfq().unwrap();
        }),
    ];
    for (before, way) in ways {
        let mut other = a.create_label();
        a.cmp(r9d, before as i32).unwrap();
        a.jne(other).unwrap();
        way(&mut a);
        a.set_label(&mut other).unwrap();
        a.nop().unwrap();
    }
    a.mov(rsp, r8).unwrap();
    a.add(r8, 64).unwrap();
    a.iretq().unwrap();
    a.set_label(&mut done).unwrap();
    a.hlt().unwrap();
    a.assemble(KERNEL).unwrap()
}

/// Runs it translated and from Rust: the same must come out.
fn both(returns: &[Return]) -> Guest {
    let mut runs = [false, true].map(|interpreted| {
        let mut g = guest(returns);
        g.cpu.set_interpret_all(interpreted);
        let exit = g.run();
        (g, exit)
    });
    let seen = |(g, exit): &(Guest, Exit)| {
        let s = g.cpu.state();
        let memory = |from: u64, bytes: u64| {
            (0..bytes / 8).map(|n| g.board.ram.read_u64(GuestPhys(from + 8 * n)).unwrap()).collect::<Vec<_>>()
        };
        let log = memory(LOG, 64 * (returns.len() as u64 + 2));
        let tables = [memory(TABLE, 0x38), memory(OTHER_TABLE, 0x38)];
        let registers = (s.gpr, s.rip, s.rflags, s.seg, s.cpl, s.retired, s.nmi_blocked, s.cr2);
        (*exit, registers, log, tables)
    };
    let [translated, interpreted] = [&runs[0], &runs[1]].map(seen);
    assert!(translated == interpreted, "{translated:x?}\n{interpreted:x?}");
    std::mem::replace(&mut runs[0].0, Guest::new(&[]))
}

#[test]
fn returns_do_not_leave_translated_code() {
    let g = both(&[USUAL; 100]);
    assert!(g.cpu.statistics.interpreted < 10, "{}", g.cpu.statistics.interpreted);
}

#[test]
fn what_a_return_goes_by_may_change_each_time() {
    let user = 7 | 1 << 5 | 1 << 6;
    let after = |before, value| vec![USUAL, USUAL, (PLAIN, before, value), USUAL, USUAL];
    let mut lists = vec![
        // Not accessed yet, of another limit, of 32 bits, not present, the kernel's, and no code.
        after(Before::CodeDescriptor, CODE64 & !(1 << 40)),
        after(Before::CodeDescriptor, 0x00a0_fb00_0000_1234),
        after(Before::CodeDescriptor, 0x00cf_fb00_0000_ffff),
        after(Before::CodeDescriptor, CODE64 & !(1 << 47)),
        after(Before::CodeDescriptor, CODE64 & !(3 << 45)),
        after(Before::CodeDescriptor, FLAT),
        after(Before::StackDescriptor, FLAT & !(1 << 40)),
        after(Before::StackDescriptor, 0x00cf_f300_0012_3456),
        after(Before::StackDescriptor, FLAT & !(1 << 47)),
        after(Before::StackDescriptor, CODE64),
        after(Before::Remaps, OTHER_TABLE | user),
        after(Before::Remaps, 0),
        after(Before::LoadsTable, POINTER),
        after(Before::LoadsTable, POINTER + 16),
        // A data segment that the program may not have, and one that it may.
        after(Before::LoadsDs, 0x10),
        after(Before::LoadsDs, TO_FLAT),
        after(Before::LoadsDs, 3),
        after(Before::SetsFlags, 0x202 | flags::AC),
        after(Before::SetsFlags, 0x202 | flags::NT),
    ];
    let framed = |at: usize, value: u64| {
        let mut frame = PLAIN;
        frame[at] = value;
        vec![USUAL, USUAL, (frame, Before::Nothing, 0), USUAL, USUAL]
    };
    let frames = [
        (0, 1 << 47),
        (0, 0x1000_0000),
        (1, 0x2b | 0xdead << 16),
        (1, 0x28),
        (1, 0x2f),
        (1, 0),
        (1, 8),
        (2, 0x202 | flags::RF),
        (2, 0x202 | flags::AC),
        (2, 0x202 | flags::NT),
        (2, 0x202 | flags::VM),
        (2, 0x202 | 3 << 12),
        (2, 0x3f_7fff & !flags::TF),
        (2, !flags::TF),
        (2, 0),
        (3, 1 << 47),
        (3, u64::MAX),
        (3, 0),
        (4, 0x23 | 0xbeef << 32),
        (4, 0x20),
        (4, 0x2b),
        (4, 0),
    ];
    let nested = [PLAIN[0], PLAIN[1], 0x202 | flags::NT, PLAIN[3], PLAIN[4]];
    lists.push(vec![USUAL, USUAL, (nested, Before::SetsFlags, 0x202 | flags::NT), USUAL]);
    lists.extend(frames.map(|(at, value)| framed(at, value)));
    for list in lists {
        both(&list);
    }
}

#[test]
fn a_return_unblocks_nmis() {
    let mut g = guest(&[USUAL; 100]);
    assert_eq!(g.run_to(1000), Exit::Limit);
    g.cpu.hot().state.nmi_blocked = true;
    assert_eq!(g.run(), Exit::Halted);
    assert!(!g.cpu.state().nmi_blocked && g.cpu.statistics.interpreted < 10);
}

#[test]
fn what_is_known_goes_with_the_translations() {
    let mut g = guest(&[USUAL; 100]);
    assert_eq!(g.run_to(1000), Exit::Limit);
    // Whoever may have changed anything has all translations dropped.
    g.cpu.state_mut();
    assert_eq!(g.run_to(1001), Exit::Limit);
    let entry = show_entry(&mut g, SEEN_AT, &mut FREE.clone());
    assert!(g.board.ram.write_u64(GuestPhys(entry), OTHER_TABLE | 7));
    assert!(g.board.ram.write_u64(GuestPhys(OTHER_TABLE + 0x28), 0));
    assert_eq!(g.run(), Exit::Shutdown);
}

#[test]
fn stops_at_every_position_around_a_return() {
    let mut whole = guest(&[USUAL; 5]);
    assert_eq!(whole.run(), Exit::Halted);
    let last = whole.cpu.position().count();
    let mut stepped = guest(&[USUAL; 5]);
    for position in 1..=last {
        stepped.run_to(position);
        assert_eq!(stepped.cpu.position().count(), position);
    }
    assert_eq!(stepped.cpu.state().gpr, whole.cpu.state().gpr);
    assert_eq!(stepped.cpu.state().rflags, whole.cpu.state().rflags);
}

/// The kernel gives its program another stack with each return.
#[test]
fn a_stack_that_a_return_gives_is_looked_at() {
    let mut kernel = CodeAssembler::new(64).unwrap();
    kernel.xchg(rsp, rbx).unwrap();
    kernel.mov(rax, rsp).unwrap();
    kernel.mov(rsp, STACK + 0x800).unwrap();
    for word in [TO_FLAT as i32, 0, 0, TO_CODE as i32, 0] {
        kernel.push(word).unwrap();
    }
    kernel.mov(qword_ptr(rsp), rcx).unwrap();
    kernel.mov(qword_ptr(rsp + 16), r11).unwrap();
    kernel.mov(qword_ptr(rsp + 24), rax).unwrap();
    kernel.iretq().unwrap();
    given_stacks_are_looked_at(&kernel.assemble(KERNEL).unwrap(), 6000, |guest| {
        map(guest, SEEN_AT, TABLE, &mut (FREE + 0x8000));
        set_up_table(guest);
    });
}
