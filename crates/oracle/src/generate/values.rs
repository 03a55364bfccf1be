//! What registers and memory hold: values at which instructions change their behaviour.

use crate::layout::PAGE;
use crate::state::{FXSAVE, flag};
use dice::Dice;
use std::sync::OnceLock;

/// Bytes of the pool that pages and vector registers are cut from.
const POOL: usize = 1 << 16;

/// Memory contents for everyone: drawn once from fixed dice, so a page is a function of an offset.
fn pool() -> &'static [u8; POOL] {
    static POOLED: OnceLock<Box<[u8; POOL]>> = OnceLock::new();
    POOLED.get_or_init(|| {
        let mut dice = Dice::new(0x706f_6f6c, 0);
        let mut bytes = Box::new([0; POOL]);
        for chunk in bytes.chunks_exact_mut(16) {
            chunk.copy_from_slice(&chunk_of(&mut dice));
        }
        bytes
    })
}

/// Sixteen bytes of one kind.
fn chunk_of(dice: &mut Dice) -> [u8; 16] {
    let mut out = [0; 16];
    match dice.below(8) {
        0 => [0_u8; 16],
        1 => [0xff; 16],
        2 => {
            out.chunks_exact_mut(8).for_each(|part| part.copy_from_slice(&double(dice).to_le_bytes()));
            out
        }
        3 => {
            out.chunks_exact_mut(4).for_each(|part| part.copy_from_slice(&single(dice).to_le_bytes()));
            out
        }
        4 => {
            out[..10].copy_from_slice(&extended(dice));
            out
        }
        5 => {
            out.chunks_exact_mut(4).for_each(|part| part[0] = dice.below(64) as u8);
            out
        }
        6 => {
            // Packed BCD, mostly valid.
            out.iter_mut().for_each(|byte| *byte = (dice.below(10) << 4 | dice.below(10)) as u8);
            out
        }
        _ => {
            out[..8].copy_from_slice(&dice.bits().to_le_bytes());
            out[8..].copy_from_slice(&dice.bits().to_le_bytes());
            out
        }
    }
}

/// A page of values.
pub fn page(dice: &mut Dice) -> Box<[u8; PAGE]> {
    let at = dice.below((POOL - PAGE) / 2) * 2;
    let mut page = Box::new([0; PAGE]);
    page.copy_from_slice(&pool()[at..at + PAGE]);
    page
}

/// A vector register.
pub fn ymm(dice: &mut Dice) -> [u8; 32] {
    let at = dice.below((POOL - 32) / 4) * 4;
    let mut out = [0; 32];
    out.copy_from_slice(&pool()[at..at + 32]);
    out
}

/// A vector of small indices, as gathers use them.
pub fn index_vector(dice: &mut Dice) -> [u8; 32] {
    let mut out = [0; 32];
    let width = dice.pick(&[4, 8]);
    out.chunks_exact_mut(width).for_each(|part| part[0] = dice.below(128) as u8);
    out
}

/// An integer.
pub fn integer(dice: &mut Dice) -> u64 {
    const EDGES: [u64; 12] = [
        0,
        1,
        0x7f,
        0x80,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX,
        0xffff_8000_0000_0000,
    ];
    match dice.below(5) {
        0 => dice.pick(&EDGES),
        1 => dice.pick(&EDGES).wrapping_add(dice.below(5) as u64).wrapping_sub(2),
        2 => dice.bits() >> dice.below(64),
        3 => small(dice),
        _ => dice.bits(),
    }
}

/// A small number: an index, a count, a shift.
pub fn small(dice: &mut Dice) -> u64 {
    let magnitude = dice.below(40) as u64;
    if dice.percent(15) { magnitude.wrapping_neg() } else { magnitude }
}

fn double(dice: &mut Dice) -> u64 {
    let edges =
        [0.0, 1.0, -1.5, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY, f64::NAN, 5e-324, 2_147_483_647.5, 1e19];
    let sign = dice.bits() << 63;
    match dice.below(4) {
        0 => dice.pick(&edges).to_bits() ^ sign,
        1 => (dice.bits() >> 12 | 0x7ff << 52) ^ sign, // a NaN of either kind
        2 => (0x3ff + dice.below(70) as u64 - 35) << 52 | dice.bits() >> 12 | sign,
        _ => dice.bits(),
    }
}

fn single(dice: &mut Dice) -> u32 {
    let edges =
        [0.0, 1.0, -1.5, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY, f32::NAN, 1e-45, 2_147_483_600.0];
    let sign = (dice.bits() << 31) as u32;
    match dice.below(4) {
        0 => dice.pick(&edges).to_bits() ^ sign,
        1 => ((dice.bits() >> 41) as u32 | 0xff << 23) ^ sign,
        2 => (0x7f + dice.below(60) as u32 - 30) << 23 | (dice.bits() >> 41) as u32 | sign,
        _ => dice.bits() as u32,
    }
}

/// An x87 register: normal numbers, and every other encoding there is, unsupported ones included
/// (SDM vol. 1, 8.2.2).
fn extended(dice: &mut Dice) -> [u8; 10] {
    let sign = (dice.bits() << 15) as u16 & 0x8000;
    let (exponent, mantissa) = match dice.below(8) {
        0 => (0, 0),
        1 => (0x7fff, 1 << 63),
        2 => (0x7fff, dice.bits()),
        3 => (0, dice.bits()),
        4 => (dice.bits() as u16 & 0x7fff, dice.bits()),
        5 => (0x3fff + dice.below(8) as u16, 1 << 63),
        _ => (0x3fff + dice.below(80) as u16 - 40, 1 << 63 | dice.bits()),
    };
    let mut out = [0; 10];
    out[..8].copy_from_slice(&mantissa.to_le_bytes());
    out[8..].copy_from_slice(&(sign | exponent).to_le_bytes());
    out
}

/// An x87 state that hardware could have left: the summary bits of FSW agree with its exceptions.
pub fn x87(dice: &mut Dice) -> [u8; FXSAVE] {
    let mut image = [0; FXSAVE];
    let masks = if dice.percent(85) { 0x3f } else { dice.bits() as u16 & 0x3f };
    let control = 0x40 | masks | (dice.bits() as u16 & 0x1f00);
    let mut exceptions = if dice.percent(70) { 0 } else { dice.bits() as u16 & 0x3f };
    if dice.percent(90) {
        exceptions &= masks; // nothing pending
    }
    let summary = if exceptions & !masks != 0 { 0x8080 } else { 0 };
    let status = exceptions | summary | (dice.bits() as u16 & 0x7f00);
    let tags = if dice.percent(60) { 0xff } else { dice.byte() };
    image[..2].copy_from_slice(&control.to_le_bytes());
    image[2..4].copy_from_slice(&status.to_le_bytes());
    image[4] = tags;
    for register in 0..8 {
        image[32 + register * 16..42 + register * 16].copy_from_slice(&extended(dice));
    }
    image
}

/// MXCSR: mostly all masked; every rounding mode, DAZ and FTZ.
pub fn mxcsr(dice: &mut Dice) -> u32 {
    let masks = if dice.percent(85) { 0x1f80 } else { dice.bits() as u32 & 0x1f80 };
    let mode = dice.bits() as u32 & 0xe040;
    let flags = if dice.percent(50) { 0 } else { dice.bits() as u32 & 0x3f };
    masks | mode | flags
}

/// RFLAGS at the start.
pub fn rflags(dice: &mut Dice) -> u64 {
    let down = if dice.percent(12) { flag::DF } else { 0 };
    flag::FIXED | dice.bits() & flag::STATUS | down
}
