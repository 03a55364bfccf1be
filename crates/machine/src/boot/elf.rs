//! ELF kernels: program headers and the PVH entry point.

use super::{BootError, Image, Part};
use object::LittleEndian;
use object::elf::{self, FileHeader32, FileHeader64, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, ProgramHeader};
use std::path::Path;

/// The note whose descriptor is the physical address of a 32-bit entry point (Xen, `elfnote.h`).
const XEN_ELFNOTE_PHYS32_ENTRY: elf::NoteType = elf::NoteType(18);
/// Where an ELF file says whether its words have 32 or 64 bits.
const CLASS_AT: usize = 4;

/// A checked ELF file.
pub(super) struct Elf<'a> {
    /// Its loadable segments, at their physical addresses.
    pub image: Image<'a>,
    /// The entry point, as a physical address.
    pub entry: u64,
    /// The entry point for PVH.
    pub pvh_entry: Option<u32>,
    /// Whether it holds 64-bit code.
    pub is_64: bool,
}

impl<'a> Elf<'a> {
    /// Checks an ELF file: an executable for x86 whose segments are all there.
    pub fn parse(path: &'a Path, file: &'a [u8]) -> Result<Self, BootError> {
        // The class says which layout the rest has.
        match file.get(CLASS_AT) {
            Some(&class) if class == elf::ELFCLASS64.0 => {
                parse::<FileHeader64<LittleEndian>>(path, file, elf::EM_X86_64, true)
            }
            _ => parse::<FileHeader32<LittleEndian>>(path, file, elf::EM_386, false),
        }
    }
}

fn parse<'a, H: FileHeader<Endian = LittleEndian>>(
    path: &'a Path,
    file: &'a [u8],
    machine: elf::Machine,
    is_64: bool,
) -> Result<Elf<'a>, BootError> {
    let not = |why: String| BootError::NotAKernel { path: path.to_owned(), why };
    let broken = |error: object::read::Error| not(format!("its ELF headers make no sense: {error}"));
    let header = H::parse(file).map_err(broken)?;
    let endian = header.endian().map_err(broken)?;
    if header.e_machine(endian) != machine {
        return Err(not("the ELF file is for another processor than x86".to_owned()));
    }
    if header.e_type(endian) != elf::ET_EXEC && header.e_type(endian) != elf::ET_DYN {
        return Err(not("the ELF file is not an executable".to_owned()));
    }
    let raw_entry: u64 = header.e_entry(endian).into();
    let mut parts = Vec::new();
    let mut virtual_entry = None;
    let mut pvh_entry = None;
    for segment in header.program_headers(endian, file).map_err(broken)? {
        let (offset, in_file) = segment.file_range(endian);
        let end = offset.saturating_add(in_file);
        let bytes = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
        let bytes = bytes.and_then(|(start, end)| file.get(start..end));
        match segment.p_type(endian) {
            PT_LOAD => {
                let bytes = bytes.ok_or_else(|| BootError::Truncated {
                    path: path.to_owned(),
                    expected: end,
                    found: file.len() as u64,
                })?;
                let (at, size): (u64, u64) = (segment.p_paddr(endian).into(), segment.p_memsz(endian).into());
                if size < in_file {
                    return Err(not("a segment is larger in the file than in memory".to_owned()));
                }
                let start: u64 = segment.p_vaddr(endian).into();
                let inside = raw_entry.checked_sub(start).filter(|offset| *offset < size);
                virtual_entry = virtual_entry.or(inside.map(|offset| at.wrapping_add(offset)));
                if size > 0 {
                    parts.push(Part { at, bytes, size });
                }
            }
            PT_NOTE => {
                let Some(mut notes) = segment.notes(endian, file).map_err(broken)? else { continue };
                while let Some(note) = notes.next().map_err(broken)? {
                    if note.name() == b"Xen"
                        && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY
                        && let Some(address) = note.desc().get(..4)
                    {
                        pvh_entry = Some(u32::from_le_bytes(address.try_into().expect("four bytes")));
                    }
                }
            }
            _ => {}
        }
    }
    if parts.is_empty() {
        return Err(not("the ELF file has nothing to load".to_owned()));
    }
    // An entry point is a virtual address, but kernels that move themselves up give the physical one.
    let physical = parts.iter().any(|part| raw_entry.checked_sub(part.at).is_some_and(|o| o < part.size));
    let entry = if physical { raw_entry } else { virtual_entry.unwrap_or(raw_entry) };
    Ok(Elf { image: Image { path, parts }, entry, pvh_entry, is_64 })
}
