//! Checks what the user gave before anything starts, and makes a [`GuestPlan`] of it.
//!
//! A file that is missing, empty, unreadable, locked or not what it should be is told in one
//! line here, where its option is still known.

use crate::cli::{Clock, GuestOptions};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::session::GuestPlan;
use crate::values::{Net, Size};
use guest::job::{Job, Mode};
use guest::{Cache, SmallGuest};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The least RAM that Hindsight offers a guest.
const MEMORY_MIN_BYTES: u64 = 16 << 20;
/// The most: beyond, guest physical addresses would need more than the model's 40 bits.
const MEMORY_MAX_BYTES: u64 = 512 << 30;
/// No kernel's file is larger; a disk image given by mistake is not read into memory.
const KERNEL_FILE_MAX_BYTES: u64 = 1 << 30;
/// Where Linux runs from unless its header says otherwise.
const KERNEL_LOAD_ADDRESS: u64 = 0x100_0000;

/// Makes the plan of a guest. `interactive` says whether a person is at the console.
pub fn plan(
    options: &GuestOptions,
    command: &[String],
    mode: Mode,
    interactive: bool,
) -> Result<GuestPlan, Failure> {
    if command.iter().any(|word| word.contains('\0')) {
        return Err(Failure::usage("the command has a zero byte"));
    }
    let memory = options.memory;
    if !(MEMORY_MIN_BYTES..=MEMORY_MAX_BYTES).contains(&memory.bytes) || !memory.bytes.is_multiple_of(4096) {
        let (least, most) = (Size { bytes: MEMORY_MIN_BYTES }, Size { bytes: MEMORY_MAX_BYTES });
        return Err(Failure::usage(format!(
            "--memory {memory}: a guest has between {least} and {most}, in whole pages of 4K"
        )));
    }
    if !options.forward.is_empty() && options.net != Net::User {
        return Err(Failure::usage("--forward needs --net user"));
    }
    let disks = options.disk.iter().map(|disk| check_disk(disk)).collect::<Result<Vec<_>, _>>()?;
    let root_disk = disks.first().is_some_and(|disk| disk.is_root);
    for (option, file) in [("--kernel", &options.kernel), ("--initrd", &options.initrd)] {
        if let Some(file) = file {
            check_file(option, file)?;
        }
    }
    if !options.file.is_empty() && (root_disk || options.kernel.is_some() && options.initrd.is_none()) {
        return Err(Failure::usage(
            "--file needs a guest that starts from an initrd; with a disk, put it there",
        ));
    }
    for file in &options.file {
        check_file("--file", file)?;
    }
    let job = (!command.is_empty()).then(|| Job::from_words(command, mode));
    let (kernel, initrd) = images(options, job.is_some() || root_disk)?;
    let image = KernelImage::read(&kernel)?;
    let initrd_bytes = initrd.as_deref().map_or(Ok(0), length)?;
    check_memory(memory, &image, initrd_bytes)?;

    let following = interactive || options.net != Net::None;
    let clock = options.clock.unwrap_or(if following { Clock::Host } else { Clock::Virtual });
    let append = options.append.clone().unwrap_or_else(|| default_append(job.as_ref(), root_disk));
    let append = match &job {
        // Nothing of ours would unpack the command's archive, so it goes on the command line.
        Some(job) if initrd.is_none() => {
            let words = job.kernel_parameters();
            let words = words
                .ok_or_else(|| Failure::usage("the command is too long for a guest without an initrd"))?;
            format!("{append} {words}")
        }
        _ => append,
    };
    Ok(GuestPlan {
        kernel,
        initrd,
        files: options.file.clone(),
        job,
        append,
        memory_bytes: memory.bytes,
        cpus: options.cpus,
        cpu: options.cpu,
        disks: options.disk.clone(),
        net: options.net.clone(),
        forwards: options.forward.clone(),
        clock,
        seed: options.seed,
        reset: options.reset,
        debug_ports: options.debug_ports,
    })
}

/// The kernel's command line when the user gives none. With a command, the console is for its
/// output, so the kernel only speaks there when it dies.
fn default_append(job: Option<&Job>, root_disk: bool) -> String {
    let mut words = vec!["console=ttyS0"];
    if job.is_some() {
        words.extend(["quiet", "loglevel=1"]);
    }
    if root_disk {
        words.extend(["root=/dev/vda", "rw"]);
        if job.is_some() {
            words.push("systemd.show_status=false");
        }
    }
    words.join(" ")
}

/// The kernel and initrd to use. What the user did not give comes from the small guest: all of it
/// without `--kernel`; only its initrd with `--kernel` but something to start in user space.
fn images(options: &GuestOptions, starts_something: bool) -> Result<(PathBuf, Option<PathBuf>), Failure> {
    let small = || {
        let progress = Progress::new();
        let guest =
            SmallGuest::obtain(&Cache::of_user()?, options.debian.into(), &mut |line| progress.line(line));
        progress.clear();
        guest
    };
    match (&options.kernel, &options.initrd) {
        (Some(kernel), Some(initrd)) => Ok((kernel.clone(), Some(initrd.clone()))),
        (Some(kernel), None) if starts_something => {
            KernelImage::read(kernel)?;
            Ok((kernel.clone(), Some(small()?.initrd)))
        }
        (Some(kernel), None) => Ok((kernel.clone(), None)),
        (None, given) => {
            let small = small()?;
            Ok((small.kernel, Some(given.clone().unwrap_or(small.initrd))))
        }
    }
}

/// Opens a file for reading without being held up by what it may be (a FIFO, a terminal).
fn open(option: &str, path: &Path) -> Result<File, Failure> {
    let flags = rustix::fs::OFlags::NONBLOCK.union(rustix::fs::OFlags::NOCTTY).bits() as i32;
    OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(|error| {
        let reason = match error.kind() {
            ErrorKind::NotFound => "there is no such file".to_owned(),
            ErrorKind::PermissionDenied => "you may not read it".to_owned(),
            _ => error.to_string(),
        };
        Failure::usage(format!("{option} {}: {reason}", path.display()))
    })
}

fn check_file(option: &str, path: &Path) -> Result<File, Failure> {
    let unusable = |reason: &str| Failure::usage(format!("{option} {}: {reason}", path.display()));
    let file = open(option, path)?;
    let facts = file.metadata().map_err(|error| unusable(&error.to_string()))?;
    if facts.is_dir() {
        return Err(unusable("is a folder"));
    }
    if !facts.is_file() {
        return Err(unusable("is not a regular file"));
    }
    if facts.len() == 0 {
        return Err(unusable("is empty"));
    }
    Ok(file)
}

fn length(path: &Path) -> Result<u64, Failure> {
    let facts =
        std::fs::metadata(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
    Ok(facts.len())
}

/// What a disk image is to the boot.
#[derive(Debug)]
struct Disk {
    /// Made by `guest make`: a root file system with its label.
    is_root: bool,
}

fn check_disk(path: &Path) -> Result<Disk, Failure> {
    let unusable = |reason: &str| Failure::usage(format!("--disk {}: {reason}", path.display()));
    let mut file = open("--disk", path)?;
    let facts = file.metadata().map_err(|error| unusable(&error.to_string()))?;
    if facts.is_dir() {
        return Err(unusable("is a folder"));
    }
    if !facts.is_file() && !facts.file_type().is_block_device() {
        return Err(unusable("is neither a file nor a block device"));
    }
    let bytes = file.seek(SeekFrom::End(0)).map_err(|error| unusable(&error.to_string()))?;
    if bytes == 0 {
        return Err(unusable("is empty"));
    }
    flock(&file, FlockOperation::NonBlockingLockShared)
        .map_err(|_| unusable("another program has locked it"))?;
    let mut magic = [0; 4];
    let is_qcow = file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"QFI\xfb";
    if !is_qcow && !bytes.is_multiple_of(512) {
        return Err(unusable("its length is not a multiple of 512 bytes; it may be truncated"));
    }
    Ok(Disk { is_root: !is_qcow && guest::image::is_root(&file) })
}

/// What a kernel's file tells; a bzImage by its header (Linux, Documentation/arch/x86/boot.rst).
#[derive(Debug)]
struct KernelImage {
    /// Where the memory ends that it needs before it looks at the memory map.
    end: u64,
}

impl KernelImage {
    fn read(path: &Path) -> Result<Self, Failure> {
        let unusable = |reason: &str| Failure::usage(format!("--kernel {}: {reason}", path.display()));
        let mut file = check_file("--kernel", path)?;
        let bytes = length(path)?;
        let mut head = Vec::new();
        let read = file.by_ref().take(0x270).read_to_end(&mut head);
        read.map_err(|error| unusable(&error.to_string()))?;
        if head.get(0x202..0x206) != Some(b"HdrS") {
            if bytes > KERNEL_FILE_MAX_BYTES {
                return Err(unusable("is not a kernel: it is too large"));
            }
            let file = std::fs::read(path).map_err(|error| unusable(&error.to_string()))?;
            let end = machine::boot::kernel_end(path, &file).map_err(Failure::usage)?;
            return Ok(Self { end });
        }
        if head.len() < 0x264 {
            return Err(unusable("is truncated in its header"));
        }
        let long =
            |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        let setup_sectors = if head[0x1f1] == 0 { 4 } else { u64::from(head[0x1f1]) };
        let whole = (setup_sectors + 1) * 512 + long(0x1f4) * 16;
        // The size counts whole paragraphs; a build may leave out the last one's padding.
        if bytes + 15 < whole {
            return Err(unusable(&format!("is truncated: it has {bytes} of {whole} bytes")));
        }
        let version = u16::from_le_bytes([head[0x206], head[0x207]]);
        if version < 0x20c {
            return Err(unusable("is too old: its boot protocol is before 2.12"));
        }
        Ok(Self { end: KERNEL_LOAD_ADDRESS + long(0x260) })
    }
}

fn check_memory(memory: Size, kernel: &KernelImage, initrd_bytes: u64) -> Result<(), Failure> {
    let needed = kernel.end.saturating_add(initrd_bytes.next_multiple_of(4096));
    if needed <= memory.bytes {
        return Ok(());
    }
    let mib = needed.div_ceil(1 << 20);
    Err(Failure::usage(format!("--memory {memory} is too little: kernel and initrd alone need {mib}M")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_command_the_kernel_speaks_and_with_one_it_is_silent() {
        assert_eq!(default_append(None, false), "console=ttyS0");
        assert_eq!(default_append(None, true), "console=ttyS0 root=/dev/vda rw");
        let job = Job { script: "true".into(), mode: Mode::Batch };
        assert_eq!(default_append(Some(&job), false), "console=ttyS0 quiet loglevel=1");
    }

    #[test]
    fn a_kernel_is_known_by_its_header() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        let complaint = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            KernelImage::read(&path).map_err(|failure| failure.to_string())
        };
        let mut image = vec![0; 4096 + 512];
        image[0x1f1] = 1;
        image[0x1f4..0x1f8].copy_from_slice(&(3584u32 / 16).to_le_bytes());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&0x1234u32.to_le_bytes());
        assert_eq!(complaint(&image).unwrap().end, 0x100_1234);
        assert!(complaint(&image[..4000]).unwrap_err().ends_with("is truncated: it has 4000 of 4608 bytes"));
        assert!(complaint(&image[..0x220]).unwrap_err().ends_with("is truncated in its header"));
        image[0x206..0x208].copy_from_slice(&0x20bu16.to_le_bytes());
        assert!(complaint(&image).unwrap_err().contains("too old"));
        assert!(complaint(b"#!/bin/sh\n").unwrap_err().contains("is not a kernel"));
        assert!(complaint(b"").unwrap_err().ends_with("is empty"));
    }
}
