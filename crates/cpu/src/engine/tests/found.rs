//! What random programs found, each as the smallest program that shows it.

use super::*;
use crate::Watch;

/// An IDT whose gate for `vector` leads to a HLT at `STACK`; R15 then points to the frame pushed.
pub(super) fn catch(g: &mut Guest, vector: u64) {
    const IDT: u64 = 0x4_0000;
    let low = STACK & 0xffff | 8 << 16 | 0x8e00 << 32 | (STACK >> 16 & 0xffff) << 48;
    assert!(g.board.ram.write_u64(GuestPhys(IDT + 16 * vector), low));
    assert!(g.board.ram.write(GuestPhys(STACK), &[0xf4]));
    let s = g.cpu.state_mut();
    s.idtr.base = IDT;
    s.idtr.limit = 0xfff;
    let present = Segment { base: 0, limit: u32::MAX, attributes: 0xa09b, selector: 8 };
    assert!(g.board.ram.write_u64(GuestPhys(0x5_0008), 0x00af_9b00_0000_ffff));
    s.gdtr.base = 0x5_0000;
    s.gdtr.limit = 0xf;
    s.seg[1] = present;
}

#[test]
fn an_access_that_wraps_around_the_address_space_misses_the_empty_tlb() {
    let mut g = Guest::program(|a| {
        a.mov(rbx, -2i64 as u64).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    catch(&mut g, 14);
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!((g.cpu.state().rip, g.cpu.state().cr2), (STACK + 1, -2i64 as u64));
}

#[test]
fn an_access_that_runs_over_from_page_zero_misses_the_empty_tlb() {
    let mut g = Guest::program(|a| {
        a.mov(ebx, 0xffe).unwrap();
        a.mov(dword_ptr(rbx), 0x1122_3344).unwrap();
        a.mov(eax, dword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(g.reg(gpr::RAX), 0x1122_3344);
    assert_eq!(g.board.ram.read_array(GuestPhys(0xffe)), Some(0x1122_3344u32.to_le_bytes()));
}

#[test]
fn an_indirect_call_to_a_non_canonical_address_pushes_nothing() {
    let mut g = Guest::program(|a| {
        a.mov(rsp, DATA + 0x100).unwrap();
        a.mov(rbx, 1u64 << 63).unwrap();
        a.mov(qword_ptr(rsp - 8), rbx).unwrap();
        a.call(qword_ptr(rsp - 8)).unwrap();
    });
    catch(&mut g, 13);
    // The handler's frame goes elsewhere, lest it cover what the call would have pushed.
    assert!(g.board.ram.write_u64(
        GuestPhys(0x4_0000 + 16 * 13),
        g.board.ram.read_u64(GuestPhys(0x4_0000 + 16 * 13)).unwrap() | 1 << 32
    ));
    assert!(g.board.ram.write_u64(GuestPhys(0x6_0024), 0x7_0000));
    g.cpu.state_mut().tr = Segment { base: 0x6_0000, limit: 0x67, attributes: 0x8b, selector: 0 };
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(g.cpu.state().rip, STACK + 1);
    assert_eq!(g.board.ram.read_u64(GuestPhys(DATA + 0xf8)), Some(1 << 63));
    assert_eq!(g.board.ram.read_u64(GuestPhys(0x7_0000 - 16)), Some(DATA + 0x100), "RSP in the frame");
}

#[test]
fn operands_that_share_a_tlb_slot_do_not_evict_each_other_for_ever() {
    let mut g = Guest::program(|a| {
        a.mov(rsp, DATA + 0x100).unwrap();
        a.mov(rbx, DATA + ALIAS).unwrap();
        a.push(qword_ptr(rbx)).unwrap();
        a.pop(rax).unwrap();
        a.hlt().unwrap();
    });
    show_low_memory_again(&mut g);
    assert!(g.board.ram.write_u64(GuestPhys(DATA), 0x77));
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(g.reg(gpr::RAX), 0x77);
}

/// The entry of a page in the guest's lowest table, without its Accessed bit.
fn forget_access(g: &mut Guest, page: u64) -> GuestPhys {
    let entry = GuestPhys(TABLES + 0x3000 + 8 * page);
    assert!(g.board.ram.write_u64(entry, page << 12 | 3));
    entry
}

#[test]
fn a_misaligned_vector_faults_before_its_page_is_looked_at() {
    for interpreted in [false, true] {
        let mut g = Guest::program(|a| {
            a.mov(esi, DATA as u32 + 4).unwrap();
            a.addps(xmm0, xmmword_ptr(rsi)).unwrap();
            a.hlt().unwrap();
        });
        catch(&mut g, 13);
        let entry = forget_access(&mut g, DATA >> 12);
        g.cpu.set_interpret_all(interpreted);
        assert_eq!(g.run(), Exit::Halted);
        assert_eq!(g.cpu.state().rip, STACK + 1, "a general protection fault");
        let accessed = g.board.ram.read_u64(entry).unwrap() & 1 << 5;
        assert_eq!(accessed, 0, "interpreted: {interpreted}");
    }
}

#[test]
fn sti_holds_back_interrupts_but_no_single_step() {
    let mut g = Guest::program(|a| {
        a.mov(esp, STACK as u32).unwrap();
        a.push(0x102).unwrap();
        a.popfq().unwrap();
        a.sti().unwrap();
        a.nop().unwrap();
        a.hlt().unwrap();
    });
    catch(&mut g, 1);
    assert_eq!(g.run(), Exit::Halted);
    // POPFQ set TF, so the first trap comes after STI: at the NOP.
    let pushed = g.board.ram.read_u64(GuestPhys(g.reg(gpr::RSP))).unwrap();
    assert_eq!(pushed, CODE + 5 + 5 + 1 + 1, "the trap points behind STI");
}

#[test]
fn a_pending_x87_exception_comes_before_the_operands_page_is_looked_at() {
    for interpreted in [false, true] {
        let mut g = Guest::program(|a| {
            a.mov(esi, DATA as u32).unwrap();
            a.fninit().unwrap();
            a.mov(dword_ptr(rsp - 8), 0x340).unwrap(); // division by zero unmasked, and no other
            a.fldcw(word_ptr(rsp - 8)).unwrap();
            a.fldz().unwrap();
            a.fld1().unwrap();
            a.fdivrp(st1, st0).unwrap();
            a.fist(dword_ptr(rsi)).unwrap();
            a.hlt().unwrap();
        });
        catch(&mut g, 16);
        let entry = forget_access(&mut g, DATA >> 12);
        g.cpu.set_interpret_all(interpreted);
        assert_eq!(g.run(), Exit::Halted);
        assert_eq!(g.cpu.state().rip, STACK + 1, "a floating-point error");
        let touched = g.board.ram.read_u64(entry).unwrap() & (1 << 5 | 1 << 6);
        assert_eq!(touched, 0, "interpreted: {interpreted}");
    }
}

#[test]
fn code_in_a_segment_ends_at_its_limit() {
    for limit in [0xffff_ffff, 5, 4, 1] {
        for interpreted in [false, true] {
            // Five bytes of MOV behind a NOP, the last of them at offset 5.
            let mut g = Guest::new(&[0x90, 0xb8, 1, 0, 0, 0, 0xf4]);
            catch(&mut g, 13);
            g.cpu.set_interpret_all(interpreted);
            let s = g.cpu.state_mut();
            s.seg[1] = Segment { base: CODE, limit, attributes: 0x409b, selector: 8 };
            s.rip = 0;
            assert_eq!(g.run(), Exit::Halted);
            let rip = g.cpu.state().rip;
            let moved = g.reg(gpr::RAX) == 1;
            let expected = match limit {
                5 => (STACK + 1, true), // the HLT at 6 lies beyond
                0xffff_ffff => (7, true),
                _ => (STACK + 1, false), // the MOV reaches beyond
            };
            assert_eq!((rip, moved), expected, "limit {limit:#x}, interpreted: {interpreted}");
        }
    }
}

#[test]
fn a_handler_that_faults_at_once_does_not_stop_the_count() {
    let mut at_ends = Vec::new();
    for (interpreted, step) in [(false, 1000), (false, 1), (true, 1000)] {
        let mut g = Guest::program(|a| {
            a.mov(esp, DATA as u32).unwrap();
            a.ud2().unwrap();
        });
        catch(&mut g, 6);
        assert!(g.board.ram.write(GuestPhys(STACK), &[0x0f, 0x0b]), "the handler is undefined too");
        g.cpu.set_interpret_all(interpreted);
        for limit in (step..=1000).step_by(step as usize) {
            assert_eq!(g.run_to(limit), Exit::Limit);
            assert_eq!(g.cpu.position().count(), limit);
        }
        at_ends.push(g.reg(gpr::RSP));
    }
    // MOV and 999 events, and the first of them, which follows an instruction; frames are aligned.
    assert_eq!(at_ends, [DATA - 40 - 48 * 999; 3]);
}

#[test]
fn a_leader_that_rust_executes_because_of_its_other_access_leaves_nothing_to_its_group() {
    let mut g = Guest::program(|a| {
        a.mov(rsp, DATA + 0x800).unwrap();
        a.mov(rdi, DATA + 0x1_0000).unwrap();
        a.mov(eax, 5).unwrap();
        // What it reads is watched; what it writes leads the pushes and pops behind.
        a.push(qword_ptr(rdi)).unwrap();
        a.push(rax).unwrap();
        a.pop(rbx).unwrap();
        a.pop(rcx).unwrap();
        a.hlt().unwrap();
    });
    assert!(g.board.ram.write_u64(GuestPhys(DATA + 0x1_0000), 0x77));
    let watch = Watch { start: GuestPhys(DATA + 0x1_0000), bytes: 8, reads: false, writes: true };
    g.cpu.set_watches(&mut g.board, vec![watch]);
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!((g.reg(gpr::RBX), g.reg(gpr::RCX)), (5, 0x77));
}

#[test]
fn a_breakpoint_on_a_repeated_instruction_stops_before_every_iteration() {
    let mut g = Guest::program(|a| {
        a.mov(rsi, DATA).unwrap();
        a.mov(rdi, DATA + 0x100).unwrap();
        a.mov(ecx, 3).unwrap();
        a.rep().movsb().unwrap();
        a.hlt().unwrap();
    });
    let rep = CODE + 10 + 10 + 5;
    g.cpu.set_breakpoints(&std::collections::BTreeSet::from([rep]));
    for left in (1..=3).rev() {
        assert_eq!(g.run(), Exit::Debugger);
        assert_eq!((g.cpu.state().rip, g.reg(gpr::RCX)), (rep, left));
    }
    assert_eq!(g.run(), Exit::Halted);
}

/// A group of stores whose page becomes a page table between two of them: the second must be heard.
#[test]
fn a_group_does_not_outlive_the_marking_of_its_page() {
    let mut guest = Guest::program(|a| {
        a.mov(qword_ptr(rbx + 0x40), rax).unwrap();
        a.mov(rcx, qword_ptr(rdx)).unwrap();
        a.mov(qword_ptr(rbx), rdi).unwrap();
        a.mov(rsi, qword_ptr(rdx)).unwrap();
        a.hlt().unwrap();
    });
    let present = 3 | 1 << 5 | 1 << 6;
    let (tables, region) = (0x9_0000, 0x20_0000);
    let mut write = |at: u64, value: u64| assert!(guest.board.ram.write_u64(GuestPhys(at), value));
    write(tables, tables + 0x1000 + present);
    write(tables + 0x1000, tables + 0x2000 + present);
    write(tables + 0x2000, tables + 0x3000 + present);
    write(tables + 0x2008, tables + 0x4000 + present);
    (0..512).for_each(|page| write(tables + 0x3000 + 8 * page, (page << 12) + present));
    write(tables + 0x4000, DATA + present);
    write(DATA, 1);
    write(DATA + 0x1000, 2);
    let state = guest.cpu.state_mut();
    state.cr3 = tables;
    state.gpr[gpr::RBX] = tables + 0x4000;
    state.gpr[gpr::RDX] = region;
    state.gpr[gpr::RDI] = DATA + 0x1000 + present;
    assert_eq!(guest.run(), Exit::Halted);
    assert_eq!((guest.reg(gpr::RCX), guest.reg(gpr::RSI)), (1, 2));
    assert!(crate::marks::count(crate::marks::Mark::GroupsStale) > 0);
}

/// What emitted code takes from the tables kept for an address space goes when another is entered,
/// even if the set of tables was entered by a link (STAC) and nothing was filled from Rust.
#[test]
fn translations_found_again_do_not_outlive_their_address_space() {
    let (tables, far) = (0x9_0000, 1 << 20);
    let mut guest = Guest::program(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(cr3, rax).unwrap();
        a.stac().unwrap();
        a.add(r8, qword_ptr(rbx)).unwrap();
        // Wants the same place in the small table; so the next comes from the large one.
        a.mov(rsi, qword_ptr(rbx + far)).unwrap();
        a.mov(rsi, qword_ptr(rdi)).unwrap();
        a.clac().unwrap();
        a.mov(cr3, rdx).unwrap();
        a.dec(ebp).unwrap();
        a.jnz(top).unwrap();
        a.stac().unwrap();
        a.mov(r9, qword_ptr(rbx)).unwrap();
        a.hlt().unwrap();
    });
    let present = 3 | 1 << 5;
    let mut write = |at: u64, value: u64| assert!(guest.board.ram.write_u64(GuestPhys(at), value));
    for (level, next) in [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)] {
        write(tables + level, tables + next + present);
    }
    for page in 0..512 {
        let frame = if page == DATA >> 12 { page + 1 } else { page };
        write(tables + 0x3000 + 8 * page, (frame << 12) + present);
    }
    write(DATA, 1);
    write(DATA + 0x1000, 2);
    let state = guest.cpu.state_mut();
    state.cr4 |= cr4::SMAP;
    state.gpr[gpr::RAX] = state.cr3;
    state.gpr[gpr::RBX] = DATA;
    state.gpr[gpr::RDI] = DATA;
    state.gpr[gpr::RDX] = tables;
    state.gpr[gpr::RBP] = 10;
    assert_eq!(guest.run(), Exit::Halted);
    assert_eq!((guest.reg(gpr::R8), guest.reg(gpr::R9)), (10, 2));
}

/// The kernel's own set is not emptied when the address space changes: what it has of programs' half is looked for
/// slot by slot, or everywhere if there is much of it.
#[test]
fn what_the_kernels_set_has_of_one_address_space_is_not_found_in_another() {
    const REGION: u64 = 0x20_0000;
    for pages in [3_u32, 700] {
        let mut guest = Guest::program(|a| {
            let (mut top, mut first, mut second) = (a.create_label(), a.create_label(), a.create_label());
            a.set_label(&mut top).unwrap();
            for (space, sum, again) in [(rax, r8, &mut first), (rdx, r9, &mut second)] {
                a.mov(cr3, space).unwrap();
                a.mov(ecx, pages).unwrap();
                a.mov(rbx, REGION).unwrap();
                a.set_label(again).unwrap();
                a.add(sum, qword_ptr(rbx)).unwrap();
                a.add(rbx, 0x1000).unwrap();
                a.dec(ecx).unwrap();
                a.jnz(*again).unwrap();
            }
            a.dec(ebp).unwrap();
            a.jnz(top).unwrap();
            a.hlt().unwrap();
        });
        let present = 3 | 1 << 5;
        let spaces = [0x9_0000_u64, 0xa_0000];
        for (tables, frame) in spaces.into_iter().zip([DATA, DATA + 0x1000]) {
            let mut write = |at: u64, value: u64| assert!(guest.board.ram.write_u64(GuestPhys(at), value));
            write(tables, tables + 0x1000 + present);
            write(tables + 0x1000, tables + 0x2000 + present);
            for (large, next) in [(0, 0x3000), (1, 0x4000), (2, 0x4000)] {
                write(tables + 0x2000 + 8 * large, tables + next + present);
            }
            for page in 0..512 {
                write(tables + 0x3000 + 8 * page, (page << 12) + present);
                write(tables + 0x4000 + 8 * page, frame + present);
            }
        }
        assert!(guest.board.ram.write_u64(GuestPhys(DATA), 1));
        assert!(guest.board.ram.write_u64(GuestPhys(DATA + 0x1000), 2));
        let state = guest.cpu.state_mut();
        [state.gpr[gpr::RAX], state.gpr[gpr::RDX]] = spaces;
        state.gpr[gpr::RBP] = 3;
        assert_eq!(guest.run(), Exit::Halted);
        let sum = 3 * u64::from(pages);
        assert_eq!((guest.reg(gpr::R8), guest.reg(gpr::R9)), (sum, 2 * sum), "{pages} pages");
    }
}

/// Stores beside watched bytes are let through one by one: all that a run leaves is as without a watch,
/// and it stops for each store to the watched bytes and for no other.
#[test]
fn stores_beside_watched_bytes_do_what_they_do_without_a_watch() {
    const PAGE: u64 = DATA + 0x3000;
    let guest = || {
        let mut g = Guest::program(|a| {
            let mut again = a.create_label();
            let mut called = a.create_label();
            let mut over = a.create_label();
            a.mov(rsp, PAGE + 0xc00).unwrap();
            a.mov(r10, PAGE + 0x100).unwrap();
            a.mov(rdi, PAGE + 0x200).unwrap();
            a.mov(ebx, 20).unwrap();
            a.set_label(&mut again).unwrap();
            a.mov(qword_ptr(r10 + 0x18), rbx).unwrap(); // the address's register is put aside for it
            a.add(qword_ptr(r10), rbx).unwrap();
            a.lock().xadd(qword_ptr(rdi), rbx).unwrap();
            a.mov(rbx, qword_ptr(rdi)).unwrap();
            a.mov(dword_ptr(rdi + 0x20), 7).unwrap(); // a group
            a.mov(rax, qword_ptr(rdi + 0x20)).unwrap();
            a.inc(byte_ptr(rdi + 0x2a)).unwrap();
            a.push(rbx).unwrap();
            a.push(qword_ptr(rdi)).unwrap();
            a.call(called).unwrap();
            a.pop(rcx).unwrap();
            a.pop(rdx).unwrap();
            a.movdqu(xmm1, xmmword_ptr(rdi)).unwrap();
            a.movdqu(xmmword_ptr(rdi + 0x31), xmm1).unwrap();
            a.mov(qword_ptr(r10 + rbx * 8 + 0x300), rbx).unwrap();
            a.mov(qword_ptr(rdi + 0x1000 - 0x204), rbx).unwrap(); // the end of it lies on the next page
            a.mov(rsi, qword_ptr(rdi + 0x1000 - 0x204)).unwrap();
            a.sub(rbx, 0).unwrap();
            a.mov(ebx, dword_ptr(rdi)).unwrap();
            a.cmp(ebx, 0x4000).unwrap();
            a.jb(again).unwrap();
            a.jmp(over).unwrap();
            a.set_label(&mut called).unwrap();
            a.mov(qword_ptr(rsp + -0x40), rbp).unwrap();
            a.ret().unwrap();
            a.set_label(&mut over).unwrap();
            a.hlt().unwrap();
        });
        assert!(g.board.ram.write_u64(GuestPhys(PAGE + 0x200), 1));
        g
    };
    let mut plain = guest();
    assert_eq!(plain.run(), Exit::Halted);
    let page = |g: &Guest| [PAGE, PAGE + 0x1000].map(|at| *g.board.ram.page_bytes(at as usize >> 12));
    // Nothing, the group's second store, the slot of the return address, a part of the vector.
    for (offset, hits_in_a_turn) in [(0x800, 0), (0x22a, 1), (0xbe8, 1), (0x238, 1), (0xffe, 1)] {
        let mut g = guest();
        let watch = Watch { start: GuestPhys(PAGE + offset), bytes: 1, reads: false, writes: true };
        g.cpu.set_watches(&mut g.board, vec![watch]);
        let mut hits = 0;
        while g.run() == Exit::Debugger {
            let (first, last) = g.cpu.take_watch_hits().unwrap();
            assert_eq!((first, first.phys), (last, watch.start));
            hits += 1;
        }
        let turns = plain.board.ram.page_bytes(PAGE as usize >> 12)[0x22a];
        assert_eq!(hits, hits_in_a_turn * u32::from(turns), "at {offset:#x}");
        assert_eq!(g.cpu.state().gpr, plain.cpu.state().gpr, "at {offset:#x}");
        assert_eq!(g.cpu.position(), plain.cpu.position());
        assert!(page(&g) == page(&plain), "at {offset:#x}");
    }
    assert!(crate::marks::count(crate::marks::Mark::BesideWatched) > 0);
}

/// Runs it translated, from Rust, and stopping at every position: the same must come out.
pub(super) fn every_way(guest: impl Fn() -> Guest) -> Guest {
    let mut runs = [(false, 1000), (true, 1000), (false, 1)].map(|(interpreted, step)| {
        let mut g = guest();
        g.cpu.set_interpret_all(interpreted);
        let mut limit = step;
        while g.run_to(limit) == Exit::Limit {
            limit += step;
            assert!(limit < 2000, "it does not halt");
        }
        g
    });
    let seen = |g: &Guest| {
        let memory: Vec<_> = (0..g.board.ram.pages()).map(|page| *g.board.ram.page_bytes(page)).collect();
        (g.cpu.state().gpr, g.cpu.state().rip, g.cpu.position(), g.cpu.state().rflags, memory)
    };
    assert!(seen(&runs[0]) == seen(&runs[1]), "from Rust");
    assert!(seen(&runs[0]) == seen(&runs[2]), "step by step");
    std::mem::replace(&mut runs[0], Guest::new(&[]))
}

#[test]
fn a_repeat_that_maps_other_code_in_its_place_is_over() {
    let g = every_way(|| {
        let mut g = Guest::program(|a| {
            a.rep().stosq().unwrap();
            a.hlt().unwrap();
        });
        assert!(g.board.ram.write(GuestPhys(DATA), &[0x90, 0xf4]));
        let s = g.cpu.state_mut();
        s.gpr[gpr::RAX] = DATA | 3 | 1 << 5 | 1 << 6;
        s.gpr[gpr::RCX] = 3;
        s.gpr[gpr::RDI] = TABLES + 0x3000 + 8 * (CODE >> 12);
        g
    });
    assert_eq!((g.reg(gpr::RCX), g.cpu.state().rip), (2, CODE + 2));
}

#[test]
fn a_repeat_that_overwrites_itself_is_over() {
    let g = every_way(|| {
        let mut g = Guest::program(|a| {
            a.rep().movsb().unwrap();
            a.hlt().unwrap();
        });
        assert!(g.board.ram.write(GuestPhys(DATA), &[0xf4; 3]));
        let s = g.cpu.state_mut();
        s.gpr[gpr::RCX] = 3;
        s.gpr[gpr::RSI] = DATA;
        s.gpr[gpr::RDI] = CODE;
        g
    });
    assert_eq!((g.reg(gpr::RCX), g.cpu.state().rip), (2, CODE + 1));
}

/// The second byte of ADD [RBX], AH is the lowest of the entry that leads to what it writes: its Dirty
/// bit would make it one of three bytes.
#[test]
fn an_instruction_is_what_it_was_before_it_set_a_dirty_bit_in_itself() {
    const TABLE: u64 = 0x9_1000;
    let g = every_way(|| {
        let mut g = Guest::new(&[]);
        let present = 3 | 1 << 5;
        let mut write = |at: u64, value: u64| assert!(g.board.ram.write_u64(GuestPhys(at), value));
        write(TABLES + 0x2008, TABLE + present);
        write(TABLE, DATA + present);
        write(TABLE + 8, 0xf4c0); // ADD AL, AL and HLT
        assert!(g.board.ram.write(GuestPhys(TABLE - 3), &[0x90, 0x90, 0x00]));
        // What it writes lies beside code, so Rust executes it.
        let mut a = CodeAssembler::new(64).unwrap();
        a.jmp(TABLE - 3).unwrap();
        assert!(g.board.ram.write(GuestPhys(DATA + 0x200), &a.assemble(DATA + 0x200).unwrap()));
        let s = g.cpu.state_mut();
        s.rip = DATA + 0x200;
        s.gpr[gpr::RAX] = DATA + 0x100;
        s.gpr[gpr::RBX] = 0x20_0000;
        g
    });
    assert_eq!(g.cpu.state().rip, TABLE + 10);
    assert_eq!(g.board.ram.read_u64(GuestPhys(TABLE)), Some(DATA | 3 | 1 << 5 | 1 << 6));
}

#[test]
fn a_store_to_an_entry_that_nothing_came_by_is_an_ordinary_one_and_the_next_is_heard() {
    const PAGE: u64 = 0x4_0000;
    let g = every_way(|| {
        let mut g = Guest::program(|a| {
            a.mov(qword_ptr(rdi), rax).unwrap();
            a.mov(rsi, qword_ptr(rbx)).unwrap();
            a.mov(qword_ptr(rdi), rdx).unwrap();
            a.mov(rbp, qword_ptr(rbx)).unwrap();
            a.hlt().unwrap();
        });
        let present = 3 | 1 << 5 | 1 << 6;
        assert!(
            g.board.ram.write_u64(GuestPhys(DATA), 1) && g.board.ram.write_u64(GuestPhys(DATA + 0x1000), 2)
        );
        let s = g.cpu.state_mut();
        s.gpr[gpr::RDI] = TABLES + 0x3000 + 8 * (PAGE >> 12);
        s.gpr[gpr::RBX] = PAGE;
        s.gpr[gpr::RAX] = DATA | present;
        s.gpr[gpr::RDX] = (DATA + 0x1000) | present;
        g
    });
    assert_eq!((g.reg(gpr::RSI), g.reg(gpr::RBP)), (1, 2));
    assert!(crate::marks::count(crate::marks::Mark::TableWrittenInVain) > 0);
}

/// RSP cannot be an index, so where bases of segments are added it matters which register is which.
#[test]
fn the_base_of_a_segment_is_added_to_every_register_and_displacement() {
    const FS_BASE: u64 = 0x1000;
    // mov rax, fs:[register + displacement]; hlt
    for (register, short) in (0..16u64).flat_map(|r| [(r, true), (r, false)]) {
        let mut code = vec![0x64, 0x48 | (register >> 3) as u8, 0x8b];
        code.push(if short { 0x40 } else { 0x80 } | (register & 7) as u8);
        if register & 7 == 4 {
            code.push(0x24);
        }
        let displacement = if short { -8i32 } else { 0x730 };
        code.extend(if short { vec![0xf8] } else { displacement.to_le_bytes().to_vec() });
        code.push(0xf4);
        let mut g = Guest::new(&code);
        let at = DATA + 0x100 * register + 0x20;
        assert!(g.board.ram.write_u64(GuestPhys(at), 0x1122_3344_5566_7700 + register));
        let s = g.cpu.state_mut();
        s.seg[4].base = FS_BASE;
        s.gpr[register as usize] = at.wrapping_sub(FS_BASE).wrapping_add_signed(-i64::from(displacement));
        assert_eq!(g.run(), Exit::Halted);
        assert_eq!(g.reg(gpr::RAX), 0x1122_3344_5566_7700 + register, "register {register}, {displacement}");
    }
}

#[test]
fn constant_addresses_are_on_their_page_or_across_its_end() {
    // mov rax, [address]; mov [address], rbx; mov rcx, [address], without a register and with the
    // base of FS.
    const FS: &[u8] = &[0x64];
    for (prefix, address, fs_base) in [
        (&[][..], DATA + 8, 0),
        (&[], DATA + 0xff8, 0),
        (&[], DATA + 0xffc, 0),
        (FS, DATA + 0xffc, 0),
        (FS, 8, DATA),
        (FS, u64::MAX - 7, DATA + 0x1000),
        (FS, u64::MAX - 3, DATA + 0x1000),
    ] {
        let access = |opcode: u8, register: u8| {
            let displacement = (address as u32).to_le_bytes();
            [prefix, &[0x48, opcode, 4 | register << 3, 0x25], &displacement].concat()
        };
        let code = [access(0x8b, 0), access(0x89, 3), access(0x8b, 1), vec![0xf4]].concat();
        let linear = address.wrapping_add(fs_base);
        let mut g = Guest::new(&code);
        assert!(g.board.ram.write_u64(GuestPhys(linear), 0x0102_0304_0506_0708));
        let s = g.cpu.state_mut();
        s.seg[4].base = fs_base;
        s.gpr[gpr::RBX] = 0x1112_1314_1516_1718;
        assert_eq!(g.run(), Exit::Halted);
        let seen = (g.reg(gpr::RAX), g.reg(gpr::RCX));
        assert_eq!(seen, (0x0102_0304_0506_0708, 0x1112_1314_1516_1718), "{address:#x}");
    }
}
