//! The devices of the machine, one file or folder each, with one shared lifecycle.
//!
//! **What they may know:** guest time as handed to them, guest RAM by DMA, their own
//! configuration. **What they must never do:** read the host's clock, randomness or files on
//! their own; whatever comes from outside reaches them as an input through the gate.
//!
//! A device holds no handle to anything: no file, socket, thread, channel or callback. Everything
//! it can reach is in the [`Cx`] of the moment, and nothing in there answers questions about the
//! host. That is what keeps a device author from bypassing the gate by accident.

mod acpi_pm;
mod data;
mod debug_console;
mod debug_exit;
mod device;
mod hpet;
mod i8042;
mod i8254;
mod i8259;
mod ioapic;
mod lapic;
pub mod pci;
mod pvpanic;
mod reset_port;
mod rtc;
#[cfg(test)]
mod testing;
mod uart;
pub mod virtio;

pub use acpi_pm::{AcpiPm, PM_TIMER_HZ};
pub use debug_console::DebugConsole;
pub use debug_exit::DebugExit;
pub use device::{
    ApicMessage, Audience, Cx, DeliveryMode, Device, DeviceState, IrqSink, Outside, ProcessorSignal, Request,
    StateError,
};
pub use hpet::Hpet;
pub use i8042::I8042;
pub use i8254::{I8254, PIT_HZ};
pub use i8259::I8259Pair;
pub use ioapic::{IOAPIC_PINS, IoApic};
pub use lapic::LocalApic;
pub use pvpanic::Pvpanic;
pub use reset_port::{FastReset, ResetControl};
pub use rtc::{Rtc, UnixTime};
pub use uart::Uart;

/// The time-stamp counter's frequency: one tick per nanosecond of guest time.
pub const TSC_HZ: u64 = 1_000_000_000;
/// The local APIC timer's input before its divider; also the "core crystal clock" of CPUID leaf
/// 0x15 (SDM vol. 3A, 10.5.4), so that a kernel need not calibrate.
pub const LAPIC_TIMER_HZ: u64 = 1_000_000_000;
