//! Which memory accesses of a block share one TLB check.
//!
//! A stack frame, a structure, a few neighbouring array elements: most accesses of a block lie at
//! known distances from an earlier one. The first of such a group, its *leader*, is checked for
//! the whole span of the group, which must lie on one page, and leaves the page's addend in a slot
//! of the hot data; the others just load it.
//!
//! Distances come from numbering values: every general register holds a value number plus a known
//! offset; copying a register or adding a constant keeps the number, anything else makes a new one.
//!
//! What makes this invisible:
//!
//! * the leader accesses the page itself, so Accessed and Dirty bits come no earlier than they
//!   should; a group of reads never admits a write;
//! * where the span does not lie on one page of RAM, execution goes on in the block's twin, which has
//!   no groups (see `access`);
//! * an addend is good for as long as no translation is dropped. Translations are dropped only by
//!   Rust, and after an exit that dropped any ([`super::tlb::Tlb::drops`]) no block with groups is
//!   resumed in its middle: its twin is.
//!
//! In mirrored code (see `mirror`) there are no checks to share, but guards: of all accesses through one pointer
//! the first one's serves, wherever they are near it, and whatever pages they are on. Those through the stack pointer
//! need none (see `stack`).

use super::classify::Class;
use super::emit::guest_of;
use super::mirror::REACH;
use super::plain::{operand_size, wide_bit_string};
use super::stack::Stack;
use super::used::Used;
use iced_x86::{Code, Instruction, OpKind, Register};
use x86::gpr;

/// Slots for addends; see [`super::hot::Hot`].
pub const GROUP_SLOTS: usize = 16;
/// The longest span of a group in bytes: longer ones would too often lie on two pages.
const SPAN_MAX: i64 = 512;
/// Accesses that need no guard are guarded by this slot's, which has been emitted before all.
pub const STACK_SLOT: u8 = 63;
/// Pointers that share guards: the other slots.
const GUARDS_MAX: usize = STACK_SLOT as usize;

/// How one access is to be checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Use {
    /// By itself.
    #[default]
    Alone,
    /// For its group: from `below` bytes before it, `span` bytes.
    Leader { slot: u8, below: u16, span: u16 },
    /// By its group's leader.
    Member { slot: u8 },
    /// In mirrored code: guarded, for others as well.
    Guards { slot: u8 },
    /// In mirrored code: guarded by an earlier one.
    Guarded { slot: u8 },
}

/// What one instruction does in the order of its TLB checks; at most two accesses.
pub type Plan = Vec<[Use; 2]>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Root {
    /// Value numbers; 0 for none.
    Sum { base: u32, index: u32, scale: u8, segment: u8, era: u32 },
    /// An address known at translation time, by its page.
    Page { page: u64, era: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Touch {
    root: Root,
    offset: i64,
    size: i64,
    write: bool,
    at: (u8, u8),
}

struct Group {
    root: Root,
    write: bool,
    low: i64,
    high: i64,
    /// Number of the first touch of it, and how many there are.
    leader: usize,
    members: usize,
    slot: Option<u8>,
}

#[derive(Clone, Copy, Default)]
struct Value {
    number: u32,
    offset: i64,
}

/// Collects a block's accesses and groups them.
#[derive(Default)]
pub struct Grouping {
    values: [Value; 16],
    next: u32,
    era: u32,
    touches: Vec<(Touch, usize)>,
    groups: Vec<Group>,
    /// The block is of mirrored code.
    mirrored: bool,
    /// Accesses may share.
    shares: bool,
    /// This instruction's may not.
    apart: bool,
    /// In mirrored code: where the stack pointer may be, and accesses that need no guard for that.
    pub stack: Stack,
    near_stack: Vec<(u8, u8)>,
}

impl Grouping {
    /// Begins a block, of mirrored code or not, whose accesses may share or not.
    pub fn begin(&mut self, mirrored: bool, shares: bool) {
        (self.mirrored, self.shares) = (mirrored, shares);
        self.stack.begin();
        self.near_stack.clear();
        self.era = 0;
        self.next = 1;
        self.touches.clear();
        self.groups.clear();
        (0..16).for_each(|guest| self.renew(guest));
    }

    fn renew(&mut self, guest: usize) {
        self.values[guest] = Value { number: self.next, offset: 0 };
        self.next += 1;
    }

    /// Takes in the next instruction of a 64-bit block, `insn` being its number, whose accesses
    /// share nothing with others.
    pub fn add_apart(&mut self, instr: &Instruction, class: Class, used: Used, insn: u8) {
        let (touches, groups) = (self.touches.len(), self.groups.len());
        self.apart = true;
        self.add(instr, class, used, insn);
        self.apart = false;
        for (_, group) in self.touches.drain(touches..) {
            self.groups[group].members -= 1;
        }
        self.groups.truncate(groups);
    }

    /// The same, whose accesses may.
    pub fn add(&mut self, instr: &Instruction, class: Class, used: Used, insn: u8) {
        let before = self.values[gpr::RSP];
        self.add_accesses(instr, class, used, insn);
        if self.mirrored {
            let now = self.values[gpr::RSP];
            let by = (now.number == before.number).then(|| now.offset.wrapping_sub(before.offset));
            self.stack.add(instr, class, used, (insn, self.apart), by);
        }
    }

    fn add_accesses(&mut self, instr: &Instruction, class: Class, used: Used, insn: u8) {
        let operand = |nth, write| (instr, nth, write);
        match class {
            Class::Hint | Class::Jump | Class::Conditional => {}
            Class::Registers | Class::Lea | Class::Counted => {}
            Class::Memory => {
                if !wide_bit_string(instr) {
                    self.operand(operand(0, used.memory_written), operand_size(instr), insn);
                }
            }
            Class::Push => {
                let memory = instr.op0_kind() == OpKind::Memory;
                if memory {
                    self.operand(operand(0, false), 8, insn);
                }
                self.stack(-8, true, (insn, memory as u8));
                self.values[gpr::RSP].offset -= 8;
                return;
            }
            Class::Pop => {
                self.stack(0, false, (insn, 0));
                self.values[gpr::RSP].offset += 8;
                self.renew(guest_of(instr.op0_register()).expect("pop to a general register"));
                return;
            }
            Class::Leave => {
                let frame = self.values[gpr::RBP];
                self.touch(self.sum(frame, None, 0, 0), frame.offset, 8, false, (insn, 0));
                self.values[gpr::RSP] = Value { offset: frame.offset + 8, ..frame };
                self.renew(gpr::RBP);
                return;
            }
            Class::Call => {
                self.stack(-8, true, (insn, 0));
                self.values[gpr::RSP].offset -= 8;
                return;
            }
            Class::Return => self.stack(0, false, (insn, 0)),
            Class::JumpIndirect | Class::CallIndirect => {
                let memory = instr.op0_kind() == OpKind::Memory;
                if memory {
                    self.operand(operand(0, false), 8, insn);
                }
                if class == Class::CallIndirect {
                    self.stack(-8, true, (insn, memory as u8));
                }
            }
            Class::Interpret | Class::InterpretAndLeave => {
                self.era += 1;
                (0..16).for_each(|guest| self.renew(guest));
                return;
            }
        }
        self.follow_values(instr, used);
    }

    fn sum(&self, base: Value, index: Option<Value>, scale: u8, segment: u8) -> Root {
        let index = index.map_or(0, |v| v.number);
        Root::Sum { base: base.number, index, scale, segment, era: self.era }
    }

    fn stack(&mut self, offset: i64, write: bool, at: (u8, u8)) {
        let top = self.values[gpr::RSP];
        self.touch(self.sum(top, None, 0, 0), top.offset.wrapping_add(offset), 8, write, at);
    }

    fn operand(&mut self, (instr, nth, write): (&Instruction, u8, bool), size: usize, insn: u8) {
        if !(1..=64).contains(&size) {
            return;
        }
        let (base, index) = (instr.memory_base(), instr.memory_index());
        let short = base.is_gpr32() || index.is_gpr32();
        let segment = match instr.memory_segment() {
            Register::FS => 1,
            Register::GS => 2,
            _ => 0,
        };
        let displacement = instr.memory_displacement64();
        let absolute = instr.is_ip_rel_memory_operand() || base == Register::None && index == Register::None;
        if short || index.is_vector_register() {
            return;
        }
        let (root, offset) = if absolute && segment == 0 {
            let page = displacement >> 12;
            (Root::Page { page, era: self.era }, (displacement & 0xfff) as i64)
        } else if absolute {
            (self.sum(Value::default(), None, 0, segment), displacement as i64)
        } else {
            let value = |r: Register| guest_of(r).map(|guest| self.values[guest]);
            let scale = instr.memory_index_scale().trailing_zeros() as u8;
            let (base, index) = (value(base).unwrap_or_default(), value(index));
            let scaled = index.map_or(0, |v| v.offset.wrapping_shl(scale as u32));
            let offset = (displacement as i64).wrapping_add(base.offset).wrapping_add(scaled);
            (self.sum(base, index, if index.is_some() { scale } else { 0 }, segment), offset)
        };
        self.touch(root, offset, size as i64, write, (insn, nth));
    }

    fn touch(&mut self, root: Root, offset: i64, size: i64, write: bool, at: (u8, u8)) {
        let end = offset.wrapping_add(size);
        if matches!(root, Root::Page { .. }) && end > 4096 || end < offset {
            return;
        }
        let touch = Touch { root, offset, size, write, at };
        let mirrored = self.mirrored;
        if mirrored && (matches!(root, Root::Page { .. }) || self.is_near_stack(&touch)) {
            return;
        }
        let fits = |g: &Group| {
            if mirrored {
                let away = offset.checked_sub(g.low).and_then(i64::checked_abs);
                return g.root == root && away.is_some_and(|away| away < REACH);
            }
            g.root == root
                && (g.write || !write)
                && g.high.max(end).checked_sub(g.low.min(offset)).is_some_and(|span| span <= SPAN_MAX)
        };
        let group = match self.groups.iter().rposition(fits) {
            Some(group) => group,
            None => {
                let leader = self.touches.len();
                let new = Group { root, write, low: offset, high: end, leader, members: 0, slot: None };
                self.groups.push(new);
                self.groups.len() - 1
            }
        };
        let g = &mut self.groups[group];
        if !mirrored {
            (g.low, g.high) = (g.low.min(offset), g.high.max(end));
        }
        g.members += 1;
        self.touches.push((touch, group));
    }

    /// Takes note of an access of mirrored code if it is through the stack pointer's value. Whether it needs no guard.
    fn is_near_stack(&mut self, touch: &Touch) -> bool {
        let top = self.values[gpr::RSP];
        if self.apart || touch.root != self.sum(top, None, 0, 0) {
            return false;
        }
        let distance = touch.offset.wrapping_sub(top.offset);
        let near = self.stack.reaches(distance);
        if near {
            self.near_stack.push(touch.at);
        }
        self.stack.accessed(distance);
        near
    }

    /// What the registers hold after an instruction that is no stack or flow instruction.
    fn follow_values(&mut self, instr: &Instruction, used: Used) {
        use Code::*;
        let register = |operand: u32| match instr.op_kind(operand) {
            OpKind::Register => guest_of(instr.op_register(operand)),
            _ => None,
        };
        let moved = match instr.code() {
            Mov_r64_rm64 | Mov_rm64_r64 => {
                register(0).zip(register(1)).map(|(to, from)| (to, self.values[from], 0))
            }
            Add_rm64_imm8 | Add_rm64_imm32 | Add_RAX_imm32 => {
                register(0).map(|r| (r, self.values[r], instr.immediate(1) as i64))
            }
            Sub_rm64_imm8 | Sub_rm64_imm32 | Sub_RAX_imm32 => {
                register(0).map(|r| (r, self.values[r], (instr.immediate(1) as i64).wrapping_neg()))
            }
            Inc_rm64 => register(0).map(|r| (r, self.values[r], 1)),
            Dec_rm64 => register(0).map(|r| (r, self.values[r], -1)),
            Lea_r64_m => self.lea(instr),
            _ => None,
        };
        match moved {
            Some((to, from, by)) => {
                self.values[to] = Value { offset: from.offset.wrapping_add(by), ..from };
            }
            None => {
                (0..16).filter(|guest| used.written >> guest & 1 != 0).for_each(|guest| self.renew(guest))
            }
        }
    }

    fn lea(&self, instr: &Instruction) -> Option<(usize, Value, i64)> {
        if instr.memory_index() != Register::None || !instr.memory_base().is_gpr64() {
            return None;
        }
        let (to, from) = (guest_of(instr.op0_register())?, guest_of(instr.memory_base())?);
        Some((to, self.values[from], instr.memory_displacement64() as i64))
    }

    /// The plan for the first `count` instructions taken in; whether it has any groups.
    pub fn plan(&mut self, count: usize, plan: &mut Plan) -> bool {
        plan.clear();
        plan.resize(count, [Use::Alone; 2]);
        self.stack.end(count);
        if !self.shares {
            return false;
        }
        for (insn, nth) in &self.near_stack {
            let Some(uses) = plan.get_mut(*insn as usize) else { break };
            uses[*nth as usize] = Use::Guarded { slot: STACK_SLOT };
        }
        let slots_max = if self.mirrored { GUARDS_MAX } else { GROUP_SLOTS };
        let shared = self.groups.iter_mut().filter(|g| g.members > 1).take(slots_max);
        let slots = shared.enumerate().map(|(slot, group)| group.slot = Some(slot as u8)).count();
        for (number, (touch, group)) in self.touches.iter().enumerate() {
            let group = &self.groups[*group];
            let (Some(slot), (insn, nth)) = (group.slot, touch.at) else { continue };
            debug_assert!(
                (touch.write <= group.write || self.mirrored) && touch.root == group.root && touch.size > 0
            );
            let Some(uses) = plan.get_mut(insn as usize) else { break };
            uses[nth as usize] = if self.mirrored {
                if number == group.leader { Use::Guards { slot } } else { Use::Guarded { slot } }
            } else if number == group.leader {
                let (below, span) = (touch.offset - group.low, group.high - group.low);
                Use::Leader { slot, below: below as u16, span: span as u16 }
            } else {
                Use::Member { slot }
            };
        }
        slots > 0
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::classify::classify;
    use super::*;
    use crate::engine::blocks::Mode;
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};

    /// Takes in a block of 64-bit code; how many instructions it has.
    pub fn take_in(bytes: &[u8], mirrored: bool) -> (Grouping, u8) {
        let mut decoder = Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE);
        let mut info = InstructionInfoFactory::new();
        let mut grouping = Grouping::default();
        grouping.begin(mirrored, true);
        let mut count = 0;
        while decoder.can_decode() {
            let instr = decoder.decode();
            let class = classify(&instr, info.info(&instr), Mode::of_bits(64), true);
            grouping.add(&instr, class, Used::of(info.info(&instr)), count);
            count += 1;
        }
        (grouping, count)
    }

    fn plan_of(bytes: &[u8]) -> Plan {
        let (mut grouping, count) = take_in(bytes, false);
        let mut plan = Plan::new();
        grouping.plan(count as usize, &mut plan);
        plan
    }

    #[test]
    fn pushes_are_led_by_the_first_for_the_whole_span() {
        // push rbx; push rbp; sub rsp, 16; mov [rsp+8], rax; mov rcx, [rsp+16]
        let plan = plan_of(&[
            0x53, 0x55, 0x48, 0x83, 0xec, 0x10, 0x48, 0x89, 0x44, 0x24, 8, 0x48, 0x8b, 0x4c, 0x24, 16,
        ]);
        assert_eq!(plan[0][0], Use::Leader { slot: 0, below: 16, span: 24 });
        assert_eq!([plan[1][0], plan[3][0], plan[4][0]], [Use::Member { slot: 0 }; 3]);
    }

    #[test]
    fn a_write_does_not_join_reads_and_a_changed_base_joins_nothing() {
        // mov eax,[rdi]; mov [rdi+4],eax; mov ecx,[rdi+8]; mov rdi,[rdi+16]; mov eax,[rdi]
        let plan = plan_of(&[0x8b, 0x07, 0x89, 0x47, 4, 0x8b, 0x4f, 8, 0x48, 0x8b, 0x7f, 16, 0x8b, 0x07]);
        assert_eq!(plan[0][0], Use::Alone);
        assert_eq!(plan[1][0], Use::Leader { slot: 0, below: 0, span: 20 });
        assert_eq!([plan[2][0], plan[3][0]], [Use::Member { slot: 0 }; 2]);
        assert_eq!(plan[4][0], Use::Alone);
    }

    #[test]
    fn constants_copies_and_indices_keep_their_distance() {
        // mov rax,rdi; add rax,8; mov ecx,[rdi]; mov ecx,[rax]; mov ecx,[rdi+rsi*4]; mov ecx,[rax+rsi*4+4]
        let plan = plan_of(&[
            0x48, 0x89, 0xf8, 0x48, 0x83, 0xc0, 8, 0x8b, 0x0f, 0x8b, 0x08, 0x8b, 0x0c, 0xb7, 0x8b, 0x4c,
            0xb0, 4,
        ]);
        assert_eq!(plan[2][0], Use::Leader { slot: 0, below: 0, span: 12 });
        assert_eq!(plan[3][0], Use::Member { slot: 0 });
        assert_eq!(plan[4][0], Use::Leader { slot: 1, below: 0, span: 16 });
        assert_eq!(plan[5][0], Use::Member { slot: 1 });
    }

    #[test]
    fn nothing_is_known_behind_an_instruction_that_rust_executes() {
        // mov eax,[rdi]; cpuid; mov ecx,[rdi+4]
        let plan = plan_of(&[0x8b, 0x07, 0x0f, 0xa2, 0x8b, 0x4f, 4]);
        assert_eq!([plan[0][0], plan[2][0]], [Use::Alone; 2]);
    }
}
