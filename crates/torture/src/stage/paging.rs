//! Page tables: entries with any bits, aliases, tables in tables, tables on devices.

use super::{Slot, address, value};
use crate::assemble::{Code, reg};
use crate::layout;
use dice::Dice;

/// One change of a table, and some use of what it translates.
pub fn slot(dice: &mut Dice) -> Slot {
    let mut code = Code::default();
    change(&mut code, dice);
    if dice.percent(50) && code.0.len() < 36 {
        flush(&mut code, dice);
    }
    if code.0.len() < 44 {
        touch(&mut code, dice);
    }
    Slot(code.0)
}

/// An entry: of the level that maps the guest's own memory, mostly not its firmware.
fn entry(dice: &mut Dice) -> u64 {
    let data = |dice: &mut Dice| layout::PTS + 8 * (0x60 + dice.below(0x1a0) as u64);
    match dice.below(12) {
        0..=6 => data(dice),
        7 => layout::PDS + 8 * dice.below(2048) as u64,
        8 => layout::PDPT + 8 * dice.below(512) as u64,
        9 => layout::PML4 + 8 * dice.below(512) as u64,
        _ => layout::PTS + 8 * dice.below(1024) as u64,
    }
}

fn change(code: &mut Code, dice: &mut Dice) {
    let at = entry(dice);
    match dice.below(8) {
        0..=2 => {
            // Flip a bit in place: BTC [rdi], imm8.
            let bit = dice.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 21, 40, 51, 52, 62, 63]);
            code.mov(reg::RDI, at).raw(&[0x48, 0x0f, 0xba, 0x3f, bit]);
        }
        3..=4 => {
            let flags = dice.bits() & 0x1ff | if dice.percent(80) { 7 } else { 0 };
            let no_execute = if dice.percent(20) { 1 << 63 } else { 0 };
            code.store(at, 8, address(dice) & 0xff_ffff_f000 | flags | no_execute);
        }
        5 => {
            // A table that is its own entry, or another table's.
            let table = layout::TABLES.start + (dice.below(8) as u64) * 0x1000;
            code.store(at, 8, table | 7);
        }
        6 => {
            code.store(at, dice.pick(&[1, 2, 4, 8]), dice.bits());
        }
        _ => {
            // The whole space from elsewhere: a copy, a device, beyond memory, RAM's last page.
            let root =
                dice.pick(&[layout::PML4, 0x8_0000, 0xfee0_0000, 0xe000_0000, 0x1f_f000, 0xff_ffff_f000]);
            let pcid = if dice.percent(30) { dice.bits() & 0xfff } else { 0 };
            let keep = if dice.percent(20) { 1 << 63 } else { 0 };
            code.mov(reg::RAX, root | pcid | keep).raw(&[0x0f, 0x22, 0xd8]);
        }
    }
}

fn flush(code: &mut Code, dice: &mut Dice) {
    match dice.below(4) {
        0 => code.raw(&[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8]),
        1..=2 => code.mov(reg::RDI, address(dice)).raw(&[0x0f, 0x01, 0x3f]),
        // INVPCID rax, [rdi]
        _ => {
            let kind = dice.below(6) as u64;
            code.mov(reg::RAX, kind).mov(reg::RDI, address(dice)).raw(&[0x66, 0x0f, 0x38, 0x82, 0x07])
        }
    };
}

fn touch(code: &mut Code, dice: &mut Dice) {
    let at = if dice.percent(60) { 0x6_0000 + dice.below(0x1a_0000) as u64 } else { value(dice) };
    match dice.below(6) {
        0..=1 => code.load(at, dice.pick(&[1, 2, 4, 8])),
        2..=3 => code.mov(reg::RDI, at).raw(&[0x48, 0x89, 0x07]),
        4 => code.mov(reg::RAX, at).raw(&[0xff, 0xd0]),
        _ => code.mov(reg::RDI, at).mov(reg::RCX, 64).raw(&[0xf3, 0xaa]),
    };
}
