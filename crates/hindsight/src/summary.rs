//! How a run ended, as JSON and as an exit status.

use crate::failure::Failure;
use crate::session::Outcome;
use crate::stop::Reason;
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// The guest powered off.
    Poweroff,
    /// The guest powered off after its job had reported a status.
    Command,
    /// The guest wrote to the debug-exit port.
    #[serde(rename = "debug-exit")]
    DebugPort,
    /// The guest's kernel panicked.
    Panic,
    /// A fault in the double-fault handler.
    TripleFault,
    /// The guest reset itself.
    Reset,
    /// The time of `--timeout` was over.
    Timeout,
    /// The user or a signal ended it.
    Interrupted,
    /// The replay differs from the recording.
    Diverged,
    /// The replay reached the recording's end, or the place it was to stop at.
    EndOfRecording,
}

/// What only `record` can tell.
#[derive(Clone, Debug, Serialize)]
pub struct RecordFigures {
    /// The recording's path.
    pub recording: PathBuf,
    /// Events in the log.
    pub events: u64,
    /// Bytes of everything but checkpoints.
    pub log_bytes: u64,
    /// Bytes of checkpoints.
    pub checkpoint_bytes: u64,
}

/// What only `replay` can tell.
#[derive(Clone, Debug, Serialize)]
pub struct ReplayFigures {
    /// State hashes compared with the recording's.
    pub hashes_checked: u64,
    /// What `--bisect` found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bisect: Option<timeline::Finding>,
}

/// The object of `--json`. `F` is the command's own figures, beside the common ones.
#[derive(Clone, Debug, Serialize)]
pub struct Summary<F: Serialize> {
    /// Instructions retired.
    pub instructions: u64,
    /// Guest time.
    pub guest_seconds: f64,
    /// The host's time.
    pub wall_seconds: f64,
    /// The hash of the whole state at the end, in hex.
    pub state_hash: String,
    /// Why it ended.
    pub exit: Exit,
    /// The process's exit status.
    pub exit_status: u8,
    /// The command's own.
    #[serde(flatten)]
    pub figures: F,
}

/// No figures beyond the common ones.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct NoFigures {}

impl<F: Serialize> Summary<F> {
    /// Sums up; `stopped` is why the host ended the run, if it did, and `with_job` whether a
    /// command was to run.
    pub fn new(
        outcome: &Outcome,
        wall: Duration,
        stopped: Option<Reason>,
        with_job: bool,
        figures: F,
    ) -> Self {
        Self {
            instructions: outcome.instructions,
            guest_seconds: outcome.guest_ns as f64 / 1e9,
            wall_seconds: wall.as_secs_f64(),
            state_hash: outcome.state_hash.clone(),
            exit: outcome.exit,
            exit_status: exit_status(outcome, stopped, with_job),
            figures,
        }
    }
}

/// The process's exit status, as the manual has it.
pub fn exit_status(outcome: &Outcome, stopped: Option<Reason>, with_job: bool) -> u8 {
    match outcome.exit {
        // A job without a status did not end well: something powered the guest off under it.
        Exit::Poweroff | Exit::Command => {
            outcome.job_status.unwrap_or(if with_job { Failure::HOST } else { 0 })
        }
        // As QEMU's process does, of which a status has only the low byte.
        Exit::DebugPort => (outcome.debug_exit.unwrap_or(0) << 1 | 1) as u8,
        Exit::EndOfRecording => 0,
        Exit::Panic | Exit::TripleFault | Exit::Reset => Failure::GUEST,
        Exit::Timeout => Failure::TIMEOUT,
        Exit::Diverged => Failure::DIVERGED,
        Exit::Interrupted => match stopped {
            Some(Reason::Signal(signal)) => 128 + signal,
            _ => 0,
        },
    }
}

/// What a person is told about an end that was not the guest's own good one.
pub fn notice(outcome: &Outcome, with_job: bool) -> Option<&'static str> {
    match outcome.exit {
        Exit::Poweroff | Exit::Command if with_job && outcome.job_status.is_none() => {
            Some("the guest powered off before its command had ended")
        }
        Exit::Poweroff | Exit::Command | Exit::DebugPort | Exit::EndOfRecording | Exit::Interrupted => None,
        Exit::Panic => Some("the guest's kernel panicked"),
        Exit::TripleFault => Some("the guest triple-faulted"),
        Exit::Reset => Some("the guest reset itself"),
        Exit::Timeout => Some("the time of --timeout is over"),
        Exit::Diverged => Some("the replay differs from the recording"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(exit: Exit, job_status: Option<u8>) -> Outcome {
        Outcome {
            instructions: 12,
            guest_ns: 1_500_000_000,
            state_hash: "ab".into(),
            exit,
            job_status,
            debug_exit: None,
            with_job: false,
            note: None,
        }
    }

    #[test]
    fn exit_statuses_are_the_documented_ones() {
        let status = |exit, job, with_job| exit_status(&outcome(exit, job), None, with_job);
        assert_eq!(status(Exit::Poweroff, None, false), 0);
        assert_eq!(status(Exit::Command, Some(42), true), 42);
        assert_eq!(status(Exit::Poweroff, None, true), 1);
        assert_eq!(status(Exit::Panic, None, true), 3);
        assert_eq!(status(Exit::TripleFault, None, false), 3);
        assert_eq!(status(Exit::Reset, None, false), 3);
        assert_eq!(status(Exit::Diverged, None, false), 4);
        let debug = Outcome { debug_exit: Some(0x110), ..outcome(Exit::DebugPort, None) };
        assert_eq!(exit_status(&debug, None, false), 0x21);
        assert_eq!(status(Exit::Timeout, None, false), 124);
        let signal =
            |signal| exit_status(&outcome(Exit::Interrupted, None), Some(Reason::Signal(signal)), true);
        assert_eq!((signal(2), signal(15)), (130, 143));
        assert_eq!(exit_status(&outcome(Exit::Interrupted, None), Some(Reason::Left), false), 0);
    }

    #[test]
    fn the_json_has_all_fields_at_one_level() {
        let figures = ReplayFigures { hashes_checked: 9, bisect: None };
        let outcome = outcome(Exit::EndOfRecording, None);
        let summary = Summary::new(&outcome, Duration::from_millis(250), None, false, figures);
        let expected = serde_json::json!({
            "instructions": 12, "guest_seconds": 1.5, "wall_seconds": 0.25, "state_hash": "ab",
            "exit": "end-of-recording", "exit_status": 0, "hashes_checked": 9
        });
        assert_eq!(serde_json::to_value(summary).unwrap(), expected);
        assert_eq!(serde_json::to_value(Exit::TripleFault).unwrap(), "triple-fault");
    }
}
