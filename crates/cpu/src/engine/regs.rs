//! Where guest registers live while translated code runs.
//!
//! ```text
//!   RAX RDX RBX RSP RBP RSI RDI R8 R9 R12 R13      at home: the host register of the same name
//!   RCX                                            in host R14
//!   R10 R11 R14 R15                                in memory (the state's `gpr`); see `homeless`
//!
//!   host RCX        scratch; the only register `jrcxz` tests, the only branch without flags
//!   host R10, R11   scratch; by convention the guest address and the TLB slot, then its addend
//!   host R15        the budget
//! ```
//!
//! RSP is the guest's own: `lea`, frame arithmetic and register moves stay byte copies, and it
//! costs only that nothing of ours may push while translated code runs.
//!
//! **Nothing that is emitted ever writes a status flag**, except guest instructions themselves.
//! So flags are exact at every instruction boundary, whether a later instruction reads them or
//! not, and no liveness analysis or recovery is needed for faults, interrupts or stops.
//!
//! **The budget register** holds `(remaining + BIAS) * 64 + 12`. Its low six bits are always 12, so
//! the same register is the shift count that turns an address difference into a page difference
//! (`shrx rcx, rcx, r15`) — no register or flag is spent on the constant. A block of `n`
//! instructions subtracts `64 n`; as `n` is at most BIAS, the value stays positive, and
//! `shrx rcx, r15, r15` is zero exactly when fewer than `n` instructions remained.

use super::asm::Reg;
use x86::gpr;

/// Guest registers that live in a host register.
pub const HOMES: [(usize, Reg); 12] = [
    (gpr::RAX, Reg(0)),
    (gpr::RCX, RCX_HOME),
    (gpr::RDX, Reg(2)),
    (gpr::RBX, Reg(3)),
    (gpr::RSP, Reg(4)),
    (gpr::RBP, Reg(5)),
    (gpr::RSI, Reg(6)),
    (gpr::RDI, Reg(7)),
    (gpr::R8, Reg(8)),
    (gpr::R9, Reg(9)),
    (gpr::R12, Reg(12)),
    (gpr::R13, Reg(13)),
];

/// A budget register below this, as a signed number, has been overdrawn.
pub const NOTHING_LEFT: u64 = BIAS * UNIT;
/// Where the guest's RCX lives.
pub const RCX_HOME: Reg = Reg::R14;
/// The budget register.
pub const BUDGET: Reg = Reg::R15;
/// The most instructions a block may have.
pub const MAX_BLOCK: u64 = 64;
const BIAS: u64 = MAX_BLOCK;
/// Bits of the budget register that one instruction is worth.
pub const UNIT: u64 = 64;
const SHIFT_COUNT: u64 = 12;
/// The largest number of instructions a budget can hold.
pub const BUDGET_MAX: u64 = 1 << 50;

/// The host register of a guest register, if it has one.
pub fn home(guest: usize) -> Option<Reg> {
    match guest {
        gpr::RCX => Some(RCX_HOME),
        gpr::R10 | gpr::R11 | gpr::R14 | gpr::R15 => None,
        n => Some(Reg(n as u8)),
    }
}

/// The budget register's value for `remaining` instructions.
pub fn encode_budget(remaining: u64) -> u64 {
    (remaining.min(BUDGET_MAX) + BIAS) * UNIT + SHIFT_COUNT
}

/// How many instructions a budget register's value leaves; negative by at most a block while the
/// stub of an expired block has not given back its share.
pub fn decode_budget(value: u64) -> i64 {
    (value / UNIT) as i64 - BIAS as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_expires_exactly_when_fewer_instructions_remain_than_the_block_has() {
        for remaining in [0u64, 1, 5, 63, 64, 65, 1000, BUDGET_MAX] {
            for n in 1..=MAX_BLOCK {
                let after = encode_budget(remaining) - n * UNIT;
                assert_eq!(after >> (after & 63) == 0, remaining < n, "{remaining} {n}");
                assert_eq!(decode_budget(after), remaining as i64 - n as i64);
            }
        }
    }
}
