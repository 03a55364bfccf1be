//! What `run`, `record` and `replay` share: the host's side of a guest, from setting up the
//! terminal to the summary.

use crate::cli::HostOptions;
use crate::console::Console;
use crate::failure::Failure;
use crate::keyboard;
use crate::progress::Progress;
use crate::session::{HostSide, Outcome};
use crate::stop::Stop;
use crate::summary::Summary;
use crate::terminal::{self, RawMode};
use crate::values::ConsoleTo;
use guest::job::Mode;
use rustix::fs::{fstat, major, minor};
use serde::Serialize;
use std::time::{Duration, Instant};
use timeline::{Every, Tuning};

/// Who is at the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seat {
    /// A person at a terminal, typing and watching.
    Person,
    /// A program: input is piped or comes from a file.
    Pipe,
    /// Nobody types.
    Nobody,
}

impl Seat {
    /// Looks at standard input and output, which matter when the console is there.
    pub fn find(console: &ConsoleTo) -> Self {
        if *console != ConsoleTo::Stdio || is_null_device() {
            Seat::Nobody
        } else if !terminal::is_keyboard() {
            Seat::Pipe
        } else if terminal::is_screen() {
            Seat::Person
        } else {
            // With the output elsewhere a person cannot see what they type; Ctrl-C stays ours.
            Seat::Nobody
        }
    }

    /// What the console is to a job.
    pub fn job_mode(self) -> Mode {
        match self {
            Seat::Nobody => Mode::Batch,
            Seat::Pipe => Mode::Pipe,
            Seat::Person => {
                let (rows, columns) = terminal::window();
                Mode::Terminal { rows, columns, term: std::env::var("TERM").unwrap_or_default() }
            }
        }
    }
}

/// Whether standard input is `/dev/null`, character device 1:3.
fn is_null_device() -> bool {
    fstat(std::io::stdin()).is_ok_and(|facts| {
        facts.st_mode & 0o170_000 == 0o020_000 && (major(facts.st_rdev), minor(facts.st_rdev)) == (1, 3)
    })
}

/// Where the console goes: as asked, or to standard output unless that is for JSON.
pub fn console_of(options: &HostOptions) -> Result<ConsoleTo, Failure> {
    match &options.console {
        Some(ConsoleTo::Stdio) if options.json => {
            Err(Failure::usage("--json has standard output for itself; use --console FILE or none"))
        }
        Some(console) => Ok(console.clone()),
        None if options.json => Ok(ConsoleTo::None),
        None => Ok(ConsoleTo::Stdio),
    }
}

/// A guest's run from the host's side.
#[derive(Debug)]
pub struct Live {
    stop: Stop,
    _raw: Option<RawMode>,
    begun: Instant,
}

impl Live {
    /// Sets up console, keyboard, signals and timeout; the run begins now.
    pub fn begin(
        console: &ConsoleTo,
        seat: Seat,
        timeout: Option<Duration>,
        tuning: Tuning,
    ) -> Result<(Self, HostSide), Failure> {
        let stop = Stop::new();
        let console = Console::open(console, &stop)?;
        stop.on_signals()?;
        let progress = if seat == Seat::Person { Progress::quiet() } else { Progress::new() };
        let raw = if seat == Seat::Person { terminal::raw() } else { None };
        let input = match seat {
            Seat::Nobody => keyboard::silent(),
            Seat::Person | Seat::Pipe => keyboard::start(seat == Seat::Person, &stop)?,
        };
        if let Some(time) = timeout {
            stop.after(time)?;
        }
        let host = HostSide {
            input,
            console,
            stop: stop.clone(),
            progress,
            tuning,
            checkpoints: None,
            profile: None,
            hash_every: Every::Work,
        };
        Ok((Self { stop, _raw: raw, begun: Instant::now() }, host))
    }

    /// Ends it: the terminal is the user's again, and the outcome is told.
    pub fn end<F: Serialize>(self, outcome: &Outcome, json: bool, figures: F) -> Result<u8, Failure> {
        let with_job = outcome.with_job;
        let summary = Summary::new(outcome, self.begun.elapsed(), self.stop.reason(), with_job, figures);
        terminal::restore();
        if let Some(note) = &outcome.note {
            eprintln!("hindsight: {note}");
        }
        if json {
            super::print_json(&summary)?;
        } else if let Some(line) = crate::summary::notice(outcome, with_job) {
            eprintln!("hindsight: {line}");
        }
        Ok(summary.exit_status)
    }
}
