//! What is left of a recording when the recorder is killed, the disk fills up, or the files are
//! changed by anyone.

mod common;
use common::*;
use recording::*;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// An incomplete recording with two chunks in the log and some frames in the tail.
fn incomplete(folder: &Path) -> Vec<Event> {
    let mut events = some_events(&mut Rng(11), 30);
    let last = events.last().unwrap().at;
    events.push(Event { at: last, kind: EventKind::Input { kind: 0, payload: vec![7; 300_000] } });
    let more = some_events(&mut Rng(12), 30);
    events.extend(more.into_iter().map(|e| Event { at: last.after(e.at.count()), ..e }));
    let writer = Writer::create(folder, manifest()).unwrap();
    write(&writer, &events[..31]);
    writer.flush().unwrap();
    for event in &events[31..] {
        write(&writer, std::slice::from_ref(event));
        writer.flush().unwrap();
    }
    // As a kill leaves it: the drop would move the tail into the log.
    let killed = folder.with_extension("killed");
    copy_folder(folder, &killed);
    drop(writer);
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::rename(killed, folder).unwrap();
    events
}

#[test]
fn cut_at_any_byte_an_unfinished_recording_is_a_prefix_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rec");
    std::fs::create_dir(&folder).unwrap();
    let events = incomplete(&folder);
    assert_eq!(read(&folder).unwrap(), events);
    for name in ["events.log", "events.tail"] {
        let whole = std::fs::read(folder.join(name)).unwrap();
        let mut longest = 0;
        for len in 0..whole.len() {
            std::fs::write(folder.join(name), &whole[..len]).unwrap();
            match read(&folder) {
                Ok(found) => {
                    assert!(events.starts_with(&found), "{name} cut to {len} bytes");
                    assert!(found.len() >= longest, "{name} cut to {len} bytes lost more than to fewer");
                    longest = found.len();
                }
                // The tail knows how long the log must be.
                Err(Error::Damaged { file, .. }) => assert!(name == "events.log" && file.ends_with(name)),
                Err(e) => panic!("{name} cut to {len} bytes: {e}"),
            }
        }
        std::fs::write(folder.join(name), &whole).unwrap();
    }
    // Without its tail the log alone is a shorter recording at every length.
    std::fs::remove_file(folder.join("events.tail")).unwrap();
    let whole = std::fs::read(folder.join("events.log")).unwrap();
    for len in 0..whole.len() {
        std::fs::write(folder.join("events.log"), &whole[..len]).unwrap();
        assert!(events.starts_with(&read(&folder).unwrap()), "cut to {len} bytes");
    }
}

#[test]
fn a_finished_recording_that_was_cut_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), &some_events(&mut Rng(13), 40));
    let path = dir.path().join("events.log");
    let whole = std::fs::read(&path).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&path, &whole[..len]).unwrap();
        match read(dir.path()) {
            Err(Error::Damaged { file, .. }) => assert!(file.ends_with("events.log")),
            other => panic!("cut to {len} bytes: {other:?}"),
        }
    }
}

/// One way to spoil a folder; the name of what was done, for the message.
fn spoil(rng: &mut Rng, folder: &Path, other: &Path) -> (PathBuf, Vec<u8>, String) {
    let names = ["events.log", "manifest.json", "checkpoints.log", "pages.store", "bookmarks.json"];
    let weighted = [0, 0, 0, 1, 1, 2, 2, 3, 3, 4];
    let name = names[weighted[rng.below(10) as usize]];
    let path = folder.join(name);
    let before = std::fs::read(&path).unwrap();
    let mut bytes = before.clone();
    let len = bytes.len() as u64;
    let done = match rng.below(10) {
        0..=4 => {
            let bits: Vec<u64> = (0..1 + rng.below(3)).map(|_| rng.below(len * 8)).collect();
            bits.iter().for_each(|bit| bytes[(bit / 8) as usize] ^= 1 << (bit % 8));
            format!("flipped bits {bits:?}")
        }
        5 => {
            let at = rng.below(len);
            bytes.truncate(at as usize);
            format!("cut at {at}")
        }
        6 => {
            bytes = std::fs::read(other.join(name)).unwrap();
            "taken from another recording".into()
        }
        7 => {
            let (from, to, n) = (rng.below(len), rng.below(len), rng.below(300));
            let n = n.min(len - from).min(len - to) as usize;
            let piece = bytes[from as usize..from as usize + n].to_vec();
            bytes[to as usize..to as usize + n].copy_from_slice(&piece);
            format!("{n} bytes copied from {from} to {to}")
        }
        8 => {
            let (at, n) = (rng.below(len), 1 + rng.below(200) as usize);
            let garbage = rng.bytes(n);
            bytes.splice(at as usize..at as usize, garbage);
            format!("{n} bytes inserted at {at}")
        }
        _ => {
            let name = names[rng.below(5) as usize];
            bytes = std::fs::read(folder.join(name)).unwrap();
            format!("replaced by {name}")
        }
    };
    std::fs::write(&path, &bytes).unwrap();
    (path, before, done)
}

fn make_full(folder: &Path, seed: u64) -> Vec<Event> {
    std::fs::create_dir(folder).unwrap();
    let writer = Writer::create(folder, manifest()).unwrap();
    let id = writer.manifest().id;
    let checkpoints = Checkpoints::create(folder, id, Options::default()).unwrap();
    add_checkpoints(&checkpoints, &mut Rng(seed), 12, 300);
    checkpoints.finish().unwrap();
    let mut rng = Rng(seed);
    let mut events = some_events(&mut rng, 60);
    // Three chunks, the middle one of incompressible bytes.
    let last = events.last().unwrap().at;
    for kind in 0..2 {
        events.push(Event { at: last, kind: EventKind::Input { kind, payload: vec![kind as u8; 270_000] } });
    }
    let events = finish(writer, &events);
    let mut bookmarks = Bookmarks::open(&Recording::open(folder).unwrap()).unwrap();
    bookmarks.set("here", Bookmark { at: at(seed), note: "n".into() }).unwrap();
    events
}

fn mutations(default: u64) -> u64 {
    std::env::var("HINDSIGHT_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// 2,000 by default; set HINDSIGHT_MUTATIONS=10000 for the full measure, HINDSIGHT_SEED to repeat.
#[test]
fn a_spoiled_recording_is_an_error_naming_file_and_place_or_reads_exactly_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, other) = (dir.path().join("rec"), dir.path().join("other"));
    let events = make_full(&folder, 21);
    make_full(&other, 22);
    let opened = Recording::open(&folder).unwrap();
    let states = everything(&Checkpoints::open(&opened).unwrap().unwrap()).unwrap();
    let seed = std::env::var("HINDSIGHT_SEED").map_or(0x5eed, |s| s.parse().unwrap());
    let mut rng = Rng(seed);
    let (mut refused, mut same) = (0, 0);
    for round in 0..mutations(2000) {
        let (path, before, done) = spoil(&mut rng, &folder, &other);
        let what = format!("seed {seed} round {round}: {} {done}", path.display());
        let in_folder = |file: &Path| assert!(file.starts_with(&folder), "{what}: blames {}", file.display());
        let started = Instant::now();
        let ours = |e: Error| match e {
            Error::Damaged { file, .. } => in_folder(&file),
            Error::OtherFormat { path, .. } => in_folder(&path),
            e => panic!("{what}: {e}"),
        };
        match read(&folder) {
            Ok(found) => {
                assert!(found == events, "{what}: silently different events");
                same += 1;
                let recording = Recording::open(&folder).unwrap();
                let found = Checkpoints::open(&recording).map(|c| c.map(|c| everything(&c)));
                match found {
                    Ok(Some(Ok(found))) => {
                        // Cut logs have fewer checkpoints; each must be one that was made.
                        assert!(found.iter().all(|f| states.contains(f)), "{what}: different checkpoints");
                    }
                    Ok(Some(Err(e))) | Err(e) => ours(e),
                    Ok(None) => panic!("{what}: checkpoints vanished"),
                }
                match Bookmarks::open(&recording) {
                    Ok(_) => {} // people's notes: any that parse will do
                    Err(e) => ours(e),
                }
            }
            Err(e) => {
                ours(e);
                refused += 1;
            }
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: took {:?}", started.elapsed());
        std::fs::write(&path, &before).unwrap();
    }
    assert_eq!(read(&folder).unwrap(), events);
    println!("{refused} refused, {same} read the same");
    assert!(refused > 0 && same > 0);
}

#[test]
fn a_spoiled_pack_is_an_error_or_reads_exactly_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rec");
    let events = make_full(&folder, 23);
    let packed = dir.path().join("rec.hindsight");
    pack(&Recording::open(&folder).unwrap(), &packed, |_, _| Contents::Whole).unwrap();
    let whole = std::fs::read(&packed).unwrap();
    let mut rng = Rng(77);
    for round in 0..mutations(2000) / 4 {
        let mut bytes = whole.clone();
        let place = rng.below(bytes.len() as u64) as usize;
        if rng.below(4) == 0 {
            bytes.truncate(place);
        } else {
            bytes[place] ^= 1 << rng.below(8);
        }
        std::fs::write(&packed, &bytes).unwrap();
        match read(&packed) {
            Ok(found) => assert!(found == events, "round {round}: silently different"),
            Err(Error::Damaged { file, .. }) => assert!(file.starts_with(&packed)),
            Err(Error::NotARecording { .. } | Error::OtherFormat { .. }) => {}
            Err(e) => panic!("round {round}: {e}"),
        }
    }
}

#[test]
fn arbitrary_bytes_never_crash_a_reader() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rec");
    make_full(&folder, 24);
    let file = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let (log, pages, events, manifest) =
        (file("checkpoints.log"), file("pages.store"), file("events.log"), file("manifest.json"));
    let both = [&(log.len() as u32).to_le_bytes()[..], &log, &pages].concat();
    assert!(probe::manifest(&manifest).is_ok());
    assert!(probe::log(&events).unwrap() > 60);
    probe::checkpoints(&both).unwrap();
    let mut rng = Rng(31);
    for round in 0..mutations(2000) / 2 {
        for seed in [&events, &both, &manifest] {
            let mut bytes = seed.clone();
            match round % 3 {
                0 => {
                    let len = rng.below(400) as usize;
                    bytes = rng.bytes(len);
                }
                1 => bytes.truncate(rng.below(seed.len() as u64) as usize),
                _ => {
                    let place = rng.below(seed.len() as u64) as usize;
                    bytes[place] = rng.next() as u8;
                }
            }
            let _ = probe::manifest(&bytes);
            let _ = probe::log(&bytes);
            let _ = probe::tail(&bytes);
            let _ = probe::checkpoints(&bytes);
            let _ = probe::packed(&bytes);
        }
    }
}

/// Not a test of its own: HINDSIGHT_FUZZ_SEEDS=FOLDER writes whole files there for the fuzz targets
/// to begin with, in one folder each.
#[test]
fn seeds_for_the_fuzz_targets() {
    let Ok(seeds) = std::env::var("HINDSIGHT_FUZZ_SEEDS") else { return };
    let dir = tempfile::tempdir().unwrap();
    for number in 0..4 {
        let folder = dir.path().join(format!("rec{number}"));
        make_full(&folder, 60 + number);
        let killed = dir.path().join(format!("killed{number}"));
        std::fs::create_dir(&killed).unwrap();
        incomplete(&killed);
        let packed = dir.path().join(format!("rec{number}.hindsight"));
        pack(&Recording::open(&folder).unwrap(), &packed, |_, _| Contents::Whole).unwrap();
        let file = |path: &Path| std::fs::read(path).unwrap();
        let log = file(&folder.join("checkpoints.log"));
        let both = [&(log.len() as u32).to_le_bytes()[..], &log, &file(&folder.join("pages.store"))].concat();
        for (target, bytes) in [
            ("manifest", file(&folder.join("manifest.json"))),
            ("log", file(&folder.join("events.log"))),
            ("tail", file(&killed.join("events.tail"))),
            ("checkpoints", both),
            ("packed", file(&packed)),
        ] {
            let place = Path::new(&seeds).join(target);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join(format!("seed{number}")), bytes).unwrap();
        }
    }
}

const CHILD: &str = "HINDSIGHT_TEST_CHILD_FOLDER";

/// Not a test of its own: what the killed recorder of the next test does.
#[test]
fn child_that_records_until_it_is_killed() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let writer = Writer::create(Path::new(&folder), manifest()).unwrap();
    let mut rng = Rng(41);
    for n in 1.. {
        // Bursts large enough to make chunks, and quiet times.
        let len = if rng.below(50) == 0 { 40_000 } else { rng.below(200) as usize };
        writer.input(at(n), (n % 7) as u16, &Rng(n).bytes(len));
        println!("recorded {n}");
        if rng.below(20) == 0 {
            std::thread::sleep(Duration::from_millis(rng.below(15)));
        }
        if let Err(stopped) = writer.check() {
            println!("stopped {stopped}");
            return;
        }
    }
}

fn child(folder: &Path, prefix: &str) -> Command {
    let me = std::env::current_exe().unwrap();
    let run = "--exact child_that_records_until_it_is_killed --nocapture";
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{prefix} exec '{}' {run}", me.display()));
    command.env(CHILD, folder).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

#[test]
fn a_killed_recorder_loses_at_most_a_tenth_of_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(51);
    for round in 0..mutations(2000) / 250 {
        let folder = dir.path().join(format!("rec{round}"));
        std::fs::create_dir(&folder).unwrap();
        let mut process = child(&folder, "").spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut seen: Vec<(Instant, u64)> = Vec::new();
        let kill_after = Duration::from_millis(50 + rng.below(300));
        let started = Instant::now();
        while started.elapsed() < kill_after {
            let line = lines.next().unwrap().unwrap();
            if let Some(n) = line.strip_prefix("recorded ") {
                seen.push((Instant::now(), n.parse().unwrap()));
            }
        }
        let killed = Instant::now();
        process.kill().unwrap();
        process.wait().unwrap();
        let found = read(&folder).unwrap();
        let positions: Vec<u64> = found.iter().map(|e| e.at.count()).collect();
        assert!(positions.iter().copied().eq(1..=positions.len() as u64), "round {round}");
        for event in &found {
            let EventKind::Input { kind, payload } = &event.kind else { panic!("{event:?}") };
            let n = event.at.count();
            assert!(u64::from(*kind) == n % 7 && *payload == Rng(n).bytes(payload.len()));
        }
        let limit = Duration::from_millis(100);
        let settled = seen.iter().rfind(|(when, _)| killed.duration_since(*when) > limit);
        let must = settled.map_or(0, |(_, n)| *n);
        assert!(positions.len() as u64 >= must, "round {round}: {} of {must}", positions.len());
    }
}

/// The line with which the child stopped, and the position that it promises.
fn stopped_line(output: &str) -> (&str, u64) {
    let line = output.lines().find(|line| line.starts_with("stopped")).expect("it stops");
    assert!(line.contains("recording stopped") && line.contains("cannot be written"), "{line}");
    let position = line.split("position ").nth(1).unwrap().split(' ').next().unwrap();
    (line, position.parse().unwrap())
}

#[test]
fn a_write_that_fails_stops_the_recorder_with_a_clear_line_and_what_was_written_replays() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("rec");
    std::fs::create_dir(&folder).unwrap();
    let mut process = child(&folder, "trap '' XFSZ; ulimit -f 600;").spawn().unwrap();
    let mut output = String::new();
    process.stdout.take().unwrap().read_to_string(&mut output).unwrap();
    process.wait().unwrap();
    let (line, flushed) = stopped_line(&output);
    assert!(flushed > 0, "{line}");
    assert_eq!(read(&folder).unwrap().last().unwrap().at.count(), flushed, "{line}");
}

/// Where the host lets nobody mount a small file system, the test above has to do.
#[test]
fn a_full_disk_stops_the_recorder_with_a_hint_and_what_was_written_replays() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let inside = small.join("rec");
    let script = format!(
        "mount -t tmpfs -o size=400k none '{0}' && mkdir '{1}' && {{ $RUN; cp -r '{1}' '{2}/rec'; }}",
        small.display(),
        inside.display(),
        dir.path().display()
    );
    let me = std::env::current_exe().unwrap();
    let run = "--exact child_that_records_until_it_is_killed --nocapture";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .env(CHILD, &inside)
        .env("RUN", format!("{} {run}", me.display()))
        .output();
    let copied = dir.path().join("rec");
    let Some(output) = output.ok().filter(|_| copied.exists()) else {
        eprintln!("skipped: no file system can be mounted here");
        return;
    };
    let output = String::from_utf8(output.stdout).unwrap();
    let (line, flushed) = stopped_line(&output);
    assert!(line.contains("free some space"), "{line}");
    assert!(flushed > 0, "{line}");
    assert_eq!(read(&copied).unwrap().last().unwrap().at.count(), flushed, "{line}");
}
