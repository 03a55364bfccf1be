//! Page-table entry bits and page-fault error codes (Intel SDM vol. 3A, 4.5 and 4.7).
#![allow(missing_docs)] // each constant is the manual's own name

pub const PRESENT: u64 = 1 << 0;
pub const WRITABLE: u64 = 1 << 1;
pub const USER: u64 = 1 << 2;
pub const ACCESSED: u64 = 1 << 5;
pub const DIRTY: u64 = 1 << 6;
/// PS: a leaf in a PDE or PDPTE.
pub const LARGE: u64 = 1 << 7;
pub const GLOBAL: u64 = 1 << 8;
pub const NO_EXECUTE: u64 = 1 << 63;
/// The physical address field of an entry, for MAXPHYADDR up to 52.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// MAXPHYADDR of every guest processor: physical addresses have this many bits.
pub const PHYSICAL_BITS: u32 = 40;
/// Physical address bits that entries may not use: 51 down to MAXPHYADDR.
pub const ADDRESS_RESERVED: u64 = ADDRESS & !((1 << PHYSICAL_BITS) - 1);
/// Linear addresses have this many bits; the rest repeat the topmost one.
pub const LINEAR_BITS: u32 = 48;

/// Whether `address` is canonical: bits 63 to 47 all equal (SDM vol. 1, 3.3.7.1).
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << (64 - LINEAR_BITS)) >> (64 - LINEAR_BITS) == address as i64
}

/// Error-code bits of #PF.
pub mod fault {
    pub const PRESENT: u32 = 1 << 0;
    pub const WRITE: u32 = 1 << 1;
    pub const USER: u32 = 1 << 2;
    pub const RESERVED: u32 = 1 << 3;
    pub const FETCH: u32 = 1 << 4;
}
