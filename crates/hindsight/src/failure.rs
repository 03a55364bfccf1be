//! Why a command ends without doing its work: one line, and an exit status.

use std::fmt;

/// A failure that the user sees as `hindsight: LINE`.
#[derive(Debug)]
pub struct Failure {
    status: u8,
    line: String,
}

impl Failure {
    /// Wrong usage or unusable input.
    pub const USAGE: u8 = 2;
    /// The guest panicked, triple-faulted or reset itself.
    pub const GUEST: u8 = 3;
    /// A replay differs from its recording.
    pub const DIVERGED: u8 = 4;
    /// A recording is damaged or cannot be replayed here.
    pub const RECORDING: u8 = 5;
    /// `explore` has found seeds under which the guest does not end well.
    pub const FOUND: u8 = 6;
    /// The host refused something while running, such as space on a disk.
    pub const HOST: u8 = 1;
    /// A bug of Hindsight's own.
    pub const INTERNAL: u8 = 70;
    /// The time of `--timeout` is over.
    pub const TIMEOUT: u8 = 124;

    /// Wrong usage or unusable input (exit status 2).
    pub fn usage(line: impl fmt::Display) -> Self {
        Self::with_status(Self::USAGE, line)
    }

    /// The host refused something (exit status 1).
    pub fn host(line: impl fmt::Display) -> Self {
        Self::with_status(Self::HOST, line)
    }

    /// A failure with the given exit status. The text becomes one line, and control characters
    /// that a file name may hold do not reach the terminal.
    pub fn with_status(status: u8, line: impl fmt::Display) -> Self {
        let line = line.to_string();
        let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
        let line = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
        Self { status, line }
    }

    /// The process's exit status.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Prints the line on standard error.
    pub fn say(&self) {
        eprintln!("hindsight: {}", self.line);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}

impl From<guest::GuestError> for Failure {
    fn from(error: guest::GuestError) -> Self {
        use guest::GuestError as E;
        let status = match error {
            E::NoApt { .. } | E::NoTool { .. } | E::NoPackage { .. } | E::NoCache | E::Usage(_) => {
                Self::USAGE
            }
            E::Tool { .. } | E::Odd { .. } | E::Module { .. } | E::Io { .. } => Self::HOST,
        };
        Self::with_status(status, error)
    }
}
