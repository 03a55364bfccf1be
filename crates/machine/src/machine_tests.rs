//! A whole machine with a processor that does what a test tells it.

use super::*;
use crate::clock::Rate;
use crate::gate::{ClockCorrection, Event, Journal};
use crate::testing::{Fake, Program, Tray};
use cpu::Bus;
use cpu::CpuState;
use std::sync::{Arc, Mutex};

/// Notes events for a test to look at.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<Event>>>);

impl Journal for Notes {
    fn note(&mut self, event: &Event) {
        self.0.lock().unwrap().push(event.clone());
    }
}

fn machine(program: &Program, idle: Idle, gate: Gate) -> (Machine<Fake>, Tray) {
    let tray = Tray::default();
    let board = BoardConfig { memory: 2 << 20, debug_ports: true, ..BoardConfig::default() };
    let config = MachineConfig { board, idle, seed: 0 };
    let fake = Fake::new(Arc::clone(program));
    (Machine::new(config, fake, PciBus::new(), gate, Box::new(tray.clone())).unwrap(), tray)
}

/// A guest that sets up a 1 ms APIC timer and COM1 with interrupts, echoes what it receives,
/// counts in memory, and halts between interrupts.
fn echo_guest() -> Program {
    Arc::new(|rip: u64, state: &mut CpuState, bus: &mut dyn Bus| {
        let at = Position::from_count(state.retired);
        let apic = |bus: &mut dyn Bus, offset: u64, value: u32| {
            bus.mmio_write(at, base::GuestPhys(0xfee0_0000 + offset), &value.to_le_bytes());
        };
        match rip {
            0 => apic(bus, 0xf0, 0x1ff),
            1 => apic(bus, 0x3e0, 0xb),
            2 => apic(bus, 0x320, 0x2_0040),
            3 => apic(bus, 0x380, 1_000_000),
            4 => bus.mmio_write(at, base::GuestPhys(0xfec0_0000), &0x18u32.to_le_bytes()),
            5 => bus.mmio_write(at, base::GuestPhys(0xfec0_0010), &0x34u32.to_le_bytes()),
            6 => bus.io_write(at, 0x3fc, 1, 0x0b),
            7 => bus.io_write(at, 0x3f9, 1, 0x01),
            8..100 => assert!(bus.ram().write(base::GuestPhys(rip * 8), &at.count().to_le_bytes())),
            100 => state.activity = Activity::Halted,
            101 => apic(bus, 0xb0, 0),
            102 if bus.io_read(at, 0x3fd, 1) & 1 != 0 => {
                let byte = bus.io_read(at, 0x3f8, 1);
                bus.io_write(at, 0x3f8, 1, byte);
                if byte == u32::from(b'q') {
                    bus.io_write(at, 0x604, 2, 5 << 10 | 1 << 13);
                }
                state.rip = 102;
            }
            _ => state.rip = 8,
        }
    })
}

#[test]
fn idle_time_is_skipped_from_deadline_to_deadline() {
    let (mut machine, _) = machine(&echo_guest(), Idle::Skip, Gate::live(None));
    assert_eq!(machine.run_until(Position::from_count(100_000)), Stop::Limit);
    let ticks = machine.processor().state().gpr[8];
    assert!(ticks > 900, "a tick per hundred instructions, {ticks}");
    let seconds = machine.moment().time.ns() / 1_000_000;
    assert!(seconds.abs_diff(ticks) <= 1, "guest time is {seconds} ms after {ticks} ticks");
}

#[test]
fn where_a_run_is_interrupted_changes_nothing() {
    let end = Position::from_count(50_000);
    let (mut whole, _) = machine(&echo_guest(), Idle::Skip, Gate::live(None));
    assert_eq!(whole.run_until(end), Stop::Limit);
    let (mut parts, _) = machine(&echo_guest(), Idle::Skip, Gate::live(None));
    let mut at = Position::START;
    while at < end {
        at = at.after(1 + at.count() % 97).min(end);
        assert_eq!(parts.run_until(at), Stop::Limit);
        assert_eq!(parts.position(), at);
    }
    assert_eq!(parts.state_hash().unwrap(), whole.state_hash().unwrap());
}

#[test]
fn a_replay_of_the_noted_inputs_is_the_same_run() {
    for idle in [Idle::Skip, Idle::Wait] {
        let notes = Notes::default();
        let (mut live, tray) = machine(&echo_guest(), idle, Gate::live(Some(Box::new(notes.clone()))));
        let mut hashes = Vec::new();
        let mut limit = Position::START;
        let stop = 'run: loop {
            limit = limit.after(777);
            loop {
                match live.run_until(limit) {
                    Stop::Limit => break,
                    Stop::Idle { until } => {
                        // As the wall clock would: in steps that do not fit the deadlines.
                        let now = live.moment().time;
                        let missing = until.map_or(1, |until| until.ns_since(now));
                        let advance_ns = missing / 2 + 1;
                        let rate = (missing % 3 == 0).then(|| Rate::new(3, 2).unwrap());
                        live.inject(Input::Clock(ClockCorrection { advance_ns, rate })).unwrap();
                    }
                    other => break 'run other,
                }
            }
            hashes.push((limit, live.state_hash().unwrap()));
            let text: &[u8] = if hashes.len() == 40 { b"q" } else { b"hello" };
            if hashes.len() % 4 == 0 {
                live.inject(Input::Serial { port: 0, bytes: text.to_vec() }).unwrap();
            }
        };
        assert_eq!(stop, Stop::PowerOff);
        let events = notes.0.lock().unwrap().clone();
        assert!(events.len() >= 10);

        let (mut replay, again) = machine(&echo_guest(), idle, Gate::replay(Box::new(events.into_iter())));
        for (at, hash) in hashes {
            assert_eq!(replay.run_until(at), Stop::Limit);
            assert_eq!(replay.state_hash().unwrap(), hash, "{idle:?} at {at}");
        }
        assert_eq!(replay.run_until(Position::NEVER), Stop::PowerOff);
        assert_eq!(replay.moment(), live.moment());
        assert_eq!(replay.state_hash().unwrap(), live.state_hash().unwrap());
        assert_eq!(*again.0.lock().unwrap(), *tray.0.lock().unwrap());
        assert!(replay.inject(Input::PowerButton).is_err());
    }
}

#[test]
fn inputs_at_one_position_between_idle_jumps_replay_at_their_moments() {
    // The timer is masked on the IOAPIC, so idle time jumps without waking the processor.
    let program: Program = Arc::new(|rip, state, bus| {
        let at = Position::from_count(state.retired);
        match rip {
            0 => bus.mmio_write(at, base::GuestPhys(0xfee0_00f0), &0x1ffu32.to_le_bytes()),
            1 => bus.io_write(at, 0x43, 1, 0x34),
            2 => bus.io_write(at, 0x40, 1, 0xe8),
            3 => bus.io_write(at, 0x40, 1, 0x03),
            _ => state.activity = Activity::Halted,
        }
    });
    let notes = Notes::default();
    let (mut live, _) = machine(&program, Idle::Skip, Gate::live(Some(Box::new(notes.clone()))));
    for byte in 0..3 {
        assert_eq!(live.run_until(Position::NEVER), Stop::Breath);
        live.inject(Input::Serial { port: 0, bytes: vec![byte] }).unwrap();
    }
    let events = notes.0.lock().unwrap().clone();
    assert_eq!(events[0].at.position, events[2].at.position);
    assert!(events[0].at.time < events[2].at.time);
    let (mut replay, _) = machine(&program, Idle::Skip, Gate::replay(Box::new(events.into_iter())));
    let end = live.moment();
    while replay.run_until_moment(end) == Stop::Breath {}
    assert_ne!(replay.state_hash().unwrap(), live.state_hash().unwrap(), "the last input has not entered");
    replay.admit_due();
    assert_eq!(replay.moment(), end);
    assert_eq!(replay.state_hash().unwrap(), live.state_hash().unwrap());
}

#[test]
fn a_restored_machine_goes_on_as_the_saved_one() {
    let (mut first, _) = machine(&echo_guest(), Idle::Skip, Gate::live(None));
    assert_eq!(first.run_until(Position::from_count(12_345)), Stop::Limit);
    first.inject(Input::Serial { port: 0, bytes: b"ab".to_vec() }).unwrap();
    let state = first.save();
    let (mut second, _) = machine(&echo_guest(), Idle::Skip, Gate::live(None));
    second.restore(&state).unwrap();
    for page in 0..first.board().memory().pages() {
        let bytes = *first.board().memory().page_bytes(page);
        second.board_mut().memory_mut().write_page(page, 0, &bytes);
    }
    assert_eq!(second.state_hash().unwrap(), first.state_hash().unwrap());
    for machine in [&mut first, &mut second] {
        assert_eq!(machine.run_until(Position::from_count(30_000)), Stop::Limit);
    }
    assert_eq!(second.state_hash().unwrap(), first.state_hash().unwrap());
    let mut damaged = state.clone();
    damaged.processors[0].pop();
    assert!(second.restore(&damaged).is_err());
}

#[test]
fn a_halt_that_nothing_can_end_is_reported() {
    let halt: Program = Arc::new(|_, state, _| state.activity = Activity::Halted);
    let (mut waiting, _) = machine(&halt, Idle::Skip, Gate::live(None));
    assert_eq!(waiting.run_until(Position::NEVER), Stop::Idle { until: None });
    let (mut dead, _) = machine(&halt, Idle::Skip, Gate::live(None));
    dead.processor_mut().state_mut().rflags = x86::flags::FIXED;
    assert_eq!(dead.run_until(Position::NEVER), Stop::Dead);
}

#[test]
fn ends_of_runs_are_told_apart() {
    let cases: [(u16, usize, u32, Stop); 4] = [
        (0x604, 2, 5 << 10 | 1 << 13, Stop::PowerOff),
        (0x64, 1, 0xfe, Stop::Reset),
        (0x505, 1, 1, Stop::Panic),
        (0xf4, 1, 3, Stop::DebugExit(3)),
    ];
    for (port, size, value, stop) in cases {
        let program: Program = Arc::new(move |rip, state, bus| {
            if rip == 10 {
                bus.io_write(Position::from_count(state.retired), port, size, value);
            }
        });
        let (mut machine, _) = machine(&program, Idle::Skip, Gate::live(None));
        assert_eq!(machine.run_until(Position::NEVER), stop);
        assert_eq!(machine.position().count(), 11, "right after the instruction");
    }
    let program: Program = Arc::new(|_, state, _| state.activity = Activity::Shutdown);
    let (mut machine, _) = machine(&program, Idle::Skip, Gate::live(None));
    assert_eq!(machine.run_until(Position::NEVER), Stop::TripleFault);
    assert_eq!(machine.run_until(Position::NEVER), Stop::TripleFault);
}
