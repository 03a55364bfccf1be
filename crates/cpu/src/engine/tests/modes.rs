//! Real mode, 16- and 32-bit protected mode, and the ways between them and long mode.

use super::*;
use crate::Activity;
use x86::{SegmentIndex, flags};

/// Where an application processor begins: page 8.
const TRAMPOLINE: u64 = 0x8000;
/// Descriptors: null, 32-bit code, flat data, 64-bit code, 16-bit code, 16-bit data.
const GDT: u64 = 0x6000;
const CODE32: u16 = 0x08;
const DATA32: u16 = 0x10;
const CODE64: u16 = 0x18;
const CODE16: u16 = 0x20;
const DATA16: u16 = 0x28;

/// Machine code of `bits` width at `at`.
fn assemble(bits: u32, at: u64, build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).unwrap();
    build(&mut a);
    a.assemble(at).unwrap()
}

/// `lgdt [disp16]` with a 32-bit base, in 16-bit code.
fn lgdtl(a: &mut CodeAssembler, at: u16) {
    a.db(&[0x66, 0x0f, 0x01, 0x16, at as u8, (at >> 8) as u8]).unwrap();
}

/// `ljmp selector:offset` with a 32-bit offset, in 16-bit code.
fn far_jump_32(a: &mut CodeAssembler, selector: u16, offset: u32) {
    let o = offset.to_le_bytes();
    let s = selector.to_le_bytes();
    a.db(&[0x66, 0xea, o[0], o[1], o[2], o[3], s[0], s[1]]).unwrap();
}

/// A processor in real mode at 0:`CODE16_AT` with a stack below 0x7000, and the GDT above in memory
/// with its pseudo-descriptor at 0x5ff8.
fn real(code: &[u8]) -> Guest {
    let mut g = Guest::new(&[]);
    let gdt: [u64; 6] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00af_9b00_0000_ffff,
        0x0000_9b00_0000_ffff,
        0x0000_9300_0000_ffff,
    ];
    for (i, entry) in gdt.iter().enumerate() {
        assert!(g.board.ram.write_u64(GuestPhys(GDT + 8 * i as u64), *entry));
    }
    put(&mut g, 0x5ff8, &[47, 0, 0, 0x60, 0, 0]);
    put(&mut g, TRAMPOLINE, code);
    let s = g.cpu.state_mut();
    *s = CpuState::power_on_waiting(1);
    s.start_up((TRAMPOLINE >> 12) as u8);
    s.gpr[gpr::RSP] = 0x7000;
    g
}

fn real_program(build: impl FnOnce(&mut CodeAssembler)) -> Guest {
    real(&assemble(16, 0, build))
}

fn put(g: &mut Guest, at: u64, bytes: &[u8]) {
    assert!(g.board.ram.write(GuestPhys(at), bytes));
}

fn get<const N: usize>(g: &Guest, at: u64) -> [u8; N] {
    g.board.ram.read_array(GuestPhys(at)).unwrap()
}

fn word(g: &Guest, at: u64) -> u16 {
    u16::from_le_bytes(get(g, at))
}

/// A real-mode interrupt vector: to `segment:offset`.
fn vector(g: &mut Guest, number: u64, segment: u16, offset: u16) {
    let pointer = (segment as u32) << 16 | offset as u32;
    put(g, 4 * number, &pointer.to_le_bytes());
}

#[test]
fn an_application_processor_walks_from_its_start_up_message_to_long_mode() {
    let real_part = assemble(16, 0, |a| {
        a.cli().unwrap();
        a.mov(ax, cs).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x800u32).unwrap();
        // A subroutine in 16-bit code with 32-bit operands, as a trampoline's processor check has.
        let mut check = a.create_label();
        let mut go = a.create_label();
        a.call(check).unwrap();
        a.jmp(go).unwrap();
        a.set_label(&mut check).unwrap();
        a.pushfd().unwrap();
        a.pop(eax).unwrap();
        a.mov(ebx, eax).unwrap();
        a.xor(eax, 0x20_0000).unwrap(); // ID
        a.push(eax).unwrap();
        a.popfd().unwrap();
        a.pushfd().unwrap();
        a.pop(eax).unwrap();
        a.xor(eax, ebx).unwrap();
        a.mov(dword_ptr(0x400), eax).unwrap();
        a.ret().unwrap();
        a.set_label(&mut go).unwrap();
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        lgdtl(a, 0x5ff8);
        a.mov(eax, cr0).unwrap();
        a.or(al, 1).unwrap();
        a.db(&[0x0f, 0x01, 0xf0]).unwrap(); // lmsw ax
        far_jump_32(a, CODE32, 0x9000);
    });
    let protected_part = assemble(32, 0x9000, |a| {
        a.mov(eax, DATA32 as u32).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(es, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(esp, STACK as u32).unwrap();
        a.mov(eax, cr4).unwrap();
        a.or(eax, cr4::PAE as u32).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, TABLES as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(ecx, 0xc000_0080u32).unwrap();
        a.rdmsr().unwrap();
        a.or(eax, efer::LME as u32).unwrap();
        a.wrmsr().unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, cr0::PG as u32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.push(CODE64 as u32).unwrap();
        a.push(0xa000).unwrap();
        a.db(&[0xcb]).unwrap(); // far return
    });
    let long_part = assemble(64, 0xa000, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64).unwrap();
        a.mov(qword_ptr(DATA), rax).unwrap();
        a.mov(r8, cr0).unwrap();
        a.hlt().unwrap();
    });
    for singly in [false, true] {
        let mut g = real(&real_part);
        put(&mut g, 0x9000, &protected_part);
        put(&mut g, 0xa000, &long_part);
        g.cpu.set_interpret_all(singly);
        assert_eq!(g.run(), Exit::Halted);
        let s = g.cpu.state();
        assert_eq!(s.activity, Activity::Halted);
        assert!(s.code64());
        assert_eq!(g.board.ram.read_u64(GuestPhys(DATA)), Some(0x1122_3344_5566_7788));
        assert_eq!(get(&g, TRAMPOLINE + 0x400), 0x20_0000u32.to_le_bytes(), "the ID flag can be changed");
        assert_eq!(s.gpr[8], cr0::PG | cr0::PE | cr0::ET | cr0::CD | cr0::NW);
        assert_eq!(s.retired, 49, "every instruction counts once, whichever mode it is in");
    }
}

#[test]
fn an_interrupt_in_real_mode_pushes_flags_and_far_address_and_iret_returns() {
    let mut g = real_program(|a| {
        a.xor(ax, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x7000u32).unwrap();
        a.stc().unwrap();
        a.sti().unwrap();
        a.int(0x21).unwrap();
        a.mov(bx, 0x1234u32).unwrap();
        a.hlt().unwrap();
    });
    vector(&mut g, 0x21, 0x900, 0x10);
    let handler = assemble(16, 0x10, |a| {
        a.pushf().unwrap();
        a.pop(dx).unwrap();
        a.mov(bp, sp).unwrap();
        a.mov(cx, word_ptr(bp + 4)).unwrap(); // flags as pushed
        a.iret().unwrap();
    });
    put(&mut g, 0x9010, &handler);
    assert_eq!(g.run(), Exit::Halted);
    let s = g.cpu.state();
    assert_eq!(s.gpr[gpr::RBX] as u16, 0x1234);
    assert_eq!(s.gpr[gpr::RCX] as u16 & 0x201, 0x201, "pushed with CF and IF");
    assert_eq!(s.gpr[gpr::RDX] as u16 & 0x200, 0, "the handler runs with interrupts off");
    assert_eq!(s.rflags & (flags::IF | flags::CF), flags::IF | flags::CF);
    assert_eq!(word(&g, 0x6ffc), 0x800, "CS");
    assert_eq!(s.gpr[gpr::RSP] & 0xffff, 0x7000);
}

#[test]
fn exceptions_in_real_mode_push_no_error_code() {
    // A word at offset 0xffff goes beyond the limit: #GP.
    let mut g = real_program(|a| {
        a.xor(ax, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(bx, 0xffffu32).unwrap();
        a.mov(ax, word_ptr(bx)).unwrap();
    });
    vector(&mut g, 13, 0x900, 0);
    put(&mut g, 0x9000, &[0xf4]);
    assert_eq!(g.run(), Exit::Halted);
    let s = g.cpu.state();
    assert_eq!((s.seg[1].base, s.rip), (0x9000, 1));
    assert_eq!(s.gpr[gpr::RSP] & 0xffff, 0x7000 - 6);
    assert_eq!((word(&g, 0x6ffa), word(&g, 0x6ffc)), (7, 0x800), "the faulting instruction");
    assert_eq!(s.retired, 4, "three instructions and HLT");
}

#[test]
fn a_division_by_zero_in_real_mode_goes_through_vector_zero() {
    let mut g = real_program(|a| {
        a.mov(ax, 7u32).unwrap();
        a.xor(cx, cx).unwrap();
        a.div(cl).unwrap();
    });
    vector(&mut g, 0, 0x900, 0);
    put(&mut g, 0x9000, &[0xf4]);
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(word(&g, 0x6ffa), 5);
}

#[test]
fn a_vector_beyond_the_interrupt_table_shuts_the_processor_down() {
    let mut g = real_program(|a| {
        a.int(0x20).unwrap();
    });
    g.cpu.state_mut().idtr.limit = 0x10;
    assert_eq!(g.run(), Exit::Shutdown);
    assert_eq!(g.cpu.state().retired, 0);
}

#[test]
fn code_that_runs_off_the_end_of_its_segment_faults() {
    let mut g = real_program(|a| {
        a.db(&[0xea, 0xfe, 0xff, 0x00, 0x10]).unwrap(); // ljmp 0x1000:0xfffe
    });
    put(&mut g, 0x1_fffe, &[0x90, 0x90]);
    vector(&mut g, 13, 0x900, 0);
    put(&mut g, 0x9000, &[0xf4]);
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(word(&g, 0x6ffc), 0x1000);
    assert_eq!(word(&g, 0x6ffa), 0, "IP as far as it fits");
    assert_eq!(g.cpu.state().retired, 4);

    // An instruction whose last byte lies beyond does not run either.
    let mut g = real_program(|a| {
        a.db(&[0xea, 0xfe, 0xff, 0x00, 0x10]).unwrap();
    });
    put(&mut g, 0x1_fffe, &[0xb8, 0x01, 0x00]);
    vector(&mut g, 13, 0x900, 0);
    put(&mut g, 0x9000, &[0xf4]);
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(word(&g, 0x6ffa), 0xfffe);
}

#[test]
fn limits_loaded_in_protected_mode_stay_in_real_mode() {
    let mut g = real_program(|a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        lgdtl(a, 0x5ff8);
        a.mov(eax, cr0).unwrap();
        a.inc(ax).unwrap();
        a.mov(cr0, eax).unwrap();
        a.mov(bx, DATA32 as u32).unwrap();
        a.mov(ds, bx).unwrap();
        a.mov(es, bx).unwrap();
        a.dec(ax).unwrap();
        a.mov(cr0, eax).unwrap();
        a.xor(bx, bx).unwrap();
        a.mov(ds, bx).unwrap();
        a.mov(edi, 0x12_3450u32).unwrap();
        a.mov(dword_ptr(edi), 0x5566_7788u32).unwrap();
        a.mov(ecx, 0x2_0000u32).unwrap();
        a.mov(al, 0x5a).unwrap();
        a.xor(bx, bx).unwrap();
        a.mov(es, bx).unwrap();
        a.mov(edi, 0x20_0000u32).unwrap();
        a.db(&[0x67, 0xf3, 0xaa]).unwrap(); // rep stosb, 32-bit addresses
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted);
    let s = g.cpu.state();
    assert_eq!(s.cr0 & cr0::PE, 0);
    assert_eq!(s.seg[SegmentIndex::Ds as usize].limit, u32::MAX);
    assert_eq!(get(&g, 0x12_3450), 0x5566_7788u32.to_le_bytes());
    assert_eq!(get(&g, 0x21_ffff), [0x5a]);
    assert_eq!(s.gpr[gpr::RCX], 0);
    assert_eq!(s.retired, 21 + 0x2_0000);
}

#[test]
fn addresses_of_sixteen_bits_wrap_and_the_stack_pointer_keeps_its_upper_half() {
    let mut g = real_program(|a| {
        a.mov(bx, 0xfff0u32).unwrap();
        a.mov(si, 0x30u32).unwrap();
        a.mov(byte_ptr(bx + si + 0x10), 0x77).unwrap(); // ds:0x30
        a.mov(esp, 0x1234_7000u32).unwrap();
        a.push(0x1122).unwrap();
        a.push(dword_ptr(0x30)).unwrap();
        a.mov(cx, 3u32).unwrap();
        a.mov(si, 0xfffeu32).unwrap();
        a.cld().unwrap();
        a.db(&[0xf3, 0xac]).unwrap(); // rep lodsb over the wrap
        a.hlt().unwrap();
    });
    g.cpu.state_mut().seg[SegmentIndex::Ds as usize].base = 0;
    assert_eq!(g.run(), Exit::Halted);
    let s = g.cpu.state();
    assert_eq!(get(&g, 0x30), [0x77]);
    assert_eq!(s.gpr[gpr::RSP], 0x1234_6ffa);
    assert_eq!(word(&g, 0x6ffe), 0x1122);
    assert_eq!(s.gpr[gpr::RSI] as u16, 1);
}

#[test]
fn sixteen_bit_code_runs_in_protected_mode() {
    let mut g = real_program(|a| {
        a.xor(ax, ax).unwrap();
        a.mov(ds, ax).unwrap();
        lgdtl(a, 0x5ff8);
        a.mov(eax, cr0).unwrap();
        a.inc(ax).unwrap();
        a.mov(cr0, eax).unwrap();
        a.db(&[0xea, 0x00, 0x90, CODE16 as u8, 0]).unwrap(); // ljmp CODE16:0x9000
    });
    let code = assemble(16, 0x9000, |a| {
        a.mov(ax, DATA16 as u32).unwrap();
        a.mov(ds, ax).unwrap();
        a.mov(ss, ax).unwrap();
        a.mov(sp, 0x7000u32).unwrap();
        a.mov(cx, 10u32).unwrap();
        a.xor(dx, dx).unwrap();
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.add(dx, cx).unwrap();
        a.loop_(top).unwrap();
        a.mov(word_ptr(0x4000), dx).unwrap();
        a.enter(16u32, 0u32).unwrap();
        a.leave().unwrap();
        a.pusha().unwrap();
        a.hlt().unwrap();
    });
    put(&mut g, 0x9000, &code);
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(word(&g, 0x4000), 55);
    let s = g.cpu.state();
    assert_eq!(s.gpr[gpr::RSP] as u16, 0x7000 - 16);
    assert_eq!(s.retired, 7 + 6 + 20 + 5);
}

#[test]
fn protected_mode_pages_in_two_levels_and_by_four_mebibytes() {
    const PD: u64 = 0x10_0000;
    const PT: u64 = 0x10_1000;
    let program = |a: &mut CodeAssembler| {
        a.mov(eax, PD as u32).unwrap();
        a.mov(cr3, eax).unwrap();
        a.mov(eax, cr4).unwrap();
        a.or(eax, cr4::PSE as u32).unwrap();
        a.mov(cr4, eax).unwrap();
        a.mov(eax, cr0).unwrap();
        a.or(eax, (cr0::PG | cr0::WP) as u32).unwrap();
        a.mov(cr0, eax).unwrap();
        a.mov(edi, 0xc000_0010u32).unwrap();
        a.mov(dword_ptr(edi), 0x1111_1111).unwrap(); // through the table: physical 0x20_0010
        // The same linear page is moved; what was cached must not stand.
        a.mov(dword_ptr(PT), 0x20_1003).unwrap();
        a.invlpg(dword_ptr(edi)).unwrap();
        a.mov(dword_ptr(edi), 0x2222_2222).unwrap();
        // A 4-MiB page, identity-mapped at 0x80000000 to 0.
        a.mov(ebx, dword_ptr(0x8020_0010u32)).unwrap();
        a.mov(ecx, dword_ptr(0x8020_1010u32)).unwrap();
        // A page that is not there.
        a.mov(edx, dword_ptr(0xd000_0000u32)).unwrap();
    };
    for singly in [false, true] {
        let mut g = real(&assemble(16, 0, |a| {
            a.xor(ax, ax).unwrap();
            a.mov(ds, ax).unwrap();
            lgdtl(a, 0x5ff8);
            a.mov(eax, cr0).unwrap();
            a.inc(ax).unwrap();
            a.mov(cr0, eax).unwrap();
            far_jump_32(a, CODE32, 0xb000);
        }));
        let body = assemble(32, 0xb000, |a| {
            a.mov(eax, DATA32 as u32).unwrap();
            a.mov(ds, ax).unwrap();
            a.mov(ss, ax).unwrap();
            a.mov(esp, STACK as u32).unwrap();
            program(a);
        });
        put(&mut g, 0xb000, &body);
        put(&mut g, PD, &0x0000_0083u32.to_le_bytes()); // 4 MiB at 0
        put(&mut g, PD + 4 * 0x200, &0x0000_0083u32.to_le_bytes());
        put(&mut g, PD + 4 * 0x300, &(PT as u32 | 3).to_le_bytes());
        put(&mut g, PT, &0x20_0003u32.to_le_bytes());
        // IDT: vector 14 to a HLT.
        let gate = 0x0000_8e00_0008_c000u64;
        assert!(g.board.ram.write_u64(GuestPhys(0x4000 + 8 * 14), gate));
        put(&mut g, 0xc000, &[0xf4]);
        g.cpu.state_mut().idtr.base = 0x4000;
        g.cpu.set_interpret_all(singly);
        assert_eq!(g.run(), Exit::Halted);
        let s = g.cpu.state();
        assert_eq!((s.gpr[gpr::RBX], s.gpr[gpr::RCX]), (0x1111_1111, 0x2222_2222));
        assert_eq!((s.cr2, s.rip), (0xd000_0000, 0xc001));
        let frame = STACK - 16;
        assert_eq!(get(&g, frame), 0u32.to_le_bytes(), "error code: read, not present, supervisor");
        assert_eq!(get(&g, frame + 8), (CODE32 as u32).to_le_bytes());
        assert_eq!(get::<4>(&g, PT)[0], 0x63, "accessed and dirty");
        assert_eq!(get::<4>(&g, PD + 4 * 0x200)[0], 0xa3, "accessed");
        assert_eq!(s.retired, 7 + 4 + 15 + 1);
    }
}

#[test]
fn protection_cannot_be_left_while_paging_and_lmsw_never_clears_it() {
    let mut g = real_program(|a| {
        a.mov(eax, cr0).unwrap();
        a.inc(ax).unwrap();
        a.mov(cr0, eax).unwrap();
        a.dec(ax).unwrap();
        a.db(&[0x0f, 0x01, 0xf0]).unwrap(); // lmsw ax, PE clear: stays
        a.mov(eax, cr0).unwrap();
        a.hlt().unwrap();
    });
    assert_eq!(g.run(), Exit::Halted);
    assert_eq!(g.reg(gpr::RAX), cr0::PE | cr0::ET | cr0::CD | cr0::NW);
}

/// Random bytes as code, data, vectors and descriptors, in real mode, 16-bit protected mode and
/// virtual-8086 mode: whole and in slices they lead to the same state.
#[test]
fn random_16_bit_code_ends_the_same_in_slices() {
    const LIMIT: u64 = 2000;
    let mut retired = 0;
    for seed in 1..=150u64 {
        let mut dice = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bytes: Vec<u8> = (0..0x2_0000)
            .map(|_| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (dice >> 56) as u8
            })
            .collect();
        let start = || {
            let mut g = real(&[]);
            put(&mut g, 0, &bytes);
            let s = g.cpu.state_mut();
            s.gpr = std::array::from_fn(|n| bytes[n] as u64 * 257);
            if seed % 3 != 0 {
                s.cr0 |= cr0::PE;
                s.gdtr = x86::DescriptorTable { base: 0, limit: 0xffff };
                s.idtr = s.gdtr;
            }
            if seed % 3 == 2 {
                s.rflags |= flags::VM | if seed % 2 == 0 { flags::IOPL } else { 0 };
                s.cpl = 3;
                s.seg.iter_mut().for_each(|segment| segment.attributes = 0xf3);
            }
            g
        };
        let finish = |mut g: Guest, slice: u64| {
            let mut to = 0;
            loop {
                to += slice;
                let exit = g.run_to(to.min(LIMIT));
                if exit != Exit::Limit || to >= LIMIT {
                    return (exit, g);
                }
            }
        };
        let (exit, whole) = finish(start(), LIMIT);
        let (exit_in_slices, sliced) = finish(start(), 7);
        assert_eq!(exit, exit_in_slices, "seed {seed}");
        assert_eq!(whole.cpu.state().save(), sliced.cpu.state().save(), "seed {seed}");
        assert_eq!(whole.board.ports, sliced.board.ports, "seed {seed}");
        retired += whole.cpu.state().retired;
    }
    assert!(retired > 50_000, "only {retired} instructions ran");
}
