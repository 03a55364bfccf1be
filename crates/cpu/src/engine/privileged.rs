//! System instructions that are common enough to be done without leaving translated code.
//!
//! While translated code runs, three of RFLAGS' system bits live apart, each in a word of its own
//! (`interrupts`, `direction`, `alignment`), so that CLI, STI and CLD are plain stores and write no
//! status flag; the others stay in `other_flags`. Leaving merges them (see `Vcpu::enter`).
//!
//! STI must hold interrupts back for one instruction. That matters only if a stop comes exactly
//! behind it, so all it does is note the budget: Rust turns that into a position on the way out.
//! If an interrupt is waiting, STI and POPF are left to Rust altogether.

use super::asm::{Mem, Reg, Width};
use super::blocks::Mode;
use super::emit::{Emitter, guest_of};
use super::fast_calls;
use super::hot::Field;
use super::regs::{self, home};
use super::returns;
use super::xstate;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use x86::{SegmentIndex, flags};

/// Bits of RFLAGS that POPF must leave alone for the inline form to serve.
const RARE: u64 = !(flags::STATUS | flags::IF | flags::DF | flags::FIXED) & 0xffff_ffff;

const IF_BIT: u8 = 9;
const DF_BIT: u8 = 10;
const AC_BIT: u8 = 18;

/// Emits the instruction if it has an inline form in this mode. `count` is the block's number of
/// instructions. True if nothing follows it in the block.
pub fn emit(e: &mut Emitter, instr: &Instruction, count: u8) -> Option<bool> {
    if !e.mode.is64() {
        return None;
    }
    let kernel = e.mode.has(Mode::RING0);
    match instr.mnemonic() {
        Mnemonic::Cld => store(e, Field::DIRECTION, 0),
        Mnemonic::Cli if kernel => store(e, Field::INTERRUPTS, 0),
        Mnemonic::Sti if kernel => sti(e, count),
        Mnemonic::Pushfq => pushf(e),
        Mnemonic::Popfq if kernel => popf(e),
        Mnemonic::Swapgs if kernel => swapgs(e),
        Mnemonic::Rdtsc if kernel || e.mode.has(Mode::USER_TSC) => rdtsc(e, count, false),
        Mnemonic::Rdtscp if kernel || e.mode.has(Mode::USER_TSC) => rdtsc(e, count, true),
        Mnemonic::Stac if kernel && e.mode.has(Mode::SMAP) => {
            lift(e, instr, true);
            return Some(true);
        }
        Mnemonic::Clac if kernel && e.mode.has(Mode::SMAP) => {
            lift(e, instr, false);
            return Some(true);
        }
        // The TLB is coherent.
        Mnemonic::Invlpg if kernel => {}
        Mnemonic::Syscall if e.mode.has(Mode::USER) => {
            fast_calls::emit_syscall(e, instr.next_ip());
            return Some(true);
        }
        Mnemonic::Sysretq if kernel && !e.mode.has(Mode::AC) => {
            fast_calls::emit_sysret(e);
            return Some(true);
        }
        Mnemonic::Iretq if kernel && !e.mode.has(Mode::AC) => {
            returns::emit(e);
            return Some(true);
        }
        Mnemonic::Xsavec64 | Mnemonic::Xrstor64 => xstate::emit(e, instr)?,
        Mnemonic::Mov if instr.op1_kind() == OpKind::Register => return read_selector(e, instr),
        Mnemonic::Rdfsbase if e.mode.has(Mode::FSGSBASE) => read_base(e, instr, SegmentIndex::Fs),
        Mnemonic::Rdgsbase if e.mode.has(Mode::FSGSBASE) => read_base(e, instr, SegmentIndex::Gs),
        Mnemonic::Wrfsbase if e.mode.has(Mode::FSGSBASE) => write_base(e, instr, SegmentIndex::Fs),
        Mnemonic::Wrgsbase if e.mode.has(Mode::FSGSBASE) => write_base(e, instr, SegmentIndex::Gs),
        _ => return None,
    }
    Some(false)
}

fn store(e: &mut Emitter, field: u32, value: i32) {
    let word = e.field(field);
    e.asm.store_imm(Width::W32, word, value);
}

fn sti(e: &mut Emitter, count: u8) {
    let interrupts = e.field(Field::INTERRUPTS);
    e.asm.load(Width::W32, Reg::RCX, interrupts);
    let off = e.asm.jrcxz();
    let done = e.asm.jmp_forward();
    e.asm.bind8(off);
    let pending = e.field(Field::PENDING);
    e.asm.load(Width::W32, Reg::RCX, pending);
    let quiet = e.asm.jrcxz();
    e.interpret();
    e.asm.bind8(quiet);
    let (budget, rest) = (e.field(Field::STI_BUDGET), e.field(Field::STI_REST));
    e.asm.store(Width::W64, budget, regs::BUDGET);
    e.asm.store_imm(Width::W32, rest, (count - e.insn - 1) as i32);
    e.asm.store_imm(Width::W32, interrupts, 1);
    e.asm.bind32(done);
}

/// LAHF and SETO: the status flags into AX; the guest's RAX is in `temporary`.
fn save_status(e: &mut Emitter) {
    let temporary = e.field(Field::TEMPORARY);
    e.asm.store(Width::W64, temporary, Reg::RAX);
    e.asm.bytes(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
}

fn restore_status(e: &mut Emitter) {
    let temporary = e.field(Field::TEMPORARY);
    e.asm.bytes(&[0x04, 0x7f, 0x9e]); // add al, 127; sahf
    e.asm.load(Width::W64, Reg::RAX, temporary);
}

/// `or ecx, [field] << bit`, through R10.
fn gather(e: &mut Emitter, field: u32, bit: u8) {
    let word = e.field(field);
    e.asm.load(Width::W32, Reg::R10, word);
    e.asm.bytes(&[0x41, 0xc1, 0xe2, bit, 0x44, 0x09, 0xd1]); // shl r10d, bit; or ecx, r10d
}

fn pushf(e: &mut Emitter) {
    let ea = e.stack(-8);
    let slot = e.check(ea, 8, true);
    save_status(e);
    e.asm.bytes(&[0x0f, 0xb6, 0xcc]); // movzx ecx, ah
    e.asm.bytes(&[0x44, 0x0f, 0xb6, 0xd0]); // movzx r10d, al
    e.asm.bytes(&[0x41, 0xc1, 0xe2, 11, 0x44, 0x09, 0xd1]); // shl r10d, 11; or ecx, r10d
    gather(e, Field::INTERRUPTS, IF_BIT);
    gather(e, Field::DIRECTION, DF_BIT);
    gather(e, Field::ALIGNMENT, AC_BIT);
    gather(e, Field::OTHER_FLAGS, 0);
    e.asm.store(Width::W64, slot, Reg::RCX);
    restore_status(e);
    e.move_stack(-8);
}

/// `mov r10d, ecx; shr r10d, bit; and r10d, 1`.
fn extract(e: &mut Emitter, bit: u8) {
    e.asm.bytes(&[0x41, 0x89, 0xca, 0x41, 0xc1, 0xea, bit, 0x41, 0x83, 0xe2, 1]);
}

fn popf(e: &mut Emitter) {
    let ea = e.stack(0);
    let slot = e.check(ea, 8, false);
    e.asm.load(Width::W64, Reg::RCX, slot);
    // From here on status flags are free: whatever happens, the popped ones replace them.
    let alignment = e.field(Field::ALIGNMENT);
    e.asm.load(Width::W32, Reg::R10, alignment);
    e.asm.bytes(&[0x41, 0xc1, 0xe2, AC_BIT, 0x41, 0x31, 0xca]); // shl r10d, 18; xor r10d, ecx
    let other = e.field(Field::OTHER_FLAGS);
    e.asm.load(Width::W32, Reg::R11, other);
    e.asm.bytes(&[0x45, 0x31, 0xda]); // xor r10d, r11d
    e.asm.bytes(&[0x41, 0x81, 0xe2]); // and r10d, RARE
    e.asm.bytes(&(RARE as u32).to_le_bytes());
    let rare = e.asm.jcc_forward(5);
    extract(e, IF_BIT);
    let pending = e.field(Field::PENDING);
    e.asm.load(Width::W32, Reg::R11, pending);
    e.asm.bytes(&[0x45, 0x85, 0xd3]); // test r11d, r10d
    let waiting = e.asm.jcc_forward(5);
    let interrupts = e.field(Field::INTERRUPTS);
    e.asm.store(Width::W32, interrupts, Reg::R10);
    extract(e, DF_BIT);
    let direction = e.field(Field::DIRECTION);
    e.asm.store(Width::W32, direction, Reg::R10);
    let temporary = e.field(Field::TEMPORARY);
    e.asm.store(Width::W64, temporary, Reg::RAX);
    e.asm.mov(Width::W32, Reg::RAX, Reg::RCX);
    extract(e, 11);
    e.asm.bytes(&[0x88, 0xc4]); // mov ah, al
    e.asm.bytes(&[0x41, 0x80, 0xc2, 0x7f, 0x9e]); // add r10b, 127; sahf
    e.asm.load(Width::W64, Reg::RAX, temporary);
    e.move_stack(8);
    let done = e.asm.jmp_forward();
    e.asm.bind32(rare);
    e.asm.bind32(waiting);
    e.interpret();
    e.asm.bind32(done);
}

fn swapgs(e: &mut Emitter) {
    let (gs, kernel) = (e.field(Field::segment_base(5)), e.field(Field::KERNEL_GS_BASE));
    e.asm.load(Width::W64, Reg::R10, gs);
    e.asm.load(Width::W64, Reg::RCX, kernel);
    e.asm.store(Width::W64, gs, Reg::RCX);
    e.asm.store(Width::W64, kernel, Reg::R10);
}

/// The counter is the position plus a constant while the processor runs (see [`crate::Bus::tsc_offset`]):
/// `tsc_base - (budget >> 6)`, less what the block has counted ahead.
fn rdtsc(e: &mut Emitter, count: u8, with_aux: bool) {
    let linear = e.field(Field::TSC_LINEAR);
    e.asm.load(Width::W32, Reg::RCX, linear);
    let slow = e.asm.jrcxz();
    let go = e.asm.jmp_forward();
    e.asm.bind8(slow);
    e.interpret();
    let over = e.asm.jmp_forward();
    e.asm.bind32(go);
    e.asm.mov_imm(Reg::RCX, 6);
    e.asm.shrx(Reg::RCX, regs::BUDGET, Reg::RCX);
    e.asm.bytes(&[0x48, 0xf7, 0xd1]); // not rcx
    let base = e.field(Field::TSC_BASE);
    e.asm.load(Width::W64, Reg::R10, base);
    // not x = -x - 1, and this instruction is `count - insn` before the end of what is counted.
    let ahead = 1 - (count - e.insn) as i32;
    e.asm.lea(Width::W64, Reg::RCX, Mem::base_index(Reg::R10, Reg::RCX, ahead));
    e.asm.mov(Width::W32, Reg::RAX, Reg::RCX);
    e.asm.mov_imm(Reg::RDX, 32);
    e.asm.shrx(Reg::RDX, Reg::RCX, Reg::RDX);
    if with_aux {
        let aux = e.field(Field::TSC_AUX);
        e.asm.load(Width::W32, regs::RCX_HOME, aux);
    }
    e.asm.bind32(over);
}

/// STAC and CLAC: on to the same page's code, translated for the other mode.
fn lift(e: &mut Emitter, instr: &Instruction, on: bool) {
    store(e, Field::ALIGNMENT, on as i32);
    let mode = if on { e.mode.with(Mode::AC) } else { Mode(e.mode.0 & !Mode::AC.0) };
    e.jump_to_mode(instr.next_ip(), mode);
}

/// RDFSBASE, RDGSBASE.
fn read_base(e: &mut Emitter, instr: &Instruction, segment: SegmentIndex) {
    let Some(guest) = guest_of(instr.op0_register()) else { return e.interpret() };
    let width = if instr.op0_register().is_gpr64() { Width::W64 } else { Width::W32 };
    let base = e.field(Field::segment_base(segment as usize));
    e.asm.load(width, Reg::RCX, base);
    e.write_guest(guest, Reg::RCX);
}

/// WRFSBASE, WRGSBASE: Rust raises the fault for what is not canonical.
fn write_base(e: &mut Emitter, instr: &Instruction, segment: SegmentIndex) {
    let Some(guest) = guest_of(instr.op0_register()) else { return e.interpret() };
    let base = e.field(Field::segment_base(segment as usize));
    let value = e.read_guest(guest, Reg::R10);
    if !instr.op0_register().is_gpr64() {
        e.asm.mov(Width::W32, Reg::R10, value);
        e.asm.store(Width::W64, base, Reg::R10);
        return;
    }
    // Bits 63 to 47 are all alike if, shifted down and plus one, they make 0 or 1.
    e.asm.mov_imm(Reg::RCX, 47);
    e.asm.sarx(Reg::RCX, value, Reg::RCX);
    e.asm.lea(Width::W64, Reg::RCX, Mem::base(Reg::RCX, 1));
    e.asm.mov_imm(Reg::R11, 1);
    e.asm.shrx(Reg::RCX, Reg::RCX, Reg::R11);
    let canonical = e.asm.jrcxz();
    e.interpret();
    e.asm.bind8(canonical);
    e.asm.store(Width::W64, base, value);
}

/// MOV from a segment register to a general one, or to memory.
fn read_selector(e: &mut Emitter, instr: &Instruction) -> Option<bool> {
    let register = instr.op1_register();
    if register.is_cr() && e.mode.has(Mode::RING0) {
        return read_control(e, instr);
    }
    if !register.is_segment_register() {
        return None;
    }
    if instr.op0_kind() == OpKind::Memory {
        let ea = e.address(instr)?;
        let operand = e.check(ea, 2, true);
        let selector = e.field(Field::selector(register.number()));
        e.asm.load_zero16(Reg::RCX, selector);
        e.asm.store(Width::W16, operand, Reg::RCX);
        return Some(false);
    }
    let guest = guest_of(instr.op0_register())?;
    let selector = e.field(Field::selector(register.number()));
    e.asm.load_zero16(Reg::RCX, selector);
    if matches!(instr.code(), Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg) {
        e.write_guest(guest, Reg::RCX);
    } else if let Some(home) = home(guest) {
        e.asm.mov16(home, Reg::RCX);
    } else {
        let slot = e.slot(guest);
        e.asm.store(Width::W16, slot, Reg::RCX);
    }
    Some(false)
}

/// MOV from CR0, CR2, CR3 or CR4.
fn read_control(e: &mut Emitter, instr: &Instruction) -> Option<bool> {
    let field = match instr.op1_register() {
        Register::CR0 => Field::CR0,
        Register::CR2 => Field::CR2,
        Register::CR3 => Field::CR3,
        Register::CR4 => Field::CR4,
        _ => return None,
    };
    let guest = guest_of(instr.op0_register())?;
    let control = e.field(field);
    e.asm.load(Width::W64, Reg::RCX, control);
    e.write_guest(guest, Reg::RCX);
    Some(false)
}
