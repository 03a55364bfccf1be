//! Root images: a whole Debian on an ext4 disk, made without root and without mounting anything.
//!
//! mmdebstrap resolves and unpacks the packages into a tar archive (in whatever way this host
//! allows: as root, in a user namespace, or under fakechroot); our own files make it a guest; and
//! `mkfs.ext4 -d` turns the folder into a file system. Where the user is not root, fakeroot keeps
//! the owners of files between unpacking and packing.

use crate::{GuestError, Notice, initramfs, tool};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The label of our root file systems, by which `--disk` alone is enough to boot one.
pub const LABEL: &str = "hindsight-root";

/// Fixed, so that the same packages give the same file system.
const UUID: &str = "68696e64-7369-6768-7400-000000000001";
const MACHINE_ID: &str = "68696e6473696768740000000000002a\n";
/// A moment for all time stamps, in seconds since 1970: 2024-01-01.
const EPOCH: &str = "1704067200";

/// What a guest needs besides Debian's minimal system.
const BASE_PACKAGES: &[&str] =
    &["systemd-sysv", "systemd-resolved", "udev", "dbus", "kmod", "procps", "iproute2", "ca-certificates"];

/// Units that would wake the guest by themselves, or wait for what may not come.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "logrotate.timer",
    "man-db.timer",
    "systemd-networkd-wait-online.service",
    "systemd-tmpfiles-clean.timer",
];

const ENABLED: &[&str] = &["systemd-networkd.service", "hindsight-command.service"];

const NETWORK: &str = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\n";

const AUTOLOGIN: &str = "\
[Unit]
# With a command from the host, the console is the command's.
ConditionPathExists=!/run/hindsight/command
ConditionKernelCommandLine=!hindsight.command

[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200,57600,38400,9600 - $TERM
";

/// What image to make.
#[derive(Clone, Debug)]
pub struct ImageOptions {
    /// The file to make.
    pub out: PathBuf,
    /// The disk's size in bytes.
    pub bytes: u64,
    /// Packages besides the base system.
    pub packages: Vec<String>,
    /// Which Debian, such as `bookworm`.
    pub suite: String,
    /// Where packages come from; Debian's own mirror when `None`.
    pub mirror: Option<String>,
    /// Whether an existing file is replaced.
    pub replace: bool,
}

impl ImageOptions {
    fn check(&self) -> Result<(), GuestError> {
        let refuse = |line: String| Err(GuestError::Usage(line));
        // Debian Policy 5.6.7, and nothing that a program could take for an option.
        let is_name = |name: &String| {
            name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+-.".contains(c))
        };
        if let Some(name) = self.packages.iter().chain([&self.suite]).find(|name| !is_name(name)) {
            return refuse(format!("{name:?} is not the name of a package or a suite"));
        }
        if self.mirror.as_ref().is_some_and(|mirror| !mirror.contains("://") || mirror.starts_with('-')) {
            return refuse("a mirror is a URL".to_owned());
        }
        if !self.bytes.is_multiple_of(4096) || self.bytes < 64 << 20 {
            return refuse("a disk has at least 64M, in whole blocks of 4K".to_owned());
        }
        if self.out.is_dir() || self.out.file_name().is_none() {
            return refuse(format!("{} is a folder; name a file", self.out.display()));
        }
        if self.out.exists() && !self.replace {
            return refuse(format!("{} exists; --force replaces it", self.out.display()));
        }
        let parent = self.out.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent.filter(|parent| !parent.is_dir()) {
            return refuse(format!("there is no folder {}", parent.display()));
        }
        Ok(())
    }
}

/// Whether the disk starts with a root file system made here (ext4, kernel documentation,
/// "Super Block": magic at 0x38, volume name at 0x78).
pub fn is_root(disk: &File) -> bool {
    let mut block = [0; 0x88];
    disk.read_exact_at(&mut block, 1024).is_ok()
        && block[0x38..0x3a] == [0x53, 0xef]
        && block[0x78..0x88].split(|byte| *byte == 0).next() == Some(LABEL.as_bytes())
}

/// Makes the image. It appears under its name when it is complete.
pub fn make(options: &ImageOptions, notice: Notice) -> Result<(), GuestError> {
    options.check()?;
    let is_root = rustix::process::geteuid().is_root();
    let mut needed = vec![("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs"), ("tar", "tar")];
    if !is_root {
        needed.push(("fakeroot", "fakeroot"));
    }
    for (tool, package) in needed {
        if !tool::exists(tool) {
            return Err(GuestError::NoTool { tool: tool.to_owned(), package });
        }
    }
    let work = Work::beside(&options.out)?;
    notice(&format!(
        "fetching and unpacking Debian {} ({} packages and what they need)",
        options.suite,
        BASE_PACKAGES.len() + options.packages.len()
    ));
    fetch(options, &work)?;
    notice("adding what makes it a guest");
    add_ours(&work.0.join("ours"))?;
    notice("making the file system");
    let image = work.0.join("image");
    make_file_system(options, &work, &image, is_root)?;
    fs::rename(&image, &options.out).map_err(GuestError::at(&options.out))
}

/// A folder to work in, on the same file system as the result; it goes away with the value.
struct Work(PathBuf);

impl Work {
    fn beside(out: &Path) -> Result<Self, GuestError> {
        let name = out.file_name().unwrap_or_default().to_string_lossy();
        let path = out.with_file_name(format!(".{name}.{}", std::process::id()));
        fs::create_dir(&path).map_err(GuestError::at(&path))?;
        // Whatever the folder's name is relative to, the programs run elsewhere.
        fs::canonicalize(&path).map(Self).map_err(GuestError::at(&path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn fetch(options: &ImageOptions, work: &Work) -> Result<(), GuestError> {
    let packages = BASE_PACKAGES.iter().copied().chain(options.packages.iter().map(String::as_str));
    let mut command = Command::new("mmdebstrap");
    command.args([
        "--quiet",
        "--variant=minbase",
        "--architectures=amd64",
        "--aptopt=Acquire::Retries \"2\"",
    ]);
    command.arg(format!("--include={}", packages.collect::<Vec<_>>().join(",")));
    for unread in ["doc/*", "man/*", "locale/*", "info/*"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{unread}"));
    }
    command.arg(&options.suite).arg(work.0.join("root.tar")).args(&options.mirror);
    command.env("SOURCE_DATE_EPOCH", EPOCH).current_dir(&work.0);
    let missing = || GuestError::NoTool { tool: "mmdebstrap".into(), package: "mmdebstrap" };
    tool::run(&mut command, "mmdebstrap", missing).map(drop).map_err(|error| match error {
        GuestError::Tool { reason, .. } if reason.contains("unable to pick chroot mode") => {
            GuestError::NoTool { tool: "fakechroot (for work without root)".into(), package: "fakechroot" }
        }
        other => other,
    })
}

/// Writes the files that make a Debian a guest of ours.
fn add_ours(root: &Path) -> Result<(), GuestError> {
    let file = |name: &str, mode: u32, content: &str| {
        let path = root.join(name);
        let write = || {
            fs::create_dir_all(path.parent().unwrap_or(root))?;
            fs::write(&path, content)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))
        };
        write().map_err(GuestError::at(&path))
    };
    let link = |name: &str, target: &str| {
        let path = root.join(name);
        let make = || {
            fs::create_dir_all(path.parent().unwrap_or(root))?;
            std::os::unix::fs::symlink(target, &path)
        };
        make().map_err(GuestError::at(&path))
    };
    file("etc/hostname", 0o644, "hindsight\n")?;
    file("etc/hosts", 0o644, "127.0.0.1 localhost hindsight\n::1 localhost\n")?;
    file("etc/machine-id", 0o444, MACHINE_ID)?;
    file("etc/fstab", 0o644, "/dev/vda / ext4 rw,relatime 0 0\n")?;
    file("etc/systemd/network/20-ether.network", 0o644, NETWORK)?;
    file("etc/systemd/system/serial-getty@ttyS0.service.d/hindsight.conf", 0o644, AUTOLOGIN)?;
    let service = include_str!("files/hindsight-command.service");
    file("etc/systemd/system/hindsight-command.service", 0o644, service)?;
    file("usr/lib/hindsight/hindsight-command", 0o755, include_str!("files/hindsight-command"))?;
    file("usr/lib/hindsight/hindsight-job", 0o755, initramfs::JOB)?;
    for unit in MASKED {
        link(&format!("etc/systemd/system/{unit}"), "/dev/null")?;
    }
    for unit in ENABLED {
        let folder = if *unit == "hindsight-command.service" { "/etc" } else { "/lib" };
        let target = format!("{folder}/systemd/system/{unit}");
        link(&format!("etc/systemd/system/multi-user.target.wants/{unit}"), &target)?;
    }
    Ok(())
}

fn make_file_system(
    options: &ImageOptions,
    work: &Work,
    image: &Path,
    is_root: bool,
) -> Result<(), GuestError> {
    File::create(image).and_then(|file| file.set_len(options.bytes)).map_err(GuestError::at(image))?;
    let mkfs = tool::find("mkfs.ext4").unwrap_or_else(|| "mkfs.ext4".into());
    let script = include_str!("files/make-image");
    let mut command = Command::new(if is_root { "sh" } else { "fakeroot" });
    if !is_root {
        command.args(["--", "sh"]);
    }
    command.args(["-c", script, "make-image"]).arg(&work.0).arg(image).arg(mkfs);
    // Nothing is left to be written by the guest's kernel in the background after the first mount.
    let extended = format!("hash_seed={UUID},root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0");
    command.args(["-q", "-F", "-L", LABEL, "-U", UUID, "-E", &extended, "-m", "0"]);
    command.env("E2FSPROGS_FAKE_TIME", EPOCH).env("SOURCE_DATE_EPOCH", EPOCH);
    let missing = || GuestError::NoTool { tool: "fakeroot".into(), package: "fakeroot" };
    tool::run(&mut command, "mkfs.ext4", missing).map(drop).map_err(|error| match error {
        GuestError::Tool { reason, .. } if reason.contains("allocate") || reason.contains("No space") => {
            GuestError::Usage(format!("the packages do not fit on the disk: {reason}; use a larger --size"))
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(out: &Path) -> ImageOptions {
        ImageOptions {
            out: out.to_path_buf(),
            bytes: 1 << 30,
            packages: vec!["gcc".into(), "g++-12".into()],
            suite: "bookworm".into(),
            mirror: None,
            replace: false,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_fetched() {
        let folder = tempfile::tempdir().unwrap();
        let good = options(&folder.path().join("out"));
        good.check().unwrap();
        let refused = |change: &dyn Fn(&mut ImageOptions)| {
            let mut options = good.clone();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        assert!(refused(&|o| o.packages.push("--hook=x".into())).contains("not the name"));
        assert!(refused(&|o| o.packages.push(String::new())).contains("not the name"));
        assert!(refused(&|o| o.suite = "-x".into()).contains("not the name"));
        assert!(refused(&|o| o.mirror = Some("x".into())).contains("URL"));
        assert!(refused(&|o| o.bytes = 1 << 20).contains("64M"));
        assert!(refused(&|o| o.out = folder.path().into()).contains("is a folder"));
        assert!(refused(&|o| o.out = folder.path().join("no/out")).contains("there is no folder"));
        fs::write(&good.out, "x").unwrap();
        assert!(good.check().unwrap_err().to_string().contains("--force"));
    }

    #[test]
    fn a_root_disk_is_known_by_its_label() {
        let folder = tempfile::tempdir().unwrap();
        let known = |label: &str| {
            let path = folder.path().join("disk");
            File::create(&path).unwrap().set_len(8 << 20).unwrap();
            let mkfs = tool::find("mkfs.ext4").expect("mkfs.ext4, from e2fsprogs");
            let made = Command::new(mkfs).args(["-q", "-F", "-L", label]).arg(&path).status().unwrap();
            assert!(made.success());
            is_root(&File::open(&path).unwrap())
        };
        assert!(known(LABEL));
        assert!(!known("hindsight-roo"));
        let zeros = folder.path().join("zeros");
        fs::write(&zeros, [0; 4096]).unwrap();
        assert!(!is_root(&File::open(zeros).unwrap()));
    }
}
