//! `cargo xtask fuzz`: hostile guests for a while, with every check of arithmetic built in.

use crate::{Result, workspace};
use clap::Args;

/// Which guests, and for how long.
#[derive(Args)]
pub struct Options {
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// The first seed; the next ones follow
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Builds the `torture` command and runs it.
pub fn run(options: &Options) -> Result {
    let (first, last) = (options.seed.to_string(), options.seed.saturating_add(1 << 32).to_string());
    let minutes = options.minutes.to_string();
    let words = ["run", "--profile", "checked", "--locked", "-p", "torture", "--", &first, &last];
    workspace::run("cargo", &[&words[..], &["--minutes", &minutes]].concat(), &[])
}
