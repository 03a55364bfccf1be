//! The register file as gdb numbers it.
//!
//! gdb numbers a remote target's registers in the order of the target description, and transfers
//! them (`g`, `G`) as one block in that order. The layout below is that order; the description is made
//! from it, so the two cannot disagree.

/// All registers of one processor that gdb can see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// General registers in encoding order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Address of the next instruction, linear (CS base added).
    pub rip: u64,
    /// RFLAGS.
    pub rflags: u64,
    /// The selector in CS.
    pub cs: u16,
    /// The selector in SS.
    pub ss: u16,
    /// The selector in DS.
    pub ds: u16,
    /// The selector in ES.
    pub es: u16,
    /// The selector in FS.
    pub fs: u16,
    /// The selector in GS.
    pub gs: u16,
    /// Base of FS.
    pub fs_base: u64,
    /// Base of GS.
    pub gs_base: u64,
    /// IA32_KERNEL_GS_BASE.
    pub kernel_gs_base: u64,
    /// CR0.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8, the task priority.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// ST0 to ST7 (relative to the top of the stack), ten bytes each.
    pub st: [[u8; 10]; 8],
    /// x87 control word.
    pub fctrl: u16,
    /// x87 status word.
    pub fstat: u16,
    /// x87 full tag word: two bits for each physical register.
    pub ftag: u16,
    /// YMM0 to YMM15, low byte first; XMM registers are the low halves.
    pub ymm: [[u8; 32]; 16],
    /// MXCSR.
    pub mxcsr: u32,
}

/// A register that gdb knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Index in encoding order.
    Gpr(usize),
    Rip,
    Flags,
    /// CS, SS, DS, ES, FS, GS.
    Selector(usize),
    St(usize),
    /// FCTRL, FSTAT, FTAG, FISEG, FIOFF, FOSEG, FOOFF, FOP.
    X87(usize),
    Xmm(usize),
    Mxcsr,
    /// Upper half of a YMM register.
    YmmHigh(usize),
    /// FS base, GS base, kernel GS base, CR0, CR2, CR3, CR4, CR8, EFER.
    System(usize),
}

/// A register's place in the description.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub name: &'static str,
    pub slot: Slot,
    /// The feature of the description that it belongs to.
    pub feature: &'static str,
    /// Its type in the description.
    pub kind: &'static str,
    /// The group for `info registers GROUP`, or empty.
    pub group: &'static str,
}

impl Entry {
    /// Bytes that gdb transfers.
    pub fn bytes(&self) -> usize {
        match self.slot {
            Slot::Gpr(_) | Slot::Rip | Slot::System(_) => 8,
            Slot::Flags | Slot::Selector(_) | Slot::X87(_) | Slot::Mxcsr => 4,
            Slot::St(_) => 10,
            Slot::Xmm(_) | Slot::YmmHigh(_) => 16,
        }
    }
}

pub(crate) const CORE: &str = "org.gnu.gdb.i386.core";
pub(crate) const SSE: &str = "org.gnu.gdb.i386.sse";
pub(crate) const SEGMENTS: &str = "org.gnu.gdb.i386.segments";
pub(crate) const AVX: &str = "org.gnu.gdb.i386.avx";
pub(crate) const SYSTEM: &str = "org.hindsight.x86.system";

const fn entry(
    name: &'static str,
    slot: Slot,
    feature: &'static str,
    kind: &'static str,
    group: &'static str,
) -> Entry {
    Entry { name, slot, feature, kind, group }
}

macro_rules! rows {
    ($feature:expr, $kind:literal, $group:literal, $slot:path, $($name:literal = $index:expr),* $(,)?) => {
        [$(entry($name, $slot($index), $feature, $kind, $group)),*]
    };
}

const GENERAL: [Entry; 16] = [
    entry("rax", Slot::Gpr(0), CORE, "int64", ""),
    entry("rbx", Slot::Gpr(3), CORE, "int64", ""),
    entry("rcx", Slot::Gpr(1), CORE, "int64", ""),
    entry("rdx", Slot::Gpr(2), CORE, "int64", ""),
    entry("rsi", Slot::Gpr(6), CORE, "int64", ""),
    entry("rdi", Slot::Gpr(7), CORE, "int64", ""),
    entry("rbp", Slot::Gpr(5), CORE, "data_ptr", ""),
    entry("rsp", Slot::Gpr(4), CORE, "data_ptr", ""),
    entry("r8", Slot::Gpr(8), CORE, "int64", ""),
    entry("r9", Slot::Gpr(9), CORE, "int64", ""),
    entry("r10", Slot::Gpr(10), CORE, "int64", ""),
    entry("r11", Slot::Gpr(11), CORE, "int64", ""),
    entry("r12", Slot::Gpr(12), CORE, "int64", ""),
    entry("r13", Slot::Gpr(13), CORE, "int64", ""),
    entry("r14", Slot::Gpr(14), CORE, "int64", ""),
    entry("r15", Slot::Gpr(15), CORE, "int64", ""),
];
const POINTERS: [Entry; 2] =
    [entry("rip", Slot::Rip, CORE, "code_ptr", ""), entry("eflags", Slot::Flags, CORE, "i386_eflags", "")];
const SELECTORS: [Entry; 6] =
    rows!(CORE, "int32", "", Slot::Selector, "cs" = 0, "ss" = 1, "ds" = 2, "es" = 3, "fs" = 4, "gs" = 5);
const STACK: [Entry; 8] = rows!(
    CORE,
    "i387_ext",
    "",
    Slot::St,
    "st0" = 0,
    "st1" = 1,
    "st2" = 2,
    "st3" = 3,
    "st4" = 4,
    "st5" = 5,
    "st6" = 6,
    "st7" = 7
);
const X87: [Entry; 8] = rows!(
    CORE,
    "int",
    "float",
    Slot::X87,
    "fctrl" = 0,
    "fstat" = 1,
    "ftag" = 2,
    "fiseg" = 3,
    "fioff" = 4,
    "foseg" = 5,
    "fooff" = 6,
    "fop" = 7
);
const XMM: [Entry; 16] = rows!(
    SSE,
    "vec128",
    "",
    Slot::Xmm,
    "xmm0" = 0,
    "xmm1" = 1,
    "xmm2" = 2,
    "xmm3" = 3,
    "xmm4" = 4,
    "xmm5" = 5,
    "xmm6" = 6,
    "xmm7" = 7,
    "xmm8" = 8,
    "xmm9" = 9,
    "xmm10" = 10,
    "xmm11" = 11,
    "xmm12" = 12,
    "xmm13" = 13,
    "xmm14" = 14,
    "xmm15" = 15
);
const MXCSR: [Entry; 1] = [entry("mxcsr", Slot::Mxcsr, SSE, "i386_mxcsr", "vector")];
const BASES: [Entry; 2] = rows!(SEGMENTS, "int", "", Slot::System, "fs_base" = 0, "gs_base" = 1);
const HIGH: [Entry; 16] = rows!(
    AVX,
    "uint128",
    "",
    Slot::YmmHigh,
    "ymm0h" = 0,
    "ymm1h" = 1,
    "ymm2h" = 2,
    "ymm3h" = 3,
    "ymm4h" = 4,
    "ymm5h" = 5,
    "ymm6h" = 6,
    "ymm7h" = 7,
    "ymm8h" = 8,
    "ymm9h" = 9,
    "ymm10h" = 10,
    "ymm11h" = 11,
    "ymm12h" = 12,
    "ymm13h" = 13,
    "ymm14h" = 14,
    "ymm15h" = 15
);
const CONTROL: [Entry; 7] = [
    entry("k_gs_base", Slot::System(2), SYSTEM, "int64", "system"),
    entry("cr0", Slot::System(3), SYSTEM, "x86_cr0", "system"),
    entry("cr2", Slot::System(4), SYSTEM, "int64", "system"),
    entry("cr3", Slot::System(5), SYSTEM, "int64", "system"),
    entry("cr4", Slot::System(6), SYSTEM, "x86_cr4", "system"),
    entry("cr8", Slot::System(7), SYSTEM, "int64", "system"),
    entry("efer", Slot::System(8), SYSTEM, "x86_efer", "system"),
];

/// Every register in gdb's order: a register's number is its index.
pub(crate) fn layout() -> impl Iterator<Item = &'static Entry> {
    let groups: [&'static [Entry]; 10] =
        [&GENERAL, &POINTERS, &SELECTORS, &STACK, &X87, &XMM, &MXCSR, &BASES, &HIGH, &CONTROL];
    groups.into_iter().flatten()
}

impl Registers {
    /// The bytes of a register, little-endian, as many as its entry says.
    pub(crate) fn get(&self, slot: Slot) -> Vec<u8> {
        match slot {
            Slot::Gpr(i) => self.gpr[i].to_le_bytes().to_vec(),
            Slot::Rip => self.rip.to_le_bytes().to_vec(),
            Slot::Flags => (self.rflags as u32).to_le_bytes().to_vec(),
            Slot::Selector(i) => {
                let all = [self.cs, self.ss, self.ds, self.es, self.fs, self.gs];
                u32::from(all[i]).to_le_bytes().to_vec()
            }
            Slot::St(i) => self.st[i].to_vec(),
            Slot::X87(i) => {
                let all = [self.fctrl, self.fstat, self.ftag];
                u32::from(all.get(i).copied().unwrap_or(0)).to_le_bytes().to_vec()
            }
            Slot::Xmm(i) => self.ymm[i][..16].to_vec(),
            Slot::YmmHigh(i) => self.ymm[i][16..].to_vec(),
            Slot::Mxcsr => self.mxcsr.to_le_bytes().to_vec(),
            Slot::System(i) => {
                let all = [
                    self.fs_base,
                    self.gs_base,
                    self.kernel_gs_base,
                    self.cr0,
                    self.cr2,
                    self.cr3,
                    self.cr4,
                    self.cr8,
                    self.efer,
                ];
                all[i].to_le_bytes().to_vec()
            }
        }
    }

    /// Sets a register; `false` when `bytes` is not as long as the register. The x87 instruction
    /// and operand pointers and the opcode are always zero and keep being so.
    pub(crate) fn set(&mut self, slot: Slot, bytes: &[u8]) -> bool {
        let word = || <[u8; 8]>::try_from(bytes).map(u64::from_le_bytes).ok();
        let half = || <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes).ok();
        let done = match slot {
            Slot::Gpr(i) => word().map(|v| self.gpr[i] = v),
            Slot::Rip => word().map(|v| self.rip = v),
            Slot::Flags => half().map(|v| self.rflags = u64::from(v)),
            Slot::Selector(i) => half().map(|v| *self.selector(i) = v as u16),
            Slot::St(i) => bytes.try_into().map(|v| self.st[i] = v).ok(),
            Slot::X87(i) => half().map(|v| match i {
                0 => self.fctrl = v as u16,
                1 => self.fstat = v as u16,
                2 => self.ftag = v as u16,
                _ => {}
            }),
            Slot::Xmm(i) => (bytes.len() == 16).then(|| self.ymm[i][..16].copy_from_slice(bytes)),
            Slot::YmmHigh(i) => (bytes.len() == 16).then(|| self.ymm[i][16..].copy_from_slice(bytes)),
            Slot::Mxcsr => half().map(|v| self.mxcsr = v),
            Slot::System(i) => word().map(|v| *self.system(i) = v),
        };
        done.is_some()
    }

    fn selector(&mut self, i: usize) -> &mut u16 {
        match i {
            0 => &mut self.cs,
            1 => &mut self.ss,
            2 => &mut self.ds,
            3 => &mut self.es,
            4 => &mut self.fs,
            _ => &mut self.gs,
        }
    }

    fn system(&mut self, i: usize) -> &mut u64 {
        match i {
            0 => &mut self.fs_base,
            1 => &mut self.gs_base,
            2 => &mut self.kernel_gs_base,
            3 => &mut self.cr0,
            4 => &mut self.cr2,
            5 => &mut self.cr3,
            6 => &mut self.cr4,
            7 => &mut self.cr8,
            _ => &mut self.efer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_keeps_what_is_written_and_touches_no_other() {
        for (number, entry) in layout().enumerate() {
            let value: Vec<u8> = (0..entry.bytes()).map(|i| (number * 7 + i + 1) as u8).collect();
            let mut registers = Registers::default();
            assert!(registers.set(entry.slot, &value), "{}", entry.name);
            assert!(!registers.set(entry.slot, &value[1..]), "{}: too short a value", entry.name);
            let stored = registers.get(entry.slot);
            assert_eq!(stored.len(), entry.bytes(), "{}", entry.name);
            match entry.slot {
                Slot::X87(3..) => assert_eq!(stored, [0; 4]),
                Slot::Selector(_) | Slot::X87(_) => assert_eq!(stored[..2], value[..2]),
                _ => assert_eq!(stored, value, "{}", entry.name),
            }
            for other in layout().filter(|other| other.slot != entry.slot) {
                assert!(registers.get(other.slot).iter().all(|b| *b == 0), "{} {}", entry.name, other.name);
            }
        }
    }
}
