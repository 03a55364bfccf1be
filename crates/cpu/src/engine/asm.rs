//! A tiny assembler for the fixed sequences the translator emits.
//!
//! Guest instructions that must be rewritten go through iced's encoder; everything of our own
//! (TLB checks, counting, links, register shuffles) is written byte by byte here, because it is
//! most of what is emitted and these few forms are easy to get right. All absolute addresses lie
//! below 2 GiB (see [`super::arena`]), so they fit a sign-extended 32-bit displacement.
//!
//! It notes what would have to change if the code stood elsewhere; see [`super::moves`].

use super::moves::{Kind, Notes};

/// A host general register, by its encoding number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reg(pub u8);

#[allow(missing_docs)]
impl Reg {
    pub const RAX: Reg = Reg(0);
    pub const RCX: Reg = Reg(1);
    pub const RDX: Reg = Reg(2);
    pub const RSP: Reg = Reg(4);
    pub const R10: Reg = Reg(10);
    pub const R11: Reg = Reg(11);
    pub const R14: Reg = Reg(14);
    pub const R15: Reg = Reg(15);
}

/// A memory operand: `[base + index * 2^scale + disp]`, each part optional.
#[derive(Clone, Copy, Debug)]
pub struct Mem {
    /// Base register.
    pub base: Option<Reg>,
    /// Index register (never RSP) and log2 of its scale.
    pub index: Option<(Reg, u8)>,
    /// Displacement; the whole address when there is neither base nor index.
    pub disp: i32,
    /// It is a guest address that follows from where the guest has its code, or not far from one.
    pub relative: bool,
}

impl Mem {
    /// An absolute address below 2 GiB.
    pub fn abs(address: u32) -> Mem {
        Mem { base: None, index: None, disp: address as i32, relative: false }
    }
    /// `[base + disp]`.
    pub fn base(base: Reg, disp: i32) -> Mem {
        Mem { base: Some(base), index: None, disp, relative: false }
    }
    /// `[base + index + disp]`.
    pub fn base_index(base: Reg, index: Reg, disp: i32) -> Mem {
        Mem { base: Some(base), index: Some((index, 0)), disp, relative: false }
    }
    /// `[table + index * 8]`.
    pub fn table(table: u32, index: Reg) -> Mem {
        Mem { base: None, index: Some((index, 3)), disp: table as i32, relative: false }
    }
}

/// Operand width of an integer instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Width {
    W16,
    W32,
    W64,
}

/// A forward jump whose target is not known yet: where its 32-bit displacement is.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Fixup32(usize);

/// The same for an 8-bit displacement.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Fixup8(usize);

/// Emits into a buffer that will stand at a known address.
pub struct Asm {
    /// The bytes so far.
    pub code: Vec<u8>,
    /// The address the first byte will have.
    pub origin: u32,
    /// What depends on where it stands.
    pub notes: Notes,
}

impl Asm {
    /// An empty buffer that will stand at `origin`.
    pub fn new(origin: u32) -> Self {
        Self { code: Vec::with_capacity(1024), origin, notes: Notes::default() }
    }
    /// The last four bytes of the code so far depend on where it stands, or what for.
    pub fn note_word(&mut self, kind: Kind) {
        self.notes.add(self.code.len() - 4, kind);
    }
    /// The address of the next byte.
    pub fn here(&self) -> u32 {
        self.origin + self.code.len() as u32
    }
    /// Emits raw bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }
    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    fn rex(&mut self, wide: bool, reg: u8, mem: &Mem) {
        let rex = 0x40
            | (wide as u8) << 3
            | (reg >> 3) << 2
            | mem.index.map_or(0, |(i, _)| i.0 >> 3) << 1
            | mem.base.map_or(0, |b| b.0 >> 3);
        if rex != 0x40 {
            self.code.push(rex);
        }
    }

    /// `trailing` bytes of the instruction follow.
    fn modrm_mem(&mut self, reg: u8, mem: &Mem, trailing: u32) {
        let reg = (reg & 7) << 3;
        match (mem.base, mem.index) {
            (None, None) => {
                if mem.relative {
                    self.notes.pin();
                }
                // Relative to the next instruction: a byte shorter than an absolute address.
                self.code.push(reg | 5);
                let next = self.here() + 4 + trailing;
                self.imm32((mem.disp as u32).wrapping_sub(next) as i32);
                self.note_word(Kind::Outside);
            }
            (None, index) => {
                // SIB without base: disp32.
                self.code.push(reg | 4);
                let (i, s) = index.map_or((4, 0), |(i, s)| (i.0 & 7, s));
                self.code.push(s << 6 | i << 3 | 5);
                self.imm32(mem.disp);
                if mem.relative {
                    self.note_virt32();
                }
            }
            (Some(base), index) => {
                let small = i8::try_from(mem.disp);
                let mode = match small {
                    Ok(0) if base.0 & 7 != 5 => 0x00,
                    Ok(_) => 0x40,
                    Err(_) => 0x80,
                };
                if index.is_some() || base.0 & 7 == 4 {
                    self.code.push(mode | reg | 4);
                    let (i, s) = index.map_or((4, 0), |(i, s)| (i.0 & 7, s));
                    assert!(index.is_none_or(|(i, _)| i.0 != 4), "RSP cannot be an index");
                    self.code.push(s << 6 | i << 3 | (base.0 & 7));
                } else {
                    self.code.push(mode | reg | (base.0 & 7));
                }
                match mode {
                    0x40 => self.code.push(small.expect("checked") as u8),
                    0x80 => self.imm32(mem.disp),
                    _ => {}
                }
                match (mem.relative, mode) {
                    (true, 0x80) => self.note_virt32(),
                    (true, _) => self.notes.pin(),
                    (false, _) => {}
                }
            }
        }
    }

    fn op_mem(&mut self, width: Width, opcode: &[u8], reg: u8, mem: Mem) {
        self.op_mem_before(width, opcode, reg, mem, 0);
    }

    /// The same, `trailing` bytes before the instruction's end.
    fn op_mem_before(&mut self, width: Width, opcode: &[u8], reg: u8, mem: Mem, trailing: u32) {
        if width == Width::W16 {
            self.code.push(0x66);
        }
        self.rex(width == Width::W64, reg, &mem);
        self.bytes(opcode);
        self.modrm_mem(reg, &mem, trailing);
    }

    fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | (wide as u8) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(opcode);
        self.code.push(0xc0 | (reg & 7) << 3 | (rm & 7));
    }

    /// `mov dst, [mem]`; 32 bits zero-extend, 16 bits leave the rest.
    pub fn load(&mut self, width: Width, dst: Reg, mem: Mem) {
        self.op_mem(width, &[0x8b], dst.0, mem);
    }
    /// `movzx dst32, word [mem]`.
    pub fn load_zero16(&mut self, dst: Reg, mem: Mem) {
        self.op_mem(Width::W32, &[0x0f, 0xb7], dst.0, mem);
    }
    /// `mov [mem], src`.
    pub fn store(&mut self, width: Width, mem: Mem, src: Reg) {
        self.op_mem(width, &[0x89], src.0, mem);
    }
    /// `mov [mem], imm32` (sign-extended for 64 bits).
    pub fn store_imm(&mut self, width: Width, mem: Mem, value: i32) {
        self.op_mem_before(width, &[0xc7], 0, mem, if width == Width::W16 { 2 } else { 4 });
        match width {
            Width::W16 => self.bytes(&(value as i16).to_le_bytes()),
            _ => self.imm32(value),
        }
    }
    /// `mov byte [mem], value`.
    pub fn store_imm8(&mut self, mem: Mem, value: u8) {
        self.op_mem_before(Width::W32, &[0xc6], 0, mem, 1);
        self.bytes(&[value]);
    }
    /// `mov dst, src`.
    pub fn mov(&mut self, width: Width, dst: Reg, src: Reg) {
        self.op_reg(width == Width::W64, &[0x8b], dst.0, src.0);
    }
    /// `mov dst, src` of 16 bits, which keeps the rest of `dst`.
    pub fn mov16(&mut self, dst: Reg, src: Reg) {
        self.bytes(&[0x66, 0x40 | (src.0 >> 3) << 2 | dst.0 >> 3, 0x89, 0xc0 | (src.0 & 7) << 3 | dst.0 & 7]);
    }
    /// The shortest `mov dst, value`.
    pub fn mov_imm(&mut self, dst: Reg, value: u64) {
        if let Ok(v) = u32::try_from(value) {
            if dst.0 >= 8 {
                self.code.push(0x41);
            }
            self.code.push(0xb8 | (dst.0 & 7));
            self.bytes(&v.to_le_bytes());
        } else if let Ok(v) = i32::try_from(value as i64) {
            self.op_reg(true, &[0xc7], 0, dst.0);
            self.imm32(v);
        } else {
            self.code.push(0x48 | dst.0 >> 3);
            self.code.push(0xb8 | (dst.0 & 7));
            self.bytes(&value.to_le_bytes());
        }
    }
    /// `mov dst, value`, a guest address that follows from where the guest has its code.
    pub fn mov_virt(&mut self, dst: Reg, value: u64) {
        let start = self.code.len();
        self.mov_imm(dst, value);
        match self.code.len() - start {
            10 => self.notes.add_virt64(start + 2),
            7 => self.note_virt32(),
            _ => self.notes.pin(),
        }
    }
    /// The last four bytes of the code so far are such an address, sign-extended.
    pub fn note_virt32(&mut self) {
        self.notes.add_virt32(self.code.len() - 4);
    }
    /// `mov ecx, exit`, the number of a way out.
    pub fn mov_exit(&mut self, exit: u32) {
        self.code.push(0xb8 | Reg::RCX.0);
        self.imm32(exit as i32);
        self.note_word(Kind::Exit);
    }
    /// `add dst, [mem]`, 64 bits; for thunks, since it writes flags.
    pub fn op_load_add(&mut self, dst: Reg, mem: Mem) {
        self.op_mem(Width::W64, &[0x03], dst.0, mem);
    }
    /// `sub dst, [mem]`, likewise.
    pub fn op_load_sub(&mut self, dst: Reg, mem: Mem) {
        self.op_mem(Width::W64, &[0x2b], dst.0, mem);
    }
    /// `or dst, [mem]`, likewise.
    pub fn op_load_or(&mut self, dst: Reg, mem: Mem) {
        self.op_mem(Width::W64, &[0x0b], dst.0, mem);
    }
    /// `cmp dst, [mem]`, 64 bits; for thunks, since it writes flags.
    pub fn op_cmp(&mut self, dst: Reg, mem: Mem) {
        self.op_mem(Width::W64, &[0x3b], dst.0, mem);
    }
    /// `lea dst, [mem]` at 64 or 32 bits.
    pub fn lea(&mut self, width: Width, dst: Reg, mem: Mem) {
        self.op_mem(width, &[0x8d], dst.0, mem);
    }
    /// `movzx dst32, src8`.
    pub fn movzx8(&mut self, dst: Reg, src: Reg) {
        // A REX prefix is needed for SPL..DIL as well; our sources are RCX and R8–R15.
        debug_assert!(src.0 >= 8 || src.0 < 4);
        self.op_reg(false, &[0x0f, 0xb6], dst.0, src.0);
    }
    /// `movzx dst32, src16`.
    pub fn movzx16(&mut self, dst: Reg, src: Reg) {
        self.op_reg(false, &[0x0f, 0xb7], dst.0, src.0);
    }

    fn vex(&mut self, map: u8, pp: u8, reg: Reg, vvvv: u8, rm: u8) {
        self.bytes(&[
            0xc4,
            (!reg.0 >> 3 & 1) << 7 | 1 << 6 | (!rm >> 3 & 1) << 5 | map,
            1 << 7 | (!vvvv & 15) << 3 | pp,
        ]);
    }
    /// `rorx dst, src, count` (64 bits): rotates without touching flags.
    pub fn rorx(&mut self, dst: Reg, src: Reg, count: u8) {
        self.vex(3, 3, dst, 0, src.0);
        self.bytes(&[0xf0, 0xc0 | (dst.0 & 7) << 3 | (src.0 & 7), count]);
    }
    /// `shrx dst, src, count` (64 bits): shifts by the low six bits of `count`, without flags.
    pub fn shrx(&mut self, dst: Reg, src: Reg, count: Reg) {
        self.vex(2, 3, dst, count.0, src.0);
        self.bytes(&[0xf7, 0xc0 | (dst.0 & 7) << 3 | (src.0 & 7)]);
    }
    /// `sarx dst, src, count` (64 bits).
    pub fn sarx(&mut self, dst: Reg, src: Reg, count: Reg) {
        self.vex(2, 2, dst, count.0, src.0);
        self.bytes(&[0xf7, 0xc0 | (dst.0 & 7) << 3 | (src.0 & 7)]);
    }

    /// `jrcxz` to a place not yet known, at most 127 bytes on.
    pub fn jrcxz(&mut self) -> Fixup8 {
        self.bytes(&[0xe3, 0]);
        Fixup8(self.code.len() - 1)
    }
    /// `jrcxz` back to an address at most 126 bytes before.
    pub fn jrcxz_back(&mut self, target: u32) {
        let distance = target as i64 - (self.here() as i64 + 2);
        let distance = i8::try_from(distance).expect("jrcxz target is near");
        self.bytes(&[0xe3, distance as u8]);
    }
    /// `jmp` back to an address at most 126 bytes before.
    pub fn jmp_back(&mut self, target: u32) {
        let distance = target as i64 - (self.here() as i64 + 2);
        let distance = i8::try_from(distance).expect("jump target is near");
        self.bytes(&[0xeb, distance as u8]);
    }
    /// Resolves a short jump to here.
    pub fn bind8(&mut self, fixup: Fixup8) {
        let distance = self.code.len() - (fixup.0 + 1);
        self.code[fixup.0] = i8::try_from(distance).expect("short jump reaches") as u8;
    }
    /// `jmp target`.
    pub fn jmp(&mut self, target: u32) {
        let distance = (target as i64 - (self.here() as i64 + 5)) as i32;
        self.code.push(0xe9);
        self.imm32(distance);
        self.note_word(Kind::Outside);
    }
    /// `jmp` to a place not yet known.
    pub fn jmp_forward(&mut self) -> Fixup32 {
        self.code.push(0xe9);
        self.imm32(0);
        Fixup32(self.code.len() - 4)
    }
    /// `jcc` (condition code 0–15) to a place not yet known.
    pub fn jcc_forward(&mut self, condition: u8) -> Fixup32 {
        self.bytes(&[0x0f, 0x80 | condition]);
        self.imm32(0);
        Fixup32(self.code.len() - 4)
    }
    /// Resolves a jump to here.
    pub fn bind32(&mut self, fixup: Fixup32) {
        let distance = (self.code.len() - (fixup.0 + 4)) as i32;
        self.code[fixup.0..fixup.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }
    /// Resolves a jump to an address in the other part of the block's code.
    pub fn bind32_to(&mut self, fixup: Fixup32, target: u32) {
        let distance = target.wrapping_sub(self.field(fixup) + 4);
        self.code[fixup.0..fixup.0 + 4].copy_from_slice(&distance.to_le_bytes());
        self.notes.add(fixup.0, Kind::Across);
    }
    /// The address of a jump's displacement field, for patching it later.
    pub fn field(&self, fixup: Fixup32) -> u32 {
        self.origin + fixup.0 as u32
    }
    /// `jmp [mem]`.
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.op_mem(Width::W32, &[0xff], 4, mem);
    }
    /// `push register`.
    pub fn push(&mut self, register: Reg) {
        self.short(0x50, register);
    }
    /// `pop register`.
    pub fn pop(&mut self, register: Reg) {
        self.short(0x58, register);
    }
    /// `push` of a sign-extended constant.
    pub fn push_imm(&mut self, value: i32) {
        self.bytes(&[0x68]);
        self.imm32(value);
    }
    fn short(&mut self, opcode: u8, register: Reg) {
        if register.0 >= 8 {
            self.bytes(&[0x41]);
        }
        self.bytes(&[opcode | (register.0 & 7)]);
    }
    /// `push qword [mem]`.
    pub fn push_mem(&mut self, mem: Mem) {
        self.op_mem(Width::W32, &[0xff], 6, mem);
    }
    /// `pop qword [mem]`.
    pub fn pop_mem(&mut self, mem: Mem) {
        self.op_mem(Width::W32, &[0x8f], 0, mem);
    }
    /// An instruction of the 0F map without prefix and with a memory operand (`ldmxcsr`, …).
    pub fn op_0f_mem(&mut self, opcode: u8, extension: u8, mem: Mem) {
        self.op_mem(Width::W32, &[0x0f, opcode], extension, mem);
    }
    /// `fxsave64 [mem]`.
    pub fn fxsave64(&mut self, mem: Mem) {
        self.op_mem(Width::W64, &[0x0f, 0xae], 0, mem);
    }
    /// `vmovups xmm, [mem]`, which clears the upper half; `store` turns it around.
    pub fn vmovups(&mut self, store: bool, register: u8, mem: Mem) {
        self.vex_mem([1, 0, 0], 0, register, mem);
        self.bytes(&[if store { 0x11 } else { 0x10 }]);
        self.modrm_mem(register, &mem, 0);
    }
    /// `vextractf128 [mem], ymm, 1`: stores the upper half.
    pub fn store_upper(&mut self, mem: Mem, register: u8) {
        self.vex_mem([3, 1, 1], 0, register, mem);
        self.bytes(&[0x19]);
        self.modrm_mem(register, &mem, 1);
        self.bytes(&[1]);
    }
    /// `vinsertf128 ymm, ymm, [mem], 1`: loads the upper half.
    pub fn load_upper(&mut self, register: u8, mem: Mem) {
        self.vex_mem([3, 1, 1], register, register, mem);
        self.bytes(&[0x18]);
        self.modrm_mem(register, &mem, 1);
        self.bytes(&[1]);
    }
    /// `vpor xmm, xmm, [mem]`.
    pub fn vpor(&mut self, register: u8, mem: Mem) {
        self.vex_mem([1, 0, 1], register, register, mem);
        self.bytes(&[0xeb]);
        self.modrm_mem(register, &mem, 0);
    }
    /// `vzeroupper`.
    pub fn vzeroupper(&mut self) {
        self.bytes(&[0xc5, 0xf8, 0x77]);
    }
    /// The VEX prefix of an instruction (its map, L and pp) with a memory operand that has no index.
    fn vex_mem(&mut self, [map, long, pp]: [u8; 3], vvvv: u8, register: u8, mem: Mem) {
        debug_assert!(mem.index.is_none());
        let base = mem.base.map_or(0, |base| base.0);
        let third = (!vvvv & 15) << 3 | long << 2 | pp;
        self.bytes(&[0xc4, (!register >> 3 & 1) << 7 | 1 << 6 | (!base >> 3 & 1) << 5 | map, third]);
    }
    /// `vmovdqu ymm, [mem]` or, without AVX, `movups xmm, [mem]`; `store` turns it around.
    pub fn vector(&mut self, avx: bool, store: bool, register: u8, address: u32) {
        let r = register;
        let mem = Mem::abs(address);
        if avx {
            let opcode = if store { 0x7f } else { 0x6f };
            self.bytes(&[0xc5, (!r >> 3 & 1) << 7 | 0x7e, opcode]);
            self.modrm_mem(r, &mem, 0);
        } else {
            self.rex(false, r, &mem);
            self.bytes(&[0x0f, if store { 0x11 } else { 0x10 }]);
            self.modrm_mem(r, &mem, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};

    fn text(build: impl Fn(&mut Asm)) -> String {
        let mut asm = Asm::new(0x1000_0000);
        build(&mut asm);
        let mut decoder = Decoder::with_ip(64, &asm.code, asm.origin as u64, DecoderOptions::NONE);
        let mut lines = Vec::new();
        while decoder.can_decode() {
            let mut line = String::new();
            IntelFormatter::new().format(&decoder.decode(), &mut line);
            lines.push(line);
        }
        lines.join("; ")
    }

    #[test]
    fn every_form_decodes_to_what_it_says() {
        use Width::*;
        assert_eq!(text(|a| a.load(W64, Reg::R10, Mem::abs(0x1234_5678))), "mov r10,[12345678h]");
        assert_eq!(text(|a| a.load(W32, Reg::RCX, Mem::table(0x1000, Reg::R11))), "mov ecx,[r11*8+1000h]");
        assert_eq!(text(|a| a.store(W64, Mem::base(Reg::RSP, -8), Reg::R14)), "mov [rsp-8],r14");
        assert_eq!(
            text(|a| a.lea(W64, Reg::RCX, Mem::base_index(Reg(13), Reg::R11, 0))),
            "lea rcx,[r13+r11]"
        );
        assert_eq!(text(|a| a.rorx(Reg::R11, Reg::RSP, 12)), "rorx r11,rsp,0Ch");
        assert_eq!(text(|a| a.shrx(Reg::RCX, Reg::R15, Reg::R15)), "shrx rcx,r15,r15");
        assert_eq!(text(|a| a.sarx(Reg::RCX, Reg::RAX, Reg::RCX)), "sarx rcx,rax,rcx");
        assert_eq!(text(|a| a.movzx8(Reg::R11, Reg::R11)), "movzx r11d,r11b");
        assert_eq!(text(|a| a.mov_imm(Reg::R10, u64::MAX - 1)), "mov r10,0FFFFFFFFFFFFFFFEh");
        assert_eq!(text(|a| a.mov_imm(Reg::RCX, 1 << 40)), "mov rcx,10000000000h");
        assert_eq!(text(|a| a.vector(true, false, 9, 0x1000)), "vmovdqu ymm9,[1000h]");
        assert_eq!(text(|a| a.vector(true, true, 1, 0x1000)), "vmovdqu [1000h],ymm1");
        assert_eq!(text(|a| a.vector(false, true, 12, 0x1000)), "movups [1000h],xmm12");
        assert_eq!(text(|a| a.vmovups(false, 9, Mem::base(Reg::R10, 0xa0))), "vmovups xmm9,[r10+0A0h]");
        assert_eq!(text(|a| a.vpor(1, Mem::abs(0x1000))), "vpor xmm1,xmm1,[1000h]");
        assert_eq!(text(|a| a.vpor(9, Mem::base(Reg::R10, 0xa0))), "vpor xmm9,xmm9,[r10+0A0h]");
        assert_eq!(text(Asm::vzeroupper), "vzeroupper");
        assert_eq!(text(|a| a.vmovups(true, 1, Mem::abs(0x1000))), "vmovups [1000h],xmm1");
        assert_eq!(
            text(|a| a.store_upper(Mem::base(Reg::R10, 0x240), 15)),
            "vextractf128 [r10+240h],ymm15,1"
        );
        assert_eq!(text(|a| a.store_upper(Mem::abs(64), 0)), "vextractf128 [40h],ymm0,1");
        assert_eq!(text(|a| a.load_upper(8, Mem::base(Reg::R10, 16))), "vinsertf128 ymm8,ymm8,[r10+10h],1");
        assert_eq!(text(|a| a.fxsave64(Mem::abs(64))), "fxsave64 [40h]");
        assert_eq!(text(|a| a.op_load_or(Reg::RAX, Mem::base(Reg::R10, 8))), "or rax,[r10+8]");
        assert_eq!(text(|a| a.jmp(0x1000_0000)), "jmp 0000000010000000h");
        assert_eq!(text(|a| a.op_0f_mem(0xae, 2, Mem::abs(64))), "ldmxcsr [40h]");
        assert_eq!(text(|a| a.store_imm(W16, Mem::base(Reg(5), 0), -1)), "mov word ptr [rbp],0FFFFh");
        assert_eq!(text(|a| a.store_imm(W16, Mem::abs(64), 1)), "mov word ptr [40h],1");
        assert_eq!(text(|a| a.store_imm(W64, Mem::abs(64), 1)), "mov qword ptr [40h],1");
        assert_eq!(text(|a| a.store_imm8(Mem::abs(64), 1)), "mov byte ptr [40h],1");
        assert_eq!(text(|a| a.jmp_back(a.origin)), "jmp short 0000000010000000h");
    }
}
