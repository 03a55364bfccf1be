//! The words of the command line.

use crate::failure::Failure;
use crate::values::{ConsoleTo, Forward, Net, Pos, RecPos, Seeds, Size, TranslationsIn, duration};
use base::Position;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use timeline::{Fault, Tuning};

/// A virtual machine with a rewind button: record a whole Linux guest, replay it exactly, debug
/// it backwards.
#[derive(Debug, Parser)]
#[command(name = "hindsight", version, max_term_width = 100)]
#[command(
    after_help = "Exit status: 0 the guest powered off (or its command's own status); 1 the host refused \
    something; 2 wrong usage or unusable input; 3 the guest panicked, triple-faulted or reset itself; 4 the replay \
    diverged; 5 the recording is damaged or cannot be replayed here; 6 explore found seeds that fail; 124 timeout; 128+N ended by signal N."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Record, replay and verify a real Debian guest, fetched on first use
    Demo(Demo),
    /// Run a guest, no recording
    Run(Run),
    /// Run a guest and record it
    Record(Record),
    /// Run a guest under many schedules of its processors and record the runs that fail
    Explore(Explore),
    /// Replay a recording: its console output again, every state hash checked
    Replay(Replay),
    /// Debug a recording with gdb, forwards and backwards
    Debug(Debug),
    /// Show what is in a recording
    Info(Info),
    /// List the recordings of the data folder
    Ls(Ls),
    /// Remove recordings
    Rm(Rm),
    /// Make one file of a recording, which replays on another machine
    Pack(Pack),
    /// Make guests
    #[command(subcommand)]
    Guest(Guest),
}

/// `hindsight demo`
#[derive(Debug, Args)]
pub struct Demo {
    /// Stop after this many seconds of the host's time
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Print one JSON object on standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
}

/// `hindsight run`
#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub guest: GuestOptions,
    /// Go on living from a place in the past of a recording, which stays as it is: REC@POS, or @POS in
    /// the latest. The guest and its command are the recorded ones
    #[arg(long, value_name = "REC@POS", conflicts_with_all = [
        "kernel", "initrd", "append", "debian", "memory", "cpus", "cpu", "disk", "file", "clock", "seed", "reset", "command",
    ])]
    pub from: Option<RecPos>,
    #[command(flatten)]
    pub host: HostOptions,
    /// Run this in the guest; its output is the console's and its exit status becomes ours. One
    /// word is a line for the shell, several are a program and its arguments
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// `hindsight record`
#[derive(Debug, Args)]
pub struct Record {
    #[command(flatten)]
    pub run: Run,
    /// The recording: a path, or a name in the data folder [default: a new name there]
    #[arg(short, long, value_name = "REC")]
    pub output: Option<String>,
    /// Take a checkpoint every so many instructions; 0: none [default: after 0.4 to 0.9 seconds of work]
    #[arg(long, value_name = "N")]
    pub checkpoint_every: Option<u64>,
    /// How much disk checkpoints may take; beyond it old ones are thinned out
    #[arg(long, value_name = "SIZE", default_value = "4G")]
    pub checkpoint_budget: Size,
    /// Take a state hash every so many instructions: a divergence is located that closely at once
    /// [default: after 0.4 to 0.9 seconds of work]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub hash_every: Option<u64>,
}

/// `hindsight explore`
#[derive(Debug, Args)]
pub struct Explore {
    /// Which seeds to run, such as 1..200 (both included); 0 is the plain schedule
    #[arg(long, value_name = "FROM..TO", default_value = "1..100")]
    pub seeds: Seeds,
    /// Run so many guests at a time [default: as many as the host has processors]
    #[arg(short, long, value_name = "N", default_value_t = jobs(), value_parser = clap::value_parser!(u16).range(1..=256))]
    pub jobs: u16,
    /// Be content with so many failing seeds
    #[arg(long, value_name = "N")]
    pub stop_after: Option<usize>,
    /// Recordings are called NAME-seed-SEED-1 and so on
    #[arg(short, long, value_name = "NAME", value_parser = recording_stem)]
    pub output: Option<String>,
    #[command(flatten)]
    pub guest: GuestOptions,
    /// A run that takes more seconds of the host's time than this fails
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Print one JSON object on standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
    /// How much translated code each guest keeps; makes no difference to it
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub code_cache: Size,
    /// Where translated code is kept for later runs: a folder, or off [default: translations in the cache folder]
    #[arg(long, value_name = "FOLDER")]
    pub translations: Option<TranslationsIn>,
    /// Run this in the guest; a run fails when its exit status is not zero or the guest dies
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

impl Explore {
    /// What has no effect on the guest.
    pub fn tuning(&self) -> Result<Tuning, Failure> {
        tuning(self.code_cache, None, self.translations.as_ref())
    }
}

fn jobs() -> u16 {
    std::thread::available_parallelism().map_or(1, |count| count.get().min(256) as u16)
}

/// A name that recordings' names can begin with.
fn recording_stem(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') || text.starts_with('.') {
        return Err("a name has no / and does not begin with a dot".into());
    }
    Ok(text.to_owned())
}

/// `hindsight replay`
#[derive(Debug, Args)]
pub struct Replay {
    /// The recording: a path, or a name in the data folder [default: the latest]
    #[arg(value_name = "REC")]
    pub recording: Option<String>,
    /// Stop there: an instruction count, 50%, 12.5s of guest time, or end
    #[arg(long, value_name = "POS")]
    pub to: Option<Pos>,
    /// If the replay diverges, find the first instruction that differs
    #[arg(long)]
    pub bisect: bool,
    /// Tell where the host's time goes, on standard error or in FILE, and write a map of the
    /// translated code for perf
    #[arg(long, value_name = "FILE", require_equals = true)]
    pub profile_engine: Option<Option<PathBuf>>,
    /// Begin the profile there, rather than at power-on
    #[arg(long, value_name = "POS", requires = "profile_engine")]
    pub profile_from: Option<Pos>,
    #[command(flatten)]
    pub host: HostOptions,
}

/// `hindsight debug`
#[derive(Debug, Args)]
pub struct Debug {
    /// The recording: a path, or a name in the data folder [default: the latest]
    #[arg(value_name = "REC")]
    pub recording: Option<String>,
    /// Start there: an instruction count, 50%, 12.5s of guest time, or end
    #[arg(long, value_name = "POS")]
    pub at: Option<Pos>,
    /// Serve gdb at HOST:PORT, :PORT or the path of a socket, instead of starting it
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
    /// Debug information: a vmlinux of the guest's kernel, or the .ko of a loaded module (repeatable)
    #[arg(long, value_name = "FILE")]
    pub symbols: Vec<PathBuf>,
}

/// `hindsight info`
#[derive(Debug, Args)]
pub struct Info {
    /// The recording: a path, or a name in the data folder [default: the latest]
    #[arg(value_name = "REC")]
    pub recording: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `hindsight ls`
#[derive(Debug, Args)]
pub struct Ls {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `hindsight rm`
#[derive(Debug, Args)]
pub struct Rm {
    /// Paths, or names in the data folder
    #[arg(value_name = "REC", required = true)]
    pub recordings: Vec<String>,
}

/// `hindsight pack`
#[derive(Debug, Args)]
pub struct Pack {
    /// The recording: a path, or a name in the data folder [default: the latest]
    #[arg(value_name = "REC")]
    pub recording: Option<String>,
    /// The file to make [default: the recording's name with .hindsight]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// `hindsight guest …`
#[derive(Debug, Subcommand)]
pub enum Guest {
    /// Make a bootable Debian root image, without root
    Make(GuestMake),
    /// Build a kernel module for the small guest's kernel, without root
    Module(GuestModule),
    /// Fetch Debian's kernel and busybox again, and print where they are
    Fetch {
        /// Which of Debian's kernels
        #[arg(long, value_name = "KERNEL", default_value = "cloud")]
        debian: Debian,
    },
}

/// `hindsight guest module`
#[derive(Debug, Args)]
pub struct GuestModule {
    /// The folder with the sources and a Kbuild file
    #[arg(value_name = "FOLDER")]
    pub sources: PathBuf,
    /// The folder that the .ko goes to
    #[arg(short, long, value_name = "FOLDER", default_value = ".")]
    pub output: PathBuf,
    /// For which of Debian's kernels
    #[arg(long, value_name = "KERNEL", default_value = "cloud")]
    pub debian: Debian,
}

/// `hindsight guest make`
#[derive(Debug, Args)]
pub struct GuestMake {
    /// The image to make
    #[arg(value_name = "OUT")]
    pub out: PathBuf,
    /// How large the disk is
    #[arg(long, default_value = "2G")]
    pub size: Size,
    /// Packages to install besides the base system, by commas
    #[arg(long, alias = "include", value_delimiter = ',', value_name = "NAME,…")]
    pub packages: Vec<String>,
    /// Which Debian
    #[arg(long, default_value = "bookworm")]
    pub suite: String,
    /// Where packages come from [default: Debian's own mirror]
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Replace OUT if it exists
    #[arg(long)]
    pub force: bool,
}

/// What runs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Guest")]
pub struct GuestOptions {
    /// A Linux bzImage, an ELF file with a PVH entry point (vmlinux), or a Multiboot kernel [default: Debian's
    /// cloud kernel, fetched on first use]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line [default: console=ttyS0, and root=/dev/vda for a disk of guest make]
    #[arg(long, value_name = "STRING")]
    pub append: Option<String>,
    /// Which of Debian's kernels runs when --kernel is not given
    #[arg(long, value_name = "KERNEL", default_value = "cloud", conflicts_with = "kernel")]
    pub debian: Debian,
    /// Guest RAM
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub memory: Size,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub cpus: u8,
    /// The processor's features: x86-64-v2 or x86-64-v3
    #[arg(long, value_name = "MODEL", default_value = "v3")]
    pub cpu: CpuModel,
    /// Disk image, raw or qcow2; never written to (repeatable)
    #[arg(long, value_name = "FILE")]
    pub disk: Vec<PathBuf>,
    /// Put a file into the guest's /root, where commands start (repeatable, 4M in all)
    #[arg(long, value_name = "FILE")]
    pub file: Vec<PathBuf>,
    /// Network: none, user, tap=INTERFACE or unix=PATH
    #[arg(long, default_value = "none")]
    pub net: Net,
    /// Lead a port of the host to one of the guest: `[tcp:|udp:][ADDRESS:]HOST:GUEST`, TCP at 127.0.0.1 unless
    /// told otherwise (repeatable, with --net user)
    #[arg(long, value_name = "HOST:GUEST")]
    pub forward: Vec<Forward>,
    /// Guest time: virtual skips idle time, host follows the wall clock [default: host with a network or at
    /// a terminal, else virtual]
    #[arg(long)]
    pub clock: Option<Clock>,
    /// Changes everything random in the machine, and the schedule of several processors; 0: they take turns
    /// in the plain way
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// When the guest resets itself
    #[arg(long, value_name = "WHAT", default_value = "exit")]
    pub reset: OnReset,
    /// Ports for small kernels, as QEMU has them: bytes to port 0xe9 go to the console, and a value V
    /// written to port 0xf4 ends the run with exit status 2V+1
    #[arg(long)]
    pub debug_ports: bool,
}

/// How it meets the host.
#[derive(Debug, Args)]
#[command(next_help_heading = "Host")]
pub struct HostOptions {
    /// Where the console goes: stdio, none or a file [default: stdio; none with --json]
    #[arg(long, value_name = "WHERE")]
    pub console: Option<ConsoleTo>,
    /// Stop after this many seconds of the host's time
    #[arg(long, value_name = "SECONDS", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Print one JSON object on standard output, and nothing else there
    #[arg(long)]
    pub json: bool,
    /// How much translated code is kept; makes no difference to the guest
    #[arg(long, value_name = "SIZE", default_value = "42M")]
    pub code_cache: Size,
    /// Where translated code is kept for later runs: a folder, or off [default: translations in the cache folder]
    #[arg(long, value_name = "FOLDER")]
    pub translations: Option<TranslationsIn>,
    /// For tests: drop translations at random, which must make no difference to the guest
    #[arg(long, value_name = "N", hide = true)]
    pub chaos: Option<u64>,
    /// For tests: instructions after which a program's memory is mirrored, which must make no
    /// difference to the guest
    #[arg(long, value_name = "N", hide = true)]
    pub mirror_after: Option<u64>,
    /// For tests: the machine errs before this position, which a replay has to find
    #[arg(long, value_name = "N", hide = true)]
    pub fault: Option<u64>,
    /// For tests: the same, but not when the machine takes up the run from a kept state
    #[arg(long, value_name = "N", hide = true, conflicts_with = "fault")]
    pub fault_of_history: Option<u64>,
}

impl HostOptions {
    /// What has no effect on the guest.
    pub fn tuning(&self) -> Result<Tuning, Failure> {
        let fault = |at: u64, needs_history| Fault { at: Position::from_count(at), needs_history };
        let history = self.fault_of_history.map(|at| fault(at, true));
        let fault = self.fault.map(|at| fault(at, false)).or(history);
        let tuning = tuning(self.code_cache, self.chaos, self.translations.as_ref())?;
        let mirror_after = self.mirror_after.or(tuning.mirror_after);
        Ok(Tuning { fault, mirror_after, ..tuning })
    }
}

fn tuning(
    code_cache: Size,
    chaos: Option<u64>,
    translations: Option<&TranslationsIn>,
) -> Result<Tuning, Failure> {
    let code_cache_bytes = usize::try_from(code_cache.bytes).unwrap_or(usize::MAX);
    if !(1 << 20..=1 << 30).contains(&code_cache_bytes) {
        return Err(Failure::usage(format!("--code-cache {code_cache}: it has between 1M and 1G")));
    }
    if let Some(TranslationsIn::Folder(folder)) = translations {
        let unusable = |error| Failure::usage(format!("--translations {}: {error}", folder.display()));
        translations::prepare(folder).map_err(unusable)?;
    }
    let translations = TranslationsIn::folder(translations);
    Ok(Tuning { code_cache_bytes, chaos, translations, ..Tuning::default() })
}

/// `--clock`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Clock {
    /// Guest time is the position scaled; idle time is skipped.
    Virtual,
    /// Guest time follows the wall clock by recorded corrections.
    Host,
}

/// `--cpu`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CpuModel {
    /// x86-64-v2
    V2,
    /// x86-64-v3
    V3,
}

/// `--reset`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReset {
    /// The run ends with exit status 3
    Exit,
    /// The guest boots again
    Continue,
}

/// `--debian`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Debian {
    /// linux-image-cloud-amd64
    Cloud,
    /// linux-image-amd64
    Generic,
}

impl From<Debian> for guest::Flavour {
    fn from(debian: Debian) -> Self {
        match debian {
            Debian::Cloud => guest::Flavour::Cloud,
            Debian::Generic => guest::Flavour::Generic,
        }
    }
}

/// Reads the process's arguments. Help and version are printed and end the process here; wrong
/// usage is a failure of one line.
pub fn parse() -> Result<Cli, Failure> {
    Cli::try_parse().map_err(|error| {
        if !error.use_stderr() {
            error.exit();
        }
        Failure::usage(one_line(&error.to_string()))
    })
}

/// clap's complaint without its usage block and hints.
fn one_line(text: &str) -> String {
    let first = text.split("\n\n").next().unwrap_or(text);
    if first.contains("Usage:") || !first.starts_with("error: ") {
        return "no command given; hindsight --help lists them".to_owned();
    }
    let line = first.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{line}; see hindsight --help")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_stands_after_the_dashes_belongs_to_the_guest() {
        let cli =
            Cli::try_parse_from(["hindsight", "record", "-o", "x", "--", "ls", "--json", "-o"]).unwrap();
        let Command::Record(record) = cli.command else { panic!("{cli:?}") };
        assert_eq!(record.run.command, ["ls", "--json", "-o"]);
        assert!(!record.run.host.json);
        assert_eq!(record.output.as_deref(), Some("x"));
    }

    #[test]
    fn complaints_fit_on_one_line() {
        for words in [
            &["hindsight"][..],
            &["hindsight", "guest"],
            &["hindsight", "walk"],
            &["hindsight", "run", "--memory", "much"],
            &["hindsight", "run", "--cpus", "17"],
            &["hindsight", "run", "ls"],
            &["hindsight", "rm"],
            &["hindsight", "guest", "make"],
        ] {
            let line = one_line(&Cli::try_parse_from(words).unwrap_err().to_string());
            assert!(!line.contains('\n') && !line.is_empty() && line.contains("--help"), "{words:?}: {line}");
        }
    }
}
