//! The gate: the only door through which anything from outside reaches the machine.
//!
//! A live gate shows each input to its [`Journal`] (the recorder) before the machine gets it. A
//! replaying gate takes inputs from a [`Source`] (the log) and refuses others. Either way an
//! input reaches a device only as an [`Admitted`], which nothing but this file can make:
//! `Board::admit` asks for one, devices hold no handles to the host, and so a device author
//! cannot bypass the gate by accident.
//!
//! Position alone does not say when an input came: while the processor is halted, guest time moves
//! on at one and the same position. So inputs carry a [`Moment`].

use crate::clock::Rate;
use base::{GuestTime, Position};
use serde::{Deserialize, Serialize};

/// A position, and guest time at it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// Instructions retired.
    pub position: Position,
    /// Guest time, which idling moves on at a fixed position.
    pub time: GuestTime,
}

/// One piece of outside nondeterminism. The order of variants is their encoding: append only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// Bytes arrive at a 16550A: port 0 is COM1, 1 is COM2.
    Serial {
        /// Which port.
        port: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// Bytes arrive at a virtio console.
    Console {
        /// Which port.
        port: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// An Ethernet frame arrives, without FCS.
    Frame {
        /// Which network card.
        card: u32,
        /// The frame.
        bytes: Vec<u8>,
    },
    /// Guest time jumps ahead, or runs at another rate from here on (`--clock host`).
    Clock(ClockCorrection),
    /// A key makes or breaks.
    Key {
        /// Scan code set 1.
        scan_code: Vec<u8>,
    },
    /// Somebody presses the power button.
    PowerButton,
}

/// Steers guest time towards the wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockCorrection {
    /// Guest time jumps ahead by this many nanoseconds.
    pub advance_ns: u64,
    /// The rate from here on; `None` keeps it.
    pub rate: Option<Rate>,
}

impl Input {
    /// Names of the kinds, by number (see [`Self::kind`]), for a recording's manifest.
    pub const KINDS: [&'static str; 6] = ["serial", "console", "frame", "clock", "key", "power-button"];

    /// The number of this input's kind: an index into [`Self::KINDS`].
    pub fn kind(&self) -> u16 {
        match self {
            Input::Serial { .. } => 0,
            Input::Console { .. } => 1,
            Input::Frame { .. } => 2,
            Input::Clock(_) => 3,
            Input::Key { .. } => 4,
            Input::PowerButton => 5,
        }
    }
}

/// An input and when it enters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When.
    pub at: Moment,
    /// What.
    pub input: Input,
}

/// A payload in a recording that is no input.
#[derive(Debug, thiserror::Error)]
#[error("input at position {position} does not decode: {why}")]
pub struct InputError {
    /// Where it was to enter.
    pub position: Position,
    /// What is wrong.
    pub why: String,
}

impl Event {
    /// Guest time and input as the payload of a recorded event; the position goes beside it.
    pub fn payload(&self) -> Vec<u8> {
        postcard::to_stdvec(&(self.at.time, &self.input)).expect("plain data")
    }

    /// The inverse of [`Self::payload`].
    pub fn from_payload(position: Position, payload: &[u8]) -> Result<Self, InputError> {
        let failed = |why: String| InputError { position, why };
        let ((time, input), rest): ((GuestTime, Input), _) =
            postcard::take_from_bytes(payload).map_err(|e| failed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(failed(format!("{} bytes too many", rest.len())));
        }
        Ok(Self { at: Moment { position, time }, input })
    }
}

/// Who keeps the inputs of a live machine: the recorder.
pub trait Journal: Send {
    /// `event` is entering the machine. Must not block for long.
    fn note(&mut self, event: &Event);
}

/// Where a replaying machine gets its inputs from, in order.
pub trait Source: Send {
    /// The next event; `None` when there are no more.
    fn next_event(&mut self) -> Option<Event>;
}

impl<I: Iterator<Item = Event> + Send> Source for I {
    fn next_event(&mut self) -> Option<Event> {
        self.next()
    }
}

/// Why an input was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The machine is replaying; its inputs come from the recording only.
    #[error("the machine is replaying a recording and takes no other input")]
    Replaying,
}

/// An event that has passed the gate.
pub struct Admitted {
    event: Event,
}

impl Admitted {
    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }
}

/// The gate of one machine.
pub struct Gate {
    mode: Mode,
}

enum Mode {
    Live { journal: Option<Box<dyn Journal>> },
    Replay { source: Box<dyn Source>, next: Option<Event> },
}

impl Gate {
    /// A gate open to live input, which `journal` hears of first.
    pub fn live(journal: Option<Box<dyn Journal>>) -> Self {
        Self { mode: Mode::Live { journal } }
    }

    /// A gate fed from a recording.
    pub fn replay(mut source: Box<dyn Source>) -> Self {
        let next = source.next_event();
        Self { mode: Mode::Replay { source, next } }
    }

    /// Whether inputs come from a recording.
    pub fn is_replaying(&self) -> bool {
        matches!(self.mode, Mode::Replay { .. })
    }

    /// When the recording's next input enters.
    pub(crate) fn next(&self) -> Option<Moment> {
        match &self.mode {
            Mode::Live { .. } => None,
            Mode::Replay { next, .. } => next.as_ref().map(|event| event.at),
        }
    }

    /// Lets a live input in.
    pub(crate) fn enter(&mut self, at: Moment, input: Input) -> Result<Admitted, GateError> {
        let Mode::Live { journal } = &mut self.mode else { return Err(GateError::Replaying) };
        let event = Event { at, input };
        if let Some(journal) = journal {
            journal.note(&event);
        }
        Ok(Admitted { event })
    }

    /// Takes the recording's next input if its moment is `now`.
    pub(crate) fn take_due(&mut self, now: Moment) -> Option<Admitted> {
        let Mode::Replay { source, next } = &mut self.mode else { return None };
        let event = next.take_if(|event| event.at <= now)?;
        *next = source.next_event();
        Some(Admitted { event })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(position: u64, time: u64, input: Input) -> Event {
        Event {
            at: Moment { position: Position::from_count(position), time: GuestTime::from_ns(time) },
            input,
        }
    }

    #[test]
    fn inputs_survive_their_encoding_and_damage_is_an_error() {
        let correction = ClockCorrection { advance_ns: 5, rate: Some(Rate::ONE) };
        let inputs = [
            Input::Serial { port: 1, bytes: b"ls\n".to_vec() },
            Input::Console { port: 0, bytes: vec![] },
            Input::Frame { card: 0, bytes: vec![0xff; 60] },
            Input::Clock(correction),
            Input::Key { scan_code: vec![0x1e] },
            Input::PowerButton,
        ];
        for (kind, input) in inputs.into_iter().enumerate() {
            assert_eq!(usize::from(input.kind()), kind);
            let event = event(7, 1 << 40, input);
            let mut payload = event.payload();
            assert_eq!(Event::from_payload(event.at.position, &payload).unwrap(), event);
            payload.push(0);
            assert!(Event::from_payload(event.at.position, &payload).is_err());
            payload.truncate(payload.len() - 2);
            assert!(Event::from_payload(event.at.position, &payload).is_err());
        }
        assert!(postcard::from_bytes::<Rate>(&[0, 1]).is_err(), "a rate of zero would stop time");
    }

    #[test]
    fn a_replaying_gate_gives_each_input_at_its_moment_and_takes_no_other() {
        let events = vec![event(5, 5, Input::PowerButton), event(5, 9, Input::PowerButton)];
        let mut gate = Gate::replay(Box::new(events.into_iter()));
        let now = |position, time| event(position, time, Input::PowerButton).at;
        assert!(gate.take_due(now(4, 4)).is_none());
        assert!(gate.take_due(now(5, 5)).is_some());
        assert!(gate.take_due(now(5, 5)).is_none(), "the second came after an idle jump");
        assert_eq!(gate.enter(now(5, 5), Input::PowerButton).err(), Some(GateError::Replaying));
        assert!(gate.take_due(now(5, 9)).is_some());
        assert_eq!(gate.next(), None);
    }
}
