//! `cargo xtask selftests`: the kernel's own tests of the x86 architecture, natively, in our guest
//! and in QEMU's.
//!
//! Their source is Debian's package of the kernel's, fetched with apt and built statically. A test
//! that passes on this host and fails in our guest is a failure, unless `docs/selftests.md` gives
//! its reason.

use crate::{Result, workspace};
use clap::Args;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where and in which guest.
#[derive(Args)]
pub struct Options {
    /// Which of Debian's kernels runs in the guests: cloud or generic
    #[arg(long, default_value = "generic")]
    debian: String,
    /// Where source, programs and logs are kept
    #[arg(long, default_value = "target/selftests")]
    folder: PathBuf,
    /// Prints the table for docs/selftests.md only
    #[arg(long)]
    table: bool,
}

const SOURCE: &str = "linux-source-6.1";
/// Seconds until a test that does not end is killed.
const PATIENCE: u32 = 60;

/// Runs every program beside it and prints a line for each: name, exit status, and how often it
/// said OK, FAIL and SKIP.
const RUNNER: &str = r#"cd "$(dirname "$0")"
for t in *_32 *_64; do
  timeout -s KILL $PATIENCE ./$t > /tmp/selftest.$t 2>&1 </dev/null
  s=$?
  count() { grep -c "\[$1\]" /tmp/selftest.$t; }
  echo "RESULT $t $s $(count OK) $(count FAIL) $(count SKIP)"
  [ $s -eq 0 ] || tail -n 3 /tmp/selftest.$t | sed 's/^/    /'
done
"#;

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/sbin
mkdir -p /proc /sys /dev /tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
PATIENCE=60 sh /selftests/run.sh
poweroff -f
"#;

/// Programs that are beside the point: they need hardware that the model does not promise, or test
/// themselves.
const LEFT_OUT: [&str; 1] = ["amx_64"];

/// What one test did.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Done {
    status: i32,
    ok: u32,
    fail: u32,
    skip: u32,
}

impl Done {
    fn passed(&self) -> bool {
        self.status == 0
    }

    fn word(&self) -> String {
        let what = match self.status {
            0 if self.ok == 0 && self.skip > 0 => "skipped".to_owned(),
            0 => "passes".to_owned(),
            137 => "hangs".to_owned(),
            status => format!("fails ({status})"),
        };
        if self.skip > 0 && self.ok > 0 { format!("{what}, {} skipped", self.skip) } else { what }
    }
}

/// What the tests did in one place, by name.
type Results = BTreeMap<String, Done>;

/// Fetches, builds, runs and compares.
pub fn run(options: &Options) -> Result {
    let folder = workspace::root().join(&options.folder);
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let programs = build(&folder)?;
    let (kernel, initrd) = guest(&folder, &programs, &options.debian)?;
    let native = native(&folder, &programs)?;
    let ours = in_hindsight(&folder, &kernel, &initrd)?;
    let qemu = in_qemu(&folder, &kernel, &initrd)?;
    println!("{}", table(&native, &ours, qemu.as_ref()));
    if options.table {
        return Ok(());
    }
    judge(&native, &ours)
}

fn shell(script: &str, folder: &Path) -> Result {
    let status = Command::new("sh").args(["-euc", script]).current_dir(folder).status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{script}: {status}")),
        Err(error) => Err(format!("sh: {error}")),
    }
}

/// The folder of the programs, built if they are not there.
fn build(folder: &Path) -> Result<PathBuf> {
    let programs = folder.join("programs");
    if programs.join("run.sh").is_file() {
        return Ok(programs);
    }
    let tests = format!("{SOURCE}/tools/testing/selftests");
    if !folder.join(&tests).is_dir() {
        eprintln!("xtask: fetching the kernel's source (140 MB)");
        let inside = format!(
            "'{tests}/x86/*' '{tests}/*.mk' '{tests}/*.h' '{SOURCE}/arch/x86/include/asm/desc_defs.h'"
        );
        let unpack = format!("tar -xO ./usr/src/{SOURCE}.tar.xz | tar -xJ --wildcards {inside}");
        shell(
            &format!(
                "apt-get -q download {SOURCE}; dpkg-deb --fsys-tarfile {SOURCE}_*.deb | {unpack}; rm {SOURCE}_*.deb"
            ),
            folder,
        )?;
    }
    fs::create_dir_all(&programs).map_err(|error| format!("{}: {error}", programs.display()))?;
    let out = programs.display();
    // Some programs may not build; those that do are run.
    shell(&format!("make -k -C {tests}/x86 OUTPUT={out} CC='gcc -static' >make.log 2>&1 || true"), folder)?;
    for name in LEFT_OUT {
        let _ = fs::remove_file(programs.join(name));
    }
    let built = fs::read_dir(&programs).map_err(|error| error.to_string())?.count();
    if built == 0 {
        return Err(format!("no selftest could be built; see {}", folder.join("make.log").display()));
    }
    if !programs.join("iopl_32").is_file() {
        eprintln!("xtask: without 32-bit programs; gcc-multilib is not installed");
    }
    let runner = RUNNER.replace("$PATIENCE", &PATIENCE.to_string());
    fs::write(programs.join("run.sh"), runner).map_err(|error| error.to_string())?;
    Ok(programs)
}

/// A kernel, and the guest maker's initial RAM disk with the programs in it.
fn guest(folder: &Path, programs: &Path, debian: &str) -> Result<(PathBuf, PathBuf)> {
    let output = Command::new(workspace::hindsight()?).args(["guest", "fetch", "--debian", debian]).output();
    let output = output.map_err(|error| format!("hindsight guest fetch: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut paths = text.lines().map(PathBuf::from);
    let (Some(kernel), Some(base)) = (paths.next(), paths.next()) else {
        return Err(format!("hindsight guest fetch: {}", String::from_utf8_lossy(&output.stderr)));
    };
    let overlay = folder.join("overlay");
    let _ = fs::remove_dir_all(&overlay);
    fs::create_dir_all(&overlay).map_err(|error| format!("{}: {error}", overlay.display()))?;
    fs::write(overlay.join("init"), INIT).map_err(|error| error.to_string())?;
    let initrd = folder.join("initrd");
    let script = format!(
        "chmod +x overlay/init; cp -r '{}' overlay/selftests; cp '{}' initrd; \
         cd overlay; find . | cpio --quiet -o -H newc >>../initrd",
        programs.display(),
        base.display()
    );
    shell(&script, folder)?;
    Ok((kernel, initrd))
}

fn native(folder: &Path, programs: &Path) -> Result<Results> {
    let mut command = Command::new("sh");
    command.arg(programs.join("run.sh"));
    collect(command, &folder.join("native.log"))
}

fn in_hindsight(folder: &Path, kernel: &Path, initrd: &Path) -> Result<Results> {
    let mut command = Command::new(workspace::hindsight()?);
    command.args(["run", "--memory", "1G", "--timeout", "900", "--append", APPEND]);
    command.arg("--kernel").arg(kernel).arg("--initrd").arg(initrd);
    collect(command, &folder.join("hindsight.log"))
}

/// `None` without a QEMU.
fn in_qemu(folder: &Path, kernel: &Path, initrd: &Path) -> Result<Option<Results>> {
    if Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Ok(None);
    }
    let mut command = Command::new("timeout");
    command.args(["1800", "qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1G"]);
    command.args(["-nographic", "-no-reboot", "-append", APPEND]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    collect(command, &folder.join("qemu.log")).map(Some)
}

/// The tests of legacy features need the kernel's consent.
const APPEND: &str = "console=ttyS0 quiet panic=-1";

/// Runs a command and reads the results from its output, which is kept in `log`.
fn collect(mut command: Command, log: &Path) -> Result<Results> {
    eprintln!("xtask: {}", format!("{command:?}").replace('"', ""));
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    fs::write(log, &text).map_err(|error| format!("{}: {error}", log.display()))?;
    let results: Results = String::from_utf8_lossy(&text).lines().filter_map(result).collect();
    if results.is_empty() {
        return Err(format!("no test ran; see {}", log.display()));
    }
    Ok(results)
}

/// The name and the outcome in a line of the runner's.
fn result(line: &str) -> Option<(String, Done)> {
    let (_, line) = line.split_once("RESULT ")?;
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let mut number = || words.next()?.parse::<u32>().ok();
    let (status, ok, fail, skip) = (number()? as i32, number()?, number()?, number()?);
    Some((name, Done { status, ok, fail, skip }))
}

fn table(native: &Results, ours: &Results, qemu: Option<&Results>) -> String {
    let mut lines = vec![
        "| test | this host | Hindsight | QEMU (TCG) |".to_owned(),
        "| --- | --- | --- | --- |".to_owned(),
    ];
    for name in native.keys() {
        let word = |results: Option<&Results>| {
            results.and_then(|results| results.get(name)).map_or("—".to_owned(), Done::word)
        };
        lines.push(format!("| {name} | {} | {} | {} |", word(Some(native)), word(Some(ours)), word(qemu)));
    }
    lines.join("\n")
}

/// Complains about tests that pass here and fail in our guest, without a reason on record.
fn judge(native: &Results, ours: &Results) -> Result {
    let page = workspace::root().join("docs/selftests.md");
    let page = fs::read_to_string(&page).map_err(|error| format!("{}: {error}", page.display()))?;
    let passes = |results: &Results, name: &str| results.get(name).is_some_and(Done::passed);
    let failures: Vec<&str> = native
        .keys()
        .map(String::as_str)
        .filter(|name| passes(native, name) && !passes(ours, name) && !has_reason(&page, name))
        .collect();
    let passed = ours.values().filter(|done| done.passed()).count();
    println!("{passed} of {} tests pass in the guest", ours.len());
    if failures.is_empty() {
        return Ok(());
    }
    Err(format!("these pass on this host and not in the guest: {}", failures.join(", ")))
}

/// Whether the page has a list item that begins with the test's name.
fn has_reason(page: &str, name: &str) -> bool {
    page.lines().any(|line| line.starts_with(&format!("* `{name}`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_from_the_middle_of_a_console() {
        let (name, done) = result("[    1.2] RESULT iopl_32 0 15 0 1\r").unwrap();
        assert_eq!((name.as_str(), done.word().as_str()), ("iopl_32", "passes, 1 skipped"));
        assert_eq!(result("RESULT iopl_32 0 15"), None);
        assert_eq!(result("nothing"), None);
    }

    #[test]
    fn a_failure_needs_a_reason_of_its_own() {
        let page = "# x\n* `iopl_32`: because\n";
        assert!(has_reason(page, "iopl_32"));
        assert!(!has_reason(page, "iopl_3") && !has_reason(page, "iopl_64"));
    }
}
