//! What stands between the stages: the handlers of all interrupts and exceptions, and the
//! dispatcher, which puts the processor in order again and enters the next stage.
//!
//! A fault in a stage's code resumes at its next slot; any other, or one too many, ends the stage.
//! The counter of stages goes up before anything else is tried, so a machine in ruins comes to its
//! end too. Whatever the dispatcher cannot repair ends in a triple fault, and the host begins anew.

use crate::layout::{self, selector};
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Offsets in a stage's start state.
pub(crate) mod start {
    /// RAX to R15 in encoding order.
    pub const GPR: u64 = 0;
    pub const RIP: u64 = 128;
    pub const CS: u64 = 136;
    pub const RFLAGS: u64 = 144;
    pub const SS: u64 = 152;
    /// Initial count of the APIC timer that ends the stage.
    pub const WATCHDOG: u64 = 160;
    pub const FAULTS: u64 = 164;
    /// Bit 0: registers are as at the start after every fault.
    pub const RELOAD: u64 = 168;
}

/// The vector of the timer that ends a stage.
const WATCHDOG: u32 = 0xf0;
const APIC: u64 = 0xfee0_0000;
/// PM1a control: S5, sleep enable.
const POWER_OFF: u32 = 5 << 10 | 1 << 13;
const STUB_SIZE: u64 = 16;

/// Values the dispatcher restores.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sane {
    pub cr0: u64,
    pub cr4: u64,
    pub efer: u64,
    pub xcr0: u64,
}

/// Where a vector's handler begins.
pub(crate) const fn stub(vector: u64) -> u64 {
    layout::FIRMWARE.start + vector * STUB_SIZE
}

/// Where the dispatcher begins.
pub(crate) const fn dispatcher() -> u64 {
    stub(256)
}

fn has_error_code(vector: u64) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

/// Everything, from [`layout::FIRMWARE`] on, for a case of `stages` stages.
pub(crate) fn code(stages: usize, sane: &Sane) -> Vec<u8> {
    assemble(stages, sane).expect("a fixed program")
}

fn assemble(stages: usize, sane: &Sane) -> Result<Vec<u8>, IcedError> {
    let mut tail = CodeAssembler::new(64)?;
    let mut handler = tail.create_label();
    dispatch(&mut tail, stages, sane)?;
    tail.set_label(&mut handler)?;
    handle(&mut tail)?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = tail.assemble_options(dispatcher(), options)?;
    let handler = done.label_ip(&handler)?;
    let mut bytes = Vec::new();
    for vector in 0..256u64 {
        let mut a = CodeAssembler::new(64)?;
        if !has_error_code(vector) {
            a.push(0)?;
        }
        a.push(vector as i32)?;
        a.jmp(handler)?;
        bytes.extend(a.assemble(stub(vector))?);
        bytes.resize(((vector + 1) * STUB_SIZE) as usize, 0x90);
    }
    bytes.extend(done.inner.code_buffer);
    assert!(bytes.len() as u64 <= layout::FIRMWARE.end - layout::FIRMWARE.start);
    Ok(bytes)
}

/// Stores to a register of the local APIC, through RAX.
fn apic(a: &mut CodeAssembler, offset: u64, value: u32) -> Result<(), IcedError> {
    a.mov(eax, (APIC + offset) as u32)?;
    a.mov(dword_ptr(rax), value)
}

fn dispatch(a: &mut CodeAssembler, stages: usize, sane: &Sane) -> Result<(), IcedError> {
    a.mov(rsp, layout::STACK_TOPS[0])?;
    a.add(dword_ptr(layout::STAGE), 1)?;
    a.cld()?;
    a.mov(rax, sane.cr0)?;
    a.mov(cr0, rax)?;
    a.mov(rax, layout::PML4)?;
    a.mov(cr3, rax)?;
    a.mov(rax, sane.cr4)?;
    a.mov(cr4, rax)?;
    a.mov(ecx, x86::msr::EFER)?;
    a.mov(eax, sane.efer as u32)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    if sane.cr4 & x86::control::cr4::OSXSAVE != 0 {
        a.xor(ecx, ecx)?;
        a.mov(eax, sane.xcr0 as u32)?;
        a.xsetbv()?;
    }
    a.lgdt(ptr(layout::GDT_POINTER))?;
    a.lidt(ptr(layout::IDT_POINTER))?;
    a.xor(eax, eax)?;
    a.mov(dr7, rax)?;
    a.mov(eax, u32::from(selector::KERNEL_DATA))?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, eax)?;
    }
    a.mov(eax, u32::from(selector::LDT))?;
    a.lldt(ax)?;
    a.and(byte_ptr(layout::GDT + u64::from(selector::TSS) + 5), 0xfdu32 as i32)?;
    a.mov(eax, u32::from(selector::TSS))?;
    a.ltr(ax)?;
    let mut next = a.create_label();
    a.push(i32::from(selector::KERNEL_CODE))?;
    a.lea(rax, ptr(next))?;
    a.push(rax)?;
    a.db(&[0x48, 0xcb])?; // retfq
    a.set_label(&mut next)?;
    enter_next(a, stages)
}

fn enter_next(a: &mut CodeAssembler, stages: usize) -> Result<(), IcedError> {
    let mut done = a.create_label();
    a.mov(ebx, dword_ptr(layout::STAGE))?;
    a.cmp(ebx, stages as u32)?;
    a.jae(done)?;
    a.shl(ebx, layout::START_SIZE.trailing_zeros())?;
    a.add(ebx, layout::STARTS as u32)?;
    for (offset, value) in [(0xf0, 0x1ff), (0xb0, 0), (0x3e0, 0xb), (0x320, WATCHDOG)] {
        apic(a, offset, value)?;
    }
    a.mov(eax, (APIC + 0x380) as u32)?;
    a.mov(ecx, dword_ptr(rbx + start::WATCHDOG))?;
    a.mov(dword_ptr(rax), ecx)?;
    a.mov(eax, dword_ptr(rbx + start::FAULTS))?;
    a.mov(dword_ptr(layout::FAULTS_LEFT), eax)?;
    a.mov(eax, dword_ptr(rbx + start::RELOAD))?;
    a.mov(dword_ptr(layout::FAULTS_LEFT + 4), eax)?;
    a.fninit()?;
    for field in [start::SS, start::GPR + 8 * 4, start::RFLAGS, start::CS, start::RIP] {
        a.push(qword_ptr(rbx + field))?;
    }
    load_registers(a)?;
    a.iretq()?;
    a.set_label(&mut done)?;
    a.mov(edx, 0x604)?;
    a.mov(eax, POWER_OFF)?;
    a.out(dx, ax)?;
    a.hlt()?;
    a.jmp(done)
}

/// All but RSP, from the start state at RBX.
fn load_registers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let registers = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    for (n, register) in registers.into_iter().enumerate() {
        if register != rsp && register != rbx {
            a.mov(register, qword_ptr(rbx + start::GPR + 8 * n as u64))?;
        }
    }
    a.mov(rbx, qword_ptr(rbx + start::GPR + 8 * 3))
}

/// Behind the stubs: vector and error code are on the stack.
fn handle(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const VECTOR: i32 = 32;
    const RIP: i32 = 48;
    const RFLAGS: i32 = 64;
    let (mut fault, mut resume, mut reload) = (a.create_label(), a.create_label(), a.create_label());
    let (mut end, mut not_pic, mut fault_in_code) = (a.create_label(), a.create_label(), a.create_label());
    a.cld()?;
    for register in [rax, rcx, rdx, rbx] {
        a.push(register)?;
    }
    a.mov(ecx, dword_ptr(rsp + VECTOR))?;
    a.cmp(ecx, 0x20)?;
    a.jb(fault)?;
    a.cmp(ecx, WATCHDOG)?;
    a.je(end)?;
    apic(a, 0xb0, 0)?;
    a.cmp(ecx, 0x30)?;
    a.jae(not_pic)?;
    a.mov(eax, 0x20)?;
    a.out(0x20, al)?;
    a.out(0xa0, al)?;
    a.set_label(&mut not_pic)?;
    a.jmp(resume)?;

    a.set_label(&mut fault)?;
    a.cmp(ecx, 2)?;
    a.je(resume)?;
    a.cmp(ecx, 8)?;
    a.je(end)?;
    a.sub(dword_ptr(layout::FAULTS_LEFT), 1)?;
    a.js(end)?;
    a.cmp(ecx, 1)?;
    a.jne(fault_in_code)?;
    // A debug exception: go on where it came, every eighth time without single-stepping.
    a.or(qword_ptr(rsp + RFLAGS), 1 << 16)?;
    a.test(dword_ptr(layout::FAULTS_LEFT), 7)?;
    a.jnz(resume)?;
    a.and(qword_ptr(rsp + RFLAGS), !0x100)?;
    a.jmp(resume)?;

    a.set_label(&mut fault_in_code)?;
    a.mov(rax, qword_ptr(rsp + RIP))?;
    a.mov(rdx, rax)?;
    a.sub(rdx, layout::CODE as i32)?;
    a.cmp(rdx, (layout::CODE_END - layout::CODE) as i32)?;
    a.jae(end)?;
    a.or(rax, layout::SLOT as i32 - 1)?;
    a.add(rax, 1)?;
    a.test(eax, layout::CODE_SIZE as i32 - 1)?;
    a.jz(end)?;
    a.mov(qword_ptr(rsp + RIP), rax)?;
    a.test(dword_ptr(layout::FAULTS_LEFT + 4), 1)?;
    a.jnz(reload)?;

    a.set_label(&mut resume)?;
    for register in [rbx, rdx, rcx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 16)?;
    a.iretq()?;

    a.set_label(&mut reload)?;
    a.add(rsp, RIP)?;
    a.mov(ebx, dword_ptr(layout::STAGE))?;
    a.shl(ebx, layout::START_SIZE.trailing_zeros())?;
    a.add(ebx, layout::STARTS as u32)?;
    load_registers(a)?;
    a.iretq()?;

    a.set_label(&mut end)?;
    a.jmp(dispatcher())
}
