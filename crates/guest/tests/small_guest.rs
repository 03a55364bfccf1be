//! The small guest, fetched from Debian, and the protocol of its job.

mod boot;

use boot::{Boot, small_guest};
use guest::Flavour;
use guest::job::{Job, Mode, Report};

/// The console is the job's alone.
const SILENT: &str = "console=ttyS0 loglevel=1";

#[test]
fn a_command_runs_with_exact_output_and_its_exit_status() {
    let script = "printf 'one\\ntwo\\r\\n\\tthree\\0\\377'; cat; echo to stderr >&2; exit 42";
    let job = Job { script: script.to_owned(), mode: Mode::Batch };
    let shown =
        Boot { append: SILENT, job: Some(job), input: b"", disk: None }.run(&small_guest(Flavour::Cloud));
    assert_eq!(shown.console, b"one\ntwo\r\n\tthree\0\xffto stderr\n");
    assert_eq!(shown.reports, [Report::Ready, Report::Exit(42)]);
}

#[test]
fn a_command_reads_what_is_piped_to_it() {
    let words = ["sh", "-c", "wc -c; kill -9 $$"].map(str::to_owned);
    let job = Job::from_words(&words, Mode::Pipe);
    let input = b"\x03four\r\n\x7fmore\n\x04";
    let shown = Boot { append: SILENT, job: Some(job), input, disk: None }.run(&small_guest(Flavour::Cloud));
    assert_eq!(String::from_utf8_lossy(&shown.console), "13\nKilled\n");
    assert_eq!(shown.reports, [Report::Ready, Report::Exit(128 + 9)]);
}

#[test]
fn a_terminal_edits_lines_and_is_the_controlling_one() {
    let mode = Mode::Terminal { rows: 33, columns: 99, term: "vt100".to_owned() };
    // What is typed is echoed when it comes, so nothing is written before all of it has been read.
    let script = "read line; stty size; echo $TERM; echo got $line; echo mine >/dev/tty";
    let job = Job { script: script.to_owned(), mode };
    // Control-U takes back what was typed.
    let input = b"wrong\x15right\n";
    let shown = Boot { append: SILENT, job: Some(job), input, disk: None }.run(&small_guest(Flavour::Cloud));
    let console = String::from_utf8_lossy(&shown.console).into_owned();
    for line in ["33 99\r\n", "vt100\r\n", "got right\r\n", "mine\r\n"] {
        assert!(console.contains(line), "no {line:?} in {console:?}");
    }
    assert_eq!(shown.reports, [Report::Ready, Report::Exit(0)]);
}

#[test]
fn both_kernels_load_all_modules_without_complaint() {
    for flavour in [Flavour::Cloud, Flavour::Generic] {
        let script = "cut -d' ' -f1 /proc/modules; grep -w ext4 /proc/filesystems";
        let job = Job { script: script.to_owned(), mode: Mode::Batch };
        let boot = Boot { append: "console=ttyS0", job: Some(job), input: b"", disk: None };
        let shown = boot.run(&small_guest(flavour));
        let log = String::from_utf8_lossy(&shown.console).into_owned();
        for module in ["virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "ext4"] {
            assert!(log.lines().any(|line| line.trim() == module), "no {module} in:\n{log}");
        }
        for bad in ["does not load", "WARNING", "BUG", "Call Trace", "not found", "Unknown symbol"] {
            assert!(!log.contains(bad), "{bad} in:\n{log}");
        }
        assert_eq!(shown.reports, [Report::Ready, Report::Exit(0)]);
    }
}

#[test]
fn a_missing_root_disk_is_told_on_the_console() {
    let boot = Boot { append: "console=ttyS0 root=/dev/vda", job: None, input: b"", disk: None };
    let shown = boot.run(&small_guest(Flavour::Cloud));
    let log = String::from_utf8_lossy(&shown.console).into_owned();
    assert!(log.contains("init: there is no disk /dev/vda"), "{log}");
}
