//! What recording and replaying cost: the same guest run, recorded and replayed in turn, several
//! times, and the medians compared.
//!
//! Shown are seconds that the thread running the guest was on a processor, which a loaded host
//! disturbs least and which is the wall time of a free one, with its ratio (of recording to running,
//! and of replaying to recording); in parentheses those of all threads, and wall time.

use crate::Result;
use crate::soak::place::{Place, free_port};
use clap::Args;
use serde_json::Value;
use std::io::Write;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Bytes sent into the guest to measure the network.
const SENT: usize = 20_000_000;

/// `cargo xtask costs`
#[derive(Debug, Args)]
pub struct Options {
    /// How often each is measured
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// A root image of `hindsight guest make` with gcc; without it, what needs it is left out
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// Only workloads whose name begins with this
    #[arg(long)]
    pub only: Option<String>,
}

struct Workload {
    name: &'static str,
    needs_root: bool,
    clock: &'static str,
    job: &'static str,
}

const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "cpu",
        needs_root: false,
        clock: "virtual",
        job: "seq 1 400000 | gzip -9 | gunzip | md5sum; i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done",
    },
    Workload {
        name: "gcc",
        needs_root: true,
        clock: "virtual",
        job: "cd /tmp; for i in $(seq 1 400); do echo \"int f$i(int x) { return x * $i + x / (x | 1); }\"; done >a.c; \
              for n in 1 2 3; do gcc -O2 -c -o a.o a.c; done",
    },
    Workload {
        name: "systemd",
        needs_root: true,
        clock: "virtual",
        job: "systemctl is-system-running --wait >/dev/null; true",
    },
    Workload {
        name: "network",
        needs_root: false,
        clock: "host",
        job: "echo serving; sleep 20 | nc -l -p 8000 | md5sum",
    },
    Workload { name: "idle", needs_root: false, clock: "host", job: "sleep 60" },
];

/// What one execution took.
#[derive(Clone, Default)]
struct Cost {
    /// Seconds on a processor: the thread that runs the guest, and all threads.
    guest: f64,
    whole: f64,
    wall: f64,
    summary: Value,
}

/// Measures, and prints a table.
pub fn costs(options: &Options) -> Result {
    let place = Place::new(options.root.clone())?;
    println!("{:<9} {:>28} {:>28} {:>28}  log", "", "run", "record", "replay");
    for workload in &WORKLOADS {
        let wanted = options.only.as_deref().is_none_or(|only| workload.name.starts_with(only));
        if wanted && (place.root.is_some() || !workload.needs_root) {
            let rounds = if workload.name == "idle" { 1 } else { options.rounds };
            measure(&place, workload, rounds)?;
        }
    }
    place.remove();
    Ok(())
}

fn measure(place: &Place, workload: &Workload, rounds: usize) -> Result {
    let folder = place.folder_of_round(0)?;
    let root = place.root.as_ref().map(|root| root.display().to_string()).unwrap_or_default();
    let mut guest = vec!["--memory", "512M", "--clock", workload.clock, "--json"];
    if workload.needs_root {
        guest.extend(["--disk", &root]);
    }
    let mut all: [Vec<Cost>; 3] = Default::default();
    for round in 0..rounds {
        let port = free_port()?;
        let forward = format!("{port}:8000");
        let mut guest = guest.clone();
        let network = (workload.name == "network").then_some(port);
        if network.is_some() {
            guest.extend(["--net", "user", "--forward", &forward]);
        }
        guest.extend(["--console", "console"]);
        let _ = std::fs::remove_dir_all(folder.join("rec"));
        let run = [&["run"], &guest[..], &["--", workload.job]].concat();
        let record = [&["record", "-o", "./rec"], &guest[..], &["--", workload.job]].concat();
        let replay = ["replay", "./rec", "--json"];
        // In another order each time: what changes slowly beside us meets all alike.
        for way in 0..2 {
            match (way + round) % 2 {
                0 => all[0].push(cost(place, &folder, &run, network)?),
                _ => all[1].push(cost(place, &folder, &record, network)?),
            }
        }
        all[2].push(cost(place, &folder, &replay, None)?);
    }
    let figures = all.map(|costs| {
        let of = |what: fn(&Cost) -> f64| median(&costs, what);
        ([of(|cost| cost.guest), of(|cost| cost.whole), of(|cost| cost.wall)], costs)
    });
    let [run, record, replay] = &figures;
    let of = |[guest, whole, wall]: [f64; 3], base: f64| {
        format!("{guest:.2} {:.3} ({whole:.2}, {wall:.2})", guest / base)
    };
    let last = record.1.last().map(|cost| cost.summary.clone()).unwrap_or_default();
    let log = last["log_bytes"].as_f64().unwrap_or_default();
    let seconds = last["wall_seconds"].as_f64().unwrap_or(1.0);
    println!(
        "{:<9} {:>28} {:>28} {:>28}  {log:.0} bytes, {:.0} a second",
        workload.name,
        of(run.0, run.0[0]),
        of(record.0, run.0[0]),
        of(replay.0, record.0[0]),
        log / seconds
    );
    Ok(())
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Runs a command; with a port, sends the guest bytes that do not compress.
fn cost(place: &Place, folder: &Path, words: &[&str], port: Option<u16>) -> Result<Cost> {
    let _ = std::fs::remove_file(folder.join("console"));
    let begun = Instant::now();
    let mut child = place.spawn(folder, words, Stdio::null())?;
    if let Some(port) = port {
        send(folder, port)?;
    }
    // Nobody tells afterwards what a thread took, so it is looked at until it ends.
    let (mut guest, mut whole) = (0.0, 0.0);
    while child.try_wait().map_err(|error| error.to_string())?.is_none() {
        guest = on_processor(child.id()).unwrap_or(guest);
        whole = of_process(child.id()).unwrap_or(whole);
        std::thread::sleep(Duration::from_millis(4));
    }
    let wall = begun.elapsed().as_secs_f64();
    let done = place.attend(child)?.with_status(0)?;
    let summary = serde_json::from_slice(&done.stdout).unwrap_or_default();
    Ok(Cost { guest, whole, wall, summary })
}

/// Seconds that a process's first thread, which runs the guest, was on a processor.
fn on_processor(process: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/task/{process}/schedstat")).ok()?;
    let nanoseconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    (nanoseconds > 0.0).then_some(nanoseconds / 1e9)
}

/// Seconds of processor time of a process with all its threads, to a hundredth.
fn of_process(process: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The fields are counted from behind the name, which may contain anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
    (ticks > 0.0).then_some(ticks / 100.0)
}

fn send(folder: &Path, port: u16) -> Result {
    let console = folder.join("console");
    let begun = Instant::now();
    while !std::fs::read(&console).is_ok_and(|text| text.starts_with(b"serving")) {
        if begun.elapsed() > Duration::from_secs(300) {
            return Err("the guest does not serve".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_secs(1));
    let mut dice = dice::Dice::new(1, 1);
    let bytes: Vec<u8> = (0..SENT).map(|_| dice.byte()).collect();
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    stream.write_all(&bytes).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_process_is_read() {
        let own = std::process::id();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(60) {
            std::hint::spin_loop();
        }
        assert!(of_process(own).is_some() && on_processor(own).is_some());
        assert_eq!(of_process(u32::MAX), None);
    }
}
