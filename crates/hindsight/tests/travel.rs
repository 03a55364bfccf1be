//! Moving in the past of a recording: wherever one comes from, a position is one state.
//!
//! Each run records a small Debian guest once.

mod place;

use base::Position;
use dice::Dice;
use place::past::{back_to, hash, open, run_to, sought, straight};
use place::{Place, have};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::OnceLock;
use timeline::{Hit, Pause, Travel, Until, WatchRange};

/// The recording to travel in, made on first use; `None` when there is no guest to make one of.
fn recorded() -> Option<&'static (Place, PathBuf)> {
    static RECORDED: OnceLock<Option<(Place, PathBuf)>> = OnceLock::new();
    let record = || {
        let place = Place::new()?;
        let recording = place.recorded();
        Some((place, recording))
    };
    RECORDED.get_or_init(record).as_ref()
}

fn past() -> Option<Travel> {
    recorded().map(|(_, recording)| open(recording))
}

/// `HINDSIGHT_TEST_COUNT` says how many positions, and `SEED` which.
#[test]
fn a_position_is_one_state_wherever_one_comes_from() {
    let Some((_, recording)) = recorded() else { return };
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    let (count, seed) = (number("HINDSIGHT_TEST_COUNT", 12), number("SEED", 5));
    let mut dice = Dice::new(seed, 0);
    let mut travel = open(recording);
    let end = travel.end().count();
    let positions: Vec<u64> = (0..count).map(|_| dice.under(end)).collect();
    let expected = straight(recording, &positions);
    for (n, at) in positions.into_iter().enumerate() {
        // Like a debugger: from far away, from a little later, from a little earlier, and by steps.
        sought(&mut travel, [at], &expected);
        let (later, earlier, steps) = (dice.under(20_000_000), dice.under(20_000_000), dice.below(9) as u64);
        run_to(&mut travel, end.min(at + later).max(at + 1));
        back_to(&mut travel, at);
        assert_eq!(hash(&mut travel), expected[&at], "seed {seed}, back to {at} from {later} later");
        back_to(&mut travel, at.saturating_sub(earlier));
        if travel.position().count() < at {
            run_to(&mut travel, at);
        }
        assert_eq!(hash(&mut travel), expected[&at], "seed {seed}, on to {at} from {earlier} earlier");
        for step in 1..=steps.min(at) {
            back_to(&mut travel, at - step);
        }
        while travel.position().count() < at {
            let next = travel.position().count() + 1;
            run_to(&mut travel, next);
        }
        assert_eq!(hash(&mut travel), expected[&at], "seed {seed}, {steps} steps back from {at} and forth");
        if (n + 1) % 100 == 0 {
            eprintln!("{} positions", n + 1);
        }
    }
    eprintln!("{count} positions with seed {seed}: each the same state by four ways and by a straight run");
}

/// Spoils stored pages in every third chunk of a page store, and nothing that is read when it is opened
/// (docs/recording-format.md: chunk headers of 64 bytes, then a directory of 22 bytes a page).
fn spoil_pages(store: &std::path::Path) {
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
    let Some((_, recording)) = recorded() else { return };
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(recording).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    spoil_pages(&copy.path().join("pages.store"));
    let mut travel = open(copy.path());
    assert!(travel.checkpoints().len() > 5, "the checkpoints are there");
    let (mut dice, end) = (Dice::new(12, 0), travel.end().count());
    let positions: Vec<u64> = (0..5).map(|_| dice.under(end)).collect();
    let expected = straight(recording, &positions);
    sought(&mut travel, positions, &expected);
}

#[test]
fn running_back_finds_what_running_forward_met_last() {
    let Some(mut travel) = past() else { return };
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
        let pause = travel.run_back_until(&until, &|| false).unwrap();
        let Pause::Hit(hit) = pause else { panic!("{pause:?} instead of {expected:?}") };
        assert_eq!((travel.position(), hit), expected);
    }
}

#[test]
fn gdb_walks_back_to_the_last_call_of_a_function_and_forward_again() {
    let Some((place, recording)) = recorded() else { return };
    if !have("gdb") {
        return;
    }
    let commands = "break do_sys_openat2\nreverse-continue\nbt 3\n\
        reverse-stepi\nreverse-stepi\nstepi\nstepi\ninfo symbol $pc\nmonitor when\nkill\nquit\n";
    let (text, told) = place.debugged(&[recording.to_str().unwrap(), "--at", "90%"], commands);
    assert!(text.contains("Breakpoint 1, "), "no stop at the breakpoint:\n{told}");
    let symbol = text.lines().filter(|line| line.contains("do_sys_openat2 in section")).count();
    assert_eq!(symbol, 1, "two steps back and two forward lead to the same place:\n{told}");
}
