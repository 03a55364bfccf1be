//! Accesses that the TLB does not know, beside the same executed from Rust.

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
