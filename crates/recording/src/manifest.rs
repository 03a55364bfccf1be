//! The manifest: what was recorded, how, and how it ended.
//!
//! `manifest.json` is `{"format": N, "blake3": HEX, "manifest": {…}}`. The hash is that of the
//! inner object printed by `serde_json` without spaces and with sorted keys, so that reindenting
//! is harmless and every other change is found.

use crate::event::{End, StateHash};
use crate::id::{ContentHash, Digest, RecordingId};
use crate::{Error, FORMAT, HashCache, ImageRef, ReadAt, folder, source};
use base::Position;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MANIFEST_BYTES_MAX: u64 = 16 << 20;
const CPUS_MAX: u32 = 256;
const MEMORY_BYTES_MAX: u64 = 1 << 46;
const DISKS_MAX: usize = 256;

/// What stands in `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Which recording this is.
    pub id: RecordingId,
    /// The version of the machine's behaviour; only the same one can replay.
    pub machine: u32,
    /// The program that recorded, for people: `"hindsight 0.1.0"`.
    pub recorded_by: String,
    /// When, in milliseconds since 1970, for people and for finding the latest.
    pub created_unix_ms: u64,
    /// The machine and what it was given.
    pub guest: Guest,
    /// Where this run branched off another, if it did.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// Names of the kinds of input in the event log, for people.
    pub input_kinds: BTreeMap<u16, String>,
    /// Whether and how the run ended.
    pub status: Status,
}

/// The machine's configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Guest {
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// How many processors.
    pub cpus: u32,
    /// Name of the processor model the guest sees.
    pub cpu_model: String,
    /// The kernel.
    pub kernel: Option<ImageRef>,
    /// The initial RAM disk.
    pub initrd: Option<ImageRef>,
    /// Disk images, in the order of their numbers.
    pub disks: Vec<ImageRef>,
    /// The kernel's command line.
    pub command_line: String,
    /// Seed of everything pseudo-random in the machine.
    pub seed: u64,
    /// What steers guest time.
    pub clock: Clock,
    /// The real-time clock at power-on, in nanoseconds since 1970.
    pub start_of_day_unix_ns: u64,
    /// Processor features that replay needs of its host, by their names in `/proc/cpuinfo`.
    pub host_features: Vec<String>,
    /// Vendor of the processor it was recorded on, as CPUID spells it. Programs that depend on what
    /// manuals leave to the processor (undefined flags, RCPPS) may go another way on another's.
    #[serde(default)]
    pub host_vendor: String,
    /// Everything else the machine was configured with; its meaning is the machine's.
    pub config: Value,
}

/// What steers guest time (`--clock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Guest time is the position, scaled.
    Virtual,
    /// Guest time follows the wall clock by logged corrections.
    Host,
}

/// A position in another recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The other recording.
    pub id: RecordingId,
    /// Where it was.
    pub path: PathBuf,
    /// Where the runs part.
    pub at: Position,
}

/// Whether and how a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    /// Still being recorded, or the recorder was killed.
    Recording,
    /// The run ended and everything is on disk.
    Complete(Completion),
}

/// How a run ended, and what belongs to a whole log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// Reason and exit status.
    pub end: End,
    /// The last position.
    pub at: Position,
    /// The state there.
    pub hash: StateHash,
    /// Guest time there, in nanoseconds since power-on.
    pub guest_ns: u64,
    /// How long recording took, in milliseconds of the host's time.
    pub wall_ms: u64,
    /// Number of chunks in the event log.
    pub chunks: u64,
    /// Seal of the last of them.
    pub seal: Digest,
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    format: u64,
    blake3: ContentHash,
    manifest: Value,
}

impl Manifest {
    /// A manifest for a new recording.
    pub fn new(machine: u32, guest: Guest) -> Result<Self, Error> {
        let id = RecordingId::fresh().map_err(|e| Error::io("read", Path::new("/dev/urandom"), e))?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Ok(Self {
            id,
            machine,
            recorded_by: concat!("hindsight ", env!("CARGO_PKG_VERSION")).to_owned(),
            created_unix_ms: now.map_or(0, |d| d.as_millis() as u64),
            guest,
            origin: None,
            input_kinds: BTreeMap::new(),
            status: Status::Recording,
        })
    }

    /// How the run ended, if it did.
    pub fn completion(&self) -> Option<&Completion> {
        match &self.status {
            Status::Recording => None,
            Status::Complete(completion) => Some(completion),
        }
    }

    /// The file's contents; fails when a path in it is not UTF-8.
    pub fn encode(&self) -> Result<Vec<u8>, Error> {
        let manifest = serde_json::to_value(self)
            .map_err(|e| Error::Name(format!("the recording's manifest cannot be written: {e}")))?;
        let blake3 = hash_of(&manifest);
        let envelope = Envelope { format: u64::from(FORMAT), blake3, manifest };
        let mut bytes = serde_json::to_vec_pretty(&envelope).expect("plain data");
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Parses and checks the contents of the file called `path`.
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |offset: u64, why: String| Error::damaged(path, offset, None, why);
        let json = |e: serde_json::Error| damaged(offset_of(bytes, e.line(), e.column()), e.to_string());
        let value: Value = serde_json::from_slice(bytes).map_err(json)?;
        let Some(format) = value.get("format").and_then(Value::as_u64) else {
            return Err(damaged(0, "it has no format version".into()));
        };
        if format != u64::from(FORMAT) {
            return Err(Error::OtherFormat { path: path.to_owned(), found: format, known: FORMAT });
        }
        let envelope: Envelope = serde_json::from_value(value).map_err(json)?;
        if !crate::chunk::checks(hash_of(&envelope.manifest), envelope.blake3) {
            return Err(damaged(0, "its contents do not have the hash it names".into()));
        }
        let manifest: Manifest = serde_json::from_value(envelope.manifest).map_err(json)?;
        manifest.check().map_err(|why| damaged(0, why.into()))?;
        Ok(manifest)
    }

    /// Reads a manifest.
    pub fn read(source: &dyn ReadAt) -> Result<Self, Error> {
        Self::decode(source.path(), &source::read_all(source, MANIFEST_BYTES_MAX)?)
    }

    /// Puts the manifest into a recording's folder, in place of the one there.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let path = folder.join(folder::MANIFEST);
        folder::replace(&path, &self.encode()?).map_err(|e| Error::io("write", &path, e))
    }

    /// Limits that hold for every machine, so that nothing downstream has to fear the numbers.
    fn check(&self) -> Result<(), &'static str> {
        let guest = &self.guest;
        if guest.memory_bytes == 0
            || !guest.memory_bytes.is_multiple_of(4096)
            || guest.memory_bytes > MEMORY_BYTES_MAX
        {
            return Err("the guest's memory has an impossible size");
        }
        if guest.cpus == 0 || guest.cpus > CPUS_MAX {
            return Err("the guest has an impossible number of processors");
        }
        if guest.disks.len() > DISKS_MAX {
            return Err("the guest has an impossible number of disks");
        }
        Ok(())
    }

    /// Refuses a recording made by a machine of other behaviour, or for a better host.
    ///
    /// `has` says whether this host's processor has a feature of that name.
    pub fn check_host(&self, path: &Path, machine: u32, has: impl Fn(&str) -> bool) -> Result<(), Error> {
        if self.machine != machine {
            let path = path.to_owned();
            return Err(Error::OtherMachine { path, found: self.machine, known: machine });
        }
        match self.guest.host_features.iter().find(|feature| !has(feature)) {
            None => Ok(()),
            Some(feature) => {
                Err(Error::MissingCpuFeature { path: path.to_owned(), feature: feature.clone() })
            }
        }
    }
}

impl Guest {
    /// Every file the guest was given, with its role for messages.
    pub fn images(&self) -> Vec<(String, &ImageRef)> {
        let kernel = self.kernel.iter().map(|i| ("kernel".to_owned(), i));
        let initrd = self.initrd.iter().map(|i| ("initrd".to_owned(), i));
        let disks = self.disks.iter().enumerate().map(|(n, i)| (format!("disk {n}"), i));
        kernel.chain(initrd).chain(disks).collect()
    }

    /// The same, to change.
    pub(crate) fn images_mut(&mut self) -> Vec<(String, &mut ImageRef)> {
        let kernel = self.kernel.iter_mut().map(|i| ("kernel".to_owned(), i));
        let initrd = self.initrd.iter_mut().map(|i| ("initrd".to_owned(), i));
        let disks = self.disks.iter_mut().enumerate().map(|(n, i)| (format!("disk {n}"), i));
        kernel.chain(initrd).chain(disks).collect()
    }

    /// Checks that every image outside of the recording still has its contents.
    pub fn verify_images(&self, cache: &mut HashCache) -> Result<(), Error> {
        let outside = self.images().into_iter().filter(|(_, image)| !image.packed);
        outside.into_iter().try_for_each(|(what, image)| image.verify_at(&image.path, &what, cache))
    }
}

fn hash_of(manifest: &Value) -> ContentHash {
    let bytes = serde_json::to_vec(manifest).expect("a JSON value");
    ContentHash(*blake3::hash(&bytes).as_bytes())
}

/// The byte that a line and column (both from 1) of a parser's message mean.
fn offset_of(bytes: &[u8], line: usize, column: usize) -> u64 {
    let before: usize =
        bytes.split_inclusive(|&b| b == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(bytes.len()) as u64
}
