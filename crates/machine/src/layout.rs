//! The machine's address map.
//!
//! ```text
//! 0000_0000 ┬ RAM (up to 3 GiB)
//! 000e_0000 │   ACPI tables, in RAM, reserved in the E820 map
//! c000_0000 ┼ PCI memory BARs below 4 GiB
//! e000_0000 ┼ PCI ECAM, 256 buses
//! fec0_0000 ┼ IOAPIC
//! fed0_0000 ┼ HPET
//! fee0_0000 ┼ local APIC
//! 1_0000_0000 RAM above the hole
//!     ...   ─ PCI memory BARs above RAM
//! ```

use base::GuestPhys;
use std::ops::Range;

/// ACPI tables; RAM that the guest is told to keep off.
pub const ACPI_AREA: Range<u64> = 0xe_0000..0x10_0000;
/// End of conventional memory: the last KiB below 640 KiB is the extended BIOS data area's.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Memory BARs below 4 GiB.
pub const PCI_MMIO: Range<u64> = 0xc000_0000..0xe000_0000;
/// PCI Express enhanced configuration space.
pub const PCI_ECAM: Range<u64> = 0xe000_0000..0xf000_0000;
/// I/O BARs.
pub const PCI_IO: Range<u16> = 0xc000..0xf000;
/// IOAPIC registers.
pub const IOAPIC: Range<u64> = 0xfec0_0000..0xfec0_1000;
/// HPET registers.
pub const HPET: Range<u64> = 0xfed0_0000..0xfed0_0400;
/// Local APIC registers after reset.
pub const LOCAL_APIC: Range<u64> = 0xfee0_0000..0xfee0_1000;
/// Size of the window for memory BARs above RAM, and what its start is a multiple of.
const PCI_MMIO_HIGH_SIZE: u64 = 64 << 30;

/// Memory BARs above a RAM of `memory` bytes.
pub fn pci_mmio_high(memory: u64) -> Range<u64> {
    let ram_end = memory.saturating_sub(memory::LOW_RAM_MAX).saturating_add(1 << 32);
    let start = ram_end.next_multiple_of(PCI_MMIO_HIGH_SIZE);
    start..start.saturating_add(PCI_MMIO_HIGH_SIZE)
}

/// Ports.
pub mod port {
    /// First serial port (COM1), interrupt 4.
    pub const COM1: u16 = 0x3f8;
    /// Second serial port (COM2), interrupt 3.
    pub const COM2: u16 = 0x2f8;
    /// pvpanic.
    pub const PVPANIC: u16 = 0x505;
    /// ACPI PM1a event block (4 ports), control block (at +4) and PM timer (at +8).
    pub const ACPI_PM: u16 = 0x600;
    /// Reset control, the FADT's reset register.
    pub const RESET: u16 = 0xcf9;
    /// PCI configuration address and data.
    pub const PCI_CONFIG: u16 = 0xcf8;
    /// Debug console, when asked for.
    pub const DEBUG_CONSOLE: u16 = 0xe9;
    /// Debug exit, when asked for.
    pub const DEBUG_EXIT: u16 = 0xf4;
}

/// Where the RSDP lies: the start of the ACPI area.
pub const RSDP: GuestPhys = GuestPhys(ACPI_AREA.start);
