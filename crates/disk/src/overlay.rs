//! The overlay: an image, and what the run has made of it.

use crate::tree::{Slot, Tree};
use crate::{BLOCK_SIZE, Base, Block, DiskError, Store};
use std::sync::Arc;

const BLOCK: u64 = BLOCK_SIZE as u64;

/// A disk that can be written: reads come from the image until something was written there.
pub struct Overlay {
    base: Arc<dyn Base>,
    len: u64,
    store: Arc<Store>,
    tree: Tree,
}

/// The contents of a disk at one moment. Costs nothing to take, keeps alive the blocks it needs,
/// and can be used from any thread.
#[derive(Clone)]
pub struct Snapshot {
    len: u64,
    tree: Tree,
}

/// A run of blocks that differs between two moments, and what it is at the later one.
#[derive(Clone)]
pub struct Change {
    /// Number of the first block; its offset is [`BLOCK_SIZE`] times that.
    pub first: u64,
    /// How many blocks, at least one.
    pub blocks: u64,
    /// What they are now.
    pub content: Content,
}

/// What blocks are.
#[derive(Clone)]
pub enum Content {
    /// As in the image (when going back to before they were written).
    Base,
    /// Discarded: zeros.
    Zero,
    /// Written; a [`Change`] of this kind is one block. The last block of a disk whose length is
    /// not a multiple of [`BLOCK_SIZE`] is filled up with zeros.
    Data(Arc<Block>),
}

impl Snapshot {
    /// What differs from an `earlier` moment of the same disk, in ascending order; everything that
    /// differs from the image when `None`. Takes time in proportion to what changed.
    ///
    /// # Panics
    /// When `earlier` belongs to a disk of another length.
    pub fn changes_since(&self, earlier: Option<&Snapshot>) -> Vec<Change> {
        let old = match earlier {
            Some(earlier) => {
                assert_eq!(earlier.len, self.len, "snapshots of the same disk");
                &earlier.tree
            }
            None => &Tree::new(self.len.div_ceil(BLOCK)),
        };
        let mut changes: Vec<Change> = Vec::new();
        self.tree.diff(old, &mut |first, blocks, slot| {
            let content = match slot {
                Slot::Base => Content::Base,
                Slot::Zero => Content::Zero,
                Slot::Block(block) => Content::Data(block.clone()),
                Slot::Node(_) => unreachable!("differences are reported below nodes"),
            };
            match changes.last_mut() {
                Some(last) if last.first + last.blocks == first && last.content.joins(&content) => {
                    last.blocks += blocks;
                }
                _ => changes.push(Change { first, blocks, content }),
            }
        });
        changes
    }

    /// A hash of everything written so far; with the image's identity it stands for the contents.
    ///
    /// # Errors
    /// [`DiskError::Spill`] when a block cannot be read back.
    pub fn hash(&self) -> Result<blake3::Hash, DiskError> {
        self.tree.hash()
    }
}

impl Content {
    fn joins(&self, next: &Content) -> bool {
        matches!((self, next), (Content::Base, Content::Base) | (Content::Zero, Content::Zero))
    }
}

impl Overlay {
    /// An overlay with nothing written, whose blocks go to `store`.
    pub fn new(base: Arc<dyn Base>, store: Arc<Store>) -> Self {
        let len = base.len();
        Self { base, len, store, tree: Tree::new(len.div_ceil(BLOCK)) }
    }

    /// Bytes of the disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the disk has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The contents now, to come back to.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { len: self.len, tree: self.tree.clone() }
    }

    /// Goes to the contents of a snapshot, earlier or later, at no cost.
    ///
    /// # Panics
    /// When the snapshot belongs to a disk of another length.
    pub fn restore(&mut self, snapshot: &Snapshot) {
        assert_eq!(snapshot.len, self.len, "a snapshot of the same disk");
        self.tree = snapshot.tree.clone();
    }

    /// A hash of everything written so far; see [`Snapshot::hash`].
    ///
    /// # Errors
    /// [`DiskError::Spill`] when a block cannot be read back.
    pub fn hash(&self) -> Result<blake3::Hash, DiskError> {
        self.tree.hash()
    }

    /// Fills `buf` from byte `offset` on.
    ///
    /// # Errors
    /// [`DiskError::Range`] beyond the end; [`DiskError::Read`] or [`DiskError::Spill`] when the
    /// host's storage fails.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.check(offset, buf.len() as u64)?;
        let mut done = 0;
        while done < buf.len() {
            let here = offset + done as u64;
            let within = (here % BLOCK) as usize;
            let mut n = (BLOCK_SIZE - within).min(buf.len() - done);
            match self.tree.get(here / BLOCK) {
                Slot::Zero => buf[done..done + n].fill(0),
                Slot::Block(block) => block.read(within, &mut buf[done..done + n])?,
                Slot::Base | Slot::Node(_) => {
                    // One read of the image for as many untouched blocks as follow.
                    while done + n < buf.len()
                        && matches!(self.tree.get((here + n as u64) / BLOCK), Slot::Base)
                    {
                        n += BLOCK_SIZE.min(buf.len() - done - n);
                    }
                    self.read_base(here, &mut buf[done..done + n])?;
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Writes `data` from byte `offset` on.
    ///
    /// # Errors
    /// As [`Self::read_at`]; part of the data may then have been written.
    pub fn write_at(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check(offset, data.len() as u64)?;
        let mut done = 0;
        while done < data.len() {
            let here = offset + done as u64;
            let within = (here % BLOCK) as usize;
            let n = (BLOCK_SIZE - within).min(data.len() - done);
            self.write_block(here / BLOCK, within, &data[done..done + n])?;
            done += n;
        }
        Ok(())
    }

    /// Makes `len` bytes from `offset` on zero, without storing them where whole blocks are covered.
    ///
    /// # Errors
    /// As [`Self::write_at`].
    pub fn zero_at(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.check(offset, len)?;
        let end = offset + len;
        let first = offset.div_ceil(BLOCK);
        // The last block of the disk may be a short one, and counts as whole.
        let last = if end == self.len { end.div_ceil(BLOCK) } else { end / BLOCK };
        if first >= last {
            return self.write_zeros(offset, len);
        }
        self.write_zeros(offset, first * BLOCK - offset)?;
        self.tree.fill(first, last - first, &Slot::Zero);
        self.write_zeros(last * BLOCK, end.saturating_sub(last * BLOCK))
    }

    /// Puts back a change that was stored elsewhere: `data` holds the block for
    /// [`Content::Data`]-like changes, `None` stands for zeros.
    ///
    /// # Errors
    /// [`DiskError::Range`] when the blocks lie beyond the end, else as [`Self::write_at`].
    pub fn import(
        &mut self,
        first: u64,
        blocks: u64,
        data: Option<&[u8; BLOCK_SIZE]>,
    ) -> Result<(), DiskError> {
        let all = self.len.div_ceil(BLOCK);
        if blocks == 0 || first >= all || blocks > all - first {
            return Err(DiskError::Range {
                offset: first.saturating_mul(BLOCK),
                len: blocks.saturating_mul(BLOCK),
                disk_len: self.len,
            });
        }
        match data {
            None => self.tree.fill(first, blocks, &Slot::Zero),
            Some(bytes) => {
                for block in first..first + blocks {
                    *self.tree.leaf_mut(block) = Slot::Block(Arc::new(Block::new(&self.store, bytes)?));
                }
            }
        }
        Ok(())
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(DiskError::Range { offset, len, disk_len: self.len }),
        }
    }

    fn read_base(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        self.base.read_at(offset, buf).map_err(|source| DiskError::Read {
            path: self.base.name(),
            offset,
            len: buf.len(),
            source,
        })
    }

    fn write_zeros(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        debug_assert!(len < 2 * BLOCK);
        if len == 0 {
            return Ok(()); // the place may be past the end
        }
        self.write_at(offset, &[0; 2 * BLOCK_SIZE][..len as usize])
    }

    fn write_block(&mut self, number: u64, within: usize, data: &[u8]) -> Result<(), DiskError> {
        if matches!(self.tree.get(number), Slot::Block(_))
            && let Slot::Block(block) = self.tree.leaf_mut(number)
            && let Some(block) = Arc::get_mut(block)
        {
            return block.write(within, data);
        }
        let mut bytes = [0; BLOCK_SIZE];
        if data.len() < BLOCK_SIZE {
            let start = number * BLOCK;
            let n = (self.len - start).min(BLOCK) as usize;
            self.read_at(start, &mut bytes[..n])?;
        }
        bytes[within..][..data.len()].copy_from_slice(data);
        *self.tree.leaf_mut(number) = Slot::Block(Arc::new(Block::new(&self.store, &bytes)?));
        Ok(())
    }
}
