//! A machine that executes a stretch of a recording in one of several ways.

use super::compare::{Next, Shown};
use crate::capture::{Capture, Keeper};
use crate::replay::{Trouble, gate_from};
use crate::{Guest, ReplayError, Session, Tuning, Watcher};
use base::Position;
use machine::{Moment, Stop};
use recording::{Recording, StateHash};
use serde::Serialize;
use std::fmt;
use std::sync::{Arc, PoisonError};

/// Instructions between two looks at the watcher; the same as in a replay.
const SLICE: u64 = 16_000_000;

/// A way to execute. All must lead to the same states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// Translated, in one run from power-on, as a replay does it.
    Replayed,
    /// Translated, from a kept state on with nothing translated before.
    Afresh,
    /// One instruction at a time.
    Singly,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Replayed => "translated, in one run from power-on",
            Way::Afresh => "translated, from the last equal state",
            Way::Singly => "executed one instruction at a time",
        })
    }
}

/// What a machine was found to be at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sample {
    /// It arrived there in this state.
    State(StateHash),
    /// It stopped before, at this position, for this reason.
    Stopped(Position, String),
}

/// The watcher wanted an end.
pub struct Interrupted;

/// What every rig is made of.
pub struct Parts<'a> {
    pub recording: &'a Recording,
    pub guest: Arc<Guest>,
    pub tuning: Tuning,
    /// Where the recording has state hashes: a replay takes its own there.
    pub hashes: Vec<(Position, StateHash)>,
    /// Where the recording ends. What happens at its last position belongs to it.
    pub end: Moment,
}

/// A machine.
pub struct Rig<'a> {
    parts: &'a Parts<'a>,
    pub session: Session,
    pub keeper: Keeper,
    trouble: Trouble,
    way: Way,
}

impl<'a> Rig<'a> {
    /// At power-on.
    pub fn new(parts: &'a Parts<'a>, way: Way) -> Result<Self, ReplayError> {
        let trouble = Trouble::default();
        let gate = gate_from(parts.recording, Position::START, &trouble);
        let fault = parts.tuning.fault.filter(|fault| match way {
            Way::Replayed => true,
            Way::Afresh => !fault.needs_history,
            Way::Singly => false,
        });
        let mut session = Session::new(parts.guest.clone(), &Tuning { fault, ..parts.tuning.clone() }, gate)?;
        session.machine_mut().processor_mut().set_interpret_all(way == Way::Singly);
        let keeper = Keeper::new(&session);
        Ok(Self { parts, session, keeper, trouble, way })
    }

    /// Goes to a kept state, without anything left from before.
    pub fn restore(&mut self, capture: &Capture) -> Result<(), ReplayError> {
        let restored = self.keeper.restore(&mut self.session, capture);
        restored.map_err(|error| ReplayError::Machine(error.to_string()))?;
        let gate = gate_from(self.parts.recording, capture.at, &self.trouble);
        let machine = self.session.machine_mut();
        machine.set_gate(gate);
        let (processor, board) = machine.processor_and_board();
        processor.drop_caches(board);
        self.check_log()
    }

    fn check_log(&self) -> Result<(), ReplayError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        trouble.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Runs to `to`: why it stopped before, if it did.
    pub fn run_to(
        &mut self,
        to: Position,
        watcher: &mut dyn Watcher,
    ) -> Result<Result<Option<String>, Interrupted>, ReplayError> {
        while self.session.position() < to {
            let here = self.session.position();
            // Where a replay looks at its own state, so does this: it may matter to the engine.
            let hash = self.parts.hashes.partition_point(|(at, _)| *at <= here);
            let hash = self.parts.hashes.get(hash).map_or(Position::NEVER, |(at, _)| *at);
            let hash = if self.way == Way::Replayed { hash } else { Position::NEVER };
            let stop = self.session.run_until(to.min(here.after(SLICE)).min(hash));
            self.session.take_output();
            self.check_log()?;
            if self.session.position() == hash {
                self.session.state_hash()?;
            }
            match stop {
                Stop::Limit | Stop::Breath | Stop::Debugger => {}
                Stop::Failed(why) => return Err(ReplayError::Machine(why)),
                _ if self.session.position() >= to => {}
                other => return Ok(Ok(Some(format!("{other:?}")))),
            }
            watcher.progress(self.session.moment());
            if watcher.wants_stop() {
                return Ok(Err(Interrupted));
            }
        }
        Ok(Ok(None))
    }

    /// Looks at the state at each of `places`, in order, but not beyond the first at which it is
    /// not as in `expected`.
    pub fn samples(
        &mut self,
        places: &[Position],
        expected: Option<&[Sample]>,
        watcher: &mut dyn Watcher,
    ) -> Result<Result<Vec<Sample>, Interrupted>, ReplayError> {
        let mut samples = Vec::new();
        for (n, place) in places.iter().enumerate() {
            let sample = match self.run_to(*place, watcher)? {
                Ok(None) => {
                    if *place == self.parts.end.position {
                        self.live_through_the_end()?;
                    }
                    Sample::State(self.session.state_hash()?)
                }
                Ok(Some(why)) => Sample::Stopped(self.session.position(), why),
                Err(interrupted) => return Ok(Err(interrupted)),
            };
            samples.push(sample);
            let last = samples.last();
            let differs = expected.is_some_and(|expected| expected.get(n) != last);
            if differs || matches!(last, Some(Sample::Stopped(..))) {
                break;
            }
        }
        Ok(Ok(samples))
    }

    /// Lets happen what was recorded at the last position.
    fn live_through_the_end(&mut self) -> Result<(), ReplayError> {
        while self.session.moment() < self.parts.end {
            match self.session.run_until_moment(self.parts.end) {
                Stop::Breath => {}
                _ => break,
            }
        }
        self.session.machine_mut().admit_due();
        self.check_log()
    }

    /// The machine's state, for people.
    pub fn show(&self) -> Shown {
        let machine = self.session.machine();
        let (board, processors) = (machine.board(), machine.processor());
        let next: Vec<Next> = (0..processors.cpus())
            .map(|cpu| {
                let state = processors.context(cpu);
                let base = if state.code64() { 0 } else { state.seg[1].base };
                Next {
                    address: state.rip.wrapping_add(base),
                    text: cpu::show::next_instruction(state, board.memory()),
                    privilege: state.cpl,
                    registers: cpu::show::registers(state),
                }
            })
            .collect();
        let several = next.len() > 1;
        let named = next.iter().enumerate().flat_map(|(cpu, next)| {
            let prefix = if several { format!("cpu{cpu} ") } else { String::new() };
            next.registers.iter().map(move |(name, value)| (format!("{prefix}{name}"), value.clone()))
        });
        let turn = several.then(|| ("turn".to_owned(), format!("{:?}", machine.save().scheduler)));
        Shown { registers: named.chain(turn).collect(), devices: board.show_devices(), next }
    }
}
