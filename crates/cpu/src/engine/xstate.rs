//! XSAVEC and XRSTOR in the kernel's code without leaving translated code: a kernel that switches from one program
//! to another executes both.
//!
//! What is common is done here: 64-bit code that asks for all three components of the model, in the compacted layout, with
//! x87 in its initial configuration, as programs leave it that use SSE. The operand lies in RAM that follows on in the
//! host's memory, at most on two pages, which the TLB or the spill table knows. Anything else is left to Rust with nothing
//! done yet.
//!
//! The guest's registers are the host's here, so that the host's own instructions move them; but which components are in
//! use follows from their contents, as in Rust ([`crate::Fpu::in_use`]), not from what the host keeps track of: hosts
//! differ in that. (Layout and meaning: Intel SDM vol. 1, 13.4, 13.5.2, 13.8 and 13.10.)

use super::asm::{Asm, Fixup32, Mem, Reg, Width};
use super::blocks::Mode;
use super::emit::Emitter;
use super::hot::{Field, KERNEL};
use super::thunks::{look_up_page, put_flags_aside, restore_flags};
use crate::fpu::{FCW_INIT, MXCSR_MASK, ST_AT};
use crate::marks::mark;
use crate::reset::MXCSR_RESET;
use crate::system::xstate::{COMPACTED, HEADER_AT, MXCSR_AT, XMM_AT, YMM_HIGH_AT};
use iced_x86::{Instruction, Mnemonic};
use x86::control::xcr0;

/// All components of the model.
const ALL: u64 = xcr0::X87 | xcr0::SSE | xcr0::AVX;
/// Where an area ends that has all of them.
pub const END: usize = YMM_HIGH_AT + 16 * 16;

/// Room for a save area.
#[repr(C, align(64))]
pub struct Area(pub [u8; END]);

impl Area {
    /// Makes it one of the initial configuration: with an empty header, and MXCSR as LDMXCSR may have it.
    pub fn initialize(&mut self) {
        self.0.fill(0);
        self.0[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    }
}

/// Addresses of the thunks.
#[derive(Clone, Copy, Debug)]
pub struct XstateThunks {
    xsavec: u32,
    xrstor: u32,
}

/// Whether there is a thunk for an instruction in code of a mode, on hosts with AVX.
pub fn has_thunk(instr: &Instruction, mode: Mode) -> bool {
    // With AVX to be used, XCR0 has all of the model's components, and neither instruction faults for CR0 or CR4.
    mode.set() == KERNEL
        && mode.is64()
        && mode.has(Mode::FPU.with(Mode::AVX))
        && matches!(instr.mnemonic(), Mnemonic::Xsavec64 | Mnemonic::Xrstor64)
}

/// Emits the way to a thunk and back, if there is one for this instruction in this mode.
pub fn emit(e: &mut Emitter, instr: &Instruction) -> Option<()> {
    let thunks = e.thunks.xstate.filter(|_| has_thunk(instr, e.mode))?;
    let thunk = if instr.mnemonic() == Mnemonic::Xsavec64 { thunks.xsavec } else { thunks.xrstor };
    let ea = e.address(instr)?;
    mark!(XstateThunk);
    ea.load(&mut e.asm, Reg::R10);
    e.call(thunk);
    Some(())
}

/// Emits the thunks, which are entered with the operand's linear address in R10 and the exit index in ECX, and go on at
/// `Hot::behind`. `search` are the searches of the kernel's spill tables (see `thunks`).
pub fn thunks(asm: &mut Asm, base: u32, exit: u32, search: [u32; 2]) -> XstateThunks {
    let mut thunk = Thunk { asm, base, exit, search, slow: Vec::new() };
    XstateThunks { xsavec: thunk.xsavec(), xrstor: thunk.xrstor() }
}

struct Thunk<'a> {
    asm: &'a mut Asm,
    base: u32,
    exit: u32,
    search: [u32; 2],
    /// Ways to Rust.
    slow: Vec<Fixup32>,
}

const JE: u8 = 4;
const JNE: u8 = 5;

/// A part of the operand, whose host address is in R10.
fn operand(offset: usize) -> Mem {
    Mem::base(Reg::R10, offset as i32)
}

impl Thunk<'_> {
    fn field(&self, offset: u32) -> Mem {
        Mem::abs(self.base + offset)
    }

    /// A part of the area of our own that a save goes through.
    fn scratch(&self, offset: usize) -> Mem {
        self.field(Field::XSAVE_AREA + offset as u32)
    }

    fn slow_if(&mut self, condition: u8) {
        self.slow.push(self.asm.jcc_forward(condition));
    }

    fn xsavec(&mut self) -> u32 {
        let start = self.begin(true);
        let scratch = self.scratch(0);
        self.asm.fxsave64(scratch);
        // FCW and FSW, the tags, the registers: x87's initial configuration.
        self.asm.load(Width::W32, Reg::RAX, scratch);
        self.asm.bytes(&[0x3d]); // cmp eax, FCW_INIT
        self.asm.bytes(&u32::from(FCW_INIT).to_le_bytes());
        self.slow_if(JNE);
        let tags = self.scratch(4);
        self.asm.load(Width::W32, Reg::RAX, tags);
        self.asm.bytes(&[0x84, 0xc0]); // test al, al
        self.slow_if(JNE);
        self.any_bit(ST_AT..XMM_AT);
        self.slow_if(JNE);
        // What is in use, in RCX: SSE also if MXCSR is not what it was at reset.
        self.any_bit(XMM_AT..XMM_AT + 256);
        self.asm.bytes(&[0x0f, 0x95, 0xc1]); // setne cl
        let mxcsr = self.scratch(MXCSR_AT);
        self.asm.load(Width::W32, Reg::RAX, mxcsr);
        self.asm.bytes(&[0x3d]); // cmp eax, MXCSR_RESET
        self.asm.bytes(&MXCSR_RESET.to_le_bytes());
        self.asm.bytes(&[0x0f, 0x95, 0xc0, 0x08, 0xc1, 0x0f, 0xb6, 0xc9]); // setne al; or cl, al; movzx ecx, cl
        for n in 0..16 {
            let half = self.scratch(YMM_HIGH_AT + 16 * n);
            self.asm.store_upper(half, n as u8);
        }
        self.any_bit(YMM_HIGH_AT..END);
        self.asm.bytes(&[0x0f, 0x95, 0xc0, 0x0f, 0xb6, 0xc0]); // setne al; movzx eax, al
        self.asm.bytes(&[0x8d, 0x0c, 0x41, 0x01, 0xc9]); // lea ecx, [rcx + rax * 2]; add ecx, ecx
        const { assert!(xcr0::SSE == 2 && xcr0::AVX == 4) };
        self.asm.store(Width::W64, operand(HEADER_AT), Reg::RCX);
        self.asm.mov_imm(Reg::RAX, COMPACTED | ALL);
        self.asm.store(Width::W64, operand(HEADER_AT + 8), Reg::RAX);
        let no_sse = self.unless_in_use(xcr0::SSE);
        self.asm.load(Width::W32, Reg::RAX, mxcsr);
        self.asm.store(Width::W32, operand(MXCSR_AT), Reg::RAX);
        self.asm.store_imm(Width::W32, operand(MXCSR_AT + 4), MXCSR_MASK as i32);
        for n in 0..16 {
            self.asm.vmovups(true, n as u8, operand(XMM_AT + 16 * n));
        }
        self.asm.bind32(no_sse);
        let no_avx = self.unless_in_use(xcr0::AVX);
        for n in 0..16 {
            self.asm.store_upper(operand(YMM_HIGH_AT + 16 * n), n as u8);
        }
        self.asm.bind32(no_avx);
        self.end();
        start
    }

    fn xrstor(&mut self) -> u32 {
        let start = self.begin(false);
        self.asm.mov_imm(Reg::RCX, COMPACTED | ALL);
        self.asm.op_cmp(Reg::RCX, operand(HEADER_AT + 8));
        self.slow_if(JNE);
        self.asm.load(Width::W64, Reg::RCX, operand(HEADER_AT));
        self.asm.bytes(&[0x48, 0xf7, 0xc1]); // test rcx, whatever is neither SSE nor AVX
        self.asm.bytes(&(!((xcr0::SSE | xcr0::AVX) as i32)).to_le_bytes());
        self.slow_if(JNE);
        self.asm.load(Width::W64, Reg::RAX, operand(HEADER_AT + 16));
        (24..64).step_by(8).for_each(|at| self.asm.op_load_or(Reg::RAX, operand(HEADER_AT + at)));
        self.asm.bytes(&[0x48, 0x85, 0xc0]); // test rax, rax
        self.slow_if(JNE);
        let no_mxcsr = self.unless_in_use(xcr0::SSE);
        self.asm.load(Width::W32, Reg::RAX, operand(MXCSR_AT));
        self.asm.bytes(&[0xa9]); // test eax, what is reserved
        self.asm.bytes(&(!MXCSR_MASK).to_le_bytes());
        self.slow_if(JNE);
        self.asm.bind32(no_mxcsr);
        // Nothing is left to Rust from here on. x87 by the host's XRSTOR, from a header that says nothing is in use.
        self.asm.mov(Width::W64, Reg::R11, Reg(2));
        self.asm.bytes(&[0x31, 0xd2, 0xb8, xcr0::X87 as u8, 0, 0, 0]); // xor edx, edx; mov eax, X87
        let initial = self.field(Field::INITIAL_AREA);
        self.asm.op_0f_mem(0xae, 5, initial); // xrstor
        self.asm.mov(Width::W64, Reg(2), Reg::R11);
        let mxcsr = self.field(Field::INITIAL_AREA + MXCSR_AT as u32);
        self.asm.op_0f_mem(0xae, 2, mxcsr); // ldmxcsr
        self.asm.bytes(&[0xc5, 0xfc, 0x77]); // vzeroall
        let no_sse = self.unless_in_use(xcr0::SSE);
        self.asm.op_0f_mem(0xae, 2, operand(MXCSR_AT)); // ldmxcsr
        for n in 0..16 {
            self.asm.vmovups(false, n as u8, operand(XMM_AT + 16 * n));
        }
        self.asm.bind32(no_sse);
        let no_avx = self.unless_in_use(xcr0::AVX);
        for n in 0..16 {
            self.asm.load_upper(n as u8, operand(YMM_HIGH_AT + 16 * n));
        }
        self.asm.bind32(no_avx);
        self.end();
        start
    }

    /// The jump taken unless RCX has a component.
    fn unless_in_use(&mut self, component: u64) -> Fixup32 {
        self.asm.bytes(&[0xf6, 0xc1, component as u8]); // test cl, component
        self.asm.jcc_forward(JE)
    }

    /// ZF: whether no bit of a part of the scratch area is set. RAX is lost.
    fn any_bit(&mut self, part: std::ops::Range<usize>) {
        self.asm.bytes(&[0x31, 0xc0]); // xor eax, eax
        for at in part.step_by(8) {
            let word = self.scratch(at);
            self.asm.op_load_or(Reg::RAX, word);
        }
    }

    /// The beginning of a thunk: with status flags and RAX put aside, and the operand's host address in R10.
    fn begin(&mut self, write: bool) -> u32 {
        let start = self.asm.here();
        let (index, operand) = (self.field(Field::EXIT), self.field(Field::OPERAND));
        self.asm.store(Width::W64, index, Reg::RCX);
        self.asm.store(Width::W64, operand, Reg::R10);
        let again = self.asm.here();
        put_flags_aside(self.asm, self.base);
        self.asm.load(Width::W64, Reg::R10, operand);
        self.asm.bytes(&[0x41, 0xf6, 0xc2, 63]); // test r10b, 63
        self.slow_if(JNE);
        let rax = self.field(Field::TEMPORARY_RAX);
        self.asm.load(Width::W32, Reg::RAX, rax);
        self.asm.bytes(&[0xf7, 0xd0, 0xa8, ALL as u8]); // not eax; test al, ALL
        self.slow_if(JNE);
        let first = self.field(Field::TEMPORARY);
        let unknown = self.look_up(0, write);
        self.asm.store(Width::W64, first, Reg::R11);
        let unknown_end = self.look_up(END - 1, write);
        self.asm.op_cmp(Reg::R11, first);
        self.slow_if(JNE);
        let known = self.asm.jmp_forward();
        for (from, offset) in [(unknown, 0), (unknown_end, END - 1)] {
            self.asm.bind32(from);
            self.look_for(offset, write, again);
        }
        self.asm.bind32(known);
        self.asm.bytes(&[0x4d, 0x01, 0xda]); // add r10, r11
        start
    }

    /// The addend of the page of one byte of the operand to R11; the way taken if the TLB does not know it.
    fn look_up(&mut self, offset: usize, write: bool) -> Fixup32 {
        let table = self.base + Field::set(KERNEL) + Field::data(write);
        self.asm.lea(Width::W64, Reg::RCX, operand(offset));
        look_up_page(self.asm, KERNEL, table)
    }

    /// Searches the spill table for that page, to begin again if it is there.
    fn look_for(&mut self, offset: usize, write: bool, again: u32) {
        restore_flags(self.asm, self.base);
        self.asm.lea(Width::W64, Reg::R10, operand(offset));
        self.asm.mov(Width::W64, Reg::R11, Reg::R10);
        let (retry, index) = (self.field(Field::RETRY), self.field(Field::EXIT));
        self.asm.store_imm(Width::W64, retry, again as i32);
        self.asm.load(Width::W64, Reg::RCX, index);
        self.asm.jmp(self.search[write as usize]);
    }

    fn end(&mut self) {
        restore_flags(self.asm, self.base);
        let behind = self.field(Field::BEHIND);
        self.asm.jmp_mem(behind);
        for from in std::mem::take(&mut self.slow) {
            self.asm.bind32(from);
        }
        restore_flags(self.asm, self.base);
        let index = self.field(Field::EXIT);
        self.asm.load(Width::W64, Reg::RCX, index);
        self.asm.jmp(self.exit);
    }
}
