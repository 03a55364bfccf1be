//! The block device.

use super::{Driver, Rig};
use crate::Device;
use crate::virtio::VirtioPci;
use crate::virtio::block::{Block, LATENCY_NS};
use disk::{Base, Overlay, Store, Zeros};
use std::sync::Arc;

const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8100;
const DATA: u64 = 0x10_0000 / 2;
const DISK: u64 = 1 << 20;

type Function = VirtioPci<Block>;

fn block(base: Arc<dyn Base>, read_only: bool) -> Function {
    VirtioPci::new(Block::new(Overlay::new(base, Store::in_temp_dir(1 << 30)), "serial-1", read_only))
}

fn rig(read_only: bool) -> (Rig, Driver) {
    let mut rig = Rig::new(vec![Box::new(block(Arc::new(Zeros(DISK)), read_only))]);
    let driver = Driver::start(&mut rig, 1, true, 0);
    (rig, driver)
}

fn header(rig: &mut Rig, at: u64, kind: u32, sector: u64) {
    rig.put(at, &kind.to_le_bytes());
    rig.put(at + 8, &sector.to_le_bytes());
}

/// Sends one request, waits for it and returns its status and used length.
fn request(
    rig: &mut Rig,
    driver: &mut Driver,
    kind: u32,
    sector: u64,
    data: &[(u64, u32, bool)],
) -> (u8, u32) {
    header(rig, HEADER, kind, sector);
    rig.put(STATUS, &[0xee]);
    let mut chain = vec![(HEADER, 16, false)];
    chain.extend_from_slice(data);
    chain.push((STATUS, 1, true));
    let head = driver.offer_indirect(rig, 0, 0x9000, &chain);
    driver.kick(rig, 0);
    assert!(driver.collect(rig, 0).is_empty(), "not at once");
    assert!(rig.step());
    let done = driver.collect(rig, 0);
    assert_eq!(done.len(), 1);
    assert_eq!(done[0].0, head);
    (rig.bytes(STATUS, 1)[0], done[0].1)
}

#[test]
fn what_is_written_is_read_back() {
    let (mut rig, mut driver) = rig(false);
    assert_eq!(rig.read(driver.device, 8), DISK / 512);
    assert_eq!(rig.read(driver.device + 20, 4), 512);
    let data: Vec<u8> = (0..3 * 512u32).map(|i| (i / 5) as u8).collect();
    rig.put(DATA, &data);
    // Scattered on the way out, differently on the way in.
    let pieces = [(DATA, 100, false), (DATA + 100, 1000, false), (DATA + 1100, 436, false)];
    assert_eq!(request(&mut rig, &mut driver, 1, 7, &pieces), (0, 1));
    let pieces = [(DATA + 0x1000, 512, true), (DATA + 0x3000, 1, true), (DATA + 0x3001, 1023, true)];
    assert_eq!(request(&mut rig, &mut driver, 0, 7, &pieces), (0, 1537));
    assert_eq!(rig.bytes(DATA + 0x1000, 512), data[..512]);
    assert_eq!(rig.bytes(DATA + 0x3000, 1024), data[512..]);
    assert_eq!(request(&mut rig, &mut driver, 4, 0, &[]), (0, 1), "flush");
    assert_eq!(request(&mut rig, &mut driver, 8, 0, &[(DATA, 20, true)]), (0, 21));
    assert_eq!(rig.bytes(DATA, 10), b"serial-1\0\0");
    assert_eq!(request(&mut rig, &mut driver, 99, 0, &[]).0, 2, "unsupported");
}

#[test]
fn discarded_sectors_read_as_zeros() {
    let (mut rig, mut driver) = rig(false);
    rig.put(DATA, &[0xaa; 512 * 40]);
    assert_eq!(request(&mut rig, &mut driver, 1, 0, &[(DATA, 512 * 40, false)]).0, 0);
    for (kind, flags) in [(11u32, 0u32), (13, 0), (13, 1)] {
        rig.put(DATA, &3u64.to_le_bytes());
        rig.put(DATA + 8, &20u32.to_le_bytes());
        rig.put(DATA + 12, &flags.to_le_bytes());
        assert_eq!(request(&mut rig, &mut driver, kind, 0, &[(DATA, 16, false)]).0, 0);
    }
    assert_eq!(request(&mut rig, &mut driver, 11, 0, &[(DATA, 16, false)]).0, 2, "discard has no flags");
    assert_eq!(request(&mut rig, &mut driver, 0, 0, &[(DATA, 512 * 40, true)]).0, 0);
    let got = rig.bytes(DATA, 512 * 40);
    let want = |i: usize| if (3 * 512..23 * 512).contains(&i) { 0 } else { 0xaa };
    assert!(got.iter().enumerate().all(|(i, byte)| *byte == want(i)));
}

#[test]
fn requests_beyond_the_disk_or_against_a_read_only_one_fail() {
    let (mut rig, mut driver) = rig(false);
    let last = DISK / 512 - 1;
    assert_eq!(request(&mut rig, &mut driver, 0, last, &[(DATA, 512, true)]).0, 0);
    for (sector, len) in [(last, 1024), (last + 1, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)] {
        for (kind, write) in [(0, true), (1, false)] {
            assert_eq!(request(&mut rig, &mut driver, kind, sector, &[(DATA, len, write)]).0, 1);
        }
    }
    let (mut rig, mut driver) = self::rig(true);
    let offered = driver.offered(&mut rig);
    assert_eq!(offered & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    assert_eq!(request(&mut rig, &mut driver, 1, 0, &[(DATA, 512, false)]).0, 1);
    assert_eq!(request(&mut rig, &mut driver, 0, 0, &[(DATA, 512, true)]).0, 0);
    let function = rig.host.function::<Function>(1).unwrap();
    assert!(function.device().disk().snapshot().changes_since(None).is_empty());
}

#[test]
fn completion_times_follow_from_the_requests_alone() {
    let (mut rig, mut driver) = rig(false);
    let start = rig.now;
    // Three reads at once: the channel moves them one after the other.
    for i in 0..3u64 {
        let header_at = HEADER + 16 * i;
        header(&mut rig, header_at, 0, i);
        driver.offer(&mut rig, 0, &[(header_at, 16, false), (DATA, 4096, true), (STATUS + i, 1, true)]);
    }
    driver.kick(&mut rig, 0);
    for i in 1..=3u64 {
        assert_eq!(rig.host.deadline(), Some(start.after_ns(4096 * i + LATENCY_NS)));
        assert!(rig.step());
        assert_eq!(driver.collect(&mut rig, 0).len(), 1);
    }
    assert_eq!(rig.host.deadline(), None);
    // Looking late finishes everything that is due, in order.
    for i in 0..3u64 {
        let header_at = HEADER + 16 * i;
        driver.offer(&mut rig, 0, &[(header_at, 16, false), (DATA, 4096, true), (STATUS + i, 1, true)]);
    }
    driver.kick(&mut rig, 0);
    rig.now = rig.now.after_ns(1_000_000);
    rig.step();
    assert_eq!(driver.collect(&mut rig, 0).len(), 3);
}

#[test]
fn data_moves_at_completion_not_at_submission() {
    let (mut rig, mut driver) = rig(false);
    rig.put(DATA, &[1; 512]);
    header(&mut rig, HEADER, 1, 0);
    driver.offer(&mut rig, 0, &[(HEADER, 16, false), (DATA, 512, false), (STATUS, 1, true)]);
    driver.kick(&mut rig, 0);
    rig.put(DATA, &[2; 512]);
    rig.step();
    driver.collect(&mut rig, 0);
    assert_eq!(request(&mut rig, &mut driver, 0, 0, &[(DATA, 512, true)]).0, 0);
    assert_eq!(rig.bytes(DATA, 1), [2]);
}

#[test]
fn requests_in_flight_survive_save_and_restore() {
    let (mut rig, mut driver) = rig(false);
    rig.put(DATA, &[5; 8192]);
    header(&mut rig, HEADER, 1, 8);
    driver.offer(&mut rig, 0, &[(HEADER, 16, false), (DATA, 8192, false), (STATUS, 1, true)]);
    driver.kick(&mut rig, 0);
    let (saved, memory) = (rig.host.save(), rig.memory());
    let contents = rig.host.function::<Function>(1).unwrap().device().disk().snapshot();
    let deadline = rig.host.deadline();
    rig.step();
    let after = (driver.clone().collect(&mut rig, 0), rig.interrupts(), rig.host.save());
    let hash = |rig: &Rig| rig.host.function::<Function>(1).unwrap().device().disk().hash().unwrap();
    let hash_after = hash(&rig);

    // Back into the same machine: time travel.
    rig.put(0, &memory);
    rig.host.restore(&saved).unwrap();
    rig.host.function_mut::<Function>(1).unwrap().device_mut().disk_mut().restore(&contents);
    assert_eq!(rig.host.deadline(), deadline);
    assert_ne!(hash(&rig), hash_after);
    rig.now = deadline.unwrap();
    rig.step();
    assert!((driver.clone().collect(&mut rig, 0), rig.interrupts(), rig.host.save()) == after);
    assert_eq!(hash(&rig), hash_after);

    // And a state that is not ours is refused.
    let mut other = Rig::new(vec![]);
    assert!(other.host.restore(&saved).is_err());
    let mut damaged = saved.clone();
    damaged.payload.truncate(damaged.payload.len() - 3);
    assert!(rig.host.restore(&damaged).is_err());
}

#[test]
fn a_reset_forgets_requests_but_not_contents() {
    let (mut rig, mut driver) = rig(false);
    rig.put(DATA, &[5; 512]);
    assert_eq!(request(&mut rig, &mut driver, 1, 3, &[(DATA, 512, false)]).0, 0);
    header(&mut rig, HEADER, 0, 3);
    driver.offer(&mut rig, 0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.kick(&mut rig, 0);
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    assert_eq!(rig.host.deadline(), None);
    rig.put(DATA, &[0; 512]);
    assert_eq!(request(&mut rig, &mut driver, 0, 3, &[(DATA, 512, true)]).0, 0);
    assert_eq!(rig.bytes(DATA, 2), [5, 5]);
}

#[test]
fn a_restored_channel_is_as_busy_as_the_saved_one() {
    let (mut rig, mut driver) = rig(false);
    let read = |rig: &mut Rig, driver: &mut Driver, i: u64| {
        header(rig, HEADER + 16 * i, 0, i);
        let chain = [(HEADER + 16 * i, 16, false), (DATA, 65536, true), (STATUS + i, 1, true)];
        driver.offer(rig, 0, &chain);
        driver.kick(rig, 0);
    };
    read(&mut rig, &mut driver, 0);
    let (fresh, _) = self::rig(false);
    let saved = rig.host.save();
    rig.host = fresh.host;
    rig.host.restore(&saved).unwrap();
    let start = rig.now;
    read(&mut rig, &mut driver, 1);
    assert!(rig.step());
    assert_eq!(rig.host.deadline(), Some(start.after_ns(2 * 65536 + LATENCY_NS)));
}

/// An image that fails to be read.
struct Broken;
impl Base for Broken {
    fn len(&self) -> u64 {
        DISK
    }
    fn read_at(&self, _offset: u64, _buf: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::Error::other("gone"))
    }
    fn name(&self) -> std::path::PathBuf {
        "broken.img".into()
    }
}

#[test]
fn a_host_that_cannot_read_the_image_is_not_seen_by_the_guest() {
    let mut rig = Rig::new(vec![Box::new(block(Arc::new(Broken), false))]);
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    header(&mut rig, HEADER, 0, 0);
    driver.offer(&mut rig, 0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.kick(&mut rig, 0);
    let before = rig.host.save();
    assert_eq!(rig.host.failure(), None);
    rig.step();
    let failure = rig.host.failure().expect("the board is told");
    assert!(failure.contains("broken.img") && failure.contains("gone"), "{failure}");
    assert_eq!(rig.host.save(), before, "the request still waits");
    assert_eq!(rig.host.deadline(), None);
}
