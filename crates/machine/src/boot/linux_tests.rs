//! Loading kernels, whole and broken.

use super::*;
use crate::boot::memory_map::MemoryKind;
use crate::testing::blank_state;

/// A bzImage of the given shape: setup part of one sector, `kernel` bytes of payload.
fn image(kernel: usize, init_size: u32) -> Vec<u8> {
    let mut file = vec![0; 1024 + kernel];
    file[..2].copy_from_slice(b"MZ");
    file[header::SETUP_SECTS] = 1;
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(header::SYSSIZE, &(kernel.div_ceil(16) as u32).to_le_bytes());
    put(header::BOOT_FLAG, &0xaa55u16.to_le_bytes());
    put(header::JUMP, &[0x6a]);
    put(header::MAGIC, b"HdrS");
    put(header::VERSION, &0x20fu16.to_le_bytes());
    put(header::LOADFLAGS, &[1]);
    put(header::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    put(header::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    put(header::RELOCATABLE, &[1]);
    put(header::XLOADFLAGS, &1u16.to_le_bytes());
    put(header::CMDLINE_SIZE, &2047u32.to_le_bytes());
    put(header::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
    put(header::INIT_SIZE, &init_size.to_le_bytes());
    for (i, byte) in file[1024..].iter_mut().enumerate() {
        *byte = i as u8 | 1;
    }
    file
}

fn boot(memory: u64, kernel: &[u8], initrd: Option<&[u8]>, line: &str) -> Result<(Ram, CpuState), BootError> {
    let mut ram = Ram::new(memory).unwrap();
    let mut state = blank_state();
    let guest = Guest { kernel_path: Path::new("vmlinuz"), kernel, initrd, command_line: line };
    load(&mut ram, &mut state, &guest).map(|()| (ram, state))
}

fn failure(memory: u64, kernel: &[u8], initrd: Option<&[u8]>) -> String {
    boot(memory, kernel, initrd, "").err().expect("must not boot").to_string()
}

#[test]
fn the_kernel_is_entered_in_long_mode_with_the_zero_page() {
    let kernel = image(5000, 0x80_0000);
    let (ram, state) = boot(64 << 20, &kernel, Some(&[7; 10_000]), "console=ttyS0").unwrap();
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(state.gpr[gpr::RSI], 0x7000);
    assert!(state.code64() && state.long_mode());
    assert_eq!(ram.read_array(GuestPhys(0x100_0000)), Some([1u8, 1, 3, 3]));
    let field = |at: u64| ram.read_array(GuestPhys(0x7000 + at)).map(u32::from_le_bytes).unwrap();
    assert_eq!(field(0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(field(0x070), layout::RSDP.0 as u32);
    let (initrd, size) = (u64::from(field(0x218)), field(0x21c));
    assert_eq!(size, 10_000);
    assert_eq!(initrd, ((64 << 20) - 10_000) & !0xfff);
    assert_eq!(ram.read_array(GuestPhys(initrd + 9_999)), Some([7u8]));
    let mut line = [0; 14];
    assert!(ram.read(GuestPhys(u64::from(field(0x228))), &mut line));
    assert_eq!(&line, b"console=ttyS0\0");
    let saved = state.save();
    let again = saved.restore(&x86::CpuModel::plain(x86::Level::V3)).unwrap();
    assert_eq!(again.save(), saved, "a processor can be in the state a kernel starts in");
}

#[test]
fn a_kernel_without_a_64_bit_entry_is_entered_in_protected_mode() {
    let mut kernel = image(5000, 0x80_0000);
    kernel[header::XLOADFLAGS] = 0;
    let (ram, state) = boot(64 << 20, &kernel, None, "").unwrap();
    assert_eq!((state.rip, state.code_bits(), state.cr0), (0x100_0000, 32, 0x11));
    assert_eq!((state.gpr[gpr::RSI], state.gpr[gpr::RBX]), (0x7000, 0));
    assert_eq!(state.seg.map(|segment| segment.selector), [0x18, 0x10, 0x18, 0x18, 0x18, 0x18]);
    assert_eq!(ram.read_u64(GuestPhys(state.gdtr.base + 0x10)), Some(0x00cf_9b00_0000_ffff));
}

#[test]
fn the_identity_map_reaches_four_gibibytes() {
    let (ram, state) = boot(64 << 20, &image(100, 0x10_0000), None, "").unwrap();
    for address in [0u64, 0x100_0200, 0xfee0_0030, 0xffff_fff0] {
        let mut table = state.cr3;
        for shift in [39, 30, 21] {
            let entry = ram.read_u64(GuestPhys(table + 8 * (address >> shift & 511))).unwrap();
            assert_eq!(entry & 3, 3);
            table = entry & paging_address();
        }
        assert_eq!(table | address & 0x1f_ffff, address);
    }
}

fn paging_address() -> u64 {
    x86::paging::ADDRESS
}

#[test]
fn the_memory_map_covers_all_ram_but_the_holes() {
    let ram = Ram::new(LOW_RAM_MAX + (1 << 30)).unwrap();
    let map = memory_map(&ram);
    let usable: u64 = map.iter().filter(|r| r.kind == MemoryKind::Usable).map(|r| r.length).sum();
    assert_eq!(usable, LOW_RAM_MAX + (1 << 30) - (0x10_0000 - layout::LOW_MEMORY_END));
    assert!(map.windows(2).all(|pair| pair[0].start + pair[0].length <= pair[1].start), "{map:x?}");
}

#[test]
fn files_that_are_no_kernels_are_refused_by_what_they_are() {
    assert!(failure(64 << 20, b"", None).contains("is empty"));
    assert!(failure(64 << 20, b"#!/bin/sh\n", None).contains("not a kernel"));
    assert!(failure(64 << 20, &[0x55; 4096], None).contains("no Linux setup header"));
    let whole = image(50_000, 0x10_0000);
    for length in [10, 0x1f1, 700, 1024, 30_000] {
        let message = failure(64 << 20, &whole[..length], None);
        assert!(message.contains("truncated"), "{length}: {message}");
    }
    let mut old = whole.clone();
    old[header::VERSION] = 0xb;
    assert!(failure(64 << 20, &old, None).contains("boot protocol 2.11 is older than 2.12"));
}

#[test]
fn too_little_memory_is_refused_with_how_much_would_do() {
    let kernel = image(100, 0x200_0000);
    assert!(failure(16 << 20, &kernel, None).contains("--memory 34M"));
    assert!(boot(34 << 20, &kernel, None, "").is_ok(), "relocated below its preferred address");
    let initrd = vec![1; 20 << 20];
    assert!(failure(50 << 20, &kernel, Some(&initrd)).contains("--memory 68M"));
    assert!(boot(68 << 20, &kernel, Some(&initrd), "").is_ok());
}

#[test]
fn a_command_line_longer_than_the_kernel_takes_is_refused() {
    let result = boot(64 << 20, &image(100, 0x10_0000), None, &"x".repeat(2048));
    assert!(matches!(result, Err(BootError::CommandLine { length: 2048, max: 2047 })));
}

#[test]
fn missing_and_empty_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("initrd.img");
    let missing = super::super::read_file(super::super::Role::Initrd, &path).unwrap_err().to_string();
    assert!(missing.contains("initrd.img") && missing.contains("--initrd"), "{missing}");
    std::fs::write(&path, b"").unwrap();
    let empty = super::super::read_file(super::super::Role::Initrd, &path).unwrap_err().to_string();
    assert!(empty.contains("is empty"), "{empty}");
}

#[test]
fn a_header_of_random_bytes_never_panics() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    for _ in 0..2000 {
        let mut kernel = image(3000, 0x10_0000);
        for _ in 0..8 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let at = header::SETUP_SECTS + (seed as usize >> 8) % (header::END - header::SETUP_SECTS);
            kernel[at] = seed as u8;
        }
        let _ = boot(20 << 20, &kernel, Some(&[1; 5000]), "quiet");
    }
}
