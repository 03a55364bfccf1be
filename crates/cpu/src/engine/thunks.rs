//! The two doors between Rust and translated code.
//!
//! `enter` loads the guest's registers into the host's and jumps to a block; `exit` stores them
//! back and returns to Rust. They are emitted at start-up because they address the arena
//! absolutely. Where each register lives is `regs`'s business; the stack pointer is the guest's
//! while translated code runs, so nothing of ours may push, and signals use an alternate stack.

use super::asm::{Asm, Fixup32, Mem, Reg, Width};
use super::fast_calls::{self, FastCalls};
use super::hot::{
    Field, KERNEL, LIFTED, SETS, SPILL_ENTRIES, SPILL_FOLD, SPREAD, SPREAD_SHIFT, SpillEntry, tlb_entries,
};
use super::regs;
use super::strings::{self, StringThunks};
use super::table_stores;
use super::xstate::{self, XstateThunks};
use std::mem::offset_of;

/// Addresses of the doors.
#[derive(Clone, Copy, Debug)]
pub struct Thunks {
    /// Called from Rust (C calling convention) after `Hot::target` is set.
    pub enter: u32,
    /// Jumped to by translated code with ECX = exit index.
    pub exit: u32,
    /// For each mode set, reads and writes: searches the spill table (see [`search`]).
    pub search: [[u32; 2]; SETS],
    /// For each mode set: looks for the target of an indirect jump in the second jump cache (see
    /// [`look_behind`]).
    pub indirect: [u32; SETS],
    /// SYSCALL and SYSRET.
    pub fast_calls: FastCalls,
    /// MOVS and STOS.
    pub strings: StringThunks,
    /// XSAVEC and XRSTOR, where the host has AVX.
    pub xstate: Option<XstateThunks>,
}

const CALLEE_SAVED: [Reg; 6] = [Reg(3), Reg(5), Reg(12), Reg(13), Reg(14), Reg(15)];

/// Emits both doors.
pub fn emit(asm: &mut Asm, base: u32, avx: bool) -> Thunks {
    let field = |offset: u32| Mem::abs(base + offset);
    let enter = asm.here();
    for r in CALLEE_SAVED {
        asm.push(r);
    }
    asm.lea(Width::W64, Reg::RSP, Mem::base(Reg::RSP, -8));
    asm.store(Width::W64, field(Field::HOST_RSP), Reg::RSP);
    load_vectors(asm, base, avx);
    asm.op_0f_mem(0xae, 3, field(Field::HOST_MXCSR)); // stmxcsr
    asm.op_0f_mem(0xae, 2, field(Field::MXCSR)); // ldmxcsr
    asm.push_mem(field(Field::FLAGS));
    asm.bytes(&[0x9d]); // popfq
    for (guest, host) in regs::HOMES {
        asm.load(Width::W64, host, field(Field::gpr(guest)));
    }
    asm.load(Width::W64, regs::BUDGET, field(Field::BUDGET));
    asm.load(Width::W64, Reg::R10, field(Field::R10));
    asm.load(Width::W64, Reg::R11, field(Field::R11));
    asm.jmp_mem(field(Field::TARGET));

    let exit = asm.here();
    for (guest, host) in regs::HOMES {
        asm.store(Width::W64, field(Field::gpr(guest)), host);
    }
    asm.store(Width::W64, field(Field::BUDGET), regs::BUDGET);
    asm.store(Width::W64, field(Field::EXIT), Reg::RCX);
    asm.store(Width::W64, field(Field::R10), Reg::R10);
    asm.store(Width::W64, field(Field::R11), Reg::R11);
    asm.load(Width::W64, Reg::RSP, field(Field::HOST_RSP));
    asm.bytes(&[0x9c]); // pushfq
    asm.pop_mem(field(Field::FLAGS));
    for n in 0..16 {
        asm.vector(avx, true, n, base + Field::ymm(n as usize));
    }
    asm.op_0f_mem(0xae, 3, field(Field::MXCSR));
    asm.op_0f_mem(0xae, 2, field(Field::HOST_MXCSR));
    if avx {
        asm.vzeroupper();
    }
    asm.lea(Width::W64, Reg::RSP, Mem::base(Reg::RSP, 8));
    for r in CALLEE_SAVED.iter().rev() {
        asm.pop(*r);
    }
    asm.bytes(&[0xc3]);
    let search = std::array::from_fn(|set| [false, true].map(|write| search(asm, base, exit, set, write)));
    let strings = strings::thunks(asm, base, exit, &search);
    let indirect = std::array::from_fn(|set| look_behind(asm, base, exit, set));
    let fast_calls = fast_calls::thunks(asm, base, exit);
    let xstate = avx.then(|| xstate::thunks(asm, base, exit, search[KERNEL]));
    Thunks { enter, exit, search, indirect, fast_calls, strings, xstate }
}

/// Loads the guest's vector registers; RFLAGS are nobody's yet.
///
/// As long as upper halves are zero they are left in their initial configuration, as a kernel leaves them that restores
/// a program by XRSTOR. If they were loaded, zeros would count as contents, and each SSE instruction, which keeps
/// them, would wait for whatever wrote its destination before: `movsd xmm0, [a]; mulsd xmm0, [b]` of one iteration for
/// that of the one before. A product of matrices took 3.5 times the native time on Zen 5.
fn load_vectors(asm: &mut Asm, base: u32, avx: bool) {
    let registers = |asm: &mut Asm, whole: bool| {
        (0..16).for_each(|n| asm.vector(whole, false, n, base + Field::ymm(n as usize)));
    };
    if !avx {
        return registers(asm, false);
    }
    let upper = |n: usize| Mem::abs(base + Field::ymm(n) + 16);
    for n in [0, 1] {
        asm.vmovups(false, n as u8, upper(n));
    }
    for n in 2..16 {
        asm.vpor(n as u8 % 2, upper(n));
    }
    asm.bytes(&[0xc5, 0xf9, 0xeb, 0xc1]); // vpor xmm0, xmm0, xmm1
    asm.bytes(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]); // vptest xmm0, xmm0
    let in_use = asm.jcc_forward(5);
    asm.vzeroupper();
    registers(asm, false);
    let loaded = asm.jmp_forward();
    asm.bind32(in_use);
    registers(asm, true);
    asm.bind32(loaded);
}

/// Emits the search of a spill table: with the access's address in R10, its last byte's in R11 and
/// the exit index in ECX, moves a translation that is found into the direct-mapped table and tries
/// the access again at `Hot::retry`; else leaves by the exit door, unless it is the kernel's to a page table (see
/// [`table_stores`]).
///
/// Unlike translated blocks it computes with status flags, so it puts the guest's aside.
fn search(asm: &mut Asm, base: u32, exit: u32, set: usize, write: bool) -> u32 {
    let start = asm.here();
    let field = |offset: u32| Mem::abs(base + offset);
    let table = base + Field::set(set);
    let spill = (table + Field::spill(write)) as i32;
    let tlb = table + Field::data(write);
    let part = |offset: u32| Mem {
        base: None,
        index: Some((Reg::R11, 0)),
        disp: spill + offset as i32,
        relative: false,
    };

    let tables = set == KERNEL && write;
    if tables {
        asm.store(Width::W64, field(Field::LAST_BYTE), Reg::R11);
    }
    put_flags_aside(asm, base);
    asm.bytes(&[0x4d, 0x31, 0xd3, 0x49, 0xc1, 0xeb, 12]); // xor r11, r10; shr r11, 12
    let crossing = asm.jcc_forward(5);
    asm.mov(Width::W64, Reg::R11, Reg::R10);
    asm.bytes(&[0x49, 0xc1, 0xeb, 12]); // shr r11, 12
    asm.mov(Width::W64, Reg::RAX, Reg::R10);
    asm.bytes(&[0x48, 0xc1, 0xe8, 12 + SPILL_FOLD, 0x49, 0x31, 0xc3]); // shr rax, 12 + fold; xor r11, rax
    asm.bytes(&[0x41, 0x81, 0xe3]); // and r11d, entries - 1
    asm.bytes(&(SPILL_ENTRIES as u32 - 1).to_le_bytes());
    asm.bytes(&[0x41, 0xc1, 0xe3, size_of::<SpillEntry>().trailing_zeros() as u8]); // shl r11d, 4
    asm.mov(Width::W64, Reg::RAX, Reg::R10);
    asm.bytes(&[0x48, 0x25, 0, 0xf0, 0xff, 0xff]); // and rax, -4096
    let kernel_half = (set == LIFTED).then(|| asm.jcc_forward(8)); // js
    asm.op_load_add(Reg::R11, Mem::abs(table + Field::way(write)));
    asm.op_load_add(Reg::RAX, Mem::abs(table + Field::generation(write)));
    if let Some(kernel_half) = kernel_half {
        let programs_half = asm.jmp_forward();
        asm.bind32(kernel_half);
        let kernel = base + Field::set(KERNEL);
        asm.op_load_add(Reg::R11, Mem::abs(kernel + Field::way(write)));
        asm.op_load_add(Reg::RAX, Mem::abs(kernel + Field::generation(write)));
        asm.bind32(programs_half);
    }
    asm.op_cmp(Reg::RAX, part(offset_of!(SpillEntry, key) as u32));
    let missing = asm.jcc_forward(5);
    asm.bytes(&[0x48, 0x25, 0, 0xf0, 0xff, 0xff, 0x48, 0xf7, 0xd8]); // and rax, -4096; neg rax
    asm.bytes(&[0x49, 0xc1, 0xea, 12]); // shr r10, 12
    cut_to_slot(asm, set, Reg::R10);
    asm.store(Width::W64, Mem::table(tlb + Field::TAG, Reg::R10), Reg::RAX);
    asm.load(Width::W64, Reg::RAX, part(offset_of!(SpillEntry, addend) as u32));
    asm.store(Width::W64, Mem::table(tlb + Field::ADDEND, Reg::R10), Reg::RAX);
    restore_flags(asm, base);
    asm.jmp_mem(field(Field::RETRY));
    asm.bind32(missing);
    if tables {
        table_stores::emit(asm, base);
    }
    asm.bind32(crossing);
    restore_flags(asm, base);
    asm.jmp(exit);
    start
}

/// Emits the second look for the target of an indirect jump: with it in R10 and the exit index in
/// ECX, jumps to its block or leaves by the exit door.
fn look_behind(asm: &mut Asm, base: u32, exit: u32, set: usize) -> u32 {
    let start = asm.here();
    let table = base + Field::set(set) + Field::JUMP_BEHIND;
    put_flags_aside(asm, base);
    asm.mov_imm(Reg::R11, SPREAD);
    asm.bytes(&[0x4d, 0x0f, 0xaf, 0xda]); // imul r11, r10
    asm.bytes(&[0x49, 0xc1, 0xeb, SPREAD_SHIFT, 0x49, 0xc1, 0xe3, 1]); // shr r11, SPREAD_SHIFT; shl r11, 1
    asm.mov(Width::W64, Reg::RAX, Reg::R10);
    asm.op_load_add(Reg::RAX, Mem::table(table, Reg::R11));
    asm.bytes(&[0x48, 0x85, 0xc0]); // test rax, rax
    let missing = asm.jcc_forward(5);
    restore_flags(asm, base);
    asm.jmp_mem(Mem::table(table + 8, Reg::R11));
    asm.bind32(missing);
    restore_flags(asm, base);
    asm.jmp(exit);
    start
}

/// Emits the way from a page's number to its slot in the data TLBs of a set.
pub fn cut_to_slot(asm: &mut Asm, set: usize, page: Reg) {
    match tlb_entries(set) {
        0x100 => asm.movzx8(page, page),
        0x1_0000 => asm.movzx16(page, page),
        _ => unreachable!("no zero extension gives this index"),
    }
}

/// Emits a look at a direct-mapped `table` of a set's data translations: the addend of the page that the address in RCX is on to
/// R11; the way taken if the table does not have it. RAX and RCX are lost, and so are status flags.
pub fn look_up_page(asm: &mut Asm, set: usize, table: u32) -> Fixup32 {
    asm.mov(Width::W64, Reg::R11, Reg::RCX);
    asm.bytes(&[0x49, 0xc1, 0xeb, 12]); // shr r11, 12
    cut_to_slot(asm, set, Reg::R11);
    asm.bytes(&[0x48, 0x81, 0xe1, 0, 0xf0, 0xff, 0xff]); // and rcx, -4096
    asm.load(Width::W64, Reg::RAX, Mem::table(table + Field::TAG, Reg::R11));
    asm.bytes(&[0x48, 0x01, 0xc8]); // add rax, rcx
    let unknown = asm.jcc_forward(5);
    asm.load(Width::W64, Reg::R11, Mem::table(table + Field::ADDEND, Reg::R11));
    unknown
}

/// Puts RAX and the status flags aside, the latter into AX too.
pub fn put_flags_aside(asm: &mut Asm, base: u32) {
    asm.store(Width::W64, Mem::abs(base + Field::TEMPORARY_RAX), Reg::RAX);
    asm.bytes(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
    asm.store(Width::W64, Mem::abs(base + Field::SEARCHING), Reg::RAX);
}

/// Brings back the flags and RAX that a thunk has put aside.
pub fn restore_flags(asm: &mut Asm, base: u32) {
    asm.load(Width::W64, Reg::RAX, Mem::abs(base + Field::SEARCHING));
    asm.bytes(&[0x04, 0x7f, 0x9e]); // add al, 127; sahf
    asm.load(Width::W64, Reg::RAX, Mem::abs(base + Field::TEMPORARY_RAX));
}
