//! What of a block's code depends on where it stands, and what for.
//!
//! While a block is emitted, the assembler takes a *note* of each such field, of one of these [`Kind`]s.
//! A block that is copied (see [`super::copies`]), or kept from run to run ([`super::kept`]), is mended there:
//!
//! ```text
//!   Outside   distance to a thunk or to hot data               less what the code has moved by
//!   Across    distance from the code to its cold part          plus the difference of what both have moved by
//!   Own       address in the code itself                       plus what the code has moved by
//!   Exit      number of a way out                              the copy has its own, in the same order
//!   Virt      guest address that follows from RIP, of eight    plus the slide between the two addresses
//!             bytes in a program and of four in the kernel
//!   Slot      as Outside, of the TLB slot of such an address   the slot of the address it has now
//!   Page      as Outside, of the block's code-page slot        likewise
//!   PageId    the page's identity, negated                     that of the page where it is now
//! ```
//!
//! Code that depends on its guest address in any other way is *pinned*, and never copied for another one.

use super::blocks::{BlockKey, Mode};
use std::ops::Range;

/// Where blocks that are copied may be: where every address that follows from RIP takes 64 bits.
const ADDRESSES: Range<u64> = 1 << 33..1 << 47;

/// Where the kernel has its code and what that refers to: addresses that are 32 bits sign-extended.
const KERNEL: Range<u64> = 0xffff_ffff_8000_2000..0xffff_ffff_ffff_e000;

/// See the module's head.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[allow(missing_docs)] // the table above
pub enum Kind {
    Outside,
    Across,
    Own,
    Exit,
    Virt,
    Slot,
    Page,
    PageId,
}

impl Kind {
    const ALL: [Kind; 8] = [
        Kind::Outside,
        Kind::Across,
        Kind::Own,
        Kind::Exit,
        Kind::Virt,
        Kind::Slot,
        Kind::Page,
        Kind::PageId,
    ];
}

/// Notes about one piece of code while it is emitted.
#[derive(Default)]
pub struct Notes {
    /// Where the field begins, and its kind.
    list: Vec<(u32, Kind)>,
    pinned: bool,
    /// There are guest addresses of so many bytes.
    virt64: bool,
    virt32: bool,
    /// There is an operand at an address of 32 bits that is the same anywhere.
    fixed32: bool,
}

impl Notes {
    /// The field of four bytes, or eight for a guest address, at `at` from the code's first byte.
    pub fn add(&mut self, at: usize, kind: Kind) {
        self.list.push((at as u32, kind));
    }

    /// The last note is of another kind.
    pub fn last_is(&mut self, kind: Kind) {
        self.list.last_mut().expect("a field has just been emitted").1 = kind;
    }

    /// The code is for one guest address.
    pub fn pin(&mut self) {
        self.pinned = true;
    }

    /// The field of eight bytes at `at` is a guest address.
    pub fn add_virt64(&mut self, at: usize) {
        self.virt64 = true;
        self.add(at, Kind::Virt);
    }

    /// That of four bytes is one, sign-extended.
    pub fn add_virt32(&mut self, at: usize) {
        self.virt32 = true;
        self.add(at, Kind::Virt);
    }

    /// An operand has an address that is known, that follows from where the code is or is the same anywhere, and that
    /// takes 32 bits or more.
    pub fn found_constant(&mut self, relative: bool, is_short: bool) {
        self.fixed32 |= !relative && is_short;
        self.pinned |= !relative && !is_short;
    }
}

/// Whether code of `key` with these notes, about it and its cold part, serves at other guest addresses.
pub fn slides(key: &BlockKey, code: &Notes, cold: &Notes) -> bool {
    let either = |has: fn(&Notes) -> bool| has(code) || has(cold);
    let (virt64, virt32) = (either(|notes| notes.virt64), either(|notes| notes.virt32));
    let programs = is_movable(key) && !virt32;
    let kernels = is_kernels(key) && !virt64 && !(virt32 && either(|notes| notes.fixed32));
    (programs || kernels) && !either(|notes| notes.pinned)
}

/// What to mend in a copy of a block: notes about its code, and behind them those about its cold part.
///
/// Two bytes for how many bytes are about the code itself. Then a byte for each: the kind in the upper bits,
/// and how far it is from the one before; a distance of [`FAR`] only moves on by that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moves<'a>(&'a [u8]);

const FAR: u32 = 31;
const HEAD: usize = size_of::<u16>();

/// The notes about a block's parts, packed; `None` if there are too many.
pub fn packed(code: &mut Notes, cold: &mut Notes) -> Option<Vec<u8>> {
    let mut packed = Vec::with_capacity(HEAD + code.list.len() + cold.list.len() + 8);
    packed.extend([0; HEAD]);
    pack(&mut code.list, &mut packed);
    let in_code = u16::try_from(packed.len() - HEAD).ok()?;
    packed[..HEAD].copy_from_slice(&in_code.to_le_bytes());
    pack(&mut cold.list, &mut packed);
    u16::try_from(packed.len()).is_ok().then_some(packed)
}

impl<'a> Moves<'a> {
    /// What has been [`packed`]; `None` if these are no such bytes.
    pub fn of(packed: &'a [u8]) -> Option<Self> {
        let head = packed.first_chunk::<HEAD>()?;
        (usize::from(u16::from_le_bytes(*head)) <= packed.len() - HEAD).then_some(Self(packed))
    }

    /// Fields of the code: where each begins, and its kind.
    pub fn code(self) -> impl Iterator<Item = (u32, Kind)> + use<'a> {
        unpack(self.parts().0)
    }

    /// Those of its cold part.
    pub fn cold(self) -> impl Iterator<Item = (u32, Kind)> + use<'a> {
        unpack(self.parts().1)
    }

    fn parts(self) -> (&'a [u8], &'a [u8]) {
        let (head, packed) = self.0.split_at(HEAD);
        packed.split_at(usize::from(u16::from_le_bytes([head[0], head[1]])))
    }
}

fn pack(notes: &mut [(u32, Kind)], packed: &mut Vec<u8>) {
    // Jumps to the cold part are noted when that is reached.
    notes.sort_unstable();
    let mut last = 0;
    for (at, kind) in notes {
        let mut away = *at - last;
        while away >= FAR {
            packed.push(FAR as u8);
            away -= FAR;
        }
        packed.push((*kind as u8) << 5 | away as u8);
        last = *at;
    }
}

fn unpack(packed: &[u8]) -> impl Iterator<Item = (u32, Kind)> {
    let mut at = 0;
    packed.iter().filter_map(move |byte| {
        let away = u32::from(*byte) & FAR;
        at += away;
        (away != FAR).then(|| (at, Kind::ALL[usize::from(byte >> 5)]))
    })
}

/// Whether blocks of that key can be copies, and be copied.
pub fn is_movable(key: &BlockKey) -> bool {
    key.mode.is64() && key.is_whole() && key.mode.has(Mode::USER) && ADDRESSES.contains(&key.virt)
}

/// Whether blocks of that key are the kernel's, which may have been at another address when it started before.
pub fn is_kernels(key: &BlockKey) -> bool {
    key.mode.is64() && key.is_whole() && !key.mode.has(Mode::USER) && KERNEL.contains(&key.virt)
}

/// Whether an address may be in 32-bit fields of the kernel's code, with some bytes before and behind it.
pub fn is_in_kernel(virt: u64) -> bool {
    KERNEL.contains(&virt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_come_back_in_the_order_of_the_code() {
        let mut notes = Notes::default();
        let list =
            [(500, Kind::Across), (3, Kind::Page), (30, Kind::Outside), (61, Kind::Virt), (64, Kind::Exit)];
        list.iter().for_each(|(at, kind)| notes.add(*at, *kind));
        let mut packed = Vec::new();
        pack(&mut notes.list, &mut packed);
        let mut sorted = list.map(|(at, kind)| (at as u32, kind));
        sorted.sort();
        assert_eq!(unpack(&packed).collect::<Vec<_>>(), sorted);
    }
}
