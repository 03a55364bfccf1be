//! Registers, negotiation, interrupts; with the entropy device, which needs nothing else.

use super::driver::{ACK, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET};
use super::{Driver, Rig};
use crate::virtio::rng::Rng;
use crate::virtio::{F_EVENT_IDX, F_VERSION_1, QueueError, VirtioPci};
use crate::{Device, Request};

const BUF: u64 = 0x8000;

fn rig() -> Rig {
    Rig::new(vec![Box::new(VirtioPci::new(Rng::new([7; 32])))])
}

fn message(vector: u32) -> Request {
    Request::Message { address: 0xfee0_0000, data: 0x40 + vector }
}

#[test]
fn a_driver_that_does_not_know_virtio_1_is_refused() {
    let mut rig = rig();
    let driver = Driver::probe(&mut rig, 1, true);
    driver.negotiate(&mut rig, F_VERSION_1);
    assert_eq!(driver.status(&mut rig), ACK | DRIVER);
    driver.set_status(&mut rig, ACK | DRIVER | DRIVER_OK);
    assert_eq!(driver.status(&mut rig), ACK | DRIVER, "not ready without features");
    // Features that were not offered are refused too.
    driver.set_status(&mut rig, 0);
    rig.write(driver.common + 8, 4, 0);
    rig.write(driver.common + 12, 4, 1 << 17);
    rig.write(driver.common + 8, 4, 1);
    rig.write(driver.common + 12, 4, 1);
    driver.set_status(&mut rig, ACK | DRIVER | FEATURES_OK);
    assert_eq!(driver.status(&mut rig), ACK | DRIVER);
}

#[test]
fn entropy_is_a_stream_that_depends_on_the_seed_alone() {
    let mut streams = Vec::new();
    for step in [1, 3, 64] {
        let mut rig = rig();
        let mut driver = Driver::start(&mut rig, 1, true, 0);
        let mut stream = Vec::new();
        while stream.len() < 192 {
            let head = driver.offer(&mut rig, 0, &[(BUF, step, true)]);
            driver.kick(&mut rig, 0);
            assert_eq!(driver.collect(&mut rig, 0), [(head, step)]);
            stream.extend(rig.bytes(BUF, step as usize));
            // A driver that reloads does not see the same bytes again.
            if stream.len() == 64 {
                driver = Driver::start(&mut rig, 1, true, 0);
            }
        }
        streams.push(stream);
    }
    assert_eq!(streams[0], streams[1]);
    assert_eq!(streams[0], streams[2]);
    assert_ne!(streams[0][..64], streams[0][64..128]);
}

#[test]
fn completions_arrive_as_messages_and_masking_holds_them_back() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(rig.interrupts(), [message(1)]);
    driver.collect(&mut rig, 0);
    let table = u64::from(rig.config_read(1, 0x14, 4));
    rig.write(table + 16 + 12, 4, 1);
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(rig.interrupts(), []);
    assert_eq!(rig.read(table + 0x800, 8), 1 << 1, "pending");
    rig.write(table + 16 + 12, 4, 0);
    assert_eq!(rig.interrupts(), [message(1)]);
    assert_eq!(rig.read(table + 0x800, 8), 0);
}

#[test]
fn without_msix_the_interrupt_pin_stays_up_until_the_isr_is_read() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, false, 0);
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    let gsi = crate::pci::gsi_of(1, 1);
    assert_eq!(rig.interrupts(), [Request::Line { gsi, level: true }]);
    assert_eq!(rig.config_read(1, 6, 2) & 8, 8, "shown in the status register");
    assert_eq!(rig.read(driver.isr, 1), 1);
    assert_eq!(rig.interrupts(), [Request::Line { gsi, level: false }]);
    assert_eq!(rig.read(driver.isr, 1), 0);
}

#[test]
fn event_indexes_and_flags_both_suppress_interrupts() {
    for without in [0, F_EVENT_IDX] {
        let mut rig = rig();
        let mut driver = Driver::start(&mut rig, 1, true, without);
        let ring = driver.rings[0].clone();
        if without == 0 {
            // Interrupt only once the third is done.
            rig.put(ring.avail + 4 + 2 * u64::from(ring.size), &2u16.to_le_bytes());
        } else {
            rig.put(ring.avail, &1u16.to_le_bytes());
        }
        for _ in 0..2 {
            driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
            driver.kick(&mut rig, 0);
        }
        assert_eq!(rig.interrupts(), []);
        if without != 0 {
            rig.put(ring.avail, &0u16.to_le_bytes());
        }
        driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
        driver.kick(&mut rig, 0);
        assert_eq!(rig.interrupts(), [message(1)]);
    }
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    driver.offer(&mut rig, 0, &[(0xdead_0000, 8, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(rig.interrupts(), [message(0)], "a configuration change");
    assert_ne!(driver.status(&mut rig) & NEEDS_RESET, 0);
    let function = rig.host.function::<VirtioPci<Rng>>(1).unwrap();
    assert!(matches!(function.fault(), Some(QueueError::Buffer { .. })));
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    assert!(driver.collect(&mut rig, 0).is_empty());
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(driver.collect(&mut rig, 0).len(), 1);
}

#[test]
fn without_bus_mastering_nothing_is_touched() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    rig.config_write(1, 4, 2, 2);
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    assert!(driver.collect(&mut rig, 0).is_empty());
    rig.config_write(1, 4, 2, 6);
    assert_eq!(driver.collect(&mut rig, 0).len(), 1, "caught up");
}

#[test]
fn the_configuration_window_reaches_the_registers() {
    let mut rig = rig();
    let driver = Driver::start(&mut rig, 1, true, 0);
    let mut cap = u64::from(rig.config_read(1, 0x34, 1));
    while !(rig.config_read(1, cap, 1) == 9 && rig.config_read(1, cap + 3, 1) == 5) {
        cap = u64::from(rig.config_read(1, cap + 1, 1));
    }
    rig.config_write(1, cap + 4, 1, 4);
    rig.config_write(1, cap + 8, 4, 20);
    rig.config_write(1, cap + 12, 4, 1);
    let status = driver.status(&mut rig);
    assert_eq!(u64::from(rig.config_read(1, cap + 16, 1)), status);
    rig.config_write(1, cap + 16, 1, 0);
    assert_eq!(driver.status(&mut rig), 0, "reset through the window");
    // Beyond the BAR, and in a BAR that does not exist: nothing.
    for (bar, offset) in [(4, 0x4000), (4, u32::MAX), (2, 0)] {
        rig.config_write(1, cap + 4, 1, bar);
        rig.config_write(1, cap + 8, 4, offset);
        rig.config_read(1, cap + 16, 1);
        rig.config_write(1, cap + 16, 1, 1);
    }
}

#[test]
fn a_restored_device_continues_where_the_saved_one_was() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
    driver.kick(&mut rig, 0);
    driver.collect(&mut rig, 0);
    let (state, memory) = (rig.host.save(), rig.memory());
    rig.interrupts();
    let mut both = Vec::new();
    for _ in 0..2 {
        let mut driver = driver.clone();
        driver.offer(&mut rig, 0, &[(BUF, 8, true)]);
        driver.kick(&mut rig, 0);
        both.push((driver.collect(&mut rig, 0), rig.bytes(BUF, 8), rig.interrupts(), rig.host.save()));
        let mut fresh = self::rig().host;
        fresh.restore(&state).unwrap();
        rig.host = fresh;
        rig.put(0, &memory);
    }
    assert!(both[0] == both[1]);
    assert_eq!(both[0].2, [message(1)]);
}
