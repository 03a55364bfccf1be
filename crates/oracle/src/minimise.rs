//! Making a failing case small.

use crate::case::{Case, Item, Target};
use crate::layout::Frame;
use crate::state::Registers;

/// Drops instructions, then initial state, for as long as `fails` still says so; the result fails
/// too. Branches to a dropped instruction go to the one behind it.
///
/// `case` itself must fail. `fails` is called about *n*² times for *n* instructions.
pub fn minimise(case: &Case, mut fails: impl FnMut(&Case) -> bool) -> Case {
    let mut best = case.clone();
    loop {
        let before = best.items.len();
        let mut at = best.items.len();
        while at > 0 {
            at -= 1;
            let first = group_start(&best.items, at);
            if let Some(smaller) = without(&best, first, at)
                && fails(&smaller)
            {
                best = smaller;
            }
            at = first;
        }
        if best.items.len() == before {
            break;
        }
    }
    simplify_state(&mut best, &mut fails);
    best
}

/// The first item that belongs together with item `at`.
fn group_start(items: &[Item], at: usize) -> usize {
    let mut first = at;
    while first > 0 && items[first - 1].glued {
        first -= 1;
    }
    first
}

/// `case` without items `first` to `last`, if it can still be laid out.
fn without(case: &Case, first: usize, last: usize) -> Option<Case> {
    let mut smaller = case.clone();
    let dropped = last + 1 - first;
    smaller.items.drain(first..=last);
    for item in &mut smaller.items {
        let Some(link) = &mut item.link else { continue };
        if let Target::Item { index, byte } = &mut link.target {
            if *index > last {
                *index -= dropped;
            } else if *index >= first {
                (*index, *byte) = (first, 0);
            }
        }
    }
    smaller.assemble().ok()?;
    Some(smaller)
}

/// Puts registers to their defaults, group by group, where the failure does not need them.
fn simplify_state(best: &mut Case, fails: &mut impl FnMut(&Case) -> bool) {
    let plain = Registers::default();
    let mut attempt = |change: &dyn Fn(&mut Case)| {
        let mut simpler = best.clone();
        change(&mut simpler);
        if simpler.assemble().is_ok() && fails(&simpler) {
            *best = simpler;
        }
    };
    attempt(&|case| case.registers.x87 = plain.x87);
    attempt(&|case| case.registers.mxcsr = plain.mxcsr);
    attempt(&|case| case.registers.rflags = plain.rflags);
    attempt(&|case| case.registers.ymm = plain.ymm);
    attempt(&|case| case.registers.gs_base = 0);
    attempt(&|case| case.registers.fs_base = 0);
    for register in (0..16).filter(|&register| register != 4) {
        attempt(&|case| case.registers.gpr[register] = 0);
        attempt(&|case| case.registers.ymm[register] = [0; 32]);
    }
    for frame in Frame::ALL {
        attempt(&|case| {
            if let Some(page) = case.page_mut(frame) {
                page.bytes.fill(0);
            }
        });
    }
}
