//! Programs whose memory is mirrored, beside the same executed from Rust.

use super::super::mirror::CHUNK;
use super::fast_calls::take_calls_at;
use super::*;
use crate::marks::{Mark, count};
use base::PAGE_SIZE;

const USER: u64 = 7 | 1 << 5;
pub(super) const FRAME: u64 = 0x10_0000;
pub(super) const FREE: u64 = 0x20_0000;
/// An address at which a program is likely to have something and we are not.
pub(super) const FAR: u64 = 0x3fff_1234_5000;

/// A program at `CODE` that ends in an endless loop.
pub(super) fn program(build: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let mut guest = Guest::program(|a| {
        build(a);
        let mut end = a.create_label();
        a.set_label(&mut end).unwrap();
        a.jmp(end).unwrap();
    });
    let ram = &mut guest.board.ram;
    for n in 0..512 {
        for level in 0..4 {
            let at = GuestPhys(TABLES + 0x1000 * level + 8 * n);
            let entry = ram.read_u64(at).unwrap();
            assert!(ram.write_u64(at, if entry != 0 { entry | 4 } else { 0 }));
        }
    }
    let state = guest.cpu.state_mut();
    state.cpl = 3;
    state.seg[1].attributes = 0xa0fb;
    (0..6).filter(|n| *n != 1).for_each(|n| state.seg[n].attributes = 0xc0f3);
    guest
}

/// The same of which the memory is mirrored: there is one mirror for all tests.
pub(super) fn mirrored(build: impl Fn(&mut CodeAssembler)) -> Guest {
    loop {
        let mut guest = program(&build);
        assert_eq!(guest.run_to(0), Exit::Limit);
        if guest.cpu.tlb.mirror.owner() == Some(TABLES) {
            return guest;
        }
        drop(guest);
        std::thread::yield_now();
    }
}

/// Has the program see the page at `phys` at `virt` as well; `free` is where new tables may be.
pub(super) fn map(guest: &mut Guest, virt: u64, phys: u64, free: &mut u64) {
    let ram = &mut guest.board.ram;
    let mut table = TABLES;
    for shift in [39, 30, 21] {
        let at = GuestPhys(table + (virt >> shift) % 512 * 8);
        let entry = ram.read_u64(at).unwrap();
        if entry == 0 {
            assert!(ram.write_u64(at, *free | USER));
            *free += PAGE_SIZE as u64;
        }
        table = ram.read_u64(at).unwrap() & !0xfff;
    }
    assert!(ram.write_u64(GuestPhys(table + (virt >> 12) % 512 * 8), phys | USER));
}

/// Has the kernel see the page table that `virt` is in where it is; the address of its entry there.
pub(super) fn show_entry(guest: &mut Guest, virt: u64, free: &mut u64) -> u64 {
    let mut table = TABLES;
    for shift in [39, 30, 21] {
        table = guest.board.ram.read_u64(GuestPhys(table + (virt >> shift) % 512 * 8)).unwrap() & !0xfff;
    }
    map(guest, table, table, free);
    table + (virt >> 12) % 512 * 8
}

/// Memory of ours, and where a page of it begins that has others on either side.
pub(super) fn ours() -> (Vec<u8>, u64) {
    let ours = vec![0xaa_u8; 4 * PAGE_SIZE];
    let virt = (ours.as_ptr() as u64 + PAGE_SIZE as u64) & !0xfff;
    (ours, virt)
}

#[test]
fn what_the_guest_has_at_an_address_of_ours_is_the_guests() {
    let (ours, virt) = ours();
    let mut guest = mirrored(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        // The second access goes unguarded if the first one's guard is passed.
        a.add(rax, qword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(rbx + 8), rax).unwrap();
        a.add(qword_ptr(rbx + 16), 1).unwrap();
        a.add(rdx, qword_ptr(rbx + rbp * 8)).unwrap();
        a.mov(rsp, rbx).unwrap();
        a.add(rsp, 256).unwrap();
        a.push(rax).unwrap();
        a.pop(rsi).unwrap();
        a.dec(ebp).unwrap();
        a.jnz(top).unwrap();
    });
    map(&mut guest, virt, FRAME, &mut FREE.clone());
    assert!(guest.board.ram.write_u64(GuestPhys(FRAME), 3));
    let state = guest.cpu.state_mut();
    (state.gpr[gpr::RBX], state.gpr[gpr::RBP]) = (virt, 40);
    assert_eq!(guest.run_to(10_000), Exit::Limit);
    assert!(ours.iter().all(|byte| *byte == 0xaa), "the guest has written to memory of ours");
    assert_eq!([gpr::RAX, gpr::RSI].map(|n| guest.reg(n)), [120, 120]);
    let words = [8, 16, 248].map(|at| guest.board.ram.read_u64(GuestPhys(FRAME + at)).unwrap());
    assert_eq!(words, [120, 40, 120]);
    assert!(count(Mark::MirrorRefused) > 0 && count(Mark::MirrorChecked) > 0);
}

/// Wherever a pointer points, what happens is what Rust does.
#[test]
fn every_pointer_does_what_it_does_without_a_mirror() {
    let edges = [0, 1, 0x1000, 0xfff8, 0x1_0000, FAR, FAR + 4089, FAR + 4096, (1 << 47) - 4096];
    let beyond =
        [(1 << 47) - 8, 1 << 47, 1 << 48, 1 << 63, (1 << 63) + FAR, 0xffff_8000_0000_0000, u64::MAX - 7];
    for pointer in edges.into_iter().chain(beyond) {
        let build = |a: &mut CodeAssembler| {
            a.mov(rax, qword_ptr(rbx)).unwrap();
            a.mov(qword_ptr(rbx + 8), rax).unwrap();
            a.mov(rsp, rbx).unwrap();
            a.push(rbx).unwrap();
            a.pop(rcx).unwrap();
            a.movaps(xmm0, xmmword_ptr(rbx + 16)).unwrap();
        };
        let ends = [true, false].map(|with| {
            let mut guest = if with { mirrored(build) } else { program(build) };
            guest.cpu.set_interpret_all(!with);
            for virt in [0, 0x1_0000, FAR, FAR + 4096, (1 << 47) - 4096] {
                map(&mut guest, virt, FRAME + (virt & 0x1000), &mut (FREE + (virt >> 31 << 16 & 0xf_0000)));
            }
            guest.cpu.state_mut().gpr[gpr::RBX] = pointer;
            let exit = guest.run_to(1000);
            let state = guest.cpu.state();
            let memory = *guest.board.ram.page_bytes((FRAME >> 12) as usize);
            (exit, state.gpr, state.rip, state.rflags, state.cr2, state.retired, memory)
        });
        assert!(ends[0] == ends[1], "with a pointer of {pointer:#x}: {:x?} {:x?}", ends[0].1, ends[1].1);
    }
}

#[test]
fn a_page_is_what_the_tables_say_now_and_its_first_write_of_an_epoch_is_noted() {
    let mut guest = mirrored(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(rax, qword_ptr(rbx)).unwrap();
        a.mov(qword_ptr(rbx + 8), rax).unwrap();
        a.jmp(top).unwrap();
    });
    let mut free = FREE;
    map(&mut guest, FAR, FRAME, &mut free);
    let word = |guest: &Guest, at| guest.board.ram.read_u64(GuestPhys(at)).unwrap();
    assert!(
        guest.board.ram.write_u64(GuestPhys(FRAME), 1)
            && guest.board.ram.write_u64(GuestPhys(FRAME + 0x1000), 2)
    );
    guest.cpu.state_mut().gpr[gpr::RBX] = FAR;
    assert_eq!(guest.run_to(300), Exit::Limit);
    assert!(guest.cpu.tlb.mirror.has(FAR));
    assert_eq!(word(&guest, FRAME + 8), 1);
    guest.board.ram.begin_epoch();
    assert_eq!(guest.run_to(600), Exit::Limit);
    assert_eq!(guest.board.ram.dirty_pages(), [(FRAME >> 12) as u32]);
    map(&mut guest, FAR, FRAME + 0x1000, &mut free);
    assert_eq!(guest.run_to(900), Exit::Limit);
    assert_eq!((guest.reg(gpr::RAX), word(&guest, FRAME + 8), word(&guest, FRAME + 0x1008)), (2, 1, 2));
}

/// A kernel that puts another page behind an address at each call, and goes back by SYSRET.
#[test]
fn what_the_kernel_takes_away_is_gone_when_the_program_goes_on() {
    const KERNEL: u64 = 0x1_1000;
    let build = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.add(r12, qword_ptr(rbx)).unwrap();
        a.add(qword_ptr(rbx), 1).unwrap();
        a.syscall().unwrap();
        a.jmp(top).unwrap();
    };
    let mut kernel = CodeAssembler::new(64).unwrap();
    kernel.xor(qword_ptr(r9), 0x1000).unwrap();
    kernel.invlpg(ptr(rbx)).unwrap();
    kernel.sysretq().unwrap();
    let kernel = kernel.assemble(KERNEL).unwrap();
    let ends = [true, false].map(|with| {
        let mut guest = if with { mirrored(build) } else { program(build) };
        guest.cpu.set_interpret_all(!with);
        let mut free = FREE;
        map(&mut guest, FAR, FRAME, &mut free);
        let ram = &mut guest.board.ram;
        assert!(ram.write(GuestPhys(KERNEL), &kernel));
        assert!(ram.write_u64(GuestPhys(FRAME), 1000) && ram.write_u64(GuestPhys(FRAME + 0x1000), 1));
        let entry = show_entry(&mut guest, FAR, &mut free);
        let state = guest.cpu.state_mut();
        take_calls_at(state, KERNEL);
        state.gpr[gpr::RBX] = FAR;
        state.gpr[gpr::R9] = entry;
        let unmapped = count(Mark::MirrorUnmapped);
        assert_eq!(guest.run_to(3000), Exit::Limit);
        assert!(!with || count(Mark::MirrorUnmapped) > unmapped, "nothing was unmapped");
        let words = [0, 0x1000].map(|at| guest.board.ram.read_u64(GuestPhys(FRAME + at)).unwrap());
        (guest.cpu.state().gpr, guest.cpu.state().rip, words)
    });
    assert!(ends[0] == ends[1], "{:x?} {:x?}", ends[0], ends[1]);
    assert!(ends[0].2[0] > 1000 && ends[0].2[1] > 1);
}

/// Repeated string instructions over pages that are mapped, not mapped and not there, overlapping ones too.
#[test]
fn strings_do_what_they_do_without_a_mirror() {
    let cases = [
        (FAR, FAR + 0x1800, 0x1000),
        (FAR + 0xffd, FAR + 0x20, 0x1800),
        (FAR + 0x10, FAR + 0x13, 0x1f00),
        (FAR + 0x1ffc, FAR, 9),
        (FAR, FAR + 0x2fe0, 0x50),
        (FAR + 0x2ff0, FAR + 0x100, 0x50),
        (FAR, FAR + 0x100, 0),
        (CODE, FAR + 0x100, 0x30),
        (FAR + 8, FAR + 0x2008, 0x1400),
        (FAR + 0x1ff0, FAR + 0x2013, 0x1200),
        (FAR + 0x2000, FAR + 0x2013, 0x1200),
    ];
    // The third page may have been paged in a moment ago, and written to in this epoch.
    let cases = cases.into_iter().flat_map(|case| [(case, None), (case, Some(false)), (case, Some(true))]);
    for (((from, to, bytes), paged_in), element) in
        cases.flat_map(|case| [1, 2, 4, 8].map(|size| (case, size)))
    {
        let build = |a: &mut CodeAssembler| {
            // Whatever has been touched before is mapped already.
            a.mov(rax, qword_ptr(rbx)).unwrap();
            a.mov(qword_ptr(rbx + 0x1000), rax).unwrap();
            match element {
                1 => a.rep().movsb().unwrap(),
                2 => a.rep().movsw().unwrap(),
                4 => a.rep().movsd().unwrap(),
                _ => a.rep().movsq().unwrap(),
            }
            a.mov(rsi, rdi).unwrap();
            a.mov(rdi, rbx).unwrap();
            a.mov(ecx, 0x123).unwrap();
            match element {
                1 => a.rep().stosb().unwrap(),
                2 => a.rep().stosw().unwrap(),
                4 => a.rep().stosd().unwrap(),
                _ => a.rep().stosq().unwrap(),
            }
        };
        let ends = [true, false].map(|with| {
            let mut guest = if with { mirrored(build) } else { program(build) };
            guest.cpu.set_interpret_all(!with);
            let mut free = FREE;
            (0..3).for_each(|n| map(&mut guest, FAR + n * 0x1000, FRAME + n * 0x1000, &mut free));
            for at in 0..0x3000 {
                assert!(guest.board.ram.write(GuestPhys(FRAME + at), &[((at * 7) >> 3) as u8]));
            }
            if paged_in == Some(false) {
                guest.board.ram.begin_epoch();
            }
            let state = guest.cpu.state_mut();
            state.cr2 = if paged_in.is_some() { FAR + 0x2fff } else { 0 };
            let gpr = &mut state.gpr;
            (gpr[gpr::RBX], gpr[gpr::RSI], gpr[gpr::RDI]) = (FAR, from, to);
            gpr[gpr::RCX] = bytes / element;
            let exits = [guest.run_to(100), guest.run_to(0x1234), guest.run_to(20_000)];
            let state = guest.cpu.state();
            let memory = (0..3).map(|n| guest.board.ram.page_bytes((FRAME >> 12) as usize + n).to_vec());
            (exits, state.gpr, state.rip, state.cr2, state.retired, memory.collect::<Vec<_>>())
        });
        assert!(
            ends[0] == ends[1],
            "{element} bytes, {from:#x} to {to:#x}, {bytes:#x}, {paged_in:?}: {:x?}",
            (&ends[0].1, &ends[1].1)
        );
    }
    assert!(count(Mark::MirrorString) > 0 && count(Mark::FreshString) > 0);
}

/// Programs before have claimed all that may be.
#[test]
fn claims_of_programs_before_are_given_up_for_the_next() {
    const OTHER: u64 = 0x14_0000;
    let mut guest = mirrored(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(rax, FAR).unwrap();
        a.add(qword_ptr(rax), 1).unwrap();
        a.push(rax).unwrap();
        a.pop(rcx).unwrap();
        a.jmp(top).unwrap();
    });
    let mut free = FREE;
    map(&mut guest, FAR, FRAME, &mut free);
    assert_eq!(guest.run_to(1000), Exit::Limit);
    let chunks = (0..4000_u64).map(|n| 0x2000_0000_0000 + n * 4 * CHUNK);
    let first = chunks.clone().find(|at| guest.cpu.tlb.mirror.claim(*at)).expect("some are free");
    let claimed = chunks.clone().filter(|at| guest.cpu.tlb.mirror.claim(*at)).count();
    assert!((1000..4000).contains(&claimed), "{claimed}");
    assert!(!guest.cpu.tlb.mirror.claim(0x3000_0000_0000), "there is an end to it");
    // Another program: the same tables below another top.
    for n in 0..512 {
        let entry = guest.board.ram.read_u64(GuestPhys(TABLES + 8 * n)).unwrap();
        assert!(guest.board.ram.write_u64(GuestPhys(OTHER + 8 * n), entry));
    }
    let renewed = count(Mark::ClaimsRenewed);
    guest.cpu.state_mut().cr3 = OTHER;
    while guest.cpu.tlb.mirror.owner() != Some(OTHER) {
        let at = guest.cpu.position().count();
        assert!(at < 100_000_000, "it is never mirrored");
        assert_eq!(guest.run_to(at + 1_000_000), Exit::Limit);
    }
    assert!(count(Mark::ClaimsRenewed) > renewed);
    // SAFETY: asks for a page that nothing is at any more, and gives it back.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let got = libc::mmap(first as *mut libc::c_void, 4096, libc::PROT_NONE, flags, -1, 0);
        assert_eq!(got as u64, first, "what was claimed is still taken");
        libc::munmap(got, 4096);
    }
    let steps = |guest: &Guest| guest.board.ram.read_u64(GuestPhys(FRAME)).unwrap();
    let (before, exits) = (steps(&guest), guest.cpu.statistics.exits);
    let at = guest.cpu.position().count();
    assert_eq!(guest.run_to(at + 100_000), Exit::Limit);
    assert!(steps(&guest) >= before + 100_000 / 6 && guest.cpu.statistics.exits < exits + 200);
}

/// Who reads on and on comes to pages that are not mapped yet by accesses to two of them.
#[test]
fn accesses_to_two_pages_have_both_mapped() {
    const PAGES: u64 = 64;
    let build = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.mov(rax, FAR + 1).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rbx, qword_ptr(rax)).unwrap();
        a.inc(rax).unwrap();
        a.cmp(dword_ptr(rax), 0x1234_5678).unwrap();
        a.jne(top).unwrap();
    };
    let ends = [true, false].map(|with| {
        let mut guest = if with { mirrored(build) } else { program(build) };
        guest.cpu.set_interpret_all(!with);
        let mut free = FREE;
        for n in 0..PAGES {
            // None is beside its neighbour in RAM.
            let frame = FRAME + (n * 7 % PAGES) * PAGE_SIZE as u64;
            map(&mut guest, FAR + n * PAGE_SIZE as u64, frame, &mut free);
            assert!(guest.board.ram.write_u64(GuestPhys(frame + 8), n * 0x1_0001));
            let last = if n == PAGES - 1 { 0x1234_5678 } else { n };
            assert!(guest.board.ram.write_u64(GuestPhys(frame + PAGE_SIZE as u64 - 16), last));
        }
        assert_eq!(guest.run_to(PAGES * PAGE_SIZE as u64 * 4), Exit::Limit);
        if with {
            let failed = guest.cpu.mirroring.failures.len();
            assert!(failed == 0 && guest.cpu.mirroring.checked.is_empty(), "{failed} failed");
        }
        (guest.cpu.state().gpr, guest.cpu.state().rip)
    });
    assert_eq!(ends[0], ends[1]);
    assert_eq!(ends[0].0[gpr::RAX], FAR + PAGES * PAGE_SIZE as u64 - 16, "it has read all");
}
