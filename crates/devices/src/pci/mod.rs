//! PCI: one bus of conventional functions behind a host bridge.
//!
//! There is no firmware in this machine, so [`PciHost::reset`](crate::Device::reset) does what
//! firmware would: it gives every base address register a place, in slot order, so that even a
//! kernel that assigns nothing finds its devices. Linux checks the assignment and keeps it.
//!
//! ```text
//! 0xcf8/0xcfc ─┐                        ┌─ 00:00.0 host bridge
//! ECAM ────────┼─ PciHost ─ ConfigSpace ─┼─ 00:01.0 PciFunction ─ BARs, MSI-X
//! MMIO, ports ─┘      │                 └─ 00:02.0 PciFunction …
//!                     └─ INTx: OR of the sharers of a line → GSI 16 + (slot + pin) mod 4
//! ```
//!
//! Sources: PCI Local Bus Specification 3.0; PCI Express Base 4.0, 7.2.2 (ECAM).

mod config;
mod function;
mod host;
mod msix;

pub use config::{Bar, BarKind, BusAddress, CAP_MSIX, CAP_VENDOR, ConfigSpace, Identity};
pub use function::PciFunction;
pub use host::{
    BLOCK_CONFIG_PORTS, BLOCK_ECAM, BLOCK_IO, BLOCK_MMIO, ECAM_BASE, ECAM_SIZE, IO_WINDOW, MMIO_WINDOW,
    PciHost, gsi_of,
};
pub use msix::{Msix, MsixState, NO_VECTOR};

#[cfg(test)]
mod tests;
