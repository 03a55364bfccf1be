//! Runs a range of seeds on two host executors and compares: whatever shows up is not a function of
//! the case. `cargo run --release -p oracle --example selfcheck FIRST LAST COMPATIBILITY% [step]`.

use oracle::{Budget, HostExecutor, Options, campaign};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, default: u64| arguments.get(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (mut one, mut two) = (HostExecutor::new().expect("a host"), HostExecutor::new().expect("a host"));
    two.step_everything(arguments.get(3).is_some());
    let options = Options { compatibility_percent: number(2, 0) as usize, ..Options::default() };
    let seeds = number(0, 0)..number(1, 100_000);
    println!("{}", campaign(&mut one, &mut two, seeds, &options, Budget::default()));
}
