//! A checkpoint's record in `checkpoints.log`: one chunk each.
//!
//! ```text
//! contents = id:varint parent:varint (0 none, else id + 1)
//!            store_chunks:varint store_seal[16]
//!            state_raw:varint state_stored:varint state (zstd)
//!            spaces:varint (space:varint changes:varint change*)*
//! change   = index:varint (distance from the one before in this space, less one)
//!            page:varint  (0 absent, 1 zeros, else 2 + zigzag(number - the one before))
//! ```
//!
//! The changes are against the parent's page map. The position is in the chunk's header. The page
//! store must have at least that many chunks, of which the last has that seal.

use super::map::{ABSENT, INDEX_END, PageMap, PageNumber};
use super::store::ZERO;
use crate::id::Digest;
use crate::varint::{Cursor, put, unzigzag, zigzag};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most bytes of machine state in a checkpoint.
pub(crate) const STATE_BYTES_MAX: usize = 64 << 20;

/// An opaque machine state, compressed.
#[derive(Clone)]
pub(crate) struct State {
    raw_len: u32,
    stored: Arc<[u8]>,
}

impl State {
    pub(crate) fn squeeze(raw: &[u8]) -> std::io::Result<Self> {
        assert!(raw.len() <= STATE_BYTES_MAX, "a machine state of {} bytes", raw.len());
        Ok(Self { raw_len: raw.len() as u32, stored: zstd::bulk::compress(raw, 1)?.into() })
    }
    pub(crate) fn unsqueeze(&self) -> Option<Vec<u8>> {
        let raw = zstd::bulk::decompress(&self.stored, self.raw_len as usize).ok()?;
        (raw.len() == self.raw_len as usize).then_some(raw)
    }
    pub(crate) fn stored_len(&self) -> u64 {
        self.stored.len() as u64
    }
}

/// One change of a page map.
pub(crate) type MapChange = (u16, u64, PageNumber);

pub(crate) struct Record {
    pub(crate) id: u64,
    pub(crate) parent: Option<u64>,
    pub(crate) store_chunks: u64,
    pub(crate) store_seal: Digest,
    pub(crate) state: State,
    /// In order of space and index.
    pub(crate) changes: Vec<MapChange>,
}

impl Record {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, self.id);
        put(&mut out, self.parent.map_or(0, |id| id + 1));
        put(&mut out, self.store_chunks);
        out.extend_from_slice(&self.store_seal.0);
        put(&mut out, u64::from(self.state.raw_len));
        put(&mut out, self.state.stored.len() as u64);
        out.extend_from_slice(&self.state.stored);
        let spaces: Vec<&[MapChange]> = self.changes.chunk_by(|a, b| a.0 == b.0).collect();
        put(&mut out, spaces.len() as u64);
        for changes in spaces {
            put(&mut out, u64::from(changes[0].0));
            put(&mut out, changes.len() as u64);
            let (mut next_index, mut last_page) = (0, 0);
            for &(_, index, page) in changes {
                put(&mut out, index - next_index);
                next_index = index + 1;
                match page {
                    ABSENT => put(&mut out, 0),
                    ZERO => put(&mut out, 1),
                    number => {
                        put(&mut out, 2 + zigzag(i64::from(number) - last_page));
                        last_page = i64::from(number);
                    }
                }
            }
        }
        out
    }

    /// Decodes a record; `None` when it makes no sense. Whether the pages exist is not checked.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let mut cursor = Cursor::new(bytes);
        let id = cursor.varint()?;
        let parent = cursor.varint()?.checked_sub(1);
        let store_chunks = cursor.varint()?;
        let store_seal = Digest(cursor.array()?);
        let raw_len = cursor.varint()?;
        let stored_len = cursor.varint()?;
        if raw_len > STATE_BYTES_MAX as u64 || id == u64::MAX {
            return None;
        }
        let stored = cursor.take(usize::try_from(stored_len).ok()?)?.into();
        let state = State { raw_len: raw_len as u32, stored };
        let mut changes = Vec::new();
        let mut last_space = None;
        for _ in 0..cursor.varint()? {
            let space = u16::try_from(cursor.varint()?).ok()?;
            if last_space.is_some_and(|last| space <= last) {
                return None;
            }
            last_space = Some(space);
            decode_changes(&mut cursor, space, &mut changes)?;
        }
        let whole = cursor.left() == 0;
        whole.then_some(Record { id, parent, store_chunks, store_seal, state, changes })
    }
}

fn decode_changes(cursor: &mut Cursor, space: u16, changes: &mut Vec<MapChange>) -> Option<()> {
    let count = cursor.varint()?;
    if count == 0 || count > cursor.left() as u64 {
        return None; // each takes two bytes at least
    }
    changes.reserve(count as usize);
    let (mut next_index, mut last_page) = (0u64, 0i64);
    for _ in 0..count {
        let index = next_index.checked_add(cursor.varint()?).filter(|&index| index < INDEX_END)?;
        next_index = index + 1;
        let page = match cursor.varint()? {
            0 => ABSENT,
            1 => ZERO,
            coded => {
                last_page = last_page.checked_add(unzigzag(coded - 2))?;
                PageNumber::try_from(last_page).ok().filter(|&n| n != ZERO && n != ABSENT)?
            }
        };
        changes.push((space, index, page));
    }
    Some(())
}

/// The changes that lead from one map to another, in order.
pub(crate) fn changes_between(from: &PageMap, to: &PageMap) -> Vec<MapChange> {
    let mut changes = Vec::new();
    from.differences(to, &mut |space, index, _, page| changes.push((space, index, page)));
    changes
}

/// Puts changes in order; of several for one place the last counts.
pub(crate) fn in_order(changes: impl IntoIterator<Item = MapChange>) -> Vec<MapChange> {
    let latest: BTreeMap<(u16, u64), PageNumber> =
        changes.into_iter().map(|(space, index, page)| ((space, index), page)).collect();
    latest.into_iter().map(|((space, index), page)| (space, index, page)).collect()
}
