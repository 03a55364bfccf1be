//! Where a case's pages lie.
//!
//! ```text
//!   64-bit cases                            32-bit cases, and low pages of 64-bit ones
//!   0x2a5f_f000_0000  code                  0xbff0_0000  code
//!   0x2a5f_f000_1000  code-next             0xbff0_1000  code-next
//!   …nothing…                               …nothing…
//!   0x2a5f_ffff_f000  left   ┐ adjacent     0xbfff_f000  left
//!   0x2a60_0000_0000  right  ┘              0xc000_0000  right
//!   …nothing…                               …nothing…
//!   0x2a60_0000_3000  constant (read-only)  0xc000_3000  constant
//!   …nothing…                               …nothing…
//! ```
//!
//! `left` and `right` meet at a 4 GiB boundary, so an address computed in 32 bits or a carry lost
//! shows; the low pair meets where a 32-bit address has its two top bits change. Everything else
//! is unmapped, so an access that runs off either end of a page pair or of `constant` faults.

/// Bytes in a page.
pub const PAGE: usize = 4096;

/// The pages there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)] // the drawing above
pub enum Frame {
    Code,
    CodeNext,
    Left,
    Right,
    Constant,
    LowCode,
    LowCodeNext,
    LowLeft,
    LowRight,
    LowConstant,
}

/// How many pages there are.
pub const FRAMES: usize = 10;

impl Frame {
    /// All of them, in order of their discriminants.
    pub const ALL: [Frame; FRAMES] = [
        Frame::Code,
        Frame::CodeNext,
        Frame::Left,
        Frame::Right,
        Frame::Constant,
        Frame::LowCode,
        Frame::LowCodeNext,
        Frame::LowLeft,
        Frame::LowRight,
        Frame::LowConstant,
    ];

    /// The linear address of the page's first byte.
    pub const fn address(self) -> u64 {
        match self {
            Frame::Code => 0x2a5f_f000_0000,
            Frame::CodeNext => 0x2a5f_f000_1000,
            Frame::Left => 0x2a5f_ffff_f000,
            Frame::Right => 0x2a60_0000_0000,
            Frame::Constant => 0x2a60_0000_3000,
            Frame::LowCode => 0xbff0_0000,
            Frame::LowCodeNext => 0xbff0_1000,
            Frame::LowLeft => 0xbfff_f000,
            Frame::LowRight => 0xc000_0000,
            Frame::LowConstant => 0xc000_3000,
        }
    }

    /// The frame that holds `address`, if one does.
    pub fn containing(address: u64) -> Option<Frame> {
        Frame::ALL.into_iter().find(|frame| frame.address() == address & !(PAGE as u64 - 1))
    }
}

/// What a user program may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Access {
    /// Read; a write or an instruction fetch faults.
    Read = 1,
    /// Read and write; an instruction fetch faults.
    ReadWrite = 2,
    /// Read and execute; a write faults.
    ReadExecute = 3,
    /// Everything: code on a writable page.
    All = 4,
}

impl Access {
    /// Whether stores succeed.
    pub const fn writable(self) -> bool {
        matches!(self, Access::ReadWrite | Access::All)
    }
    /// Whether instruction fetches succeed.
    pub const fn executable(self) -> bool {
        matches!(self, Access::ReadExecute | Access::All)
    }
}

/// One mapped page and what it holds when the case starts.
#[derive(Clone, Debug)]
pub struct Page {
    /// Which page.
    pub frame: Frame,
    /// What the case may do with it.
    pub access: Access,
    /// Contents.
    pub bytes: Box<[u8; PAGE]>,
}
