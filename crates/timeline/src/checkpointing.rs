//! Checkpoints in a recording: taking them while it is made, and getting them back.
//!
//! A recorded checkpoint is a page map (RAM and the blocks of every disk that were written) and a
//! state: devices, processor, and which disk blocks were discarded, which a page of zeros would not
//! tell from zeros that were written.

use crate::Session;
use crate::branch::Past;
use crate::capture::{Capture, RamImage, disks_of};
use crate::record::RecordError;
use base::Position;
use disk::{BLOCK_SIZE, Content, Snapshot};
use machine::MachineState;
use recording::{Checkpoint, Checkpoints, Error, Options, RecordingId, SPACE_RAM};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;

/// Instructions between checkpoints: a bit more than half a guest second of work, so that from any of them
/// the way to any position behind it takes about a second.
pub const CHECKPOINT_EVERY: u64 = 600_000_000;

/// How many checkpoints a recording gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing {
    /// Instructions between two.
    pub every: u64,
    /// How much disk they may take, in bytes; beyond it they are thinned with age.
    pub budget_bytes: u64,
}

impl Default for Spacing {
    fn default() -> Self {
        Self { every: CHECKPOINT_EVERY, budget_bytes: Options::default().budget_bytes }
    }
}

/// A machine's state without pages and blocks.
#[derive(Serialize, Deserialize)]
struct Rest {
    machine: MachineState,
    /// For each disk, runs of discarded blocks: first and count.
    discarded: Vec<Vec<(u64, u64)>>,
}

/// Takes checkpoints of a session that is being recorded.
pub struct Checkpointer {
    checkpoints: Checkpoints,
    every: u64,
    next: Position,
    parent: Option<u64>,
    /// The disks at the parent.
    disks: Vec<Snapshot>,
}

impl Checkpointer {
    /// Begins, with a checkpoint of the session as it is: then and not later because the pages of
    /// a later one are those changed since.
    ///
    /// # Errors
    /// When the folder cannot be written or a disk cannot be read back.
    pub fn begin(
        session: &mut Session,
        folder: &Path,
        id: RecordingId,
        spacing: Spacing,
    ) -> Result<Self, RecordError> {
        let mut this = Self::create(session, folder, id, spacing)?;
        this.take(session)?;
        Ok(this)
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
                this.store(session, difference.pages.clone())?;
            }
            None => this.store(session, past.from_power_on.clone())?,
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
        let every = spacing.every.max(1);
        let next = session.position().after(every);
        Ok(Self { checkpoints, every, next, parent: None, disks: Vec::new() })
    }

    /// Where the session has to stop next.
    pub fn next(&self) -> Position {
        self.next
    }

    /// Takes a checkpoint if it is time and the writing thread has kept up.
    ///
    /// # Errors
    /// When a disk cannot be read back.
    pub fn look(&mut self, session: &mut Session) -> Result<(), disk::DiskError> {
        let at = session.position();
        if at < self.next {
            return Ok(());
        }
        self.next = at.after(self.every);
        // One that is left out costs nothing but time later; one that waits stops the guest.
        if self.checkpoints.is_busy() || self.checkpoints.check().is_err() {
            return Ok(());
        }
        self.take(session)
    }

    fn take(&mut self, session: &mut Session) -> Result<(), disk::DiskError> {
        let pages = session.machine_mut().take_changed_pages();
        self.store(session, pages)
    }

    /// Hands the session's state over, of which `pages` may differ from the parent's.
    fn store(&mut self, session: &mut Session, pages: Vec<u32>) -> Result<(), disk::DiskError> {
        let disks = disks_of(session);
        let machine = session.machine();
        let mut draft = self.checkpoints.draft(machine.position(), self.parent);
        for page in pages {
            draft.page(SPACE_RAM, u64::from(page), machine.board().memory().page_bytes(page as usize));
        }
        let mut discarded = Vec::new();
        for (n, snapshot) in disks.iter().enumerate() {
            let space = SPACE_RAM + 1 + n as u16;
            for change in snapshot.changes_since(self.disks.get(n)) {
                match &change.content {
                    Content::Data(block) => {
                        let mut bytes = [0; BLOCK_SIZE];
                        block.read(0, &mut bytes)?;
                        draft.page(space, change.first, &bytes);
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
        let rest = Rest { machine: machine.save(), discarded };
        let state = postcard::to_stdvec(&rest).expect("plain data");
        self.parent = Some(self.checkpoints.submit(draft, state));
        self.disks = disks;
        Ok(())
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// When it could not be written.
    pub fn finish(self) -> Result<(), recording::Stopped> {
        self.checkpoints.finish()
    }
}

/// Brings a recorded checkpoint into memory, sharing what it has in common with `near`, which is
/// another one. `pristine` are the disks at power-on. The session's disks are used
/// on the way and left at the checkpoint's; its RAM is not touched. `None` when the recording does
/// not hold what it should.
pub(crate) fn bring_back(
    session: &mut Session,
    checkpoints: &Checkpoints,
    to: &Checkpoint,
    near: Option<&(Arc<Checkpoint>, Arc<Capture>)>,
    pristine: &[Snapshot],
) -> Result<Option<Capture>, Error> {
    let Some(rest) = to.state().and_then(|bytes| postcard::from_bytes::<Rest>(&bytes).ok()) else {
        return Ok(None);
    };
    let pages = session.machine().board().memory().pages() as u64;
    let mut ram = near.map_or_else(|| RamImage::zeros(pages as usize), |near| near.1.ram.clone());
    let mut bytes = [0; BLOCK_SIZE];
    for change in checkpoints.diff(near.map(|near| &*near.0), to) {
        if change.space != SPACE_RAM {
            continue;
        }
        if change.index >= pages {
            return Ok(None);
        }
        let page = match change.page {
            Some(stored) => {
                checkpoints.load(stored, &mut bytes)?;
                Some(Arc::new(bytes))
            }
            None => None,
        };
        ram.set(change.index as usize, page);
    }
    let pci = session.machine_mut().board_mut().pci_mut();
    for (n, snapshot) in pristine.iter().enumerate() {
        if let Some(disk) = pci.disk_mut(n) {
            disk.restore(snapshot);
            for &(first, blocks) in rest.discarded.get(n).into_iter().flatten() {
                if disk.import(first, blocks, None).is_err() {
                    return Ok(None);
                }
            }
        }
    }
    let blocks = if pristine.is_empty() { Vec::new() } else { checkpoints.diff(None, to) };
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
