//! The table, for people and as JSON.

use super::Results;
use super::host::Host;
use super::rows::Kind;
use super::stats::{Bar, Clock, bars, geometric_mean};
use super::systems::System;
use serde_json::{Map, Value, json};

/// The most resident memory beyond the guest's RAM, in bytes, and its bar.
const RESIDENT_BAR: f64 = 200.0;

/// Ratio, or a dash.
fn ratio(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value >= 99.5 => format!("{value:.0}"),
        Some(value) if value >= 9.95 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

fn seconds(value: Option<f64>) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.3}"))
}

/// All bars: those on rows, memory, growth.
pub fn all_bars(results: &Results, clock: Clock) -> Vec<Bar> {
    let mut all = bars(&results.rows, &results.samples, clock);
    let resident = results.runs.iter().filter_map(|run| run.resident_beyond_ram).max();
    all.push(Bar {
        what: "resident beyond the guest's RAM, MB",
        value: resident.map(|bytes| bytes as f64 / 1e6),
        bar: RESIDENT_BAR,
        at_most: true,
        row: None,
    });
    if let Some(growth) = &results.growth {
        all.extend(growth.bars());
    }
    all
}

/// The whole report in Markdown.
pub fn markdown(results: &Results, host: &Host) -> String {
    let clock = results.clock();
    let mut text = preamble(results, host);
    text += &rows_table(results, clock);
    text += "\n| bar | figure | bar | |\n| --- | ---: | ---: | --- |\n";
    for bar in all_bars(results, clock) {
        let met = match bar.met() {
            None => "not measured",
            Some(true) => "met",
            Some(false) => "**missed**",
        };
        let row = bar.row.map_or(String::new(), |row| format!(" ({row})"));
        let sign = if bar.at_most { "≤" } else { "≥" };
        text += &format!("| {}{row} | {} | {sign} {} | {met} |\n", bar.what, ratio(bar.value), bar.bar);
    }
    text += &replays(results, clock);
    if let Some(growth) = &results.growth {
        text += &format!("\n{}", growth.markdown());
    }
    if !results.failures.is_empty() {
        text += "\nFailed:\n\n";
        for failure in &results.failures {
            text += &format!("* {failure}\n");
        }
    }
    text
}

fn preamble(results: &Results, host: &Host) -> String {
    let size = if results.quick { "`--quick` sizes" } else { "full sizes" };
    let rounds = if results.rounds == 1 {
        "one round".to_owned()
    } else {
        format!("medians of {} rounds", results.rounds)
    };
    let clock = if results.cpu_time { "processor time" } else { "wall time" };
    let load = if host.load > 0.3 {
        format!(" **The host was not idle: load {:.1} before the first row.**", host.load)
    } else {
        String::new()
    };
    format!(
        "{}, commit {}: {size}, {rounds}, {clock}. {} × {}, {:.0} GiB, Linux {}; {}.{load}\n\n",
        host.date,
        host.commit,
        host.processors,
        host.processor,
        host.memory_gib,
        host.kernel,
        if host.qemu.is_empty() { "no QEMU" } else { &host.qemu },
    )
}

/// How replays compare with recordings, apart from what differs between rounds.
fn replays(results: &Results, clock: Clock) -> String {
    use System::{Record, Replay};
    let (mut ratios, mut slower, mut told) = (Vec::new(), Vec::new(), 0);
    for row in &results.rows {
        let Some(value) = results.samples.ratio(row.name, Replay, Record, clock) else { continue };
        ratios.push(value);
        let error = results.samples.error(row.name, Replay, Record, clock);
        let Some(error) = error else { continue };
        told += 1;
        if value.ln() > 2.0 * error {
            slower.push(row.name);
        }
    }
    let Some(mean) = geometric_mean(&ratios) else { return String::new() };
    let slower = match (told, slower.is_empty()) {
        (0, _) => "rounds are too few to say which".to_owned(),
        (_, true) => "none".to_owned(),
        _ => slower.join(", "),
    };
    format!(
        "\nReplays take {mean:.3} times as long as their recordings (geometric mean of {} rows). Rows that take longer by \
         more than two standard errors: {slower}.\n",
        ratios.len()
    )
}

fn rows_table(results: &Results, clock: Clock) -> String {
    use System::{Native, QemuRecord, QemuReplay, QemuTcg, Record, Replay, Run};
    let mut text = String::from(
        "| row | native, s | run | record | replay | TCG | QEMU record | QEMU replay | replay / record | QEMU record / record |\n\
         | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for kind in [Kind::Cpu, Kind::Kernel] {
        for row in results.rows.iter().filter(|row| row.kind == kind) {
            let of = |over, under| ratio(results.samples.ratio(row.name, over, under, clock));
            let to_native = |system| of(system, Native);
            let error = results.samples.error(row.name, Replay, Record, clock);
            text += &format!(
                "| {} | {} | {} | {} | {} | {} | {} | {} | {}{} | {} |\n",
                row.name,
                seconds(results.samples.seconds(row.name, Native, clock)),
                to_native(Run),
                to_native(Record),
                to_native(Replay),
                to_native(QemuTcg),
                to_native(QemuRecord),
                to_native(QemuReplay),
                of(Replay, Record),
                error.map_or(String::new(), |error| format!(" ± {error:.2}")),
                of(QemuRecord, Record),
            );
        }
    }
    let others: Vec<_> =
        results.rows.iter().filter(|row| matches!(row.kind, Kind::Device | Kind::Boot)).collect();
    if others.is_empty() {
        return text;
    }
    text += "\nRows that cannot run natively, in seconds (disk and network always wall time):\n\n\
             | row | run | record | replay | TCG | QEMU record | QEMU replay | replay / record | QEMU record / record |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
    for row in others {
        let of = |over, under| ratio(results.samples.ratio(row.name, over, under, clock));
        text += &format!("| {}", row.name);
        for system in [Run, Record, Replay, QemuTcg, QemuRecord, QemuReplay] {
            text += &format!(" | {}", seconds(results.samples.seconds(row.name, system, clock)));
        }
        text += &format!(" | {} | {} |\n", of(Replay, Record), of(QemuRecord, Record));
    }
    text
}

/// Everything, for programs.
pub fn json(results: &Results, host: &Host) -> Value {
    let rows: Vec<Value> = results
        .rows
        .iter()
        .map(|row| {
            let mut systems = Map::new();
            for system in System::ALL {
                let samples = results.samples.of(row.name, system);
                if !samples.is_empty() {
                    let rounds: Vec<_> = samples
                        .iter()
                        .map(|[wall, cpu]| json!({ "wall_seconds": wall, "cpu_seconds": cpu }))
                        .collect();
                    let median = |clock| results.samples.seconds(row.name, system, clock);
                    systems.insert(
                        system.to_string(),
                        json!({
                            "rounds": rounds,
                            "wall_seconds": median(Clock::Wall),
                            "cpu_seconds": median(Clock::Cpu),
                        }),
                    );
                }
            }
            json!({
                "row": row.name, "kind": row.kind.to_string(), "group": row.group.to_string(),
                "amount": row.amount[usize::from(results.quick)], "systems": systems,
            })
        })
        .collect();
    let runs: Vec<Value> = results
        .runs
        .iter()
        .map(|run| {
            json!({
                "group": run.group.to_string(), "system": run.system.to_string(), "round": run.round,
                "summary": run.summary, "resident_beyond_ram_bytes": run.resident_beyond_ram,
            })
        })
        .collect();
    let bars = |clock| -> Vec<Value> {
        let bar = |bar: &Bar| {
            json!({
                "what": bar.what, "value": bar.value, "bar": bar.bar, "at_most": bar.at_most,
                "row": bar.row, "met": bar.met(),
            })
        };
        all_bars(results, clock).iter().map(bar).collect()
    };
    json!({
        "host": host.json(), "quick": results.quick, "rounds": results.rounds, "rows": rows, "runs": runs,
        "bars_wall": bars(Clock::Wall), "bars_cpu": bars(Clock::Cpu), "failures": results.failures,
        "growth": results.growth.as_ref().map(|growth| growth.json()),
    })
}
