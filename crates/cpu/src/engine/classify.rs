//! What the translator does with an instruction.
//!
//! The rule is a whitelist: an instruction is executed by the host as it stands only if it
//! belongs to an instruction set the model has, is not on the list of those that reach beyond
//! general, status-flag, x87 and vector registers, and touches no memory but its one explicit
//! operand. Everything else is executed by Rust, which raises #UD for what it does not know.

use super::blocks::Mode;
use iced_x86::{Code, CpuidFeature, FlowControl, Instruction, InstructionInfo, Mnemonic, OpKind};

/// The translator's classes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Registers only: copied, or re-encoded with other registers.
    Registers,
    /// One explicit memory operand behind a TLB check.
    Memory,
    /// LEA.
    Lea,
    /// NOP, prefetch and the like: nothing to execute.
    Hint,
    Push,
    Pop,
    Leave,
    Jump,
    Conditional,
    /// LOOP, LOOPE, LOOPNE, JCXZ, JECXZ, JRCXZ.
    Counted,
    Call,
    Return,
    JumpIndirect,
    CallIndirect,
    /// Executed by Rust; translated code goes on behind it.
    Interpret,
    /// Executed by Rust; always leads elsewhere.
    InterpretAndLeave,
}

/// Which of the features that the model has are executed natively.
pub fn native_feature(feature: CpuidFeature, v3: bool) -> bool {
    use CpuidFeature::*;
    match feature {
        INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | CMOV | CX8 | CMPXCHG16B | FPU
        | FPU287 | FPU387 | MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | POPCNT | AES | PCLMULQDQ
        | SHA | MULTIBYTENOP | PAUSE | INTEL8086_ONLY => feature != INTEL8086_ONLY,
        AVX | AVX2 | BMI1 | BMI2 | FMA | F16C | LZCNT | MOVBE => v3,
        _ => false,
    }
}

/// Instructions that came with SSE and its successors but go by none of CR0.EM, CR0.TS and
/// CR4.OSFXSR (SDM vol. 3A, 2.5).
pub fn needs_no_unit(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Lfence | Mfence | Sfence | Movnti | Crc32)
}

fn vector_unit(instr: &Instruction) -> Option<bool> {
    use CpuidFeature::*;
    if needs_no_unit(instr.mnemonic()) {
        return None;
    }
    let mut avx = false;
    // To iced, WAIT belongs to the 8086.
    let mut any = instr.mnemonic() == Mnemonic::Wait;
    for feature in instr.cpuid_features() {
        match feature {
            AVX | AVX2 | FMA | F16C => avx = true,
            FPU | FPU287 | FPU387 | MMX | SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | AES | PCLMULQDQ
            | SHA => any = true,
            _ => {}
        }
    }
    (avx || any).then_some(avx)
}

fn reaches_beyond(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Cpuid
            | Cld
            | Std
            | Cli
            | Sti
            | Clts
            | Hlt
            | In
            | Out
            | Pushf
            | Pushfd
            | Pushfq
            | Popf
            | Popfd
            | Popfq
            | Sgdt
            | Sidt
            | Lgdt
            | Lidt
            | Sldt
            | Str
            | Lldt
            | Ltr
            | Verr
            | Verw
            | Lar
            | Lsl
            | Smsw
            | Lmsw
            | Invlpg
            | Invd
            | Wbinvd
            | Rdmsr
            | Wrmsr
            | Rdtsc
            | Rdpmc
            | Fxsave
            | Fxsave64
            | Fxrstor
            | Fxrstor64
            | Fnstenv
            | Fldenv
            | Fnsave
            | Frstor
            | Ldmxcsr
            | Vldmxcsr
            | Xlatb
            | Enter
            | Maskmovq
            | Maskmovdqu
            | Vmaskmovdqu
            | Vmaskmovps
            | Vmaskmovpd
            | Vpmaskmovd
            | Vpmaskmovq
            | Vgatherdps
            | Vgatherdpd
            | Vgatherqps
            | Vgatherqpd
            | Vpgatherdd
            | Vpgatherdq
            | Vpgatherqd
            | Vpgatherqq
            | Bound
            | Pusha
            | Pushad
            | Popa
            | Popad
            | Aaa
            | Aas
            | Aam
            | Aad
            | Daa
            | Das
            | Lds
            | Les
            | Lss
            | Lfs
            | Lgs
            | Arpl
            | Monitor
            | Mwait
            | Ud0
            | Ud1
            | Ud2
            | Int
            | Int3
            | Int1
            | Into
            | Rsm
            | Salc
            | Fstenv
            | Fsave
            | Swapgs
    )
}

/// Classifies; `info` is iced's for the same instruction.
pub fn classify(instr: &Instruction, info: &InstructionInfo, mode: Mode, v3: bool) -> Class {
    let mnemonic = instr.mnemonic();
    if instr.is_invalid() || mode.has(Mode::PRECISE) {
        return Class::InterpretAndLeave;
    }
    if let Some(class) = flow(instr) {
        return class;
    }
    if is_undefined(instr.code()) {
        return Class::InterpretAndLeave;
    }
    match mnemonic {
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Pause => return Class::Hint,
        Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Reservednop => return Class::Hint,
        Mnemonic::Lea => return Class::Lea,
        Mnemonic::Leave => return if instr.code() == Code::Leaveq { Class::Leave } else { Class::Interpret },
        Mnemonic::Push | Mnemonic::Pop => return stack(instr, mode),
        _ => {}
    }
    if reaches_beyond(mnemonic) || crate::string::is_string(instr.code()) || instr.is_privileged() {
        return Class::Interpret;
    }
    if !instr.cpuid_features().iter().all(|f| native_feature(*f, v3)) || touches_system_register(instr) {
        return Class::Interpret;
    }
    if let Some(avx) = vector_unit(instr)
        && !mode.has(if avx { Mode::FPU.with(Mode::AVX) } else { Mode::FPU })
    {
        return Class::Interpret;
    }
    memory_class(instr, info)
}

/// Hint encodings that the processor model's vendor leaves undefined: PREFETCH of a register.
fn is_undefined(code: Code) -> bool {
    use Code::*;
    matches!(code, Reservednop_rm16_r16_0F0D | Reservednop_rm32_r32_0F0D | Reservednop_rm64_r64_0F0D)
}

fn memory_class(instr: &Instruction, info: &InstructionInfo) -> Class {
    let explicit = (0..instr.op_count()).filter(|i| instr.op_kind(*i) == OpKind::Memory).count();
    match (explicit, info.used_memory().len()) {
        (0, 0) => Class::Registers,
        (1, 1) => Class::Memory,
        _ => Class::Interpret,
    }
}

fn stack(instr: &Instruction, mode: Mode) -> Class {
    let operand = instr.op0_kind();
    let register = operand == OpKind::Register;
    if register && instr.op0_register().is_segment_register() || mode.bits() == 16 {
        return Class::Interpret;
    }
    let wide = instr.stack_pointer_increment().unsigned_abs() == mode.bits() / 8;
    let plain_stack = mode.is64() || mode.has(Mode::STACK32) && mode.has(Mode::FLAT[2]);
    let push = instr.mnemonic() == Mnemonic::Push;
    if !wide || !plain_stack || operand == OpKind::Memory && !push {
        return Class::Interpret;
    }
    if push { Class::Push } else { Class::Pop }
}

fn touches_system_register(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|i| {
        instr.op_kind(i) == OpKind::Register && {
            let r = instr.op_register(i);
            r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr()
        }
    })
}

fn flow(instr: &Instruction) -> Option<Class> {
    Some(match instr.flow_control() {
        FlowControl::Next => return None,
        FlowControl::UnconditionalBranch if instr.is_jmp_short_or_near() => Class::Jump,
        FlowControl::ConditionalBranch if instr.is_jcc_short_or_near() => Class::Conditional,
        FlowControl::ConditionalBranch if instr.is_loop() || instr.is_loopcc() || instr.is_jcx_short() => {
            Class::Counted
        }
        FlowControl::Call if instr.is_call_near() => Class::Call,
        FlowControl::Return if is_near_return(instr.code()) => Class::Return,
        FlowControl::IndirectBranch if instr.is_jmp_near_indirect() => Class::JumpIndirect,
        FlowControl::IndirectCall if instr.is_call_near_indirect() => Class::CallIndirect,
        _ => Class::InterpretAndLeave,
    })
}

fn is_near_return(code: Code) -> bool {
    use Code::*;
    matches!(code, Retnq | Retnq_imm16 | Retnd | Retnd_imm16 | Retnw | Retnw_imm16)
}
