use super::*;
use crate::system::Control;
use x86::{msr, vector};

#[test]
fn popf_changes_if_only_with_io_privilege_and_iopl_only_at_cpl_0() {
    let image = flags::IF | flags::IOPL | flags::CF | flags::AC | flags::ID | flags::RF | flags::VM;
    for (cpl, iopl, expect_if, expect_iopl) in
        [(0, 0, true, 3), (3, 0, false, 0), (3, 3, true, 3), (3, 2, false, 2)]
    {
        let mut m = if cpl == 0 { Machine::kernel() } else { Machine::user() };
        m.state.rflags = flags::FIXED | iopl << 12;
        m.poke64(STACK, image);
        m.exec(&[0x9d]).unwrap();
        let out = m.state.rflags;
        assert_eq!(out & flags::IF != 0, expect_if, "CPL {cpl}, IOPL {iopl}");
        assert_eq!(out >> 12 & 3, expect_iopl, "CPL {cpl}, IOPL {iopl}");
        assert_eq!(out & (flags::CF | flags::AC | flags::ID), flags::CF | flags::AC | flags::ID);
        assert_eq!(out & (flags::RF | flags::VM), 0);
        assert_eq!(m.state.gpr[gpr::RSP], STACK + 8);
    }
}

#[test]
fn a_sixteen_bit_popf_leaves_the_upper_flags_alone() {
    let mut m = Machine::kernel();
    m.state.rflags = flags::FIXED | flags::AC;
    m.poke64(STACK, flags::ID | flags::ZF);
    m.exec(&[0x66, 0x9d]).unwrap();
    assert_eq!(m.state.rflags, flags::FIXED | flags::AC | flags::ZF);
    assert_eq!(m.state.gpr[gpr::RSP], STACK + 2);
}

#[test]
fn sti_holds_interrupts_back_for_one_instruction_unless_they_were_enabled() {
    let mut m = Machine::kernel();
    m.state.retired = 100;
    m.exec(&[0xfb]).unwrap();
    m.state.retired += 1;
    assert!(m.state.in_interrupt_shadow());
    m.exec(&[0xfb]).unwrap();
    m.state.retired += 1;
    assert!(!m.state.in_interrupt_shadow());
    let mut user = Machine::user();
    assert_eq!(user.exec(&[0xfa]), Err(Exception::gp(0)));
}

#[test]
fn a_load_of_ss_holds_interrupts_back_and_checks_its_privilege() {
    let mut m = Machine::kernel();
    m.state.gpr[gpr::RAX] = KERNEL_SS as u64;
    m.exec(&[0x8e, 0xd0]).unwrap();
    m.state.retired += 1;
    assert!(m.state.in_interrupt_shadow());
    m.state.gpr[gpr::RAX] = USER_SS as u64;
    assert_eq!(m.exec(&[0x8e, 0xd0]), Err(Exception::gp(0x20)));
    let mut user = Machine::user();
    user.state.gpr[gpr::RAX] = 3;
    assert_eq!(user.exec(&[0x8e, 0xd0]), Err(Exception::gp(0)), "a null SS needs CPL 0 to 2");
}

#[test]
fn a_load_of_ds_sets_the_accessed_bit_of_its_descriptor_once() {
    let mut m = Machine::kernel();
    m.poke64(GDT + 0x20, 0x00cf_f200_0000_ffff);
    m.state.gpr[gpr::RAX] = USER_SS as u64;
    m.exec(&[0x8e, 0xd8]).unwrap();
    assert_eq!(m.peek64(GDT + 0x20), 0x00cf_f300_0000_ffff);
    assert_eq!(m.state.seg[SegmentIndex::Ds as usize].attributes, 0xc0f3);
    m.state.gpr[gpr::RAX] = 0;
    m.exec(&[0x8e, 0xd8]).unwrap();
    assert_eq!(m.state.seg[SegmentIndex::Ds as usize], Segment::default());
}

#[test]
fn ports_need_io_privilege_or_a_clear_bit_in_the_task_state() {
    let mut m = Machine::user();
    assert_eq!(m.exec(&[0xe4, 0x60]), Err(Exception::gp(0)), "the map lies past the limit");
    m.state.tr.limit = 0x68 + 0x20;
    m.poke(TSS + 0x68, &[0xff; 0x20]);
    assert_eq!(m.exec(&[0xe4, 0x60]), Err(Exception::gp(0)));
    m.poke(TSS + 0x68 + 12, &[0xfe]);
    m.exec(&[0xe4, 0x60]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 0x44);
    assert_eq!(m.exec(&[0xe5, 0x60]), Err(Exception::gp(0)), "four ports, of which three are closed");
    m.state.rflags |= flags::IOPL;
    m.state.gpr[gpr::RAX] = u64::MAX;
    m.exec(&[0xe5, 0x60]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 0x1122_3344, "a 32-bit result clears the upper half");
}

#[test]
fn cr0_refuses_paging_without_protection_and_leaving_paging_in_64_bit_code() {
    let mut m = Machine::kernel();
    let cr0_now = m.state.cr0;
    for bad in [cr0_now & !cr0::PE, cr0_now & !cr0::PG, cr0_now | cr0::NW, cr0_now | 1 << 32] {
        m.state.gpr[gpr::RAX] = bad;
        assert_eq!(m.exec(&[0x0f, 0x22, 0xc0]), Err(Exception::gp(0)), "{bad:#x}");
    }
    m.state.gpr[gpr::RAX] = cr0_now | cr0::TS;
    m.exec(&[0x0f, 0x22, 0xc0]).unwrap();
    assert_eq!((m.state.cr0, m.state.rip), (cr0_now | cr0::TS, CODE + 3));
    m.exec(&[0x0f, 0x06]).unwrap(); // clts
    assert_eq!(m.state.cr0, cr0_now);
    assert!(m.flush.is_empty());
}

#[test]
fn switching_paging_on_activates_long_mode() {
    let mut m = Machine::kernel();
    m.state.efer = efer::LME | efer::NXE;
    m.state.seg[SegmentIndex::Cs as usize] = segment(KERNEL_CS, 0xc09b);
    m.state.cr0 &= !cr0::PG;
    m.state.gpr[gpr::RAX] = m.state.cr0 | cr0::PG;
    m.exec(&[0x0f, 0x22, 0xc0]).unwrap();
    assert!(m.state.long_mode() && !m.state.code64());
    assert!(m.flush.everything && m.flush.mode);
}

#[test]
fn toggling_global_pages_flushes_translations_but_changes_no_mode() {
    let mut m = Machine::kernel();
    m.state.gpr[gpr::RAX] = m.state.cr4 ^ cr4::PGE;
    m.exec(&[0x0f, 0x22, 0xe0]).unwrap();
    assert!(m.flush.everything && !m.flush.mode);
    m.flush.clear();
    m.state.gpr[gpr::RAX] = m.state.cr4 ^ cr4::SMEP;
    m.exec(&[0x0f, 0x22, 0xe0]).unwrap();
    assert!(m.flush.everything && m.flush.mode);
}

#[test]
fn cr4_refuses_what_the_model_lacks_and_pcids_with_a_nonzero_one_loaded() {
    let mut m = Machine::kernel();
    for bad in [m.state.cr4 | cr4::VME, m.state.cr4 & !cr4::PAE, m.state.cr4 | 1 << 22] {
        m.state.gpr[gpr::RAX] = bad;
        assert_eq!(m.exec(&[0x0f, 0x22, 0xe0]), Err(Exception::gp(0)), "{bad:#x}");
    }
    m.state.cr3 |= 1;
    m.state.gpr[gpr::RAX] = m.state.cr4 | cr4::PCIDE;
    assert_eq!(m.exec(&[0x0f, 0x22, 0xe0]), Err(Exception::gp(0)));
    m.state.cr3 &= !0xfff;
    m.exec(&[0x0f, 0x22, 0xe0]).unwrap();
    m.flush.clear();
    m.state.gpr[gpr::RAX] = PML4 | 7 | 1 << 63;
    m.exec(&[0x0f, 0x22, 0xd8]).unwrap();
    assert_eq!(
        (m.state.cr3, m.flush.non_global),
        (PML4 | 7, true),
        "another address space's are left behind"
    );
    m.flush.clear();
    m.exec(&[0x0f, 0x22, 0xd8]).unwrap();
    assert!(m.flush.is_empty(), "bit 63 keeps translations");
    m.state.gpr[gpr::RAX] = 1 << 45;
    assert_eq!(m.exec(&[0x0f, 0x22, 0xd8]), Err(Exception::gp(0)));
}

#[test]
fn user_code_reaches_no_privileged_instruction() {
    let privileged: [&[u8]; 12] = [
        &[0xf4],             // hlt
        &[0x0f, 0x20, 0xc0], // mov rax, cr0
        &[0x0f, 0x22, 0xc0], // mov cr0, rax
        &[0x0f, 0x21, 0xc0], // mov rax, dr0
        &[0x0f, 0x30],       // wrmsr
        &[0x0f, 0x32],       // rdmsr
        &[0x0f, 0x06],       // clts
        &[0x0f, 0x01, 0xf8], // swapgs
        &[0x0f, 0x08],       // invd
        &[0x0f, 0x01, 0x10], // lgdt
        &[0x0f, 0x00, 0xd8], // ltr
        &[0x48, 0x0f, 0x35], // sysexit
    ];
    for code in privileged {
        let mut m = Machine::user();
        m.state.msr.sysenter_cs = 8;
        assert_eq!(m.exec(code), Err(Exception::gp(0)), "{code:02x?}");
    }
}

#[test]
fn instructions_outside_the_model_are_undefined() {
    let absent: [&[u8]; 8] = [
        &[0x0f, 0xc7, 0xf0],       // rdrand
        &[0x0f, 0xc7, 0xf8],       // rdseed
        &[0xc7, 0xf8, 0, 0, 0, 0], // xbegin
        &[0x0f, 0x01, 0xc1],       // vmcall
        &[0x0f, 0x01, 0xc8],       // monitor
        &[0x0f, 0x0b],             // ud2
        &[0x0f, 0xaa],             // rsm
        &[0xf0, 0x0f, 0x01, 0xf8], // lock swapgs
    ];
    for code in absent {
        assert_eq!(Machine::kernel().exec(code), Err(Exception::ud()), "{code:02x?}");
    }
}

#[test]
fn umip_keeps_table_addresses_from_user_code() {
    let mut m = Machine::user();
    m.state.gpr[gpr::RAX] = 0x8_0000;
    m.exec(&[0x0f, 0x01, 0x00]).unwrap(); // sgdt [rax]
    assert_eq!(m.bytes(0x8_0000, 10), [0x67, 0, 0, 0x50, 0, 0, 0, 0, 0, 0]);
    m.state.cr4 |= cr4::UMIP;
    assert_eq!(m.exec(&[0x0f, 0x01, 0x00]), Err(Exception::gp(0)));
}

#[test]
fn ltr_marks_the_task_busy_and_refuses_it_the_second_time() {
    let mut m = Machine::kernel();
    m.state.tr = Segment::default();
    m.state.gpr[gpr::RAX] = TSS_SELECTOR as u64;
    m.exec(&[0x0f, 0x00, 0xd8]).unwrap();
    assert_eq!((m.state.tr.base, m.state.tr.attributes), (TSS, 0x8b));
    assert_eq!(m.peek64(GDT + 0x30), 0x0000_8b00_7000_0067);
    assert_eq!(m.exec(&[0x0f, 0x00, 0xd8]), Err(Exception::gp(0x30)));
}

#[test]
fn lar_lsl_and_verw_answer_by_privilege() {
    let mut m = Machine::user();
    m.state.gpr[gpr::RAX] = USER_SS as u64;
    m.exec(&[0x0f, 0x02, 0xd8]).unwrap(); // lar ebx, eax
    assert_eq!((m.state.gpr[gpr::RBX], m.state.rflags & flags::ZF), (0x00cf_f300, flags::ZF));
    m.exec(&[0x0f, 0x03, 0xd8]).unwrap(); // lsl ebx, eax
    assert_eq!(m.state.gpr[gpr::RBX], 0xffff_ffff);
    m.exec(&[0x0f, 0x00, 0xe8]).unwrap(); // verw ax
    assert_ne!(m.state.rflags & flags::ZF, 0);
    m.state.gpr[gpr::RAX] = KERNEL_SS as u64;
    m.exec(&[0x0f, 0x03, 0xd8]).unwrap();
    assert_eq!(m.state.rflags & flags::ZF, 0, "not visible from CPL 3");
}

#[test]
fn a_debug_register_access_under_general_detect_traps_before_it_happens() {
    let mut m = Machine::kernel();
    m.state.dr[7] |= x86::control::dr::GD;
    assert_eq!(m.exec(&[0x0f, 0x23, 0xc0]), Err(Exception::plain(vector::DB)));
    assert_ne!(m.state.dr[6] & x86::control::dr::BD, 0);
}

#[test]
fn model_specific_registers_read_back_and_refuse_reserved_values() {
    let mut m = Machine::kernel();
    let write = |m: &mut Machine, index: u32, value: u64| {
        m.state.gpr[gpr::RCX] = index as u64;
        m.state.gpr[gpr::RAX] = value & 0xffff_ffff;
        m.state.gpr[gpr::RDX] = value >> 32;
        m.exec(&[0x0f, 0x30]).map(|_| ())
    };
    assert_eq!(write(&mut m, msr::LSTAR, 0xffff_8000_0000_1000), Ok(()));
    assert_eq!(write(&mut m, msr::LSTAR, 1 << 47), Err(Exception::gp(0)));
    assert_eq!(write(&mut m, msr::EFER, 1 << 12), Err(Exception::gp(0)), "SVME");
    assert_eq!(write(&mut m, msr::EFER, efer::SCE | efer::NXE), Err(Exception::gp(0)), "LME under paging");
    assert_eq!(write(&mut m, msr::PAT, 0x0007_0406_0007_0402), Err(Exception::gp(0)), "type 2");
    assert_eq!(write(&mut m, msr::APIC_BASE, 0), Err(Exception::gp(0)), "as the bus answers");
    assert_eq!(write(&mut m, 0x1234, 0), Err(Exception::gp(0)));
    m.state.retired = 50;
    assert_eq!(write(&mut m, msr::TSC, 1000), Ok(()));
    m.exec(&[0x0f, 0x31]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 1000);
    m.state.retired += 3;
    m.exec(&[0x0f, 0x31]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 1006);
}

#[test]
fn hlt_halts_with_the_next_instruction_to_come() {
    let mut m = Machine::kernel();
    assert_eq!(m.exec(&[0xf4]).unwrap().control, Control::Halted);
    assert_eq!((m.state.activity, m.state.rip), (crate::Activity::Halted, CODE + 1));
}

#[test]
fn swapgs_and_wrgsbase_move_the_base_alone() {
    let mut m = Machine::kernel();
    m.state.msr.kernel_gs_base = 0xffff_8000_0000_0000;
    m.state.gpr[gpr::RAX] = 0x1234;
    m.exec(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]).unwrap(); // wrgsbase rax
    m.exec(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!(m.state.seg[SegmentIndex::Gs as usize].base, 0xffff_8000_0000_0000);
    assert_eq!(m.state.msr.kernel_gs_base, 0x1234);
    m.state.gpr[gpr::RAX] = 1 << 47;
    assert_eq!(m.exec(&[0xf3, 0x48, 0x0f, 0xae, 0xd8]), Err(Exception::gp(0)));
}

#[test]
fn decimal_adjustment_follows_the_manuals_examples() {
    let mut m = Machine::user32();
    // DAA: 79H + 35H = AEH adjusts to 14H with carry.
    m.state.gpr[gpr::RAX] = 0xae;
    m.exec(&[0x27]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 0x14);
    assert_eq!(m.state.rflags & (flags::CF | flags::AF), flags::CF | flags::AF);
    // DAS: 35H - 47H = EEH with carries adjusts to 88H.
    m.state.gpr[gpr::RAX] = 0xee;
    m.state.rflags |= flags::CF | flags::AF;
    m.exec(&[0x2f]).unwrap();
    assert_eq!(m.state.gpr[gpr::RAX], 0x88);
    m.state.gpr[gpr::RAX] = 0x0f;
    m.state.rflags &= !flags::AF;
    m.exec(&[0x37]).unwrap(); // aaa
    assert_eq!(m.state.gpr[gpr::RAX], 0x105);
    assert_eq!(m.exec(&[0xd4, 0x00]), Err(Exception::plain(vector::DE)), "aam 0");
}

#[test]
fn pusha_stores_the_stack_pointer_as_it_was_and_popa_skips_it() {
    let mut m = Machine::user32();
    for i in 0..8 {
        m.state.gpr[i] = 0x100 + i as u64;
    }
    m.state.gpr[gpr::RSP] = STACK;
    m.exec(&[0x60]).unwrap();
    assert_eq!(m.state.gpr[gpr::RSP], STACK - 32);
    assert_eq!(m.bytes(STACK - 20, 4), (STACK as u32).to_le_bytes());
    m.state.gpr[gpr::RBX] = 0;
    m.exec(&[0x61]).unwrap();
    assert_eq!((m.state.gpr[gpr::RSP], m.state.gpr[gpr::RBX]), (STACK, 0x103));
}

#[test]
fn a_segment_limit_outside_64_bit_mode_is_kept() {
    let mut m = Machine::user32();
    m.state.seg[SegmentIndex::Ds as usize].limit = 0xfff;
    m.state.gpr[gpr::RBX] = 0xffd;
    // bound eax, [ebx] reads eight bytes from 0xffd.
    assert_eq!(m.exec(&[0x62, 0x03]), Err(Exception::gp(0)));
    m.state.seg[SegmentIndex::Ds as usize] = Segment::default();
    m.state.gpr[gpr::RBX] = 0;
    assert_eq!(m.exec(&[0x62, 0x03]), Err(Exception::gp(0)), "a null segment");
}

#[test]
fn enter_builds_nested_frames_and_leave_undoes_them() {
    let mut m = Machine::user();
    m.state.gpr[gpr::RBP] = STACK + 0x100;
    m.poke64(STACK + 0x100 - 8, 0xaaaa);
    m.exec(&[0xc8, 0x20, 0x00, 0x02]).unwrap(); // enter 32, 2
    assert_eq!(m.state.gpr[gpr::RBP], STACK - 8);
    assert_eq!(m.state.gpr[gpr::RSP], STACK - 24 - 32);
    assert_eq!(
        [m.peek64(STACK - 8), m.peek64(STACK - 16), m.peek64(STACK - 24)],
        [STACK + 0x100, 0xaaaa, STACK - 8]
    );
    m.exec(&[0xc9]).unwrap();
    assert_eq!((m.state.gpr[gpr::RSP], m.state.gpr[gpr::RBP]), (STACK, STACK + 0x100));
}

/// WRMSR of `value` to `index`.
fn write_msr(m: &mut Machine, index: u32, value: u64) {
    m.state.gpr[gpr::RCX] = index.into();
    m.state.gpr[gpr::RAX] = value & 0xffff_ffff;
    m.state.gpr[gpr::RDX] = value >> 32;
    m.exec(&[0x0f, 0x30]).unwrap();
}

fn read_msr(m: &mut Machine, index: u32) -> u64 {
    m.state.gpr[gpr::RCX] = index.into();
    m.exec(&[0x0f, 0x32]).unwrap();
    m.state.gpr[gpr::RDX] << 32 | m.state.gpr[gpr::RAX]
}

#[test]
fn the_tsc_deadline_counts_with_the_adjusted_counter() {
    let mut m = Machine::kernel();
    m.state.retired = 500; // the machine's counter stands at 1000
    write_msr(&mut m, x86::msr::TSC_ADJUST, 300);
    write_msr(&mut m, x86::msr::TSC_DEADLINE, 2300);
    assert_eq!(m.bus.deadline, 2000, "2300 by the guest's counter, which is 300 ahead");
    assert_eq!(read_msr(&mut m, x86::msr::TSC_DEADLINE), 2300);
    write_msr(&mut m, x86::msr::TSC_ADJUST, 100);
    assert_eq!(m.bus.deadline, 2200, "the counter was put back, so it comes later");
    write_msr(&mut m, x86::msr::TSC, 5000);
    assert_eq!(m.bus.deadline, 1, "the counter is past it now");
    write_msr(&mut m, x86::msr::TSC_DEADLINE, 0);
    assert_eq!((m.bus.deadline, read_msr(&mut m, x86::msr::TSC_DEADLINE)), (0, 0));
    write_msr(&mut m, x86::msr::TSC_ADJUST, 7);
    assert_eq!(m.bus.deadline, 0, "disarmed it stays");
}
