//! Address translation: the page walk (Intel SDM vol. 3A, chapter 4).
//!
//! Three formats (32-bit, PAE, 4-level) share one loop. A walk first reads entries without any
//! effect, then judges the access, and only once it is allowed sets Accessed and Dirty bits. So a
//! fault leaves memory as it was, as the manual has it (4.8).
//!
//! An entry that lies outside of RAM reads as all ones, as an unclaimed bus does; its reserved
//! bits then make the access a reserved-bit page fault.
//!
//! PAE page-directory-pointer entries are read at each walk rather than kept in registers from the
//! last load of CR3 (AMD APM vol. 2, 5.2.3); no system is known to depend on either.

use crate::CpuState;
use base::{GuestPhys, GuestVirt};
use memory::Ram;
use x86::control::{cr0, cr4, efer};
use x86::{Exception, flags, paging};

/// What an access wants of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// A write (or the write half of a read-modify-write).
    pub write: bool,
    /// An instruction fetch.
    pub fetch: bool,
    /// A user-mode access: CPL 3, and not one of the processor's own to its system tables.
    pub user: bool,
    /// EFLAGS.AC is set and the access is explicit: SMAP does not forbid it.
    pub ac: bool,
}

impl Access {
    /// A data access of the running program, at its privilege.
    pub fn data(state: &CpuState, write: bool) -> Self {
        Self { write, fetch: false, user: state.cpl == 3, ac: state.rflags & flags::AC != 0 }
    }
    /// An instruction fetch at the current privilege.
    pub fn fetch(state: &CpuState) -> Self {
        Self { write: false, fetch: true, user: state.cpl == 3, ac: false }
    }
    /// An implicit supervisor access: descriptor tables, task state, stacks on delivery.
    pub fn system(write: bool) -> Self {
        Self { write, fetch: false, user: false, ac: false }
    }
}

/// Where a linear address leads, and what else may be done there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The physical address of the linear address itself.
    pub phys: GuestPhys,
    /// A write at the same privilege (SMAP and AC aside) is allowed, and the Dirty bit is set.
    pub writable_now: bool,
    /// User mode may access the page.
    pub user: bool,
    /// A fetch is allowed as far as execute-disable goes.
    pub executable: bool,
    /// log2 of the page's size in bytes: 12, 21, 22 or 30; 12 with paging off.
    pub page_shift: u32,
    /// Physical addresses of the entries used, topmost first; unused ones are zero.
    pub entries: [GuestPhys; 4],
    /// How many of them there are.
    pub levels: usize,
}

/// The kinds of paging (SDM vol. 3A, 4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Off,
    Legacy32,
    Pae,
    FourLevel,
}

fn mode(state: &CpuState) -> Mode {
    if state.cr0 & cr0::PG == 0 {
        Mode::Off
    } else if state.efer & efer::LMA != 0 {
        Mode::FourLevel
    } else if state.cr4 & cr4::PAE != 0 {
        Mode::Pae
    } else {
        Mode::Legacy32
    }
}

/// The outcome of reading entries down to the leaf.
struct Path {
    phys: u64,
    shift: u32,
    entries: [u64; 4],
    values: [u64; 4],
    levels: usize,
    /// The first level whose entry has an Accessed bit (1 for PAE, whose top entries have none).
    first_accessed: usize,
    writable: bool,
    user: bool,
    no_execute: bool,
}

/// Why there is no leaf.
enum Missing {
    NotPresent,
    Reserved,
}

/// Bytes and bits of one format's levels.
struct Level {
    shift: u32,
    index_bits: u32,
    large: bool,
    reserved: u64,
    reserved_large: u64,
}

const LOW_BITS: fn(u32) -> u64 = |n| (1u64 << n) - 1;

fn read_path(state: &CpuState, ram: &Ram, address: u64) -> Result<Path, Missing> {
    match mode(state) {
        Mode::Off => Ok(Path {
            phys: address,
            shift: 12,
            entries: [0; 4],
            values: [0; 4],
            levels: 0,
            first_accessed: 0,
            writable: true,
            user: true,
            no_execute: false,
        }),
        Mode::Legacy32 => read_legacy32(state, ram, address),
        mode => read_wide(state, ram, address, mode),
    }
}

/// 4-level and PAE paging: entries of eight bytes.
fn read_wide(state: &CpuState, ram: &Ram, address: u64, mode: Mode) -> Result<Path, Missing> {
    let no_nx = if state.efer & efer::NXE == 0 { paging::NO_EXECUTE } else { 0 };
    let high = paging::ADDRESS_RESERVED;
    let leaf = Level { shift: 12, index_bits: 9, large: false, reserved: high | no_nx, reserved_large: 0 };
    let directory = |shift| Level {
        shift,
        index_bits: 9,
        large: true,
        reserved: high | no_nx,
        // Address bits below the page size, less bit 12 (PAT).
        reserved_large: LOW_BITS(shift) & !LOW_BITS(13),
    };
    let pdpt_legacy = Level {
        shift: 30,
        index_bits: 2,
        large: false,
        // Bits 63:MAXPHYADDR, 8:5 and 2:1.
        reserved: high | 0xfff0_0000_0000_0000 | 0x1e6,
        reserved_large: 0,
    };
    let top = Level {
        shift: 39,
        index_bits: 9,
        large: false,
        reserved: high | no_nx | paging::LARGE,
        reserved_large: 0,
    };
    match mode {
        Mode::Pae => {
            let root = state.cr3 & 0xffff_ffe0;
            let mut path = descend(ram, address, root, &[pdpt_legacy, directory(21), leaf], true)?;
            path.first_accessed = 1;
            Ok(path)
        }
        _ => {
            let root = state.cr3 & paging::ADDRESS;
            descend(ram, address, root, &[top, directory(30), directory(21), leaf], false)
        }
    }
}

fn descend(ram: &Ram, address: u64, root: u64, levels: &[Level], pae: bool) -> Result<Path, Missing> {
    let mut path = Path {
        phys: 0,
        shift: 0,
        entries: [0; 4],
        values: [0; 4],
        levels: 0,
        first_accessed: 0,
        writable: true,
        user: true,
        no_execute: false,
    };
    let mut table = root;
    for (depth, level) in levels.iter().enumerate() {
        let index = address >> level.shift & LOW_BITS(level.index_bits);
        let at = table + index * 8;
        let entry = ram.read_u64(GuestPhys(at)).unwrap_or(u64::MAX);
        path.entries[depth] = at;
        path.values[depth] = entry;
        path.levels = depth + 1;
        if entry & paging::PRESENT == 0 {
            return Err(Missing::NotPresent);
        }
        let is_leaf = depth + 1 == levels.len() || level.large && entry & paging::LARGE != 0;
        let large = is_leaf && depth + 1 != levels.len();
        let reserved = level.reserved | if large { level.reserved_large } else { 0 };
        if entry & reserved != 0 {
            return Err(Missing::Reserved);
        }
        // The top entries of PAE paging carry no permissions.
        if !(pae && depth == 0) {
            path.writable &= entry & paging::WRITABLE != 0;
            path.user &= entry & paging::USER != 0;
            path.no_execute |= entry & paging::NO_EXECUTE != 0;
        }
        table = entry & paging::ADDRESS;
        if is_leaf {
            path.shift = level.shift;
            path.phys = table & !LOW_BITS(level.shift) | address & LOW_BITS(level.shift);
            break;
        }
    }
    Ok(path)
}

fn read_u32(ram: &Ram, at: u64) -> u64 {
    ram.read_array(GuestPhys(at)).map_or(u32::MAX as u64, |bytes| u32::from_le_bytes(bytes) as u64)
}

/// 32-bit paging with 4-MByte pages (PSE-36).
fn read_legacy32(state: &CpuState, ram: &Ram, address: u64) -> Result<Path, Missing> {
    let directory_at = (state.cr3 & 0xffff_f000) + (address >> 22 & 0x3ff) * 4;
    let directory = read_u32(ram, directory_at);
    if directory & paging::PRESENT == 0 {
        return Err(Missing::NotPresent);
    }
    let mut path = Path {
        phys: 0,
        shift: 22,
        entries: [directory_at, 0, 0, 0],
        values: [directory, 0, 0, 0],
        levels: 1,
        first_accessed: 0,
        writable: directory & paging::WRITABLE != 0,
        user: directory & paging::USER != 0,
        no_execute: false,
    };
    if state.cr4 & cr4::PSE != 0 && directory & paging::LARGE != 0 {
        if directory & 1 << 21 != 0 {
            return Err(Missing::Reserved);
        }
        path.phys = directory & 0xffc0_0000 | (directory >> 13 & 0xff) << 32 | address & LOW_BITS(22);
        return Ok(path);
    }
    let table_at = (directory & 0xffff_f000) + (address >> 12 & 0x3ff) * 4;
    let entry = read_u32(ram, table_at);
    if entry & paging::PRESENT == 0 {
        return Err(Missing::NotPresent);
    }
    path.entries[1] = table_at;
    path.values[1] = entry;
    path.levels = 2;
    path.shift = 12;
    path.writable &= entry & paging::WRITABLE != 0;
    path.user &= entry & paging::USER != 0;
    path.phys = entry & 0xffff_f000 | address & LOW_BITS(12);
    Ok(path)
}

/// Whether rights allow the access (SDM vol. 3A, 4.6.1).
fn allowed(state: &CpuState, path: &Path, access: Access) -> bool {
    let protect = state.cr0 & cr0::WP != 0;
    if access.fetch {
        let smep = !access.user && path.user && state.cr4 & cr4::SMEP != 0;
        return !path.no_execute && !smep && (path.user || !access.user);
    }
    if access.user {
        return path.user && (path.writable || !access.write);
    }
    let smap = path.user && state.cr4 & cr4::SMAP != 0 && !access.ac;
    !smap && (path.writable || !access.write || !protect)
}

fn page_fault(state: &CpuState, address: u64, access: Access, cause: u32) -> Exception {
    use paging::fault;
    let nx = state.cr4 & cr4::PAE != 0 && state.efer & efer::NXE != 0;
    let mut code = cause;
    if access.write {
        code |= fault::WRITE;
    }
    if access.user {
        code |= fault::USER;
    }
    if access.fetch && (nx || state.cr4 & cr4::SMEP != 0) {
        code |= fault::FETCH;
    }
    Exception::page_fault(address, code)
}

/// The linear address that paging sees: 32 bits outside IA-32e mode.
fn significant(state: &CpuState, address: GuestVirt) -> u64 {
    if state.long_mode() { address.0 } else { address.0 & 0xffff_ffff }
}

/// Translates `address` for `access`, setting Accessed and Dirty bits once it is allowed.
///
/// The address must be canonical in IA-32e mode; the caller raises #GP or #SS otherwise.
/// Fails with the page fault to deliver.
pub fn translate(
    state: &CpuState,
    ram: &mut Ram,
    address: GuestVirt,
    access: Access,
) -> Result<Translation, Exception> {
    let address = significant(state, address);
    let path = match read_path(state, ram, address) {
        Ok(path) => path,
        Err(Missing::NotPresent) => return Err(page_fault(state, address, access, 0)),
        Err(Missing::Reserved) => {
            let cause = paging::fault::PRESENT | paging::fault::RESERVED;
            return Err(page_fault(state, address, access, cause));
        }
    };
    if !allowed(state, &path, access) {
        return Err(page_fault(state, address, access, paging::fault::PRESENT));
    }
    set_accessed_dirty(ram, &path, access.write);
    let dirty = path.levels == 0 || access.write || path.values[path.levels - 1] & paging::DIRTY != 0;
    Ok(finish(state, &path, dirty, access))
}

fn set_accessed_dirty(ram: &mut Ram, path: &Path, write: bool) {
    for depth in path.first_accessed..path.levels {
        let mut bits = paging::ACCESSED;
        if write && depth + 1 == path.levels {
            bits |= paging::DIRTY;
        }
        if path.values[depth] & bits != bits {
            let at = path.entries[depth];
            // An entry of 32-bit paging may be the upper half of an aligned 8-byte word.
            let known = ram.set_bits_quietly(GuestPhys(at & !7), bits << (8 * (at & 4)));
            debug_assert!(known, "an entry outside of RAM has reserved bits set");
        }
    }
}

fn finish(state: &CpuState, path: &Path, dirty: bool, access: Access) -> Translation {
    let write = Access { write: true, fetch: false, ac: true, ..access };
    Translation {
        phys: GuestPhys(path.phys),
        writable_now: dirty && allowed(state, path, write),
        user: path.user,
        executable: !path.no_execute,
        page_shift: path.shift,
        entries: path.entries.map(GuestPhys),
        levels: path.levels,
    }
}

/// Translates without any effect and without judging rights: for debuggers. `None` where nothing
/// is mapped. [`Translation::writable_now`] speaks for the current privilege.
pub fn probe(state: &CpuState, ram: &Ram, address: GuestVirt) -> Option<Translation> {
    if state.long_mode() && !paging::is_canonical(address.0) {
        return None;
    }
    let path = read_path(state, ram, significant(state, address)).ok()?;
    let dirty = path.levels == 0 || path.values[path.levels - 1] & paging::DIRTY != 0;
    Some(finish(state, &path, dirty, Access::data(state, false)))
}
