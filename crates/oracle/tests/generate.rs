//! The generator: what it makes, and how much of the instruction set that reaches.

use oracle::{
    Budget, Case, Coverage, Discard, Ending, Executor, HostExecutor, ITEMS_MAX, Mode, Options, Outcome,
    Universe, campaign, compare, minimise,
};
use std::time::Instant;

#[test]
fn a_seed_is_a_case() {
    for seed in 0..200 {
        let (one, two) = (Case::from_seed(seed), Case::from_seed(seed));
        assert_eq!(one.items, two.items);
        assert_eq!(one.registers, two.registers);
        assert_eq!(one.start, two.start);
        assert!(one.pages().iter().zip(two.pages()).all(|(a, b)| a.bytes == b.bytes && a.access == b.access));
    }
}

#[test]
fn every_instruction_of_a_case_is_allowed() {
    let options = Options { compatibility_percent: 40, raw_percent: 30, ..Options::default() };
    for seed in 0..5000 {
        let case = Case::generate(seed, &options);
        assert!(!case.items.is_empty() && case.items.len() <= ITEMS_MAX);
        let universe = Universe::of(case.mode);
        for (instruction, item) in case.instructions().zip(&case.items) {
            assert!(universe.allows(instruction.code()), "{case}");
            assert_eq!(instruction.len(), item.bytes.len(), "{case}");
        }
    }
}

/// An executor that is the host itself: finds whatever is not a function of the case.
fn self_consistency(options: &Options, seeds: std::ops::Range<u64>) -> oracle::Report {
    let (mut one, mut two) = (HostExecutor::new().unwrap(), HostExecutor::new().unwrap());
    campaign(&mut one, &mut two, seeds, options, Budget::default())
}

#[test]
fn the_host_agrees_with_itself() {
    let report = self_consistency(&Options::default(), 0..20_000);
    eprintln!("{report}");
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(report.discarded.get(&Discard::Hung), None);
    assert_eq!(report.discarded.get(&Discard::Crashed), None);
    let completed = report.endings[&None];
    assert!(completed * 10 > report.compared * 4, "too many cases end in a fault: {report}");
}

#[test]
fn the_host_agrees_with_itself_in_compatibility_mode() {
    let mut host = HostExecutor::new().unwrap();
    if !host.runs_compatibility_mode() {
        eprintln!("skipped: this kernel does not run 32-bit code");
        return;
    }
    assert_eq!(host.run(&Case::from_code(Mode::Compatibility, &[0x40]).unwrap()).ending, Ending::Completed);
    let options = Options { compatibility_percent: 100, ..Options::default() };
    let report = self_consistency(&options, 0..20_000);
    eprintln!("{report}");
    assert!(report.failures.is_empty(), "{report}");
    assert_eq!(report.discarded.get(&Discard::Crashed), None);
}

#[test]
fn counting_by_pieces_agrees_with_single_stepping() {
    let (mut host, mut stepping) = (HostExecutor::new().unwrap(), HostExecutor::new().unwrap());
    stepping.step_everything(true);
    let compatibility_percent = if host.runs_compatibility_mode() { 30 } else { 0 };
    let options = Options { compatibility_percent, ..Options::default() };
    let report = campaign(&mut host, &mut stepping, 500_000..506_000, &options, Budget::default());
    assert!(report.failures.is_empty(), "{report}");
}

#[test]
fn nearly_every_instruction_form_is_exercised() {
    let mut host = HostExecutor::new().unwrap();
    let mut coverage = Coverage::default();
    let began = Instant::now();
    for batch in 0..200_000 / 16 {
        let cases: Vec<Case> = (batch * 16..batch * 16 + 16).map(Case::from_seed).collect();
        for (case, outcome) in cases.iter().zip(host.run_batch(&cases)) {
            coverage.record(case, &outcome);
        }
    }
    eprintln!("200000 cases in {:?}", began.elapsed());
    let missing = coverage.missing();
    eprintln!("{} forms allowed, never executed: {missing:?}", coverage.allowed().count());
    assert!(coverage.share() >= 0.95, "only {:.3}: {missing:?}", coverage.share());
}

/// The host with a planted bug: after a program with an ADC in it, RAX is off by one.
struct Wrong(HostExecutor);

impl Executor for Wrong {
    fn run(&mut self, case: &Case) -> Outcome {
        let mut outcome = self.0.run(case);
        let adc = case.instructions().enumerate().any(|(index, instruction)| {
            instruction.mnemonic() == iced_x86::Mnemonic::Adc && outcome.visited >> index & 1 != 0
        });
        outcome.registers.gpr[0] = outcome.registers.gpr[0].wrapping_add(adc.into());
        outcome
    }
}

#[test]
fn a_planted_bug_is_found_and_minimised_to_its_instruction() {
    let mut host = HostExecutor::new().unwrap();
    let mut wrong = Wrong(HostExecutor::new().unwrap());
    let budget = Budget { failures: 3, ..Budget::default() };
    let report = campaign(&mut host, &mut wrong, 0..100_000, &Options::default(), budget);
    assert!(report.failures.len() >= 3);
    for failure in &report.failures {
        assert_eq!(failure.case.items.len(), 1, "{failure}");
        let instruction = failure.case.instructions().next().unwrap();
        assert_eq!(instruction.mnemonic(), iced_x86::Mnemonic::Adc);
        assert!(failure.to_string().contains("rax: expected"), "{failure}");
        assert!(failure.case.seed > 0 || failure.to_string().contains("case 0x0"));
    }
}

#[test]
fn minimising_keeps_branches_pointing_where_they_did() {
    let mut host = HostExecutor::new().unwrap();
    // nop; jmp over ud2; ud2; inc eax; dec ecx — the failure: EAX becomes 1.
    let code = [0x90, 0xeb, 0x02, 0x0f, 0x0b, 0xff, 0xc0, 0xff, 0xc9];
    let mut case = Case::from_code(Mode::Long, &code).unwrap();
    case.items[1].link = Some(oracle::Link {
        field: 1,
        size: 1,
        relative: true,
        target: oracle::Target::Item { index: 3, byte: 0 },
    });
    case.assemble().unwrap();
    let small = minimise(&case, |case| {
        let outcome = host.run(case);
        outcome.ending == Ending::Completed && outcome.registers.gpr[0] == 1 && case.items.len() >= 2
    });
    assert_eq!(small.items.len(), 2);
    assert!(compare(&small, &host.run(&small), &host.run(&small)).is_none());
}
