//! `cargo xtask workloads`: programs of a Debian guest that check themselves, one guest after the
//! other, with what each took.

use crate::{Result, workspace};
use clap::Args;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// On which disk, and how long.
#[derive(Args)]
pub struct Options {
    /// A root image with gcc, libc6-dev, make, python3, xz-utils, zstd, gzip, openssl, stress-ng,
    /// redis-server and redis-tools, of `hindsight guest make`
    #[arg(long)]
    root: PathBuf,
    /// Guest seconds that each stressor runs
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Processors of the guests; with more than one there are workloads for all of them
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Only workloads whose name begins with one of these, such as `all,redis`
    #[arg(long, value_delimiter = ',', default_value = "")]
    only: Vec<String>,
}

/// A name, a command of the guest's shell, and what a good run says.
struct Workload {
    name: String,
    command: String,
    says: &'static str,
}

/// Stressors that verify what they compute.
const STRESSORS: [&str; 11] =
    ["cpu", "vm", "matrix", "vecmath", "fp", "mmap", "fork", "pipe", "switch", "sigsegv", "timer"];

/// 32-bit code without a 32-bit library: system calls by `int $0x80`, arithmetic, x87, SSE2.
const I386: &str = r#"cat >a.c <<'END'
static int call(int n, int a, const void *b, int c) {
    int r;
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(n), "b"(a), "c"(b), "d"(c) : "memory");
    return r;
}
static unsigned digest(unsigned n) {
    unsigned h = 2166136261u;
    while (n--) { h = (h ^ (n & 255)) * 16777619u; h = h << 5 | h >> 27; }
    return h;
}
void _start(void) {
    unsigned h = digest(3000000);
    volatile double x = 2; volatile float f = 3;
    double root; __asm__("fsqrt" : "=t"(root) : "0"((double)x));
    for (int i = 0; i < 100000; i++) f = f * 0.999f + 1.5f;
    int good = h == EXPECTED && (int)(root * 1000) == 1414 && f > 1499 && f < 1501 && sizeof(long) == 4;
    if (good) call(4, 1, "thirty-two bits agree\n", 22);
    call(1, !good, 0, 0);
}
END
cat >b.c <<'END'
#include <stdio.h>
int main(void) { unsigned h = 2166136261u, n = 3000000;
  while (n--) { h = (h ^ (n & 255)) * 16777619u; h = h << 5 | h >> 27; } printf("%uu\n", h); }
END
gcc -O2 -o b b.c
gcc -m32 -msse2 -O2 -ffreestanding -fno-pie -fno-stack-protector -nostdlib -static -DEXPECTED=$(./b) -o a a.c
./a"#;

const COMPRESSORS: &str = r#"head -c 6000000 /dev/urandom >noise
cat /usr/bin/* 2>/dev/null | head -c 12000000 >text
for file in noise text; do
  for tool in 'gzip -9' 'xz -3' 'zstd -9' 'zstd -1'; do
    $tool -c $file >packed; ${tool%% *} -dc <packed | cmp - $file || exit 1
    echo "$tool $file $(wc -c <packed)"
  done
done
echo every round trip agrees"#;

const REDIS: &str = r#"redis-server --port 7777 --save '' --daemonize yes --logfile redis.log >/dev/null
for i in 1 2 3 4 5 6 7 8 9 10; do redis-cli -p 7777 ping 2>/dev/null | grep -q PONG && break; sleep 1; done
redis-benchmark -p 7777 -q -n 20000 -t set,get,incr,lpush,lrange_100 | tr '\r' '\n' | grep 'requests per second'
redis-cli -p 7777 set a 41 >/dev/null; redis-cli -p 7777 incr a | grep -x 42; redis-cli -p 7777 shutdown nosave
echo redis agrees"#;

const OPENSSL: &str = r#"openssl speed -seconds 2 -evp aes-128-gcm 2>/dev/null | tail -n 1
openssl speed -seconds 2 -evp sha256 2>/dev/null | tail -n 1
openssl speed -seconds 2 rsa2048 2>/dev/null | tail -n 1
openssl genrsa -out key 2048 2>/dev/null; openssl rsa -in key -pubout -out public 2>/dev/null
head -c 100000 /dev/urandom >file; openssl dgst -sha256 -sign key -out signed file
openssl dgst -sha256 -verify public -signature signed file"#;

/// A project of sixty files, built by one job at a time and by one for each processor: to the byte
/// the same.
const MAKE: &str = r##"mkdir -p one all
for i in $(seq 1 60); do
  echo "#include <math.h>"
  for j in $(seq 1 12); do
    echo "double f${i}_$j(double x) { for (int k = 0; k < $j; k++) x = sqrt(x * $i + k) + (int)x % ($j + 3); return x; }"
  done
  [ $i -gt 1 ] && echo "double g$((i - 1))(double);" || echo "double g0(double x) { return x; }"
  echo "double g$i(double x) { return g$((i - 1))(f${i}_1(x)) + f${i}_12(x); }"
done | awk '/^#include/ { n++ } { print >"f" n ".c" }'
echo '#include <stdio.h>
double g60(double); int main(void) { printf("%.9f\n", g60(2)); }' >main.c
cat >Makefile <<'END'
OBJECTS := $(patsubst %.c,$(OUT)/%.o,$(wildcard *.c))
$(OUT)/program: $(OBJECTS); gcc -o $@ $^ -lm
$(OUT)/%.o: %.c; gcc -O2 -c -o $@ $<
END
make -s OUT=one; make -s -j$(nproc) OUT=all; ls all | wc -l
for file in one/*; do cmp $file all/${file#one/}; done
./one/program >a; ./all/program | cmp - a; cat a; echo both builds agree"##;

/// Threads that contend for a lock and a queue, and hash with the interpreter's lock released;
/// processes beside.
const PYTHON: &str = r#"cat >a.py <<'END'
import concurrent.futures as futures, hashlib, os, queue, threading
N = os.cpu_count()
def digest(i):
    block, h = bytes([i]) * 100000, b""
    for _ in range(60):
        h = hashlib.sha256(block + h).digest()
    return h
want = [digest(i) for i in range(4 * N)]
with futures.ThreadPoolExecutor(2 * N) as pool:
    assert list(pool.map(digest, range(4 * N))) == want
with futures.ProcessPoolExecutor(N) as pool:
    assert list(pool.map(digest, range(4 * N))) == want
lock, total, jobs, sums = threading.Lock(), 0, queue.Queue(8), []
def add():
    global total
    for _ in range(20000):
        with lock:
            total += 1
def take():
    own = 0
    while (job := jobs.get()) is not None:
        own += job
    sums.append(own)
threads = [threading.Thread(target=f) for f in [add] * N + [take] * N]
for t in threads: t.start()
for i in range(20000): jobs.put(i)
for _ in range(N): jobs.put(None)
for t in threads: t.join()
assert total == 20000 * N and sum(sums) == sum(range(20000)) and len(sums) == N
print(N, "processors' threads agree")
END
python3 a.py"#;

/// What keeps all processors of a guest busy.
fn for_all(cpus: u32, seconds: u32) -> Vec<Workload> {
    let counted = format!("test $(nproc) = {cpus}; grep -c ^processor /proc/cpuinfo; echo all are there");
    let stressed = format!(
        "stress-ng --verify --cpu 0 --matrix 0 --vm 0 --vm-bytes 64M --fork 0 --futex 0 --mutex 0 --pthread 0 \
         --tlb-shootdown 0 --timeout {seconds}s --metrics-brief --temp-path . 2>&1"
    );
    [
        ("all-nproc", counted, "all are there"),
        ("all-stress", stressed, "successful run completed"),
        ("all-make", MAKE.to_owned(), "both builds agree"),
        ("all-python", PYTHON.to_owned(), "threads agree"),
    ]
    .map(|(name, command, says)| Workload { name: name.to_owned(), command, says })
    .into()
}

fn workloads(cpus: u32, seconds: u32) -> Vec<Workload> {
    let fixed = [
        ("i386", I386, "thirty-two bits agree"),
        ("compressors", COMPRESSORS, "every round trip agrees"),
        ("redis", REDIS, "redis agrees"),
        ("openssl", OPENSSL, "Verified OK"),
    ];
    let fixed =
        fixed.map(|(name, command, says)| Workload { name: name.into(), command: command.into(), says });
    let stressors = STRESSORS.map(|kind| Workload {
        name: format!("stress-{kind}"),
        command: format!(
            "stress-ng --verify --{kind} 2 --timeout {seconds}s --metrics-brief --temp-path . 2>&1"
        ),
        says: "successful run completed",
    });
    let several = if cpus > 1 { for_all(cpus, seconds) } else { Vec::new() };
    several.into_iter().chain(fixed).chain(stressors).collect()
}

/// Runs them all and says what each took.
pub fn run(options: &Options) -> Result {
    let program = workspace::hindsight()?;
    let mut failures = Vec::new();
    for workload in workloads(options.cpus, options.seconds) {
        if !options.only.iter().any(|only| workload.name.starts_with(only)) {
            continue;
        }
        match one(&program, options, &workload) {
            Ok(figures) => println!("{:16} {figures}", workload.name),
            Err(complaint) => {
                println!("{:16} FAILED: {complaint}", workload.name);
                failures.push(workload.name);
            }
        }
    }
    if failures.is_empty() { Ok(()) } else { Err(format!("failed: {}", failures.join(", "))) }
}

fn one(program: &Path, options: &Options, workload: &Workload) -> Result<String> {
    let console = std::env::temp_dir().join(format!("workload-{}-{}", workload.name, std::process::id()));
    let command = format!("mkdir -p /tmp/w; cd /tmp/w; set -e; {}", workload.command);
    let output = Command::new(program)
        .args(["run", "--json", "--memory", "1G", "--clock", "virtual", "--timeout", "3600"])
        .arg("--disk")
        .arg(&options.root)
        .args(["--cpus", &options.cpus.to_string()])
        .arg("--console")
        .arg(&console)
        .args(["--", &command])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let said = String::from_utf8_lossy(&std::fs::read(&console).unwrap_or_default()).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.code() != Some(0) || !said.contains(workload.says) {
        let last = said.lines().chain(errors.lines()).rev().take(6).collect::<Vec<_>>();
        let last = last.into_iter().rev().collect::<Vec<_>>().join(" / ");
        return Err(format!("{}; the console is in {}: {last}", output.status, console.display()));
    }
    let _ = std::fs::remove_file(&console);
    let summary: Value =
        serde_json::from_slice(&output.stdout).map_err(|error| format!("no JSON: {error}"))?;
    let seconds = |name: &str| summary[name].as_f64().unwrap_or_default();
    Ok(format!(
        "{:7.1} G instructions, {:6.1} s of the guest's, {:6.1} s of the host's",
        seconds("instructions") / 1e9,
        seconds("guest_seconds"),
        seconds("wall_seconds")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_a_name_of_its_own_and_a_mark_of_success() {
        assert_eq!(workloads(1, 30).len(), 15);
        let list = workloads(4, 30);
        assert_eq!(list.len(), 19);
        let mut names: Vec<_> = list.iter().map(|workload| &workload.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), list.len());
        assert!(list.iter().all(|workload| !workload.says.is_empty()));
    }
}
