//! Debian's kernels booted, over and over, with other memory, seeds and clocks each time.

use super::place::{Outcome, Place};
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
pub fn round(place: &Place, folder: &Path, round: u64, dice: &mut Dice) -> Outcome {
    let kernel = if round.is_multiple_of(2) { "cloud" } else { "generic" };
    let result = boot(place, folder, kernel, dice).map(|()| None);
    Outcome { name: kernel.to_owned(), result }
}

fn boot(place: &Place, folder: &Path, kernel: &str, dice: &mut Dice) -> Result {
    let memory = format!("{}M", 192 + 64 * dice.under(14));
    let (seed, clock) = (dice.under(1 << 32).to_string(), ["virtual", "host"][dice.under(2) as usize]);
    let mut words = vec!["run", "--debian", kernel, "--memory", &memory, "--seed", &seed, "--clock", clock];
    words.extend(["--timeout", "300", "--json", "--console", "log", "--", "dmesg; echo; echo it is up"]);
    let done = place.run(folder, &words)?;
    let log = std::fs::read(folder.join("log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    done.with_status(0)?;
    if !log.contains("it is up") {
        return Err("it did not come up".into());
    }
    let complaint = log.lines().find(|line| COMPLAINTS.iter().any(|word| line.contains(word)));
    complaint.map_or(Ok(()), |line| Err(format!("the kernel says: {}", line.trim())))
}
