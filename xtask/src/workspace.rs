//! What cargo and git know of the repository.

use crate::Result;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// One of our crates.
#[derive(Debug)]
pub struct Package {
    /// Its folder.
    pub folder: PathBuf,
    /// The crates of ours that it uses outside of tests.
    pub uses: BTreeSet<String>,
}

/// The repository's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_path_buf()
}

/// Runs a program in the repository; its output is the user's.
pub fn run(program: &str, words: &[&str], variables: &[(&str, &str)]) -> Result {
    let line = format!("{program} {}", words.join(" "));
    eprintln!("xtask: {line}");
    let status =
        Command::new(program).args(words).envs(variables.iter().copied()).current_dir(root()).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{line}: {status}")),
        Err(error) => Err(format!("{line}: {error}")),
    }
}

/// The command line built from this repository.
pub fn hindsight() -> Result<PathBuf> {
    run("cargo", &["build", "--release", "--locked", "-p", "hindsight"], &[])?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    Ok(target.join("release/hindsight"))
}

fn output(program: &str, words: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(program).args(words).current_dir(root()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr)))
}

/// Our crates by name, as cargo sees them.
pub fn packages() -> Result<BTreeMap<String, Package>> {
    let json = output("cargo", &["metadata", "--format-version=1", "--no-deps", "--offline"])?;
    let json: Value = serde_json::from_slice(&json).map_err(|error| format!("cargo metadata: {error}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let read = |package: &Value| {
        let manifest = PathBuf::from(text(&package["manifest_path"]));
        let ours = |used: &Value| used["path"].is_string() && used["kind"].is_null();
        let uses = list(&package["dependencies"]).into_iter().filter(ours).map(|used| text(&used["name"]));
        let folder = manifest.parent().map(Path::to_path_buf).unwrap_or_default();
        (text(&package["name"]), Package { folder, uses: uses.collect() })
    };
    Ok(list(&json["packages"]).iter().map(read).collect())
}

/// The files of the repository: known to git, or new and not ignored.
pub fn files() -> Result<Vec<PathBuf>> {
    let names = output("git", &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| root().join(&*String::from_utf8_lossy(name))).filter(|path| path.is_file()).collect())
}

/// Where cargo puts what it builds.
pub fn target() -> Result<PathBuf> {
    let json = output("cargo", &["metadata", "--format-version=1", "--no-deps", "--offline"])?;
    let json: Value = serde_json::from_slice(&json).map_err(|error| format!("cargo metadata: {error}"))?;
    json["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .ok_or_else(|| "cargo has no target folder".to_owned())
}
