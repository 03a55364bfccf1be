//! Symbols of loaded modules.
//!
//! The kernel keeps its modules in the list `modules`. Where a `struct module` has its members
//! depends on the kernel's configuration, but the first ones never do (`state`, `list`, `name`), and
//! the one that is wanted, the pointer `kallsyms`, shows by what it points to: a symbol table in
//! ELF's form with an empty first entry, and strings that begin with an empty one.
//!
//! ```text
//! struct module        +0 state   +8 list { next, prev }   +24 name[56]   ...
//! struct mod_kallsyms  +0 Elf64_Sym *symtab   +8 u32 num_symtab   +16 char *strtab   +24 char *typetab
//! ```

use crate::memory::{u16_at, u32_at, u64_at};
use crate::{Symbol, Symbols, orc};

const LIST: u64 = 8;
const NAME: u64 = 24;
const NAME_BYTES: usize = 56;
/// How far into a `struct module` the pointer is looked for.
const MODULE_BYTES: usize = 2048;
const SYM_BYTES: usize = 24;
const MODULES_MAX: usize = 4096;
const SYMBOLS_MAX: usize = 1 << 20;
const ROWS_MAX: usize = 1 << 20;
const SYMBOL_NAME_MAX: usize = 512;
const KERNEL_MIN: u64 = 0xffff_8000_0000_0000;

type Read<'a> = dyn FnMut(u64, &mut [u8]) -> bool + 'a;

/// A module that is loaded.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its symbols.
    pub symbols: Symbols,
    /// Its stack frames, if they were found.
    pub(crate) orc: Option<orc::Tables>,
}

impl Module {
    /// A module of which only the names are known.
    pub fn new(name: &str, symbols: Symbols) -> Self {
        Self { name: name.to_owned(), symbols, orc: None }
    }
}

/// The modules that are loaded. `read` is as in [`crate::Extents::of_guest`]. Modules that make no
/// sense are left out.
pub fn list(kernel: &Symbols, read: &mut Read<'_>) -> Vec<Module> {
    let mut found = Vec::new();
    let Some(head) = kernel.address("modules") else { return found };
    let mut at = word(read, head);
    while let Some(entry) = at.filter(|entry| *entry != head && *entry >= KERNEL_MIN) {
        if found.len() == MODULES_MAX {
            break;
        }
        found.extend(module(read, entry - LIST));
        at = word(read, entry);
    }
    found
}

/// A module's file, as the compiler made it.
pub struct ModuleFile {
    /// The module's name.
    pub name: String,
    /// Its sections by number, and its symbols: name, section and offset in that.
    sections: Vec<String>,
    symbols: Vec<(String, usize, u64)>,
}

impl ModuleFile {
    /// Reads a `.ko`; `None` when the file is something else.
    pub fn read(file: &[u8]) -> Option<Self> {
        use object::{Object, ObjectSection, ObjectSymbol};
        let elf = object::read::elf::ElfFile64::<object::Endianness>::parse(file).ok()?;
        let info = elf.section_by_name(".modinfo")?.data().ok()?;
        let name = info.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"name="))?;
        let mut sections = Vec::new();
        for section in elf.sections() {
            let index = section.index().0;
            sections.resize(sections.len().max(index + 1), String::new());
            sections[index] = section.name().ok()?.to_owned();
        }
        let symbol = |symbol: object::read::elf::ElfSymbol64<'_, '_>| {
            let place = symbol.section_index()?.0;
            Some((symbol.name().ok()?.to_owned(), place, symbol.address()))
        };
        let symbols = elf.symbols().filter_map(symbol).filter(|(name, ..)| !name.is_empty()).collect();
        Some(Self { name: String::from_utf8(name.to_vec()).ok()?, sections, symbols })
    }

    /// Where the sections are of a module that is loaded, by its symbols there: names and addresses.
    pub fn places(&self, loaded: &Symbols) -> Vec<(String, u64)> {
        let mut places: Vec<(usize, u64)> = Vec::new();
        for (name, section, offset) in &self.symbols {
            // A name that stands for several things tells nothing.
            let of_name = |symbol: &&Symbol| symbol.name == *name;
            let once = self.symbols.iter().filter(|(other, ..)| other == name).count() == 1
                && loaded.all().iter().filter(of_name).count() == 1;
            let known = places.iter().any(|(known, _)| known == section);
            if let Some(address) = loaded.address(name).filter(|_| once && !known) {
                places.push((*section, address.wrapping_sub(*offset)));
            }
        }
        places.sort_unstable();
        let named = |(section, at): (usize, u64)| Some((self.sections.get(section)?.clone(), at));
        places.into_iter().filter_map(named).filter(|(name, _)| !name.is_empty()).collect()
    }
}

fn word(read: &mut Read<'_>, at: u64) -> Option<u64> {
    bytes(read, at, 8).and_then(|bytes| u64_at(&bytes, 0))
}

fn bytes(read: &mut Read<'_>, at: u64, count: usize) -> Option<Vec<u8>> {
    let mut buffer = vec![0; count];
    read(at, &mut buffer).then_some(buffer)
}

/// The text at an address, up to a zero; nothing when it is longer than `most` or not text.
fn text(read: &mut Read<'_>, at: u64, most: usize) -> Option<String> {
    let mut text = Vec::new();
    while text.len() < most {
        // Not across a page that may be missing.
        let at = at.checked_add(text.len() as u64)?;
        let count = (64 - (at % 64) as usize).min(most - text.len());
        let piece = bytes(read, at, count)?;
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend(&piece[..end]);
            return String::from_utf8(text).ok().filter(|text| text.chars().all(|c| c.is_ascii_graphic()));
        }
        text.extend(piece);
    }
    None
}

fn module(read: &mut Read<'_>, module: u64) -> Option<Module> {
    let name = text(read, module.checked_add(NAME)?, NAME_BYTES).filter(|name| !name.is_empty())?;
    let symbols = (0..MODULE_BYTES as u64).step_by(8).find_map(|offset| {
        let pointer = word(read, module.checked_add(offset)?).filter(|pointer| *pointer >= KERNEL_MIN)?;
        kallsyms(read, pointer)
    })?;
    let words = (0..MODULE_BYTES as u64).step_by(8);
    let orc = words.into_iter().find_map(|offset| orc_tables(read, module.checked_add(offset)?, &symbols));
    Some(Module { name, symbols, orc })
}

/// The ORC tables of a module, if the `struct mod_arch_specific` with them is at `at`:
///
/// ```text
/// +0 u32 num_orcs   +8 int *orc_unwind_ip   +16 struct orc_entry *orc_unwind
/// ```
fn orc_tables(read: &mut Read<'_>, at: u64, symbols: &Symbols) -> Option<orc::Tables> {
    let head = bytes(read, at, 24)?;
    let (count, places, table) = (u32_at(&head, 0)? as usize, u64_at(&head, 8)?, u64_at(&head, 16)?);
    if !(1..=ROWS_MAX).contains(&count) || places < KERNEL_MIN || table < KERNEL_MIN {
        return None;
    }
    let tables = orc::Tables {
        at: places,
        places: bytes(read, places, 4 * count)?,
        rows: bytes(read, table, orc::ROW_BYTES * count)?,
    };
    let (first, last) = (symbols.all().first()?.address, symbols.all().last()?.address.saturating_add(4096));
    tables.is_about(first..last).then_some(tables)
}

/// The symbols of a `struct mod_kallsyms`, if that is what is at `at`.
fn kallsyms(read: &mut Read<'_>, at: u64) -> Option<Symbols> {
    let table = bytes(read, at, 32)?;
    let (symtab, strtab, kinds) = (u64_at(&table, 0)?, u64_at(&table, 16)?, u64_at(&table, 24)?);
    let count = u32_at(&table, 8)? as usize;
    let pointers = [symtab, strtab, kinds].iter().all(|pointer| *pointer >= KERNEL_MIN);
    if !pointers || !(2..=SYMBOLS_MAX).contains(&count) {
        return None;
    }
    if bytes(read, symtab, SYM_BYTES)? != [0; SYM_BYTES] || bytes(read, strtab, 1)? != [0] {
        return None;
    }
    let entries = bytes(read, symtab, count * SYM_BYTES)?;
    let kinds = bytes(read, kinds, count)?;
    let mut symbols = Vec::new();
    for (entry, kind) in entries.chunks_exact(SYM_BYTES).zip(kinds).skip(1) {
        let (name, section, address) = (u32_at(entry, 0)?, u16_at(entry, 6)?, u64_at(entry, 8)?);
        if section == 0 || address < KERNEL_MIN {
            continue; // undefined, or not in memory
        }
        let name = text(read, strtab.checked_add(u64::from(name))?, SYMBOL_NAME_MAX)?;
        if !name.is_empty() {
            symbols.push(Symbol { address, kind: char::from(kind), name });
        }
    }
    (!symbols.is_empty()).then(|| Symbols::new(symbols))
}
