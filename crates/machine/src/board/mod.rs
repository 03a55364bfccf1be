//! The board: memory, interrupt controllers, devices, and the wires between them.
//!
//! It is what a processor sees through [`cpu::Bus`]. A device asks for things by pushing
//! [`devices::Request`]s while it runs; the board applies them when it returns, in order, before anything
//! else happens. Timers are deadlines that devices compute from their state: the earliest, turned
//! into a position, is the horizon at which the processor must come back for [`Board::tick`].

mod chipset;
mod deadlines;
mod decode;
mod interrupts;
mod others;
mod state;
#[cfg(test)]
mod tests;

use crate::clock::{Clock, Rate};
use crate::gate::{Admitted, ClockCorrection, Input};
use crate::layout;
use crate::pci::PciBus;
use base::{GuestPhys, GuestTime, Position};
use chipset::{Chipset, Slot};
use cpu::Bus;
use cpu::profile::{self, Work};
use deadlines::Deadlines;
use devices::{Cx, IrqSink, Outside, ProcessorSignal, Uart, UnixTime};
use memory::{Ram, RamError};
use std::ops::Range;

pub use state::BoardState;

/// What a board is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardConfig {
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// Processors, 1 to [`BoardConfig::CPUS_MAX`].
    pub cpus: u32,
    /// What the RTC shows at power-on.
    pub start_of_day: UnixTime,
    /// Guest time per instruction.
    pub rate: Rate,
    /// Whether there is an HPET.
    pub hpet: bool,
    /// Whether there are a debug console (port 0xe9) and a debug exit (port 0xf4).
    pub debug_ports: bool,
}

impl BoardConfig {
    /// The most processors a board takes.
    pub const CPUS_MAX: u32 = 16;
}

impl Default for BoardConfig {
    /// 512 MiB, one processor, 2024-01-01T00:00:00Z, one nanosecond per instruction, an HPET.
    fn default() -> Self {
        Self {
            memory: 512 << 20,
            cpus: 1,
            start_of_day: UnixTime(1_704_067_200),
            rate: Rate::ONE,
            hpet: true,
            debug_ports: false,
        }
    }
}

/// A board that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Another number of processors than the board has places for.
    #[error("the board has places for {board} processors and there are {processors}")]
    Sockets {
        /// Places.
        board: u32,
        /// Processors.
        processors: u32,
    },
    /// Too many processors, or none.
    #[error("{0} processors are out of range; pass --cpus 1 to {max}", max = BoardConfig::CPUS_MAX)]
    Cpus(u32),
}

/// What the guest did that ends a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Ending {
    /// ACPI S5.
    PowerOff,
    /// A reset by keyboard controller, port 0x92 or the ACPI reset register.
    Reset,
    /// pvpanic.
    Panic,
    /// The debug-exit port, with the value written.
    DebugExit(u32),
}

/// The board.
pub struct Board {
    ram: Ram,
    clock: Clock,
    chipset: Chipset,
    /// In the machine's order; indexes `deadlines`.
    slots: Vec<Slot>,
    deadlines: Deadlines,
    /// The position of the earliest deadline.
    horizon: Position,
    /// Where [`Board::tick`] was called last.
    ticked_at: Option<Position>,
    irq: IrqSink,
    out: Box<dyn Outside + Send>,
    /// The processor that is running.
    current: usize,
    others: others::Others,
    /// Level of the 8259s' output.
    external: bool,
    signals: Vec<(u32, ProcessorSignal)>,
    ending: Option<Ending>,
    pci_high: Range<u64>,
}

impl Board {
    /// A board at power-on. Bytes and frames that leave it go to `out`.
    pub fn new(config: &BoardConfig, pci: PciBus, out: Box<dyn Outside + Send>) -> Result<Self, BoardError> {
        if !(1..=BoardConfig::CPUS_MAX).contains(&config.cpus) {
            return Err(BoardError::Cpus(config.cpus));
        }
        let chipset = Chipset::new(config, pci);
        let slots = chipset.slots();
        let mut board = Self {
            ram: Ram::new(config.memory)?,
            clock: Clock::new(config.rate),
            deadlines: Deadlines::new(slots.len()),
            slots,
            chipset,
            horizon: Position::NEVER,
            ticked_at: None,
            irq: IrqSink::default(),
            out,
            current: 0,
            others: others::Others::default(),
            external: false,
            signals: Vec::new(),
            ending: None,
            pci_high: layout::pci_mmio_high(config.memory),
        };
        board.reset_devices();
        Ok(board)
    }

    /// As after a reset: devices at power-on, nothing pending. RAM, disks and the clock stay.
    pub fn reset(&mut self) {
        self.signals.clear();
        self.ending = None;
        self.current = 0;
        self.others = others::Others::default();
        self.irq.requests.clear();
        self.reset_devices();
    }

    fn reset_devices(&mut self) {
        for slot in &self.slots {
            if let Some(device) = self.chipset.device_mut(*slot) {
                device.reset();
            }
        }
        self.external = self.chipset.pic.output();
        self.refresh_all();
    }

    /// What firmware does before it hands over: passes the 8259s' interrupts to the boot processor.
    pub fn set_virtual_wire(&mut self) {
        self.chipset.lapics[0].set_virtual_wire();
    }

    /// The clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Guest memory.
    pub fn memory(&self) -> &Ram {
        &self.ram
    }

    /// Guest memory, to change while nothing runs.
    pub fn memory_mut(&mut self) -> &mut Ram {
        &mut self.ram
    }

    /// How many processors the board has.
    pub fn cpus(&self) -> u32 {
        self.chipset.lapics.len() as u32
    }

    /// Tells the board which processor runs from here on.
    pub fn set_current_cpu(&mut self, cpu: u32) {
        assert!(cpu < self.cpus());
        self.current = cpu as usize;
    }

    /// The processor that runs.
    pub fn current_cpu(&self) -> u32 {
        self.current as u32
    }

    /// What the guest did that ends the run, once.
    pub fn take_ending(&mut self) -> Option<Ending> {
        let ending = self.ending.take();
        self.refresh_horizon();
        ending
    }

    /// NMI, INIT and start-up messages to processors since the last call, oldest first.
    pub fn take_signals(&mut self) -> Vec<(u32, ProcessorSignal)> {
        let signals = std::mem::take(&mut self.signals);
        self.refresh_horizon();
        signals
    }

    /// Why the machine cannot go on, when the host failed one of its devices.
    pub fn failure(&self) -> Option<String> {
        self.chipset.pci.failure()
    }

    /// The PCI bus.
    pub fn pci(&self) -> &PciBus {
        &self.chipset.pci
    }

    /// The PCI bus, to take disks to a snapshot.
    pub fn pci_mut(&mut self) -> &mut PciBus {
        &mut self.chipset.pci
    }

    /// The task priority of processor `cpu` as its CR8 shows it; 0 when there is no such processor.
    pub fn cr8(&self, cpu: usize) -> u64 {
        self.chipset.lapics.get(cpu).map_or(0, |lapic| lapic.cr8())
    }

    /// How many bytes of input a serial port would take now.
    pub fn serial_room(&self, port: u32) -> usize {
        self.chipset.serial.get(port as usize).map_or(0, Uart::room)
    }

    /// How many bytes of input a virtio console would take now.
    pub fn console_room(&self, console: u32) -> usize {
        self.chipset.pci.console_room(console)
    }

    /// Whether network card `card` is there and the guest keeps up with the frames that come.
    pub fn card_has_room(&self, card: u32) -> bool {
        self.chipset.pci.card_has_room(card)
    }

    /// The guest time of the earliest deadline.
    pub fn next_deadline(&self) -> Option<GuestTime> {
        self.deadlines.earliest()
    }

    /// Runs every deadline that is due at `at`, in the machine's order, until none is.
    pub fn tick(&mut self, at: Position) {
        let _work = profile::work(Work::Device);
        let now = self.clock.time_at(at);
        // A second time at one position, guest time has jumped or something has come in.
        let late = self.ticked_at.replace(at) == Some(at);
        self.memory_mut().set_late(late);
        while self.deadlines.earliest().is_some_and(|due| due <= now) {
            for index in 0..self.slots.len() {
                if self.deadlines.get(index).is_some_and(|due| due <= now) {
                    self.expire(at, index, now);
                }
            }
        }
        self.memory_mut().set_late(false);
    }

    fn expire(&mut self, at: Position, index: usize, now: GuestTime) {
        let slot = self.slots[index];
        self.with(at, slot, |device, cx| device.expire(cx));
        // The contract of `Device::expire`; a device that breaks it must not hang the machine.
        if self.deadlines.get(index).is_some_and(|due| due <= now) {
            debug_assert!(false, "{slot:?} is due again at {now}");
            self.deadlines.set(index, Some(now.after_ns(1)));
            self.refresh_horizon();
        }
    }

    /// Guest time jumps to `time` while every processor is halted at `at`.
    pub fn skip_to(&mut self, at: Position, time: GuestTime) {
        self.clock.skip_to(at, time);
        self.refresh_horizon();
    }

    /// Lets an input in that has passed the gate. How much of it was taken: bytes, or 0 and 1.
    pub fn admit(&mut self, admitted: &Admitted) -> usize {
        self.memory_mut().set_late(true);
        let taken = self.admit_now(admitted);
        self.memory_mut().set_late(false);
        taken
    }

    fn admit_now(&mut self, admitted: &Admitted) -> usize {
        let at = admitted.event().at.position;
        let taken =
            match &admitted.event().input {
                Input::Serial { port, bytes } => self.on(at, Slot::Serial(*port), |chipset, cx| {
                    chipset.serial.get_mut(*port as usize).map_or(0, |uart| uart.receive(cx, bytes))
                }),
                Input::Console { port, bytes } => {
                    self.on(at, Slot::Pci, |chipset, cx| chipset.pci.console_input(cx, *port, bytes))
                }
                Input::Frame { card, bytes } => self
                    .on(at, Slot::Pci, |chipset, cx| usize::from(chipset.pci.frame_input(cx, *card, bytes))),
                Input::Key { scan_code } => self
                    .on(at, Slot::Keyboard, |chipset, cx| usize::from(chipset.keyboard.key(cx, scan_code))),
                Input::PowerButton => self.on(at, Slot::AcpiPm, |chipset, cx| {
                    chipset.pm.press_power_button(cx);
                    1
                }),
                Input::Clock(correction) => {
                    self.correct_clock(at, *correction);
                    1
                }
            };
        self.tick(at);
        taken
    }

    fn correct_clock(&mut self, at: Position, correction: ClockCorrection) {
        let time = self.clock.time_at(at).after_ns(correction.advance_ns);
        self.clock.skip_to(at, time);
        if let Some(rate) = correction.rate {
            self.clock.set_rate(at, rate);
        }
        self.refresh_horizon();
    }

    /// Lets something act on the chipset in the name of `slot`, then applies what it asked for.
    fn on<R>(&mut self, at: Position, slot: Slot, act: impl FnOnce(&mut Chipset, &mut Cx) -> R) -> R {
        let _work = profile::work(Work::Device);
        let now = self.clock.time_at(at);
        let mut cx = Cx { now, ram: &mut self.ram, irq: &mut self.irq, out: &mut *self.out };
        let result = act(&mut self.chipset, &mut cx);
        self.apply_requests(now, slot);
        self.refresh(slot);
        result
    }

    /// Likewise with the device in `slot`; nothing when the board has none there.
    fn with<R>(
        &mut self,
        at: Position,
        slot: Slot,
        act: impl FnOnce(&mut dyn devices::Device, &mut Cx) -> R,
    ) -> Option<R> {
        self.on(at, slot, |chipset, cx| chipset.device_mut(slot).map(|device| act(device, cx)))
    }

    fn refresh(&mut self, slot: Slot) {
        let Some(index) = self.slots.iter().position(|other| *other == slot) else { return };
        let due = self.chipset.device(slot).and_then(|device| device.deadline());
        if self.deadlines.set(index, due) {
            self.refresh_horizon();
        }
    }

    fn refresh_all(&mut self) {
        for index in 0..self.slots.len() {
            let due = self.chipset.device(self.slots[index]).and_then(|device| device.deadline());
            self.deadlines.set(index, due);
        }
        self.refresh_horizon();
    }

    fn refresh_horizon(&mut self) {
        let stop_now = self.ending.is_some() || !self.signals.is_empty() || self.others.woken;
        self.horizon = match self.deadlines.earliest() {
            _ if stop_now => Position::START,
            Some(due) => self.clock.position_of(due),
            None => Position::NEVER,
        };
    }

    fn end(&mut self, ending: Ending) {
        self.ending.get_or_insert(ending);
        self.refresh_horizon();
    }

    fn local_apic_at(&self, address: u64) -> Option<(Slot, u64)> {
        let base = self.chipset.lapics[self.current].mmio_base()?;
        let offset = address.checked_sub(base).filter(|offset| *offset < 0x1000)?;
        Some((Slot::LocalApic(self.current as u32), offset))
    }
}

impl Bus for Board {
    fn ram(&mut self) -> &mut Ram {
        &mut self.ram
    }

    fn mmio_read(&mut self, at: Position, address: GuestPhys, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((slot, offset)) = self.local_apic_at(address.0) {
            self.with(at, slot, |device, cx| device.read(cx, 0, offset, data));
        } else if let Some(target) = decode::mmio(address.0, &self.pci_high) {
            self.with(at, target.slot, |device, cx| device.read(cx, target.block, target.offset, data));
        }
    }

    fn mmio_write(&mut self, at: Position, address: GuestPhys, data: &[u8]) {
        if let Some((slot, offset)) = self.local_apic_at(address.0) {
            self.with(at, slot, |device, cx| device.write(cx, 0, offset, data));
        } else if let Some(target) = decode::mmio(address.0, &self.pci_high) {
            self.with(at, target.slot, |device, cx| device.write(cx, target.block, target.offset, data));
        }
    }

    fn io_read(&mut self, at: Position, port: u16, size: usize) -> u32 {
        let mut bytes = [0xff; 4];
        let data = &mut bytes[..size.min(4)];
        match decode::io(port, size) {
            Some(target) if target.wide || data.len() == 1 => {
                self.with(at, target.slot, |device, cx| {
                    device.read(cx, target.block, target.offset, data);
                });
            }
            _ if data.len() > 1 => {
                for (i, byte) in data.iter_mut().enumerate() {
                    *byte = self.io_read(at, port.wrapping_add(i as u16), 1) as u8;
                }
            }
            _ => {}
        }
        let unused = if size >= 4 { 0 } else { u32::MAX << (8 * size) };
        u32::from_le_bytes(bytes) & !unused
    }

    fn io_write(&mut self, at: Position, port: u16, size: usize, value: u32) {
        let bytes = value.to_le_bytes();
        let data = &bytes[..size.min(4)];
        match decode::io(port, size) {
            Some(target) if target.wide || data.len() == 1 => {
                self.with(at, target.slot, |device, cx| {
                    device.write(cx, target.block, target.offset, data);
                });
            }
            _ if data.len() > 1 => {
                for (i, byte) in data.iter().enumerate() {
                    self.io_write(at, port.wrapping_add(i as u16), 1, u32::from(*byte));
                }
            }
            _ => {}
        }
    }

    fn msr_read(&mut self, at: Position, index: u32) -> Option<u64> {
        let now = self.clock.time_at(at);
        let lapic = &self.chipset.lapics[self.current];
        match index {
            x86::msr::APIC_BASE => Some(lapic.base_msr()),
            x86::msr::TSC_DEADLINE | x86::msr::X2APIC_FIRST..=x86::msr::X2APIC_LAST => {
                lapic.read_msr(now, index)
            }
            _ => None,
        }
    }

    fn msr_write(&mut self, at: Position, index: u32, value: u64) -> bool {
        let cpu = self.current;
        self.on(at, Slot::LocalApic(cpu as u32), |chipset, cx| {
            let lapic = &mut chipset.lapics[cpu];
            match index {
                x86::msr::APIC_BASE => lapic.set_base_msr(value),
                x86::msr::TSC_DEADLINE | x86::msr::X2APIC_FIRST..=x86::msr::X2APIC_LAST => {
                    lapic.write_msr(cx, index, value)
                }
                _ => false,
            }
        })
    }

    fn tsc(&mut self, at: Position) -> u64 {
        self.clock.time_at(at).ticks(devices::TSC_HZ)
    }

    fn tsc_offset(&self) -> Option<u64> {
        self.clock.offset_ns().filter(|_| devices::TSC_HZ == 1_000_000_000)
    }

    fn read_cr8(&mut self) -> u64 {
        self.chipset.lapics[self.current].cr8()
    }

    fn write_cr8(&mut self, _at: Position, value: u64) {
        self.chipset.lapics[self.current].set_cr8(value);
    }

    fn interrupt_pending(&self) -> bool {
        self.has_external() || self.chipset.lapics[self.current].interrupt_pending()
    }

    fn acknowledge_interrupt(&mut self, at: Position) -> Option<u8> {
        if self.has_external() {
            return Some(self.on(at, Slot::Pic, |chipset, _| chipset.pic.acknowledge()));
        }
        let lapic = &mut self.chipset.lapics[self.current];
        lapic.interrupt_pending().then(|| lapic.acknowledge())
    }

    fn yields_at_pause(&self) -> bool {
        self.gives_way()
    }

    fn horizon(&self) -> Position {
        self.horizon
    }
}
