//! Ports and device memory, from anywhere, in any size, by any instruction.

use super::{Slot, address, aim};
use crate::assemble::{Code, reg};
use crate::layout;
use dice::Dice;

/// First port and number of ports of everything that answers, and of some that do not.
const PORTS: [(u16, u16); 22] = [
    (0x20, 2),
    (0xa0, 2),
    (0x4d0, 2),
    (0x40, 4),
    (0x61, 1),
    (0x60, 1),
    (0x64, 1),
    (0x70, 2),
    (0x92, 1),
    (0x3f8, 8),
    (0x3f8, 8),
    (0x2f8, 8),
    (0x505, 1),
    (0x600, 12),
    (0xe9, 1),
    (0xf4, 4),
    (0xcf8, 8),
    (0xcf8, 8),
    (0xcf8, 8),
    (0xcf9, 1),
    (0x80, 1),
    (0xc000, 0x3000),
];

fn port_number(dice: &mut Dice) -> u16 {
    if dice.percent(4) {
        return dice.bits() as u16;
    }
    let (first, count) = dice.pick(&PORTS);
    // What ends the run, less often.
    if matches!(first, 0x505 | 0x92 | 0xcf9 | 0xf4) && dice.percent(80) {
        return 0x3f8;
    }
    first.wrapping_add(dice.below(count.into()) as u16)
}

/// Accesses to ports.
pub fn port(dice: &mut Dice) -> Slot {
    let mut code = Code::default();
    while code.0.len() + 34 < layout::SLOT as usize {
        let port = port_number(dice);
        let size = dice.pick(&[1, 1, 1, 2, 4]);
        let value =
            if port & 0xfff8 == 0xcf8 && size == 4 { configuration(dice) } else { dice.number() as u32 };
        match dice.below(12) {
            0..=6 => {
                code.out(port, size, value);
            }
            7..=9 => {
                code.input(port, size);
            }
            _ => strings(&mut code, dice, port),
        }
    }
    Slot(code.0)
}

/// REP INS and OUTS.
fn strings(code: &mut Code, dice: &mut Dice, port: u16) {
    code.mov(reg::RDX, port.into()).mov(reg::RCX, dice.below(80) as u64);
    let pointer = if dice.percent(50) { reg::RSI } else { reg::RDI };
    code.mov(pointer, address(dice));
    if dice.percent(70) {
        code.raw(&[dice.pick(&[0xf3, 0xf3, 0xf2])]);
    }
    if dice.percent(30) {
        code.raw(&[0x66]);
    }
    code.raw(&[dice.pick(&[0x6c, 0x6d, 0x6e, 0x6f])]);
}

/// A configuration address: an existing function's, mostly.
fn configuration(dice: &mut Dice) -> u32 {
    let enable = if dice.percent(95) { 1 << 31 } else { 0 };
    let device = if dice.percent(90) { dice.below(6) } else { dice.below(32) } as u32;
    let other = if dice.percent(10) { dice.bits() as u32 & 0x7fff_0700 } else { 0 };
    enable | other | device << 11 | dice.bits() as u32 & 0xff
}

/// An address on a device.
pub fn device_address(dice: &mut Dice) -> u64 {
    let register = |dice: &mut Dice, limit: usize| dice.below(limit) as u64;
    let function = dice.below(7) as u64;
    match dice.below(14) {
        0..=1 => {
            0xfee0_0000 + register(dice, 0x40) * 16 + if dice.percent(10) { register(dice, 16) } else { 0 }
        }
        2 => 0xfec0_0000 + dice.pick(&[0, 0x10, 0x10, 0x20, 0x40, 4, 0xff]),
        3 => {
            0xfed0_0000 + register(dice, 0x400 / 8) * 8 + if dice.percent(20) { register(dice, 8) } else { 0 }
        }
        4 => 0xfed0_0000 + dice.pick(&[0, 0x10, 0x20, 0xf0, 0x100, 0x108, 0x120, 0x128, 0x140]),
        5..=6 => layout::ecam(function) + register(dice, 0x100),
        7 => 0xe000_0000 + register(dice, 0x1000_0000),
        8 => layout::msix_bar(function) + register(dice, 0x1000),
        9..=11 => layout::register_bar(function) + register(dice, 4) * 0x1000 + register(dice, 64),
        12 => 0x10_0000_0000 + dice.number() % 0x10_0000_0000,
        _ => 0xc000_0000 + register(dice, 0x4000_0000),
    }
}

/// Instructions with a memory operand at `[rdi]`, of all the ways to touch memory.
const TOUCHES: [&[u8]; 28] = [
    &[0xa4],
    &[0xf3, 0xa4],
    &[0xf3, 0x48, 0xa5],
    &[0xf3, 0xaa],
    &[0xf3, 0xac],
    &[0xf0, 0x0f, 0xc1, 0x07],
    &[0xf0, 0x48, 0x0f, 0xb1, 0x17],
    &[0xf0, 0x0f, 0xc7, 0x0f],
    &[0x48, 0x0f, 0xc7, 0x0f],
    &[0x87, 0x07],
    &[0xff, 0x07],
    &[0x0f, 0xab, 0x07],
    &[0x48, 0x0f, 0xbb, 0x07],
    &[0x0f, 0x11, 0x07],
    &[0x0f, 0x10, 0x07],
    &[0x0f, 0x29, 0x07],
    &[0xc5, 0xfc, 0x11, 0x07],
    &[0xc5, 0xfe, 0x6f, 0x07],
    &[0xdd, 0x07],
    &[0xdb, 0x3f],
    &[0xdd, 0x37],
    &[0x0f, 0xae, 0x07],
    &[0x0f, 0xae, 0x0f],
    &[0x0f, 0xae, 0x27],
    &[0x0f, 0xae, 0x2f],
    &[0xff, 0x37],
    &[0x8f, 0x07],
    &[0x0f, 0x01, 0x17],
];

/// Accesses to device memory.
pub fn mmio(dice: &mut Dice) -> Slot {
    let mut code = Code::default();
    while code.0.len() + 40 < layout::SLOT as usize {
        let at = device_address(dice);
        let size = dice.pick(&[1, 2, 4, 4, 4, 8]);
        match dice.below(10) {
            0..=4 => {
                let value = if dice.percent(20) { address(dice) } else { dice.number() };
                code.store(at, size, value);
            }
            5..=6 => {
                code.load(at, size);
            }
            7 => {
                // From here, which few devices have code for.
                code.mov(reg::RAX, at).raw(&[0xff, 0xd0]);
            }
            _ => {
                aim(&mut code, dice, 1);
                code.mov(reg::RDI, at).mov(reg::RCX, dice.below(40) as u64);
                let touch = dice.pick(&TOUCHES);
                code.raw(touch);
            }
        }
    }
    Slot(code.0)
}
