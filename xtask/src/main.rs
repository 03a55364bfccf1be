//! The project's chores behind one front door: `cargo xtask CHORE`.
//!
//! **What it may know:** the repository and its tools. **What it must never do:** hold anything
//! that users or the other crates need.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod compare;
mod costs;
mod hostile;
mod selftests;
mod soak;
mod tidy;
mod workloads;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The project's chores.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Chores {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything that a change has to pass: tests, tidy, format, clippy, documentation
    Ci,
    /// All tests, in release mode
    Test {
        /// Passed on to cargo test
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Format, clippy and documentation, without tests
    Lint,
    /// Hostile guests: random code, device accesses, virtqueues and page tables
    Fuzz(hostile::Options),
    /// The kernel's own tests of the architecture, natively, in our guest and in QEMU's
    Selftests(selftests::Options),
    /// Programs of a Debian guest that check themselves, and what each takes
    Workloads(workloads::Options),
    /// Measure Hindsight beside native execution and QEMU
    Bench(bench::Options),
    /// What recording and replaying cost: paired runs, medians
    Costs(costs::Options),
    /// A debugging session backwards in time, beside QEMU's reverse debugging
    Compare(compare::Options),
    /// The same promise tested over and over: record and replay, boots, kills, damage
    Soak(soak::Options),
    /// Tests of the repository itself: words, lengths, essays, the direction of dependencies
    Tidy,
}

/// A chore's complaint, for people.
type Result<T = ()> = std::result::Result<T, String>;

fn main() -> ExitCode {
    let result = match Chores::parse().chore {
        Chore::Ci => ci::all(),
        Chore::Test { arguments } => ci::test(&arguments),
        Chore::Lint => ci::lint(),
        Chore::Fuzz(options) => hostile::run(&options),
        Chore::Selftests(options) => selftests::run(&options),
        Chore::Workloads(options) => workloads::run(&options),
        Chore::Bench(options) => bench::bench(&options),
        Chore::Costs(options) => costs::costs(&options),
        Chore::Compare(options) => compare::compare(&options),
        Chore::Soak(options) => soak::soak(&options),
        Chore::Tidy => tidy::tidy(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(complaint) => {
            eprintln!("xtask: {complaint}");
            ExitCode::FAILURE
        }
    }
}
