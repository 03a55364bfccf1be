//! What is compared, and how each of them is started.

use super::measure::Launch;
use super::rows::Group;
use super::workloads::Workloads;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Where rows run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// On the host, on one processor of it, as the guest has one.
    Native,
    /// `hindsight run`.
    Run,
    /// `hindsight record`.
    Record,
    /// `hindsight replay` of that.
    Replay,
    /// QEMU's translator, as it comes.
    QemuTcg,
    /// QEMU recording.
    QemuRecord,
    /// QEMU replaying that.
    QemuReplay,
}

impl System {
    /// All of them. A replay follows its recording.
    pub const ALL: [System; 7] = [
        System::Native,
        System::Run,
        System::Record,
        System::Replay,
        System::QemuTcg,
        System::QemuRecord,
        System::QemuReplay,
    ];

    /// Whether it is QEMU.
    pub fn is_qemu(self) -> bool {
        matches!(self, System::QemuTcg | System::QemuRecord | System::QemuReplay)
    }

    /// Whether it is Hindsight.
    pub fn is_ours(self) -> bool {
        matches!(self, System::Run | System::Record | System::Replay)
    }

    /// The recording system that this one needs to have run.
    pub fn replays(self) -> Option<System> {
        match self {
            System::QemuReplay => Some(System::QemuRecord),
            System::Replay => Some(System::Record),
            _ => None,
        }
    }
}

impl fmt::Display for System {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            System::Native => "native",
            System::QemuTcg => "qemu-tcg",
            System::QemuRecord => "qemu-record",
            System::QemuReplay => "qemu-replay",
            System::Run => "run",
            System::Record => "record",
            System::Replay => "replay",
        })
    }
}

/// Guest RAM in bytes.
pub const MEMORY_BYTES: u64 = 512 << 20;
/// A boot that takes this long hangs: usually, and with `--quick`.
const TIMEOUT: [Duration; 2] = [Duration::from_secs(3600), Duration::from_secs(1200)];
/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// One boot of a group's rows.
#[derive(Debug)]
pub struct Boot {
    /// Which rows.
    pub group: Group,
    /// Whether its rows have the sizes of `--quick`.
    pub quick: bool,
    /// What the guest's shell runs.
    pub script: String,
    /// The same rows for the host's shell.
    pub native_script: String,
    /// The kernel's command line.
    pub append: &'static str,
    /// Disk images, none of which is written to.
    pub disks: Vec<PathBuf>,
    /// The initial RAM disk with the workloads, and the one that has the job as well.
    pub initrd: PathBuf,
    /// See [`Self::initrd`].
    pub initrd_with_job: PathBuf,
    /// The host's port that leads to iperf3 in the guest.
    pub port: Option<u16>,
    /// How much the host's iperf3 sends, in MB.
    pub megabytes: u32,
    /// Where recordings of this boot go.
    pub folder: PathBuf,
}

impl Boot {
    /// Where a system's recording goes.
    pub fn recording(&self, system: System) -> PathBuf {
        self.folder.join(if system.is_qemu() { "qemu.rr" } else { "recording" })
    }
}

/// The process that runs `boot` on `system`.
pub fn launch(system: System, boot: &Boot, workloads: &Workloads) -> Launch {
    let command = match system {
        System::Native => native(boot, workloads),
        System::QemuTcg | System::QemuRecord | System::QemuReplay => qemu(system, boot, workloads),
        System::Run | System::Record => ours(system, boot, workloads),
        System::Replay => {
            let mut command = Command::new(&workloads.hindsight);
            command.args(["replay", "--json", "--console", "/dev/stderr"]).arg(boot.recording(system));
            command
        }
    };
    Launch {
        command,
        marks_on_stderr: system.is_ours(),
        guest_ram: system.is_ours().then_some(MEMORY_BYTES),
        timeout: TIMEOUT[usize::from(boot.quick)],
    }
}

fn native(boot: &Boot, workloads: &Workloads) -> Command {
    // The guest has one processor, and two would take turns differently.
    let mut command = Command::new("taskset");
    command.args(["-c", &workloads.processor.to_string()]);
    match (boot.group, &workloads.root) {
        (Group::Root, Some(root)) => {
            command.args(["unshare", "--mount", "--net"]);
            if !workloads.is_superuser {
                command.arg("--map-root-user");
            }
            command
                .args(["sh", "-c", ENTER_ROOT, "sh"])
                .arg(&root.folder)
                .arg(&workloads.programs)
                .arg(&boot.folder);
        }
        _ => {
            command.args(["sh", "-c", &boot.native_script]);
            command.env("B", &workloads.programs).env("W", &boot.folder);
        }
    }
    command
}

/// Enters the folder of the root image as the guest enters the image: `sh ROOT PROGRAMS BOOT`.
const ENTER_ROOT: &str = "set -e; \
    mkdir -p $1/bench; mount --bind $2 $1/bench; mount -t tmpfs tmpfs $1/bench/work; cp $3/rows.sh $1/bench/work; \
    mount --rbind /dev $1/dev; mount --rbind /proc $1/proc; \
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin B=/bench W=/bench/work HOME=/root; \
    chroot $1 ip link set lo up; exec chroot $1 /bin/sh /bench/work/rows.sh";

fn ours(system: System, boot: &Boot, workloads: &Workloads) -> Command {
    let mut command = Command::new(&workloads.hindsight);
    let memory = format!("{}M", MEMORY_BYTES >> 20);
    command.args([&system.to_string(), "--json", "--console", "/dev/stderr", "--memory", &memory]);
    command.arg("--kernel").arg(&workloads.kernel).arg("--initrd").arg(&boot.initrd);
    command.args(["--append", boot.append]);
    for disk in &boot.disks {
        command.arg("--disk").arg(disk);
    }
    if let Some(port) = boot.port {
        command.args(["--net", "user", "--forward", &format!("{port}:5201")]);
    }
    if system == System::Record {
        command.arg("--output").arg(boot.recording(system));
    }
    command.args(["--", &boot.script]);
    command
}

fn qemu(system: System, boot: &Boot, workloads: &Workloads) -> Command {
    let mut command = Command::new(QEMU);
    command.args(["-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg"]);
    // All that its translator can do, but four levels of page tables, as ours has.
    command.args(["-cpu", "max,la57=off", "-smp", "1", "-m", &format!("{}M", MEMORY_BYTES >> 20)]);
    command.args(["-display", "none", "-monitor", "none", "-no-reboot"]);
    command.args(["-serial", "stdio", "-serial", "null"]);
    command.arg("-kernel").arg(&workloads.kernel).arg("-initrd").arg(&boot.initrd_with_job);
    command.args(["-append", boot.append]);
    let mode = match system {
        System::QemuRecord => Some("record"),
        System::QemuReplay => Some("replay"),
        _ => None,
    };
    if let Some(mode) = mode {
        let file = boot.recording(system);
        command.args(["-icount", &format!("shift=auto,rr={mode},rrfile={}", comma(&file))]);
    }
    for (n, disk) in boot.disks.iter().enumerate() {
        let file = comma(disk);
        command.args(["-drive", &format!("file={file},format=raw,if=none,snapshot=on,id=disk{n}")]);
        let mut id = format!("disk{n}");
        if mode.is_some() {
            let through = format!("driver=blkreplay,if=none,image={id},id=replay{n}");
            command.args(["-drive", &through]);
            id = format!("replay{n}");
        }
        command.args(["-device", &format!("virtio-blk-pci,drive={id}")]);
    }
    if let Some(port) = boot.port {
        command.args(["-netdev", &format!("user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:5201")]);
        command.args(["-device", "virtio-net-pci,netdev=net0"]);
        if mode.is_some() {
            command.args(["-object", "filter-replay,id=filter0,netdev=net0"]);
        }
    }
    command
}

/// A path in an option of QEMU's, where a comma is written twice.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replay_follows_its_recording() {
        for (n, system) in System::ALL.iter().enumerate() {
            if let Some(recorded) = system.replays() {
                assert_eq!(System::ALL.iter().position(|other| *other == recorded), Some(n - 1));
            }
        }
    }

    #[test]
    fn a_comma_in_a_path_is_not_an_option() {
        assert_eq!(comma(Path::new("/a,b")), "/a,,b");
    }
}
