//! Soaks: the same promise tested over and over, for as long as one likes.
//!
//! `cargo xtask soak KIND --count N --seed N` drives the real command line. Each kind is one file
//! with one function that does a single round; this file chooses rounds, counts, and keeps what
//! failed. A small share of each runs with the tests.

mod boots;
mod damage;
mod kills;
mod pairs;
pub mod place;
mod seeds;
#[cfg(test)]
mod tests;
mod travelling;

use crate::Result;
use clap::{Args, ValueEnum};
use dice::Dice;
use place::{Outcome, Place};
use std::path::PathBuf;
use std::time::Instant;

/// What to soak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Guests recorded and replayed: every replay has to be the same to the last bit
    Pairs,
    /// Debian's kernels booted: none may complain in its log
    Boots,
    /// Recorders killed at random moments: what was flushed has to replay
    Kills,
    /// Recordings damaged at random: an error naming file and place, or an exact replay
    Damage,
    /// Races that `explore` finds: a failing seed has to fail each time
    Seeds,
    /// Random moves of a debugger: every stop has to be where the truth says; a round is one move
    Gdb,
    /// Random positions: each has to be the same state from wherever one comes; a round is one position
    Positions,
}

/// `cargo xtask soak`
#[derive(Debug, Args)]
pub struct Options {
    /// What to soak
    pub kind: Kind,
    /// How many rounds
    #[arg(long, default_value_t = 10)]
    pub count: u64,
    /// What is random follows from it and the round's number
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A root image of `hindsight guest make` with gcc, redis, iperf3, python3, curl and stress-ng;
    /// without it, what needs it is left out
    #[arg(long)]
    pub root: Option<PathBuf>,
    /// A recording to travel in; without it one is made, of a guest that boots and does a little work
    #[arg(long)]
    pub recording: Option<PathBuf>,
    /// Only pairs whose name begins with one of these, such as `gcc,crew`
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<String>,
    /// Numbers of processors for the guests of pairs and boots, which take one after the other
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=16))]
    pub cpus: Vec<u32>,
    /// Busy threads beside, to load the host
    #[arg(long, default_value_t = 0)]
    pub load: usize,
}

/// Rounds after which it is told how far a soak is.
const TOLD_EVERY: u64 = 25;

/// Soaks, telling each failure as it comes and the sum at the end.
pub fn soak(options: &Options) -> Result {
    let place = Place::new(options.root.clone())?;
    let _load = place::Load::begin(options.load);
    match options.kind {
        Kind::Gdb => travelling::test("random_gdb", options),
        Kind::Positions => travelling::test("travel", options),
        _ => run(&place, options),
    }
}

fn run(place: &Place, options: &Options) -> Result {
    let begun = Instant::now();
    let mut failures = 0;
    let mut told = std::collections::BTreeMap::<String, u64>::new();
    let (mut to_damage, mut seeds) = (None, None);
    match options.kind {
        Kind::Damage => to_damage = Some(damage::Prepared::new(place)?),
        Kind::Seeds => seeds = Some(seeds::Prepared::new(place)?),
        _ => {}
    }
    for round in 0..options.count {
        let mut dice = Dice::new(options.seed, round);
        let folder = place.folder_of_round(round)?;
        let outcome = match options.kind {
            Kind::Pairs => pairs::round(place, &folder, options, round, &mut dice),
            Kind::Boots => boots::round(place, &folder, &options.cpus, round, &mut dice),
            Kind::Kills => kills::round(place, &folder, &mut dice),
            Kind::Damage => damage::round(place, &folder, to_damage.as_ref(), &mut dice),
            Kind::Seeds => seeds::round(place, &folder, seeds.as_ref(), round),
            Kind::Gdb | Kind::Positions => return Err("these are tests of their own".into()),
        };
        let Outcome { name, result } = outcome;
        match result {
            Ok(note) => {
                *told.entry(note.unwrap_or_else(|| name.clone())).or_default() += 1;
                // What went well leaves nothing.
                let _ = std::fs::remove_dir_all(&folder);
            }
            Err(why) => {
                failures += 1;
                println!(
                    "round {round} ({name}, seed {}): {why}; kept in {}",
                    options.seed,
                    folder.display()
                );
            }
        }
        let done = round + 1;
        if done % TOLD_EVERY == 0 && done < options.count {
            let seconds = begun.elapsed().as_secs();
            eprintln!("xtask: {done} of {} rounds in {seconds} s, {failures} failures", options.count);
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let kinds: Vec<String> = told.iter().map(|(name, count)| format!("{count} {name}")).collect();
    println!(
        "{:?}: {} rounds in {seconds:.0} s, {failures} failures; {}",
        options.kind,
        options.count,
        kinds.join(", ")
    );
    if failures == 0 {
        place.remove();
        return Ok(());
    }
    Err(format!("{failures} of {} rounds failed", options.count))
}
