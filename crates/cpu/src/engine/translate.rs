//! From guest bytes to one block of host code.
//!
//! Decoding comes first, because the block's head counts all of its instructions. A block ends
//! at an indirect jump, at a backward conditional one (a loop: its iterations are then counted
//! without giving back), at an instruction that always leads elsewhere, at the end of the page, or
//! at its limit. Forward conditional jumps are side exits that give back what they skip. Direct
//! jumps and calls to places of the same page that the block does not have yet are followed, and
//! short loops that begin with the block are repeated in it: what is known of earlier accesses
//! (see `groups`) then serves for the next iterations too.

use super::asm::{Mem, Reg, Width};
use super::blocks::{Block, BlockId, BlockKey, Exit, Incoming, Insn, Mode};
use super::classify::{Class, classify};
use super::contexts;
use super::emit::{Ea, Emitter, guest_of};
use super::groups::{Grouping, Plan};
use super::hot::Field;
use super::moves;
use super::plain::{Rewriter, wide_bit_string};
use super::privileged;
use super::regs;
use super::strings::{self, Shape};
use super::thunks::Thunks;
use super::used::Used;
use crate::marks::mark;
use base::PAGE_SIZE;
use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};
use std::collections::BTreeSet;
use x86::gpr;

/// Instructions up to which a short loop is repeated.
const UNROLL_MAX: usize = 32;

/// Where a block goes on behind an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Behind it in memory, if anywhere.
    Next,
    /// At its target: a direct jump or call.
    Followed,
    /// At the block's start, for another round of a loop: the conditional jump is turned around.
    Again,
}

/// Guest instructions of a block, decoded and classified.
struct Decoded {
    instr: Instruction,
    class: Class,
    used: Used,
    then: Then,
    /// From the block's first byte, as in [`Insn`]: its own and that of the next instruction.
    delta: i16,
    next: i16,
    len: u8,
    /// A debugger stops before it, and before each iteration if it is a repeated one.
    breakpoint: bool,
    /// Its accesses are checked although the code is mirrored.
    apart: bool,
}

/// What reading a block asks of those who know more than its page.
pub trait Surroundings {
    /// Whether another block begins at an offset of the page: the block being read ends there rather than
    /// have the same instructions again.
    fn begins_block(&self, at: usize) -> bool;
    /// Whether mirrored code is to check the accesses of the instruction at a linear address.
    fn is_checked(&mut self, virt: u64) -> bool;
    /// Whether mirrored code may access a linear address, and some bytes behind it, without a guard.
    fn claims(&mut self, virt: u64) -> bool;
}

/// Keeps what is expensive to make.
pub struct Translator {
    info: InstructionInfoFactory,
    rewriter: Rewriter,
    decoded: Vec<Decoded>,
    grouping: Grouping,
    plan: Plan,
    v3: bool,
}

/// A block with its code, which is to be written at its [`Place`].
pub struct Translated {
    pub block: Block,
    pub code: Vec<u8>,
    /// The cold part.
    pub cold: Vec<u8>,
    /// What depends on where the code stands (see `moves`), unless there is too much of it.
    pub notes: Option<Vec<u8>>,
    /// The same guest code at another address of its kind is the same but for that.
    pub slides: bool,
}

/// Addresses the translator wires in.
#[derive(Clone, Copy)]
pub struct Place {
    /// Where the block will stand, and its cold part.
    pub origin: u32,
    pub cold: u32,
    /// The arena's base.
    pub base: u32,
    /// The exit door.
    pub thunks: Thunks,
    /// The block's number, and that of its first way out.
    pub block: BlockId,
    pub exits: u32,
    /// Identity of its page.
    pub page_id: u32,
    /// The next page's identity and physical number, where `bytes` reach into it.
    pub second: Option<(u32, u64)>,
}

impl Place {
    /// For code at `origin` that belongs to no block and has no ways out of its own.
    pub fn outside(origin: u32, base: u32, thunks: Thunks) -> Self {
        Self { origin, cold: origin, base, thunks, block: BlockId(0), exits: 0, page_id: 0, second: None }
    }
}

impl Translator {
    /// For a processor model with (`v3`) or without AVX2 and its kin.
    pub fn new(v3: bool) -> Self {
        Self {
            info: InstructionInfoFactory::new(),
            rewriter: Rewriter::new(),
            decoded: Vec::new(),
            grouping: Grouping::default(),
            plan: Plan::new(),
            v3,
        }
    }

    /// Whether it is for a processor model with AVX2 and its kin.
    pub fn is_v3(&self) -> bool {
        self.v3
    }

    /// Whether the first instruction of `bytes`, which end with their page, is not all there.
    pub fn crosses(mode: Mode, bytes: &[u8]) -> bool {
        let mut decoder = Decoder::new(mode.bits(), bytes, decoder_options());
        bytes.len() < 15
            && decoder.decode().is_invalid()
            && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
    }

    /// Decodes the block of `key`, of at most `limit` instructions: the first step. `page` is what its
    /// page holds; or, for the one instruction that reaches into the next page, that and the next
    /// page's beginning.
    pub fn read(
        &mut self,
        key: BlockKey,
        page: &[u8],
        limit: u8,
        breakpoints: &BTreeSet<u64>,
        surroundings: &mut dyn Surroundings,
    ) {
        self.grouping.begin(key.mode.has(Mode::MIRRORED), key.shares);
        self.decode(key, page, limit, surroundings);
        if !breakpoints.is_empty() {
            // A block ends where the loop has to look at a breakpoint.
            let at = |d: &Decoded| breakpoints.contains(&key.virt.wrapping_add_signed(d.delta as i64));
            let end = self.decoded.iter().skip(1).position(at);
            self.decoded.truncate(end.map_or(self.decoded.len(), |end| end + 1));
        }
        self.decoded[0].breakpoint = breakpoints.contains(&key.virt);
    }

    /// Translates the block just [read](Self::read) from `page`. A block always has at least one instruction.
    pub fn block(
        &mut self,
        key: BlockKey,
        page: &[u8],
        place: Place,
        exits: &mut Vec<Exit>,
        insns: &mut Vec<Insn>,
    ) -> Translated {
        let decoded = std::mem::take(&mut self.decoded);
        let count = decoded.len() as u8;
        let grouped = self.grouping.plan(decoded.len(), &mut self.plan);
        let mut e = Emitter::new(&place, key.mode, exits);
        e.follow_plan(std::mem::take(&mut self.plan));
        let (checked, entry) = e.head(key.virt, place.page_id, place.second.map(|(id, _)| id), count);
        let offset = |e: &Emitter| (e.asm.here() - checked) as u16;
        let first_insn = insns.len() as u32;
        let start = key.phys as usize % PAGE_SIZE;
        let (mut first, mut end) = (start, start);
        let mut open = true;
        for (k, d) in decoded.iter().enumerate() {
            insns.push(Insn { delta: d.delta, host: offset(&e) });
            e.insn = k as u8;
            e.apart = d.apart;
            e.retry = e.asm.here();
            e.two_checks =
                matches!(d.class, Class::Push | Class::CallIndirect) && d.instr.op0_kind() == OpKind::Memory;
            let rest = count - 1 - k as u8;
            let at = start.wrapping_add_signed(d.delta as isize);
            (first, end) = (first.min(at), end.max(at + d.len as usize));
            open = self.instruction(&mut e, d, &page[at..][..d.len as usize], rest);
        }
        let after = decoded.last().expect("at least one instruction").next;
        insns.push(Insn { delta: after, host: offset(&e) });
        if open {
            e.jump_to(key.virt.wrapping_add_signed(after as i64));
        }
        self.plan = e.finish();
        let host_end = e.asm.here();
        let cold_end = e.cold.here();
        let notes = moves::packed(&mut e.asm.notes, &mut e.cold.notes);
        let slides = moves::slides(&key, &e.asm.notes, &e.cold.notes);
        let (code, cold) = (e.asm.code, e.cold.code);
        self.decoded = decoded;
        let block = Block {
            key,
            count,
            entry,
            checked,
            end: host_end,
            cold_end,
            insns: first_insn,
            first: first as u16,
            bytes: (end - first).max(1) as u16,
            second_page: place.second.map(|(_, page)| page),
            grouped,
            live: true,
            indirect: false,
            incoming: Incoming::new(),
            exits: place.exits,
            notes: (0, 0),
        };
        Translated { block, code, cold, notes, slides }
    }

    fn decode(&mut self, key: BlockKey, page: &[u8], limit: u8, surroundings: &mut dyn Surroundings) {
        self.decoded.clear();
        let begin = key.phys as usize % PAGE_SIZE;
        let base = key.virt.wrapping_sub(begin as u64);
        let mut decoder = Decoder::with_ip(key.mode.bits(), page, base, decoder_options());
        let mut position = begin;
        while self.decoded.len() < limit as usize {
            if !self.decoded.is_empty() && surroundings.begins_block(position) {
                mark!(RunsIntoAnother);
                return;
            }
            decoder.set_position(position).expect("inside of the page");
            decoder.set_ip(base.wrapping_add(position as u64));
            let instr = decode_next(&mut decoder, page);
            let crossing = instr.is_invalid() && page.len() - position < 15;
            if crossing && !self.decoded.is_empty() {
                return;
            }
            let info = self.info.info(&instr);
            let used = Used::of(info);
            let class =
                if crossing { Class::InterpretAndLeave } else { classify(&instr, info, key.mode, self.v3) };
            let insn = self.decoded.len() as u8;
            let apart = match key.mode.has(Mode::MIRRORED) {
                true => stands_apart(&instr, class, surroundings),
                false => surroundings.is_checked(instr.ip()),
            };
            match (key.mode.is64(), apart) {
                (true, false) => self.grouping.add(&instr, class, used, insn),
                (true, true) => self.grouping.add_apart(&instr, class, used, insn),
                _ => {}
            }
            let end = decoder.position();
            let (delta, len) = ((position as i64 - begin as i64) as i16, (end - position) as u8);
            let then = self.then(key, class, &instr);
            position = match then {
                Then::Next => end,
                _ => instr.near_branch_target() as usize % PAGE_SIZE,
            };
            let next = (position as i64 - begin as i64) as i16;
            let breakpoint = false;
            self.decoded.push(Decoded { instr, class, used, then, delta, next, len, breakpoint, apart });
            if then == Then::Next && ends_block(class, &instr) || position >= page.len() {
                return;
            }
        }
    }

    /// Where the block goes on behind the instruction just decoded.
    fn then(&self, key: BlockKey, class: Class, instr: &Instruction) -> Then {
        if !key.mode.is64() || instr.op0_kind() != OpKind::NearBranch64 {
            return Then::Next;
        }
        let target = instr.near_branch_target();
        let count = self.decoded.len() + 1;
        match class {
            Class::Jump | Class::Call => {
                let delta = target.wrapping_sub(key.virt) as i64;
                let known = || self.decoded.iter().any(|d| d.delta as i64 == delta);
                let here = target >> 12 == key.virt >> 12 && count < key.limit as usize;
                if !here || instr.ip() == target || known() {
                    return Then::Next;
                }
                mark!(JumpFollowed);
                Then::Followed
            }
            Class::Conditional if target == key.virt => {
                let rounds = 1 + self.decoded.iter().filter(|d| d.then == Then::Again).count();
                let more = count + count / rounds <= UNROLL_MAX.min(key.limit as usize);
                if !more || count == 1 {
                    return Then::Next;
                }
                mark!(Unrolled);
                Then::Again
            }
            _ => Then::Next,
        }
    }

    /// Emits one instruction; false when nothing follows it.
    fn instruction(&mut self, e: &mut Emitter, d: &Decoded, bytes: &[u8], rest: u8) -> bool {
        let instr = &d.instr;
        let moved = self.grouping.stack.guard_of(e.insn);
        if moved.is_some_and(|moved| d.apart || !e.guard_stack(moved)) {
            mark!(StackFollowedByRust);
            e.interpret();
            return d.class != Class::InterpretAndLeave;
        }
        if d.then != Then::Next {
            follow(e, d, rest);
            return true;
        }
        let done = match d.class {
            Class::Hint => {
                if instr.mnemonic() == Mnemonic::Pause {
                    contexts::emit_pause(e);
                }
                Ok(())
            }
            Class::Registers => self.rewriter.registers(e, instr, d.used, bytes),
            Class::Memory => self.rewriter.memory(e, instr, d.used, bytes),
            Class::Lea => {
                lea(e, instr);
                Ok(())
            }
            Class::Push => {
                push(e, instr);
                Ok(())
            }
            Class::Pop => {
                pop(e, instr);
                Ok(())
            }
            Class::Leave => {
                leave(e);
                Ok(())
            }
            Class::Interpret | Class::InterpretAndLeave => {
                e.release();
                if let (Some(shape), true, false) = (Shape::of(instr), e.mode.is64(), d.breakpoint) {
                    strings::emit(e, shape);
                    return true;
                }
                if let Some(ends) = privileged::emit(e, instr, e.insn + rest + 1) {
                    return !ends;
                }
                e.interpret();
                return d.class == Class::Interpret;
            }
            flow => return branch(e, instr, flow, rest),
        };
        if done.is_err() {
            e.interpret();
        }
        true
    }
}

/// Whether an instruction of mirrored code is translated with checks nevertheless: it has not done well
/// without, its operand is at an address that the mirror cannot have, or may be far from where it points, or
/// it changes registers before it accesses memory (PUSHF).
fn stands_apart(instr: &Instruction, class: Class, surroundings: &mut dyn Surroundings) -> bool {
    let memory = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    let (base, index) = (instr.memory_base(), instr.memory_index());
    let absolute = instr.is_ip_rel_memory_operand() || base == Register::None && index == Register::None;
    let based = matches!(instr.memory_segment(), Register::FS | Register::GS);
    class == Class::Interpret
        || surroundings.is_checked(instr.ip())
        || wide_bit_string(instr)
        || memory && absolute && !based && !surroundings.claims(instr.memory_displacement64())
}

fn ends_block(class: Class, instr: &Instruction) -> bool {
    match class {
        Class::Jump
        | Class::Counted
        | Class::Call
        | Class::Return
        | Class::JumpIndirect
        | Class::CallIndirect
        | Class::InterpretAndLeave => true,
        Class::Interpret => matches!(instr.mnemonic(), Mnemonic::Stac | Mnemonic::Clac),
        Class::Conditional => instr.near_branch_target() <= instr.ip(),
        _ => false,
    }
}

/// Emits a jump whose target goes on in the same block.
fn follow(e: &mut Emitter, d: &Decoded, rest: u8) {
    match d.class {
        Class::Call => {
            push_return_address(e, &d.instr);
        }
        Class::Conditional => e.branch_to(condition_of(&d.instr) ^ 1, d.instr.next_ip(), rest),
        _ => {}
    }
}

/// The condition code (0 to 15) of a conditional jump: iced numbers them from 1 in that order.
fn condition_of(instr: &Instruction) -> u8 {
    instr.condition_code() as u8 - 1
}

/// Decodes the next instruction of `bytes`, which are the decoder's.
///
/// F3 90 is PAUSE, but with REX.B before the opcode processors execute XCHG with R8, which iced
/// does not know.
pub fn decode_next(decoder: &mut Decoder, bytes: &[u8]) -> Instruction {
    let start = decoder.position();
    let instr = decoder.decode();
    let own = &bytes[start..decoder.position()];
    if instr.code() != Code::Pause || own.len() < 3 || decoder.bitness() != 64 {
        return instr;
    }
    let rex = own[own.len() - 2];
    if rex & 0xf1 != 0x41 {
        return instr;
    }
    let (code, r8, rax) = if rex & 8 != 0 {
        (Code::Xchg_r64_RAX, Register::R8, Register::RAX)
    } else if own.contains(&0x66) {
        (Code::Xchg_r16_AX, Register::R8W, Register::AX)
    } else {
        (Code::Xchg_r32_EAX, Register::R8D, Register::EAX)
    };
    let mut exchange = Instruction::with2(code, r8, rax).expect("two registers of one size");
    exchange.set_len(instr.len());
    exchange.set_next_ip(instr.next_ip());
    exchange
}

/// Options of every decoder of ours.
pub fn decoder_options() -> u32 {
    DecoderOptions::NONE
}

fn branch(e: &mut Emitter, instr: &Instruction, class: Class, rest: u8) -> bool {
    if e.mode.bits() == 16 || !near_operand_size(e, instr) {
        mark!(BranchRefused);
        e.interpret();
        // A branch that Rust executes always leaves; what follows is never reached from here.
        return false;
    }
    match class {
        Class::Jump => e.jump_to(instr.near_branch_target()),
        Class::Conditional => {
            e.branch_to(condition_of(instr), instr.near_branch_target(), rest);
            return true;
        }
        Class::Counted => counted(e, instr),
        Class::Call => {
            push_return_address(e, instr);
            e.jump_to(instr.near_branch_target());
        }
        Class::Return => {
            let wide = e.mode.is64();
            let size = if wide { 8 } else { 4 };
            let extra = if instr.op_count() == 1 { instr.immediate16() as i32 } else { 0 };
            let ea = e.stack(0);
            let slot = e.check(ea, size as usize, false);
            if e.in_place() {
                e.asm.pop(Reg::R10);
                if extra != 0 {
                    e.move_stack(extra);
                }
            } else {
                e.asm.load(if wide { Width::W64 } else { Width::W32 }, Reg::R10, slot);
                e.move_stack(size + extra);
            }
            e.jump_indirect();
        }
        Class::JumpIndirect => {
            if load_target(e, instr) {
                e.jump_indirect();
            } else {
                e.interpret();
            }
        }
        Class::CallIndirect => call_indirect(e, instr),
        _ => unreachable!("not a branch class"),
    }
    false
}

/// Near branches with an operand-size prefix (16-bit targets) are left to Rust.
fn near_operand_size(e: &Emitter, instr: &Instruction) -> bool {
    let target_bits = match instr.op0_kind() {
        OpKind::NearBranch16 => 16,
        OpKind::NearBranch32 => 32,
        OpKind::NearBranch64 => 64,
        _ => match instr.code() {
            Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16 => 16,
            Code::Retnd | Code::Retnd_imm16 | Code::Jmp_rm32 | Code::Call_rm32 => 32,
            _ => 64,
        },
    };
    target_bits == e.mode.bits() && (e.mode.is64() || flat_code_and_stack(e.mode))
}

fn flat_code_and_stack(mode: Mode) -> bool {
    mode.has(Mode::FLAT[1]) && mode.has(Mode::FLAT[2]) && mode.has(Mode::STACK32)
}

fn counted(e: &mut Emitter, instr: &Instruction) {
    let address32 = matches!(
        instr.code(),
        Code::Jecxz_rel8_32 | Code::Jecxz_rel8_64 | Code::Loop_rel8_32_ECX | Code::Loop_rel8_64_ECX
    );
    let address64 = matches!(instr.code(), Code::Jrcxz_rel8_64 | Code::Loop_rel8_64_RCX);
    let width = match (address32, address64) {
        (true, _) => Width::W32,
        (_, true) => Width::W64,
        _ => {
            // LOOPE, LOOPNE and 16-bit counts.
            e.interpret();
            return;
        }
    };
    let next = instr.next_ip();
    let home = regs::RCX_HOME;
    mark!(Counted);
    if instr.is_loop() {
        e.asm.lea(width, home, Mem::base(home, -1));
        e.asm.mov(width, Reg::RCX, home);
        let done = e.asm.jrcxz();
        e.jump_to(instr.near_branch_target());
        e.asm.bind8(done);
        e.jump_to(next);
    } else {
        e.asm.mov(width, Reg::RCX, home);
        let zero = e.asm.jrcxz();
        e.jump_to(next);
        e.asm.bind8(zero);
        e.jump_to(instr.near_branch_target());
    }
}

/// Loads the target of an indirect branch into R10.
fn load_target(e: &mut Emitter, instr: &Instruction) -> bool {
    let width = if e.mode.is64() { Width::W64 } else { Width::W32 };
    if instr.op0_kind() == OpKind::Register {
        let Some(guest) = guest_of(instr.op0_register()) else { return false };
        let from = e.read_guest(guest, Reg::R10);
        if from != Reg::R10 || width == Width::W32 {
            e.asm.mov(width, Reg::R10, from);
        }
        return true;
    }
    let Some(ea) = e.address(instr) else { return false };
    let size = if width == Width::W64 { 8 } else { 4 };
    let slot = e.check(ea, size, false);
    e.asm.load(width, Reg::R10, slot);
    true
}

fn call_indirect(e: &mut Emitter, instr: &Instruction) {
    if !load_target(e, instr) {
        e.interpret();
        return;
    }
    let temporary = e.field(Field::TEMPORARY);
    e.asm.store(Width::W64, temporary, Reg::R10);
    let (width, size) = stack_width(e);
    let ea = e.stack(-size);
    let slot = e.check(ea, size as usize, true);
    // Only when the jump is not to a known block does it turn out that the target is not
    // canonical, which is a fault of this instruction: then the store is taken back.
    let overwritten = e.field(Field::OVERWRITTEN);
    e.asm.load(width, Reg::RCX, slot);
    e.asm.store(Width::W64, overwritten, Reg::RCX);
    store_constant(e, width, slot, instr.next_ip(), true);
    e.move_stack(-size);
    e.asm.load(Width::W64, Reg::R10, temporary);
    e.jump_indirect();
}

fn push_return_address(e: &mut Emitter, instr: &Instruction) {
    let next = instr.next_ip();
    let (width, size) = stack_width(e);
    let ea = e.stack(-size);
    let slot = e.check(ea, size as usize, true);
    if e.in_place() {
        push_constant(e, next, true);
        return;
    }
    store_constant(e, width, slot, next, true);
    e.move_stack(-size);
}

/// Pushes a constant where the guest's stack is; `relative` if it follows from where the code is.
fn push_constant(e: &mut Emitter, value: u64, relative: bool) {
    match i32::try_from(value as i64) {
        Ok(narrow) => {
            e.asm.push_imm(narrow);
            if relative {
                e.asm.note_virt32();
            }
        }
        Err(_) => {
            e.load_constant(Reg::RCX, value, relative);
            e.asm.push(Reg::RCX);
        }
    }
}

fn stack_width(e: &Emitter) -> (Width, i32) {
    if e.mode.is64() { (Width::W64, 8) } else { (Width::W32, 4) }
}

fn store_constant(e: &mut Emitter, width: Width, slot: Mem, value: u64, relative: bool) {
    let narrow = if width == Width::W32 { Ok(value as u32 as i32) } else { i32::try_from(value as i64) };
    match narrow {
        Ok(v) => {
            e.asm.store_imm(width, slot, v);
            if relative {
                e.asm.note_virt32();
            }
        }
        Err(_) => {
            mark!(WideConstant);
            e.load_constant(Reg::RCX, value, relative);
            e.asm.store(width, slot, Reg::RCX);
        }
    }
}

fn push(e: &mut Emitter, instr: &Instruction) {
    let (width, size) = stack_width(e);
    match instr.op0_kind() {
        OpKind::Register => {
            let guest = guest_of(instr.op0_register()).expect("push of a general register");
            let ea = e.stack(-size);
            let slot = e.check(ea, size as usize, true);
            if e.in_place() {
                match regs::home(guest) {
                    Some(home) => e.asm.push(home),
                    None => e.asm.push_mem(e.slot(guest)),
                }
                return;
            }
            let value = e.read_guest(guest, Reg::RCX);
            e.asm.store(width, slot, value);
        }
        OpKind::Memory => {
            let Some(ea) = e.address(instr) else {
                e.interpret();
                return;
            };
            mark!(PushMemory);
            let source = e.check(ea, size as usize, false);
            let temporary = e.field(Field::TEMPORARY);
            e.asm.load(width, Reg::RCX, source);
            e.asm.store(Width::W64, temporary, Reg::RCX);
            let ea = e.stack(-size);
            let slot = e.check(ea, size as usize, true);
            e.asm.load(Width::W64, Reg::RCX, temporary);
            e.asm.store(width, slot, Reg::RCX);
        }
        _ => {
            let value = instr.immediate(0);
            let ea = e.stack(-size);
            let slot = e.check(ea, size as usize, true);
            if e.in_place() {
                push_constant(e, value, false);
                return;
            }
            store_constant(e, width, slot, value, false);
        }
    }
    e.move_stack(-size);
}

fn pop(e: &mut Emitter, instr: &Instruction) {
    let (width, size) = stack_width(e);
    let guest = guest_of(instr.op0_register()).expect("pop to a general register");
    let ea = e.stack(0);
    let slot = e.check(ea, size as usize, false);
    if e.in_place() {
        match regs::home(guest) {
            Some(home) => e.asm.pop(home),
            None => e.asm.pop_mem(e.slot(guest)),
        }
        return;
    }
    if let Some(home) = regs::home(guest) {
        e.asm.load(width, home, slot);
    } else {
        e.asm.load(width, Reg::RCX, slot);
        let to = e.slot(guest);
        e.asm.store(Width::W64, to, Reg::RCX);
    }
    if guest != gpr::RSP {
        e.move_stack(size);
    }
}

fn leave(e: &mut Emitter) {
    let rbp = Reg(gpr::RBP as u8);
    let slot = e.check(Ea::at(rbp, 0), 8, false);
    e.asm.load(Width::W64, Reg::RCX, slot);
    e.asm.lea(Width::W64, Reg::RSP, Mem::base(rbp, 8));
    e.asm.mov(Width::W64, rbp, Reg::RCX);
}

/// LEA: the address is computed as for an access, but without segment base.
fn lea(e: &mut Emitter, instr: &Instruction) {
    let guest = guest_of(instr.op0_register()).expect("lea writes a general register");
    let size = instr.op0_register().size();
    let address_width = if e.short_address(instr) { Width::W32 } else { Width::W64 };
    let no_base = instr.memory_base() == iced_x86::Register::None;
    let no_index = instr.memory_index() == iced_x86::Register::None;
    if e.mode.bits() == 16 || instr.memory_base().is_gpr16() || instr.memory_index().is_gpr16() {
        e.interpret();
        return;
    }
    if instr.is_ip_rel_memory_operand() || no_base && no_index {
        let relative = instr.is_ip_rel_memory_operand();
        e.load_constant(Reg::R10, instr.memory_displacement64(), relative);
    } else {
        let base = guest_of(instr.memory_base()).map(|b| e.read_guest(b, Reg::R10));
        let scale = instr.memory_index_scale().trailing_zeros() as u8;
        let index = guest_of(instr.memory_index()).map(|i| (e.read_guest(i, Reg::R11), scale));
        let disp = instr.memory_displacement64() as u32 as i32;
        let memory = Mem { base, index, disp, relative: false };
        if let (Some(home), true) = (regs::home(guest), size >= 4) {
            let width = if size == 4 { Width::W32 } else { address_width };
            e.asm.lea(width, home, memory);
            return;
        }
        e.asm.lea(address_width, Reg::R10, memory);
    }
    let target = regs::home(guest);
    match (size, target) {
        (8, Some(home)) => e.asm.mov(Width::W64, home, Reg::R10),
        (4, Some(home)) => e.asm.mov(Width::W32, home, Reg::R10),
        (8, None) => e.write_guest(guest, Reg::R10),
        (4, None) => {
            e.asm.mov(Width::W32, Reg::R10, Reg::R10);
            e.write_guest(guest, Reg::R10);
        }
        (_, Some(home)) => {
            mark!(Lea16);
            e.asm.bytes(&mov16(home));
        }
        (_, None) => {
            let slot = e.slot(guest);
            e.asm.store(Width::W16, slot, Reg::R10);
        }
    }
}

/// `mov home16, r10w`.
fn mov16(home: Reg) -> [u8; 4] {
    [0x66, 0x44 | home.0 >> 3, 0x89, 0xd0 | (home.0 & 7)]
}
