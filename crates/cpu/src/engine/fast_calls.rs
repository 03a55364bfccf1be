//! SYSCALL and SYSRET without leaving translated code.
//!
//! Both lead from one mode set to another, through the other set's jump cache. That is sound because
//! the sets of a [`Family`] are only ever admitted together ([`super::tlb::Tlb::enter_mode`]): while
//! a 64-bit program's set holds translations of its mode, the kernel's two hold those of the modes
//! that it would come to from there, and the other way round.
//!
//! What is common is done here: 64-bit code on both sides, no flag that needs care (TF, AC, NT and the
//! like), no interrupt that SYSRET would let in, nothing to be done to the mirror before a program runs, its stack
//! pointer where one has been looked at (see [`super::stack`]). Anything else is left to Rust with nothing done yet.
//! Segments change to flat ones whose hidden parts follow from IA32_STAR; Rust keeps them ready in the
//! hot data ([`ready`]).

use super::asm::{Asm, Fixup32, Mem, Reg, Width};
use super::blocks::{DecodedId, ExitKind, Mode};
use super::emit::Emitter;
use super::hot::{Field, Hot, KERNEL};
use super::regs::RCX_HOME;
use super::returns;
use super::thunks::{put_flags_aside, restore_flags};
use crate::marks::mark;
use crate::system::{SYSRET_FLAGS, syscall_segments, sysret_segments};
use x86::{Segment, SegmentIndex, flags, gpr};

/// The modes of 64-bit code that differ in nothing but privilege and lifted SMAP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Family {
    pub kernel: Mode,
    pub lifted: Mode,
    pub program: Mode,
}

/// Addresses of the thunks.
#[derive(Clone, Copy, Debug)]
pub struct FastCalls {
    syscall: u32,
    sysret: u32,
    /// See [`super::returns`].
    pub iretq: u32,
}

/// What code and stack segment become, less their bases of 0: the second eight bytes of each.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Ready {
    star: u64,
    pub syscall: [u64; 2],
    pub sysret: [u64; 2],
}

/// Makes `hot` follow IA32_STAR, and what returns go by.
pub fn ready(hot: &mut Hot) {
    returns::ready(hot);
    let star = hot.state.msr.star;
    // A STAR of zero is that of power-on, for which nothing is ready either.
    if hot.ready.star != star || hot.ready.syscall[0] == 0 {
        let [syscall, sysret] = [syscall_segments(star), sysret_segments(star)].map(|s| s.map(second_half));
        hot.ready = Ready { star, syscall, sysret };
    }
}

/// All of a segment but its base.
pub fn second_half(segment: Segment) -> u64 {
    u64::from(segment.limit) | u64::from(segment.attributes) << 32 | u64::from(segment.selector) << 48
}

/// Emits SYSCALL in 64-bit program code; `next` is the address behind it.
pub fn emit_syscall(e: &mut Emitter, next: u64) {
    mark!(FastSyscall);
    e.asm.mov_virt(Reg::R10, next);
    go(e, e.thunks.fast_calls.syscall);
}

/// Emits SYSRET with a 64-bit operand in the kernel's code.
pub fn emit_sysret(e: &mut Emitter) {
    mark!(FastSysret);
    go(e, e.thunks.fast_calls.sysret);
}

/// The thunks take the exit to Rust in ECX; the next one is for a target not in the jump cache.
pub fn go(e: &mut Emitter, thunk: u32) {
    e.release();
    let id = e.exit_for(e.insn, ExitKind::Interpret { decoded: DecodedId::NONE });
    e.exit_for(e.insn, ExitKind::FastCall);
    e.asm.mov_exit(id.0);
    e.asm.jmp(thunk);
}

/// RFLAGS bits that stay where [`Hot::other_flags`] keeps them.
const OTHERS: u32 = !(flags::STATUS | flags::IF | flags::DF | flags::AC | flags::RF | flags::VM) as u32;
/// Those that SYSCALL must leave clear to be done here.
const SYSCALL_CARE: u32 = (flags::TF | flags::AC | flags::RF | flags::VM) as u32;
/// Those that SYSRET and IRETQ must leave as they are.
pub const SYSRET_CARE: u32 = !(flags::STATUS | flags::IF | flags::DF | flags::FIXED) as u32;

/// Emits the thunks; `exit` is the exit door.
pub fn thunks(asm: &mut Asm, base: u32, exit: u32) -> FastCalls {
    let mut thunk = Thunk { asm, base, exit, slow: Vec::new() };
    FastCalls { syscall: thunk.syscall(), sysret: thunk.sysret(), iretq: thunk.iretq() }
}

/// One being emitted.
pub struct Thunk<'a> {
    pub asm: &'a mut Asm,
    base: u32,
    exit: u32,
    /// Ways to Rust.
    pub slow: Vec<Fixup32>,
}

impl Thunk<'_> {
    /// A field of the hot data.
    pub fn field(&self, offset: u32) -> Mem {
        Mem::abs(self.base + offset)
    }

    /// Loads one.
    pub fn load(&mut self, width: Width, to: Reg, field: u32) {
        let from = self.field(field);
        self.asm.load(width, to, from);
    }

    fn store(&mut self, width: Width, field: u32, from: Reg) {
        let to = self.field(field);
        self.asm.store(width, to, from);
    }

    /// With the address behind SYSCALL in R10.
    fn syscall(&mut self) -> u32 {
        let start = self.begin();
        self.unless_off();
        // ecx = RFLAGS
        self.asm.bytes(&[0x0f, 0xb6, 0xcc, 0x44, 0x0f, 0xb6, 0xd8]); // movzx ecx, ah; movzx r11d, al
        self.asm.bytes(&[0x41, 0xc1, 0xe3, 11, 0x44, 0x09, 0xd9]); // shl r11d, 11; or ecx, r11d
        for (field, bit) in
            [(Field::INTERRUPTS, 9), (Field::DIRECTION, 10), (Field::ALIGNMENT, 18), (Field::OTHER_FLAGS, 0)]
        {
            self.load(Width::W32, Reg::R11, field);
            self.asm.bytes(&[0x41, 0xc1, 0xe3, bit, 0x44, 0x09, 0xd9]); // shl r11d, bit; or ecx, r11d
        }
        self.asm.mov(Width::W32, Reg::RAX, Reg::RCX);
        self.load(Width::W32, Reg::R11, Field::SFMASK);
        self.asm.bytes(&[0x41, 0xf7, 0xd3, 0x44, 0x21, 0xd9, 0x83, 0xc9, 2]); // not r11d; and ecx, r11d; or ecx, 2
        self.unless_clear(&[0xf7, 0xc1], SYSCALL_CARE); // test ecx, …
        self.store(Width::W64, Field::gpr(gpr::R11), Reg::RAX);
        self.asm.mov(Width::W64, RCX_HOME, Reg::R10);
        self.asm.mov(Width::W32, Reg::R11, Reg::RCX);
        self.asm.bytes(&[0x41, 0x81, 0xe3]); // and r11d, OTHERS
        self.asm.bytes(&OTHERS.to_le_bytes());
        self.store(Width::W32, Field::OTHER_FLAGS, Reg::R11);
        self.load(Width::W64, Reg::R10, Field::LSTAR);
        self.finish(Some(KERNEL), Field::READY_SYSCALL, 0);
        start
    }

    fn sysret(&mut self) -> u32 {
        let start = self.begin();
        self.unless_off();
        self.load(Width::W32, Reg::RCX, Field::gpr(gpr::R11));
        self.asm.bytes(&[0x81, 0xe1]); // and ecx, …
        self.asm.bytes(&(SYSRET_FLAGS as u32).to_le_bytes());
        self.asm.mov(Width::W32, Reg::RAX, Reg::RCX);
        self.load(Width::W32, Reg::R11, Field::OTHER_FLAGS);
        self.asm.bytes(&[0x44, 0x31, 0xd8]); // xor eax, r11d
        self.unless_clear(&[0xf7, 0xc0], SYSRET_CARE); // test eax, …
        // The target is canonical if bits 63 to 47 are all alike.
        self.asm.mov(Width::W64, Reg::RAX, RCX_HOME);
        self.asm.bytes(&[0x48, 0xc1, 0xf8, 47, 0x83, 0xc0, 1, 0x83, 0xf8, 1]); // sar rax, 47; add eax, 1; cmp eax, 1
        self.slow.push(self.asm.jcc_forward(7));
        self.unless_quiet();
        self.asm.mov(Width::W64, Reg::RAX, Reg::RSP);
        self.unless_claimed();
        self.asm.mov(Width::W64, Reg::R10, RCX_HOME);
        self.finish(None, Field::READY_SYSRET, 3);
        start
    }

    /// Puts the exit, RAX and the status flags aside, the latter into AX too.
    pub fn begin(&mut self) -> u32 {
        let start = self.asm.here();
        self.store(Width::W64, Field::EXIT, Reg::RCX);
        put_flags_aside(self.asm, self.base);
        start
    }

    /// Away unless EFER.SCE is set.
    fn unless_off(&mut self) {
        self.load(Width::W32, Reg::R11, Field::EFER);
        self.asm.bytes(&[0x41, 0xf6, 0xc3, 1]); // test r11b, SCE
        self.slow.push(self.asm.jcc_forward(4));
    }

    /// Away if an interrupt waits that RFLAGS ECX let in, or something has to be done to the mirror before a program
    /// runs.
    pub fn unless_quiet(&mut self) {
        self.load(Width::W32, Reg::RAX, Field::PENDING);
        self.asm.bytes(&[0xc1, 0xe0, 9, 0x85, 0xc8]); // shl eax, 9; test eax, ecx
        self.slow.push(self.asm.jcc_forward(5));
        self.load(Width::W32, Reg::RAX, Field::STALE);
        self.asm.bytes(&[0x85, 0xc0]); // test eax, eax
        self.slow.push(self.asm.jcc_forward(5));
    }

    /// Away if the stack pointer in RAX is not where one has been found to be well.
    pub fn unless_claimed(&mut self) {
        self.load(Width::W64, Reg::R11, Field::STACK_AT);
        self.asm.bytes(&[0x4c, 0x31, 0xd8]); // xor rax, r11
        self.load(Width::W64, Reg::R11, Field::STACK_MASK);
        self.asm.bytes(&[0x4c, 0x85, 0xd8]); // test rax, r11
        self.slow.push(self.asm.jcc_forward(5));
    }

    /// `test` with an immediate, and away if any bit is set.
    pub fn unless_clear(&mut self, test: &[u8], bits: u32) {
        self.asm.bytes(test);
        self.asm.bytes(&bits.to_le_bytes());
        self.slow.push(self.asm.jcc_forward(5));
    }

    /// On with RFLAGS ECX at the address in R10, in another mode set, or in the one that programs have now;
    /// emits the ways to Rust too.
    pub fn finish(&mut self, set: Option<usize>, ready: u32, cpl: u8) {
        for (field, bit) in [(Field::INTERRUPTS, 9), (Field::DIRECTION, 10), (Field::ALIGNMENT, 18)] {
            self.asm.bytes(&[0x41, 0x89, 0xcb, 0x41, 0xc1, 0xeb, bit, 0x41, 0x83, 0xe3, 1]); // mov r11d, ecx; shr r11d, bit; and r11d, 1
            self.store(Width::W32, field, Reg::R11);
        }
        for (segment, part) in [(SegmentIndex::Cs, 0), (SegmentIndex::Ss, 8)] {
            let base = self.field(Field::segment_base(segment as usize));
            self.asm.store_imm(Width::W64, base, 0);
            self.load(Width::W64, Reg::R11, ready + part);
            self.store(Width::W64, Field::segment_base(segment as usize) + 8, Reg::R11);
        }
        let privilege = self.field(Field::CPL);
        self.asm.store_imm8(privilege, cpl);
        self.asm.mov(Width::W32, Reg::RAX, Reg::RCX);
        self.asm.bytes(&[0xc1, 0xe9, 11, 0x83, 0xe1, 1]); // shr ecx, 11; and ecx, 1
        self.asm.bytes(&[0x88, 0xc4, 0x80, 0xc1, 0x7f, 0x9e]); // mov ah, al; add cl, 127; sahf
        self.load(Width::W64, Reg::RAX, Field::TEMPORARY_RAX);
        self.asm.movzx16(Reg::R11, Reg::R10);
        self.asm.lea(Width::W32, Reg::R11, Mem::base_index(Reg::R11, Reg::R11, 0));
        let (target, code) = match set.map(|set| self.base + Field::set(set) + Field::JUMP) {
            Some(table) => (Mem::table(table, Reg::R11), Mem::table(table + 8, Reg::R11)),
            None => {
                self.load(Width::W64, Reg::RCX, Field::PROGRAM_JUMP);
                let entry =
                    Mem { base: Some(Reg::RCX), index: Some((Reg::R11, 3)), disp: 0, relative: false };
                self.asm.lea(Width::W64, Reg::R11, entry);
                (Mem::base(Reg::R11, 0), Mem::base(Reg::R11, 8))
            }
        };
        self.asm.load(Width::W64, Reg::RCX, target);
        self.asm.lea(Width::W64, Reg::RCX, Mem::base_index(Reg::R10, Reg::RCX, 0));
        let hit = self.asm.jrcxz();
        self.load(Width::W64, Reg::RCX, Field::EXIT);
        self.asm.lea(Width::W32, Reg::RCX, Mem::base(Reg::RCX, 1));
        self.asm.jmp(self.exit);
        self.asm.bind8(hit);
        self.asm.jmp_mem(code);
        for from in std::mem::take(&mut self.slow) {
            self.asm.bind32(from);
        }
        restore_flags(self.asm, self.base);
        self.load(Width::W64, Reg::RCX, Field::EXIT);
        self.asm.jmp(self.exit);
    }
}
