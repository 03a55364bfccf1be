//! The devices of the board, by name and by slot.

use crate::board::BoardConfig;
use crate::pci::PciBus;
use devices::{
    AcpiPm, DebugConsole, DebugExit, Device, FastReset, Hpet, I8042, I8254, I8259Pair, IoApic, LocalApic,
    Pvpanic, ResetControl, Rtc, Uart,
};

/// A device of the board. The order is that in which deadlines at one moment expire and states are
/// saved: it is part of the machine's definition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    LocalApic(u32),
    IoApic,
    Pic,
    Pit,
    Hpet,
    AcpiPm,
    Rtc,
    Keyboard,
    Serial(u32),
    FastReset,
    ResetControl,
    Pvpanic,
    DebugConsole,
    DebugExit,
    Pci,
}

pub(super) struct Chipset {
    pub lapics: Vec<LocalApic>,
    pub ioapic: IoApic,
    pub pic: I8259Pair,
    pub pit: I8254,
    pub hpet: Option<Hpet>,
    pub pm: AcpiPm,
    pub rtc: Rtc,
    pub keyboard: I8042,
    pub serial: [Uart; 2],
    pub fast_reset: FastReset,
    pub reset_control: ResetControl,
    pub pvpanic: Pvpanic,
    pub debug_console: Option<DebugConsole>,
    pub debug_exit: Option<DebugExit>,
    pub pci: PciBus,
}

impl Chipset {
    pub fn new(config: &BoardConfig, pci: PciBus) -> Self {
        Self {
            lapics: (0..config.cpus).map(LocalApic::new).collect(),
            ioapic: IoApic::new(),
            pic: I8259Pair::new(),
            pit: I8254::new(),
            hpet: config.hpet.then(Hpet::new),
            pm: AcpiPm::new(),
            rtc: Rtc::new(config.start_of_day),
            keyboard: I8042::new(),
            serial: [Uart::new(0, 4), Uart::new(1, 3)],
            fast_reset: FastReset::default(),
            reset_control: ResetControl::default(),
            pvpanic: Pvpanic,
            debug_console: config.debug_ports.then(|| DebugConsole::new(0)),
            debug_exit: config.debug_ports.then_some(DebugExit),
            pci,
        }
    }

    /// Every device there is, in the machine's order.
    pub fn slots(&self) -> Vec<Slot> {
        let cpus = self.lapics.len() as u32;
        let board = [Slot::IoApic, Slot::Pic, Slot::Pit, Slot::Hpet, Slot::AcpiPm, Slot::Rtc, Slot::Keyboard];
        let ports = [Slot::FastReset, Slot::ResetControl, Slot::Pvpanic];
        let options = [Slot::DebugConsole, Slot::DebugExit, Slot::Pci];
        let all = (0..cpus).map(Slot::LocalApic).chain(board).chain([Slot::Serial(0), Slot::Serial(1)]);
        all.chain(ports).chain(options).filter(|slot| self.device(*slot).is_some()).collect()
    }

    pub fn device(&self, slot: Slot) -> Option<&dyn Device> {
        Some(match slot {
            Slot::LocalApic(cpu) => self.lapics.get(cpu as usize)?,
            Slot::IoApic => &self.ioapic,
            Slot::Pic => &self.pic,
            Slot::Pit => &self.pit,
            Slot::Hpet => self.hpet.as_ref()?,
            Slot::AcpiPm => &self.pm,
            Slot::Rtc => &self.rtc,
            Slot::Keyboard => &self.keyboard,
            Slot::Serial(port) => self.serial.get(port as usize)?,
            Slot::FastReset => &self.fast_reset,
            Slot::ResetControl => &self.reset_control,
            Slot::Pvpanic => &self.pvpanic,
            Slot::DebugConsole => self.debug_console.as_ref()?,
            Slot::DebugExit => self.debug_exit.as_ref()?,
            Slot::Pci => self.pci.device(),
        })
    }

    pub fn device_mut(&mut self, slot: Slot) -> Option<&mut dyn Device> {
        Some(match slot {
            Slot::LocalApic(cpu) => self.lapics.get_mut(cpu as usize)?,
            Slot::IoApic => &mut self.ioapic,
            Slot::Pic => &mut self.pic,
            Slot::Pit => &mut self.pit,
            Slot::Hpet => self.hpet.as_mut()?,
            Slot::AcpiPm => &mut self.pm,
            Slot::Rtc => &mut self.rtc,
            Slot::Keyboard => &mut self.keyboard,
            Slot::Serial(port) => self.serial.get_mut(port as usize)?,
            Slot::FastReset => &mut self.fast_reset,
            Slot::ResetControl => &mut self.reset_control,
            Slot::Pvpanic => &mut self.pvpanic,
            Slot::DebugConsole => self.debug_console.as_mut()?,
            Slot::DebugExit => self.debug_exit.as_mut()?,
            Slot::Pci => self.pci.device_mut(),
        })
    }

    /// Whether the HPET has taken the interrupt line of `slot` over.
    pub fn is_cut_off(&self, slot: Slot) -> bool {
        matches!(slot, Slot::Pit | Slot::Rtc) && self.hpet.as_ref().is_some_and(Hpet::replaces_legacy)
    }
}
