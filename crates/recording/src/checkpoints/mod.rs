//! Checkpoints: full machine states at positions, sharing their unchanged pages.
//!
//! Whoever runs the machine says which pages were written since another checkpoint ([`Draft`]); a
//! thread fetches, hashes, deduplicates, compresses and writes them. Memory pages and the blocks of a
//! disk's overlay are the same thing in different *spaces*. What distinguishes two checkpoints is
//! found by comparing their page maps, so restoring touches only what differs, in either direction
//! of time.
//!
//! Checkpoints are an accelerator: they can be lost, thinned or rebuilt without changing what a
//! recording means. Their integrity is checked all the same, page by page.

mod map;
mod open;
mod record;
mod store;
mod thin;
mod worker;

use crate::Error;
use crate::error::Stopped;
use base::Position;
use map::{ABSENT, PageMap, PageNumber};
pub(crate) use open::{copy, probe};
use record::State;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};
use std::thread::JoinHandle;
use store::Store;
pub use store::{PAGE_BYTES, Page};
pub(crate) use thin::victims;
use worker::{Job, Worker};

/// The space of guest memory, whose indexes are page indexes. Disk number *n*'s overlay is space
/// `1 + n`, whose indexes are block numbers of 4 KiB.
pub const SPACE_RAM: u16 = 0;

/// How many drafts may wait for the thread.
const WAITING_MAX: usize = 2;

/// How checkpoints are kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How much disk they may take, in bytes; beyond it they are thinned with age.
    pub budget_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { budget_bytes: 4 << 30 }
    }
}

/// One checkpoint. Holding on to one keeps its pages from being thinned away.
pub struct Checkpoint {
    id: u64,
    at: Position,
    map: PageMap,
    state: State,
    changed_pages: u64,
    bytes: u64,
}

impl Checkpoint {
    /// Its number in the recording.
    pub fn id(&self) -> u64 {
        self.id
    }
    /// The position whose state it holds.
    pub fn at(&self) -> Position {
        self.at
    }
    /// The machine state handed over with it; `None` when the recording is damaged there.
    pub fn state(&self) -> Option<Vec<u8>> {
        self.state.unsqueeze()
    }
    /// How many pages differ from the checkpoint it was made against.
    pub fn changed_pages(&self) -> u64 {
        self.changed_pages
    }
    /// About how many bytes of disk it added when it was made.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Whether anything stands at `index` of `space`, other than what was there at power-on.
    pub fn page(&self, space: u16, index: u64) -> Option<StoredPage> {
        stored(self.map.get(space, index))
    }
}

/// A page in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPage(PageNumber);

fn stored(number: PageNumber) -> Option<StoredPage> {
    (number != ABSENT).then_some(StoredPage(number))
}

/// One place where two checkpoints differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Guest memory or a disk's overlay; see [`SPACE_RAM`].
    pub space: u16,
    /// Page or block number.
    pub index: u64,
    /// What stands there in the later of the two; `None`: as at power-on (in memory what was loaded, on
    /// a disk the image's own contents).
    pub page: Option<StoredPage>,
}

/// Where pages are that a draft names by [`Draft::later`].
pub trait Pages: Send {
    /// Fetches one as it was when the draft was made. Asked once for each, in the order in which they
    /// were named, by the thread that writes.
    ///
    /// # Errors
    /// When it cannot be had; no checkpoints are written any more.
    fn fetch(&mut self, space: u16, index: u64, page: &mut Page) -> io::Result<()>;
}

/// What stands at a place of a draft.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Content {
    /// What stood there at power-on.
    Absent,
    /// The next page of the draft's own.
    Here,
    /// A page that its source has.
    Later,
}

/// The state of a machine on its way into the store.
pub struct Draft {
    at: Position,
    parent: Option<u64>,
    /// In the order of adding, of which the last for a place counts: space, index, contents.
    places: Vec<(u16, u64, Content)>,
    bytes: Vec<u8>,
    source: Option<Box<dyn Pages>>,
}

impl Draft {
    /// Adds a page that may differ from the parent's. Copies it.
    pub fn page(&mut self, space: u16, index: u64, page: &Page) {
        assert!(index < map::INDEX_END);
        self.places.push((space, index, Content::Here));
        self.bytes.extend_from_slice(page);
    }
    /// Adds a page that may differ from the parent's, which [`Draft::source`] will have.
    pub fn later(&mut self, space: u16, index: u64) {
        assert!(index < map::INDEX_END);
        self.places.push((space, index, Content::Later));
    }
    /// Says that a place is as it was at power-on again.
    pub fn absent(&mut self, space: u16, index: u64) {
        assert!(index < map::INDEX_END);
        self.places.push((space, index, Content::Absent));
    }
    /// Says who has the pages that are not here.
    pub fn source(&mut self, source: Box<dyn Pages>) {
        self.source = Some(source);
    }
}

/// All checkpoints of a recording.
pub struct Checkpoints {
    shared: Arc<Shared>,
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    next_id: AtomicU64,
    /// Held for as long as we may write.
    _lock: Option<crate::folder::Lock>,
}

struct Shared {
    book: RwLock<Book>,
    progress: Mutex<Progress>,
    settled: Condvar,
}

#[derive(Default)]
struct Progress {
    submitted: u64,
    done: u64,
    error: Option<Stopped>,
}

struct Book {
    store: Store,
    list: BTreeMap<(Position, u64), Arc<Checkpoint>>,
    /// Every checkpoint that somebody may still hold.
    issued: Vec<Weak<Checkpoint>>,
    log_bytes: u64,
}

impl Book {
    fn find(&self, id: u64) -> Option<Arc<Checkpoint>> {
        self.issued.iter().rev().filter_map(Weak::upgrade).find(|c| c.id == id)
    }
    fn insert(&mut self, checkpoint: Arc<Checkpoint>) {
        self.issued.push(Arc::downgrade(&checkpoint));
        self.list.insert((checkpoint.at, checkpoint.id), checkpoint);
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().unwrap_or_else(PoisonError::into_inner)
    }
    fn write(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().unwrap_or_else(PoisonError::into_inner)
    }
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checkpoints {
    fn start(book: Book, worker: Option<Worker>, lock: Option<crate::folder::Lock>) -> Result<Self, Error> {
        let next_id = AtomicU64::new(book.list.values().map(|c| c.id + 1).max().unwrap_or(0));
        let shared =
            Arc::new(Shared { book: RwLock::new(book), progress: Mutex::default(), settled: Condvar::new() });
        let mut this = Self { shared: shared.clone(), jobs: None, thread: None, next_id, _lock: lock };
        if let Some(mut worker) = worker {
            let (sender, receiver) = sync_channel(WAITING_MAX);
            let path = worker.path().to_owned();
            let thread = std::thread::Builder::new().name("checkpoints".into());
            let thread = thread.spawn(move || worker.run(&shared, &receiver));
            this.thread = Some(thread.map_err(|e| Error::io("start the writing thread for", &path, e))?);
            this.jobs = Some(sender);
        }
        Ok(this)
    }

    /// Whether checkpoints can be added.
    pub fn is_writable(&self) -> bool {
        self.jobs.is_some()
    }

    /// Begins a checkpoint at `at`. The pages added to it are those that differ from `parent`'s
    /// (more do no harm); without a parent, those that differ from power-on.
    pub fn draft(&self, at: Position, parent: Option<u64>) -> Draft {
        Draft { at, parent, places: Vec::new(), bytes: Vec::new(), source: None }
    }

    /// Hands a checkpoint over to the thread, with the machine's state apart from its pages (at
    /// most 64 MiB). Returns its id, which may be a parent at once. Waits while several others are
    /// being written. When nothing can be written this does nothing.
    pub fn submit(&self, draft: Draft, state: Vec<u8>) -> u64 {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        if let Some(jobs) = &self.jobs {
            self.shared.progress().submitted += 1;
            let job = Job { id, draft, state };
            let sent = match jobs.try_send(job) {
                Err(TrySendError::Full(job)) => jobs.send(job).is_ok(),
                sent => sent.is_ok(),
            };
            if !sent {
                self.shared.progress().done += 1;
            }
        }
        id
    }

    /// Whether a checkpoint that was handed over is not written yet.
    pub fn is_busy(&self) -> bool {
        let progress = self.shared.progress();
        progress.submitted > progress.done
    }

    /// Waits until everything handed over is in the files.
    pub fn sync(&self) -> Result<(), Stopped> {
        let mut progress = self.shared.progress();
        while progress.done < progress.submitted {
            progress = self.shared.settled.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress.error.clone().map_or(Ok(()), Err)
    }

    /// Whether writing still works.
    pub fn check(&self) -> Result<(), Stopped> {
        self.shared.progress().error.clone().map_or(Ok(()), Err)
    }

    /// All checkpoints, in order of position.
    pub fn list(&self) -> Vec<Arc<Checkpoint>> {
        self.shared.read().list.values().cloned().collect()
    }

    /// The last checkpoint at or before `at`.
    pub fn at_or_before(&self, at: Position) -> Option<Arc<Checkpoint>> {
        self.shared.read().list.range(..=(at, u64::MAX)).next_back().map(|(_, c)| c.clone())
    }

    /// The checkpoint with that id, if it is written and still there.
    pub fn get(&self, id: u64) -> Option<Arc<Checkpoint>> {
        self.shared.read().find(id)
    }

    /// Where `to` differs from `from` (from power-on, when `None`), in order of space and index.
    pub fn diff(&self, from: Option<&Checkpoint>, to: &Checkpoint) -> Vec<Change> {
        let nothing = PageMap::default();
        let mut changes = Vec::new();
        let from = from.map_or(&nothing, |from| &from.map);
        from.differences(&to.map, &mut |space, index, _, page| {
            changes.push(Change { space, index, page: stored(page) });
        });
        changes
    }

    /// Reads a page, checking its contents.
    pub fn load(&self, stored: StoredPage, page: &mut Page) -> Result<(), Error> {
        self.shared.read().store.read(stored.0, page)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        let book = self.shared.read();
        book.store.bytes + book.log_bytes
    }

    /// Gives up old checkpoints until the rest takes at most `budget_bytes`, or only the first and
    /// the last are left, and frees the disk they took. Goes on in the background.
    pub fn thin(&self, budget_bytes: u64) {
        if let Some(jobs) = &self.jobs {
            self.shared.progress().submitted += 1;
            if jobs.send(Job::thin(budget_bytes)).is_err() {
                self.shared.progress().done += 1;
            }
        }
    }

    /// Writes what is left and makes all of it last.
    pub fn finish(mut self) -> Result<(), Stopped> {
        self.close();
        self.check()
    }

    fn close(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.close();
    }
}
