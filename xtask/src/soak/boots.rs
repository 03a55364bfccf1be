//! Debian's kernels booted, over and over, with other memory, seeds and clocks each time.

use super::place::{Outcome, Place, named};
use crate::Result;
use dice::Dice;
use std::path::Path;

/// What a healthy kernel does not say.
const COMPLAINTS: [&str; 10] = [
    "WARNING",
    "BUG",
    "Call Trace",
    "nstable",
    "soft lockup",
    "Oops",
    "rcu_sched self-detected",
    "hung_task",
    "Kernel panic",
    "Spurious",
];

/// One boot.
pub fn round(place: &Place, folder: &Path, cpus: &[u32], round: u64, dice: &mut Dice) -> Outcome {
    let kernels = ["cloud", "generic"];
    let kernel = kernels[(round % 2) as usize];
    // Every kernel with every number of processors.
    let cpus = cpus[(round / 2) as usize % cpus.len()];
    let result = boot(place, folder, kernel, cpus, dice).map(|()| None);
    Outcome { name: named(kernel, cpus), result }
}

fn boot(place: &Place, folder: &Path, kernel: &str, cpus: u32, dice: &mut Dice) -> Result {
    let memory = format!("{}M", 192 + 64 * dice.under(14));
    let (seed, clock) = (dice.under(1 << 32).to_string(), ["virtual", "host"][dice.under(2) as usize]);
    let mut words = vec!["run", "--debian", kernel, "--memory", &memory, "--seed", &seed, "--clock", clock];
    let cpus = cpus.to_string();
    let job = "dmesg; echo; echo it is up with $(nproc)";
    words.extend(["--cpus", &cpus, "--timeout", "300", "--json", "--console", "log", "--", job]);
    let done = place.run(folder, &words)?;
    let log = std::fs::read(folder.join("log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    done.with_status(0)?;
    if !log.lines().any(|line| line.trim() == format!("it is up with {cpus}")) {
        return Err(format!("it did not come up with {cpus} CPUs"));
    }
    let complaint = log.lines().find(|line| COMPLAINTS.iter().any(|word| line.contains(word)));
    complaint.map_or(Ok(()), |line| Err(format!("the kernel says: {}", line.trim())))
}
