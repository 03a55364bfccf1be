//! Blocks that the run has written, in memory or in a nameless file.

use crate::DiskError;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of a block, the grain of copy-on-write: the block size of common file systems, so that
/// a write rarely has to read what it does not replace.
pub const BLOCK_SIZE: usize = 4096;

/// Where blocks live: up to a limit in memory, beyond it in a temporary file that has no name and
/// vanishes with the process. Shared by a run's disks and all their snapshots.
pub struct Store {
    resident_max: usize,
    resident: AtomicUsize,
    dir: PathBuf,
    spill: Mutex<Spill>,
}

#[derive(Default)]
struct Spill {
    file: Option<Arc<File>>,
    slots: u64,
    free: Vec<u64>,
}

impl Store {
    /// A store that keeps `memory_max` bytes in memory and spills the rest to a file in `dir`.
    pub fn new(memory_max: u64, dir: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            resident_max: (memory_max / BLOCK_SIZE as u64) as usize,
            resident: AtomicUsize::new(0),
            dir,
            spill: Mutex::default(),
        })
    }

    /// A store in the host's folder for temporary files.
    pub fn in_temp_dir(memory_max: u64) -> Arc<Self> {
        Self::new(memory_max, std::env::temp_dir())
    }

    /// Bytes held in memory and in the file.
    pub fn usage_bytes(&self) -> (u64, u64) {
        let spill = self.spill.lock().expect("no panic while holding the lock");
        let spilled = spill.slots - spill.free.len() as u64;
        (self.resident.load(Ordering::Relaxed) as u64 * BLOCK_SIZE as u64, spilled * BLOCK_SIZE as u64)
    }

    fn failed(&self, source: std::io::Error) -> DiskError {
        DiskError::Spill { dir: self.dir.clone(), source }
    }

    fn take_slot(&self) -> Result<(Arc<File>, u64), DiskError> {
        let mut spill = self.spill.lock().expect("no panic while holding the lock");
        let file = match &spill.file {
            Some(file) => file.clone(),
            None => {
                let file = Arc::new(tempfile::tempfile_in(&self.dir).map_err(|e| self.failed(e))?);
                spill.file = Some(file.clone());
                file
            }
        };
        let slot = match spill.free.pop() {
            Some(slot) => slot,
            None => {
                spill.slots += 1;
                spill.slots - 1
            }
        };
        Ok((file, slot))
    }
}

/// One written block. Immutable once a snapshot shares it.
pub struct Block {
    place: Place,
    store: Arc<Store>,
    hash: OnceLock<blake3::Hash>,
}

enum Place {
    Memory(Box<[u8; BLOCK_SIZE]>),
    File(Arc<File>, u64),
}

impl Block {
    /// Stores a block.
    pub(crate) fn new(store: &Arc<Store>, bytes: &[u8; BLOCK_SIZE]) -> Result<Self, DiskError> {
        let place = if store.resident.load(Ordering::Relaxed) < store.resident_max {
            store.resident.fetch_add(1, Ordering::Relaxed);
            Place::Memory(Box::new(*bytes))
        } else {
            let (file, slot) = store.take_slot()?;
            Place::File(file, slot)
        };
        let mut block = Self { place, store: store.clone(), hash: OnceLock::new() };
        if matches!(block.place, Place::File(..)) {
            block.write(0, bytes)?;
        }
        Ok(block)
    }

    /// Reads `buf.len()` bytes from `offset` within the block on.
    ///
    /// # Errors
    /// [`DiskError::Spill`] when the temporary file cannot be read.
    ///
    /// # Panics
    /// When the range does not lie within the block.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), DiskError> {
        assert!(offset + buf.len() <= BLOCK_SIZE);
        match &self.place {
            Place::Memory(bytes) => buf.copy_from_slice(&bytes[offset..][..buf.len()]),
            Place::File(file, slot) => file
                .read_exact_at(buf, slot * BLOCK_SIZE as u64 + offset as u64)
                .map_err(|e| self.store.failed(e))?,
        }
        Ok(())
    }

    /// Changes a block that nobody shares.
    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), DiskError> {
        assert!(offset + data.len() <= BLOCK_SIZE);
        self.hash = OnceLock::new();
        match &mut self.place {
            Place::Memory(bytes) => bytes[offset..][..data.len()].copy_from_slice(data),
            Place::File(file, slot) => file
                .write_all_at(data, *slot * BLOCK_SIZE as u64 + offset as u64)
                .map_err(|e| self.store.failed(e))?,
        }
        Ok(())
    }

    /// BLAKE3 hash of the bytes, computed at the first call.
    ///
    /// # Errors
    /// [`DiskError::Spill`] when the temporary file cannot be read.
    pub fn hash(&self) -> Result<blake3::Hash, DiskError> {
        if let Some(hash) = self.hash.get() {
            return Ok(*hash);
        }
        let mut bytes = [0; BLOCK_SIZE];
        self.read(0, &mut bytes)?;
        Ok(*self.hash.get_or_init(|| blake3::hash(&bytes)))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match self.place {
            Place::Memory(_) => {
                self.store.resident.fetch_sub(1, Ordering::Relaxed);
            }
            Place::File(_, slot) => {
                self.store.spill.lock().expect("no panic while holding the lock").free.push(slot);
            }
        }
    }
}
