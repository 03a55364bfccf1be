//! An ELF file with nothing but names and frames, for gdb's `add-symbol-file`.
//!
//! gdb looks an address up in the section that contains it, so the parts of the kernel are there as
//! sections without contents; memory is always read from the machine.

use crate::modules::Module;
use crate::{Error, Symbol, Symbols};
use object::Endianness;
use object::elf;
use object::write::StringId;
use object::write::elf::{FileHeader, SectionHeader, SectionIndex, Sym, Writer};

fn failed(error: impl ToString) -> Error {
    Error::Write(error.to_string())
}

/// A part of memory that has symbols.
struct Part {
    name: String,
    start: u64,
    end: u64,
    code: bool,
}

/// Writes the file: a kernel's symbols, frames as [`crate::orc::debug_frame`] makes them (may be
/// empty), and modules, by name.
pub fn write(kernel: &Symbols, frames: &[u8], others: &[&Module]) -> Result<Vec<u8>, Error> {
    let mut parts = parts(kernel);
    for module in others {
        if let (Some(first), Some(last)) = (module.symbols.all().first(), module.symbols.all().last()) {
            let end = last.address.saturating_add(4096);
            parts.push(Part {
                name: format!(".text.{}", module.name),
                start: first.address,
                end,
                code: true,
            });
        }
    }
    let mut all: Vec<(&Symbol, u64)> = sized(kernel).collect();
    all.extend(others.iter().flat_map(|module| sized(&module.symbols)));
    // Local symbols come first.
    all.sort_by_key(|(symbol, _)| symbol.is_global());
    File { parts, symbols: all, frames }.write()
}

/// Symbols with the bytes up to the next.
fn sized(symbols: &Symbols) -> impl Iterator<Item = (&Symbol, u64)> {
    let all = symbols.all();
    all.iter().enumerate().map(|(i, symbol)| {
        let next = all[i..].iter().find(|next| next.address > symbol.address);
        (symbol, next.map_or(0, |next| next.address - symbol.address))
    })
}

/// The kernel's image, cut where code begins and ends.
fn parts(kernel: &Symbols) -> Vec<Part> {
    let cuts = ["_text", "_etext", "_sinittext", "_einittext", "_end"].map(|name| kernel.address(name));
    let names = [(".text", true), (".rodata", false), (".init.text", true), (".data", false)];
    let mut parts = Vec::new();
    for ((name, code), pair) in names.into_iter().zip(cuts.windows(2)) {
        if let [Some(start), Some(end)] = *pair
            && start < end
        {
            parts.push(Part { name: name.into(), start, end, code });
        }
    }
    parts
}

struct File<'a> {
    parts: Vec<Part>,
    symbols: Vec<(&'a Symbol, u64)>,
    frames: &'a [u8],
}

impl File<'_> {
    fn write(&self) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut writer = Writer::new(Endianness::Little, true, &mut out);
        writer.reserve_file_header();
        writer.reserve_null_section_index();
        let mut sections = Vec::new();
        for part in &self.parts {
            let name = writer.add_section_name(part.name.as_bytes());
            sections.push((name, writer.reserve_section_index()));
        }
        let frame_name = writer.add_section_name(b".debug_frame");
        writer.reserve_section_index();
        writer.reserve_symtab_section_index();
        writer.reserve_strtab_section_index();
        writer.reserve_shstrtab_section_index();
        writer.reserve_null_symbol_index();
        let names: Vec<StringId> =
            self.symbols.iter().map(|(symbol, _)| writer.add_string(symbol.name.as_bytes())).collect();
        for _ in &names {
            writer.reserve_symbol_index(None);
        }
        let frames_at = writer.reserve(self.frames.len() as u64, 8);
        writer.reserve_symtab();
        writer.reserve_strtab().map_err(failed)?;
        writer.reserve_shstrtab().map_err(failed)?;
        writer.reserve_section_headers();

        self.header(&mut writer)?;
        writer.write_align(8);
        writer.write(self.frames);
        self.table(&mut writer, &names, &sections);
        writer.write_strtab();
        writer.write_shstrtab();
        writer.write_null_section_header();
        for (part, (name, _)) in self.parts.iter().zip(&sections) {
            let flags = elf::SHF_ALLOC | if part.code { elf::SHF_EXECINSTR } else { elf::SHF_WRITE };
            let (start, bytes) = (part.start, part.end - part.start);
            let name = writer.section_name_offset(Some(*name));
            writer.write_section_header(&header(name, elf::SHT_NOBITS, flags, start, (0, bytes)));
        }
        let place = (frames_at, self.frames.len() as u64);
        let name = writer.section_name_offset(Some(frame_name));
        writer.write_section_header(&header(name, elf::SHT_PROGBITS, elf::SectionFlags(0), 0, place));
        let locals = self.symbols.iter().filter(|(symbol, _)| !symbol.is_global()).count();
        writer.write_symtab_section_header(1 + locals as u32);
        writer.write_strtab_section_header();
        writer.write_shstrtab_section_header();
        drop(writer);
        Ok(out)
    }

    fn header(&self, writer: &mut Writer<'_>) -> Result<(), Error> {
        writer
            .write_file_header(&FileHeader {
                os_abi: elf::ELFOSABI_NONE,
                abi_version: 0,
                e_type: elf::ET_EXEC,
                e_machine: elf::EM_X86_64,
                e_entry: 0,
                e_flags: elf::FileFlags(0),
            })
            .map_err(failed)
    }

    fn table(&self, writer: &mut Writer<'_>, names: &[StringId], sections: &[(StringId, SectionIndex)]) {
        writer.write_null_symbol();
        for ((symbol, bytes), name) in self.symbols.iter().zip(names) {
            let inside = |part: &Part| (part.start..part.end).contains(&symbol.address);
            let section = self.parts.iter().position(inside).map(|i| sections[i].1.0);
            let kind = if symbol.is_code() { elf::STT_FUNC } else { elf::STT_OBJECT };
            let binding = if symbol.is_global() { elf::STB_GLOBAL } else { elf::STB_LOCAL };
            let name = writer.string_offset(Some(*name));
            writer.write_symbol(&Sym {
                st_name: name,
                section,
                st_info: elf::SymbolInfo::new(binding, kind),
                st_other: elf::SymbolOther(0),
                st_shndx: elf::SHN_ABS,
                st_value: symbol.address,
                st_size: *bytes,
            });
        }
    }
}

fn header(
    name: u32,
    kind: elf::SectionType,
    flags: elf::SectionFlags,
    at: u64,
    place: (u64, u64),
) -> SectionHeader {
    SectionHeader {
        sh_name: name,
        sh_type: kind,
        sh_flags: flags,
        sh_addr: at,
        sh_offset: place.0,
        sh_size: place.1,
        sh_link: 0,
        sh_info: 0,
        sh_addralign: 1,
        sh_entsize: 0,
    }
}
