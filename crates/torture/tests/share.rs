//! A seeded share of what `cargo xtask fuzz` does for hours.

use torture::{Case, Kind, judge};

/// Cases; release builds take about ten seconds.
const SEEDS: u64 = 64;

#[test]
fn hostile_guests_end_in_one_state_at_every_pace() {
    let mut kinds = Vec::new();
    let mut ends = [0u64; 6];
    for seed in 0..SEEDS {
        let case = Case::new(seed);
        kinds.extend(case.kinds());
        let end = judge(&case).unwrap_or_else(|complaint| panic!("seed {seed}: {complaint}")).end;
        let figures =
            [end.triple_faults, end.resets, end.power_offs, end.panics, end.halts, end.inputs_taken];
        ends.iter_mut().zip(figures).for_each(|(sum, figure)| *sum += u64::from(figure));
    }
    kinds.sort_unstable();
    kinds.dedup();
    assert_eq!(
        kinds,
        [Kind::Bytes, Kind::Soup, Kind::System, Kind::Paging, Kind::Ports, Kind::Mmio, Kind::Virtio]
    );
    assert!(ends.iter().all(|count| *count > 0), "every kind of end and inputs: {ends:?}");
}

#[test]
fn a_seed_means_the_same_case_every_time() {
    let [a, b] = [Case::new(5), Case::new(5)].map(|case| format!("{case:?}"));
    assert_eq!(a, b);
    assert_ne!(a, format!("{:?}", Case::new(6)));
}
