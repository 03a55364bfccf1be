//! From the kernel's ORC tables to call frame information that gdb understands.
//!
//! Linux is built without frame pointers; it unwinds its own stacks with ORC tables
//! (Documentation/arch/x86/orc-unwinder.rst): for each range of code, how the stack pointer of the
//! caller follows from a register, and where RBP was saved. That is what DWARF's call frame
//! information says too (DWARF 4, 6.4), so each row is translated, one FDE for each function:
//!
//! ```text
//! orc_unwind_ip  i32 for each row: the address where it begins, relative to the i32's own
//! orc_unwind     i16 sp_offset, i16 bp_offset, u16: sp_reg:4 bp_reg:4 type:2 end:1 (up to 6.3)
//!                                                   sp_reg:4 bp_reg:4 type:3 signal:1 (since 6.4)
//! ```
//!
//! Where an interrupt or exception left the registers on the stack (`struct pt_regs`), all of them
//! are recovered.

use crate::memory::u16_at;
use crate::modules::Module;
use crate::{Extents, Symbols};

pub(crate) const ROW_BYTES: usize = 6;
const ROWS_MAX: usize = 4 << 20;

/// DWARF numbers of registers (System V ABI for x86-64, figure 3.36).
const RBP: u8 = 6;
const RSP: u8 = 7;
const RETURN: u8 = 16;

/// `struct pt_regs`: DWARF numbers of the registers in it, in order.
const SAVED: [u8; 15] = [15, 14, 13, 12, RBP, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5];
const IP_OFFSET: i64 = 128;
const SP_OFFSET: i64 = 152;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Call,
    Regs,
    PartialRegs,
    End,
}

#[derive(Clone, Copy)]
struct Row {
    at: u64,
    sp_offset: i64,
    bp_offset: i64,
    sp_reg: u8,
    bp_reg: u8,
    kind: Kind,
}

/// The tables of a kernel or module as they are in memory.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    /// Where `places` is.
    pub at: u64,
    /// Of each row the distance of its address from the distance itself, an i32.
    pub places: Vec<u8>,
    /// As many rows.
    pub rows: Vec<u8>,
}

impl Tables {
    fn of_kernel(extents: &Extents, symbols: &Symbols) -> Option<Self> {
        let start = symbols.address("__start_orc_unwind")?;
        let end = symbols.address("__stop_orc_unwind")?;
        let at = symbols.address("__start_orc_unwind_ip")?;
        let count = (end.checked_sub(start)? / ROW_BYTES as u64) as usize;
        if count > ROWS_MAX {
            return None;
        }
        let rows = extents.bytes(start, count * ROW_BYTES)?.to_vec();
        Some(Self { at, places: extents.bytes(at, 4 * count)?.to_vec(), rows })
    }

    /// Calls are by far the most: their number tells which numbering this is.
    fn is_new(&self) -> bool {
        let calls = self.rows.chunks_exact(ROW_BYTES).filter(|row| flags(row) >> 8 & 7 == 2).count();
        calls > self.rows.len() / ROW_BYTES / 2
    }

    fn addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.places.chunks_exact(4).enumerate().map(|(i, place)| {
            let distance = i32::from_le_bytes(place.try_into().unwrap_or_default());
            self.at.wrapping_add(4 * i as u64).wrapping_add(i64::from(distance) as u64)
        })
    }

    /// Whether all rows are of addresses in this range and in order.
    pub fn is_about(&self, range: std::ops::Range<u64>) -> bool {
        let addresses: Vec<u64> = self.addresses().collect();
        addresses.iter().all(|at| range.contains(at)) && addresses.is_sorted()
    }

    fn decode(&self, new: bool) -> Vec<Row> {
        let row = |(at, row): (u64, &[u8])| Row {
            at,
            sp_offset: i64::from(u16_at(row, 0).unwrap_or(0) as i16),
            bp_offset: i64::from(u16_at(row, 2).unwrap_or(0) as i16),
            sp_reg: (flags(row) & 15) as u8,
            bp_reg: (flags(row) >> 4 & 15) as u8,
            kind: kind(flags(row), new),
        };
        let rows: Vec<Row> = self.addresses().zip(self.rows.chunks_exact(ROW_BYTES)).map(row).collect();
        if rows.is_sorted_by_key(|row| row.at) { rows } else { Vec::new() }
    }
}

fn flags(row: &[u8]) -> u16 {
    u16_at(row, 4).unwrap_or(0)
}

/// The contents of a `.debug_frame` section for a kernel and its modules; empty when the kernel has no
/// ORC tables.
pub fn debug_frame(extents: &Extents, symbols: &Symbols, modules: &[Module]) -> Vec<u8> {
    let Some(kernel) = Tables::of_kernel(extents, symbols) else { return Vec::new() };
    let new = kernel.is_new();
    let rows = kernel.decode(new);
    if rows.is_empty() {
        return Vec::new();
    }
    let mut section = Vec::new();
    let cies = [cie(&mut section, false), cie(&mut section, true)];
    functions(&mut section, cies, symbols, &rows);
    for module in modules {
        let rows = module.orc.as_ref().map(|tables| tables.decode(new));
        functions(&mut section, cies, &module.symbols, &rows.unwrap_or_default());
    }
    section
}

/// Appends an entry for each function; `cies` are the common ones of plain and interrupted frames.
fn functions(section: &mut Vec<u8>, cies: [u32; 2], symbols: &Symbols, rows: &[Row]) {
    let mut starts: Vec<u64> =
        symbols.all().iter().filter(|symbol| symbol.is_code()).map(|symbol| symbol.address).collect();
    // The last row is where code ends.
    starts.extend(rows.last().map(|row| row.at).filter(|end| starts.last().is_some_and(|last| last < end)));
    starts.dedup();
    for pair in starts.windows(2) {
        let first = rows.partition_point(|row| row.at <= pair[0]).saturating_sub(1);
        let end = rows.partition_point(|row| row.at < pair[1]);
        let of_function = rows.get(first..end).unwrap_or_default();
        let bytes = pair[1] - pair[0];
        if of_function.is_empty() || bytes > u64::from(u32::MAX) || of_function[0].at > pair[0] {
            continue;
        }
        let interrupted = of_function.iter().any(|row| matches!(row.kind, Kind::Regs | Kind::PartialRegs));
        fde(section, cies[usize::from(interrupted)], interrupted, (pair[0], bytes), of_function);
    }
}

fn kind(flags: u16, new: bool) -> Kind {
    if flags & 15 == 0 {
        return Kind::End;
    }
    match (new, flags >> 8 & if new { 7 } else { 3 }) {
        (false, 0 | 3) | (true, 2) => Kind::Call,
        (false, 1) | (true, 3) => Kind::Regs,
        (false, 2) | (true, 4) => Kind::PartialRegs,
        _ => Kind::End,
    }
}

fn uleb(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn sleb(out: &mut Vec<u8>, mut value: i64) {
    loop {
        let byte = value as u8 & 0x7f;
        value >>= 7;
        if value == 0 && byte & 0x40 == 0 || value == -1 && byte & 0x40 != 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// Appends an entry with its length, padded with DW_CFA_nop; where it is.
fn append(section: &mut Vec<u8>, mut entry: Vec<u8>) -> u32 {
    entry.resize((entry.len() + 4).next_multiple_of(8) - 4, 0);
    let at = section.len() as u32;
    section.extend((entry.len() as u32).to_le_bytes());
    section.extend(entry);
    at
}

/// A common information entry (DWARF 4, 6.4.1); `signal` for frames that were interrupted, whose
/// address is that of the next instruction and not behind a call.
fn cie(section: &mut Vec<u8>, signal: bool) -> u32 {
    let mut entry = u32::MAX.to_le_bytes().to_vec();
    entry.push(1);
    entry.extend(if signal { &b"zS\0"[..] } else { &b"\0"[..] });
    uleb(&mut entry, 1);
    sleb(&mut entry, -8);
    entry.push(RETURN);
    if signal {
        uleb(&mut entry, 0);
    }
    append(section, entry)
}

/// A frame description entry for `range.1` bytes from `range.0`.
fn fde(section: &mut Vec<u8>, cie: u32, signal: bool, range: (u64, u64), rows: &[Row]) {
    const ADVANCE4: u8 = 4;
    const REMEMBER: u8 = 0x0a;
    const RESTORE: u8 = 0x0b;
    let mut entry = cie.to_le_bytes().to_vec();
    entry.extend(range.0.to_le_bytes());
    entry.extend(range.1.to_le_bytes());
    if signal {
        uleb(&mut entry, 0);
    }
    entry.push(REMEMBER);
    let mut at = range.0;
    for row in rows {
        if row.at > at {
            entry.push(ADVANCE4);
            entry.extend(((row.at - at) as u32).to_le_bytes());
            at = row.at;
        }
        entry.extend([RESTORE, REMEMBER]);
        rules(&mut entry, row);
    }
    append(section, entry);
}

/// DW_OP_bregN.
fn base(register: u8, offset: i64) -> Vec<u8> {
    let mut expression = vec![0x70 + register];
    sleb(&mut expression, offset);
    expression
}

fn block(out: &mut Vec<u8>, opcode: u8, register: Option<u8>, expression: &[u8]) {
    out.push(opcode);
    out.extend(register);
    uleb(out, expression.len() as u64);
    out.extend(expression);
}

const DEREF: u8 = 0x06;
const DEF_CFA_EXPRESSION: u8 = 0x0f;
const EXPRESSION: u8 = 0x10;

/// The stack pointer that a row describes, as an expression.
fn stack(row: &Row) -> Option<Vec<u8>> {
    let plain = |register| Some(base(register, row.sp_offset));
    match row.sp_reg {
        2 => plain(1), // RDX
        3 => plain(5), // RDI
        4 => plain(RBP),
        5 => plain(RSP),
        6 => plain(10), // R10
        7 => plain(13), // R13
        8 => plain(RBP).map(|mut expression| {
            expression.push(DEREF);
            expression
        }),
        9 => {
            let mut expression = base(RSP, 0);
            expression.extend([DEREF, 0x11]); // DW_OP_consts
            sleb(&mut expression, row.sp_offset);
            expression.push(0x22); // DW_OP_plus
            Some(expression)
        }
        _ => None,
    }
}

/// The rules of a row.
fn rules(out: &mut Vec<u8>, row: &Row) {
    let Some(stack) = stack(row).filter(|_| row.kind != Kind::End) else {
        out.extend([0x0c, RSP, 8, 0x07, RETURN]); // DW_CFA_def_cfa; DW_CFA_undefined: the outermost
        return;
    };
    let simple = match row.sp_reg {
        4 => Some(RBP),
        5 => Some(RSP),
        _ => None,
    };
    if row.kind != Kind::Call {
        return registers(out, row, &stack);
    }
    match simple.filter(|_| row.sp_offset >= 0) {
        Some(register) => {
            out.extend([0x0c, register]); // DW_CFA_def_cfa
            uleb(out, row.sp_offset as u64);
        }
        None => block(out, DEF_CFA_EXPRESSION, None, &stack),
    }
    out.extend([0x80 | RETURN, 1]); // DW_CFA_offset
    match row.bp_reg {
        1 => {
            // DW_CFA_expression starts with the CFA on its stack.
            let mut expression = vec![0x11];
            sleb(&mut expression, row.bp_offset);
            expression.push(0x22);
            block(out, EXPRESSION, Some(RBP), &expression);
        }
        4 => block(out, EXPRESSION, Some(RBP), &base(RBP, row.bp_offset)),
        _ => out.extend([0x08, RBP]), // DW_CFA_same_value
    }
}

/// The rules where an exception left registers on the stack: all, or just what the processor pushed.
fn registers(out: &mut Vec<u8>, row: &Row, stack: &[u8]) {
    let frame = if row.kind == Kind::Regs { IP_OFFSET } else { 0 };
    let at = |offset: i64| {
        let mut expression = stack.to_vec();
        expression.push(0x23); // DW_OP_plus_uconst
        uleb(&mut expression, offset as u64);
        expression
    };
    let mut old_stack = at(frame + SP_OFFSET - IP_OFFSET);
    old_stack.push(DEREF);
    block(out, DEF_CFA_EXPRESSION, None, &old_stack);
    block(out, EXPRESSION, Some(RETURN), &at(frame));
    if row.kind == Kind::Regs {
        for (i, register) in SAVED.iter().enumerate() {
            block(out, EXPRESSION, Some(*register), &at(8 * i as i64));
        }
    }
}
