//! SYSCALL, SYSRET and the small system instructions that translated code does itself, beside the same
//! done from Rust.

use super::*;
use x86::flags;

const KERNEL: u64 = 0x1_1000;
const PROGRAM: u64 = 0x5_0000;
const LOG: u64 = 0x6_0000;
const ROUNDS: u64 = 100;

/// A kernel that returns to a program again and again, with the R11 of a list at `DATA`; the program
/// calls it right away. Both write down what they see. Without a page of its own for supervisors.
fn ping_pong(returned: &[u64], sfmask: u64) -> Guest {
    let back = |a: &mut CodeAssembler| {
        a.mov(r11, qword_ptr(r8)).unwrap();
        a.add(r8, 8).unwrap();
        a.mov(rcx, PROGRAM).unwrap();
        a.sysretq().unwrap();
    };
    let mut g = Guest::program(|a| {
        a.mov(r8, DATA).unwrap();
        a.mov(rdi, LOG).unwrap();
        a.mov(rbp, returned.len() as u64).unwrap();
        back(a);
    });
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(qword_ptr(rdi), rcx).unwrap();
    a.mov(qword_ptr(rdi + 8), r11).unwrap();
    a.pushfq().unwrap();
    a.pop(rbx).unwrap();
    a.mov(qword_ptr(rdi + 16), rbx).unwrap();
    a.mov(ebx, cs).unwrap();
    a.mov(dword_ptr(rdi + 24), ebx).unwrap();
    a.mov(word_ptr(rdi + 28), ss).unwrap();
    a.mov(r15w, ss).unwrap();
    a.rdfsbase(rbx).unwrap();
    a.rdgsbase(r14d).unwrap();
    a.mov(r10, cr4).unwrap();
    a.xor(r14, r10).unwrap();
    a.mov(qword_ptr(rdi + 32), rbx).unwrap();
    a.mov(qword_ptr(rdi + 40), r14).unwrap();
    a.wrfsbase(rdi).unwrap();
    a.wrgsbase(r14d).unwrap();
    a.add(rdi, 64).unwrap();
    a.dec(rbp).unwrap();
    let mut done = a.create_label();
    a.jz(done).unwrap();
    back(&mut a);
    a.set_label(&mut done).unwrap();
    a.hlt().unwrap();
    assert!(g.board.ram.write(GuestPhys(KERNEL), &a.assemble(KERNEL).unwrap()));
    let mut a = CodeAssembler::new(64).unwrap();
    a.pushfq().unwrap();
    a.pop(rbx).unwrap();
    a.add(rbx, r11).unwrap();
    a.mov(qword_ptr(rdi + 48), rbx).unwrap();
    a.syscall().unwrap();
    a.ud2().unwrap();
    assert!(g.board.ram.write(GuestPhys(PROGRAM), &a.assemble(PROGRAM).unwrap()));
    for (n, value) in returned.iter().enumerate() {
        assert!(g.board.ram.write_u64(GuestPhys(DATA + 8 * n as u64), *value));
    }
    for table in [TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3000] {
        for n in 0..512 {
            let at = GuestPhys(table + 8 * n);
            let entry = g.board.ram.read_u64(at).unwrap();
            assert!(g.board.ram.write_u64(at, if entry != 0 { entry | 4 } else { 0 }));
        }
    }
    let s = g.cpu.state_mut();
    take_calls_at(s, KERNEL);
    s.cr4 |= cr4::FSGSBASE;
    s.msr.sfmask = sfmask;
    g
}

/// Has SYSCALL lead to `kernel`.
pub(super) fn take_calls_at(state: &mut CpuState, kernel: u64) {
    state.efer |= efer::SCE;
    state.msr.star = 0x0023_0008 << 32;
    state.msr.lstar = kernel;
}

/// Runs it translated and from Rust: the same must come out.
fn both(returned: &[u64], sfmask: u64) -> Guest {
    let mut runs = [false, true].map(|interpreted| {
        let mut g = ping_pong(returned, sfmask);
        g.cpu.set_interpret_all(interpreted);
        assert_eq!(g.run(), Exit::Halted, "interpreted: {interpreted}");
        g
    });
    let seen = |g: &Guest| {
        let s = g.cpu.state();
        let log: Vec<_> = (0..8 * returned.len() as u64)
            .map(|n| g.board.ram.read_u64(GuestPhys(LOG + 8 * n)).unwrap())
            .collect();
        (log, s.gpr, s.rip, s.rflags, s.seg, s.cpl, s.retired)
    };
    assert_eq!(seen(&runs[0]), seen(&runs[1]));
    std::mem::replace(&mut runs[0], Guest::new(&[]))
}

#[test]
fn calls_and_returns_do_not_leave_translated_code() {
    let g = both(&vec![0x202; ROUNDS as usize], flags::IF | flags::DF | flags::AC);
    assert!(g.cpu.statistics.interpreted < 10, "{}", g.cpu.statistics.interpreted);
    let logged = |at| g.board.ram.read_u64(GuestPhys(LOG + 64 + at)).unwrap();
    assert_eq!(logged(0), g.board.ram.read_u64(GuestPhys(LOG)).unwrap());
    assert_eq!((logged(8) & flags::IF, logged(16) & flags::IF), (flags::IF, 0));
    assert_eq!((logged(24) & 0xffff_ffff, logged(24) >> 32 & 0xffff), (8, 16));
}

#[test]
fn any_flags_are_masked_and_returned_as_rust_does() {
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed ^ seed >> 29
    };
    for sfmask in [0, 0x4_7700, flags::STATUS, random(), random(), random()] {
        // A trap flag would need handlers.
        let returned: Vec<_> = (0..ROUNDS).map(|_| random() & !flags::TF).collect();
        both(&returned, sfmask);
    }
}

#[test]
fn without_sce_syscall_is_undefined() {
    let mut g = ping_pong(&[0x202, 0x202], 0);
    g.cpu.state_mut().efer &= !efer::SCE;
    // #UD without an IDT ends in a triple fault, at SYSRET already.
    assert_eq!(g.run(), Exit::Shutdown);
    assert_eq!(g.board.ram.read_u64(GuestPhys(LOG)), Some(0));
}

#[test]
fn stops_at_every_position_between_program_and_kernel() {
    let mut whole = ping_pong(&[0x202; 5], flags::IF);
    assert_eq!(whole.run(), Exit::Halted);
    let last = whole.cpu.position().count();
    let mut stepped = ping_pong(&[0x202; 5], flags::IF);
    for position in 1..=last {
        stepped.run_to(position);
        assert_eq!(stepped.cpu.position().count(), position);
    }
    assert_eq!(stepped.cpu.state().gpr, whole.cpu.state().gpr);
    assert_eq!(stepped.cpu.state().rflags, whole.cpu.state().rflags);
}
