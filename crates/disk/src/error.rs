//! What can go wrong with a disk, said so that the reader knows what to do next.

use std::path::{Path, PathBuf};

/// A disk image that cannot be used, or host storage that failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No such file.
    #[error("disk image {}: no such file; check the path given to --disk", path.display())]
    Missing {
        /// The image.
        path: PathBuf,
    },
    /// Not allowed to read it.
    #[error("disk image {}: permission denied; make it readable for this user, for example with chmod u+r", path.display())]
    Denied {
        /// The image.
        path: PathBuf,
    },
    /// Exists but cannot be opened or read.
    #[error("disk image {}: cannot be read ({source}); check the file and the storage it lies on", path.display())]
    Unreadable {
        /// The image.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// Something that is not a file of bytes.
    #[error("disk image {}: is {what}, not a file; pass an image file or a block device", path.display())]
    NotAFile {
        /// The image.
        path: PathBuf,
        /// What it is instead.
        what: &'static str,
    },
    /// No bytes in it.
    #[error("disk image {}: is empty; create one with a size, for example with truncate -s 1G", path.display())]
    Empty {
        /// The image.
        path: PathBuf,
    },
    /// Not a whole number of sectors.
    #[error(
        "disk image {}: its length of {len} bytes is not a multiple of 512; is it truncated? \
         (truncate -s %512 rounds it up)", path.display()
    )]
    Length {
        /// The image.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// Another program has it open for writing.
    #[error("disk image {}: locked by a program that writes to it; stop that program or use a copy", path.display())]
    Locked {
        /// The image.
        path: PathBuf,
    },
    /// A qcow2 image that the library does not accept.
    #[error("disk image {}: damaged or unsupported qcow2 image ({why}); check it with qemu-img check", path.display())]
    Qcow2 {
        /// The image.
        path: PathBuf,
        /// What the library says.
        why: String,
    },
    /// A qcow2 image whose clusters are compressed in another way than zlib's.
    #[error(
        "disk image {}: its clusters are compressed with zstd, which is not read; convert it with \
         qemu-img convert -O qcow2 (with -c it is zlib)", path.display()
    )]
    Compression {
        /// The image.
        path: PathBuf,
    },
    /// A qcow2 image that needs another file.
    #[error(
        "disk image {}: needs another file ({other:?}), which is not followed; make it \
         self-contained with qemu-img convert -O qcow2", path.display()
    )]
    NeedsOther {
        /// The image.
        path: PathBuf,
        /// The file it names, or what kind of file it needs.
        other: String,
    },
    /// Reading the image failed while the guest ran.
    #[error(
        "disk image {}: reading {len} bytes at {offset:#x} failed ({source}); the image must stay \
         unchanged and readable during a run", path.display()
    )]
    Read {
        /// The image.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: usize,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The temporary file of the overlay failed, most likely a full disk.
    #[error(
        "temporary file for disk writes in {}: {source}; free space there, or set TMPDIR to a folder with more", dir.display()
    )]
    Spill {
        /// The folder it lies in.
        dir: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// Beyond the end of the disk: a bug of the caller, who must check first.
    #[error("{len} bytes at {offset:#x} do not lie within a disk of {disk_len} bytes")]
    Range {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the disk.
        disk_len: u64,
    },
}

impl DiskError {
    /// The error for an image that could not be opened.
    pub(crate) fn open(path: &Path, source: std::io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { path },
            std::io::ErrorKind::PermissionDenied => Self::Denied { path },
            _ => Self::Unreadable { path, source },
        }
    }
}
