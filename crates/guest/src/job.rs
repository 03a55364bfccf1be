//! The job: how a command of the host reaches the guest, and how its exit status comes back.
//!
//! ```text
//!   host                                          guest
//!   initrd + archive(/hindsight/command, mode) -> init (or the disk's hindsight-command.service)
//!                                       COM2  <-  "ready\n"       the command starts
//!   standard input                      COM1  ->  its input       (pipe and terminal only)
//!   standard output                     COM1  <-  its output, not a byte more or less
//!                                       COM2  <-  "exit STATUS\n"
//!                                                 power off
//! ```
//!
//! The command travels as a file in a small archive after the initramfs: no length limit, no
//! quoting, and part of the machine's initial images, so it needs no event in a recording. A
//! guest that boots a disk without our initramfs finds it on the kernel's command line instead
//! ([`Job::kernel_parameters`]). Input sent before `ready` would be lost, because the guest's
//! driver empties the port's FIFO when it opens it.

use crate::{Archive, GuestError};
use std::path::Path;

/// What the console is to the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Output exact to the byte; the command reads an empty input.
    Batch,
    /// Output exact to the byte; input comes over the console until a Control-D (0x04).
    Pipe,
    /// A terminal with line editing and job control.
    Terminal {
        /// Lines of the window; 0 when unknown.
        rows: u16,
        /// Columns of the window.
        columns: u16,
        /// The host's `TERM`.
        term: String,
    },
}

impl Mode {
    fn line(&self) -> String {
        match self {
            Mode::Batch => "batch\n".to_owned(),
            Mode::Pipe => "pipe\n".to_owned(),
            Mode::Terminal { rows, columns, term } => {
                // One word of harmless characters, whatever the host's variable holds.
                let harmless = |c: &char| c.is_ascii_alphanumeric() || "-+._".contains(*c);
                format!("terminal {rows} {columns} {}\n", term.chars().filter(harmless).collect::<String>())
            }
        }
    }
}

/// A command to run in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The text for the guest's `sh`.
    pub script: String,
    /// What the console is to it.
    pub mode: Mode,
}

impl Job {
    /// A job from the words after `--`.
    ///
    /// One word is a line for the shell (`-- 'make && ./test'`); several are a program and its
    /// arguments, passed on unchanged (`-- sh -c 'exit 3'`).
    pub fn from_words(words: &[String], mode: Mode) -> Self {
        let script = match words {
            [line] => line.clone(),
            words => words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
        };
        Self { script, mode }
    }

    /// The archive to append to the initramfs; see [`attach`].
    pub fn archive(&self) -> Result<Vec<u8>, GuestError> {
        let mut archive = Archive::new();
        archive.file("hindsight/command", 0o644, format!("{}\n", self.script));
        archive.file("hindsight/mode", 0o644, self.mode.line());
        archive.to_bytes().map_err(GuestError::at(Path::new("the command's archive")))
    }

    /// The same as words for the kernel's command line, for a guest without our initramfs.
    /// `None` when the command is longer than a command line takes.
    pub fn kernel_parameters(&self) -> Option<String> {
        const LENGTH_MAX: usize = 1500;
        let words = format!(
            "hindsight.command={} hindsight.mode={}",
            base64(format!("{}\n", self.script).as_bytes()),
            base64(self.mode.line().as_bytes())
        );
        (words.len() <= LENGTH_MAX).then_some(words)
    }
}

/// `initrd` with the job added.
pub fn attach(initrd: Vec<u8>, job: &Job) -> Result<Vec<u8>, GuestError> {
    Ok(crate::archive::join(initrd, &job.archive()?))
}

/// Most bytes that files for the guest may have together.
pub const FILES_BYTES_MAX: u64 = 4 << 20;

/// `initrd` with files added, which the small guest finds where its commands start, in `/root`.
pub fn attach_files(initrd: Vec<u8>, files: &[std::path::PathBuf]) -> Result<Vec<u8>, GuestError> {
    use std::os::unix::fs::PermissionsExt;
    let mut archive = Archive::new();
    let mut bytes = 0;
    for path in files {
        let content = std::fs::read(path).map_err(GuestError::at(path))?;
        let facts = std::fs::metadata(path).map_err(GuestError::at(path))?;
        let name = path.file_name().and_then(|name| name.to_str());
        let name =
            name.ok_or_else(|| GuestError::Usage(format!("{}: its name is not text", path.display())))?;
        bytes += content.len() as u64;
        if bytes > FILES_BYTES_MAX {
            let most = FILES_BYTES_MAX >> 20;
            return Err(GuestError::Usage(format!("--file: files may have {most} MiB together; use a disk")));
        }
        let mode = if facts.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        archive.file(&format!("root/{name}"), mode, content);
    }
    let archive = archive.to_bytes().map_err(GuestError::at(Path::new("the archive of --file")))?;
    Ok(crate::archive::join(initrd, &archive))
}

/// Whether a guest that was started with this initrd (or the part of it behind the initramfs's own
/// file) and command line has a job, and if so whether that reads the console until a Control-D.
pub fn find(initrd: &[u8], command_line: &str) -> Option<bool> {
    let by_word =
        command_line.split_whitespace().filter_map(|word| word.strip_prefix("hindsight.mode=")).next_back();
    if let Some(mode) = by_word {
        return Some(mode == base64(Mode::Pipe.line().as_bytes()));
    }
    // Archives are padded with zeros, and ours are not compressed.
    let padded = |rest: &[u8]| rest.iter().position(|byte| *byte != 0);
    let mut rest = &initrd[padded(initrd)?..];
    loop {
        let mut entry = cpio::newc::Reader::new(rest).ok()?;
        if entry.entry().is_trailer() {
            rest = entry.finish().ok()?;
            rest = &rest[padded(rest)?..];
            continue;
        }
        if entry.entry().name() == "hindsight/mode" {
            let mut mode = String::new();
            std::io::Read::read_to_string(&mut entry, &mut mode).ok()?;
            return Some(mode == Mode::Pipe.line());
        }
        rest = entry.finish().ok()?;
    }
}

/// The word as a POSIX shell reads it back unchanged.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Base64 (RFC 4648, section 4), for the few bytes of a command line.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let wanted = digit <= chunk.len();
            let value = (group >> (18 - 6 * digit)) as usize & 63;
            text.push(if wanted { DIGITS[value] as char } else { '=' });
        }
    }
    text
}

/// What the guest tells on its second serial port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The command starts; input may be sent.
    Ready,
    /// The command ended with this status.
    Exit(u8),
}

/// Makes reports of the port's bytes, however they arrive. Other text on the port is no report.
#[derive(Clone, Debug, Default)]
pub struct ReportReader {
    line: Vec<u8>,
}

impl ReportReader {
    const LINE_MAX: usize = 64;

    /// A reader that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the port's next byte; returns the report that it completes.
    pub fn byte(&mut self, byte: u8) -> Option<Report> {
        if byte != b'\n' {
            // A guest that writes without an end costs no memory.
            if self.line.len() < Self::LINE_MAX {
                self.line.push(byte);
            }
            return None;
        }
        let line = std::mem::take(&mut self.line);
        match std::str::from_utf8(&line).ok()?.trim_end_matches('\r') {
            "ready" => Some(Report::Ready),
            line => line.strip_prefix("exit ")?.parse().ok().map(Report::Exit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn several_words_reach_the_program_unchanged() {
        let odd = ["printf", "%s|", "", "a b", "it's", "$HOME", "*", "\\", "\"", "x;y", "new\nline", "ä"];
        let job = Job::from_words(&words(&odd), Mode::Batch);
        let output = Command::new("sh").arg("-c").arg(&job.script).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), odd[2..].join("|") + "|");
    }

    #[test]
    fn one_word_is_a_line_for_the_shell() {
        let job = Job::from_words(&words(&["echo $((1 + 1)); exit 3"]), Mode::Batch);
        let output = Command::new("sh").arg("-c").arg(&job.script).output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"2\n"[..], Some(3)));
    }

    #[test]
    fn base64_is_what_the_base64_program_reads() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("\u{ff}?", "w78/"),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn a_long_command_does_not_go_on_the_command_line() {
        let job = |length| Job { script: "x".repeat(length), mode: Mode::Pipe };
        assert_eq!(
            job(2).kernel_parameters().as_deref(),
            Some("hindsight.command=eHgK hindsight.mode=cGlwZQo=")
        );
        assert_eq!(job(2000).kernel_parameters(), None);
    }

    #[test]
    fn a_job_is_found_where_it_was_put() {
        let job = |mode| Job { script: "x".into(), mode };
        let terminal = Mode::Terminal { rows: 24, columns: 80, term: "vt100".into() };
        for (mode, pipe) in [(Mode::Batch, false), (Mode::Pipe, true), (terminal, false)] {
            let job = job(mode);
            let initrd = attach(vec![7; 700], &job).unwrap();
            assert_eq!(find(&initrd[700..], "quiet"), Some(pipe));
            assert_eq!(find(&[], &format!("quiet {}", job.kernel_parameters().unwrap())), Some(pipe));
        }
        let files = attach_files(Vec::new(), &[std::path::PathBuf::from("/etc/passwd")]).unwrap();
        assert_eq!(find(&files, ""), None);
        let both = attach(files, &job(Mode::Pipe)).unwrap();
        assert_eq!(find(&both, ""), Some(true));
        assert_eq!(find(&[], "quiet"), None);
        assert_eq!(find(&[0, 1, 2], ""), None);
    }

    #[test]
    fn a_strange_term_cannot_add_words() {
        let mode = Mode::Terminal { rows: 24, columns: 80, term: "a b\n$(x)-256color".to_owned() };
        assert_eq!(mode.line(), "terminal 24 80 abx-256color\n");
    }

    #[test]
    fn reports_are_read_byte_by_byte_and_noise_is_not() {
        let mut reader = ReportReader::new();
        let text = format!("ready\r\n{}\nexit 256\nexit\nexit 7\r\n\nexit 0\n", "x".repeat(1000));
        let reports: Vec<_> = text.bytes().filter_map(|byte| reader.byte(byte)).collect();
        assert_eq!(reports, [Report::Ready, Report::Exit(7), Report::Exit(0)]);
    }
}
