//! The code cache: translated blocks, how they are found, linked and thrown away.
//!
//! A block is translated guest code from one page, known by the *physical* address it was read
//! from, the virtual address it runs at (RIP-relative operands and return addresses are wired in)
//! and the mode it was translated for. It has two entries:
//!
//! * `entry`: for jumps from the same page, which prove that the page is still mapped;
//! * `checked`: for everyone else. It compares the block's [`PageId`] with what the mode's
//!   code-page table says stands behind the block's virtual page now, so a link or a jump-cache
//!   entry never has to be undone because page tables changed. Mirrored code and the kernel's have only
//!   the first entry, and theirs are undone (see [`super::entered`]).
//!
//! What runs seldom, the ways out, stands apart from the rest, so that more of what runs fits the
//! host's caches. Space is handed out in order and never reclaimed singly; when the cache is full everything
//! goes. A block whose guest bytes were written is unlinked from its predecessors and forgotten.

use super::arena::{Arena, want_large_pages};
use super::classify::Class;
use super::hot::SPREAD;
use super::regs;
use super::sheets::{CodePage, Keys};
use crate::marks::mark;
use base::PAGE_SIZE;
use iced_x86::Instruction;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// The processor mode a block was translated for; which assumptions are wired into it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Mode(pub u32);

impl Mode {
    const BITS_MASK: u32 = 3;
    /// Privilege level 3.
    pub const USER: Mode = Mode(1 << 2);
    /// SMAP is on and EFLAGS.AC lifts it.
    pub const AC: Mode = Mode(1 << 3);
    /// x87 and SSE instructions do not fault (CR0.EM and TS clear, CR4.OSFXSR set).
    pub const FPU: Mode = Mode(1 << 4);
    /// AVX instructions do not fault.
    pub const AVX: Mode = Mode(1 << 5);
    /// Outside 64-bit mode: ES, CS, SS, DS, FS, GS span all 4 GiB and may be read and written
    /// (bits 8 to 13); ES, CS, SS and DS also have base 0.
    pub const FLAT: [Mode; 6] =
        [Mode(1 << 8), Mode(1 << 9), Mode(1 << 10), Mode(1 << 11), Mode(1 << 12), Mode(1 << 13)];
    /// The stack pointer is ESP rather than SP outside 64-bit mode (SS.B).
    pub const STACK32: Mode = Mode(1 << 14);
    /// Alignment is checked (CR0.AM and EFLAGS.AC at CPL 3), which only execution from Rust does:
    /// no block is translated for such a mode, and no block goes on in it.
    pub const PRECISE: Mode = Mode(1 << 15);

    /// CPL 0.
    pub const RING0: Mode = Mode(1 << 16);
    /// CR4.SMAP is set.
    pub const SMAP: Mode = Mode(1 << 17);
    /// RDFSBASE and its kin do not fault (CR4.FSGSBASE).
    pub const FSGSBASE: Mode = Mode(1 << 19);
    /// RDTSC does not fault at CPL 3 (CR4.TSD clear).
    pub const USER_TSC: Mode = Mode(1 << 18);
    /// The address space is mirrored: a 64-bit program's memory is where the program has it (see
    /// `mirror`).
    pub const MIRRORED: Mode = Mode(1 << 20);

    /// A mode with only its code size, 16, 32 or 64.
    pub const fn of_bits(bits: u32) -> Mode {
        Mode(match bits {
            16 => 0,
            32 => 1,
            _ => 2,
        })
    }
    /// 16, 32 or 64.
    pub const fn bits(self) -> u32 {
        16 << (self.0 & Self::BITS_MASK)
    }
    /// Whether 64-bit code.
    pub const fn is64(self) -> bool {
        self.bits() == 64
    }
    /// Whether all of `other` holds.
    pub const fn has(self, other: Mode) -> bool {
        self.0 & other.0 == other.0
    }
    /// Both together.
    #[must_use]
    pub const fn with(self, other: Mode) -> Mode {
        Mode(self.0 | other.0)
    }
    /// Which set of tables this mode uses.
    pub const fn set(self) -> usize {
        match (self.bits(), self.has(Mode::USER), self.has(Mode::AC)) {
            (64, false, false) => 0,
            (64, false, true) => 1,
            (64, true, _) if self.has(Mode::MIRRORED) => 3,
            (64, true, _) => 2,
            (32, true, _) => 4,
            _ => 5,
        }
    }
}

/// What a block is known by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockKey {
    /// Guest physical address of the first byte.
    pub phys: u64,
    /// Linear address of the first byte.
    pub virt: u64,
    /// See [`Mode`].
    pub mode: Mode,
    /// The most instructions it may have: less than the maximum for exact stops.
    pub limit: u8,
    /// Whether its accesses may share checks. The block of the same key without that is its twin,
    /// which goes on where a shared check cannot be passed; see `groups`.
    pub shares: bool,
}

impl BlockKey {
    /// Whether it is of blocks as long as they come, whose accesses may share checks.
    pub fn is_whole(&self) -> bool {
        self.shares && u64::from(self.limit) == regs::MAX_BLOCK
    }
}

/// Index of a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId(pub u32);

/// Bits of an exit's number in the word that says which way translated code has left; see `table_stores` for the rest.
pub const EXIT_BITS: u32 = 24;
/// Exits there may be: those of one more block have to fit.
const EXITS_MAX: usize = (1 << EXIT_BITS) - (1 << 12);

/// Index of an exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExitId(pub u32);

/// An exit that is linked to a block, or has been.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Link(u32);

impl Link {
    /// `inside`: it is of the same sheet.
    pub fn new(from: ExitId, inside: bool) -> Self {
        Self(from.0 << 1 | u32::from(inside))
    }

    pub fn from(self) -> ExitId {
        ExitId(self.0 >> 1)
    }

    /// Whether the exit is of the same sheet. Such a link is undone only when the block is forgotten: a sheet's
    /// blocks are entered, or slid, or neither, together.
    pub fn is_inside(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Exits linked to a block: mostly few, which are kept without a heap.
pub type Incoming = SmallVec<[Link; 4]>;

/// Index of a decoded instruction kept for Rust to execute, or [`DecodedId::NONE`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DecodedId(pub u32);

impl DecodedId {
    /// Not decoded yet.
    pub const NONE: DecodedId = DecodedId(u32::MAX);
}

/// The part of the code cache that is for what runs seldom: so many of so many shares.
const COLD_SHARE: (u32, u32) = (21, 64);

/// Bytes that a block takes of the code cache, and the ways out that it has, about.
const BLOCK_BYTES: u32 = 350;
const EXITS: usize = 6;

/// Bytes of the jump before a block's checked entry, which is where lines of the host's cache begin.
pub const OUT: u32 = 5;

/// Bits of [`Blocks::may_begin`].
const BEGINS: usize = 1 << 20;

/// The exit index that stands for a host fault.
pub const HOST_FAULT: u32 = (1 << EXIT_BITS) - 1;

/// Where one instruction of a block begins.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Insn {
    /// Bytes from the block's first guest byte: less than 0 or less than the one before where a
    /// jump was followed.
    pub delta: i16,
    /// Where its translation begins, in bytes from the block's first.
    pub host: u16,
}

/// One translated block.
pub struct Block {
    pub key: BlockKey,
    /// Instructions counted at entry.
    pub count: u8,
    /// See the module's head.
    pub entry: u32,
    pub checked: u32,
    /// One past the last host byte, here and in the cold part of the code cache.
    pub end: u32,
    pub cold_end: u32,
    /// Where its instructions are in [`Blocks::insns`]: each one's beginning, and the last one's end.
    pub insns: u32,
    /// Guest bytes covered: where they begin in the page of `key.phys`, and how many.
    pub first: u16,
    pub bytes: u16,
    /// The physical page that the bytes behind the first page's end are in: only a block of one
    /// instruction has any.
    pub second_page: Option<u64>,
    /// Some accesses share a check; see `groups`.
    pub grouped: bool,
    /// False once its guest bytes were written.
    pub live: bool,
    /// It has been jumped to through the jump cache.
    pub indirect: bool,
    /// Exits that are linked to this block, and some that have been (see `links`).
    pub incoming: Incoming,
    /// The first of its exits.
    pub exits: u32,
    /// Where in [`Blocks::notes`] it is said how it is copied for other addresses, and in how many bytes; none
    /// if it cannot be.
    pub notes: (u32, u16),
}

impl Block {
    /// The bytes covered in physical page `page`: offset and length.
    fn covered(&self, page: u64) -> (usize, usize) {
        let first = self.first as usize;
        let here = (self.bytes as usize).min(PAGE_SIZE - first);
        if page == self.key.phys >> 12 { (first, here) } else { (0, self.bytes as usize - here) }
    }
}

/// Why translated code returned to Rust.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum ExitKind {
    /// A TLB miss: the linear address is in R10.
    Access {
        size: u16,
        write: bool,
        /// Where the check was for a group of accesses, of which this is the first: the jump that
        /// is taken when they are not all on one page, to be linked to the block's twin. Unlinked it
        /// jumps to what stands behind it. Else 0.
        across: u32,
        /// It, or another access of its instruction, is the first of a group: if Rust executes the
        /// instruction, the others find nothing.
        leads: bool,
        decoded: DecodedId,
        /// Where the instruction goes on behind the check; 0 if it has another, and is tried again
        /// from its start.
        behind: u32,
        /// By how much R10 is more than it has to be there.
        moved: i32,
    },
    /// A direct jump that is not linked: its target, the jump to patch, and what it jumps to now.
    Branch { target: u64, mode: Mode, field: u32, stub: u32 },
    /// An indirect jump missed the jump cache; the target is in host R10.
    Indirect,
    /// SYSCALL or SYSRET is done, and its target is not in the jump cache; it is in host R10.
    FastCall,
    /// The instruction is executed by Rust.
    Interpret { decoded: DecodedId },
    /// The block was not begun: its virtual page is not known to hold its page any more, or the budget,
    /// which then is overdrawn, does not cover it.
    Head,
}

/// One place where translated code returns to Rust.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exit {
    pub block: BlockId,
    /// The instruction it belongs to.
    pub insn: u8,
    /// It has been linked at some time.
    pub joined: bool,
    pub kind: ExitKind,
}

/// Identity of a (virtual page, physical page, mode) triple; never 0.
pub type PageId = u32;

/// From here on, identities take four bytes of code each.
const FIRST_PAGE_ID: PageId = 256;
/// Identities of pages. Programs that start again and again have ever new ones.
const PAGE_IDS_MAX: usize = 1 << 17;

/// All translated code of a vCPU.
pub struct Blocks {
    pub list: Vec<Block>,
    pub exits: Vec<Exit>,
    /// Instructions of blocks, some of which are shared by copies.
    pub insns: Vec<Insn>,
    /// What depends on where blocks are, likewise (see `moves`).
    pub notes: Vec<u8>,
    /// Instructions that Rust executes; see [`DecodedId`].
    pub decoded: Vec<(Instruction, Class)>,
    /// Those that no exit has any more.
    free_decoded: Vec<DecodedId>,
    keys: Keys,
    pub pages: HashMap<u64, CodePage, BuildMix>,
    page_ids: HashMap<(u64, u64, Mode), PageId, BuildMix>,
    /// For many physical addresses at once, a bit: a block may begin at one of them. Reading a block asks at
    /// each of its instructions.
    begins: Box<[u64]>,
    /// First address after the thunks.
    start: u32,
    /// Where the next block and its cold part will stand.
    next: u32,
    next_cold: u32,
    /// Where the cold parts begin, and end.
    cold: u32,
    end: u32,
    /// How often everything was thrown away.
    pub flushes: u64,
}

impl Blocks {
    /// An empty cache between `start` and `end`.
    pub fn new(start: u32, end: u32) -> Self {
        let cold = start + (end - start) / COLD_SHARE.1 * (COLD_SHARE.1 - COLD_SHARE.0);
        let expected = ((end - start) / BLOCK_BYTES) as usize;
        let (list, exits) = (Vec::with_capacity(expected), Vec::with_capacity(expected * EXITS));
        want_large_pages(list.as_ptr(), list.capacity());
        want_large_pages(exits.as_ptr(), exits.capacity());
        Self {
            list,
            exits,
            insns: Vec::new(),
            notes: Vec::new(),
            decoded: Vec::new(),
            free_decoded: Vec::new(),
            keys: Keys::new(expected),
            pages: HashMap::default(),
            page_ids: HashMap::default(),
            begins: vec![0; BEGINS / 64].into_boxed_slice(),
            start,
            next: start,
            next_cold: cold,
            cold,
            end,
            flushes: 0,
        }
    }

    /// Where the next block and its cold part will stand.
    pub fn next_addresses(&self) -> (u32, u32) {
        (self.next, self.next_cold)
    }

    /// Whether a block of any size may still be added.
    pub fn has_room(&self) -> bool {
        let room = (self.cold - self.next).min(self.end - self.next_cold);
        room > 64 << 10 && self.page_ids.len() < PAGE_IDS_MAX && self.exits.len() < EXITS_MAX
    }

    /// One bit per 64 bytes of a physical page that some block covers.
    pub fn lines_of(&self, page: u64) -> u64 {
        self.pages.get(&page).map_or(0, |code| code.lines)
    }

    /// Whether a block may begin at a physical address; if not, none does.
    pub fn may_begin(&self, phys: u64) -> bool {
        let bit = begin_bit(phys);
        self.begins[bit / 64] >> (bit % 64) & 1 != 0
    }

    /// The block of that key.
    pub fn find(&self, key: &BlockKey) -> Option<BlockId> {
        self.keys.find(&self.list, key)
    }

    /// The newest block of that key but for the address.
    pub fn at_any_address(&self, key: &BlockKey) -> Option<BlockId> {
        let offset = key.virt % PAGE_SIZE as u64;
        let mut places = self.pages.get(&(key.phys >> 12))?.places(key.mode);
        places.find_map(|page| self.find(&BlockKey { virt: page << 12 | offset, ..*key }))
    }

    /// The block that an exit belongs to.
    pub fn source_of(&self, exit: ExitId) -> BlockKey {
        self.get(self.exits[exit.0 as usize].block).key
    }

    /// The exits of a block.
    pub fn exits_of(&self, id: BlockId) -> Range<u32> {
        let end = self.list.get(id.0 as usize + 1).map_or(self.exits.len() as u32, |next| next.exits);
        self.get(id).exits..end
    }

    /// Where a block's cold part begins.
    pub fn cold_start(&self, id: BlockId) -> u32 {
        id.0.checked_sub(1).map_or(self.cold, |before| self.list[before as usize].cold_end)
    }

    /// Where all cold parts begin.
    pub fn cold_parts(&self) -> u32 {
        self.cold
    }

    /// The block.
    pub fn get(&self, id: BlockId) -> &Block {
        &self.list[id.0 as usize]
    }

    /// Where the instructions of a block begin, and the last one ends.
    pub fn insns_of(&self, block: &Block) -> &[Insn] {
        &self.insns[block.insns as usize..][..=usize::from(block.count)]
    }

    /// The host address at which the translation of a block's instruction `k` begins.
    pub fn host_of(&self, id: BlockId, k: u8) -> u32 {
        let block = self.get(id);
        block.checked + u32::from(self.insns_of(block)[usize::from(k)].host)
    }

    /// The linear address of a block's instruction `k` (`k` may be the count: one past the last).
    pub fn virt_of(&self, id: BlockId, k: u8) -> u64 {
        let block = self.get(id);
        block.key.virt.wrapping_add_signed(self.insns_of(block)[usize::from(k)].delta.into())
    }

    /// Whether two blocks are of the very same instructions.
    pub fn same_instructions(&self, one: BlockId, other: BlockId) -> bool {
        let deltas = |id| self.insns_of(self.get(id)).iter().map(|insn| insn.delta);
        deltas(one).eq(deltas(other))
    }

    /// Keeps what has been noted of a block, for [`Block::notes`].
    pub fn keep_notes(&mut self, packed: &[u8]) -> (u32, u16) {
        let at = self.notes.len() as u32;
        self.notes.extend_from_slice(packed);
        (at, packed.len() as u16)
    }

    /// The identity of a page as seen at a virtual page in a mode.
    pub fn page_id(&mut self, virt_page: u64, phys_page: u64, mode: Mode) -> PageId {
        let next = self.page_ids.len() as u32 + FIRST_PAGE_ID;
        *self.page_ids.entry((virt_page, phys_page, mode)).or_insert(next)
    }

    /// The identity that the next block added will have.
    pub fn next_id(&self) -> BlockId {
        BlockId(self.list.len() as u32)
    }

    /// Adds a block whose code has been written at [`Self::next_addresses`].
    pub fn add(&mut self, block: Block) -> BlockId {
        let id = self.next_id();
        assert!(
            block.end <= self.cold && block.cold_end <= self.end,
            "whoever adds a block has looked for room"
        );
        self.next = ((block.end + OUT + 15) & !15) - OUT;
        self.next_cold = block.cold_end;
        let BlockKey { phys, virt, mode, .. } = block.key;
        self.cover(&block, phys >> 12).sheet(virt >> 12, mode).blocks.push(id);
        if let Some(second) = block.second_page {
            self.cover(&block, second).reaching.push(id);
        }
        let bit = begin_bit(block.key.phys);
        self.begins[bit / 64] |= 1 << (bit % 64);
        self.list.push(block);
        self.keys.add(&self.list, id);
        id
    }

    /// A physical page, of which the block covers some bytes.
    fn cover(&mut self, block: &Block, page: u64) -> &mut CodePage {
        let (offset, len) = block.covered(page);
        let code = self.pages.entry(page).or_default();
        code.lines |= lines(offset, len);
        code
    }

    /// Forgets the oldest sheet of the key's page, if there are too many.
    pub fn make_room_at(&mut self, arena: &mut Arena, key: &BlockKey) {
        let Some(page) = self.pages.get_mut(&(key.phys >> 12)) else { return };
        if let Some(oldest) = page.too_old(key.virt >> 12, key.mode) {
            mark!(AddressForgotten);
            page.take(oldest, key.mode).into_iter().for_each(|id| self.forget(arena, id));
        }
    }

    /// Keeps a decoded instruction for an exit.
    pub fn keep_decoded(&mut self, decoded: (Instruction, Class)) -> DecodedId {
        if let Some(free) = self.free_decoded.pop() {
            self.decoded[free.0 as usize] = decoded;
            return free;
        }
        self.decoded.push(decoded);
        DecodedId(self.decoded.len() as u32 - 1)
    }

    /// Puts an exit in the place of another one.
    pub fn put_exit(&mut self, at: u32, exit: Exit) {
        let old = std::mem::replace(&mut self.exits[at as usize], exit);
        if let ExitKind::Interpret { decoded } | ExitKind::Access { decoded, .. } = old.kind
            && decoded != DecodedId::NONE
        {
            self.free_decoded.push(decoded);
        }
    }

    /// Forgets the blocks of physical page `page` that overlap the written bytes. True if no
    /// block is left there.
    pub fn invalidate(&mut self, arena: &mut Arena, page: u64, offset: usize, len: usize) -> bool {
        let Some(code) = self.pages.get_mut(&page) else { return true };
        if code.lines & lines(offset, len) == 0 {
            return false;
        }
        let list = &self.list;
        let (mut gone, mut left) = (Vec::new(), 0);
        let empty = code.retain(|id| {
            let b = &list[id.0 as usize];
            let (first, covered) = b.covered(page);
            let hit = first < offset + len && offset < first + covered;
            if hit {
                gone.push(id);
            } else if b.live {
                left |= lines(first, covered);
            }
            !hit && b.live
        });
        code.lines = left;
        if empty {
            self.pages.remove(&page);
        }
        for id in gone {
            mark!(CodeOverwritten);
            self.forget(arena, id);
        }
        empty
    }

    /// Forgets the blocks that have an instruction at one of these linear addresses.
    pub fn forget_at(&mut self, arena: &mut Arena, addresses: &BTreeSet<u64>) {
        let on_page = |page: u64| addresses.range(page << 12..=page << 12 | 0xfff).next().is_some();
        let sheets = self.pages.values().flat_map(CodePage::sheets).filter(|sheet| on_page(sheet.virt_page));
        let ids: Vec<BlockId> = sheets.flat_map(|sheet| sheet.blocks.iter().copied()).collect();
        for id in ids {
            let block = self.get(id);
            let mut starts = (0..block.count).map(|k| self.virt_of(id, k));
            if block.live && starts.any(|virt| addresses.contains(&virt)) {
                self.forget(arena, id);
            }
        }
    }

    /// Unlinks and forgets one block. Its pages drop it when they are next looked at.
    pub fn forget(&mut self, arena: &mut Arena, id: BlockId) {
        let block = &mut self.list[id.0 as usize];
        if !block.live {
            return;
        }
        block.live = false;
        self.keys.remove(&self.list, id);
        for link in std::mem::take(&mut self.list[id.0 as usize].incoming) {
            self.unlink(arena, link.from());
        }
        self.leave_jump_caches(arena, id);
    }

    /// The block whose cold part holds host address `host`.
    pub fn at_cold(&self, host: u32) -> Option<&Block> {
        if host < self.cold {
            return None;
        }
        self.list.get(self.list.partition_point(|b| b.cold_end <= host))
    }

    /// The block that holds host address `host`, and which of its instructions.
    pub fn at_host(&self, host: u32) -> Option<(BlockId, u8)> {
        let after = self.list.partition_point(|b| b.checked <= host);
        let id = after.checked_sub(1)?;
        let b = &self.list[id];
        if host >= b.end {
            return None;
        }
        let insns = self.insns_of(b);
        let k = insns.partition_point(|i| b.checked + u32::from(i.host) <= host).checked_sub(1)?;
        Some((BlockId(id as u32), k.min(insns.len() - 1) as u8))
    }

    /// Throws everything away; returns the physical pages that held code.
    pub fn clear(&mut self) -> Vec<u64> {
        self.list.clear();
        self.exits.clear();
        self.insns.clear();
        self.notes.clear();
        self.decoded.clear();
        self.free_decoded.clear();
        self.keys.clear();
        self.page_ids.clear();
        self.begins.fill(0);
        (self.next, self.next_cold) = (self.start, self.cold);
        self.flushes += 1;
        self.pages.drain().map(|(page, _)| page).collect()
    }
}

/// The bit of [`Blocks::may_begin`] for a physical address.
fn begin_bit(phys: u64) -> usize {
    (phys.wrapping_mul(SPREAD) >> (64 - BEGINS.trailing_zeros())) as usize
}

fn lines(offset: usize, len: usize) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = offset >> 6;
    let last = (offset + len - 1) >> 6;
    (u64::MAX >> (63 - (last - first).min(63))) << first
}

/// A fast hash for keys that nobody can choose to our harm beyond slowness.
#[derive(Clone, Copy, Default)]
pub struct BuildMix;

/// See [`BuildMix`].
#[derive(Default)]
pub struct Mix(u64);

impl std::hash::BuildHasher for BuildMix {
    type Hasher = Mix;
    fn build_hasher(&self) -> Mix {
        Mix::default()
    }
}

impl std::hash::Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(n as u64);
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(n as u64);
    }
    fn write_u64(&mut self, n: u64) {
        let mixed = (self.0 ^ n).wrapping_add(1) as u128 * 0x9e37_79b9_7f4a_7c15;
        self.0 = (mixed >> 64) as u64 ^ mixed as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cover_exactly_the_bytes() {
        assert_eq!(lines(0, 1), 1);
        assert_eq!(lines(63, 2), 3);
        assert_eq!(lines(0, 4096), u64::MAX);
        assert_eq!(lines(4095, 1), 1 << 63);
        assert_eq!(lines(128, 64), 4);
    }

    #[test]
    fn modes_of_different_privilege_use_different_sets() {
        let kernel = Mode::of_bits(64);
        let user = kernel.with(Mode::USER);
        let lifted = kernel.with(Mode::AC);
        assert_eq!([kernel.set(), lifted.set(), user.set()], [0, 1, 2]);
        assert_eq!(user.with(Mode::MIRRORED).set(), 3);
        assert_eq!(Mode::of_bits(32).with(Mode::USER).set(), 4);
        assert_eq!(Mode::of_bits(16).set(), 5);
    }
}
