//! Code whose pages are exchanged behind what leads there, beside the same executed from Rust.

use super::fast_calls::take_calls_at;
use super::mirrored::{FREE, map, mirrored, program, show_entry};
use super::*;
use crate::marks::{Mark, count};

const FRAME: u64 = 0x10_0000;
/// What the pages at `FRAME` and behind it add to R12.
const ADDED: [i32; 2] = [1, 0x1000];

/// Puts a function onto either page of `FRAME`, has `virt` lead to the first and lets R9 point to what says so.
fn function_at(guest: &mut Guest, virt: u64) {
    let mut free = FREE;
    map(guest, virt, FRAME, &mut free);
    for (page, added) in (0..).zip(ADDED) {
        let mut a = CodeAssembler::new(64).unwrap();
        a.add(r12, added).unwrap();
        a.ret().unwrap();
        let function = a.assemble(virt).unwrap();
        assert!(guest.board.ram.write(GuestPhys(FRAME + page * 0x1000), &function));
    }
    let entry = show_entry(guest, virt, &mut free);
    guest.cpu.state_mut().gpr[gpr::R9] = entry;
}

/// Calls a function a few times, directly and indirectly.
fn call_both_ways(a: &mut CodeAssembler, function: u64) {
    a.mov(ebx, 3).unwrap();
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.call(function).unwrap();
    a.mov(rax, function).unwrap();
    a.call(rax).unwrap();
    a.dec(ebx).unwrap();
    a.jnz(again).unwrap();
}

/// What is left after running a guest in pieces, and that one with links was made to give them up and got them back.
fn ends_alike(make: impl Fn(bool) -> Guest) {
    let ends = [true, false].map(|translated| {
        let mut guest = make(translated);
        guest.cpu.set_interpret_all(!translated);
        let undone = [Mark::PageClosed, Mark::Rejoined].map(count);
        let mut at = guest.cpu.position().count();
        for piece in [2000, 7, 300, 1, 2000] {
            at += piece;
            assert_eq!(guest.run_to(at), Exit::Limit);
        }
        let state = guest.cpu.state();
        let more = [Mark::PageClosed, Mark::Rejoined]
            .map(count)
            .into_iter()
            .zip(undone)
            .all(|(now, then)| now > then + 10);
        let closed = !translated || more;
        ((state.gpr, state.rip, state.rflags, state.cr2), closed)
    });
    assert_eq!(ends[0].0, ends[1].0);
    assert!(ends[0].1, "no page was closed, or none opened again");
    let added = ends[0].0.0[gpr::R12];
    assert!(ADDED.iter().all(|each| added % 0x1000 > 10 && added > 10 * *each as u64), "{added:#x}");
}

/// A kernel exchanges the page that a program comes to.
#[test]
fn a_mirrored_program_runs_the_code_that_is_there_now() {
    const FUNCTION: u64 = 0x40_0000;
    const KERNEL: u64 = 0x1_1000;
    let build = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        call_both_ways(a, FUNCTION);
        a.syscall().unwrap();
        a.jmp(top).unwrap();
    };
    ends_alike(|translated| {
        let mut guest = if translated { mirrored(build) } else { program(build) };
        function_at(&mut guest, FUNCTION);
        let mut kernel = CodeAssembler::new(64).unwrap();
        kernel.xor(qword_ptr(r9), 0x1000).unwrap();
        kernel.sysretq().unwrap();
        assert!(guest.board.ram.write(GuestPhys(KERNEL), &kernel.assemble(KERNEL).unwrap()));
        take_calls_at(guest.cpu.state_mut(), KERNEL);
        guest
    });
}

/// The kernel itself, in its own half of the address space.
#[test]
fn the_kernel_runs_the_code_that_is_there_now() {
    const KERNEL: u64 = 0xffff_ffff_8100_0000;
    const FUNCTION: u64 = KERNEL + 0x5000;
    ends_alike(|_| {
        let mut a = CodeAssembler::new(64).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        call_both_ways(&mut a, FUNCTION);
        a.xor(qword_ptr(r9), 0x1000).unwrap();
        a.jmp(top).unwrap();
        let mut guest = Guest::new(&a.assemble(KERNEL).unwrap());
        function_at(&mut guest, FUNCTION);
        map(&mut guest, KERNEL, CODE, &mut (FREE + 0x10_0000));
        guest.cpu.state_mut().rip = KERNEL;
        guest
    });
}
