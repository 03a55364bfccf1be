//! `info` and `pack`.

use super::recording_failure;
use crate::console::Console;
use crate::failure::Failure;
use crate::keyboard;
use crate::progress::Progress;
use crate::session::{HostSide, usual_tuning};
use crate::stop::Stop;
use recording::{Contents, HashCache, Info, Integrity, Manifest, Recording};
use std::fmt::Write;
use std::path::Path;

/// Bytes of a recording's folder: of everything but checkpoints, and of checkpoints.
pub fn bytes_by_use(folder: &Path) -> (u64, u64) {
    let (mut log, mut checkpoints) = (0, 0);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let bytes = entry.metadata().map_or(0, |facts| facts.len());
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("pages.") || name.starts_with("checkpoints.") {
            checkpoints += bytes;
        } else {
            log += bytes;
        }
    }
    (log, checkpoints)
}

/// What is in a recording, for people and as JSON.
pub fn info(path: &Path) -> Result<(String, serde_json::Value), Failure> {
    let recording = Recording::open(path).map_err(recording_failure)?;
    let info = Info::gather(&recording);
    let manifest = recording.manifest();
    let mut json = serde_json::to_value(&info).map_err(Failure::host)?;
    if let Some(object) = json.as_object_mut() {
        object.insert("recording".into(), serde_json::json!(path));
        object.insert("id".into(), serde_json::json!(manifest.id));
        object.insert("recorded_by".into(), serde_json::json!(manifest.recorded_by));
        object.insert("created_unix_ms".into(), serde_json::json!(manifest.created_unix_ms));
        object.insert("origin".into(), serde_json::json!(manifest.origin));
        object.insert("guest".into(), serde_json::json!(manifest.guest));
    }
    Ok((text(path, manifest, &info), json))
}

fn text(path: &Path, manifest: &Manifest, info: &Info) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14}{value}");
    };
    let guest = &manifest.guest;
    line("recording", format!("{} ({})", path.display(), manifest.id));
    line("made by", manifest.recorded_by.clone());
    ancestry(manifest).into_iter().for_each(|from| line("branched off", from));
    for (what, image) in guest.images() {
        let place = if image.packed { " (inside)" } else { "" };
        line(&what, format!("{}{place}, {} bytes", image.path.display(), image.size));
    }
    line("command line", guest.command_line.clone());
    let clock = match guest.clock {
        recording::Clock::Virtual => "virtual",
        recording::Clock::Host => "host",
    };
    let mib = guest.memory_bytes >> 20;
    line(
        "machine",
        format!("{} x {}, {mib} MiB, {clock} clock, seed {}", guest.cpus, guest.cpu_model, guest.seed),
    );
    line("instructions", info.instructions.to_string());
    if let (Some(guest), Some(wall)) = (info.guest_seconds, info.wall_seconds) {
        line("duration", format!("{guest:.3} s of guest time, recorded in {wall:.3} s"));
    }
    if let (Some(exit), Some(status)) = (info.exit, info.exit_status) {
        line("ended by", format!("{exit}, exit status {status}"));
    }
    if let Some(hash) = &info.state_hash {
        line("state hash", hash.clone());
    }
    for (kind, count) in &info.events {
        let bytes = info.bytes.get(kind).copied().unwrap_or(0);
        line("events", format!("{count} {kind}, {bytes} bytes"));
    }
    line("log", format!("{} bytes", info.log_bytes));
    line("checkpoints", format!("{}, {} bytes", info.checkpoints, info.checkpoint_bytes));
    line(
        "integrity",
        match &info.integrity {
            Integrity::Complete => "complete".into(),
            Integrity::WithoutEnd { up_to } => format!("not ended; replays up to position {up_to}"),
            Integrity::Damaged { why } => why.clone(),
        },
    );
    text
}

/// Where a branch comes from, and where that does, as long as they are there to tell.
fn ancestry(manifest: &Manifest) -> Vec<String> {
    const GENERATIONS_MAX: usize = 32;
    let mut lines = Vec::new();
    let mut origin = manifest.origin.clone();
    while let Some(from) = origin.take().filter(|_| lines.len() < GENERATIONS_MAX) {
        let parent = Recording::open(&from.path).ok().filter(|parent| parent.manifest().id == from.id);
        let gone = if parent.is_none() { ", which is not there any more" } else { "" };
        lines.push(format!("{} ({}) at position {}{gone}", from.path.display(), from.id, from.at));
        origin = parent.and_then(|parent| parent.manifest().origin.clone());
    }
    lines
}

/// Makes one file of a recording. Of raw disk images it takes the blocks that the run read, which a
/// replay finds out.
pub fn pack(path: &Path, output: &Path, progress: &Progress) -> Result<(), Failure> {
    let recording = Recording::open(path).map_err(recording_failure)?;
    let cache = &mut HashCache::for_user();
    recording.verify_images(cache).map_err(recording_failure)?;
    let mut touched = Vec::new();
    if !recording.manifest().guest.disks.is_empty() {
        progress.line("replaying to find the disk blocks it needs");
        let stop = Stop::new();
        stop.on_signals()?;
        let tuning = usual_tuning();
        let host = HostSide {
            input: keyboard::silent(),
            console: Console::none(),
            stop,
            progress: Progress::new(),
            tuning: tuning.clone(),
            checkpoints: None,
            profile: None,
            hash_every: timeline::Every::Work,
        };
        let mut audience = super::Audience::new(host, recording.extent().last);
        let blocks = timeline::touched_blocks(&recording, &tuning, cache, &mut audience);
        audience.clear();
        let interrupted = || Failure::host("packing was interrupted");
        touched = blocks.map_err(super::replay_failure)?.ok_or_else(interrupted)?;
    }
    let contents = |what: &str, _: &recording::ImageRef| {
        let disk = what.strip_prefix("disk ").and_then(|number| number.parse::<usize>().ok());
        let blocks = disk.and_then(|number| touched.get(number)).cloned().flatten();
        blocks.map_or(Contents::Whole, Contents::Touched)
    };
    recording::pack(&recording, output, contents).map_err(|error| match error {
        recording::Error::Name(_) => Failure::usage(error),
        _ => Failure::host(error),
    })
}
