//! Stores of the kernel to page tables that emitted code makes by itself.
//!
//! A page with a table that a walk came by is marked, and no write translation leads to it (see [`super::tables`]): each
//! store is looked at from Rust. When programs start and end that is every fourth exit, and most of these stores
//! are *in vain*: the entry was not present, or no walk has come by it since it was last written, so nothing that is cached is
//! concerned. To see that takes two bits. So Rust, having met such a store, shows emitted code the page, the bits
//! of the table's entries, and how many stores it may make before Rust is asked again (which retires tables that are
//! written all the time).
//!
//! A [`TablePage`] is found by the kernel's address of the page, and is a write translation in all respects but that it
//! is for such stores only: it goes when those go ([`super::tlb::Tlb`]). The search of the kernel's spill table for
//! writes looks for it last, and goes on *behind* the access's check, with what that would have left in its
//! registers, so that the next store looks again. How far behind the place of retry that is stands in the upper byte of the exit's number.

use super::asm::{Asm, Mem, Reg, Width};
use super::blocks::EXIT_BITS;
use super::hot::{Field, KERNEL};
use super::thunks::restore_flags;
use std::mem::offset_of;

/// Pages shown at a time.
pub const TABLE_PAGES: usize = 512;

/// A page of RAM with a page table. All zero: none.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct TablePage {
    /// As in [`super::hot::SpillEntry`].
    pub key: u64,
    /// Likewise.
    pub addend: u64,
    /// Host address of 512 bits: the entries by which a walk has come.
    pub used: u64,
    /// How many stores may still be made, and how many might.
    pub left: u32,
    pub given: u32,
}

/// The slot of a virtual page among those shown.
pub const fn slot(page: u64) -> usize {
    page as usize % TABLE_PAGES
}

/// Emits the last part of the search for a page that the kernel writes to: the address is in R10, the exit's number in
/// ECX, that of the last byte in `Hot::last_byte`; RAX and the flags have been put aside. Goes on behind itself if there is none.
pub fn emit(asm: &mut Asm, base: u32) {
    const { assert!(TABLE_PAGES == 512 && size_of::<TablePage>() == 32) };
    let field = |offset: u32| Mem::abs(base + offset);
    let kernel = base + Field::set(KERNEL);
    let pages = kernel + Field::TABLE_PAGES;
    let part = |offset: usize| Mem::base(Reg::R11, pages as i32 + offset as i32);

    asm.mov(Width::W64, Reg::R11, Reg::R10);
    asm.bytes(&[0x49, 0xc1, 0xeb, 12]); // shr r11, 12
    asm.bytes(&[0x41, 0x81, 0xe3, 0xff, 0x01, 0, 0]); // and r11d, 511
    asm.bytes(&[0x41, 0xc1, 0xe3, 5]); // shl r11d, 5
    asm.mov(Width::W64, Reg::RAX, Reg::R10);
    asm.bytes(&[0x48, 0x25, 0, 0xf0, 0xff, 0xff]); // and rax, -4096
    asm.op_load_add(Reg::RAX, Mem::abs(kernel + Field::generation(true)));
    asm.op_cmp(Reg::RAX, part(offset_of!(TablePage, key)));
    let another = asm.jcc_forward(5);
    asm.bytes(&[0x89, 0xc8, 0xc1, 0xe8, EXIT_BITS as u8]); // mov eax, ecx; shr eax, 24
    let unfit = asm.jcc_forward(4);
    asm.load(Width::W64, Reg::RAX, field(Field::LAST_BYTE));
    asm.bytes(&[0x4c, 0x31, 0xd0, 0x48, 0xc1, 0xe8, 3]); // xor rax, r10; shr rax, 3
    let two_words = asm.jcc_forward(5);
    asm.load(Width::W32, Reg::RAX, part(offset_of!(TablePage, left)));
    asm.bytes(&[0x85, 0xc0]); // test eax, eax
    let enough = asm.jcc_forward(4);

    asm.store(Width::W64, field(Field::EXIT), Reg::RCX);
    asm.mov(Width::W64, Reg::RCX, Reg::R10);
    asm.bytes(&[0x48, 0x83, 0xe1, 0xf8]); // and rcx, -8
    asm.op_load_add(Reg::RCX, part(offset_of!(TablePage, addend)));
    asm.bytes(&[0xf6, 0x01, 1]); // test byte [rcx], 1: the entry is present
    let absent = asm.jcc_forward(4);
    asm.mov(Width::W64, Reg::RAX, Reg::R10);
    asm.bytes(&[0x48, 0xc1, 0xe8, 3, 0x25, 0xff, 0x01, 0, 0]); // shr rax, 3; and eax, 511
    asm.load(Width::W64, Reg::RCX, part(offset_of!(TablePage, used)));
    asm.bytes(&[0x48, 0x0f, 0xa3, 0x01]); // bt [rcx], rax
    let used = asm.jcc_forward(2);
    asm.bind32(absent);

    asm.load(Width::W32, Reg::RAX, part(offset_of!(TablePage, left)));
    asm.lea(Width::W32, Reg::RAX, Mem::base(Reg::RAX, -1));
    asm.store(Width::W32, part(offset_of!(TablePage, left)), Reg::RAX);
    // The check leaves the number of a slot of the direct-mapped table, from which the addend is then loaded.
    asm.bytes(&[0x41, 0xc1, 0xeb, 3]); // shr r11d, 3
    let addends = (kernel + Field::data(true) + Field::ADDEND) as i32;
    let from_there = pages as i32 + offset_of!(TablePage, addend) as i32 - addends;
    assert!(from_there % 8 == 0);
    asm.lea(Width::W64, Reg::R11, Mem::base(Reg::R11, from_there / 8));
    asm.load(Width::W32, Reg::RAX, field(Field::EXIT));
    asm.bytes(&[0xc1, 0xe8, EXIT_BITS as u8]); // shr eax, 24
    asm.op_load_add(Reg::RAX, field(Field::RETRY));
    asm.store(Width::W64, field(Field::RETRY), Reg::RAX);
    restore_flags(asm, base);
    asm.jmp_mem(field(Field::RETRY));

    asm.bind32(used);
    asm.load(Width::W64, Reg::RCX, field(Field::EXIT));
    [another, unfit, two_words, enough].into_iter().for_each(|jump| asm.bind32(jump));
}
