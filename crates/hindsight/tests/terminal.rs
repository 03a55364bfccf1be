//! A user's terminal is afterwards as it was before, however the run ends.

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

/// A kernel by its header, with nothing in it: it passes the checks and dies in the machine.
fn hollow_kernel(path: &Path) {
    let mut kernel = vec![0; 8192];
    kernel[0x1f1] = 1;
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    kernel[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    kernel[0x260..0x264].copy_from_slice(&(16u32 << 20).to_le_bytes());
    std::fs::write(path, kernel).unwrap();
}

/// A pseudo-terminal: its master, and its slave as three standard streams.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (master.into(), slave)
}

#[test]
fn the_terminal_is_restored_when_the_machine_fails() {
    let folder = tempfile::tempdir().unwrap();
    hollow_kernel(&folder.path().join("kernel"));
    let (_master, slave) = terminal();
    let before = tcgetattr(&slave).unwrap();
    assert!(before.local_modes.contains(LocalModes::ICANON | LocalModes::ECHO));
    let stream = || Stdio::from(slave.try_clone().unwrap());
    let status = Command::new(env!("CARGO_BIN_EXE_hindsight"))
        .args(["run", "--kernel", "kernel", "--timeout", "20"])
        .current_dir(folder.path())
        .env("HOME", folder.path())
        .stdin(stream())
        .stdout(stream())
        .stderr(stream())
        .status()
        .unwrap();
    assert!(!status.success());
    let after = tcgetattr(&slave).unwrap();
    assert_eq!(format!("{before:?}"), format!("{after:?}"));
}
