//! Random moves of a gdb client in a recording of a real guest, each stop checked against the truth.
//!
//! The client and the truth are a test of the command line (`crates/hindsight/tests/random_gdb.rs`),
//! which makes a few moves whenever the tests run. Here it makes as many as one likes.

use crate::{Result, workspace};

/// Makes `count` moves that follow from `seed`.
pub fn moves(count: u64, seed: u64) -> Result {
    let (count, seed) = (count.to_string(), seed.to_string());
    let words =
        ["test", "--release", "--locked", "-p", "hindsight", "--test", "random_gdb", "--", "--nocapture"];
    workspace::run("cargo", &words, &[("HINDSIGHT_TEST_COUNT", &count), ("SEED", &seed)])
}
