//! What `hindsight info` tells about a recording.

use crate::event::EventKind;
use crate::{Checkpoints, Error, Recording};
use base::Position;
use serde::Serialize;
use std::collections::BTreeMap;

/// A summary, gathered by reading all of the recording.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Instructions retired up to the last event.
    pub instructions: u64,
    /// Guest seconds, when the run's end was recorded.
    pub guest_seconds: Option<f64>,
    /// Host seconds that recording took, likewise.
    pub wall_seconds: Option<f64>,
    /// How the run ended, likewise.
    pub exit: Option<&'static str>,
    /// The exit status, likewise.
    pub exit_status: Option<i64>,
    /// The combined state hash at the end, likewise.
    pub state_hash: Option<String>,
    /// Number of events by kind.
    pub events: BTreeMap<String, u64>,
    /// Bytes of payload by kind.
    pub bytes: BTreeMap<String, u64>,
    /// Bytes of the event log on disk.
    pub log_bytes: u64,
    /// Number of checkpoints.
    pub checkpoints: u64,
    /// Bytes of checkpoints on disk.
    pub checkpoint_bytes: u64,
    /// Whether everything checks.
    pub integrity: Integrity,
}

/// What checking every byte of the event log, and the checkpoints' structure, showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum Integrity {
    /// Complete and undamaged.
    Complete,
    /// Undamaged, but the recorder was killed, or is still running.
    WithoutEnd {
        /// Replay reaches this position.
        up_to: Position,
    },
    /// Something does not check.
    Damaged {
        /// The error's message.
        why: String,
    },
}

impl Info {
    /// Reads all of `recording`. Damage is part of the answer, not an error.
    pub fn gather(recording: &Recording) -> Self {
        let manifest = recording.manifest();
        let completion = manifest.completion();
        let extent = recording.extent();
        let mut info = Self {
            instructions: extent.last.count(),
            guest_seconds: completion.map(|c| c.guest_ns as f64 / 1e9),
            wall_seconds: completion.map(|c| c.wall_ms as f64 / 1e3),
            exit: completion.map(|c| c.end.reason.name()),
            exit_status: completion.map(|c| c.end.status),
            state_hash: completion.map(|c| c.hash.combined().to_string()),
            events: BTreeMap::new(),
            bytes: BTreeMap::new(),
            log_bytes: recording.log_bytes(),
            checkpoints: 0,
            checkpoint_bytes: 0,
            integrity: Integrity::Complete,
        };
        if completion.is_none() {
            info.integrity = Integrity::WithoutEnd { up_to: extent.last };
        }
        let read = info.count_events(recording).and_then(|()| info.count_checkpoints(recording));
        if let Err(e) = read {
            info.integrity = Integrity::Damaged { why: e.to_string() };
        }
        info
    }

    fn count_events(&mut self, recording: &Recording) -> Result<(), Error> {
        let names = &recording.manifest().input_kinds;
        for event in recording.events() {
            let (name, bytes) = match event?.kind {
                EventKind::Input { kind, payload } => {
                    let name = names.get(&kind).cloned().unwrap_or_else(|| format!("input-{kind}"));
                    (name, payload.len() as u64)
                }
                EventKind::Hash(_) => ("state-hash".to_owned(), 48),
                EventKind::Reached => ("reached".to_owned(), 0),
                EventKind::End(_) => ("end".to_owned(), 0),
            };
            *self.events.entry(name.clone()).or_default() += 1;
            *self.bytes.entry(name).or_default() += bytes;
        }
        Ok(())
    }

    fn count_checkpoints(&mut self, recording: &Recording) -> Result<(), Error> {
        if let Some(checkpoints) = Checkpoints::open(recording)? {
            self.checkpoints = checkpoints.list().len() as u64;
            self.checkpoint_bytes = checkpoints.bytes();
        }
        Ok(())
    }
}
