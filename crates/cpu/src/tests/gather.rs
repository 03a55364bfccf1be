use super::*;

fn vector32(words: &[u32]) -> [u8; 32] {
    let mut out = [0; 32];
    for (i, w) in words.iter().enumerate() {
        out[i * 4..i * 4 + 4].copy_from_slice(&w.to_le_bytes());
    }
    out
}

const ON: u32 = 0x8000_0000;

/// vpgatherdd ymm1, [rax + ymm2*4], ymm3
const GATHER: &[u8] = &[0xc4, 0xe2, 0x65, 0x90, 0x0c, 0x90];

#[test]
fn a_gather_loads_selected_elements_and_clears_the_mask() {
    let mut m = Machine::user();
    for i in 0..16u32 {
        m.poke(0x5_0000 + i as u64 * 4, &(100 + i).to_le_bytes());
    }
    m.state.gpr[gpr::RAX] = 0x5_0020;
    m.state.fpu.ymm[1] = [0xee; 32];
    m.state.fpu.ymm[2] = vector32(&[0, 1, -1i32 as u32, 7, -8i32 as u32, 2, 3, 4]);
    m.state.fpu.ymm[3] = vector32(&[ON, 0, ON, ON, ON, 0, 0, ON]);
    m.exec(GATHER).unwrap();
    let e = 0xeeee_eeee;
    assert_eq!(m.state.fpu.ymm[1], vector32(&[108, e, 107, 115, 100, e, e, 112]));
    assert_eq!(m.state.fpu.ymm[3], [0; 32]);
}

#[test]
fn a_gather_that_faults_keeps_what_it_has_and_goes_on_from_there() {
    let mut m = Machine::user();
    m.poke(0x5_0000, &77u32.to_le_bytes());
    m.map(0x60, 0);
    m.state.gpr[gpr::RAX] = 0x5_0000;
    m.state.fpu.ymm[2] = vector32(&[0, 0x4000, 0, 0, 0, 0, 0, 0]);
    m.state.fpu.ymm[3] = vector32(&[ON, ON, ON, 0, 0, 0, 0, 0]);
    assert_eq!(m.exec(GATHER), Err(Exception::page_fault(0x6_0000, 4)));
    assert_eq!(m.state.fpu.ymm[1][..4], 77u32.to_le_bytes());
    assert_eq!(m.state.fpu.ymm[3], vector32(&[0, ON, ON, 0, 0, 0, 0, 0]));
    assert_eq!(m.state.rip, CODE);
    m.map(0x60, 0x6_0007);
    m.poke(0x6_0000, &88u32.to_le_bytes());
    m.poke(0x5_0000, &99u32.to_le_bytes());
    m.exec(GATHER).unwrap();
    assert_eq!(m.state.fpu.ymm[1], vector32(&[77, 88, 99, 0, 0, 0, 0, 0]));
}

#[test]
fn a_gather_of_two_quadwords_indexed_by_doublewords_clears_above() {
    let mut m = Machine::user();
    m.poke64(0x5_0008, 0x1111);
    m.poke64(0x5_0010, 0x2222);
    m.state.gpr[gpr::RAX] = 0x5_0000;
    m.state.fpu.ymm[1] = [0xee; 32];
    m.state.fpu.ymm[2] = vector32(&[1, 2, 99, 99, 0, 0, 0, 0]);
    m.state.fpu.ymm[3] = [0xff; 32];
    m.exec(&[0xc4, 0xe2, 0xe1, 0x90, 0x0c, 0xd0]).unwrap(); // vpgatherdq xmm1, [rax + xmm2*8], xmm3
    assert_eq!(m.state.fpu.ymm[1], vector32(&[0x1111, 0, 0x2222, 0, 0, 0, 0, 0]));
    assert_eq!(m.state.fpu.ymm[3], [0; 32]);
}

#[test]
fn a_masked_load_does_not_touch_what_it_leaves_out() {
    let mut m = Machine::user();
    m.map(0x51, 0);
    m.poke(0x5_0ff8, &[1, 0, 0, 0, 2, 0, 0, 0]);
    m.state.gpr[gpr::RAX] = 0x5_0ff8;
    m.state.fpu.ymm[1] = [0xee; 32];
    m.state.fpu.ymm[2] = vector32(&[ON, ON, 0, 0, 0, 0, 0, 0]);
    let load: &[u8] = &[0xc4, 0xe2, 0x6d, 0x8c, 0x08]; // vpmaskmovd ymm1, ymm2, [rax]
    m.exec(load).unwrap();
    assert_eq!(m.state.fpu.ymm[1], vector32(&[1, 2, 0, 0, 0, 0, 0, 0]));
    m.state.fpu.ymm[2] = vector32(&[ON, 0, ON, 0, 0, 0, 0, 0]);
    assert_eq!(m.exec(load), Err(Exception::page_fault(0x5_1000, 4)));
    assert_eq!(m.state.fpu.ymm[1], vector32(&[1, 2, 0, 0, 0, 0, 0, 0]), "unchanged");
}

#[test]
fn a_masked_store_that_faults_stores_nothing() {
    let mut m = Machine::user();
    m.map(0x51, 0);
    m.state.gpr[gpr::RAX] = 0x5_0ff8;
    m.state.fpu.ymm[1] = [0x55; 32];
    m.state.fpu.ymm[2] = vector32(&[ON, 0, ON, 0, 0, 0, 0, 0]);
    let store: &[u8] = &[0xc4, 0xe2, 0x6d, 0x8e, 0x08]; // vpmaskmovd [rax], ymm2, ymm1
    assert_eq!(m.exec(store), Err(Exception::page_fault(0x5_1000, 6)));
    assert_eq!(m.bytes(0x5_0ff8, 8), [0; 8]);
    m.state.fpu.ymm[2] = vector32(&[0, ON, 0, 0, 0, 0, 0, 0]);
    m.exec(store).unwrap();
    assert_eq!(m.bytes(0x5_0ff8, 8), [0, 0, 0, 0, 0x55, 0x55, 0x55, 0x55]);
}

#[test]
fn maskmovdqu_stores_selected_bytes_at_rdi() {
    let mut m = Machine::user();
    m.state.gpr[gpr::RDI] = 0x5_0000;
    m.state.fpu.ymm[1] = std::array::from_fn(|i| i as u8 + 1);
    m.state.fpu.ymm[2] = std::array::from_fn(|i| if i % 3 == 0 { 0x80 } else { 0x7f });
    m.exec(&[0x66, 0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!(m.bytes(0x5_0000, 8), [1, 0, 0, 4, 0, 0, 7, 0]);
}

#[test]
fn a_gather_with_avx_switched_off_is_undefined() {
    let mut m = Machine::user();
    m.state.xcr0 = 3;
    assert_eq!(m.exec(GATHER), Err(Exception::ud()));
}
