//! The seam between the command line and the machine.
//!
//! Commands make a plan of what the user gave, hand it over together with the host's side of the
//! console ([`HostSide`]), and get an [`Outcome`] back. Nothing else crosses: the machine's side
//! reads no option, prints nothing and touches no terminal; this side knows no device and no
//! position beyond what an outcome tells.

use crate::cli::{Clock, CpuModel, OnReset};
use crate::console::Console;
use crate::failure::Failure;
use crate::keyboard::Input;
use crate::progress::Progress;
use crate::stop::Stop;
use crate::summary::{Exit, RecordFigures, ReplayFigures};
use crate::values::{Forward, Net, Pos, TranslationsIn};
use guest::job::Job;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use timeline::{Every, Spacing, Tuning};

/// A guest, complete and checked: every file existed and was readable a moment ago.
#[derive(Clone, Debug)]
pub struct GuestPlan {
    /// bzImage, ELF or Multiboot.
    pub kernel: PathBuf,
    /// Initial RAM disk, without the job; see [`GuestPlan::initrd`].
    pub initrd: Option<PathBuf>,
    /// Files to put into the guest.
    pub files: Vec<PathBuf>,
    /// The command to run.
    pub job: Option<Job>,
    /// The kernel's command line, final.
    pub append: String,
    /// Guest RAM in bytes, a multiple of the page size.
    pub memory_bytes: u64,
    /// 1 to 16.
    pub cpus: u8,
    /// The processor's features.
    pub cpu: CpuModel,
    /// Disk images in the guest's order.
    pub disks: Vec<PathBuf>,
    /// Where the network card leads.
    pub net: Net,
    /// Only with [`Net::User`].
    pub forwards: Vec<Forward>,
    /// How guest time runs.
    pub clock: Clock,
    /// Changes everything random in the machine.
    pub seed: u64,
    /// What a reset by the guest does.
    pub reset: OnReset,
    /// Whether there are a debug console and a debug exit.
    pub debug_ports: bool,
}

impl GuestPlan {
    /// The kernel's bytes.
    pub fn kernel(&self) -> Result<Vec<u8>, Failure> {
        read(&self.kernel)
    }

    /// The initrd's bytes as the guest gets them: the file, and the job's archive after it.
    pub fn initrd(&self) -> Result<Option<Vec<u8>>, Failure> {
        let Some(path) = &self.initrd else { return Ok(None) };
        let mut bytes = read(path)?;
        if !self.files.is_empty() {
            bytes = guest::job::attach_files(bytes, &self.files)?;
        }
        Ok(Some(match &self.job {
            Some(job) => guest::job::attach(bytes, job)?,
            None => bytes,
        }))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
}

/// What nobody has chosen otherwise; translated code is kept in the user's cache.
pub fn usual_tuning() -> Tuning {
    Tuning { translations: TranslationsIn::folder(None), ..Tuning::default() }
}

/// The host's side of a running guest.
#[derive(Debug)]
pub struct HostSide {
    /// What is typed or piped, as it comes. With a job, it may be sent once the guest has
    /// reported [`guest::job::Report::Ready`].
    pub input: Receiver<Input>,
    /// Where the console's bytes go.
    pub console: Console,
    /// Asked often: whether the run has to end, and why.
    pub stop: Stop,
    /// Lines about what is going on, for people.
    pub progress: Progress,
    /// What has no effect on the guest.
    pub tuning: Tuning,
    /// The checkpoints of a recording; `None` takes none.
    pub checkpoints: Option<Spacing>,
    /// The distance between state hashes of a recording.
    pub hash_every: Every,
    /// Where a profile of ourselves goes and where in the replay it begins, if one is wanted.
    pub profile: Option<(ProfileTo, Option<Pos>)>,
}

/// A place in the past of a recording to go live from.
#[derive(Clone, Debug)]
pub struct BranchPlan {
    /// A folder or packed file.
    pub recording: PathBuf,
    /// Where in it.
    pub at: Pos,
    /// Where the network card leads now; nowhere, if the guest has none.
    pub net: Net,
    /// Only with [`Net::User`].
    pub forwards: Vec<Forward>,
    /// Whether somebody or something may give the console input.
    pub input: bool,
}

/// Where a profile goes.
#[derive(Debug)]
pub enum ProfileTo {
    /// Standard error.
    Stderr,
    /// An open file, and its path for messages.
    File(std::fs::File, PathBuf),
}

/// What a run, recording or replay came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Instructions retired.
    pub instructions: u64,
    /// Guest time in nanoseconds.
    pub guest_ns: u64,
    /// The hash of the whole state at the end, in hex.
    pub state_hash: String,
    /// Why it ended.
    pub exit: Exit,
    /// The last status that the job reported; the power-off follows it.
    pub job_status: Option<u8>,
    /// What the guest wrote to the debug-exit port, which ended the run.
    pub debug_exit: Option<u32>,
    /// Whether a job was to run.
    pub with_job: bool,
    /// One line about the end for people, such as where a replay diverged.
    pub note: Option<String>,
}

/// Where `debug` serves gdb.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(std::net::SocketAddr),
    /// A socket's path.
    Unix(PathBuf),
}

/// What a gdb needs to connect.
#[derive(Clone, Debug)]
pub struct Ready {
    /// The address in gdb's spelling.
    pub address: String,
    /// What to tell a gdb that is started for this: symbols, and to connect.
    pub script: String,
    /// A file of the guest kernel's own names, for gdb's `add-symbol-file`.
    pub symbols: Option<PathBuf>,
}

/// What the machine's side has to be able to do.
pub trait Machine {
    /// Runs a guest without a recording.
    fn run(&self, plan: &GuestPlan, host: HostSide) -> Result<Outcome, Failure>;

    /// Runs a guest and records it into `folder`, which is new and empty. A failure to write ends
    /// the run; what was written stays.
    fn record(
        &self,
        plan: &GuestPlan,
        folder: &Path,
        host: HostSide,
    ) -> Result<(Outcome, RecordFigures), Failure>;

    /// Goes live from a place in the past; without a folder, without a recording.
    fn branch(
        &self,
        plan: &BranchPlan,
        folder: Option<&Path>,
        host: HostSide,
    ) -> Result<(Outcome, Option<RecordFigures>), Failure>;

    /// Replays a recording (a folder or a packed file) up to `to`, checking every hash; with
    /// `bisect`, a divergence is narrowed down to its first instruction.
    fn replay(
        &self,
        recording: &Path,
        to: Pos,
        bisect: bool,
        host: HostSide,
    ) -> Result<(Outcome, ReplayFigures), Failure>;

    /// Serves gdb on a recording until the client leaves. `ready` is called once, when clients
    /// can connect.
    fn debug(
        &self,
        recording: &Path,
        at: Option<Pos>,
        symbols: &[PathBuf],
        listen: &Listen,
        ready: &mut dyn FnMut(&Ready),
        stop: &Stop,
    ) -> Result<(), Failure>;

    /// What is in a recording: for people, and as JSON.
    fn info(&self, recording: &Path) -> Result<(String, serde_json::Value), Failure>;

    /// Makes one self-contained file of a recording.
    fn pack(&self, recording: &Path, output: &Path, progress: &Progress) -> Result<(), Failure>;
}

/// The machine of this build.
pub fn machine() -> impl Machine {
    crate::sessions::Sessions
}
