//! Names of a guest kernel's functions, without debug packages.
//!
//! A Linux kernel carries a table of its own symbols (kallsyms) for its backtraces, and a table of
//! its stack frames (ORC) for the same. Both are found in the kernel's memory, or in its image,
//! and written as an ELF file with symbols and call frame information that gdb loads:
//!
//! * [`Extents`] is memory in pieces: [`Extents::of_guest`] reads a running kernel's, where
//!   addresses have been randomized (KASLR); [`image::load`] takes a `vmlinuz` or `vmlinux` apart.
//! * [`Symbols::find`] finds and decodes kallsyms in that; [`modules`] adds those of modules.
//! * [`elf::write`] makes the file for gdb, with frames from [`orc`].
//!
//! For a kernel with debug information, [`slide`] says by how much KASLR moved it.
//!
//! **What it may know:** bytes. **What it must never do:** trust them; a guest's memory can contain
//! anything, so every count and offset found in it is checked against what is there.
#![forbid(unsafe_code)]

pub mod elf;
pub mod image;
mod kallsyms;
mod memory;
pub mod modules;
pub mod orc;
mod table;

pub use memory::Extents;
pub use table::{Symbol, Symbols, slide};

/// Why there are no names.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// No kallsyms tables in the memory or image.
    #[error("no kernel symbol table (kallsyms) was found{0}")]
    NoKallsyms(&'static str),
    /// The image is not one, or damaged.
    #[error("this is not a kernel image that can be read: {0}")]
    Image(String),
    /// The ELF file could not be written.
    #[error("cannot write the symbols: {0}")]
    Write(String),
}
