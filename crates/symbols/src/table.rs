//! Symbols and questions about them.

use crate::{Error, Extents, kallsyms};

/// A name for an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Symbol {
    /// Virtual address; of a per-CPU variable its offset.
    pub address: u64,
    /// Its kind as `nm` prints it: `T` and `t` code, `D`, `d`, `R`, `r`, `B`, `b` data, `A` absolute,
    /// `W` and `w` weak.
    pub kind: char,
    /// The name.
    pub name: String,
}

impl Symbol {
    /// Whether this names code.
    pub fn is_code(&self) -> bool {
        matches!(self.kind, 'T' | 't' | 'W' | 'w')
    }
    /// Whether others may refer to it.
    pub fn is_global(&self) -> bool {
        self.kind.is_ascii_uppercase()
    }
}

/// The symbols of a kernel, by address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols(Vec<Symbol>);

impl Symbols {
    /// Finds kallsyms in a kernel's memory or image and decodes it.
    pub fn find(extents: &Extents) -> Result<Self, Error> {
        let found = kallsyms::find(extents).ok_or(Error::NoKallsyms(
            "; it is in memory only after the kernel has set up its page tables, and its page tables must be the \
             current ones",
        ))?;
        Ok(Self::new(found))
    }

    /// From a list in any order.
    pub fn new(mut symbols: Vec<Symbol>) -> Self {
        symbols.sort_by_key(|symbol| symbol.address);
        Self(symbols)
    }

    /// All of them, by address.
    pub fn all(&self) -> &[Symbol] {
        &self.0
    }

    /// The address of the first symbol of this name.
    pub fn address(&self, name: &str) -> Option<u64> {
        self.0.iter().find(|symbol| symbol.name == name).map(|symbol| symbol.address)
    }

    /// The symbol that an address belongs to, and how far into it the address is, in bytes.
    pub fn nearest(&self, address: u64) -> Option<(&Symbol, u64)> {
        let next = self.0.partition_point(|symbol| symbol.address <= address);
        let symbol = self.0.get(next.checked_sub(1)?)?;
        Some((symbol, address - symbol.address))
    }
}

/// By how many bytes KASLR moved a kernel: the symbols in memory against those of its image (or
/// the address of `_text` in a file with debug information). `None` when one has no `_text`.
pub fn slide(in_memory: &Symbols, in_image: &Symbols) -> Option<i64> {
    Some(in_memory.address("_text")?.wrapping_sub(in_image.address("_text")?) as i64)
}
