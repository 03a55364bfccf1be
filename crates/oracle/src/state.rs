//! The registers a case starts with, and the ones it ends with.

/// Length in bytes of an FXSAVE64 image (SDM vol. 1, 10.5.1.1).
pub const FXSAVE: usize = 512;

/// MXCSR after power-on: every exception masked, round to nearest (SDM vol. 1, 10.2.3).
pub const MXCSR_DEFAULT: u32 = 0x1f80;

/// User-visible registers, except the instruction pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(32))]
pub struct Registers {
    /// General registers in encoding order: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// RFLAGS with bits 1 and IF set, IOPL 0 and RF clear.
    pub rflags: u64,
    /// Base of FS; a 32-bit case does not use it (its FS holds a null selector).
    pub fs_base: u64,
    /// Base of GS; likewise.
    pub gs_base: u64,
    /// YMM0 to YMM15, low byte first.
    pub ymm: [[u8; 32]; 16],
    /// MXCSR.
    pub mxcsr: u32,
    /// The x87 part of an FXSAVE64 image: FCW, FSW and abridged FTW in bytes 0 to 4, ST0 to ST7 in
    /// bytes 32 to 159 (ten of each sixteen). All other bytes are zero, FIP, FDP and FOP included.
    pub x87: [u8; FXSAVE],
}

impl Default for Registers {
    fn default() -> Self {
        let mut x87 = [0; FXSAVE];
        x87[..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        Self {
            gpr: [0; 16],
            rflags: flag::FIXED,
            fs_base: 0,
            gs_base: 0,
            ymm: [[0; 32]; 16],
            mxcsr: MXCSR_DEFAULT,
            x87,
        }
    }
}

/// Keeps of an FXSAVE image what [`Registers::x87`] holds, and zeroes the rest.
pub fn canonical_x87(image: &[u8; FXSAVE]) -> [u8; FXSAVE] {
    let mut out = [0; FXSAVE];
    out[..5].copy_from_slice(&image[..5]);
    for register in 0..8 {
        let at = 32 + register * 16;
        out[at..at + 10].copy_from_slice(&image[at..at + 10]);
    }
    out
}

/// Names of the general registers in encoding order.
pub const GPR_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// Bits of RFLAGS (SDM vol. 1, 3.4.3).
#[allow(missing_docs)] // each constant is the manual's own mnemonic
pub mod flag {
    pub const CF: u64 = 1 << 0;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const AC: u64 = 1 << 18;
    pub const ID: u64 = 1 << 21;
    /// The six flags that arithmetic writes.
    pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
    /// What every case starts with: bit 1 and IF, as a user program sees them under an
    /// operating system.
    pub const FIXED: u64 = 0x2 | IF;
}
