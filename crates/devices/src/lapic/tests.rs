//! The local APIC as a guest sees it.

use super::*;
use crate::testing::Bench;

fn enabled(bench: &mut Bench, cpu: u32) -> LocalApic {
    let mut apic = LocalApic::new(cpu);
    bench.write32(&mut apic, 0, 0xf0, 0x1ff);
    apic
}

fn fixed(vector: u8, level: bool) -> ApicMessage {
    ApicMessage { audience: Audience::Physical(0), mode: DeliveryMode::Fixed, vector, level }
}

#[test]
fn after_reset_it_is_software_disabled_and_masked() {
    let (mut bench, mut apic) = (Bench::new(), LocalApic::new(0));
    assert_eq!(apic.base_msr(), 0xfee0_0900);
    assert_eq!(bench.read32(&mut apic, 0, 0x30), 0x0005_0014);
    assert_eq!(bench.read32(&mut apic, 0, 0x320), 0x1_0000);
    bench.write32(&mut apic, 0, 0x320, 0x20);
    assert_eq!(bench.read32(&mut apic, 0, 0x320), 0x1_0020, "masked for as long as it is disabled");
    apic.accept(&mut bench.cx(), fixed(0x40, false));
    assert!(!apic.interrupt_pending());
}

#[test]
fn interrupts_nest_by_class_and_end_in_order() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    apic.accept(&mut bench.cx(), fixed(0x41, false));
    assert_eq!(apic.acknowledge(), 0x41);
    apic.accept(&mut bench.cx(), fixed(0x45, false));
    assert!(!apic.interrupt_pending(), "same class as the one in service");
    apic.accept(&mut bench.cx(), fixed(0x51, true));
    let mut fresh = LocalApic::new(0);
    bench.transplant(&apic, &mut fresh);
    let mut apic = fresh;
    assert!(apic.interrupt_pending());
    assert_eq!(apic.acknowledge(), 0x51);
    assert_eq!(bench.read32(&mut apic, 0, 0xa0), 0x50, "PPR");
    assert_eq!(bench.read32(&mut apic, 0, 0x120), 1 << 1 | 1 << 17, "ISR of vectors 0x40 to 0x5f");
    bench.write32(&mut apic, 0, 0xb0, 0);
    assert_eq!(bench.requests(), vec![Request::EndOfInterrupt { vector: 0x51 }]);
    assert!(!apic.interrupt_pending());
    bench.write32(&mut apic, 0, 0xb0, 0);
    assert!(bench.requests().is_empty(), "an edge needs no broadcast");
    assert_eq!(apic.acknowledge(), 0x45);
    assert_eq!(apic.acknowledge(), 0xff, "nothing left: spurious");
}

#[test]
fn the_task_priority_holds_interrupts_back() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    apic.set_cr8(4);
    assert_eq!(bench.read32(&mut apic, 0, 0x80), 0x40);
    apic.accept(&mut bench.cx(), fixed(0x4f, false));
    assert!(!apic.interrupt_pending());
    bench.write32(&mut apic, 0, 0x80, 0x3f);
    assert!(apic.interrupt_pending());
    assert_eq!(apic.cr8(), 3);
}

#[test]
fn the_one_shot_timer_counts_down_and_fires_once() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    bench.write32(&mut apic, 0, 0x3e0, 0x3); // divide by 16
    bench.write32(&mut apic, 0, 0x320, 0x60);
    bench.write32(&mut apic, 0, 0x380, 1000);
    bench.pass_to(&mut apic, 8_000);
    assert_eq!(bench.read32(&mut apic, 0, 0x390), 500);
    let mut fresh = LocalApic::new(0);
    bench.transplant(&apic, &mut fresh);
    assert_eq!(bench.pass_to(&mut fresh, 15_999), 0);
    assert_eq!(bench.pass_to(&mut fresh, 16_000), 1);
    assert_eq!(fresh.acknowledge(), 0x60);
    assert_eq!(bench.read32(&mut fresh, 0, 0x390), 0);
    assert_eq!(fresh.deadline(), None);
}

#[test]
fn the_periodic_timer_keeps_its_phase_even_while_masked() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    bench.write32(&mut apic, 0, 0x3e0, 0xb); // divide by 1
    bench.write32(&mut apic, 0, 0x320, 0x2_0060);
    bench.write32(&mut apic, 0, 0x380, 1000);
    assert_eq!(bench.pass_to(&mut apic, 10_500), 10);
    assert_eq!(bench.read32(&mut apic, 0, 0x390), 500);
    bench.write32(&mut apic, 0, 0x320, 0x3_0060);
    assert_eq!(bench.pass_to(&mut apic, 20_250), 0);
    assert_eq!(bench.read32(&mut apic, 0, 0x390), 750);
    bench.write32(&mut apic, 0, 0x320, 0x2_0060);
    assert_eq!(apic.deadline(), Some(GuestTime::from_ns(21_000)));
}

#[test]
fn the_tsc_deadline_fires_at_its_tick_and_disarms() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    assert!(apic.write_msr(&mut bench.cx(), 0x6e0, 77), "ignored in other modes");
    bench.write32(&mut apic, 0, 0x320, 0x4_00ec);
    assert_eq!(apic.read_msr(bench.now, 0x6e0), Some(0));
    assert!(apic.write_msr(&mut bench.cx(), 0x6e0, 5_000));
    assert_eq!(apic.read_msr(bench.now, 0x6e0), Some(5_000));
    assert_eq!(bench.pass_to(&mut apic, 4_999), 0);
    assert_eq!(bench.pass_to(&mut apic, 5_000), 1);
    assert_eq!(apic.acknowledge(), 0xec);
    assert_eq!(apic.read_msr(bench.now, 0x6e0), Some(0));
    assert!(apic.write_msr(&mut bench.cx(), 0x6e0, 10));
    assert_eq!(bench.pass_to(&mut apic, 5_001), 1, "a deadline in the past fires at once");
}

#[test]
fn interprocessor_interrupts_name_their_audience() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 2);
    let sent = |bench: &mut Bench, apic: &mut LocalApic, high: u32, low: u32| {
        bench.write32(apic, 0, 0x310, high);
        bench.write32(apic, 0, 0x300, low);
        bench.requests()
    };
    let message =
        |audience, mode, vector| vec![Request::Apic(ApicMessage { audience, mode, vector, level: false })];
    use {Audience::*, DeliveryMode as Mode};
    assert_eq!(sent(&mut bench, &mut apic, 1 << 24, 0x40fd), message(Physical(1), Mode::Fixed, 0xfd));
    assert_eq!(sent(&mut bench, &mut apic, 6 << 24, 0x48fd), message(Logical(6), Mode::Fixed, 0xfd));
    assert_eq!(sent(&mut bench, &mut apic, 0, 0x4_40fd), message(Only(2), Mode::Fixed, 0xfd));
    assert_eq!(sent(&mut bench, &mut apic, 0, 0xc_0400), message(AllBut(2), Mode::Nmi, 0));
    assert_eq!(sent(&mut bench, &mut apic, 1 << 24, 0xc500), message(Physical(1), Mode::Init, 0));
    assert_eq!(sent(&mut bench, &mut apic, 1 << 24, 0x8500), vec![], "INIT de-assert does nothing");
    assert_eq!(sent(&mut bench, &mut apic, 1 << 24, 0x0699), message(Physical(1), Mode::StartUp, 0x99));
    let mut other = LocalApic::new(1);
    other.accept(
        &mut bench.cx(),
        ApicMessage { audience: All, mode: Mode::StartUp, vector: 0x99, level: false },
    );
    let signal = ProcessorSignal::StartUp { vector: 0x99 };
    assert_eq!(bench.requests(), vec![Request::Processor { cpu: 1, signal }]);
}

#[test]
fn logical_destinations_match_in_flat_and_cluster_and_x2apic_form() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 17);
    bench.write32(&mut apic, 0, 0xd0, 0x0400_0000);
    assert!(apic.is_addressed(Audience::Logical(0x06)));
    assert!(!apic.is_addressed(Audience::Logical(0x03)));
    bench.write32(&mut apic, 0, 0xe0, 0x0fff_ffff);
    bench.write32(&mut apic, 0, 0xd0, 0x2400_0000);
    assert!(apic.is_addressed(Audience::Logical(0x24)));
    assert!(!apic.is_addressed(Audience::Logical(0x14)));
    assert!(apic.set_base_msr(apic.base_msr() | 1 << 10));
    assert_eq!(apic.read_msr(bench.now, 0x80d), Some(0x1_0002));
    assert!(apic.is_addressed(Audience::Logical(0x1_0006)));
    assert!(!apic.is_addressed(Audience::Logical(0x6)));
    assert!(apic.is_addressed(Audience::physical8(0xff)));
}

#[test]
fn x2apic_registers_are_msrs_and_reserved_ones_fault() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    assert_eq!(apic.read_msr(bench.now, 0x802), None, "not in xAPIC mode");
    assert!(apic.set_base_msr(apic.base_msr() | 1 << 10));
    assert_eq!(apic.mmio_base(), None);
    assert!(!apic.set_base_msr(apic.base_msr() & !(1 << 10)), "no way back but through disabled");
    assert_eq!(apic.read_msr(bench.now, 0x80e), None, "DFR does not exist");
    assert!(!apic.write_msr(&mut bench.cx(), 0x80b, 1), "EOI takes only zero");
    assert!(!apic.write_msr(&mut bench.cx(), 0x802, 0), "the id is read-only");
    assert!(apic.write_msr(&mut bench.cx(), 0x830, 0xffff_ffff_000c_40f1));
    assert!(matches!(
        bench.requests()[..],
        [Request::Apic(ApicMessage { audience: Audience::AllBut(0), vector: 0xf1, .. })]
    ));
    assert!(apic.write_msr(&mut bench.cx(), 0x83f, 0x55));
    assert!(matches!(
        bench.requests()[..],
        [Request::Apic(ApicMessage { audience: Audience::Only(0), vector: 0x55, .. })]
    ));
    assert!(apic.set_base_msr(0xfee0_0100));
    assert!(apic.set_base_msr(0xfee0_0900));
}

#[test]
fn a_bad_vector_is_reported_through_the_error_register() {
    let mut bench = Bench::new();
    let mut apic = enabled(&mut bench, 0);
    bench.write32(&mut apic, 0, 0x370, 0xfe);
    bench.write32(&mut apic, 0, 0x300, 0x4005);
    assert!(apic.interrupt_pending());
    assert_eq!(apic.acknowledge(), 0xfe);
    bench.write32(&mut apic, 0, 0x280, 0);
    assert_eq!(bench.read32(&mut apic, 0, 0x280), 1 << 5);
    bench.write32(&mut apic, 0, 0x280, 0);
    assert_eq!(bench.read32(&mut apic, 0, 0x280), 0);
}

#[test]
fn virtual_wire_mode_lets_the_8259s_through() {
    let mut bench = Bench::new();
    let mut apic = LocalApic::new(0);
    assert!(!apic.accepts_external());
    apic.set_virtual_wire();
    assert!(apic.accepts_external());
    bench.write32(&mut apic, 0, 0x350, 0x1_0700);
    assert!(!apic.accepts_external());
    assert!(apic.set_base_msr(0xfee0_0100));
    assert!(apic.accepts_external(), "a disabled APIC is not in the way");
}
