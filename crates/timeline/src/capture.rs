//! Machine states kept in memory, sharing the pages and blocks they have in common.
//!
//! A [`Capture`] is a whole state. Its RAM is a two-level table of shared pages: a copy costs a few
//! hundred pointers, and two captures are compared by comparing pointers. A page that a recorded
//! checkpoint has stays on disk and is read when the machine goes there: a recording's checkpoints
//! together hold many times what the guest's RAM does. [`Keeper`] knows which
//! capture the machine was last equal to, so that taking another and going back to one cost what
//! differs.

use crate::Session;
use base::{PAGE_SIZE, Position};
use disk::Snapshot;
use machine::{MachineState, RestoreError};
use recording::{Checkpoints, Error, StoredPage};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;

const FAN: usize = 256;
/// How many pages a thread fetches at a time, how many make it worth while to have threads, and how many
/// of those there are at most. A page takes several microseconds from the disk to where it is used,
/// nearly all of it unpacking and checking.
const FETCHED_AT_ONCE: usize = 16;
const FETCHED_BY_THREADS: usize = 128;
const FETCHERS_MAX: usize = 4;

/// A page of RAM.
#[derive(Clone)]
pub(crate) enum Page {
    Memory(Arc<[u8; PAGE_SIZE]>),
    Stored(Arc<Checkpoints>, StoredPage),
}

impl Page {
    /// Whether they are shared. Equal pages need not be.
    fn is_same(&self, other: &Page) -> bool {
        match (self, other) {
            (Self::Memory(a), Self::Memory(b)) => Arc::ptr_eq(a, b),
            (Self::Stored(from, a), Self::Stored(also, b)) => a == b && Arc::ptr_eq(from, also),
            _ => false,
        }
    }
}

/// Why the machine cannot go to a captured state.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CannotRestore {
    /// A page that a checkpoint should have cannot be read. The machine is nowhere, and can go to
    /// another capture.
    #[error(transparent)]
    Page(#[from] Error),
    /// The rest of the state.
    #[error(transparent)]
    State(#[from] RestoreError),
}

/// Chunks and pages that were counted, by address; valid while the images they are of live.
#[derive(Default)]
pub(crate) struct Seen(HashSet<usize>);

/// The contents of RAM; a page that is not there is zeros.
#[derive(Clone)]
pub(crate) struct RamImage {
    chunks: Vec<Arc<[Option<Page>; FAN]>>,
}

impl RamImage {
    pub(crate) fn zeros(pages: usize) -> Self {
        let empty = Arc::new([const { None }; FAN]);
        Self { chunks: vec![empty; pages.div_ceil(FAN)] }
    }

    pub(crate) fn set(&mut self, page: usize, bytes: Option<Page>) {
        Arc::make_mut(&mut self.chunks[page / FAN])[page % FAN] = bytes;
    }

    pub(crate) fn get(&self, page: usize) -> Option<&Page> {
        self.chunks[page / FAN][page % FAN].as_ref()
    }

    /// A page's bytes.
    ///
    /// # Errors
    /// When a checkpoint should have them and they cannot be read.
    pub(crate) fn read(&self, page: usize, bytes: &mut [u8; PAGE_SIZE]) -> Result<(), Error> {
        match self.get(page) {
            None => bytes.fill(0),
            Some(Page::Memory(page)) => *bytes = **page,
            Some(Page::Stored(checkpoints, page)) => checkpoints.load(*page, bytes)?,
        }
        Ok(())
    }

    /// Fetches pages, in no particular order, with as many threads as the host has processors for.
    ///
    /// # Errors
    /// As [`RamImage::read`], perhaps after some of them.
    fn fetch(&self, pages: &[usize], mut each: impl FnMut(usize, &[u8; PAGE_SIZE])) -> Result<(), Error> {
        let groups: Vec<&[usize]> = pages.chunks(FETCHED_AT_ONCE).collect();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let fetchers = if pages.len() < FETCHED_BY_THREADS { 1 } else { processors.min(FETCHERS_MAX) };
        let next = AtomicUsize::new(0);
        let fetch_some = || {
            let group = *groups.get(next.fetch_add(1, Ordering::Relaxed))?;
            let mut bytes = vec![[0; PAGE_SIZE]; group.len()];
            let mut fetched = group.iter().zip(&mut bytes).map(|(page, bytes)| self.read(*page, bytes));
            Some(fetched.try_for_each(|done| done).map(|()| (group, bytes)))
        };
        let mut put = |fetched: Result<(&[usize], Vec<[u8; PAGE_SIZE]>), Error>| {
            let (group, bytes) = fetched?;
            group.iter().zip(&bytes).for_each(|(page, bytes)| each(*page, bytes));
            Ok(())
        };
        if fetchers == 1 {
            return std::iter::from_fn(fetch_some).try_for_each(put);
        }
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(2 * FETCHERS_MAX);
            for _ in 0..fetchers {
                let sender = sender.clone();
                scope.spawn(move || while fetch_some().is_some_and(|some| sender.send(some).is_ok()) {});
            }
            drop(sender);
            receiver.into_iter().try_for_each(&mut put)
        })
    }

    /// Bytes of the pages in memory that `seen` does not know yet.
    pub(crate) fn count_bytes(&self, seen: &mut Seen) -> usize {
        let mut new = 0;
        for chunk in &self.chunks {
            if seen.0.insert(Arc::as_ptr(chunk) as usize) {
                let pages = chunk.iter().filter_map(|page| match page {
                    Some(Page::Memory(page)) => Some(Arc::as_ptr(page) as usize),
                    _ => None,
                });
                new += pages.filter(|page| seen.0.insert(*page)).count();
            }
        }
        new * PAGE_SIZE
    }

    /// The pages that are not shared with `other`.
    pub(crate) fn differences(&self, other: &RamImage, each: &mut impl FnMut(usize)) {
        for (number, (a, b)) in self.chunks.iter().zip(&other.chunks).enumerate() {
            if Arc::ptr_eq(a, b) {
                continue;
            }
            for (i, (a, b)) in a.iter().zip(b.iter()).enumerate() {
                let same = match (a, b) {
                    (None, None) => true,
                    (Some(a), Some(b)) => a.is_same(b),
                    _ => false,
                };
                if !same {
                    each(number * FAN + i);
                }
            }
        }
    }
}

/// A whole state.
pub(crate) struct Capture {
    pub at: Position,
    pub state: MachineState,
    pub disks: Vec<Snapshot>,
    pub ram: RamImage,
}

/// What the machine was last equal to.
pub(crate) struct Keeper {
    base: RamImage,
}

/// The contents of all disks.
pub(crate) fn disks_of(session: &Session) -> Vec<Snapshot> {
    let pci = session.machine().board().pci();
    (0..pci.disks()).filter_map(|n| pci.disk(n)).map(disk::Overlay::snapshot).collect()
}

impl Keeper {
    /// For a machine at power-on.
    pub fn new(session: &Session) -> Self {
        Self { base: RamImage::zeros(session.machine().board().memory().pages()) }
    }

    /// The machine's state as it is now.
    pub fn capture(&mut self, session: &mut Session) -> Capture {
        let machine = session.machine_mut();
        for page in machine.take_changed_pages() {
            let bytes = machine.board().memory().page_bytes(page as usize);
            let zero = bytes.iter().all(|byte| *byte == 0);
            self.base.set(page as usize, (!zero).then(|| Page::Memory(Arc::new(*bytes))));
        }
        Capture {
            at: machine.position(),
            state: machine.save(),
            disks: disks_of(session),
            ram: self.base.clone(),
        }
    }

    /// Goes to a captured state, writing only pages that differ. The gate is the caller's.
    pub fn restore(&mut self, session: &mut Session, capture: &Capture) -> Result<(), CannotRestore> {
        let machine = session.machine_mut();
        let mut pages: Vec<usize> =
            machine.take_changed_pages().into_iter().map(|page| page as usize).collect();
        self.base.differences(&capture.ram, &mut |page| pages.push(page));
        pages.sort_unstable();
        pages.dedup();
        let ram = machine.board_mut().memory_mut();
        if let Err(error) = capture.ram.fetch(&pages, |page, bytes| ram.write_page(page, 0, bytes)) {
            // What is known of the others must not be forgotten: they are not as in the base.
            pages.iter().for_each(|page| ram.mark_dirty(*page));
            return Err(error.into());
        }
        machine.take_changed_pages();
        self.base = capture.ram.clone();
        for (n, snapshot) in capture.disks.iter().enumerate() {
            if let Some(disk) = machine.board_mut().pci_mut().disk_mut(n) {
                disk.restore(snapshot);
            }
        }
        machine.restore(&capture.state)?;
        session.take_output();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_pages_are_counted_once() {
        let mut first = RamImage::zeros(1000);
        (0..10).for_each(|page| first.set(page * 100, Some(Page::Memory(Arc::new([1; PAGE_SIZE])))));
        let mut second = first.clone();
        second.set(0, Some(Page::Memory(Arc::new([2; PAGE_SIZE]))));
        second.set(100, None);
        let mut seen = Seen::default();
        assert_eq!(first.count_bytes(&mut seen), 10 * PAGE_SIZE);
        assert_eq!(second.count_bytes(&mut seen), PAGE_SIZE);
        assert_eq!(first.clone().count_bytes(&mut seen), 0);
        let mut different = Vec::new();
        first.differences(&second, &mut |page| different.push(page));
        assert_eq!(different, [0, 100]);
    }
}
