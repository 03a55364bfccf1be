//! `explore`: the same guest under many schedules, to find one under which its command fails.
//!
//! A run is a function of its guest and its seed, so none is recorded at first: a seed that fails
//! is run again with a recorder, and must come to the same state.

use super::print_json;
use crate::cli::{Clock, Explore};
use crate::console::Console;
use crate::failure::Failure;
use crate::library::Library;
use crate::progress::Progress;
use crate::session::{GuestPlan, HostSide, Machine, Outcome, machine};
use crate::stop::{Reason, Stop};
use crate::summary::{Exit, exit_status};
use crate::values::Net;
use crate::{inputs, keyboard};
use guest::job::Mode;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A seed under which the guest does not end well.
#[derive(Clone, Debug, Serialize)]
struct Failing {
    seed: u64,
    exit: Exit,
    exit_status: u8,
    instructions: u64,
    state_hash: String,
    recording: PathBuf,
}

/// The object of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    seeds_run: u64,
    seeds_failed: usize,
    instructions: u64,
    wall_seconds: f64,
    failing: Vec<Failing>,
}

/// What the workers share.
struct Search<'a> {
    options: &'a Explore,
    plan: &'a GuestPlan,
    next: AtomicU64,
    enough: AtomicBool,
    stop: Stop,
    progress: Progress,
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    run: u64,
    instructions: u64,
    failing: BTreeMap<u64, Failing>,
    trouble: Option<Failure>,
}

/// `hindsight explore`
pub fn explore(options: &Explore) -> Result<u8, Failure> {
    let plan = plan(options)?;
    let stop = Stop::new();
    stop.on_signals()?;
    let begun = Instant::now();
    let search = Search {
        options,
        plan: &plan,
        next: AtomicU64::new(options.seeds.first),
        enough: AtomicBool::new(false),
        stop,
        progress: Progress::new(),
        found: Mutex::default(),
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            scope.spawn(|| search.work());
        }
    });
    search.progress.clear();
    let found = search.found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(trouble) = found.trouble {
        return Err(trouble);
    }
    let report = Report {
        seeds_run: found.run,
        seeds_failed: found.failing.len(),
        instructions: found.instructions,
        wall_seconds: begun.elapsed().as_secs_f64(),
        failing: found.failing.into_values().collect(),
    };
    if options.json {
        print_json(&report)?;
    } else {
        eprintln!("hindsight: {} of {} seeds fail", report.seeds_failed, report.seeds_run);
    }
    Ok(match search.stop.reason() {
        Some(Reason::Signal(signal)) => 128 + signal,
        _ if report.seeds_failed > 0 => Failure::FOUND,
        _ => 0,
    })
}

/// The guest, once it is clear that its runs are functions of their seeds.
fn plan(options: &Explore) -> Result<GuestPlan, Failure> {
    if options.guest.net != Net::None {
        return Err(Failure::usage("explore: a guest with a network does not run the same way twice"));
    }
    if options.guest.clock == Some(Clock::Host) {
        return Err(Failure::usage("explore: --clock host does not run the same way twice; leave it out"));
    }
    inputs::plan(&options.guest, &options.command, Mode::Batch, false)
}

impl Search<'_> {
    /// Runs one seed after another until there are none left.
    fn work(&self) {
        while !self.enough.load(Ordering::SeqCst) && self.stop.reason().is_none() {
            let seed = self.next.fetch_add(1, Ordering::SeqCst);
            if seed > self.options.seeds.last {
                return;
            }
            if let Err(trouble) = self.seed(seed) {
                self.enough.store(true, Ordering::SeqCst);
                self.found().trouble.get_or_insert(trouble);
            }
        }
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs the guest with a seed, and records it if it fails.
    fn seed(&self, seed: u64) -> Result<(), Failure> {
        let plan = GuestPlan { seed, ..self.plan.clone() };
        let (host, stop) = self.host()?;
        let outcome = machine().run(&plan, host)?;
        if self.stop.reason().is_some() {
            return Ok(());
        }
        let status = exit_status(&outcome, stop.reason(), plan.job.is_some());
        {
            let mut found = self.found();
            found.run += 1;
            found.instructions += outcome.instructions;
            let (run, failed) = (found.run, found.failing.len());
            self.progress.update(|| format!("{run} seeds run, {failed} fail"));
        }
        if status == 0 {
            return Ok(());
        }
        let Some(recording) = self.record(&plan, &outcome)? else { return Ok(()) };
        let failing = Failing {
            seed,
            exit: outcome.exit,
            exit_status: status,
            instructions: outcome.instructions,
            state_hash: outcome.state_hash,
            recording,
        };
        self.progress.clear();
        if !self.options.json {
            let name = failing.recording.display();
            eprintln!("hindsight: seed {seed} fails with status {status}: recorded {name}");
        }
        let mut found = self.found();
        found.failing.insert(seed, failing);
        if self.options.stop_after.is_some_and(|count| found.failing.len() >= count) {
            self.enough.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Records a run that failed; `None` when the user has ended everything meanwhile.
    fn record(&self, plan: &GuestPlan, before: &Outcome) -> Result<Option<PathBuf>, Failure> {
        let stem = format!("{}-seed-{}", self.options.output.as_deref().unwrap_or("explore"), plan.seed);
        let folder = Library::of_user()?.create(None, &stem)?;
        let (host, _) = self.host()?;
        let result = machine().record(plan, &folder, host);
        let (outcome, figures) = result.inspect_err(|_| {
            let _ = std::fs::remove_dir(&folder);
        })?;
        if self.stop.reason().is_some() {
            let _ = std::fs::remove_dir_all(&folder);
            return Ok(None);
        }
        // The host's time ends a run anywhere.
        let timed = before.exit == Exit::Timeout && outcome.exit == Exit::Timeout;
        if outcome.state_hash != before.state_hash && !timed {
            return Err(Failure::with_status(
                Failure::DIVERGED,
                format!("seed {} ran twice and came to two states; recorded {}", plan.seed, folder.display()),
            ));
        }
        Ok(Some(figures.recording))
    }

    /// The host's side of one run, which ends when everything does or its own time is over.
    fn host(&self) -> Result<(HostSide, Stop), Failure> {
        let stop = self.stop.child();
        if let Some(time) = self.options.timeout {
            stop.after_quietly(time)?;
        }
        let host = HostSide {
            input: keyboard::silent(),
            console: Console::none(),
            stop: stop.clone(),
            progress: Progress::quiet(),
            tuning: self.options.tuning()?,
            checkpoints: Some(timeline::Spacing::default()),
            profile: None,
            hash_every: timeline::Every::Work,
        };
        Ok((host, stop))
    }
}
