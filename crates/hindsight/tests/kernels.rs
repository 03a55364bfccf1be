//! Small kernels of our own, from their sources to their exit status: every processor mode and the
//! ways between them, paging, exceptions, and what boot loaders tell a kernel.
//!
//! Each kernel prints its findings to the debug console, and the text that is right stands beside
//! its source. Where QEMU is installed, it runs the same kernels: its lines have to be the same but
//! for those marked with `!`, in which its translator does not do what the manual says. Without gcc
//! the tests are skipped with a message, but never in CI.

use base::Position;
use recording::{HashCache, Recording};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use timeline::{Pause, Travel, Tuning, Until};

const INITRD: &[u8] = b"abcd1234\n";
const MEMORY: &str = "64M";

/// What a kernel needs beside itself.
#[derive(Clone, Copy)]
struct Given {
    name: &'static str,
    /// With an initrd and a command line.
    files: bool,
    status: i32,
}

const MODES: Given = Given { name: "modes", files: false, status: 0x21 };
const PAGING: Given = Given { name: "paging", files: false, status: 0x21 };
const FAULTS: Given = Given { name: "faults", files: false, status: 0x21 };
const VM86: Given = Given { name: "vm86", files: false, status: 0x21 };
const TASKS: Given = Given { name: "tasks", files: false, status: 0x21 };
const MULTIBOOT: Given = Given { name: "multiboot", files: true, status: 0x43 };
const PVH: Given = Given { name: "pvh", files: true, status: 1 };

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

/// Runs a tool; `None`, with a message, where it is not installed.
fn tool(command: &mut Command) -> Option<Output> {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => Some(output),
        Err(error) => {
            let name = command.get_program().to_string_lossy().into_owned();
            assert!(!in_ci(), "{name} must be installed in CI: {error}");
            eprintln!("skipped: {name} cannot be run: {error}");
            None
        }
    }
}

/// A folder with kernels made from their sources.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("initrd"), INITRD).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Assembles and links a kernel; `None` without a compiler. With `strict`, everything the manual
    /// promises is tried.
    fn kernel(&self, name: &str, strict: bool) -> Option<PathBuf> {
        let sources = sources();
        let to = self.path(&format!("{name}-{strict}"));
        let mut gcc = Command::new("gcc");
        gcc.args(["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]);
        gcc.arg(format!("-Wl,-T,{}", sources.join("kernel.ld").display()));
        gcc.arg("-I").arg(&sources);
        if strict {
            gcc.arg("-DSTRICT");
        }
        gcc.arg(sources.join(format!("{name}.S"))).arg("-o").arg(&to);
        let output = tool(&mut gcc)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(to)
    }

    fn hindsight(&self, words: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hindsight"));
        command.args(words).current_dir(self.folder.path()).env("XDG_DATA_HOME", self.path("data"));
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a kernel; its console and the summary.
    fn run(&self, command: &str, kernel: &Path, given: Given, more: &[&str]) -> (String, Value) {
        let kernel = kernel.to_str().unwrap();
        let mut words = vec![command, "--kernel", kernel, "--debug-ports", "--memory", MEMORY, "--json"];
        words.extend(["--console", "console", "--timeout", "60"]);
        if given.files {
            words.extend(["--initrd", "initrd", "--append", "one two"]);
        }
        words.extend(more);
        let output = self.hindsight(&words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
        assert_eq!(output.status.code(), Some(given.status), "{said} {summary}");
        assert_eq!(summary["exit"], "debug-exit");
        (std::fs::read_to_string(self.path("console")).unwrap(), summary)
    }
}

fn expected(given: Given) -> String {
    std::fs::read_to_string(sources().join(format!("{}.txt", given.name))).unwrap()
}

/// The kernel's findings are the right ones, the same with translations dropped at random, and the
/// same again in a replay.
fn finds_what_it_should(given: Given) {
    let place = Place::new();
    let Some(kernel) = place.kernel(given.name, true) else { return };
    let (console, summary) = place.run("run", &kernel, given, &[]);
    assert_eq!(console, expected(given));
    for chaos in ["1", "2"] {
        let (console, again) = place.run("run", &kernel, given, &["--chaos", chaos]);
        assert_eq!(console, expected(given), "chaos {chaos}");
        assert_eq!(
            (&again["instructions"], &again["state_hash"]),
            (&summary["instructions"], &summary["state_hash"])
        );
    }
    let (_, recorded) =
        place.run("record", &kernel, given, &["-o", "recording", "--checkpoint-every", "5000"]);
    let output = place.hindsight(&["replay", "recording", "--json", "--console", "console"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let replayed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(std::fs::read_to_string(place.path("console")).unwrap(), expected(given));
    for figure in ["instructions", "guest_seconds", "state_hash"] {
        assert_eq!(replayed[figure], recorded[figure], "{figure}");
    }
}

/// Lines that QEMU is right about.
fn comparable(console: &str) -> Vec<&str> {
    console.lines().filter(|line| !line.starts_with('!')).collect()
}

/// QEMU finds the same.
fn qemu_agrees(given: Given) {
    let place = Place::new();
    let Some(kernel) = place.kernel(given.name, false) else { return };
    if tool(Command::new("qemu-system-x86_64").arg("--version")).is_none() {
        return;
    }
    let mut qemu = Command::new("timeout");
    qemu.args(["120", "qemu-system-x86_64", "-kernel"])
        .arg(&kernel)
        .args(["-m", MEMORY, "-cpu", "max", "-display", "none"]);
    qemu.args(["-no-reboot", "-serial", "none", "-monitor", "none", "-nic", "none"]);
    qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon", "file:qemu"]);
    if given.files {
        qemu.args(["-initrd", "initrd", "-append", "one two"]);
    }
    let Some(output) = tool(qemu.current_dir(place.folder.path())) else { return };
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(given.status), "{said}");
    let theirs = std::fs::read_to_string(place.path("qemu")).unwrap();
    let (ours, _) = place.run("run", &kernel, given, &[]);
    assert_eq!(comparable(&ours), comparable(&theirs));
    assert!(comparable(&ours).len() > 8, "{ours}");
}

#[test]
fn a_kernel_walks_through_every_mode() {
    finds_what_it_should(MODES);
}

#[test]
fn a_kernel_pages_with_two_levels_and_with_pae() {
    finds_what_it_should(PAGING);
}

#[test]
fn protected_mode_raises_the_exceptions_of_the_manual() {
    finds_what_it_should(FAULTS);
}

#[test]
fn virtual_8086_mode_asks_iopl_and_the_io_map() {
    finds_what_it_should(VM86);
}

#[test]
fn tasks_switch_by_calls_jumps_gates_and_returns() {
    finds_what_it_should(TASKS);
}

#[test]
fn a_multiboot_kernel_gets_its_information() {
    finds_what_it_should(MULTIBOOT);
}

#[test]
fn a_pvh_kernel_gets_its_information() {
    finds_what_it_should(PVH);
}

/// In whatever mode a position is, it is one state, come to from the start, by a seek, or backwards.
#[test]
fn positions_in_every_mode_can_be_travelled_to() {
    let place = Place::new();
    for given in [MODES, FAULTS, VM86, TASKS] {
        let Some(kernel) = place.kernel(given.name, true) else { return };
        let folder = place.path(given.name);
        let more = ["-o", folder.to_str().unwrap(), "--checkpoint-every", "3000"];
        place.run("record", &kernel, given, &more);
        let open = || {
            let recording = Recording::open(&folder).unwrap();
            Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).unwrap()
        };
        let to = |at: u64| Until { position: Some(Position::from_count(at)), ..Until::default() };
        let mut straight = open();
        let places: Vec<u64> = (1..straight.end().count()).step_by(97).collect();
        let hashes: Vec<_> = places
            .iter()
            .map(|at| {
                assert_eq!(straight.run_until(&to(*at), &|| false).unwrap(), Pause::Position);
                straight.session_mut().state_hash().unwrap()
            })
            .collect();
        let mut travel = open();
        // Every place once, in an order of jumps.
        for turn in 0..places.len() {
            let n = turn * 59 % places.len();
            travel.seek(Position::from_count(places[n])).unwrap();
            assert_eq!(travel.session_mut().state_hash().unwrap(), hashes[n], "sought {}", places[n]);
            if n > 0 && turn % 8 == 0 {
                travel.run_back_until(&to(places[n - 1]), &|| false).unwrap();
                assert_eq!(
                    travel.session_mut().state_hash().unwrap(),
                    hashes[n - 1],
                    "back to {}",
                    places[n - 1]
                );
            }
        }
    }
}

#[test]
fn qemu_agrees_about_modes() {
    qemu_agrees(MODES);
}

#[test]
fn qemu_agrees_about_paging() {
    qemu_agrees(PAGING);
}

#[test]
fn qemu_agrees_about_exceptions() {
    qemu_agrees(FAULTS);
}

#[test]
fn qemu_agrees_about_virtual_8086_mode() {
    qemu_agrees(VM86);
}

#[test]
fn qemu_agrees_about_tasks() {
    qemu_agrees(TASKS);
}

#[test]
fn qemu_agrees_about_multiboot() {
    qemu_agrees(MULTIBOOT);
}

#[test]
fn qemu_agrees_about_pvh() {
    qemu_agrees(PVH);
}

#[test]
fn a_kernel_that_is_no_elf_file_is_loaded_by_its_multiboot_header() {
    let place = Place::new();
    let object = place.path("kludge.o");
    let source = sources().join("kludge.S");
    let Some(output) = tool(Command::new("gcc").args(["-m32", "-c"]).arg(source).arg("-o").arg(&object))
    else {
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let flat = place.path("kludge");
    let mut ld = Command::new("ld");
    ld.args(["-m", "elf_i386", "-Ttext", "0x200000", "-e", "start", "--oformat", "binary"]);
    let Some(output) = tool(ld.arg(object).arg("-o").arg(&flat)) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (console, _) = place.run("run", &flat, Given { name: "kludge", files: false, status: 7 }, &[]);
    assert_eq!(console, "loaded by its header\n");
}

#[test]
fn without_the_option_the_debug_ports_are_not_there() {
    let place = Place::new();
    let Some(kernel) = place.kernel("multiboot", true) else { return };
    let output = place.hindsight(&["run", "--kernel", kernel.to_str().unwrap(), "--memory", MEMORY]);
    assert!(output.stdout.is_empty());
    assert_eq!(output.status.code(), Some(0), "it halts for ever, which ends the run");
}

/// Debian's kernel and initrd; `None`, with a message, where they cannot be had.
fn debian() -> Option<guest::SmallGuest> {
    let cache = std::env::var_os("HINDSIGHT_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), PathBuf::from);
    let cache = guest::Cache::at(cache.join("hindsight"));
    guest::SmallGuest::obtain(&cache, guest::Flavour::Cloud, &mut |_| {})
        .inspect_err(|error| {
            assert!(!in_ci(), "no guest to test with: {error}");
            eprintln!("skipped, there is no guest to test with: {error}");
        })
        .ok()
}

#[test]
fn a_vmlinux_boots_through_its_pvh_entry() {
    let Some(debian) = debian() else { return };
    let place = Place::new();
    let image = std::fs::read(debian.kernel).unwrap();
    std::fs::write(place.path("vmlinux"), symbols::image::vmlinux(&image).unwrap()).unwrap();
    let initrd = debian.initrd.to_str().unwrap();
    // The kernel notes its loader's number; its PVH entry fills in 0xb0.
    let command = "grep -o one=two /proc/cmdline; \
        dd if=/sys/kernel/boot_params/data bs=1 skip=528 count=1 2>/dev/null | od -An -tx1; exit 42";
    let words = ["run", "--kernel", "vmlinux", "--initrd", initrd, "--append", "console=ttyS0 one=two quiet"];
    let output = place.hindsight(&[&words[..], &["--timeout", "120", "--", command]].concat());
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(42), "{said}");
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines, ["one=two", "b0"]);
}
