//! What a machine is to be and what it starts with.

use crate::Fault;
use disk::{Base, Format};
use std::path::PathBuf;
use std::sync::Arc;
use x86::CpuModel;

/// A guest: together with its inputs, everything its states follow from.
#[derive(Clone)]
pub struct Guest {
    /// The kernel.
    pub kernel: KernelFile,
    /// The initial RAM disk as the guest gets it.
    pub initrd: Option<Arc<Vec<u8>>>,
    /// The kernel's command line.
    pub command_line: String,
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory_bytes: u64,
    /// Processors.
    pub cpus: u32,
    /// What the processors are.
    pub model: CpuModel,
    /// Disks in the guest's order.
    pub disks: Vec<DiskSpec>,
    /// The network card, if there is one.
    pub card: Option<Card>,
    /// Everything random in the machine follows from it.
    pub seed: u64,
    /// How guest time runs.
    pub clock: ClockMode,
    /// What the real-time clock shows at power-on, in nanoseconds since 1970.
    pub start_of_day_unix_ns: u64,
    /// Whether there are a debug console (port 0xe9) and a debug exit (port 0xf4), as test kernels use
    /// them.
    pub debug_ports: bool,
    /// Whether a reset boots the guest again instead of ending the run.
    pub reboots: bool,
}

/// A kernel.
#[derive(Clone)]
pub struct KernelFile {
    /// Where it came from, for messages.
    pub path: PathBuf,
    /// The file's contents.
    pub bytes: Arc<Vec<u8>>,
}

/// A disk.
#[derive(Clone)]
pub struct DiskSpec {
    /// What it holds at power-on.
    pub base: Arc<dyn Base>,
    /// The layout of the file behind it.
    pub format: Format,
}

/// A network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Card {
    /// Its hardware address.
    pub mac: [u8; 6],
    /// The largest packet in bytes, without the Ethernet header.
    pub mtu: u16,
}

impl Default for Card {
    /// A locally administered address, and Ethernet's usual packets.
    fn default() -> Self {
        Self { mac: [0x52, 0x48, 0x53, 0x00, 0x00, 0x01], mtu: 1500 }
    }
}

/// How guest time runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockMode {
    /// A nanosecond per instruction; idle time is skipped.
    Virtual,
    /// The same, steered by recorded corrections so that it follows the wall clock.
    Host,
}

/// What has no effect on the guest, but for a deliberate [`Fault`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of translated code kept.
    pub code_cache_bytes: usize,
    /// Drop translations at pseudo-random times that follow from this number, to show that it
    /// makes no difference.
    pub chaos: Option<u64>,
    /// Instructions after which the memory of a program that keeps its processor is mirrored (see
    /// [`cpu::VcpuConfig`]); never if `None`.
    pub mirror_after: Option<u64>,
    /// The folder where translated code is kept from run to run, if anywhere (see the `translations` crate).
    pub translations: Option<PathBuf>,
    /// Bytes of written disk blocks kept in memory; more go to a temporary file.
    pub disk_memory_bytes: u64,
    /// An error that the machine makes on purpose, to test that it is found.
    pub fault: Option<Fault>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            code_cache_bytes: 42 << 20,
            chaos: None,
            mirror_after: Some(3_000_000),
            translations: None,
            disk_memory_bytes: 48 << 20,
            fault: None,
        }
    }
}
