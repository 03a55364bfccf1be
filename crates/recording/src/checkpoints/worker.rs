//! The thread that writes checkpoints, and gives up old ones.

use super::map::{ABSENT, PageMap, PageNumber, Seen};
use super::record::{MapChange, Record, State, changes_between, in_order};
use super::store::{PAGES_PER_CHUNK, Squeezed, Store, ZERO};
use super::{Book, Checkpoint, Content, Draft, Options, PAGE_BYTES, Page, Shared, thin};
use crate::chunk::{ChunkAppender, Head, LogKind};
use crate::error::Stopped;
use crate::id::{Digest, RecordingId};
use crate::{Error, FileSource, folder};
use base::Position;
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

pub(super) struct Job {
    pub(super) id: u64,
    pub(super) draft: Draft,
    pub(super) state: Vec<u8>,
}

impl Job {
    const THIN: u64 = u64::MAX;

    /// A request to thin; its budget travels as the position.
    pub(super) fn thin(budget_bytes: u64) -> Self {
        let at = Position::from_count(budget_bytes);
        let draft = Draft { at, parent: None, places: Vec::new(), bytes: Vec::new(), source: None };
        Self { id: Self::THIN, draft, state: Vec::new() }
    }
}

pub(super) struct Worker {
    pub(super) folder: PathBuf,
    pub(super) id: RecordingId,
    pub(super) options: Options,
    pub(super) generation: u32,
    pub(super) pages: ChunkAppender,
    pub(super) log: ChunkAppender,
    /// Ids whose records are in the log.
    pub(super) written: BTreeSet<u64>,
    /// The last one written, which the next draft usually builds on.
    pub(super) recent: Option<Arc<Checkpoint>>,
    /// Thin again only beyond this many bytes.
    pub(super) thin_above: u64,
}

type Failure = (PathBuf, io::Error);

impl Worker {
    pub(super) fn path(&self) -> &Path {
        self.log.path()
    }

    pub(super) fn run(&mut self, shared: &Shared, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let failed = shared.progress().error.is_some();
            let result = match job {
                // What it borrows is given back before anyone is told that it is done.
                job if failed => {
                    drop(job);
                    Ok(())
                }
                Job { id: Job::THIN, draft, .. } => self.thin(shared, draft.at.count()),
                job => self.write(shared, job),
            };
            let mut progress = shared.progress();
            progress.done += 1;
            if let Err((path, e)) = result {
                let flushed = self.recent.as_ref().map_or(Position::START, |c| c.at);
                progress.error = Some(Stopped { path, why: e.to_string(), kind: e.kind(), flushed });
            }
            drop(progress);
            shared.settled.notify_all();
        }
        let synced = self.pages.sync().and_then(|()| self.log.sync());
        if let Err(e) = synced {
            let mut progress = shared.progress();
            let stopped = Stopped {
                path: self.path().to_owned(),
                why: e.to_string(),
                kind: e.kind(),
                flushed: Position::START,
            };
            progress.error.get_or_insert(stopped);
        }
    }

    fn write(&mut self, shared: &Shared, job: Job) -> Result<(), Failure> {
        let Job { id, mut draft, state } = job;
        let parent = match draft.parent {
            None => None,
            Some(parent) => match self.recent.clone().filter(|c| c.id == parent) {
                Some(recent) => Some(recent),
                // A parent that was lost takes its children with it: they can be made again.
                None => match shared.read().find(parent) {
                    None => return Ok(()),
                    found => found,
                },
            },
        };
        let before = self.pages.end() + self.log.end();
        let state = State::squeeze(&state).map_err(|e| (self.pages.path().to_owned(), e))?;
        let changes = self.take_in(shared, &mut draft).map_err(|e| (self.pages.path().to_owned(), e))?;
        let mut map = parent.as_ref().map_or_else(PageMap::default, |parent| parent.map.clone());
        for &(space, index, page) in &changes {
            if map.get(space, index) != page {
                map.set(space, index, page);
            }
        }
        let mut checkpoint =
            Checkpoint { id, at: draft.at, map, state, changed_pages: changes.len() as u64, bytes: 0 };
        let on_disk = parent.or(self.recent.clone()).filter(|c| self.written.contains(&c.id));
        self.append_record(&shared.read().store, &checkpoint, on_disk.as_deref())?;
        checkpoint.bytes = self.pages.end() + self.log.end() - before;
        let checkpoint = Arc::new(checkpoint);
        self.recent = Some(checkpoint.clone());
        let total = {
            let mut book = shared.write();
            book.insert(checkpoint);
            book.issued.retain(|weak| weak.strong_count() > 0);
            book.log_bytes = self.log.end();
            book.store.bytes + book.log_bytes
        };
        if total > self.thin_above {
            self.thin(shared, self.options.budget_bytes / 10 * 6)?;
        }
        self.pages.begin_sync();
        Ok(())
    }

    /// Puts the pages of a draft into the store, those that are not there yet, and tells where which
    /// page stands now. Goes a chunk's worth at a time: neither a draft's pages nor what becomes of them
    /// are ever in memory all together.
    fn take_in(&mut self, shared: &Shared, draft: &mut Draft) -> io::Result<Vec<MapChange>> {
        let mut group: Vec<Squeezed> = Vec::with_capacity(PAGES_PER_CHUNK);
        let mut in_group: HashMap<Digest, PageNumber> = HashMap::new();
        let mut changes = Vec::with_capacity(draft.places.len());
        let mut pages = draft.bytes.chunks_exact(PAGE_BYTES);
        let mut fetched = [0; PAGE_BYTES];
        for &(space, index, content) in &draft.places {
            let page: &Page = match (content, &mut draft.source) {
                (Content::Here, _) => {
                    pages.next().and_then(|page| page.try_into().ok()).expect("a page each")
                }
                (Content::Later, Some(source)) => {
                    source.fetch(space, index, &mut fetched)?;
                    &fetched
                }
                (Content::Absent, _) | (Content::Later, None) => {
                    changes.push((space, index, ABSENT));
                    continue;
                }
            };
            if page.iter().all(|&b| b == 0) {
                changes.push((space, index, ZERO));
                continue;
            }
            let id = Digest::of(page);
            let (known, next) = {
                let store = &shared.read().store;
                (store.find(id), store.next_number())
            };
            let number = known.or_else(|| in_group.get(&id).copied()).unwrap_or_else(|| {
                let number = next.saturating_add(group.len() as PageNumber);
                group.push(Squeezed::new(id, number, page));
                in_group.insert(id, number);
                number
            });
            changes.push((space, index, number));
            if group.len() == PAGES_PER_CHUNK {
                shared.write().store.append(&mut self.pages, draft.at, &group)?;
                group.clear();
                in_group.clear();
            }
        }
        shared.write().store.append(&mut self.pages, draft.at, &group)?;
        Ok(in_order(changes))
    }

    fn append_record(
        &mut self,
        store: &Store,
        checkpoint: &Checkpoint,
        parent: Option<&Checkpoint>,
    ) -> Result<(), Failure> {
        let nothing = PageMap::default();
        let changes: Vec<MapChange> =
            changes_between(parent.map_or(&nothing, |parent| &parent.map), &checkpoint.map);
        let record = Record {
            id: checkpoint.id,
            parent: parent.map(|parent| parent.id),
            store_chunks: store.chunks,
            store_seal: store.seal,
            state: checkpoint.state.clone(),
            changes,
        };
        let raw = record.encode();
        let path = self.log.path().to_owned();
        self.log.append(checkpoint.at, checkpoint.at, &raw, true).map_err(|e| (path, e))?;
        self.written.insert(checkpoint.id);
        Ok(())
    }

    /// Gives up checkpoints until the rest fits, and rewrites both files without what only they
    /// needed. The new log names the new store; renaming it is the moment at which both change.
    fn thin(&mut self, shared: &Shared, target_bytes: u64) -> Result<(), Failure> {
        let mut keep = shared.read().list.values().cloned().collect::<Vec<_>>();
        let before = keep.len();
        while keep.len() > 2 && live_bytes(&shared.read(), &keep) > target_bytes {
            let positions: Vec<Position> = keep.iter().map(|c| c.at).collect();
            let victims: BTreeSet<usize> =
                thin::victims(&positions, (keep.len() / 8).max(1)).into_iter().collect();
            let mut index = 0;
            keep.retain(|_| (!victims.contains(&index), index += 1).0);
        }
        let total = shared.read().store.bytes + self.log.end();
        if keep.len() < before || total > target_bytes {
            let kept: BTreeSet<u64> = keep.iter().map(|c| c.id).collect();
            shared.write().list.retain(|(_, id), _| kept.contains(id));
            self.rewrite(shared, &keep)?;
        }
        let total = shared.read().store.bytes + self.log.end();
        self.thin_above = self.options.budget_bytes.max(total + total / 2);
        Ok(())
    }

    fn rewrite(&mut self, shared: &Shared, keep: &[Arc<Checkpoint>]) -> Result<(), Failure> {
        let old = self.pages.path().to_owned();
        let generation = self.generation + 1;
        let pages_path = self.folder.join(folder::pages(generation));
        let log_path = self.folder.join(folder::CHECKPOINTS);
        let new_log_path = self.folder.join("checkpoints.log.new");
        // Leftovers of a process that was killed here.
        let _ = std::fs::remove_file(&pages_path);
        let _ = std::fs::remove_file(&new_log_path);
        let create = |kind, path: &Path| {
            ChunkAppender::create(path, Head { kind, id: self.id, generation })
                .map_err(|e| (path.to_owned(), e))
        };
        let mut pages = create(LogKind::Pages, &pages_path)?;
        let log = create(LogKind::Checkpoints, &new_log_path)?;
        let store = copy_live(&shared.read(), keep, &mut pages).map_err(|e| (pages_path.clone(), e))?;
        let old_log = std::mem::replace(&mut self.log, log);
        let old_pages = std::mem::replace(&mut self.pages, pages);
        let old_written = std::mem::take(&mut self.written);
        let mut previous: Option<&Checkpoint> = None;
        let mut result = Ok(());
        for checkpoint in keep {
            result = result.and_then(|()| self.append_record(&store, checkpoint, previous));
            previous = Some(checkpoint);
        }
        let renamed = result.and_then(|()| {
            let done = self.pages.sync().and_then(|()| self.log.sync());
            done.and_then(|()| std::fs::rename(&new_log_path, &log_path)).map_err(|e| (log_path.clone(), e))
        });
        if let Err(e) = renamed {
            (self.log, self.pages, self.written) = (old_log, old_pages, old_written);
            let _ = std::fs::remove_file(&pages_path);
            let _ = std::fs::remove_file(&new_log_path);
            return Err(e);
        }
        self.log.renamed(log_path);
        self.generation = generation;
        let mut book = shared.write();
        book.log_bytes = self.log.end();
        book.store = store;
        drop(book);
        let _ = std::fs::remove_file(old);
        Ok(())
    }
}

/// Every page that a kept checkpoint, or one that somebody holds, needs.
fn live_pages(book: &Book, keep: &[Arc<Checkpoint>], held: bool) -> BTreeSet<PageNumber> {
    let mut live = BTreeSet::new();
    let mut seen = Seen::default();
    let held: Vec<Arc<Checkpoint>> =
        if held { book.issued.iter().filter_map(std::sync::Weak::upgrade).collect() } else { Vec::new() };
    for checkpoint in keep.iter().chain(&held) {
        checkpoint.map.mark(&mut seen, &mut |page| {
            live.insert(page);
        });
    }
    live.remove(&ZERO);
    live
}

fn live_bytes(book: &Book, keep: &[Arc<Checkpoint>]) -> u64 {
    let pages: u64 = live_pages(book, keep, false).into_iter().map(|page| book.store.cost(page)).sum();
    pages + keep.iter().map(|c| c.state.stored_len()).sum::<u64>()
}

fn copy_live(book: &Book, keep: &[Arc<Checkpoint>], log: &mut ChunkAppender) -> io::Result<Store> {
    let source = FileSource::open(log.path()).map_err(io::Error::other)?;
    let mut store = Store::empty(Arc::new(source), log);
    let live: Vec<PageNumber> = live_pages(book, keep, true).into_iter().collect();
    for group in live.chunks(1024) {
        let pages: Result<Vec<Squeezed>, Error> = group.iter().map(|&page| book.store.raw(page)).collect();
        store.append(log, Position::START, &pages.map_err(io::Error::other)?)?;
    }
    Ok(store)
}
