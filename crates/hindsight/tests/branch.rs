//! Going live from the past: a branch has a future of its own, and a past it shares.
//!
//! Each test records a small Debian guest. Without it (no apt, no network) the tests are skipped
//! with a message, but never in CI.

mod place;

use base::Position;
use machine::{Input, Moment};
use place::past::{hash, open};
use place::{Place, RECORD, facts};
use recording::{End, EndReason, EventKind, HashCache, Recording, StateHash};
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use timeline::{
    Ended, Every, Host, HostFailed, Recorder, Replay, ReplayStop, Spacing, Target, Tuning, Watcher, run_live,
};

const BRANCH: [&str; 5] = ["record", "--json", "--checkpoint-every", "150000000", "-o"];

#[test]
fn without_new_input_a_branch_ends_as_its_parent_did_and_leaves_it_untouched() {
    let Some(place) = Place::new() else { return };
    let job = "for i in 1 2 3; do echo $i | sha256sum; done; sleep 2; date; exit 7";
    let parent = place.json(&[&RECORD[..], &["./parent", "--", job]].concat(), 7);
    let before = place.hashes("parent");
    let middle = parent["instructions"].as_u64().unwrap() / 2;
    let late = parent["guest_seconds"].as_f64().unwrap() - 1.5;
    for at in [&format!("{middle:#x}"), &format!("{late:.3}s")] {
        let branch = place.json(&["run", "--json", "--from", &format!("./parent@{at}")], 7);
        assert_eq!(facts(&branch), facts(&parent), "from {at}");
    }
    let branch = place.json(&[&BRANCH[..], &["./branch", "--from", "./parent@60%"]].concat(), 7);
    assert_eq!(facts(&branch), facts(&parent));
    let packed = ["pack", "./parent", "-o", "./parent.hindsight"];
    place.hindsight(&packed).with_status(0);
    assert_eq!(place.hashes("parent"), before, "the parent was touched");

    // The branch is whole by itself, and can have branches.
    std::fs::remove_dir_all(place.path("parent")).unwrap();
    let replayed = place.json(&["replay", "--json", "./branch"], 0);
    assert_eq!(facts(&replayed), facts(&parent));
    let twig = place.json(&[&BRANCH[..], &["./twig", "--from", "./branch@90%"]].concat(), 7);
    assert_eq!(facts(&twig), facts(&parent));
    let info = String::from_utf8(place.hindsight(&["info", "./twig"]).with_status(0).stdout).unwrap();
    let ancestors: Vec<&str> = info.lines().filter(|line| line.starts_with("branched off")).collect();
    assert_eq!(ancestors.len(), 2, "{info}");
    assert!(ancestors[0].contains("branch") && ancestors[1].contains("not there any more"), "{info}");

    // A branch of a packed recording brings its images along.
    let leaf = place.json(&[&BRANCH[..], &["./leaf", "--from", "./parent.hindsight@0"]].concat(), 7);
    assert_eq!(facts(&leaf), facts(&parent));
    std::fs::remove_file(place.path("parent.hindsight")).unwrap();
    assert_eq!(facts(&place.json(&["replay", "--json", "./leaf"], 0)), facts(&parent));
}

#[test]
fn what_cannot_be_branched_is_refused_in_a_line() {
    let Some(place) = Place::new() else { return };
    place.json(&[&RECORD[..], &["./parent", "--", "true"]].concat(), 0);
    let before = place.hashes("parent");
    for (words, complaint) in [
        (&["run", "--from", "./parent@end"][..], "had powered off"),
        (&["record", "-o", "./x", "--from", "./parent@100%"], "had powered off"),
        (&["run", "--from", "./nothing@0"], "there is no recording ./nothing"),
        (&["run", "--from", "./parent"], "REC@POS"),
        (&["run", "--from", "./parent@5", "--memory", "1G"], "cannot be used with"),
        (&["run", "--from", "./parent@5", "--", "true"], "cannot be used with"),
        (&["run", "--from", "./parent@5", "--net", "user"], "no network card"),
    ] {
        let told = place.hindsight(words).with_status(2).stderr;
        assert!(told.contains(complaint) && told.trim_end().lines().count() == 1, "{words:?}: {told}");
    }
    assert!(!place.path("x").exists(), "nothing is left of a recording that never began");
    assert_eq!(place.hashes("parent"), before);
}

/// Types a line when the guest has come to a position, while it works.
struct Typist {
    at: Position,
    text: Option<&'static str>,
    here: Position,
    shown: String,
}

impl Watcher for Typist {
    fn console(&mut self, port: u32, bytes: &[u8]) -> Result<(), HostFailed> {
        if port == 0 {
            self.shown += &String::from_utf8_lossy(bytes);
        }
        Ok(())
    }
    fn wants_stop(&mut self) -> bool {
        false
    }
    fn progress(&mut self, now: Moment) {
        self.here = now.position;
    }
}

impl Host for Typist {
    fn input(&mut self, _: Duration) -> Option<Input> {
        let text = if self.here >= self.at { self.text.take() } else { None };
        text.map(|text| Input::Serial { port: 0, bytes: text.into() })
    }
    fn may_give_input(&self) -> bool {
        false
    }
}

/// Goes live at `at`, types `text` a little later, and records what follows: the state at the end
/// and what was shown.
fn branch(parent: &Path, at: Position, text: &'static str, folder: &Path) -> (StateHash, String) {
    std::fs::create_dir(folder).unwrap();
    let mut travel = open(parent);
    travel.seek(at).unwrap();
    let (mut session, past) = travel.go_live().unwrap();
    let mut recorder =
        Recorder::begin_from(&mut session, folder, &past, Every::Instructions(100_000_000)).unwrap();
    let spacing = Spacing { every: Every::Instructions(100_000_000), ..Spacing::default() };
    recorder.take_checkpoints_from(&mut session, folder, spacing, &past).unwrap();
    let typing = at.after(8_000_000);
    let mut typist = Typist { at: typing, text: Some(text), here: at, shown: String::new() };
    assert_eq!(run_live(&mut session, &mut typist, Some(&mut recorder)).unwrap(), Ended::PowerOff);
    assert_eq!(typist.text, None, "nothing was typed");
    let end = End { reason: EndReason::Poweroff, status: 0 };
    let (manifest, _) = recorder.finish(&mut session, end).unwrap();
    (manifest.completion().unwrap().hash, typist.shown)
}

struct Nobody;

impl Watcher for Nobody {
    fn console(&mut self, _: u32, _: &[u8]) -> Result<(), HostFailed> {
        Ok(())
    }
    fn wants_stop(&mut self) -> bool {
        false
    }
}

#[test]
fn the_same_input_leads_to_the_same_future_and_another_to_another() {
    let Some(place) = Place::new() else { return };
    let job =
        "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; read a; echo \"got $a\"; echo $a | sha256sum";
    let words = [&RECORD[..], &["./parent", "--console", "stdio"]].concat();
    let words: Vec<&str> = words.into_iter().filter(|word| *word != "--json").chain(["--", job]).collect();
    let mut child = place.command(&words).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"nought\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("got nought"), "{output:?}");
    let parent = Recording::open(&place.path("parent")).unwrap();
    let typed = parent.events().map(|event| event.unwrap());
    let typed = typed.into_iter().find(|event| matches!(event.kind, EventKind::Input { kind: 0, .. }));
    let at = typed.unwrap().at;
    let before = place.hashes("parent");

    let make = |text, name: &str| branch(&place.path("parent"), at, text, &place.path(name));
    let (one, shown) = make("one\n\x04", "one");
    assert!(shown.contains("got one"), "{shown}");
    let (again, shown_again) = make("one\n\x04", "again");
    let (two, shown_two) = make("two\n\x04", "two");
    assert!(shown_two.contains("got two"), "{shown_two}");
    assert_eq!((one, &shown), (again, &shown_again), "the same input leads elsewhere");
    assert_ne!(one, two);
    assert_eq!(place.hashes("parent"), before, "the parent was touched");

    // Replays are exact, also of a branch of a branch; positions of the common past are the same.
    let later = at.after(4_000_000);
    let (three, shown) = branch(&place.path("two"), later, "three\n\x04", &place.path("three"));
    assert!(shown.contains("got three"), "{shown}");
    let mut common = Vec::new();
    for (name, end) in [("one", one), ("two", two), ("three", three)] {
        let recording = Recording::open(&place.path(name)).unwrap();
        let mut replay = Replay::open(&recording, &Tuning::default(), &mut HashCache::for_user()).unwrap();
        assert_eq!(replay.run(Target::End, &mut Nobody).unwrap(), ReplayStop::End);
        assert!(replay.hashes_checked() > 2, "{}", replay.hashes_checked());
        assert_eq!(replay.session_mut().state_hash().unwrap(), end, "{name}");
        let mut travel = open(&place.path(name));
        travel.seek(Position::from_count(at.count() - 12_345_678)).unwrap();
        common.push(hash(&mut travel));
    }
    assert!(common.iter().all(|hash| *hash == common[0]), "{common:?}");
}

/// However late the thread that writes may be: the recorder itself has written what a kill must not lose.
#[test]
fn how_far_a_working_machine_is_is_on_disk_when_the_recorder_has_looked_at_it() {
    let Some(place) = Place::new() else { return };
    place.json(&[&RECORD[..], &["./parent", "--", "seq 100 | sha256sum"]].concat(), 0);
    let (mut session, past) = {
        let mut travel = open(&place.path("parent"));
        travel.seek(Position::from_count(100_000_000)).unwrap();
        travel.go_live().unwrap()
    };
    let folder = place.path("killed");
    std::fs::create_dir(&folder).unwrap();
    let mut recorder = Recorder::begin_from(&mut session, &folder, &past, Every::Work).unwrap();
    for _ in 0..5 {
        session.run_until(session.position().after(1_000_000));
        std::thread::sleep(Duration::from_millis(30));
        recorder.look(&mut session).unwrap();
        assert_eq!(Recording::open(&folder).unwrap().extent().last, session.position());
    }
}
