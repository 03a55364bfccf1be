//! Whether a longer recording costs more: the same mixed job once and ten times as long.

use super::measure;
use super::rows::{Group, Kind, Row};
use super::script::Mark;
use super::stats::{Bar, Clock, median};
use super::systems::{self, System};
use super::workloads::Workloads;
use crate::Result;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The job: computing, allocating, making processes, writing files.
const JOB: &str = "for i in $(seq @N); do $B/hash 5; $B/fork-wait 200; $B/page-faults 40; $B/qsort 1; \
                   $B/getppid 50; cat $B/fib $B/hash >$W/copy; done";
/// Seeks per recording.
const SEEKS: u64 = 20;

/// One recording.
#[derive(Clone, Debug, Default)]
pub struct Size {
    /// Seconds of the job on the host's clock, and of processor time.
    seconds: [f64; 2],
    /// Of the whole recording.
    instructions: f64,
    log_bytes: f64,
    resident_beyond_ram: f64,
    /// Median and worst seek in seconds.
    seek: [f64; 2],
}

/// The two of them.
#[derive(Clone, Debug)]
pub struct Growth {
    short: Size,
    long: Size,
    /// The clock of the cost per instruction.
    clock: Clock,
}

impl Growth {
    /// Instructions of one part of the job; what is left is the boot.
    fn part(&self) -> f64 {
        (self.long.instructions - self.short.instructions) / 9.0
    }

    fn ns_per_instruction(&self) -> [f64; 2] {
        let [short, long] = [&self.short, &self.long].map(|size| size.seconds[self.clock as usize]);
        [short / self.part() * 1e9, long / (10.0 * self.part()) * 1e9]
    }

    /// The bars on growth.
    pub fn bars(&self) -> Vec<Bar> {
        let [short, long] = self.ns_per_instruction();
        let bar = |what, value: f64, bar| Bar { what, value: Some(value), bar, at_most: true, row: None };
        let per_instruction = |size: &Size| size.log_bytes / size.instructions;
        vec![
            bar("growth: cost per instruction of a job 10 times as long, long / short", long / short, 1.05),
            bar(
                "growth: log bytes per instruction, long / short",
                per_instruction(&self.long) / per_instruction(&self.short),
                1.05,
            ),
            bar(
                "growth: resident beyond the guest's RAM, long / short",
                self.long.resident_beyond_ram / self.short.resident_beyond_ram.max(1.0),
                1.25,
            ),
            bar("growth: median seek, long / short", self.long.seek[0] / self.short.seek[0].max(1e-9), 1.5),
        ]
    }

    /// A table of both.
    pub fn markdown(&self) -> String {
        let [short, long] = self.ns_per_instruction();
        let mut text = String::from(
            "| recording | G instructions | job, s | ns per instruction | log, KB | beyond RAM, MB | seek, median ms | worst ms |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
        );
        for (name, size, ns) in [("short", &self.short, short), ("10 times", &self.long, long)] {
            text += &format!(
                "| {name} | {:.2} | {:.2} | {ns:.3} | {:.1} | {:.0} | {:.0} | {:.0} |\n",
                size.instructions / 1e9,
                size.seconds[self.clock as usize],
                size.log_bytes / 1e3,
                size.resident_beyond_ram / 1e6,
                size.seek[0] * 1e3,
                size.seek[1] * 1e3,
            );
        }
        text
    }

    /// For `bench.json`.
    pub fn json(&self) -> Value {
        let size = |size: &Size| {
            json!({
                "wall_seconds": size.seconds[0], "cpu_seconds": size.seconds[1],
                "instructions": size.instructions, "log_bytes": size.log_bytes,
                "resident_beyond_ram_bytes": size.resident_beyond_ram,
                "seek_median_seconds": size.seek[0], "seek_worst_seconds": size.seek[1],
            })
        };
        json!({ "short": size(&self.short), "long": size(&self.long) })
    }
}

/// Records both and seeks in them.
///
/// # Errors
/// When a recording fails, differs on replay or cannot be travelled in.
pub fn measure(workloads: &Workloads, quick: bool, clock: Clock) -> Result<Growth> {
    let parts = if quick { 2 } else { 8 };
    let short = one(workloads, parts)?;
    let long = one(workloads, 10 * parts)?;
    if long.instructions <= short.instructions {
        return Err("growth: the longer job has not executed more instructions".to_owned());
    }
    Ok(Growth { short, long, clock })
}

fn one(workloads: &Workloads, parts: u32) -> Result<Size> {
    eprintln!("xtask: growth, {parts} parts");
    let job = Row {
        name: "growth",
        kind: Kind::Cpu,
        group: Group::Small,
        amount: [parts, parts],
        setup: "",
        command: JOB,
        teardown: "",
    };
    let boot = workloads.boot(Group::Small, &[job], false)?;
    let ran = measure::run(systems::launch(System::Record, &boot, workloads), &mut |_: &Mark| ())?;
    let summary: Value = serde_json::from_str(&ran.said).unwrap_or(Value::Null);
    let (Some(0), Some(timed)) = (ran.status, ran.rows.get("growth")) else {
        return Err(format!("growth: recording failed: {}", ran.noise.trim()));
    };
    let recording = boot.recording(System::Record);
    let instructions = summary["instructions"].as_u64().unwrap_or(0);
    let replayed = measure::run(systems::launch(System::Replay, &boot, workloads), &mut |_: &Mark| ())?;
    if replayed.status != Some(0) {
        return Err(format!("growth: the replay failed: {}", replayed.noise.trim()));
    }
    let seek = seeks(workloads, &recording, instructions)?;
    let _ = std::fs::remove_dir_all(&boot.folder);
    Ok(Size {
        seconds: [timed.wall, timed.cpu],
        instructions: instructions as f64,
        log_bytes: summary["log_bytes"].as_f64().unwrap_or(0.0),
        resident_beyond_ram: ran.resident_beyond_ram.unwrap_or(0) as f64,
        seek,
    })
}

/// Goes to places all over a recording through the debugger's door; the median and the longest
/// time in seconds.
fn seeks(workloads: &Workloads, recording: &Path, instructions: u64) -> Result<[f64; 2]> {
    let socket = recording.with_file_name("gdb.socket");
    let mut command = Command::new(&workloads.hindsight);
    command.arg("debug").arg(recording).args(["--at", "0", "--listen"]).arg(&socket);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().map_err(|error| format!("hindsight debug: {error}"))?;
    let result = connect(&socket).and_then(|stream| travel(stream, instructions));
    let _ = child.kill();
    let _ = child.wait();
    result.map_err(|error| format!("growth: seeking in {}: {error}", recording.display()))
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > until => return Err(error.to_string()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn travel(mut stream: UnixStream, instructions: u64) -> Result<[f64; 2]> {
    stream.set_read_timeout(Some(Duration::from_secs(120))).map_err(|error| error.to_string())?;
    let mut times = Vec::new();
    for n in 0..SEEKS {
        // Steps by the golden ratio visit everything, in both directions.
        let share = (n as f64 * 0.618_033_988_749_895).fract();
        let position = (instructions as f64 * share) as u64;
        let begun = Instant::now();
        monitor(&mut stream, &format!("seek {position}"))?;
        times.push(begun.elapsed().as_secs_f64());
    }
    let worst = times.iter().copied().fold(0.0, f64::max);
    Ok([median(times).unwrap_or(0.0), worst])
}

/// Sends a `monitor` command (gdb manual, "Packets": qRcmd) and waits for its end.
fn monitor(stream: &mut UnixStream, command: &str) -> Result {
    let hex: String = command.bytes().map(|byte| format!("{byte:02x}")).collect();
    let body = format!("qRcmd,{hex}");
    let sum = body.bytes().fold(0u8, u8::wrapping_add);
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(format!("+${body}#{sum:02x}").as_bytes()).map_err(failed)?;
    loop {
        let reply = packet(stream).map_err(failed)?;
        stream.write_all(b"+").map_err(failed)?;
        match reply.as_slice() {
            b"OK" => return Ok(()),
            // Output of the command, and whatever is said before it.
            [b'O', ..] => {}
            [b'E', ..] | [] => {
                return Err(format!("monitor {command}: {}", String::from_utf8_lossy(&reply)));
            }
            // All of the output in one, for an older way of answering.
            _ => return Ok(()),
        }
    }
}

/// The body of the next packet.
fn packet(stream: &mut UnixStream) -> std::io::Result<Vec<u8>> {
    let mut byte = [0];
    let mut next = || stream.read_exact(&mut byte).map(|()| byte[0]);
    while next()? != b'$' {}
    let mut body = Vec::new();
    loop {
        match next()? {
            b'#' => break,
            byte => body.push(byte),
        }
    }
    next()?;
    next()?;
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_read_and_acknowledged() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"+$O68690a#00$OK#9a").unwrap();
        monitor(&mut ours, "seek 5").unwrap();
        drop(ours);
        let mut sent = String::new();
        theirs.read_to_string(&mut sent).unwrap();
        assert!(sent.starts_with("+$qRcmd,7365656b2035#") && sent.ends_with("++"), "{sent}");
    }

    #[test]
    fn growth_is_told_per_instruction_of_the_job() {
        let size = |seconds: f64, instructions: f64| Size {
            seconds: [seconds; 2],
            instructions,
            log_bytes: instructions / 1e6,
            resident_beyond_ram: 1e8,
            seek: [0.1, 0.2],
        };
        // A boot of 1 G instructions, and 1 G for each part of the job.
        let growth = Growth { short: size(2.0, 2e9), long: size(21.0, 11e9), clock: Clock::Wall };
        let [short, long] = growth.ns_per_instruction();
        assert!((short - 2.0).abs() < 1e-9 && (long - 2.1).abs() < 1e-9);
        assert_eq!(growth.bars()[0].met(), Some(true));
        assert_eq!(growth.bars().len(), 4);
    }
}
