//! Tests of the repository itself.

use crate::Result;
use crate::workspace::{self, Package};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The house, from the ground floor up; a crate may use only crates on floors below its own.
/// New crates find their floor here.
const FLOORS: &[&[&str]] = &[
    &["base", "dice", "guest", "disk", "hostnet", "symbols", "translations"],
    &["x86"],
    &["memory"],
    &["cpu"],
    &["devices"],
    &["machine"],
    &["recording"],
    &["timeline"],
    &["gdb", "analysis"],
    &["hindsight"],
    &["oracle", "torture", "xtask"],
];

/// Crates beside the house: tests and chores, which nothing may use.
const BESIDE: &[&str] = &["oracle", "torture", "xtask"];

/// Longer files hold more than one concept.
const LINES_MAX: usize = 1000;

/// Left-overs of a debugging session, and notes that nobody finds again.
const UNWANTED: &[&str] = &["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX:", "HACK:"];

/// Checks everything, and complains about all at once.
pub fn tidy() -> Result {
    let packages = workspace::packages()?;
    let mut complaints = direction(&packages);
    complaints.extend(essays(&packages));
    for file in workspace::files()? {
        if file.extension().is_some_and(|end| end == "rs") {
            let Ok(text) = fs::read_to_string(&file) else {
                complaints.push(format!("{}: not readable as text", shown(&file)));
                continue;
            };
            complaints.extend(lines(&shown(&file), &text));
        }
    }
    if complaints.is_empty() {
        eprintln!("xtask: the repository is tidy");
        return Ok(());
    }
    Err(format!("the repository is not tidy:\n  {}", complaints.join("\n  ")))
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}

/// Dependencies point downwards only.
fn direction(packages: &BTreeMap<String, Package>) -> Vec<String> {
    let floor = |name: &str| FLOORS.iter().position(|crates| crates.contains(&name));
    let mut complaints = Vec::new();
    for (name, package) in packages {
        let Some(own) = floor(name) else {
            complaints.push(format!("crate {name} has no floor in xtask/src/tidy.rs"));
            continue;
        };
        for used in &package.uses {
            if BESIDE.contains(&used.as_str()) || floor(used).is_none_or(|below| below >= own) {
                complaints.push(format!("crate {name} uses {used}, which is not below it"));
            }
        }
    }
    complaints
}

/// Each crate's first page says what it is, what it may know and what it must never do.
fn essays(packages: &BTreeMap<String, Package>) -> Vec<String> {
    let mut complaints = Vec::new();
    for (name, package) in packages {
        let page = ["src/lib.rs", "src/main.rs"].map(|file| fs::read_to_string(package.folder.join(file)));
        let page = page.into_iter().flatten().next().unwrap_or_default();
        let essay = page.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join(" ");
        for part in ["may know", "must never"] {
            if !essay.contains(part) {
                complaints.push(format!("crate {name}: its first page does not say what it {part}"));
            }
        }
    }
    complaints
}

fn lines(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let count = text.lines().count();
    if count > LINES_MAX {
        complaints.push(format!("{name}: {count} lines; split it by concept (at most {LINES_MAX})"));
    }
    if !text.starts_with("//!") && !text.starts_with("#!") && !name.contains("/tests/") {
        complaints.push(format!("{name}: does not begin with what it is for (//!)"));
    }
    for (number, line) in text.lines().enumerate() {
        // This file has to name them.
        let found = UNWANTED.iter().find(|unwanted| line.contains(**unwanted) && name != "xtask/src/tidy.rs");
        if let Some(unwanted) = found {
            complaints.push(format!("{name}:{}: {unwanted}", number + 1));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn package(uses: &[&str]) -> Package {
        Package { folder: PathBuf::new(), uses: uses.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn the_repository_is_tidy() {
        tidy().unwrap();
    }

    #[test]
    fn a_crate_may_not_use_one_above_it() {
        let packages = BTreeMap::from([
            ("memory".to_owned(), package(&["base", "cpu"])),
            ("new".to_owned(), package(&[])),
            ("cpu".to_owned(), package(&["memory", "x86", "xtask"])),
        ]);
        assert_eq!(
            direction(&packages),
            [
                "crate cpu uses xtask, which is not below it",
                "crate memory uses cpu, which is not below it",
                "crate new has no floor in xtask/src/tidy.rs",
            ]
        );
    }

    #[test]
    fn long_files_and_left_overs_are_found() {
        assert!(lines("a.rs", &"//! x\n".repeat(LINES_MAX)).is_empty());
        assert_eq!(lines("a.rs", &"//! x\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(lines("a.rs", "//! x\nfn f() { todo!() }\n"), ["a.rs:2: todo!("]);
        assert_eq!(lines("a.rs", "fn f() {}\n").len(), 1);
    }
}
