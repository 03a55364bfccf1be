//! Putting a guest into memory and its boot processor at the first instruction.

pub mod linux;
mod long_mode;

use std::path::{Path, PathBuf};

/// What a file given for booting is for; names the option in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `--kernel`.
    Kernel,
    /// `--initrd`.
    Initrd,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Kernel => "kernel",
            Role::Initrd => "initrd",
        })
    }
}

/// Why a guest cannot be booted. Each message names the file, what is wrong, and what to pass.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("{role} {path:?} cannot be read: {source}; pass --{role} FILE with a readable file")]
    Unreadable {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
        /// The host's answer.
        source: std::io::Error,
    },
    /// The file has no bytes.
    #[error("{role} {path:?} is empty; pass --{role} FILE with the complete file")]
    Empty {
        /// What it is for.
        role: Role,
        /// The file.
        path: PathBuf,
    },
    /// The file ends early.
    #[error(
        "kernel {path:?} is truncated: its header asks for {expected} bytes, the file has {found}; pass the complete bzImage"
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Bytes the header speaks of.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// The file is something else.
    #[error(
        "{path:?} is not a kernel that can be booted: {why}; pass a 64-bit x86 bzImage such as /boot/vmlinuz-*"
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// How we know.
        why: String,
    },
    /// The kernel does not fit.
    #[error(
        "guest memory of {memory_mib} MiB is too small for the kernel; pass --memory {needed_mib}M or more"
    )]
    KernelMemory {
        /// What there is.
        memory_mib: u64,
        /// What would do.
        needed_mib: u64,
    },
    /// The initrd does not fit beside the kernel.
    #[error(
        "the initrd of {initrd_mib} MiB does not fit into guest memory of {memory_mib} MiB; pass --memory {needed_mib}M or more"
    )]
    InitrdMemory {
        /// Its size, rounded up.
        initrd_mib: u64,
        /// What there is.
        memory_mib: u64,
        /// What would do.
        needed_mib: u64,
    },
    /// The initrd is larger than any memory below the kernel's limit for it.
    #[error(
        "the initrd of {initrd_mib} MiB is too large: this kernel takes initrds below {limit_mib} MiB only; pass a smaller one"
    )]
    InitrdLimit {
        /// Its size, rounded up.
        initrd_mib: u64,
        /// Where the kernel's limit lies.
        limit_mib: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {length} bytes, this kernel takes {max}; shorten --append")]
    CommandLine {
        /// Its length.
        length: usize,
        /// The kernel's limit.
        max: usize,
    },
}

/// Reads a file for booting; a missing or empty one is an error.
pub fn read_file(role: Role, path: &Path) -> Result<Vec<u8>, BootError> {
    let unreadable = |source| BootError::Unreadable { role, path: path.to_owned(), source };
    let bytes = std::fs::read(path).map_err(unreadable)?;
    if bytes.is_empty() {
        return Err(BootError::Empty { role, path: path.to_owned() });
    }
    Ok(bytes)
}
