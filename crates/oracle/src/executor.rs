//! The seam: what runs cases.

use crate::case::Case;
use crate::outcome::Outcome;

/// Something that runs cases: the host CPU, or the translator under test.
pub trait Executor {
    /// Runs `case` from its initial state to the end marker, its first exception, or a discard.
    ///
    /// Contract: the outcome depends on nothing but the case.
    fn run(&mut self, case: &Case) -> Outcome;

    /// Runs several cases; the same as running each in turn, possibly faster.
    fn run_batch(&mut self, cases: &[Case]) -> Vec<Outcome> {
        cases.iter().map(|case| self.run(case)).collect()
    }
}
