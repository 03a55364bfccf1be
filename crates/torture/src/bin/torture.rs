//! `torture FIRST LAST`: hostile guests by their seeds, judged one after the other.
//!
//! The guests run in a child process, so that a crash or a run that never comes back is a failure
//! with a seed like any other. `--minimise` prints the smallest guest that fails in the same way.

use clap::Parser;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use torture::{Case, Complaint, End, judge, locate, minimise};

/// Runs hostile guests and judges them.
#[derive(Parser, Clone)]
struct Arguments {
    /// The first seed
    first: u64,
    /// The seed behind the last one
    last: u64,
    /// Ends after this many minutes, wherever it is
    #[arg(long)]
    minutes: Option<u64>,
    /// A case that takes more of a processor's time is a hang
    #[arg(long, default_value_t = 60)]
    seconds_per_case: u64,
    /// Makes failures small and prints them
    #[arg(long)]
    minimise: bool,
    /// Ends after this many failures
    #[arg(long, default_value_t = 10)]
    failures: u32,
    /// Runs the cases here rather than in a child
    #[arg(long, hide = true)]
    child: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.child { work(&arguments) } else { supervise(&arguments) }
}

/// Judges the cases, with a line on standard output before and after each.
fn work(arguments: &Arguments) -> ExitCode {
    let mut out = std::io::stdout();
    let mut say = |line: String| out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_ok();
    for seed in arguments.first..arguments.last {
        if !say(format!("begin {seed}\n")) {
            return ExitCode::FAILURE;
        }
        let case = Case::new(seed);
        let line = match judge(&case) {
            Ok(outcome) => {
                let End { triple_faults, resets, power_offs, panics, halts, inputs_taken, outputs } =
                    outcome.end;
                format!(
                    "end {seed} {} {triple_faults} {resets} {power_offs} {panics} {halts} {inputs_taken} {outputs}\n",
                    outcome.position
                )
            }
            Err(complaint) => {
                if arguments.minimise {
                    let like = |case: &Case| judge(case).is_err_and(|other| other.is_like(&complaint));
                    show(&minimise(&case, like), &complaint);
                }
                format!("fail {seed} {complaint}\n")
            }
        };
        if !say(line) {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn show(case: &Case, complaint: &Complaint) {
    eprintln!("seed {}: {:?}, inputs {:?}", case.seed, case.devices, case.inputs);
    for stage in &case.stages {
        eprintln!("  stage {} {:?} user {}", stage.place, stage.kind, stage.user);
        for (n, slot) in stage.slots.iter().enumerate().filter(|(_, slot)| !slot.0.is_empty()) {
            let bytes: Vec<String> = slot.0.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("    slot {n}: {}", bytes.join(" "));
        }
    }
    if let Complaint::Differs { pace, .. } = complaint
        && let Some(place) = locate(case, *pace)
    {
        eprintln!("{place}");
    }
}

/// What a child has to say.
struct Worker {
    child: Child,
    lines: Receiver<String>,
}

fn spawn(arguments: &Arguments, first: u64) -> std::io::Result<Worker> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("--child").arg(first.to_string()).arg(arguments.last.to_string());
    if arguments.minimise {
        command.arg("--minimise");
    }
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let (sender, lines) = channel();
    let out = child.stdout.take();
    std::thread::spawn(move || {
        for line in out.into_iter().flat_map(|out| BufReader::new(out).lines()).map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    Ok(Worker { child, lines })
}

/// Processor time a child has taken, in seconds.
fn processor_seconds(child: &Child) -> u64 {
    const TICKS_A_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    // Behind the name, which ends with the last parenthesis: state is field 3, user time 14.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() / TICKS_A_SECOND
}

/// What was found so far.
struct Tally {
    next: u64,
    failures: u32,
    sums: [u64; 9],
}

impl Tally {
    fn fail(&mut self, what: &str) {
        println!("fail {what}");
        self.failures += 1;
        self.next += 1;
    }

    /// Takes in a line of a worker.
    fn note(&mut self, line: &str) {
        if let Some(figures) = line.strip_prefix("end ") {
            let figures = figures.split(' ').map(|word| word.parse::<u64>().unwrap_or(0));
            self.sums.iter_mut().zip(figures.skip(1)).for_each(|(sum, figure)| *sum += figure);
            self.sums[8] += 1;
            self.next += 1;
        } else if let Some(what) = line.strip_prefix("fail ") {
            self.fail(what);
        }
    }
}

/// Listens to a worker until it ends; false when there is no more to do.
fn follow(arguments: &Arguments, worker: &mut Worker, tally: &mut Tally, end: Option<Instant>) -> bool {
    let mut begun = 0;
    let more = loop {
        let line = worker.lines.recv_timeout(Duration::from_secs(1));
        if end.is_some_and(|end| Instant::now() >= end) || tally.failures >= arguments.failures {
            break false;
        }
        match line {
            Ok(line) => {
                tally.note(&line);
                begun = processor_seconds(&worker.child);
            }
            Err(RecvTimeoutError::Timeout) => {
                let taken = processor_seconds(&worker.child).saturating_sub(begun);
                if taken > arguments.seconds_per_case && !arguments.minimise {
                    let what = format!("{} no end within {taken} s of a processor's time", tally.next);
                    tally.fail(&what);
                    break true;
                }
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = worker.child.wait();
                if tally.next < arguments.last {
                    let what = format!("{} the process died: {status:?}", tally.next);
                    tally.fail(&what);
                }
                return true;
            }
        }
    };
    let _ = worker.child.kill().and_then(|()| worker.child.wait());
    more
}

fn supervise(arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let end = arguments.minutes.map(|minutes| started + Duration::from_secs(60 * minutes));
    let mut tally = Tally { next: arguments.first, failures: 0, sums: [0; 9] };
    while tally.next < arguments.last && tally.failures < arguments.failures {
        let mut worker = match spawn(arguments, tally.next) {
            Ok(worker) => worker,
            Err(why) => {
                eprintln!("torture: the worker cannot be started: {why}");
                return ExitCode::from(2);
            }
        };
        if !follow(arguments, &mut worker, &mut tally, end) {
            break;
        }
    }
    let Tally { failures, sums, .. } = tally;
    let [instructions, triple, resets, offs, panics, halts, inputs, outputs, cases] = sums;
    println!(
        "{cases} cases from seed {}, {instructions} instructions each several times, in {} s: {triple} triple faults, \
         {resets} resets, {offs} power-offs, {panics} panics, {halts} halts, {inputs} inputs taken, {outputs} outputs, \
         {failures} failures",
        arguments.first,
        started.elapsed().as_secs(),
    );
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
