//! A guest as a manifest describes it, and back.

use crate::images::{self, DiskOpenError};
use crate::{Card, ClockMode, DiskSpec, Guest, KernelFile, MACHINE_VERSION};
use disk::Format;
use recording::{Error, HashCache, ImageRef, Manifest, Recording};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use x86::CpuModel;
use x86::cpuid::HostFeatures;

/// Where a guest's files are.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// The initrd's file, which the guest's initrd begins with.
    pub initrd: Option<&'a Path>,
    /// The disk images, in the guest's order.
    pub disks: &'a [PathBuf],
}

/// The machine's own part of a manifest.
#[derive(Serialize, Deserialize)]
struct Config {
    model: CpuModel,
    /// What follows the initrd's file in the guest's initrd, in hex.
    initrd_extra: String,
    disks: Vec<DiskFormat>,
    card: Option<Card>,
    reboots: bool,
    #[serde(default)]
    debug_ports: bool,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum DiskFormat {
    Raw,
    Qcow2,
}

/// Makes the manifest of a new recording of `guest`. Files are hashed unless `cache` knows them.
///
/// # Errors
/// When a file cannot be read, or the guest's initrd does not begin with the file given.
pub fn describe(guest: &Guest, files: Files, cache: &mut HashCache) -> Result<Manifest, Error> {
    let kernel = ImageRef::of(&guest.kernel.path, cache)?;
    let initrd = files.initrd.map(|path| ImageRef::of(path, cache)).transpose()?;
    let disks = files.disks.iter().map(|path| ImageRef::of(path, cache)).collect::<Result<Vec<_>, _>>()?;
    let whole = guest.initrd.as_ref().map_or(&[][..], |bytes| bytes.as_slice());
    let extra = whole.get(initrd.as_ref().map_or(0, |file| file.size as usize)..);
    let extra = extra.ok_or_else(|| Error::Name("the initrd changed while it was read".into()))?;
    let format = |disk: &DiskSpec| match disk.format {
        Format::Raw => DiskFormat::Raw,
        Format::Qcow2 => DiskFormat::Qcow2,
    };
    let config = Config {
        model: guest.model.clone(),
        initrd_extra: extra.iter().map(|byte| format!("{byte:02x}")).collect(),
        disks: guest.disks.iter().map(format).collect(),
        card: guest.card,
        reboots: guest.reboots,
        debug_ports: guest.debug_ports,
    };
    let guest = recording::Guest {
        memory_bytes: guest.memory_bytes,
        cpus: guest.cpus,
        cpu_model: model_name(&guest.model).into(),
        kernel: Some(kernel),
        initrd,
        disks,
        command_line: guest.command_line.clone(),
        seed: guest.seed,
        clock: match guest.clock {
            ClockMode::Virtual => recording::Clock::Virtual,
            ClockMode::Host => recording::Clock::Host,
        },
        start_of_day_unix_ns: guest.start_of_day_unix_ns,
        host_features: needed_features(&guest.model),
        host_vendor: cpu::host_vendor(),
        config: serde_json::to_value(config).expect("plain data"),
    };
    Manifest::new(MACHINE_VERSION, guest)
}

/// The guest of a recording, whose images must have been verified.
///
/// # Errors
/// When the manifest makes no sense to this machine, or a file cannot be read.
pub fn guest_of(recording: &Recording) -> Result<Guest, DiskOpenError> {
    let described = &recording.manifest().guest;
    let damaged = |why: &str| Error::Damaged {
        file: recording.manifest_path(),
        offset: 0,
        chunk: None,
        why: why.to_owned(),
    };
    let config = Config::deserialize(&described.config)
        .map_err(|error| damaged(&format!("the machine's configuration makes no sense: {error}")))?;
    let extra = from_hex(&config.initrd_extra).ok_or_else(|| damaged("the initrd's rest is not hex"))?;
    if config.disks.len() != described.disks.len() {
        return Err(damaged("the numbers of disks differ").into());
    }
    let kernel = described.kernel.as_ref().ok_or_else(|| damaged("it names no kernel"))?;
    let mut initrd = match &described.initrd {
        Some(image) => images::read_whole(recording, image)?,
        None => Vec::new(),
    };
    initrd.extend(extra);
    let disk = |(image, format): (&ImageRef, &DiskFormat)| {
        let format = match format {
            DiskFormat::Raw => Format::Raw,
            DiskFormat::Qcow2 => Format::Qcow2,
        };
        Ok(DiskSpec { base: images::open_disk(recording, image, format)?, format })
    };
    Ok(Guest {
        kernel: KernelFile {
            path: kernel.path.clone(),
            bytes: Arc::new(images::read_whole(recording, kernel)?),
        },
        initrd: (!initrd.is_empty()).then(|| Arc::new(initrd)),
        command_line: described.command_line.clone(),
        memory_bytes: described.memory_bytes,
        cpus: described.cpus,
        model: config.model,
        disks: described.disks.iter().zip(&config.disks).map(disk).collect::<Result<_, DiskOpenError>>()?,
        card: config.card,
        seed: described.seed,
        clock: match described.clock {
            recording::Clock::Virtual => ClockMode::Virtual,
            recording::Clock::Host => ClockMode::Host,
        },
        start_of_day_unix_ns: described.start_of_day_unix_ns,
        reboots: config.reboots,
        debug_ports: config.debug_ports,
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

fn model_name(model: &CpuModel) -> &'static str {
    match model.level {
        x86::Level::V2 => "x86-64-v2",
        x86::Level::V3 => "x86-64-v3",
    }
}

/// The manual's names of features beside those of `/proc/cpuinfo`, where they differ in more than
/// case.
const NAMES: [(&str, &str); 6] = [
    ("CMPXCHG16B", "cx16"),
    ("SSE3", "pni"),
    ("SSE4.1", "sse4_1"),
    ("SSE4.2", "sse4_2"),
    ("LZCNT", "abm"),
    ("SHA", "sha_ni"),
];

fn cpuinfo_name(manual: &str) -> String {
    let known = NAMES.iter().find(|(name, _)| *name == manual);
    known.map_or_else(|| manual.to_ascii_lowercase(), |(_, name)| (*name).to_owned())
}

/// What a model needs of its host, by the names in `/proc/cpuinfo`.
fn needed_features(model: &CpuModel) -> Vec<String> {
    model.host_missing(&HostFeatures::default()).into_iter().map(cpuinfo_name).collect()
}

/// Why a replay may differ though nothing is wrong: the processor that recorded is another vendor's.
pub fn foreign_processor(recording: &Recording) -> Option<String> {
    let (theirs, ours) = (&recording.manifest().guest.host_vendor, cpu::host_vendor());
    (!theirs.is_empty() && *theirs != ours).then(|| {
        format!(
            "it was recorded on a processor of {theirs}, and this is one of {ours}: what manuals leave to \
             the processor (undefined flags, RCPPS, RSQRTPS) may differ; replay it on one of {theirs}"
        )
    })
}

/// Whether this host has a feature that a manifest names.
pub fn host_feature(name: &str) -> bool {
    let host = cpu::host_features();
    let all = CpuModel { aes: true, pclmulqdq: true, sha: true, ..CpuModel::plain(x86::Level::V3) };
    let missing = all.host_missing(&host);
    needed_features(&all).iter().any(|known| known == name)
        && !missing.iter().any(|feature| cpuinfo_name(feature) == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_go_by_the_names_in_cpuinfo() {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let all = CpuModel { aes: true, pclmulqdq: true, sha: true, ..CpuModel::plain(x86::Level::V3) };
        for name in needed_features(&all) {
            assert_eq!(host_feature(&name), flags.contains(&name.as_str()), "{name}");
        }
        assert!(!host_feature("avx1024"));
    }

    #[test]
    fn hex_is_read_back_or_refused() {
        assert_eq!(from_hex("00ff1A"), Some(vec![0, 0xff, 0x1a]));
        assert_eq!((from_hex("0"), from_hex("zz"), from_hex("+1")), (None, None, None));
    }
}
