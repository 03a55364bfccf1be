//! What is measured: the rows, and how much each of them does.

use std::fmt;

/// Rows that one boot of a guest measures, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Static programs in the initramfs; needs nothing but a compiler.
    Small,
    /// Debian's programs on a root disk, without its init.
    Root,
    /// A scratch disk.
    Disk,
    /// A connection from the host.
    Network,
    /// The root disk with its own init.
    Systemd,
}

impl Group {
    /// All of them, the cheapest first.
    pub const ALL: [Group; 5] = [Group::Small, Group::Root, Group::Disk, Group::Network, Group::Systemd];

    /// Whether it needs the root image.
    pub fn needs_root(self) -> bool {
        matches!(self, Group::Root | Group::Network | Group::Systemd)
    }

    /// Whether the same rows can be run outside of a guest.
    pub fn runs_natively(self) -> bool {
        matches!(self, Group::Small | Group::Root)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Group::Small => "small",
            Group::Root => "root",
            Group::Disk => "disk",
            Group::Network => "network",
            Group::Systemd => "systemd",
        })
    }
}

/// Which bars a row is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The processor in user mode.
    Cpu,
    /// The guest's kernel.
    Kernel,
    /// Virtual disks and network cards.
    Device,
    /// From the start of the process to the first line of user space.
    Boot,
}

impl fmt::Display for Kind {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Kind::Cpu => "cpu",
            Kind::Kernel => "kernel",
            Kind::Device => "device",
            Kind::Boot => "boot",
        })
    }
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// The bars it is held against.
    pub kind: Kind,
    /// The boot it is part of.
    pub group: Group,
    /// How much to do, usually and with `--quick`; takes the place of `@N` in `command`.
    pub amount: [u32; 2],
    /// Shell text that runs before the clock starts.
    pub setup: &'static str,
    /// The job. `$B` has the programs, `$W` is an empty folder in memory; output is compared
    /// between systems.
    pub command: &'static str,
    /// Shell text that runs after the clock has stopped.
    pub teardown: &'static str,
}

const fn row(name: &'static str, kind: Kind, group: Group, amount: [u32; 2], command: &'static str) -> Row {
    Row { name, kind, group, amount, setup: "", command, teardown: "" }
}

impl Row {
    const fn after(self, setup: &'static str) -> Self {
        Self { setup, ..self }
    }

    const fn then(self, teardown: &'static str) -> Self {
        Self { teardown, ..self }
    }

    /// Whether the row is measured from the start of the process, without a job of its own.
    pub fn is_boot(&self) -> bool {
        self.kind == Kind::Boot
    }
}

use Group::{Disk, Network, Root, Small, Systemd};
use Kind::{Boot, Cpu, Device, Kernel};

/// A text that exists once for all rows of a boot.
const TEXT: &str = "[ -f $W/text ] || $B/generate 3000 text >$W/text";
const REDIS: &str = "redis-server --port 6399 --save '' --daemonize yes --dir $W --logfile $W/redis.log; \
                     until redis-cli -p 6399 ping; do sleep 0.1; done";

/// Every row, in the order of the table. Amounts are sized so that native execution takes 0.2 to
/// 0.5 s, and about a quarter of that with `--quick`.
pub const ROWS: &[Row] = &[
    row("fib", Cpu, Small, [500, 120], "$B/fib @N"),
    row("sieve", Cpu, Small, [6, 2], "$B/sieve @N"),
    row("matmul", Cpu, Small, [200, 50], "$B/matmul @N"),
    row("matmul-avx2", Cpu, Small, [300, 75], "$B/matmul-avx2 @N"),
    row("hash", Cpu, Small, [100, 25], "$B/hash @N"),
    row("qsort", Cpu, Small, [30, 8], "$B/qsort @N"),
    row("chase-l1", Cpu, Small, [300, 80], "$B/chase @N 16"),
    row("chase-64m", Cpu, Small, [3, 1], "$B/chase @N 65536"),
    row("memcpy", Cpu, Small, [1500, 300], "$B/memcpy @N"),
    row("gzip", Cpu, Root, [2, 1], "for i in $(seq @N); do gzip -nc $W/text; done").after(TEXT),
    row("zstd", Cpu, Root, [12, 3], "for i in $(seq @N); do zstd -q -c --single-thread $W/text; done").after(TEXT),
    row("xz", Cpu, Root, [2, 1], "for i in $(seq @N); do xz -1 -T1 -c $W/text; done").after(TEXT),
    row("openssl-sha256", Cpu, Root, [8, 2], "for i in $(seq @N); do openssl dgst -sha256 $W/big; done")
        .after("for i in $(seq 10); do cat $W/text; done >$W/big")
        .then("rm $W/big"),
    row("openssl-aes-gcm", Cpu, Root, [2000, 500], "$B/crypto @N"),
    row("python", Cpu, Root, [120, 30], "python3 -E -S $B/program.py @N").after("python3 -E -S $B/program.py 1"),
    row("sqlite", Cpu, Root, [80, 20], "sqlite3 :memory: <$W/sql").after("$B/generate @N sql >$W/sql"),
    row("getppid", Kernel, Small, [2000, 500], "$B/getppid @N"),
    row("fork-wait", Kernel, Small, [4000, 1000], "$B/fork-wait @N"),
    row("fork-exec", Kernel, Small, [800, 200], "$B/fork-exec @N"),
    row("pipe", Kernel, Small, [80, 20], "$B/pipe @N"),
    row("page-faults", Kernel, Small, [800, 200], "$B/page-faults @N"),
    row("small-files", Kernel, Root, [10000, 2500], "$B/small-files @N /root/files")
        .after("mkdir -p /root/files && $B/small-files 16 /root/files"),
    row("gcc", Kernel, Root, [5000, 5000], "gcc -O0 -c $W/program.c -o $W/program.o && cat $W/program.o")
        .after("$B/generate 50 c >$W/program.c && gcc -O0 -c $W/program.c -o $W/program.o; $B/generate @N c >$W/program.c"),
    row("redis", Kernel, Root, [20000, 5000], "redis-benchmark -p 6399 -n @N -c 8 -t set,get -q >/dev/null")
        .after(REDIS)
        .then("redis-cli -p 6399 shutdown nosave"),
    row("disk-seq-write", Device, Disk, [512, 128], "$B/disk @N /dev/vda seq-write"),
    row("disk-seq-read", Device, Disk, [1024, 256], "$B/disk @N /dev/vda seq-read"),
    row("disk-rand-write", Device, Disk, [8, 1], "$B/disk @N /dev/vda rand-write"),
    row("disk-rand-read", Device, Disk, [16, 2], "$B/disk @N /dev/vda rand-read"),
    row("iperf3", Device, Network, [192, 48], "wait $server").after("iperf3 -s -1 >$W/iperf3 2>&1 & server=$!; sleep 1"),
    row("boot", Boot, Small, [0, 0], ""),
    row("systemd", Boot, Systemd, [0, 0], ""),
];

/// The rows that `words` name: by row, kind or group; all of them without words.
///
/// # Errors
/// A word that names none.
pub fn choose(words: &[String]) -> Result<Vec<Row>, String> {
    let named = |row: &Row, word: &str| {
        row.name == word || row.kind.to_string() == word || row.group.to_string() == word
    };
    if let Some(word) = words.iter().find(|word| !ROWS.iter().any(|row| named(row, word))) {
        let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        return Err(format!(
            "{word} is not a row; there are {} and the kinds cpu, kernel, device, boot",
            names.join(", ")
        ));
    }
    let chosen = ROWS.iter().filter(|row| words.is_empty() || words.iter().any(|word| named(row, word)));
    Ok(chosen.copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(words: &[&str]) -> Vec<&'static str> {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        choose(&words).unwrap().iter().map(|row| row.name).collect()
    }

    #[test]
    fn rows_are_chosen_by_name_kind_or_group() {
        assert_eq!(names(&[]).len(), ROWS.len());
        assert_eq!(names(&["pipe", "fib"]), ["fib", "pipe"]);
        assert_eq!(names(&["boot"]), ["boot", "systemd"]);
        assert_eq!(names(&["disk"]).len(), 4);
        let complaint = choose(&["walk".to_owned()]).unwrap_err();
        assert!(complaint.starts_with("walk is not a row"), "{complaint}");
    }

    #[test]
    fn every_job_has_its_amount_and_names_are_words() {
        for row in ROWS {
            assert!(row.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "{}", row.name);
            let uses_amount = row.command.contains("@N") || row.setup.contains("@N") || row.name == "iperf3";
            assert_eq!(uses_amount, !row.is_boot(), "{}", row.name);
            assert!(row.amount[0] >= row.amount[1], "{}", row.name);
        }
    }
}
