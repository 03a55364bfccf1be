//! Segment registers with their hidden parts, and descriptor-table registers.

use serde::{Deserialize, Serialize};

/// A segment register: selector and descriptor cache (Intel SDM vol. 3A, 3.4.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Byte-granular limit: the last valid offset.
    pub limit: u32,
    /// Bits 8–23 of the descriptor's upper doubleword, shifted down: type 0–3, S 4, DPL 5–6, P 7,
    /// AVL 12, L 13, D/B 14, G 15; bits 8–11 are zero.
    pub attributes: u16,
    /// The visible selector.
    pub selector: u16,
}

impl Segment {
    /// Attribute bit: code or data rather than system (S).
    pub const CODE_OR_DATA: u16 = 1 << 4;
    /// Attribute bit: present (P).
    pub const PRESENT: u16 = 1 << 7;
    /// Attribute bit: 64-bit code (L).
    pub const LONG: u16 = 1 << 13;
    /// Attribute bit: 32-bit default size (D/B).
    pub const DEFAULT_BIG: u16 = 1 << 14;
    /// Attribute bit: limit in pages (G).
    pub const GRANULAR: u16 = 1 << 15;

    /// The four type bits (SDM vol. 3A, table 3-1 and 3-2).
    pub const fn kind(&self) -> u16 {
        self.attributes & 0xf
    }
    /// Descriptor privilege level, 0 to 3.
    pub const fn dpl(&self) -> u8 {
        ((self.attributes >> 5) & 3) as u8
    }
    /// Whether the segment is present.
    pub const fn present(&self) -> bool {
        self.attributes & Self::PRESENT != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// The last valid byte's offset.
    pub limit: u16,
}

/// Segment register numbers as instruction encodings use them.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SegmentIndex {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}
