//! What is asked of a case: every pace ends in the same state, and nothing panics.

use crate::{Case, Outcome, Pace, run};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What is wrong with a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Complaint {
    /// A panic at this pace; the message is on standard error.
    Panic(Pace),
    /// Another end than of [`Pace::Whole`].
    Differs {
        /// At which pace.
        pace: Pace,
        /// What is different, in words.
        what: String,
    },
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Complaint::Panic(pace) => write!(f, "panic at pace {pace:?}"),
            Complaint::Differs { pace, what } => write!(f, "pace {pace:?}: {what}"),
        }
    }
}

/// Runs `case` at every pace; how it ended, and what is wrong.
///
/// # Errors
/// The first complaint.
pub fn judge(case: &Case) -> Result<Outcome, Complaint> {
    let seed = case.seed;
    let whole = caught(case, Pace::Whole)?;
    let middle = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % whole.position.max(1);
    let mut paces = vec![Pace::Whole, Pace::Chaos(seed | 1), Pace::Pieces(seed), Pace::Restored(middle)];
    // Slow, so not for all.
    if seed.is_multiple_of(4) {
        paces.push(Pace::Interpreted);
    }
    for pace in paces {
        let other = caught(case, pace)?;
        if other != whole {
            return Err(Complaint::Differs { pace, what: difference(&whole, &other) });
        }
    }
    Ok(whole)
}

fn caught(case: &Case, pace: Pace) -> Result<Outcome, Complaint> {
    catch_unwind(AssertUnwindSafe(|| run(case, pace))).map_err(|_| Complaint::Panic(pace))
}

fn difference(a: &Outcome, b: &Outcome) -> String {
    let names = ["registers", "devices", "memory"];
    let mut parts: Vec<String> =
        (0..3).filter(|n| a.parts[*n] != b.parts[*n]).map(|n| names[n].to_owned()).collect();
    if a.output != b.output {
        parts.push("output".into());
    }
    if a.end != b.end {
        parts.push(format!("{:?} against {:?}", b.end, a.end));
    }
    format!("{} at {} against {}", parts.join(", "), b.position, a.position)
}
