//! Pages lent to another thread, which reads them as they were when they were lent.
//!
//! A checkpoint is of tens of thousands of pages, and most of them stay as they are for a while. So
//! they are not copied while the guest stands: the reader gets a [`Loan`] and takes them out of RAM one
//! by one while the guest runs on. A page that is to be written before its turn has come is copied
//! first, by the writer, who meets it where it is marked dirty.
//!
//! ```text
//! lend ──► pending ──(reader's turn)──────────────────► read from RAM
//!             └─────(first write: copied, kept)───────► read from the copy
//! ```
//!
//! Both ways go through one lock, held for the copying of one page.

use crate::ram::Mapping;
use base::PAGE_SIZE;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// How many copies may wait for the reader before a writer waits too (48 MiB). So the two are different
/// threads, and the reader never waits for the writer.
const KEPT_MAX: usize = 12 << 10;
/// How many pages for copies are kept for later ones (2 MiB): memory fresh from the host costs the writer more
/// than the copying.
const SPARE_MAX: usize = 512;

type Page = [u8; PAGE_SIZE];

/// What the two sides share.
pub(crate) struct Lent {
    state: Mutex<State>,
    /// There is room for copies again.
    room: Condvar,
}

struct State {
    /// Bit n: the page with index n is lent, neither read nor copied yet.
    pending: Vec<u64>,
    /// Copies of pages that were written before their turn.
    kept: HashMap<u32, Box<Page>>,
    /// Pages for further copies.
    spare: Vec<Box<Page>>,
}

impl State {
    fn is_pending(&self, page: usize) -> bool {
        self.pending.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }
    fn settle(&mut self, page: usize) {
        self.pending[page / 64] &= !(1 << (page % 64));
    }
    fn copy(&mut self, bytes: &Page) -> Box<Page> {
        match self.spare.pop() {
            Some(mut page) => {
                *page = *bytes;
                page
            }
            None => Box::new(*bytes),
        }
    }
    fn spare(&mut self, page: Box<Page>) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(page);
        }
    }
}

impl Lent {
    /// For so many pages, none of them lent yet; `before` has been given back.
    pub(crate) fn new(pages: usize, before: Option<&Lent>) -> Self {
        let spare = before.map(|before| std::mem::take(&mut before.lock().spare)).unwrap_or_default();
        let state = State { pending: vec![0; pages.div_ceil(64)], kept: HashMap::new(), spare };
        Self { state: Mutex::new(state), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is done under the lock cannot leave it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lends a page; it must not be written from now on without [`Lent::keep`].
    pub(crate) fn add(&self, page: usize) {
        self.lock().pending[page / 64] |= 1 << (page % 64);
    }

    /// Before the first write to a page: copies it, unless it has been read. Waits while too many
    /// copies wait for the reader.
    pub(crate) fn keep(&self, page: usize, bytes: &Page) {
        let mut state = self.lock();
        while state.is_pending(page) {
            if state.kept.len() < KEPT_MAX {
                state.settle(page);
                let copy = state.copy(bytes);
                state.kept.insert(page as u32, copy);
                return;
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Pages as they were when [`crate::Ram::lend`] lent them. Dropping it gives back those not read.
pub struct Loan {
    mapping: Arc<Mapping>,
    lent: Arc<Lent>,
}

impl Loan {
    pub(crate) fn new(mapping: Arc<Mapping>, lent: Arc<Lent>) -> Self {
        Self { mapping, lent }
    }

    /// Reads the page with index `page` and gives it back. False when it is not lent (any more).
    #[must_use]
    pub fn read(&self, page: usize, into: &mut Page) -> bool {
        let mut state = self.lent.lock();
        if state.is_pending(page) {
            // SAFETY: the page is lent, so it lies in the mapping and whoever wants to write it has to
            // settle that first, for which he needs the lock held here.
            unsafe { self.mapping.copy_page(page, into) };
            state.settle(page);
            return true;
        }
        let Some(copy) = u32::try_from(page).ok().and_then(|page| state.kept.remove(&page)) else {
            return false;
        };
        drop(state);
        self.lent.room.notify_one();
        into.copy_from_slice(&copy[..]);
        self.lent.lock().spare(copy);
        true
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let mut state = self.lent.lock();
        state.pending.clear();
        let kept = std::mem::take(&mut state.kept);
        kept.into_values().for_each(|page| state.spare(page));
        drop(state);
        self.lent.room.notify_one();
    }
}
