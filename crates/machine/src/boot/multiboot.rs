//! Multiboot 1 (version 0.6.96): what teaching kernels and unit-test kernels are booted with.
//!
//! The kernel is an ELF file, or any file whose header says where it goes (the "a.out kludge"). The
//! initrd is its only module, named `initrd`; the command line begins with a word for the kernel,
//! `kernel`, as loaders put its file's name there and programs skip it. A wish for a graphics mode
//! is not granted, and the information says so.

use super::bytes::u32_at;
use super::elf::Elf;
use super::linux::mib_up;
use super::memory_map::memory_map;
use super::places::{self, Places};
use super::pvh::no_room;
use super::{BootError, Guest, Image, Part, protected_mode};
use crate::layout;
use cpu::CpuState;
use memory::{LOW_RAM_MAX, Ram};
use std::path::Path;
use x86::gpr;

/// The header lies in this many bytes.
const SEARCH_BYTES: usize = 8192;
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// EAX at entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// Header flags that a loader must know: page-aligned modules, memory information, video mode.
const KNOWN_REQUIREMENTS: u32 = 7;
/// Header flag: the address fields are there.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Bytes of the information up to the loader's name.
const INFO_BYTES: usize = 68;
const PAGE: u64 = 4096;

/// Flags of the information.
mod has {
    pub const MEMORY: u32 = 1 << 0;
    pub const COMMAND_LINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// A Multiboot header.
pub(super) struct Header {
    /// Its offset in the file.
    at: usize,
    flags: u32,
    /// header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr.
    addresses: Option<[u32; 5]>,
}

impl Header {
    /// The header in the file's first 8 KiB.
    pub fn find(file: &[u8]) -> Option<Self> {
        let search = &file[..file.len().min(SEARCH_BYTES)];
        let at = (0..search.len().saturating_sub(11)).step_by(4).find(|&at| {
            let sum =
                u32_at(search, at).wrapping_add(u32_at(search, at + 4)).wrapping_add(u32_at(search, at + 8));
            u32_at(search, at) == HEADER_MAGIC && sum == 0
        })?;
        let flags = u32_at(search, at + 4);
        let with_addresses = flags & HAS_ADDRESSES != 0 && at + 32 <= file.len();
        let addresses = with_addresses.then(|| std::array::from_fn(|i| u32_at(file, at + 12 + 4 * i)));
        Some(Self { at, flags, addresses })
    }
}

/// A kernel to be booted by Multiboot.
pub(super) struct Multiboot<'a> {
    image: Image<'a>,
    entry: u32,
}

fn check(path: &Path, header: &Header) -> Result<(), BootError> {
    let unknown = header.flags & 0xffff & !KNOWN_REQUIREMENTS;
    if unknown == 0 {
        return Ok(());
    }
    let why = format!("its Multiboot header requires what version 1 does not know (flags {unknown:#x})");
    Err(BootError::NotAKernel { path: path.to_owned(), why })
}

impl<'a> Multiboot<'a> {
    /// An ELF file with a header.
    pub fn elf(path: &'a Path, file: &'a [u8], header: &Header, elf: Elf<'a>) -> Result<Self, BootError> {
        if header.addresses.is_some() {
            return Self::flat(path, file, header);
        }
        check(path, header)?;
        let entry = u32::try_from(elf.entry).map_err(|_| BootError::NotAKernel {
            path: path.to_owned(),
            why: format!("its entry point {:#x} lies above 4 GiB", elf.entry),
        })?;
        Ok(Self { image: elf.image, entry })
    }

    /// A file whose header says where it goes.
    pub fn flat(path: &'a Path, file: &'a [u8], header: &Header) -> Result<Self, BootError> {
        check(path, header)?;
        let not = |why: &str| BootError::NotAKernel { path: path.to_owned(), why: why.to_owned() };
        let Some([header_at, load, load_end, bss_end, entry]) = header.addresses else {
            return Err(not("its Multiboot header has no load addresses, and it is no ELF file"));
        };
        // The text begins as far before the header in the file as it does in memory.
        let before =
            header_at.checked_sub(load).ok_or_else(|| not("its Multiboot addresses make no sense"))?;
        let start = header.at.checked_sub(before as usize);
        let start = start.ok_or_else(|| not("its Multiboot addresses reach before the file's beginning"))?;
        let rest = &file[start..];
        let length = match load_end.checked_sub(load) {
            _ if load_end == 0 => rest.len(),
            Some(length) => length as usize,
            None => return Err(not("its Multiboot addresses make no sense")),
        };
        let bytes = rest.get(..length).ok_or_else(|| BootError::Truncated {
            path: path.to_owned(),
            expected: (start + length) as u64,
            found: file.len() as u64,
        })?;
        let size = u64::from(bss_end.saturating_sub(load)).max(length as u64);
        let image = Image { path, parts: vec![Part { at: load.into(), bytes, size }] };
        Ok(Self { image, entry })
    }

    /// Where it goes.
    pub fn image(&self) -> &Image<'a> {
        &self.image
    }
}

/// Puts the guest into RAM and the processor at its entry.
pub(super) fn load(
    ram: &mut Ram,
    state: &mut CpuState,
    guest: &Guest,
    kernel: &Multiboot,
) -> Result<(), BootError> {
    let image = &kernel.image;
    image.write(ram)?;
    let mut places = Places::new(ram, image.parts.iter().map(|part| part.at..part.at + part.size));
    let line = format!("kernel {}", guest.command_line);
    let mut strings = Vec::new();
    let mut string = |text: &str| {
        strings.extend(text.as_bytes());
        strings.push(0);
        strings.len() - text.len() - 1
    };
    let (line, name, module_name) = (string(line.trim_end()), string("Hindsight"), string("initrd"));
    let map = map_of(ram);
    let full =
        || BootError::KernelMemory { memory_mib: ram.size() >> 20, needed_mib: mib_up(image.end()) + 1 };
    let mut low = |size: usize| places.lowest(0, size as u64, 16).ok_or_else(full);
    let (info_at, map_at, strings_at, modules_at) =
        (low(INFO_BYTES)?, low(map.len())?, low(strings.len())?, low(16)?);
    let module = match guest.initrd.filter(|bytes| !bytes.is_empty()) {
        None => None,
        Some(bytes) => {
            let from = image.end().max(1 << 20);
            let at = places.lowest(from, bytes.len() as u64, PAGE).ok_or(no_room(ram, image, bytes))?;
            Some((at, bytes))
        }
    };
    let mut info = [0; INFO_BYTES];
    let mut put = |at: usize, value: u64| info[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    let modules = if module.is_some() { has::MODULES } else { 0 };
    put(0, (has::MEMORY | has::COMMAND_LINE | has::MEMORY_MAP | has::LOADER_NAME | modules).into());
    put(4, layout::LOW_MEMORY_END >> 10);
    put(8, ram.size().min(LOW_RAM_MAX).saturating_sub(1 << 20) >> 10);
    put(16, strings_at + line as u64);
    if module.is_some() {
        put(20, 1);
        put(24, modules_at);
    }
    put(44, map.len() as u64);
    put(48, map_at);
    put(64, strings_at + name as u64);
    let mut written = places::write(ram, info_at, &info)
        && places::write(ram, map_at, &map)
        && places::write(ram, strings_at, &strings);
    if let Some((at, bytes)) = module {
        let end = at + bytes.len() as u64;
        let entry = [at, end, strings_at + module_name as u64, 0].map(|word| (word as u32).to_le_bytes());
        written &= places::write(ram, modules_at, &entry.concat()) && places::write(ram, at, bytes);
    }
    assert!(written, "places are RAM");
    protected_mode::enter(state, kernel.entry);
    state.gpr[gpr::RAX] = LOADER_MAGIC;
    state.gpr[gpr::RBX] = info_at;
    Ok(())
}

/// The memory map: entries with their size, without itself, before them.
fn map_of(ram: &Ram) -> Vec<u8> {
    let mut map = Vec::new();
    for range in memory_map(ram) {
        map.extend(20u32.to_le_bytes());
        map.extend(range.start.to_le_bytes());
        map.extend(range.length.to_le_bytes());
        map.extend((range.kind as u32).to_le_bytes());
    }
    map
}
