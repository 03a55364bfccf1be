//! Linux's 64-bit and 32-bit boot protocols (the kernel's `Documentation/arch/x86/boot.rst`, 2.12
//! and later).
//!
//! A bzImage is a real-mode setup part, of which only the header counts here, and the compressed
//! kernel: entered 0x200 past its start in long mode or, where the header knows no such entry, at
//! its start in 32-bit protected mode; either way with RSI at the "zero page".
//!
//! ```text
//! 0_6000  GDT                     2_0000  command line
//! 0_7000  zero page (boot_params) e_0000  ACPI tables
//! 0_8ff0  stack, downwards        preferred address (16 MiB): the kernel
//! 0_9000  page tables             top of low RAM, downwards: the initrd
//! ```

use super::bytes::{u16_at, u32_at, u64_at};
use super::memory_map::memory_map;
use super::{BootError, Guest, long_mode, protected_mode};
use crate::layout;
use base::{GuestPhys, PAGE_SIZE};
use cpu::CpuState;
use memory::{LOW_RAM_MAX, Ram};
use std::path::Path;
use x86::gpr;

const ZERO_PAGE: GuestPhys = GuestPhys(0x7000);
const STACK: u64 = 0x8ff0;
pub(super) const GDT: GuestPhys = GuestPhys(0x6000);
const COMMAND_LINE: GuestPhys = GuestPhys(0x2_0000);
/// Room for the command line.
const COMMAND_LINE_MAX: usize = 0x1_0000;
/// No kernel is put below this.
const LOWEST_KERNEL: u64 = 0x10_0000;
/// From the kernel's start to its 64-bit entry.
const ENTRY_64: u64 = 0x200;

/// Offsets in the setup header, which are the same in the zero page.
mod header {
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    pub const JUMP: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    /// End of the fields of protocol 2.12.
    pub const END: usize = 0x268;
}

/// Offsets in the zero page outside the header.
mod zero_page {
    pub const ACPI_RSDP: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const E820_TABLE: usize = 0x2d0;
}

/// A checked setup header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// Where the protected-mode part starts in the file.
    payload: usize,
    pref_address: u64,
    init_size: u64,
    alignment: u64,
    relocatable: bool,
    initrd_addr_max: u64,
    cmdline_max: usize,
    /// Whether it is a 64-bit kernel.
    long: bool,
}

/// What else people pass by mistake, by the file's first bytes.
fn other_format(kernel: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "it is a gzip file"),
        (b"\xfd7zXZ", "it is an xz file"),
        (b"\x28\xb5\x2f\xfd", "it is a zstd file"),
        (b"070701", "it is a cpio archive (an initrd?)"),
        (b"QFI\xfb", "it is a qcow2 disk image"),
    ];
    known.into_iter().find(|(magic, _)| kernel.starts_with(magic)).map(|(_, what)| what)
}

/// Whether a file has a Linux setup header, whatever else is wrong with it.
pub(super) fn is_bz_image(file: &[u8]) -> bool {
    file.get(header::MAGIC..header::MAGIC + 4) == Some(b"HdrS")
}

impl BzImage {
    /// One past the last byte it takes at its preferred address.
    pub(super) fn end(&self) -> u64 {
        self.pref_address.max(LOWEST_KERNEL).saturating_add(self.init_size)
    }

    /// Checks a kernel file's header.
    pub fn parse(path: &Path, kernel: &[u8]) -> Result<Self, BootError> {
        let not = |why: &str| BootError::NotAKernel { path: path.to_owned(), why: why.to_owned() };
        let truncated = |expected: usize| BootError::Truncated {
            path: path.to_owned(),
            expected: expected as u64,
            found: kernel.len() as u64,
        };
        if kernel.is_empty() {
            return Err(BootError::Empty { role: super::Role::Kernel, path: path.to_owned() });
        }
        if let Some(what) = other_format(kernel) {
            return Err(not(what));
        }
        if kernel.len() < header::END {
            let looks_like_one = kernel.starts_with(b"MZ");
            return Err(if looks_like_one { truncated(header::END) } else { not("it has no setup header") });
        }
        if u16_at(kernel, header::BOOT_FLAG) != 0xaa55 || &kernel[header::MAGIC..][..4] != b"HdrS" {
            return Err(not("it has no Linux setup header"));
        }
        let version = u16_at(kernel, header::VERSION);
        if version < 0x20c {
            let (major, minor) = (version >> 8, version & 0xff);
            return Err(not(&format!("its boot protocol {major}.{minor} is older than 2.12")));
        }
        if kernel[header::LOADFLAGS] & 1 == 0 {
            return Err(not("it is a zImage, loaded low"));
        }
        let sectors = match kernel[header::SETUP_SECTS] {
            0 => 4,
            n => usize::from(n),
        };
        let payload = (sectors + 1) * 512;
        let expected = payload + u32_at(kernel, header::SYSSIZE) as usize * 16;
        // The size counts whole paragraphs; a build may leave out the last one's padding.
        if kernel.len() + 15 < expected || kernel.len() <= payload {
            return Err(truncated(expected));
        }
        let alignment = u64::from(u32_at(kernel, header::KERNEL_ALIGNMENT));
        if !alignment.is_power_of_two() {
            return Err(not("its alignment is not a power of two"));
        }
        let length = (kernel.len() - payload) as u64;
        Ok(Self {
            payload,
            pref_address: u64_at(kernel, header::PREF_ADDRESS),
            init_size: u64::from(u32_at(kernel, header::INIT_SIZE)).max(length),
            alignment: alignment.max(PAGE_SIZE as u64),
            relocatable: kernel[header::RELOCATABLE] != 0,
            initrd_addr_max: u64::from(u32_at(kernel, header::INITRD_ADDR_MAX)),
            cmdline_max: (u32_at(kernel, header::CMDLINE_SIZE) as usize).min(COMMAND_LINE_MAX - 1),
            long: u16_at(kernel, header::XLOADFLAGS) & 1 != 0,
        })
    }

    /// Where the kernel goes in `low` bytes of RAM; an error says how much it needs.
    fn place(&self, low: u64) -> Result<u64, BootError> {
        let fits = |at: u64| at.checked_add(self.init_size).is_some_and(|end| end <= low);
        let wanted = self.pref_address;
        if wanted >= LOWEST_KERNEL && fits(wanted) {
            return Ok(wanted);
        }
        let lowest = LOWEST_KERNEL.next_multiple_of(self.alignment);
        if self.relocatable && fits(lowest) {
            return Ok(lowest);
        }
        let start = if self.relocatable { lowest } else { wanted };
        Err(BootError::KernelMemory {
            memory_mib: low >> 20,
            needed_mib: mib_up(start.saturating_add(self.init_size)),
        })
    }

    /// Where an initrd of `size` bytes goes: as high as allowed, above the kernel.
    fn place_initrd(&self, kernel: u64, size: u64, low: u64) -> Result<u64, BootError> {
        let kernel_end = kernel + self.init_size;
        let limit = self.initrd_addr_max.saturating_add(1).min(LOW_RAM_MAX);
        let start = limit.min(low).checked_sub(size).map(|at| at & !(PAGE_SIZE as u64 - 1));
        if let Some(start) = start.filter(|start| *start >= kernel_end) {
            return Ok(start);
        }
        let needed = kernel_end.saturating_add(size).next_multiple_of(PAGE_SIZE as u64);
        let initrd_mib = mib_up(size);
        Err(if needed > limit {
            BootError::InitrdLimit { initrd_mib, limit_mib: limit >> 20 }
        } else {
            BootError::InitrdMemory { initrd_mib, memory_mib: low >> 20, needed_mib: mib_up(needed) }
        })
    }
}

pub(super) fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

/// Puts the guest into RAM and the processor at its entry. ACPI tables are the caller's.
pub fn load(ram: &mut Ram, state: &mut CpuState, guest: &Guest) -> Result<(), BootError> {
    let image = BzImage::parse(guest.kernel_path, guest.kernel)?;
    let low = ram.size().min(LOW_RAM_MAX);
    let memory_mib = ram.size() >> 20;
    let kernel_at = image.place(low)?;
    let command_line = guest.command_line.as_bytes();
    if command_line.len() > image.cmdline_max {
        return Err(BootError::CommandLine { length: command_line.len(), max: image.cmdline_max });
    }
    let initrd = match guest.initrd.filter(|bytes| !bytes.is_empty()) {
        Some(bytes) => Some((image.place_initrd(kernel_at, bytes.len() as u64, low)?, bytes)),
        None => None,
    };
    let zero_page = zero_page(ram, guest.kernel, initrd.map(|(at, bytes)| (at, bytes.len())));

    let tables = if image.long { long_mode::write_tables(ram) } else { protected_mode::write_gdt(ram, GDT) };
    let mut written = tables
        && ram.write(ZERO_PAGE, &zero_page)
        && ram.write(COMMAND_LINE, command_line)
        && ram.write(COMMAND_LINE.offset(command_line.len() as u64), &[0])
        && ram.write(GuestPhys(kernel_at), &guest.kernel[image.payload..]);
    if let Some((at, bytes)) = initrd {
        written = written && ram.write(GuestPhys(at), bytes);
    }
    if !written {
        return Err(BootError::KernelMemory { memory_mib, needed_mib: memory_mib + 1 });
    }
    if image.long {
        long_mode::enter(state, kernel_at + ENTRY_64, STACK);
    } else {
        // Kernels are placed below 4 GiB.
        protected_mode::enter(state, kernel_at as u32);
        protected_mode::use_gdt(state, GDT);
        state.gpr[gpr::RSP] = STACK;
    }
    state.gpr[gpr::RSI] = ZERO_PAGE.0;
    Ok(())
}

fn zero_page(ram: &Ram, kernel: &[u8], initrd: Option<(u64, usize)>) -> Vec<u8> {
    let mut page = vec![0; PAGE_SIZE];
    // The header ends where its jump instruction goes (boot.rst, "The real-mode kernel header").
    let end = (header::MAGIC + usize::from(kernel[header::JUMP])).clamp(header::END, 0x290);
    let end = end.min(kernel.len());
    page[header::SETUP_SECTS..end].copy_from_slice(&kernel[header::SETUP_SECTS..end]);
    let mut put = |offset: usize, bytes: &[u8]| page[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(header::TYPE_OF_LOADER, &[0xff]); // no assigned loader number
    put(header::CMD_LINE_PTR, &(COMMAND_LINE.0 as u32).to_le_bytes());
    if let Some((at, length)) = initrd {
        put(header::RAMDISK_IMAGE, &(at as u32).to_le_bytes());
        put(header::RAMDISK_SIZE, &(length as u32).to_le_bytes());
    }
    put(zero_page::ACPI_RSDP, &layout::RSDP.0.to_le_bytes());
    let map = memory_map(ram);
    put(zero_page::E820_ENTRIES, &[map.len() as u8]);
    for (i, range) in map.iter().enumerate() {
        let entry = zero_page::E820_TABLE + 20 * i;
        put(entry, &range.start.to_le_bytes());
        put(entry + 8, &range.length.to_le_bytes());
        put(entry + 16, &(range.kind as u32).to_le_bytes());
    }
    page
}

const _: () = assert!(long_mode::END.0 <= COMMAND_LINE.0);

#[cfg(test)]
#[path = "linux_tests.rs"]
mod tests;
