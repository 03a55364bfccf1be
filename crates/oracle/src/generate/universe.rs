//! Which instructions cases are made of, and what the generator needs to know of each.
//!
//! Everything the decoder knows for the mode, less what is not *user-pure*: what a case may execute
//! must depend on nothing but the case and must not reach the operating system. Left out are
//! therefore system calls and software interrupts, time and identity (RDTSC, CPUID, RDRAND,
//! XGETBV…), segment registers (their selectors and descriptors are the system's), far transfers,
//! XSAVE and its kin (they depend on XCR0, which a guest has to itself) and extensions beyond
//! x86-64-v3 with AES, PCLMULQDQ and SHA. Privileged instructions stay in: at CPL 3 they raise #GP.

use super::encode::{Operand, Shape, craft};
use crate::case::Mode;
use dice::Dice;
use iced_x86::{
    Code, CpuidFeature, EncodingKind, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpCodeInfo, OpCodeOperandKind, OpKind,
};
use std::sync::OnceLock;

/// How often instructions of a kind are picked has nothing to do with how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub enum Class {
    /// General registers, including BMI.
    Integer,
    /// x87.
    X87,
    /// MMX and SSE, AES, PCLMULQDQ and SHA in their legacy encoding.
    Sse,
    /// VEX-encoded vector instructions.
    Avx,
    /// String instructions.
    String,
    /// Branches, calls, returns.
    Flow,
    /// What always or mostly faults: privileged instructions, UD2, INT3.
    Rare,
    /// POPF, which is only made together with a PUSH of a value it may load.
    PopFlags,
}

/// How many classes there are.
pub const CLASSES: usize = 8;

/// How an instruction uses its memory operand.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryUse {
    /// Bytes accessed (the nominal size for gathers and the like); 0 when only the address counts.
    pub size: usize,
    /// Whether it is stored to.
    pub written: bool,
    /// Whether it faults unless aligned to `size`.
    pub aligned: bool,
}

/// One instruction form.
pub struct Entry {
    /// The decoder's name for it.
    pub code: Code,
    /// Its mnemonic.
    pub mnemonic: Mnemonic,
    /// Its kind.
    pub class: Class,
    /// How it is encoded.
    pub shape: Shape,
    /// What it does with memory, if it has a form with an explicit memory operand.
    pub memory: Option<MemoryUse>,
    /// Whether it has a form without one.
    pub register_form: bool,
}

/// All instructions of a mode.
pub struct Universe {
    /// The mode.
    pub mode: Mode,
    /// In order of their codes.
    pub entries: Vec<Entry>,
    /// Indices into `entries`, by class.
    pub classes: [Vec<usize>; CLASSES],
    /// Indexed by code: whether raw bytes that decode to it may be executed.
    allowed: Vec<bool>,
}

impl Universe {
    /// The instructions of `mode`.
    pub fn of(mode: Mode) -> &'static Universe {
        static LONG: OnceLock<Universe> = OnceLock::new();
        static COMPATIBILITY: OnceLock<Universe> = OnceLock::new();
        match mode {
            Mode::Long => LONG.get_or_init(|| Universe::build(mode)),
            Mode::Compatibility => COMPATIBILITY.get_or_init(|| Universe::build(mode)),
        }
    }

    /// Whether an instruction is one cases may be made of.
    pub fn allows(&self, code: Code) -> bool {
        self.allowed[code as usize]
    }

    /// The entry of `code`.
    pub fn entry(&self, code: Code) -> Option<&Entry> {
        self.entries
            .binary_search_by_key(&(code as usize), |entry| entry.code as usize)
            .ok()
            .map(|at| &self.entries[at])
    }

    fn build(mode: Mode) -> Universe {
        let mut dice = Dice::new(0, mode.bits().into());
        let mut allowed = vec![false; Code::values().len()];
        let (mut entries, mut classes) = (Vec::new(), [const { Vec::new() }; CLASSES]);
        for code in Code::values() {
            let Some(class) = classify(code, mode) else { continue };
            allowed[code as usize] = true;
            classes[class as usize].push(entries.len());
            entries.push(inspect(code, class, mode, &mut dice));
        }
        Universe { mode, entries, classes, allowed }
    }
}

/// Finds out by trial which forms an instruction has.
fn inspect(code: Code, class: Class, mode: Mode, dice: &mut Dice) -> Entry {
    let shape = Shape::of(code.op_code(), mode);
    let mut entry =
        Entry { code, mnemonic: code.mnemonic(), class, shape, memory: None, register_form: false };
    let mut factory = InstructionInfoFactory::new();
    for attempt in 0..400 {
        let operand = if attempt % 2 == 0 { Operand::Register } else { Operand::any_memory(&entry.shape) };
        let Some(made) = craft(&entry, mode, &operand, None, dice) else { continue };
        match memory_use(&made.instruction, &mut factory) {
            Some(memory) => entry.memory = Some(memory),
            None => entry.register_form = true,
        }
        if attempt > 40 && (entry.memory.is_some() || entry.register_form) {
            break;
        }
    }
    entry
}

fn memory_use(instruction: &Instruction, factory: &mut InstructionInfoFactory) -> Option<MemoryUse> {
    let operand = (0..instruction.op_count()).find(|&at| instruction.op_kind(at) == OpKind::Memory)?;
    let access = factory.info(instruction).op_access(operand);
    let writes = [OpAccess::Write, OpAccess::CondWrite, OpAccess::ReadWrite, OpAccess::ReadCondWrite];
    let size = match access {
        OpAccess::NoMemAccess | OpAccess::None => 0,
        _ => instruction.memory_size().size(),
    };
    Some(MemoryUse { size, written: writes.contains(&access), aligned: needs_alignment(instruction, size) })
}

/// Whether a misaligned operand raises #GP (SDM vol. 1, 10.8.5 and 14.9): 16-byte operands of
/// legacy SSE except the unaligned moves, and the VEX-encoded aligned moves.
fn needs_alignment(instruction: &Instruction, size: usize) -> bool {
    use Mnemonic::*;
    let mnemonic = instruction.mnemonic();
    if matches!(mnemonic, Cmpxchg16b | Fxsave | Fxsave64 | Fxrstor | Fxrstor64) {
        return true;
    }
    if instruction.code().encoding() == EncodingKind::VEX {
        return matches!(mnemonic, Vmovaps | Vmovapd | Vmovdqa | Vmovntps | Vmovntpd | Vmovntdq | Vmovntdqa);
    }
    let unaligned = matches!(mnemonic, Movups | Movupd | Movdqu | Lddqu);
    let vector = instruction.op_kinds().any(|kind| kind == OpKind::Register) && size == 16;
    vector && !unaligned && (0..instruction.op_count()).any(|at| instruction.op_register(at).is_xmm())
}

/// The class of `code`, or `None` when it does not belong in a case of `mode`.
fn classify(code: Code, mode: Mode) -> Option<Class> {
    let info = code.op_code();
    let available = info.is_available_in_mode(mode.bits()) && info.is_instruction();
    let both_vendors = match mode {
        Mode::Long => info.intel_decoder64() && info.amd_decoder64(),
        Mode::Compatibility => info.intel_decoder32() && info.amd_decoder32(),
    };
    let encoding = matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    if !available || !both_vendors || !encoding || info.decoder_option() != 0 || info.fwait() {
        return None;
    }
    if !features_allowed(code) || system_operand(info) || impure(code.mnemonic()) {
        return None;
    }
    let far =
        code.is_jmp_far() || code.is_call_far() || code.is_jmp_far_indirect() || code.is_call_far_indirect();
    if far {
        return None;
    }
    classify_pure(code, info)
}

fn classify_pure(code: Code, info: &OpCodeInfo) -> Option<Class> {
    use Mnemonic::*;
    let mnemonic = code.mnemonic();
    if matches!(mnemonic, Popf | Popfd | Popfq) {
        return Some(Class::PopFlags);
    }
    if info.is_privileged() || info.must_be_cpl0() || info.is_input_output() {
        return always_refused(mnemonic).then_some(Class::Rare);
    }
    if matches!(mnemonic, Ud2 | Int3 | Into | Bound) {
        return Some(Class::Rare);
    }
    Some(match code.flow_control() {
        FlowControl::Next => class_of_features(code),
        FlowControl::ConditionalBranch
        | FlowControl::UnconditionalBranch
        | FlowControl::IndirectBranch
        | FlowControl::Call
        | FlowControl::IndirectCall
        | FlowControl::Return => Class::Flow,
        _ => return None,
    })
}

fn class_of_features(code: Code) -> Class {
    if code.is_string_instruction() {
        return Class::String;
    }
    let features = code.cpuid_features();
    if features.iter().any(|f| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)) {
        return Class::X87;
    }
    let bits = matches!(features[0], CpuidFeature::BMI1 | CpuidFeature::BMI2);
    let vector = features.iter().any(|feature| {
        matches!(
            feature,
            CpuidFeature::MMX
                | CpuidFeature::SSE
                | CpuidFeature::SSE2
                | CpuidFeature::SSE3
                | CpuidFeature::SSSE3
                | CpuidFeature::SSE4_1
                | CpuidFeature::SSE4_2
                | CpuidFeature::AES
                | CpuidFeature::PCLMULQDQ
                | CpuidFeature::SHA
        )
    });
    match code.encoding() {
        EncodingKind::VEX if !bits => Class::Avx,
        _ if vector => Class::Sse,
        _ => Class::Integer,
    }
}

fn features_allowed(code: Code) -> bool {
    use CpuidFeature::*;
    // ENDBR is a NOP where control-flow enforcement is off.
    if matches!(code, Code::Endbr64 | Code::Endbr32) {
        return true;
    }
    code.cpuid_features().iter().all(|feature| {
        matches!(
            feature,
            INTEL8086
                | INTEL186
                | INTEL286
                | INTEL386
                | INTEL486
                | X64
                | FPU
                | FPU287
                | FPU387
                | CX8
                | CMOV
                | MMX
                | FXSR
                | SSE
                | SSE2
                | SSE3
                | SSSE3
                | SSE4_1
                | SSE4_2
                | POPCNT
                | CMPXCHG16B
                | AVX
                | AVX2
                | FMA
                | F16C
                | BMI1
                | BMI2
                | LZCNT
                | MOVBE
                | AES
                | PCLMULQDQ
                | SHA
                | CLFSH
                | MULTIBYTENOP
                | PAUSE
                | PREFETCHW
                | MSR
        )
    })
}

fn system_operand(info: &OpCodeInfo) -> bool {
    use OpCodeOperandKind::*;
    info.op_kinds()
        .iter()
        .any(|kind| matches!(kind, seg_reg | es | cs | ss | ds | fs | gs | farbr2_2 | farbr4_2 | tr_reg))
}

/// Not user-pure; see the head of the file.
fn impure(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Int | Int1
            | Iret
            | Iretd
            | Iretq
            | Retf
            | Lds
            | Les
            | Lfs
            | Lgs
            | Lss
            | Lar
            | Lsl
            | Verr
            | Verw
            | Sgdt
            | Sidt
            | Sldt
            | Str
            | Smsw
            | Ud0
            | Ud1
            | Insb
            | Insw
            | Insd
            | Outsb
            | Outsw
            | Outsd
            | Loadall
            | Arpl
            | Rdpmc
            | Sysretq
            | Sysret
            | Sysexit
            | Sysexitq
            | Syscall
            | Sysenter
    )
}

/// Privileged instructions that raise #GP(0) at CPL 3 whatever their operands.
fn always_refused(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Hlt | Clts
            | Invd
            | Wbinvd
            | Lgdt
            | Lidt
            | Lldt
            | Ltr
            | Lmsw
            | Invlpg
            | Rdmsr
            | Wrmsr
            | Mov
            | In
            | Out
            | Cli
            | Sti
            | Swapgs
    )
}
