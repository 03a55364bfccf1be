//! Images: what a disk holds before the guest writes to it.

use crate::lock::lock_for_reading;
use crate::{DiskError, SECTOR_SIZE};
use imago::FormatAccess;
use imago::file::File as ImagoFile;
use imago::qcow2::Qcow2;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The contents of a disk before the run: fixed, readable anywhere.
pub trait Base: Send + Sync {
    /// Bytes, a multiple of [`SECTOR_SIZE`].
    fn len(&self) -> u64;
    /// Whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Fills `buf` from byte `offset` on. All of it lies within the disk.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;
    /// What to call it in messages.
    fn name(&self) -> PathBuf;
}

/// A disk full of zeros: a scratch disk, or a stand-in in tests.
pub struct Zeros(pub u64);

impl Base for Zeros {
    fn len(&self) -> u64 {
        self.0
    }
    fn read_at(&self, _offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.fill(0);
        Ok(())
    }
    fn name(&self) -> PathBuf {
        "(zeros)".into()
    }
}

/// How an image file is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

/// What tells one state of a file from another without reading it. Hashing gigabytes at every
/// start is slow, so callers may remember an image's identity by this.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The file, made absolute.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// Its last change: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Its device and inode numbers.
    pub inode: (u64, u64),
}

/// An image file, opened read-only and locked against writers while it is open.
pub struct Image {
    path: PathBuf,
    file: Arc<File>,
    file_len: u64,
    format: Format,
    contents: Contents,
}

enum Contents {
    Raw,
    Qcow2(Box<FormatAccess<ImagoFile>>, u64),
}

impl Image {
    /// Opens an image and finds out its format: what starts with qcow2's magic number is qcow2,
    /// everything else is raw.
    ///
    /// # Errors
    /// Any [`DiskError`] about images, with the path and what to do.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        Self::open_as(path, None)
    }

    /// Opens an image of a known format.
    ///
    /// # Errors
    /// Any [`DiskError`] about images, with the path and what to do.
    pub fn open_as(path: &Path, format: Option<Format>) -> Result<Self, DiskError> {
        let unreadable = |source| DiskError::open(path, source);
        // Look before opening: opening a FIFO would wait for a writer.
        let kind = std::fs::metadata(path).map_err(unreadable)?.file_type();
        let what = match () {
            () if kind.is_dir() => Some("a directory"),
            () if kind.is_fifo() => Some("a pipe"),
            () if kind.is_socket() => Some("a socket"),
            () if kind.is_char_device() => Some("a character device"),
            () => None,
        };
        if let Some(what) = what {
            return Err(DiskError::NotAFile { path: path.into(), what });
        }
        let mut file = File::open(path).map_err(unreadable)?;
        if !lock_for_reading(&file).map_err(unreadable)? {
            return Err(DiskError::Locked { path: path.into() });
        }
        // Seeking also measures block devices, whose metadata says zero.
        let file_len = file.seek(SeekFrom::End(0)).map_err(unreadable)?;
        if file_len == 0 {
            return Err(DiskError::Empty { path: path.into() });
        }
        let format = match format {
            Some(format) => format,
            None => probe(&file, file_len).map_err(unreadable)?,
        };
        let contents = match format {
            Format::Raw => Contents::Raw,
            Format::Qcow2 => open_qcow2(path, &file)?,
        };
        let image = Self { path: path.into(), file: Arc::new(file), file_len, format, contents };
        match image.len() {
            0 => Err(DiskError::Empty { path: path.into() }),
            len if len % SECTOR_SIZE != 0 => Err(DiskError::Length { path: path.into(), len }),
            _ => Ok(image),
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// What to remember [`Self::identity`] by.
    ///
    /// # Errors
    /// [`DiskError::Unreadable`] when the host cannot say.
    pub fn stamp(&self) -> Result<Stamp, DiskError> {
        let unreadable = |source| DiskError::open(&self.path, source);
        let meta = self.file.metadata().map_err(unreadable)?;
        Ok(Stamp {
            path: std::path::absolute(&self.path).map_err(unreadable)?,
            len: self.file_len,
            modified: (meta.mtime(), meta.mtime_nsec()),
            inode: (meta.dev(), meta.ino()),
        })
    }

    /// BLAKE3 hash of the whole file, using all cores. Takes about a second for a few gigabytes.
    ///
    /// # Errors
    /// [`DiskError::Read`] when the file cannot be read to its end.
    pub fn identity(&self) -> Result<blake3::Hash, DiskError> {
        const STEP: usize = 8 << 20;
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; STEP];
        let mut offset = 0;
        while offset < self.file_len {
            let n = (self.file_len - offset).min(STEP as u64) as usize;
            self.file.read_exact_at(&mut buf[..n], offset).map_err(|source| DiskError::Read {
                path: self.path.clone(),
                offset,
                len: n,
                source,
            })?;
            hasher.update_rayon(&buf[..n]);
            offset += n as u64;
        }
        Ok(hasher.finalize())
    }
}

impl Base for Image {
    fn len(&self) -> u64 {
        match &self.contents {
            Contents::Raw => self.file_len,
            Contents::Qcow2(_, len) => *len,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match &self.contents {
            Contents::Raw => self.file.read_exact_at(buf, offset),
            Contents::Qcow2(access, _) => access.read(buf, offset),
        }
    }

    fn name(&self) -> PathBuf {
        self.path.clone()
    }
}

fn probe(file: &File, file_len: u64) -> io::Result<Format> {
    let mut magic = [0; 4];
    if file_len >= 4 {
        file.read_exact_at(&mut magic, 0)?;
    }
    Ok(if &magic == b"QFI\xfb" { Format::Qcow2 } else { Format::Raw })
}

/// The compression type in a qcow2 header: 0 is zlib, which old headers do not have to say, 1 zstd.
fn compression(file: &File) -> io::Result<u8> {
    const INCOMPATIBLE_COMPRESSION: u8 = 1 << 3;
    let mut header = [0; 105];
    if file.metadata()?.len() < header.len() as u64 {
        return Ok(0);
    }
    file.read_exact_at(&mut header, 0)?;
    let given = header[4..8] == [0, 0, 0, 3] && header[79] & INCOMPATIBLE_COMPRESSION != 0;
    Ok(if given { header[104] } else { 0 })
}

/// Opens a qcow2 image through the very descriptor that is locked. Files that its header names are
/// never followed: a header may have been written by a guest of some other virtual machine.
fn open_qcow2(path: &Path, file: &File) -> Result<Contents, DiskError> {
    let refuse = |e: io::Error| DiskError::Qcow2 { path: path.into(), why: e.to_string() };
    if compression(file).map_err(refuse)? != 0 {
        return Err(DiskError::Compression { path: path.into() });
    }
    let copy = file.try_clone().map_err(|source| DiskError::open(path, source))?;
    let storage = ImagoFile::try_from(copy).map_err(refuse)?;
    let image = Qcow2::<ImagoFile>::open_image(storage, false).map_err(refuse)?;
    let other = match image.implicit_backing_file() {
        Some(backing) => Some(backing.clone()),
        None if image.requires_external_data_file() => Some("an external data file".into()),
        None => None,
    };
    if let Some(other) = other {
        return Err(DiskError::NeedsOther { path: path.into(), other });
    }
    let access = FormatAccess::new(image);
    let len = access.size();
    Ok(Contents::Qcow2(Box::new(access), len))
}
