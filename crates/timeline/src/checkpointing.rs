//! Checkpoints in a recording: taking them while it is made, and getting them back.
//!
//! A recorded checkpoint is a page map (RAM and the blocks of every disk that were written) and a
//! state: devices, processor, and which disk blocks were discarded, which a page of zeros would not
//! tell from zeros that were written.

use crate::branch::Past;
use crate::capture::{self, Capture, disks_of};
use crate::record::RecordError;
use crate::{Every, SLICE, Session};
use base::Position;
use disk::{BLOCK_SIZE, Block, Content, Snapshot};
use machine::MachineState;
use memory::Loan;
use recording::{Checkpoint, Checkpoints, Error, Options, Page, Pages, RecordingId, SPACE_RAM};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What share of the distance a checkpoint is put off when the last one is not written yet.
const LATER: u64 = 16;

/// How many checkpoints a recording gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing {
    /// The distance between two.
    pub every: Every,
    /// How much disk they may take, in bytes; beyond it they are thinned with age.
    pub budget_bytes: u64,
}

impl Default for Spacing {
    fn default() -> Self {
        Self { every: Every::Work, budget_bytes: Options::default().budget_bytes }
    }
}

/// A machine's state without pages and blocks.
#[derive(Serialize, Deserialize)]
struct Rest {
    machine: MachineState,
    /// For each disk, runs of discarded blocks: first and count.
    discarded: Vec<Vec<(u64, u64)>>,
}

/// The pages of a checkpoint, wherever they are until it is written.
struct Borrowed {
    ram: Loan,
    /// Blocks of disks, in the order in which the draft names them.
    blocks: VecDeque<Arc<Block>>,
}

impl Pages for Borrowed {
    fn fetch(&mut self, space: u16, index: u64, page: &mut Page) -> io::Result<()> {
        if space == SPACE_RAM {
            let read = self.ram.read(index as usize, page);
            return read.then_some(()).ok_or_else(|| io::Error::other("a page of RAM was not lent"));
        }
        let block =
            self.blocks.pop_front().ok_or_else(|| io::Error::other("a block of a disk is missing"))?;
        block.read(0, page).map_err(io::Error::other)
    }
}

/// Takes checkpoints of a session that is being recorded.
pub struct Checkpointer {
    checkpoints: Checkpoints,
    every: Every,
    next: Position,
    parent: Option<u64>,
    /// The disks at the parent.
    disks: Vec<Snapshot>,
}

impl Checkpointer {
    /// Begins with a session at power-on, which needs no checkpoint: whoever wants that state makes the
    /// machine anew.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn begin(
        session: &mut Session,
        folder: &Path,
        id: RecordingId,
        spacing: Spacing,
    ) -> Result<Self, RecordError> {
        // What was loaded is not a change.
        session.machine_mut().take_changed_pages();
        Self::create(session, folder, id, spacing)
    }

    /// Likewise for a session that has just left a past, with some of that past's checkpoints.
    ///
    /// # Errors
    /// As [`Checkpointer::begin`].
    pub fn begin_from(
        session: &mut Session,
        folder: &Path,
        id: RecordingId,
        spacing: Spacing,
        past: &Past,
    ) -> Result<Self, RecordError> {
        let mut this = Self::create(session, folder, id, spacing)?;
        let copied = past.checkpoint.as_ref().and_then(|(from, last, difference)| {
            Some((recording::copy_checkpoints(from, last, &this.checkpoints)?, difference))
        });
        match copied {
            Some((id, difference)) => {
                this.parent = Some(id);
                this.disks.clone_from(&difference.disks);
                this.store(session, &difference.pages);
            }
            None => this.store(session, &past.from_power_on),
        }
        Ok(this)
    }

    fn create(
        session: &Session,
        folder: &Path,
        id: RecordingId,
        spacing: Spacing,
    ) -> Result<Self, RecordError> {
        let options = Options { budget_bytes: spacing.budget_bytes };
        let checkpoints = Checkpoints::create(folder, id, options)?;
        let next = spacing.every.next(session.position());
        Ok(Self { checkpoints, every: spacing.every, next, parent: None, disks: Vec::new() })
    }

    /// Where the session has to stop next.
    pub fn next(&self) -> Position {
        self.next
    }

    /// Whether the last one is not written yet. A late one costs nothing but time later; waiting would
    /// stop the guest.
    pub fn is_busy(&self) -> bool {
        self.checkpoints.is_busy()
    }

    /// Takes a checkpoint if it is time, or `now` with [`Every::Work`], and the writing thread has
    /// kept up.
    pub fn look(&mut self, session: &mut Session, now: bool) {
        let at = session.position();
        if !(now && self.every == Every::Work || at >= self.next) {
            return;
        }
        if let (true, Every::Instructions(count)) = (self.is_busy(), self.every) {
            let soon = at.count().saturating_add(count / LATER);
            self.next = Position::from_count((soon / SLICE).saturating_mul(SLICE).saturating_add(SLICE));
            return;
        }
        self.next = self.every.next(at);
        if self.is_busy() || self.checkpoints.check().is_err() {
            return;
        }
        let pages = session.machine_mut().take_changed_pages();
        self.store(session, &pages);
    }

    /// Hands the session's state over, of which `pages` may differ from the parent's. Copies none of
    /// them: see [`memory::Loan`].
    fn store(&mut self, session: &mut Session, pages: &[u32]) {
        let disks = disks_of(session);
        let mut draft = self.checkpoints.draft(session.position(), self.parent);
        let loan = session.machine_mut().board_mut().memory_mut().lend(pages);
        // The thread gives one back before it has done with it, and is not busy now.
        let ram = loan.expect("nobody else borrows");
        pages.iter().for_each(|page| draft.later(SPACE_RAM, u64::from(*page)));
        let mut blocks = VecDeque::new();
        let mut discarded = Vec::new();
        for (n, snapshot) in disks.iter().enumerate() {
            let space = SPACE_RAM + 1 + n as u16;
            for change in snapshot.changes_since(self.disks.get(n)) {
                match change.content {
                    Content::Data(block) => {
                        draft.later(space, change.first);
                        blocks.push_back(block);
                    }
                    Content::Base | Content::Zero => {
                        (change.first..change.first + change.blocks).for_each(|i| draft.absent(space, i));
                    }
                }
            }
            let zeros = snapshot.changes_since(None).into_iter();
            let zeros = zeros.filter(|change| matches!(change.content, Content::Zero));
            discarded.push(zeros.map(|change| (change.first, change.blocks)).collect());
        }
        draft.source(Box::new(Borrowed { ram, blocks }));
        let rest = Rest { machine: session.machine().save(), discarded };
        let state = postcard::to_stdvec(&rest).expect("plain data");
        self.parent = Some(self.checkpoints.submit(draft, state));
        self.disks = disks;
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn finish(self) -> Result<(), recording::Stopped> {
        self.checkpoints.finish()
    }
}

/// Makes a capture of a recorded checkpoint, whose pages of RAM stay on disk, sharing what it has in
/// common with `near`, which is another one. `start` is the state at power-on. The session's disks are used
/// on the way and left at the checkpoint's; its RAM is not touched. `None` when the recording does
/// not hold what it should.
pub(crate) fn bring_back(
    session: &mut Session,
    checkpoints: &Arc<Checkpoints>,
    to: &Checkpoint,
    near: Option<&(Arc<Checkpoint>, Arc<Capture>)>,
    start: &Capture,
) -> Result<Option<Capture>, Error> {
    let Some(rest) = to.state().and_then(|bytes| postcard::from_bytes::<Rest>(&bytes).ok()) else {
        return Ok(None);
    };
    let pages = session.machine().board().memory().pages() as u64;
    let mut ram = near.map_or(&start.ram, |near| &near.1.ram).clone();
    for change in checkpoints.diff(near.map(|near| &*near.0), to) {
        if change.space != SPACE_RAM {
            continue;
        }
        if change.index >= pages {
            return Ok(None);
        }
        let page = match change.page {
            Some(stored) => Some(capture::Page::Stored(checkpoints.clone(), stored)),
            None => start.ram.get(change.index as usize).cloned(),
        };
        ram.set(change.index as usize, page);
    }
    let pci = session.machine_mut().board_mut().pci_mut();
    for (n, snapshot) in start.disks.iter().enumerate() {
        if let Some(disk) = pci.disk_mut(n) {
            disk.restore(snapshot);
            for &(first, blocks) in rest.discarded.get(n).into_iter().flatten() {
                if disk.import(first, blocks, None).is_err() {
                    return Ok(None);
                }
            }
        }
    }
    let mut bytes = [0; BLOCK_SIZE];
    let blocks = if start.disks.is_empty() { Vec::new() } else { checkpoints.diff(None, to) };
    for change in blocks {
        let (Some(n), Some(stored)) = (change.space.checked_sub(SPACE_RAM + 1), change.page) else {
            continue;
        };
        checkpoints.load(stored, &mut bytes)?;
        if let Some(disk) = pci.disk_mut(n.into())
            && disk.import(change.index, 1, Some(&bytes)).is_err()
        {
            return Ok(None);
        }
    }
    let disks = disks_of(session);
    Ok(Some(Capture { at: to.at(), state: rest.machine, disks, ram }))
}
