//! Why mirrored code needs no guards for the stack.
//!
//! Whenever a block of mirrored code is entered, the stack pointer is *near* a chunk that is claimed (see
//! [`super::mirror`]): at most [`NEAR`] away. So what it points to is ours or inaccessible, and accesses through it need
//! no guard. It stays so because
//!
//! * Rust looks at it whenever a program's code is entered from there, and SYSRET when it leads there from translated
//!   code ([`super::vcpu::Vcpu::stack_is_claimed`]);
//! * an access that succeeds is to a chunk that is claimed: behind one at `rsp + d`, the stack pointer is no more than
//!   `d` away. So PUSH, POP, CALL and RET, and frames that are used, prove themselves;
//! * where a block may be left after the stack pointer has been moved otherwise and nothing has been accessed through
//!   it since, the instruction that moved it guards the address that it moves it to, or is executed from Rust.
//!
//! Here is followed, instruction by instruction, how far away the stack pointer may be.

use super::blocks::Mode;
use super::classify::Class;
use super::emit::guest_of;
use super::hot::Hot;
use super::mirror::{CHUNK, REACH};
use super::used::Used;
use super::vcpu::Vcpu;
use crate::marks::mark;
use iced_x86::{Code, Instruction, Register};
use x86::gpr;

/// How far from a claimed chunk the stack pointer may be where a block is entered, in bytes.
const NEAR: i64 = 64 << 10;
/// It may be anywhere.
const LOST: i64 = i64::MAX;

/// How an instruction moves the stack pointer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Move {
    /// To a register's value and so much more.
    To { guest: usize, more: i32 },
    /// Down by a register's value.
    Down { guest: usize },
    /// In a way that only Rust follows.
    Other,
}

impl Move {
    /// How far from a claimed chunk it can be at most once what it depends on is guarded.
    fn away(self) -> i64 {
        match self {
            Move::To { more, .. } if is_short(more) => i64::from(more).abs(),
            _ => 0,
        }
    }
}

/// Whether a move by so much needs no more than that what it is from is guarded; else where it leads to is.
pub fn is_short(more: i32) -> bool {
    i64::from(more).abs() <= NEAR
}

/// See the module's head.
#[derive(Clone, Copy)]
struct State {
    /// How far away the stack pointer may be.
    away: i64,
    /// The last instruction that moved it without accessing anything.
    moved: Option<(u8, Move)>,
}

impl Default for State {
    /// Where a block is entered.
    fn default() -> Self {
        Self { away: NEAR, moved: None }
    }
}

/// Where the stack pointer may be in a block being read.
#[derive(Default)]
pub struct Stack {
    now: State,
    /// Behind each instruction.
    behind: Vec<State>,
    /// Moves that have to be guarded.
    guarded: Vec<(u8, Move)>,
}

impl Stack {
    /// Begins a block.
    pub fn begin(&mut self) {
        self.now = State::default();
        self.behind.clear();
        self.guarded.clear();
    }

    /// Whether an access so far from where the stack pointer points needs no guard.
    pub fn reaches(&self, distance: i64) -> bool {
        distance.checked_abs().and_then(|far| far.checked_add(self.now.away)).is_some_and(|far| far < REACH)
    }

    /// Such an access has succeeded.
    pub fn accessed(&mut self, distance: i64) {
        self.now.away = self.now.away.min(distance.checked_abs().unwrap_or(LOST));
    }

    /// Takes in instruction `insn`, behind its accesses. `by` is by how much it moves the stack pointer, if that is
    /// known; `apart` tells that its accesses prove nothing.
    pub fn add(
        &mut self,
        instr: &Instruction,
        class: Class,
        used: Used,
        (insn, apart): (u8, bool),
        by: Option<i64>,
    ) {
        if class == Class::Conditional {
            // The block may be left here.
            self.now = settled(self.now, &mut self.guarded);
        }
        let proved = !apart
            && match class {
                Class::Push | Class::Call | Class::CallIndirect | Class::Leave | Class::Return => true,
                Class::Pop => instr.op0_register() != Register::RSP,
                _ => false,
            };
        if proved {
            let beyond = if class == Class::Return { returned_over(instr) } else { 0 };
            self.now = State { away: 8 + beyond, moved: None };
        } else if used.written >> gpr::RSP & 1 != 0 {
            let moved = how(instr, class, by);
            let by = match moved {
                Move::To { guest: gpr::RSP, more } => i64::from(more).abs(),
                _ => LOST,
            };
            self.now = State { away: self.now.away.saturating_add(by), moved: Some((insn, moved)) };
        }
        self.behind.push(self.now);
    }

    /// The block has so many instructions of those taken in.
    pub fn end(&mut self, count: usize) {
        if let Some(last) = count.checked_sub(1).and_then(|last| self.behind.get(last)) {
            settled(*last, &mut self.guarded);
        }
    }

    /// How instruction `insn` moves the stack pointer, if that has to be guarded.
    pub fn guard_of(&self, insn: u8) -> Option<Move> {
        self.guarded.iter().find(|(guarded, _)| *guarded == insn).map(|(_, moved)| *moved)
    }
}

/// Behind a place where the block may be left, before which a move that leads too far is guarded.
fn settled(state: State, guarded: &mut Vec<(u8, Move)>) -> State {
    match state.moved {
        Some((insn, moved)) if state.away > NEAR => {
            guarded.push((insn, moved));
            State { away: moved.away(), moved: None }
        }
        _ => state,
    }
}

/// What RET takes off the stack beyond the return address.
fn returned_over(instr: &Instruction) -> i64 {
    if instr.op_count() == 1 { instr.immediate16().into() } else { 0 }
}

fn how(instr: &Instruction, class: Class, by: Option<i64>) -> Move {
    let to = |guest, more: i64| i32::try_from(more).map_or(Move::Other, |more| Move::To { guest, more });
    let source = || guest_of(instr.op1_register()).filter(|guest| *guest != gpr::RSP);
    match (class, instr.code(), by) {
        (Class::Registers | Class::Lea, _, Some(by)) => to(gpr::RSP, by),
        (Class::Registers, Code::And_rm64_imm8 | Code::And_rm64_imm32, _)
            if (-NEAR..0).contains(&(instr.immediate(1) as i64)) =>
        {
            to(gpr::RSP, instr.immediate(1) as i64)
        }
        (Class::Registers, Code::Mov_r64_rm64 | Code::Mov_rm64_r64, _) => {
            source().map_or(Move::Other, |guest| to(guest, 0))
        }
        (Class::Registers, Code::Sub_r64_rm64 | Code::Sub_rm64_r64, _) => {
            source().map_or(Move::Other, |guest| Move::Down { guest })
        }
        (Class::Lea, Code::Lea_r64_m, _)
            if instr.memory_index() == Register::None && instr.memory_base().is_gpr64() =>
        {
            guest_of(instr.memory_base())
                .map_or(Move::Other, |guest| to(guest, instr.memory_displacement64() as i64))
        }
        _ => Move::Other,
    }
}

impl Vcpu {
    /// Whether code of a mode may run with the stack pointer as it is.
    pub(super) fn stack_is_claimed(&mut self, mode: Mode) -> bool {
        if !mode.has(Mode::MIRRORED) {
            return true;
        }
        let at = self.state().gpr[gpr::RSP] & !(CHUNK - 1);
        let claimed = at == self.hot().stack_at || self.tlb.mirror.claim(at);
        if claimed {
            self.hot().stack_at = at;
        } else {
            mark!(StackElsewhere);
        }
        claimed
    }
}

/// Has SYSRET look whether programs' stack pointers point where one has been found to be well, if their memory is
/// mirrored.
pub fn look_at_sysret(hot: &mut Hot, mirrored: bool) {
    hot.stack_mask = if mirrored { !(CHUNK - 1) } else { 0 };
}

/// Before any has been found to be well. Accesses near it fault, as no address is there.
pub const NOWHERE: u64 = 1 << 63;

#[cfg(test)]
mod tests {
    use super::super::groups::tests::take_in;
    use super::super::groups::{Plan, STACK_SLOT, Use};
    use super::*;
    use iced_x86::code_asm::*;

    /// The accesses that need no guard, and the instructions that are guarded.
    fn plan_of(build: impl FnOnce(&mut CodeAssembler)) -> (Vec<u8>, Vec<(u8, Move)>) {
        let mut assembler = CodeAssembler::new(64).unwrap();
        build(&mut assembler);
        let bytes = assembler.assemble(0x1000).unwrap();
        let (mut grouping, count) = take_in(&bytes, true);
        let mut plan = Plan::new();
        grouping.plan(count as usize, &mut plan);
        let free = |insn: &u8| plan[*insn as usize].contains(&Use::Guarded { slot: STACK_SLOT });
        let guarded = (0..count).filter_map(|insn| Some((insn, grouping.stack.guard_of(insn)?)));
        ((0..count).filter(free).collect(), guarded.collect())
    }

    #[test]
    fn a_frame_that_is_used_needs_no_guard() {
        let plan = plan_of(|a| {
            a.push(rbp).unwrap();
            a.mov(rbp, rsp).unwrap();
            a.sub(rsp, 0x20).unwrap();
            a.mov(qword_ptr(rbp - 8), rax).unwrap();
            a.add(rsp, 0x20).unwrap();
            a.pop(rbp).unwrap();
            a.ret().unwrap();
        });
        assert_eq!(plan, (vec![0, 3, 5, 6], vec![]));
    }

    #[test]
    fn who_moves_it_and_leaves_guards_where_to() {
        let leaves = |build: fn(&mut CodeAssembler)| {
            plan_of(|a| {
                build(a);
                a.jmp(0x1000).unwrap();
            })
        };
        let to = |guest, more| Move::To { guest, more };
        assert_eq!(leaves(|a| a.sub(rsp, 0x18).unwrap()), (vec![], vec![(0, to(gpr::RSP, -0x18))]));
        assert_eq!(leaves(|a| a.mov(rsp, rbp).unwrap()), (vec![], vec![(0, to(gpr::RBP, 0))]));
        assert_eq!(leaves(|a| a.lea(rsp, ptr(rbp - 40)).unwrap()), (vec![], vec![(0, to(gpr::RBP, -40))]));
        assert_eq!(leaves(|a| a.sub(rsp, rax).unwrap()), (vec![], vec![(0, Move::Down { guest: gpr::RAX })]));
        assert_eq!(leaves(|a| a.xchg(rsp, rax).unwrap()), (vec![], vec![(0, Move::Other)]));
        assert_eq!(leaves(|a| a.mov(rsp, qword_ptr(rax)).unwrap()), (vec![], vec![(0, Move::Other)]));
    }

    #[test]
    fn a_side_exit_leaves_too_and_what_follows_goes_on_from_the_guard() {
        let plan = plan_of(|a| {
            let mut skip = a.create_label();
            a.sub(rsp, 8).unwrap();
            a.jz(skip).unwrap();
            a.sub(rsp, 8).unwrap();
            a.push(rax).unwrap();
            a.set_label(&mut skip).unwrap();
            a.nop().unwrap();
        });
        assert_eq!(plan, (vec![3], vec![(0, Move::To { guest: gpr::RSP, more: -8 })]));
    }

    #[test]
    fn what_is_far_from_it_is_guarded_itself() {
        let plan = plan_of(|a| {
            a.mov(rax, qword_ptr(rsp + 0x10_0000)).unwrap();
            a.mov(rax, qword_ptr(rsp + 8)).unwrap();
            a.mov(rsp, rbp).unwrap();
            a.pop(rbp).unwrap();
            a.ret().unwrap();
        });
        assert_eq!(plan, (vec![1, 4], vec![]));
    }
}
