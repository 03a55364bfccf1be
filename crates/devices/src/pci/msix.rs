//! MSI-X: a table of messages in a BAR, each of which can be masked (PCI 3.0, 6.8.2).

use super::{CAP_MSIX, ConfigSpace};
use crate::IrqSink;
use serde::{Deserialize, Serialize};

/// The vector number that means "no interrupt" in virtio and is never a table entry.
pub const NO_VECTOR: u16 = 0xffff;

/// Message control: function mask and enable, in the second byte.
const CONTROL_MASK: u8 = 1 << 6;
const CONTROL_ENABLE: u8 = 1 << 7;
const ENTRY_SIZE: usize = 16;
const ENTRY_MASKED: u8 = 1;

/// The MSI-X capability of a function. The table starts at offset 0 of its BAR, the pending bits at
/// [`Msix::PENDING_OFFSET`].
pub struct Msix {
    capability: usize,
    entries: usize,
    state: MsixState,
}

/// The part that is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    table: Vec<u8>,
    pending: Vec<u8>,
    control: u8,
}

impl Msix {
    /// Where in the BAR the pending bits start, in bytes.
    pub const PENDING_OFFSET: u64 = 0x800;
    /// Bytes of the BAR.
    pub const BAR_SIZE: u64 = 0x1000;

    /// Adds the capability, with `entries` (1 to 128) vectors in BAR number `bar`, to a
    /// configuration space.
    pub fn new(config: &mut ConfigSpace, bar: u8, entries: usize) -> Self {
        assert!((1..=128).contains(&entries));
        let mut body = [0; 10];
        body[..2].copy_from_slice(&(entries as u16 - 1).to_le_bytes());
        body[2..6].copy_from_slice(&u32::from(bar).to_le_bytes());
        body[6..].copy_from_slice(&(Self::PENDING_OFFSET as u32 | u32::from(bar)).to_le_bytes());
        let capability = config.add_capability(CAP_MSIX, &body);
        config.allow(capability + 3, &[CONTROL_ENABLE | CONTROL_MASK]);
        Self { capability, entries, state: MsixState::power_on(entries) }
    }

    /// Back to power-on state: disabled, every vector masked.
    pub fn reset(&mut self) {
        self.state = MsixState::power_on(self.entries);
    }

    /// How many vectors there are.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Whether software has switched from the interrupt pin to messages.
    pub fn enabled(&self) -> bool {
        self.state.control & CONTROL_ENABLE != 0
    }

    /// Sends vector `vector`'s message, or remembers it while masked. Nothing happens while MSI-X is
    /// disabled or for a vector that does not exist.
    pub fn raise(&mut self, irq: &mut IrqSink, vector: u16) {
        let vector = usize::from(vector);
        if !self.enabled() || vector >= self.entries {
            return;
        }
        if self.masked(vector) {
            self.state.pending[vector / 8] |= 1 << (vector % 8);
        } else {
            self.send(irq, vector);
        }
    }

    fn masked(&self, vector: usize) -> bool {
        self.state.control & CONTROL_MASK != 0
            || self.state.table[vector * ENTRY_SIZE + 12] & ENTRY_MASKED != 0
    }

    fn send(&self, irq: &mut IrqSink, vector: usize) {
        let entry = &self.state.table[vector * ENTRY_SIZE..][..ENTRY_SIZE];
        let address = u64::from_le_bytes(entry[..8].try_into().expect("8 bytes"));
        let data = u32::from_le_bytes(entry[8..12].try_into().expect("4 bytes"));
        irq.message(address, data);
    }

    /// Sends what became unmasked.
    fn send_pending(&mut self, irq: &mut IrqSink) {
        if !self.enabled() {
            return;
        }
        for vector in 0..self.entries {
            let bit = 1 << (vector % 8);
            if self.state.pending[vector / 8] & bit != 0 && !self.masked(vector) {
                self.state.pending[vector / 8] &= !bit;
                self.send(irq, vector);
            }
        }
    }

    /// To be called after software wrote to the configuration space.
    pub fn config_written(&mut self, config: &ConfigSpace, irq: &mut IrqSink) {
        let control = (config.read_u16(self.capability + 2) >> 8) as u8;
        if control != self.state.control {
            self.state.control = control;
            self.send_pending(irq);
        }
    }

    /// A read of the BAR.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i as u64);
            let source = match at.checked_sub(Self::PENDING_OFFSET) {
                Some(at) => self.state.pending.get(at as usize),
                None => self.state.table.get(at as usize),
            };
            *byte = source.copied().unwrap_or(0);
        }
    }

    /// A write to the BAR; only whole aligned 32-bit or 64-bit accesses are defined.
    pub fn write(&mut self, irq: &mut IrqSink, offset: u64, data: &[u8]) {
        let aligned = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len() as u64);
        let Some(target) = usize::try_from(offset)
            .ok()
            .filter(|_| aligned)
            .and_then(|offset| self.state.table.get_mut(offset..offset.checked_add(data.len())?))
        else {
            return;
        };
        target.copy_from_slice(data);
        self.send_pending(irq);
    }

    /// The state to save.
    pub fn save(&self) -> MsixState {
        self.state.clone()
    }

    /// Takes on a saved state; false when it is not one of this table's size.
    #[must_use]
    pub fn restore(&mut self, state: &MsixState) -> bool {
        let fits =
            state.table.len() == self.state.table.len() && state.pending.len() == self.state.pending.len();
        if fits {
            self.state = state.clone();
        }
        fits
    }
}

impl MsixState {
    fn power_on(entries: usize) -> Self {
        let mut table = vec![0; entries * ENTRY_SIZE];
        for entry in table.chunks_exact_mut(ENTRY_SIZE) {
            entry[12] = ENTRY_MASKED;
        }
        Self { table, pending: vec![0; entries.div_ceil(64) * 8], control: 0 }
    }
}
