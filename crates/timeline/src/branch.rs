//! Leaving the past: what a live machine that began as a replay knows of where it came from.
//!
//! A branch is recorded with its whole past in its own log (see `recording::copy_events`), so it
//! needs nothing of the recording it left, and replays like any other. What is kept here is what
//! that copy is made from.

use crate::capture::Capture;
use base::Position;
use disk::Snapshot;
use recording::{Checkpoint, Checkpoints, EndReason, Error, EventKind, Manifest, Recording};
use std::sync::Arc;

/// The past of a session that was made live by [`crate::Travel::go_live`].
pub struct Past {
    recording: Recording,
    at: Position,
    /// The recording's checkpoints, the last of them before `at`, and what differs here from it.
    pub(crate) checkpoint: Option<(Arc<Checkpoints>, Arc<Checkpoint>, Difference)>,
    /// Pages that are not as at power-on.
    pub(crate) from_power_on: Vec<u32>,
}

/// What differs between two states.
pub(crate) struct Difference {
    /// Pages of RAM.
    pub pages: Vec<u32>,
    /// The disks in the earlier state.
    pub disks: Vec<Snapshot>,
}

impl Difference {
    pub fn between(from: &Capture, to: &Capture) -> Self {
        let mut pages = Vec::new();
        from.ram.differences(&to.ram, &mut |page| pages.push(page as u32));
        Self { pages, disks: from.disks.clone() }
    }
}

impl Past {
    pub(crate) fn new(
        recording: Recording,
        at: Position,
        checkpoint: Option<(Arc<Checkpoints>, Arc<Checkpoint>, Difference)>,
        from_power_on: Vec<u32>,
    ) -> Self {
        Self { recording, at, checkpoint, from_power_on }
    }

    /// The recording that was left.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// Where it was left.
    pub fn at(&self) -> Position {
        self.at
    }

    /// A manifest for a recording of what follows.
    pub(crate) fn manifest(&self) -> Result<Manifest, Error> {
        Manifest::branch_of(&self.recording, self.at)
    }

    /// The bytes that had entered serial port `port` last, most recent last, at most one input's;
    /// `None` when none had.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn last_serial_input(&self, port: u32) -> Result<Option<Vec<u8>>, Error> {
        let mut last = None;
        for event in self.recording.events() {
            let event = event?;
            if event.at >= self.at {
                break;
            }
            let EventKind::Input { payload, .. } = event.kind else { continue };
            if let Ok(machine::Event { input: machine::Input::Serial { port: of, bytes }, .. }) =
                machine::Event::from_payload(event.at, &payload)
                && of == port
            {
                last = Some(bytes);
            }
        }
        Ok(last)
    }

    /// How the guest had ended by itself at this position, if that is the end of a finished run:
    /// then there is nothing to go on from.
    pub fn ended(recording: &Recording, at: Position) -> Option<EndReason> {
        let completion = recording.manifest().completion()?;
        let reason = completion.end.reason;
        let by_itself = !matches!(reason, EndReason::Timeout | EndReason::Interrupted | EndReason::Failed);
        (at >= completion.at && by_itself).then_some(reason)
    }
}
