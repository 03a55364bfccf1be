//! Kernels, initrds and disk images: files that a recording refers to by their contents.

use crate::{ContentHash, Error};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A file as it was when the run was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// Where it is: absolute, or below the recording's folder when `packed`.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The BLAKE3 hash of all of it.
    pub blake3: ContentHash,
    /// Whether the recording carries the file with it.
    #[serde(default)]
    pub packed: bool,
    /// Whether only the blocks that the run touched are there, the others being zeros. Enough to
    /// replay; not enough to go on living from.
    #[serde(default)]
    pub partial: bool,
}

impl ImageRef {
    /// Describes the file at `path`, which is read once in full unless `cache` knows it.
    pub fn of(path: &Path, cache: &mut HashCache) -> Result<Self, Error> {
        let absolute = std::path::absolute(path).map_err(|e| Error::io("find", path, e))?;
        let (size, blake3) = cache.hash(&absolute).map_err(|e| Error::io("read", path, e))?;
        Ok(Self { path: absolute, size, blake3, packed: false, partial: false })
    }

    /// Checks that the file at `path` still has these contents. `what` names its role in messages:
    /// `"kernel"`, `"initrd"`, `"disk 0"`.
    pub fn verify_at(&self, path: &Path, what: &str, cache: &mut HashCache) -> Result<(), Error> {
        let changed = |why| Err(Error::ImageChanged { what: what.to_owned(), path: path.to_owned(), why });
        let missing = |source| Error::ImageMissing { what: what.to_owned(), path: path.to_owned(), source };
        let now = std::fs::metadata(path).map_err(missing)?;
        if !now.is_file() {
            return changed("it is not a regular file any more".into());
        }
        if now.len() != self.size {
            return changed(format!("it had {} bytes and has {}", self.size, now.len()));
        }
        let (_, found) = cache.hash(path).map_err(missing)?;
        if found != self.blake3 {
            return changed(format!("its BLAKE3 hash was {} and is {found}", self.blake3));
        }
        Ok(())
    }
}

/// What identifies a file's contents without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
    blake3: ContentHash,
}

impl Stamp {
    fn new(meta: &Metadata, blake3: ContentHash) -> Self {
        let ns = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified_ns: ns(meta.mtime(), meta.mtime_nsec()),
            changed_ns: ns(meta.ctime(), meta.ctime_nsec()),
            blake3,
        }
    }
}

/// Remembers hashes of unchanged files, because images are large and started often.
///
/// A file counts as unchanged when device, inode, size, and both time stamps are the same. Files
/// changed in the last two seconds are not remembered: another change might not move the stamps.
#[derive(Default)]
pub struct HashCache {
    file: Option<PathBuf>,
    stamps: BTreeMap<PathBuf, Stamp>,
}

const SETTLED: Duration = Duration::from_secs(2);
const CACHE_BYTES_MAX: u64 = 4 << 20;
const CACHE_ENTRIES_MAX: usize = 1000;

impl HashCache {
    /// Remembers nothing beyond this process.
    pub fn in_memory() -> Self {
        Self::default()
    }

    /// Keeps what it knows in `file`. A file that is missing or makes no sense is an empty cache.
    pub fn at(file: &Path) -> Self {
        let known = std::fs::metadata(file).is_ok_and(|m| m.is_file() && m.len() <= CACHE_BYTES_MAX);
        let stamps = known
            .then(|| std::fs::read(file).ok())
            .flatten()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { file: Some(file.to_owned()), stamps }
    }

    /// In the user's cache folder.
    pub fn for_user() -> Self {
        let base = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
            .or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")));
        base.map_or_else(Self::in_memory, |base| Self::at(&base.join("hindsight/image-hashes.json")))
    }

    /// The size and hash of the file at `path`.
    pub fn hash(&mut self, path: &Path) -> io::Result<(u64, ContentHash)> {
        let mut file = File::open(path)?;
        let before = file.metadata()?;
        if let Some(known) = self.stamps.get(path)
            && *known == Stamp::new(&before, known.blake3)
        {
            return Ok((before.len(), known.blake3));
        }
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; 1 << 20];
        let mut size = 0;
        loop {
            match file.read(&mut buf) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buf[..n]);
                    size += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        let hash = ContentHash(*hasher.finalize().as_bytes());
        let after = file.metadata()?;
        if Stamp::new(&before, hash) == Stamp::new(&after, hash) && is_settled(&after) {
            self.remember(path, Stamp::new(&after, hash));
        }
        Ok((size, hash))
    }

    fn remember(&mut self, path: &Path, stamp: Stamp) {
        if self.stamps.len() >= CACHE_ENTRIES_MAX {
            self.stamps.clear();
        }
        self.stamps.insert(path.to_owned(), stamp);
        let Some(file) = &self.file else { return };
        // A cache that cannot be written only costs time.
        let Ok(bytes) = serde_json::to_vec(&self.stamps) else { return };
        let _ = file.parent().map(std::fs::create_dir_all);
        let _ = crate::folder::replace(file, &bytes);
    }
}

fn is_settled(meta: &Metadata) -> bool {
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(meta.ctime().max(meta.mtime()).max(0) as u64);
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > SETTLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_image_is_refused_with_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk image.raw");
        std::fs::write(&path, b"first contents").unwrap();
        let cache = &mut HashCache::in_memory();
        let image = ImageRef::of(&path, cache).unwrap();
        image.verify_at(&path, "disk 0", cache).unwrap();

        std::fs::write(&path, b"other contents").unwrap();
        let error = image.verify_at(&path, "disk 0", cache).unwrap_err().to_string();
        assert!(error.contains("disk 0") && error.contains("BLAKE3"), "{error}");

        std::fs::write(&path, b"longer than before").unwrap();
        let error = image.verify_at(&path, "disk 0", cache).unwrap_err().to_string();
        assert!(error.contains("had 14 bytes and has 18"), "{error}");

        std::fs::remove_file(&path).unwrap();
        assert!(matches!(image.verify_at(&path, "disk 0", cache), Err(Error::ImageMissing { .. })));
    }

    #[test]
    fn a_file_just_written_is_not_remembered_and_an_old_one_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, b"abc").unwrap();
        let mut cache = HashCache::at(&dir.path().join("cache/hashes.json"));
        cache.hash(&path).unwrap();
        assert!(cache.stamps.is_empty());
        std::thread::sleep(Duration::from_millis(3100));
        let (_, hash) = cache.hash(&path).unwrap();
        let again = HashCache::at(&dir.path().join("cache/hashes.json"));
        assert_eq!(again.stamps.get(&path).map(|s| s.blake3), Some(hash));
    }
}
