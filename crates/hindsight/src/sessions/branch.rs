//! Going live from a place in the past of a recording.

use super::debug::position_of;
use super::host::LiveSeat;
use super::wire::Wire;
use super::{live_failure, outcome, record_to_end, recording_failure, replay_failure};
use crate::console::Console;
use crate::failure::Failure;
use crate::keyboard;
use crate::progress::Progress;
use crate::session::{BranchPlan, HostSide, Outcome};
use crate::stop::Stop;
use crate::summary::RecordFigures;
use crate::values::Net;
use base::Position;
use guest::job::{self, Mode};
use recording::{EndReason, HashCache, Manifest, Recording};
use std::path::Path;
use timeline::{Past, Recorder, Replay, Session, Target, Travel, Tuning, run_live};

/// What the guest's job is to the console.
#[derive(Clone, Copy)]
struct Job {
    /// It reads the console until a Control-D.
    pipe: bool,
    /// It has begun.
    listens: bool,
}

/// Runs the guest of a recording on from a place in its past, recorded into `folder` if there is one.
pub fn go_live(
    plan: &BranchPlan,
    folder: Option<&Path>,
    host: HostSide,
) -> Result<(Outcome, Option<RecordFigures>), Failure> {
    let (mut session, past) = leave(plan, &host.tuning)?;
    if session.guest().card.is_none() && plan.net != Net::None {
        return Err(Failure::usage("--net: the recorded guest has no network card"));
    }
    let job = job_at(plan, &past, &session, &host.tuning)?;
    let wire = Wire::of(&plan.net, &plan.forwards, &host.progress)?;
    let (spacing, hash_every) = (host.checkpoints, host.hash_every);
    let mode = job.map(|job| if job.pipe { Mode::Pipe } else { Mode::Batch });
    let last = past.last_serial_input(0).map_err(recording_failure)?;
    let mut seat = LiveSeat::new(host, mode, wire);
    if job.is_none_or(|job| job.listens) {
        seat.resume(last.and_then(|bytes| bytes.last().copied()));
    }
    let Some(folder) = folder else {
        drop(past);
        let ended = run_live(&mut session, &mut seat, None).map_err(live_failure)?;
        return Ok((outcome(&mut session, &seat, ended, job.is_some())?, None));
    };
    let mut recorder =
        Recorder::begin_from(&mut session, folder, &past, hash_every).map_err(Failure::host)?;
    if let Some(spacing) = spacing {
        let taken = recorder.take_checkpoints_from(&mut session, folder, spacing, &past);
        taken.map_err(Failure::host)?;
    }
    drop(past);
    let (outcome, figures) = record_to_end(session, recorder, seat, folder, job.is_some())?;
    Ok((outcome, Some(figures)))
}

/// The machine of the past, live.
fn leave(plan: &BranchPlan, tuning: &Tuning) -> Result<(Session, Past), Failure> {
    let recording = Recording::open(&plan.recording).map_err(recording_failure)?;
    // Told before anything takes long.
    Manifest::branch_of(&recording, Position::START).map_err(recording_failure)?;
    let mut travel = Travel::open(recording, tuning, &mut HashCache::for_user()).map_err(replay_failure)?;
    let at = position_of(&mut travel, plan.at).map_err(replay_failure)?;
    if let Some(reason) = Past::ended(travel.recording(), at) {
        return Err(Failure::usage(format!(
            "--from: at position {at} the guest {}; go live from an earlier place, such as {}",
            what_happened(reason),
            at.count().saturating_sub(100_000_000)
        )));
    }
    travel.seek(at).map_err(replay_failure)?;
    travel.go_live().map_err(replay_failure)
}

fn what_happened(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Panic => "had panicked",
        EndReason::TripleFault => "had triple-faulted",
        EndReason::Reset => "had reset itself",
        _ => "had powered off",
    }
}

/// The job of the guest, if it has one.
fn job_at(
    plan: &BranchPlan,
    past: &Past,
    session: &Session,
    tuning: &Tuning,
) -> Result<Option<Job>, Failure> {
    let guest = session.guest();
    let own = past.recording().manifest().guest.initrd.as_ref().map_or(0, |file| file.size as usize);
    let added = guest.initrd.as_ref().and_then(|initrd| initrd.get(own..)).unwrap_or_default();
    let Some(pipe) = job::find(added, &guest.command_line) else { return Ok(None) };
    // Nobody to give input, or somebody already did.
    let had_input = past.last_serial_input(0).map_err(recording_failure)?.is_some();
    let listens = !plan.input || had_input || has_begun(past, tuning)?;
    Ok(Some(Job { pipe, listens }))
}

/// Whether the job had reported that it begins. Only what the guest has printed tells, so this
/// replays from power-on.
fn has_begun(past: &Past, tuning: &Tuning) -> Result<bool, Failure> {
    let recording = Recording::open(past.recording().path()).map_err(recording_failure)?;
    let mut replay = Replay::open(&recording, tuning, &mut HashCache::for_user()).map_err(replay_failure)?;
    let host = HostSide {
        input: keyboard::silent(),
        console: Console::none(),
        stop: Stop::new(),
        progress: Progress::new(),
        tuning: tuning.clone(),
        checkpoints: None,
        hash_every: timeline::Every::Work,
        profile: None,
    };
    let mut audience = super::Audience::new(host, past.at());
    let result = replay.run(Target::Position(past.at()), &mut audience);
    audience.clear();
    result.map_err(replay_failure)?;
    Ok(audience.job_has_begun())
}
