//! What the tests of travelling share: the small guest, a folder to work in, and the command line.
#![allow(dead_code)]

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// Whether a missing tool is a failure.
pub fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Where the small guest is kept, when it can be had. `HINDSIGHT_TEST_CACHE` names a folder to reuse.
pub fn cache() -> Option<&'static Path> {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let cache = CACHE.get_or_init(|| {
        let folder = std::env::var_os("HINDSIGHT_TEST_CACHE")
            .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), PathBuf::from);
        let cache = guest::Cache::at(folder.join("hindsight"));
        match guest::SmallGuest::obtain(&cache, guest::Flavour::Cloud, &mut |_| {}) {
            Ok(_) => Some(folder),
            Err(error) => {
                assert!(!in_ci(), "no guest to test with: {error}");
                eprintln!("skipped, there is no guest to test with: {error}");
                None
            }
        }
    });
    cache.as_deref()
}

/// A folder to work in, and a user whose data is there.
pub struct Place {
    folder: tempfile::TempDir,
    cache: &'static Path,
}

impl Place {
    /// `None` when the test has to be skipped.
    pub fn new() -> Option<Self> {
        let cache = cache()?;
        Some(Self { folder: tempfile::tempdir().unwrap(), cache })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The command line with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hindsight"));
        command.args(words).current_dir(self.folder.path());
        command.env("XDG_CACHE_HOME", self.cache).env("XDG_DATA_HOME", self.path("data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end, which is to be of this status.
    #[track_caller]
    pub fn hindsight(&self, words: &[&str], status: i32) -> Output {
        let output = self.command(words).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(status), "{words:?}\n{out}\n{err}");
        output
    }

    /// Likewise with `--json`.
    #[track_caller]
    pub fn json(&self, words: &[&str], status: i32) -> Value {
        let output = self.hindsight(words, status);
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// The contents of every file below a folder, hashed.
    pub fn hashes(&self, folder: &str) -> BTreeMap<PathBuf, blake3::Hash> {
        let mut hashes = BTreeMap::new();
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let hash = blake3::hash(&std::fs::read(&path).unwrap());
                    hashes.insert(path, hash);
                }
            }
        }
        hashes
    }
}

/// What two runs of the same guest have in common.
pub fn facts(summary: &Value) -> Vec<Value> {
    ["instructions", "guest_seconds", "state_hash"].map(|name| summary[name].clone()).to_vec()
}
