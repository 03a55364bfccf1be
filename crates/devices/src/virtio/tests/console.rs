//! The console.

use super::{Driver, Rig};
use crate::virtio::VirtioPci;
use crate::virtio::console::{Console, PENDING_BYTES_MAX};
use crate::{Device, Request};

const BUF: u64 = 0x8000;
type Function = VirtioPci<Console>;

fn rig() -> Rig {
    Rig::new(vec![Box::new(VirtioPci::new(Console::new(0, 80, 25)))])
}

#[test]
fn output_leaves_in_order() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    assert_eq!(rig.read(driver.device, 4), 80 | 25 << 16);
    rig.put(BUF, b"hello, world");
    driver.offer(&mut rig, 1, &[(BUF, 7, false)]);
    driver.offer(&mut rig, 1, &[(BUF + 7, 2, false), (BUF + 9, 3, false)]);
    driver.kick(&mut rig, 1);
    assert_eq!(rig.out.console, b"hello, world");
    assert_eq!(driver.collect(&mut rig, 1).len(), 2);
    rig.write(driver.device + 8, 4, u64::from(b'!'));
    assert_eq!(rig.out.console.last(), Some(&b'!'), "emergency write");
}

#[test]
fn input_waits_for_the_driver_and_for_buffers() {
    let mut rig = rig();
    assert_eq!(rig.act(1, |f: &mut Function, cx| f.receive(cx, b"early ")), 6);
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    driver.offer(&mut rig, 0, &[(BUF, 4, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(driver.collect(&mut rig, 0), [(0, 4)]);
    assert_eq!(rig.interrupts(), [Request::Message { address: 0xfee0_0000, data: 0x41 }]);
    assert_eq!(rig.bytes(BUF, 4), b"earl");
    rig.act(1, |f: &mut Function, cx| f.receive(cx, b"bird"));
    let saved = rig.host.save();
    let mut fresh = self::rig();
    fresh.host.restore(&saved).unwrap();
    rig.host = fresh.host;
    driver.offer(&mut rig, 0, &[(BUF, 100, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(driver.collect(&mut rig, 0), [(1, 6)]);
    assert_eq!(rig.bytes(BUF, 6), b"y bird");
}

#[test]
fn input_without_end_is_bounded() {
    let mut rig = rig();
    let flood = vec![b'x'; PENDING_BYTES_MAX + 10];
    assert_eq!(rig.act(1, |f: &mut Function, cx| f.receive(cx, &flood)), PENDING_BYTES_MAX);
    assert_eq!(rig.act(1, |f: &mut Function, cx| f.receive(cx, b"y")), 0);
}

#[test]
fn a_new_size_is_announced() {
    let mut rig = rig();
    let driver = Driver::start(&mut rig, 1, true, 0);
    let generation = rig.read(driver.common + 21, 1);
    rig.act(1, |f: &mut Function, cx| f.resize(cx, 132, 50));
    assert_eq!(rig.interrupts(), [Request::Message { address: 0xfee0_0000, data: 0x40 }]);
    assert_ne!(rig.read(driver.common + 21, 1), generation);
    assert_eq!(rig.read(driver.device, 4), 132 | 50 << 16);
}
