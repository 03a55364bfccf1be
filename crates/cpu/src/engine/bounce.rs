//! Executing one ordinary instruction precisely.
//!
//! The instruction is re-encoded with its memory operand replaced by a buffer of ours and run by
//! the host, alone. The operand is read into the buffer before and written back after, through the
//! page tables and the bus, so device memory, page-crossing operands and pages that must hear of
//! stores all work. The buffer has the operand's own alignment within 64 bytes, so that the host
//! checks alignment for us.

use super::blocks::{ExitId, HOST_FAULT};
use super::classify::Class;
use super::emit::{Emitter, guest_of};
use super::flow;
use super::hot::Field;
use super::plain::{Rewriter, operand_size};
use super::translate::Place;
use super::used::Used;
use super::vcpu::{BOUNCE_CODE_BYTES, Vcpu};
use crate::Bus;
use crate::core::{Core, Intent};
use crate::marks::mark;
use crate::walk::Access;
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, InstructionInfo, Mnemonic, OpAccess, OpKind};
use x86::{Exception, vector};

struct Operand {
    linear: u64,
    size: usize,
    read: bool,
    write: bool,
    /// It may leave the operand alone, like a CMPXCHG that fails; written back all the same.
    conditional: bool,
}

impl Vcpu {
    /// Executes an instruction of class `Registers`, `Memory` or `Lea`. The data breakpoints hit
    /// are returned.
    pub(super) fn bounce(
        &mut self,
        bus: &mut dyn Bus,
        instr: &Instruction,
        class: Class,
    ) -> Result<u64, Exception> {
        let mut instr = *instr;
        let info = self.info.info(&instr).clone();
        let mut core = self.core(bus);
        if class == Class::Lea {
            let value = flow::effective_address(&core, &instr);
            flow::write_register(&mut core, instr.op0_register(), value);
            core.state.rip = instr.next_ip();
            return Ok(0);
        }
        if class == Class::Memory && simple_move(&mut core, &instr)? {
            core.state.rip = instr.next_ip();
            return Ok(core.data_hits);
        }
        if class == Class::Memory && must_be_aligned(&instr) {
            check_vector_alignment(&core, &instr)?;
        }
        let operand =
            if class == Class::Memory { Some(operand(&mut core, &mut instr, &info)?) } else { None };
        let place = operand.as_ref().map_or(0, |o| (o.linear & 63) as usize);
        let mut hits = 0;
        let mut before = [0; 64];
        if let Some(o) = &operand {
            check_alignment(&core, o)?;
            if o.write {
                core.check_write(o.linear, o.size, Intent::Explicit)?;
            }
            if o.read {
                core.read(o.linear, &mut before[..o.size], Intent::Explicit)?;
                hits |= core.data_hits;
                self.hot().bounce.0[place..place + o.size].copy_from_slice(&before[..o.size]);
            }
        }
        self.run_alone(&instr, &info, operand.is_some(), place)?;
        let mut bytes = [0; 64];
        if let Some(o) = &operand {
            bytes[..o.size].copy_from_slice(&self.hot().bounce.0[place..place + o.size]);
        }
        let mut core = self.core(bus);
        if let Some(o) = &operand
            && o.write
        {
            if o.conditional && bytes == before {
                // For a debugger nothing was written.
                core.watch = None;
            }
            core.write(o.linear, &bytes[..o.size], Intent::Explicit)?;
            hits |= core.data_hits;
        }
        core.state.rip = instr.next_ip();
        Ok(hits)
    }

    /// Runs the instruction on the host with the guest's registers.
    fn run_alone(
        &mut self,
        instr: &Instruction,
        info: &InstructionInfo,
        memory: bool,
        place: usize,
    ) -> Result<(), Exception> {
        let base = self.arena.base();
        let mut exits = Vec::new();
        // The registers are the state's own, so this is translated as 64-bit code in any mode.
        let spot = Place::outside(self.bounce_code, base, self.thunks);
        let mut e = Emitter::new(&spot, super::blocks::Mode::default(), &mut exits);
        let mut rewriter = Rewriter::new();
        let used = Used::of(info);
        let done = if memory {
            mark!(BouncedMemory);
            rewriter.bounced(&mut e, instr, used, base + Field::BOUNCE + place as u32)
        } else {
            mark!(BouncedRegisters);
            rewriter.registers(&mut e, instr, used, &[])
        };
        if done.is_err() {
            return Err(Exception::ud());
        }
        e.asm.mov_imm(super::asm::Reg::RCX, 0);
        e.asm.jmp(self.thunks.exit);
        assert!(e.asm.code.len() < BOUNCE_CODE_BYTES as usize);
        self.arena.write_code(self.bounce_code, &e.asm.code);
        self.hot().budget = super::regs::encode_budget(0);
        let exit = self.enter(self.bounce_code);
        if exit == ExitId(HOST_FAULT) { Err(self.host_exception()) } else { Ok(()) }
    }

    /// The guest's exception for the host fault that was just noted.
    pub(super) fn host_exception(&self) -> Exception {
        let fault = self.hot().fault;
        match fault.vector as u8 {
            v @ (vector::DE | vector::MF | vector::XM | vector::UD) => Exception::plain(v),
            vector::AC => Exception::with_code(vector::AC, 0),
            vector::GP => Exception::gp(0),
            other => panic!(
                "translated code raised host exception {other} at {:#x}, address {:#x}",
                fault.rip, fault.address
            ),
        }
    }
}

/// MOV between a general register or immediate and memory: what drivers do to device registers.
fn simple_move(core: &mut Core, instr: &Instruction) -> Result<bool, Exception> {
    if instr.mnemonic() != Mnemonic::Mov {
        return Ok(false);
    }
    let size = instr.memory_size().size();
    if instr.op0_kind() == OpKind::Memory {
        let value = match instr.op1_kind() {
            OpKind::Register if guest_of(instr.op1_register()).is_some() => {
                flow::read_register(core, instr.op1_register())
            }
            OpKind::Register => return Ok(false),
            _ => instr.immediate(1),
        };
        let linear = flow::linear_address(core, instr, size, true)?;
        core.write_uint(linear, size, value, Intent::Explicit)?;
    } else {
        let linear = flow::linear_address(core, instr, size, false)?;
        let value = core.read_uint(linear, size, Intent::Explicit)?;
        flow::write_register(core, instr.op0_register(), value);
    }
    Ok(true)
}

fn operand(core: &mut Core, instr: &mut Instruction, info: &InstructionInfo) -> Result<Operand, Exception> {
    let size = operand_size(instr);
    let access = info.used_memory().first().map_or(OpAccess::None, |m| m.access());
    let write = matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    );
    let read = !matches!(access, OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess);
    // A conditional or partial write leaves some bytes: they must be there to be written back. So
    // does an x87 store that raises an unmasked exception, which is delivered only later.
    let read = read || access == OpAccess::CondWrite || write && is_x87(instr);
    let mut displacement = 0;
    if let Some(code) = immediate_bit_form(instr.code()) {
        let register = instr.op1_register();
        let bits = 8 * size as u64;
        let value = flow::read_register(core, register);
        let signed = ((value << (64 - bits)) as i64) >> (64 - bits);
        displacement = (signed.div_euclid(bits as i64) * size as i64) as u64;
        instr.set_code(code);
        instr.set_op1_kind(OpKind::Immediate8);
        instr.set_immediate8((value & (bits - 1)) as u8);
    }
    let linear = match flow::linear_address_at(core, instr, displacement, size, write) {
        Err(beyond) if size == 10 => return Err(first_part(core, instr, write).err().unwrap_or(beyond)),
        linear => linear?,
    };
    let conditional = matches!(access, OpAccess::CondWrite | OpAccess::ReadCondWrite);
    Ok(Operand { linear, size, read, write, conditional })
}

/// Looks at the first eight bytes of an 80-bit operand: the model's vendor's processors access them before they
/// know anything of the other two.
fn first_part(core: &mut Core, instr: &Instruction, write: bool) -> Result<(), Exception> {
    let linear = flow::linear_address_at(core, instr, 0, 8, write)?;
    let access = Access::data(core.state, write);
    core.translate(linear, access).map(drop)
}

/// #GP for a misaligned operand that must be aligned: before the address's form and its page are
/// looked at. Where both are fine, the host finds out by itself.
pub(super) fn check_vector_alignment(core: &Core, instr: &Instruction) -> Result<(), Exception> {
    let linear = flow::linear_address_unchecked(core, instr);
    let aligned = linear & (instr.memory_size().size() as u64 - 1) == 0;
    if aligned { Ok(()) } else { Err(Exception::gp(0)) }
}

/// #AC, while it is armed, for an operand that is not aligned as its data type asks (SDM vol. 3A,
/// table 6-7). The manuals leave vectors and 80-bit numbers to the processor; the model's vendor's
/// asks for 16 bytes of vectors of either length, and for 8 of numbers of 80 bits.
fn check_alignment(core: &Core, operand: &Operand) -> Result<(), Exception> {
    let alignment = match operand.size {
        10 => 8,
        size => size.min(16),
    };
    core.check_alignment(operand.linear, alignment)
}

fn is_x87(instr: &Instruction) -> bool {
    use CpuidFeature::{FPU, FPU287, FPU387};
    instr.cpuid_features().iter().any(|f| matches!(f, FPU | FPU287 | FPU387))
}

/// Whether a misaligned memory operand raises #GP: 16-byte operands of legacy-encoded instructions
/// but for the unaligned moves and string comparisons, and the aligned moves of VEX (SDM vol. 1,
/// 10.8.5 and 14.9).
pub(super) fn must_be_aligned(instr: &Instruction) -> bool {
    use Mnemonic::*;
    match instr.mnemonic() {
        Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa | Cmpxchg16b => true,
        Movups | Movupd | Movdqu | Lddqu | Pcmpestri | Pcmpestri64 | Pcmpestrm | Pcmpestrm64 | Pcmpistri
        | Pcmpistrm => false,
        // Not checked by the model's vendor's processors.
        Sha1rnds4 | Sha1nexte | Sha1msg1 | Sha1msg2 | Sha256rnds2 | Sha256msg1 | Sha256msg2 => false,
        _ => {
            instr.code().encoding() == EncodingKind::Legacy
                && instr.memory_size().size() == 16
                && (0..instr.op_count())
                    .any(|op| instr.op_register(op).is_xmm() || instr.op_register(op).is_mm())
        }
    }
}

fn immediate_bit_form(code: Code) -> Option<Code> {
    use Code::*;
    Some(match code {
        Bt_rm16_r16 => Bt_rm16_imm8,
        Bt_rm32_r32 => Bt_rm32_imm8,
        Bt_rm64_r64 => Bt_rm64_imm8,
        Bts_rm16_r16 => Bts_rm16_imm8,
        Bts_rm32_r32 => Bts_rm32_imm8,
        Bts_rm64_r64 => Bts_rm64_imm8,
        Btr_rm16_r16 => Btr_rm16_imm8,
        Btr_rm32_r32 => Btr_rm32_imm8,
        Btr_rm64_r64 => Btr_rm64_imm8,
        Btc_rm16_r16 => Btc_rm16_imm8,
        Btc_rm32_r32 => Btc_rm32_imm8,
        Btc_rm64_r64 => Btc_rm64_imm8,
        _ => return None,
    })
}
