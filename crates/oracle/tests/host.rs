//! The host executor on programs whose outcome the manual tells.

use oracle::{Access, Case, Discard, Ending, Executor, Fault, Frame, HostExecutor, Mode, flag, vector};

const LEFT: u64 = Frame::Left.address();
const RIGHT: u64 = Frame::Right.address();
const CONSTANT: u64 = Frame::Constant.address();

fn host() -> HostExecutor {
    HostExecutor::new().expect("this host can run cases")
}

fn long(code: &[u8]) -> Case {
    Case::from_code(Mode::Long, code).expect("a short program")
}

fn fault(vector: u8, error_code: u32, cr2: u64) -> Ending {
    Ending::Fault(Fault { vector, error_code, cr2 })
}

#[test]
fn an_empty_program_changes_nothing() {
    let mut case = long(&[]);
    for (index, register) in case.registers.gpr.iter_mut().enumerate() {
        *register ^= 0x0123_4567_89ab_cdef_u64.rotate_left(index as u32 * 4);
    }
    for (index, ymm) in case.registers.ymm.iter_mut().enumerate() {
        ymm.fill(index as u8 + 1);
        ymm[0] = 0xf0;
    }
    case.registers.mxcsr = 0x7fa5;
    case.registers.x87[..2].copy_from_slice(&0x0c7f_u16.to_le_bytes());
    case.registers.x87[4] = 0b1000_0001;
    case.registers.x87[32..42].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 0x88, 0xff, 0x3f]);
    case.registers.rflags |= flag::CF | flag::OF | flag::DF | flag::SF;
    let outcome = host().run(&case);
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(outcome.registers, case.registers);
    assert_eq!((outcome.rip, outcome.retired), (case.start, 0));
}

#[test]
fn addition_sets_carry_and_overflow() {
    let mut case = long(&[0x48, 0x01, 0xd8, 0xf5]); // add rax, rbx; cmc
    case.registers.gpr[0] = 1 << 63;
    case.registers.gpr[3] = 1 << 63;
    let outcome = host().run(&case);
    assert_eq!(outcome.registers.gpr[0], 0);
    assert_eq!(outcome.registers.rflags & flag::STATUS, flag::OF | flag::ZF | flag::PF);
    assert_eq!((outcome.ending, outcome.retired), (Ending::Completed, 2));
}

#[test]
fn a_store_across_two_pages_lands_in_both() {
    let mut case = long(&[0x48, 0x89, 0x03]); // mov [rbx], rax
    case.registers.gpr[0] = 0x8877_6655_4433_2211;
    case.registers.gpr[3] = RIGHT - 3;
    let outcome = host().run(&case);
    assert_eq!(outcome.memory.len(), 2);
    assert_eq!(outcome.memory[0].0, Frame::Left);
    assert_eq!(outcome.memory[0].1[4093..], [0x11, 0x22, 0x33]);
    assert_eq!(outcome.memory[1].1[..6], [0x44, 0x55, 0x66, 0x77, 0x88, 0]);
}

#[test]
fn a_store_off_the_end_faults_at_the_next_page_and_changes_nothing() {
    let mut case = long(&[0x90, 0x48, 0x89, 0x03, 0x90]); // nop; mov [rbx], rax; nop
    case.registers.gpr[0] = u64::MAX;
    case.registers.gpr[3] = RIGHT + 4096 - 3;
    let outcome = host().run(&case);
    assert_eq!(outcome.ending, fault(vector::PF, 6, RIGHT + 4096));
    assert_eq!((outcome.rip, outcome.retired, outcome.visited), (case.start + 1, 1, 0b11));
    assert!(outcome.memory.iter().all(|(_, bytes)| bytes.iter().all(|&byte| byte == 0)));
}

#[test]
fn a_load_before_the_first_page_faults_as_not_present() {
    let mut case = long(&[0x8a, 0x43, 0xff]); // mov al, [rbx - 1]
    case.registers.gpr[3] = LEFT;
    assert_eq!(host().run(&case).ending, fault(vector::PF, 4, LEFT - 1));
}

#[test]
fn a_store_to_the_constant_page_faults_as_a_protection_violation() {
    let mut case = long(&[0xc6, 0x03, 0x01]); // mov byte [rbx], 1
    case.registers.gpr[3] = CONSTANT + 17;
    assert_eq!(host().run(&case).ending, fault(vector::PF, 7, CONSTANT + 17));
}

#[test]
fn a_jump_into_data_faults_as_an_instruction_fetch() {
    let mut case = long(&[0xff, 0xe3]); // jmp rbx
    case.registers.gpr[3] = LEFT + 8;
    let outcome = host().run(&case);
    assert_eq!(outcome.ending, fault(vector::PF, 0x15, LEFT + 8));
    assert_eq!((outcome.rip, outcome.retired), (LEFT + 8, 1));
}

#[test]
fn exceptions_carry_their_vectors() {
    let mut host = host();
    let mut check = |code: &[u8], ending: Ending, retired: u64| {
        let mut case = long(code);
        case.registers.gpr[3] = 1 << 63; // not canonical
        let outcome = host.run(&case);
        assert_eq!((outcome.ending, outcome.retired), (ending, retired), "{case}");
    };
    check(&[0x90, 0xf7, 0xf1], fault(vector::DE, 0, 0), 1); // div ecx
    check(&[0x0f, 0x0b], fault(vector::UD, 0, 0), 0); // ud2
    check(&[0x90, 0xcc, 0x90], fault(vector::BP, 0, 0), 1); // int3
    check(&[0xf4], fault(vector::GP, 0, 0), 0); // hlt
    check(&[0x8b, 0x03], fault(vector::GP, 0, 0), 0); // mov eax, [rbx]
    check(&[0x48, 0x89, 0xdd, 0x8b, 0x45, 0x00], fault(vector::SS, 0, 0), 1); // mov rbp, rbx; mov eax, [rbp]
    // push 0x102; popfq; nop; nop: the trap comes after the instruction behind POPF.
    check(&[0x68, 2, 1, 0, 0, 0x9d, 0x90, 0x90], fault(vector::DB, 0, 0), 3);
}

#[test]
fn unmasked_floating_point_exceptions_arrive() {
    let mut host = host();
    let mut case = long(&[0x90, 0xf2, 0x0f, 0x5e, 0xc1]); // nop; divsd xmm0, xmm1
    case.registers.ymm[0][..8].copy_from_slice(&1.0_f64.to_le_bytes());
    case.registers.mxcsr = 0x1d80; // divide by zero unmasked
    let outcome = host.run(&case);
    assert_eq!((outcome.ending, outcome.retired), (fault(vector::XM, 0, 0), 1));
    assert_eq!(outcome.registers.mxcsr, 0x1d84);

    let mut case = long(&[0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x90, 0x9b]); // fld1; fldz; fdivp; nop; fwait
    case.registers.x87[..2].copy_from_slice(&0x037b_u16.to_le_bytes());
    let outcome = host.run(&case);
    assert_eq!((outcome.ending, outcome.retired), (fault(vector::MF, 0, 0), 4));
}

#[test]
fn rep_counts_every_iteration_and_stops_where_it_faults() {
    let mut host = host();
    let mut case = long(&[0xf3, 0xaa, 0x90]); // rep stosb; nop
    (case.registers.gpr[0], case.registers.gpr[1], case.registers.gpr[7]) = (0x5a, 9, RIGHT - 4);
    let outcome = host.run(&case);
    assert_eq!((outcome.ending, outcome.retired), (Ending::Completed, 10));
    assert_eq!(outcome.registers.gpr[7], RIGHT + 5);
    case.registers.gpr[7] = RIGHT + 4090;
    let outcome = host.run(&case);
    assert_eq!((outcome.ending, outcome.retired), (fault(vector::PF, 6, RIGHT + 4096), 6));
    assert_eq!((outcome.registers.gpr[1], outcome.registers.gpr[7]), (3, RIGHT + 4096));
    case.registers.gpr[1] = 0;
    assert_eq!(host.run(&case).retired, 2);
}

#[test]
fn stepping_leaves_no_trace() {
    // pushfq; pop rax; push rax; popfq; call +1; nop; (return address stays on the stack)
    let case = long(&[0x9c, 0x58, 0x50, 0x9d, 0xe8, 1, 0, 0, 0, 0x90, 0x90]);
    let outcome = host().run(&case);
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(outcome.retired, 6);
    assert_eq!(outcome.registers.gpr[0] & flag::TF, 0);
    assert_eq!(outcome.visited, 0b101_1111);
}

#[test]
fn programs_that_leave_their_instructions_are_discarded_before_they_do() {
    let mut host = host();
    assert_eq!(host.run(&long(&[0xeb, 0xfe])).ending, Ending::Discarded(Discard::Runaway)); // jmp self
    let outcome = host.run(&long(&[0xeb, 0x01, 0xb8, 0x0f, 0x05, 0, 0])); // jumps to a SYSCALL in an immediate
    assert_eq!(outcome.ending, Ending::Discarded(Discard::Strayed));
}

#[test]
fn segment_bases_are_the_cases_own() {
    let mut case =
        long(&[0x64, 0x48, 0x8b, 0x04, 0x25, 8, 0, 0, 0, 0x65, 0x48, 0x89, 0x04, 0x25, 0, 0, 0, 0]);
    (case.registers.fs_base, case.registers.gs_base) = (LEFT, RIGHT);
    case.page_mut(Frame::Left).unwrap().bytes[8..16].fill(0x77); // mov rax, fs:[8]; mov gs:[0], rax
    let outcome = host().run(&case);
    assert_eq!(outcome.ending, Ending::Completed);
    assert_eq!(outcome.memory[1].1[..8], [0x77; 8]);
}

#[test]
fn a_program_may_patch_an_immediate_of_its_own() {
    // mov byte [rip + 1], 0x42; mov eax, 0
    let mut case = long(&[0xc6, 0x05, 1, 0, 0, 0, 0x42, 0xb8, 0, 0, 0, 0]);
    case.page_mut(Frame::Code).unwrap().access = Access::All;
    assert_eq!(host().run(&case).ending, Ending::Discarded(Discard::Strayed), "not declared");
    case.items[1].patched = Some((1, 1));
    let outcome = host().run(&case);
    assert_eq!((outcome.ending, outcome.registers.gpr[0]), (Ending::Completed, 0x42));
}

#[test]
fn compatibility_mode_runs_32_bit_code() {
    let mut host = host();
    if !host.runs_compatibility_mode() {
        eprintln!("skipped: this kernel does not run 32-bit code");
        return;
    }
    // inc eax; push eax; pop ecx; mov [ebx], ecx
    let mut case = Case::from_code(Mode::Compatibility, &[0x40, 0x50, 0x59, 0x89, 0x0b]).unwrap();
    case.registers.gpr[0] = 0xffff_fffe;
    case.registers.gpr[3] = Frame::LowRight.address() - 2;
    let outcome = host.run(&case);
    assert_eq!((outcome.ending, outcome.retired), (Ending::Completed, 4));
    assert_eq!(outcome.registers.gpr[1], 0xffff_ffff);
    assert_eq!(outcome.memory[0].1[4094..], [0xff; 2]);
    assert_eq!(outcome.memory[1].1[..2], [0xff; 2]);
    case.registers.gpr[3] = Frame::LowConstant.address();
    let outcome = host.run(&case);
    assert_eq!(outcome.ending, fault(vector::PF, 7, Frame::LowConstant.address()));
    assert_eq!(host.run(&long(&[0x48, 0xff, 0xc0])).registers.gpr[0], 1, "and 64-bit code again");
}
