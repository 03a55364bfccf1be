//! Guests of several processors, end to end through the command line.
//!
//! Each test boots Debian's kernel; without it (no apt, no network) or without gcc they are skipped
//! with a message, but never in CI. `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

use base::GuestVirt;
use recording::{HashCache, Recording};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use timeline::{Hit, Pause, Travel, Tuning, Until, WatchRange};

/// Where programs are linked to: no other program's addresses are there.
const TEXT: &str = "0x77000000";

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// Where the small guest is kept, when it can be had.
fn cache() -> Option<&'static Path> {
    static CACHE: OnceLock<Option<PathBuf>> = OnceLock::new();
    let obtain = || {
        let folder = std::env::var_os("HINDSIGHT_TEST_CACHE")
            .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), PathBuf::from);
        let small = guest::Cache::at(folder.join("hindsight"));
        match guest::SmallGuest::obtain(&small, guest::Flavour::Cloud, &mut |_| {}) {
            Ok(_) => Some(folder),
            Err(error) => {
                assert!(!in_ci(), "no guest to test with: {error}");
                eprintln!("skipped, there is no guest to test with: {error}");
                None
            }
        }
    };
    CACHE.get_or_init(obtain).as_deref()
}

/// A folder to work in, and a user whose data is there.
struct Place {
    folder: tempfile::TempDir,
    cache: &'static Path,
}

impl Place {
    fn new() -> Option<Self> {
        Some(Self { cache: cache()?, folder: tempfile::tempdir().unwrap() })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hindsight"));
        command.args(words).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("XDG_CACHE_HOME", self.cache).env("XDG_DATA_HOME", self.folder.path().join("data"));
        command
    }

    #[track_caller]
    fn hindsight(&self, words: &[&str], status: i32) -> Output {
        let output = self.command(words).output().unwrap();
        let (told, shown) =
            (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
        assert_eq!(output.status.code(), Some(status), "{words:?}:\n{told}\n{shown}");
        output
    }

    #[track_caller]
    fn json(&self, words: &[&str], status: i32) -> Value {
        serde_json::from_slice(&self.hindsight(words, status).stdout).unwrap()
    }
}

/// A program of `tests/processors` as a line for the guest's shell, and its symbols; `None` without
/// a compiler.
fn program(place: &Place, name: &str) -> Option<(String, BTreeMap<String, u64>)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processors").join(format!("{name}.c"));
    let built = place.folder.path().join(name);
    let gcc = Command::new("gcc")
        .args(["-O1", "-nostdlib", "-static", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"])
        .args(["-fno-asynchronous-unwind-tables", "-Wl,-z,norelro,-z,noseparate-code,--build-id=none"])
        .arg(format!("-Wl,-Ttext-segment={TEXT}"))
        .arg("-o")
        .args([&built, &source])
        .status();
    if gcc.is_err() {
        assert!(!in_ci(), "gcc is missing");
        eprintln!("skipped, gcc is missing");
        return None;
    }
    assert!(gcc.unwrap().success(), "{name} does not compile");
    let nm = Command::new("nm").arg(&built).output().unwrap().stdout;
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    let symbols = String::from_utf8(nm).unwrap().lines().filter_map(symbol).collect();
    let pack = format!("strip -o {0}.s {0} && gzip -9nc {0}.s | base64 -w0", built.display());
    let packed = Command::new("sh").args(["-c", &pack]).output().unwrap().stdout;
    let packed = String::from_utf8(packed).unwrap();
    let line = format!("echo {packed} | base64 -d | gunzip >/tmp/it; chmod +x /tmp/it; timeout 2 /tmp/it");
    Some((line, symbols))
}

fn facts(summary: &Value) -> Vec<Value> {
    ["instructions", "guest_seconds", "state_hash"].map(|name| summary[name].clone()).to_vec()
}

const WORK: &str = "nproc; dmesg | grep -E 'WARNING|BUG|Call Trace|unstable|stall'; \
    for i in 1 2 3 4 5 6; do (seq $i 20000 | md5sum) & done; wait";

#[test]
fn debians_kernel_uses_every_processor_and_a_replay_is_exact() {
    let Some(place) = Place::new() else { return };
    for (cpus, seed) in [("2", "0"), ("4", "9")] {
        let folder = format!("./of-{cpus}");
        let record = ["record", "-o", &folder, "--cpus", cpus, "--seed", seed, "--json", "--console", "seen"];
        let recorded = place.json(&[&record[..], &["--", WORK]].concat(), 0);
        let seen = std::fs::read_to_string(place.folder.path().join("seen")).unwrap();
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!((lines[0], lines.len()), (cpus, 7), "{seen}");
        let replayed = place.json(&["replay", &folder, "--json", "--chaos", "5", "--console", "again"], 0);
        assert_eq!(facts(&replayed), facts(&recorded));
        assert_eq!(std::fs::read_to_string(place.folder.path().join("again")).unwrap(), seen);
    }
}

#[test]
fn a_lost_update_is_found_and_its_recording_leads_to_the_racing_instructions() {
    let Some(place) = Place::new() else { return };
    let Some((line, symbols)) = program(&place, "lost-update") else { return };
    let explore = ["explore", "--cpus", "4", "--seeds", "1..60", "--stop-after", "1", "--json", "--", &line];
    let report = place.json(&explore, 6);
    let failing = &report["failing"][0];
    assert_eq!(failing["exit_status"], 1, "{report}");
    // Each time again.
    let seed = failing["seed"].to_string();
    let again = place.json(&["run", "--cpus", "4", "--seed", &seed, "--json", "--", &line], 1);
    assert_eq!(again["state_hash"], failing["state_hash"]);
    let recording = failing["recording"].as_str().unwrap();
    let replayed = place.json(&["replay", recording, "--json"], 0);
    assert_eq!(replayed["state_hash"], failing["state_hash"]);

    let recording = Recording::open(Path::new(recording)).unwrap();
    let mut travel = Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).unwrap();
    let loser = find_lost_update(&mut travel, &symbols);
    // The last writer is another processor, between the loser's load and its store.
    let here = travel.position();
    let start = GuestVirt(symbols["counter"]);
    let watches = vec![WatchRange { start, bytes: 8, reads: false, writes: true }];
    let pause = travel.run_back_until(&Until { watches, ..Until::default() }, &|| false).unwrap();
    assert_eq!(pause, Pause::Hit(Hit::Watch(0, start)));
    let writer = travel.session().machine().processor().current_cpu();
    assert_ne!(writer, loser);
    let state = travel.session().machine().processor().state();
    assert_eq!(state.rip, symbols["racing_store"]);
    let written = travel.position();
    let load = Until { breakpoints: [symbols["racing_load"]].into(), ..Until::default() };
    loop {
        let pause = travel.run_back_until(&load, &|| false).unwrap();
        assert_eq!(pause, Pause::Hit(Hit::Breakpoint(symbols["racing_load"])));
        if travel.session().machine().processor().current_cpu() == loser {
            break;
        }
    }
    assert!(travel.position() < written && written < here);
}

/// Goes to the first store that takes an addition back: the counter is not one less than what is
/// to be stored. The processor that is about to do it.
fn find_lost_update(travel: &mut Travel, symbols: &BTreeMap<String, u64>) -> u32 {
    let until = Until { breakpoints: [symbols["racing_store"]].into(), ..Until::default() };
    loop {
        let pause = travel.run_until(&until, &|| false).unwrap();
        assert_eq!(pause, Pause::Hit(Hit::Breakpoint(symbols["racing_store"])), "no update was lost");
        let counter = travel.physical(GuestVirt(symbols["counter"])).expect("the program is running");
        let machine = travel.session().machine();
        let mut bytes = [0; 8];
        assert!(machine.board().memory().read(counter, &mut bytes));
        let state = machine.processor().state();
        assert_eq!(state.rip, symbols["racing_store"]);
        if u64::from_le_bytes(bytes) + 1 != state.gpr[x86::gpr::RDX] {
            return machine.processor().current_cpu();
        }
    }
}

#[test]
fn a_deadlock_is_found_and_gdb_sees_a_thread_for_each_processor() {
    let Some(place) = Place::new() else { return };
    let Some((line, _)) = program(&place, "deadlock") else { return };
    place.hindsight(&["run", "--cpus", "3", "--", &line], 0);
    let explore = [
        "explore",
        "--cpus",
        "3",
        "--seeds",
        "1..60",
        "--stop-after",
        "1",
        "-o",
        "dead",
        "--json",
        "--",
        &line,
    ];
    let report = place.json(&explore, 6);
    assert_eq!(report["failing"][0]["exit_status"], 143, "timeout's: {report}");
    let recording = report["failing"][0]["recording"].as_str().unwrap();
    assert!(recording.contains("/dead-seed-"), "{recording}");
    if Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_err() {
        assert!(!in_ci(), "gdb is missing");
        eprintln!("skipped, gdb is missing");
        return;
    }
    let script = "set pagination off\nset confirm off\ninfo threads\nmonitor cpus\nstepi\nreverse-stepi\n\
        thread 2\nset $before = $rip\nstepi\nprint $_thread * 10 + ($rip != $before)\n\
        reverse-stepi\nprint $_thread * 10 + ($rip == $before)\nkill\nquit\n";
    let mut command = place.command(&["debug", recording, "--at", "95%"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told =
        format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let threads = (0..3).filter(|cpu| told.contains(&format!("CPU#{cpu}"))).count();
    let listed = (0..3).filter(|cpu| told.contains(&format!("CPU {cpu}: "))).count();
    assert_eq!((threads, listed), (3, 3), "{told}");
    // All are busy, so a step of a thread that does not have its turn goes through others' turns.
    assert!(told.contains("$1 = 21") && told.contains("$2 = 21"), "{told}");
}

#[test]
fn what_cannot_be_explored_is_refused() {
    let Some(place) = Place::new() else { return };
    for words in [
        &["explore", "--net", "user", "--", "true"][..],
        &["explore", "--clock", "host", "--", "true"],
        &["explore", "--seeds", "5..1", "--", "true"],
        &["explore", "-o", "a/b", "--", "true"],
        &["run", "--cpus", "17", "--", "true"],
    ] {
        place.hindsight(words, 2);
    }
    place.hindsight(&["explore", "--seeds", "3", "--cpus", "2", "--", "test $(nproc) = 2"], 0);
}
