//! The configuration space of one function: 256 bytes, most of them read-only.
//!
//! Every byte has a mask of the bits that software may change. That alone gives the sizing
//! protocol of base address registers: writing all ones reads back the size (PCI 3.0, 6.2.5.1).

use serde::{Deserialize, Serialize};

/// Capability ID: vendor-specific.
pub const CAP_VENDOR: u8 = 0x09;
/// Capability ID: MSI-X.
pub const CAP_MSIX: u8 = 0x11;

const SIZE: usize = 256;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const FIRST_BAR: usize = 0x10;
const CAP_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAP: usize = 0x40;

const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_INTX_OFF: u16 = 1 << 10;
const STATUS_INTERRUPT: u16 = 1 << 3;
const STATUS_CAPS: u16 = 1 << 4;

/// What a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass and programming interface, as in bits 23..0 of the class code.
    pub class: u32,
    /// Subsystem vendor ID and subsystem ID.
    pub subsystem: (u16, u16),
    /// Interrupt pin: 1 to 4 for INTA to INTD, 0 for none.
    pub pin: u8,
}

/// What a base address register maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory with a 32-bit address.
    Memory32,
    /// Memory with a 64-bit address; takes two registers.
    Memory64,
}

/// A base address register.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Its number, 0 to 5.
    pub index: u8,
    /// What it maps.
    pub kind: BarKind,
    /// How many bytes: a power of two, at least 16.
    pub size: u64,
}

/// Where something is mapped on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusAddress {
    /// The first port or byte.
    pub start: u64,
    /// How many.
    pub size: u64,
    /// Ports instead of memory.
    pub io: bool,
}

/// The configuration space of one function.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    power_on: [u8; SIZE],
    bars: Vec<Bar>,
    next_cap: usize,
    last_cap: usize,
}

/// The part of a configuration space that is saved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConfigState(Vec<u8>);

impl ConfigState {
    /// For people.
    pub fn show(&self) -> String {
        crate::data::hex(&self.0)
    }
}

impl ConfigSpace {
    /// A type 0 header without base address registers or capabilities.
    pub fn new(id: Identity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            power_on: [0; SIZE],
            bars: Vec::new(),
            next_cap: FIRST_CAP,
            last_cap: CAP_POINTER,
        };
        space.fix(0x00, &id.vendor.to_le_bytes());
        space.fix(0x02, &id.device.to_le_bytes());
        space.fix(0x08, &[id.revision]);
        space.fix(0x09, &id.class.to_le_bytes()[..3]);
        space.fix(0x2c, &id.subsystem.0.to_le_bytes());
        space.fix(0x2e, &id.subsystem.1.to_le_bytes());
        space.fix(INTERRUPT_PIN, &[id.pin]);
        let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_OFF;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(0x0c, &[0xff]); // cache line size: kept for whoever asks
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets power-on contents.
    fn fix(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..][..bytes.len()].copy_from_slice(bytes);
        self.power_on[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Lets software change the bits of `mask` from `offset` on.
    pub fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..][..mask.len()].copy_from_slice(mask);
    }

    /// Adds a base address register.
    ///
    /// # Panics
    /// When it has no power-of-two size of at least 16 or no place: a mistake of the device's author.
    pub fn add_bar(&mut self, bar: Bar) {
        assert!(bar.size.is_power_of_two() && bar.size >= 16);
        assert!(usize::from(bar.index) + usize::from(bar.kind == BarKind::Memory64) < 6);
        let at = FIRST_BAR + 4 * usize::from(bar.index);
        let mask = !(bar.size - 1);
        match bar.kind {
            BarKind::Io => {
                self.fix(at, &[0x01]);
                self.allow(at, &(mask as u32 & !3).to_le_bytes());
            }
            BarKind::Memory32 => self.allow(at, &(mask as u32 & !15).to_le_bytes()),
            BarKind::Memory64 => {
                self.fix(at, &[0x04]);
                self.allow(at, &(mask & !15).to_le_bytes());
            }
        }
        self.bars.push(bar);
    }

    /// Adds a capability with `body` following its ID and next pointer; returns its offset.
    ///
    /// # Panics
    /// When it does not fit: a mistake of the device's author.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next_cap;
        assert!(at + 2 + body.len() <= SIZE, "capabilities fit the configuration space");
        let link = if self.last_cap == CAP_POINTER { CAP_POINTER } else { self.last_cap + 1 };
        self.fix(link, &[at as u8]);
        self.fix(at, &[id, 0]);
        self.fix(at + 2, body);
        let status = u16::from_le_bytes([self.bytes[STATUS], self.bytes[STATUS + 1]]) | STATUS_CAPS;
        self.fix(STATUS, &status.to_le_bytes());
        self.last_cap = at;
        self.next_cap = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// The base address registers.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Interrupt pin: 1 to 4, or 0 for none.
    pub fn pin(&self) -> u8 {
        self.bytes[INTERRUPT_PIN]
    }

    fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// Whether the function may read and write memory by itself, messages included.
    pub fn bus_master(&self) -> bool {
        self.command() & COMMAND_MASTER != 0
    }

    /// Whether the function may drive its interrupt pin.
    pub fn intx_enabled(&self) -> bool {
        self.command() & COMMAND_INTX_OFF == 0
    }

    /// Shows the level of the interrupt pin in the status register (before the disable bit).
    pub fn show_interrupt(&mut self, level: bool) {
        let bit = STATUS_INTERRUPT as u8;
        self.bytes[STATUS] = if level { self.bytes[STATUS] | bit } else { self.bytes[STATUS] & !bit };
    }

    /// Where a base address register is mapped, or `None` while the command register disables it.
    pub fn mapping(&self, bar: &Bar) -> Option<BusAddress> {
        let io = bar.kind == BarKind::Io;
        let enable = if io { COMMAND_IO } else { COMMAND_MEMORY };
        if self.command() & enable == 0 {
            return None;
        }
        let at = FIRST_BAR + 4 * usize::from(bar.index);
        let low = u64::from(self.read_u32(at));
        let start = match bar.kind {
            BarKind::Io => low & !3,
            BarKind::Memory32 => low & !15,
            BarKind::Memory64 => (low & !15) | u64::from(self.read_u32(at + 4)) << 32,
        };
        start.checked_add(bar.size)?;
        Some(BusAddress { start, size: bar.size, io })
    }

    /// Places a base address register, as firmware would.
    pub(crate) fn place(&mut self, bar: Bar, start: u64) {
        let at = FIRST_BAR + 4 * usize::from(bar.index);
        let bytes = if bar.kind == BarKind::Memory64 { 8 } else { 4 };
        self.write(at, &start.to_le_bytes()[..bytes]);
    }

    /// Back to power-on contents.
    pub fn reset(&mut self) {
        self.bytes = self.power_on;
    }

    /// Reads from `offset`; what lies beyond reads as zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + i).copied().unwrap_or(0);
        }
    }

    /// Reads a little-endian 32-bit word.
    pub fn read_u32(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Reads a little-endian 16-bit word.
    pub fn read_u16(&self, offset: usize) -> u16 {
        self.read_u32(offset) as u16
    }

    /// Writes what software may change from `offset` on.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(offset + i), self.writable.get(offset + i)) {
                *old = (*old & !mask) | (byte & mask);
            }
        }
    }

    pub(crate) fn save(&self) -> ConfigState {
        ConfigState(self.bytes.to_vec())
    }

    /// Takes on saved contents; false when a bit differs that software could never have changed.
    #[must_use]
    pub(crate) fn restore(&mut self, state: &ConfigState) -> bool {
        let Ok(bytes) = <[u8; SIZE]>::try_from(&state.0[..]) else { return false };
        for (i, byte) in bytes.iter().enumerate() {
            let free = self.writable[i] | if i == STATUS { STATUS_INTERRUPT as u8 } else { 0 };
            if (byte ^ self.power_on[i]) & !free != 0 {
                return false;
            }
        }
        self.bytes = bytes;
        true
    }
}
