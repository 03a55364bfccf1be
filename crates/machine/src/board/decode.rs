//! Which device answers at a port or an address.

use super::chipset::Slot;
use crate::layout::{self, port};

/// A register of a device: whose, in which of its blocks, and where in there.
pub(super) struct Target {
    pub slot: Slot,
    pub block: u32,
    pub offset: u64,
    /// Takes accesses wider than a byte whole; to others they arrive byte by byte, as on ISA.
    pub wide: bool,
}

fn target(slot: Slot, block: u32, offset: u16) -> Option<Target> {
    Some(Target { slot, block, offset: u64::from(offset), wide: false })
}

fn wide(slot: Slot, block: u32, offset: u64) -> Option<Target> {
    Some(Target { slot, block, offset, wide: true })
}

/// The device at `port` for an access of `size` bytes. Port 0x80 (diagnostics, also used as a
/// delay) belongs to nobody: writes are ignored, reads are all ones.
pub(super) fn io(at: u16, size: usize) -> Option<Target> {
    const COM1_END: u16 = port::COM1 + 7;
    const COM2_END: u16 = port::COM2 + 7;
    const PM_END: u16 = port::ACPI_PM + 11;
    match at {
        0x20..=0x21 => target(Slot::Pic, 0, at - 0x20),
        0xa0..=0xa1 => target(Slot::Pic, 1, at - 0xa0),
        0x4d0..=0x4d1 => target(Slot::Pic, 2, at - 0x4d0),
        0x40..=0x43 => target(Slot::Pit, 0, at - 0x40),
        0x61 => target(Slot::Pit, 1, 0),
        0x60 | 0x64 => target(Slot::Keyboard, 0, at - 0x60),
        0x70..=0x71 => target(Slot::Rtc, 0, at - 0x70),
        0x92 => target(Slot::FastReset, 0, 0),
        port::COM1..=COM1_END => target(Slot::Serial(0), 0, at - port::COM1),
        port::COM2..=COM2_END => target(Slot::Serial(1), 0, at - port::COM2),
        port::PVPANIC => target(Slot::Pvpanic, 0, 0),
        port::ACPI_PM..=PM_END => wide(Slot::AcpiPm, 0, u64::from(at - port::ACPI_PM)),
        port::DEBUG_CONSOLE => target(Slot::DebugConsole, 0, 0),
        port::DEBUG_EXIT..0xf8 => wide(Slot::DebugExit, 0, u64::from(at - port::DEBUG_EXIT)),
        port::RESET if size == 1 => target(Slot::ResetControl, 0, 0),
        0xcf8..=0xcff => wide(Slot::Pci, 0, u64::from(at - port::PCI_CONFIG)),
        _ if layout::PCI_IO.contains(&at) => wide(Slot::Pci, 3, u64::from(at)),
        _ => None,
    }
}

/// The device at physical address `at`, other than the accessing processor's local APIC.
pub(super) fn mmio(at: u64, pci_high: &std::ops::Range<u64>) -> Option<Target> {
    if layout::IOAPIC.contains(&at) {
        wide(Slot::IoApic, 0, at - layout::IOAPIC.start)
    } else if layout::HPET.contains(&at) {
        wide(Slot::Hpet, 0, at - layout::HPET.start)
    } else if layout::PCI_ECAM.contains(&at) {
        wide(Slot::Pci, 1, at - layout::PCI_ECAM.start)
    } else if layout::PCI_MMIO.contains(&at) || pci_high.contains(&at) {
        wide(Slot::Pci, 2, at)
    } else {
        None
    }
}
