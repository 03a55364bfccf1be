//! Taking notes of a live run.

use crate::branch::Past;
use crate::checkpointing::{Checkpointer, Spacing};
use crate::rhythm::Meter;
use crate::{Every, Session};
use base::Position;
use cpu::profile::{self, Work};
use disk::DiskError;
use machine::{Event, Gate, Input, Journal};
use recording::{End, Error, Manifest, Stopped, Writer};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is put on disk how far a working machine is: what a killed recording lacks at most. The
/// machine does not see when.
const NOTE_EVERY: Duration = Duration::from_millis(25);

/// Records a live session into a folder.
///
/// Dropping it without [`Recorder::finish`] leaves a recording without an end, as a kill would.
pub struct Recorder {
    writer: Arc<Writer>,
    hash_every: Every,
    /// Where the next state hash is to be taken, if that is known.
    next_hash: Position,
    meter: Meter,
    checkpointer: Option<Checkpointer>,
    /// When it was last noted how far the machine is.
    noted: Instant,
}

/// A recording that could not be ended properly. What is on disk replays.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The recording.
    #[error(transparent)]
    Recording(#[from] Error),
    /// A disk's contents could not be hashed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

struct Notes(Arc<Writer>);

impl Journal for Notes {
    fn note(&mut self, event: &Event) {
        let _work = profile::work(Work::Log);
        self.0.input(event.at.position, event.input.kind(), &event.payload());
    }
}

impl Recorder {
    /// Begins a recording of `session` in `folder`, which exists and is empty. From here on the
    /// session's inputs are noted; state hashes are taken at a distance of `hash_every`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn begin(
        session: &mut Session,
        folder: &Path,
        manifest: Manifest,
        hash_every: Every,
    ) -> Result<Self, Error> {
        let mut writer = Writer::create(folder, manifest)?;
        writer.name_inputs((0u16..).zip(Input::KINDS.map(str::to_owned)).collect())?;
        let writer = Arc::new(writer);
        session.machine_mut().set_gate(Gate::live(Some(Box::new(Notes(writer.clone())))));
        let next_hash = hash_every.next(session.position());
        let meter = Meter::new();
        Ok(Self { writer, hash_every, next_hash, meter, checkpointer: None, noted: Instant::now() })
    }

    /// Also takes checkpoints of `session`, spaced as `spacing` says.
    ///
    /// # Errors
    /// When they cannot be written or the first one cannot be taken.
    pub fn take_checkpoints(
        &mut self,
        session: &mut Session,
        folder: &Path,
        spacing: Spacing,
    ) -> Result<(), RecordError> {
        let id = self.writer.manifest().id;
        self.checkpointer = Some(Checkpointer::begin(session, folder, id, spacing)?);
        Ok(())
    }

    /// Begins a recording of a session that has just left the `past` of another recording: its log
    /// begins with that past. Otherwise as [`Recorder::begin`].
    ///
    /// # Errors
    /// When the past cannot be read or the folder cannot be written.
    pub fn begin_from(
        session: &mut Session,
        folder: &Path,
        past: &Past,
        hash_every: Every,
    ) -> Result<Self, Error> {
        let manifest = past.manifest()?;
        recording::copy_images(past.recording(), folder)?;
        let recorder = Self::begin(session, folder, manifest, hash_every)?;
        recording::copy_events(past.recording(), past.at(), &recorder.writer)?;
        Ok(recorder)
    }

    /// Also takes checkpoints of a session that has just left `past`, and copies some of that.
    ///
    /// # Errors
    /// As [`Recorder::take_checkpoints`].
    pub fn take_checkpoints_from(
        &mut self,
        session: &mut Session,
        folder: &Path,
        spacing: Spacing,
        past: &Past,
    ) -> Result<(), RecordError> {
        let id = self.writer.manifest().id;
        self.checkpointer = Some(Checkpointer::begin_from(session, folder, id, spacing, past)?);
        Ok(())
    }

    /// Where the session has to stop next, for [`Recorder::look`].
    pub fn next_stop(&self) -> Position {
        self.checkpointer.as_ref().map_or(self.next_hash, |c| self.next_hash.min(c.next()))
    }

    /// Looks at the session, which has just stopped at a limit and taken no input there yet.
    ///
    /// # Errors
    /// When a disk's contents cannot be hashed.
    pub fn look(&mut self, session: &mut Session) -> Result<(), DiskError> {
        let at = session.position();
        // The two are taken together, so they wait together.
        let busy = self.checkpointer.as_ref().is_some_and(Checkpointer::is_busy);
        let written = session.machine().board().memory().dirty_pages().len();
        let now = !busy && self.meter.is_due(written);
        if now && self.hash_every == Every::Work || at >= self.next_hash {
            self.writer.hash(at, &session.state_hash()?);
            self.next_hash = self.hash_every.next(at);
        }
        if self.noted.elapsed() >= NOTE_EVERY {
            // On a loaded host the writing thread comes late. What stands in the way is told by `check`.
            let _ = self.keep_up(session);
        }
        if let Some(checkpointer) = &mut self.checkpointer {
            let _work = profile::work(Work::Checkpoint);
            checkpointer.look(session, now);
        }
        Ok(())
    }

    /// Has the recording get as far as the session before anything that left the machine is shown:
    /// however a recorder ends, what was seen can be seen again.
    ///
    /// # Errors
    /// When it cannot be written any more.
    pub fn keep_up(&mut self, session: &Session) -> Result<(), Stopped> {
        let _work = profile::work(Work::Log);
        self.writer.reached(session.position());
        self.noted = Instant::now();
        self.writer.flush()
    }

    /// Whether writing still works.
    ///
    /// # Errors
    /// Why it does not.
    pub fn check(&self) -> Result<(), Stopped> {
        self.writer.check()
    }

    /// Number of events recorded so far, and bytes of log on disk.
    pub fn size(&self) -> (u64, u64) {
        self.writer.size()
    }

    /// Ends the recording where the session stands. Returns its manifest and number of events.
    ///
    /// # Errors
    /// When the recording cannot be written to its end.
    pub fn finish(mut self, session: &mut Session, end: End) -> Result<(Manifest, u64), RecordError> {
        // The last checkpoint may still be being written meanwhile.
        let hash = session.state_hash()?;
        if let Some(checkpointer) = self.checkpointer.take() {
            // Checkpoints can be made anew; a recording without some of them is whole.
            let _ = checkpointer.finish();
        }
        let now = session.moment();
        session.machine_mut().set_gate(Gate::live(None));
        let events = self.writer.size().0 + 1;
        let writer = Arc::try_unwrap(self.writer);
        let writer = writer.map_err(|_| Error::Name("the recording is still being written".into()))?;
        Ok((writer.finish(now.position, end, hash, now.time.ns())?, events))
    }
}
