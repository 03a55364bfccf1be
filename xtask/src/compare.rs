//! The same debugging session backwards in time in Hindsight and in QEMU.
//!
//! Both record the same guest, Debian's cloud kernel with busybox, from power on to power off. In
//! both, gdb then runs to where the kernel powers off and goes back from there in several ways, each
//! in a session of its own, so that one which never comes back costs no other. gdb measures.

use crate::soak::place::Place;
use crate::{Result, workspace};
use clap::Args;
use guest::job::{self, Job, Mode};
use guest::{Cache, Flavour, SmallGuest};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `cargo xtask compare`
#[derive(Debug, Args)]
pub struct Options {
    /// Seconds after which a session counts as one that does not come back
    #[arg(long, default_value_t = 180)]
    pub limit: u64,
}

/// What the guest does between its boot and its end.
const JOB: &str = "for i in 1 2 3 4 5 6 7 8 9; do echo $i | sha256sum; done";
const QEMU: &str = "qemu-system-x86_64";
/// Where addresses do not differ between boots, they are the same in both machines.
const APPEND: &str = "nokaslr";
/// Where the sessions begin to go back, what they look for there, and a variable written once, long before.
const SYMBOLS: [&str; 3] = ["kernel_power_off", "do_sys_openat2", "system_state"];

/// The sessions, and what is measured in each; the commands are in [`commands`].
const SESSIONS: [(&str, &[&str]); 4] = [
    ("steps", &["forward to the power off", "reverse-stepi", "stepi"]),
    ("last call", &["reverse-continue to the last call of a function", "reverse-stepi from there"]),
    ("last writer", &["reverse-continue to the last write of a variable"]),
    ("start", &["reverse-continue over all of it"]),
];

fn commands(session: &str, symbols: &BTreeMap<String, String>) -> String {
    let [power_off, open, state] = SYMBOLS.map(|name| symbols.get(name).map_or("0", String::as_str));
    let forward = format!("do('forward to the power off', 'continue', 'thbreak *{power_off}')\n");
    let step = |name: &str, command: &str| format!("for _ in range(5): do('{name}', '{command}')\n");
    forward
        + &match session {
            "steps" => step("reverse-stepi", "reverse-stepi") + &step("stepi", "stepi"),
            "last call" => {
                let name = "reverse-continue to the last call of a function";
                format!("do('{name}', 'reverse-continue', 'thbreak *{open}')\n")
                    + &step("reverse-stepi from there", "reverse-stepi")
            }
            "last writer" => {
                let name = "reverse-continue to the last write of a variable";
                format!("do('{name}', 'reverse-continue', 'watch *(int*){state}')\n")
            }
            _ => "do('reverse-continue over all of it', 'reverse-continue')\n".to_owned(),
        }
}

/// Python that gdb runs before the commands: `do` measures one and prints where it led.
const DO: &str = r#"
import gdb, time
gdb.execute("set pagination off")
gdb.execute("set confirm off")
def do(name, command, before=None):
    if before: gdb.execute(before, to_string=True)
    begun = time.monotonic()
    gdb.execute(command, to_string=True)
    took = time.monotonic() - begun
    print("@@|%s|%.4f|%#x" % (name, took, int(gdb.parse_and_eval("(unsigned long)$pc"))), flush=True)
"#;

/// A measured command: seconds, and the program counter it led to.
type Step = (f64, String);
/// All steps of a name, by name.
type Steps = BTreeMap<String, Vec<Step>>;

/// Records, debugs, and prints a table.
pub fn compare(options: &Options) -> Result {
    let place = Place::new(None)?;
    let folder = place.folder_of_round(0)?;
    let record =
        ["record", "-o", "./rec", "--memory", "256M", "--append", APPEND, "--console", "none", "--", JOB];
    place.run(&folder, &record)?.with_status(0)?;
    qemu_records(&folder)?;
    let symbols = symbols(&place, &folder)?;
    let mut table =
        vec!["| command | hindsight, s | QEMU, s |".to_owned(), "| --- | ---: | ---: |".to_owned()];
    for (session, names) in SESSIONS {
        let text = format!("{DO}{}", commands(session, &symbols));
        write(&folder.join("session.py"), text.as_bytes())?;
        let limit = Duration::from_secs(options.limit);
        let ours = ours(&place, &folder, limit)?;
        let theirs = theirs(&folder, limit)?;
        for name in names {
            let cell = |steps: &Steps| match steps.get(*name) {
                Some(steps) => format!("{:.3}", median(steps)),
                None => format!("not back after {}", options.limit),
            };
            table.push(format!("| {name} | {} | {} |", cell(&ours), cell(&theirs)));
            let last =
                |steps: &Steps| steps.get(*name).and_then(|steps| steps.last()).map(|step| step.1.clone());
            if let (Some(here), Some(there)) = (last(&ours), last(&theirs))
                && here != there
            {
                table.push(format!("| … which led to | {here} | {there} |"));
            }
        }
    }
    println!("{}", table.join("\n"));
    place.remove();
    Ok(())
}

fn median(steps: &[Step]) -> f64 {
    let mut seconds: Vec<f64> = steps.iter().map(|step| step.0).collect();
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied().unwrap_or_default()
}

fn write(path: &Path, bytes: &[u8]) -> Result {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// The measured steps in what gdb printed.
fn steps(text: &str) -> Steps {
    let mut steps = Steps::new();
    // Ours has a prompt in front of it.
    for line in text.lines().filter_map(|line| line.split_once("@@|")) {
        let mut words = line.1.split('|');
        let (Some(name), Some(seconds), Some(pc)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        if let Ok(seconds) = seconds.parse() {
            steps.entry(name.to_owned()).or_default().push((seconds, pc.to_owned()));
        }
    }
    steps
}

/// Waits for a gdb, not for ever; what it printed is in the file.
fn attend(mut gdb: Child, output: &Path, limit: Duration) -> Result<Steps> {
    let begun = Instant::now();
    while gdb.try_wait().map_err(|error| error.to_string())?.is_none() {
        if begun.elapsed() > limit {
            gdb.kill().map_err(|error| error.to_string())?;
            gdb.wait().map_err(|error| error.to_string())?;
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let text = fs::read(output).map_err(|error| format!("{}: {error}", output.display()))?;
    Ok(steps(&String::from_utf8_lossy(&text)))
}

fn to_file(path: &Path) -> Result<Stdio> {
    let file = fs::File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(file.into())
}

/// What gdb prints for these commands in our recording.
fn ours(place: &Place, folder: &Path, limit: Duration) -> Result<Steps> {
    let (typed, output) = (folder.join("typed"), folder.join("output"));
    write(&typed, b"source session.py\nkill\nquit\n")?;
    let input = fs::File::open(&typed).map_err(|error| format!("{}: {error}", typed.display()))?;
    let mut command = place.command(folder, &["debug", "./rec", "--at", "0"]);
    command.stdin(input).stdout(to_file(&output)?).stderr(Stdio::null());
    attend(command.spawn().map_err(|error| format!("hindsight: {error}"))?, &output, limit)
}

/// The addresses of [`SYMBOLS`], which our gdb knows from the guest's memory.
fn symbols(place: &Place, folder: &Path) -> Result<BTreeMap<String, String>> {
    let print = |name| {
        format!("python print('@@|{name}|0|%#x' % int(gdb.parse_and_eval('(unsigned long)&{name}')))\n")
    };
    let input = folder.join("symbols");
    write(&input, (SYMBOLS.map(print).concat() + "kill\nquit\n").as_bytes())?;
    let input = fs::File::open(&input).map_err(|error| format!("{}: {error}", input.display()))?;
    let child = place.command(folder, &["debug", "./rec", "--at", "end"]).stdin(input).spawn();
    let done = place.attend(child.map_err(|error| format!("hindsight: {error}"))?)?.with_status(0)?;
    let found = steps(&String::from_utf8_lossy(&done.stdout));
    let symbols: BTreeMap<String, String> =
        found.into_iter().filter_map(|(name, steps)| Some((name, steps.first()?.1.clone()))).collect();
    if symbols.len() < SYMBOLS.len() {
        return Err(format!("gdb does not know all of {SYMBOLS:?}: {}", done.stderr));
    }
    Ok(symbols)
}

/// QEMU as both recording and replaying need it.
fn qemu(folder: &Path, mode: &str) -> Command {
    let mut command = Command::new(QEMU);
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::null());
    command.args(["-nodefaults", "-no-user-config", "-machine", "q35", "-accel", "tcg"]);
    command.args(["-cpu", "max,la57=off", "-smp", "1", "-m", "256M", "-display", "none", "-monitor", "none"]);
    command.args([
        "-no-reboot",
        "-serial",
        "null",
        "-serial",
        "null",
        "-kernel",
        "kernel",
        "-initrd",
        "initrd",
    ]);
    command.args(["-append", &format!("console=ttyS0 quiet {APPEND}")]);
    // An image that no device uses: QEMU keeps the snapshot there that going back starts from.
    command.args(["-drive", "file=snapshots.qcow2,if=none,id=rr"]);
    command.args(["-icount", &format!("shift=auto,rr={mode},rrfile=qemu.rr,rrsnapshot=init")]);
    command
}

fn qemu_records(folder: &Path) -> Result {
    let small = Cache::of_user().and_then(|cache| SmallGuest::obtain(&cache, Flavour::Cloud, &mut |_| {}));
    let small = small.map_err(|error| error.to_string())?;
    let read = |path: &Path| fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let job = Job { script: JOB.to_owned(), mode: Mode::Batch };
    let initrd = job::attach(read(&small.initrd)?, &job).map_err(|error| error.to_string())?;
    write(&folder.join("kernel"), &read(&small.kernel)?)?;
    write(&folder.join("initrd"), &initrd)?;
    let image = folder.join("snapshots.qcow2").display().to_string();
    workspace::run("qemu-img", &["create", "-q", "-f", "qcow2", &image, "1G"], &[])?;
    let status = qemu(folder, "record").status().map_err(|error| format!("{QEMU}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{QEMU}: {status}")) }
}

/// What gdb prints for these commands in QEMU's recording.
fn theirs(folder: &Path, limit: Duration) -> Result<Steps> {
    let (script, output, socket) = (folder.join("script"), folder.join("output"), folder.join("gdb.sock"));
    let _ = fs::remove_file(&socket);
    let mut machine = qemu(folder, "replay");
    machine.args(["-S", "-chardev", "socket,path=gdb.sock,server=on,wait=off,id=gdb", "-gdb", "chardev:gdb"]);
    let mut machine = machine.stderr(Stdio::null()).spawn().map_err(|error| format!("{QEMU}: {error}"))?;
    while !socket.exists() && machine.try_wait().map_err(|error| error.to_string())?.is_none() {
        std::thread::sleep(Duration::from_millis(20));
    }
    write(
        &script,
        b"set architecture i386:x86-64\nset remotetimeout 3600\ntarget remote gdb.sock\nsource session.py\nkill\n",
    )?;
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-x"]).arg(&script).current_dir(folder);
    gdb.stdin(Stdio::null()).stdout(to_file(&output)?).stderr(Stdio::null());
    let steps =
        gdb.spawn().map_err(|error| format!("gdb: {error}")).and_then(|gdb| attend(gdb, &output, limit));
    // It may have ended with its gdb.
    let _ = machine.kill();
    let _ = machine.wait();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gdb_measured_is_found_behind_its_prompt() {
        let text =
            "(gdb) @@|stepi|0.5000|0x10\nnoise | 1\n@@|stepi|0.1000|0x14\n@@|stepi|0.2|0x18\n@@|bad|x|0x1\n";
        let steps = steps(text);
        assert_eq!(steps.keys().collect::<Vec<_>>(), ["stepi"]);
        assert_eq!((median(&steps["stepi"]), steps["stepi"][2].1.as_str()), (0.2, "0x18"));
    }

    #[test]
    fn each_session_measures_what_its_rows_name() {
        let symbols = SYMBOLS.iter().map(|name| ((*name).to_owned(), "0x1000".to_owned())).collect();
        for (session, names) in SESSIONS {
            let text = commands(session, &symbols);
            assert!(names.iter().all(|name| text.contains(&format!("'{name}'"))), "{session}: {text}");
        }
    }
}
