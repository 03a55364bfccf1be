//! Guests of several processors, end to end through the command line.
//!
//! Each test boots Debian's kernel; without it (no apt, no network) or without gcc they are skipped
//! with a message, but never in CI. `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

mod place;

use base::GuestVirt;
use place::{Place, facts, have, missing};
use recording::{HashCache, Recording};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use timeline::{Hit, Pause, Travel, Tuning, Until, WatchRange};

/// Where programs are linked to: no other program's addresses are there.
const TEXT: &str = "0x77000000";

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/processors")
}

/// A program of `tests/processors`, built for a guest, and its symbols; `None` without a compiler.
fn program(place: &Place, name: &str) -> Option<BTreeMap<String, u64>> {
    if !have("gcc") {
        return None;
    }
    let built = place.path(name);
    let gcc = Command::new("gcc")
        .args(["-O1", "-nostdlib", "-static", "-no-pie", "-fno-stack-protector", "-fcf-protection=none"])
        .args(["-fno-asynchronous-unwind-tables", "-Wl,-z,norelro,-z,noseparate-code,--build-id=none"])
        .arg(format!("-Wl,-Ttext-segment={TEXT}"))
        .arg("-o")
        .args([&built, &sources().join(format!("{name}.c"))])
        .status();
    assert!(gcc.unwrap().success(), "{name} does not compile");
    let nm = Command::new("nm").arg(&built).output().unwrap().stdout;
    let symbol = |line: &str| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((words.nth(1)?.to_owned(), address))
    };
    Some(String::from_utf8(nm).unwrap().lines().filter_map(symbol).collect())
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
        let seen = std::fs::read_to_string(place.path("seen")).unwrap();
        let lines: Vec<&str> = seen.lines().collect();
        assert_eq!((lines[0], lines.len()), (cpus, 7), "{seen}");
        let replayed = place.json(&["replay", &folder, "--json", "--chaos", "5", "--console", "again"], 0);
        assert_eq!(facts(&replayed), facts(&recorded));
        assert_eq!(std::fs::read_to_string(place.path("again")).unwrap(), seen);
    }
}

#[test]
fn a_lost_update_is_found_and_its_recording_leads_to_the_racing_instructions() {
    let Some(place) = Place::new() else { return };
    let Some(symbols) = program(&place, "lost-update") else { return };
    let job = ["--cpus", "4", "--json", "--file", "lost-update", "--", "timeout 2 ./lost-update"];
    let explore = ["explore", "--seeds", "1..200", "--stop-after", "1"];
    let report = place.json(&[&explore[..], &job].concat(), 6);
    let failing = &report["failing"][0];
    assert_eq!(failing["exit_status"], 1, "{report}");
    // Each time again.
    let seed = failing["seed"].to_string();
    let again = place.json(&[&["run", "--seed", &seed], &job[..]].concat(), 1);
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
    if program(&place, "deadlock").is_none() {
        return;
    }
    let job = ["--cpus", "3", "--file", "deadlock", "--", "timeout 2 ./deadlock"];
    place.hindsight(&[&["run"], &job[..]].concat()).with_status(0);
    let explore = ["explore", "--seeds", "1..200", "--stop-after", "1", "-o", "dead", "--json"];
    let report = place.json(&[&explore[..], &job].concat(), 6);
    assert_eq!(report["failing"][0]["exit_status"], 143, "timeout's: {report}");
    let recording = report["failing"][0]["recording"].as_str().unwrap();
    assert!(recording.contains("/dead-seed-"), "{recording}");
    if !have("gdb") {
        return;
    }
    let script = "set pagination off\nset confirm off\ninfo threads\nmonitor cpus\nstepi\nreverse-stepi\n\
        thread 2\nset $before = $rip\nstepi\nprint $_thread * 10 + ($rip != $before)\n\
        reverse-stepi\nprint $_thread * 10 + ($rip == $before)\nkill\nquit\n";
    let told = place.piped(&["debug", recording, "--at", "95%"], script.as_bytes()).told();
    let threads = (0..3).filter(|cpu| told.contains(&format!("CPU#{cpu}"))).count();
    let listed = (0..3).filter(|cpu| told.contains(&format!("CPU {cpu}: "))).count();
    assert_eq!((threads, listed), (3, 3), "{told}");
    // All are busy, so a step of a thread that does not have its turn goes through others' turns.
    assert!(told.contains("$1 = 21") && told.contains("$2 = 21"), "{told}");
}

#[test]
fn a_missing_lock_of_a_kernel_module_is_found_and_gdb_walks_to_the_racing_store() {
    let Some(place) = Place::new() else { return };
    if !["gdb", "gcc", "make"].into_iter().all(have) {
        return;
    }
    let module = sources().join("module");
    let built = place.command(&["guest", "module", module.to_str().unwrap()]).output().unwrap();
    if !built.status.success() {
        missing(&format!("the module is not built: {}", String::from_utf8_lossy(&built.stderr)));
        return;
    }
    let work = module.join("work.sh");
    let files = ["--file", "tickets.ko", "--file", work.to_str().unwrap()];
    let job = [&files[..], &["--cpus", "2", "--json", "--", "sh work.sh"]].concat();
    let explore = ["explore", "--seeds", "1..200", "--stop-after", "1"];
    let report = place.json(&[&explore[..], &job].concat(), 6);
    let failing = &report["failing"][0];
    assert_eq!(failing["exit_status"], 1, "{report}");
    let seed = failing["seed"].to_string();
    let again = place.json(&[&["run", "--seed", &seed], &job[..]].concat(), 1);
    assert_eq!(again["state_hash"], failing["state_hash"]);

    let script = std::fs::read_to_string(module.join("session.gdb")).unwrap();
    let recording = failing["recording"].as_str().unwrap();
    let words = ["debug", recording, "--symbols", "tickets.ko"];
    let told = place.piped(&words, script.as_bytes()).told();
    // A store that takes numbers back; another processor's came between its load and it.
    assert!(told.contains("the racing store is in tickets_take: 1, and takes back: 1"), "{told}");
    assert!(told.contains("the store before is another's: 1, of this ticket or a later one: 1"), "{told}");
    assert!(told.contains("the load is the loser's: 1, of the number that both give: 1"), "{told}");
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
        place.hindsight(words).with_status(2);
    }
    place.hindsight(&["explore", "--seeds", "3", "--cpus", "2", "--", "test $(nproc) = 2"]).with_status(0);
}
