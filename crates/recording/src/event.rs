//! Events and their encoding inside a chunk.
//!
//! ```text
//! event = delta:varint tag:u8 body
//!   tag 0  input   kind:varint length:varint payload
//!   tag 1  hash    changed:u8 digest[16] × bits set in `changed`
//!   tag 2  end     reason:u8 status:varint (zigzag)
//!   tag 3  reached
//! ```
//!
//! `delta` counts from the event before it in the chunk, from position 0 for the first. A hash
//! names only those digests (bit 0 registers, 1 devices, 2 memory) that differ from the last hash
//! in the same chunk, so that an idle machine costs little. Every event has exactly one encoding.

use crate::id::Digest;
use crate::varint::{self, Cursor};
use base::Position;
use serde::{Deserialize, Serialize};

/// Most bytes one input may carry.
pub const PAYLOAD_MAX: usize = 16 << 20;

const TAG_INPUT: u8 = 0;
const TAG_HASH: u8 = 1;
const TAG_END: u8 = 2;
const TAG_REACHED: u8 = 3;

/// One piece of outside nondeterminism, or a statement about the run, with its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where it entered.
    pub at: Position,
    /// What it is.
    pub kind: EventKind,
}

/// What an event is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Something entered the machine. The payload's meaning is the machine's.
    Input {
        /// Names the payload's kind for people; see [`crate::Manifest::input_kinds`].
        kind: u16,
        /// At most [`PAYLOAD_MAX`] bytes.
        payload: Vec<u8>,
    },
    /// The machine's state at this position.
    Hash(StateHash),
    /// The run got here: a recording without an end can be replayed at least this far.
    Reached,
    /// The run ended here; always the last event.
    End(End),
}

/// Digests of a machine's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateHash {
    /// Of the processors' registers.
    pub registers: Digest,
    /// Of the devices' states.
    pub devices: Digest,
    /// Of guest memory.
    pub memory: Digest,
}

impl StateHash {
    /// One digest for people to compare.
    pub fn combined(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for part in self.parts() {
            hasher.update(&part.0);
        }
        Digest::from_hash(&hasher.finalize())
    }
    fn parts(&self) -> [Digest; 3] {
        [self.registers, self.devices, self.memory]
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Why.
    pub reason: EndReason,
    /// The exit status of the run as the command line reports it.
    pub status: i64,
}

/// Why a run ended. The order is the encoding: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndReason {
    /// The guest powered off.
    Poweroff,
    /// The guest's command ended.
    Command,
    /// The guest's kernel panicked.
    Panic,
    /// The processor shut down.
    TripleFault,
    /// The guest reset itself.
    Reset,
    /// The time given ran out.
    Timeout,
    /// The user interrupted the run.
    Interrupted,
    /// The host failed the recorder.
    Failed,
    /// The guest wrote to the debug-exit port.
    DebugExit,
}

const END_REASONS: [EndReason; 9] = [
    EndReason::Poweroff,
    EndReason::Command,
    EndReason::Panic,
    EndReason::TripleFault,
    EndReason::Reset,
    EndReason::Timeout,
    EndReason::Interrupted,
    EndReason::Failed,
    EndReason::DebugExit,
];

impl EndReason {
    /// The word for it in summaries.
    pub fn name(self) -> &'static str {
        match self {
            EndReason::Poweroff => "poweroff",
            EndReason::Command => "command",
            EndReason::Panic => "panic",
            EndReason::TripleFault => "triple-fault",
            EndReason::Reset => "reset",
            EndReason::Timeout => "timeout",
            EndReason::Interrupted => "interrupted",
            EndReason::Failed => "failed",
            EndReason::DebugExit => "debug-exit",
        }
    }
}

/// What coding an event depends on: the events before it in the same chunk.
#[derive(Clone, Copy, Default)]
struct Context {
    at: Position,
    hash: StateHash,
}

/// Encodes the events of one chunk.
#[derive(Default)]
pub(crate) struct Encoder {
    context: Context,
}

impl Encoder {
    fn step(&mut self, out: &mut Vec<u8>, at: Position, tag: u8) {
        assert!(at >= self.context.at, "events are recorded in order of position");
        varint::put(out, at.since(self.context.at));
        self.context.at = at;
        out.push(tag);
    }
    pub(crate) fn input(&mut self, out: &mut Vec<u8>, at: Position, kind: u16, payload: &[u8]) {
        self.step(out, at, TAG_INPUT);
        varint::put(out, u64::from(kind));
        varint::put(out, payload.len() as u64);
        out.extend_from_slice(payload);
    }
    pub(crate) fn hash(&mut self, out: &mut Vec<u8>, at: Position, hash: &StateHash) {
        self.step(out, at, TAG_HASH);
        let place = out.len();
        out.push(0);
        for (bit, (new, old)) in hash.parts().iter().zip(self.context.hash.parts()).enumerate() {
            if *new != old {
                out[place] |= 1 << bit;
                out.extend_from_slice(&new.0);
            }
        }
        self.context.hash = *hash;
    }
    pub(crate) fn reached(&mut self, out: &mut Vec<u8>, at: Position) {
        self.step(out, at, TAG_REACHED);
    }
    pub(crate) fn end(&mut self, out: &mut Vec<u8>, at: Position, end: End) {
        self.step(out, at, TAG_END);
        out.push(end.reason as u8);
        varint::put(out, varint::zigzag(end.status));
    }
}

/// Decodes the events of one chunk.
pub(crate) struct Decoder {
    raw: Vec<u8>,
    at: usize,
    context: Context,
}

impl Decoder {
    pub(crate) fn new(raw: Vec<u8>) -> Self {
        Self { raw, at: 0, context: Context::default() }
    }
    pub(crate) fn is_done(&self) -> bool {
        self.at == self.raw.len()
    }
    /// Where in the chunk's contents the next event begins.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }
    /// The next event; `Err` says what is wrong with its bytes.
    pub(crate) fn next(&mut self) -> Result<Event, &'static str> {
        let mut cursor = Cursor::starting_at(&self.raw, self.at);
        let mut context = self.context;
        let event = decode(&mut cursor, &mut context)?;
        self.at = cursor.at();
        self.context = context;
        Ok(event)
    }
}

fn decode(cursor: &mut Cursor, context: &mut Context) -> Result<Event, &'static str> {
    const SHORT: &str = "an event is cut off or a number in it is malformed";
    let delta = cursor.varint().ok_or(SHORT)?;
    let at = context.at.count().checked_add(delta).ok_or("an event lies beyond all positions")?;
    context.at = Position::from_count(at);
    let kind = match cursor.byte().ok_or(SHORT)? {
        TAG_INPUT => {
            let kind = cursor.varint().ok_or(SHORT)?;
            let kind = u16::try_from(kind).map_err(|_| "an input's kind is out of range")?;
            let len = cursor.varint().ok_or(SHORT)?;
            if len > PAYLOAD_MAX as u64 {
                return Err("an input is larger than any may be");
            }
            EventKind::Input { kind, payload: cursor.take(len as usize).ok_or(SHORT)?.to_vec() }
        }
        TAG_HASH => {
            let changed = cursor.byte().ok_or(SHORT)?;
            if changed > 7 {
                return Err("a state hash has unknown parts");
            }
            let StateHash { registers, devices, memory } = &mut context.hash;
            for (bit, part) in [registers, devices, memory].into_iter().enumerate() {
                if changed & 1 << bit != 0 {
                    let new = Digest(cursor.array().ok_or(SHORT)?);
                    if new == *part {
                        return Err("a state hash repeats a part that did not change");
                    }
                    *part = new;
                }
            }
            EventKind::Hash(context.hash)
        }
        TAG_END => {
            let reason = cursor.byte().ok_or(SHORT)?;
            let reason =
                *END_REASONS.get(usize::from(reason)).ok_or("the run ended for an unknown reason")?;
            let status = varint::unzigzag(cursor.varint().ok_or(SHORT)?);
            EventKind::End(End { reason, status })
        }
        TAG_REACHED => EventKind::Reached,
        _ => return Err("an event is of an unknown kind"),
    };
    Ok(Event { at: context.at, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_state_costs_three_bytes() {
        let mut out = Vec::new();
        let mut encoder = Encoder::default();
        let hash =
            StateHash { registers: Digest([1; 16]), devices: Digest([2; 16]), memory: Digest([3; 16]) };
        encoder.hash(&mut out, Position::from_count(5), &hash);
        let before = out.len();
        encoder.hash(&mut out, Position::from_count(105), &hash);
        assert_eq!(out.len() - before, 3);
        let mut decoder = Decoder::new(out);
        assert_eq!(decoder.next().unwrap().kind, EventKind::Hash(hash));
        let second = Event { at: Position::from_count(105), kind: EventKind::Hash(hash) };
        assert_eq!(decoder.next().unwrap(), second);
        assert!(decoder.is_done());
    }

    #[test]
    fn every_reason_to_end_comes_back() {
        for (i, reason) in END_REASONS.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            let mut out = Vec::new();
            let end = End { reason, status: -7 };
            Encoder::default().end(&mut out, Position::NEVER, end);
            let event = Decoder::new(out).next().unwrap();
            assert_eq!(event, Event { at: Position::NEVER, kind: EventKind::End(end) });
        }
    }
}
