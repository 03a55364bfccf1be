//! Guests that mean harm: random rings, random registers, random states. Nothing may panic or hang,
//! and everything must come out the same twice.

use super::{Dice, Driver, Rig};
use crate::Device;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::{F_EVENT_IDX, VirtioPci};
use disk::{Overlay, Store, Zeros};
use std::sync::Arc;

fn rig() -> Rig {
    let overlay = Overlay::new(Arc::new(Zeros(1 << 20)), Store::in_temp_dir(1 << 20));
    Rig::new(vec![
        Box::new(VirtioPci::new(Block::new(overlay, "x", false))),
        Box::new(VirtioPci::new(Console::new(0, 80, 25))),
        Box::new(VirtioPci::new(Rng::new([1; 32]))),
        Box::new(VirtioPci::new(Net::new(0, [2, 0, 0, 0, 0, 1], 1500))),
    ])
}

/// An address that is often nearly right.
fn address(dice: &mut Dice, driver: &Driver) -> u64 {
    match dice.roll(8) {
        0 => dice.bits(),
        1 => u64::MAX - dice.roll(64),
        2 => (4 << 20) - dice.roll(64),
        3 => {
            let ring = &driver.rings[dice.roll(driver.rings.len() as u64) as usize];
            [ring.desc, ring.avail, ring.used][dice.roll(3) as usize] + dice.roll(0x300)
        }
        _ => dice.roll(4 << 20),
    }
}

fn length(dice: &mut Dice) -> u32 {
    match dice.roll(8) {
        0 => dice.bits() as u32,
        1 => 0,
        2 => 16 * dice.roll(300) as u32,
        _ => dice.roll(5000) as u32,
    }
}

fn random_descriptors(rig: &mut Rig, dice: &mut Dice, driver: &Driver, table: u64, count: u64) {
    for i in 0..count {
        let buffer = (address(dice, driver), length(dice));
        let flags = if dice.roll(10) == 0 { dice.bits() as u16 } else { dice.roll(8) as u16 & 7 };
        let flags = if dice.roll(3) == 0 { flags } else { flags & 3 };
        let next = if dice.roll(10) == 0 { dice.bits() } else { dice.roll(count) } as u16;
        super::driver::descriptor(&mut rig.ram, table + 16 * i, buffer, flags, next);
    }
}

/// Groups of eight descriptors: readable ones, then writable ones, chained. Good enough to get
/// deep into a device, with what looks like disk requests and frame headers among the data.
fn plausible_descriptors(rig: &mut Rig, dice: &mut Dice, table: u64, count: u64) {
    const AREA: u64 = 0x40000;
    for at in (AREA..AREA + 0x1000).step_by(16) {
        let kind = [0u32, 0, 1, 1, 4, 8, 11, 13, 0x100, 7][dice.roll(10) as usize];
        rig.put(at, &kind.to_le_bytes());
        rig.put(at + 4, &[0; 12]);
        rig.put(at + 8, &(dice.roll(2100) as u16).to_le_bytes());
    }
    for i in 0..count {
        let addr = AREA + (dice.roll(0x1000) & !15);
        let len = [12, 16, 1, 512, 4096, 60][dice.roll(6) as usize];
        let write = u16::from(i % 8 >= 4) << 1;
        let next = u16::from(i % 8 != 7 && dice.roll(4) != 0);
        super::driver::descriptor(&mut rig.ram, table + 16 * i, (addr, len), write | next, i as u16 + 1);
    }
}

/// Moves everything into a fresh machine by way of the saved state.
fn transplant(rig: &mut Rig) {
    let saved = rig.host.save();
    let block = rig.host.function::<VirtioPci<Block>>(1).unwrap();
    let contents = block.device().disk().snapshot();
    let mut fresh = self::rig().host;
    fresh.restore(&saved).expect("what was saved can be restored");
    fresh.function_mut::<VirtioPci<Block>>(1).unwrap().device_mut().disk_mut().restore(&contents);
    assert!(fresh.save() == saved);
    rig.host = fresh;
}

#[derive(PartialEq)]
struct Aftermath {
    interrupts: Vec<crate::Request>,
    devices: crate::DeviceState,
    memory: blake3::Hash,
    disk: blake3::Hash,
    console: Vec<u8>,
    frames: Vec<Vec<u8>>,
}

/// A random guest against one of the devices. With `travel` the machine is now and then replaced
/// by a restored one, which must make no difference.
fn attack(seed: u64, travel: bool) -> Aftermath {
    let mut dice = Dice(seed);
    let mut rig = rig();
    let slot = 1 + dice.roll(4) as u8;
    let without = if dice.roll(2) == 0 { F_EVENT_IDX } else { 0 };
    let mut driver = Driver::start(&mut rig, slot, dice.roll(4) != 0, without);
    let mut events = Vec::new();
    for _ in 0..60 {
        let queue = dice.roll(driver.rings.len() as u64) as usize;
        let mut ring = driver.rings[queue].clone();
        match dice.roll(12) {
            0 => random_descriptors(&mut rig, &mut dice, &driver, ring.desc, u64::from(ring.size)),
            1..3 => plausible_descriptors(&mut rig, &mut dice, ring.desc, u64::from(ring.size)),
            3 => random_descriptors(&mut rig, &mut dice, &driver, 0x20000, 64),
            4..7 => {
                for _ in 0..dice.roll(40) {
                    let head = dice.roll(u64::from(ring.size) + 1) as u16;
                    ring.publish(&mut rig, if dice.roll(16) == 0 { head } else { head & !7 });
                }
                driver.rings[queue] = ring;
                driver.kick(&mut rig, queue);
            }
            7 => {
                rig.put(ring.avail + 2, &(dice.bits() as u16).to_le_bytes());
                driver.kick(&mut rig, queue);
            }
            8 => {
                let frame = vec![dice.bits() as u8; dice.roll(3000) as usize];
                match slot {
                    2 => _ = rig.act(2, |f: &mut VirtioPci<Console>, cx| f.receive(cx, &frame)),
                    4 => _ = rig.act(4, |f: &mut VirtioPci<Net>, cx| f.receive(cx, &frame)),
                    _ => {}
                }
            }
            9 => {
                // A register of any BAR, any width.
                let len = 1 << dice.roll(4);
                let at = driver.common + (dice.roll(0x4000) & !(len - 1));
                let value = dice.bits();
                if dice.roll(2) == 0 {
                    rig.write(at, len as usize, value)
                } else {
                    _ = rig.read(at, len as usize)
                }
            }
            10 => {
                rig.step();
            }
            _ => {
                if travel {
                    transplant(&mut rig);
                }
            }
        }
        events.extend(rig.interrupts());
        if dice.roll(2) == 0 && driver.status(&mut rig) & super::driver::NEEDS_RESET != 0 {
            driver = Driver::start(&mut rig, slot, true, without);
        }
    }
    for _ in 0..1000 {
        if !rig.step() {
            break;
        }
    }
    events.extend(rig.interrupts());
    let block = rig.host.function::<VirtioPci<Block>>(1).unwrap();
    Aftermath {
        interrupts: events,
        devices: rig.host.save(),
        memory: blake3::hash(&rig.memory()),
        disk: block.device().disk().hash().unwrap(),
        console: rig.out.console,
        frames: rig.out.frames,
    }
}

#[test]
fn random_rings_never_hurt_and_always_end_the_same() {
    let (mut done, mut printed, mut sent) = (0, 0, 0);
    for seed in 0..300 {
        let first = attack(seed, true);
        assert!(first == attack(seed, false), "seed {seed} differs after save and restore");
        let completion = |r: &&crate::Request| matches!(r, crate::Request::Message { data: 0x41.., .. });
        done += first.interrupts.iter().filter(completion).count();
        printed += first.console.len();
        sent += first.frames.len();
    }
    assert!(done > 300 && printed > 1000 && sent > 50, "too tame: {done} {printed} {sent}");
}

#[test]
fn a_chain_that_bites_its_tail_is_a_fault() {
    use crate::virtio::QueueError;
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 3, true, 0);
    let mut ring = driver.rings[0].clone();
    super::driver::descriptor(&mut rig.ram, ring.desc, (0x8000, 8), 3, 1);
    super::driver::descriptor(&mut rig.ram, ring.desc + 16, (0x8000, 8), 3, 0);
    ring.publish(&mut rig, 0);
    driver.rings[0] = ring;
    driver.kick(&mut rig, 0);
    let fault = rig.host.function::<VirtioPci<Rng>>(3).unwrap().fault();
    assert_eq!(fault, Some(QueueError::Loop(0)));
}

#[test]
fn random_configuration_accesses_never_hurt() {
    let mut rig = rig();
    for seed in 0..20_000 {
        let mut dice = Dice(seed);
        let slot = dice.roll(8) as u8;
        let len = 1 << dice.roll(3);
        let offset = dice.roll(0x110) & !(len - 1);
        if dice.roll(2) == 0 {
            rig.config_write(slot, offset, len as usize, dice.bits() as u32);
        } else {
            rig.config_read(slot, offset, len as usize);
        }
        if dice.roll(20) == 0 {
            let saved = rig.host.save();
            rig.host.restore(&saved).unwrap();
        }
        rig.interrupts();
    }
}

#[test]
fn damaged_states_are_refused_or_harmless() {
    let mut rig = rig();
    let mut driver = Driver::start(&mut rig, 1, true, 0);
    rig.put(0x8000, &[0; 16]);
    driver.offer(&mut rig, 0, &[(0x8000, 16, false), (0x9000, 512, true), (0x8800, 1, true)]);
    driver.kick(&mut rig, 0);
    let saved = rig.host.save();
    for seed in 0..3000 {
        let mut dice = Dice(seed);
        let mut state = saved.clone();
        for _ in 0..=dice.roll(3) {
            let at = dice.roll(state.payload.len() as u64) as usize;
            state.payload[at] ^= 1 << dice.roll(8);
        }
        let _ = rig.host.restore(&state);
        for queue in 0..3 {
            let mut data = [0; 2];
            data[0] = queue as u8;
            let at = driver.notify + 4 * queue;
            let cx = &mut crate::Cx { now: rig.now, ram: &mut rig.ram, irq: &mut rig.irq, out: &mut rig.out };
            rig.host.mmio_write(cx, at, &data);
        }
        let cx = &mut crate::Cx { now: rig.now, ram: &mut rig.ram, irq: &mut rig.irq, out: &mut rig.out };
        cx.now = cx.now.after_ns(1_000_000);
        rig.host.expire(cx);
        rig.interrupts();
    }
}
