//! Running a range of seeds, and what came of it.

use crate::case::{Case, Mode};
use crate::compare::{Mismatch, Strictness, compare_with};
use crate::executor::Executor;
use crate::generate::{Options, Universe};
use crate::minimise::minimise;
use crate::outcome::{Discard, Ending, Outcome, vector};
use iced_x86::Code;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

/// When a campaign ends before its seeds do.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// After this much time.
    pub time: Option<Duration>,
    /// After this many mismatches.
    pub failures: usize,
    /// Whether mismatches are minimised (with some hundred more runs each).
    pub minimise: bool,
}

impl Default for Budget {
    fn default() -> Self {
        Self { time: None, failures: 5, minimise: true }
    }
}

/// A case on which the two executors differ.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The minimised case; its seed makes the original.
    pub case: Case,
    /// What the host did.
    pub expected: Outcome,
    /// What the other one did.
    pub got: Outcome,
    /// How they differ.
    pub mismatch: Mismatch,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.case)?;
        let registers = &self.case.registers;
        for (name, value) in crate::GPR_NAMES.iter().zip(registers.gpr).take(self.case.mode.registers()) {
            write!(f, "  {name}={value:#x}")?;
        }
        writeln!(f, "\n  rflags={:#x} mxcsr={:#x}", registers.rflags, registers.mxcsr)?;
        writeln!(f, "  fs={:#x} gs={:#x}", registers.fs_base, registers.gs_base)?;
        write!(f, "{}", self.mismatch)
    }
}

/// Which instructions were executed, and how often.
#[derive(Clone, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
    modes: [bool; 2],
}

impl Default for Coverage {
    fn default() -> Self {
        Self { counts: vec![0; Code::values().len()], modes: [false; 2] }
    }
}

impl Coverage {
    /// Counts the instructions of `case` that `outcome` says were executed or faulted.
    pub fn record(&mut self, case: &Case, outcome: &Outcome) {
        self.modes[usize::from(case.mode == Mode::Compatibility)] = true;
        for (index, instruction) in case.instructions().enumerate() {
            if outcome.visited >> index & 1 != 0 {
                self.counts[instruction.code() as usize] += 1;
            }
        }
    }
    /// How often cases executed `code`.
    pub fn count(&self, code: Code) -> u64 {
        self.counts[code as usize]
    }
    /// Instructions that cases may contain, in the modes that were run.
    pub fn allowed(&self) -> impl Iterator<Item = Code> + '_ {
        let modes = [Mode::Long, Mode::Compatibility];
        Code::values().filter(move |&code| {
            (0..2).any(|mode| self.modes[mode] && Universe::of(modes[mode]).allows(code))
        })
    }
    /// Those that were never executed.
    pub fn missing(&self) -> Vec<Code> {
        self.allowed().filter(|&code| self.count(code) == 0).collect()
    }
    /// Share of the allowed instructions that were executed, 0 to 1.
    pub fn share(&self) -> f64 {
        let allowed = self.allowed().count().max(1);
        1.0 - self.missing().len() as f64 / allowed as f64
    }
}

/// What a campaign found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Cases run and compared.
    pub compared: u64,
    /// Cases without anything to compare, by reason.
    pub discarded: BTreeMap<Discard, u64>,
    /// How the compared cases ended on the host: `None` completed, otherwise the vector.
    pub endings: BTreeMap<Option<u8>, u64>,
    /// Instructions the compared cases retired.
    pub retired: u64,
    /// Mismatches, the first ones first.
    pub failures: Vec<Failure>,
    /// Instructions exercised.
    pub coverage: Coverage,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} cases, {} instructions retired", self.compared, self.retired)?;
        for (ending, count) in &self.endings {
            writeln!(f, "  {:9} {count}", ending.map_or("completed", vector::name))?;
        }
        for (why, count) in &self.discarded {
            writeln!(f, "  discarded ({why:?}) {count}")?;
        }
        let missing = self.coverage.missing();
        writeln!(f, "  instruction forms exercised: {:.2} %", self.coverage.share() * 100.0)?;
        if !missing.is_empty() {
            writeln!(f, "  never: {missing:?}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(f, "MISMATCH {failure}"))
    }
}

/// Cases generated at a time.
const BATCH: u64 = 16;

/// Runs the cases of `seeds` on `host` and on `subject` and compares.
pub fn campaign(
    host: &mut dyn Executor,
    subject: &mut dyn Executor,
    seeds: Range<u64>,
    options: &Options,
    budget: Budget,
) -> Report {
    let mut report = Report::default();
    let began = Instant::now();
    let mut next = seeds.start;
    while next < seeds.end {
        let until = (next + BATCH).min(seeds.end);
        let cases: Vec<Case> = (next..until).map(|seed| Case::generate(seed, options)).collect();
        next = until;
        let expected = host.run_batch(&cases);
        for (case, expected) in cases.iter().zip(expected) {
            check(host, subject, case, expected, budget, &mut report);
        }
        let late = budget.time.is_some_and(|time| began.elapsed() >= time);
        if late || report.failures.len() >= budget.failures {
            break;
        }
    }
    report
}

fn check(
    host: &mut dyn Executor,
    subject: &mut dyn Executor,
    case: &Case,
    expected: Outcome,
    budget: Budget,
    report: &mut Report,
) {
    let ending = match expected.ending {
        Ending::Discarded(why) => {
            *report.discarded.entry(why).or_default() += 1;
            return;
        }
        Ending::Completed => None,
        Ending::Fault(fault) => Some(fault.vector),
    };
    *report.endings.entry(ending).or_default() += 1;
    report.compared += 1;
    report.retired += expected.retired;
    report.coverage.record(case, &expected);
    let got = subject.run(case);
    let Some(mismatch) = compare_with(case, &expected, &got, Strictness::default()) else { return };
    let mut failure = Failure { case: case.clone(), expected, got, mismatch };
    if budget.minimise {
        let mut differs = |case: &Case| {
            let expected = host.run(case);
            let got = subject.run(case);
            compare_with(case, &expected, &got, Strictness::default())
                .map(|mismatch| (expected, got, mismatch))
        };
        let smallest = minimise(case, |case| differs(case).is_some());
        if let Some((expected, got, mismatch)) = differs(&smallest) {
            failure = Failure { case: smallest, expected, got, mismatch };
        }
    }
    report.failures.push(failure);
}
