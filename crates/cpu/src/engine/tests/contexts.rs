//! Several processors on one engine.

use super::*;
use crate::Activity;
use x86::flags;

/// The program of every processor: sums to a place of its own, in general, vector and x87
/// registers, with stores, calls and a page of its own.
fn program(a: &mut CodeAssembler) {
    let (mut top, mut add) = (a.create_label(), a.create_label());
    a.fninit().unwrap();
    a.fldz().unwrap();
    a.set_label(&mut top).unwrap();
    a.inc(rax).unwrap();
    a.call(add).unwrap();
    a.paddq(xmm1, xmm0).unwrap();
    a.fld1().unwrap();
    a.faddp(st1, st0).unwrap();
    a.jmp(top).unwrap();
    a.set_label(&mut add).unwrap();
    a.add(qword_ptr(rdi), rax).unwrap();
    a.pushfq().unwrap();
    a.popfq().unwrap();
    a.adc(rbx, 3).unwrap();
    a.ret().unwrap();
}

fn begin(state: &mut CpuState, cpu: u64) {
    let apic_id = state.apic_id;
    set_up(state);
    assert_eq!(u64::from(apic_id), cpu);
    state.activity = Activity::Running;
    state.gpr[gpr::RAX] = cpu * 1000;
    state.gpr[gpr::RDI] = DATA + cpu * 0x1000;
    state.gpr[gpr::RSP] = STACK + cpu * 0x1000;
    state.fpu.ymm[0][0] = 1 + cpu as u8;
}

fn several(processors: u32) -> Guest {
    let mut guest = Guest::program(program);
    let model = CpuModel { processors, ..CpuModel::plain(Level::V3) };
    guest.cpu =
        Vcpu::new(VcpuConfig { model, code_cache_bytes: 4 << 20, chaos: None, mirror_after: Some(0) })
            .unwrap();
    (0..processors).for_each(|cpu| begin(guest.cpu.context_mut(cpu), cpu.into()));
    guest
}

/// What a processor did, without the count, which is everyone's.
fn done(state: &CpuState) -> Vec<u8> {
    let state = CpuState { retired: 0, shadow_at: u64::MAX, ..state.clone() };
    format!("{:?}", state.save()).into_bytes()
}

#[test]
fn processors_that_take_turns_do_what_each_does_alone() {
    let mut together = several(3);
    let mut counts = [0; 3];
    let (mut here, mut dice) = (0, 12345u64);
    for _ in 0..3000 {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (cpu, count) = ((dice >> 33) % 3, 1 + (dice >> 40) % 90);
        together.cpu.select(cpu as u32);
        here += count;
        counts[cpu as usize] += count;
        assert_eq!(together.run_to(here), Exit::Limit);
    }
    for cpu in 0..3 {
        let mut alone = several(3);
        alone.cpu.select(cpu);
        assert_eq!(alone.run_to(counts[cpu as usize]), Exit::Limit);
        assert_eq!(done(alone.cpu.context(cpu)), done(together.cpu.context(cpu)), "processor {cpu}");
        let read = |guest: &mut Guest| {
            let mut bytes = [0; 8];
            assert!(guest.board.ram.read(GuestPhys(DATA + u64::from(cpu) * 0x1000), &mut bytes));
            u64::from_le_bytes(bytes)
        };
        assert_eq!(read(&mut alone), read(&mut together));
    }
}

#[test]
fn processors_may_have_tables_of_their_own() {
    let mut guest = several(2);
    // Processor 1 sees another page behind the same address.
    let tables = 0x9_0000;
    let present = 3 | 1 << 5;
    for (level, next) in [(0, 0x1000), (0x1000, 0x2000), (0x2000, 0x3000)] {
        assert!(guest.board.ram.write_u64(GuestPhys(tables + level), tables + next + present));
    }
    for page in 0..512u64 {
        let frame = if page == DATA >> 12 { page + 16 } else { page };
        assert!(guest.board.ram.write_u64(GuestPhys(tables + 0x3000 + 8 * page), (frame << 12) + present));
    }
    guest.cpu.context_mut(1).cr3 = tables;
    guest.cpu.context_mut(1).gpr[gpr::RDI] = DATA;
    guest.cpu.context_mut(1).gpr[gpr::RAX] = 0;
    for turn in 1..=200 {
        guest.cpu.select(turn % 2);
        assert_eq!(guest.run_to(u64::from(turn) * 50), Exit::Limit);
    }
    let page = |at: u64| {
        let mut bytes = [0; 8];
        assert!(guest.board.ram.read(GuestPhys(at), &mut bytes));
        u64::from_le_bytes(bytes)
    };
    let (first, second) = (page(DATA), page(DATA + 0x1_0000));
    assert!(first > 0 && first == second, "{first} {second}");
}

#[test]
fn an_interrupt_shadow_lasts_until_its_processor_runs_again() {
    let mut guest = several(2);
    let state = guest.cpu.context_mut(0);
    state.shadow_at = state.retired;
    guest.cpu.select(1);
    assert!(!guest.cpu.state().in_interrupt_shadow());
    assert_eq!(guest.run_to(100), Exit::Limit);
    guest.cpu.select(0);
    assert!(guest.cpu.state().in_interrupt_shadow());
    assert_eq!(guest.cpu.position().count(), 100);
    assert_eq!(guest.run_to(101), Exit::Limit);
    guest.cpu.select(1);
    guest.cpu.select(0);
    assert!(!guest.cpu.state().in_interrupt_shadow());
}

#[test]
fn application_processors_wait_for_their_start_up_message() {
    let mut guest = several(1);
    let model = CpuModel { processors: 3, ..CpuModel::plain(Level::V3) };
    guest.cpu =
        Vcpu::new(VcpuConfig { model, code_cache_bytes: 4 << 20, chaos: None, mirror_after: Some(0) })
            .unwrap();
    guest.cpu.select(2);
    assert_eq!(guest.run(), Exit::Halted);
    guest.cpu.context_mut(2).start_up(0x10);
    assert_eq!((guest.cpu.state().seg[1].base, guest.cpu.state().rip), (0x1_0000, 0));
    assert_eq!(guest.cpu.state().rflags & flags::IF, 0);
}

#[test]
fn no_processor_and_too_many_are_refused() {
    for processors in [0, PROCESSORS_MAX + 1, u32::MAX] {
        let model = CpuModel { processors, ..CpuModel::plain(Level::V3) };
        assert!(
            Vcpu::new(VcpuConfig { model, code_cache_bytes: 4 << 20, chaos: None, mirror_after: Some(0) })
                .is_err()
        );
    }
}
