//! Stack pointers that are moved to anywhere, in mirrored code, beside the same executed from Rust.

use super::fast_calls::take_calls_at;
use super::mirrored::{FAR, FRAME, FREE, map, mirrored, ours, program};
use super::*;
use crate::marks::{Mark, count};

pub(super) const KERNEL: u64 = 0x1_1000;

/// Moves RSP to RBX in one way or another; RBP is as far below RSP as RBX is.
type Way = fn(&mut CodeAssembler);

const WAYS: [Way; 14] = [
    |a| a.mov(rsp, rbx).unwrap(),
    |a| a.lea(rsp, ptr(rbx)).unwrap(),
    |a| a.lea(rsp, ptr(rbx + 0x30)).unwrap(),
    |a| a.lea(rsp, ptr(rbx - 0x2_0000)).unwrap(),
    |a| a.lea(rsp, ptr(rbx + r9 * 8)).unwrap(),
    |a| a.sub(rsp, rbp).unwrap(),
    |a| a.sub(rsp, r14).unwrap(),
    |a| a.mov(rsp, r15).unwrap(),
    |a| a.xchg(rsp, rbx).unwrap(),
    |a| a.cmovne(rsp, rbx).unwrap(),
    |a| a.mov(esp, ebx).unwrap(),
    |a| {
        a.push(rbx).unwrap();
        a.pop(rsp).unwrap();
    },
    |a| {
        a.mov(rbp, rbx).unwrap();
        a.leave().unwrap();
    },
    |a| {
        a.mov(rsp, rbx).unwrap();
        a.and(rsp, -32).unwrap();
    },
];

/// What a program does that moves its stack pointer, and accesses what it points to only after a branch.
fn moves(way: Way) -> impl Fn(&mut CodeAssembler) {
    move |a| {
        let [mut on, mut off] = std::array::from_fn(|_| a.create_label());
        a.mov(r14, rbp).unwrap();
        a.mov(r15, rbx).unwrap();
        a.inc(r8).unwrap();
        way(a);
        a.jnz(on).unwrap();
        a.nop().unwrap();
        a.set_label(&mut on).unwrap();
        a.mov(rax, qword_ptr(rsp + 8)).unwrap();
        a.add(qword_ptr(rsp), r8).unwrap();
        a.push(rax).unwrap();
        a.call(off).unwrap();
        a.set_label(&mut off).unwrap();
        a.pop(rcx).unwrap();
        a.sub(rsp, 0x18).unwrap();
        a.mov(qword_ptr(rsp + 16), rcx).unwrap();
    }
}

/// What is left of a program that begins with these pointers, executed from translated code and from Rust.
fn ends<F: Fn(&mut CodeAssembler)>(
    build: F,
    pages: &[u64],
    pointer: u64,
    length: u64,
) -> [impl PartialEq + std::fmt::Debug + use<F>; 2] {
    [true, false].map(|with| {
        let mut guest = if with { mirrored(&build) } else { program(&build) };
        guest.cpu.set_interpret_all(!with);
        for (n, virt) in pages.iter().enumerate() {
            map(&mut guest, *virt, FRAME + n as u64 * 0x1000, &mut (FREE + ((n as u64) << 14)));
        }
        let state = guest.cpu.state_mut();
        state.gpr[gpr::RBX] = pointer;
        state.gpr[gpr::RBP] = state.gpr[gpr::RSP].wrapping_sub(pointer);
        let exits = [guest.run_to(7), guest.run_to(length)];
        let state = guest.cpu.state();
        let memory: Vec<_> =
            (0..pages.len()).map(|n| *guest.board.ram.page_bytes((FRAME >> 12) as usize + n)).collect();
        (exits, state.gpr, state.rip, state.rflags, state.cr2, state.retired, memory)
    })
}

#[test]
fn wherever_the_stack_pointer_is_moved_what_happens_is_what_rust_does() {
    let pointers = [
        0x40,
        0x1_0000,
        FAR + 0x800,
        FAR + 4093,
        FAR + 0x2_0000,
        (1 << 47) - 64,
        1 << 47,
        1 << 63,
        (1 << 63) + FAR,
        u64::MAX - 7,
    ];
    for (nth, way) in WAYS.iter().enumerate() {
        for pointer in pointers {
            let pages = [0, 0x1_0000, FAR, FAR + 4096, FAR + 0x2_0000, (1 << 47) - 4096];
            let [with, without] = ends(moves(*way), &pages, pointer, 1000);
            assert!(with == without, "way {nth}, to {pointer:#x}");
        }
    }
    assert!(
        [Mark::StackGuarded, Mark::StackFollowedByRust, Mark::StackElsewhere]
            .map(count)
            .iter()
            .all(|n| *n > 0)
    );
}

#[test]
fn a_stack_where_we_have_something_is_the_guests() {
    let (ours, virt) = ours();
    for (nth, way) in WAYS.iter().enumerate() {
        let [with, without] = ends(moves(*way), &[virt, virt + 4096], virt + 0x1010, 1000);
        assert!(with == without, "way {nth}");
        assert!(ours.iter().all(|byte| *byte == 0xaa), "way {nth}: the guest has written to memory of ours");
    }
}

/// Little by little, without an access in between, over whatever is on the way.
#[test]
fn a_stack_pointer_that_wanders_off_does_not_get_past_what_guards_us() {
    let (ours, virt) = ours();
    let steps: [Way; 4] = [
        |a| a.sub(rsp, 0x8000).unwrap(),
        |a| a.add(rsp, 0x10_0000).unwrap(),
        |a| a.lea(rsp, ptr(rsp - 0x1_0000)).unwrap(),
        |a| {
            a.sub(rsp, 0x70).unwrap();
            a.and(rsp, -0x8000).unwrap();
        },
    ];
    for (nth, (step, by)) in steps.iter().zip([-0x8000_i64, 0x10_0000, -0x1_0000, -0x8000]).enumerate() {
        let build = |a: &mut CodeAssembler| {
            let mut top = a.create_label();
            a.mov(rsp, rbx).unwrap();
            a.mov(ecx, 2000).unwrap();
            a.set_label(&mut top).unwrap();
            step(a);
            a.dec(ecx).unwrap();
            a.jnz(top).unwrap();
            a.push(rbx).unwrap();
            a.mov(qword_ptr(rsp + 8), rsp).unwrap();
        };
        let end = (virt + 0x1000) & !0x7fff | 0x1800;
        let start = end.wrapping_sub((2000 * by) as u64);
        let [with, without] = ends(build, &[end & !0xfff], start, 20_000);
        assert!(with == without, "step {nth}");
        assert!(ours.iter().all(|byte| *byte == 0xaa), "step {nth}: the guest has written to memory of ours");
    }
}

/// The kernel gives its program another stack, and goes back by SYSRET.
#[test]
fn a_stack_that_the_kernel_gives_is_looked_at() {
    let mut kernel = CodeAssembler::new(64).unwrap();
    kernel.xchg(rsp, rbx).unwrap();
    kernel.sysretq().unwrap();
    given_stacks_are_looked_at(&kernel.assemble(KERNEL).unwrap(), 3000, |_| {});
}

/// A program calls its kernel, which has it go on with RBX as its stack pointer, for so many instructions; that leads to
/// memory of ours. `set_up` comes before.
pub(super) fn given_stacks_are_looked_at(kernel: &[u8], instructions: u64, set_up: impl Fn(&mut Guest)) {
    let (ours, virt) = ours();
    let build = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.push(rbx).unwrap();
        a.pop(rax).unwrap();
        a.add(qword_ptr(rsp - 16), 1).unwrap();
        a.syscall().unwrap();
        a.jmp(top).unwrap();
    };
    let ends = [true, false].map(|with| {
        let mut guest = if with { mirrored(build) } else { program(build) };
        guest.cpu.set_interpret_all(!with);
        map(&mut guest, virt, FRAME, &mut FREE.clone());
        set_up(&mut guest);
        assert!(guest.board.ram.write(GuestPhys(KERNEL), kernel));
        let state = guest.cpu.state_mut();
        take_calls_at(state, KERNEL);
        state.gpr[gpr::RBX] = virt + 0x800;
        assert_eq!(guest.run_to(instructions), Exit::Limit);
        let words = guest.board.ram.read_u64(GuestPhys(FRAME + 0x800 - 16)).unwrap();
        (guest.cpu.state().gpr, guest.cpu.state().rip, words)
    });
    assert!(ends[0] == ends[1], "{:x?} {:x?}", ends[0], ends[1]);
    assert!(ends[0].2 > 100 && ours.iter().all(|byte| *byte == 0xaa));
}

/// A program whose stack is where memory of ours is goes on without its mirror, not instruction by instruction.
#[test]
fn a_stack_that_cannot_be_claimed_costs_the_mirror_only() {
    let (ours, virt) = ours();
    let mut guest = mirrored(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.push(rbx).unwrap();
        a.pop(rax).unwrap();
        a.inc(rax).unwrap();
        a.jmp(top).unwrap();
    });
    map(&mut guest, virt, FRAME, &mut FREE.clone());
    guest.cpu.state_mut().gpr[gpr::RSP] = virt + 0x800;
    let abandoned = count(Mark::MirrorAbandoned);
    assert_eq!(guest.run_to(100_000), Exit::Limit);
    assert!(count(Mark::MirrorAbandoned) > abandoned);
    assert!(guest.cpu.tlb.mirror.owner().is_none());
    let before = guest.cpu.statistics.exits;
    assert_eq!(guest.run_to(1_000_000), Exit::Limit);
    assert!(guest.cpu.statistics.exits < before + 100);
    assert!(ours.iter().all(|byte| *byte == 0xaa));
}
