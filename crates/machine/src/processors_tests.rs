//! Machines of several processors that do what a test tells them.

use crate::board::BoardConfig;
use crate::clock::Idle;
use crate::gate::{Gate, Input};
use crate::machine::{Machine, MachineConfig, Stop};
use crate::pci::PciBus;
use crate::testing::{Fake, Program, Tray};
use base::{GuestPhys, Position};
use cpu::{Activity, Bus, CpuState};
use std::sync::Arc;

const COUNTER: GuestPhys = GuestPhys(0x1000);

fn machine(cpus: u32, seed: u64, program: &Program) -> Machine<Fake> {
    let board = BoardConfig { memory: 2 << 20, cpus, ..BoardConfig::default() };
    let config = MachineConfig { board, idle: Idle::Skip, seed };
    let fake = Fake::several(cpus, Arc::clone(program));
    Machine::new(config, fake, PciBus::new(), Gate::live(None), Box::new(Tray::default())).unwrap()
}

fn apic(state: &CpuState, bus: &mut dyn Bus, offset: u64, value: u32) {
    let at = Position::from_count(state.retired);
    bus.mmio_write(at, GuestPhys(0xfee0_0000 + offset), &value.to_le_bytes());
}

/// An interprocessor interrupt: the low half of the interrupt command register.
fn send(state: &CpuState, bus: &mut dyn Bus, to: u32, command: u32) {
    apic(state, bus, 0x310, to << 24);
    apic(state, bus, 0x300, command);
}

fn load(bus: &mut dyn Bus, at: GuestPhys) -> u64 {
    let mut bytes = [0; 8];
    assert!(bus.ram().read(at, &mut bytes));
    u64::from_le_bytes(bytes)
}

fn store(bus: &mut dyn Bus, at: GuestPhys, value: u64) {
    assert!(bus.ram().write(at, &value.to_le_bytes()));
}

fn counter(machine: &mut Machine<Fake>) -> u64 {
    load(machine.board_mut(), COUNTER)
}

const INIT: u32 = 0x4500;
const START_UP_AT_2: u32 = 0x4602;
const PAUSE: usize = 15;

/// Everyone adds to a counter: load, add, store. After `rounds` rounds they halt for good.
fn adding(rounds: u64) -> Program {
    Arc::new(move |rip, state, bus| match rip % 4 {
        0 => state.gpr[0] = load(bus, COUNTER),
        1 => state.gpr[0] += 1,
        2 => store(bus, COUNTER, state.gpr[0]),
        _ => {
            state.gpr[1] += 1;
            if state.gpr[1] == rounds {
                state.rflags &= !x86::flags::IF;
                state.activity = Activity::Halted;
            }
        }
    })
}

#[test]
fn without_a_lock_some_seeds_lose_updates_and_each_does_so_always() {
    let result = |seed| {
        let mut machine = machine(2, seed, &adding(20_000));
        assert_eq!(machine.run_until(Position::NEVER), Stop::Dead);
        (counter(&mut machine), machine.state_hash().unwrap())
    };
    assert_eq!(result(0).0, 40_000, "the plain schedule's slices are longer than the whole run");
    let losing: Vec<u64> = (1..20).filter(|seed| result(*seed).0 < 40_000).collect();
    assert!(losing.len() > 5, "{losing:?}");
    for seed in losing.into_iter().take(3) {
        assert_eq!(result(seed), result(seed));
    }
}

/// Processor 0 starts processor 1 and interrupts it; each interrupt makes the other one send one
/// back. In between they halt.
fn ping_pong() -> Program {
    Arc::new(|rip, state, bus| {
        let other = 1 - state.apic_id;
        match rip {
            0 => apic(state, bus, 0xf0, 0x1ff),
            1 if state.apic_id == 0 => send(state, bus, 1, INIT),
            1 => state.activity = Activity::Halted,
            2 => send(state, bus, 1, START_UP_AT_2),
            3 => state.gpr[PAUSE] = 1,
            // Until the other one says that it is there.
            4 if load(bus, COUNTER) == 0 => state.rip = 3,
            5 => send(state, bus, 1, 0x4050),
            // As STI and HLT do: not if the interrupt has come already.
            6 if state.gpr[10] == 0 => state.activity = Activity::Halted,
            7 if state.gpr[10] == 0x50 => {
                state.gpr[10] = 0;
                let count = load(bus, COUNTER) + 1;
                store(bus, COUNTER, count);
                apic(state, bus, 0xb0, 0);
                send(state, bus, other, 0x4050);
                state.rip = 6;
            }
            // Where the start-up message leads.
            0x2000 => {
                apic(state, bus, 0xf0, 0x1ff);
                store(bus, COUNTER, 1);
                state.rip = 6;
            }
            _ => {}
        }
    })
}

#[test]
fn processors_start_by_init_and_sipi_and_interrupt_each_other() {
    for seed in 0..10 {
        let mut machine = machine(2, seed, &ping_pong());
        assert_eq!(machine.run_until(Position::from_count(10_000)), Stop::Limit);
        assert!(counter(&mut machine) > 1000, "seed {seed}: {}", counter(&mut machine));
    }
}

/// Processor 1 waits for processor 0 to finish a long piece of work.
fn spinning(pauses: bool) -> Program {
    Arc::new(move |rip, state, bus| {
        if state.apic_id == 0 {
            match rip {
                0 => state.gpr[PAUSE] = 1,
                50_000 => store(bus, COUNTER, 1),
                50_001 => bus.io_write(Position::from_count(state.retired), 0x604, 2, 5 << 10 | 1 << 13),
                _ => {}
            }
        } else if load(bus, COUNTER) == 0 {
            state.gpr[PAUSE] = u64::from(pauses);
            state.gpr[1] += 1;
        }
    })
}

#[test]
fn a_processor_that_spins_with_pause_gives_way_at_once() {
    let spins = |pauses| {
        let mut machine = machine(2, 0, &spinning(pauses));
        assert_eq!(machine.run_until(Position::NEVER), Stop::PowerOff);
        machine.processor().states[1].gpr[1]
    };
    assert!(spins(false) > 1_000_000, "a whole slice");
    assert_eq!(spins(true), 1);
}

#[test]
fn pause_costs_nothing_where_nobody_else_can_run() {
    let program: Program = Arc::new(|_, state, _| {
        if state.apic_id > 0 {
            state.activity = Activity::Halted;
        }
        state.gpr[PAUSE] = 1;
    });
    let mut machine = machine(4, 0, &program);
    assert_eq!(machine.run_until(Position::from_count(5_000_000)), Stop::Limit);
    assert_eq!(machine.processor().states[0].rip, 5_000_000 - 3);
}

/// Timers, interrupts, pauses and shared memory, all at once.
fn busy() -> Program {
    Arc::new(|rip, state, bus| {
        let cpu = u64::from(state.apic_id);
        match rip {
            0 => apic(state, bus, 0xf0, 0x1ff),
            1 => apic(state, bus, 0x3e0, 0xb),
            2 => apic(state, bus, 0x320, 0x2_0040),
            3 => apic(state, bus, 0x380, 3_000 + 700 * state.apic_id),
            _ if state.gpr[10] != 0 => {
                state.gpr[10] = 0;
                apic(state, bus, 0xb0, 0);
            }
            _ if rip % 61 == 17 => state.gpr[PAUSE] = 1,
            _ if rip % 997 == 5 * cpu => state.activity = Activity::Halted,
            _ if rip % 1009 == 7 => send(state, bus, (state.apic_id + 1) % 3, 0x4060),
            _ if rip % 4 == 0 => state.gpr[0] = load(bus, COUNTER).wrapping_mul(5).wrapping_add(cpu),
            _ if rip % 4 == 2 => store(bus, COUNTER, state.gpr[0]),
            _ => {}
        }
    })
}

#[test]
fn where_a_run_of_several_processors_is_interrupted_changes_nothing() {
    let end = Position::from_count(300_000);
    for seed in [0, 1, 2, 3, 4] {
        let mut whole = machine(3, seed, &busy());
        assert_eq!(whole.run_until(end), Stop::Limit);
        let mut parts = machine(3, seed, &busy());
        let (mut at, mut step) = (Position::START, 1);
        while at < end {
            step = step * 7 % 31;
            at = at.after(step * step).min(end);
            assert_eq!(parts.run_until(at), Stop::Limit);
        }
        assert_eq!(parts.state_hash().unwrap(), whole.state_hash().unwrap(), "seed {seed}");
    }
}

#[test]
fn a_restored_machine_of_several_processors_goes_on_as_the_saved_one() {
    for seed in [0, 1, 2] {
        let mut first = machine(3, seed, &busy());
        assert_eq!(first.run_until(Position::from_count(77_777)), Stop::Limit);
        let state = first.save();
        let mut second = machine(3, seed, &busy());
        // Whatever it did before.
        assert_eq!(second.run_until(Position::from_count(1234)), Stop::Limit);
        second.restore(&state).unwrap();
        for page in 0..first.board().memory().pages() {
            let bytes = *first.board().memory().page_bytes(page);
            second.board_mut().memory_mut().write_page(page, 0, &bytes);
        }
        for machine in [&mut first, &mut second] {
            assert_eq!(machine.run_until(Position::from_count(200_000)), Stop::Limit);
        }
        assert_eq!(second.state_hash().unwrap(), first.state_hash().unwrap(), "seed {seed}");
    }
}

#[test]
fn a_state_that_another_machine_was_in_is_refused() {
    let state = machine(3, 1, &busy()).save();
    assert!(machine(2, 1, &busy()).restore(&state).is_err(), "another number of processors");
    assert!(machine(3, 0, &busy()).restore(&state).is_err(), "another schedule");
    let mut swapped = state.clone();
    swapped.processors.swap(0, 1);
    assert!(machine(3, 1, &busy()).restore(&swapped).is_err(), "another order of processors");
    assert!(machine(3, 1, &busy()).restore(&state).is_ok());
}

#[test]
fn guest_time_is_skipped_only_while_all_are_halted() {
    // Processor 0 works; the others wait for their timers.
    let program: Program = Arc::new(|rip, state, bus| match rip {
        0 => apic(state, bus, 0xf0, 0x1ff),
        1 => apic(state, bus, 0x3e0, 0xb),
        2 if state.apic_id > 0 => apic(state, bus, 0x320, 0x40),
        3 if state.apic_id > 0 => apic(state, bus, 0x380, 10_000_000),
        4 if state.apic_id > 0 => state.activity = Activity::Halted,
        5 if state.apic_id > 0 => state.activity = Activity::Halted,
        20_000_000 => state.activity = Activity::Halted,
        _ => {}
    });
    let mut machine = machine(3, 0, &program);
    assert_eq!(machine.run_until(Position::from_count(15_000_000)), Stop::Limit);
    assert_eq!(machine.moment().time.ns(), 15_000_000);
    assert_eq!(machine.processor().states[1].gpr[8], 1, "its timer has gone off");
    assert_eq!(machine.run_until(Position::NEVER), Stop::Idle { until: None });
    machine.inject(Input::PowerButton).unwrap();
}

#[test]
fn an_nmi_reaches_the_processor_it_was_sent_to() {
    let program: Program = Arc::new(|rip, state, bus| match (state.apic_id, rip) {
        (_, 0) => apic(state, bus, 0xf0, 0x1ff),
        (0, 1) => send(state, bus, 1, 0x4400),
        (_, 10) => state.activity = Activity::Halted,
        _ => {}
    });
    let mut machine = machine(2, 0, &program);
    machine.run_until(Position::NEVER);
    let nmi = (1, devices::ProcessorSignal::Nmi);
    assert_eq!(machine.processor().signals, [nmi]);
}
