//! Kallsyms and frames: of a small kernel made here, and of a real one when
//! `HINDSIGHT_TEST_KERNEL` names a vmlinuz.

use std::process::Command;
use symbols::modules::Module;
use symbols::{Error, Extents, Symbol, Symbols, elf, image, modules, orc, slide};

const BASE: u64 = 0xffff_ffff_9a00_0000;
/// Where the tables are in the made kernel.
const TABLES: usize = 0x2000;

fn align(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// Which kernel's order of the tables.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Age {
    Old,
    Updated,
    New,
}

/// What `scripts/kallsyms.c` writes, without compression of its own but for one token.
fn kallsyms(symbols: &[Symbol], age: Age) -> Vec<u8> {
    let mut addresses = Vec::new();
    for symbol in symbols {
        let raw = if symbol.address < BASE {
            symbol.address as i32
        } else {
            (BASE as i64 - 1 - symbol.address as i64) as i32
        };
        addresses.extend(raw.to_le_bytes());
    }
    align(&mut addresses);
    addresses.extend(BASE.to_le_bytes());
    let (mut names, mut markers) = (Vec::new(), Vec::new());
    for (i, symbol) in symbols.iter().enumerate() {
        if i % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        // Token 1 stands for "do_".
        let name = format!("{}{}", symbol.kind, symbol.name.replace("do_", "\u{1}"));
        match name.len() {
            length @ 0..0x80 => names.push(length as u8),
            length => names.extend([length as u8 | 0x80, (length >> 7) as u8]),
        }
        names.extend(name.bytes());
    }
    let (mut table, mut index) = (Vec::new(), Vec::new());
    for token in 0..=255u8 {
        index.extend((table.len() as u16).to_le_bytes());
        match token {
            1 => table.extend(b"do_"),
            b'!'..=b'~' => table.push(token),
            _ => table.extend(b"_x"),
        }
        table.push(0);
    }
    let mut out = vec![0xcc; TABLES];
    // A decoy: digits in a row, but no table of tokens.
    out[0x100..0x114].copy_from_slice(b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00");
    if age != Age::New {
        out.extend(&addresses);
    }
    out.extend((symbols.len() as u64).to_le_bytes());
    for part in [&names, &markers] {
        out.extend(part);
        align(&mut out);
    }
    let order: Vec<u8> = (0..symbols.len()).flat_map(|i| [0, (i >> 8) as u8, i as u8]).collect();
    if age == Age::Updated {
        out.extend(&order);
        align(&mut out);
    }
    for part in [&table, &index] {
        out.extend(part);
        align(&mut out);
    }
    if age == Age::New {
        out.extend(&addresses);
        out.extend(&order);
    }
    out.resize(out.len().next_multiple_of(4096), 0);
    out
}

fn made() -> Vec<Symbol> {
    let symbol = |address: u64, kind: char, name: String| Symbol { address, kind, name };
    let mut all = vec![symbol(0, 'A', "__per_cpu_start".into()), symbol(0x1000, 'A', "cpu_number".into())];
    all.push(symbol(BASE, 'T', "_text".into()));
    for i in 0..1000 {
        all.push(symbol(BASE + 0x10 * (i + 1), if i % 3 == 0 { 't' } else { 'T' }, format!("do_thing_{i}")));
    }
    all.push(symbol(BASE + 0x8000, 'T', format!("long_{}", "name".repeat(60))));
    all.push(symbol(BASE + 0x9000, 'T', "_etext".into()));
    all.push(symbol(BASE + 0xa000, 'D', "modules".into()));
    all.push(symbol(BASE + 0x1_0000, 'B', "_end".into()));
    all
}

fn extents(bytes: &[u8]) -> Extents {
    let mut extents = Extents::default();
    extents.push(BASE, bytes);
    extents
}

#[test]
fn the_tables_of_all_ages_are_found_and_decoded() {
    for age in [Age::Old, Age::Updated, Age::New] {
        let found = Symbols::find(&extents(&kallsyms(&made(), age))).expect("symbols");
        assert_eq!(found.all(), made(), "{age:?}");
        assert_eq!(found.address("do_thing_7"), Some(BASE + 0x80));
        let (symbol, offset) = found.nearest(BASE + 0x85).expect("a symbol");
        assert_eq!((symbol.name.as_str(), offset), ("do_thing_7", 5));
    }
}

#[test]
fn damaged_tables_are_not_believed() {
    let good = kallsyms(&made(), Age::Old);
    // Every byte from the number of symbols to the end of the tables, a few at a time.
    for at in (TABLES + 4000..good.len()).step_by(977) {
        let mut bad = good.clone();
        bad[at] ^= 0x55;
        if let Ok(found) = Symbols::find(&extents(&bad)) {
            assert!(found.all().len() <= made().len());
        }
        // Whatever is found in a part of it, it must not be read past its end.
        let _ = Symbols::find(&extents(&good[..at]));
    }
    assert!(matches!(Symbols::find(&extents(&[0; 4096])), Err(Error::NoKallsyms(_))));
    assert!(matches!(image::load(b"no kernel"), Err(Error::Image(_))));
    let mut header = vec![0; 0x1000];
    header[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
    header[0x248..0x250].fill(0xff);
    assert!(matches!(image::load(&header), Err(Error::Image(_))));
}

#[test]
fn a_randomized_kernel_is_read_from_memory_with_holes() {
    let bytes = kallsyms(&made(), Age::Updated);
    let mut read = |at: u64, into: &mut [u8]| {
        let Some(offset) = at.checked_sub(BASE).map(|offset| offset as usize) else { return false };
        match bytes.get(offset..offset + into.len()) {
            Some(part) if offset != 0x1000 => {
                into.copy_from_slice(part);
                true
            }
            _ => false,
        }
    };
    let found = Symbols::find(&Extents::of_guest(&mut read)).expect("symbols");
    assert_eq!(found.all(), made());
    let linked: Vec<Symbol> = made()
        .into_iter()
        .map(|mut symbol| {
            symbol.address = symbol.address.wrapping_sub(0x1900_0000);
            symbol
        })
        .collect();
    assert_eq!(slide(&found, &Symbols::new(linked)), Some(0x1900_0000));
}

#[test]
fn modules_are_recognized_by_what_they_point_to() {
    let head = BASE + 0xa000;
    let place = 0xffff_ffff_c000_0000u64;
    let mut memory = vec![0u8; 0x3000];
    let mut put =
        |at: u64, bytes: &[u8]| memory[(at - place) as usize..][..bytes.len()].copy_from_slice(bytes);
    put(place + 8, &head.to_le_bytes());
    put(place + 24, b"buggy\0");
    put(place + 0x148, &(place + 0x20).to_le_bytes()); // a pointer to something else
    put(place + 0x150, &(place + 0x800).to_le_bytes());
    put(place + 0x800, &(place + 0x1000).to_le_bytes());
    put(place + 0x808, &3u32.to_le_bytes());
    put(place + 0x810, &(place + 0x2000).to_le_bytes());
    put(place + 0x818, &(place + 0x900).to_le_bytes());
    put(place + 0x900, b"?td");
    put(place + 0x2000, b"\0buggy_write\0buggy_list\0");
    for (i, (name, address)) in [(1u32, place + 0x500), (13, place + 0x600)].into_iter().enumerate() {
        let at = place + 0x1000 + 24 * (i as u64 + 1);
        put(at, &name.to_le_bytes());
        put(at + 6, &1u16.to_le_bytes());
        put(at + 8, &address.to_le_bytes());
    }
    let mut read = |at: u64, into: &mut [u8]| {
        if at == head && into.len() == 8 {
            into.copy_from_slice(&(place + 8).to_le_bytes());
            return true;
        }
        let offset = at.wrapping_sub(place) as usize;
        let part = offset.checked_add(into.len()).and_then(|end| memory.get(offset..end));
        part.map(|part| into.copy_from_slice(part)).is_some()
    };
    let found = modules::list(&Symbols::new(made()), &mut read);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].name, "buggy");
    let names: Vec<_> =
        found[0].symbols.all().iter().map(|s| (s.name.as_str(), s.kind, s.address - place)).collect();
    assert_eq!(names, [("buggy_write", 't', 0x500), ("buggy_list", 'd', 0x600)]);
}

fn gdb(file: &[u8], commands: &[&str]) -> Option<String> {
    let there = Command::new("gdb").arg("--version").output().is_ok();
    assert!(there || std::env::var("CI").as_deref() != Ok("true"), "gdb must be installed in CI");
    if !there {
        eprintln!("skipped: gdb is not installed");
        return None;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("symbols.elf");
    std::fs::write(&path, file).expect("written");
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-ex", &format!("file {}", path.display())]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let output = gdb.output().expect("gdb runs");
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn gdb_loads_the_file_and_knows_the_names() {
    let symbol = Symbol { address: 0xffff_ffff_c000_0500, kind: 't', name: "buggy_write".into() };
    let module = Module::new("buggy", Symbols::new(vec![symbol]));
    let file = elf::write(&Symbols::new(made()), &[], &[&module]).expect("a file");
    let commands =
        ["info symbol 0xffffffff9a000085", "info address modules", "break buggy_write", "p &do_thing_9"];
    let Some(text) = gdb(&file, &commands) else { return };
    for expected in [
        "do_thing_7 + 5 in section .text",
        "\"modules\" is at 0xffffffff9a00a000",
        "Breakpoint 1 at 0xffffffffc0000500",
        "<do_thing_9>",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

#[test]
fn a_real_kernel_tells_its_symbols_and_frames() {
    let Ok(path) = std::env::var("HINDSIGHT_TEST_KERNEL") else {
        eprintln!("skipped: HINDSIGHT_TEST_KERNEL names no kernel");
        return;
    };
    let extents = image::load(&std::fs::read(path).expect("a file")).expect("an image");
    let symbols = Symbols::find(&extents).expect("symbols");
    assert!(symbols.all().len() > 50_000);
    let open = symbols.address("do_sys_openat2").expect("a function");
    assert_eq!(symbols.address("_text"), Some(0xffff_ffff_8100_0000));
    let frames = orc::debug_frame(&extents, &symbols, &[]);
    assert!(frames.len() > 1 << 20);
    let file = elf::write(&symbols, &frames, &[]).expect("a file");
    let text = gdb(&file, &["break do_sys_openat2", &format!("info symbol {:#x}", open + 16)]);
    if let Some(text) = text {
        assert!(text.contains(&format!("Breakpoint 1 at {open:#x}")), "{text}");
        assert!(text.contains("do_sys_openat2 + 16 in section .text"), "{text}");
    }
}
