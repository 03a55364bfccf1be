//! `run`, `record` and `replay`.

use super::live::{Live, Seat, console_of};
use crate::cli::{Record, Replay, Run};
use crate::failure::Failure;
use crate::inputs;
use crate::library::{self, Library};
use crate::session::{BranchPlan, GuestPlan, HostSide, Machine, Outcome, ProfileTo, machine};
use crate::summary::{NoFigures, RecordFigures};
use crate::values::{ConsoleTo, Net, Pos, RecPos};
use std::path::Path;
use timeline::{Every, Spacing};

/// Checks the options of a run, before anything is touched.
fn prepare(options: &Run) -> Result<(GuestPlan, ConsoleTo, Seat), Failure> {
    let console = console_of(&options.host)?;
    let seat = Seat::find(&console);
    let interactive = seat == Seat::Person && options.command.is_empty();
    let plan = inputs::plan(&options.guest, &options.command, seat.job_mode(), interactive)?;
    Ok((plan, console, seat))
}

/// Likewise for a run that goes on from the past.
fn prepare_branch(options: &Run, from: &RecPos) -> Result<(BranchPlan, ConsoleTo, Seat), Failure> {
    let console = console_of(&options.host)?;
    let seat = Seat::find(&console);
    let guest = &options.guest;
    if !guest.forward.is_empty() && guest.net != Net::User {
        return Err(Failure::usage("--forward needs --net user"));
    }
    let plan = BranchPlan {
        recording: Library::of_user()?.find(from.recording.as_deref())?,
        at: from.at,
        net: guest.net.clone(),
        forwards: guest.forward.clone(),
        input: seat != Seat::Nobody,
    };
    Ok((plan, console, seat))
}

/// `hindsight run`
pub fn run(options: &Run) -> Result<u8, Failure> {
    if let Some(from) = &options.from {
        let (plan, console, seat) = prepare_branch(options, from)?;
        let (live, host) = Live::begin(&console, seat, options.host.timeout, options.host.tuning()?)?;
        let (outcome, _) = machine().branch(&plan, None, host)?;
        return live.end(&outcome, options.host.json, NoFigures {});
    }
    let (plan, console, seat) = prepare(options)?;
    let (live, host) = Live::begin(&console, seat, options.host.timeout, options.host.tuning()?)?;
    let outcome = machine().run(&plan, host)?;
    live.end(&outcome, options.host.json, NoFigures {})
}

/// `hindsight record`
pub fn record(options: &Record) -> Result<u8, Failure> {
    if let Some(from) = &options.run.from {
        let (plan, console, seat) = prepare_branch(&options.run, from)?;
        return record_into(options, &plan.recording.clone(), console, seat, |folder, side| {
            let (outcome, figures) = machine().branch(&plan, Some(folder), side)?;
            Ok((outcome, figures.ok_or_else(|| Failure::host("nothing was recorded"))?))
        });
    }
    let (plan, console, seat) = prepare(&options.run)?;
    let stem = stem(&options.run.command);
    record_into(options, Path::new(&stem), console, seat, |folder, side| {
        machine().record(&plan, folder, side)
    })
}

/// Records with `record` into a new folder, whose name begins with that of `like` if nobody gave one.
fn record_into(
    options: &Record,
    like: &Path,
    console: ConsoleTo,
    seat: Seat,
    record: impl FnOnce(&Path, HostSide) -> Result<(Outcome, RecordFigures), Failure>,
) -> Result<u8, Failure> {
    let like = like.file_stem().unwrap_or_default().to_string_lossy();
    let folder = Library::of_user()?.create(options.output.as_deref(), &like)?;
    let host = &options.run.host;
    let begun = host.tuning().and_then(|tuning| Live::begin(&console, seat, host.timeout, tuning));
    let result = begun.and_then(|(live, mut side)| {
        let every = Every::instructions(options.checkpoint_every);
        let spacing = Spacing { every, budget_bytes: options.checkpoint_budget.bytes };
        side.checkpoints = (options.checkpoint_every != Some(0)).then_some(spacing);
        side.hash_every = Every::instructions(options.hash_every);
        Ok((live, record(&folder, side)?))
    });
    let (live, (outcome, figures)) = result.inspect_err(|_| {
        // A folder in which nothing was recorded is not left behind; one with something is kept.
        let _ = std::fs::remove_dir(&folder);
    })?;
    let status = live.end(&outcome, host.json, figures)?;
    if !host.json {
        eprintln!("hindsight: recorded {} ({} bytes)", folder.display(), library::bytes(&folder));
    }
    Ok(status)
}

/// `hindsight replay`
pub fn replay(options: &Replay) -> Result<u8, Failure> {
    let console = console_of(&options.host)?;
    let recording = Library::of_user()?.find(options.recording.as_deref())?;
    let profile = options.profile_engine.as_ref().map(|file| profile_to(file.as_deref())).transpose()?;
    let (live, mut host) = Live::begin(&console, Seat::Nobody, options.host.timeout, options.host.tuning()?)?;
    host.profile = profile.map(|to| (to, options.profile_from));
    let to = options.to.unwrap_or(Pos::End);
    let (outcome, figures) = machine().replay(&recording, to, options.bisect, host)?;
    if let Some(bisect) = figures.bisect.as_ref().filter(|_| !options.host.json) {
        eprint!("{bisect}");
    }
    live.end(&outcome, options.host.json, figures)
}

fn profile_to(file: Option<&Path>) -> Result<ProfileTo, Failure> {
    let Some(path) = file else { return Ok(ProfileTo::Stderr) };
    let cannot = |error| Failure::usage(format!("--profile-engine {}: {error}", path.display()));
    Ok(ProfileTo::File(std::fs::File::create(path).map_err(cannot)?, path.to_owned()))
}

/// The first part of a new recording's name: the program that ran, or `guest`.
fn stem(command: &[String]) -> String {
    let program = command.first().and_then(|line| line.split_whitespace().next()).unwrap_or("guest");
    let program = program.rsplit('/').next().unwrap_or_default();
    let harmless: String =
        program.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect();
    let harmless = harmless.trim_start_matches(['.', '-']);
    if harmless.is_empty() { "guest".to_owned() } else { harmless.chars().take(32).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recordings_are_named_after_what_ran() {
        let stem = |words: &[&str]| stem(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!(stem(&[]), "guest");
        assert_eq!(stem(&["make -j4 test"]), "make");
        assert_eq!(stem(&["/usr/bin/python3", "x.py"]), "python3");
        assert_eq!(stem(&["../.."]), "guest");
        assert_eq!(stem(&[""]), "guest");
        assert_eq!(stem(&["(sleep 1)"]), "sleep");
    }
}
