//! Recorders killed at random moments.
//!
//! What anybody has seen of the guest has to be in the replay, which has to run to the last event: a
//! recorder writes how far it is before it shows what came of it. The replay may show more than was
//! seen only if the recorder was killed between the two, and then no more than it showed at once.

use super::place::{Outcome, Place};
use crate::Result;
use dice::Dice;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Duration;

/// What a guest prints between two looks of the recorder at most, in bytes.
const SHOWN_AT_ONCE: usize = 4096;
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
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut piece) {
            let _ = begun.send(());
            seen.extend_from_slice(&piece[..count]);
        }
        seen
    });
    if at_work {
        has_begun.recv_timeout(BOOT_MAX).map_err(|_| "the guest shows nothing")?;
    }
    std::thread::sleep(after);
    child.kill().map_err(|error| error.to_string())?;
    child.wait().map_err(|error| error.to_string())?;
    let seen = reader.join().map_err(|_| "the reader died")?;
    if !folder.join("rec/manifest.json").exists() {
        return Ok("killed before the recording began".into());
    }
    let done = place.run(folder, &["replay", "./rec"])?.with_status(0)?;
    let shown = done.stdout;
    if !shown.starts_with(&seen) {
        return Err(format!("{} bytes were seen, and of those the replay shows not all", seen.len()));
    }
    if shown.len() - seen.len() > SHOWN_AT_ONCE {
        return Err(format!("the replay shows {} bytes, {} were seen", shown.len(), seen.len()));
    }
    Ok(if seen.is_empty() { "killed while booting".into() } else { "killed at work".into() })
}
