//! The board as a processor sees it.

use super::*;
use crate::testing::Tray;

const START: Position = Position::START;

fn board(cpus: u32) -> (Board, Tray) {
    let tray = Tray::default();
    let config = BoardConfig { memory: 1 << 20, cpus, debug_ports: true, ..BoardConfig::default() };
    (Board::new(&config, PciBus::new(), Box::new(tray.clone())).unwrap(), tray)
}

fn outb(board: &mut Board, at: Position, port: u16, value: u8) {
    board.io_write(at, port, 1, u32::from(value));
}

fn mmio32(board: &mut Board, at: Position, address: u64, value: u32) {
    board.mmio_write(at, GuestPhys(address), &value.to_le_bytes());
}

/// Enables the local APIC and routes IOAPIC pin `pin` to `vector`.
fn route(board: &mut Board, pin: u32, vector: u32) {
    mmio32(board, START, 0xfee0_00f0, 0x1ff);
    mmio32(board, START, 0xfec0_0000, 0x10 + 2 * pin);
    mmio32(board, START, 0xfec0_0010, vector);
}

#[test]
fn nothing_answers_with_ones_where_there_is_no_device() {
    let (mut board, _) = board(1);
    assert_eq!(board.io_read(START, 0x1234, 4), 0xffff_ffff);
    assert_eq!(board.io_read(START, 0x80, 1), 0xff);
    let mut data = [0; 8];
    board.mmio_read(START, GuestPhys(0xd000_0000), &mut data);
    assert_eq!(data, [0xff; 8]);
    board.io_write(START, 0xcf8, 4, 0x8000_0000);
    assert_eq!(board.io_read(START, 0xcfc, 4), 0x0008_1b36, "the host bridge");
    board.io_write(START, 0xcf8, 4, 0x8000_0800);
    assert_eq!(board.io_read(START, 0xcfc, 4), 0xffff_ffff, "an empty slot");
}

#[test]
fn the_serial_interrupt_arrives_through_the_ioapic() {
    let (mut board, tray) = board(1);
    route(&mut board, 4, 0x34);
    outb(&mut board, START, 0x3fc, 0x0b);
    outb(&mut board, START, 0x3f9, 0x02);
    assert!(board.interrupt_pending());
    assert_eq!(board.acknowledge_interrupt(START), Some(0x34));
    assert_eq!(board.acknowledge_interrupt(START), None);
    outb(&mut board, START, 0x3f8, b'!');
    assert_eq!(*tray.0.lock().unwrap(), b"!");
}

#[test]
fn the_timer_interrupt_arrives_through_the_8259s_in_virtual_wire_mode() {
    let (mut board, _) = board(1);
    board.set_virtual_wire();
    for (port, value) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        outb(&mut board, START, port, value);
    }
    for (port, value) in [(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)] {
        outb(&mut board, START, port, value);
    }
    let due = board.horizon();
    assert_eq!(due.count(), (1001 * 1_000_000_000u64).div_ceil(devices::PIT_HZ));
    board.tick(Position::from_count(due.count() - 1));
    assert!(!board.interrupt_pending());
    board.tick(due);
    assert!(board.interrupt_pending());
    assert_eq!(board.acknowledge_interrupt(due), Some(0x20));
    assert!(board.horizon() > due);
}

#[test]
fn the_hpet_in_legacy_mode_replaces_the_8254() {
    let (mut board, _) = board(1);
    route(&mut board, 2, 0x30);
    for (port, value) in [(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)] {
        outb(&mut board, START, port, value);
    }
    mmio32(&mut board, START, 0xfed0_0010, 3);
    board.tick(Position::from_count(10_000_000));
    assert!(!board.interrupt_pending(), "the 8254 is cut off");
    let at = Position::from_count(10_000_000);
    mmio32(&mut board, at, 0xfed0_0100, 1 << 2 | 1 << 8); // on, 32 bits
    mmio32(&mut board, at, 0xfed0_0108, 2_000_000); // 20 ms
    board.tick(Position::from_count(20_000_000));
    assert!(board.interrupt_pending());
}

#[test]
fn a_level_interrupt_comes_again_after_eoi_while_its_line_is_up() {
    let (mut board, _) = board(1);
    route(&mut board, 9, 0x8049);
    board.io_write(START, 0x602, 2, 1 << 8);
    let event = crate::gate::Event { at: crate::Moment::default(), input: Input::PowerButton };
    let mut gate = crate::Gate::replay(Box::new(std::iter::once(event)));
    board.admit(&gate.take_due(crate::Moment::default()).unwrap());
    assert_eq!(board.acknowledge_interrupt(START), Some(0x49));
    mmio32(&mut board, START, 0xfee0_00b0, 0);
    assert!(board.interrupt_pending());
    assert_eq!(board.acknowledge_interrupt(START), Some(0x49));
    board.io_write(START, 0x600, 2, 1 << 8);
    mmio32(&mut board, START, 0xfee0_00b0, 0);
    assert!(!board.interrupt_pending());
}

#[test]
fn interprocessor_interrupts_reach_the_processors_they_name() {
    let (mut board, _) = board(3);
    for cpu in 0..3 {
        board.set_current_cpu(cpu);
        mmio32(&mut board, START, 0xfee0_00f0, 0x1ff);
    }
    board.set_current_cpu(0);
    mmio32(&mut board, START, 0xfee0_0300, 0xc_4077); // all but self
    assert!(!board.interrupt_pending());
    for cpu in 1..3 {
        board.set_current_cpu(cpu);
        assert_eq!(board.acknowledge_interrupt(START), Some(0x77));
    }
    mmio32(&mut board, START, 0xfee0_0310, 1 << 24);
    mmio32(&mut board, START, 0xfee0_0300, 0x4500);
    assert_eq!(board.horizon(), START, "the processor must come back for it");
    assert_eq!(board.take_signals(), vec![(1, ProcessorSignal::Init)]);
    assert_eq!(board.horizon(), Position::NEVER);
}

#[test]
fn the_tsc_deadline_timer_sets_the_horizon() {
    let (mut board, _) = board(1);
    mmio32(&mut board, START, 0xfee0_00f0, 0x1ff);
    mmio32(&mut board, START, 0xfee0_0320, 0x4_00ec);
    assert!(board.msr_write(START, 0x6e0, 12_345));
    assert_eq!(board.horizon().count(), 12_345);
    assert_eq!(board.tsc(Position::from_count(12_345)), 12_345);
    assert!(!board.msr_write(START, 0x1234, 0));
    assert_eq!(board.msr_read(START, 0x802), None);
}

#[test]
fn guests_end_runs_through_the_documented_ports() {
    for (port, size, value, ending) in [
        (0x604, 2, 5 << 10 | 1 << 13, Ending::PowerOff),
        (0xcf9, 1, 6, Ending::Reset),
        (0x64, 1, 0xfe, Ending::Reset),
        (0x92, 1, 1, Ending::Reset),
        (0x505, 1, 1, Ending::Panic),
        (0xf4, 4, 0x21, Ending::DebugExit(0x21)),
    ] {
        let (mut board, _) = board(1);
        board.io_write(START, port, size, value);
        assert_eq!(board.horizon(), START);
        assert_eq!(board.take_ending(), Some(ending), "port {port:#x}");
        assert_eq!(board.take_ending(), None);
    }
}

#[test]
fn a_restored_board_is_the_board_that_was_saved() {
    let (mut board, _) = board(2);
    route(&mut board, 4, 0x34);
    outb(&mut board, START, 0x3fc, 0x0b);
    outb(&mut board, START, 0x3f9, 0x02);
    mmio32(&mut board, START, 0xfee0_0310, 1 << 24);
    mmio32(&mut board, START, 0xfee0_0300, 0x4500);
    for (port, value) in [(0x43, 0x34), (0x40, 0xe8), (0x40, 0x03)] {
        outb(&mut board, START, port, value);
    }
    board.skip_to(START, GuestTime::from_ns(500));
    let saved = board.save();
    let bytes = postcard::to_stdvec(&saved).unwrap();
    let (mut other, _) = super::tests::board(2);
    other.restore(&postcard::from_bytes(&bytes).unwrap()).unwrap();
    assert_eq!(other.save(), saved);
    assert_eq!(other.next_deadline(), board.next_deadline());
    assert_eq!(other.take_signals(), board.take_signals());
    assert_eq!(other.horizon(), board.horizon());
    assert_eq!(other.acknowledge_interrupt(START), Some(0x34));
    let (mut smaller, _) = super::tests::board(1);
    assert!(smaller.restore(&saved).is_err());
}

#[test]
fn random_accesses_never_panic_and_stay_deterministic() {
    let run = || {
        let (mut board, _) = board(2);
        let mut seed = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let bases = [0xfec0_0000u64, 0xfed0_0000, 0xfee0_0000, 0xe000_0000];
        let mut digest = blake3::Hasher::new();
        let mut at = START;
        for _ in 0..60_000 {
            let (what, r) = (next(), next());
            at = at.after(next() % 2000);
            board.tick(at);
            let size = 1 << (r % 3);
            let port = if what & 64 == 0 { (r >> 8) as u16 } else { (r >> 8) as u16 & 0x3ff };
            let address = GuestPhys(bases[(r >> 3) as usize % 4] + (r >> 8 & 0x7ff & !3));
            match what & 7 {
                0 | 1 => board.io_write(at, port, size, next() as u32),
                2 => {
                    digest.update(&board.io_read(at, port, size).to_le_bytes());
                }
                3 | 4 => board.mmio_write(at, address, &next().to_le_bytes()[..size]),
                5 => {
                    let mut data = [0; 8];
                    board.mmio_read(at, address, &mut data);
                    digest.update(&data);
                }
                6 => {
                    let msr = [0x1b, 0x6e0, 0x800 + (r >> 8 & 0x3f) as u32][(r as usize) % 3];
                    let _ = board.msr_write(at, msr, next() >> (what >> 8 & 63));
                    digest.update(&board.msr_read(at, msr).unwrap_or(1).to_le_bytes());
                }
                _ => {
                    digest.update(&[board.acknowledge_interrupt(at).unwrap_or(0)]);
                }
            }
            board.take_ending();
            board.take_signals();
        }
        digest.update(&postcard::to_stdvec(&board.save()).unwrap());
        digest.finalize()
    };
    assert_eq!(run(), run());
}
