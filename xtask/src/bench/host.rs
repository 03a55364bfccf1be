//! What the figures were taken on.

use super::systems::QEMU;
use serde_json::{Value, json};
use std::fs;
use std::process::Command;

/// The machine and the programs.
#[derive(Clone, Debug)]
pub struct Host {
    /// The processor's name.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// RAM in GiB.
    pub memory_gib: f64,
    /// The kernel's release.
    pub kernel: String,
    /// QEMU's version line.
    pub qemu: String,
    /// The commit measured.
    pub commit: String,
    /// Programs that were running or waiting before the first row, averaged over a minute.
    pub load: f64,
    /// The day, UTC.
    pub date: String,
}

impl Host {
    /// Looks at it.
    pub fn look() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kilobytes = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kilobytes = kilobytes.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok());
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            processor: processor
                .map_or("unknown", |text| text.trim_start_matches([' ', '\t', ':']))
                .to_owned(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: kilobytes.unwrap_or(0.0) / f64::from(1 << 20),
            kernel: first_line("uname", &["-r"]),
            qemu: first_line(QEMU, &["--version"]),
            commit: first_line("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            load: load.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0),
            date: first_line("date", &["-u", "+%Y-%m-%d"]),
        }
    }

    /// For `bench.json`.
    pub fn json(&self) -> Value {
        json!({
            "processor": self.processor, "processors": self.processors, "memory_gib": self.memory_gib,
            "kernel": self.kernel, "qemu": self.qemu, "commit": self.commit, "load_before": self.load,
            "date": self.date,
        })
    }
}

/// The first line that a program prints, or nothing.
fn first_line(program: &str, words: &[&str]) -> String {
    let output = Command::new(program).args(words).current_dir(crate::workspace::root()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or_default().to_owned()
}
