//! Accesses that the TLB does not know, beside the same executed from Rust.

use super::mirrored::{FRAME, FREE, map, show_entry};
use super::*;

/// A page-directory entry that nothing is behind, and the one before it.
const ENTRY: u64 = TABLES + 0x2000 + 8 * 100;
const ROUNDS: u64 = 1000;

/// Who stores to page tables again and again leaves translated code once for each store, not for the check that it
/// shares too.
#[test]
fn a_group_on_a_page_table_is_given_up() {
    let ends = [false, true].map(|interpreted| {
        let mut guest = Guest::program(|a| {
            let mut top = a.create_label();
            a.mov(rbx, ENTRY).unwrap();
            a.mov(rcx, ROUNDS).unwrap();
            a.set_label(&mut top).unwrap();
            a.add(rax, qword_ptr(rbx - 8)).unwrap();
            a.lea(rdx, ptr(rcx + rcx)).unwrap();
            a.mov(qword_ptr(rbx), rdx).unwrap();
            a.add(rax, qword_ptr(rbx)).unwrap();
            a.dec(rcx).unwrap();
            a.jnz(top).unwrap();
            a.hlt().unwrap();
        });
        guest.cpu.set_interpret_all(interpreted);
        assert_eq!(guest.run(), Exit::Halted);
        (guest.cpu.state().gpr, guest.board.ram.read_u64(GuestPhys(ENTRY)), guest.cpu.statistics.exits)
    });
    assert_eq!((ends[0].0, ends[0].1), (ends[1].0, ends[1].1));
    assert_eq!(ends[0].0[gpr::RAX], ROUNDS * (ROUNDS + 1));
    assert!((ROUNDS..ROUNDS + ROUNDS / 4).contains(&ends[0].2), "{} exits", ends[0].2);
}

/// A store that puts another page behind the code it is in: what follows it comes from there.
#[test]
fn a_store_that_exchanges_its_own_page_is_followed_by_what_is_there_now() {
    const KERNEL: u64 = 0xffff_ffff_8100_0000;
    for virt in [KERNEL, 0x40_0000] {
        let ends = [false, true].map(|interpreted| {
            let mut guest = Guest::new(&[]);
            let mut free = FREE;
            map(&mut guest, virt, FRAME, &mut free);
            for (page, added) in [(0, 1), (1, 0x1000)] {
                let mut a = CodeAssembler::new(64).unwrap();
                let mut top = a.create_label();
                a.set_label(&mut top).unwrap();
                a.xor(qword_ptr(r9), 0x1000).unwrap();
                a.add(r12, added).unwrap();
                a.dec(rcx).unwrap();
                a.jnz(top).unwrap();
                a.hlt().unwrap();
                let code = a.assemble(virt).unwrap();
                assert!(guest.board.ram.write(GuestPhys(FRAME + page * 0x1000), &code));
            }
            let entry = show_entry(&mut guest, virt, &mut free);
            let state = guest.cpu.state_mut();
            (state.rip, state.gpr[gpr::R9], state.gpr[gpr::RCX]) = (virt, entry, 101);
            guest.cpu.set_interpret_all(interpreted);
            assert_eq!(guest.run(), Exit::Halted);
            guest.cpu.state().gpr
        });
        assert_eq!(ends[0], ends[1]);
        assert_eq!(ends[0][gpr::R12], 50 + 51 * 0x1000);
    }
}
