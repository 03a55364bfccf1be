//! Programs on which the engine once differed from the host, made small. They run at every pace.

use oracle::{
    Access, Case, EngineExecutor, Executor, Frame, HostExecutor, Item, Mode, PAGE, Pace, Page, Registers,
    compare, flag,
};

const RIGHT: u64 = Frame::Right.address();

/// Runs `code` from the state that `prepare` makes, on the host and at every pace of the engine.
fn same(mode: Mode, code: &[u8], prepare: impl Fn(&mut Case)) {
    let mut case = Case::from_code(mode, code).expect("a short program");
    prepare(&mut case);
    agree(&case);
}

fn agree(case: &Case) {
    let mut host = HostExecutor::new().expect("this host can run cases");
    if case.mode == Mode::Compatibility && !host.runs_compatibility_mode() {
        eprintln!("skipped: this kernel does not run 32-bit code");
        return;
    }
    let expected = host.run(case);
    for pace in Pace::ALL {
        let got = EngineExecutor::new(pace).expect("this host can run the model").run(case);
        if let Some(mismatch) = compare(case, &expected, &got) {
            panic!("at pace {pace:?}: {case}{mismatch}");
        }
    }
}

fn long(code: &[u8], prepare: impl Fn(&mut Case)) {
    same(Mode::Long, code, prepare);
}

/// x87 with a pending unmasked exception, TOP 5 and distinct registers.
fn pending(case: &mut Case) {
    let x87 = &mut case.registers.x87;
    x87[..2].copy_from_slice(&0x037e_u16.to_le_bytes());
    x87[2..4].copy_from_slice(&0xa881_u16.to_le_bytes());
    x87[4] = 0xff;
    for register in 0..8 {
        x87[32 + 16 * register] = register as u8 + 1;
    }
}

#[test]
fn pause_with_rex_b_is_an_exchange() {
    for code in [&[0xf3, 0x41, 0x90][..], &[0xf3, 0x49, 0x90], &[0x66, 0xf3, 0x41, 0x90], &[0xf3, 0x48, 0x90]]
    {
        long(code, |case| (case.registers.gpr[0], case.registers.gpr[8]) = (1 << 40 | 5, 1 << 41 | 7));
    }
}

#[test]
fn leave_with_16_bits_pops_16_bits() {
    long(&[0x66, 0xc9], |case| case.registers.gpr[5] = RIGHT + 16);
}

#[test]
fn the_x87_environment_moves_the_top_of_the_stack_not_the_registers() {
    long(&[0xd9, 0x23, 0x90], |case| {
        case.registers.gpr[3] = RIGHT; // fldenv [rbx]
        case.registers.x87[3] = 0x28;
        for register in 0..8 {
            case.registers.x87[32 + 16 * register] = register as u8 + 1;
        }
        let page = case.page_mut(Frame::Right).unwrap();
        page.bytes[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        page.bytes[5] = 0x10; // TOP 2
    });
}

#[test]
fn a_pending_x87_exception_comes_before_a_page_fault() {
    let unmapped = |case: &mut Case| {
        pending(case);
        case.registers.gpr[3] = 0x10_0000;
    };
    long(&[0xdc, 0x23], unmapped); // fsub qword [rbx]
    long(&[0xd9, 0x23], unmapped); // fldenv [rbx]
    long(&[0x0f, 0x6f, 0x03], unmapped); // movq mm0, [rbx]
    long(&[0xd9, 0x3b], unmapped); // fnstcw [rbx] does not wait
    for code in [[0xdb, 0xe0], [0xdb, 0xe1], [0xdb, 0xe4]] {
        long(&code, pending); // fneni, fndisi, fnsetpm
    }
}

#[test]
fn wait_after_a_restored_state_sees_its_pending_exception() {
    long(&[0x0f, 0xae, 0x0b, 0x9b], |case| {
        case.registers.gpr[3] = RIGHT; // fxrstor [rbx]; fwait
        let page = case.page_mut(Frame::Right).unwrap();
        page.bytes[..4].copy_from_slice(&[0x7e, 0x03, 0x81, 0x80]);
    });
}

#[test]
fn a_restored_control_word_has_no_reserved_bits() {
    long(&[0x0f, 0xae, 0x0b], |case| case.registers.gpr[3] = RIGHT); // fxrstor [rbx], all zero
}

#[test]
fn misaligned_vector_operands_fault_before_their_page_does() {
    for address in [0x10_0008, 1 << 63 | 8] {
        long(&[0x66, 0x0f, 0xfe, 0x03], |case| case.registers.gpr[3] = address); // paddd xmm0, [rbx]
        long(&[0x66, 0x0f, 0xfe, 0x45, 0], |case| case.registers.gpr[5] = address); // …, [rbp]
        long(&[0x66, 0x0f, 0x2d, 0x03], |case| case.registers.gpr[3] = address); // cvtpd2pi mm0, [rbx]
    }
}

#[test]
fn an_x87_store_with_an_unmasked_exception_stores_nothing() {
    long(&[0xd9, 0xe8, 0xdd, 0x0b], |case| {
        case.registers.gpr[3] = RIGHT - 3; // fld1; fisttp qword [rbx], on an invalid ST0
        case.registers.x87[..2].copy_from_slice(&0x037e_u16.to_le_bytes());
        case.registers.x87[4] = 0xff;
        for frame in [Frame::Left, Frame::Right] {
            case.page_mut(frame).unwrap().bytes.fill(0x5a);
        }
    });
}

#[test]
fn int3_after_setting_tf_is_not_followed_by_a_single_step_trap() {
    long(&[0x68, 0x02, 0x03, 0, 0, 0x9d, 0xcc], |_| {}); // push 0x302; popfq; int3
}

#[test]
fn bit_strings_count_within_the_address_width() {
    long(&[0x67, 0x48, 0x0f, 0xbb, 0x03], |case| {
        case.registers.gpr[3] = Frame::LowRight.address() - 0x40; // btc [ebx], rax
        case.registers.gpr[0] = 1 << 40;
    });
}

#[test]
fn ignored_segment_prefixes_do_not_choose_the_fault() {
    long(&[0x36, 0x8a, 0x03], |case| case.registers.gpr[3] = 1 << 63); // mov al, ss:[rbx]
    long(&[0x3e, 0x8a, 0x45, 0], |case| case.registers.gpr[5] = 1 << 63); // mov al, ds:[rbp]
}

#[test]
fn an_indirect_call_to_nowhere_pushes_nothing() {
    long(&[0xff, 0xd0], |case| case.registers.gpr[0] = 1 << 63);
    long(&[0xff, 0x54, 0x24, 0xf8], |case| {
        case.page_mut(Frame::Right).unwrap().bytes[0x7f8..0x800].fill(0x44); // call [rsp - 8]
    });
}

#[test]
fn operands_that_share_a_tlb_slot_both_arrive() {
    same(Mode::Long, &[0xff, 0x33], |case| case.registers.gpr[3] = RIGHT + 8); // push [rbx]
}

#[test]
fn code_segments_are_not_written_and_short_addresses_are_short() {
    same(Mode::Compatibility, &[0x2e, 0x89, 0x03], |case| {
        case.registers.gpr[3] = Frame::LowRight.address(); // mov cs:[ebx], eax
    });
    same(Mode::Compatibility, &[0x67, 0x32, 0x37], |case| {
        case.registers.gpr[3] = Frame::LowRight.address() + 0x10; // xor dh, [bx]
    });
    same(Mode::Compatibility, &[0xc4, 0xe2, 0x7d, 0x2f, 0x31], |case| {
        (case.registers.gpr[1], case.registers.rflags) = (-8_i32 as u32 as u64, flag::FIXED);
        case.registers.ymm[0][24..].fill(0xff); // vmaskmovpd [ecx], ymm0, ymm6
    });
}

#[test]
fn movsxd_to_16_bits_across_pages_agrees_with_the_host() {
    long(&[0x66, 0x63, 0x03], |case| case.registers.gpr[3] = RIGHT + 0xffd); // movsxd ax, [rbx]
}

#[test]
fn an_indirect_branch_on_two_pages_to_nowhere_has_not_begun() {
    let page = |frame, access| Page { frame, access, bytes: Box::new([0; PAGE]) };
    let mut right = page(Frame::Right, Access::ReadWrite);
    right.bytes[..9].fill(0x44);
    let pages = vec![page(Frame::Code, Access::All), page(Frame::CodeNext, Access::All), right];
    let mut registers = Registers::default();
    (registers.gpr[3], registers.gpr[4]) = (RIGHT, RIGHT + 0x800);
    let items = vec![Item::plain([0x48, 0xff, 0x93, 1, 0, 0, 0])]; // call [rbx + 1]
    let start = Frame::CodeNext.address() - 3;
    agree(&Case::new(0, Mode::Long, start, items, registers, pages).expect("a short program"));
}

#[test]
fn a_call_whose_stack_cannot_be_written_faults_there_first() {
    long(&[0xff, 0xd0], |case| (case.registers.gpr[0], case.registers.gpr[4]) = (1 << 63, 0x17));
}

#[test]
fn masked_moves_wrap_around_short_addresses() {
    long(&[0x67, 0xc4, 0xe2, 0x7d, 0x2f, 0x31], |case| {
        case.registers.gpr[1] = 0xffff_fff8; // vmaskmovpd [ecx], ymm0, ymm6
        case.registers.ymm[0][24..].fill(0xff);
    });
}
