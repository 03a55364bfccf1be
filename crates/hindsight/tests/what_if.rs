//! Branches in memory: changing something in the past and seeing what would have happened.

mod place;

use base::{GuestPhys, Position};
use place::past::{back_to, hash, open, run_to};
use place::{Place, RECORD, have};
use std::sync::OnceLock;
use timeline::{Change, ChangeError, Pause, Until};

/// A recording of a guest that got no input.
fn place() -> Option<&'static Place> {
    static PLACE: OnceLock<Option<Place>> = OnceLock::new();
    let place = PLACE.get_or_init(|| {
        let place = Place::new()?;
        let job = "for i in 1 2 3 4; do echo $i | sha256sum; done; sleep 1; echo done";
        place.json(&[&RECORD[..], &["./rec", "--", job]].concat(), 0);
        Some(place)
    });
    place.as_ref()
}

#[test]
fn a_branch_without_a_change_is_history_over_again_up_to_its_end() {
    let Some(place) = place() else { return };
    let mut travel = open(&place.path("rec"));
    let end = travel.end();
    let middle = end.count() * 6 / 10;
    travel.seek(end).unwrap();
    let last = hash(&mut travel);
    travel.seek(Position::from_count(middle + 7_654_321)).unwrap();
    let ahead = hash(&mut travel);
    travel.seek(Position::from_count(middle)).unwrap();
    let here = hash(&mut travel);
    travel.begin_branch().unwrap();
    assert_eq!(run_to(&mut travel, middle + 7_654_321), Pause::Position);
    assert_eq!(hash(&mut travel), ahead);
    assert_eq!(travel.run_until(&Until::default(), &|| false).unwrap(), Pause::End);
    assert_eq!(travel.branch_over().unwrap().why, "has powered off");
    assert_eq!((travel.position(), hash(&mut travel)), (end, last));
    // Back in it, as far as it goes.
    assert_eq!(travel.run_back_until(&Until::default(), &|| false).unwrap(), Pause::Start);
    assert_eq!((travel.position().count(), hash(&mut travel)), (middle, here));
    travel.end_branch().unwrap();
    travel.seek(Position::from_count(middle + 7_654_321)).unwrap();
    assert_eq!(hash(&mut travel), ahead, "history after the branch");
}

#[test]
fn what_is_changed_stays_changed_on_the_way_back_and_forth_and_history_does_not_change() {
    let Some(place) = place() else { return };
    let mut travel = open(&place.path("rec"));
    let middle = travel.end().count() * 7 / 10;
    travel.seek(Position::from_count(middle)).unwrap();
    let here = hash(&mut travel);
    let byte = Change::Memory { at: GuestPhys(0x9_0000), bytes: vec![0x5a; 3] };
    assert!(matches!(travel.change(byte.clone()), Err(ChangeError::History)));
    travel.begin_branch().unwrap();
    travel.change(byte).unwrap();
    let begun = hash(&mut travel);
    assert_ne!(begun, here);
    let outside = Change::Memory { at: GuestPhys(0xfee0_0000), bytes: vec![1] };
    assert!(matches!(travel.change(outside), Err(ChangeError::NoMemory(0xfee0_0000))));
    // A second change on the way, of a register that the guest sees.
    run_to(&mut travel, middle + 3_000_000);
    let before = hash(&mut travel);
    let mut state = travel.session().machine().processor().state().clone();
    state.gpr[15] ^= 0x10;
    travel.change(Change::Registers { cpu: 0, state: Box::new(state) }).unwrap();
    let changed = hash(&mut travel);
    assert_ne!(changed, before);
    run_to(&mut travel, middle + 3_500_000);
    let after = hash(&mut travel);
    for _ in 0..2 {
        travel.seek(Position::from_count(middle)).unwrap();
        assert_eq!(hash(&mut travel), begun);
        travel.seek(Position::from_count(middle + 3_500_000)).unwrap();
        assert_eq!(hash(&mut travel), after);
        back_to(&mut travel, middle + 3_000_000);
        assert_eq!(hash(&mut travel), changed);
    }
    // A change further back gives up what followed, the second change too.
    travel.seek(Position::from_count(middle + 1_000_000)).unwrap();
    travel.change(Change::Memory { at: GuestPhys(0x9_0000), bytes: vec![0] }).unwrap();
    assert_eq!(travel.end().count(), middle + 1_000_000);
    travel.end_branch().unwrap();
    assert_eq!((travel.position().count(), hash(&mut travel)), (middle, here));
}

#[test]
fn gdb_writes_in_a_branch_and_not_in_history() {
    let Some(place) = place() else { return };
    if !have("gdb") {
        return;
    }
    let commands = "set $r15 = 1\nset {char}$rsp = 77\n\
        monitor branch\nset {char}$rsp = 77\nprint {char}$rsp\nset $rax = 0x1234\nstepi\nreverse-stepi\n\
        print \"rax\"\nprint/x $rax\nset $cr3 = 0\nmonitor type \"x\\n\"\nmonitor info\nreverse-continue\n\
        monitor history\nprint/x $rax == 0x1234\nmonitor history\nkill\nquit\n";
    let (_, told) = place.debugged(&["./rec", "--at", "60%"], commands);
    assert!(told.matches("begin a branch here with `monitor branch`").count() >= 2, "{told}");
    for expected in [
        "a branch begins at position",
        "= 77 'M'",
        "0x1234",
        "control register",
        "2 bytes typed",
        "this is a branch",
        "back in history at",
        "$4 = 0x0",
        "this is history",
    ] {
        assert!(told.contains(expected), "{expected} is missing:\n{told}");
    }
}
