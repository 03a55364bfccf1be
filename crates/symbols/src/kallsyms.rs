//! Finding and decoding kallsyms.
//!
//! `scripts/kallsyms.c` of the kernel writes these tables, each aligned to 8 bytes, in this order
//! up to 6.3 (later ones move `offsets` and `relative_base` behind `token_index`):
//!
//! ```text
//! offsets        i32 for each symbol: a value >= 0 is absolute (a per-CPU offset),
//!                a negative one means relative_base - 1 - value
//! relative_base  u64; relocated with the kernel, so in memory it tells where KASLR put it
//! num_syms       u32
//! names          for each symbol its length in tokens (one byte, or two with bit 7 set in the
//!                first since 6.1), then that many bytes, each the number of a token
//! markers        u32 for every 256th symbol: where it is in names
//! seqs_of_names  3 bytes for each symbol: the order of names (6.2, and 6.1 since some update; later
//!                ones have it at the very end)
//! token_table    256 strings, each ended by a zero
//! token_index    u16 for each token: where it is in token_table
//! ```
//!
//! No symbol says where they are, so they are recognized by their form. A token that stands for one
//! character has that character's number, and digits are in use everywhere: the table of tokens
//! contains the ten strings "0" to "9" in a row. From a place like that, `token_index` behind the
//! table says where the table begins, and must agree with the table in all its 256 places. From
//! there the other tables are found backwards; the markers must be met by walking the names.

use crate::memory::{u16_at, u32_at, u64_at};
use crate::{Extents, Symbol};

const DIGITS: &[u8] = b"0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00";
const TOKENS: usize = 256;
const SYMBOLS_MAX: usize = 4 << 20;
/// Lengths of a symbol's name, in tokens.
const TOKENS_MAX: usize = 0x3fff;
/// Lowest address a kernel's own symbol has.
const KERNEL_MIN: u64 = 0xffff_0000_0000_0000;

/// The symbols in the first place that has the form of the tables.
pub(crate) fn find(extents: &Extents) -> Option<Vec<Symbol>> {
    for (_, piece) in extents.pieces() {
        let mut from = 0;
        while let Some(at) = position(&piece[from..], DIGITS) {
            if let Some(symbols) = decode(piece, from + at) {
                return Some(symbols);
            }
            from += at + 1;
        }
    }
    None
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    // A pair of the needle's bytes is rare enough to look for first.
    let (first, rest) = (needle[0], &needle[1..]);
    let mut from = 0;
    loop {
        let at = from + haystack[from..].iter().position(|byte| *byte == first)?;
        if haystack[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
}

const fn align8(at: usize) -> usize {
    at.next_multiple_of(8)
}

struct Tokens<'a> {
    table: &'a [u8],
    index: Vec<usize>,
    start: usize,
    /// Behind `token_index`.
    end: usize,
}

/// The token table that has the digits at `digits`.
fn tokens(piece: &[u8], digits: usize) -> Option<Tokens<'_>> {
    let mut end = digits;
    for _ in usize::from(b'0')..TOKENS {
        end += piece.get(end..)?.iter().take(TOKENS_MAX).position(|byte| *byte == 0)? + 1;
    }
    // The padding depends on the address, which is aligned as the piece is: pages.
    let index_at = align8(end);
    let index: Vec<usize> =
        (0..TOKENS).map(|i| u16_at(piece, index_at + 2 * i).map(usize::from)).collect::<Option<_>>()?;
    let start = digits.checked_sub(index[usize::from(b'0')])?;
    let table = piece.get(start..end)?;
    let agrees = index[0] == 0
        && index.windows(2).all(|pair| pair[0] < pair[1])
        && index[1..].iter().all(|at| table.get(at - 1) == Some(&0));
    (agrees && start % 8 == 0).then_some(Tokens { table, index, start, end: index_at + 2 * TOKENS })
}

impl Tokens<'_> {
    fn token(&self, number: u8) -> &[u8] {
        let from = &self.table[self.index[usize::from(number)]..];
        &from[..from.iter().position(|byte| *byte == 0).unwrap_or(0)]
    }
}

/// The `count` markers that are at `at`, if that is what is there.
fn markers_at(piece: &[u8], at: usize, count: usize) -> Option<Vec<u32>> {
    // The first is 0 and all others rise; most places fail at once.
    if u32_at(piece, at)? != 0 || count < 2 || u32_at(piece, at + 4)? < 2 * TOKENS as u32 {
        return None;
    }
    let values: Vec<u32> = (0..count).map(|i| u32_at(piece, at + 4 * i)).collect::<Option<_>>()?;
    values.windows(2).all(|pair| pair[0] < pair[1]).then_some(values)
}

/// The markers in front of the token table: where they start, and their values.
fn markers(piece: &[u8], tokens: usize) -> Option<(usize, Vec<u32>)> {
    // Directly in front of it, where they are as many as rise from a 0.
    let rising = |end: usize| {
        let mut at = end.checked_sub(4)?;
        while u32_at(piece, at.checked_sub(4)?)? < u32_at(piece, at)? {
            at -= 4;
        }
        markers_at(piece, at, (end - at) / 4).map(|values| (at, values))
    };
    rising(tokens).or_else(|| rising(tokens.checked_sub(4)?)).or_else(|| markers_before_order(piece, tokens))
}

/// The markers when `seqs_of_names` is between them and the token table. Its length says how many
/// symbols there are, up to padding, and so how many markers.
fn markers_before_order(piece: &[u8], tokens: usize) -> Option<(usize, Vec<u32>)> {
    (8..tokens.min(3 * SYMBOLS_MAX)).step_by(8).find_map(|gap| {
        let (fewest, most) = ((gap - 7) / 3, gap / 3);
        let counts = [fewest.div_ceil(TOKENS), most.div_ceil(TOKENS)];
        counts.into_iter().find_map(|count| {
            let at = (tokens - gap).checked_sub(align8(4 * count))?;
            markers_at(piece, at, count).map(|values| (at, values))
        })
    })
}

/// A name's length in tokens and where its tokens are.
fn name_at(names: &[u8], at: usize) -> Option<(usize, usize)> {
    let low = *names.get(at)?;
    if low & 0x80 == 0 {
        return Some((usize::from(low), at + 1));
    }
    Some((usize::from(low & 0x7f) | usize::from(*names.get(at + 1)?) << 7, at + 2))
}

/// Where each of `count` names is; `None` unless all of them are there and meet the markers.
fn walk(names: &[u8], count: usize, markers: &[u32]) -> Option<Vec<(usize, usize)>> {
    let mut at = 0;
    let mut all = Vec::new();
    for i in 0..count {
        if i % TOKENS == 0 && markers.get(i / TOKENS).copied() != u32::try_from(at).ok() {
            return None;
        }
        let (length, tokens) = name_at(names, at)?;
        if length == 0 {
            return None;
        }
        all.push((length, tokens));
        at = tokens + length;
    }
    (at <= names.len() && names.len() - at < 8).then_some(all)
}

fn decode(piece: &[u8], digits: usize) -> Option<Vec<Symbol>> {
    let tokens = tokens(piece, digits)?;
    let (markers_at, markers) = markers(piece, tokens.start)?;
    let last = usize::try_from(*markers.last()?).ok()?;
    // The last up to 256 names lie behind the last marker.
    let highest = markers_at.checked_sub(last)? & !7;
    let lowest = highest.saturating_sub(TOKENS * (TOKENS_MAX + 2)).max(8);
    for names_at in (lowest..=highest).rev().step_by(8).take_while(|at| *at >= lowest) {
        let count = u64_at(piece, names_at - 8).and_then(|count| usize::try_from(count).ok())?;
        if count == 0 || count > SYMBOLS_MAX || count.div_ceil(TOKENS) != markers.len() {
            continue;
        }
        let Some(names) = walk(&piece[names_at..markers_at], count, &markers) else { continue };
        let before = || addresses_before(piece, names_at - 8, count);
        let addresses = before().or_else(|| addresses_behind(piece, tokens.end, count))?;
        let named = names.iter().zip(addresses).filter_map(|((length, at), address)| {
            symbol(&tokens, &piece[names_at..markers_at], *at, *length, address)
        });
        return Some(named.collect());
    }
    None
}

fn symbol(tokens: &Tokens<'_>, names: &[u8], at: usize, length: usize, address: u64) -> Option<Symbol> {
    let text: Vec<u8> =
        names.get(at..at + length)?.iter().flat_map(|number| tokens.token(*number)).copied().collect();
    let (kind, name) = text.split_first()?;
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    Some(Symbol { address, kind: char::from(*kind), name: name.to_owned() })
}

/// The addresses when offsets and base stand before `num_syms` (up to 6.3).
fn addresses_before(piece: &[u8], num_syms: usize, count: usize) -> Option<Vec<u64>> {
    let base_at = num_syms.checked_sub(8)?;
    addresses(piece, base_at.checked_sub(align8(4 * count))?, base_at, count)
}

/// The addresses when they stand behind `token_index` (since 6.4).
fn addresses_behind(piece: &[u8], end: usize, count: usize) -> Option<Vec<u64>> {
    let offsets = align8(end);
    addresses(piece, offsets, offsets + align8(4 * count), count)
}

fn addresses(piece: &[u8], offsets: usize, base_at: usize, count: usize) -> Option<Vec<u64>> {
    let base = u64_at(piece, base_at).filter(|base| *base >= KERNEL_MIN)?;
    let raw: Vec<i32> =
        (0..count).map(|i| u32_at(piece, offsets + 4 * i).map(|raw| raw as i32)).collect::<Option<_>>()?;
    // With absolute per-CPU symbols (what x86 builds up to 6.14), or without any negative one all
    // are relative.
    let all_relative = raw.iter().all(|raw| *raw >= 0);
    let address = |raw: &i32| match raw {
        raw if all_relative => base.wrapping_add(*raw as u64),
        raw if *raw >= 0 => *raw as u64,
        raw => base.wrapping_sub(1).wrapping_sub(i64::from(*raw) as u64),
    };
    let all: Vec<u64> = raw.iter().map(address).collect();
    all.windows(2).all(|pair| pair[0] <= pair[1]).then_some(all)
}
