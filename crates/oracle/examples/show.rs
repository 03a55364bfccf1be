//! Shows a case and what the host does: `show SEED [COMPATIBILITY%]`.

use oracle::{Case, Executor, HostExecutor, Options, UNLIKE_HOST};

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|text| text.parse().ok());
    let (seed, percent): (u64, u64) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let exclude = UNLIKE_HOST.to_vec();
    let options = Options { compatibility_percent: percent as usize, exclude, ..Options::default() };
    let case = Case::generate(seed, &options);
    println!("{case}");
    let outcome = HostExecutor::new().expect("a host").run(&case);
    println!("{:?} rip {:x} retired {}", outcome.ending, outcome.rip, outcome.retired);
}
