//! Recordings damaged at random.
//!
//! Each must be refused with one line that names a file of it, or replay exactly.

use super::place::{Outcome, Place};
use crate::Result;
use dice::Dice;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The statuses of a refusal: unusable input, and a recording that is damaged.
const REFUSED: [i32; 2] = [2, 5];

/// Two recordings of which one is damaged, and what the replay of it should come to.
pub struct Prepared {
    whole: PathBuf,
    other: PathBuf,
    facts: Vec<Value>,
}

fn facts(summary: &Value) -> Vec<Value> {
    ["instructions", "guest_seconds", "state_hash"].map(|name| summary[name].clone()).to_vec()
}

impl Prepared {
    /// Records them: two short guests with inputs, one of them killed, so that it has a tail.
    pub fn new(place: &Place) -> Result<Self> {
        let folder = place.folder_of_round(u64::MAX)?;
        for (name, seed) in [("whole", "1"), ("other", "2")] {
            let rec = format!("./{name}");
            let words = ["record", "-o", &rec, "--clock", "host", "--memory", "128M", "--seed", seed];
            let more = ["--checkpoint-every", "100000000", "--hash-every", "50000000", "--timeout", "0.7"];
            place
                .run(&folder, &[&words[..], &more, &["--console", "none", "--", "sleep 9"]].concat())?
                .with_status(124)?;
        }
        let whole = folder.join("whole");
        let words = ["replay", "./whole", "--json"];
        let replayed = place.run(&folder, &words)?.with_status(0)?.json()?;
        Ok(Self { whole, other: folder.join("other"), facts: facts(&replayed) })
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// One damage.
pub fn round(place: &Place, folder: &Path, prepared: Option<&Prepared>, dice: &mut Dice) -> Outcome {
    let Some(prepared) = prepared else {
        return Outcome { name: "damage".into(), result: Err("nothing is prepared".into()) };
    };
    let rec = folder.join("rec");
    let spoiled = copy(&prepared.whole, &rec).and_then(|()| spoil(&rec, &prepared.other, dice));
    match spoiled {
        Ok(name) => {
            let result = judge(place, folder, prepared).map(|refused| {
                Some(if refused { "refused".to_owned() } else { "replayed exactly".to_owned() })
            });
            Outcome { name, result }
        }
        Err(error) => Outcome { name: "damage".into(), result: Err(error.to_string()) },
    }
}

/// Spoils one file; what was done to it.
fn spoil(rec: &Path, other: &Path, dice: &mut Dice) -> std::io::Result<String> {
    let names = [
        "events.log",
        "events.log",
        "events.log",
        "manifest.json",
        "manifest.json",
        "checkpoints.log",
        "pages.store",
    ];
    let mut name = names[dice.under(names.len() as u64) as usize].to_owned();
    if !rec.join(&name).exists() {
        // Generations of pages have numbers in their names.
        let found =
            fs::read_dir(rec)?.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        name =
            found.into_iter().find(|file| file.starts_with("pages.")).unwrap_or_else(|| "events.log".into());
    }
    let path = rec.join(&name);
    let mut bytes = fs::read(&path)?;
    let length = bytes.len() as u64;
    let done = match dice.under(10) {
        0..=4 => {
            let flips = 1 + dice.under(3);
            let bits: Vec<u64> = (0..flips).map(|_| dice.under(length * 8)).collect();
            bits.iter().for_each(|bit| bytes[(bit / 8) as usize] ^= 1 << (bit % 8));
            format!("bits {bits:?} flipped")
        }
        5 | 6 => {
            let at = dice.under(length);
            bytes.truncate(at as usize);
            format!("cut at {at}")
        }
        7 => {
            bytes = fs::read(other.join(&name)).unwrap_or_default();
            "taken from another recording".to_owned()
        }
        8 => {
            let (at, count) = (dice.under(length) as usize, 1 + dice.under(64) as usize);
            let garbage: Vec<u8> = (0..count).map(|_| dice.under(256) as u8).collect();
            bytes.splice(at..at, garbage);
            format!("{count} bytes inserted at {at}")
        }
        _ => {
            fs::remove_file(&path)?;
            return Ok(format!("{name} removed"));
        }
    };
    fs::write(&path, bytes)?;
    Ok(format!("{name}: {done}"))
}

/// Whether it was refused as it should be; else it has replayed exactly.
fn judge(place: &Place, folder: &Path, prepared: &Prepared) -> Result<bool> {
    let info = place.run(folder, &["info", "./rec", "--json"])?;
    one_line_about_the_recording("info", info.status, &info.stderr)?;
    let replay = place.run(folder, &["replay", "./rec", "--json"])?;
    one_line_about_the_recording("replay", replay.status, &replay.stderr)?;
    if replay.status != Some(0) {
        return Ok(true);
    }
    if facts(&replay.json()?) != prepared.facts {
        return Err("the replay differs and does not say so".into());
    }
    Ok(false)
}

fn one_line_about_the_recording(what: &str, status: Option<i32>, stderr: &str) -> Result {
    if status == Some(0) {
        return Ok(());
    }
    let named = ["manifest.json", "events.log", "checkpoints.log", "pages.", "rec:"]
        .iter()
        .any(|name| stderr.contains(name));
    if status.is_some_and(|status| REFUSED.contains(&status)) && stderr.lines().count() == 1 && named {
        return Ok(());
    }
    Err(format!("{what} ends with {status:?} and says {stderr:?}"))
}
