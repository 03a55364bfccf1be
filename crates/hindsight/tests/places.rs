//! Where recordings are made and kept: two at a time, paths with spaces, places that cannot be
//! written, disks that fill up; and the signals that end them.

mod place;

use place::{Done, Place, facts};
use std::fs;
use std::process::{Command, Stdio};

const WORK: &str = "seq 1 2000 | gzip | md5sum; uname -r";

/// Runs a shell script in a mount namespace of its own; `None` where that is not allowed.
fn in_own_mounts(place: &Place, script: &str) -> Option<Done> {
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rm", "sh", "-c", script]).current_dir(place.folder.path());
        command.env("XDG_CACHE_HOME", place.cache).env("XDG_DATA_HOME", place.path("data"));
        command.env("HINDSIGHT", env!("CARGO_BIN_EXE_hindsight")).stdin(Stdio::null());
        command
    };
    let allowed = unshare("mkdir -p probe && mount -t tmpfs none probe").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
        assert!(!ci, "no file system can be mounted here");
        eprintln!("skipped: no file system can be mounted here");
        return None;
    }
    Some(Done::of(unshare(script).output().unwrap()))
}

#[test]
fn two_recordings_at_a_time_do_not_disturb_each_other() {
    let Some(place) = Place::new() else { return };
    let record = |name: &str, seed: &str| {
        // Both by name in the same library, begun at the same moment.
        let words = ["record", "-o", name, "--seed", seed, "--memory", "128M", "--json", "--", WORK];
        place.command(&words).spawn().unwrap()
    };
    let both = [record("first", "1"), record("second", "2")];
    let both = both.map(|child| Done::of(child.wait_with_output().unwrap()).with_status(0).json());
    assert_ne!(both[0]["state_hash"], both[1]["state_hash"], "their seeds differ");
    for (name, recorded) in ["first", "second"].iter().zip(&both) {
        let replayed = place.hindsight(&["replay", name, "--json"]).with_status(0).json();
        assert_eq!(facts(&replayed), facts(recorded));
    }
    let listed = place.hindsight(&["ls", "--json"]).with_status(0).json();
    assert_eq!(listed["recordings"].as_array().unwrap().len(), 2, "{listed}");
}

#[test]
fn a_read_only_recording_on_a_path_with_spaces_replays_and_is_packed() {
    let Some(place) = Place::new() else { return };
    let rec = "./a path/with  spaces and \"quotes\"";
    fs::create_dir(place.path("a path")).unwrap();
    let words = ["record", "-o", rec, "--memory", "128M", "--json", "--", WORK];
    let recorded = place.hindsight(&words).with_status(0).json();
    let script = "mount --bind 'a path' 'a path' && mount -o remount,ro,bind 'a path' || exit 99
        touch 'a path/x' 2>/dev/null && exit 98
        \"$HINDSIGHT\" info 'a path/with  spaces and \"quotes\"' >/dev/null || exit 97
        \"$HINDSIGHT\" pack 'a path/with  spaces and \"quotes\"' -o 'a pack.hindsight' || exit 96
        \"$HINDSIGHT\" replay 'a path/with  spaces and \"quotes\"' --json";
    let Some(done) = in_own_mounts(&place, script) else { return };
    let done = done.with_status(0);
    let text = String::from_utf8(done.stdout).unwrap();
    let replayed = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(facts(&replayed), facts(&recorded));
    let packed = place.hindsight(&["replay", "./a pack.hindsight", "--json"]).with_status(0).json();
    assert_eq!(facts(&packed), facts(&recorded));
}

#[test]
fn a_full_disk_stops_the_guest_with_a_line_and_what_was_written_replays() {
    let Some(place) = Place::new() else { return };
    // Input that does not compress fills what the first checkpoint leaves of the disk, or all of it.
    let script = "mkdir small && mount -t tmpfs -o size=1500k none small || exit 99
        head -c 4000000 /dev/urandom | od -An -v -tx1 | \"$HINDSIGHT\" record -o ./small/rec --memory 128M \
            --checkpoint-every $CHECKPOINTS -- 'cat >/dev/null; echo it got all of it'
        status=$?; cp -r small/rec ./copied; exit $status";
    for checkpoints in ["0", "100000000"] {
        let script = script.replace("$CHECKPOINTS", checkpoints);
        let Some(done) = in_own_mounts(&place, &script) else { return };
        let told = done.with_status(1).stderr;
        assert!(told.contains("recording stopped") && told.contains("free some space"), "{told}");
        let replay = place.hindsight(&["replay", "./copied", "--json"]).with_status(0);
        assert!(replay.json()["instructions"].as_u64().unwrap() > 0, "{}", replay.stderr);
        assert!(replay.stderr.contains("was not ended"), "{}", replay.stderr);
        fs::remove_dir_all(place.path("copied")).unwrap();
        fs::remove_dir(place.path("small")).unwrap();
    }
}

#[test]
fn interrupts_end_a_recording_cleanly() {
    let Some(place) = Place::new() else { return };
    for (name, signal, number) in
        [("int", rustix::process::Signal::INT, 2), ("hup", rustix::process::Signal::HUP, 1)]
    {
        let (rec, seen) = (format!("./{name}"), format!("{name}-seen"));
        let words =
            ["record", "-o", &rec, "--json", "--console", &seen, "--", "while :; do echo and on; done"];
        let recorder = place.started(&words, &seen, 2000);
        rustix::process::kill_process(rustix::process::Pid::from_child(&recorder), signal).unwrap();
        let recorded = Done::of(recorder.wait_with_output().unwrap()).with_status(128 + number).json();
        let replayed = place.hindsight(&["replay", &rec, "--json", "--console", "again"]).with_status(0);
        assert_eq!(facts(&replayed.json()), facts(&recorded), "{name}");
        assert_eq!(fs::read(place.path("again")).unwrap(), fs::read(place.path(&seen)).unwrap(), "{name}");
    }
}
