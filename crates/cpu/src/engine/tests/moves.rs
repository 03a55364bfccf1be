//! The same pages at several addresses, whose blocks are copies, beside the same executed from Rust.

use super::mirrored::{FREE, map, mirrored, program};
use super::*;
use crate::marks::{Mark, count};

/// More than blocks are kept for.
const ADDRESSES: [u64; 7] = [
    0x5555_5555_4000,
    0x7fff_f7d0_0000,
    0x2_0000_0000,
    0x5612_3456_7000,
    0x7f00_0000_0000,
    0x1234_5678_9000,
    0x7ffd_ffff_0000,
];
const PAGES: u64 = 3;

/// Position-independent: data relative to RIP on two pages, calls, a loop, branches both ways and an
/// indirect jump. Its immediate is at the second byte.
fn code(a: &mut CodeAssembler) {
    let [mut top, mut callee, mut skip, mut data, mut on] = std::array::from_fn(|_| a.create_label());
    a.set_label(&mut top).unwrap();
    a.mov(r10d, 3).unwrap();
    a.lea(rsi, ptr(data)).unwrap();
    a.mov(rax, qword_ptr(data)).unwrap();
    a.add(rax, r10).unwrap();
    a.mov(qword_ptr(data), rax).unwrap();
    a.call(callee).unwrap();
    a.test(al, 4).unwrap();
    a.jz(skip).unwrap();
    a.add(qword_ptr(rsi + 4096 - 8), rdx).unwrap();
    a.set_label(&mut skip).unwrap();
    a.lea(rdi, ptr(on)).unwrap();
    a.jmp(rdi).unwrap();
    a.set_label(&mut on).unwrap();
    a.push(rdi).unwrap();
    a.pop(r14).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut callee).unwrap();
    a.mov(rdx, qword_ptr(rsp)).unwrap();
    a.mov(ecx, 4).unwrap();
    let mut again = a.create_label();
    a.set_label(&mut again).unwrap();
    a.add(r11, rdx).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(again).unwrap();
    a.ret().unwrap();
    a.db(&[0; 4096]).unwrap();
    a.set_label(&mut data).unwrap();
    a.db(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
}

/// What is left after running at each address, whole and in pieces, before and after the code is changed.
fn run(mut guest: Guest, interpret: bool) -> impl PartialEq + std::fmt::Debug {
    guest.cpu.set_interpret_all(interpret);
    let mut free = FREE;
    for virt in ADDRESSES {
        (0..PAGES).for_each(|n| map(&mut guest, virt + n * 0x1000, CODE + n * 0x1000, &mut free));
    }
    let mut ends = Vec::new();
    for immediate in [3, 5] {
        assert!(guest.board.ram.write(GuestPhys(CODE + 2), &[immediate]));
        for piece in [1000, 7] {
            for virt in ADDRESSES {
                let state = guest.cpu.state_mut();
                (state.rip, state.gpr[gpr::RSP]) = (virt, STACK);
                let end = guest.cpu.position().count() + 1000;
                while guest.cpu.position().count() < end {
                    let stop = (guest.cpu.position().count() + piece).min(end);
                    assert_eq!(guest.run_to(stop), Exit::Limit);
                }
                let state = guest.cpu.state();
                ends.push((state.gpr, state.rip, state.rflags, state.cr2));
            }
        }
    }
    guest.cpu.compare_copies(&guest.board.ram, 0).unwrap();
    let memory = (0..PAGES).map(|n| *guest.board.ram.page_bytes((CODE >> 12) as usize + n as usize));
    (ends, memory.collect::<Vec<_>>())
}

#[test]
fn copies_do_at_every_address_what_rust_does_there() {
    let expected = run(program(code), true);
    assert!(run(program(code), false) == expected, "with a TLB");
    let counts = [Mark::BlockCopied, Mark::BlockReused, Mark::CopyCompared].map(count);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let before = count(Mark::BlockCopied);
    assert!(run(mirrored(code), false) == expected, "mirrored");
    assert!(count(Mark::BlockCopied) > before);
}
