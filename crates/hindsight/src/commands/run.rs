//! `run`, `record` and `replay`.

use super::live::{Live, Seat, console_of};
use crate::cli::{Record, Replay, Run};
use crate::failure::Failure;
use crate::inputs;
use crate::library::{self, Library};
use crate::session::{GuestPlan, Machine, machine};
use crate::summary::NoFigures;
use crate::values::{ConsoleTo, Pos};

/// Checks the options of a run, before anything is touched.
fn prepare(options: &Run) -> Result<(GuestPlan, ConsoleTo, Seat), Failure> {
    let console = console_of(&options.host)?;
    let seat = Seat::find(&console);
    let interactive = seat == Seat::Person && options.command.is_empty();
    let plan = inputs::plan(&options.guest, &options.command, seat.job_mode(), interactive)?;
    Ok((plan, console, seat))
}

/// `hindsight run`
pub fn run(options: &Run) -> Result<u8, Failure> {
    let (plan, console, seat) = prepare(options)?;
    let (live, host) = Live::begin(&console, seat, options.host.timeout, options.host.tuning()?)?;
    let outcome = machine().run(&plan, host)?;
    live.end(&outcome, plan.job.is_some(), options.host.json, NoFigures {})
}

/// `hindsight record`
pub fn record(options: &Record) -> Result<u8, Failure> {
    let (plan, console, seat) = prepare(&options.run)?;
    let folder = Library::of_user()?.create(options.output.as_deref(), &stem(&options.run.command))?;
    let host = &options.run.host;
    let begun = host.tuning().and_then(|tuning| Live::begin(&console, seat, host.timeout, tuning));
    let result = begun.and_then(|(live, mut side)| {
        side.checkpoint_every = (options.checkpoint_every > 0).then_some(options.checkpoint_every);
        side.hash_every = options.hash_every;
        Ok((live, machine().record(&plan, &folder, side)?))
    });
    let (live, (outcome, figures)) = result.inspect_err(|_| {
        // A folder in which nothing was recorded is not left behind; one with something is kept.
        let _ = std::fs::remove_dir(&folder);
    })?;
    let status = live.end(&outcome, plan.job.is_some(), host.json, figures)?;
    if !host.json {
        eprintln!("hindsight: recorded {} ({} bytes)", folder.display(), library::bytes(&folder));
    }
    Ok(status)
}

/// `hindsight replay`
pub fn replay(options: &Replay) -> Result<u8, Failure> {
    let console = console_of(&options.host)?;
    let recording = Library::of_user()?.find(options.recording.as_deref())?;
    let (live, host) = Live::begin(&console, Seat::Nobody, options.host.timeout, options.host.tuning()?)?;
    let to = options.to.unwrap_or(Pos::End);
    let (outcome, figures) = machine().replay(&recording, to, options.bisect, host)?;
    if let Some(bisect) = figures.bisect.as_ref().filter(|_| !options.host.json) {
        eprint!("{bisect}");
    }
    live.end(&outcome, false, options.host.json, figures)
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
