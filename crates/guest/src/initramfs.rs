//! The initramfs of the small guest: busybox, the modules of a virtual machine, and our init.
//!
//! The same archive serves both ways: as a system of its own, and to reach a root disk (see
//! `files/init`). It is left uncompressed: unpacking would cost every boot guest instructions.

use crate::modules::Module;
use crate::{Archive, GuestError};
use std::io;

/// The modules a guest of ours can use, in the spelling of [`crate::modules::ModuleTree::load_order`].
pub const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio-rng",
    "pvpanic-mmio?",
    "crc32c_generic?",
    "crc32c-intel?",
    "ext4",
];

const INIT: &str = include_str!("files/init");
const UDHCPC: &str = include_str!("files/udhcpc.script");
/// The script that runs a job; root images have it too.
pub const JOB: &str = include_str!("files/hindsight-job");

/// Stands for everything in the archive that does not come from a package: when it changes,
/// cached archives are stale.
pub fn recipe() -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [INIT, JOB, UDHCPC, PROFILE].iter().chain(MODULES) {
        hasher.update(part.as_bytes());
        hasher.update(&[0]);
    }
    hasher.finalize().to_hex()[..8].to_owned()
}

const PROFILE: &str = "PS1='\\w \\$ '\nalias ll='ls -l'\n";

/// Builds the archive.
///
/// `applets` are the names under which `busybox` is called; `modules` are in loading order, for the
/// kernel that calls itself `version`.
pub fn build(
    busybox: &[u8],
    applets: &[String],
    version: &str,
    modules: &[Module],
) -> Result<Vec<u8>, GuestError> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "sys", "run", "root", "tmp", "mnt", "var/log", "sbin"] {
        archive.folder(folder);
    }
    // The kernel opens this one for init before init can mount /dev.
    archive.char_device("dev/console", 0o600, 5, 1);
    archive.file("bin/busybox", 0o755, busybox);
    for applet in applets.iter().filter(|applet| *applet != "busybox" && !applet.contains('/')) {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    archive.file("init", 0o755, INIT);
    archive.link("sbin/poweroff", "../bin/busybox");
    archive.link("sbin/reboot", "../bin/busybox");
    archive.file("bin/hindsight-job", 0o755, JOB);
    archive.file("etc/udhcpc.script", 0o755, UDHCPC);
    archive.file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n");
    archive.file("etc/group", 0o644, "root:x:0:\n");
    archive.file("etc/hosts", 0o644, "127.0.0.1 localhost hindsight\n");
    archive.file("etc/profile", 0o644, PROFILE);
    archive.file("lib/modules/version", 0o644, format!("{version}\n"));
    let mut order = String::new();
    for module in modules {
        archive.file(&format!("lib/modules/{}.ko", module.name), 0o644, module.content.as_slice());
        order += &format!("{} {}\n", module.name, if module.optional { "optional" } else { "needed" });
    }
    archive.file("lib/modules/order", 0o644, order);
    archive.to_bytes().map_err(|source: io::Error| GuestError::Io { path: "initramfs".into(), source })
}
