//! A seeded share of what `oracle-campaign` does for hours: random programs in the engine, run
//! whole, instruction by instruction and with stops, against the host CPU.

use cpu::marks::{self, Mark};
use oracle::{
    Budget, Case, EngineExecutor, Executor, Frame, HostExecutor, Mode, Options, Pace, Report, UNLIKE_HOST,
    campaign_of, compare,
};

/// Seeds run in 64-bit mode; half as many in compatibility mode. Release builds take about twenty
/// seconds, debug builds run a share that takes as long.
const SEEDS: u64 = if cfg!(debug_assertions) { 8_000 } else { 80_000 };

fn run(first: u64, count: u64, options: &Options) -> Report {
    let mut host = HostExecutor::new().expect("this host can run cases");
    let mut engines = Pace::ALL.map(|pace| EngineExecutor::new(pace).expect("this host can run the model"));
    let mut subjects: Vec<&mut dyn Executor> = Vec::new();
    for engine in &mut engines {
        subjects.push(engine);
    }
    let report = campaign_of(&mut host, &mut subjects, first..first + count, options, Budget::default());
    println!("{report}");
    report
}

/// What the generator hardly ever makes: a displacement at the end of its range.
fn wide_displacement() {
    let mut case =
        Case::from_code(Mode::Long, &[0x8b, 0x83, 0xfe, 0xff, 0xff, 0x7f]).expect("a short program");
    case.registers.gpr[3] = Frame::Right.address() - 0x7fff_fffe; // mov eax, [rbx + 0x7ffffffe]
    case.page_mut(Frame::Right).expect("mapped").bytes[..4].fill(0x5a);
    let expected = HostExecutor::new().expect("this host can run cases").run(&case);
    let got = EngineExecutor::new(Pace::Whole).expect("this host can run the model").run(&case);
    assert_eq!(compare(&case, &expected, &got), None);
    assert_eq!(got.registers.gpr[0], 0x5a5a_5a5a);
}

/// What takes more repetitions than the generator makes: a loop over neighbours on two pages.
fn neighbours_on_two_pages() {
    // mov cl, 100; again: mov eax, [rbx-4]; add [rbx], eax; add [rbx-8], eax; dec cl; jnz again
    let code = [0xb1, 100, 0x8b, 0x43, 0xfc, 0x01, 0x03, 0x01, 0x43, 0xf8, 0xfe, 0xc9, 0x75, 0xf4];
    let mut case = Case::from_code(Mode::Long, &code).expect("a short program");
    case.registers.gpr[3] = Frame::Right.address();
    case.page_mut(Frame::Left).expect("mapped").bytes[0xffc..].copy_from_slice(&7_u32.to_le_bytes());
    let expected = HostExecutor::new().expect("this host can run cases").run(&case);
    let got = EngineExecutor::new(Pace::Whole).expect("this host can run the model").run(&case);
    assert_eq!(compare(&case, &expected, &got), None);
}

/// Shifts and rotations of each register: OF is undefined for more than one bit, and processors have it depend on
/// whether the operand is a register, which it has to remain then.
#[test]
fn what_shifts_leave_undefined_is_the_hosts() {
    const OF: u64 = 1 << 11;
    let mut host = HostExecutor::new().expect("this host can run cases");
    let mut engine = EngineExecutor::new(Pace::Whole).expect("this host can run the model");
    for register in 0..16_u8 {
        for (operation, count) in (0..8).flat_map(|operation| [1, 5, 36, 63].map(|count| (operation, count)))
        {
            for before in [0, OF] {
                // The 64-bit form with an immediate count, but not of RSP.
                let code = [0x48 | register >> 3, 0xc1, 0xc0 | operation << 3 | register & 7, count];
                let mut case = Case::from_code(Mode::Long, &code).expect("a short program");
                if register != 4 {
                    case.registers.gpr[register as usize] = 0x5bd5_aefb_f6ad_e3ad;
                }
                case.registers.rflags |= before;
                let (expected, got) = (host.run(&case), engine.run(&case));
                assert_eq!(compare(&case, &expected, &got), None, "{code:x?} with {before:#x}");
            }
        }
    }
}

/// Operands of 80 bits at the end of what there is of addresses, where two faults are due.
#[test]
fn numbers_of_eighty_bits_end_beyond_all_addresses() {
    let mut host = HostExecutor::new().expect("this host can run cases");
    let mut modes = vec![(Mode::Long, 1 << 47)];
    if host.runs_compatibility_mode() {
        modes.push((Mode::Compatibility, 1_u64 << 32));
    }
    for (mode, end) in modes {
        // fld1, then fld, fstp, fbld or fbstp to [rcx]
        for instruction in [[0xdb, 0x29], [0xdb, 0x39], [0xdf, 0x21], [0xdf, 0x31]] {
            for back in [1, 2, 7, 8, 9, 10] {
                let code = [&[0xd9, 0xe8], &instruction[..]].concat();
                let mut case = Case::from_code(mode, &code).expect("a short program");
                case.registers.gpr[1] = end - back;
                let expected = host.run(&case);
                let got = EngineExecutor::new(Pace::Whole).expect("this host can run the model").run(&case);
                assert_eq!(
                    compare(&case, &expected, &got),
                    None,
                    "{instruction:x?}, {back} bytes before the end"
                );
            }
        }
    }
}

#[test]
fn random_programs_do_in_the_engine_what_they_do_on_the_host() {
    let long = Options { exclude: UNLIKE_HOST.to_vec(), ..Options::default() };
    let compatibility = Options { compatibility_percent: 100, ..long.clone() };
    let aligned = Options { alignment_check: true, ..long.clone() };
    let mut report = run(0x1000_0000, SEEDS, &long);
    report.merge(run(0x3000_0000, SEEDS / 8, &aligned));
    if HostExecutor::new().expect("this host can run cases").runs_compatibility_mode() {
        report.merge(run(0x2000_0000, SEEDS / 2, &compatibility));
    } else {
        eprintln!("without 32-bit programs: this kernel does not run 32-bit code");
    }
    assert!(report.failures.is_empty(), "{} mismatches, see above", report.failures.len());
    assert!(report.coverage.share() > 0.98, "{:.2} % of the instructions", report.coverage.share() * 100.0);
    wide_displacement();
    neighbours_on_two_pages();
    for &mark in Mark::ALL {
        println!("{:10} {mark:?}", marks::count(mark));
    }
    // Programs do not reach their page tables; the engine's own tests do.
    let elsewhere = [
        Mark::AddressForgotten,
        Mark::GroupsStale,
        Mark::FastSyscall,
        Mark::FastSysret,
        Mark::FastIretq,
        Mark::XstateThunk,
        Mark::ClaimsRenewed,
        Mark::GroupGivenUp,
        Mark::BesideWatched,
        Mark::TableWrittenInVain,
        Mark::TableStoresMade,
        Mark::TableWrittenAhead,
        Mark::MirrorMended,
        Mark::MirrorUnmapped,
        Mark::FreshString,
        Mark::BlockKept,
    ];
    let reachable = Mark::ALL.iter().filter(|mark| !elsewhere.contains(mark));
    let missed: Vec<_> = reachable.filter(|&&mark| marks::count(mark) == 0).collect();
    assert!(missed.is_empty(), "paths never taken: {missed:?}");
}
