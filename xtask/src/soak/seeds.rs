//! Seeds under which a race shows: each has to show it every time.
//!
//! `explore` looks for the first failing seed of three racy guests, those of the command line's
//! tests; a round then runs one of them again, and must come to the same state.

use super::place::{Outcome, Place};
use crate::{Result, workspace};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Under how many seeds a race has to show at least once.
const SEEDS: &str = "1..200";

/// A guest with a race, and how it runs without a seed.
struct Racy {
    name: &'static str,
    cpus: &'static str,
    files: Vec<PathBuf>,
    job: &'static str,
    /// The job's status when the race shows.
    status: i32,
}

/// A race found: its guest, seed and state at the end.
struct Found {
    racy: Racy,
    seed: String,
    hash: Value,
}

/// What the rounds run again.
pub struct Prepared(Vec<Found>);

impl Prepared {
    /// Builds the guests' files and finds a seed for each.
    pub fn new(place: &Place) -> Result<Self> {
        let folder = place.folder_of_round(u64::MAX)?;
        let found = racy(place, &folder)?.into_iter().map(|racy| find(place, &folder, racy));
        Ok(Self(found.collect::<Result<_>>()?))
    }
}

fn racy(place: &Place, folder: &Path) -> Result<Vec<Racy>> {
    let sources = workspace::root().join("crates/hindsight/tests/processors");
    let module = sources.join("module");
    place.run(folder, &["guest", "module", &module.display().to_string()])?.with_status(0)?;
    Ok(vec![
        Racy {
            name: "lost update",
            cpus: "4",
            files: vec![compile(&sources, folder, "lost-update")?],
            job: "timeout 2 ./lost-update",
            status: 1,
        },
        Racy {
            name: "deadlock",
            cpus: "3",
            files: vec![compile(&sources, folder, "deadlock")?],
            job: "timeout 2 ./deadlock",
            status: 143,
        },
        Racy {
            name: "missing lock",
            cpus: "2",
            files: vec![folder.join("tickets.ko"), module.join("work.sh")],
            job: "sh work.sh",
            status: 1,
        },
    ])
}

/// A program without a C library.
fn compile(sources: &Path, folder: &Path, name: &str) -> Result<PathBuf> {
    let built = folder.join(name);
    let status = Command::new("gcc")
        .args(["-O1", "-nostdlib", "-static", "-fno-stack-protector", "-o"])
        .args([&built, &sources.join(format!("{name}.c"))])
        .status()
        .map_err(|error| format!("gcc: {error}"))?;
    if status.success() { Ok(built) } else { Err(format!("{name}.c does not compile")) }
}

fn words(command: &[&str], racy: &Racy) -> Vec<String> {
    let mut words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    for file in &racy.files {
        words.extend(["--file".to_owned(), file.display().to_string()]);
    }
    words.extend(["--json", "--cpus", racy.cpus, "--", racy.job].map(str::to_owned));
    words
}

fn find(place: &Place, folder: &Path, racy: Racy) -> Result<Found> {
    let words = words(&["explore", "--seeds", SEEDS, "--stop-after", "1"], &racy);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let report = place.run(folder, &words)?.with_status(6)?.json()?;
    let failing = &report["failing"][0];
    let recording = failing["recording"].as_str().ok_or("explore names no recording")?;
    let (seed, run) = (failing["seed"].to_string(), report["seeds_run"].to_string());
    let found = Found { seed, hash: failing["state_hash"].clone(), racy };
    let replayed = place.run(folder, &["replay", recording, "--json"])?.with_status(0)?.json()?;
    let _ = fs::remove_dir_all(recording);
    if failing["exit_status"] != found.racy.status || replayed["state_hash"] != found.hash {
        return Err(format!("{}, seed {}: {failing}, replayed: {replayed}", found.racy.name, found.seed));
    }
    println!("{}: seed {} fails, of {run} run", found.racy.name, found.seed);
    Ok(found)
}

/// One run of a failing seed.
pub fn round(place: &Place, folder: &Path, prepared: Option<&Prepared>, round: u64) -> Outcome {
    let Some(prepared) = prepared else {
        return Outcome { name: "seeds".into(), result: Err("nothing is prepared".into()) };
    };
    let found = &prepared.0[(round % prepared.0.len() as u64) as usize];
    let result = again(place, folder, found).map(|()| None);
    Outcome { name: format!("{} of seed {}", found.racy.name, found.seed), result }
}

fn again(place: &Place, folder: &Path, found: &Found) -> Result {
    let words = words(&["run", "--seed", &found.seed], &found.racy);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ran = place.run(folder, &words)?.with_status(found.racy.status)?.json()?;
    if ran["state_hash"] == found.hash {
        return Ok(());
    }
    Err(format!("it ended in state {} instead of {}", ran["state_hash"], found.hash))
}
