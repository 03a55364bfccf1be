//! Moving in the past of a recording: wherever one comes from, a position is one state.
//!
//! The recording is made by `hindsight record`, and named by `HINDSIGHT_TEST_RECORDING`; without
//! one the tests say so and pass.

use base::Position;
use recording::{HashCache, Recording, StateHash};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use timeline::{Hit, Pause, Travel, Tuning, Until, WatchRange};

fn open() -> Option<Travel> {
    let Some(path) = std::env::var_os("HINDSIGHT_TEST_RECORDING") else {
        eprintln!("no HINDSIGHT_TEST_RECORDING: nothing is tested");
        return None;
    };
    let recording = Recording::open(path.as_ref()).unwrap();
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

#[test]
fn running_back_finds_what_running_forward_met_last() {
    let Some(mut travel) = open() else { return };
    let end = travel.end().count();
    let from = Position::from_count(end / 2);
    travel.seek(from).unwrap();
    let rsp = travel.session().machine().processor().state().gpr[4];
    let rip = travel.session().machine().processor().linear_rip();
    let watch = WatchRange { start: base::GuestVirt(rsp & !7), bytes: 8, reads: false, writes: true };
    let until = Until { breakpoints: BTreeSet::from([rip]), watches: vec![watch], position: None };
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
        Hit::Breakpoint(_) => (*at, *hit),
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
