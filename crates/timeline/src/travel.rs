//! Moving in the past of a recording: seek, run until, run back until.
//!
//! A machine cannot run backwards. Going back is going to a state kept earlier and running forward
//! again: from the recording's checkpoints, and from *captures* made in passing, which are dense
//! near where one stands so that small steps back are quick. Running back until a condition holds
//! goes through history interval by interval, latest first, each run forwards once with the last
//! hit remembered.
//!
//! ```text
//! recorded checkpoints   C───────────────C───────────────C──────
//! captures on the way                        ·      ·  · ·..|here
//! running back                          [3..........)[2...)[1)
//! ```
//!
//! A *position* stands for the state in which a run to that position first arrives there. Only at
//! a breakpoint on the first instruction of an exception's or interrupt's handler the machine may
//! stand behind that, at the same position; [`Travel`] remembers and starts over when needed.

mod watching;
mod what_if;

use crate::branch::{Difference, Past};
use crate::capture::{CannotRestore, Capture, Keeper, Seen};
use crate::checkpointing::bring_back;
use crate::replay::{Trouble, checked_guest, end_of, gate_from};
use crate::{Divergence, ReplayError, SLICE, Session, Tuning};
use base::{GuestPhys, GuestVirt, PAGE_SIZE, Position};
use cpu::walk;
use machine::{Gate, Moment, Stop};
use recording::{Checkpoint, Checkpoints, HashCache, Recording};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
pub use watching::WatchRange;
use watching::Watching;
use what_if::WhatIf;
pub use what_if::{Change, ChangeError, Over};

/// How far before a place that was sought captures are made.
const NEARBY: [u64; 6] = [128 << 20, 24 << 20, 4 << 20, 512 << 10, 32 << 10, 2 << 10];
/// How far apart captures are made while running back.
const BACK_EVERY: u64 = 48 << 20;
/// Most captures kept, and how much memory their pages may take together, in bytes.
const CAPTURES_MAX: usize = 64;
const CAPTURE_BYTES_MAX: usize = 64 << 20;
/// Fewer captures than this are never given up: one could not step back any more.
const CAPTURES_MIN: usize = 8;
/// Their memory is counted whenever so many have been made.
const CAPTURES_COUNTED_EVERY: u32 = 8;
/// Most recorded checkpoints kept in memory.
const LOADED_MAX: usize = 6;

/// What ends a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Until {
    /// The next instruction is at one of these linear addresses.
    pub breakpoints: BTreeSet<u64>,
    /// An instruction accesses one of these. Forwards the run stops behind it, backwards before it.
    pub watches: Vec<WatchRange>,
    /// The position is reached.
    pub position: Option<Position>,
    /// A turn of this processor. Forwards the run stops where one begins, backwards before the
    /// last instruction of one.
    pub turn: Option<u32>,
}

/// What was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hit {
    /// A breakpoint.
    Breakpoint(u64),
    /// An access to this byte of the watch of that number.
    Watch(usize, GuestVirt),
    /// A turn of the processor asked for.
    Turn,
}

/// Why a run stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// A breakpoint or watchpoint.
    Hit(Hit),
    /// The position asked for.
    Position,
    /// The first position of history.
    Start,
    /// The last position of history.
    End,
    /// The caller wanted it.
    Interrupted,
}

/// A checkpoint there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Where.
    pub at: Position,
    /// What it takes on disk; `None` for one in memory.
    pub disk_bytes: Option<u64>,
}

/// A piece of console output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleText {
    /// It had been printed here, and not [`ConsoleText::GRAIN`] instructions before.
    pub at: Position,
    /// The bytes.
    pub bytes: Vec<u8>,
}

impl ConsoleText {
    /// How exactly positions are known, in instructions.
    pub const GRAIN: u64 = 50_000;
}

/// A recording with a machine in it that can be anywhere.
pub struct Travel {
    session: Session,
    recording: Recording,
    recorded: Option<Arc<Checkpoints>>,
    keeper: Keeper,
    /// Power-on.
    start: Arc<Capture>,
    captures: BTreeMap<Position, Arc<Capture>>,
    /// How many captures were ever made.
    captured: u32,
    /// Recorded checkpoints in memory, last used last.
    loaded: Vec<(Arc<Checkpoint>, Arc<Capture>)>,
    trouble: Trouble,
    end: Moment,
    watching: Watching,
    /// Which way the run at hand goes.
    backwards: bool,
    console: Vec<ConsoleText>,
    /// How far [`Travel::console_to`] has read.
    console_to: Position,
    branch: Option<WhatIf>,
}

impl Travel {
    /// Opens a recording at its start.
    ///
    /// # Errors
    /// When it cannot be replayed here.
    pub fn open(recording: Recording, tuning: &Tuning, cache: &mut HashCache) -> Result<Self, ReplayError> {
        let guest = Arc::new(checked_guest(&recording, cache)?);
        let trouble = Trouble::default();
        let gate = gate_from(&recording, Position::START, &trouble);
        let mut session = Session::new(guest, tuning, gate)?;
        let mut keeper = Keeper::new(&session);
        let start = Arc::new(keeper.capture(&mut session));
        // Damaged checkpoints make everything slower and nothing wrong.
        let recorded = Checkpoints::open(&recording).unwrap_or(None).map(Arc::new);
        let end = end_of(&recording)?;
        Ok(Self {
            session,
            recording,
            recorded,
            keeper,
            captures: BTreeMap::from([(Position::START, start.clone())]),
            captured: 0,
            start,
            loaded: Vec::new(),
            trouble,
            end,
            watching: Watching::default(),
            backwards: false,
            console: Vec::new(),
            console_to: Position::START,
            branch: None,
        })
    }

    /// The recording.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }
    /// The machine, to look into.
    pub fn session(&self) -> &Session {
        &self.session
    }
    /// The machine, for its state hash.
    pub fn session_mut(&mut self) -> &mut Session {
        &mut self.session
    }
    /// Where it stands.
    pub fn position(&self) -> Position {
        self.session.position()
    }
    /// The checkpoints on disk and in memory, by position.
    pub fn checkpoints(&self) -> Vec<Marked> {
        let on_disk = self.recorded.iter().flat_map(|recorded| recorded.list());
        let mut all: Vec<Marked> =
            on_disk.map(|c| Marked { at: c.at(), disk_bytes: Some(c.bytes()) }).collect();
        all.extend(self.kept());
        all.sort_by_key(|marked| (marked.at, marked.disk_bytes.is_none()));
        all.dedup_by_key(|marked| marked.at);
        all
    }

    /// Goes to a position, or to the end when it lies beyond. Forgets what the last run was to stop for:
    /// on the way there may be millions of it.
    ///
    /// # Errors
    /// When the recording is damaged or the replay differs from it.
    pub fn seek(&mut self, to: Position) -> Result<(), ReplayError> {
        self.set(&Until::default(), false);
        let to = to.min(self.end());
        let here = self.position();
        let passed_event = self.session.machine().processor().event_delivered_here();
        if here == to && !passed_event {
            return Ok(());
        }
        let nearest = self.nearest(to);
        if here >= to || nearest > here {
            self.restore_nearest(to)?;
        }
        for gap in NEARBY {
            let before = Position::from_count(to.count().saturating_sub(gap));
            if before > self.position() {
                self.advance(before)?;
                self.capture();
            }
        }
        self.advance(to)
    }

    /// The position of the latest state kept that is at or before `to`.
    fn nearest(&self, to: Position) -> Position {
        let in_memory = self.captures.range(..=to).next_back().map_or(self.origin(), |(at, _)| *at);
        let on_disk = self.recorded.as_ref().and_then(|recorded| recorded.at_or_before(to));
        on_disk.map_or(in_memory, |c| in_memory.max(c.at()))
    }

    fn restore_nearest(&mut self, to: Position) -> Result<(), ReplayError> {
        let mut limit = to;
        loop {
            let memory = self.captures.range(..=limit).next_back();
            let memory = memory.map_or(&self.start, |(_, capture)| capture).clone();
            let disk = self.recorded.as_ref().and_then(|recorded| recorded.at_or_before(limit));
            let disk = disk.filter(|disk| disk.at() > memory.at);
            let at = disk.as_ref().map_or(memory.at, |disk| disk.at());
            let capture = disk.map_or(Some(memory), |disk| self.load(&disk));
            if let Some(capture) = capture
                && self.try_restore(&capture)?
            {
                return Ok(());
            }
            // It cannot be read; an earlier one will do.
            limit = Position::from_count(at.count().saturating_sub(1));
        }
    }

    fn load(&mut self, checkpoint: &Arc<Checkpoint>) -> Option<Arc<Capture>> {
        if let Some(place) = self.loaded.iter().position(|(c, _)| c.id() == checkpoint.id()) {
            let entry = self.loaded.remove(place);
            self.loaded.push(entry);
            return self.loaded.last().map(|(_, capture)| capture.clone());
        }
        let recorded = self.recorded.as_ref()?;
        let near = self.loaded.iter().min_by_key(|(c, _)| c.at().count().abs_diff(checkpoint.at().count()));
        let made = bring_back(&mut self.session, recorded, checkpoint, near, &self.start).ok()??;
        if self.loaded.len() >= LOADED_MAX {
            self.loaded.remove(0);
        }
        self.loaded.push((checkpoint.clone(), Arc::new(made)));
        self.loaded.last().map(|(_, capture)| capture.clone())
    }

    fn restore(&mut self, capture: &Capture) -> Result<(), ReplayError> {
        if self.try_restore(capture)? {
            return Ok(());
        }
        Err(ReplayError::Machine("a page of a checkpoint cannot be read any more".into()))
    }

    /// False when one of its pages cannot be read; the machine is nowhere then.
    fn try_restore(&mut self, capture: &Capture) -> Result<bool, ReplayError> {
        match self.keeper.restore(&mut self.session, capture) {
            Err(CannotRestore::Page(_)) => return Ok(false),
            restored => restored.map_err(|error| ReplayError::Machine(error.to_string()))?,
        }
        let gate = match self.branch {
            None => gate_from(&self.recording, capture.at, &self.trouble),
            Some(_) => Gate::live(None),
        };
        self.branch_restored(capture.at);
        self.session.machine_mut().set_gate(gate);
        self.session.machine_mut().processor_mut().pass_breakpoint(false);
        self.place();
        self.check_log()?;
        Ok(true)
    }

    /// Keeps the state here.
    fn capture(&mut self) {
        let at = self.position();
        if self.captures.contains_key(&at) || self.session.machine().processor().event_delivered_here() {
            return;
        }
        let capture = Arc::new(self.keeper.capture(&mut self.session));
        self.captures.insert(at, capture);
        if self.captures.len() > CAPTURES_MAX {
            self.thin();
        }
        // Counting takes a while, so it is done now and then.
        self.captured = self.captured.wrapping_add(1);
        if self.captured.is_multiple_of(CAPTURES_COUNTED_EVERY) {
            while self.captures.len() > CAPTURES_MIN && self.captured_bytes() > CAPTURE_BYTES_MAX {
                (0..CAPTURES_MIN / 2).for_each(|_| self.thin());
            }
        }
    }

    /// Memory that the captures' pages take, those they share counted once.
    fn captured_bytes(&self) -> usize {
        let mut seen = Seen::default();
        self.captures.values().map(|capture| capture.ram.count_bytes(&mut seen)).sum()
    }

    /// Gives up the capture that is missed least: the gap it leaves is smallest in proportion to
    /// its distance.
    fn thin(&mut self) {
        let here = self.position().count();
        let all: Vec<u64> = self.captures.keys().map(|at| at.count()).collect();
        let cost = |i: &usize| {
            let gap = all.get(i + 1).copied().unwrap_or(u64::MAX) - all[i - 1];
            u128::from(gap) * 1_000_000 / (u128::from(here.abs_diff(all[*i])) + 1)
        };
        if let Some(least) = (1..all.len()).min_by_key(cost) {
            self.captures.remove(&Position::from_count(all[least]));
        }
    }

    /// Runs to a position, whatever is met on the way.
    fn advance(&mut self, to: Position) -> Result<(), ReplayError> {
        while self.position() < to && self.can_run() {
            self.slice(to)?;
        }
        Ok(())
    }

    /// Runs towards `to`; `Some` when something was met before.
    fn slice(&mut self, to: Position) -> Result<Option<(Position, Hit)>, ReplayError> {
        Ok(self.slice_hits(to)?.map(|(first, _)| first))
    }

    #[allow(clippy::type_complexity)]
    fn slice_hits(
        &mut self,
        to: Position,
    ) -> Result<Option<((Position, Hit), (Position, Hit))>, ReplayError> {
        let stop = self.drive(to);
        self.session.take_output();
        self.check_log()?;
        match stop {
            // A device may have written in the last step.
            Stop::Limit | Stop::Breath if self.devices_have_written() => Ok(self.met()),
            Stop::Limit | Stop::Breath => Ok(None),
            Stop::Debugger => Ok(self.met()),
            Stop::Failed(why) => Err(ReplayError::Machine(why)),
            _ if self.position() >= to => Ok(None),
            _ => Err(ReplayError::Diverged(Divergence::of_course(self.nearest(to), self.position()))),
        }
    }

    fn check_log(&self) -> Result<(), ReplayError> {
        let trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner).take();
        trouble.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Where a virtual address leads now, judged by the kernel's page tables when the current ones
    /// (a user process's, with page-table isolation) do not know it.
    pub fn physical(&self, at: GuestVirt) -> Option<GuestPhys> {
        self.physical_for(self.session.machine().processor().current_cpu(), at)
    }

    /// The same as processor `cpu`, which must exist, sees it.
    pub fn physical_for(&self, cpu: u32, at: GuestVirt) -> Option<GuestPhys> {
        let machine = self.session.machine();
        let (state, ram) = (machine.processor().context(cpu), machine.board().memory());
        let found = walk::probe(state, ram, at).or_else(|| {
            let mut kernel = state.clone();
            // Linux keeps the user's copy of the top table in the page behind the kernel's.
            kernel.cr3 &= !(PAGE_SIZE as u64);
            walk::probe(&kernel, ram, at)
        });
        found.map(|found| found.phys)
    }

    /// Runs forwards, by at least one instruction, until something of `until` holds.
    ///
    /// # Errors
    /// As [`Travel::seek`].
    pub fn run_until(&mut self, until: &Until, interrupt: &dyn Fn() -> bool) -> Result<Pause, ReplayError> {
        self.set(until, false);
        self.session.machine_mut().processor_mut().pass_breakpoint(true);
        let limit = until.position.unwrap_or(Position::NEVER);
        loop {
            let here = self.position();
            let end = self.horizon();
            let limit = limit.min(end);
            if here >= end {
                return Ok(Pause::End);
            }
            if here >= limit {
                return Ok(Pause::Position);
            }
            match self.slice(here.after(SLICE).min(limit))? {
                Some((at, hit @ Hit::Watch(..))) => {
                    self.settle_at(at.after(1))?;
                    return Ok(Pause::Hit(hit));
                }
                Some((at, hit)) => {
                    // What is due at this position has happened there.
                    if !self.session.machine().processor().event_delivered_here() {
                        self.session.run_until(at);
                    }
                    return Ok(Pause::Hit(hit));
                }
                None if interrupt() => return Ok(Pause::Interrupted),
                None => {}
            }
        }
    }

    /// Stands at `at`, which is near.
    fn settle_at(&mut self, at: Position) -> Result<(), ReplayError> {
        if self.position() > at {
            return self.seek(at);
        }
        self.advance(at)?;
        self.session.run_until(at);
        Ok(())
    }

    /// Runs backwards, by at least one instruction, until something of `until` holds.
    ///
    /// # Errors
    /// As [`Travel::seek`].
    pub fn run_back_until(
        &mut self,
        until: &Until,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Pause, ReplayError> {
        let origin = self.origin();
        let floor = until.position.unwrap_or(origin).max(origin).min(self.position());
        let mut upper = self.position();
        self.set(until, true);
        let wanted = Until { position: None, ..until.clone() } != Until::default();
        while upper > floor && wanted {
            self.restore_nearest(Position::from_count(upper.count() - 1))?;
            let from = self.position();
            match self.last_hit(upper, interrupt)? {
                Err(()) => {
                    self.seek(upper)?;
                    return Ok(Pause::Interrupted);
                }
                Ok(Some((at, hit))) if at >= floor => {
                    self.stand_before(at, hit, until)?;
                    return Ok(Pause::Hit(hit));
                }
                Ok(_) => upper = from,
            }
        }
        self.seek(floor)?;
        Ok(if floor == origin { Pause::Start } else { Pause::Position })
    }

    /// Runs to `upper` and tells the last hit before it; `Err` when interrupted.
    #[allow(clippy::type_complexity)]
    fn last_hit(
        &mut self,
        upper: Position,
        interrupt: &dyn Fn() -> bool,
    ) -> Result<Result<Option<(Position, Hit)>, ()>, ReplayError> {
        let mut last = None;
        let mut next_capture = self.position().after(BACK_EVERY);
        while self.position() < upper && self.can_run() {
            let here = self.position();
            let to = here.after(SLICE).min(upper);
            if let Some((_, (at, hit))) = self.slice_hits(to)? {
                let both = matches!(last, Some((before, Hit::Watch(..))) if before == at);
                if at < upper && !(both && matches!(hit, Hit::Breakpoint(_))) {
                    last = Some((at, hit));
                }
                continue;
            }
            if interrupt() {
                return Ok(Err(()));
            }
            if self.position() >= next_capture && self.position() < upper {
                self.capture();
                next_capture = self.position().after(BACK_EVERY);
            }
        }
        Ok(Ok(last))
    }

    /// Stands where a hit was met: before the access, or at the breakpoint.
    fn stand_before(&mut self, at: Position, hit: Hit, until: &Until) -> Result<(), ReplayError> {
        self.seek(at)?;
        let Hit::Breakpoint(address) = hit else { return Ok(()) };
        self.set(until, true);
        let at_address = |this: &Self| this.session.machine().processor().linear_rip() == address;
        // The handler's first instruction, at the position of what it handles.
        let mut hits = 0;
        while !at_address(self) && self.position() == at && hits < 1000 {
            self.slice(at.after(1))?;
            hits += 1;
        }
        if at_address(self) { Ok(()) } else { self.seek(at) }
    }

    /// What the console has shown from the start to about `to`.
    ///
    /// # Errors
    /// As [`Travel::seek`].
    pub fn console_to(&mut self, to: Position) -> Result<&[ConsoleText], ReplayError> {
        let to = to.min(self.end());
        if to > self.console_to {
            let here = self.position();
            self.seek(self.console_to)?;
            while self.position() < to && self.can_run() {
                let stop = self.drive(self.position().after(ConsoleText::GRAIN).min(to));
                self.check_log()?;
                let at = self.position();
                for (_, bytes) in
                    self.session.take_output().console.into_iter().filter(|(port, _)| *port == 0)
                {
                    self.console.push(ConsoleText { at, bytes });
                }
                if at < to && !matches!(stop, Stop::Limit | Stop::Breath | Stop::Debugger) {
                    return Err(ReplayError::Diverged(Divergence::of_course(at, to)));
                }
            }
            self.console_to = to;
            self.seek(here)?;
        }
        Ok(&self.console)
    }

    /// Leaves the past: the machine as it stands, open to live input, with a future of its own; and
    /// what a recording of that has to know of the past.
    ///
    /// # Errors
    /// As [`Travel::seek`].
    pub fn go_live(mut self) -> Result<(Session, Past), ReplayError> {
        self.end_branch()?;
        self.set(&Until::default(), false);
        let at = self.position();
        self.seek(at)?;
        let here = self.keeper.capture(&mut self.session);
        let nearest = self.recorded.as_ref().and_then(|recorded| recorded.at_or_before(at));
        let loaded = nearest.and_then(|checkpoint| Some((self.load(&checkpoint)?, checkpoint)));
        // Loading has used the disks.
        self.restore(&here)?;
        self.session.machine_mut().set_gate(Gate::live(None));
        let checkpoint = loaded.zip(self.recorded).map(|((capture, checkpoint), recorded)| {
            (recorded, checkpoint, Difference::between(&capture, &here))
        });
        let from_power_on = Difference::between(&self.start, &here).pages;
        let past = Past::new(self.recording, at, checkpoint, from_power_on);
        Ok((self.session, past))
    }
}
