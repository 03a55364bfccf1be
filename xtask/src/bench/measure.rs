//! One process from start to end: when its marks arrived, what it cost, what it said.

use super::script::Mark;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// A process to measure.
pub struct Launch {
    /// The program with its arguments.
    pub command: Command,
    /// Whether marks come by standard error instead of standard output.
    pub marks_on_stderr: bool,
    /// The guest's RAM in bytes: the mapping of that size is not ours (`None`: do not look).
    pub guest_ram: Option<u64>,
    /// When to give up.
    pub timeout: Duration,
}

/// What one job of a process took.
#[derive(Clone, Debug, Default)]
pub struct Timed {
    /// Seconds on the host's clock between the marks' arrivals.
    pub wall: f64,
    /// Seconds of processor time of the whole process meanwhile, in steps of 10 ms.
    pub cpu: f64,
    /// The job's exit status.
    pub status: i32,
    /// `md5sum` of what it wrote.
    pub sum: String,
    /// What it complained about.
    pub error: String,
}

/// What became of a process.
#[derive(Clone, Debug, Default)]
pub struct Ran {
    /// Seconds from its start to the first mark.
    pub up: Option<Timed>,
    /// The jobs that ended, by row.
    pub rows: BTreeMap<String, Timed>,
    /// Its exit status; `None` when it was killed.
    pub status: Option<i32>,
    /// The other output stream.
    pub said: String,
    /// The last lines of the stream with the marks that were none.
    pub noise: String,
    /// Resident bytes beyond the guest's RAM, the most that was seen.
    pub resident_beyond_ram: Option<u64>,
}

/// Runs it. `on_mark` sees every mark as it arrives.
///
/// # Errors
/// When the program cannot be started.
pub fn run(mut launch: Launch, on_mark: &mut dyn FnMut(&Mark)) -> Result<Ran, String> {
    let begun = Instant::now();
    let name = launch.command.get_program().to_string_lossy().into_owned();
    launch.command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = launch.command.spawn().map_err(|error| format!("{name}: {error}"))?;
    let pid = child.id();
    let watchdog = Watchdog::start(pid, launch.timeout);
    let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().ok_or("no standard output")?);
    let stderr: Box<dyn Read + Send> = Box::new(child.stderr.take().ok_or("no standard error")?);
    let (marks, mut other) = if launch.marks_on_stderr { (stderr, stdout) } else { (stdout, stderr) };
    let said = thread::spawn(move || {
        let mut bytes = Vec::new();
        // What can no longer be read is not missed.
        let _ = other.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let mut watch = Watch { pid, begun, guest_ram: launch.guest_ram, open: None, ran: Ran::default() };
    let mut reader = BufReader::new(marks);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        let now = Instant::now();
        watch.line(&String::from_utf8_lossy(&line), now, on_mark);
        line.clear();
    }
    let status = child.wait().map_err(|error| format!("{name}: {error}"))?;
    watchdog.stop();
    let mut ran = watch.ran;
    ran.status = status.code();
    ran.said = said.join().unwrap_or_default();
    Ok(ran)
}

struct Watch {
    pid: u32,
    begun: Instant,
    guest_ram: Option<u64>,
    open: Option<(String, Instant, f64)>,
    ran: Ran,
}

impl Watch {
    fn line(&mut self, line: &str, now: Instant, on_mark: &mut dyn FnMut(&Mark)) {
        const NOISE_MAX: usize = 4000;
        let Some(mark) = Mark::of_line(line) else {
            if self.ran.noise.len() < NOISE_MAX {
                self.ran.noise += line;
            }
            return;
        };
        match &mark {
            Mark::Up => {
                let wall = now.duration_since(self.begun).as_secs_f64();
                self.ran.up.get_or_insert(Timed { wall, cpu: cpu_seconds(self.pid), ..Timed::default() });
            }
            Mark::Begin(row) => self.open = Some((row.clone(), now, cpu_seconds(self.pid))),
            Mark::End(row, status) => self.end(row, *status, now),
            Mark::Sum(row, sum) => {
                self.ran.rows.entry(row.clone()).or_default().sum.clone_from(sum);
                if let Some(beyond) = self.guest_ram.and_then(|ram| resident_beyond(self.pid, ram)) {
                    self.ran.resident_beyond_ram = self.ran.resident_beyond_ram.max(Some(beyond));
                }
            }
            Mark::Error(row, text) => {
                let error = &mut self.ran.rows.entry(row.clone()).or_default().error;
                if error.is_empty() {
                    error.clone_from(text);
                }
            }
        }
        on_mark(&mark);
    }

    fn end(&mut self, row: &str, status: i32, now: Instant) {
        let Some((open, since, cpu)) = self.open.take() else { return };
        if open == row {
            let timed = self.ran.rows.entry(open).or_default();
            timed.wall = now.duration_since(since).as_secs_f64();
            timed.cpu = (cpu_seconds(self.pid) - cpu).max(0.0);
            timed.status = status;
        }
    }
}

/// Processor time of a process, its threads and the children it has waited for, in seconds.
fn cpu_seconds(pid: u32) -> f64 {
    // proc(5): utime, stime, cutime, cstime are the fields 14 to 17, in ticks of 10 ms; the second
    // field ends with the last parenthesis.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// Resident bytes of a process but for mappings of the guest's RAM.
fn resident_beyond(pid: u32, guest_ram: u64) -> Option<u64> {
    beyond(&fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?, guest_ram)
}

/// The same from the text of `/proc/PID/smaps` (proc(5)).
fn beyond(smaps: &str, guest_ram: u64) -> Option<u64> {
    let kilobytes = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let (mut total, mut size) = (0, 0);
    let (mut seen, mut named) = (false, false);
    for line in smaps.lines() {
        if line.split_once(' ').is_some_and(|(first, _)| first.contains('-')) {
            // Programs that are mirrored have pages of RAM at other addresses as well.
            named = line.contains("/memfd:guest-ram");
        } else if line.starts_with("Size:") {
            size = kilobytes(line)? << 10;
        } else if line.starts_with("Rss:") {
            seen = true;
            // A mapping that the kernel has merged with the one for RAM is a page or two longer.
            let is_ram = named || size >= guest_ram && size < guest_ram + (16 << 20);
            total += if is_ram { 0 } else { kilobytes(line)? << 10 };
        }
    }
    seen.then_some(total)
}

/// Ends a process group that takes too long.
struct Watchdog(mpsc::Sender<()>);

impl Watchdog {
    fn start(pid: u32, timeout: Duration) -> Self {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            if receiver.recv_timeout(timeout) == Err(mpsc::RecvTimeoutError::Timeout)
                && let Some(group) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
            {
                // It may just have ended by itself.
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
        });
        Self(sender)
    }

    fn stop(self) {
        let _ = self.0.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(script: &str, timeout: Duration) -> Launch {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Launch { command, marks_on_stderr: false, guest_ram: None, timeout }
    }

    #[test]
    fn marks_become_rows() {
        let script = "echo '@hs up'; echo noise; echo '@hs begin a'; i=0; \
                      while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                      echo '@hs end a 3'; echo '@hs sum a 1 2'; echo else >&2; exit 5";
        let mut marks = 0;
        let ran = run(launch(script, Duration::from_secs(60)), &mut |_| marks += 1).unwrap();
        assert_eq!(
            (marks, ran.status, ran.said.as_str(), ran.noise.as_str()),
            (4, Some(5), "else\n", "noise\n")
        );
        let row = &ran.rows["a"];
        assert_eq!((row.status, row.sum.as_str()), (3, "1 2"));
        assert!(row.wall > 0.0 && ran.up.is_some());
    }

    #[test]
    fn what_takes_too_long_is_ended_with_its_children() {
        let ran =
            run(launch("echo '@hs begin a'; sleep 1000; true", Duration::from_millis(200)), &mut |_| ());
        let ran = ran.unwrap();
        assert!(ran.status.is_none() && ran.rows.is_empty());
    }

    #[test]
    fn the_guests_memory_is_not_counted() {
        let smaps = "10000000-30000000 rw-p 0 00:00 0\nSize:  524288 kB\nRss:  400000 kB\nPss: 1 kB\n\
                     40000000-40001000 r-xp 0 00:00 0\nSize: 4 kB\nRss: 4 kB\n\
                     50000000-50001000 rw-s 0 00:01 9 /memfd:guest-ram (deleted)\nSize: 4 kB\nRss: 4 kB\n";
        assert_eq!(beyond(smaps, 512 << 20), Some(4096));
        assert_eq!(beyond("", 512 << 20), None);
    }
}
