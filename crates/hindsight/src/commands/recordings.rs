//! `info`, `ls`, `rm` and `pack`.

use super::{print, print_json};
use crate::cli::{Info, Ls, Pack, Rm};
use crate::failure::Failure;
use crate::library::{self, Library, PACKED};
use crate::progress::Progress;
use crate::session::{Machine, machine};
use crate::values::Size;
use std::path::PathBuf;
use std::time::SystemTime;

/// `hindsight info`
pub fn info(options: &Info) -> Result<u8, Failure> {
    let recording = Library::of_user()?.find(options.recording.as_deref())?;
    let (text, json) = machine().info(&recording)?;
    if options.json {
        print_json(&json)?
    } else {
        print(text.trim_end())?
    }
    Ok(0)
}

/// `hindsight ls`
pub fn ls(options: &Ls, library: &Library) -> Result<u8, Failure> {
    let entries = library.list()?;
    if options.json {
        let entries: Vec<_> = entries
            .iter()
            .map(|entry| {
                let since = entry.begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                serde_json::json!({
                    "name": entry.name, "path": entry.path, "bytes": library::bytes(&entry.path),
                    "begun_unix_seconds": since.as_secs(),
                })
            })
            .collect();
        print_json(&serde_json::json!({ "recordings": entries }))?;
        return Ok(0);
    }
    let width = entries.iter().map(|entry| entry.name.chars().count()).max().unwrap_or(0);
    for entry in entries {
        let bytes = readable(library::bytes(&entry.path));
        print(&format!("{:width$}  {bytes:>8}  {}", entry.name, age(entry.begun)))?;
    }
    Ok(0)
}

/// `hindsight rm`
pub fn rm(options: &Rm, library: &Library) -> Result<u8, Failure> {
    // All are found before the first is removed: a typing error removes nothing.
    let found: Vec<PathBuf> =
        options.recordings.iter().map(|word| library.find(Some(word))).collect::<Result<_, _>>()?;
    for path in found {
        library::remove(&path)?;
    }
    Ok(0)
}

/// `hindsight pack`
pub fn pack(options: &Pack) -> Result<u8, Failure> {
    let recording = Library::of_user()?.find(options.recording.as_deref())?;
    let output = options.output.clone().unwrap_or_else(|| {
        let name = recording.file_stem().unwrap_or_default().to_owned();
        PathBuf::from(name).with_extension(PACKED)
    });
    if output.exists() {
        return Err(Failure::usage(format!(
            "{} exists; choose another name with --output",
            output.display()
        )));
    }
    let progress = Progress::new();
    machine().pack(&recording, &output, &progress)?;
    progress.clear();
    print(&output.display().to_string())?;
    Ok(0)
}

/// Bytes for people, such as `1.5M`.
fn readable(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T"];
    let step = (0..units.len() - 1).find(|step| bytes >> (10 * step) < 1024).unwrap_or(units.len() - 1);
    if step == 0 {
        return Size { bytes }.to_string();
    }
    format!("{:.1}{}", bytes as f64 / (1u64 << (10 * step)) as f64, units[step])
}

fn age(begun: SystemTime) -> String {
    let seconds = SystemTime::now().duration_since(begun).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        let shown = [0, 1023, 1536, 5 << 20, 3 << 29, u64::MAX].map(readable);
        assert_eq!(shown, ["0", "1023", "1.5K", "5.0M", "1.5G", "16777216.0T"]);
    }
}
