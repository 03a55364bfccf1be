//! Recorders killed at random moments.
//!
//! What had left the guest a tenth of a second before the kill has to be in the replay, which has
//! to run to the last event and show nothing that was not shown.

use super::place::{Outcome, Place};
use crate::Result;
use dice::Dice;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// What may be lost.
const LOSS_MAX: Duration = Duration::from_millis(100);
/// How long a guest may boot.
const BOOT_MAX: Duration = Duration::from_secs(300);
/// A guest that shows how far it is all the time.
const JOB: &str = "i=0; while :; do i=$((i+1)); echo $i; done";

/// One kill.
pub fn round(place: &Place, folder: &Path, dice: &mut Dice) -> Outcome {
    Outcome { name: "killed".into(), result: kill(place, folder, dice).map(Some) }
}

fn kill(place: &Place, folder: &Path, dice: &mut Dice) -> Result<String> {
    let clock = ["virtual", "host"][dice.under(2) as usize];
    let at_work = dice.under(4) > 0;
    let after = Duration::from_millis(dice.under(if at_work { 1500 } else { 5000 }));
    let words = ["record", "-o", "./rec", "--memory", "128M", "--clock", clock, "--", JOB];
    let mut child = place.spawn(folder, &words, Stdio::null())?;
    let mut stdout = child.stdout.take().ok_or("no standard output")?;
    let (begun, has_begun) = channel();
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut times = Vec::new();
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut piece) {
            let _ = begun.send(());
            seen.extend_from_slice(&piece[..count]);
            times.push((Instant::now(), seen.len()));
        }
        (seen, times)
    });
    if at_work {
        has_begun.recv_timeout(BOOT_MAX).map_err(|_| "the guest shows nothing")?;
    }
    std::thread::sleep(after);
    let killed = Instant::now();
    child.kill().map_err(|error| error.to_string())?;
    child.wait().map_err(|error| error.to_string())?;
    let (seen, times) = reader.join().map_err(|_| "the reader died")?;
    if !folder.join("rec/manifest.json").exists() {
        return Ok("killed before the recording began".into());
    }
    let done = place.run(folder, &["replay", "./rec"])?.with_status(0)?;
    if !seen.starts_with(&done.stdout) {
        return Err(format!("the replay shows what was not seen, within its {} bytes", done.stdout.len()));
    }
    let settled = times.iter().rfind(|(when, _)| killed.duration_since(*when) > LOSS_MAX);
    let must = settled.map_or(0, |(_, bytes)| *bytes);
    if done.stdout.len() < must {
        let late = times.iter().find(|(_, bytes)| *bytes > done.stdout.len());
        let lost = late.map_or(Duration::ZERO, |(when, _)| killed.duration_since(*when));
        return Err(format!("{} ms lost: {} of {must} bytes", lost.as_millis(), done.stdout.len()));
    }
    Ok(if seen.is_empty() { "killed while booting".into() } else { "killed at work".into() })
}
