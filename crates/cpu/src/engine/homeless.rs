//! Registers in memory as the memory operands that they are.
//!
//! A guest register without a home is a word of memory. Where an instruction takes it as an operand that may
//! be in memory as well, it is taken from there: `add rax, r15` becomes `add rax, [r15's]`, one instruction of 8
//! bytes where loading it first takes two of 10, and `add r15, rax` becomes `add [r15's], rax` rather than
//! three of 17. Operands may have to change sides first: compilers write `mov rax, r15` with RAX as the one that
//! may be in memory.
//!
//! What is written has to be a whole word: 32 bits written to a register clear the others, and a word that has
//! been stored in parts is slow to load. Not for XCHG, which with memory is atomic, nor the bit tests, which
//! with memory reach beyond their operand, nor rotations, of which Intel's processors leave OF alone in a register and
//! compute it in memory (the manual has it undefined for more than one bit).
//!
//! Nor is a register loaded of which an instruction leaves nothing ([`Used::overwritten`]).

use super::emit::guest_of;
use super::regs;
use super::used::Used;
use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind};

/// An instruction of which one operand has become memory.
pub struct Folded {
    pub instr: Instruction,
    /// The guest register that it was.
    pub guest: usize,
}

/// An instruction without memory operand, with one of its homeless registers as one, if it has any that can be.
pub fn fold(instr: &Instruction, used: Used) -> Option<Folded> {
    use Mnemonic::{Bt, Btc, Btr, Bts, Rcl, Rcr, Rol, Ror, Xchg};
    if matches!(instr.mnemonic(), Xchg | Bt | Bts | Btr | Btc | Rol | Ror | Rcl | Rcr) {
        return None;
    }
    let mut instr = *instr;
    let at = match in_memory(&instr) {
        Some(at) => at,
        None => {
            turn_around(&mut instr)?;
            in_memory(&instr)?
        }
    };
    let register = instr.op_register(at);
    let guest = guest_of(register)?;
    let operands = (0..instr.op_count()).filter(|i| instr.op_kind(*i) == OpKind::Register);
    let times = operands.filter(|i| guest_of(instr.op_register(*i)) == Some(guest)).count();
    let written = used.written >> guest & 1 != 0;
    if times != 1 || written && register.size() != 8 {
        return None;
    }
    instr.set_op_kind(at, OpKind::Memory);
    // PEXTRW and its kin write all of a register, but less to memory.
    (instr.memory_size().size() == register.size()).then_some(Folded { instr, guest })
}

/// The operand that may be memory, if it is a register without a home.
fn in_memory(instr: &Instruction) -> Option<u32> {
    use OpCodeOperandKind::{r8_or_mem, r16_or_mem, r32_or_mem, r64_or_mem};
    let opcode = instr.code().op_code();
    (0..instr.op_count()).find(|&i| {
        instr.op_kind(i) == OpKind::Register
            && matches!(opcode.op_kind(i), r8_or_mem | r16_or_mem | r32_or_mem | r64_or_mem)
            && guest_of(instr.op_register(i)).is_some_and(|guest| regs::home(guest).is_none())
    })
}

/// The same instruction with its other operand as the one that may be memory; `None` if there is no such.
fn turn_around(instr: &mut Instruction) -> Option<()> {
    macro_rules! pairs {
        ($($left:ident $right:ident)*) => {
            match instr.code() {
                $(Code::$left => Code::$right, Code::$right => Code::$left,)*
                Code::Test_rm8_r8 | Code::Test_rm16_r16 | Code::Test_rm32_r32 | Code::Test_rm64_r64 => {
                    let first = instr.op0_register();
                    instr.set_op0_register(instr.op1_register());
                    instr.set_op1_register(first);
                    instr.code()
                }
                _ => return None,
            }
        };
    }
    let code = pairs! {
        Mov_rm8_r8 Mov_r8_rm8 Mov_rm16_r16 Mov_r16_rm16 Mov_rm32_r32 Mov_r32_rm32 Mov_rm64_r64 Mov_r64_rm64
        Add_rm8_r8 Add_r8_rm8 Add_rm16_r16 Add_r16_rm16 Add_rm32_r32 Add_r32_rm32 Add_rm64_r64 Add_r64_rm64
        Or_rm8_r8 Or_r8_rm8 Or_rm16_r16 Or_r16_rm16 Or_rm32_r32 Or_r32_rm32 Or_rm64_r64 Or_r64_rm64
        Adc_rm8_r8 Adc_r8_rm8 Adc_rm16_r16 Adc_r16_rm16 Adc_rm32_r32 Adc_r32_rm32 Adc_rm64_r64 Adc_r64_rm64
        Sbb_rm8_r8 Sbb_r8_rm8 Sbb_rm16_r16 Sbb_r16_rm16 Sbb_rm32_r32 Sbb_r32_rm32 Sbb_rm64_r64 Sbb_r64_rm64
        And_rm8_r8 And_r8_rm8 And_rm16_r16 And_r16_rm16 And_rm32_r32 And_r32_rm32 And_rm64_r64 And_r64_rm64
        Sub_rm8_r8 Sub_r8_rm8 Sub_rm16_r16 Sub_r16_rm16 Sub_rm32_r32 Sub_r32_rm32 Sub_rm64_r64 Sub_r64_rm64
        Xor_rm8_r8 Xor_r8_rm8 Xor_rm16_r16 Xor_r16_rm16 Xor_rm32_r32 Xor_r32_rm32 Xor_rm64_r64 Xor_r64_rm64
        Cmp_rm8_r8 Cmp_r8_rm8 Cmp_rm16_r16 Cmp_r16_rm16 Cmp_rm32_r32 Cmp_r32_rm32 Cmp_rm64_r64 Cmp_r64_rm64
    };
    instr.set_code(code);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory};

    fn decoded(bytes: &[u8]) -> (Instruction, Used) {
        let instr = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
        assert!(!instr.is_invalid() && instr.len() == bytes.len(), "{bytes:x?}");
        (instr, Used::of(InstructionInfoFactory::new().info(&instr)))
    }

    fn folded(bytes: &[u8]) -> Option<(Code, usize)> {
        let (instr, used) = decoded(bytes);
        fold(&instr, used).map(|folded| (folded.instr.code(), folded.guest))
    }

    #[test]
    fn an_operand_becomes_memory_if_the_instruction_then_does_the_same() {
        use Code::*;
        // mov rdx, r15; mov r15, rax; cmp r10d, 7; add r14, r14; test rax, r11; movsx ecx, r10b
        assert_eq!(folded(&[0x4c, 0x89, 0xfa]), Some((Mov_r64_rm64, 15)));
        assert_eq!(folded(&[0x4c, 0x8b, 0xf8]), Some((Mov_rm64_r64, 15)));
        assert_eq!(folded(&[0x41, 0x83, 0xfa, 7]), Some((Cmp_rm32_imm8, 10)));
        assert_eq!(folded(&[0x4d, 0x01, 0xf6]), None);
        assert_eq!(folded(&[0x4c, 0x85, 0xd8]), Some((Test_rm64_r64, 11)));
        assert_eq!(folded(&[0x41, 0x0f, 0xbe, 0xca]), Some((Movsx_r32_rm8, 10)));
        // mov r11, r15: one of them.
        assert_eq!(folded(&[0x4d, 0x89, 0xfb]), Some((Mov_rm64_r64, 11)));
        // mov r10d, eax; sete r15b; add r14d, 1: not whole.
        assert_eq!(folded(&[0x41, 0x89, 0xc2]), None);
        assert_eq!(folded(&[0x41, 0x0f, 0x94, 0xc7]), None);
        assert_eq!(folded(&[0x41, 0x83, 0xc6, 1]), None);
        // shl r14, 36; ror r14, 36
        assert_eq!(folded(&[0x49, 0xc1, 0xe6, 36]), Some((Shl_rm64_imm8, 14)));
        assert_eq!(folded(&[0x49, 0xc1, 0xce, 36]), None);
        // xchg r15, rax; bt r15, rax; pextrw r15, xmm0, 1 (SSE4.1, 64 bits)
        assert_eq!(folded(&[0x4c, 0x87, 0xf8]), None);
        assert_eq!(folded(&[0x49, 0x0f, 0xa3, 0xc7]), None);
        assert_eq!(folded(&[0x66, 0x49, 0x0f, 0x3a, 0x15, 0xc7, 1]), None);
    }

    #[test]
    fn what_is_overwritten_is_what_nothing_is_left_of() {
        let overwritten = |bytes: &[u8]| decoded(bytes).1.overwritten;
        // mov r10d, eax; mov r15, [rax]; movzx r14d, byte [rbx]; xor r11d, r11d; mov r15, [r15]
        assert_eq!(overwritten(&[0x41, 0x89, 0xc2]), 1 << 10);
        assert_eq!(overwritten(&[0x4c, 0x8b, 0x38]), 1 << 15);
        assert_eq!(overwritten(&[0x44, 0x0f, 0xb6, 0x33]), 1 << 14);
        assert_eq!(overwritten(&[0x45, 0x31, 0xdb]), 1 << 11);
        assert_eq!(overwritten(&[0x4d, 0x8b, 0x3f]), 0);
        // bsf r15, rax; cmove r10d, eax; mov r10b, al; mov r10w, ax; add r10d, eax; sete r15b
        assert_eq!(overwritten(&[0x4c, 0x0f, 0xbc, 0xf8]), 0);
        assert_eq!(overwritten(&[0x44, 0x0f, 0x44, 0xd0]), 0);
        assert_eq!(overwritten(&[0x41, 0x88, 0xc2]), 0);
        assert_eq!(overwritten(&[0x66, 0x41, 0x89, 0xc2]), 0);
        assert_eq!(overwritten(&[0x41, 0x01, 0xc2]), 0);
        assert_eq!(overwritten(&[0x41, 0x0f, 0x94, 0xc7]), 0);
    }
}
