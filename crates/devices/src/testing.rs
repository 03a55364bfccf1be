//! A bench for testing devices: a little RAM, a settable time, and a record of what came out.

use crate::{Cx, Device, IrqSink, Outside, Request};
use base::GuestTime;
use memory::Ram;

/// What left the device.
#[derive(Default)]
pub(crate) struct Tray {
    pub console: Vec<(u32, Vec<u8>)>,
}

impl Outside for Tray {
    fn console(&mut self, port: u32, bytes: &[u8]) {
        self.console.push((port, bytes.to_vec()));
    }
    fn frame(&mut self, _card: u32, _frame: &[u8]) {}
}

pub(crate) struct Bench {
    pub now: GuestTime,
    pub ram: Ram,
    pub irq: IrqSink,
    pub out: Tray,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            now: GuestTime::ZERO,
            ram: Ram::new(0x1_0000).unwrap(),
            irq: IrqSink::default(),
            out: Tray::default(),
        }
    }
    pub fn cx(&mut self) -> Cx<'_> {
        Cx { now: self.now, ram: &mut self.ram, irq: &mut self.irq, out: &mut self.out }
    }
    /// The requests since the last call.
    pub fn requests(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.irq.requests)
    }
    pub fn write8(&mut self, device: &mut dyn Device, block: u32, offset: u64, value: u8) {
        device.write(&mut self.cx(), block, offset, &[value]);
    }
    pub fn read8(&mut self, device: &mut dyn Device, block: u32, offset: u64) -> u8 {
        let mut data = [0xa5];
        device.read(&mut self.cx(), block, offset, &mut data);
        data[0]
    }
    pub fn write32(&mut self, device: &mut dyn Device, block: u32, offset: u64, value: u32) {
        device.write(&mut self.cx(), block, offset, &value.to_le_bytes());
    }
    pub fn read32(&mut self, device: &mut dyn Device, block: u32, offset: u64) -> u32 {
        let mut data = [0xa5; 4];
        device.read(&mut self.cx(), block, offset, &mut data);
        u32::from_le_bytes(data)
    }
    /// Lets guest time pass up to `ns`, expiring the device's deadlines on the way; how many.
    pub fn pass_to(&mut self, device: &mut dyn Device, ns: u64) -> usize {
        let end = GuestTime::from_ns(ns);
        let mut expired = 0;
        while let Some(due) = device.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            device.expire(&mut self.cx());
            assert!(device.deadline().is_none_or(|next| next > self.now), "the deadline must move on");
            expired += 1;
        }
        self.now = end;
        expired
    }
    /// Saves, encodes, decodes and restores into `fresh`; checks that what comes back is the same.
    pub fn transplant(&mut self, from: &dyn Device, fresh: &mut dyn Device) {
        let saved = from.save();
        fresh.restore(&saved).unwrap();
        assert_eq!(fresh.save(), saved);
        let mut foreign = saved.clone();
        foreign.kind = "something else".into();
        assert!(fresh.restore(&foreign).is_err());
        let mut short = saved.clone();
        if short.payload.pop().is_some() {
            assert!(fresh.restore(&short).is_err(), "a truncated payload is refused");
        }
        assert_eq!(fresh.save(), saved, "a refused state changes nothing");
    }
}
