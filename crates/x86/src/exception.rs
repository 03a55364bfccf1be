//! Exceptions (Intel SDM vol. 3A, chapter 6).

/// Vector numbers (SDM vol. 3A, table 6-1).
#[allow(missing_docs)] // each constant is the manual's own mnemonic
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

/// An exception an instruction raised, before it is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// See [`vector`].
    pub vector: u8,
    /// The error code that delivery pushes, for the vectors that have one.
    pub error_code: Option<u32>,
    /// What CR2 becomes on delivery: set for page faults only.
    pub cr2: Option<u64>,
}

impl Exception {
    /// An exception without an error code.
    pub const fn plain(vector: u8) -> Self {
        Self { vector, error_code: None, cr2: None }
    }
    /// An exception that pushes `code`.
    pub const fn with_code(vector: u8, code: u32) -> Self {
        Self { vector, error_code: Some(code), cr2: None }
    }
    /// #UD.
    pub const fn ud() -> Self {
        Self::plain(vector::UD)
    }
    /// #GP(`code`).
    pub const fn gp(code: u32) -> Self {
        Self::with_code(vector::GP, code)
    }
    /// #SS(`code`).
    pub const fn ss(code: u32) -> Self {
        Self::with_code(vector::SS, code)
    }
    /// #PF at linear address `cr2`, with the error code of SDM vol. 3A, 4.7.
    pub const fn page_fault(cr2: u64, code: u32) -> Self {
        Self { vector: vector::PF, error_code: Some(code), cr2: Some(cr2) }
    }
}
