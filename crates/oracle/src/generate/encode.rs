//! From an instruction form to bytes.
//!
//! Bytes are put together from the opcode tables rather than by an encoder, so that everything an
//! encoder would never emit occurs: superfluous prefixes and REX bits, long displacements, ignored
//! VEX bits. The decoder then judges: what does not decode to the form wanted is thrown away.

use super::universe::Entry;
use crate::case::Mode;
use dice::Dice;
use iced_x86::{
    Decoder, DecoderOptions, EncodingKind, FlowControl, Instruction, MandatoryPrefix, Mnemonic, OpCodeInfo,
    OpCodeOperandKind, OpCodeTableKind,
};

/// How a form is encoded.
#[derive(Clone, Debug)]
pub struct Shape {
    vex: bool,
    /// Opcode map: 0 one-byte, 1 0F, 2 0F 38, 3 0F 3A.
    map: u8,
    mandatory: u8,
    opcode: [u8; 2],
    opcode_len: usize,
    /// ModRM.reg, or -1 when it names a register.
    group: i32,
    /// ModRM.rm of a register-only form, or -1.
    rm_group: i32,
    operand_size: u32,
    /// Needs the address-size prefix.
    other_address_size: bool,
    l: Option<u8>,
    w: Option<u8>,
    can_lock: bool,
    can_rep: bool,
    can_repne: bool,
    /// The operand is an address right behind the opcode (MOV moffs).
    pub offset_operand: bool,
    /// The memory operand has a vector index.
    pub vector_index: bool,
    /// The opcode's low bits may be a register.
    low_register: bool,
    /// There is a ModRM byte.
    modrm: bool,
    /// It transfers control.
    branch: bool,
}

impl Shape {
    /// Reads the decoder's tables.
    pub fn of(info: &OpCodeInfo, mode: Mode) -> Self {
        use OpCodeOperandKind as K;
        let kinds = info.op_kinds();
        let has = |wanted: &[K]| kinds.iter().any(|kind| wanted.contains(kind));
        let code = info.op_code();
        let vex = info.encoding() == EncodingKind::VEX;
        let without_modrm = |kind: &K| {
            let opcode =
                matches!(kind, K::mem_offs | K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode);
            let fixed =
                matches!(kind, K::sti_opcode | K::st0 | K::al | K::cl | K::ax | K::dx | K::eax | K::rax);
            let implied = matches!(kind, K::seg_rSI | K::es_rDI | K::seg_rBX_al);
            opcode
                || fixed
                || implied
                || K::imm8 as u32 <= *kind as u32 && *kind as u32 <= K::imm64 as u32
                || K::br16_1 as u32 <= *kind as u32 && *kind as u32 <= K::br64_4 as u32
        };
        Self {
            vex,
            map: match info.table() {
                OpCodeTableKind::T0F => 1,
                OpCodeTableKind::T0F38 => 2,
                OpCodeTableKind::T0F3A => 3,
                _ => 0,
            },
            mandatory: match info.mandatory_prefix() {
                MandatoryPrefix::P66 => 0x66,
                MandatoryPrefix::PF3 => 0xf3,
                MandatoryPrefix::PF2 => 0xf2,
                _ => 0,
            },
            opcode: if info.op_code_len() == 2 { [(code >> 8) as u8, code as u8] } else { [code as u8, 0] },
            opcode_len: info.op_code_len() as usize,
            group: info.group_index(),
            rm_group: info.rm_group_index(),
            operand_size: info.operand_size(),
            other_address_size: info.address_size() != 0 && info.address_size() != mode.bits(),
            l: (!info.is_lig()).then(|| u8::from(info.l() != 0)),
            w: (!info.is_wig()).then(|| u8::from(info.w() != 0)),
            can_lock: info.can_use_lock_prefix(),
            can_rep: info.can_use_rep_prefix(),
            can_repne: info.can_use_repne_prefix(),
            offset_operand: has(&[K::mem_offs]),
            vector_index: has(&[K::mem_vsib32x, K::mem_vsib32y, K::mem_vsib64x, K::mem_vsib64y]),
            low_register: has(&[K::r8_opcode, K::r16_opcode, K::r32_opcode, K::r64_opcode, K::sti_opcode]),
            branch: info.code().flow_control() != FlowControl::Next,
            modrm: info.group_index() >= 0 || info.rm_group_index() >= 0 || !kinds.iter().all(without_modrm),
        }
    }
    /// Operand size of a branch in bits, where it has one.
    pub fn operand_size(&self) -> u32 {
        self.operand_size
    }
}

/// The memory operand of an instruction, ready to be emitted.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Segment override prefix, 0 for none.
    pub segment: u8,
    /// The address-size prefix.
    pub short_address: bool,
    /// REX.X and REX.B.
    pub index_high: bool,
    /// See `index_high`.
    pub base_high: bool,
    /// ModRM without its reg field.
    pub modrm: u8,
    /// SIB and displacement.
    pub tail: Vec<u8>,
    /// The linear address a RIP-relative operand means.
    pub link: Option<u64>,
    /// The effective address, for forms that have it as an immediate.
    pub offset: u64,
}

/// What ModRM.rm shall be.
#[derive(Clone, Debug)]
pub enum Operand {
    /// Any register.
    Register,
    /// Memory.
    Memory(Memory),
}

impl Operand {
    /// Some memory operand: for looking at what a form does with it.
    pub fn any_memory(shape: &Shape) -> Operand {
        let (modrm, tail) = if shape.vector_index { (0x04, vec![0x08]) } else { (0x03, Vec::new()) };
        Operand::Memory(Memory { modrm, tail, ..Memory::default() })
    }
}

/// An instruction made.
pub struct Made {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What they decode to (at an arbitrary address).
    pub instruction: Instruction,
    /// Offset of the displacement of a RIP-relative operand and the address it means.
    pub link: Option<(u8, u64)>,
}

const LOCK: u8 = 0xf0;

/// Makes one instruction of the form `entry`; `None` when this attempt does not decode to it (try
/// again). `reg` is preferred for ModRM.reg.
pub fn craft(entry: &Entry, mode: Mode, operand: &Operand, reg: Option<u8>, dice: &mut Dice) -> Option<Made> {
    let shape = &entry.shape;
    let memory = match operand {
        Operand::Memory(memory) => Some(memory),
        Operand::Register => None,
    };
    let mut bytes = Vec::with_capacity(32);
    prefixes(shape, mode, memory, dice, &mut bytes);
    let reg = match (shape.group, reg) {
        (0.., _) => shape.group as u8,
        (_, Some(reg)) => reg,
        _ => dice.below(mode.registers()) as u8,
    };
    let rm = if shape.rm_group >= 0 { shape.rm_group as u8 } else { dice.below(mode.registers()) as u8 };
    let high = memory.map_or((false, rm >= 8), |memory| (memory.index_high, memory.base_high));
    if shape.vex {
        vex(shape, mode, reg, high, dice, &mut bytes);
    } else {
        rex(shape, mode, reg, high, dice, &mut bytes);
        let escapes = [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
        bytes.extend_from_slice(escapes[shape.map as usize]);
    }
    let mut opcode = shape.opcode;
    if shape.low_register {
        opcode[shape.opcode_len - 1] = (opcode[shape.opcode_len - 1] & !7) | (rm & 7);
    }
    bytes.extend_from_slice(&opcode[..shape.opcode_len]);
    let mut link = None;
    match memory {
        Some(memory) if shape.offset_operand => bytes.extend_from_slice(&memory.offset.to_le_bytes()),
        Some(memory) => {
            bytes.push(memory.modrm | (reg & 7) << 3);
            link = memory.link.map(|target| (bytes.len() as u8, target));
            bytes.extend_from_slice(&memory.tail);
        }
        // A two-byte opcode has its ModRM in it.
        None if shape.opcode_len == 2 || !shape.modrm => {}
        None => bytes.push(0xc0 | (reg & 7) << 3 | (rm & 7)),
    }
    immediates(entry, dice, &mut bytes);
    bytes.resize(bytes.len() + 2, 0);
    bytes.truncate(15);
    let mut decoder = Decoder::with_ip(mode.bits(), &bytes, mode.code().address(), DecoderOptions::NONE);
    let instruction = decoder.decode();
    let length = decoder.position();
    if instruction.code() != entry.code {
        return None;
    }
    bytes.truncate(length);
    // Forms with a fixed memory operand (XLAT) have no ModRM to say it with.
    let link = link.filter(|_| instruction.is_ip_rel_memory_operand());
    Some(Made { bytes, instruction, link })
}

fn prefixes(shape: &Shape, mode: Mode, memory: Option<&Memory>, dice: &mut Dice, out: &mut Vec<u8>) {
    if let Some(memory) = memory
        && memory.segment != 0
    {
        out.push(memory.segment);
    }
    if shape.other_address_size != memory.is_some_and(|memory| memory.short_address) {
        out.push(0x67);
    }
    let wide16 = shape.operand_size == 16 && !shape.vex;
    if wide16 && shape.mandatory != 0x66 {
        out.push(0x66);
    }
    if shape.can_lock && memory.is_some() && dice.percent(35) {
        out.push(LOCK);
    }
    if (shape.can_rep || shape.can_repne) && shape.mandatory == 0 && dice.percent(60) {
        out.push(if shape.can_repne && dice.percent(50) { 0xf2 } else { 0xf3 });
    }
    // Superfluous ones. In 64-bit mode these four segment overrides are ignored.
    if mode == Mode::Long && memory.is_none_or(|memory| memory.segment == 0) && dice.percent(2) {
        out.push(dice.pick(&[0x26, 0x2e, 0x36, 0x3e]));
    }
    // On a near branch the vendors disagree about what the prefix means.
    if !shape.vex && !shape.branch && dice.percent(1) {
        out.push(0x66);
    }
    let rotation = dice.below(out.len().max(1));
    out.rotate_left(rotation);
    if !shape.vex && shape.mandatory != 0 {
        let at = dice.below(out.len() + 1);
        out.insert(at, shape.mandatory);
    }
}

fn rex(shape: &Shape, mode: Mode, reg: u8, (x, b): (bool, bool), dice: &mut Dice, out: &mut Vec<u8>) {
    if mode != Mode::Long {
        return;
    }
    let wide = if shape.operand_size == 64 { dice.percent(90) } else { dice.percent(3) };
    let rex = 0x40 | u8::from(wide) << 3 | (reg & 8) >> 1 | u8::from(x) << 1 | u8::from(b);
    if rex != 0x40 || dice.percent(15) {
        out.push(rex);
    }
}

fn vex(shape: &Shape, mode: Mode, reg: u8, (x, b): (bool, bool), dice: &mut Dice, out: &mut Vec<u8>) {
    let pp = match shape.mandatory {
        0x66 => 1,
        0xf3 => 2,
        0xf2 => 3,
        _ => 0,
    };
    let l = shape.l.unwrap_or_else(|| dice.below(2) as u8);
    let w = shape.w.unwrap_or_else(|| dice.below(2) as u8);
    let vvvv = if dice.percent(50) { 0 } else { dice.below(mode.registers()) as u8 };
    let low = (!vvvv & 15) << 3 | l << 2 | pp;
    let r = u8::from(reg & 8 == 0) << 7;
    if shape.map == 1 && w == 0 && !x && !b && dice.percent(60) {
        out.extend([0xc5, r | low]);
    } else {
        let xb = u8::from(!x) << 6 | u8::from(!b) << 5;
        out.extend([0xc4, r | xb | shape.map, w << 7 | low]);
    }
}

fn immediates(entry: &Entry, dice: &mut Dice, out: &mut Vec<u8>) {
    match entry.mnemonic {
        // A frame that stays on the stack's pages, most of the time.
        Mnemonic::Enter => {
            let level = if dice.percent(70) { 0 } else { dice.below(4) as u8 };
            out.extend([dice.below(16) as u8 * 8, 0, level]);
        }
        Mnemonic::Ret => out.extend([dice.below(8) as u8 * 8, 0]),
        _ => {
            let kind = dice.below(8);
            let random = dice.bits();
            let value = match kind {
                0 => random >> 60,
                1 => ((random >> 60) as i64).wrapping_neg() as u64,
                2 => [0, 1, 0x7f, 0x80, 0x7fff_ffff, 0x8000_0000, u64::MAX, 0x8000][random as usize & 7],
                _ => random,
            };
            out.extend_from_slice(&value.to_le_bytes());
        }
    }
}
