//! Where the console's bytes go.

use crate::failure::Failure;
use crate::stop::{Reason, Stop};
use crate::values::ConsoleTo;
use rustix::event::{PollFd, PollFlags, poll};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;

/// The console's way out. Bytes leave at once and unchanged.
#[derive(Debug)]
pub struct Console {
    sink: Sink,
    stop: Stop,
}

#[derive(Debug)]
enum Sink {
    Stdout,
    File(File, PathBuf),
    None,
}

impl Console {
    /// Opens it; a file is made or emptied.
    pub fn open(to: &ConsoleTo, stop: &Stop) -> Result<Self, Failure> {
        let sink = match to {
            ConsoleTo::Stdio => Sink::Stdout,
            ConsoleTo::None => Sink::None,
            ConsoleTo::File(path) => {
                let cannot = |error| Failure::usage(format!("--console {}: {error}", path.display()));
                Sink::File(File::create(path).map_err(cannot)?, path.clone())
            }
        };
        Ok(Self { sink, stop: stop.clone() })
    }

    /// A console that nobody sees.
    pub fn none() -> Self {
        Self { sink: Sink::None, stop: Stop::new() }
    }

    /// Sends bytes on their way. When the reader of a pipe has gone, the run is asked to end; a
    /// file that takes no more is a failure.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let (result, name) = match &mut self.sink {
            Sink::None => return Ok(()),
            Sink::Stdout => (write_all(&mut StdoutNow, bytes), "standard output".to_owned()),
            Sink::File(file, path) => (write_all(file, bytes), path.display().to_string()),
        };
        match result {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.sink = Sink::None;
                self.stop.request(Reason::ConsoleClosed);
                Ok(())
            }
            Err(error) => Err(Failure::host(format!("{name}: {error}"))),
        }
    }
}

/// Standard output without Rust's line buffer.
struct StdoutNow;

impl Write for StdoutNow {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes everything, also when another program has made the file description non-blocking.
fn write_all(to: &mut dyn Write, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let stdout = std::io::stdout();
                poll(&mut [PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gets_the_bytes_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let mut console = Console::open(&ConsoleTo::File(path.clone()), &Stop::new()).unwrap();
        console.write(b"a\r\n\xff\0").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a\r\n\xff\0");
        let nowhere = ConsoleTo::File(folder.path().join("no/console"));
        assert_eq!(Console::open(&nowhere, &Stop::new()).unwrap_err().status(), Failure::USAGE);
    }

    #[test]
    fn a_full_disk_is_told() {
        let full = ConsoleTo::File("/dev/full".into());
        let failure = Console::open(&full, &Stop::new()).unwrap().write(b"x").unwrap_err();
        assert!(failure.to_string().starts_with("/dev/full: No space left"), "{failure}");
    }
}
