//! Kernels of other formats than Linux's, whole and broken.

use super::*;
use crate::layout;
use crate::testing::blank_state;
use base::GuestPhys;
use x86::gpr;

const MULTIBOOT: u32 = 0x1bad_b002;

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A Multiboot header with correct checksum.
fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let mut header = vec![MULTIBOOT, flags, 0u32.wrapping_sub(MULTIBOOT).wrapping_sub(flags)];
    header.extend(addresses);
    words(&header)
}

/// A program header: type, file offset, virtual and physical address, size in file and in memory.
type Segment = (u32, u32, u32, u32, u32, u32);

/// An ELF file of 64 or 32 bits with `body` at offset 0x200.
fn elf(is_64: bool, entry: u32, segments: &[Segment], body: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF".to_vec();
    file.extend([if is_64 { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let machine: u16 = if is_64 { 62 } else { 3 };
    file.extend(2u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    let long = |value: u32| if is_64 { u64::from(value).to_le_bytes().to_vec() } else { words(&[value]) };
    let (size, entry_size) = if is_64 { (64u16, 56u16) } else { (52, 32) };
    file.extend(long(entry));
    file.extend(long(size.into()));
    file.extend(long(0));
    file.extend(0u32.to_le_bytes());
    for half in [size, entry_size, segments.len() as u16, if is_64 { 64 } else { 40 }, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    assert_eq!(file.len(), usize::from(size));
    for &(kind, offset, virt, phys, in_file, in_memory) in segments {
        file.extend(kind.to_le_bytes());
        if is_64 {
            file.extend(7u32.to_le_bytes());
        }
        [offset, virt, phys, in_file, in_memory].iter().for_each(|value| file.extend(long(*value)));
        if !is_64 {
            file.extend(7u32.to_le_bytes());
        }
        file.extend(long(4));
    }
    file.resize(0x200, 0);
    file.extend(body);
    file
}

/// A note of Xen's with a PVH entry point.
fn pvh_note(entry: u32) -> Vec<u8> {
    let mut note = words(&[4, 4, 18]);
    note.extend(b"Xen\0");
    note.extend(entry.to_le_bytes());
    note
}

fn vmlinux() -> Vec<u8> {
    let mut body = vec![0x90; 0x100];
    body.extend(pvh_note(0x100_0010));
    elf(
        true,
        0x100_0000,
        &[(1, 0x200, 0x8100_0000, 0x100_0000, 0x100, 0x3000), (4, 0x300, 0, 0, 20, 20)],
        &body,
    )
}

fn boot(file: &[u8], initrd: Option<&[u8]>, line: &str) -> Result<(Ram, CpuState), BootError> {
    let mut ram = Ram::new(64 << 20).unwrap();
    // What an earlier boot left there.
    assert!(ram.write(GuestPhys(0x100_0000), &[0xee; 0x3000]));
    let mut state = blank_state();
    let guest = Guest { kernel_path: Path::new("kernel"), kernel: file, initrd, command_line: line };
    load(&mut ram, &mut state, &guest).map(|()| (ram, state))
}

fn word(ram: &Ram, at: u64) -> u64 {
    ram.read_array(GuestPhys(at)).map(u32::from_le_bytes).unwrap().into()
}

fn text(ram: &Ram, at: u64) -> String {
    let bytes = (at..).map(|at| ram.read_array::<1>(GuestPhys(at)).unwrap()[0]);
    String::from_utf8(bytes.take_while(|byte| *byte != 0).collect()).unwrap()
}

fn complaint(file: &[u8]) -> String {
    boot(file, None, "").err().expect("must not boot").to_string()
}

#[test]
fn a_vmlinux_is_entered_through_its_pvh_note_with_start_information() {
    let (ram, state) = boot(&vmlinux(), Some(&[7; 5000]), "console=ttyS0").unwrap();
    assert_eq!((state.rip, state.code_bits(), state.cr0), (0x100_0010, 32, 0x11));
    assert_eq!(word(&ram, 0x100_0000), 0x9090_9090);
    assert_eq!(word(&ram, 0x100_2ffc), 0, "memory behind the file's bytes is cleared");
    let info = state.gpr[gpr::RBX];
    assert_eq!((word(&ram, info), word(&ram, info + 4), word(&ram, info + 12)), (0x336e_c578, 1, 1));
    let long = |at: u64| ram.read_u64(GuestPhys(at)).unwrap();
    assert_eq!(text(&ram, long(info + 24)), "console=ttyS0");
    assert_eq!(long(info + 32), layout::RSDP.0);
    let (module, map, entries) = (long(info + 16), long(info + 40), word(&ram, info + 48));
    assert_eq!((long(module), long(module + 8)), ((64 << 20) - 8192, 5000));
    assert_eq!(ram.read_array(GuestPhys(long(module) + 4999)), Some([7]));
    let usable: u64 =
        (0..entries).filter(|n| word(&ram, map + n * 24 + 16) == 1).map(|n| long(map + n * 24 + 8)).sum();
    assert_eq!(usable, (64 << 20) - (0x10_0000 - layout::LOW_MEMORY_END));
    let saved = state.save();
    assert_eq!(saved.restore(&x86::CpuModel::plain(x86::Level::V3)).unwrap().save(), saved);
}

#[test]
fn an_elf_kernel_with_a_multiboot_header_gets_memory_map_module_and_command_line() {
    let mut body = header(3, &[]);
    body.extend([0x90; 0x20]);
    // Linked at 3 GiB, loaded at 1 MiB.
    let file = elf(false, 0xc010_000c, &[(1, 0x200, 0xc010_0000, 0x10_0000, 0x2c, 0x5000)], &body);
    let (ram, state) = boot(&file, Some(&[7; 5000]), "a b").unwrap();
    assert_eq!((state.rip, state.gpr[gpr::RAX]), (0x10_000c, 0x2bad_b002));
    let info = state.gpr[gpr::RBX];
    assert_eq!(word(&ram, info), 0x24d);
    assert_eq!((word(&ram, info + 4), word(&ram, info + 8)), (639, 63 << 10));
    assert_eq!(text(&ram, word(&ram, info + 16)), "kernel a b");
    let module = word(&ram, info + 24);
    assert_eq!(
        (word(&ram, info + 20), word(&ram, module), word(&ram, module + 4)),
        (1, 0x10_5000, 0x10_5000 + 5000)
    );
    assert_eq!(text(&ram, word(&ram, module + 8)), "initrd");
    let (length, map) = (word(&ram, info + 44), word(&ram, info + 48));
    assert_eq!((length % 24, word(&ram, map), word(&ram, map + 12)), (0, 20, layout::LOW_MEMORY_END));
    assert_eq!(text(&ram, word(&ram, info + 64)), "Hindsight");
}

#[test]
fn a_file_with_load_addresses_in_its_header_needs_no_elf() {
    let mut file = vec![0xcc; 16];
    file.extend(header(0x1_0003, &[0x20_0004, 0x20_0000, 0x20_0100, 0x20_2000, 0x20_0040]));
    file.resize(0x200, 0x90);
    let (ram, state) = boot(&file, None, "").unwrap();
    assert_eq!(state.rip, 0x20_0040);
    assert_eq!(word(&ram, 0x20_0004), MULTIBOOT.into());
    assert_eq!((word(&ram, 0x20_00fc), word(&ram, 0x20_0100)), (0x9090_9090, 0));
    assert_eq!(text(&ram, word(&ram, state.gpr[gpr::RBX] + 16)), "kernel");
    assert_eq!(kernel_end(Path::new("k"), &file).unwrap(), 0x20_2000);
}

#[test]
fn kernels_that_cannot_be_booted_are_refused_by_what_they_lack() {
    let plain = elf(true, 0x10_0000, &[(1, 0x200, 0, 0x10_0000, 4, 4)], &[0; 4]);
    assert!(complaint(&plain).contains("neither a PVH entry point nor a Multiboot header"));
    assert!(complaint(&plain[..40]).contains("ELF headers make no sense"));
    let mut arm = plain.clone();
    arm[18] = 183;
    assert!(complaint(&arm).contains("another processor"));
    let truncated = &vmlinux()[..0x280];
    assert!(complaint(truncated).contains("truncated"), "{}", complaint(truncated));
    let demanding = elf(false, 0x10_0000, &[(1, 0x200, 0, 0x10_0000, 12, 12)], &header(0x10, &[]));
    assert!(complaint(&demanding).contains("flags 0x10"));
    let far = elf(false, 0x10_0000, &[(1, 0x200, 0, 0xc000_0000, 12, 12)], &header(0, &[]));
    assert!(complaint(&far).contains("where no RAM is for its use"));
    let large = elf(false, 0x10_0000, &[(1, 0x200, 0, 0x10_0000, 12, 100 << 20)], &header(0, &[]));
    assert!(complaint(&large).contains("pass --memory 101M"), "{}", complaint(&large));
    let no_addresses = header(0, &[]);
    assert!(complaint(&no_addresses).contains("no load addresses"));
}

#[test]
fn what_a_loader_adds_never_overlaps_the_kernel() {
    // A kernel that fills low memory.
    let mut file = header(0x1_0000, &[0x1_0000, 0x1_0000, 0, 0x9_fc00, 0x1_0040]);
    file.resize(0x400, 0x90);
    let (ram, state) = boot(&file, Some(&[1; 100]), "x").unwrap();
    let info = state.gpr[gpr::RBX];
    assert!(info >= 0x10_0000, "{info:#x}");
    assert_eq!(word(&ram, 0x9_fbfc), 0);
    let module = word(&ram, info + 24);
    assert!(word(&ram, module) > info && word(&ram, module).is_multiple_of(4096));
}

#[test]
fn random_headers_never_panic() {
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut flat = vec![0; 16];
    flat.extend(header(0x1_0003, &[0x20_0004, 0x20_0000, 0x20_0100, 0x20_2000, 0x20_0040]));
    flat.resize(0x200, 0x90);
    let mut body = header(3, &[]);
    body.extend(pvh_note(0x10_0000));
    let small = elf(false, 0x10_0000, &[(1, 0x200, 0, 0x10_0000, 12, 64), (4, 0x20c, 0, 0, 20, 20)], &body);
    for original in [vmlinux(), flat, small] {
        for _ in 0..300 {
            let mut file = original.clone();
            for _ in 0..4 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let at = (seed as usize >> 8) % file.len();
                file[at] = seed as u8;
            }
            let _ = boot(&file, Some(&[1; 50]), "quiet");
        }
    }
}
