//! Repeated string instructions that go over several pages, beside the same executed from Rust.

use super::*;

/// From where to where, how many bytes: overlapping, of one page and of many, to pages that hold code or are not
/// there.
const CASES: [(u64, u64, u64); 8] = [
    (DATA + 0x800, DATA + 0x5010, 0x1000),
    (DATA + 3, DATA + 0x5ffd, 0x4567),
    (DATA, DATA + 1, 0x3003),
    (DATA + 0xfff, DATA + 0x10_ffff, 2),
    (DATA + 5, CODE - 0xff9, 0xff0),
    (DATA + 5, CODE - 0xff9, 0x1800),
    (0x1f_e123, DATA + 0x700, 0x2000),
    (DATA + 0x20, 0x1f_f800, 0x1000),
];

#[test]
fn bytes_go_from_page_to_page_and_stop_where_they_have_to() {
    let build = |a: &mut CodeAssembler| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.mov(rsi, r8).unwrap();
        a.mov(rdi, r9).unwrap();
        a.mov(rcx, r10).unwrap();
        a.add(al, 0x51).unwrap();
        a.rep().movsb().unwrap();
        a.mov(rdi, r9).unwrap();
        a.mov(rcx, r11).unwrap();
        a.rep().stosb().unwrap();
        a.jmp(top).unwrap();
    };
    for (from, to, bytes) in CASES {
        let mut guests = [true, false].map(|translated| {
            let mut guest = Guest::program(build);
            guest.cpu.set_interpret_all(!translated);
            for at in 0..0x8000 {
                assert!(guest.board.ram.write(GuestPhys(DATA + at), &[((at * 7) >> 3) as u8]));
            }
            let gpr = &mut guest.cpu.state_mut().gpr;
            (gpr[gpr::R8], gpr[gpr::R9]) = (from, to);
            (gpr[gpr::R10], gpr[gpr::R11]) = (bytes, bytes.min(0x1234));
            guest
        });
        for stop in [3, 5, 900, 4099, 4105, 12_345, 12_346, 60_000, 60_001, 64_096, 90_000] {
            let [mut ours, mut theirs] = guests.each_mut().map(|guest| {
                let exit = guest.run_to(stop);
                let state = guest.cpu.state();
                let memory: Vec<_> = (0..0x400).map(|page| *guest.board.ram.page_bytes(page)).collect();
                (exit, state.gpr, state.rip, state.rflags, state.cr2, state.retired, memory)
            });
            let same_memory = std::mem::take(&mut ours.6) == std::mem::take(&mut theirs.6);
            assert!(
                same_memory && ours == theirs,
                "{from:#x} to {to:#x}, {bytes:#x}, at {stop}: {ours:x?} {theirs:x?}"
            );
        }
    }
}
