//! A case: a short program with the machine state it starts from.
//!
//! The program is a list of [`Item`]s, one instruction each. Whatever in an instruction depends on
//! where it or another one lies (branch displacements, RIP-relative operands, the address of
//! another instruction) is a [`Link`], so the minimiser can drop instructions and assemble again.

use crate::layout::{Access, Frame, PAGE, Page};
use crate::state::Registers;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Formatter, GasFormatter, Instruction, Mnemonic};
use std::fmt;

/// The mode a case runs in, always at CPL 3 with paging and long mode on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Mode {
    /// 64-bit mode.
    Long = 64,
    /// Compatibility mode with 32-bit code and flat data segments: CS, SS, DS and ES have base 0
    /// and limit 4 GiB, FS and GS hold null selectors.
    Compatibility = 32,
}

impl Mode {
    /// Default address size in bits.
    pub const fn bits(self) -> u32 {
        self as u32
    }
    /// How many general and vector registers instructions can name.
    pub const fn registers(self) -> usize {
        match self {
            Mode::Long => 16,
            Mode::Compatibility => 8,
        }
    }
    /// The page that holds the program.
    pub const fn code(self) -> Frame {
        match self {
            Mode::Long => Frame::Code,
            Mode::Compatibility => Frame::LowCode,
        }
    }
    /// The page after it.
    pub const fn code_next(self) -> Frame {
        match self {
            Mode::Long => Frame::CodeNext,
            Mode::Compatibility => Frame::LowCodeNext,
        }
    }
}

/// One instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its encoding, with the field of `link` still to be filled in.
    pub bytes: Vec<u8>,
    /// What depends on addresses, at most one field.
    pub link: Option<Link>,
    /// Belongs together with the next item (PUSH before POPF): never dropped or jumped between.
    pub glued: bool,
    /// Bytes of this instruction that another instruction of the case overwrites (offset, length):
    /// self-modifying code, kept to immediates so that what is executed stays vetted.
    pub patched: Option<(u8, u8)>,
}

impl Item {
    /// An instruction without links.
    pub fn plain(bytes: impl Into<Vec<u8>>) -> Self {
        Self { bytes: bytes.into(), link: None, glued: false, patched: None }
    }
}

/// A field of an instruction that depends on an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Offset of the field in the instruction.
    pub field: u8,
    /// Its size in bytes: 1, 4 or 8.
    pub size: u8,
    /// Whether it counts from the end of the instruction.
    pub relative: bool,
    /// The address meant.
    pub target: Target,
}

/// What a [`Link`] points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Byte `byte` of item `index`; an index past the last item means the end marker.
    Item {
        /// Index into the case's items.
        index: usize,
        /// Offset in that instruction.
        byte: u8,
    },
    /// A fixed linear address.
    Address(u64),
}

/// Longest program, in instructions.
pub const ITEMS_MAX: usize = 60;

/// The byte after the last instruction: INT3. Reaching it ends the case.
pub const END_MARKER: u8 = 0xcc;

/// Why a program cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A one-byte displacement does not reach.
    #[error("item {0}: its target is out of reach")]
    OutOfReach(usize),
    /// Too long for the code pages.
    #[error("the program does not fit its code pages")]
    TooLong,
}

/// A program and the state it starts from. Equal seeds (and options) give equal cases.
#[derive(Clone, Debug)]
pub struct Case {
    /// The seed it was made from; 0 for one written by hand.
    pub seed: u64,
    /// The mode it runs in.
    pub mode: Mode,
    /// Linear address of the first instruction.
    pub start: u64,
    /// The program.
    pub items: Vec<Item>,
    /// Registers at the start.
    pub registers: Registers,
    /// Some access may be to the code pages, one aimed there or one through a register that held an address
    /// in them: the host then counts with their contents in place.
    pub reads_code: bool,
    /// Mapped pages; [`Case::assemble`] puts the program into the code pages among them.
    pages: Vec<Page>,
    /// Linear address of each item, then of the end marker.
    addresses: Vec<u64>,
}

impl Case {
    /// Lays out a case.
    ///
    /// # Errors
    /// When the program does not fit or a short branch does not reach.
    pub fn new(
        seed: u64,
        mode: Mode,
        start: u64,
        items: Vec<Item>,
        registers: Registers,
        pages: Vec<Page>,
    ) -> Result<Self, AssembleError> {
        let mut case =
            Self { seed, mode, start, items, registers, reads_code: false, pages, addresses: Vec::new() };
        case.assemble()?;
        Ok(case)
    }

    /// A case written by hand: `code` at the start of the code page (read and execute), the data
    /// pages zeroed, registers at their defaults with the stack pointer in the middle of `right`.
    ///
    /// # Errors
    /// When the program does not fit.
    pub fn from_code(mode: Mode, code: &[u8]) -> Result<Self, AssembleError> {
        let mut decoder = Decoder::new(mode.bits(), code, DecoderOptions::NONE);
        let mut items = Vec::new();
        while decoder.can_decode() {
            let at = decoder.position();
            let _ = decoder.decode();
            items.push(Item::plain(&code[at..decoder.position()]));
        }
        let (data, code_access) = (Access::ReadWrite, Access::ReadExecute);
        let frames = match mode {
            Mode::Long => [Frame::Code, Frame::Left, Frame::Right, Frame::Constant],
            Mode::Compatibility => [Frame::LowCode, Frame::LowLeft, Frame::LowRight, Frame::LowConstant],
        };
        let pages = frames
            .into_iter()
            .zip([code_access, data, data, Access::Read])
            .map(|(frame, access)| Page { frame, access, bytes: Box::new([0; PAGE]) })
            .collect();
        let mut registers = Registers::default();
        registers.gpr[4] = frames[2].address() + 0x800;
        Self::new(0, mode, mode.code().address(), items, registers, pages)
    }

    /// The mapped pages as they are when the case starts, program included; everything else must
    /// be unmapped. All are user pages.
    pub fn pages(&self) -> &[Page] {
        &self.pages
    }

    /// The page `frame`, if the case maps it, to change what it holds.
    pub fn page_mut(&mut self, frame: Frame) -> Option<&mut Page> {
        self.pages.iter_mut().find(|page| page.frame == frame)
    }

    /// Linear address of each instruction, then of the end marker.
    pub fn addresses(&self) -> &[u64] {
        &self.addresses
    }

    /// Linear address of the end marker.
    pub fn end(&self) -> u64 {
        self.addresses[self.items.len()]
    }

    /// Lays the program out from [`Case::start`], fills in links and writes it and the end marker
    /// into the code pages. A part that lies on a page the case does not map is left out (the case
    /// then ends with a fetch fault).
    ///
    /// # Errors
    /// When the program does not fit or a short branch does not reach.
    pub fn assemble(&mut self) -> Result<(), AssembleError> {
        self.addresses.clear();
        let mut at = self.start;
        for item in &self.items {
            self.addresses.push(at);
            at += item.bytes.len() as u64;
        }
        self.addresses.push(at);
        if at >= self.mode.code_next().address() + PAGE as u64 || self.items.len() > ITEMS_MAX {
            return Err(AssembleError::TooLong);
        }
        for index in 0..self.items.len() {
            self.resolve(index)?;
        }
        for index in 0..self.items.len() {
            let bytes = std::mem::take(&mut self.items[index].bytes);
            self.poke(self.addresses[index], &bytes);
            self.items[index].bytes = bytes;
        }
        self.poke(at, &[END_MARKER]);
        Ok(())
    }

    /// Fills in the link of item `index`.
    fn resolve(&mut self, index: usize) -> Result<(), AssembleError> {
        let Some(link) = self.items[index].link else { return Ok(()) };
        let target = match link.target {
            Target::Item { index, byte } => self.addresses[index.min(self.items.len())] + u64::from(byte),
            Target::Address(address) => address,
        };
        let value =
            if link.relative { target.wrapping_sub(self.addresses[index + 1]) } else { target } as i64;
        let reaches = match link.size {
            1 => i8::try_from(value).is_ok(),
            4 if link.relative => i32::try_from(value).is_ok(),
            4 => u32::try_from(value).is_ok() || i32::try_from(value).is_ok(),
            _ => true,
        };
        // A 32-bit displacement reaches everything when the instruction pointer has 32 bits.
        let wraps = link.size == 4 && self.mode == Mode::Compatibility;
        if !reaches && !wraps {
            return Err(AssembleError::OutOfReach(index));
        }
        let (field, size) = (link.field as usize, link.size as usize);
        self.items[index].bytes[field..field + size].copy_from_slice(&value.to_le_bytes()[..size]);
        Ok(())
    }

    /// Writes `bytes` at `address` into whatever mapped pages it touches.
    fn poke(&mut self, address: u64, bytes: &[u8]) {
        for (offset, &byte) in bytes.iter().enumerate() {
            let at = address + offset as u64;
            let page = self.pages.iter_mut().find(|page| page.frame.address() == at & !(PAGE as u64 - 1));
            if let Some(page) = page {
                page.bytes[at as usize & (PAGE - 1)] = byte;
            }
        }
    }

    /// The instructions, decoded at their addresses.
    pub fn instructions(&self) -> impl Iterator<Item = Instruction> + '_ {
        self.items.iter().zip(&self.addresses).map(|(item, &address)| {
            Decoder::with_ip(self.mode.bits(), &item.bytes, address, DecoderOptions::NONE).decode()
        })
    }

    /// Flags the manual leaves undefined once the case has retired `retired` instructions. The host
    /// and a translator on the same host agree on them anyway, so this is for comparing across
    /// hosts. A program with branches or REP prefixes gets the union over all its instructions.
    pub fn undefined_flags(&self, retired: u64) -> u64 {
        let linear = self.instructions().all(|instruction| {
            let rep = instruction.has_rep_prefix() || instruction.has_repne_prefix();
            instruction.flow_control() == FlowControl::Next && !rep
        });
        let mut undefined = 0;
        for (index, instruction) in self.instructions().enumerate() {
            if linear && index as u64 >= retired {
                break;
            }
            if linear {
                undefined &= !crate::flags::defined(&instruction);
            }
            undefined |= crate::flags::undefined(&instruction);
        }
        undefined
    }
}

/// Whether it is one of POPF, POPFD, POPFQ.
pub fn is_popf(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq)
}

/// Whether it is one of PUSHF, PUSHFD, PUSHFQ.
pub fn is_pushf(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq)
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "case {:#x}, {} bits, {} instructions", self.seed, self.mode.bits(), self.items.len())?;
        let mut formatter = GasFormatter::new();
        for (index, instruction) in self.instructions().enumerate() {
            let mut text = String::new();
            formatter.format(&instruction, &mut text);
            write!(f, "  {index:2}  {:#x}  ", self.addresses[index])?;
            for byte in &self.items[index].bytes {
                write!(f, "{byte:02x}")?;
            }
            writeln!(f, "  {text}")?;
        }
        for page in &self.pages {
            writeln!(f, "  page {:#x} {:?} {:?}", page.frame.address(), page.frame, page.access)?;
        }
        Ok(())
    }
}
