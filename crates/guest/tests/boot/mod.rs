//! Boots a guest under QEMU's translator: our machine is not trusted to judge what the guest maker
//! makes. Needs apt and QEMU, as CI has them; `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

#![allow(dead_code)] // each test file needs some of it

use guest::job::{self, Job, Report, ReportReader};
use guest::{Cache, Flavour, SmallGuest};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SECONDS_MAX: &str = "240";

/// The small guest, from the tests' own cache.
pub fn small_guest(flavour: Flavour) -> SmallGuest {
    let folder = std::env::var_os("HINDSIGHT_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), PathBuf::from);
    SmallGuest::obtain(&Cache::at(folder), flavour, &mut |line| eprintln!("{line}")).unwrap()
}

/// What to boot besides the small guest.
pub struct Boot<'a> {
    pub append: &'a str,
    pub job: Option<Job>,
    pub input: &'a [u8],
    pub disk: Option<&'a Path>,
}

/// What a boot showed: the console's bytes and the reports on the second port.
pub struct Shown {
    pub console: Vec<u8>,
    pub reports: Vec<Report>,
}

impl Boot<'_> {
    pub fn run(&self, guest: &SmallGuest) -> Shown {
        let folder = tempfile::tempdir().unwrap();
        let initrd = folder.path().join("initrd");
        let mut bytes = std::fs::read(&guest.initrd).unwrap();
        if let Some(job) = &self.job {
            bytes = job::attach(bytes, job).unwrap();
        }
        std::fs::write(&initrd, bytes).unwrap();
        let report = folder.path().join("report");
        let mut qemu = self.start(guest, &initrd, &report);
        let mut stdin = qemu.stdin.take().unwrap();
        if !self.input.is_empty() {
            // The guest empties the port when it opens it; it says when it has.
            while !std::fs::read(&report).is_ok_and(|bytes| bytes.starts_with(b"ready")) {
                assert!(qemu.try_wait().unwrap().is_none(), "the guest ended before it was ready");
                std::thread::sleep(Duration::from_millis(20));
            }
            stdin.write_all(self.input).unwrap();
        }
        let output = qemu.wait_with_output().unwrap();
        drop(stdin);
        let console = output.stdout;
        assert!(output.status.success(), "QEMU: {}\n{}", output.status, String::from_utf8_lossy(&console));
        let mut reader = ReportReader::new();
        let reports =
            std::fs::read(&report).unwrap().into_iter().filter_map(|byte| reader.byte(byte)).collect();
        Shown { console, reports }
    }

    fn start(&self, guest: &SmallGuest, initrd: &Path, report: &Path) -> Child {
        let mut command = Command::new("timeout");
        command.args([SECONDS_MAX, "qemu-system-x86_64", "-m", "512", "-nodefaults", "-no-user-config"]);
        command.args(["-display", "none", "-no-reboot", "-accel", "tcg", "-cpu", "max"]);
        command.args(["-serial", "stdio", "-serial"]).arg(format!("file:{}", report.display()));
        command.arg("-kernel").arg(&guest.kernel).arg("-initrd").arg(initrd).args(["-append", self.append]);
        if let Some(disk) = self.disk {
            let drive = format!("file={},format=raw,if=virtio,snapshot=on", disk.display());
            command.args(["-drive", &drive]);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("timeout and QEMU")
    }
}
