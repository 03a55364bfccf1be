//! What a case starts with: registers and pages.

use super::values;
use crate::case::Mode;
use crate::layout::{Access, Frame, PAGE, Page};
use crate::state::Registers;
use dice::Dice;

/// Initial registers. About a third of the general registers point to data pages, a third hold
/// small numbers; those with a duty of their own (RSP, RSI, RDI, RCX) mostly suit it.
pub fn registers(dice: &mut Dice, mode: Mode, low: bool, index_vectors: &[usize]) -> Registers {
    let mut registers = Registers::default();
    for register in 0..mode.registers() {
        registers.gpr[register] = match (register, dice.below(100)) {
            (4, 0..97) => stack(dice, mode),
            (3 | 5..=7, 0..80) => pointer(dice, mode, low),
            (1, 0..75) => values::small(dice) & 0x1f,
            (_, 0..33) => pointer(dice, mode, low),
            (_, 33..66) => values::small(dice),
            _ => values::integer(dice),
        };
        if mode == Mode::Compatibility {
            registers.gpr[register] &= u64::from(u32::MAX);
        }
    }
    registers.rflags = values::rflags(dice);
    if mode == Mode::Long {
        registers.fs_base = pointer(dice, mode, false);
        registers.gs_base = if dice.percent(50) { 0 } else { pointer(dice, mode, false) };
    }
    for register in 0..mode.registers() {
        registers.ymm[register] =
            if index_vectors.contains(&register) { values::index_vector(dice) } else { values::ymm(dice) };
    }
    registers.mxcsr = values::mxcsr(dice);
    registers.x87 = values::x87(dice);
    registers
}

/// Left, right and constant page of the mode, or the low ones.
fn frames(mode: Mode, low: bool) -> [Frame; 3] {
    if low || mode == Mode::Compatibility {
        [Frame::LowLeft, Frame::LowRight, Frame::LowConstant]
    } else {
        [Frame::Left, Frame::Right, Frame::Constant]
    }
}

/// An address in a data page, often close to an edge.
fn pointer(dice: &mut Dice, mode: Mode, low: bool) -> u64 {
    let low = low && dice.percent(40);
    let [left, right, constant] = frames(mode, low).map(Frame::address);
    let page = PAGE as u64;
    let near = dice.below(64) as u64;
    match dice.below(10) {
        0 => left + near,
        1 | 2 => right - near,
        3 | 4 => right + near,
        5 => right + page - near,
        6 => constant + dice.below(PAGE) as u64,
        7 => (left + dice.below(2 * PAGE) as u64) & !63,
        _ => left + dice.below(2 * PAGE) as u64,
    }
}

/// A stack pointer: mostly aligned and with room on both sides.
fn stack(dice: &mut Dice, mode: Mode) -> u64 {
    let [left, right, _] = frames(mode, false).map(Frame::address);
    match dice.below(20) {
        0 => left + dice.below(64) as u64,
        1 => right + PAGE as u64 - dice.below(64) as u64,
        2 => right + dice.below(16) as u64 - 8,
        3 | 4 => right + dice.below(64) as u64 * 8 - 256,
        5 => left + 256 + dice.below(2 * PAGE - 512) as u64,
        _ => left + 256 + dice.below((2 * PAGE - 512) / 8) as u64 * 8,
    }
}

/// The pages, and where a program of `length` bytes starts.
pub fn pages(dice: &mut Dice, mode: Mode, low: bool, writable_code: bool, length: usize) -> (u64, Vec<Page>) {
    let code_access = if writable_code { Access::All } else { Access::ReadExecute };
    let code = mode.code().address();
    let end = PAGE - 1 - length.min(PAGE - 1);
    let (offset, next) = match dice.below(10) {
        // Ends with the page, or crosses into the next, which is there or (rarely) is not.
        0 => (end, dice.percent(50)),
        1 | 2 => (PAGE - 1 - dice.below(length + 1), dice.percent(90)),
        _ => (dice.below(end + 1), dice.percent(20)),
    };
    let mut pages = Vec::with_capacity(8);
    let mut map = |frame: Frame, access: Access, dice: &mut Dice| {
        pages.push(Page { frame, access, bytes: values::page(dice) });
    };
    map(mode.code(), code_access, dice);
    if next {
        map(mode.code_next(), code_access, dice);
    }
    let accesses = [Access::ReadWrite, Access::ReadWrite, Access::Read];
    for (frame, access) in frames(mode, false).into_iter().zip(accesses) {
        map(frame, access, dice);
    }
    if low {
        for (frame, access) in frames(mode, true).into_iter().zip(accesses) {
            map(frame, access, dice);
        }
    }
    (code + offset as u64, pages)
}
