//! PVH: the 32-bit entry of ELF kernels that carry a note about it (Xen,
//! `docs/misc/pvh.pandoc` and `public/arch-x86/hvm/start_info.h`). Linux's vmlinux does.
//!
//! The start information, the memory map and the strings lie in low memory, the initrd, the only
//! module, at the top of low RAM.

use super::linux::mib_up;
use super::memory_map::{MemoryKind, memory_map};
use super::places::{self, Places};
use super::{BootError, Guest, Image, protected_mode};
use crate::layout;
use cpu::CpuState;
use memory::{LOW_RAM_MAX, Ram};
use x86::gpr;

const MAGIC: u32 = 0x336e_c578;
/// With a memory map.
const VERSION: u32 = 1;
const START_INFO_BYTES: u64 = 56;
const MODULE_BYTES: u64 = 32;
const RANGE_BYTES: usize = 24;

/// Puts the guest into RAM and the processor at `entry`.
pub(super) fn load(
    ram: &mut Ram,
    state: &mut CpuState,
    guest: &Guest,
    image: &Image,
    entry: u32,
) -> Result<(), BootError> {
    image.write(ram)?;
    let mut places = Places::new(ram, image.parts.iter().map(|part| part.at..part.at + part.size));
    let map: Vec<u8> = memory_map(ram)
        .iter()
        .flat_map(|range| {
            let kind = match range.kind {
                MemoryKind::Usable => 1u64,
                MemoryKind::Reserved => 2,
            };
            [range.start, range.length, kind].map(u64::to_le_bytes).concat()
        })
        .collect();
    let low_memory =
        || BootError::KernelMemory { memory_mib: ram.size() >> 20, needed_mib: mib_up(image.end()) + 1 };
    let mut low = |size: u64| places.lowest(0, size, 16).ok_or_else(low_memory);
    let line = guest.command_line.as_bytes();
    let (info_at, modules_at, map_at, line_at) =
        (low(START_INFO_BYTES)?, low(MODULE_BYTES)?, low(map.len() as u64)?, low(line.len() as u64 + 1)?);
    let initrd = guest.initrd.filter(|bytes| !bytes.is_empty());
    let module = match initrd {
        None => None,
        Some(bytes) => Some((places.highest(bytes.len() as u64).ok_or(no_room(ram, image, bytes))?, bytes)),
    };
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, u32::from(module.is_some())] {
        info.extend(word.to_le_bytes());
    }
    let modules = if module.is_some() { modules_at } else { 0 };
    for address in [modules, line_at, layout::RSDP.0, map_at] {
        info.extend(address.to_le_bytes());
    }
    info.extend(((map.len() / RANGE_BYTES) as u32).to_le_bytes());
    info.extend([0; 4]);
    debug_assert_eq!(info.len() as u64, START_INFO_BYTES);
    let mut written = places::write(ram, info_at, &info)
        && places::write(ram, map_at, &map)
        && places::write(ram, line_at, line)
        && places::write(ram, line_at + line.len() as u64, &[0]);
    if let Some((at, bytes)) = module {
        let entry = [at, bytes.len() as u64, 0, 0].map(u64::to_le_bytes).concat();
        written &= places::write(ram, modules_at, &entry) && places::write(ram, at, bytes);
    }
    assert!(written, "places are RAM");
    protected_mode::enter(state, entry);
    state.gpr[gpr::RBX] = info_at;
    Ok(())
}

/// The initrd, or module, fits nowhere.
pub(super) fn no_room(ram: &Ram, image: &Image, initrd: &[u8]) -> BootError {
    let size = initrd.len() as u64;
    let needed = image.end().max(1 << 20).saturating_add(size) + 0x1000;
    let (initrd_mib, memory_mib) = (mib_up(size), ram.size() >> 20);
    if needed > LOW_RAM_MAX {
        BootError::InitrdLimit { initrd_mib, limit_mib: LOW_RAM_MAX >> 20 }
    } else {
        BootError::InitrdMemory { initrd_mib, memory_mib, needed_mib: mib_up(needed) }
    }
}
