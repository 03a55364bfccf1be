//! Replaying a recording: the machine again, fed from the log, every state hash checked.
//!
//! The log is read twice side by side: the gate takes the inputs out of it, and this file the state
//! hashes. The hashes are read first and reach at least as far as the machine will run, so damage
//! is found before anything behind it could be missed.

use crate::images::DiskOpenError;
use crate::manifest::{guest_of, host_feature};
use crate::{Divergence, Guest, MACHINE_VERSION, SLICE, Session, SessionError, Tuning, Watcher};
use base::{GuestTime, Position};
use cpu::profile::{self, Work};
use disk::DiskError;
use machine::{Gate, InputError, Moment, Source, Stop};
use recording::{Completion, Error, EventKind, HashCache, Recording, StateHash};
use std::sync::{Arc, Mutex, PoisonError};

/// Where to replay to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// After this many instructions.
    Position(Position),
    /// This share of the recording's instructions, 0 to 1.
    Share(f64),
    /// The last moment before this much guest time has passed.
    Time(GuestTime),
    /// Where the recording ends.
    End,
}

/// Why a replay stopped without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayStop {
    /// It is where it was to go.
    Target,
    /// The recording ends here.
    End,
    /// The watcher wanted it.
    Stopped,
}

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It differs from the recording.
    #[error("{0}")]
    Diverged(Divergence),
    /// The recording is damaged or not for this machine.
    #[error(transparent)]
    Recording(#[from] Error),
    /// The machine cannot be made here.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A device failed.
    #[error("{0}")]
    Machine(String),
    /// What leaves the machine cannot be shown.
    #[error(transparent)]
    Host(#[from] crate::HostFailed),
}

impl From<DiskOpenError> for ReplayError {
    fn from(error: DiskOpenError) -> Self {
        match error {
            DiskOpenError::Recording(error) => Self::Recording(error),
            DiskOpenError::Disk(error) => Self::Disk(error),
        }
    }
}

/// A recording being replayed.
pub struct Replay {
    session: Session,
    checks: Checks,
    trouble: Trouble,
    /// Up to here everything is known to be equal.
    matched: Position,
    hashes_checked: u64,
    /// Where the recording's last event is.
    end: Moment,
    completion: Option<Completion>,
}

/// What went wrong where the gate reads the log.
pub(crate) type Trouble = Arc<Mutex<Option<Error>>>;

/// The inputs of a recording, as the gate wants them.
struct Inputs {
    events: recording::Events,
    manifest: std::path::PathBuf,
    trouble: Trouble,
}

/// A gate fed with the inputs of `recording` from `from` on; what goes wrong goes to `trouble`.
pub(crate) fn gate_from(recording: &Recording, from: Position, trouble: &Trouble) -> Gate {
    let inputs = Inputs {
        events: recording.events_from(from),
        manifest: recording.manifest_path(),
        trouble: trouble.clone(),
    };
    Gate::replay(Box::new(inputs))
}

impl Source for Inputs {
    fn next_event(&mut self) -> Option<machine::Event> {
        let _work = profile::work(Work::Log);
        loop {
            let event = match self.events.next()? {
                Ok(event) => event,
                Err(error) => return self.fail(error),
            };
            let EventKind::Input { payload, .. } = event.kind else { continue };
            match machine::Event::from_payload(event.at, &payload) {
                Ok(event) => return Some(event),
                Err(error) => {
                    let error = undecodable(&self.manifest, &error);
                    return self.fail(error);
                }
            }
        }
    }
}

impl Inputs {
    fn fail(&self, error: Error) -> Option<machine::Event> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        None
    }
}

fn undecodable(manifest: &std::path::Path, error: &InputError) -> Error {
    Error::Damaged {
        file: manifest.with_file_name("events.log"),
        offset: 0,
        chunk: None,
        why: error.to_string(),
    }
}

/// The state hashes of a recording, in order.
struct Checks {
    events: recording::Events,
    next: Option<(Position, StateHash)>,
}

impl Checks {
    fn new(events: recording::Events) -> Result<Self, Error> {
        let mut checks = Self { events, next: None };
        checks.advance()?;
        Ok(checks)
    }

    fn advance(&mut self) -> Result<(), Error> {
        self.next = None;
        for event in self.events.by_ref() {
            let event = event?;
            if let EventKind::Hash(hash) = event.kind {
                self.next = Some((event.at, hash));
                break;
            }
        }
        Ok(())
    }
}

/// The guest of a recording, once it is clear that it can be replayed here.
pub(crate) fn checked_guest(recording: &Recording, cache: &mut HashCache) -> Result<Guest, ReplayError> {
    let manifest = recording.manifest();
    manifest.check_host(&recording.manifest_path(), MACHINE_VERSION, host_feature)?;
    recording.verify_images(cache)?;
    Ok(guest_of(recording)?)
}

impl Replay {
    /// Checks that `recording` can be replayed here, and makes its machine at power-on.
    ///
    /// # Errors
    /// When it is damaged, made by another machine or for a better host, or its images changed.
    pub fn open(recording: &Recording, tuning: &Tuning, cache: &mut HashCache) -> Result<Self, ReplayError> {
        let guest = checked_guest(recording, cache)?;
        Self::of_guest(recording, guest, tuning)
    }

    /// Likewise with `guest` as [`checked_guest`] gave it.
    pub(crate) fn of_guest(
        recording: &Recording,
        guest: Guest,
        tuning: &Tuning,
    ) -> Result<Self, ReplayError> {
        let manifest = recording.manifest();
        let guest = Arc::new(guest);
        let end = end_of(recording)?;
        let trouble = Trouble::default();
        let session = Session::new(guest, tuning, gate_from(recording, Position::START, &trouble))?;
        Ok(Self {
            session,
            checks: Checks::new(recording.events())?,
            trouble,
            matched: Position::START,
            hashes_checked: 0,
            end,
            completion: manifest.completion().cloned(),
        })
    }

    /// Runs to `target` or the recording's end, whichever comes first, checking every state hash on
    /// the way and, at the end, where and how the guest stopped.
    ///
    /// # Errors
    /// When the replay differs, or cannot go on.
    pub fn run(&mut self, target: Target, watcher: &mut dyn Watcher) -> Result<ReplayStop, ReplayError> {
        let result = self.run_to(target, watcher);
        self.session.machine_mut().set_idle_horizon(GuestTime::from_ns(u64::MAX));
        // What led to an error is worth seeing.
        let shown = self.show(watcher);
        let stop = result?;
        shown.map(|()| stop)
    }

    fn run_to(&mut self, target: Target, watcher: &mut dyn Watcher) -> Result<ReplayStop, ReplayError> {
        let (limit, time) = self.limit_of(target);
        self.session.machine_mut().set_idle_horizon(time);
        loop {
            let here = self.session.moment();
            if here >= self.end {
                return self.arrive();
            }
            if here.position >= limit || here.time >= time {
                return Ok(ReplayStop::Target);
            }
            let mut next = self.end;
            let check = self.checks.next.map_or(Position::NEVER, |(at, _)| at);
            let in_time = self.session.machine().board().clock().position_of(time);
            let slice = here.position.after(SLICE);
            let stop_at = [limit, check, in_time, slice].into_iter().min().unwrap_or(slice);
            if stop_at <= next.position && stop_at > here.position {
                next = Moment { position: stop_at, time: GuestTime::ZERO };
            }
            let stop = self.session.run_until_moment(next);
            self.check_log()?;
            match stop {
                Stop::Limit => self.check_hash()?,
                Stop::Breath => {}
                // Only the horizon of a target in guest time stops an idle machine.
                Stop::Idle { until: Some(until) } if until > time => return Ok(ReplayStop::Target),
                Stop::Failed(why) => return Err(ReplayError::Machine(why)),
                _ if self.session.moment() >= self.end => return self.arrive(),
                _ => return Err(self.off_course()),
            }
            self.show(watcher)?;
            if watcher.wants_stop() {
                return Ok(ReplayStop::Stopped);
            }
        }
    }

    /// A target as a position and a guest time, whichever comes first.
    fn limit_of(&self, target: Target) -> (Position, GuestTime) {
        let never = GuestTime::from_ns(u64::MAX);
        match target {
            Target::Position(position) => (position, never),
            Target::Share(share) => {
                let count = self.end.position.count() as f64 * share.clamp(0.0, 1.0);
                (Position::from_count(count as u64), never)
            }
            Target::Time(time) => (Position::NEVER, time),
            Target::End => (Position::NEVER, never),
        }
    }

    fn show(&mut self, watcher: &mut dyn Watcher) -> Result<(), ReplayError> {
        let output = self.session.take_output();
        for (card, frame) in &output.frames {
            watcher.frame(*card, frame);
        }
        for (port, bytes) in &output.console {
            watcher.console(*port, bytes)?;
        }
        watcher.progress(self.session.moment());
        Ok(())
    }

    fn check_log(&self) -> Result<(), ReplayError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        trouble.map_or(Ok(()), |error| Err(error.into()))
    }

    fn check_hash(&mut self) -> Result<(), ReplayError> {
        let here = self.session.position();
        while let Some((at, recorded)) = self.checks.next {
            if at > here {
                break;
            }
            if at < here {
                return Err(self.off_course());
            }
            self.compare(here, &recorded)?;
            self.checks.advance()?;
        }
        Ok(())
    }

    fn compare(&mut self, here: Position, recorded: &StateHash) -> Result<(), ReplayError> {
        let replayed = self.session.state_hash()?;
        if let Some(divergence) = Divergence::between(self.matched, here, recorded, &replayed) {
            return Err(ReplayError::Diverged(divergence));
        }
        self.matched = here;
        self.hashes_checked += 1;
        Ok(())
    }

    /// At the recording's end.
    fn arrive(&mut self) -> Result<ReplayStop, ReplayError> {
        let here = self.session.moment();
        // A log that ends with a state hash says nothing about the time there.
        let time_known = self.end.time != GuestTime::ZERO;
        if here.position != self.end.position || time_known && here.time != self.end.time {
            return Err(self.off_course());
        }
        // The last input may be a jump of the clock, so this comes after the comparison.
        self.session.machine_mut().admit_due();
        self.check_log()?;
        self.check_hash()?;
        if let Some(completion) = self.completion.take() {
            self.compare(here.position, &completion.hash)?;
        }
        Ok(ReplayStop::End)
    }

    fn off_course(&self) -> ReplayError {
        ReplayError::Diverged(Divergence::of_course(self.matched, self.session.position()))
    }

    /// The machine.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// The machine, to look into.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }

    /// How many state hashes have been compared, all equal.
    pub fn hashes_checked(&self) -> u64 {
        self.hashes_checked
    }

    /// Where the recording ends.
    pub fn end(&self) -> Moment {
        self.end
    }
}

/// The moment of a recording's last event. What was recorded without an end reaches as far as that.
pub(crate) fn end_of(recording: &Recording) -> Result<Moment, Error> {
    if let Some(completion) = recording.manifest().completion() {
        return Ok(Moment { position: completion.at, time: GuestTime::from_ns(completion.guest_ns) });
    }
    let last = recording.extent().last;
    let mut end = Moment { position: last, time: GuestTime::ZERO };
    for event in recording.events_from(last) {
        let event = event?;
        if let EventKind::Input { payload, .. } = event.kind {
            let input = machine::Event::from_payload(event.at, &payload);
            end = end.max(input.map_err(|error| undecodable(&recording.manifest_path(), &error))?.at);
        }
    }
    Ok(end)
}
