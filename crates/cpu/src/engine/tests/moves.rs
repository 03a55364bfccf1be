//! The same pages at several addresses, whose blocks are copies, beside the same executed from Rust.

use super::mirrored::{FREE, map, mirrored, program};
use super::*;
use crate::marks::{Mark, count};

/// More than blocks are kept for.
const ADDRESSES: usize = 20;
/// Where they are, and, for blocks that are not copied, where addresses that follow from RIP are short.
pub(super) const FAR: [u64; ADDRESSES] = spread(0x2_0000_0000, 0x613_579b_d000);
const NEAR: [u64; ADDRESSES] = spread(0x100000, 0x35_7000);
pub(super) const PAGES: u64 = 3;

const fn spread(first: u64, step: u64) -> [u64; ADDRESSES] {
    let mut all = [first; ADDRESSES];
    let mut n = 1;
    while n < ADDRESSES {
        all[n] = all[n - 1] + step;
        n += 1;
    }
    all
}

/// Position-independent: data relative to RIP on two pages, calls, a loop, branches both ways and an
/// indirect jump. Its immediate is at the second byte.
pub(super) fn code(a: &mut CodeAssembler) {
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
fn run(mut guest: Guest, addresses: &[u64], interpret: bool) -> impl PartialEq + std::fmt::Debug + use<> {
    guest.cpu.set_interpret_all(interpret);
    let mut free = FREE;
    for &virt in addresses {
        (0..PAGES).for_each(|n| map(&mut guest, virt + n * 0x1000, CODE + n * 0x1000, &mut free));
    }
    let mut ends = Vec::new();
    for immediate in [3, 5] {
        assert!(guest.board.ram.write(GuestPhys(CODE + 2), &[immediate]));
        for piece in [1000, 7] {
            for &virt in addresses {
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
    let expected = run(program(code), &FAR, true);
    assert!(run(program(code), &FAR, false) == expected, "with a TLB");
    let counts = [Mark::BlockCopied, Mark::BlockSlid, Mark::CopyCompared, Mark::SlideCompared].map(count);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    let before = count(Mark::BlockCopied);
    assert!(run(mirrored(code), &FAR, false) == expected, "mirrored");
    assert!(count(Mark::BlockCopied) > before);
}

/// An instruction on two pages, whose data is relative to RIP.
fn crossing(a: &mut CodeAssembler) {
    let [mut top, mut end, mut data] = std::array::from_fn(|_| a.create_label());
    a.set_label(&mut top).unwrap();
    a.mov(r10d, 3).unwrap();
    a.jmp(end).unwrap();
    a.db(&[0xcc; 4096 - 3 - 11]).unwrap();
    a.set_label(&mut end).unwrap();
    a.add(qword_ptr(data), r10).unwrap();
    a.add(rax, qword_ptr(data)).unwrap();
    a.lea(rbx, ptr(end)).unwrap();
    a.jmp(top).unwrap();
    a.db(&[0xcc; 4096]).unwrap();
    a.set_label(&mut data).unwrap();
    a.db(&[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
}

#[test]
fn what_reaches_into_the_next_page_is_slid_with_its_own() {
    let expected = run(program(crossing), &FAR, true);
    for make in [|| program(crossing), || mirrored(crossing)] {
        let slid = count(Mark::SlidOnTwoPages);
        assert!(run(make(), &FAR, false) == expected);
        assert!(count(Mark::SlidOnTwoPages) > slid);
    }
}

/// The page that it reaches into is another one where it comes to.
#[test]
fn what_is_behind_the_page_is_looked_at_where_a_block_has_been_slid_to() {
    const OTHER: u64 = FREE + 0x10_0000;
    let run = |interpret| {
        let mut guest = program(crossing);
        guest.cpu.set_interpret_all(interpret);
        let mut free = FREE;
        let next = *guest.board.ram.page_bytes((CODE >> 12) as usize + 1);
        guest.board.ram.write_page((OTHER >> 12) as usize, 0, &next);
        // The same displacement but for its upper byte: the data is on the page after the next one.
        assert!(
            guest
                .board
                .ram
                .write_u64(GuestPhys(OTHER), u64::from_le_bytes(next[..8].try_into().unwrap()) + 0x1000)
        );
        for (n, &virt) in FAR.iter().enumerate() {
            let second = if n % 2 == 0 { CODE + 0x1000 } else { OTHER };
            let frames = [CODE, second, CODE + 0x2000, CODE + 0x2000, CODE + 0x2000];
            (0..).zip(frames).for_each(|(k, phys)| map(&mut guest, virt + k * 0x1000, phys, &mut free));
        }
        let mut ends = Vec::new();
        for &virt in &FAR {
            let state = guest.cpu.state_mut();
            (state.rip, state.gpr[gpr::RSP]) = (virt, STACK);
            let end = guest.cpu.position().count() + 100;
            assert_eq!(guest.run_to(end), Exit::Limit);
            let state = guest.cpu.state();
            ends.push((state.gpr, state.rip, state.cr2));
        }
        ends
    };
    assert!(run(true) == run(false));
}

#[test]
fn what_cannot_be_copied_is_forgotten_where_it_is_for_too_many_addresses() {
    let expected = run(program(code), &NEAR, true);
    assert!(run(program(code), &NEAR, false) == expected);
    assert!(count(Mark::AddressForgotten) > 0);
}

/// Sheets go from one to the next, with their exits and what these keep.
#[test]
fn programs_that_start_again_and_again_do_not_grow_what_is_kept() {
    let mut guest = program(|a| {
        a.cpuid().unwrap();
        let mut end = a.create_label();
        a.set_label(&mut end).unwrap();
        a.jmp(end).unwrap();
    });
    let mut kept = Vec::new();
    for round in 0..200 {
        // Ever another address, for which the same tables serve.
        let virt = 0x7f00_0000_0000 + (round << 21);
        let (mut free, ram) = (FREE, &mut guest.board.ram);
        (0..3).for_each(|n| ram.write_page((FREE >> 12) as usize + n, 0, &[0; 4096]));
        assert!(ram.write_u64(GuestPhys(TABLES + (virt >> 39) % 512 * 8), 0));
        map(&mut guest, virt, CODE, &mut free);
        let state = guest.cpu.state_mut();
        (state.rip, state.gpr[gpr::RAX]) = (virt, 0);
        let stop = guest.cpu.position().count() + 20;
        assert_eq!(guest.run_to(stop), Exit::Limit);
        assert_eq!(guest.cpu.state().rip >> 12, virt >> 12);
        let blocks = &guest.cpu.blocks;
        kept.push([blocks.list.len(), blocks.exits.len(), blocks.decoded.len()]);
    }
    assert_eq!(kept[100], kept[199]);
    assert!(guest.cpu.statistics.blocks_slid > 150);
}
