//! The host bridge: address decoding, configuration mechanisms, interrupt lines.

use super::config::ConfigState;
use super::{BarKind, ConfigSpace, Identity, PciFunction};
use crate::{Cx, Device, DeviceState, StateError};
use base::GuestTime;
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::ops::Range;

/// Where ECAM lies when the board does not say otherwise.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// Bytes of ECAM: 256 buses of 1 MiB, of which only bus 0 has functions.
pub const ECAM_SIZE: u64 = 256 << 20;
/// Guest physical addresses for memory BARs.
pub const MMIO_WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;
/// Ports for I/O BARs.
pub const IO_WINDOW: Range<u64> = 0xc000..0xf000;

/// [`Device`] block: the ports from 0xcf8 on.
pub const BLOCK_CONFIG_PORTS: u32 = 0;
/// [`Device`] block: ECAM, by offset.
pub const BLOCK_ECAM: u32 = 1;
/// [`Device`] block: memory BARs, by guest physical address.
pub const BLOCK_MMIO: u32 = 2;
/// [`Device`] block: I/O BARs, by port.
pub const BLOCK_IO: u32 = 3;

const KIND: &str = "pci-host";
const VERSION: u32 = 1;
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const INTERRUPT_LINE: usize = 0x3c;
const LINES: usize = 4;
const FIRST_GSI: u8 = 16;

/// The global system interrupt of a slot's pin (1 for INTA to 4 for INTD).
pub fn gsi_of(slot: u8, pin: u8) -> u8 {
    FIRST_GSI + line_of(slot, pin) as u8
}

fn line_of(slot: u8, pin: u8) -> usize {
    (usize::from(slot) + usize::from(pin) - 1) % LINES
}

/// The host bridge and what is plugged in behind it.
pub struct PciHost {
    functions: Vec<Box<dyn PciFunction>>,
    /// Last write to CONFIG_ADDRESS.
    address: u32,
    /// Levels of the four lines as last driven.
    lines: [bool; LINES],
    /// Enabled BARs, made anew when a configuration space changes.
    windows: Vec<Window>,
}

#[derive(Clone, Copy)]
struct Window {
    start: u64,
    size: u64,
    io: bool,
    slot: usize,
    bar: u8,
}

#[derive(Serialize, Deserialize)]
struct HostState {
    address: u32,
    lines: [bool; LINES],
    functions: Vec<(ConfigState, DeviceState)>,
}

/// Function 00:00.0.
struct Bridge(ConfigSpace);

impl PciFunction for Bridge {
    fn kind(&self) -> &'static str {
        "pci-bridge"
    }
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _cx: &mut Cx, _bar: u8, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn bar_write(&mut self, _cx: &mut Cx, _bar: u8, _offset: u64, _data: &[u8]) {}
    fn reset(&mut self) {}
    fn save(&self) -> DeviceState {
        DeviceState::encode(self.kind(), 1, &())
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        state.decode("pci-bridge", 1)
    }
}

impl Default for PciHost {
    fn default() -> Self {
        Self::new()
    }
}

impl PciHost {
    /// A bus with nothing but the host bridge on it.
    pub fn new() -> Self {
        let bridge = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008, // the generic PCI host bridge
            revision: 0,
            class: 0x06_00_00,
            subsystem: (0x1af4, 0x1100),
            pin: 0,
        });
        Self {
            functions: vec![Box::new(Bridge(bridge))],
            address: 0,
            lines: [false; LINES],
            windows: Vec::new(),
        }
    }

    /// Plugs a function into the next slot and returns the slot's number. The bus must be reset
    /// before the machine starts.
    ///
    /// # Panics
    /// When all 31 slots are taken.
    pub fn add(&mut self, function: Box<dyn PciFunction>) -> u8 {
        assert!(self.functions.len() < 32, "a free slot");
        self.functions.push(function);
        (self.functions.len() - 1) as u8
    }

    /// The function in `slot`, when it is a `T`.
    pub fn function<T: PciFunction>(&self, slot: u8) -> Option<&T> {
        let function: &dyn Any = self.functions.get(usize::from(slot))?.as_ref();
        function.downcast_ref()
    }

    /// The function in `slot`, when it is a `T`: for the board to restore contents, not to make
    /// it act (see [`Self::act`]).
    pub fn function_mut<T: PciFunction>(&mut self, slot: u8) -> Option<&mut T> {
        let function: &mut dyn Any = self.functions.get_mut(usize::from(slot))?.as_mut();
        function.downcast_mut()
    }

    /// Lets the function in `slot` act on something from outside, and drives the interrupt lines
    /// afterwards. `None` when there is no `T` in the slot.
    pub fn act<T: PciFunction, R>(
        &mut self,
        slot: u8,
        cx: &mut Cx,
        act: impl FnOnce(&mut T, &mut Cx) -> R,
    ) -> Option<R> {
        let result = act(self.function_mut(slot)?, cx);
        self.drive_lines(cx);
        Some(result)
    }

    /// Why the machine cannot go on, when the host's storage failed one of the functions.
    pub fn failure(&self) -> Option<String> {
        self.functions.iter().find_map(|function| function.failure())
    }

    /// A read of port 0xcf8 to 0xcff; false when the port belongs to somebody else.
    pub fn config_port_read(&mut self, cx: &mut Cx, port: u16, data: &mut [u8]) -> bool {
        if port == CONFIG_ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.to_le_bytes());
            return true;
        }
        let Some(offset) = self.port_offset(port, data.len()) else { return false };
        match offset {
            Some((slot, offset)) => self.config_read(cx, slot, offset, data),
            None => data.fill(0xff),
        }
        true
    }

    /// A write to port 0xcf8 to 0xcff; false when the port belongs to somebody else (0xcf9, say).
    pub fn config_port_write(&mut self, cx: &mut Cx, port: u16, data: &[u8]) -> bool {
        if port == CONFIG_ADDRESS && data.len() == 4 {
            self.address = u32::from_le_bytes(data.try_into().expect("4 bytes"));
            return true;
        }
        let Some(offset) = self.port_offset(port, data.len()) else { return false };
        if let Some((slot, offset)) = offset {
            self.config_write(cx, slot, offset, data);
        }
        true
    }

    /// What a data port stands for now: outer `None` when it is no data port, inner `None` when no
    /// configuration space is selected.
    #[allow(clippy::option_option)]
    fn port_offset(&self, port: u16, len: usize) -> Option<Option<(usize, usize)>> {
        let byte = usize::from(port.checked_sub(CONFIG_DATA)?);
        if byte + len > 4 {
            return None;
        }
        let enabled = self.address >> 31 != 0;
        let (bus, devfn) = ((self.address >> 16) & 0xff, (self.address >> 8) & 0xff);
        let offset = (self.address & 0xfc) as usize + byte;
        Some((enabled && bus == 0 && devfn & 7 == 0).then_some(((devfn >> 3) as usize, offset)))
    }

    /// A read of ECAM at `offset` from its base; false when that is beyond its end.
    pub fn ecam_read(&mut self, cx: &mut Cx, offset: u64, data: &mut [u8]) -> bool {
        if offset >= ECAM_SIZE {
            return false;
        }
        match ecam_target(offset) {
            Some((slot, register)) => self.config_read(cx, slot, register, data),
            None => data.fill(0xff),
        }
        true
    }

    /// A write, likewise.
    pub fn ecam_write(&mut self, cx: &mut Cx, offset: u64, data: &[u8]) -> bool {
        if offset >= ECAM_SIZE {
            return false;
        }
        if let Some((slot, register)) = ecam_target(offset) {
            self.config_write(cx, slot, register, data);
        }
        true
    }

    fn config_read(&mut self, cx: &mut Cx, slot: usize, offset: usize, data: &mut [u8]) {
        match self.functions.get_mut(slot) {
            // The extended space of a conventional function does not exist.
            Some(_) if offset >= 256 => data.fill(0),
            Some(function) => {
                function.config_read(cx, offset, data);
                self.drive_lines(cx);
            }
            None => data.fill(0xff),
        }
    }

    fn config_write(&mut self, cx: &mut Cx, slot: usize, offset: usize, data: &[u8]) {
        if let Some(function) = self.functions.get_mut(slot).filter(|_| offset < 256) {
            function.config_write(cx, offset, data);
            self.map_windows();
            self.drive_lines(cx);
        }
    }

    /// A read of memory at guest physical `address`; false when no BAR is there.
    pub fn mmio_read(&mut self, cx: &mut Cx, address: u64, data: &mut [u8]) -> bool {
        self.bar_read(cx, false, address, data)
    }

    /// A write, likewise.
    pub fn mmio_write(&mut self, cx: &mut Cx, address: u64, data: &[u8]) -> bool {
        self.bar_write(cx, false, address, data)
    }

    /// A read of `port`; false when no BAR is there.
    pub fn io_read(&mut self, cx: &mut Cx, port: u16, data: &mut [u8]) -> bool {
        self.bar_read(cx, true, u64::from(port), data)
    }

    /// A write, likewise.
    pub fn io_write(&mut self, cx: &mut Cx, port: u16, data: &[u8]) -> bool {
        self.bar_write(cx, true, u64::from(port), data)
    }

    fn window(&self, io: bool, address: u64, len: usize) -> Option<Window> {
        let fits = |w: &&Window| {
            w.io == io
                && address >= w.start
                && len as u64 <= w.size
                && address - w.start <= w.size - len as u64
        };
        self.windows.iter().find(fits).copied()
    }

    fn bar_read(&mut self, cx: &mut Cx, io: bool, address: u64, data: &mut [u8]) -> bool {
        let Some(w) = self.window(io, address, data.len()) else { return false };
        self.functions[w.slot].bar_read(cx, w.bar, address - w.start, data);
        self.drive_lines(cx);
        true
    }

    fn bar_write(&mut self, cx: &mut Cx, io: bool, address: u64, data: &[u8]) -> bool {
        let Some(w) = self.window(io, address, data.len()) else { return false };
        self.functions[w.slot].bar_write(cx, w.bar, address - w.start, data);
        self.drive_lines(cx);
        true
    }

    /// Notes which BARs are enabled and where. With overlapping BARs the lowest slot answers.
    fn map_windows(&mut self) {
        self.windows.clear();
        for (slot, function) in self.functions.iter().enumerate() {
            let config = function.config();
            for bar in config.bars() {
                if let Some(at) = config.mapping(bar) {
                    let window = Window { start: at.start, size: at.size, io: at.io, slot, bar: bar.index };
                    self.windows.push(window);
                }
            }
        }
    }

    /// Drives each interrupt line to the OR of the functions that share it.
    fn drive_lines(&mut self, cx: &mut Cx) {
        let mut lines = [false; LINES];
        for (slot, function) in self.functions.iter_mut().enumerate() {
            let (pin, level) = (function.config().pin(), function.intx());
            if pin != 0 {
                function.config_mut().show_interrupt(level);
                lines[line_of(slot as u8, pin)] |= level && function.config().intx_enabled();
            }
        }
        for (i, (old, new)) in self.lines.iter_mut().zip(lines).enumerate() {
            if *old != new {
                *old = new;
                cx.irq.line(FIRST_GSI + i as u8, new);
            }
        }
    }

    /// Gives every BAR a place, in slot order, each at the next multiple of its size.
    fn place_bars(&mut self) {
        let (mut memory, mut io) = (MMIO_WINDOW.start, IO_WINDOW.start);
        for (slot, function) in self.functions.iter_mut().enumerate() {
            let config = function.config_mut();
            for bar in config.bars().to_vec() {
                let (next, end) = match bar.kind {
                    BarKind::Io => (&mut io, IO_WINDOW.end),
                    BarKind::Memory32 | BarKind::Memory64 => (&mut memory, MMIO_WINDOW.end),
                };
                let start = next.next_multiple_of(bar.size);
                if start + bar.size <= end {
                    config.place(bar, start);
                    *next = start + bar.size;
                }
            }
            if config.pin() != 0 {
                config.write(INTERRUPT_LINE, &[gsi_of(slot as u8, config.pin())]);
            }
        }
    }
}

/// Slot and register of an ECAM offset (bus 27:20, device 19:15, function 14:12, register 11:0).
fn ecam_target(offset: u64) -> Option<(usize, usize)> {
    let (bus, function) = (offset >> 20, offset >> 12 & 7);
    (bus == 0 && function == 0).then_some(((offset >> 15 & 31) as usize, (offset & 0xfff) as usize))
}

impl Device for PciHost {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn reset(&mut self) {
        self.address = 0;
        // The board resets its interrupt controllers at the same moment, so lines are low there too.
        self.lines = [false; LINES];
        for function in &mut self.functions {
            function.config_mut().reset();
            function.reset();
        }
        self.place_bars();
        self.map_windows();
    }

    fn save(&self) -> DeviceState {
        let functions = self.functions.iter().map(|f| (f.config().save(), f.save())).collect();
        DeviceState::encode(KIND, VERSION, &HostState { address: self.address, lines: self.lines, functions })
    }

    fn show(&self) -> String {
        let mut text = format!("address: {:#x}\nlines: {:?}\n", self.address, self.lines);
        for (slot, function) in self.functions.iter().enumerate() {
            let kind = function.kind();
            let config = function.config().save().show();
            config.lines().for_each(|line| text.push_str(&format!("{slot} {kind} config {line}\n")));
            function.show().lines().for_each(|line| text.push_str(&format!("{slot} {kind} {line}\n")));
        }
        text
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        let state: HostState = state.decode(KIND, VERSION)?;
        let damaged = |kind, why: String| StateError::Damaged { kind, why };
        if state.functions.len() != self.functions.len() {
            let (found, have) = (state.functions.len(), self.functions.len());
            return Err(damaged(KIND, format!("{found} functions saved, this machine has {have}")));
        }
        for (slot, (function, (config, fields))) in
            self.functions.iter_mut().zip(&state.functions).enumerate()
        {
            if !function.config_mut().restore(config) {
                return Err(damaged(
                    function.kind(),
                    format!("configuration space of slot {slot} belongs to another function"),
                ));
            }
            function.restore(fields)?;
        }
        self.address = state.address;
        self.lines = state.lines;
        self.map_windows();
        Ok(())
    }

    fn read(&mut self, cx: &mut Cx, block: u32, offset: u64, data: &mut [u8]) {
        let claimed = match block {
            BLOCK_CONFIG_PORTS => self.config_port_read(cx, CONFIG_ADDRESS + (offset & 7) as u16, data),
            BLOCK_ECAM => self.ecam_read(cx, offset, data),
            BLOCK_MMIO => self.mmio_read(cx, offset, data),
            BLOCK_IO => self.io_read(cx, offset as u16, data),
            _ => false,
        };
        if !claimed {
            data.fill(0xff);
        }
    }

    fn write(&mut self, cx: &mut Cx, block: u32, offset: u64, data: &[u8]) {
        match block {
            BLOCK_CONFIG_PORTS => self.config_port_write(cx, CONFIG_ADDRESS + (offset & 7) as u16, data),
            BLOCK_ECAM => self.ecam_write(cx, offset, data),
            BLOCK_MMIO => self.mmio_write(cx, offset, data),
            BLOCK_IO => self.io_write(cx, offset as u16, data),
            _ => false,
        };
    }

    fn deadline(&self) -> Option<GuestTime> {
        self.functions.iter().filter_map(|function| function.deadline()).min()
    }

    fn expire(&mut self, cx: &mut Cx) {
        for function in &mut self.functions {
            if function.deadline().is_some_and(|at| at <= cx.now) {
                function.expire(cx);
            }
        }
        self.drive_lines(cx);
    }
}
