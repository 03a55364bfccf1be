//! The machine behind the seam: plans become guests, sessions become outcomes.

mod branch;
mod debug;
mod host;
mod profile;
mod recordings;
mod registers;
mod target;
mod wire;

use crate::cli::{Clock, CpuModel, OnReset};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::session::{BranchPlan, GuestPlan, HostSide, Listen, Machine, Outcome, Ready};
use crate::stop::{Reason, Stop};
use crate::summary::{Exit, RecordFigures, ReplayFigures, exit_status};
use crate::values::{Net, Pos};
use base::{GuestTime, Position};
use disk::Image;
use host::{Audience, LiveSeat, Narrowing};
use recording::{End, EndReason, Error, HashCache, Recording};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use timeline::{
    Card, ClockMode, DiskSpec, Ended, Files, Guest, KernelFile, LiveError, Recorder, Replay, ReplayError,
    ReplayStop, Session, SessionError, Target, run_live,
};
use wire::Wire;

/// What a virtual real-time clock shows at power-on: 2024-01-01, in nanoseconds since 1970.
const VIRTUAL_START_UNIX_NS: u64 = 1_704_067_200_000_000_000;

/// The machine of this build.
#[derive(Debug)]
pub struct Sessions;

impl Machine for Sessions {
    fn run(&self, plan: &GuestPlan, host: HostSide) -> Result<Outcome, Failure> {
        let wire = Wire::of(&plan.net, &plan.forwards, &host.progress)?;
        let mut session = session_of(plan, &host)?;
        let mut seat = LiveSeat::new(host, plan.job.as_ref().map(|job| job.mode.clone()), wire);
        let ended = run_live(&mut session, &mut seat, None).map_err(live_failure)?;
        outcome(&mut session, &seat, ended, plan.job.is_some())
    }

    fn record(
        &self,
        plan: &GuestPlan,
        folder: &Path,
        host: HostSide,
    ) -> Result<(Outcome, RecordFigures), Failure> {
        let wire = Wire::of(&plan.net, &plan.forwards, &host.progress)?;
        let mut session = session_of(plan, &host)?;
        let files = Files { initrd: plan.initrd.as_deref(), disks: &plan.disks };
        let manifest =
            timeline::describe(session.guest(), files, &mut HashCache::for_user()).map_err(usage_failure)?;
        let mut recorder =
            Recorder::begin(&mut session, folder, manifest, host.hash_every).map_err(host_failure)?;
        if let Some(spacing) = host.checkpoints {
            recorder.take_checkpoints(&mut session, folder, spacing).map_err(Failure::host)?;
        }
        let seat = LiveSeat::new(host, plan.job.as_ref().map(|job| job.mode.clone()), wire);
        record_to_end(session, recorder, seat, folder, plan.job.is_some())
    }

    fn branch(
        &self,
        plan: &BranchPlan,
        folder: Option<&Path>,
        host: HostSide,
    ) -> Result<(Outcome, Option<RecordFigures>), Failure> {
        branch::go_live(plan, folder, host)
    }

    fn replay(
        &self,
        recording: &Path,
        to: Pos,
        bisect: bool,
        mut host: HostSide,
    ) -> Result<(Outcome, ReplayFigures), Failure> {
        let tuning = host.tuning.clone();
        let recording = Recording::open(recording).map_err(recording_failure)?;
        let cache = &mut HashCache::for_user();
        let mut replay = Replay::open(&recording, &tuning, cache).map_err(replay_failure)?;
        let profile = host.profile.take();
        let mut audience = Audience::new(host, replay.end().position);
        let result = match profile {
            None => replay.run(target(to), &mut audience),
            Some((report, from)) => {
                profile::run(&mut replay, from.map(target), target(to), &mut audience, report)?
            }
        };
        audience.clear();
        let mut found = None;
        let (exit, note) = match result {
            Ok(ReplayStop::Stopped) => (stopped_exit(audience.stop().reason()), None),
            Ok(ReplayStop::Target) => (Exit::EndOfRecording, None),
            Ok(ReplayStop::End) => (Exit::EndOfRecording, unfinished(&recording)),
            Err(ReplayError::Diverged(divergence)) => {
                if bisect {
                    let finding = timeline::bisect(
                        &recording,
                        &tuning,
                        cache,
                        &divergence,
                        &mut Narrowing(&mut audience),
                    );
                    audience.clear();
                    found = finding.map_err(replay_failure)?;
                }
                let foreign = timeline::foreign_processor(&recording);
                let why = foreign.map_or_else(String::new, |why| format!("; {why}"));
                (Exit::Diverged, Some(format!("{divergence}{why}")))
            }
            Err(error) => return Err(replay_failure(error)),
        };
        let figures = ReplayFigures { hashes_checked: replay.hashes_checked(), bisect: found };
        let session = replay.session_mut();
        let now = session.moment();
        let outcome = Outcome {
            instructions: now.position.count(),
            guest_ns: now.time.ns(),
            state_hash: session.state_hash().map_err(Failure::host)?.combined().to_string(),
            exit,
            job_status: audience.job_status(),
            debug_exit: None,
            with_job: false,
            note,
        };
        Ok((outcome, figures))
    }

    fn debug(
        &self,
        recording: &Path,
        at: Option<Pos>,
        symbols: &[std::path::PathBuf],
        listen: &Listen,
        ready: &mut dyn FnMut(&Ready),
        stop: &Stop,
    ) -> Result<(), Failure> {
        debug::serve(recording, at, symbols, listen, ready, stop)
    }

    fn info(&self, recording: &Path) -> Result<(String, serde_json::Value), Failure> {
        recordings::info(recording)
    }

    fn pack(&self, recording: &Path, output: &Path, progress: &Progress) -> Result<(), Failure> {
        recordings::pack(recording, output, progress)
    }
}

/// Runs a session that is being recorded to its end.
fn record_to_end(
    mut session: Session,
    mut recorder: Recorder,
    mut seat: LiveSeat,
    folder: &Path,
    with_job: bool,
) -> Result<(Outcome, RecordFigures), Failure> {
    let ended = match run_live(&mut session, &mut seat, Some(&mut recorder)) {
        Ok(ended) => ended,
        Err(error) => {
            if !matches!(error, LiveError::Recording(_)) {
                // What is there is worth keeping; the failure below is what counts.
                let end = End { reason: EndReason::Failed, status: Failure::HOST.into() };
                let _ = recorder.finish(&mut session, end);
            }
            return Err(live_failure(error));
        }
    };
    let outcome = outcome(&mut session, &seat, ended, with_job)?;
    let status = exit_status(&outcome, seat.stop().reason(), with_job);
    let end = End { reason: end_reason(outcome.exit), status: status.into() };
    let (_, events) = recorder.finish(&mut session, end).map_err(Failure::host)?;
    let (log_bytes, checkpoint_bytes) = recordings::bytes_by_use(folder);
    let recording = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    Ok((outcome, RecordFigures { recording, events, log_bytes, checkpoint_bytes }))
}

/// The machine of a plan, at power-on.
fn session_of(plan: &GuestPlan, host: &HostSide) -> Result<Session, Failure> {
    let guest = Arc::new(guest_of(plan)?);
    Session::new(guest, &host.tuning, machine::Gate::live(None)).map_err(session_failure)
}

fn guest_of(plan: &GuestPlan) -> Result<Guest, Failure> {
    let level = match plan.cpu {
        CpuModel::V2 => x86::Level::V2,
        CpuModel::V3 => x86::Level::V3,
    };
    let clock = match plan.clock {
        Clock::Virtual => ClockMode::Virtual,
        Clock::Host => ClockMode::Host,
    };
    let disks = plan.disks.iter().map(|path| {
        let image = Image::open(path).map_err(Failure::usage)?;
        Ok(DiskSpec { format: image.format(), base: Arc::new(image) })
    });
    Ok(Guest {
        kernel: KernelFile { path: plan.kernel.clone(), bytes: Arc::new(plan.kernel()?) },
        initrd: plan.initrd()?.map(Arc::new),
        command_line: plan.append.clone(),
        memory_bytes: plan.memory_bytes,
        cpus: plan.cpus.into(),
        model: x86::CpuModel::for_host(level, &cpu::host_features(), plan.cpus.into()),
        disks: disks.collect::<Result<_, Failure>>()?,
        card: (plan.net != Net::None).then(Card::default),
        seed: plan.seed,
        clock,
        start_of_day_unix_ns: match clock {
            ClockMode::Virtual => VIRTUAL_START_UNIX_NS,
            ClockMode::Host => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                now.map_or(VIRTUAL_START_UNIX_NS, |now| now.as_nanos() as u64)
            }
        },
        reboots: plan.reset == OnReset::Continue,
        debug_ports: plan.debug_ports,
    })
}

fn outcome(session: &mut Session, seat: &LiveSeat, ended: Ended, with_job: bool) -> Result<Outcome, Failure> {
    let now = session.moment();
    let halted = "the guest's processor halted with nothing left to wake it";
    Ok(Outcome {
        instructions: now.position.count(),
        guest_ns: now.time.ns(),
        state_hash: session.state_hash().map_err(Failure::host)?.combined().to_string(),
        job_status: seat.job_status(),
        debug_exit: if let Ended::DebugExit(value) = ended { Some(value) } else { None },
        with_job,
        note: (ended == Ended::Halted).then(|| halted.to_owned()),
        exit: match ended {
            Ended::PowerOff | Ended::Halted if seat.job_status().is_some() => Exit::Command,
            Ended::PowerOff | Ended::Halted => Exit::Poweroff,
            Ended::DebugExit(_) => Exit::DebugPort,
            Ended::Reset => Exit::Reset,
            Ended::Panic => Exit::Panic,
            Ended::TripleFault => Exit::TripleFault,
            Ended::Stopped => stopped_exit(seat.stop().reason()),
        },
    })
}

fn stopped_exit(reason: Option<Reason>) -> Exit {
    if reason == Some(Reason::Timeout) { Exit::Timeout } else { Exit::Interrupted }
}

fn end_reason(exit: Exit) -> EndReason {
    match exit {
        Exit::Poweroff => EndReason::Poweroff,
        Exit::Command => EndReason::Command,
        Exit::Panic => EndReason::Panic,
        Exit::TripleFault => EndReason::TripleFault,
        Exit::Reset => EndReason::Reset,
        Exit::Timeout => EndReason::Timeout,
        Exit::Interrupted => EndReason::Interrupted,
        Exit::DebugPort => EndReason::DebugExit,
        Exit::Diverged | Exit::EndOfRecording => EndReason::Failed,
    }
}

/// What to say about a recording whose recorder was killed.
fn unfinished(recording: &Recording) -> Option<String> {
    let extent = recording.extent();
    let last = extent.last;
    (!extent.ended)
        .then(|| format!("the recording was not ended; this is its last event, at position {last}"))
}

fn target(to: Pos) -> Target {
    match to {
        Pos::Count(count) => Target::Position(Position::from_count(count)),
        Pos::Share(share) => Target::Share(share),
        Pos::Time(time) => Target::Time(GuestTime::from_ns(time.as_nanos() as u64)),
        Pos::End => Target::End,
    }
}

fn session_failure(error: SessionError) -> Failure {
    Failure::usage(error)
}

fn live_failure(error: LiveError) -> Failure {
    Failure::host(error)
}

fn usage_failure(error: Error) -> Failure {
    Failure::usage(error)
}

fn host_failure(error: Error) -> Failure {
    Failure::host(error)
}

fn recording_failure(error: Error) -> Failure {
    let status = if error.is_about_the_recording() { Failure::RECORDING } else { Failure::USAGE };
    Failure::with_status(status, error)
}

fn replay_failure(error: ReplayError) -> Failure {
    match error {
        ReplayError::Recording(error) => recording_failure(error),
        ReplayError::Diverged(divergence) => Failure::with_status(Failure::DIVERGED, divergence),
        ReplayError::Session(error) => Failure::with_status(Failure::RECORDING, error),
        ReplayError::Disk(error) => Failure::with_status(Failure::RECORDING, error),
        ReplayError::Machine(_) | ReplayError::Host(_) => Failure::host(error),
    }
}
