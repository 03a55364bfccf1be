//! How fast cases are made and run: `cargo run --release -p oracle --example speed [CASES]`.

use oracle::{Case, Executor, HostExecutor};
use std::time::{Duration, Instant};

fn main() {
    let count: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50_000);
    let mut host = HostExecutor::new().expect("this host can run cases");
    let (mut making, mut running) = (Duration::ZERO, Duration::ZERO);
    for batch in 0..count / 16 {
        let began = Instant::now();
        let cases: Vec<Case> = (batch * 16..batch * 16 + 16).map(Case::from_seed).collect();
        let made = Instant::now();
        host.run_batch(&cases);
        making += made - began;
        running += made.elapsed();
    }
    for (what, time) in [("made", making), ("run", running)] {
        println!("{what:5} {count} cases, {:6.2} µs each", time.as_secs_f64() * 1e6 / count as f64);
    }
}
