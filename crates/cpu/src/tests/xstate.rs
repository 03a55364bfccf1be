use super::*;
use crate::{Fpu, MXCSR_MASK};

const AREA: u64 = 0x8_0000;

fn with_registers() -> Machine {
    let mut m = Machine::user();
    for (i, ymm) in m.state.fpu.ymm.iter_mut().enumerate() {
        *ymm = std::array::from_fn(|b| (i * 32 + b) as u8 | 1);
    }
    m.state.fpu.finit();
    m.state.fpu.set_status(5 << 11);
    m.state.fpu.set_tags(0x81);
    m.state.fpu.set_st(2, &[9; 10]);
    m.state.fpu.mxcsr = 0x1fa0;
    m.state.gpr[gpr::RBX] = AREA;
    m.state.gpr[gpr::RAX] = 7;
    m.state.gpr[gpr::RDX] = 0;
    m
}

fn same(a: &Fpu, b: &Fpu) -> bool {
    a.ymm == b.ymm && a.x87 == b.x87 && a.mxcsr == b.mxcsr
}

const XSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x23];
const XRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x2b];
const XSAVEC64: &[u8] = &[0x48, 0x0f, 0xc7, 0x23];
const XSAVEOPT64: &[u8] = &[0x48, 0x0f, 0xae, 0x33];
const FXSAVE64: &[u8] = &[0x48, 0x0f, 0xae, 0x03];
const FXRSTOR64: &[u8] = &[0x48, 0x0f, 0xae, 0x0b];

#[test]
fn xsave_lays_out_its_area_as_the_manual_says_and_xrstor_reads_it_back() {
    let mut m = with_registers();
    m.poke(AREA, &[0xcc; 832]);
    m.poke64(AREA + 512, 0);
    m.poke(AREA + 520, &[0; 56]);
    m.exec(XSAVE64).unwrap();
    assert_eq!(m.bytes(AREA, 5), [0x7f, 0x03, 0x00, 0x28, 0x81]);
    assert_eq!(m.bytes(AREA + 24, 8), [0xa0, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
    assert_eq!(m.bytes(AREA + 160 + 16, 16), m.state.fpu.ymm[1][..16]);
    assert_eq!(m.bytes(AREA + 576 + 16, 16), m.state.fpu.ymm[1][16..]);
    assert_eq!((m.peek64(AREA + 512), m.peek64(AREA + 520)), (7, 0));
    assert_eq!(m.bytes(AREA + 416, 96), [0xcc; 96], "reserved bytes are left alone");
    let saved = m.state.fpu.clone();
    m.state.fpu = Fpu::power_on();
    m.exec(XRSTOR64).unwrap();
    assert!(same(&m.state.fpu, &saved));
}

#[test]
fn xsavec_writes_only_what_is_in_use_and_xrstor_initializes_the_rest() {
    let mut m = with_registers();
    m.poke(AREA, &[0; 832]);
    m.state.fpu.init_x87();
    m.state.fpu.ymm.iter_mut().for_each(|y| y[16..].fill(0));
    m.exec(XSAVEC64).unwrap();
    assert_eq!((m.peek64(AREA + 512), m.peek64(AREA + 520)), (2, 7 | 1 << 63));
    assert_eq!(m.bytes(AREA, 8), [0; 8], "x87 is in its initial state and is not written");
    let saved = m.state.fpu.clone();
    m.state.fpu = Fpu::power_on();
    m.state.fpu.ymm[4] = [7; 32];
    m.exec(XRSTOR64).unwrap();
    assert!(same(&m.state.fpu, &saved));
}

#[test]
fn xsaveopt_keeps_bits_of_components_not_asked_for() {
    let mut m = with_registers();
    m.poke64(AREA + 512, 1);
    m.state.gpr[gpr::RAX] = 6;
    m.exec(XSAVEOPT64).unwrap();
    assert_eq!(m.peek64(AREA + 512), 7);
    assert_eq!(m.bytes(AREA, 2), [0, 0], "x87 was not requested");
}

#[test]
fn xrstor_refuses_impossible_headers_and_mxcsr_values_and_changes_nothing() {
    let spoil: [(u64, u64); 5] = [
        (512, 8),                    // a component that XCR0 lacks
        (520, 1),                    // a layout that is not compacted, but not zero
        (528, 1),                    // reserved
        (520, 1 << 63 | 1 << 9),     // a compacted layout with an unknown part
        (24, MXCSR_MASK as u64 + 1), // a reserved bit of MXCSR
    ];
    for (offset, value) in spoil {
        let mut m = with_registers();
        m.exec(XSAVE64).unwrap();
        m.poke64(AREA + offset, value);
        let before = m.state.fpu.clone();
        assert_eq!(m.exec(XRSTOR64), Err(Exception::gp(0)), "offset {offset}");
        assert!(same(&m.state.fpu, &before), "offset {offset}");
    }
}

#[test]
fn save_areas_must_be_aligned_and_the_unit_available() {
    let mut m = with_registers();
    m.state.gpr[gpr::RBX] = AREA + 16;
    assert_eq!(m.exec(XSAVE64), Err(Exception::gp(0)));
    m.exec(FXSAVE64).unwrap();
    m.state.gpr[gpr::RBX] = AREA + 8;
    assert_eq!(m.exec(FXSAVE64), Err(Exception::gp(0)));
    m.state.gpr[gpr::RBX] = AREA;
    m.state.cr4 &= !cr4::OSXSAVE;
    assert_eq!(m.exec(XSAVE64), Err(Exception::ud()));
    m.state.cr0 |= cr0::TS;
    assert_eq!(m.exec(FXSAVE64), Err(Exception::plain(x86::vector::NM)));
}

#[test]
fn fxsave_and_fxrstor_carry_the_sse_half_and_leave_the_upper_one() {
    let mut m = with_registers();
    m.exec(FXSAVE64).unwrap();
    let saved = m.state.fpu.clone();
    m.state.fpu.ymm.iter_mut().for_each(|y| y[..16].fill(0));
    m.state.fpu.finit();
    m.state.fpu.mxcsr = 0x1f80;
    m.exec(FXRSTOR64).unwrap();
    assert!(same(&m.state.fpu, &saved));
}

#[test]
fn pointers_in_a_restored_image_are_dropped() {
    let mut m = with_registers();
    m.exec(FXSAVE64).unwrap();
    m.poke64(AREA + 8, 0x1234_5678);
    m.poke64(AREA + 16, 0x1234_5678);
    m.exec(FXRSTOR64).unwrap();
    assert_eq!(m.state.fpu.x87[5..24], [0; 19]);
}

#[test]
fn xgetbv_tells_which_components_are_in_use() {
    let mut m = Machine::user();
    m.state.fpu.init_x87();
    m.state.gpr[gpr::RCX] = 1;
    m.exec(&[0x0f, 0x01, 0xd0]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 0);
    m.state.fpu.ymm[9][31] = 1;
    m.exec(&[0x0f, 0x01, 0xd0]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 4);
}

#[test]
fn xsetbv_takes_only_combinations_that_exist() {
    let mut m = Machine::kernel();
    m.state.gpr[gpr::RCX] = 0;
    for (value, ok) in [(1, true), (3, true), (7, true), (5, false), (2, false), (0, false), (0xf, false)] {
        m.state.gpr[gpr::RAX] = value;
        m.state.gpr[gpr::RDX] = 0;
        assert_eq!(m.exec(&[0x0f, 0x01, 0xd1]).is_ok(), ok, "{value:#x}");
    }
}

#[test]
fn the_x87_environment_survives_a_round_trip_and_fnstenv_masks_exceptions() {
    let mut m = with_registers();
    m.state.fpu.set_control(0x0340);
    m.exec(&[0xd9, 0x33]).unwrap(); // fnstenv [rbx]
    assert_eq!(m.state.fpu.control(), 0x037f);
    assert_eq!(m.bytes(AREA, 4), [0x40, 0x03, 0xff, 0xff]);
    assert_eq!(m.bytes(AREA + 12, 14), [0; 14], "no pointers");
    m.exec(&[0xd9, 0x23]).unwrap(); // fldenv [rbx]
    assert_eq!((m.state.fpu.control(), m.state.fpu.tags()), (0x0340, 0x81));
    let before = m.state.fpu.clone();
    m.exec(&[0xdd, 0x33]).unwrap(); // fnsave [rbx]
    assert_eq!((m.state.fpu.control(), m.state.fpu.tags()), (0x037f, 0));
    m.exec(&[0xdd, 0x23]).unwrap(); // frstor [rbx]
    assert!(same(&m.state.fpu, &before));
}

#[test]
fn ldmxcsr_refuses_reserved_bits() {
    let mut m = Machine::user();
    m.state.gpr[gpr::RBX] = AREA;
    m.poke(AREA, &0x2_1f80u32.to_le_bytes());
    assert_eq!(m.exec(&[0x0f, 0xae, 0x13]), Err(Exception::gp(0)));
    m.poke(AREA, &0x9fc0u32.to_le_bytes());
    m.exec(&[0x0f, 0xae, 0x13]).unwrap();
    assert_eq!(m.state.fpu.mxcsr, 0x9fc0);
}
