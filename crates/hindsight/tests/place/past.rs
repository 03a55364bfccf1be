//! Standing in the past of a recording, for tests.

use base::Position;
use recording::{HashCache, Recording, StateHash};
use std::collections::BTreeMap;
use std::path::Path;
use timeline::{Pause, Travel, Tuning, Until};

/// The past of a recording, at its start.
pub fn open(recording: &Path) -> Travel {
    let recording = Recording::open(recording).unwrap();
    Travel::open(recording, &Tuning::default(), &mut HashCache::for_user()).unwrap()
}

/// The hash of everything that the guest could see.
pub fn hash(travel: &mut Travel) -> StateHash {
    travel.session_mut().state_hash().unwrap()
}

/// What ends a run at a position and nowhere else.
pub fn until(at: u64) -> Until {
    Until { position: Some(Position::from_count(at)), ..Until::default() }
}

/// Runs forward to a position.
pub fn run_to(travel: &mut Travel, at: u64) -> Pause {
    travel.run_until(&until(at), &|| false).unwrap()
}

/// Runs back to a position.
pub fn back_to(travel: &mut Travel, at: u64) -> Pause {
    travel.run_back_until(&until(at), &|| false).unwrap()
}

/// Goes to each of `places` in turn, where the state has to be what `expected` says.
#[track_caller]
pub fn sought(
    travel: &mut Travel,
    places: impl IntoIterator<Item = u64>,
    expected: &BTreeMap<u64, StateHash>,
) {
    for at in places {
        travel.seek(Position::from_count(at)).unwrap();
        assert_eq!(hash(travel), expected[&at], "at {at}");
    }
}

/// The state at each of `places`, by running straight through, with no checkpoint used.
pub fn straight(recording: &Path, places: &[u64]) -> BTreeMap<u64, StateHash> {
    let mut travel = open(recording);
    let mut states: BTreeMap<u64, StateHash> = places.iter().map(|at| (*at, StateHash::default())).collect();
    for (at, state) in &mut states {
        run_to(&mut travel, *at);
        assert_eq!(travel.position().count(), *at);
        *state = hash(&mut travel);
    }
    states
}
