//! Putting a guest into memory and its boot processor at the first instruction.

mod bytes;
mod elf;
pub mod linux;
mod long_mode;
pub mod memory_map;
mod multiboot;
mod places;
mod protected_mode;
mod pvh;
#[cfg(test)]
mod tests;

use cpu::CpuState;
use elf::Elf;
use linux::mib_up;
use memory::{LOW_RAM_MAX, Ram};
use multiboot::Multiboot;
use std::path::{Path, PathBuf};

/// What to boot.
pub struct Guest<'a> {
    /// The kernel's file, for messages.
    pub kernel_path: &'a Path,
    /// Its contents.
    pub kernel: &'a [u8],
    /// Contents of the initrd; to Multiboot, its only module.
    pub initrd: Option<&'a [u8]>,
    /// The kernel's command line, without a terminating zero.
    pub command_line: &'a str,
}

/// A kernel's file, by the protocol it is booted with.
enum Kernel<'a> {
    /// Linux's own, into its 64-bit entry.
    BzImage,
    /// An ELF file with a PVH entry point.
    Pvh(Elf<'a>, u32),
    /// Multiboot 1.
    Multiboot(Multiboot<'a>),
}

impl<'a> Kernel<'a> {
    /// Looks at the file: an ELF file of 64 bits with a PVH entry point is booted through that,
    /// another one that has a Multiboot header through that; what is no ELF file can have a
    /// Multiboot header with load addresses; everything else has to be a bzImage.
    fn of(path: &'a Path, file: &'a [u8]) -> Result<Self, BootError> {
        let not = |why: String| BootError::NotAKernel { path: path.to_owned(), why };
        if linux::is_bz_image(file) {
            return Ok(Kernel::BzImage);
        }
        let header = multiboot::Header::find(file);
        if !file.starts_with(b"\x7fELF") {
            return match header {
                Some(header) => Ok(Kernel::Multiboot(Multiboot::flat(path, file, &header)?)),
                None => Ok(Kernel::BzImage),
            };
        }
        let elf = Elf::parse(path, file)?;
        match (elf.pvh_entry, header) {
            (Some(entry), None) => Ok(Kernel::Pvh(elf, entry)),
            (Some(entry), Some(_)) if elf.is_64 => Ok(Kernel::Pvh(elf, entry)),
            (_, Some(header)) => Ok(Kernel::Multiboot(Multiboot::elf(path, file, &header, elf)?)),
            (None, None) => {
                Err(not("the ELF file has neither a PVH entry point nor a Multiboot header".to_owned()))
            }
        }
    }
}

/// The end of what the kernel in `file` takes in memory, if it stays where it is put first; an error
/// when it is no kernel.
pub fn kernel_end(path: &Path, file: &[u8]) -> Result<u64, BootError> {
    match Kernel::of(path, file)? {
        Kernel::BzImage => linux::BzImage::parse(path, file).map(|image| image.end()),
        Kernel::Pvh(elf, _) => Ok(elf.image.end()),
        Kernel::Multiboot(kernel) => Ok(kernel.image().end()),
    }
}

/// Puts the guest into RAM and the processor at its entry, by the protocol that the kernel's file
/// calls for. ACPI tables are the caller's.
pub fn load(ram: &mut Ram, state: &mut CpuState, guest: &Guest) -> Result<(), BootError> {
    match Kernel::of(guest.kernel_path, guest.kernel)? {
        Kernel::BzImage => linux::load(ram, state, guest),
        Kernel::Pvh(elf, entry) => pvh::load(ram, state, guest, &elf.image, entry),
        Kernel::Multiboot(kernel) => multiboot::load(ram, state, guest, &kernel),
    }
}

/// A part of a kernel and where it goes.
struct Part<'a> {
    /// Guest physical address.
    at: u64,
    /// What the file has of it.
    bytes: &'a [u8],
    /// Its size in memory: zeros follow the file's bytes.
    size: u64,
}

/// A kernel that names the places of its parts.
struct Image<'a> {
    path: &'a Path,
    parts: Vec<Part<'a>>,
}

impl Image<'_> {
    /// One past the highest address taken.
    fn end(&self) -> u64 {
        self.parts.iter().map(|part| part.at.saturating_add(part.size)).max().unwrap_or(0)
    }

    /// Writes the parts into RAM that the guest may use.
    fn write(&self, ram: &mut Ram) -> Result<(), BootError> {
        let low = ram.size().min(LOW_RAM_MAX);
        let usable = memory_map::usable(ram);
        for part in &self.parts {
            let end = part.at.saturating_add(part.size);
            if usable.iter().any(|range| range.start <= part.at && end <= range.end) {
                continue;
            }
            // RAM that is not there, or addresses that never are for a kernel's use?
            return Err(if part.at >= 1 << 20 && end > low && end <= LOW_RAM_MAX {
                BootError::KernelMemory { memory_mib: ram.size() >> 20, needed_mib: mib_up(end) }
            } else {
                let why = format!("it wants {:#x} to {end:#x}, where no RAM is for its use", part.at);
                BootError::NotAKernel { path: self.path.to_owned(), why }
            });
        }
        for part in &self.parts {
            let written = places::write(ram, part.at, part.bytes)
                && places::zero(ram, part.at + part.bytes.len() as u64, part.size - part.bytes.len() as u64);
            assert!(written, "usable ranges are RAM");
        }
        Ok(())
    }
}

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
        "kernel {path:?} is truncated: its header asks for {expected} bytes, the file has {found}; pass the complete file"
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
        "{path:?} is not a kernel that can be booted: {why}; pass an x86 bzImage such as /boot/vmlinuz-*, \
         or an ELF file with a PVH entry point or a Multiboot header"
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
