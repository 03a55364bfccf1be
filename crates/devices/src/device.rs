//! The lifecycle every device shares.
//!
//! A device is a plain state machine. It is handed a [`Cx`] whenever anything happens to it and
//! can reach nothing else. Timers are not registered anywhere: a device computes its next
//! [`Device::deadline`] from its own state, the board calls [`Device::expire`] at the first position
//! whose guest time is at or past it. So saving a device's own fields saves everything.

use base::GuestTime;
use memory::Ram;
use serde::{Deserialize, Serialize};

/// What a device may touch while it handles something.
pub struct Cx<'a> {
    /// Guest time now.
    pub now: GuestTime,
    /// Guest memory, for DMA.
    pub ram: &'a mut Ram,
    /// Interrupt lines and messages, and requests to the board; applied when the device returns.
    pub irq: &'a mut IrqSink,
    /// What leaves the machine. Write-only: nothing can be learned from it.
    pub out: &'a mut dyn Outside,
}

/// Where bytes that leave the machine go. Recomputed on replay.
pub trait Outside {
    /// Bytes sent by serial port or console `port` (0 is the machine's console).
    fn console(&mut self, port: u32, bytes: &[u8]);
    /// An Ethernet frame sent by network card `card`, without FCS.
    fn frame(&mut self, card: u32, frame: &[u8]);
}

/// What a device asks of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Drive interrupt line `gsi` (global system interrupt: IOAPIC pin; below 16 also the 8259s,
    /// after ISA mapping) to `level`.
    Line {
        /// Global system interrupt number.
        gsi: u8,
        /// Asserted or not.
        level: bool,
    },
    /// A message-signalled interrupt: a write of `data` to `address` (SDM vol. 3A, 10.11).
    Message {
        /// Message address.
        address: u64,
        /// Message data.
        data: u32,
    },
    /// An interrupt message for the local APICs: from the IOAPIC, or an interprocessor interrupt.
    Apic(ApicMessage),
    /// A local APIC ended a level-triggered interrupt; the IOAPIC hears of it (SDM vol. 3A, 10.8.5).
    EndOfInterrupt {
        /// The vector whose service ended.
        vector: u8,
    },
    /// A local APIC tells its processor something that is not a maskable interrupt.
    Processor {
        /// Index of the processor.
        cpu: u32,
        /// What it is told.
        signal: ProcessorSignal,
    },
    /// ACPI S5: the guest powered off.
    PowerOff,
    /// The guest asked for a reset (keyboard controller, ACPI reset register, port 0xcf9).
    Reset,
    /// The guest reported a panic (pvpanic).
    Panic,
    /// The guest wrote its exit status to a debug-exit port.
    DebugExit(u32),
}

/// Delivery modes of interrupt messages (SDM vol. 3A, 10.6.1), by their encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DeliveryMode {
    /// To every processor addressed, with the vector given.
    Fixed = 0,
    /// To one of the processors addressed.
    LowestPriority = 1,
    /// System management interrupt; this machine has none and ignores it.
    Smi = 2,
    /// Reserved encoding.
    Reserved = 3,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// Start-up IPI; the vector names the page to start at.
    StartUp = 6,
    /// As if from an 8259; the vector comes from there.
    ExtInt = 7,
}

impl DeliveryMode {
    /// From the three-bit field (higher bits are ignored).
    pub const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// Whom an interrupt message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// The local APIC with this APIC id; `u32::MAX` is everybody.
    Physical(u32),
    /// Those whose logical destination register matches.
    Logical(u32),
    /// The sender, a processor's index.
    Only(u32),
    /// Everybody.
    All,
    /// Everybody but the sender, a processor's index.
    AllBut(u32),
}

impl Audience {
    /// The physical destination of a message with an 8-bit one, where 0xff is everybody.
    pub const fn physical8(id: u8) -> Self {
        Self::Physical(if id == 0xff { u32::MAX } else { id as u32 })
    }
    /// The destination of a message with 8-bit addressing (IOAPIC, MSI).
    pub const fn from_8bit(id: u8, logical: bool) -> Self {
        if logical { Self::Logical(id as u32) } else { Self::physical8(id) }
    }
}

/// A message on the way to the local APICs (SDM vol. 3A, 10.6 and 10.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ApicMessage {
    /// Whom it is for.
    pub audience: Audience,
    /// How it is delivered.
    pub mode: DeliveryMode,
    /// The vector.
    pub vector: u8,
    /// Level-triggered: its end is reported to the IOAPIC.
    pub level: bool,
}

/// What a local APIC tells its processor besides maskable interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessorSignal {
    /// Non-maskable interrupt.
    Nmi,
    /// INIT: reset, then wait for a start-up IPI.
    Init,
    /// Start at `vector` × 4 KiB in real mode, if waiting for it.
    StartUp {
        /// The page number.
        vector: u8,
    },
}

/// Collects [`Request`]s while a device runs.
#[derive(Default, Debug)]
pub struct IrqSink {
    /// In the order they were made.
    pub requests: Vec<Request>,
}

impl IrqSink {
    /// Drives an interrupt line.
    pub fn line(&mut self, gsi: u8, level: bool) {
        self.requests.push(Request::Line { gsi, level });
    }
    /// Sends a message-signalled interrupt.
    pub fn message(&mut self, address: u64, data: u32) {
        self.requests.push(Request::Message { address, data });
    }
}

/// A device's saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    /// Which kind of device this is, e.g. `"i8254"`.
    pub kind: String,
    /// Version of `payload`'s layout, counted from 1.
    pub version: u32,
    /// The fields, encoded by postcard.
    pub payload: Vec<u8>,
}

/// A saved state that cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Saved by another kind of device or an unknown version.
    #[error("device state is {found_kind} v{found_version}, this machine has {kind} v{version}")]
    Mismatch {
        /// This device's kind.
        kind: &'static str,
        /// This device's version.
        version: u32,
        /// What the state says.
        found_kind: String,
        /// What the state says.
        found_version: u32,
    },
    /// The payload does not decode or holds impossible values.
    #[error("state of device {kind} is damaged: {why}")]
    Damaged {
        /// This device's kind.
        kind: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// The shared lifecycle.
///
/// * Every method is a function of the device's fields and its arguments.
/// * `save` followed by `restore` on a fresh device of the same configuration gives a device that
///   behaves identically for ever after. WARNING: a field left out of `save` is a divergence.
/// * No guest behaviour may panic a device; impossible accesses are ignored or answered with ones.
///   NB: this includes lengths, offsets and descriptor chains read from guest memory.
/// * `restore` never trusts its input: it validates, and fails with [`StateError`].
pub trait Device {
    /// Kind, as in [`DeviceState::kind`].
    fn kind(&self) -> &'static str;
    /// Back to power-on state (configuration such as attached images stays).
    fn reset(&mut self);
    /// The whole guest-visible and behaviour-relevant state.
    fn save(&self) -> DeviceState;
    /// The saved state for people who compare two of them: one field a line.
    fn show(&self) -> String {
        self.save().hex()
    }
    /// Takes on a saved state.
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError>;
    /// A read of `data.len()` (1, 2, 4 or 8) bytes at `offset` of the device's register block
    /// number `block` (the board or the PCI host says which block is mapped where).
    fn read(&mut self, cx: &mut Cx, block: u32, offset: u64, data: &mut [u8]);
    /// A write, likewise.
    fn write(&mut self, cx: &mut Cx, block: u32, offset: u64, data: &[u8]);
    /// The guest time at which the device next acts by itself.
    fn deadline(&self) -> Option<GuestTime> {
        None
    }
    /// Called once guest time has reached [`Self::deadline`]; afterwards the deadline must lie
    /// later than `cx.now`, or be `None`.
    fn expire(&mut self, _cx: &mut Cx) {}
}

impl DeviceState {
    /// The payload as lines of 16 bytes in hex, for devices that show nothing better.
    pub fn hex(&self) -> String {
        crate::data::hex(&self.payload)
    }
    /// Encodes a device's fields.
    pub fn encode<T: Serialize>(kind: &'static str, version: u32, fields: &T) -> Self {
        let payload = postcard::to_stdvec(fields).expect("device fields are plain data");
        Self { kind: kind.into(), version, payload }
    }
    /// Decodes them again, checking kind and version.
    pub fn decode<'a, T: Deserialize<'a>>(
        &'a self,
        kind: &'static str,
        version: u32,
    ) -> Result<T, StateError> {
        if self.kind != kind || self.version != version {
            return Err(StateError::Mismatch {
                kind,
                version,
                found_kind: self.kind.clone(),
                found_version: self.version,
            });
        }
        postcard::from_bytes(&self.payload).map_err(|e| StateError::Damaged { kind, why: e.to_string() })
    }
}
