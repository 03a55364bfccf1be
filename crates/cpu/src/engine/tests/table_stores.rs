//! Stores to page tables that translated code makes by itself: where they end, and what else has to notice them.

use super::found::every_way;
use super::*;
use crate::marks::{Mark, count};

/// Where the kernel has the first pages of RAM a second time: in the upper half of the address space.
const UPPER: u64 = 0xffff_8000_0000_0000;
/// The tables of that, apart from those of the lower half.
const UPPER_TABLES: u64 = 0x9_4000;
/// The lower half's last table.
const LAST: u64 = TABLES + 0x3000;
const PRESENT: u64 = 3 | 1 << 5 | 1 << 6;
/// The first of the pages that the programs here map anew.
const PAGE: u64 = 0x10_0000;
/// Where a page table's entry for it stands, in the upper half.
const ENTRY: u64 = UPPER + LAST + 8 * (PAGE >> 12);

/// A guest with RAM at [`UPPER`] as well, and a word in each page from `DATA` on: its number.
fn guest(build: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let mut g = Guest::program(build);
    let mut write = |at: u64, value: u64| assert!(g.board.ram.write_u64(GuestPhys(at), value));
    write(TABLES + 8 * 256, UPPER_TABLES | PRESENT);
    write(UPPER_TABLES, (UPPER_TABLES + 0x1000) | PRESENT);
    write(UPPER_TABLES + 0x1000, (UPPER_TABLES + 0x2000) | PRESENT);
    for page in 0..512 {
        write(UPPER_TABLES + 0x2000 + 8 * page, page << 12 | PRESENT);
    }
    for page in 0..16 {
        write(DATA + (page << 12), page);
    }
    let s = g.cpu.state_mut();
    s.gpr[gpr::RDI] = ENTRY;
    s.gpr[gpr::RAX] = DATA | PRESENT;
    s.gpr[gpr::RBX] = PAGE;
    g
}

/// So many stores to entry after entry, of page after page.
fn store(a: &mut CodeAssembler, entries: u32) {
    let mut next = a.create_label();
    a.mov(ecx, entries).unwrap();
    a.set_label(&mut next).unwrap();
    a.mov(qword_ptr(rdi), rax).unwrap();
    a.add(rdi, 8).unwrap();
    a.add(rax, 0x1000).unwrap();
    a.dec(ecx).unwrap();
    a.jnz(next).unwrap();
}

#[test]
fn entries_that_nothing_came_by_are_written_and_the_one_in_use_is_heard_of() {
    let before = count(Mark::TableStoresMade);
    let g = every_way(|| {
        guest(|a| {
            a.mov(rsi, qword_ptr(rbx + 0x8000)).unwrap();
            store(a, 5);
            a.mov(rsi, qword_ptr(rbx + 0x2000)).unwrap();
            // Flags and registers go through.
            a.mov(rdi, ENTRY + 8 * 2).unwrap();
            a.mov(rax, (DATA + 0x9000) | PRESENT).unwrap();
            a.stc().unwrap();
            a.mov(qword_ptr(rdi), rax).unwrap();
            a.setc(dl).unwrap();
            a.mov(rbp, qword_ptr(rbx + 0x2000)).unwrap();
            a.mov(r8, qword_ptr(rbx + 0x4000)).unwrap();
            a.hlt().unwrap();
        })
    });
    let seen = [gpr::RSI, gpr::RBP, gpr::R8, gpr::RDX].map(|r| g.reg(r));
    assert_eq!(seen, [2, 9, 4, 1]);
    assert!(count(Mark::TableStoresMade) > before);
}

#[test]
fn accesses_to_parts_of_entries_and_to_two_of_them_are_made_where_they_should() {
    let g = every_way(|| {
        guest(|a| {
            a.mov(rsi, qword_ptr(rbx + 0x8000)).unwrap();
            store(a, 2);
            a.mov(byte_ptr(rdi + 2), 0x77).unwrap();
            a.mov(dword_ptr(rdi + 4), 0x55).unwrap();
            a.mov(qword_ptr(rdi + 12), rax).unwrap();
            a.lock().add(qword_ptr(rdi + 24), rax).unwrap();
            a.mov(r10, rdi).unwrap();
            a.mov(qword_ptr(r10 + 32), rax).unwrap();
            a.mov(rdx, ENTRY + 8 * 7).unwrap();
            a.mov(qword_ptr(rdx + rcx * 8), rax).unwrap();
            a.mov(rsi, qword_ptr(rbx + 0x7000)).unwrap();
            a.hlt().unwrap();
        })
    });
    assert_eq!(g.reg(gpr::RSI), 2);
}

#[test]
fn a_store_to_two_entries_is_heard_of_for_the_second() {
    let g = every_way(|| {
        let mut g = guest(|a| {
            a.mov(rsi, qword_ptr(rbx + 0x8000)).unwrap();
            store(a, 2);
            a.mov(rsi, qword_ptr(rbx + 0x1000)).unwrap();
            // The upper half of the first entry and the lower one of the second, which is in use.
            a.mov(rdi, ENTRY + 4).unwrap();
            a.mov(qword_ptr(rdi), rdx).unwrap();
            a.mov(rbp, qword_ptr(rbx + 0x1000)).unwrap();
            a.hlt().unwrap();
        });
        g.cpu.state_mut().gpr[gpr::RDX] = ((DATA + 0x6000) | PRESENT) << 32;
        g
    });
    assert_eq!([gpr::RSI, gpr::RBP].map(|r| g.reg(r)), [1, 6]);
}

#[test]
fn an_address_that_leads_elsewhere_is_written_through_no_more() {
    let g = every_way(|| {
        guest(|a| {
            a.mov(rsi, qword_ptr(rbx + 0x8000)).unwrap();
            store(a, 3);
            // The kernel's address of the table leads to a page of data from here on.
            a.mov(rdx, UPPER_TABLES + 0x2000 + 8 * (LAST >> 12)).unwrap();
            a.mov(rax, (DATA + 0x5000) | PRESENT).unwrap();
            a.mov(qword_ptr(rdx), rax).unwrap();
            store(a, 2);
            a.hlt().unwrap();
        })
    });
    let at = |at: u64| g.board.ram.read_u64(GuestPhys(at)).unwrap();
    let third = 8 * ((PAGE >> 12) + 3);
    assert_eq!(at(DATA + 0x5000 + third), (DATA + 0x5000) | PRESENT);
    assert_eq!(at(LAST + third), (PAGE + 0x3000) | 3 | 1 << 5, "as it was");
}

#[test]
fn an_address_that_leads_elsewhere_by_a_store_through_itself_is_written_through_no_more() {
    const OWN: u64 = UPPER_TABLES + 0x2000;
    let g = every_way(|| {
        let mut g = guest(|a| {
            a.mov(rsi, qword_ptr(rdi)).unwrap();
            a.mov(qword_ptr(rdi), rax).unwrap();
            a.mov(qword_ptr(rdi + 8), rbx).unwrap();
            a.hlt().unwrap();
        });
        // The entry for the table's own page.
        g.cpu.state_mut().gpr[gpr::RDI] = UPPER + OWN + 8 * (OWN >> 12);
        g
    });
    let at = |at: u64| g.board.ram.read_u64(GuestPhys(at)).unwrap();
    let next = 8 * ((OWN >> 12) + 1);
    assert_eq!((at(DATA + next), at(OWN + next)), (PAGE, (OWN + 0x1000) | PRESENT));
}

#[test]
fn a_table_that_becomes_code_is_written_from_rust_again() {
    // What is stored is code of the same page: `nop; hlt` where there was `hlt`.
    let g = every_way(|| {
        let mut g = guest(|a| {
            a.mov(rsi, qword_ptr(rbx + 0x8000)).unwrap();
            store(a, 3);
            a.mov(rdx, LAST + 8 * 300).unwrap();
            a.call(rdx).unwrap();
            a.mov(rdi, UPPER + LAST + 8 * 300).unwrap();
            a.mov(rax, 0xc3_c0ff_4890u64).unwrap(); // nop; inc rax; ret
            a.mov(qword_ptr(rdi), rax).unwrap();
            a.call(rdx).unwrap();
            a.hlt().unwrap();
        });
        assert!(g.board.ram.write_u64(GuestPhys(LAST + 8 * 300), 0xc3)); // ret
        g
    });
    assert_eq!(g.reg(gpr::RAX), 0xc3_c0ff_4891);
}

#[test]
fn a_store_in_a_new_epoch_makes_its_page_dirty() {
    let mut g = guest(|a| {
        a.mov(rsi, qword_ptr(rbx + 0x8000)).unwrap();
        store(a, 4);
        store(a, 2);
        a.hlt().unwrap();
    });
    let page = g.board.ram.page_index(GuestPhys(LAST)).unwrap();
    assert_eq!(g.run_to(2 + 4 * 5), Exit::Limit);
    g.board.ram.begin_epoch();
    assert!(!g.board.ram.dirty_pages().contains(&(page as u32)));
    assert_eq!(g.run(), Exit::Halted);
    assert!(g.board.ram.dirty_pages().contains(&(page as u32)));
}
