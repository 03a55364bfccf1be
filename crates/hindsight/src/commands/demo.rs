//! `demo`: a real Debian guest at work, recorded, replayed twice, and compared.

use super::live::{Live, Seat};
use super::print;
use crate::cli::{Clock, CpuModel, Demo, OnReset};
use crate::failure::Failure;
use crate::library;
use crate::progress::Progress;
use crate::session::{GuestPlan, Machine, Outcome, machine, usual_tuning};
use crate::summary::{Exit, NoFigures, RecordFigures, Summary};
use crate::values::{ConsoleTo, Net, Pos};
use guest::job::{Job, Mode};
use guest::{Cache, Flavour, SmallGuest};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What the guest does: compress, hash, fork, sort, and talk to itself over the network.
const WORK: &str = r#"
echo "Linux $(uname -r), $(nproc) processor, $(grep -c . /proc/modules) modules"
seq 1 200000 | gzip -9 | gunzip | sha256sum
i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i + 1)); done; echo "200 processes came and went"
mkdir -p /tmp/www && seq 1 5000 >/tmp/www/numbers
httpd -p 127.0.0.1:8080 -h /tmp/www
wget -q -O - http://127.0.0.1:8080/numbers | sort -rn | head -n 3 | xargs echo "highest over the network:"
dd if=/dev/urandom bs=1k count=64 2>/dev/null | sha256sum | cut -c1-16
"#;

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Figures {
    record: Summary<RecordFigures>,
    replay_wall_seconds: Vec<f64>,
    hashes_checked: u64,
    exact: bool,
}

/// `hindsight demo`
pub fn demo(options: &Demo) -> Result<u8, Failure> {
    let say = |text: &str| if options.json { Ok(()) } else { print(text) };
    let progress = Progress::new();
    let guest = SmallGuest::obtain(&Cache::of_user()?, Flavour::Cloud, &mut |line| progress.line(line))?;
    progress.clear();
    let folder = Scratch::new()?;
    let console = if options.json { ConsoleTo::None } else { ConsoleTo::Stdio };

    say("Recording a Debian guest at work:")?;
    let (live, host) = Live::begin(&console, Seat::Nobody, options.timeout, usual_tuning())?;
    let begun = Instant::now();
    let (recorded, figures) = machine().record(&plan(guest), &folder.0, host)?;
    let wall = begun.elapsed();
    if recorded.exit != Exit::Command || recorded.job_status != Some(0) {
        return live.end(&recorded, options.json, figures);
    }
    say(&format!(
        "  {} instructions in {:.2} s; {} events, {} KB of log",
        grouped(recorded.instructions),
        wall.as_secs_f64(),
        figures.events,
        figures.log_bytes.div_ceil(1024),
    ))?;

    let mut replays = Vec::new();
    let mut hashes_checked = 0;
    for _ in 0..2 {
        let (live, host) = Live::begin(&ConsoleTo::None, Seat::Nobody, options.timeout, usual_tuning())?;
        let begun = Instant::now();
        let (replayed, figures) = machine().replay(&folder.0, Pos::End, false, host)?;
        replays.push(begun.elapsed());
        hashes_checked = figures.hashes_checked;
        if !same(&recorded, &replayed) {
            say("The replay differs.")?;
            let status = live.end(&replayed, options.json, NoFigures {})?;
            return Ok(if status == 0 { Failure::DIVERGED } else { status });
        }
        say(&format!(
            "Replayed in {:.2} s: the same {} instructions, {hashes_checked} state hashes equal.",
            begun.elapsed().as_secs_f64(),
            grouped(replayed.instructions),
        ))?;
    }
    say(&format!("Final state, three times: {}", recorded.state_hash))?;
    if options.json {
        let record = Summary::new(&recorded, wall, None, true, figures);
        let replay_wall_seconds = replays.iter().map(Duration::as_secs_f64).collect();
        super::print_json(&Figures { record, replay_wall_seconds, hashes_checked, exact: true })?;
    }
    Ok(0)
}

fn same(recorded: &Outcome, replayed: &Outcome) -> bool {
    let end = |outcome: &Outcome| (outcome.instructions, outcome.guest_ns, outcome.state_hash.clone());
    replayed.exit != Exit::Diverged && end(recorded) == end(replayed)
}

fn plan(guest: SmallGuest) -> GuestPlan {
    GuestPlan {
        kernel: guest.kernel,
        initrd: Some(guest.initrd),
        files: Vec::new(),
        job: Some(Job { script: WORK.trim().to_owned(), mode: Mode::Batch }),
        append: "console=ttyS0 quiet loglevel=1".to_owned(),
        memory_bytes: 512 << 20,
        cpus: 1,
        cpu: CpuModel::V3,
        disks: Vec::new(),
        net: Net::None,
        forwards: Vec::new(),
        clock: Clock::Virtual,
        seed: 0,
        reset: OnReset::Exit,
        debug_ports: false,
    }
}

/// 1234567 as 1,234,567.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The demo's recording, which goes away with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("hindsight-demo-{}", std::process::id()));
        std::fs::create_dir(&path).map_err(|error| Failure::host(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = library::remove(&self.0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(super::grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
