//! What the rows need: programs, guests, images. Made once and kept below cargo's target folder.

use super::rows::{Group, Row};
use super::script;
use super::systems::Boot;
use crate::{Result, workspace};
use guest::job::{Job, Mode};
use guest::{Archive, Cache, Flavour, SmallGuest};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Packages of the root image, besides the base system.
const PACKAGES: &[&str] = &[
    "gcc",
    "gzip",
    "iperf3",
    "libc6-dev",
    "openssl",
    "python3",
    "redis-server",
    "sqlite3",
    "xz-utils",
    "zstd",
];
const ROOT_BYTES: u64 = 2 << 30;
const SCRATCH_BYTES: u64 = 256 << 20;

/// Debian on a disk, and the same files in a folder of the host.
#[derive(Debug)]
pub struct Root {
    /// The disk's image.
    pub image: PathBuf,
    /// Its files.
    pub folder: PathBuf,
}

/// Everything that is there before the first row runs.
#[derive(Debug)]
pub struct Workloads {
    /// Our release binary.
    pub hindsight: PathBuf,
    /// Debian's cloud kernel.
    pub kernel: PathBuf,
    /// The small guest's initial RAM disk.
    initrd: PathBuf,
    /// A folder with the workloads' programs.
    pub programs: PathBuf,
    /// When a row needs it.
    pub root: Option<Root>,
    /// An empty disk, when a row needs it.
    scratch: Option<PathBuf>,
    /// The host's processor for native rows.
    pub processor: usize,
    /// Whether namespaces need no mapping.
    pub is_superuser: bool,
    work: PathBuf,
    /// Held as long as the files below `work` are used.
    _lock: File,
}

impl Workloads {
    /// Builds what `rows` need.
    ///
    /// # Errors
    /// What could not be built.
    pub fn prepare(rows: &[Row]) -> Result<Self> {
        workspace::run("cargo", &["build", "--release", "--locked", "--package", "hindsight"], &[])?;
        let target = workspace::target()?;
        let work = target.join("bench");
        fs::create_dir_all(&work).map_err(at(&work))?;
        let lock = File::create(work.join("lock")).map_err(at(&work))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| format!("{}: another cargo xtask bench is running", work.display()))?;
        let mut notice = |line: &str| eprintln!("xtask: {line}");
        let small =
            Cache::of_user().and_then(|cache| SmallGuest::obtain(&cache, Flavour::Cloud, &mut notice));
        let small = small.map_err(|error| error.to_string())?;
        let needs = |group: &dyn Fn(Group) -> bool| rows.iter().any(|row| group(row.group));
        let root = needs(&Group::needs_root).then(|| root(&work)).transpose()?;
        // A copy, so that a build in the meantime does not change what is measured.
        let hindsight = work.join("hindsight");
        let _ = fs::remove_file(&hindsight);
        fs::copy(target.join("release/hindsight"), &hindsight).map_err(at(&hindsight))?;
        let programs = programs(&work, root.as_ref())?;
        let scratch = needs(&|group| group == Group::Disk).then(|| scratch(&work)).transpose()?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            hindsight,
            kernel: small.kernel,
            initrd: small.initrd,
            programs,
            root,
            scratch,
            processor: processors - 1,
            is_superuser: rustix::process::geteuid().is_root(),
            work,
            _lock: lock,
        })
    }

    /// One boot that runs `rows`, all of one group.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn boot(&self, group: Group, rows: &[Row], quick: bool) -> Result<Boot> {
        let folder = self.work.join(format!("boot-{group}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let text = script::rows(rows, quick);
        write(&folder.join("rows.sh"), text.as_bytes())?;
        let up = script::UP;
        let enter = match group {
            Group::Small | Group::Disk => "B=/bench W=/tmp; . /bench/work/rows.sh",
            Group::Root | Group::Network => ENTER_DISK,
            Group::Systemd => "true",
        };
        let script = format!("{up}\n{enter}\ntrue\n");
        let mut initrd = fs::read(&self.initrd).map_err(at(&self.initrd))?;
        if group != Group::Systemd {
            initrd = guest::join(initrd, &self.archive(&text)?);
        }
        let job = Job::from_words(std::slice::from_ref(&script), Mode::Batch);
        let with_job = guest::job::attach(initrd.clone(), &job).map_err(|error| error.to_string())?;
        let paths = [folder.join("initrd"), folder.join("initrd-with-job")];
        write(&paths[0], &initrd)?;
        write(&paths[1], &with_job)?;
        let disks = match group {
            Group::Small => None,
            Group::Disk => self.scratch.clone(),
            Group::Root | Group::Network | Group::Systemd => {
                self.root.as_ref().map(|root| root.image.clone())
            }
        };
        let [initrd, initrd_with_job] = paths;
        Ok(Boot {
            group,
            quick,
            script,
            native_script: format!("{up}\n{text}\ntrue\n"),
            append: match group {
                Group::Systemd => "console=ttyS0 quiet loglevel=1 root=/dev/vda rw systemd.show_status=false",
                _ => "console=ttyS0 quiet loglevel=1",
            },
            disks: disks.into_iter().collect(),
            initrd,
            initrd_with_job,
            megabytes: rows.first().map_or(0, |row| row.amount[usize::from(quick)]),
            port: (group == Group::Network).then(free_port).transpose()?,
            folder,
        })
    }

    /// The programs and the script of a boot as an archive for the initramfs.
    fn archive(&self, rows: &str) -> Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.file("bench/work/rows.sh", 0o644, rows);
        for entry in fs::read_dir(&self.programs).map_err(at(&self.programs))? {
            let path = entry.map_err(at(&self.programs))?.path();
            if path.is_file() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                archive.file(&format!("bench/{name}"), 0o755, fs::read(&path).map_err(at(&path))?);
            }
        }
        archive.to_bytes().map_err(at(&self.programs))
    }
}

/// Enters the root disk from the initramfs, with the workloads in memory.
const ENTER_DISK: &str = "\
    mount -t ext4 /dev/vda /mnt && for folder in dev proc sys; do mount -o bind /$folder /mnt/$folder; done
    mkdir -p /mnt/bench && mount -t tmpfs tmpfs /mnt/bench && cp -r /bench/* /mnt/bench
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin:/bin B=/bench W=/bench/work HOME=/root
    chroot /mnt /bin/sh /bench/work/rows.sh";

fn at(path: &Path) -> impl Fn(std::io::Error) -> String {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

fn write(path: &Path, bytes: &[u8]) -> Result {
    fs::write(path, bytes).map_err(at(path))
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

fn checked(command: &mut Command) -> Result {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)))
}

/// Compiles `bench/guest/*.c` into static programs; the one that uses the root's OpenSSL there.
fn programs(work: &Path, root: Option<&Root>) -> Result<PathBuf> {
    let folder = work.join("programs");
    // A mount point for native rows, which see the same folder.
    fs::create_dir_all(folder.join("work")).map_err(at(&folder))?;
    let sources = workspace::root().join("bench/guest");
    for entry in fs::read_dir(&sources).map_err(at(&sources))? {
        let source = entry.map_err(at(&sources))?.path();
        let name = source.file_stem().unwrap_or_default().to_owned();
        match source.extension().and_then(|end| end.to_str()) {
            Some("c") if name != "crypto" => {
                let mut gcc = Command::new("gcc");
                gcc.args(["-O2", "-static", "-Wall", "-o"]).arg(folder.join(name)).arg(&source);
                checked(&mut gcc)?;
            }
            Some("py") => {
                fs::copy(&source, folder.join("program.py")).map_err(at(&source))?;
            }
            _ => {}
        }
    }
    if let Some(root) = root {
        let inside = root.folder.join("root");
        for name in ["bench.h", "crypto.c"] {
            fs::copy(sources.join(name), inside.join(name)).map_err(at(&inside))?;
        }
        let library = "/usr/lib/x86_64-linux-gnu/libcrypto.so.3";
        let mut gcc = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            gcc.arg("--map-root-user");
        }
        gcc.args(["--mount", "chroot"]).arg(&root.folder).env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin");
        gcc.args(["gcc", "-O2", "-o", "/root/crypto", "/root/crypto.c", library]);
        checked(&mut gcc)?;
        fs::copy(inside.join("crypto"), folder.join("crypto")).map_err(at(&inside))?;
    }
    Ok(folder)
}

/// The root image and the same files in a folder, made when the list of packages is new.
fn root(work: &Path) -> Result<Root> {
    fs::create_dir_all(work).map_err(at(work))?;
    let found = Root { image: work.join("root.img"), folder: work.join("root") };
    let stamp = work.join("root.packages");
    let wanted = PACKAGES.join(" ");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == wanted) {
        return Ok(found);
    }
    let options = guest::image::ImageOptions {
        out: found.image.clone(),
        bytes: ROOT_BYTES,
        packages: PACKAGES.iter().map(|name| (*name).to_owned()).collect(),
        suite: "bookworm".to_owned(),
        mirror: None,
        replace: true,
    };
    guest::image::make(&options, &mut |line| eprintln!("xtask: {line}"))
        .map_err(|error| error.to_string())?;
    // The same bytes for the host, without mounting anything.
    let _ = fs::remove_dir_all(&found.folder);
    fs::create_dir_all(&found.folder).map_err(at(&found.folder))?;
    let dump = format!("rdump / {}", found.folder.display());
    checked(Command::new("debugfs").args(["-R", &dump]).arg(&found.image).env("PATH", tool_path()))?;
    if !found.folder.join("usr/bin/gcc").exists() {
        return Err(format!("debugfs has not written {}", found.folder.display()));
    }
    write(&stamp, wanted.as_bytes())?;
    Ok(found)
}

/// Administration programs are not on every user's PATH.
fn tool_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

/// An empty disk.
fn scratch(work: &Path) -> Result<PathBuf> {
    let path = work.join("scratch.img");
    File::create(&path).and_then(|file| file.set_len(SCRATCH_BYTES)).map_err(at(&path))?;
    Ok(path)
}
