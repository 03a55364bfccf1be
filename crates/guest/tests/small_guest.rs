//! The small guest, fetched from Debian and booted under QEMU: our machine is not trusted to
//! judge it, and it must not depend on our machine.
//!
//! Needs apt and QEMU, as CI has them; `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

use guest::job::{self, Job, Mode, Report, ReportReader};
use guest::{Cache, Flavour, SmallGuest};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn small_guest(flavour: Flavour) -> SmallGuest {
    let folder = std::env::var_os("HINDSIGHT_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), std::path::PathBuf::from);
    SmallGuest::obtain(&Cache::at(folder), flavour, &mut |line| eprintln!("{line}")).unwrap()
}

/// What a boot showed: the console's bytes and the reports on the second port.
struct Boot {
    console: Vec<u8>,
    reports: Vec<Report>,
}

fn boot(guest: &SmallGuest, job: Option<Job>, append: &str, input: &[u8]) -> Boot {
    let folder = tempfile::tempdir().unwrap();
    let initrd = folder.path().join("initrd");
    let plain = std::fs::read(&guest.initrd).unwrap();
    std::fs::write(&initrd, job.map_or(Ok(plain.clone()), |job| job::attach(plain, &job)).unwrap()).unwrap();
    let report = folder.path().join("report");
    let mut qemu = Command::new("timeout")
        .args([
            "120",
            "qemu-system-x86_64",
            "-m",
            "256",
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
        ])
        .args(["-no-reboot", "-accel", "tcg", "-cpu", "max", "-serial", "stdio", "-serial"])
        .arg(format!("file:{}", report.display()))
        .arg("-kernel")
        .arg(&guest.kernel)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", append])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = qemu.stdin.take().unwrap();
    if !input.is_empty() {
        // The guest empties the port when it opens it; it says when it has.
        while !std::fs::read(&report).is_ok_and(|bytes| bytes.starts_with(b"ready")) {
            assert!(qemu.try_wait().unwrap().is_none(), "the guest ended before it was ready");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        stdin.write_all(input).unwrap();
    }
    let output = qemu.wait_with_output().unwrap();
    drop(stdin);
    assert!(output.status.success(), "QEMU: {}", output.status);
    let mut reader = ReportReader::new();
    let reports = std::fs::read(&report).unwrap().into_iter().filter_map(|byte| reader.byte(byte)).collect();
    Boot { console: output.stdout, reports }
}

const SILENT: &str = "console=ttyS0 loglevel=1";

#[test]
fn a_command_runs_with_exact_output_and_its_exit_status() {
    let guest = small_guest(Flavour::Cloud);
    let script = "printf 'one\\ntwo\\r\\n\\tthree\\0\\377'; cat; echo to stderr >&2; exit 42";
    let job = Job { script: script.to_owned(), mode: Mode::Batch };
    let boot = boot(&guest, Some(job), SILENT, b"");
    assert_eq!(boot.console, b"one\ntwo\r\n\tthree\0\xffto stderr\n");
    assert_eq!(boot.reports, [Report::Ready, Report::Exit(42)]);
}

#[test]
fn a_command_reads_what_is_piped_to_it() {
    let guest = small_guest(Flavour::Cloud);
    let words = ["sh", "-c", "wc -c; kill -9 $$"].map(str::to_owned);
    let job = Job::from_words(&words, Mode::Pipe);
    let boot = boot(&guest, Some(job), SILENT, b"\x03four\r\n\x7fmore\n\x04");
    assert_eq!(String::from_utf8_lossy(&boot.console), "13\nKilled\n");
    assert_eq!(boot.reports, [Report::Ready, Report::Exit(128 + 9)]);
}

#[test]
fn both_kernels_load_all_modules_without_complaint() {
    for flavour in [Flavour::Cloud, Flavour::Generic] {
        let guest = small_guest(flavour);
        let script = "cut -d' ' -f1 /proc/modules; grep -w ext4 /proc/filesystems";
        let job = Job { script: script.to_owned(), mode: Mode::Batch };
        let boot = boot(&guest, Some(job), "console=ttyS0", b"");
        let log = String::from_utf8_lossy(&boot.console).into_owned();
        for module in ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "ext4"] {
            assert!(log.lines().any(|line| line.trim() == module), "no {module} in:\n{log}");
        }
        for bad in ["does not load", "WARNING", "BUG", "Call Trace", "not found", "Unknown symbol"] {
            assert!(!log.contains(bad), "{bad} in:\n{log}");
        }
        assert_eq!(boot.reports, [Report::Ready, Report::Exit(0)]);
    }
}
