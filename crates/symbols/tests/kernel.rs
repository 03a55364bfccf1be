//! Debian's kernels, when there is one to look at: `HINDSIGHT_TEST_KERNEL` names a vmlinuz.

use symbols::{Symbols, image};

#[test]
fn a_debian_kernel_tells_its_symbols() {
    let Ok(path) = std::env::var("HINDSIGHT_TEST_KERNEL") else {
        eprintln!("skipped: HINDSIGHT_TEST_KERNEL names no kernel");
        return;
    };
    let file = std::fs::read(path).expect("a kernel");
    let begin = std::time::Instant::now();
    let extents = image::load(&file).expect("an image");
    println!("load {:?}", begin.elapsed());
    let symbols = Symbols::find(&extents).expect("symbols");
    println!("{:?}: {} {:?}", begin.elapsed(), symbols.all().len(), &symbols.all()[symbols.all().len()/2..][..4]);
    for n in ["_text", "_etext", "do_sys_openat2", "entry_SYSCALL_64", "__start_orc_unwind", "__stop_orc_unwind", "__start_orc_unwind_ip", "modules", "_end", "linux_banner", "__per_cpu_start"] {
        println!("{n} {:x?}", symbols.address(n));
    }
}

#[test]
fn elf() {
    let Ok(path) = std::env::var("HINDSIGHT_TEST_KERNEL") else { return };
    let file = std::fs::read(path).expect("a kernel");
    let extents = image::load(&file).expect("an image");
    let symbols = Symbols::find(&extents).expect("symbols");
    let begin = std::time::Instant::now();
    let frames = symbols::orc::debug_frame(&extents, &symbols);
    let elf = symbols::elf::write(&symbols, &frames, &[]).expect("elf");
    println!("{:?} frames {} elf {}", begin.elapsed(), frames.len(), elf.len());
    std::fs::write("/tmp/gdb_k.elf", elf).expect("w");
}
