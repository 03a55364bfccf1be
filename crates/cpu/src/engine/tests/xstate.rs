//! XSAVEC and XRSTOR that stay in translated code, where they do not, and that it makes no difference.

use super::found::{catch, every_way};
use super::*;

/// Where the vector registers come from: 16 times 32 bytes.
const VALUES: u64 = DATA;
const MXCSR: u64 = DATA + 0x3f0;
/// Areas, each with old bytes in it but for its header.
const AREA: u64 = DATA + 0x400;
const SECOND: u64 = DATA + 0x800;
const AREA_END: u64 = 832;
const OLD: u64 = u64::from_ne_bytes([0xa5; 8]);

/// A guest whose RSI, RDI and RBX have the addresses of values and areas, and EDX:EAX all components.
fn guest(values: &[u8; 512], build: impl FnOnce(&mut CodeAssembler)) -> Guest {
    let mut g = Guest::program(|a| {
        a.fninit().unwrap();
        build(a);
    });
    assert!(g.board.ram.write(GuestPhys(VALUES), values));
    assert!(g.board.ram.write(GuestPhys(AREA), &[0xa5; 0x800]));
    for area in [AREA, SECOND] {
        assert!(g.board.ram.write(GuestPhys(area + 512), &[0; 64]));
    }
    let s = g.cpu.state_mut();
    (s.gpr[gpr::RSI], s.gpr[gpr::RDI], s.gpr[gpr::RBX]) = (VALUES, AREA, SECOND);
    (s.gpr[gpr::RAX], s.gpr[gpr::RDX]) = (u64::MAX, u64::MAX);
    g
}

fn load_vectors(a: &mut CodeAssembler) {
    let registers = [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
    ];
    for (n, register) in registers.into_iter().enumerate() {
        a.vmovdqu(register, ymmword_ptr(rsi + 32 * n)).unwrap();
    }
}

/// `vectors` goes to an area, something else to the registers, and the area back; then all of it is saved again.
fn there_and_back(a: &mut CodeAssembler) {
    load_vectors(a);
    a.stc().unwrap();
    a.xsavec64(ptr(rdi)).unwrap();
    a.setc(cl).unwrap();
    a.vpcmpeqd(ymm3, ymm3, ymm3).unwrap();
    a.vmovaps(ymm15, ymm3).unwrap();
    a.stmxcsr(dword_ptr(MXCSR)).unwrap();
    a.xor(dword_ptr(MXCSR), 0x6000).unwrap();
    a.ldmxcsr(dword_ptr(MXCSR)).unwrap();
    a.stc().unwrap();
    a.xrstor64(ptr(rdi)).unwrap();
    a.setc(ch).unwrap();
    a.stmxcsr(dword_ptr(MXCSR)).unwrap();
    a.xsavec64(ptr(rbx)).unwrap();
    a.hlt().unwrap();
}

fn area(g: &Guest, at: u64) -> [u8; AREA_END as usize] {
    g.board.ram.read_array(GuestPhys(at)).unwrap()
}

fn word(area: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(area[at..at + 8].try_into().unwrap())
}

/// How many instructions Rust has executed for blocks.
fn from_rust(g: &Guest) -> u64 {
    g.cpu.statistics.interpreted
}

#[test]
fn what_is_in_use_is_saved_and_comes_back() {
    // By the halves of the registers that have bits set: none, lower, upper, both; in one register or in all.
    let patterns: [(u64, &[usize]); 7] = [
        (0, &[]),
        (2, &[0]),
        (2, &[15 * 32 + 8]),
        (4, &[16]),
        (4, &[15 * 32 + 31]),
        (6, &[7, 3 * 32 + 20]),
        (6, &[]),
    ];
    for (in_use, bytes) in patterns {
        let mut values = [0; 512];
        bytes.iter().for_each(|&at| values[at] = 0x80);
        if in_use == 6 && bytes.is_empty() {
            values = std::array::from_fn(|n| n as u8 | 1);
        }
        let g = every_way(|| guest(&values, there_and_back));
        assert_eq!(g.reg(gpr::RCX), 0x101);
        let [first, second] = [AREA, SECOND].map(|at| area(&g, at));
        assert!(first == second);
        assert_eq!([512, 520].map(|at| word(&first, at)), [in_use, 1 << 63 | 7]);
        for n in 0..16 {
            let saved = [&first[160 + 16 * n..][..16], &first[576 + 16 * n..][..16]];
            for (half, component) in [2, 4].into_iter().enumerate() {
                let old: &[u8] = &[0xa5; 16];
                let value = &values[32 * n + 16 * half..][..16];
                assert_eq!(saved[half], if in_use & component != 0 { value } else { old });
            }
        }
        let mxcsr = g.board.ram.read_array(GuestPhys(MXCSR)).map(u32::from_le_bytes);
        assert_eq!(mxcsr, Some(0x1f80));
        // What is not in use is not written, nor is what belongs to software.
        let untouched = if in_use & 2 != 0 { 0xffff_0000_1f80 } else { OLD };
        assert_eq!([0, 24, 416].map(|at| word(&first, at)), [OLD, untouched, OLD]);
    }
}

#[test]
fn once_their_page_is_known_rust_has_no_part_in_them() {
    let g = |rounds: u32| {
        let mut g = guest(&[1; 512], |a| {
            load_vectors(a);
            let mut again = a.create_label();
            a.mov(ecx, rounds).unwrap();
            a.set_label(&mut again).unwrap();
            a.mov(eax, -1).unwrap();
            a.xsavec64(ptr(rdi)).unwrap();
            a.xrstor64(ptr(rdi)).unwrap();
            a.dec(ecx).unwrap();
            a.jnz(again).unwrap();
            a.hlt().unwrap();
        });
        assert_eq!(g.run(), Exit::Halted);
        from_rust(&g)
    };
    assert_eq!(g(1000), g(10));
}

#[test]
fn an_operand_on_two_pages_is_one_in_ram_or_not() {
    // The page behind DATA's follows in RAM; then another stands there.
    for follows in [true, false] {
        let g = every_way(|| {
            let mut g = guest(&[3; 512], |a| {
                a.mov(rdi, DATA + 0x1000 - 0x200).unwrap();
                there_and_back(a);
            });
            if !follows {
                let entry = TABLES + 0x3000 + 8 * ((DATA >> 12) + 1);
                assert!(g.board.ram.write_u64(GuestPhys(entry), (DATA + 0x3000) | 3 | 1 << 5 | 1 << 6));
            }
            let second = if follows { DATA + 0x1000 } else { DATA + 0x3000 };
            assert!(g.board.ram.write(GuestPhys(second), &[0; 64]));
            g
        });
        let second = if follows { DATA + 0x1000 } else { DATA + 0x3000 };
        assert_eq!(g.board.ram.read_u64(GuestPhys(second)), Some(6));
        assert!(area(&g, SECOND)[160..416].iter().all(|&byte| byte == 3));
    }
}

#[test]
fn what_is_not_common_is_left_to_rust() {
    // x87 in use, by its control word, by a register, by the status word, and by tags alone.
    let x87: [fn(&mut CodeAssembler); 4] = [
        |a| {
            a.mov(dword_ptr(MXCSR), 0x27f).unwrap();
            a.fldcw(word_ptr(MXCSR)).unwrap();
        },
        |a| {
            a.fldpi().unwrap();
            a.fstp(st0).unwrap();
        },
        |a| a.fincstp().unwrap(),
        |a| a.fldz().unwrap(),
    ];
    for build in x87 {
        let g = every_way(|| {
            guest(&[0; 512], |a| {
                build(a);
                there_and_back(a);
            })
        });
        let [first, second] = [AREA, SECOND].map(|at| area(&g, at));
        assert_eq!(word(&first, 512), 1);
        assert!(first == second);
    }
    // Fewer components; MXCSR alone.
    let g = every_way(|| {
        guest(&[9; 512], |a| {
            a.mov(eax, 3).unwrap();
            there_and_back(a);
        })
    });
    assert_eq!([512, 520].map(|at| word(&area(&g, AREA), at)), [2, 1 << 63 | 3]);
    let g = every_way(|| {
        guest(&[0; 512], |a| {
            a.mov(dword_ptr(MXCSR), 0x1f00).unwrap();
            a.ldmxcsr(dword_ptr(MXCSR)).unwrap();
            there_and_back(a);
        })
    });
    let first = area(&g, AREA);
    assert_eq!([512, 24].map(|at| word(&first, at)), [2, 0xffff_0000_1f00]);
    assert!(first == area(&g, SECOND));
}

#[test]
fn x87_is_initialized_and_kept_by_what_is_restored() {
    let g = every_way(|| {
        guest(&[5; 512], |a| {
            load_vectors(a);
            a.xsavec64(ptr(rdi)).unwrap();
            a.fldpi().unwrap();
            a.mov(dword_ptr(MXCSR), 0x27f).unwrap();
            a.fldcw(word_ptr(MXCSR)).unwrap();
            a.xsavec64(ptr(rbx)).unwrap();
            // x87 is in its initial configuration there.
            a.xrstor64(ptr(rdi)).unwrap();
            a.fxsave64(ptr(rdi)).unwrap();
            // And here it is not.
            a.vzeroall().unwrap();
            a.xrstor64(ptr(rbx)).unwrap();
            a.fxsave64(ptr(rbx)).unwrap();
            a.hlt().unwrap();
        })
    });
    let [initial, used] = [AREA, SECOND].map(|at| area(&g, at));
    assert_eq!([0, 32, 40].map(|at| word(&initial, at)), [0x37f, 0, 0]);
    assert_eq!([0, 32].map(|at| word(&used, at)), [0x80_3800_027f, 0xc90f_daa2_2168_c235]);
    assert!(used[160..416] == [5; 256] && initial[160..416] == [5; 256]);
}

#[test]
fn areas_that_fault_change_nothing() {
    type Change = fn(&mut Guest);
    let changes: [Change; 6] = [
        // MXCSR's reserved bits, reserved bytes of the header, unknown components, a layout without XMM, or with more.
        |g| assert!(g.board.ram.write(GuestPhys(AREA + 26), &[1])),
        |g| assert!(g.board.ram.write(GuestPhys(AREA + 575), &[1])),
        |g| assert!(g.board.ram.write(GuestPhys(AREA + 519), &[1])),
        |g| assert!(g.board.ram.write(GuestPhys(AREA + 520), &[5])),
        |g| assert!(g.board.ram.write(GuestPhys(AREA + 520), &[15])),
        // An address between the multiples of 64.
        |g| g.cpu.state_mut().gpr[gpr::RDI] += 32,
    ];
    for change in changes {
        let g = every_way(|| {
            let mut g = guest(&[7; 512], |a| {
                load_vectors(a);
                a.xrstor64(ptr(rdi)).unwrap();
            });
            let mut header = [0; 64];
            header[..16].copy_from_slice(&[6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0x80]);
            assert!(g.board.ram.write(GuestPhys(AREA), &[0; 512]));
            assert!(g.board.ram.write(GuestPhys(AREA + 512), &header));
            change(&mut g);
            catch(&mut g, 13);
            g
        });
        assert_eq!(g.cpu.state().rip, STACK + 1);
        assert!(g.cpu.state().fpu.ymm.iter().all(|ymm| *ymm == [7; 32]));
    }
}
