//! Control register, EFER and XCR0 bits (Intel SDM vol. 3A, 2.5, 2.2.1 and 2.6).
#![allow(missing_docs)] // each constant is the manual's own name

pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
    /// Every defined bit.
    pub const DEFINED: u64 = PE | MP | EM | TS | ET | NE | WP | AM | NW | CD | PG;
}

pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    /// Every bit the guest's processors have.
    pub const DEFINED: u64 = SCE | LME | LMA | NXE;
}

pub mod xcr0 {
    pub const X87: u64 = 1 << 0;
    pub const SSE: u64 = 1 << 1;
    pub const AVX: u64 = 1 << 2;
}

/// Debug registers DR6 and DR7 (SDM vol. 3B, 17.2).
pub mod dr {
    /// DR6: single-step.
    pub const BS: u64 = 1 << 14;
    /// DR6: access to a debug register while DR7.GD was set.
    pub const BD: u64 = 1 << 13;
    /// DR6 bits that read as one.
    pub const DR6_FIXED: u64 = 0xffff_0ff0;
    /// DR6 bits that software can write.
    pub const DR6_WRITABLE: u64 = 0xe00f;
    /// DR7: any access to a debug register traps.
    pub const GD: u64 = 1 << 13;
    /// DR7 bits that read as one.
    pub const DR7_FIXED: u64 = 0x400;
    /// DR7 bits that software can write.
    pub const DR7_WRITABLE: u64 = 0xffff_23ff;
}
