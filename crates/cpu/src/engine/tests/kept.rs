//! Blocks that an earlier run has kept, beside the same executed from Rust.

use super::mirrored::{FREE, map, mirrored, program};
use super::moves::{FAR, PAGES, code};
use super::*;
use crate::engine::blocks::BlockId;
use crate::engine::mirror::CHUNK;
use crate::marks::{Mark, count};

/// A guest whose translations are kept, and compared when they come back.
fn keeping(mut guest: Guest) -> Guest {
    // The folder's nameless file remains.
    let folder = tempfile::tempdir().unwrap();
    guest.cpu.keep_translations(folder.path()).unwrap();
    guest.cpu.compare_kept();
    guest
}

fn map_at(guest: &mut Guest, addresses: &[u64]) {
    let mut free = FREE;
    for &virt in addresses {
        (0..PAGES).for_each(|n| map(guest, virt + n * 0x1000, CODE + n * 0x1000, &mut free));
    }
}

/// Executes 1000 instructions at an address, with nothing translated before; what is left then.
fn start_at(guest: &mut Guest, virt: u64) -> impl PartialEq + std::fmt::Debug + use<> {
    guest.cpu.drop_caches(&mut guest.board);
    let state = guest.cpu.state_mut();
    (state.rip, state.gpr[gpr::RSP]) = (virt, STACK);
    let end = guest.cpu.position().count() + 1000;
    assert_eq!(guest.run_to(end), Exit::Limit);
    let state = guest.cpu.state();
    let data = guest.board.ram.read_u64(GuestPhys(CODE + 4096 + 0x100)).unwrap();
    (state.gpr, state.rip, state.rflags, state.cr2, data)
}

/// What [`start_at`] has left at each address in turn.
fn starts(guest: &mut Guest, addresses: &[u64]) -> Vec<impl PartialEq + std::fmt::Debug + use<>> {
    addresses.iter().map(|virt| start_at(guest, *virt)).collect()
}

fn interpreted(build: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let mut guest = program(build);
    guest.cpu.set_interpret_all(true);
    guest
}

#[test]
fn what_has_been_kept_is_not_translated_again_wherever_it_is() {
    let addresses = [FAR[0], FAR[0], FAR[3], FAR[1], FAR[0]];
    // One guest after the other: each may take the one mirror.
    let expected = {
        let mut guest = interpreted(code);
        map_at(&mut guest, &FAR);
        starts(&mut guest, &addresses)
    };
    for make in [|| program(code), || mirrored(code)] {
        let mut guest = keeping(make());
        map_at(&mut guest, &FAR);
        assert_eq!(starts(&mut guest, &addresses[..1]), expected[..1]);
        let translated = guest.cpu.statistics.blocks_translated;
        assert!(translated > 3 && guest.cpu.statistics.blocks_kept == 0);
        assert_eq!(starts(&mut guest, &addresses[1..]), expected[1..]);
        let now = guest.cpu.statistics;
        // Those for an exact stop are not kept.
        let again = now.blocks_translated - translated;
        assert!(now.blocks_kept >= 4 * 4 && again <= 4 * 2, "{translated}, {again}, {}", now.blocks_kept);
    }
    assert!(count(Mark::BlockKept) > 0);
}

#[test]
fn code_that_has_changed_is_translated() {
    let run = |mut guest: Guest| {
        map_at(&mut guest, &FAR);
        let mut ends = Vec::new();
        for immediate in [3, 5, 3, 5] {
            assert!(guest.board.ram.write(GuestPhys(CODE + 2), &[immediate]));
            ends.extend(starts(&mut guest, &FAR[..1]));
        }
        (ends, guest.cpu.statistics.blocks_kept)
    };
    let (expected, _) = run(interpreted(code));
    let (ends, kept) = run(keeping(program(code)));
    assert_eq!(ends, expected);
    assert!(kept > 0);
}

/// The kernel's code has its own address in it.
#[test]
fn what_is_for_one_address_is_not_taken_for_another() {
    let build = |a: &mut CodeAssembler| {
        let [mut top, mut callee] = std::array::from_fn(|_| a.create_label());
        a.set_label(&mut top).unwrap();
        a.call(callee).unwrap();
        a.add(r14, rdx).unwrap();
        a.jmp(top).unwrap();
        a.set_label(&mut callee).unwrap();
        a.mov(rdx, qword_ptr(rsp)).unwrap();
        a.ret().unwrap();
    };
    let places = [CODE, CODE + (1 << 21), CODE];
    let run = |mut guest: Guest| {
        let mut free = FREE;
        map(&mut guest, places[1], CODE, &mut free);
        (starts(&mut guest, &places), guest.cpu.statistics)
    };
    let mut expected = Guest::program(build);
    expected.cpu.set_interpret_all(true);
    let (expected, _) = run(expected);
    let (ends, statistics) = run(keeping(Guest::program(build)));
    assert_eq!(ends, expected);
    assert!(statistics.blocks_kept > 0, "at the first address again");
}

/// What the mirror granted when the code was translated it need not grant again, nor for another address.
#[test]
fn mirrored_code_asks_again_for_the_memory_it_accesses() {
    const AWAY: u64 = CHUNK + 0x123_4000;
    const FRAME: u64 = CODE + 0x8_0000;
    let build = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        // add rax, [rip + …]: seven bytes.
        a.db(&[0x48, 0x03, 0x05]).unwrap();
        a.db(&(AWAY as u32 - 7).to_le_bytes()).unwrap();
        a.jmp(top).unwrap();
    };
    let mut guest = keeping(mirrored(build));
    let places = [FAR[0], FAR[3]];
    map_at(&mut guest, &places);
    let mut free = FREE + 0x8_0000;
    places.iter().for_each(|virt| map(&mut guest, virt + AWAY, FRAME, &mut free));
    assert!(guest.board.ram.write_u64(GuestPhys(FRAME), 3));
    start_at(&mut guest, FAR[0]);
    assert!(guest.cpu.tlb.mirror.has(FAR[0] + AWAY), "accessed where it is");
    start_at(&mut guest, FAR[0]);
    assert!(guest.cpu.statistics.blocks_kept > 0);
    guest.cpu.drop_caches(&mut guest.board);
    guest.cpu.tlb.mirror.release();
    guest.cpu.hot().stack_at = crate::engine::stack::NOWHERE;
    for virt in places {
        // SAFETY: asks for a page that nothing is at, which belongs to this test then.
        let ours = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap((virt + AWAY) as *mut libc::c_void, 4096, rights, flags, -1, 0)
        };
        assert_eq!(ours as u64, virt + AWAY);
        guest.cpu.state_mut().gpr[gpr::RAX] = 0;
        start_at(&mut guest, virt);
        assert_eq!(guest.reg(gpr::RAX), 500 * 3, "the guest's, not ours");
        // SAFETY: what has just been mapped.
        unsafe { libc::munmap(ours, 4096) };
    }
}

#[test]
fn instructions_that_are_to_be_checked_now_are_translated() {
    let mut guest = keeping(mirrored(code));
    map_at(&mut guest, &FAR);
    start_at(&mut guest, FAR[0]);
    start_at(&mut guest, FAR[0]);
    let before = guest.cpu.statistics;
    guest.cpu.mirroring.checked.insert(FAR[0]);
    start_at(&mut guest, FAR[0]);
    let after = guest.cpu.statistics;
    assert_eq!(after.blocks_kept - before.blocks_kept, before.blocks_kept - 1, "all but that one");
    assert!(after.blocks_translated > before.blocks_translated);
}

/// A block ends before the next breakpoint, wherever it was kept without.
#[test]
fn a_debugger_s_breakpoints_stop_in_code_that_has_been_kept() {
    let mut guest = keeping(program(code));
    map_at(&mut guest, &FAR[..1]);
    start_at(&mut guest, FAR[0]);
    start_at(&mut guest, FAR[0]);
    let kept = guest.cpu.statistics.blocks_kept;
    let blocks = &guest.cpu.blocks;
    let first = blocks.list.iter().position(|b| b.live && b.count > 1 && b.key.virt == FAR[0]).unwrap();
    let at = blocks.virt_of(BlockId(first as u32), 1);
    guest.cpu.drop_caches(&mut guest.board);
    guest.cpu.set_breakpoints(&[at].into());
    guest.cpu.state_mut().rip = FAR[0];
    let end = guest.cpu.position().count() + 1000;
    assert_eq!(guest.run_to(end), Exit::Debugger);
    assert_eq!(guest.cpu.state().rip, at);
    assert_eq!(guest.cpu.statistics.blocks_kept, kept);
    // Nor is what ends there kept for others.
    guest.cpu.set_breakpoints(&[].into());
    guest.cpu.drop_caches(&mut guest.board);
    guest.cpu.state_mut().rip = FAR[0];
    let end = guest.cpu.position().count() + 1000;
    assert_eq!(guest.run_to(end), Exit::Limit);
    let whole = guest.cpu.blocks.list.iter().find(|b| b.live && b.key.virt == FAR[0]).unwrap();
    assert!(whole.count > 1);
}
