//! The generated part of docs/performance.md.

use crate::{Result, workspace};
use std::fs;

const BEGIN: &str = "<!-- cargo xtask bench: begin -->";
const END: &str = "<!-- cargo xtask bench: end -->";

/// Puts the newest table between the marks of docs/performance.md, and the plot beside it.
pub fn write(table: &str, svg: &str) -> Result {
    let folder = workspace::root().join("docs");
    let page = folder.join("performance.md");
    let at = |error: std::io::Error| format!("{}: {error}", page.display());
    let old = fs::read_to_string(&page).map_err(at)?;
    let new = replaced(&old, table).ok_or_else(|| format!("{}: it has no {BEGIN}", page.display()))?;
    fs::write(&page, new).map_err(at)?;
    fs::write(folder.join("performance.svg"), svg).map_err(at)
}

/// `old` with `table` between the marks.
fn replaced(old: &str, table: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", table.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = |table: &str| format!("# Title\n\n{BEGIN}\n\n{table}\n\n{END}\n\nmore\n");
        assert_eq!(replaced(&page("old\nold"), "new\n"), Some(page("new")));
        assert_eq!(replaced("no marks", "new"), None);
    }
}
