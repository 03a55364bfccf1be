//! Running the host's own programs, with errors that fit on one line.

use crate::GuestError;
use std::io;
use std::process::{Command, Stdio};

/// Runs `command` to its end and returns its standard output.
///
/// The program speaks English and reads nothing. `what` names the step in an error; `missing`
/// makes the error when the program does not exist.
pub fn run(
    command: &mut Command,
    what: &str,
    missing: impl FnOnce() -> GuestError,
) -> Result<Vec<u8>, GuestError> {
    let output = command
        .env("LC_ALL", "C.UTF-8")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(GuestError::Tool { what: what.to_owned(), reason: error.to_string() }),
    };
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let reason = telling_line(&said).unwrap_or_else(|| output.status.to_string());
    Err(GuestError::Tool { what: what.to_owned(), reason })
}

/// Whether the host has this program on its PATH (or where administration programs live).
pub fn exists(program: &str) -> bool {
    find(program).is_some()
}

/// Where the program is: on the PATH, or in an administration folder that a user's PATH lacks.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// The line of a program's complaint that tells most: the first error, else the last line.
fn telling_line(said: &str) -> Option<String> {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = |line: &&str| line.starts_with("E: ") || line.to_ascii_lowercase().starts_with("error");
    let line = lines().find(error).or_else(|| lines().next_back())?;
    Some(line.trim_start_matches("E: ").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> GuestError {
        GuestError::NoCache
    }

    #[test]
    fn a_failing_program_is_reported_by_its_error_line() {
        let said = "W: old\nE: Unable to locate package x\nnote\n";
        assert_eq!(telling_line(said).as_deref(), Some("Unable to locate package x"));
        assert_eq!(telling_line("a\nb\n\n").as_deref(), Some("b"));
        assert_eq!(telling_line(""), None);
    }

    #[test]
    fn status_and_complaint_reach_the_caller() {
        let error = run(Command::new("sh").args(["-c", "echo no luck >&2; exit 3"]), "trying", none);
        assert_eq!(error.unwrap_err().to_string(), "trying failed: no luck");
        let error = run(Command::new("sh").args(["-c", "exit 3"]), "trying", none);
        assert_eq!(error.unwrap_err().to_string(), "trying failed: exit status: 3");
        let missing = run(&mut Command::new("no-such-program-here"), "trying", none);
        assert!(matches!(missing, Err(GuestError::NoCache)));
    }
}
