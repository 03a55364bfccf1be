//! From a divergence to the first instruction that differs.
//!
//! A recording says of most positions nothing, of some a hash, and of a few (its checkpoints)
//! everything. So what a replay can be compared with, instruction by instruction, is not the
//! recorded run but the same stretch executed in another way, and all ways have to agree:
//!
//! 1. The replay is taken to the last position whose hash was equal, and from there to each
//!    recorded checkpoint, which is compared as a whole. That narrows the interval without any
//!    second execution.
//! 2. The interval is executed in one run from power-on, from the last equal state with nothing
//!    translated, and one instruction at a time. If two of these differ, the engine is wrong, and
//!    halving (in 32 parts at once) leads to the instruction; the side that reaches the recorded
//!    hash is what was recorded.
//! 3. If all agree, the recording is what differs. Its next checkpoint shows in what, and whether
//!    the recording replays from there.

mod compare;
mod finding;
mod rig;

use crate::capture::Capture;
use crate::checkpointing::bring_back;
use crate::replay::{checked_guest, end_of};
use crate::{Divergence, ReplayError, Tuning, Watcher};
use base::Position;
use compare::Shown;
pub use compare::{Difference, Differences};
pub use finding::{Cause, Finding};
use recording::{Checkpoints, EventKind, HashCache, Recording, StateHash};
use rig::{Interrupted, Parts, Rig, Sample, Way};
use std::sync::Arc;

/// Into how many parts an interval is divided at once.
const PARTS: u64 = 32;
/// Most inputs named.
const INPUTS_SHOWN: usize = 8;
/// The longest text of an input.
const INPUT_TEXT_MAX: usize = 120;

/// Narrows a divergence that a replay of `recording` has met. `None` when the watcher stopped it.
///
/// # Errors
/// When the recording cannot be replayed.
pub fn bisect(
    recording: &Recording,
    tuning: &Tuning,
    cache: &mut HashCache,
    divergence: &Divergence,
    watcher: &mut dyn Watcher,
) -> Result<Option<Finding>, ReplayError> {
    let mut hashes = Vec::new();
    for event in recording.events() {
        let event = event?;
        if let EventKind::Hash(hash) = event.kind {
            hashes.push((event.at, hash));
        }
    }
    if let Some(completion) = recording.manifest().completion() {
        hashes.push((completion.at, completion.hash));
    }
    let guest = Arc::new(checked_guest(recording, cache)?);
    let parts = Parts { recording, guest, tuning: tuning.clone(), hashes, end: end_of(recording)? };
    let mut afresh = Rig::new(&parts, Way::Afresh)?;
    let start = afresh.keeper.capture(&mut afresh.session);
    // Damaged checkpoints leave the interval wider and nothing wrong.
    let checkpoints = Checkpoints::open(recording).unwrap_or(None).map(Arc::new);
    let mut search = Search { parts: &parts, afresh, start, checkpoints, watcher };
    match search.run(divergence) {
        Ok(finding) => Ok(Some(finding)),
        Err(Ended::Interrupted) => Ok(None),
        Err(Ended::Failed(error)) => Err(error),
    }
}

/// Why a search ended without a finding.
enum Ended {
    Interrupted,
    Failed(ReplayError),
}

impl From<Interrupted> for Ended {
    fn from(_: Interrupted) -> Self {
        Self::Interrupted
    }
}

impl<E: Into<ReplayError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

struct Search<'a, 'w> {
    parts: &'a Parts<'a>,
    /// Also used to look into captures; restored before anything else is done with it.
    afresh: Rig<'a>,
    /// Power-on.
    start: Capture,
    checkpoints: Option<Arc<Checkpoints>>,
    watcher: &'w mut dyn Watcher,
}

/// A stretch: equal at `base`, different at `to`.
struct Stretch {
    base: Capture,
    to: Position,
    /// The recorded state at `to`, from a checkpoint.
    recorded: Option<Capture>,
}

/// Places that divide what lies between two positions, the last of them `to`.
fn places(from: Position, to: Position) -> Vec<Position> {
    let length = to.since(from);
    let parts = length.clamp(1, PARTS);
    (1..=parts).map(|n| from.after((u128::from(length) * u128::from(n) / u128::from(parts)) as u64)).collect()
}

/// Where two lists of samples first differ.
fn mismatch(a: &[Sample], b: &[Sample]) -> Option<usize> {
    let equal = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (equal < a.len().max(b.len())).then_some(equal)
}

impl<'a> Search<'a, '_> {
    fn run(&mut self, divergence: &Divergence) -> Result<Finding, Ended> {
        let Some(stretch) = self.narrow_by_checkpoints(divergence)? else {
            return Ok(self.finding(divergence.from, divergence.to, Cause::Unsteady));
        };
        let expected = self.expected(&stretch)?;
        let places = places(stretch.base.at, stretch.to);
        let replayed = Rig::new(self.parts, Way::Replayed)?.samples(&places, None, self.watcher)??;
        self.afresh.restore(&stretch.base)?;
        let afresh = self.afresh.samples(&places, Some(&replayed), self.watcher)??;
        if let Some(n) = mismatch(&replayed, &afresh) {
            let first = self.note(Way::Replayed, replayed.last(), expected);
            let reached = self.afresh.samples(&[stretch.to], None, self.watcher)??;
            let second = self.note(Way::Afresh, reached.last(), expected);
            return self.search([Way::Replayed, Way::Afresh], [first, second], stretch, &places, n);
        }
        let mut singly = Rig::new(self.parts, Way::Singly)?;
        singly.restore(&stretch.base)?;
        let single = singly.samples(&places, Some(&afresh), self.watcher)??;
        if let Some(n) = mismatch(&afresh, &single) {
            let first = self.note(Way::Afresh, afresh.last(), expected);
            let second = self.lead_on(&mut singly, stretch.to, expected)?;
            drop(singly);
            return self.search([Way::Afresh, Way::Singly], [first, second], stretch, &places, n);
        }
        if expected.is_some_and(|expected| replayed.last() == Some(&Sample::State(expected))) {
            return Ok(self.finding(stretch.base.at, stretch.to, Cause::Unsteady));
        }
        self.blame_recording(stretch)
    }

    /// What to say of a way that came to `sample` at the end of the interval.
    fn note(&self, way: Way, sample: Option<&Sample>, expected: Option<StateHash>) -> String {
        match (expected, sample) {
            (Some(expected), Some(Sample::State(state))) if expected == *state => {
                format!("{way}; this leads to what was recorded")
            }
            (Some(_), Some(_)) => format!("{way}; this does not lead to what was recorded"),
            _ => way.to_string(),
        }
    }

    /// What to say of the state that single execution has reached. Going on that way takes long, so
    /// translated code goes on first; only what does not lead to the recorded state is done again.
    fn lead_on(
        &mut self,
        singly: &mut Rig<'a>,
        to: Position,
        expected: Option<StateHash>,
    ) -> Result<String, Ended> {
        let reached = singly.keeper.capture(&mut singly.session);
        self.afresh.restore(&reached)?;
        let mut samples = self.afresh.samples(&[to], None, self.watcher)??;
        if expected.is_some_and(|expected| samples.last() != Some(&Sample::State(expected))) {
            samples = singly.samples(&[to], None, self.watcher)??;
        }
        Ok(self.note(Way::Singly, samples.last(), expected))
    }

    fn finding(&self, from: Position, to: Position, cause: Cause) -> Finding {
        Finding {
            from,
            to,
            cause,
            first: String::new(),
            second: String::new(),
            compared_at: None,
            differences: Differences::default(),
            inputs: self.inputs(from, to),
        }
    }

    /// The recorded inputs that enter from `from` on and before `to`.
    fn inputs(&self, from: Position, to: Position) -> Vec<String> {
        let mut list = Vec::new();
        let events = self.parts.recording.events_from(from).flatten();
        for event in events.take_while(|event| event.at < to) {
            let EventKind::Input { payload, .. } = &event.kind else { continue };
            if list.len() == INPUTS_SHOWN {
                list.push("… and more".to_owned());
                break;
            }
            let input = machine::Event::from_payload(event.at, payload);
            let mut text = input.map_or_else(|error| error.to_string(), |event| format!("{:?}", event.input));
            if text.len() > INPUT_TEXT_MAX {
                text = text.chars().take(INPUT_TEXT_MAX).chain(['…']).collect();
            }
            list.push(format!("at {}: {text}", event.at));
        }
        list
    }

    /// Goes to where everything was equal, and on over checkpoints that are equal as a whole.
    /// `None` when the way there is not the same a second time.
    fn narrow_by_checkpoints(&mut self, divergence: &Divergence) -> Result<Option<Stretch>, Ended> {
        let mut rig = Rig::new(self.parts, Way::Replayed)?;
        let stopped = rig.run_to(divergence.from, self.watcher)??;
        let hash = self.parts.hashes.iter().find(|(at, _)| *at == divergence.from);
        if stopped.is_some() || hash.is_some_and(|(_, hash)| rig.session.state_hash().ok() != Some(*hash)) {
            return Ok(None);
        }
        let mut stretch = Stretch {
            base: rig.keeper.capture(&mut rig.session),
            to: divergence.to.max(divergence.from.after(1)),
            recorded: None,
        };
        let list = self.checkpoints.as_ref().map(|checkpoints| checkpoints.list()).unwrap_or_default();
        let between = |at: Position| at > divergence.from && at <= divergence.to;
        for checkpoint in list.iter().filter(|checkpoint| between(checkpoint.at())) {
            let Some(recorded) = self.bring_back(checkpoint) else { continue };
            if rig.run_to(checkpoint.at(), self.watcher)??.is_some() {
                break;
            }
            let ours = rig.keeper.capture(&mut rig.session);
            if !same(&ours, &recorded)? {
                stretch.to = checkpoint.at();
                stretch.recorded = Some(recorded);
                break;
            }
            stretch.base = ours;
        }
        Ok(Some(stretch))
    }

    fn bring_back(&mut self, checkpoint: &recording::Checkpoint) -> Option<Capture> {
        let checkpoints = self.checkpoints.as_ref()?;
        bring_back(&mut self.afresh.session, checkpoints, checkpoint, None, &self.start).ok()?
    }

    /// The hash of what was recorded at the end of a stretch, if that is known.
    fn expected(&mut self, stretch: &Stretch) -> Result<Option<StateHash>, Ended> {
        if let Some(recorded) = &stretch.recorded {
            self.afresh.restore(recorded)?;
            return Ok(Some(self.afresh.session.state_hash()?));
        }
        Ok(self.parts.hashes.iter().rfind(|(at, _)| *at == stretch.to).map(|(_, hash)| *hash))
    }

    /// Narrows a stretch in which two ways differ, first at place number `n`.
    fn search(
        &mut self,
        ways: [Way; 2],
        notes: [String; 2],
        mut stretch: Stretch,
        first_places: &[Position],
        n: usize,
    ) -> Result<Finding, Ended> {
        let (mut all, mut n) = (first_places.to_vec(), n);
        let mut other = Rig::new(self.parts, if ways[1] == Way::Afresh { ways[0] } else { ways[1] })?;
        loop {
            if n > 0 {
                self.afresh.restore(&stretch.base)?;
                self.afresh.run_to(all[n - 1], self.watcher)??;
                stretch.base = self.afresh.keeper.capture(&mut self.afresh.session);
            }
            stretch.to = all[n];
            if stretch.to.since(stretch.base.at) <= 1 {
                return self.conclude(ways, notes, stretch, &all[..=n], &mut other);
            }
            let (from, to) = (stretch.base.at, stretch.to);
            let next = places(from, to);
            self.afresh.restore(&stretch.base)?;
            let ours = self.afresh.samples(&next, None, self.watcher)??;
            self.take_to(&mut other, ways, &stretch.base)?;
            let theirs = other.samples(&next, Some(&ours), self.watcher)??;
            match mismatch(&ours, &theirs) {
                Some(place) => (all, n) = (next, place),
                None => {
                    let mut finding = self.finding(from, to, Cause::Elusive);
                    [finding.first, finding.second] = notes;
                    return Ok(finding);
                }
            }
        }
    }

    /// Brings the rig of the other way to where a stretch begins.
    fn take_to(&mut self, other: &mut Rig<'a>, ways: [Way; 2], base: &Capture) -> Result<(), Ended> {
        if ways[0] == Way::Replayed {
            *other = Rig::new(self.parts, Way::Replayed)?;
        } else {
            other.restore(base)?;
        }
        Ok(())
    }

    /// Looks at both sides of the one instruction that is left.
    fn conclude(
        &mut self,
        ways: [Way; 2],
        notes: [String; 2],
        stretch: Stretch,
        places: &[Position],
        other: &mut Rig<'a>,
    ) -> Result<Finding, Ended> {
        let (from, to) = (stretch.base.at, stretch.to);
        self.afresh.restore(&stretch.base)?;
        let before = self.afresh.show();
        self.afresh.samples(&[to], None, self.watcher)??;
        let ours = (self.afresh.keeper.capture(&mut self.afresh.session), self.afresh.show());
        self.take_to(other, ways, &stretch.base)?;
        let places: Vec<Position> =
            places.iter().copied().filter(|place| *place > from || ways[0] == Way::Replayed).collect();
        other.samples(&places, None, self.watcher)??;
        let theirs = (other.keeper.capture(&mut other.session), other.show());
        let executed = &before.next[before.mover(&ours.1)];
        let cause = Cause::Instruction {
            address: executed.address,
            text: executed.text.clone(),
            privilege: executed.privilege,
        };
        let (first, second) = if ways[1] == Way::Afresh { (theirs, ours) } else { (ours, theirs) };
        let mut finding = self.finding(from, to, cause);
        [finding.first, finding.second] = notes;
        finding.compared_at = Some(to);
        finding.differences = Differences::between((&first.0, &first.1), (&second.0, &second.1))?;
        Ok(finding)
    }

    /// Compares the replay with the recording's own next state.
    fn blame_recording(&mut self, mut stretch: Stretch) -> Result<Finding, Ended> {
        let (from, to) = (stretch.base.at, stretch.to);
        let mut at = to;
        if stretch.recorded.is_none() {
            let list = self.checkpoints.as_ref().map(|checkpoints| checkpoints.list()).unwrap_or_default();
            if let Some(next) = list.iter().find(|checkpoint| checkpoint.at() >= to) {
                stretch.recorded = self.bring_back(next);
                at = next.at();
            }
        }
        let Some(recorded) = stretch.recorded.take() else {
            return Ok(self.finding(from, to, Cause::Recording { resumes: None }));
        };
        self.afresh.restore(&recorded)?;
        let shown: Shown = self.afresh.show();
        let resumes = match self.parts.hashes.iter().find(|(place, _)| *place > at) {
            Some((place, hash)) => {
                let samples = self.afresh.samples(&[*place], None, self.watcher)??;
                Some(samples == [Sample::State(*hash)])
            }
            None => None,
        };
        self.afresh.restore(&stretch.base)?;
        let stopped = self.afresh.run_to(at, self.watcher)??;
        let ours = self.afresh.keeper.capture(&mut self.afresh.session);
        let mut finding = self.finding(from, to, Cause::Recording { resumes });
        finding.first = "recorded".to_owned();
        finding.second = stopped.map_or_else(
            || "replayed".to_owned(),
            |why| format!("replayed, which stops at position {} ({why})", ours.at),
        );
        finding.compared_at = Some(at);
        finding.differences = Differences::between((&recorded, &shown), (&ours, &self.afresh.show()))?;
        Ok(finding)
    }
}

/// Whether two captures are the same state.
fn same(a: &Capture, b: &Capture) -> Result<bool, ReplayError> {
    if a.state != b.state {
        return Ok(false);
    }
    let mut pages = Vec::new();
    a.ram.differences(&b.ram, &mut |page| pages.push(page));
    let (mut first, mut second) = ([0; base::PAGE_SIZE], [0; base::PAGE_SIZE]);
    let mut equal = true;
    for page in pages {
        a.ram.read(page, &mut first)?;
        b.ram.read(page, &mut second)?;
        equal &= first == second;
    }
    for (a, b) in a.disks.iter().zip(&b.disks) {
        equal &= a.hash()? == b.hash()?;
    }
    Ok(equal)
}
