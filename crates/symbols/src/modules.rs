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
use crate::{Symbol, Symbols};

const LIST: u64 = 8;
const NAME: u64 = 24;
const NAME_BYTES: usize = 56;
/// How far into a `struct module` the pointer is looked for.
const MODULE_BYTES: usize = 2048;
const SYM_BYTES: usize = 24;
const MODULES_MAX: usize = 4096;
const SYMBOLS_MAX: usize = 1 << 20;
const SYMBOL_NAME_MAX: usize = 512;
const KERNEL_MIN: u64 = 0xffff_8000_0000_0000;

type Read<'a> = dyn FnMut(u64, &mut [u8]) -> bool + 'a;

/// The modules that are loaded, with their symbols: names and tables. `read` is as in
/// [`crate::Extents::of_guest`]. Modules that make no sense are left out.
pub fn list(kernel: &Symbols, read: &mut Read<'_>) -> Vec<(String, Symbols)> {
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

fn module(read: &mut Read<'_>, module: u64) -> Option<(String, Symbols)> {
    let name = text(read, module.checked_add(NAME)?, NAME_BYTES).filter(|name| !name.is_empty())?;
    let symbols = (0..MODULE_BYTES as u64).step_by(8).find_map(|offset| {
        let pointer = word(read, module.checked_add(offset)?).filter(|pointer| *pointer >= KERNEL_MIN)?;
        kallsyms(read, pointer)
    })?;
    Some((name, symbols))
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
