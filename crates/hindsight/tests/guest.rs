//! Real guests, end to end through the command line: each test boots Debian's kernel.
//!
//! Without the small guest (no apt, no network) they are skipped with a message, but never in CI.
//! `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where the small guest is kept, when it can be had.
fn cache() -> Option<&'static Path> {
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
struct Place {
    folder: tempfile::TempDir,
    cache: &'static Path,
}

/// What a finished command left.
struct Done {
    status: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Self { status: output.status.code(), stdout: output.stdout, stderr }
    }

    #[track_caller]
    fn with_status(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "{}\n{}", self.stderr, String::from_utf8_lossy(&self.stdout));
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stderr))
    }
}

impl Place {
    /// `None` when the test has to be skipped.
    fn new() -> Option<Self> {
        let cache = cache()?;
        Some(Self { folder: tempfile::tempdir().unwrap(), cache })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hindsight"));
        command.args(words).current_dir(self.folder.path());
        command.env("XDG_CACHE_HOME", self.cache).env("XDG_DATA_HOME", self.path("data"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn hindsight<S: AsRef<OsStr>>(&self, words: &[S]) -> Done {
        Done::of(self.command(words).output().unwrap())
    }

    /// A command that is given `input`.
    fn piped(&self, words: &[&str], input: &[u8]) -> Done {
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
    fn started(&self, words: &[&str], file: &str, bytes: u64) -> Child {
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
fn facts(summary: &Value) -> Vec<Value> {
    ["instructions", "guest_seconds", "state_hash"].map(|name| summary[name].clone()).to_vec()
}

const WORK: &str = "uname -r; seq 1 30000 | gzip | gunzip | md5sum; \
    dd if=/dev/urandom bs=1k count=4 2>/dev/null | md5sum; cat /proc/uptime; date; sleep 100; date";

#[test]
fn a_run_a_recording_and_its_replay_are_the_same_to_the_last_bit() {
    let Some(place) = Place::new() else { return };
    let first = place.hindsight(&["run", "--json", "--console", "first", "--", WORK]).with_status(0).json();
    let console = fs::read(place.path("first")).unwrap();
    assert!(console.len() > 150, "{}", String::from_utf8_lossy(&console));

    // Another folder, another environment, and translations dropped at random.
    let other = Place::new().unwrap();
    let console_file = other.path("second");
    let mut words: Vec<&OsStr> =
        ["run", "--chaos", "7", "--code-cache", "8M", "--json", "--console"].map(OsStr::new).to_vec();
    words.extend([console_file.as_os_str(), OsStr::new("--"), OsStr::new(WORK)]);
    let mut chaotic = other.command(&words);
    let chaotic = chaotic.env("SOMETHING_MORE", "x".repeat(5000)).current_dir("/").output().unwrap();
    assert_eq!(facts(&Done::of(chaotic).with_status(0).json()), facts(&first));
    assert_eq!(fs::read(console_file).unwrap(), console);

    let record = ["record", "-o", "./a recording", "--json", "--console", "third", "--", WORK];
    let recorded = place.hindsight(&record).with_status(0).json();
    assert_eq!(facts(&recorded), facts(&first));
    assert_eq!(fs::read(place.path("third")).unwrap(), console);

    // Being profiled makes no difference either.
    let replay = [
        "replay",
        "./a recording",
        "--chaos",
        "3",
        "--profile-engine=profile",
        "--json",
        "--console",
        "fourth",
    ];
    let replayed = place.hindsight(&replay).with_status(0).json();
    assert_eq!(facts(&replayed), facts(&first));
    assert_eq!(replayed["exit"], "end-of-recording");
    assert!(replayed["hashes_checked"].as_u64().unwrap() >= 2);
    assert_eq!(fs::read(place.path("fourth")).unwrap(), console);
    is_a_profile(&fs::read_to_string(place.path("profile")).unwrap());
}

/// Looks for what a profile of any guest has, and takes away the map it names.
fn is_a_profile(text: &str) {
    for part in
        ["%  translated code, kernel", "%  translated code, user", "%  translation", "per million of "]
    {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    // The kernel's functions have their names.
    let functions = text.lines().skip_while(|line| !line.starts_with("translated code by guest function"));
    let named = functions.filter(|line| line.contains("%  ") && !line.contains(" page 0x")).count();
    assert!(named >= 10, "{text}");
    let map =
        text.lines().find_map(|line| line.strip_prefix("map of the translated code for perf: ")).unwrap();
    let lines = fs::read_to_string(map).unwrap();
    fs::remove_file(map).unwrap();
    let words: Vec<_> = lines.lines().next().unwrap().splitn(3, ' ').collect();
    assert!(words.len() == 3 && u64::from_str_radix(words[0], 16).is_ok() && words[2].starts_with("guest:"));
}

#[test]
fn a_command_is_given_its_input_and_gives_back_output_and_status() {
    let Some(place) = Place::new() else { return };
    let done = place.hindsight(&["run", "--", "sh", "-c", "printf 'a\\tb\\r\\n\\377'; exit 7"]);
    assert_eq!(done.with_status(7).stdout, b"a\tb\r\n\xff");

    // More than the guest's terminal holds, in a recording, whose replay shows the same.
    let text: String = (0..30_000).map(|line| format!("line {line}\n")).collect();
    let words = ["record", "-o", "./piped", "--", "tee /tmp/all | tail -n 1; wc -c </tmp/all"];
    let done = place.piped(&words, text.as_bytes()).with_status(0);
    let shown = format!("line 29999\n{}\n", text.len());
    assert_eq!(String::from_utf8_lossy(&done.stdout), shown);
    assert_eq!(place.hindsight(&["replay", "./piped"]).with_status(0).stdout, shown.as_bytes());
}

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i; done";

#[test]
fn a_recording_whose_recorder_was_killed_replays_to_its_last_event() {
    let Some(place) = Place::new() else { return };
    // The wall clock steers this guest, so that there are events all the time.
    let words = ["record", "-o", "./killed", "--clock", "host", "--console", "seen", "--", COUNT];
    let mut recorder = place.started(&words, "seen", 20_000);
    std::thread::sleep(Duration::from_millis(500));
    recorder.kill().unwrap();
    recorder.wait().unwrap();

    let replay = place.hindsight(&["replay", "./killed", "--json", "--console", "again"]).with_status(0);
    assert!(replay.stderr.contains("was not ended"), "{}", replay.stderr);
    let (seen, again) = (fs::read(place.path("seen")).unwrap(), fs::read(place.path("again")).unwrap());
    assert!(seen.starts_with(&again) && again.len() > 10_000, "{} and {} bytes", seen.len(), again.len());
    let info = place.hindsight(&["info", "./killed", "--json"]).with_status(0).json();
    assert_eq!(info["integrity"]["state"], "without-end");
}

#[test]
fn a_recording_ended_by_a_signal_is_whole() {
    let Some(place) = Place::new() else { return };
    let words = ["record", "-o", "./ended", "--clock", "host", "--json", "--console", "seen", "--", COUNT];
    let recorder = place.started(&words, "seen", 5_000);
    let pid = rustix::process::Pid::from_child(&recorder);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let recorded = Done::of(recorder.wait_with_output().unwrap()).with_status(128 + 15).json();
    assert_eq!(recorded["exit"], "interrupted");
    let replayed = place.hindsight(&["replay", "./ended", "--json", "--console", "again"]).with_status(0);
    assert_eq!(facts(&replayed.json()), facts(&recorded));
    assert_eq!(fs::read(place.path("again")).unwrap(), fs::read(place.path("seen")).unwrap());
}

#[test]
fn the_ends_of_a_guest_are_told_apart() {
    let Some(place) = Place::new() else { return };
    let end = |command: &str, status: i32, exit: &str| {
        let done = place.hindsight(&["run", "--json", "--timeout", "20", "--", command]).with_status(status);
        assert_eq!(done.json()["exit"], exit, "{command}: {}", done.stderr);
    };
    end("echo c >/proc/sysrq-trigger", 3, "panic");
    end("reboot -f", 3, "reset");
    end("halt -f", 1, "poweroff");
    let hangs = ["run", "--json", "--timeout", "3", "--", "while :; do :; done"];
    assert_eq!(place.hindsight(&hangs).with_status(124).json()["exit"], "timeout");
    // A guest that boots again does not know its first life; it ends its second in another way.
    let again = ["run", "--reset", "continue", "--timeout", "6", "--json", "--", "reboot -f"];
    assert_eq!(place.hindsight(&again).with_status(124).json()["exit"], "timeout");
}

#[test]
fn what_cannot_be_replayed_is_refused_with_the_reason() {
    let Some(place) = Place::new() else { return };
    let disk = place.path("disk");
    fs::write(&disk, vec![0x5a; 1 << 20]).unwrap();
    let disk = disk.to_str().unwrap();
    let words = ["record", "-o", "./rec", "--disk", disk, "--", "md5sum /dev/vda; echo x >/dev/vda; sync"];
    let shown = place.hindsight(&words).with_status(0).stdout;
    assert_eq!(fs::read(disk).unwrap(), vec![0x5a; 1 << 20], "the image is never written");
    place.hindsight(&["pack", "./rec", "-o", "whole.hindsight"]).with_status(0);

    fs::write(disk, vec![0x5b; 1 << 20]).unwrap();
    let refused = place.hindsight(&["replay", "./rec"]).with_status(5);
    assert!(
        refused.stderr.contains("disk 0") && refused.stderr.contains("has changed"),
        "{}",
        refused.stderr
    );
    fs::remove_file(disk).unwrap();
    assert!(place.hindsight(&["replay", "./rec"]).with_status(5).stderr.contains("is gone"));
    assert_eq!(place.hindsight(&["replay", "./whole.hindsight"]).with_status(0).stdout, shown);

    let log = place.path("rec/events.log");
    let mut bytes = fs::read(&log).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&log, bytes).unwrap();
    let refused = place.hindsight(&["replay", "./rec"]).with_status(5);
    assert!(
        refused.stderr.contains("events.log") && refused.stderr.lines().count() == 1,
        "{}",
        refused.stderr
    );
}
