//! The two doors between Rust and translated code.
//!
//! `enter` loads the guest's registers into the host's and jumps to a block; `exit` stores them
//! back and returns to Rust. They are emitted at start-up because they address the arena
//! absolutely. Where each register lives is `regs`'s business; the stack pointer is the guest's
//! while translated code runs, so nothing of ours may push, and signals use an alternate stack.

use super::asm::{Asm, Mem, Reg, Width};
use super::hot::Field;
use super::regs;

/// Addresses of the doors.
#[derive(Clone, Copy, Debug)]
pub struct Thunks {
    /// Called from Rust (C calling convention) after `Hot::target` is set.
    pub enter: u32,
    /// Jumped to by translated code with ECX = exit index.
    pub exit: u32,
}

const CALLEE_SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

/// Emits both doors.
pub fn emit(asm: &mut Asm, base: u32, avx: bool) -> Thunks {
    let field = |offset: u32| Mem::abs(base + offset);
    let enter = asm.here();
    for r in CALLEE_SAVED {
        push(asm, r);
    }
    asm.lea(Width::W64, Reg::RSP, Mem::base(Reg::RSP, -8));
    asm.store(Width::W64, field(Field::HOST_RSP), Reg::RSP);
    for n in 0..16 {
        asm.vector(avx, false, n, base + Field::ymm(n as usize));
    }
    asm.op_0f_mem(0xae, 3, field(Field::HOST_MXCSR)); // stmxcsr
    asm.op_0f_mem(0xae, 2, field(Field::MXCSR)); // ldmxcsr
    asm.push_mem(field(Field::FLAGS));
    asm.bytes(&[0x9d]); // popfq
    for (guest, host) in regs::HOMES {
        asm.load(Width::W64, host, field(Field::gpr(guest)));
    }
    asm.load(Width::W64, regs::BUDGET, field(Field::BUDGET));
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
        asm.bytes(&[0xc5, 0xf8, 0x77]); // vzeroupper
    }
    asm.lea(Width::W64, Reg::RSP, Mem::base(Reg::RSP, 8));
    for r in CALLEE_SAVED.iter().rev() {
        pop(asm, *r);
    }
    asm.bytes(&[0xc3]);
    Thunks { enter, exit }
}

fn push(asm: &mut Asm, r: u8) {
    if r >= 8 {
        asm.bytes(&[0x41]);
    }
    asm.bytes(&[0x50 | (r & 7)]);
}

fn pop(asm: &mut Asm, r: u8) {
    if r >= 8 {
        asm.bytes(&[0x41]);
    }
    asm.bytes(&[0x58 | (r & 7)]);
}
