//! A place to run the command line in: a folder, a user's data, a guest.
//!
//! `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.
#![allow(dead_code)] // each test file needs some of it

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where the small guest is kept, when it can be had.
pub fn cache() -> Option<&'static Path> {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let cache = CACHE.get_or_init(|| {
        let folder = std::env::var_os("HINDSIGHT_TEST_CACHE")
            .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), PathBuf::from);
        let cache = guest::Cache::at(folder.join("hindsight"));
        match guest::SmallGuest::obtain(&cache, guest::Flavour::Cloud, &mut |_| {}) {
            Ok(_) => Some(folder),
            Err(error) => {
                let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
                assert!(!ci, "no guest to test with: {error}");
                eprintln!("skipped, there is no guest to test with: {error}");
                None
            }
        }
    });
    cache.as_deref()
}

/// A folder to work in, and a user whose data is there.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub cache: &'static Path,
}

/// What a finished command left.
pub struct Done {
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    pub fn of(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { status: output.status.code(), stdout: output.stdout, stderr }
    }

    #[track_caller]
    pub fn with_status(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{}\n{}", self.stderr, String::from_utf8_lossy(&self.stdout));
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stderr))
    }
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

    pub fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hindsight"));
        command.args(words).current_dir(self.folder.path());
        command.env("XDG_CACHE_HOME", self.cache).env("XDG_DATA_HOME", self.path("data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn hindsight<S: AsRef<OsStr>>(&self, words: &[S]) -> Done {
        Done::of(self.command(words).output().unwrap())
    }

    /// A command that is given `input`.
    pub fn piped(&self, words: &[&str], input: &[u8]) -> Done {
        let mut child = self.command(words).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let writer = std::thread::spawn({
            let input = input.to_vec();
            move || {
                let _ = stdin.write_all(&input);
            }
        });
        let done = Done::of(child.wait_with_output().unwrap());
        writer.join().unwrap();
        done
    }

    /// Starts a command and waits until `file` has at least `bytes` bytes.
    pub fn started(&self, words: &[&str], file: &str, bytes: u64) -> Child {
        let mut child = self.command(words).spawn().unwrap();
        let began = Instant::now();
        while fs::metadata(self.path(file)).map_or(0, |facts| facts.len()) < bytes {
            assert!(began.elapsed() < Duration::from_secs(120), "{file} does not grow");
            assert!(child.try_wait().unwrap().is_none(), "the guest ended early");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }
}

/// What two runs of the same guest have in common.
pub fn facts(summary: &Value) -> Vec<Value> {
    ["instructions", "guest_seconds", "state_hash"].map(|name| summary[name].clone()).to_vec()
}
