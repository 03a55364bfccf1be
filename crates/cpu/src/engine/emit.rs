//! Emission of one block: the pieces that every instruction's translation is made of.
//!
//! ```text
//!   out:      jmp  -> Head exit
//!   checked:  mov ecx, [code slot of my page]      is my page still behind this address?
//!             lea ecx, [rcx - my page id]
//!             jrcxz entry
//!             jmp out
//!   entry:    lea r15, [r15 - 64 n]                count
//!             shrx rcx, r15, r15
//!             jrcxz out
//!             …instructions…
//! ```
//!
//! without what stands between `checked` and `entry` where code is entered without looking (see `entered`),
//! and elsewhere, in the cold part of the code cache, so that what runs stands close together:
//!
//! ```text
//!             …exits: mov ecx, exit; jmp thunk…
//! ```
//!
//! A memory access behind its check:
//!
//! ```text
//!   lea   r10, [address]                           unless it is a register and a displacement
//!   shrx  r11, r10, r15 ; movzx r11d, r11b         slot (r15's low bits are 12); r11w in the kernel's set
//!   mov   rcx, [tags + r11*8]                      minus the page's address
//!   lea   rcx, [rcx + r10 + size-1]                offset of the last byte, if it is that page
//!   shrx  rcx, rcx, r15
//!   jrcxz hit ; jmp -> Access exit                 retried from the instruction's start
//!   hit: mov r11, [addends + r11*8]
//!   op    [r10 + r11]
//! ```

use super::asm::{Asm, Fixup32, Mem, Reg, Width};
use super::blocks::{BlockId, DecodedId, EXIT_BITS, Exit, ExitId, ExitKind, Mode};
use super::entered::is_open;
use super::groups::{Plan, STACK_SLOT, Use};
use super::hot::{Field, KERNEL, code_slot, tlb_slot};
use super::mirror::{GUARD_LOAD, REACH};
use super::moves::Kind;
use super::regs;
use super::stack::{Move, is_short};
use super::thunks::{Thunks, cut_to_slot};
use super::translate::Place;
use crate::marks::mark;
use iced_x86::{Instruction, Register};

/// A guest linear address: what a host register holds, if there is one, plus a displacement.
#[derive(Clone, Copy, Debug)]
pub struct Ea {
    pub register: Option<Reg>,
    pub displacement: i32,
    /// Their sum, where it is known at translation time.
    pub constant: Option<u64>,
    /// It follows from where the code is, rather than being the same anywhere.
    pub relative: bool,
}

impl Ea {
    /// What `register` holds, plus a displacement.
    pub fn at(register: Reg, displacement: i32) -> Self {
        Self { register: Some(register), displacement, constant: None, relative: false }
    }

    /// The operand `more` bytes from there, plus what `index` holds.
    fn plus(self, index: Reg, more: i32) -> Mem {
        let displacement = self.displacement + more;
        match self.register {
            Some(register) => Mem::base_index(register, index, displacement),
            None => Mem { relative: self.relative, ..Mem::base(index, displacement) },
        }
    }

    /// The operand itself, where it is at the guest's own address.
    fn alone(self) -> Mem {
        match self.register {
            Some(register) => Mem::base(register, self.displacement),
            None => Mem { base: None, index: None, disp: self.displacement, relative: self.relative },
        }
    }

    /// Puts it into `register`.
    pub fn load(self, asm: &mut Asm, register: Reg) {
        match (self.register, self.constant) {
            (None, value) => {
                let value = value.unwrap_or(self.displacement as i64 as u64);
                if self.relative { asm.mov_virt(register, value) } else { asm.mov_imm(register, value) }
            }
            (Some(from), _) if from == register && self.displacement == 0 => {}
            (Some(from), _) => asm.lea(Width::W64, register, Mem::base(from, self.displacement)),
        }
    }
}

/// A displacement that leaves room for the size that a check adds.
fn roomy(value: i64) -> Option<i32> {
    i32::try_from(value).ok().filter(|displacement| *displacement < i32::MAX - 4096)
}

struct Stub {
    from: Fixup32,
    insn: u8,
    retry: u32,
    kind: StubKind,
}

enum StubKind {
    Plain(ExitKind),
    Access(Miss),
    /// A direct jump; for side exits, how many uncounted instructions to give back.
    Branch {
        target: u64,
        mode: Mode,
        give_back: u8,
    },
}

/// An access whose check failed.
#[derive(Clone, Copy)]
struct Miss {
    ea: Ea,
    size: u16,
    write: bool,
    /// It stands for a group.
    leader: bool,
    /// Where the instruction goes on behind it.
    behind: u32,
}

/// A block being emitted.
pub struct Emitter<'a> {
    pub asm: Asm,
    /// What is to stand in the cold part of the code cache.
    pub cold: Asm,
    pub mode: Mode,
    base: u32,
    pub thunks: Thunks,
    block: BlockId,
    exits: &'a mut Vec<Exit>,
    /// Number of the next one.
    next_exit: u32,
    stubs: Vec<Stub>,
    /// Index of the instruction being translated.
    pub insn: u8,
    /// Host address at which its translation begins.
    pub retry: u32,
    /// It makes two checks, and may be tried again from its start at the second.
    pub two_checks: bool,
    /// How its accesses are to be checked, and how many have been.
    plan: Plan,
    checks: (u8, u8),
    /// Slots of groups whose leader has been emitted.
    led: u64,
    /// R11 holds the addend of this group's slot, whichever way this place is reached.
    held: Option<u8>,
    /// This instruction of mirrored code is translated with checks.
    pub apart: bool,
}

impl<'a> Emitter<'a> {
    /// For the block that will be at `place`.
    pub fn new(place: &Place, mode: Mode, exits: &'a mut Vec<Exit>) -> Self {
        Self {
            asm: Asm::new(place.origin),
            cold: Asm::new(place.cold),
            mode,
            base: place.base,
            thunks: place.thunks,
            block: place.block,
            exits,
            next_exit: place.exits,
            stubs: Vec::new(),
            insn: 0,
            retry: place.origin,
            two_checks: false,
            plan: Plan::new(),
            checks: (0, 0),
            led: 1 << STACK_SLOT,
            held: None,
            apart: false,
        }
    }

    /// Sets how accesses are to be checked; returned by [`Self::finish`].
    pub fn follow_plan(&mut self, plan: Plan) {
        self.plan = plan;
    }

    /// An absolute operand: a field of the hot data.
    pub fn field(&self, offset: u32) -> Mem {
        Mem::abs(self.base + offset)
    }
    /// A guest register's place in memory.
    pub fn slot(&self, guest: usize) -> Mem {
        self.field(Field::gpr(guest))
    }
    fn table(&self, field: u32) -> u32 {
        self.base + Field::set(self.mode.set()) + field
    }

    /// Emits both entries of a block of `count` instructions; returns (checked, entry).
    ///
    /// `second_id` is the identity of the next page, for the instruction that reaches into it.
    pub fn head(&mut self, virt: u64, page_id: u32, second_id: Option<u32>, count: u8) -> (u32, u32) {
        let out = self.asm.here();
        self.jump_out(ExitKind::Head);
        let checked = self.asm.here();
        if !is_open(self.mode, virt) {
            self.page_check(virt >> 12, page_id, out);
        }
        let entry = self.asm.here();
        if let Some(second) = second_id {
            mark!(TwoPages);
            self.page_check((virt >> 12).wrapping_add(1), second, out);
        }
        let cost = count as i32 * regs::UNIT as i32;
        self.asm.lea(Width::W64, regs::BUDGET, Mem::base(regs::BUDGET, -cost));
        self.asm.shrx(Reg::RCX, regs::BUDGET, regs::BUDGET);
        self.asm.jrcxz_back(out);
        (checked, entry)
    }

    /// Goes on behind if the page is known to be there.
    fn page_check(&mut self, virt_page: u64, id: u32, out: u32) {
        let slot = self.table(Field::CODE_PAGE) + 4 * code_slot(virt_page) as u32;
        self.asm.load(Width::W32, Reg::RCX, Mem::abs(slot));
        self.asm.notes.last_is(Kind::Page);
        self.asm.lea(Width::W32, Reg::RCX, Mem::base(Reg::RCX, -(id as i32)));
        self.asm.note_word(Kind::PageId);
        let matches = self.asm.jrcxz();
        self.asm.jmp_back(out);
        self.asm.bind8(matches);
    }

    /// `jmp` to an out-of-line exit.
    pub fn jump_out(&mut self, kind: ExitKind) {
        let from = self.asm.jmp_forward();
        self.stubs.push(Stub { from, insn: self.insn, retry: self.retry, kind: StubKind::Plain(kind) });
    }

    /// `jmp` to a guest address of this block's address space, linked later.
    pub fn jump_to(&mut self, target: u64) {
        self.jump_to_mode(target, self.mode);
    }

    /// The same, where the code is to be translated for another mode.
    pub fn jump_to_mode(&mut self, target: u64, mode: Mode) {
        let from = self.asm.jmp_forward();
        let kind = StubKind::Branch { target, mode, give_back: 0 };
        self.stubs.push(Stub { from, insn: self.insn, retry: self.retry, kind });
    }

    /// `jcc` likewise; `give_back` instructions of the block will not have run.
    pub fn branch_to(&mut self, condition: u8, target: u64, give_back: u8) {
        let from = self.asm.jcc_forward(condition);
        let kind = StubKind::Branch { target, mode: self.mode, give_back };
        self.stubs.push(Stub { from, insn: self.insn, retry: self.retry, kind });
    }

    /// R11 is about to be written, or the next place may be entered from outside.
    pub fn release(&mut self) {
        self.held = None;
    }

    /// Executes this instruction in Rust, inline; translation goes on behind it.
    pub fn interpret(&mut self) {
        self.release();
        let id = self.exit_for(self.insn, ExitKind::Interpret { decoded: DecodedId::NONE });
        self.asm.mov_exit(id.0);
        self.asm.jmp(self.thunks.exit);
    }

    /// Goes to a thunk that does this instruction and comes back by `Hot::behind`, or leaves it to Rust by the exit
    /// whose index is in ECX.
    pub fn call(&mut self, thunk: u32) {
        self.release();
        let id = self.exit_for(self.insn, ExitKind::Interpret { decoded: DecodedId::NONE });
        self.asm.mov_exit(id.0);
        let behind = self.field(Field::BEHIND);
        self.asm.store_imm(Width::W64, behind, 0);
        self.asm.note_word(Kind::Own);
        let address = self.asm.code.len() - 4;
        self.asm.jmp(thunk);
        let here = self.asm.here().to_le_bytes();
        self.asm.code[address..][..4].copy_from_slice(&here);
    }

    /// A new way out of instruction `insn`.
    pub fn exit_for(&mut self, insn: u8, kind: ExitKind) -> ExitId {
        let id = ExitId(self.next_exit);
        self.next_exit += 1;
        self.exits.push(Exit { block: self.block, insn, joined: false, kind });
        id
    }

    fn leave_with(&mut self, id: ExitId) {
        self.cold.mov_exit(id.0);
        self.cold.jmp(self.thunks.exit);
    }

    /// Emits the out-of-line exits; call once, last.
    pub fn finish(&mut self) -> Plan {
        for stub in std::mem::take(&mut self.stubs) {
            match stub.kind {
                StubKind::Access(access) => {
                    self.asm.bind32_to(stub.from, self.cold.here());
                    self.miss(&stub, access);
                }
                StubKind::Plain(kind) => {
                    self.asm.bind32_to(stub.from, self.cold.here());
                    let indirect = matches!(kind, ExitKind::Indirect);
                    let id = self.exit_for(stub.insn, kind);
                    self.cold.mov_exit(id.0);
                    let door = self.thunks.indirect[self.mode.set()];
                    self.cold.jmp(if indirect { door } else { self.thunks.exit });
                }
                StubKind::Branch { target, mode, give_back } => {
                    let jump = self.give_back(stub.from, give_back);
                    let (field, stub_address) = (self.asm.field(jump), self.cold.here());
                    self.asm.bind32_to(jump, stub_address);
                    let id = self
                        .exit_for(stub.insn, ExitKind::Branch { target, mode, field, stub: stub_address });
                    self.leave_with(id);
                }
            }
        }
        std::mem::take(&mut self.plan)
    }

    /// Makes `from` give back what a side exit skips, if anything; returns the jump that then leads
    /// out of the block. That is no cold code.
    fn give_back(&mut self, from: Fixup32, instructions: u8) -> Fixup32 {
        if instructions == 0 {
            return from;
        }
        mark!(SideExit);
        self.asm.bind32(from);
        let back = instructions as i32 * regs::UNIT as i32;
        self.asm.lea(Width::W64, regs::BUDGET, Mem::base(regs::BUDGET, back));
        self.asm.jmp_forward()
    }

    /// On a TLB miss: the address to R10, that of the last byte to R11, and on to the search.
    fn miss(&mut self, stub: &Stub, access: Miss) {
        let Miss { ea, size, write, leader, behind } = access;
        let id = ExitId(self.next_exit);
        ea.load(&mut self.cold, Reg::R10);
        let across = if leader { self.part_ways(size, id) } else { 0 };
        self.cold.lea(Width::W64, Reg::R11, Mem::base(Reg::R10, size as i32 - 1));
        let retry = self.field(Field::RETRY);
        self.cold.store_imm(Width::W64, retry, stub.retry as i32);
        self.cold.note_word(Kind::Own);
        let planned = self.plan.get(stub.insn as usize);
        let leads = planned.is_some_and(|uses| uses.iter().any(|u| matches!(u, Use::Leader { .. })));
        let moved = if ea.register == Some(Reg::R10) { ea.displacement } else { 0 };
        let decoded = DecodedId::NONE;
        self.exit_for(stub.insn, ExitKind::Access { size, write, across, leads, decoded, behind, moved });
        let goes_on = self.goes_on(stub.retry, &access, moved);
        self.cold.mov_exit(id.0 | u32::from(goes_on) << EXIT_BITS);
        self.cold.jmp(self.thunks.search[self.mode.set()][write as usize]);
    }

    /// How many bytes behind the place of retry the instruction goes on when its access is made just this once; 0 if that
    /// is Rust's to say. See `table_stores`.
    fn goes_on(&self, retry: u32, access: &Miss, moved: i32) -> u8 {
        let Miss { ea, size, write, leader, behind } = *access;
        let fits = write && self.mode.set() == KERNEL && size <= 8;
        if !fits || leader || behind == 0 || moved != 0 || ea.constant.is_some() {
            return 0;
        }
        u8::try_from(behind - retry).unwrap_or(0)
    }

    /// Behind the failed check of a group whose first byte is at R10: a way out of its own for where
    /// the group lies on two pages. Returns the jump to be linked (see [`ExitKind::Access`]).
    fn part_ways(&mut self, span: u16, id: ExitId) -> u32 {
        let cold = &mut self.cold;
        cold.rorx(Reg::R11, Reg::R10, 12);
        cold.mov_imm(Reg::RCX, 52);
        cold.shrx(Reg::RCX, Reg::R11, Reg::RCX);
        cold.lea(Width::W32, Reg::RCX, Mem::base(Reg::RCX, span as i32 - 1));
        cold.shrx(Reg::RCX, Reg::RCX, regs::BUDGET);
        let one_page = cold.jrcxz();
        let jump = cold.jmp_forward();
        let field = cold.field(jump);
        cold.bind32(jump);
        self.leave_with(id);
        self.cold.bind8(one_page);
        field
    }

    /// The host register holding a guest register's value, loading it into `scratch` if it has
    /// no home.
    pub fn read_guest(&mut self, guest: usize, scratch: Reg) -> Reg {
        regs::home(guest).unwrap_or_else(|| {
            if scratch == Reg::R11 {
                self.release();
            }
            self.asm.load(Width::W64, scratch, self.slot(guest));
            scratch
        })
    }

    /// Writes a host register to a guest register.
    pub fn write_guest(&mut self, guest: usize, from: Reg) {
        match regs::home(guest) {
            Some(home) => self.asm.mov(Width::W64, home, from),
            None => self.asm.store(Width::W64, self.slot(guest), from),
        }
    }

    /// Computes the linear address of the instruction's memory operand, using R10 and R11.
    /// `None` when only Rust can (segments with limits).
    pub fn address(&mut self, instr: &Instruction) -> Option<Ea> {
        let segment = instr.memory_segment();
        let override_base = match segment {
            Register::FS => Some(4),
            Register::GS => Some(5),
            _ => None,
        };
        if !self.mode.is64() {
            let index = segment.number();
            // Code can be read through CS only if its descriptor says so, and never written.
            if segment == Register::CS || !self.mode.has(Mode::FLAT[index]) || self.mode.bits() == 16 {
                mark!(AddressRefused);
                return None;
            }
        }
        if instr.memory_base().is_gpr16() || instr.memory_index().is_gpr16() {
            return None;
        }
        if override_base.is_some() {
            mark!(SegmentBase);
        }
        let width = if self.short_address(instr) { Width::W32 } else { Width::W64 };
        if self.mode.is64() && width == Width::W32 {
            mark!(ShortAddress);
        }
        if instr.is_ip_rel_memory_operand()
            || instr.memory_base() == Register::None && instr.memory_index() == Register::None
        {
            mark!(ConstantAddress);
            return Some(self.constant_address(instr, override_base));
        }
        let plain = width == Width::W64 && override_base.is_none();
        let base = guest_of(instr.memory_base());
        let index = guest_of(instr.memory_index());
        // Sign-extended, or, with 32-bit addresses, modulo 2^32.
        let displacement = instr.memory_displacement64() as i32;
        if let (true, Some(base), None) = (plain, base, index) {
            let register = self.read_guest(base, Reg::R10);
            if let Some(displacement) = roomy(displacement.into()) {
                return Some(Ea::at(register, displacement));
            }
            mark!(WideDisplacement);
            self.asm.lea(width, Reg::R10, Mem::base(register, displacement));
            return Some(Ea::at(Reg::R10, 0));
        }
        if let (Width::W64, Some(base), None, Some(segment), Some(displacement)) =
            (width, base, index, override_base, roomy(displacement.into()))
        {
            let register = self.read_guest(base, Reg::R11);
            self.asm.load(Width::W64, Reg::R10, self.field(Field::segment_base(segment)));
            // RSP can be the base only.
            self.asm.lea(Width::W64, Reg::R10, Mem::base_index(register, Reg::R10, 0));
            return Some(Ea::at(Reg::R10, displacement));
        }
        let base = base.map(|b| self.read_guest(b, Reg::R10));
        let scale = instr.memory_index_scale().trailing_zeros() as u8;
        let index = index.map(|i| (self.read_guest(i, Reg::R11), scale));
        self.asm.lea(width, Reg::R10, Mem { base, index, disp: displacement, relative: false });
        if let Some(segment) = override_base {
            self.release();
            self.asm.load(Width::W64, Reg::R11, self.field(Field::segment_base(segment)));
            let width = if self.mode.is64() { Width::W64 } else { Width::W32 };
            self.asm.lea(width, Reg::R10, Mem::base_index(Reg::R10, Reg::R11, 0));
        }
        Some(Ea::at(Reg::R10, 0))
    }

    fn constant_address(&mut self, instr: &Instruction, segment: Option<usize>) -> Ea {
        let (value, relative) = (instr.memory_displacement64(), instr.is_ip_rel_memory_operand());
        let displacement = roomy(value as i64);
        // Addresses of both kinds may share checks: then their distance must stay.
        self.asm.notes.found_constant(relative, displacement.is_some());
        let Some(segment) = segment else {
            let constant = Some(value);
            if let Some(displacement) = displacement {
                return Ea { register: None, displacement, constant, relative };
            }
            self.load_constant(Reg::R10, value, relative);
            return Ea { register: Some(Reg::R10), displacement: 0, constant, relative };
        };
        let base = self.field(Field::segment_base(segment));
        if let (true, Some(displacement)) = (self.mode.is64(), displacement) {
            if relative {
                self.asm.notes.pin();
            }
            self.asm.load(Width::W64, Reg::R10, base);
            return Ea::at(Reg::R10, displacement);
        }
        self.load_constant(Reg::R10, value, relative);
        self.release();
        self.asm.load(Width::W64, Reg::R11, base);
        let width = if self.mode.is64() { Width::W64 } else { Width::W32 };
        self.asm.lea(width, Reg::R10, Mem::base_index(Reg::R10, Reg::R11, 0));
        Ea::at(Reg::R10, 0)
    }

    /// Puts a constant into a register; `relative` if it follows from where the guest has its code.
    pub fn load_constant(&mut self, register: Reg, value: u64, relative: bool) {
        if relative { self.asm.mov_virt(register, value) } else { self.asm.mov_imm(register, value) }
    }

    /// Whether the operand's effective address is cut to 32 bits.
    pub fn short_address(&self, instr: &Instruction) -> bool {
        if !self.mode.is64() {
            return true;
        }
        let of = |r: Register| r.is_gpr32();
        of(instr.memory_base()) || of(instr.memory_index())
    }

    /// How the next access of the instruction is to be checked.
    fn planned(&mut self) -> Use {
        let nth = if self.checks.0 == self.insn { self.checks.1 } else { 0 };
        self.checks = (self.insn, nth + 1);
        let planned = self.plan.get(self.insn as usize).and_then(|uses| uses.get(nth as usize));
        planned.copied().unwrap_or_default()
    }

    /// Emits what makes sure that `size` bytes at `ea` may be accessed, and returns the host memory
    /// operand. R11 holds the addend afterwards.
    pub fn check(&mut self, ea: Ea, size: usize, write: bool) -> Mem {
        let planned = self.planned();
        if self.in_place() {
            // The chunk of an address known now is claimed already.
            if ea.constant.is_none() {
                self.guard_as(ea.alone(), planned);
            }
            return ea.alone();
        }
        match planned {
            Use::Member { slot } if self.led >> slot & 1 != 0 => {
                mark!(GroupMember);
                // An instruction with another check may be tried again from its start.
                if self.held == Some(slot) && !self.two_checks {
                    mark!(AddendHeld);
                } else {
                    let addend = self.field(Field::group(slot));
                    self.asm.load(Width::W64, Reg::R11, addend);
                }
                self.held = if self.two_checks { None } else { Some(slot) };
            }
            Use::Leader { slot, below, span } if ea.displacement > i32::MIN + below as i32 => {
                mark!(GroupLeader);
                let start = Ea {
                    displacement: ea.displacement - below as i32,
                    constant: ea.constant.map(|value| value - below as u64),
                    ..ea
                };
                self.test(start, span, write, true);
                let addend = self.field(Field::group(slot));
                self.asm.store(Width::W64, addend, Reg::R11);
                self.led |= 1 << slot;
                self.held = if self.two_checks { None } else { Some(slot) };
            }
            _ => self.test(ea, size as u16, write, false),
        }
        ea.plus(Reg::R11, 0)
    }

    /// Whether memory is where the guest has it, for this instruction.
    pub fn in_place(&self) -> bool {
        self.mode.has(Mode::MIRRORED) && !self.apart
    }

    /// Emits what makes sure that an access at `pointer`, of home registers, reaches nothing of ours; see
    /// `mirror`.
    pub fn guard(&mut self, pointer: Mem) {
        let planned = self.planned();
        self.guard_as(pointer, planned);
    }

    /// Emits what makes sure that the stack pointer may be moved like that: it is near a claimed chunk then. False if
    /// Rust has to see to it.
    pub fn guard_stack(&mut self, moved: Move) -> bool {
        self.release();
        let mut source = Reg::R11;
        match moved {
            Move::To { guest, more } => {
                source = self.read_guest(guest, Reg::R10);
                if !is_short(more) {
                    self.asm.lea(Width::W64, Reg::R11, Mem::base(source, more));
                    source = Reg::R11;
                }
            }
            Move::Down { guest } => {
                let less = self.read_guest(guest, Reg::R10);
                self.asm.mov(Width::W64, Reg::R10, less);
                self.asm.bytes(&[0x49, 0xf7, 0xd2]); // not r10
                self.asm.lea(Width::W64, Reg::R11, Mem::base_index(Reg::RSP, Reg::R10, 1));
            }
            Move::Other => return false,
        }
        mark!(StackGuarded);
        self.load_guard(source);
        true
    }

    fn guard_as(&mut self, pointer: Mem, planned: Use) {
        if let Use::Guarded { slot } = planned
            && self.led >> slot & 1 != 0
        {
            mark!(GuardShared);
            return;
        }
        self.release();
        let source = match pointer {
            Mem { base: Some(register), index: None, disp, .. } if i64::from(disp).abs() < REACH => register,
            _ => {
                self.asm.lea(Width::W64, Reg::R11, pointer);
                Reg::R11
            }
        };
        self.load_guard(source);
        if let Use::Guards { slot } = planned {
            self.led |= 1 << slot;
        }
    }

    /// Faults unless the chunk that a register points to is claimed.
    fn load_guard(&mut self, pointer: Reg) {
        self.asm.shrx(Reg::R11, pointer, regs::BUDGET);
        self.asm.bytes(&GUARD_LOAD);
    }

    /// The TLB check proper; the addend goes to R11.
    fn test(&mut self, ea: Ea, size: u16, write: bool, leader: bool) {
        self.release();
        let tlb = self.table(Field::data(write));
        let (tags, addends) = (tlb + Field::TAG, tlb + Field::ADDEND);
        let reach = size as i32 - 1;
        let miss = Miss { ea, size, write, leader, behind: 0 };
        if let Some(value) = ea.constant {
            let slot = 8 * tlb_slot(self.mode.set(), value >> 12) as u32;
            let kind = if ea.relative { Kind::Slot } else { Kind::Outside };
            self.asm.load(Width::W64, Reg::RCX, Mem::abs(tags + slot));
            self.asm.notes.last_is(kind);
            let offset = (value & 0xfff) as i32;
            let on_one_page = offset + reach < 4096;
            let more = if on_one_page { -offset } else { reach };
            self.asm.lea(Width::W64, Reg::RCX, ea.plus(Reg::RCX, more));
            self.tag_test(miss, !on_one_page);
            self.asm.load(Width::W64, Reg::R11, Mem::abs(addends + slot));
            self.asm.notes.last_is(kind);
            return;
        }
        let page_source = match ea.register {
            Some(register) if ea.displacement == 0 => register,
            _ => {
                ea.load(&mut self.asm, Reg::R11);
                Reg::R11
            }
        };
        self.asm.shrx(Reg::R11, page_source, regs::BUDGET);
        cut_to_slot(&mut self.asm, self.mode.set(), Reg::R11);
        self.asm.load(Width::W64, Reg::RCX, Mem::table(tags, Reg::R11));
        self.asm.lea(Width::W64, Reg::RCX, ea.plus(Reg::RCX, reach));
        self.tag_test(miss, true);
        self.asm.load(Width::W64, Reg::R11, Mem::table(addends, Reg::R11));
    }

    /// RCX is the operand's distance from its page's first byte, or, unless `within`, exactly zero, if
    /// that page is what the slot is for.
    fn tag_test(&mut self, miss: Miss, within: bool) {
        if within {
            self.asm.shrx(Reg::RCX, Reg::RCX, regs::BUDGET);
        }
        let hit = self.asm.jrcxz();
        let from = self.asm.jmp_forward();
        self.asm.bind8(hit);
        let behind = if self.two_checks { 0 } else { self.asm.here() };
        let kind = StubKind::Access(Miss { behind, ..miss });
        self.stubs.push(Stub { from, insn: self.insn, retry: self.retry, kind });
    }

    /// The linear address of the stack slot `offset` bytes from RSP.
    pub fn stack(&mut self, offset: i32) -> Ea {
        if self.mode.is64() {
            return Ea::at(Reg::RSP, offset);
        }
        self.asm.lea(Width::W32, Reg::R10, Mem::base(Reg::RSP, offset));
        Ea::at(Reg::R10, 0)
    }

    /// Moves the stack pointer.
    pub fn move_stack(&mut self, by: i32) {
        let width = if self.mode.is64() { Width::W64 } else { Width::W32 };
        self.asm.lea(width, Reg::RSP, Mem::base(Reg::RSP, by));
    }

    /// Jumps to the guest address in R10 through the jump cache.
    pub fn jump_indirect(&mut self) {
        self.release();
        let table = self.table(Field::JUMP);
        self.asm.movzx16(Reg::R11, Reg::R10);
        self.asm.lea(Width::W32, Reg::R11, Mem::base_index(Reg::R11, Reg::R11, 0));
        self.asm.load(Width::W64, Reg::RCX, Mem::table(table, Reg::R11));
        self.asm.lea(Width::W64, Reg::RCX, Mem::base_index(Reg::R10, Reg::RCX, 0));
        let hit = self.asm.jrcxz();
        self.jump_out(ExitKind::Indirect);
        self.asm.bind8(hit);
        self.asm.jmp_mem(Mem::table(table + 8, Reg::R11));
    }
}

/// The number of a general register (of any size), or `None` for "no register".
pub fn guest_of(register: Register) -> Option<usize> {
    if register == Register::None {
        return None;
    }
    register.is_gpr().then(|| register.full_register() as usize - Register::RAX as usize)
}
