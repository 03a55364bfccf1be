//! The test machine and its driver.

use crate::pci::PciHost;
use crate::{Cx, Device, IrqSink, Outside, Request};
use base::{GuestPhys, GuestTime};
use memory::Ram;

/// Collects what leaves the machine.
#[derive(Default)]
pub struct Collected {
    pub console: Vec<u8>,
    pub frames: Vec<Vec<u8>>,
}

impl Outside for Collected {
    fn console(&mut self, _port: u32, bytes: &[u8]) {
        self.console.extend_from_slice(bytes);
    }
    fn frame(&mut self, _card: u32, frame: &[u8]) {
        self.frames.push(frame.to_vec());
    }
}

/// A machine of a PCI bus and some memory.
pub struct Rig {
    pub host: PciHost,
    pub ram: Ram,
    pub now: GuestTime,
    pub irq: IrqSink,
    pub out: Collected,
}

/// Splits a rig into the bus and everything else.
macro_rules! with_cx {
    ($rig:expr, |$host:ident, $cx:ident| $body:expr) => {{
        let rig = &mut *$rig;
        let $host = &mut rig.host;
        let $cx = &mut Cx { now: rig.now, ram: &mut rig.ram, irq: &mut rig.irq, out: &mut rig.out };
        $body
    }};
}

impl Rig {
    /// A machine with these functions in slots 1, 2, …
    pub fn new(functions: Vec<Box<dyn crate::pci::PciFunction>>) -> Self {
        let mut host = PciHost::new();
        for function in functions {
            host.add(function);
        }
        host.reset();
        let (ram, irq) = (Ram::new(4 << 20).unwrap(), IrqSink::default());
        Self { host, ram, now: GuestTime::from_ns(1_000), irq, out: Collected::default() }
    }

    pub fn config_read(&mut self, slot: u8, offset: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        let at = u64::from(slot) << 15 | offset;
        assert!(with_cx!(self, |host, cx| host.ecam_read(cx, at, &mut data[..len])));
        u32::from_le_bytes(data)
    }

    pub fn config_write(&mut self, slot: u8, offset: u64, len: usize, value: u32) {
        let at = u64::from(slot) << 15 | offset;
        assert!(with_cx!(self, |host, cx| host.ecam_write(cx, at, &value.to_le_bytes()[..len])));
    }

    pub fn read(&mut self, address: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        assert!(with_cx!(self, |host, cx| host.mmio_read(cx, address, &mut data[..len])), "{address:#x}");
        u64::from_le_bytes(data)
    }

    pub fn write(&mut self, address: u64, len: usize, value: u64) {
        let data = value.to_le_bytes();
        assert!(with_cx!(self, |host, cx| host.mmio_write(cx, address, &data[..len])), "{address:#x}");
    }

    /// Lets time pass to the next deadline and past it; false when there is none.
    pub fn step(&mut self) -> bool {
        let Some(at) = self.host.deadline() else { return false };
        self.now = self.now.max(at);
        with_cx!(self, |host, cx| host.expire(cx));
        assert!(self.host.deadline().is_none_or(|next| next > self.now), "the deadline moves on");
        true
    }

    /// The function in `slot` acts on something from outside.
    pub fn act<T: crate::pci::PciFunction, R>(
        &mut self,
        slot: u8,
        act: impl FnOnce(&mut T, &mut Cx) -> R,
    ) -> R {
        with_cx!(self, |host, cx| host.act(slot, cx, act)).expect("that kind of function")
    }

    /// The interrupt requests made since the last call.
    pub fn interrupts(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.irq.requests)
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        assert!(self.ram.read(GuestPhys(at), &mut buf));
        buf
    }

    /// All of memory.
    pub fn memory(&self) -> Vec<u8> {
        self.bytes(0, self.ram.size() as usize)
    }

    pub fn put(&mut self, at: u64, data: &[u8]) {
        assert!(self.ram.write(GuestPhys(at), data));
    }
}

/// One virtqueue, seen from the driver.
#[derive(Clone)]
pub struct Ring {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    next: u16,
    seen: u16,
    free: u16,
}

/// A driver for one function.
#[derive(Clone)]
pub struct Driver {
    pub common: u64,
    pub isr: u64,
    pub device: u64,
    pub notify: u64,
    pub rings: Vec<Ring>,
}

pub const ACK: u64 = 1;
pub const DRIVER: u64 = 2;
pub const DRIVER_OK: u64 = 4;
pub const FEATURES_OK: u64 = 8;
pub const NEEDS_RESET: u64 = 64;

impl Driver {
    /// Probes the function in `slot` as far as its registers being mapped, with MSI-X on: vector
    /// `n` sends `0x40 + n` to 0xfee00000.
    pub fn probe(rig: &mut Rig, slot: u8, msix: bool) -> Self {
        assert_eq!(rig.config_read(slot, 0, 2), 0x1af4);
        assert!(rig.config_read(slot, 2, 2) >= 0x1041, "a modern device");
        rig.config_write(slot, 4, 2, 0);
        let mut bars = [0; 6];
        let mut i = 0;
        while i < 6 {
            let at = 0x10 + 4 * i as u64;
            let old = rig.config_read(slot, at, 4);
            rig.config_write(slot, at, 4, u32::MAX);
            let size = rig.config_read(slot, at, 4);
            rig.config_write(slot, at, 4, old);
            assert_eq!(rig.config_read(slot, at, 4), old);
            if size != 0 {
                assert_eq!(old & !(size & !15), old & 15, "placed at a multiple of its size");
                bars[i] = u64::from(old & !15);
                i += if old & 4 != 0 { 1 } else { 0 };
            }
            i += 1;
        }
        rig.config_write(slot, 4, 2, 0x6);
        let mut driver = Self { common: 0, isr: 0, device: 0, notify: 0, rings: Vec::new() };
        let mut cap = u64::from(rig.config_read(slot, 0x34, 1));
        while cap != 0 {
            let id = rig.config_read(slot, cap, 1);
            if id == 0x09 {
                let bar = rig.config_read(slot, cap + 4, 1) as usize;
                let at = bars.get(bar).copied().unwrap_or(0) + u64::from(rig.config_read(slot, cap + 8, 4));
                match rig.config_read(slot, cap + 3, 1) {
                    1 => driver.common = at,
                    2 => {
                        assert_eq!(rig.config_read(slot, cap + 16, 4), 4, "notify multiplier");
                        driver.notify = at;
                    }
                    3 => driver.isr = at,
                    4 => driver.device = at,
                    _ => {}
                }
            } else if id == 0x11 && msix {
                let vectors = (rig.config_read(slot, cap + 2, 2) & 0x7ff) + 1;
                let table = bars[(rig.config_read(slot, cap + 4, 4) & 7) as usize];
                rig.config_write(slot, cap + 2, 2, 0x8000);
                for n in 0..u64::from(vectors) {
                    rig.write(table + 16 * n, 4, 0xfee0_0000);
                    rig.write(table + 16 * n + 4, 4, 0);
                    rig.write(table + 16 * n + 8, 4, 0x40 + n);
                    rig.write(table + 16 * n + 12, 4, 0);
                }
            }
            cap = u64::from(rig.config_read(slot, cap + 1, 1));
        }
        driver
    }

    pub fn status(&self, rig: &mut Rig) -> u64 {
        rig.read(self.common + 20, 1)
    }

    pub fn set_status(&self, rig: &mut Rig, status: u64) {
        rig.write(self.common + 20, 1, status);
    }

    pub fn offered(&self, rig: &mut Rig) -> u64 {
        rig.write(self.common, 4, 0);
        let low = rig.read(self.common + 4, 4);
        rig.write(self.common, 4, 1);
        low | rig.read(self.common + 4, 4) << 32
    }

    /// Resets the device and negotiates all offered features but `without`.
    pub fn negotiate(&self, rig: &mut Rig, without: u64) -> u64 {
        self.set_status(rig, 0);
        assert_eq!(self.status(rig), 0);
        self.set_status(rig, ACK);
        self.set_status(rig, ACK | DRIVER);
        let features = self.offered(rig) & !without;
        rig.write(self.common + 8, 4, 0);
        rig.write(self.common + 12, 4, features & 0xffff_ffff);
        rig.write(self.common + 8, 4, 1);
        rig.write(self.common + 12, 4, features >> 32);
        self.set_status(rig, ACK | DRIVER | FEATURES_OK);
        features
    }

    /// Gives every queue rings of at most `size_max` entries, from `at` on, 16 KiB apart.
    pub fn set_up_rings(&mut self, rig: &mut Rig, at: u64, size_max: u16) {
        self.rings.clear();
        let count = rig.read(self.common + 18, 2) as u16;
        for index in 0..count {
            let base = at + 0x4000 * u64::from(index);
            rig.put(base, &[0; 0x4000]);
            rig.write(self.common + 22, 2, u64::from(index));
            let size = (rig.read(self.common + 24, 2) as u16).min(size_max);
            rig.write(self.common + 24, 2, u64::from(size));
            rig.write(self.common + 26, 2, u64::from(index) + 1);
            let (desc, avail, used) = (base, base + 0x2000, base + 0x3000);
            for (register, value) in [(32, desc), (40, avail), (48, used)] {
                rig.write(self.common + register, 4, value & 0xffff_ffff);
                rig.write(self.common + register + 4, 4, value >> 32);
            }
            assert_eq!(rig.read(self.common + 30, 2), u64::from(index));
            rig.write(self.common + 28, 2, 1);
            assert_eq!(rig.read(self.common + 28, 2), 1);
            self.rings.push(Ring { size, desc, avail, used, next: 0, seen: 0, free: 0 });
        }
        rig.write(self.common + 16, 2, 0);
    }

    /// Everything up to DRIVER_OK, with rings from 1 MiB on.
    pub fn start(rig: &mut Rig, slot: u8, msix: bool, without: u64) -> Self {
        let mut driver = Self::probe(rig, slot, msix);
        driver.negotiate(rig, without);
        assert_eq!(driver.status(rig), ACK | DRIVER | FEATURES_OK);
        driver.set_up_rings(rig, (1 << 20) + 0x10000 * u64::from(slot), 256);
        driver.set_status(rig, ACK | DRIVER | FEATURES_OK | DRIVER_OK);
        rig.interrupts();
        driver
    }

    pub fn kick(&self, rig: &mut Rig, queue: usize) {
        rig.write(self.notify + 4 * queue as u64, 2, queue as u64);
    }

    /// Offers a chain of `(address, length, device may write)` on a queue; returns its head.
    pub fn offer(&mut self, rig: &mut Rig, queue: usize, buffers: &[(u64, u32, bool)]) -> u16 {
        let ring = &mut self.rings[queue];
        let head = ring.free % ring.size;
        for (i, (addr, len, write)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let here = ring.free % ring.size;
            ring.free = ring.free.wrapping_add(1);
            let next = ring.free % ring.size;
            let flags = u16::from(!last) | u16::from(*write) << 1;
            descriptor(&mut rig.ram, ring.desc + 16 * u64::from(here), (*addr, *len), flags, next);
        }
        ring.publish(rig, head);
        head
    }

    /// The same through an indirect table at `table`.
    pub fn offer_indirect(
        &mut self,
        rig: &mut Rig,
        queue: usize,
        table: u64,
        buffers: &[(u64, u32, bool)],
    ) -> u16 {
        for (i, (addr, len, write)) in buffers.iter().enumerate() {
            let last = i + 1 == buffers.len();
            let flags = u16::from(!last) | u16::from(*write) << 1;
            descriptor(&mut rig.ram, table + 16 * i as u64, (*addr, *len), flags, i as u16 + 1);
        }
        let ring = &mut self.rings[queue];
        let head = ring.free % ring.size;
        ring.free = ring.free.wrapping_add(1);
        let len = 16 * buffers.len() as u32;
        descriptor(&mut rig.ram, ring.desc + 16 * u64::from(head), (table, len), 4, 0);
        ring.publish(rig, head);
        head
    }

    /// What the device has given back since the last call: heads and lengths. Asks for the next
    /// interrupt by event index.
    pub fn collect(&mut self, rig: &mut Rig, queue: usize) -> Vec<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let index = u16::from_le_bytes(rig.ram.read_array(GuestPhys(ring.used + 2)).unwrap());
        let mut done = Vec::new();
        while ring.seen != index {
            let at = ring.used + 4 + 8 * u64::from(ring.seen % ring.size);
            let entry = rig.ram.read_u64(GuestPhys(at)).unwrap();
            done.push((entry as u16, (entry >> 32) as u32));
            ring.seen = ring.seen.wrapping_add(1);
        }
        rig.put(ring.avail + 4 + 2 * u64::from(ring.size), &ring.seen.to_le_bytes());
        done
    }
}

impl Ring {
    pub fn publish(&mut self, rig: &mut Rig, head: u16) {
        rig.put(self.avail + 4 + 2 * u64::from(self.next % self.size), &head.to_le_bytes());
        self.next = self.next.wrapping_add(1);
        rig.put(self.avail + 2, &self.next.to_le_bytes());
    }
}

pub fn descriptor(ram: &mut Ram, at: u64, buffer: (u64, u32), flags: u16, next: u16) {
    let mut raw = [0; 16];
    raw[..8].copy_from_slice(&buffer.0.to_le_bytes());
    raw[8..12].copy_from_slice(&buffer.1.to_le_bytes());
    raw[12..14].copy_from_slice(&flags.to_le_bytes());
    raw[14..].copy_from_slice(&next.to_le_bytes());
    assert!(ram.write(GuestPhys(at), &raw));
}
