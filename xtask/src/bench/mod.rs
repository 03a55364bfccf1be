//! `cargo xtask bench`: Hindsight beside native execution and QEMU, in one run.
//!
//! Each row is a job that a guest's shell brackets with marks on the console ([`script`]); the
//! time between the marks' arrivals is taken on the host's clock, since guest clocks are virtual.
//! A boot measures all rows of its [`rows::Group`]; the systems take turns within a round, and the
//! table shows medians over rounds. Every recording is replayed with its state hashes checked, and
//! what a job writes must be the same everywhere, or the row fails.

mod docs;
mod growth;
mod host;
mod measure;
mod plot;
mod report;
mod rows;
mod script;
mod stats;
mod systems;
mod workloads;

use crate::{Result, workspace};
use measure::Ran;
use rows::{Group, Row};
use script::Mark;
use serde_json::Value;
use stats::{Clock, Samples};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use systems::{Boot, QEMU, System};
use workloads::Workloads;

/// What to measure and how.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Rows by name, kind (cpu, kernel, device, boot) or group, and growth [default: all]
    rows: Vec<String>,
    /// A quarter of the work and one round
    #[arg(long)]
    quick: bool,
    /// How often each row runs on each system [default: 3, 1 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: Option<u32>,
    /// Leave out systems, by commas: native, qemu-tcg, qemu-record, qemu-replay, run, record, replay
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    without: Vec<String>,
    /// Compare processor time instead of wall time, where other programs disturb the host
    #[arg(long)]
    cpu_time: bool,
    /// Where bench.json and bench.svg go [default: bench/results in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Put the table and the plot into docs/performance.md
    #[arg(long)]
    write_docs: bool,
}

/// What a run of one system over one group's rows came to.
#[derive(Clone, Debug)]
pub struct Run {
    /// Which rows.
    pub group: Group,
    /// On what.
    pub system: System,
    /// Which round, from 0.
    pub round: u32,
    /// The object of `--json`, for ours.
    pub summary: Value,
    /// Resident bytes beyond the guest's RAM, for ours.
    pub resident_beyond_ram: Option<u64>,
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Results {
    /// The rows in the order of the table.
    pub rows: Vec<Row>,
    /// Their times.
    pub samples: Samples,
    /// The runs they come from.
    pub runs: Vec<Run>,
    /// What went wrong, by row and system.
    pub failures: Vec<String>,
    /// What a job 10 times as long costs.
    pub growth: Option<growth::Growth>,
    /// Whether jobs had their usual size.
    pub quick: bool,
    /// How many rounds.
    pub rounds: u32,
    /// The clock of the table.
    pub cpu_time: bool,
    /// What a row's job wrote, where it first ran.
    sums: BTreeMap<String, (System, String)>,
}

impl Results {
    /// The clock of the table.
    pub fn clock(&self) -> Clock {
        if self.cpu_time { Clock::Cpu } else { Clock::Wall }
    }
}

/// Measures, prints a table, writes `bench.json` and `bench.svg`.
pub fn bench(options: &Options) -> Result {
    let (growth, names): (Vec<_>, Vec<_>) = options.rows.iter().cloned().partition(|word| word == "growth");
    let with_growth = options.rows.is_empty() || !growth.is_empty();
    let rows = if names.is_empty() && !growth.is_empty() { Vec::new() } else { rows::choose(&names)? };
    let systems = systems_of(options)?;
    let workloads = Workloads::prepare(&rows)?;
    let host = host::Host::look();
    let out = options.out.clone().unwrap_or(workspace::target()?.join("bench/results"));
    fs::create_dir_all(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let mut results =
        Results { rows, quick: options.quick, rounds, cpu_time: options.cpu_time, ..Results::default() };
    for round in 0..rounds {
        for group in Group::ALL {
            let of_group: Vec<Row> = results.rows.iter().filter(|row| row.group == group).copied().collect();
            if !of_group.is_empty() {
                one_round(&workloads, &systems, group, &of_group, round, &mut results, &mut |results| {
                    report(results, &host, &out).map(drop)
                })?;
            }
        }
    }
    if with_growth {
        results.growth = Some(growth::measure(&workloads, options.quick, results.clock())?);
    }
    let (table, svg) = report(&results, &host, &out)?;
    println!("{table}");
    eprintln!("xtask: bench.json, bench.md and bench.svg are in {}", out.display());
    if options.write_docs {
        docs::write(&table, &svg)?;
    }
    if results.failures.is_empty() {
        return Ok(());
    }
    Err(format!("{} failed:\n  {}", results.failures.len(), results.failures.join("\n  ")))
}

/// Writes what is known so far; returns the table and the plot.
fn report(results: &Results, host: &host::Host, out: &Path) -> Result<(String, String)> {
    let json =
        serde_json::to_string_pretty(&report::json(results, host)).map_err(|error| error.to_string())?;
    let (table, svg) = (report::markdown(results, host), plot::svg(results));
    for (name, text) in [("bench.json", &(json + "\n")), ("bench.svg", &svg), ("bench.md", &table)] {
        let path = out.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok((table, svg))
}

fn systems_of(options: &Options) -> Result<Vec<System>> {
    let known = |word: &String| System::ALL.iter().any(|system| system.to_string() == **word);
    if let Some(word) = options.without.iter().find(|word| !known(word)) {
        return Err(format!("{word} is not a system; see cargo xtask bench --help"));
    }
    let has_qemu = Command::new(QEMU).arg("--version").output().is_ok_and(|output| output.status.success());
    if !has_qemu {
        eprintln!("xtask: {QEMU} is not there (Debian: qemu-system-x86); its columns stay empty");
    }
    let left_out = |system: &System| options.without.contains(&system.to_string());
    let chosen: Vec<System> = System::ALL
        .into_iter()
        .filter(|system| !left_out(system) && (has_qemu || !system.is_qemu()))
        .filter(|system| system.replays().is_none_or(|recorded| !left_out(&recorded)))
        .collect();
    Ok(chosen)
}

/// Each system once over one group's rows; who begins changes from round to round.
fn one_round(
    workloads: &Workloads,
    systems: &[System],
    group: Group,
    rows: &[Row],
    round: u32,
    results: &mut Results,
    after_each: &mut dyn FnMut(&Results) -> Result,
) -> Result {
    let boot = workloads.boot(group, rows, results.quick)?;
    let mut turn: Vec<System> = systems.to_vec();
    if round % 2 == 1 {
        // QEMU before the others; a replay still follows its recording.
        turn.sort_by_key(|system| !system.is_qemu());
    }
    let mut recorded = Value::Null;
    for system in turn {
        // QEMU records a boot of systemd for minutes, most of them idle.
        let too_slow =
            results.quick && group == Group::Systemd && system.is_qemu() && system != System::QemuTcg;
        if system == System::Native && !group.runs_natively() || too_slow {
            continue;
        }
        eprintln!("xtask: round {} of {}, {group} rows on {system}", round + 1, results.rounds);
        let mut client = Client::default();
        let launch = systems::launch(system, &boot, workloads);
        let replayed = system.replays().is_some();
        let ran = measure::run(launch, &mut |mark| {
            if let Mark::Begin(row) = mark {
                eprintln!("xtask:   {row}");
            }
            client.see(mark, &boot, replayed);
        })?;
        client.end();
        let summary = serde_json::from_str(&ran.said).unwrap_or(Value::Null);
        let complaint = complaint(system, &ran, &summary, &recorded);
        if system == System::Record {
            recorded.clone_from(&summary);
        }
        take(system, rows, &ran, complaint, results);
        let resident_beyond_ram = ran.resident_beyond_ram;
        results.runs.push(Run { group, system, round, summary, resident_beyond_ram });
        after_each(results)?;
    }
    // Recordings of whole boots are large.
    fs::remove_dir_all(&boot.folder).map_err(|error| format!("{}: {error}", boot.folder.display()))
}

/// Why no row of a run counts.
fn complaint(system: System, ran: &Ran, summary: &Value, recorded: &Value) -> Option<String> {
    if ran.status != Some(0) {
        let said = if system.is_ours() { &ran.noise } else { &ran.said };
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        return Some(match ran.status {
            Some(status) => format!("exit status {status}: {last}"),
            None => format!("killed: {last}"),
        });
    }
    if system == System::Replay {
        let same = |field: &str| summary[field] == recorded[field] && !summary[field].is_null();
        let checked = summary["hashes_checked"].as_u64().unwrap_or(0);
        if !same("instructions") || !same("state_hash") || checked == 0 {
            return Some(format!("its end is not the recording's ({checked} state hashes checked)"));
        }
    }
    None
}

/// Takes a run's rows into the results.
fn take(system: System, rows: &[Row], ran: &Ran, complaint: Option<String>, results: &mut Results) {
    for row in rows {
        let timed = if row.is_boot() { ran.up.as_ref() } else { ran.rows.get(row.name) };
        // Nothing boots natively.
        if row.is_boot() && system == System::Native {
            continue;
        }
        let failure = match (timed, &complaint) {
            (_, Some(complaint)) => Some(complaint.clone()),
            (None, None) => Some("it has not come to an end".to_owned()),
            (Some(timed), None) if timed.status != 0 => {
                Some(format!("exit status {}: {}", timed.status, timed.error))
            }
            (Some(timed), None) => differing(row, system, &timed.sum, results),
        };
        match (failure, timed) {
            (Some(failure), _) => results.failures.push(format!("{} on {system}: {failure}", row.name)),
            (None, Some(timed)) => results.samples.add(row.name, system, timed.wall, timed.cpu),
            (None, None) => {}
        }
    }
}

/// Whether the job wrote something else than on the first system.
fn differing(row: &Row, system: System, sum: &str, results: &mut Results) -> Option<String> {
    let first = results.sums.entry(row.name.to_owned()).or_insert_with(|| (system, sum.to_owned()));
    (first.1 != sum).then(|| format!("wrote {sum}, but {} on {}", first.1, first.0))
}

/// The host's end of the row over the network.
#[derive(Default)]
struct Client(Option<std::process::Child>);

impl Client {
    fn see(&mut self, mark: &Mark, boot: &Boot, replayed: bool) {
        let (Mark::Begin(_), Some(port), false) = (mark, boot.port, replayed) else { return };
        let megabytes = boot.megabytes.to_string() + "M";
        let mut iperf3 = Command::new("iperf3");
        iperf3.args(["-c", "127.0.0.1", "-p", &port.to_string(), "-n", &megabytes]);
        iperf3.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        match iperf3.spawn() {
            Ok(child) => self.0 = Some(child),
            Err(error) => eprintln!("xtask: iperf3: {error}"),
        }
    }

    fn end(&mut self) {
        if let Some(mut child) = self.0.take() {
            // The server has gone; a client that is still there waits for nothing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
