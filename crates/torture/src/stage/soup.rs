//! Random bytes, and bytes that have the structure of instructions.

use super::{Slot, aim};
use crate::assemble::Code;
use crate::layout;
use dice::Dice;

/// Nothing but chance.
pub fn bytes(dice: &mut Dice) -> Slot {
    Slot((0..layout::SLOT).map(|_| dice.byte()).collect())
}

/// Instructions by their structure: prefixes, opcode map, opcode, ModRM, something behind it.
/// `long`: the code segment is a 64-bit one.
pub fn soup(dice: &mut Dice, long: bool) -> Slot {
    let mut code = Code::default();
    if long {
        aim(&mut code, dice, 2);
    }
    while code.0.len() + 16 < layout::SLOT as usize {
        instruction(&mut code, dice, long);
    }
    Slot(code.0)
}

/// Opcodes of the one-byte map that lead out of the beaten track.
const RARE: [u8; 40] = [
    0x06, 0x07, 0x0e, 0x27, 0x60, 0x61, 0x62, 0x63, 0x6c, 0x6d, 0x6e, 0x6f, 0x8c, 0x8e, 0x8f, 0x9a, 0x9b,
    0x9c, 0x9d, 0x9e, 0xa4, 0xa5, 0xa6, 0xaa, 0xac, 0xc4, 0xc5, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xcf,
    0xd7, 0xe3, 0xf1, 0xf4, 0xfa, 0xff,
];
/// Opcodes of the 0F map likewise.
const RARE_0F: [u8; 32] = [
    0x00, 0x01, 0x02, 0x03, 0x05, 0x06, 0x07, 0x09, 0x0b, 0x0d, 0x18, 0x20, 0x21, 0x22, 0x23, 0x30, 0x31,
    0x32, 0x33, 0x34, 0x35, 0x77, 0xa2, 0xae, 0xb0, 0xb2, 0xb4, 0xb8, 0xc3, 0xc7, 0xf7, 0xff,
];

fn instruction(code: &mut Code, dice: &mut Dice, long: bool) {
    for _ in 0..[0, 0, 0, 0, 0, 0, 1, 1, 2, 3][dice.below(10)] {
        code.0.push(dice.pick(&[0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65]));
    }
    if long && dice.percent(50) {
        code.0.push(0x40 | dice.byte() & 15);
    }
    match dice.below(20) {
        0..=7 => code.0.push(if dice.percent(70) { dice.byte() } else { dice.pick(&RARE) }),
        8..=13 => {
            let opcode = if dice.percent(60) { dice.byte() } else { dice.pick(&RARE_0F) };
            code.raw(&[0x0f, opcode]);
        }
        14..=15 => {
            let opcode = if dice.percent(70) { dice.byte() } else { 0xf0 | dice.byte() & 15 };
            code.raw(&[0x0f, 0x38, opcode]);
        }
        16 => {
            code.raw(&[0x0f, 0x3a, dice.byte()]);
        }
        17 => {
            code.raw(&[0xc5, dice.byte(), dice.byte()]);
        }
        18 => {
            let map = dice.byte() & 0xe0 | dice.pick(&[1, 1, 2, 2, 3, 0]);
            code.raw(&[0xc4, map, dice.byte(), dice.byte()]);
        }
        // x87
        _ => code.0.push(0xd8 | dice.byte() & 7),
    }
    // [register], [register + disp8] and two registers, rather than addresses made up.
    let mode = dice.pick(&[0x00, 0x00, 0x40, 0x40, 0x80, 0xc0, 0xc0, 0xc0]);
    code.0.push(mode | dice.byte() & 0x3f);
    for _ in 0..dice.below(6) {
        let byte = if dice.percent(40) { dice.byte() & 15 } else { dice.byte() };
        code.0.push(byte);
    }
}
