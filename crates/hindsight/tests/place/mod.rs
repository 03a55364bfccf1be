//! A place to run the command line in: a folder, a user's data, a guest, and what tests ask of them.
//!
//! Without the small guest (no apt, no network) tests are skipped with a message, but never in CI.
//! `HINDSIGHT_TEST_CACHE` names a cache folder to reuse, and `HINDSIGHT_TEST_RECORDING` a recording
//! to travel in instead of a fresh one.
#![allow(dead_code)] // each test file needs some of it

pub mod past;

use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What a recording to travel in does: a kernel starts, then processes come and go.
pub const RECORD: [&str; 7] =
    ["record", "--json", "--memory", "256M", "--checkpoint-every", "200000000", "-o"];
/// See [`RECORD`].
const JOB: &str = "for i in 1 2 3 4 5 6 7 8 9; do echo $i | sha256sum; done; ls -l /bin | wc -l";

/// Complains, in CI, that something to test with is missing; elsewhere the test is skipped.
#[track_caller]
pub fn missing(what: &str) {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "{what}");
    eprintln!("skipped, {what}");
}

/// Whether a program is there to test with.
#[track_caller]
pub fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        missing(&format!("{tool} is missing"));
    }
    found
}

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
                missing(&format!("there is no guest to test with: {error}"));
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

    /// Both streams as text.
    pub fn told(&self) -> String {
        format!("{}\n{}", String::from_utf8_lossy(&self.stdout), self.stderr)
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

    /// The summary of a command that ends with `status`; the words have to ask for it.
    #[track_caller]
    pub fn json(&self, words: &[&str], status: i32) -> Value {
        self.hindsight(words).with_status(status).json()
    }

    /// The recording to travel in.
    #[track_caller]
    pub fn recorded(&self) -> PathBuf {
        if let Some(path) = std::env::var_os("HINDSIGHT_TEST_RECORDING") {
            return path.into();
        }
        self.hindsight(&[&RECORD[..], &["./rec", "--", JOB]].concat()).with_status(0);
        self.path("rec")
    }

    /// The contents of every file below a folder, hashed.
    pub fn hashes(&self, folder: &str) -> BTreeMap<PathBuf, blake3::Hash> {
        let mut hashes = BTreeMap::new();
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let hash = blake3::hash(&fs::read(&path).unwrap());
                    hashes.insert(path, hash);
                }
            }
        }
        hashes
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

    /// The text of gdb's two streams when it is given `commands` in `hindsight debug` with these words:
    /// standard output, and both.
    pub fn debugged(&self, words: &[&str], commands: &str) -> (String, String) {
        let plain = "set pagination off\nset confirm off\n";
        let done = self.piped(&[&["debug"], words].concat(), format!("{plain}{commands}").as_bytes());
        (String::from_utf8_lossy(&done.stdout).into_owned(), done.told())
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
