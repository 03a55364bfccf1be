//! Guests recorded and replayed, in a mix of what people do with them.
//!
//! The replay must retire the same instructions, pass the same guest time, end in the same state,
//! and show the same console. Sometimes it runs with other translations than the recorder had: with caches
//! dropped at random, which takes up to five times as long, or with a small code cache.

use super::Options;
use super::place::{Outcome, Place, free_port, named, type_slowly};
use crate::Result;
use dice::Dice;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Of how many replays one has its caches dropped at random.
const CHAOS_ONE_IN: u64 = 8;

/// A kind of guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mix {
    Boot,
    Session,
    Systemd,
    Gcc,
    Redis,
    Stress,
    Curl,
    Iperf,
    Crew,
    Forks,
}

impl Mix {
    const ALL: [Mix; 10] = [
        Mix::Boot,
        Mix::Systemd,
        Mix::Session,
        Mix::Gcc,
        Mix::Redis,
        Mix::Stress,
        Mix::Curl,
        Mix::Iperf,
        Mix::Crew,
        Mix::Forks,
    ];

    fn name(self) -> &'static str {
        match self {
            Mix::Boot => "boot",
            Mix::Session => "session",
            Mix::Systemd => "systemd",
            Mix::Gcc => "gcc",
            Mix::Redis => "redis",
            Mix::Stress => "stress-ng",
            Mix::Curl => "curl",
            Mix::Iperf => "iperf3",
            Mix::Crew => "crew",
            Mix::Forks => "forks",
        }
    }

    fn needs_root(self) -> bool {
        !matches!(self, Mix::Boot | Mix::Session | Mix::Crew | Mix::Forks)
    }

    /// What runs in the guest.
    fn job(self, dice: &mut Dice) -> String {
        let n = |dice: &mut Dice, from: u64, to: u64| from + dice.under(to - from);
        match self {
            Mix::Boot => format!(
                "uname -a; seq 1 {} | gzip | gunzip | md5sum; dd if=/dev/urandom bs=1k count=9 2>/dev/null | md5sum; \
                 for i in 1 2 3; do (sleep 0.$i; echo $i) & done; wait; sleep {}; cat /proc/uptime /proc/interrupts",
                n(dice, 100, 60_000),
                n(dice, 0, 20)
            ),
            Mix::Session => String::new(),
            Mix::Systemd => "systemctl is-system-running --wait; systemctl list-units --no-pager | tail -n 3; \
                 journalctl --no-pager | md5sum; cat /proc/uptime"
                .to_owned(),
            Mix::Gcc => format!(
                "cd /tmp; for i in $(seq 1 {}); do echo \"int f$i(int x) {{ return x * $i + x / (x | 1); }}\"; done >a.c; \
                 echo 'int main(void) {{ return f1(0); }}' >>a.c; gcc -O2 -w -o a a.c && ./a; echo $?; md5sum a",
                n(dice, 2, 120)
            ),
            Mix::Redis => format!(
                "redis-server --save '' --daemonize yes >/dev/null; sleep 1; redis-benchmark -q -n {} -c 5 -t set,get,lpush \
                 | tr '\\r' '\\n' | tail -n 3; redis-cli dbsize",
                n(dice, 200, 2000)
            ),
            Mix::Stress => {
                let kinds = ["cpu", "vm", "fork", "pipe", "switch", "mmap", "timer", "sigsegv", "matrix", "vecmath"];
                let kind = kinds[dice.under(kinds.len() as u64) as usize];
                format!("stress-ng --verify -t 2 --{kind} 2 --{kind}-ops {} 2>&1 | tail -n 4", n(dice, 5, 60))
            }
            Mix::Curl => "cd /usr/bin; echo serving; timeout 60 python3 -c 'import http.server as h; \
                 s = h.HTTPServer((\"\", 8000), h.SimpleHTTPRequestHandler); s.handle_request(); s.handle_request()'"
                .to_owned(),
            Mix::Iperf => "echo serving; timeout 60 iperf3 -s -1 | tail -n 4".to_owned(),
            Mix::Crew => format!(
                "nproc; ./crew {} {} & ./crew {} {} & wait; cat /proc/interrupts",
                n(dice, 1, 7),
                n(dice, 8, 100),
                n(dice, 1, 5),
                n(dice, 8, 50)
            ),
            Mix::Forks => format!(
                "nproc; for j in $(seq 1 {}); do (for i in $(seq 1 {}); do (:); done; echo $j; seq 1 {} | md5sum) & done; \
                 wait; seq 1 {} >/tmp/a; sort -r /tmp/a | sort -n | cmp - /tmp/a && cat /proc/stat /proc/interrupts",
                n(dice, 2, 7),
                n(dice, 1, 30),
                n(dice, 10, 10_000),
                n(dice, 10, 3000)
            ),
        }
    }
}

/// One pair.
pub fn round(place: &Place, folder: &Path, options: &Options, round: u64, dice: &mut Dice) -> Outcome {
    let named_so = |mix: &Mix| options.only.iter().any(|only| mix.name().starts_with(only));
    let usable =
        |mix: &Mix| (place.root.is_some() || !mix.needs_root()) && (options.only.is_empty() || named_so(mix));
    let mixes: Vec<Mix> = Mix::ALL.into_iter().filter(usable).collect();
    if mixes.is_empty() {
        return Outcome { name: "nothing".into(), result: Err("no kind of guest is left to choose".into()) };
    }
    let mix = mixes[(round % mixes.len() as u64) as usize];
    // Every kind of guest with every number of processors.
    let cpus = options.cpus[(round as usize / mixes.len()) % options.cpus.len()];
    Outcome { name: named(mix.name(), cpus), result: pair(place, folder, mix, cpus, dice).map(|()| None) }
}

fn pair(place: &Place, folder: &Path, mix: Mix, cpus: u32, dice: &mut Dice) -> Result {
    let memory = format!("{}M", 128 + 64 * dice.under(7) + if mix.needs_root() { 384 } else { 0 });
    let seed = dice.under(1 << 32).to_string();
    let clock = if dice.under(2) == 0 { "virtual" } else { "host" };
    let checkpoints = (200_000_000 + dice.under(2_000_000_000)).to_string();
    let mut words = vec!["record", "-o", "./rec", "--memory", &memory, "--seed", &seed, "--timeout", "600"];
    let cpus = cpus.to_string();
    words.extend(["--checkpoint-every", &checkpoints, "--cpus", &cpus]);
    let crew = if mix == Mix::Crew { place.compiled("crew")?.display().to_string() } else { String::new() };
    if mix == Mix::Crew {
        words.extend(["--file", &crew]);
    }
    if mix != Mix::Session || clock == "host" {
        words.extend(["--clock", if matches!(mix, Mix::Curl | Mix::Iperf) { "host" } else { clock }]);
    }
    let root = place.root.as_ref().map(|root| root.display().to_string()).unwrap_or_default();
    let entered = mix.needs_root() && mix != Mix::Systemd && dice.under(4) != 0;
    if entered {
        fs::write(folder.join("empty"), [0; 4096]).map_err(|error| format!("an empty disk: {error}"))?;
        words.extend(["--disk", "empty"]);
    }
    if mix.needs_root() {
        words.extend(["--disk", &root]);
    }
    let port = free_port()?;
    let forward = format!("{port}:{}", if mix == Mix::Iperf { 5201 } else { 8000 });
    if matches!(mix, Mix::Curl | Mix::Iperf) {
        words.extend(["--net", "user", "--forward", &forward]);
    }
    let mut job = mix.job(dice);
    if entered {
        job = inside_of_root(&job);
    }
    let shown = match mix {
        Mix::Session => session(place, folder, &words, dice)?,
        Mix::Curl | Mix::Iperf => {
            words.extend(["--console", "console", "--json", "--", &job]);
            served(place, folder, &words, mix, port)?;
            read(&folder.join("console"))?
        }
        _ => {
            words.extend(["--console", "console", "--json", "--", &job]);
            place.run(folder, &words)?.with_status(0).map_err(|why| format!("record: {why}"))?;
            read(&folder.join("console"))?
        }
    };
    replayed_the_same(place, folder, &shown, dice)
}

/// The job for a small guest that has the root image as its second disk: that takes a third of the time
/// of booting it with systemd.
fn inside_of_root(job: &str) -> String {
    format!(
        "mkdir -p /mnt && mount /dev/vdb /mnt && mount -t proc proc /mnt/proc && mount -t sysfs sysfs /mnt/sys && \
         mount -o bind /dev /mnt/dev && mkdir -p /mnt/dev/shm && mount -t tmpfs shm /mnt/dev/shm && \
         mount -t tmpfs tmp /mnt/tmp || exit 9\ncat >/mnt/tmp/job <<'END'\n{job}\nEND\nchroot /mnt sh /tmp/job"
    )
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// A shell on the console, typed at irregularly. Returns what it showed.
fn session(place: &Place, folder: &Path, words: &[&str], dice: &mut Dice) -> Result<Vec<u8>> {
    let lines = [
        "ls -l /bin | wc -l\n",
        "echo $((6 * 7))\n",
        "ps\n",
        "cat /proc/uptime\n",
        "sleep 1\n",
        "date\n",
        "\x03",
    ];
    let mut child = place.spawn(folder, words, Stdio::piped())?;
    let mut pieces = vec![(Duration::from_millis(2500 + dice.under(2000)), "set -o vi\n".to_owned())];
    for _ in 0..4 + dice.under(8) {
        let line = lines[dice.under(lines.len() as u64) as usize];
        let (begin, end) = line.split_at(dice.under(line.len() as u64) as usize);
        pieces.push((Duration::from_millis(dice.under(300)), begin.to_owned()));
        pieces.push((Duration::from_millis(dice.under(40)), end.to_owned()));
    }
    pieces.push((Duration::from_millis(300), "\npoweroff -f\n".to_owned()));
    let typist = type_slowly(&mut child, pieces);
    let done = place.attend(child)?.with_status(0).map_err(|why| format!("record: {why}"));
    if let Some(typist) = typist {
        let _ = typist.join();
    }
    Ok(done?.stdout)
}

/// A guest that serves, and a client on the host.
fn served(place: &Place, folder: &Path, words: &[&str], mix: Mix, port: u16) -> Result {
    let mut child = place.spawn(folder, words, Stdio::null())?;
    let console = folder.join("console");
    while !fs::read(&console).is_ok_and(|text| text.windows(7).any(|word| word == b"serving")) {
        if child.try_wait().map_err(|error| error.to_string())?.is_some() {
            let done = place.attend(child)?;
            return Err(format!("record: the guest ended before it served: {}", done.stderr));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The server needs a moment from its word to its socket.
    let (url, port) = (format!("http://127.0.0.1:{port}/perl"), port.to_string());
    let attempts: &[&str] = match mix {
        Mix::Iperf => {
            &["iperf3", "-c", "127.0.0.1", "-p", &port, "-t", "2", "-b", "20M", "--connect-timeout", "3000"]
        }
        _ => &["curl", "-s", "-o", "got", "--max-time", "40", &url],
    };
    let mut left = if mix == Mix::Iperf { 1 } else { 2 };
    while left > 0 && child.try_wait().map_err(|error| error.to_string())?.is_none() {
        std::thread::sleep(Duration::from_millis(500));
        let client = Command::new(attempts[0])
            .args(&attempts[1..])
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .map_err(|error| format!("{}: {error}", attempts[0]))?;
        left -= u64::from(client.success());
    }
    place.attend(child)?.with_status(0).map_err(|why| format!("record: {why}"))?;
    Ok(())
}

/// Replays and compares.
fn replayed_the_same(place: &Place, folder: &Path, shown: &[u8], dice: &mut Dice) -> Result {
    let recorded = place.run(folder, &["info", "./rec", "--json"])?.with_status(0)?.json()?;
    let chaos = dice.under(1 << 20).to_string();
    let mut words = vec!["replay", "./rec", "--json", "--console", "again"];
    if dice.under(CHAOS_ONE_IN) == 0 {
        words.extend(["--chaos", &chaos]);
    }
    if dice.under(3) == 0 {
        words.extend(["--code-cache", "8M"]);
    }
    let replayed =
        place.run(folder, &words)?.with_status(0).map_err(|why| format!("replay: {why}"))?.json()?;
    for (what, same) in [
        ("instructions", recorded["instructions"] == replayed["instructions"]),
        ("guest time", seconds(&recorded) == seconds(&replayed)),
        ("state", recorded["state_hash"].is_string() && recorded["state_hash"] == replayed["state_hash"]),
        ("console", read(&folder.join("again"))? == shown),
    ] {
        if !same {
            return Err(format!("the replay's {what} differs"));
        }
    }
    Ok(())
}

/// Guest time in nanoseconds; both sides print it in seconds.
fn seconds(summary: &Value) -> Option<u64> {
    summary["guest_seconds"].as_f64().map(|seconds| (seconds * 1e9).round() as u64)
}
