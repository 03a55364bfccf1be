//! A virtio driver that knows the protocol (virtio 1.2, 3.1) and keeps to it most of the time.

use super::{Slot, ports};
use crate::assemble::Code;
use crate::case::Devices;
use crate::layout;
use dice::Dice;

/// Offsets in the common configuration (4.1.4.3).
const FEATURE_SELECT: u64 = 8;
const FEATURES: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const STATUS: u64 = 20;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_DESC: u64 = 32;
const QUEUE_AVAIL: u64 = 40;
const QUEUE_USED: u64 = 48;
const NOTIFICATIONS: u64 = 0x3000;

/// Steps of a driver, each an address, a size and a value.
type Steps = Vec<(u64, usize, u64)>;

/// A driver in `count` slots.
pub fn driver(dice: &mut Dice, devices: &Devices, count: usize) -> Vec<Slot> {
    let mut slots = Vec::with_capacity(count);
    while slots.len() < count {
        let function = 1 + dice.below(devices.functions().max(1)) as u64;
        let mut steps = set_up(dice, function);
        for _ in 0..20 + dice.below(60) {
            work(dice, function, &mut steps);
        }
        slots.extend(steps.into_iter().map(|step| slot(dice, step)));
    }
    slots.truncate(count);
    slots
}

fn slot(dice: &mut Dice, (at, size, value): (u64, usize, u64)) -> Slot {
    let mut code = Code::default();
    match dice.below(100) {
        // Forgotten, wrong, of another size, or something else.
        0 => {}
        1 => _ = code.store(at, size, dice.number()),
        2 => _ = code.store(at, dice.pick(&[1, 2, 4, 8]), value),
        3 => return ports::mmio(dice),
        _ => _ = code.store(at, size, value),
    }
    if dice.percent(10) {
        code.load(at, size);
    }
    Slot(code.0)
}

/// Everything up to DRIVER_OK.
fn set_up(dice: &mut Dice, function: u64) -> Steps {
    let config = layout::ecam(function);
    let common = layout::register_bar(function);
    let mut steps = vec![
        (config + 4, 2, 0),
        (config + 0x14, 4, layout::msix_bar(function)),
        (config + 0x20, 4, common),
        (config + 0x24, 4, 0),
        (config + 4, 2, 6),
    ];
    if dice.percent(50) {
        // MSI-X is the first capability.
        steps.push((config + 0x42, 2, dice.pick(&[0x8000, 0xc000, 0x8000])));
        for entry in 0..3 {
            let table = layout::msix_bar(function) + 16 * entry;
            let address = if dice.percent(90) { 0xfee0_0000 } else { super::address(dice) };
            let data = 0x30 + dice.below(0xb0) as u64;
            steps.extend([(table, 4, address), (table + 4, 4, 0), (table + 8, 4, data), (table + 12, 4, 0)]);
        }
    }
    steps.extend([(common + STATUS, 1, 0), (common + STATUS, 1, 1), (common + STATUS, 1, 3)]);
    // Network features below 32 that lead to other code; 28 indirect, 29 event index; 32 version 1.
    let low =
        if dice.percent(70) { dice.bits() & 0x3001_ffff } else { dice.pick(&[0, 0x3000_0000, 0x2000_0000]) };
    steps.extend([(common + FEATURE_SELECT, 4, 0), (common + FEATURES, 4, low)]);
    steps.extend([(common + FEATURE_SELECT, 4, 1), (common + FEATURES, 4, 1), (common + STATUS, 1, 11)]);
    steps.push((common + CONFIG_VECTOR, 2, dice.pick(&[0, 1, 0xffff])));
    for queue in 0..layout::QUEUES_EACH {
        let rings = rings(function, queue);
        steps.push((common + QUEUE_SELECT, 2, queue));
        steps.push((common + QUEUE_SIZE, 2, dice.pick(&[1, 2, 8, 32, 128, 256, 0, 3, 0x8000])));
        steps.push((common + QUEUE_VECTOR, 2, dice.pick(&[0, 1, 2, 0xffff])));
        let place = |dice: &mut Dice, tidy: u64| if dice.percent(96) { tidy } else { super::address(dice) };
        for (field, tidy) in
            [(QUEUE_DESC, rings), (QUEUE_AVAIL, rings + 0x1000), (QUEUE_USED, rings + 0x1800)]
        {
            steps.push((common + field, 4, place(dice, tidy) & 0xffff_ffff));
            steps.push((
                common + field + 4,
                4,
                if dice.percent(98) { 0 } else { dice.number() & 0xffff_ffff },
            ));
        }
        steps.push((common + QUEUE_ENABLE, 2, 1));
    }
    steps.push((common + STATUS, 1, 15));
    steps
}

fn rings(function: u64, queue: u64) -> u64 {
    layout::QUEUES + (function * layout::QUEUES_EACH + queue) * layout::QUEUE_SIZE
}

/// One request, or one change to the rings.
fn work(dice: &mut Dice, function: u64, steps: &mut Steps) {
    let queue = dice.below(3) as u64;
    let rings = rings(function, queue);
    let bar = layout::register_bar(function);
    match dice.below(8) {
        0..=3 => {
            let index = if dice.percent(90) { dice.below(40) as u64 } else { dice.bits() & 0xffff };
            steps.push((rings + 0x1002, 2, index));
            steps.push((bar + NOTIFICATIONS + 4 * queue, dice.pick(&[2, 4, 1]), queue));
        }
        4 => {
            let at = rings + 16 * dice.below(64) as u64;
            let [address, rest] = descriptor(dice, 64);
            steps.extend([(at, 8, address), (at + 8, 8, rest)]);
        }
        5 => steps.push((rings + 0x1004 + 2 * dice.below(64) as u64, 2, dice.below(70) as u64)),
        6 => steps.push((bar + 0x2000 + dice.below(64) as u64, dice.pick(&[1, 2, 4, 8]), dice.number())),
        _ => {
            let field = dice.below(56) as u64;
            steps.push((bar + field, dice.pick(&[1, 2, 4]), dice.number()));
        }
    }
}

/// A descriptor (2.7.5) in two words, its next one among `count`.
fn descriptor(dice: &mut Dice, count: usize) -> [u64; 2] {
    let buffers = layout::BUFFERS.end - layout::BUFFERS.start;
    let address = match dice.below(20) {
        0 => super::address(dice),
        1 => layout::BUFFERS.end - dice.below(64) as u64,
        _ => (layout::BUFFERS.start + dice.below(buffers as usize) as u64) & !15,
    };
    let len = match dice.below(10) {
        0 => dice.number() & 0xffff_ffff,
        1..=4 => dice.pick(&[16, 16, 1, 512, 12]),
        _ => dice.below(5000) as u64,
    };
    let flags = match dice.below(20) {
        0 => dice.bits() & 0xffff,
        1 => 4,
        n => [0, 1, 1, 1, 2, 3, 3][n % 7],
    };
    [address, len | flags << 32 | (dice.below(count) as u64) << 48]
}

/// The rings and buffers as the guest finds them.
pub(crate) fn memory(dice: &mut Dice) -> Vec<(u64, Vec<u8>)> {
    let mut parts = Vec::new();
    for number in 0..7 * layout::QUEUES_EACH {
        let mut ring: Vec<u8> =
            (0..256).flat_map(|_| descriptor(dice, 64)).flat_map(u64::to_le_bytes).collect();
        let mut available = vec![0, 0, dice.below(20) as u8, 0];
        available.extend((0..256).flat_map(|_| (dice.below(64) as u16).to_le_bytes()));
        ring.extend(available);
        parts.push((layout::QUEUES + number * layout::QUEUE_SIZE, ring));
    }
    // Headers of block requests at every sixteen bytes: type, priority, sector.
    let count = (layout::BUFFERS.end - layout::BUFFERS.start) / 16;
    let headers = (0..count).flat_map(|_| {
        let kind = dice.pick(&[0u64, 0, 1, 1, 4, 8, 11, 13, 2]);
        let sector = if dice.percent(90) { dice.below(2048) as u64 } else { dice.number() };
        [kind, sector]
    });
    parts.push((layout::BUFFERS.start, headers.flat_map(u64::to_le_bytes).collect()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_of_all_functions_end_before_the_buffers() {
        assert!(rings(6, layout::QUEUES_EACH) <= layout::BUFFERS.start);
    }
}
