//! Branches: recordings that begin with a part of another's past.
//!
//! A branch carries its whole past itself: a copy of the other log up to the place where the runs
//! part, some of its checkpoints, and the images that a packed one carried. So it replays from
//! power-on like any recording, positions before the branch mean the same in both, and the other
//! recording may change or go away. [`Origin`] names it for people only.

use crate::checkpoints::victims;
use crate::event::EventKind;
use crate::{Checkpoint, Checkpoints, Error, Manifest, Origin, PAGE_BYTES, Recording, Writer, folder};
use base::Position;
use std::path::Path;
use std::sync::Arc;

/// Most checkpoints of the past that a branch takes along.
const CHECKPOINTS_MAX: usize = 8;

impl Manifest {
    /// The manifest of a new recording of the guest of `parent` that goes its own way from `at` on.
    ///
    /// # Errors
    /// When the guest cannot live on: only a part of its disks is there.
    pub fn branch_of(parent: &Recording, at: Position) -> Result<Self, Error> {
        let of = parent.manifest();
        if let Some((what, image)) = of.guest.images().into_iter().find(|(_, image)| image.partial) {
            let why = "it was packed without the blocks that the run did not need, so a guest cannot go on \
                       living from it; use the recording that the pack was made from";
            return Err(Error::ImageChanged { what, path: image.path.clone(), why: why.to_owned() });
        }
        let path = std::path::absolute(parent.path()).unwrap_or_else(|_| parent.path().to_owned());
        let mut manifest = Self::new(of.machine, of.guest.clone())?;
        manifest.input_kinds = of.input_kinds.clone();
        manifest.origin = Some(Origin { id: of.id, path, at });
        Ok(manifest)
    }
}

/// Copies what a branch needs of its parent's own files into its `folder`.
///
/// # Errors
/// When they cannot be read or written.
pub fn copy_images(parent: &Recording, folder: &Path) -> Result<(), Error> {
    for (_, image) in parent.manifest().guest.images().into_iter().filter(|(_, image)| image.packed) {
        let source = parent.image(image)?;
        let to = folder.join(&image.path);
        let files = folder.join(folder::FILES);
        std::fs::create_dir_all(&files).map_err(|e| Error::io("create", &files, e))?;
        if !to.exists() {
            crate::checkpoints::copy(&*source, &to)?;
        }
    }
    Ok(())
}

/// Copies the events of `parent` before `at` into a branch's new log.
///
/// # Errors
/// When they cannot be read or written.
pub fn copy_events(parent: &Recording, at: Position, writer: &Writer) -> Result<(), Error> {
    for event in parent.events() {
        let event = event?;
        if event.at >= at {
            break;
        }
        match event.kind {
            EventKind::Input { kind, payload } => writer.input(event.at, kind, &payload),
            EventKind::Hash(hash) => writer.hash(event.at, &hash),
            EventKind::Reached => {}
            EventKind::End(_) => break,
        }
    }
    Ok(())
}

/// Copies some of the checkpoints up to `last`, which is one of them, into a branch's new ones, fewer
/// from long ago. Returns `last`'s number there; `None` when a copy is not to be had, which only
/// makes seeking slower.
pub fn copy_checkpoints(from: &Checkpoints, last: &Arc<Checkpoint>, into: &Checkpoints) -> Option<u64> {
    let mut chosen = from.list();
    chosen.retain(|c| (c.at(), c.id()) <= (last.at(), last.id()));
    let positions: Vec<Position> = chosen.iter().map(|c| c.at()).collect();
    let given_up = victims(&positions, positions.len().saturating_sub(CHECKPOINTS_MAX));
    let mut chosen: Vec<_> = chosen.into_iter().map(Some).collect();
    given_up.into_iter().for_each(|index| chosen[index] = None);
    let mut before: Option<(Arc<Checkpoint>, u64)> = None;
    let mut page = [0; PAGE_BYTES];
    for checkpoint in chosen.into_iter().flatten() {
        let state = checkpoint.state()?;
        let parent = before.as_ref().map(|(_, id)| *id);
        let mut draft = into.draft(checkpoint.at(), parent);
        for change in from.diff(before.as_ref().map(|(c, _)| &**c), &checkpoint) {
            match change.page {
                Some(stored) => {
                    from.load(stored, &mut page).ok()?;
                    draft.page(change.space, change.index, &page);
                }
                None => draft.absent(change.space, change.index),
            }
        }
        let id = into.submit(draft, state);
        before = Some((checkpoint, id));
    }
    before.filter(|(c, _)| c.id() == last.id()).map(|(_, id)| id)
}
