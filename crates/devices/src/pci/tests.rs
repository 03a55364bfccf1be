//! Tests of the bus with a function that has every kind of BAR.

use super::*;
use crate::virtio::tests::Rig;
use crate::{Cx, Device, DeviceState, Request, StateError};

/// Remembers the last write to each BAR and shows it on reads.
struct Probe {
    config: ConfigSpace,
    last: [(u64, u8); 6],
    pin: bool,
}

impl Probe {
    fn new() -> Self {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1234,
            device: 0x5678,
            revision: 3,
            class: 0xff_00_00,
            subsystem: (1, 2),
            pin: 1,
        });
        config.add_bar(Bar { index: 0, kind: BarKind::Io, size: 32 });
        config.add_bar(Bar { index: 1, kind: BarKind::Memory32, size: 0x10000 });
        config.add_bar(Bar { index: 2, kind: BarKind::Memory64, size: 0x2000 });
        Self { config, last: [(0, 0); 6], pin: false }
    }
}

impl PciFunction for Probe {
    fn kind(&self) -> &'static str {
        "probe"
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, _cx: &mut Cx, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        data[0] = self.last[usize::from(bar)].1 ^ offset as u8;
    }
    fn bar_write(&mut self, _cx: &mut Cx, bar: u8, offset: u64, data: &[u8]) {
        self.last[usize::from(bar)] = (offset, data[0]);
        self.pin = data[0] & 1 != 0;
    }
    fn intx(&self) -> bool {
        self.pin
    }
    fn reset(&mut self) {
        self.pin = false;
    }
    fn save(&self) -> DeviceState {
        DeviceState::encode("probe", 1, &(self.last, self.pin))
    }
    fn restore(&mut self, state: &DeviceState) -> Result<(), StateError> {
        (self.last, self.pin) = state.decode("probe", 1)?;
        Ok(())
    }
}

fn rig(count: usize) -> Rig {
    Rig::new((0..count).map(|_| Box::new(Probe::new()) as Box<dyn PciFunction>).collect())
}

fn cx(rig: &mut Rig) -> (&mut PciHost, Cx<'_>) {
    (&mut rig.host, Cx { now: rig.now, ram: &mut rig.ram, irq: &mut rig.irq, out: &mut rig.out })
}

/// A read through ports 0xcf8 and 0xcfc.
fn port_read(rig: &mut Rig, bdf: u32, offset: u32, len: usize) -> u32 {
    let (host, mut cx) = cx(rig);
    let address = 1 << 31 | bdf << 8 | offset & !3;
    assert!(host.config_port_write(&mut cx, 0xcf8, &address.to_le_bytes()));
    let mut data = [0; 4];
    assert!(host.config_port_read(&mut cx, 0xcfc + (offset & 3) as u16, &mut data[..len]));
    u32::from_le_bytes(data)
}

#[test]
fn both_configuration_mechanisms_see_the_same() {
    let mut rig = rig(2);
    for slot in 0..4u8 {
        for offset in (0..256).step_by(4) {
            let through_ports = port_read(&mut rig, u32::from(slot) << 3, offset, 4);
            assert_eq!(through_ports, rig.config_read(slot, u64::from(offset), 4));
        }
    }
    assert_eq!(rig.config_read(0, 0, 4), 0x0008_1b36);
    assert_eq!(port_read(&mut rig, 1 << 3, 2, 2), 0x5678);
    assert_eq!(rig.config_read(3, 0, 4), u32::MAX, "an empty slot");
    assert_eq!(port_read(&mut rig, 1 << 3 | 1, 0, 4), u32::MAX, "a function that is not there");
    assert_eq!(port_read(&mut rig, 1 << 8 | 1 << 3, 0, 4), u32::MAX, "a bus that is not there");
    assert_eq!(rig.config_read(1, 0x100, 4), 0, "no extended capabilities");
}

#[test]
fn ports_beside_the_mechanism_are_left_to_others() {
    let mut rig = rig(1);
    let (host, mut cx) = cx(&mut rig);
    assert!(!host.config_port_write(&mut cx, 0xcf9, &[6]), "the reset register");
    assert!(!host.config_port_read(&mut cx, 0xcf8, &mut [0]));
    assert!(!host.config_port_read(&mut cx, 0xcfe, &mut [0; 4]));
    assert!(!host.config_port_read(&mut cx, 0xd00, &mut [0]));
}

#[test]
fn bars_are_placed_at_reset_without_overlap() {
    let mut rig = rig(5);
    let mut taken: Vec<(u64, u64, bool)> = Vec::new();
    for slot in 1..=5 {
        for (at, size, io) in [(0x10, 32, true), (0x14, 0x10000, false), (0x18, 0x2000, false)] {
            let start = u64::from(rig.config_read(slot, at, 4) & !15);
            assert_eq!(start % size, 0);
            let window = if io { IO_WINDOW } else { MMIO_WINDOW };
            assert!(window.contains(&start) && start + size <= window.end);
            assert!(taken.iter().all(|(s, n, i)| *i != io || start >= s + n || start + size <= *s));
            taken.push((start, size, io));
        }
        assert_eq!(rig.config_read(slot, 0x1c, 4), 0, "upper half of the 64-bit register");
        assert_eq!(rig.config_read(slot, 0x3c, 1), u32::from(gsi_of(slot, 1)));
    }
}

#[test]
fn bars_answer_only_where_and_when_they_are_enabled() {
    let mut rig = rig(1);
    let memory = u64::from(rig.config_read(1, 0x14, 4));
    let port = (rig.config_read(1, 0x10, 4) & !3) as u16;
    let claims = |rig: &mut Rig, address: u64, len: usize| {
        let (host, mut cx) = cx(rig);
        (host.mmio_read(&mut cx, address, &mut [0; 8][..len]), host.io_read(&mut cx, port, &mut [0]))
    };
    assert_eq!(claims(&mut rig, memory, 4), (false, false), "disabled at reset");
    rig.config_write(1, 4, 2, 1);
    assert_eq!(claims(&mut rig, memory, 4), (false, true));
    rig.config_write(1, 4, 2, 2);
    assert_eq!(claims(&mut rig, memory, 4), (true, false));
    assert_eq!(claims(&mut rig, memory + 0xfffc, 4), (true, false));
    assert_eq!(claims(&mut rig, memory + 0xfffe, 4), (false, false), "across the end");
    assert_eq!(claims(&mut rig, memory - 1, 1), (false, false));
    // Moved, above 4 GiB for the 64-bit one.
    rig.config_write(1, 0x14, 4, 0xd000_0000);
    assert!(!claims(&mut rig, memory, 4).0);
    assert!(claims(&mut rig, 0xd000_0000, 4).0);
    rig.config_write(1, 0x1c, 4, 0x10);
    let low = u64::from(rig.config_read(1, 0x18, 4) & !15);
    assert!(claims(&mut rig, 0x10_0000_0000 + low, 8).0);
    // At the very top of the address space nothing wraps around.
    rig.config_write(1, 0x18, 4, u32::MAX);
    rig.config_write(1, 0x1c, 4, u32::MAX);
    assert!(!claims(&mut rig, u64::MAX, 8).0);
}

#[test]
fn a_shared_line_is_up_while_any_sharer_holds_it() {
    let mut rig = rig(6);
    for slot in 1..=6 {
        rig.config_write(slot, 4, 2, 2);
    }
    // Slots 1 and 5 share a line.
    let gsi = gsi_of(1, 1);
    assert_eq!(gsi_of(5, 1), gsi);
    assert_eq!((1..=4).map(|slot| gsi_of(slot, 1)).collect::<Vec<_>>(), [17, 18, 19, 16]);
    let bar = |rig: &mut Rig, slot| u64::from(rig.config_read(slot, 0x14, 4));
    let (one, five) = (bar(&mut rig, 1), bar(&mut rig, 5));
    rig.write(one, 1, 1);
    rig.write(five, 1, 1);
    assert_eq!(rig.interrupts(), [Request::Line { gsi, level: true }]);
    rig.write(one, 1, 0);
    assert_eq!(rig.interrupts(), []);
    rig.config_write(5, 4, 2, 2 | 1 << 10);
    assert_eq!(rig.interrupts(), [Request::Line { gsi, level: false }], "disabled in the command register");
    rig.config_write(5, 4, 2, 2);
    assert_eq!(rig.interrupts(), [Request::Line { gsi, level: true }]);
    let saved = rig.host.save();
    rig.host.restore(&saved).unwrap();
    rig.write(five, 1, 0);
    assert_eq!(rig.interrupts(), [Request::Line { gsi, level: false }]);
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let mut rig = rig(2);
    let saved = rig.host.save();
    assert!(self::rig(3).host.restore(&saved).is_err());
    let rng = crate::virtio::VirtioPci::new(crate::virtio::rng::Rng::new([0; 32]));
    let mut other = Rig::new(vec![Box::new(Probe::new()), Box::new(rng)]);
    let error = other.host.restore(&saved).unwrap_err().to_string();
    assert!(error.contains("slot 2"), "{error}");
    rig.config_write(1, 0x14, 4, 0xd800_0000);
    rig.host.restore(&saved).unwrap();
    assert_ne!(rig.config_read(1, 0x14, 4), 0xd800_0000);
}
