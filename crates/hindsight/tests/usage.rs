//! Wrong usage and unusable input: one clear line on standard error, nothing on standard output,
//! exit status 2, nothing left behind. No machine starts here, and nothing is fetched.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A user who owns nothing.
const NOBODY: u32 = 65_534;

struct Place {
    folder: tempfile::TempDir,
    /// Runs the copy of the program in the folder as this user.
    user: Option<u32>,
}

impl Place {
    /// A folder with one of each bad file, and a kernel's header that says it is whole.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| fs::write(folder.path().join(name), bytes).unwrap();
        let mut kernel = vec![0; 8192];
        kernel[0x1f1] = 1;
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        kernel[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        kernel[0x260..0x264].copy_from_slice(&(48u32 << 20).to_le_bytes());
        write("kernel", &kernel);
        kernel[0x1f4..0x1f8].copy_from_slice(&0x10_0000u32.to_le_bytes());
        write("short", &kernel);
        write("empty", b"");
        write("text", b"hello\n");
        write("odd", &[0; 1000]);
        write("disk", &[0; 1024]);
        write("initrd", &[0; 2 << 20]);
        fs::create_dir(folder.path().join("folder")).unwrap();
        Self { folder, user: None }
    }

    fn hindsight(&self, words: &[&str]) -> Output {
        let home = self.folder.path().join("home");
        let mut command = match self.user {
            Some(_) => Command::new(self.folder.path().join("hindsight")),
            None => Command::new(env!("CARGO_BIN_EXE_hindsight")),
        };
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
            .args(words)
            .current_dir(self.folder.path())
            .env("HOME", &home)
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CACHE_HOME")
            // No apt: what is not refused must not start to fetch.
            .env("PATH", "/nonexistent")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn refuses(&self, words: &[&str], part: &str) {
        let before = listing(self.folder.path());
        let output = self.hindsight(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(output.stdout.is_empty(), "{words:?}: standard output");
        assert!(said.starts_with("hindsight: ") && said.lines().count() == 1, "{words:?}: {said}");
        assert!(said.contains(part), "{words:?}: {said:?} does not say {part:?}");
        assert_eq!(listing(self.folder.path()), before, "{words:?} left something behind");
    }
}

fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn unusable_kernels() {
    let place = Place::new();
    for command in ["run", "record"] {
        place.refuses(&[command, "--kernel", "missing"], "--kernel missing: there is no such file");
        place.refuses(&[command, "--kernel", "empty"], "is empty");
        place.refuses(&[command, "--kernel", "text"], "is not a kernel");
        place.refuses(&[command, "--kernel", "short"], "is truncated: it has 8192 of");
        place.refuses(&[command, "--kernel", "folder"], "is a folder");
        place.refuses(&[command, "--kernel", "/dev/null"], "is not a regular file");
    }
}

#[test]
fn unusable_initrds_and_too_little_memory() {
    let place = Place::new();
    place.refuses(
        &["run", "--kernel", "kernel", "--initrd", "missing"],
        "--initrd missing: there is no such file",
    );
    place.refuses(&["run", "--kernel", "kernel", "--initrd", "empty"], "--initrd empty: is empty");
    place.refuses(&["run", "--kernel", "kernel", "--memory", "32M"], "kernel and initrd alone need 64M");
    let with_initrd = ["run", "--kernel", "kernel", "--initrd", "initrd", "--memory", "65M"];
    place.refuses(&with_initrd, "kernel and initrd alone need 66M");
    place.refuses(&["run", "--memory", "1M"], "--memory 1M: a guest has between");
    place.refuses(&["run", "--memory", "lots"], "a size is a number");
}

#[test]
fn unusable_disks() {
    let place = Place::new();
    place.refuses(
        &["run", "--kernel", "kernel", "--disk", "missing"],
        "--disk missing: there is no such file",
    );
    place.refuses(&["run", "--kernel", "kernel", "--disk", "empty"], "is empty");
    place.refuses(&["run", "--kernel", "kernel", "--disk", "odd"], "not a multiple of 512");
    place.refuses(&["run", "--kernel", "kernel", "--disk", "folder"], "is a folder");
    place.refuses(&["run", "--kernel", "kernel", "--disk", "/dev/zero"], "neither a file nor a block device");
    let locked = fs::File::open(place.folder.path().join("disk")).unwrap();
    rustix::fs::flock(&locked, rustix::fs::FlockOperation::LockExclusive).unwrap();
    place.refuses(&["run", "--kernel", "kernel", "--disk", "disk"], "another program has locked it");
}

#[test]
fn unreadable_files() {
    let mut place = Place::new();
    let folder = place.folder.path().to_owned();
    let allow = |name: &str, mode: u32| {
        fs::set_permissions(folder.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    ["disk", "initrd", "short"].into_iter().for_each(|name| allow(name, 0o000));
    if rustix::process::geteuid().is_root() {
        // Root may read everything, so somebody else tries; a copy of the program that anybody reaches. A
        // process of its own copies: what other tests start meanwhile would inherit the file open for writing,
        // and the copy could not be executed.
        let copy =
            Command::new("cp").arg(env!("CARGO_BIN_EXE_hindsight")).arg(folder.join("hindsight")).status();
        assert!(copy.unwrap().success());
        allow("hindsight", 0o755);
        allow("", 0o755);
        place.user = Some(NOBODY);
    }
    place.refuses(&["run", "--kernel", "short"], "--kernel short: you may not read it");
    place.refuses(
        &["run", "--kernel", "kernel", "--initrd", "initrd"],
        "--initrd initrd: you may not read it",
    );
    place.refuses(&["run", "--kernel", "kernel", "--disk", "disk"], "--disk disk: you may not read it");
}

#[test]
fn wrong_words() {
    let place = Place::new();
    place.refuses(&[], "no command given");
    place.refuses(&["walk"], "walk");
    place.refuses(&["run", "--fast"], "--fast");
    place.refuses(&["run", "--cpus", "0"], "--cpus");
    place.refuses(&["run", "--net", "wifi"], "a network is");
    place.refuses(&["run", "--forward", "1:2"], "--forward needs --net user");
    place.refuses(&["run", "--timeout", "0"], "more than zero");
    place.refuses(&["run", "--json", "--console", "stdio"], "--json has standard output for itself");
    place.refuses(&["replay", "--to", "tomorrow"], "a place is");
    place.refuses(&["debug", "--listen", "here"], "an address is");
    place.refuses(&["guest", "make", "missing/out"], "there is no folder missing");
    place.refuses(&["guest", "make", "disk"], "--force");
    place.refuses(&["run", "--kernel", "a\nb\x1b[31m"], "there is no such file");
}

#[test]
fn recordings_that_are_not() {
    let place = Place::new();
    for command in ["replay", "info", "pack", "debug"] {
        place.refuses(&[command], "there is no recording yet");
        place.refuses(&[command, "nothing"], "there is no recording nothing");
        place.refuses(&[command, "./folder"], "not a recording");
        place.refuses(&[command, "./text"], "not a recording");
    }
    place.refuses(&["rm", "./folder"], "not a recording");
    assert!(place.folder.path().join("folder").is_dir());
}

#[test]
fn a_host_without_apt_is_told_which_files_to_pass() {
    let place = Place::new();
    let output = place.hindsight(&["run"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("pass --kernel FILE and --initrd FILE"), "{said}");
}

#[test]
fn help_and_version_go_to_standard_output() {
    let place = Place::new();
    for words in [&["--help"][..], &["--version"], &["record", "--help"]] {
        let output = place.hindsight(words);
        assert_eq!(output.status.code(), Some(0));
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{words:?}");
    }
    let empty = place.hindsight(&["ls", "--json"]);
    assert_eq!(String::from_utf8(empty.stdout).unwrap(), "{\"recordings\":[]}\n");
}
