//! Instructions that the host executes: copied, or re-encoded with other registers.
//!
//! A guest register without a home is an operand in memory (see `homeless`), or in a scratch register for as long
//! as the instruction takes; the guest's RCX is renamed to its home, unless the encoding fixes CL/RCX or forbids a
//! REX prefix (AH, BH, CH, DH), in which case its value visits the host's RCX.

use super::asm::{Mem, Reg, Width};
use super::emit::{Ea, Emitter, guest_of};
use super::homeless::{Folded, fold};
use super::regs;
use super::used::Used;
use crate::marks::mark;
use arrayvec::ArrayVec;
use iced_x86::{Code, Encoder, Instruction, Mnemonic, OpKind, Register};
use x86::gpr;

/// Where each guest register of one instruction is found.
struct Assignment {
    visits: ArrayVec<Visit, 4>,
}

/// A guest register that is in another host register for one instruction.
#[derive(Clone, Copy)]
struct Visit {
    guest: usize,
    host: Reg,
    /// Its value matters to the instruction.
    read: bool,
    written: bool,
}

impl Assignment {
    fn host(&self, guest: usize) -> Reg {
        self.visits
            .iter()
            .find(|visit| visit.guest == guest)
            .map(|visit| visit.host)
            .or_else(|| regs::home(guest))
            .expect("every register without a home has a visit")
    }
}

/// Host registers that guest registers may visit, the last one first.
type Pool = ArrayVec<Reg, 3>;

/// Guest registers that are not in the host register of the same name.
const AWAY: u16 = HOMELESS | 1 << gpr::RCX;
/// Guest registers that are in memory.
const HOMELESS: u16 = 1 << gpr::R10 | 1 << gpr::R11 | 1 << gpr::R14 | 1 << gpr::R15;

/// The encoder, kept because its buffer is.
pub struct Rewriter {
    encoder: Encoder,
}

/// The instruction cannot be expressed; Rust executes it.
#[derive(Debug)]
pub struct Inexpressible;

impl Rewriter {
    /// A fresh one.
    pub fn new() -> Self {
        Self { encoder: Encoder::new(64) }
    }

    /// Emits an instruction without memory operand. `bytes` are its own, copied where possible.
    pub fn registers(
        &mut self,
        e: &mut Emitter,
        instr: &Instruction,
        used: Used,
        bytes: &[u8],
    ) -> Result<(), Inexpressible> {
        if used.any & AWAY == 0 && e.mode.is64() {
            mark!(Copied);
            e.asm.bytes(bytes);
            return Ok(());
        }
        let needs_rcx = wants_host_rcx(instr);
        let mut pool: Pool = [Reg::R10, Reg::R11].into_iter().collect();
        if !needs_rcx {
            pool.push(Reg::RCX);
        }
        let folded = if used.any & HOMELESS != 0 { fold(instr, used) } else { None };
        let (instr, used, memory) = match folded {
            Some(Folded { instr, guest }) => {
                mark!(RegisterFolded);
                (instr, Used { any: used.any & !(1 << guest), ..used }, Some(e.slot(guest)))
            }
            None => (*instr, used, None),
        };
        let assignment = assign(used, needs_rcx, &mut pool)?;
        let bytes = self.encode(&instr, &assignment, memory)?;
        surround(e, &assignment, &bytes, None);
        self.give_back(bytes);
        Ok(())
    }

    /// Emits an instruction with one memory operand: address, check, access. `bytes` are its own.
    pub fn memory(
        &mut self,
        e: &mut Emitter,
        instr: &Instruction,
        used: Used,
        bytes: &[u8],
    ) -> Result<(), Inexpressible> {
        let size = operand_size(instr);
        if !(1..=64).contains(&size) {
            return Err(Inexpressible);
        }
        let write = used.memory_written;
        if e.in_place() && used.any & AWAY == 0 && is_at_its_pointer(e, instr) {
            mark!(CopiedInPlace);
            e.guard(pointer(instr));
            e.asm.bytes(bytes);
            return Ok(());
        }
        let used = data_guests(instr, used);
        let needs_rcx = wants_host_rcx(instr);
        let high = uses_high_byte(instr);
        if high && used.any & AWAY != 0 {
            mark!(HighByteRefused);
            return Err(Inexpressible);
        }
        let start = e.asm.code.len();
        let operand = match self.bit_string(e, instr)? {
            Some(operand) => operand,
            None => {
                let ea = e.address(instr).ok_or(Inexpressible)?;
                e.check(ea, size, write)
            }
        };
        let result = self.access(e, instr, operand, used, needs_rcx, high);
        if result.is_err() {
            // The check's exits stay behind unused; Rust takes over from here.
            debug_assert!(e.asm.code.len() > start);
        }
        result
    }

    /// The instruction alone, its memory operand at `operand` (host), all registers as assigned.
    fn access(
        &mut self,
        e: &mut Emitter,
        instr: &Instruction,
        mut operand: Mem,
        used: Used,
        needs_rcx: bool,
        high: bool,
    ) -> Result<(), Inexpressible> {
        let homeless = (used.any & HOMELESS).count_ones();
        let mut pool = Pool::new();
        if high {
            mark!(HighByteMemory);
            e.asm.lea(Width::W64, Reg::RCX, operand);
            operand = Mem::base(Reg::RCX, 0);
        } else if needs_rcx || homeless > 1 {
            if homeless > 1 {
                mark!(TwoDisplaced);
            }
            if operand.base.is_some() {
                e.asm.lea(Width::W64, Reg::R10, operand);
                operand = Mem::base(Reg::R10, 0);
            }
            pool.push(Reg::R11);
            if !needs_rcx {
                pool.push(Reg::RCX);
            }
        } else {
            pool.push(Reg::RCX);
        }
        let assignment = assign(used, needs_rcx, &mut pool)?;
        let bytes = self.encode(instr, &assignment, Some(operand))?;
        let relative = operand.relative.then(|| self.encoder.get_constant_offsets().displacement_offset());
        surround(e, &assignment, &bytes, relative);
        self.give_back(bytes);
        Ok(())
    }

    /// Emits the instruction with its memory operand at the absolute address `operand`.
    pub fn bounced(
        &mut self,
        e: &mut Emitter,
        instr: &Instruction,
        used: Used,
        operand: u32,
    ) -> Result<(), Inexpressible> {
        let used = data_guests(instr, used);
        let needs_rcx = wants_host_rcx(instr);
        let mut pool: Pool = [Reg::R10, Reg::R11].into_iter().collect();
        if !needs_rcx {
            pool.push(Reg::RCX);
        }
        let assignment = assign(used, needs_rcx, &mut pool)?;
        let bytes = self.encode(instr, &assignment, Some(Mem::abs(operand)))?;
        surround(e, &assignment, &bytes, None);
        Ok(())
    }

    /// BT, BTS, BTR, BTC with a register offset reach beyond their operand: the word checked is
    /// the one that holds the bit, while the instruction itself still gets the unshifted operand.
    fn bit_string(&mut self, e: &mut Emitter, instr: &Instruction) -> Result<Option<Mem>, Inexpressible> {
        if !wide_bit_string(instr) {
            return Ok(None);
        }
        let size = instr.op1_register().size();
        if size != 8 || !e.mode.is64() || e.short_address(instr) {
            mark!(BitStringRefused);
            return Err(Inexpressible);
        }
        e.release();
        let ea = e.address(instr).ok_or(Inexpressible)?;
        ea.load(&mut e.asm, Reg::R10);
        let offset = e.read_guest(guest_of(instr.op1_register()).ok_or(Inexpressible)?, Reg::R11);
        e.asm.mov_imm(Reg::RCX, 6);
        e.asm.sarx(Reg::RCX, offset, Reg::RCX);
        e.asm.lea(
            Width::W64,
            Reg::R10,
            Mem { base: Some(Reg::R10), index: Some((Reg::RCX, 3)), disp: 0, relative: false },
        );
        e.check(Ea::at(Reg::R10, 0), 8, instr.mnemonic() != Mnemonic::Bt);
        mark!(BitString);
        // R11 is the addend, R10 the word's address; turn it back into the operand's.
        let offset = e.read_guest(guest_of(instr.op1_register()).ok_or(Inexpressible)?, Reg::RCX);
        if offset != Reg::RCX {
            e.asm.mov(Width::W64, Reg::RCX, offset);
        }
        e.asm.lea(Width::W64, Reg::R10, Mem::base_index(Reg::R10, Reg::R11, 0));
        e.asm.mov_imm(Reg::R11, 6);
        e.asm.sarx(Reg::RCX, Reg::RCX, Reg::R11);
        // R10 -= 8 * RCX without flags: not-then-add is lea with one's complement.
        e.asm.bytes(&[0x48, 0xf7, 0xd1]); // not rcx (writes no flags)
        e.asm.lea(
            Width::W64,
            Reg::R10,
            Mem { base: Some(Reg::R10), index: Some((Reg::RCX, 3)), disp: 8, relative: false },
        );
        Ok(Some(Mem::base(Reg::R10, 0)))
    }

    fn encode(
        &mut self,
        instr: &Instruction,
        assignment: &Assignment,
        memory: Option<Mem>,
    ) -> Result<Vec<u8>, Inexpressible> {
        let mut new = *instr;
        widen_code(&mut new);
        let opcode = new.code().op_code();
        for i in 0..new.op_count() {
            if new.op_kind(i) != OpKind::Register {
                continue;
            }
            let register = new.op_register(i);
            let Some(guest) = guest_of(register) else { continue };
            if is_fixed(opcode.op_kind(i)) {
                continue;
            }
            let host = assignment.host(guest);
            if host.0 as usize != guest {
                if is_high_byte(register) {
                    return Err(Inexpressible);
                }
                new.set_op_register(i, sized(host, register.size()));
            }
        }
        if let Some(mem) = memory {
            new.set_segment_prefix(Register::None);
            // Nobody else runs while translated code does, so one instruction is atomic as it is.
            new.set_has_lock_prefix(false);
            new.set_memory_base(mem.base.map_or(Register::None, |r| sized(r, 8)));
            new.set_memory_index(mem.index.map_or(Register::None, |(r, _)| sized(r, 8)));
            new.set_memory_index_scale(mem.index.map_or(1, |(_, s)| 1 << s));
            new.set_memory_displacement64(mem.disp as i64 as u64);
            let size = match (mem.base.is_some(), mem.disp) {
                (false, _) => 8,
                (true, 0) => 0,
                (true, _) => 1,
            };
            new.set_memory_displ_size(size);
        }
        self.encoder.encode(&new, 0).map_err(|_| Inexpressible)?;
        Ok(self.encoder.take_buffer())
    }

    /// The encoder's buffer, for the next instruction.
    fn give_back(&mut self, mut bytes: Vec<u8>) {
        bytes.clear();
        self.encoder.set_buffer(bytes);
    }
}

/// The operand of an instruction whose registers are at home.
fn pointer(instr: &Instruction) -> Mem {
    let home = |register| guest_of(register).and_then(regs::home);
    let scale = instr.memory_index_scale().trailing_zeros() as u8;
    let index = home(instr.memory_index()).map(|index| (index, scale));
    Mem {
        base: home(instr.memory_base()),
        index,
        disp: instr.memory_displacement64() as i32,
        relative: false,
    }
}

/// Whether an instruction's own bytes access the right memory, where memory is at the guest's own
/// addresses and all registers are at home.
fn is_at_its_pointer(e: &Emitter, instr: &Instruction) -> bool {
    let based = matches!(instr.memory_segment(), Register::FS | Register::GS);
    let absolute = instr.is_ip_rel_memory_operand()
        || instr.memory_base() == Register::None && instr.memory_index() == Register::None;
    !based && !absolute && !e.short_address(instr) && !instr.has_lock_prefix()
}

/// Whether a register says which bit of memory is meant, however far from the operand's address.
pub fn wide_bit_string(instr: &Instruction) -> bool {
    let is_bit = matches!(instr.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc);
    is_bit && instr.op1_kind() == OpKind::Register
}

/// Bytes of the memory operand that the host may touch. MOVSXD to a 16-bit register reads four on
/// the model's vendor's processors, where its operand nominally has two.
pub fn operand_size(instr: &Instruction) -> usize {
    if instr.code() == Code::Movsxd_r16_rm16 { 4 } else { instr.memory_size().size() }
}

/// Emits an instruction between what brings its registers and what takes them away. `relative` is where its
/// displacement is, if that follows from where the guest has its code.
fn surround(e: &mut Emitter, assignment: &Assignment, bytes: &[u8], relative: Option<usize>) {
    for &Visit { guest, host, read, .. } in &assignment.visits {
        if host == Reg::R11 {
            e.release();
        }
        if !read {
            continue;
        }
        let value = e.read_guest(guest, host);
        if value != host {
            e.asm.mov(Width::W64, host, value);
        }
    }
    if let Some(offset) = relative {
        e.asm.notes.add_virt32(e.asm.code.len() + offset);
    }
    e.asm.bytes(bytes);
    for &Visit { guest, host, written, .. } in &assignment.visits {
        if written {
            e.write_guest(guest, host);
        }
    }
}

fn assign(used: Used, rcx_visits: bool, pool: &mut Pool) -> Result<Assignment, Inexpressible> {
    let mut visits = ArrayVec::new();
    for (guest, written) in used.guests() {
        let read = used.overwritten >> guest & 1 == 0;
        if guest == gpr::RCX {
            if rcx_visits {
                mark!(RcxVisits);
                visits.push(Visit { guest, host: Reg::RCX, read, written });
            }
        } else if regs::home(guest).is_none() {
            mark!(DisplacedRegister);
            visits.push(Visit { guest, host: pool.pop().ok_or(Inexpressible)?, read, written });
        }
    }
    Ok(Assignment { visits })
}

/// The registers used without those that only form the memory operand's address.
fn data_guests(instr: &Instruction, used: Used) -> Used {
    let mut explicit = 0_u16;
    for i in 0..instr.op_count() {
        if instr.op_kind(i) == OpKind::Register
            && let Some(guest) = guest_of(instr.op_register(i))
        {
            explicit |= 1 << guest;
        }
    }
    let implicit_rcx = (wants_host_rcx(instr) as u16) << gpr::RCX;
    Used { any: used.any & (used.written | explicit | implicit_rcx | !AWAY), ..used }
}

/// Whether the guest's RCX must be in the host's RCX for this instruction.
fn wants_host_rcx(instr: &Instruction) -> bool {
    let fixed = matches!(
        instr.mnemonic(),
        Mnemonic::Cmpxchg8b
            | Mnemonic::Cmpxchg16b
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Vpcmpestri
            | Mnemonic::Vpcmpestri64
            | Mnemonic::Vpcmpistri
    );
    let mut cl = false;
    let mut rcx = false;
    let opcode = instr.code().op_code();
    for i in 0..instr.op_count() {
        if instr.op_kind(i) == OpKind::Register {
            cl |= opcode.op_kind(i) == iced_x86::OpCodeOperandKind::cl;
            rcx |= guest_of(instr.op_register(i)) == Some(gpr::RCX);
        }
    }
    fixed || cl || rcx && uses_high_byte(instr)
}

fn uses_high_byte(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|i| instr.op_kind(i) == OpKind::Register && is_high_byte(instr.op_register(i)))
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

fn is_fixed(kind: iced_x86::OpCodeOperandKind) -> bool {
    use iced_x86::OpCodeOperandKind::*;
    matches!(kind, al | cl | ax | dx | eax | rax | es | cs | ss | ds | fs | gs)
}

/// The register of a host number and size in bytes, never a high byte.
fn sized(host: Reg, size: usize) -> Register {
    let n = host.0 as u32;
    let value = match size {
        8 => Register::RAX as u32 + n,
        4 => Register::EAX as u32 + n,
        2 => Register::AX as u32 + n,
        _ if n < 4 => Register::AL as u32 + n,
        _ if n < 8 => Register::SPL as u32 + (n - 4),
        _ => Register::R8L as u32 + (n - 8),
    };
    Register::try_from(value as usize).expect("registers of one size are consecutive")
}

/// Replaces encodings that cannot carry our operands or do not exist in 64-bit code.
fn widen_code(instr: &mut Instruction) {
    use Code::*;
    let code = match instr.code() {
        Inc_r16 => Inc_rm16,
        Inc_r32 => Inc_rm32,
        Dec_r16 => Dec_rm16,
        Dec_r32 => Dec_rm32,
        Mov_AL_moffs8 => Mov_r8_rm8,
        Mov_AX_moffs16 => Mov_r16_rm16,
        Mov_EAX_moffs32 => Mov_r32_rm32,
        Mov_RAX_moffs64 => Mov_r64_rm64,
        Mov_moffs8_AL => Mov_rm8_r8,
        Mov_moffs16_AX => Mov_rm16_r16,
        Mov_moffs32_EAX => Mov_rm32_r32,
        Mov_moffs64_RAX => Mov_rm64_r64,
        Add_rm8_imm8_82 => Add_rm8_imm8,
        Or_rm8_imm8_82 => Or_rm8_imm8,
        Adc_rm8_imm8_82 => Adc_rm8_imm8,
        Sbb_rm8_imm8_82 => Sbb_rm8_imm8,
        And_rm8_imm8_82 => And_rm8_imm8,
        Sub_rm8_imm8_82 => Sub_rm8_imm8,
        Xor_rm8_imm8_82 => Xor_rm8_imm8,
        Cmp_rm8_imm8_82 => Cmp_rm8_imm8,
        other => other,
    };
    instr.set_code(code);
}
