//! Where a soak runs: the program under test, a folder to work in, and what the host offers.

use crate::{Result, workspace};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Nothing that a round does takes longer; what does hangs.
const PATIENCE: Duration = Duration::from_secs(900);

/// How a round went: its name, and an optional note for the sum, or what is wrong.
pub struct Outcome {
    pub name: String,
    pub result: Result<Option<String>>,
}

/// What a round with `cpus` processors is called.
pub fn named(name: &str, cpus: u32) -> String {
    if cpus == 1 { name.to_owned() } else { format!("{name} with {cpus} CPUs") }
}

/// Where a soak runs.
pub struct Place {
    program: PathBuf,
    folder: PathBuf,
    pub root: Option<PathBuf>,
}

/// What a finished command left.
pub struct Done {
    pub status: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Done {
    /// The same if the status is as expected, else a complaint.
    pub fn with_status(self, status: i32) -> Result<Self> {
        if self.status == Some(status) {
            return Ok(self);
        }
        let last = self.stderr.lines().last().unwrap_or_default();
        Err(format!("status {:?} instead of {status}: {last}", self.status))
    }

    /// Standard output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.stdout).map_err(|error| format!("no JSON ({error}): {}", self.stderr))
    }
}

impl Place {
    /// Builds the program and makes the folder, below cargo's target folder.
    pub fn new(root: Option<PathBuf>) -> Result<Self> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built = Command::new(cargo)
            .args([
                "build",
                "--release",
                "--package",
                "hindsight",
                "--message-format",
                "json-render-diagnostics",
            ])
            .current_dir(workspace::root())
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        let program = String::from_utf8_lossy(&built.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|message| message["target"]["name"] == "hindsight")
            .find_map(|message| message["executable"].as_str().map(PathBuf::from))
            .ok_or("cargo built no hindsight")?;
        let target = program.parent().and_then(Path::parent).unwrap_or(Path::new("."));
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = target.join("soak").join(format!("{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        // A copy, so that a build beside does not exchange what is being soaked.
        let built = program;
        let program = folder.join("hindsight");
        fs::copy(&built, &program).map_err(|error| format!("{}: {error}", built.display()))?;
        if let Some(root) = root.as_ref().filter(|root| !root.is_file()) {
            return Err(format!("--root {}: there is no such file", root.display()));
        }
        Ok(Self { program, folder, root })
    }

    /// A program of `soak/programs`, built with the host's compiler for guests of any kind.
    pub fn compiled(&self, name: &str) -> Result<PathBuf> {
        let built = self.folder.join(name);
        if built.is_file() {
            return Ok(built);
        }
        let source = workspace::root().join("xtask/src/soak/programs").join(format!("{name}.c"));
        let status = Command::new("gcc")
            .args(["-O2", "-static", "-s", "-pthread", "-o"])
            .args([&built, &source])
            .status()
            .map_err(|error| format!("gcc: {error}"))?;
        if status.success() { Ok(built) } else { Err(format!("{} does not compile", source.display())) }
    }

    /// A new folder for a round. Kept when the round fails.
    pub fn folder_of_round(&self, round: u64) -> Result<PathBuf> {
        let folder = self.folder.join(format!("round-{round}"));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(folder)
    }

    /// A command in `folder`.
    pub fn command(&self, folder: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).current_dir(folder);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Recordings with a name of their own stay here as well.
        command.env("XDG_DATA_HOME", self.folder.join("data"));
        if let Some(cache) = std::env::var_os("HINDSIGHT_TEST_CACHE") {
            command.env("XDG_CACHE_HOME", cache);
        }
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, folder: &Path, words: &[&str]) -> Result<Done> {
        self.attend(self.spawn(folder, words, Stdio::null())?)
    }

    /// Starts a command.
    pub fn spawn(&self, folder: &Path, words: &[&str], input: Stdio) -> Result<Child> {
        let spawned = self.command(folder, words).stdin(input).spawn();
        spawned.map_err(|error| format!("{}: {error}", self.program.display()))
    }

    /// Waits for a command's end; one that takes too long is killed, which is a failure.
    pub fn attend(&self, mut child: Child) -> Result<Done> {
        let read = |stream: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut stream) = stream {
                    let _ = stream.read_to_end(&mut bytes);
                }
                bytes
            })
        };
        let stdout = read(child.stdout.take().map(|stream| Box::new(stream) as _));
        let stderr = read(child.stderr.take().map(|stream| Box::new(stream) as _));
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                break status;
            }
            if begun.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("it hangs: no end after {} s", PATIENCE.as_secs()));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        let bytes = |thread: JoinHandle<Vec<u8>>| thread.join().unwrap_or_default();
        let stderr = String::from_utf8_lossy(&bytes(stderr)).into_owned();
        Ok(Done { status: status.code(), stdout: bytes(stdout), stderr })
    }

    /// Removes the folder, once nothing in it is worth keeping.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Types `pieces` into a command, with pauses between.
pub fn type_slowly(child: &mut Child, pieces: Vec<(Duration, String)>) -> Option<JoinHandle<()>> {
    let mut input = child.stdin.take()?;
    Some(std::thread::spawn(move || {
        for (pause, text) in pieces {
            std::thread::sleep(pause);
            // A guest that has ended reads nothing more; its status says how it ended.
            if input.write_all(text.as_bytes()).and_then(|()| input.flush()).is_err() {
                return;
            }
        }
    }))
}

/// A TCP port that nobody uses right now.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// Threads that load the host.
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Begins to load it.
    pub fn begin(threads: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let spin = |stop: Arc<AtomicBool>| {
            move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        };
        let threads = (0..threads).map(|_| std::thread::spawn(spin(stop.clone()))).collect();
        Self { stop, threads }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| {
            let _ = thread.join();
        });
    }
}
