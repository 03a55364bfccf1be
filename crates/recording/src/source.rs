//! Where bytes are read from: a file of a folder, or a member of a packed recording.

use crate::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Random access to a fixed number of bytes.
pub trait ReadAt: Send + Sync {
    /// How many bytes there are. Fixed when opened, even if the file grows.
    fn size(&self) -> u64;
    /// Fills `buf` from `offset`; an error when any byte is missing, unreadable or damaged.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error>;
    /// What to call it in messages.
    fn path(&self) -> &Path;
}

/// A shared [`ReadAt`].
pub type Source = Arc<dyn ReadAt>;

/// A plain file.
pub struct FileSource {
    file: File,
    path: PathBuf,
    size: u64,
}

impl FileSource {
    /// Opens `path` for reading. Anything but a regular file (a pipe would hang) is refused.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let describe = |e| Error::io("open", path, e);
        let before = std::fs::metadata(path).map_err(describe)?;
        if !before.is_file() {
            return Err(Error::damaged(path, 0, None, "it is not a regular file"));
        }
        let file = File::open(path).map_err(describe)?;
        let size = file.metadata().map_err(describe)?.len();
        Ok(Self { file, path: path.to_owned(), size })
    }
}

impl ReadAt for FileSource {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.file.read_exact_at(buf, offset).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => Error::damaged(
                &self.path,
                offset,
                None,
                format!("{} bytes expected here are missing", buf.len()),
            ),
            _ => Error::io("read", &self.path, e),
        })
    }
    fn path(&self) -> &Path {
        &self.path
    }
}

/// Bytes in memory, for tests and fuzzing.
pub struct BytesSource {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl BytesSource {
    /// Serves `bytes` under the name `path`.
    pub fn new(path: impl Into<PathBuf>, bytes: Vec<u8>) -> Self {
        Self { bytes, path: path.into() }
    }
}

impl ReadAt for BytesSource {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let from = usize::try_from(offset).ok();
        let found = from.and_then(|from| self.bytes.get(from..from.checked_add(buf.len())?));
        match found {
            Some(found) => {
                buf.copy_from_slice(found);
                Ok(())
            }
            None => Err(Error::damaged(&self.path, offset, None, "bytes expected here are missing")),
        }
    }
    fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads everything, refusing more than `limit` bytes.
pub(crate) fn read_all(source: &dyn ReadAt, limit: u64) -> Result<Vec<u8>, Error> {
    if source.size() > limit {
        let why = format!("it has {} bytes, more than the limit of {limit}", source.size());
        return Err(Error::damaged(source.path(), limit, None, why));
    }
    let mut all = vec![0; source.size() as usize];
    source.read_at(0, &mut all)?;
    Ok(all)
}
