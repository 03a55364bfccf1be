//! Real guests, end to end through the command line: each test boots Debian's kernel.
//!
//! Without the small guest (no apt, no network) they are skipped with a message, but never in CI.
//! `HINDSIGHT_TEST_CACHE` names a cache folder to reuse.

mod place;

use place::{Done, Place, facts};
use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

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

    let record = [
        "record",
        "-o",
        "./a recording",
        "--hash-every",
        "500000000",
        "--json",
        "--console",
        "third",
        "--",
        WORK,
    ];
    let recorded = place.hindsight(&record).with_status(0).json();
    assert_eq!(facts(&recorded), facts(&first));
    assert_eq!(fs::read(place.path("third")).unwrap(), console);

    let replay = ["replay", "./a recording", "--chaos", "3", "--json", "--console", "fourth"];
    let replayed = place.hindsight(&replay).with_status(0).json();
    assert_eq!(facts(&replayed), facts(&first));
    assert_eq!(replayed["exit"], "end-of-recording");
    assert!(replayed["hashes_checked"].as_u64().unwrap() >= 2);
    assert_eq!(fs::read(place.path("fourth")).unwrap(), console);
}

/// How many of a profile's line there were.
fn counted(profile: &str, what: &str) -> u64 {
    let line =
        profile.lines().find(|line| line.contains(what)).unwrap_or_else(|| panic!("{what}: {profile}"));
    line.rsplit(['(', ')']).nth(1).unwrap().parse().unwrap()
}

#[test]
fn translations_are_kept_from_run_to_run_and_make_no_difference() {
    let Some(place) = Place::new() else { return };
    let record = [
        "record",
        "-o",
        "./rec",
        "--translations",
        "./kept",
        "--json",
        "--console",
        "first",
        "--",
        "uname -a",
    ];
    let first = place.json(&record, 0);
    let segments = || {
        let files = fs::read_dir(place.path("kept")).unwrap().map(|entry| entry.unwrap().path());
        files.collect::<Vec<_>>()
    };
    let [segment] = &segments()[..] else { panic!("{:?}", segments()) };
    // Being profiled makes no difference. Nothing drops translations here (`--chaos` can at the very end,
    // and then the map is rightly empty).
    let replay = |translations: &str| {
        let words = ["replay", "./rec", "--translations", translations, "--profile-engine=profile", "--json"];
        let told = place.json(&words, 0);
        assert_eq!((facts(&told), &told["exit"]), (facts(&first), &"end-of-recording".into()));
        let profile = fs::read_to_string(place.path("profile")).unwrap();
        is_a_profile(&profile);
        ["blocks kept by an earlier run", "blocks translated"].map(|what| counted(&profile, what))
    };
    let [kept, translated] = replay("./kept");
    assert!(kept > 20_000 && translated < kept / 8, "{kept} kept, {translated} translated");
    // Without them, and with what is damaged here and there.
    let [kept, translated] = replay("off");
    assert!(kept == 0 && translated > 20_000, "{kept} kept, {translated} translated");
    let mut bytes = fs::read(segment).unwrap();
    let index = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
    (100..index).step_by(3001).for_each(|at| bytes[at] ^= 0x10);
    fs::write(segment, bytes).unwrap();
    let [kept, translated] = replay("./kept");
    assert!(kept > 5000 && translated > 1000, "{kept} kept, {translated} translated");
    // Where there can be none.
    fs::write(place.path("file"), "").unwrap();
    let refused = place.hindsight(&["replay", "./rec", "--translations", "./file"]).with_status(2);
    assert!(refused.stderr.contains("--translations ./file: "), "{}", refused.stderr);
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

#[test]
fn input_that_is_over_stays_over_and_need_not_be_read() {
    let Some(place) = Place::new() else { return };
    // Every reader after the first sees the end as well, and an end in the middle of a line is one.
    let twice = "cat | wc -c; cat | wc -c; read line || echo over";
    assert_eq!(place.piped(&["run", "--", twice], b"a\nbc").with_status(0).stdout, b"4\n0\nover\n");
    let first = "read line; echo \"<$line>\"; cat | wc -l";
    let shown = place.piped(&["run", "--", first], b"one\ntwo\nthree\n").with_status(0).stdout;
    assert_eq!(shown, b"<one>\n2\n");
    // A command that reads nothing ends all the same, whatever is still to come.
    let more = vec![b'\n'; 300_000];
    let shown = place.piped(&["run", "--", "echo done; exit 5"], &more).with_status(5).stdout;
    assert!(shown == b"done\n", "{} bytes", shown.len());
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

    // With the disk back, nothing is wrong but the log.
    fs::write(disk, vec![0x5a; 1 << 20]).unwrap();
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
