//! Blocks that are kept from run to run.
//!
//! A guest that starts executes what it executed when it started before, so its translations are kept on
//! disk ([`translations`]), and a block is looked for there before it is translated. It is found by its mode, where
//! it begins in its page, and the first guest bytes; it is taken if all of its guest bytes are what they were, and settles
//! as a copy does (see [`super::copies`]): its notes say what depends on where its code stands, and a block that can
//! be copied for another address can be at another one than in the run before, as the kernel's code can. That takes less
//! than half of the time of translating it.
//!
//! Nothing here is believed because it was once so. Guest bytes are compared, not hashed; what the mirror granted is
//! asked for again; and what code relies on without noting it, where the arena is, its doors, and the translator
//! itself, is in the fingerprint by which files are told apart. Of what translation decides by its surroundings only
//! speed may differ: where a block ends, and which of its accesses are checked.
//!
//! Kept are whole blocks of one page, as they were when just translated, without their jumps linked. With debug
//! assertions each one that comes back is compared with its translation.

use super::blocks::{Block, BlockId, BlockKey, Blocks, ExitKind, Incoming, Insn, Mode};
use super::copies::{Origin, Permits};
use super::moves::{Kind, Moves, is_in_kernel, is_kernels, is_movable};
use super::translate::{Place, Translated};
use super::vcpu::Vcpu;
use crate::Bus;
use crate::marks::mark;
use base::PAGE_SIZE;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::path::Path;
use translations::Translations;

/// Guest bytes that a block is found by.
const FOUND_BY: usize = 16;

/// An instruction's two numbers.
const INSN_BYTES: usize = 4;

/// What was asked of the mirror while a block was read.
#[derive(Default)]
pub struct Granted {
    /// Addresses that mirrored code accesses without a guard.
    pub claims: SmallVec<[u64; 4]>,
    /// Some were refused, or an instruction was to be checked: another time the block may be another one.
    pub special: bool,
}

/// A kept block.
#[derive(Serialize, Deserialize)]
struct Entry<'a> {
    virt: u64,
    mode: Mode,
    count: u8,
    grouped: bool,
    /// It can be at other addresses.
    slides: bool,
    special: bool,
    /// Where it stood: its code, its cold part, and what [`Block`] has of them.
    from: [u32; 2],
    entry: u32,
    checked: u32,
    end: u32,
    cold_end: u32,
    exits: u32,
    first: u16,
    /// Of each, both its numbers.
    insns: &'a [u8],
    ways: Cow<'a, [(u8, ExitKind)]>,
    claims: Cow<'a, [u64]>,
    notes: &'a [u8],
    guest: &'a [u8],
    code: &'a [u8],
    cold: &'a [u8],
}

impl Entry<'_> {
    /// The block as it was, with its instructions from the `insns`th on.
    fn block(&self, key: BlockKey, insns: u32) -> Block {
        Block {
            key,
            count: self.count,
            entry: self.entry,
            checked: self.checked,
            end: self.end,
            cold_end: self.cold_end,
            insns,
            first: self.first,
            bytes: self.guest.len() as u16,
            second_page: None,
            grouped: self.grouped,
            live: true,
            indirect: false,
            incoming: Incoming::new(),
            exits: self.exits,
            notes: (0, 0),
        }
    }

    fn insns(&self) -> impl Iterator<Item = Insn> {
        let number = |bytes: &[u8]| u16::from_le_bytes([bytes[0], bytes[1]]);
        let insns = self.insns.chunks_exact(INSN_BYTES);
        insns.map(move |insn| Insn { delta: number(insn) as i16, host: number(&insn[2..]) })
    }

    /// Whether it is the kernel's, and all guest addresses that are in its code still fit where they are.
    fn stays_in_kernel(&self, key: &BlockKey, slide: u64, moves: Moves) -> bool {
        let stays = |bytes: &[u8], at: u32| {
            let field = bytes.get(at as usize..).and_then(|bytes| bytes.first_chunk());
            let virt = field.map(|field| i64::from(i32::from_le_bytes(*field)) as u64);
            virt.is_some_and(|virt| is_in_kernel(virt) && is_in_kernel(virt.wrapping_add(slide)))
        };
        let code = moves.code().map(|(at, kind)| (self.code, at, kind));
        let cold = moves.cold().map(|(at, kind)| (self.cold, at, kind));
        is_kernels(key) && code.chain(cold).all(|(bytes, at, kind)| kind != Kind::Virt || stays(bytes, at))
    }

    /// By how much its address changes if it can be the block of a key; `page` is what the key's page holds.
    fn slide_to(&self, key: &BlockKey, page: &[u8], moves: Moves) -> Option<u64> {
        let slide = key.virt.wrapping_sub(self.virt);
        let (first, len) = (usize::from(self.first), self.guest.len());
        let fits = self.mode == key.mode
            && (slide == 0 || self.slides && (is_movable(key) || self.stays_in_kernel(key, slide, moves)))
            && slide.is_multiple_of(PAGE_SIZE as u64)
            && page.get(first..first + len) == Some(self.guest);
        fits.then_some(slide)
    }
}

/// See the module's head.
pub(super) struct Kept {
    translations: Translations,
    entry: Vec<u8>,
    /// Whether what comes back is compared with its translation.
    compare: bool,
}

/// What the block of a key, in a page that holds `page`, is found by.
fn hash(key: &BlockKey, page: &[u8]) -> u64 {
    let at = key.phys as usize % PAGE_SIZE;
    let mut found_by = [0; FOUND_BY];
    let bytes = &page[at..PAGE_SIZE.min(at + FOUND_BY)];
    found_by[..bytes.len()].copy_from_slice(bytes);
    let mut hasher = super::blocks::Mix::default();
    hasher.write_u64(u64::from(key.mode.0) << 32 | at as u64);
    hasher.write(&found_by);
    hasher.finish()
}

impl Kept {
    /// Keeps a block that has just been translated from `page`, and is not linked yet; the last exits of `blocks` are its
    /// own.
    pub fn keep(
        &mut self,
        translated: &Translated,
        page: &[u8],
        place: &Place,
        blocks: &Blocks,
        granted: &Granted,
    ) {
        let Translated { block, code, cold, notes: Some(notes), slides } = translated else { return };
        if !block.key.is_whole() || block.second_page.is_some() {
            return;
        }
        let own = &blocks.exits[block.exits as usize..];
        let ways: SmallVec<[_; 16]> = own.iter().map(|exit| (exit.insn, exit.kind)).collect();
        let mut insns: SmallVec<[u8; 256]> = SmallVec::new();
        for insn in blocks.insns_of(block) {
            insns.extend_from_slice(&insn.delta.to_le_bytes());
            insns.extend_from_slice(&insn.host.to_le_bytes());
        }
        let entry = Entry {
            virt: block.key.virt,
            mode: block.key.mode,
            count: block.count,
            grouped: block.grouped,
            slides: *slides,
            special: granted.special,
            from: [place.origin, place.cold],
            entry: block.entry,
            checked: block.checked,
            end: block.end,
            cold_end: block.cold_end,
            exits: block.exits,
            first: block.first,
            insns: &insns,
            ways: Cow::Borrowed(&ways),
            claims: Cow::Borrowed(&granted.claims),
            notes,
            guest: &page[usize::from(block.first)..][..usize::from(block.bytes)],
            code,
            cold,
        };
        let mut bytes = std::mem::take(&mut self.entry);
        bytes.clear();
        if let Ok(bytes) = postcard::to_extend(&entry, bytes) {
            self.translations.add(hash(&block.key, page), &bytes);
            self.entry = bytes;
        }
    }
}

impl Vcpu {
    /// Has blocks be looked for in a folder, and kept there for later runs.
    ///
    /// # Errors
    /// The folder cannot be used; everything is translated then.
    pub fn keep_translations(&mut self, folder: &Path) -> io::Result<()> {
        let translations = Translations::open(folder, self.fingerprint())?;
        self.kept = Some(Kept { translations, entry: Vec::new(), compare: cfg!(debug_assertions) });
        Ok(())
    }

    /// For tests: has each block that comes back be compared with its translation.
    pub fn compare_kept(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.compare = true;
        }
    }

    /// Of all that translated code relies on without saying so.
    fn fingerprint(&self) -> u64 {
        let (start, first) = (self.arena.code_start(), self.blocks.next_addresses().0);
        let mut hasher = DefaultHasher::new();
        hasher.write(env!("TRANSLATOR").as_bytes());
        [self.arena.base(), self.arena.code_end(), first, self.blocks.cold_parts()]
            .iter()
            .for_each(|address| hasher.write_u32(*address));
        hasher.write(self.arena.code_at(start, (self.bounce_code - start) as usize));
        hasher.write_u8(u8::from(self.translator.is_v3()));
        hasher.finish()
    }

    /// The block of `key`, which is in page `index` of RAM, if it has been kept; together with those of its page that it
    /// leads to, as a copy comes (see [`super::copies`]).
    pub(super) fn kept_block(&mut self, bus: &mut dyn Bus, key: BlockKey, index: usize) -> Option<BlockId> {
        let first = self.take_kept(bus, key, index)?;
        self.bring_along(first, |vcpu, key| vcpu.take_kept(bus, key, index));
        Some(first)
    }

    fn take_kept(&mut self, bus: &mut dyn Bus, key: BlockKey, index: usize) -> Option<BlockId> {
        let Self { kept: Some(kept), blocks, arena, tlb, mirroring, .. } = self else { return None };
        if !key.is_whole() || !self.debugging.breakpoints.is_empty() || !blocks.has_room() {
            return None;
        }
        let page = bus.ram().page_bytes(index);
        let (block, page_id, special) = kept.translations.find(hash(&key, page), |bytes| {
            let entry: Entry = postcard::from_bytes(bytes).ok()?;
            let moves = Moves::of(entry.notes)?;
            let slide = entry.slide_to(&key, page, moves)?;
            let starts = entry.insns().take(usize::from(entry.count));
            let permits = Permits { mirror: &mut tlb.mirror, checked: &mirroring.checked };
            if permits.has_checked(starts.map(|insn| key.virt.wrapping_add_signed(insn.delta.into()))) {
                return None;
            }
            // One that does not follow from where the code is, is below 4 GiB.
            let claimed =
                |virt: u64| if virt > u64::from(u32::MAX) { virt.wrapping_add(slide) } else { virt };
            if !entry.claims.iter().all(|virt| permits.mirror.claim(claimed(*virt))) {
                return None;
            }
            blocks.make_room_at(arena, &key);
            let page_id = blocks.page_id(key.virt >> 12, key.phys >> 12, key.mode);
            let (to, to_cold) = blocks.next_addresses();
            arena.write_code(to, entry.code);
            arena.write_code(to_cold, entry.cold);
            let mut block = entry.block(key, blocks.insns.len() as u32);
            blocks.insns.extend(entry.insns());
            if entry.slides && is_movable(&key) {
                block.notes = blocks.keep_notes(entry.notes);
            }
            let origin = Origin { parts: entry.from, moves, slide, page_id };
            Some((blocks.settle(arena, block, &origin, &entry.ways), page_id, entry.special))
        })?;
        mark!(BlockKept);
        self.statistics.blocks_kept += 1;
        if self.kept.as_ref().is_some_and(|kept| kept.compare) && !special {
            let compared = self.compare(bus.ram(), block, page_id);
            compared.expect("a kept block is its translation");
        }
        Some(block)
    }
}
