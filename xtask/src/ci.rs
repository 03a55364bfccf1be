//! What a change has to pass.

use crate::{Result, tidy, workspace};

/// Everything, the quickest complaint first.
pub fn all() -> Result {
    lint()?;
    tidy::tidy()?;
    test(&[])
}

/// Format, clippy, documentation.
pub fn lint() -> Result {
    workspace::run("cargo", &["fmt", "--all", "--check"], &[])?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--release", "--locked", "--", "-D", "warnings"];
    workspace::run("cargo", &clippy, &[])?;
    let doc = ["doc", "--workspace", "--no-deps", "--document-private-items", "--locked"];
    workspace::run("cargo", &doc, &[("RUSTDOCFLAGS", "-D warnings")])
}

/// All tests.
pub fn test(arguments: &[String]) -> Result {
    let mut words = vec!["test", "--release", "--workspace", "--locked"];
    words.extend(arguments.iter().map(String::as_str));
    workspace::run("cargo", &words, &[])
}
