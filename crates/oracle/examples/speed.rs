//! How fast cases are made and run: `cargo run --release -p oracle --example speed [CASES]`.

use oracle::{Case, Executor, HostExecutor};
use std::time::Instant;

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50_000);
    let mut host = HostExecutor::new().expect("this host can run cases");
    let began = Instant::now();
    let cases: Vec<Case> = (0..count).map(Case::from_seed).collect();
    report("made", count, began);
    let began = Instant::now();
    for batch in cases.chunks(256) {
        host.run_batch(batch);
    }
    report("run", count, began);
}

fn report(what: &str, count: u64, began: Instant) {
    let seconds = began.elapsed().as_secs_f64();
    println!("{what:14} {count:8} cases, {:6.2} µs each", seconds * 1e6 / count as f64);
}
