//! Writing and reading a recording, when nothing goes wrong.

mod common;
use common::*;
use recording::*;
use std::time::Duration;

#[test]
fn what_was_recorded_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a folder with spaces");
    std::fs::create_dir(&path).unwrap();
    let events = record(&path, &some_events(&mut Rng(1), 3000));
    let recording = Recording::open(&path).unwrap();
    assert_eq!(recording.events().collect::<Result<Vec<_>, _>>().unwrap(), events);
    assert_eq!(recording.manifest().guest, guest());
    let last = events.last().unwrap().at;
    assert_eq!(recording.extent(), Extent { last, ended: true, torn: false });
    assert!(!path.join("events.tail").exists());
}

#[test]
fn reading_from_a_position_gives_the_events_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(2);
    // Large payloads, so that there are many chunks.
    let mut events: Vec<Event> = Vec::new();
    for n in 0..60 {
        let len = if n % 10 == 0 { CHUNK + 1 } else { 100 };
        let kind = EventKind::Input { kind: 1, payload: rng.bytes(len) };
        events.push(Event { at: at(n / 3 * 100), kind });
    }
    let events = record(dir.path(), &events);
    let recording = Recording::open(dir.path()).unwrap();
    assert!(recording.manifest().completion().unwrap().chunks > 3);
    for from in [0, 1, 100, 350, 500, 1900, 1901, 1910, 5000] {
        let found: Vec<Event> = recording.events_from(at(from)).map(Result::unwrap).collect();
        let expected: Vec<Event> = events.iter().filter(|e| e.at >= at(from)).cloned().collect();
        assert!(found == expected, "from {from}");
    }
}

#[test]
fn a_recorder_that_vanishes_leaves_a_recording_without_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let events = some_events(&mut Rng(3), 100);
    let writer = Writer::create(dir.path(), manifest()).unwrap();
    write(&writer, &events);
    writer.flush().unwrap();
    // Read while the recorder is alive: everything is in the tail.
    assert_eq!(read(dir.path()).unwrap(), events);
    drop(writer);
    let recording = Recording::open(dir.path()).unwrap();
    assert_eq!(recording.extent(), Extent { last: events.last().unwrap().at, ended: false, torn: false });
    assert_eq!(read(dir.path()).unwrap(), events);
    let info = Info::gather(&recording);
    assert!(matches!(info.integrity, Integrity::WithoutEnd { .. }));
}

#[test]
fn an_event_reaches_the_disk_within_a_tenth_of_a_second_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest()).unwrap();
    for n in 0..5 {
        writer.input(at(n), 1, b"key");
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(read(dir.path()).unwrap().len() as u64, n + 1);
    }
}

#[test]
fn an_idle_guest_costs_less_than_a_hundred_bytes_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let writer = Writer::create(dir.path(), manifest()).unwrap();
    let mut rng = Rng(4);
    let (before, _) = (folder_bytes(dir.path()), ());
    for second in 0..60 {
        let hash = StateHash { registers: rng.digest(), devices: rng.digest(), memory: rng.digest() };
        writer.hash(at(second * 2_000_000_000), &hash);
        writer.input(at(second * 2_000_000_000), 3, &rng.bytes(9));
    }
    drop(writer);
    let chunks_of_20_s = 3 * 80;
    let grown = folder_bytes(dir.path()) - before + chunks_of_20_s;
    assert!(grown <= 60 * 100, "{grown} bytes in a minute");
}

fn folder_bytes(path: &std::path::Path) -> u64 {
    std::fs::read_dir(path).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn reading_a_recording_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &some_events(&mut Rng(5), 50));
    let listing = || {
        let mut all: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name(), e.metadata().unwrap().modified().unwrap()))
            .collect();
        all.sort();
        all
    };
    let before = listing();
    let recording = Recording::open(dir.path()).unwrap();
    Info::gather(&recording);
    Bookmarks::open(&recording).unwrap();
    assert!(Checkpoints::open(&recording).unwrap().is_none());
    assert_eq!(listing(), before);
}

#[test]
fn info_counts_events_and_bytes_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(dir.path(), manifest()).unwrap();
    writer.name_inputs([(1, "console".to_owned())].into()).unwrap();
    writer.input(at(1), 1, b"ls\n");
    writer.input(at(2), 1, b"cd\n");
    writer.input(at(3), 9, b"x");
    writer.hash(at(4), &StateHash::default());
    writer.finish(at(5), end(), StateHash::default(), 1_500_000_000).unwrap();
    let info = Info::gather(&Recording::open(dir.path()).unwrap());
    assert_eq!(info.events["console"], 2);
    assert_eq!(info.bytes["console"], 6);
    assert_eq!(info.events["input-9"], 1);
    assert_eq!((info.instructions, info.guest_seconds, info.exit), (5, Some(1.5), Some("poweroff")));
    assert_eq!(info.integrity, Integrity::Complete);
}

#[test]
fn bookmarks_stay_with_the_recording() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &[]);
    let recording = Recording::open(dir.path()).unwrap();
    let mut bookmarks = Bookmarks::open(&recording).unwrap();
    let here = Bookmark { at: at(42), note: "list head is broken".into() };
    bookmarks.set("first oops", here.clone()).unwrap();
    assert!(bookmarks.set("", here.clone()).is_err());
    assert!(bookmarks.set("a\nb", here.clone()).is_err());
    let mut again = Bookmarks::open(&recording).unwrap();
    assert_eq!(again.get("first oops"), Some(&here));
    assert!(again.remove("first oops").unwrap());
    assert_eq!(Bookmarks::open(&recording).unwrap().all().count(), 0);
}

#[test]
fn a_recording_this_host_cannot_replay_is_refused_with_the_reason() {
    let path = std::path::Path::new("REC/manifest.json");
    let manifest = manifest();
    manifest.check_host(path, MACHINE, |_| true).unwrap();
    let error = manifest.check_host(path, MACHINE + 1, |_| true).unwrap_err().to_string();
    assert!(error.contains("machine version 3") && error.contains("machine version 4"), "{error}");
    let error = manifest.check_host(path, MACHINE, |feature| feature != "avx2").unwrap_err().to_string();
    assert!(error.contains("avx2"), "{error}");

    let text = String::from_utf8(manifest.encode().unwrap()).unwrap();
    let other = text.replacen(&format!("\"format\": {FORMAT}"), "\"format\": 99", 1);
    assert!(matches!(Manifest::decode(path, other.as_bytes()), Err(Error::OtherFormat { found: 99, .. })));
    let edited = text.replacen("\"cpus\": 1", "\"cpus\": 2", 1);
    assert!(matches!(Manifest::decode(path, edited.as_bytes()), Err(Error::Damaged { .. })));
    let respaced = text.replace("\n", "  \n\t");
    assert_eq!(Manifest::decode(path, respaced.as_bytes()).unwrap(), manifest);
}

#[test]
fn what_is_not_a_recording_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Recording::open(dir.path()), Err(Error::NotARecording { .. })));
    assert!(matches!(Recording::open(&dir.path().join("nothing")), Err(Error::Io { .. })));
    let text = dir.path().join("notes.txt");
    std::fs::write(&text, "just some text").unwrap();
    assert!(matches!(Recording::open(&text), Err(Error::NotARecording { .. })));
    assert!(Library::remove(dir.path()).is_err());
    assert!(text.exists());
}
