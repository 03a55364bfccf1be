//! Moving in the past of a recording: wherever one comes from, a position is one state.
//!
//! Each run records a small Debian guest once. Without it (no apt, no network) the tests are skipped
//! with a message, but never in CI. `HINDSIGHT_TEST_CACHE` names a cache folder to reuse, and
//! `HINDSIGHT_TEST_RECORDING` a recording to travel in instead.

use base::Position;
use recording::{HashCache, Recording, StateHash};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use timeline::{Hit, Pause, Travel, Tuning, Until, WatchRange};

fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value == "true")
}

/// The recording to travel in, made on first use; `None` when there is no guest to make one of.
fn recorded() -> Option<&'static Path> {
    static RECORDED: OnceLock<Option<PathBuf>> = OnceLock::new();
    RECORDED.get_or_init(record).as_deref()
}

fn cache() -> PathBuf {
    std::env::var_os("HINDSIGHT_TEST_CACHE")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"), PathBuf::from)
}

fn record() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("HINDSIGHT_TEST_RECORDING") {
        return Some(path.into());
    }
    let small = guest::Cache::at(cache().join("hindsight"));
    if let Err(error) = guest::SmallGuest::obtain(&small, guest::Flavour::Cloud, &mut |_| {}) {
        assert!(!in_ci(), "no guest to test with: {error}");
        eprintln!("skipped, there is no guest to test with: {error}");
        return None;
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("travel-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    let job = "for i in 1 2 3 4 5 6 7 8 9; do echo $i | sha256sum; done; ls -l /bin | wc -l";
    let status = Command::new(env!("CARGO_BIN_EXE_hindsight"))
        .args(["record", "--memory", "256M", "--checkpoint-every", "200000000", "-o"])
        .arg(&folder)
        .args(["--", job])
        .env("XDG_CACHE_HOME", cache())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "recording failed: {status}");
    Some(folder)
}

fn open() -> Option<Travel> {
    let recording = Recording::open(recorded()?).unwrap();
    Some(Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).unwrap())
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((u128::from(self.0) * u128::from(below)) >> 64) as u64
    }
}

fn hash(travel: &mut Travel) -> StateHash {
    travel.session_mut().state_hash().unwrap()
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[test]
fn a_position_is_one_state_wherever_one_comes_from() {
    let Some(mut travel) = open() else { return };
    let count = std::env::var("HINDSIGHT_TEST_COUNT").map_or(12, |count| count.parse().unwrap());
    let mut dice = Dice(5);
    let end = travel.end().count();
    let positions: Vec<u64> = (0..count).map(|_| dice.roll(end)).collect();
    // The reference: straight through, no checkpoint used.
    let sorted: BTreeSet<u64> = positions.iter().copied().collect();
    let mut straight = open().unwrap();
    let mut expected = BTreeMap::new();
    for at in sorted {
        let until = Until { position: Some(Position::from_count(at)), ..Until::default() };
        assert_eq!(straight.run_until(&until, &|| false).unwrap(), Pause::Position);
        expected.insert(at, hash(&mut straight));
    }
    let mut seeks = Vec::new();
    let mut steps = Vec::new();
    for at in positions {
        let begun = Instant::now();
        travel.seek(Position::from_count(at)).unwrap();
        seeks.push(begun.elapsed());
        assert_eq!(hash(&mut travel), expected[&at], "sought {at}");
        for _ in 0..8 {
            let begun = Instant::now();
            let until = Until {
                position: Some(Position::from_count(travel.position().count().saturating_sub(1))),
                ..Until::default()
            };
            travel.run_back_until(&until, &|| false).unwrap();
            steps.push(begun.elapsed());
        }
        let until = Until { position: Some(Position::from_count(at)), ..Until::default() };
        travel.run_until(&until, &|| false).unwrap();
        assert_eq!(hash(&mut travel), expected[&at], "stepped to {at}");
    }
    eprintln!("seek median and worst: {:?}; step back: {:?}", median(seeks), median(steps));
}

/// Spoils stored pages in every third chunk of a page store, and nothing that is read when it is opened
/// (docs/recording-format.md: chunk headers of 64 bytes, then a directory of 22 bytes a page).
fn spoil_pages(store: &Path) {
    let mut bytes = std::fs::read(store).unwrap();
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut chunk) = (36, 0);
    while at + 64 < bytes.len() {
        let (body, stored) = (at + 64, word(&bytes, at + 36));
        let pages = body + 4 + word(&bytes, body) * 22 + 4;
        if chunk % 3 == 1 {
            bytes[pages..body + stored].fill(0xa5);
        }
        (at, chunk) = (body + stored + 16, chunk + 1);
    }
    assert!(chunk > 10, "{chunk} chunks of pages");
    std::fs::write(store, bytes).unwrap();
}

#[test]
fn a_checkpoint_with_unreadable_pages_leads_to_no_other_state() {
    let Some(mut whole) = open() else { return };
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(recorded().unwrap()).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    spoil_pages(&copy.path().join("pages.store"));
    let recording = Recording::open(copy.path()).unwrap();
    let mut spoiled = Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).unwrap();
    assert!(spoiled.checkpoints().len() > 5, "the checkpoints are there");
    let (mut dice, end) = (Dice(12), whole.end().count());
    for _ in 0..5 {
        let to = Position::from_count(dice.roll(end));
        whole.seek(to).unwrap();
        spoiled.seek(to).unwrap();
        assert_eq!(hash(&mut spoiled), hash(&mut whole), "at {to}");
    }
}

#[test]
fn running_back_finds_what_running_forward_met_last() {
    let Some(mut travel) = open() else { return };
    let end = travel.end().count();
    let from = Position::from_count(end / 2);
    travel.seek(from).unwrap();
    let rsp = travel.session().machine().processor().state().gpr[4];
    let rip = travel.session().machine().processor().linear_rip();
    let watch = WatchRange { start: base::GuestVirt(rsp & !7), bytes: 8, reads: false, writes: true };
    let until = Until { breakpoints: BTreeSet::from([rip]), watches: vec![watch], ..Until::default() };
    let mut met = Vec::new();
    for _ in 0..20 {
        match travel.run_until(&until, &|| false).unwrap() {
            Pause::Hit(hit) => met.push((travel.position(), hit)),
            Pause::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(met.len() > 2, "too little happened: {met:?}");
    // Watches are reported behind the access forwards and before it backwards.
    let before = |(at, hit): &(Position, Hit)| match hit {
        Hit::Watch(..) => (Position::from_count(at.count() - 1), *hit),
        Hit::Breakpoint(_) | Hit::Turn => (*at, *hit),
    };
    // Behind an access one meets it first on the way back; at a breakpoint, what was before it.
    let last_is_watch = matches!(met.last(), Some((_, Hit::Watch(..))));
    let mut way_back: Vec<_> = met.iter().map(before).collect();
    if !last_is_watch {
        way_back.pop();
    }
    way_back.dedup_by_key(|(at, _)| *at);
    for expected in way_back.into_iter().rev() {
        let begun = Instant::now();
        let pause = travel.run_back_until(&until, &|| false).unwrap();
        eprintln!("back to {expected:?} in {:?}", begun.elapsed());
        let Pause::Hit(hit) = pause else { panic!("{pause:?} instead of {expected:?}") };
        assert_eq!((travel.position(), hit), expected);
    }
}

#[test]
fn gdb_walks_back_to_the_last_call_of_a_function_and_forward_again() {
    let Some(recording) = recorded() else { return };
    if Command::new("gdb").arg("--version").stdout(Stdio::null()).status().is_err() {
        assert!(!in_ci(), "gdb is missing");
        eprintln!("skipped, gdb is missing");
        return;
    }
    let commands = "set pagination off\nset confirm off\nbreak do_sys_openat2\nreverse-continue\nbt 3\n\
        reverse-stepi\nreverse-stepi\nstepi\nstepi\ninfo symbol $pc\nmonitor when\nkill\nquit\n";
    let mut child = Command::new(env!("CARGO_BIN_EXE_hindsight"))
        .arg("debug")
        .arg(recording)
        .args(["--at", "90%"])
        .env("XDG_CACHE_HOME", cache())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let told = format!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("Breakpoint 1, "), "no stop at the breakpoint:\n{told}");
    let symbol = text.lines().filter(|line| line.contains("do_sys_openat2 in section")).count();
    assert_eq!(symbol, 1, "two steps back and two forward lead to the same place:\n{told}");
}
