//! Travelling at random in a recording of a real guest, each stop checked against the truth.
//!
//! What knows the truth is a test of the command line (`crates/hindsight/tests/random_gdb.rs` and
//! `travel.rs`), which does a little whenever the tests run. Here it does as much as one likes.

use super::Options;
use crate::{Result, workspace};

/// Has the file `name` of tests go to as many places as `options` say.
pub fn test(name: &str, options: &Options) -> Result {
    let (count, seed) = (options.count.to_string(), options.seed.to_string());
    let mut variables = vec![("HINDSIGHT_TEST_COUNT", count.as_str()), ("SEED", &seed)];
    let recording = options
        .recording
        .as_ref()
        .map(|path| path.canonicalize().map_err(|error| format!("--recording {}: {error}", path.display())));
    let recording = recording.transpose()?.map(|path| path.display().to_string());
    variables.extend(recording.as_deref().map(|path| ("HINDSIGHT_TEST_RECORDING", path)));
    // The other tests of the file are about something else.
    let random = ["a_position_is_one_state_wherever_one_comes_from", "random_moves_stop_where_they_should"];
    let words = ["test", "--release", "--locked", "-p", "hindsight", "--test", name, "--", "--nocapture"];
    workspace::run("cargo", &[&words[..], &random].concat(), &variables)
}
