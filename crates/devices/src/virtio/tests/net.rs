//! The network card.

use super::{Driver, Rig};
use crate::Device;
use crate::virtio::VirtioPci;
use crate::virtio::net::{Net, PENDING_FRAMES_MAX};

const BUF: u64 = 0x8000;
const MRG_RXBUF: u64 = 1 << 15;
const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
type Function = VirtioPci<Net>;

fn rig() -> Rig {
    Rig::new(vec![Box::new(VirtioPci::new(Net::new(0, MAC, 1500)))])
}

fn receive(rig: &mut Rig, frame: &[u8]) -> bool {
    rig.act(1, |f: &mut Function, cx| f.receive(cx, frame))
}

#[test]
fn frames_leave_without_their_header() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    let frame: Vec<u8> = (0..60).collect();
    rig.put(BUF, &[0; 12]);
    rig.put(BUF + 12, &frame);
    driver.offer(&mut rig, 1, &[(BUF, 12, false), (BUF + 12, 60, false)]);
    driver.offer(&mut rig, 1, &[(BUF, 72, false)]);
    driver.offer(&mut rig, 1, &[(BUF, 20, false)]);
    driver.kick(&mut rig, 1);
    assert_eq!(rig.out.frames, [frame.clone(), frame], "the runt is dropped");
    assert_eq!(driver.collect(&mut rig, 1).len(), 3);
}

#[test]
fn partial_checksums_are_completed() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    // A UDP packet from RFC-like addresses: the sum over pseudo header, header and data is checked.
    let mut frame = vec![0u8; 14];
    let udp_len = 8 + 5u16;
    frame.extend([0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let pseudo: u32 = 0x0a00 + 1 + 0x0a00 + 2 + 17 + u32::from(udp_len);
    frame.extend([0x12, 0x34, 0x00, 0x35, 0, udp_len as u8]);
    frame.extend((pseudo as u16).to_be_bytes());
    frame.extend(b"hello");
    let mut header = [0; 12];
    header[0] = 1;
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&6u16.to_le_bytes());
    rig.put(BUF, &header);
    rig.put(BUF + 12, &frame);
    driver.offer(&mut rig, 1, &[(BUF, 12 + frame.len() as u32, false)]);
    driver.kick(&mut rig, 1);
    let sent = &rig.out.frames[0];
    let mut sum = pseudo;
    for word in sent[34..].chunks(2) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
    }
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "a receiver accepts it");
    // A field beyond the frame: dropped, not written.
    header[8..10].copy_from_slice(&u16::MAX.to_le_bytes());
    rig.put(BUF, &header);
    driver.offer(&mut rig, 1, &[(BUF, 12 + 60, false)]);
    driver.kick(&mut rig, 1);
    assert_eq!(rig.out.frames.len(), 1);
}

#[test]
fn a_large_frame_is_spread_over_merged_buffers() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    let frame: Vec<u8> = (0..250).collect();
    for i in 0..2 {
        driver.offer(&mut rig, 0, &[(BUF + 0x100 * i, 100, true)]);
    }
    driver.kick(&mut rig, 0);
    assert!(receive(&mut rig, &frame));
    assert!(driver.collect(&mut rig, 0).is_empty(), "62 bytes of room are missing");
    driver.offer(&mut rig, 0, &[(BUF + 0x200, 50, true), (BUF + 0x300, 50, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(driver.collect(&mut rig, 0), [(0, 100), (1, 100), (2, 62)]);
    assert_eq!(rig.bytes(BUF, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0]);
    let mut got = rig.bytes(BUF + 12, 88);
    got.extend(rig.bytes(BUF + 0x100, 100));
    got.extend(rig.bytes(BUF + 0x200, 50));
    got.extend(rig.bytes(BUF + 0x300, 12));
    assert_eq!(got, frame);
}

#[test]
fn without_merging_a_frame_that_does_not_fit_is_dropped() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, MRG_RXBUF);
    driver.offer(&mut rig, 0, &[(BUF, 100, true)]);
    assert!(receive(&mut rig, &[1; 200]));
    assert!(driver.collect(&mut rig, 0).is_empty());
    assert!(receive(&mut rig, &[2; 80]));
    assert_eq!(driver.collect(&mut rig, 0), [(0, 92)]);
    assert_eq!(rig.bytes(BUF + 10, 3), [1, 0, 2]);
}

#[test]
fn waiting_frames_are_bounded_and_part_of_the_state() {
    let mut rig = rig();
    let taken = (0..PENDING_FRAMES_MAX + 5).filter(|i| receive(&mut rig, &[*i as u8; 60])).count();
    assert_eq!(taken, PENDING_FRAMES_MAX);
    assert!(!receive(&mut rig, &[0; 13]) && !receive(&mut rig, &vec![0; 70_000]));
    let mut rig = self::rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    assert!(receive(&mut rig, &[3; 60]));
    let saved = rig.host.save();
    let mut fresh = self::rig();
    fresh.host.restore(&saved).unwrap();
    rig.host = fresh.host;
    driver.offer(&mut rig, 0, &[(BUF, 2048, true)]);
    driver.kick(&mut rig, 0);
    assert_eq!(driver.collect(&mut rig, 0), [(0, 72)]);
}

#[test]
fn a_card_whose_driver_falls_behind_says_so_long_before_it_drops() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    let has_room = |rig: &mut Rig| rig.act(1, |f: &mut Function, _| f.device().has_room());
    let mut taken: u64 = 0;
    while has_room(&mut rig) {
        assert!(receive(&mut rig, &[1; 60]));
        taken += 1;
    }
    assert!((1..PENDING_FRAMES_MAX as u64 / 2).contains(&taken));
    for i in 0..8 {
        driver.offer(&mut rig, 0, &[(BUF + 0x100 * i, 0x100, true)]);
    }
    driver.kick(&mut rig, 0);
    assert_eq!(driver.collect(&mut rig, 0).len(), 8);
    assert!(has_room(&mut rig));
}

#[test]
fn the_driver_sets_the_hardware_address() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    assert_eq!(rig.read(driver.device, 8).to_le_bytes(), [0x52, 0x54, 0, 1, 2, 3, 1, 0]);
    rig.put(BUF, &[1, 1, 2, 4, 6, 8, 10, 12]);
    driver.offer(&mut rig, 2, &[(BUF, 2, false), (BUF + 2, 6, false), (BUF + 32, 1, true)]);
    rig.put(BUF + 16, &[9, 9]);
    driver.offer(&mut rig, 2, &[(BUF + 16, 2, false), (BUF + 33, 1, true)]);
    driver.kick(&mut rig, 2);
    assert_eq!(rig.bytes(BUF + 32, 2), [0, 1]);
    assert_eq!(rig.read(driver.device, 8).to_le_bytes()[..6], [2, 4, 6, 8, 10, 12]);
}
