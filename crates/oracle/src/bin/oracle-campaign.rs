//! The long soak: random programs on the host CPU and in the engine.
//!
//! `oracle-campaign FIRST LAST [--compat PERCENT] [--threads N] [--pace whole|single|stops|mirrored|all]
//! [--alignment] [--failures N] [--no-minimise]` runs the cases of seeds FIRST to LAST (exclusive),
//! prints what was exercised and every mismatch made small, and fails if there was one.

use oracle::{
    Budget, EngineExecutor, Executor, HostExecutor, Options, Pace, Report, UNLIKE_HOST, campaign_of,
};
use std::process::ExitCode;

const USAGE: &str = "usage: oracle-campaign FIRST LAST [--compat PERCENT] [--threads N] \
    [--pace whole|single|stops|mirrored|all] [--alignment] [--failures N] [--no-minimise]";

struct Arguments {
    first: u64,
    last: u64,
    threads: u64,
    paces: Vec<Pace>,
    options: Options,
    budget: Budget,
}

fn parse() -> Option<Arguments> {
    let mut numbers = Vec::new();
    let mut parsed = Arguments {
        first: 0,
        last: 0,
        threads: 1,
        paces: Pace::ALL.to_vec(),
        options: Options { exclude: UNLIKE_HOST.to_vec(), ..Options::default() },
        budget: Budget::default(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--compat" => parsed.options.compatibility_percent = arguments.next()?.parse().ok()?,
            "--threads" => parsed.threads = arguments.next()?.parse().ok().filter(|&n| n > 0)?,
            "--failures" => parsed.budget.failures = arguments.next()?.parse().ok()?,
            "--alignment" => parsed.options.alignment_check = true,
            "--no-minimise" => parsed.budget.minimise = false,
            "--pace" => match arguments.next()?.as_str() {
                "whole" => parsed.paces = vec![Pace::Whole],
                "single" => parsed.paces = vec![Pace::Single],
                "stops" => parsed.paces = vec![Pace::Stops],
                "mirrored" => parsed.paces = vec![Pace::Mirrored],
                "all" => {}
                _ => return None,
            },
            number => numbers.push(number.parse().ok()?),
        }
    }
    [parsed.first, parsed.last] = numbers.try_into().ok()?;
    Some(parsed)
}

/// Runs a share of the seeds.
fn share(arguments: &Arguments, first: u64, last: u64) -> Result<Report, String> {
    let mut host = HostExecutor::new().map_err(|error| error.to_string())?;
    let engines: Result<Vec<_>, _> = arguments.paces.iter().map(|pace| EngineExecutor::new(*pace)).collect();
    let mut engines = engines.map_err(|error| error.to_string())?;
    let mut subjects: Vec<&mut dyn Executor> = Vec::new();
    for engine in &mut engines {
        subjects.push(engine);
    }
    Ok(campaign_of(&mut host, &mut subjects, first..last, &arguments.options, arguments.budget))
}

fn main() -> ExitCode {
    let Some(arguments) = parse() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let count = arguments.last.saturating_sub(arguments.first);
    let bound = |thread: u64| arguments.first + count * thread / arguments.threads;
    let reports: Vec<Result<Report, String>> = std::thread::scope(|scope| {
        let arguments = &arguments;
        let workers: Vec<_> = (0..arguments.threads)
            .map(|thread| scope.spawn(move || share(arguments, bound(thread), bound(thread + 1))))
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err("a worker died".into())))
            .collect()
    });
    let mut whole = Report::default();
    let mut fine = true;
    for report in reports {
        match report {
            Ok(report) => whole.merge(report),
            Err(error) => {
                eprintln!("{error}");
                fine = false;
            }
        }
    }
    println!("{whole}");
    if fine && whole.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
