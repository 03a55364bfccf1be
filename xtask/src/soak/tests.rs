//! A small share of every soak, with the tests.

use super::place::Place;
use super::{Kind, Options, run};
use crate::workspace;
use std::sync::OnceLock;

/// The place to soak in, with a guest in the cache; `None` when there is none to be had.
fn place() -> Option<Place> {
    let root = std::env::var_os("HINDSIGHT_TEST_ROOT_IMAGE").map(Into::into);
    let place = Place::new(root).unwrap();
    static READY: OnceLock<bool> = OnceLock::new();
    let up =
        || place.run(&workspace::root(), &["run", "--", "true"]).is_ok_and(|done| done.status == Some(0));
    if *READY.get_or_init(up) {
        return Some(place);
    }
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "there is no guest to soak with");
    eprintln!("skipped: there is no guest to soak with");
    None
}

fn share(kind: Kind, count: u64, seed: u64, cpus: &[u32], only: &[&str]) {
    let Some(place) = place() else { return };
    let (cpus, only) = (cpus.to_vec(), only.iter().map(|only| (*only).to_owned()).collect());
    let options = Options { kind, count, seed, root: None, recording: None, only, cpus, load: 0 };
    run(&place, &options).unwrap();
}

#[test]
fn a_share_of_the_pairs() {
    share(Kind::Pairs, 2, 11, &[1], &[]);
}

#[test]
fn a_share_of_the_kills() {
    share(Kind::Kills, 3, 12, &[1], &[]);
}

#[test]
fn a_share_of_the_damage() {
    share(Kind::Damage, 40, 13, &[1], &[]);
}

#[test]
fn a_share_of_the_boots() {
    share(Kind::Boots, 1, 14, &[1], &[]);
}

#[test]
fn a_share_of_several_processors() {
    share(Kind::Pairs, 2, 15, &[2, 4], &["crew"]);
    share(Kind::Boots, 1, 16, &[4], &[]);
}

#[test]
fn a_share_of_the_seeds() {
    share(Kind::Seeds, 3, 17, &[1], &[]);
}
