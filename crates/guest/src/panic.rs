//! A dying kernel's last words, as they come over the console.
//!
//! The kernel prints `Kernel panic - not syncing: REASON`, a register dump, and
//! `---[ end Kernel panic - not syncing: REASON ]---`, or, with `panic=SECONDS`, that it reboots
//! (Linux, kernel/panic.c). Each line may begin with a time stamp and a caller in brackets. A line
//! that merely contains the words is not one of these, so a program may print them in a sentence.

/// A part of a panic's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicLine {
    /// The kernel has given up; more lines follow.
    Begin,
    /// Nothing follows.
    End,
}

/// Finds the lines in the console's bytes, however they arrive.
#[derive(Clone, Debug, Default)]
pub struct PanicReader {
    line: Vec<u8>,
}

impl PanicReader {
    const LINE_MAX: usize = 160;

    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the console's next byte; tells when it completes one of the lines.
    pub fn byte(&mut self, byte: u8) -> Option<PanicLine> {
        if byte != b'\n' {
            if self.line.len() < Self::LINE_MAX {
                self.line.push(byte);
            }
            return None;
        }
        let line = std::mem::take(&mut self.line);
        let mut text = line.as_slice();
        while text.first() == Some(&b'[') {
            let end = text.iter().position(|byte| *byte == b']')?;
            text = text[end + 1..].trim_ascii_start();
        }
        if text.starts_with(b"Kernel panic - not syncing") {
            Some(PanicLine::Begin)
        } else if text.starts_with(b"---[ end Kernel panic") || text.starts_with(b"Rebooting in ") {
            Some(PanicLine::End)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<PanicLine> {
        let mut reader = PanicReader::new();
        text.bytes().filter_map(|byte| reader.byte(byte)).collect()
    }

    #[test]
    fn a_panic_is_known_by_its_first_and_last_line() {
        let log = "[    1.5] Run /init\r\n[    1.6][    T1] Kernel panic - not syncing: No working init found.\r\n\
                   [    1.6] CPU: 0 PID: 1\r\n[    1.7] ---[ end Kernel panic - not syncing: No working init ]---\r\n";
        assert_eq!(lines(log), [PanicLine::Begin, PanicLine::End]);
        assert_eq!(
            lines("Kernel panic - not syncing: x\nRebooting in 1 seconds..\n"),
            [PanicLine::Begin, PanicLine::End]
        );
    }

    #[test]
    fn talk_about_panics_is_not_one() {
        let long = "x".repeat(10_000);
        let talk = format!(
            "grep says: Kernel panic - not syncing\n[[[\n{long}\n[ open Kernel panic - not syncing\n"
        );
        assert_eq!(lines(&talk), []);
        assert_eq!(lines("Kernel panic - not syncing"), []);
    }
}
