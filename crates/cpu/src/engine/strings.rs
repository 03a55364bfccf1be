//! MOVS and STOS without leaving translated code, with and without a repeat prefix.
//!
//! What is common in 64-bit code: forwards, on pages that the TLB or the spill table knows, no more of the
//! elements than the budget covers. One thunk for each shape and mode set serves all places. Repeated bytes go
//! page by page; elements that are larger have to be on one page all of them. Anything else is left to Rust (see
//! [`crate::string`]), as far as it has not been done yet.
//!
//! A block counts a repeated instruction as one, so the thunk takes the other iterations out of the
//! budget itself, before it executes them. That the host's own string instruction does the work makes
//! overlapping operands come out as they should: element by element, in physical memory.
//!
//! A page that holds code, or page tables of any translation in use, has no entry for writes, so no
//! iteration can change what the instruction or its operands were reached by.

use super::asm::{Asm, Fixup32, Mem, Reg, Width};
use super::blocks::Mode;
use super::emit::Emitter;
use super::hot::Field;
use super::regs;
use super::thunks::{look_up_page, put_flags_aside, restore_flags};
use crate::marks::mark;
use base::PAGE_SIZE;
use iced_x86::{Code, Instruction, OpKind, Register};
use std::arch::asm;

/// Mode sets of 64-bit code, which have thunks.
pub const STRING_SETS: usize = 4;

/// What tells string instructions apart that have a thunk.
#[derive(Clone, Copy)]
pub struct Shape {
    /// MOVS rather than STOS.
    moves: bool,
    repeated: bool,
    /// log2 of the element's size in bytes.
    log: u8,
}

/// Addresses of the thunks: by mode set, then see [`Shape::index`].
pub type StringThunks = [[u32; Shape::COUNT]; STRING_SETS];

impl Shape {
    const COUNT: usize = 16;

    /// The shape of an instruction of 64-bit code, if it has a thunk.
    pub fn of(instr: &Instruction) -> Option<Self> {
        let (moves, log) = match instr.code() {
            Code::Movsb_m8_m8 => (true, 0),
            Code::Movsw_m16_m16 => (true, 1),
            Code::Movsd_m32_m32 => (true, 2),
            Code::Movsq_m64_m64 => (true, 3),
            Code::Stosb_m8_AL => (false, 0),
            Code::Stosw_m16_AX => (false, 1),
            Code::Stosd_m32_EAX => (false, 2),
            Code::Stosq_m64_RAX => (false, 3),
            _ => return None,
        };
        let wide = instr.op0_kind() == OpKind::MemoryESRDI;
        let based = moves && matches!(instr.memory_segment(), Register::FS | Register::GS);
        // F2 repeats these as F3 does.
        let repeated = instr.has_rep_prefix() || instr.has_repne_prefix();
        (wide && !based && !instr.has_lock_prefix()).then_some(Self { moves, repeated, log })
    }

    /// Whether it reads a source.
    pub fn moves(self) -> bool {
        self.moves
    }

    /// Whether RCX counts.
    pub fn is_repeated(self) -> bool {
        self.repeated
    }

    /// Whether so many iterations are of a page or more: in mirrored code they are done from Rust, as the thunk would
    /// leave at each page, and shorter ones by the thunk.
    pub fn is_long(self, count: u64) -> bool {
        self.repeated && count >= PAGE_SIZE as u64 >> self.log
    }

    /// Bytes of an element.
    pub fn element(self) -> u64 {
        1 << self.log
    }

    /// Has the host execute iterations of it upwards, at these addresses, with `rax` in RAX.
    ///
    /// # Safety
    /// The destination, and the source of one that moves, are that long, and nobody else's meanwhile.
    pub unsafe fn execute(self, iterations: u64, rsi: u64, rdi: u64, rax: u64) {
        macro_rules! repeat {
            ($instruction:literal) => {
                // SAFETY: as the caller promises; the direction flag is clear in Rust.
                unsafe {
                    asm!(
                        concat!("rep ", $instruction),
                        inout("rcx") iterations => _,
                        inout("rsi") rsi => _,
                        inout("rdi") rdi => _,
                        in("rax") rax,
                        options(nostack, preserves_flags)
                    )
                }
            };
        }
        match (self.moves, self.log) {
            (true, 0) => repeat!("movsb"),
            (true, 1) => repeat!("movsw"),
            (true, 2) => repeat!("movsd"),
            (true, _) => repeat!("movsq"),
            (false, 0) => repeat!("stosb"),
            (false, 1) => repeat!("stosw"),
            (false, 2) => repeat!("stosd"),
            (false, _) => repeat!("stosq"),
        }
    }

    fn all() -> [Self; Self::COUNT] {
        std::array::from_fn(|n| Self { moves: n & 8 != 0, repeated: n & 4 != 0, log: n as u8 & 3 })
    }

    fn index(self) -> usize {
        (self.moves as usize) << 3 | (self.repeated as usize) << 2 | self.log as usize
    }

    /// The host's instruction.
    fn bytes(self) -> Vec<u8> {
        let repeat = self.repeated.then_some(0xf3);
        let width: &[u8] = [&[][..], &[0x66], &[], &[0x48]][self.log as usize];
        let opcode = (if self.moves { 0xa4 } else { 0xaa }) + (self.log != 0) as u8;
        repeat.into_iter().chain(width.iter().copied()).chain([opcode]).collect()
    }
}

/// Emits the way to a thunk and back.
pub fn emit(e: &mut Emitter, shape: Shape) {
    mark!(StringThunk);
    let set = e.mode.set();
    debug_assert!(e.mode.is64() && set < STRING_SETS && !e.mode.has(Mode::PRECISE));
    e.call(e.thunks.strings[set][shape.index()]);
}

/// Emits the thunks of all shapes. They are entered with the exit index in ECX, and go on at
/// `Hot::behind`. `search` are the searches of the spill tables (see `thunks`).
pub fn thunks(asm: &mut Asm, base: u32, exit: u32, search: &[[u32; 2]]) -> StringThunks {
    std::array::from_fn(|set| {
        Shape::all().map(|shape| Thunk { asm, base, set, search: search[set] }.emit(exit, shape))
    })
}

struct Thunk<'a> {
    asm: &'a mut Asm,
    base: u32,
    set: usize,
    search: [u32; 2],
}

/// An operand's page is not the TLB's.
struct Unknown {
    from: Fixup32,
    at: Reg,
    write: bool,
}

impl Thunk<'_> {
    fn field(&self, offset: u32) -> Mem {
        Mem::abs(self.base + offset)
    }

    fn emit(mut self, exit: u32, shape: Shape) -> u32 {
        let Shape { moves, repeated, log } = shape;
        let start = self.asm.here();
        let index = self.field(Field::EXIT);
        self.asm.store(Width::W64, index, Reg::RCX);
        put_flags_aside(self.asm, self.base);
        let direction = self.field(Field::DIRECTION);
        self.asm.load(Width::W32, Reg::RAX, direction);
        self.asm.bytes(&[0x85, 0xc0]); // test eax, eax
        let mut slow = vec![self.asm.jcc_forward(5)];
        let mut none = None;
        if repeated {
            self.asm.bytes(&[0x4d, 0x85, 0xf6]); // test r14, r14
            none = Some(self.asm.jcc_forward(4));
        }
        let mut next_page = None;
        if repeated && log == 0 {
            next_page = Some(self.asm.here());
            self.asm.mov(Width::W64, Reg::R10, regs::RCX_HOME);
            self.cut_to_page(Reg(7));
            if moves {
                self.cut_to_page(Reg(6));
            }
        } else if repeated {
            self.asm.bytes(&[0x49, 0x81, 0xfe]); // cmp r14, elements of a page
            self.asm.bytes(&(PAGE_SIZE as u32 >> log).to_le_bytes());
            slow.push(self.asm.jcc_forward(7));
            self.asm.bytes(&[0x4d, 0x89, 0xf2, 0x49, 0xc1, 0xe2, log]); // mov r10, r14; shl r10, log
        } else {
            self.asm.mov_imm(Reg::R10, 1 << log);
        }
        let destination = self.field(Field::TEMPORARY);
        let mut unknown = Vec::new();
        slow.push(self.look_up(Reg(7), true, &mut unknown));
        self.asm.store(Width::W64, destination, Reg::R11);
        if moves {
            slow.push(self.look_up(Reg(6), false, &mut unknown));
        }
        if repeated {
            slow.push(self.count(log));
        }
        let rax = self.field(Field::TEMPORARY_RAX);
        self.asm.load(Width::W64, Reg::RAX, rax);
        self.asm.op_load_add(Reg(7), destination);
        if moves {
            self.asm.bytes(&[0x4c, 0x01, 0xde]); // add rsi, r11
        }
        if repeated {
            self.asm.bytes(&[0x4c, 0x89, 0xd1, 0x48, 0xc1, 0xe9, log]); // mov rcx, r10; shr rcx, log
        }
        self.asm.bytes(&shape.bytes());
        self.asm.op_load_sub(Reg(7), destination);
        if moves {
            self.asm.bytes(&[0x4c, 0x29, 0xde]); // sub rsi, r11
        }
        if repeated {
            self.asm.bytes(&[0x49, 0xc1, 0xea, log, 0x4d, 0x29, 0xd6]); // shr r10, log; sub r14, r10
        }
        if let Some(next_page) = next_page {
            let done = self.asm.jcc_forward(4);
            self.asm.jmp(next_page);
            self.asm.bind32(done);
        }
        none.into_iter().for_each(|none| self.asm.bind32(none));
        restore_flags(self.asm, self.base);
        let behind = self.field(Field::BEHIND);
        self.asm.jmp_mem(behind);
        unknown.into_iter().for_each(|operand| self.search(&operand, start));
        slow.into_iter().for_each(|from| self.asm.bind32(from));
        restore_flags(self.asm, self.base);
        self.asm.load(Width::W64, Reg::RCX, index);
        self.asm.jmp(exit);
        start
    }

    /// Searches the spill table for an operand of R10 bytes, to begin again if it is there.
    fn search(&mut self, operand: &Unknown, start: u32) {
        self.asm.bind32(operand.from);
        restore_flags(self.asm, self.base);
        self.asm.lea(Width::W64, Reg::R11, Mem::base_index(operand.at, Reg::R10, -1));
        self.asm.mov(Width::W64, Reg::R10, operand.at);
        let (retry, index) = (self.field(Field::RETRY), self.field(Field::EXIT));
        self.asm.store_imm(Width::W64, retry, start as i32);
        self.asm.load(Width::W64, Reg::RCX, index);
        self.asm.jmp(self.search[operand.write as usize]);
    }

    /// The addend of the page at `at` to R11; the way taken if R10 bytes from there are not on that
    /// page.
    fn look_up(&mut self, at: Reg, write: bool, unknown: &mut Vec<Unknown>) -> Fixup32 {
        let table = self.base + Field::set(self.set) + Field::data(write);
        let n = at.0 << 3;
        self.asm.lea(Width::W64, Reg::R11, Mem::base_index(at, Reg::R10, -1));
        self.asm.bytes(&[0x49, 0x31, 0xc3 | n, 0x49, 0xc1, 0xeb, 12]); // xor r11, at; shr r11, 12
        let crossing = self.asm.jcc_forward(5);
        self.asm.mov(Width::W64, Reg::RCX, at);
        unknown.push(Unknown { from: look_up_page(self.asm, self.set, table), at, write });
        crossing
    }

    /// Leaves no more bytes in R10 than there are from `at` to the end of its page.
    fn cut_to_page(&mut self, at: Reg) {
        let n = at.0 << 3;
        self.asm.bytes(&[0x89, 0xc0 | n, 0x0d, 0, 0xf0, 0xff, 0xff, 0xf7, 0xd8]); // mov eax, at; or eax, -4096; neg eax
        self.asm.bytes(&[0x49, 0x39, 0xc2, 0x4c, 0x0f, 0x47, 0xd0]); // cmp r10, rax; cmova r10, rax
    }

    /// Takes the iterations of R10 bytes out of the budget, all but one if no others are left; the way taken
    /// if it does not cover them.
    fn count(&mut self, log: u8) -> Fixup32 {
        const { assert!(regs::UNIT == 64) };
        self.asm.bytes(&[0x4c, 0x89, 0xd0, 0x48, 0xc1, 0xe8, log]); // mov rax, r10; shr rax, log
        self.asm.bytes(&[0x4c, 0x39, 0xf0, 0x48, 0x83, 0xd0, 0xff]); // cmp rax, r14; adc rax, -1
        self.asm.bytes(&[0x48, 0xc1, 0xe0, 6]); // shl rax, 6
        self.asm.bytes(&[0x4c, 0x89, 0xf9, 0x48, 0x29, 0xc1]); // mov rcx, r15; sub rcx, rax
        self.asm.bytes(&[0x48, 0x81, 0xf9]); // cmp rcx, what nothing is left at
        self.asm.bytes(&(regs::NOTHING_LEFT as u32).to_le_bytes());
        let short = self.asm.jcc_forward(12);
        self.asm.bytes(&[0x49, 0x89, 0xcf]); // mov r15, rcx
        short
    }
}
