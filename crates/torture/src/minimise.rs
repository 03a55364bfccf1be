//! Leaving out what a failure does not need.

use crate::stage::Slot;
use crate::{Case, Complaint};

/// The smallest case found that `fails`, beginning with one that does: without inputs, stages and
/// slots that do not matter, then without bytes at the ends of slots.
pub fn minimise(case: &Case, fails: impl Fn(&Case) -> bool) -> Case {
    let mut best = case.clone();
    loop {
        let before = size(&best);
        drop_parts(&mut best, &fails, |case| case.inputs.len(), |case, range| drop(case.inputs.drain(range)));
        drop_parts(&mut best, &fails, |case| case.stages.len(), |case, range| drop(case.stages.drain(range)));
        for stage in 0..best.stages.len() {
            let empty = |case: &mut Case, range: std::ops::Range<usize>| {
                case.stages[stage].slots[range].fill(Slot::empty());
            };
            drop_parts(&mut best, &fails, |case| case.stages[stage].slots.len(), empty);
        }
        shorten(&mut best, &fails);
        if size(&best) == before {
            return best;
        }
    }
}

/// What there is left to drop: inputs, stages, slots that do something, their bytes.
fn size(case: &Case) -> (usize, usize, usize, usize) {
    let slots = || case.stages.iter().flat_map(|stage| &stage.slots).filter(|slot| !slot.0.is_empty());
    (case.inputs.len(), case.stages.len(), slots().count(), slots().map(|slot| slot.0.len()).sum())
}

/// Drops ranges of `count` things, halving their length.
fn drop_parts(
    best: &mut Case,
    fails: &impl Fn(&Case) -> bool,
    count: impl Fn(&Case) -> usize,
    remove: impl Fn(&mut Case, std::ops::Range<usize>),
) {
    let mut length = count(best).next_power_of_two();
    while length > 0 {
        let mut at = 0;
        while at < count(best) {
            let end = (at + length).min(count(best));
            let mut smaller = best.clone();
            remove(&mut smaller, at..end);
            if size(&smaller) < size(best) && fails(&smaller) {
                let shrunk = count(&smaller) < count(best);
                *best = smaller;
                if !shrunk {
                    at = end;
                }
            } else {
                at = end;
            }
        }
        length /= 2;
    }
}

fn shorten(best: &mut Case, fails: &impl Fn(&Case) -> bool) {
    for stage in 0..best.stages.len() {
        for slot in 0..best.stages[stage].slots.len() {
            let mut cut = best.stages[stage].slots[slot].0.len() / 2;
            while cut > 0 {
                let mut smaller = best.clone();
                let bytes = &mut smaller.stages[stage].slots[slot].0;
                if bytes.len() < cut {
                    break;
                }
                bytes.truncate(bytes.len() - cut);
                if fails(&smaller) {
                    *best = smaller;
                } else {
                    cut /= 2;
                }
            }
        }
    }
}

/// Whether a complaint is the same, for minimising: which pace, and whether it panics.
impl Complaint {
    /// Whether both say the same of the same pace.
    pub fn is_like(&self, other: &Complaint) -> bool {
        match (self, other) {
            (Complaint::Panic(a), Complaint::Panic(b)) => a == b,
            (Complaint::Differs { pace: a, .. }, Complaint::Differs { pace: b, .. }) => {
                std::mem::discriminant(a) == std::mem::discriminant(b)
            }
            _ => false,
        }
    }
}
