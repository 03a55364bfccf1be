//! Branches in memory: what would happen if something were different here.
//!
//! A branch leaves history at a position. Nothing comes in from outside, so all of it follows from
//! that state and from what was changed by hand, which is kept with its position: positions of a
//! branch can be gone back to just as those of history. Changing something gives up what followed.

use super::{Capture, ConsoleText, Marked, Travel};
use crate::ReplayError;
use base::{GuestPhys, Position};
use cpu::CpuState;
use machine::{Gate, Input, Stop};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Something changed by hand.
#[derive(Clone)]
pub enum Change {
    /// Bytes of RAM.
    Memory {
        /// The first of them.
        at: GuestPhys,
        /// What stands there now.
        bytes: Vec<u8>,
    },
    /// A processor's registers: its whole state, at the same position.
    Registers {
        /// Which processor.
        cpu: u32,
        /// What it holds now.
        state: Box<CpuState>,
    },
    /// Input from outside.
    Input(Input),
}

/// A change that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// History is not changed.
    #[error("this is history")]
    History,
    /// There is no such memory.
    #[error("there is no RAM at {0:#x}")]
    NoMemory(u64),
    /// The position does not stand for this state alone.
    #[error("an interrupt or exception was delivered here just now; step one instruction first")]
    InDelivery,
}

/// How a branch came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Where.
    pub at: Position,
    /// Why, as the end of a sentence that begins with "the guest".
    pub why: &'static str,
}

/// A branch being walked in, and the history it left.
pub(super) struct WhatIf {
    from: Position,
    /// What was changed behind `from`.
    changes: BTreeMap<Position, Vec<Change>>,
    /// Up to here changes are in the machine.
    applied: Position,
    /// The furthest position reached.
    reached: Position,
    over: Option<Over>,
    history: History,
}

/// What belongs to history and is put aside meanwhile.
struct History {
    here: Arc<Capture>,
    start: Arc<Capture>,
    captures: BTreeMap<Position, Arc<Capture>>,
    recorded: Option<Arc<recording::Checkpoints>>,
    console: Vec<ConsoleText>,
    console_to: Position,
}

impl Travel {
    /// Begins a branch here.
    ///
    /// # Errors
    /// As [`Travel::seek`].
    pub fn begin_branch(&mut self) -> Result<(), ReplayError> {
        self.end_branch()?;
        let here = self.position();
        self.seek(here)?;
        let start = Arc::new(self.keeper.capture(&mut self.session));
        let mut console = self.console.clone();
        console.retain(|text| text.at <= here);
        let history = History {
            here: start.clone(),
            start: std::mem::replace(&mut self.start, start.clone()),
            captures: std::mem::replace(&mut self.captures, BTreeMap::from([(here, start)])),
            recorded: self.recorded.take(),
            console: std::mem::replace(&mut self.console, console),
            console_to: std::mem::replace(&mut self.console_to, here),
        };
        self.session.machine_mut().set_gate(Gate::live(None));
        self.branch = Some(WhatIf {
            from: here,
            changes: BTreeMap::new(),
            applied: here,
            reached: here,
            over: None,
            history,
        });
        Ok(())
    }

    /// Gives a branch up, if this is one, and stands in history where it began.
    ///
    /// # Errors
    /// As [`Travel::seek`].
    pub fn end_branch(&mut self) -> Result<(), ReplayError> {
        let Some(branch) = self.branch.take() else { return Ok(()) };
        self.start = branch.history.start;
        self.captures = branch.history.captures;
        self.recorded = branch.history.recorded;
        self.console = branch.history.console;
        self.console_to = branch.history.console_to;
        self.restore(&branch.history.here)
    }

    /// Whether this is a branch.
    pub fn in_branch(&self) -> bool {
        self.branch.is_some()
    }

    /// How the branch ended, when it stands at its end.
    pub fn branch_over(&self) -> Option<Over> {
        self.branch.as_ref()?.over.filter(|over| over.at <= self.position())
    }

    /// The first position one can go to: that of power-on, or where the branch begins.
    pub fn origin(&self) -> Position {
        self.branch.as_ref().map_or(Position::START, |branch| branch.from)
    }

    /// The furthest position one can go to: the end of history, or how far the branch was walked.
    pub fn end(&self) -> Position {
        self.branch.as_ref().map_or(self.end.position, |branch| branch.reached)
    }

    /// Where running forward ends.
    pub(super) fn horizon(&self) -> Position {
        match &self.branch {
            None => self.end.position,
            Some(branch) => branch.over.map_or(Position::NEVER, |over| over.at),
        }
    }

    /// Changes something here, in a branch. What was reached behind is given up.
    ///
    /// # Errors
    /// What forbids it; nothing has changed then.
    pub fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        let here = self.position();
        if self.branch.is_none() {
            return Err(ChangeError::History);
        }
        if self.session.machine().processor().event_delivered_here() {
            return Err(ChangeError::InDelivery);
        }
        if let Change::Memory { at, bytes } = &change {
            let ram = self.session.machine().board().memory();
            let mut now = vec![0; bytes.len()];
            if !ram.read(*at, &mut now) {
                return Err(ChangeError::NoMemory(at.0));
            }
        }
        // What is due here comes before what is changed here, now as later.
        self.session.run_until(here);
        self.apply(&change);
        let changed = (here == self.origin()).then(|| Arc::new(self.keeper.capture(&mut self.session)));
        let Some(branch) = &mut self.branch else { return Err(ChangeError::History) };
        branch.changes.split_off(&here.after(1));
        branch.reached = here;
        branch.over = None;
        branch.applied = here;
        self.captures.split_off(&here);
        match changed {
            // The start is kept as it is now.
            Some(start) => {
                self.start = start.clone();
                self.captures.insert(here, start);
            }
            None => branch.changes.entry(here).or_default().push(change),
        }
        self.console.retain(|text| text.at <= here);
        self.console_to = self.console_to.min(here);
        Ok(())
    }

    fn apply(&mut self, change: &Change) {
        let machine = self.session.machine_mut();
        match change {
            Change::Memory { at, bytes } => {
                // That it is RAM was seen when the change was made.
                let _ = machine.board_mut().memory_mut().write(*at, bytes);
            }
            Change::Registers { cpu, state } => {
                let processor = machine.processor_mut();
                *processor.context_mut(*cpu) = (**state).clone();
                machine::Processor::state_replaced(processor);
            }
            // The gate of a branch is open.
            Change::Input(input) => drop(machine.inject(input.clone())),
        }
    }

    /// Notes that the machine is now what it was at `at`, changes there included.
    pub(super) fn branch_restored(&mut self, at: Position) {
        if let Some(branch) = &mut self.branch {
            branch.applied = at;
        }
    }

    /// Runs the machine towards `to` without passing a change that has to be made on the way, and
    /// makes it. In a branch an idle machine's time passes by itself, and an end is noted.
    pub(super) fn drive(&mut self, to: Position) -> Stop {
        let here = self.position();
        let Some(branch) = &self.branch else { return self.session.run_until(to) };
        let next = branch.changes.range(branch.applied.after(1)..).next().map(|(at, _)| *at);
        let stop = if next == Some(here) {
            Stop::Limit
        } else {
            self.run_branch(next.map_or(to, |next| next.min(to)))
        };
        let here = self.position();
        if next == Some(here) {
            self.session.run_until(here);
            let changes = self.branch.as_ref().and_then(|branch| branch.changes.get(&here)).cloned();
            changes.iter().flatten().for_each(|change| self.apply(change));
            self.branch_restored(here);
        }
        if let Some(branch) = &mut self.branch {
            branch.reached = branch.reached.max(here);
        }
        stop
    }

    fn run_branch(&mut self, to: Position) -> Stop {
        let stop = self.session.run_until(to);
        let why = match stop {
            Stop::Idle { until: Some(until) } => {
                self.session.machine_mut().pass_idle_time(until);
                return Stop::Breath;
            }
            Stop::Idle { until: None } => "waits for input that nobody gives",
            Stop::Dead => "has halted with interrupts off",
            Stop::PowerOff | Stop::DebugExit(_) => "has powered off",
            Stop::Reset => "has reset itself",
            Stop::Panic => "has panicked",
            Stop::TripleFault => "has triple-faulted",
            Stop::Limit | Stop::Breath | Stop::Debugger | Stop::Failed(_) => return stop,
        };
        let at = self.position();
        if let Some(branch) = &mut self.branch {
            branch.over = Some(Over { at, why });
        }
        Stop::Limit
    }

    /// Whether a machine that stands here can run on.
    pub(super) fn can_run(&self) -> bool {
        self.branch_over().is_none()
    }

    /// The states kept in memory, as checkpoints.
    pub(super) fn kept(&self) -> impl Iterator<Item = Marked> + '_ {
        self.captures.keys().map(|at| Marked { at: *at, disk_bytes: None })
    }
}
