//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, with and without repeat prefixes
//! (Intel SDM vol. 2, "REP/REPE/REPZ/REPNE/REPNZ").
//!
//! Each iteration counts as one retired instruction, and a repeat with a count of zero as one. An
//! iteration that faults leaves RCX, RSI and RDI exactly as the ones before it left them.
//!
//! Two ways of doing iterations give the same result. *Single*: one element through the checked
//! accessors, for MMIO, ports, page-crossing elements, breakpoints. *Run*: as many elements as fit in
//! the pages of both operands, each translated once, on slices of RAM:
//!
//! ```text
//!        source page              destination page
//!     ┌───────┬───────────┐     ┌────┬──────────────┐
//!     │       │###########│ ──► │    │###########   │   run = min of both rests,
//!     └───────┴───────────┘     └────┴──────────────┘   the count and the caller's limit
//! ```
//!
//! A run must not outlive what it was translated by. So it is refused (and single iterations, each
//! with its own page walk, are done) where the destination page holds a page-table entry that either
//! operand or the instruction itself was reached through, or the instruction's own bytes. And as a single
//! iteration may have changed those, the instruction is left after it, to be fetched again. Stopping
//! at any iteration and starting again then gives the same result as not stopping, and a run can be
//! cut anywhere.
//!
//! Overlapping MOVS copies as the processor does, element by element in the direction of DF: with a
//! destination just ahead of its source a pattern repeats.

use crate::core::{Core, Intent, mask};
use crate::system::{Control, Done, Outcome, check_io, next_rip, operand_segment};
use crate::walk::{self, Access, Translation};
use crate::{debug, deliver};
use base::{GuestVirt, PAGE_SIZE};
use iced_x86::{Code, Instruction, OpKind};
use memory::Marks;
use x86::{Exception, SegmentIndex, flags, gpr};

/// How far a string instruction got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringOutcome {
    /// Iterations done, each to be counted as one instruction; at least 1 when finished.
    pub iterations: u64,
    /// Whether the instruction is complete, and RIP is the next one's. Otherwise RIP still is the
    /// instruction's own, and executing it again goes on.
    pub finished: bool,
    /// A device was accessed: interrupts and the horizon must be looked at again.
    pub recheck: bool,
}

/// An exception in the middle of a string instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringFault {
    /// What to deliver, at the instruction's own RIP.
    pub exception: Exception,
    /// Iterations done before it, to be counted.
    pub iterations: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Movs,
    Stos,
    Lods,
    Scas,
    Cmps,
    Ins,
    Outs,
}

/// What ends a repeat before its count does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// Not repeated.
    No,
    /// REP: the count alone.
    Count,
    /// REPE: a difference.
    WhileEqual,
    /// REPNE: an equality.
    WhileNotEqual,
}

/// A decoded string instruction.
struct Op {
    kind: Kind,
    size: usize,
    address_mask: u64,
    source: SegmentIndex,
    repeat: Repeat,
}

fn kind_and_size(code: Code) -> Option<(Kind, usize)> {
    Some(match code {
        Code::Movsb_m8_m8 => (Kind::Movs, 1),
        Code::Movsw_m16_m16 => (Kind::Movs, 2),
        Code::Movsd_m32_m32 => (Kind::Movs, 4),
        Code::Movsq_m64_m64 => (Kind::Movs, 8),
        Code::Stosb_m8_AL => (Kind::Stos, 1),
        Code::Stosw_m16_AX => (Kind::Stos, 2),
        Code::Stosd_m32_EAX => (Kind::Stos, 4),
        Code::Stosq_m64_RAX => (Kind::Stos, 8),
        Code::Lodsb_AL_m8 => (Kind::Lods, 1),
        Code::Lodsw_AX_m16 => (Kind::Lods, 2),
        Code::Lodsd_EAX_m32 => (Kind::Lods, 4),
        Code::Lodsq_RAX_m64 => (Kind::Lods, 8),
        Code::Scasb_AL_m8 => (Kind::Scas, 1),
        Code::Scasw_AX_m16 => (Kind::Scas, 2),
        Code::Scasd_EAX_m32 => (Kind::Scas, 4),
        Code::Scasq_RAX_m64 => (Kind::Scas, 8),
        Code::Cmpsb_m8_m8 => (Kind::Cmps, 1),
        Code::Cmpsw_m16_m16 => (Kind::Cmps, 2),
        Code::Cmpsd_m32_m32 => (Kind::Cmps, 4),
        Code::Cmpsq_m64_m64 => (Kind::Cmps, 8),
        Code::Insb_m8_DX => (Kind::Ins, 1),
        Code::Insw_m16_DX => (Kind::Ins, 2),
        Code::Insd_m32_DX => (Kind::Ins, 4),
        Code::Outsb_DX_m8 => (Kind::Outs, 1),
        Code::Outsw_DX_m16 => (Kind::Outs, 2),
        Code::Outsd_DX_m32 => (Kind::Outs, 4),
        _ => return None,
    })
}

/// Whether `code` is one of this module's instructions.
pub fn is_string(code: Code) -> bool {
    kind_and_size(code).is_some()
}

impl Op {
    fn new(core: &Core, instr: &Instruction) -> Option<Self> {
        let (kind, size) = kind_and_size(instr.code())?;
        let address_bits = instr
            .op_kinds()
            .find_map(|operand| match operand {
                OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(16),
                OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(32),
                OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(64),
                _ => None,
            })
            .unwrap_or(64);
        let compares = matches!(kind, Kind::Scas | Kind::Cmps);
        let repeat = match (instr.has_repne_prefix(), instr.has_repe_prefix(), compares) {
            (true, _, true) => Repeat::WhileNotEqual,
            (_, true, true) => Repeat::WhileEqual,
            // F2 repeats the others as F3 does.
            (true, _, false) | (_, true, false) => Repeat::Count,
            _ => Repeat::No,
        };
        let source = operand_segment(core, instr);
        Some(Self { kind, size, address_mask: mask(address_bits), source, repeat })
    }

    fn reads_source(&self) -> bool {
        matches!(self.kind, Kind::Movs | Kind::Lods | Kind::Cmps | Kind::Outs)
    }
    fn uses_destination(&self) -> bool {
        !matches!(self.kind, Kind::Lods | Kind::Outs)
    }
    fn writes_destination(&self) -> bool {
        matches!(self.kind, Kind::Movs | Kind::Stos | Kind::Ins)
    }
    fn touches_ports(&self) -> bool {
        matches!(self.kind, Kind::Ins | Kind::Outs)
    }
    fn count(&self, core: &Core) -> u64 {
        core.state.gpr[gpr::RCX] & self.address_mask
    }
    fn source_offset(&self, core: &Core) -> u64 {
        core.state.gpr[gpr::RSI] & self.address_mask
    }
    fn destination_offset(&self, core: &Core) -> u64 {
        core.state.gpr[gpr::RDI] & self.address_mask
    }

    /// Writes an address or count register as wide as addresses are.
    fn set(&self, register: &mut u64, value: u64) {
        *register = match self.address_mask {
            0xffff => *register & !0xffff | value & 0xffff,
            mask => value & mask,
        };
    }

    /// Moves the index registers and the count past `n` iterations.
    fn advance(&self, core: &mut Core, n: u64) {
        let distance = n.wrapping_mul(self.size as u64);
        let step = |value: u64, backward: bool| {
            if backward { value.wrapping_sub(distance) } else { value.wrapping_add(distance) }
        };
        let backward = core.state.rflags & flags::DF != 0;
        if self.reads_source() {
            let value = step(core.state.gpr[gpr::RSI], backward);
            self.set(&mut core.state.gpr[gpr::RSI], value);
        }
        if self.uses_destination() {
            let value = step(core.state.gpr[gpr::RDI], backward);
            self.set(&mut core.state.gpr[gpr::RDI], value);
        }
        if self.repeat != Repeat::No {
            let value = core.state.gpr[gpr::RCX].wrapping_sub(n);
            self.set(&mut core.state.gpr[gpr::RCX], value);
        }
    }

    /// Whether the repeat goes on after a comparison with these flags.
    fn goes_on(&self, core: &Core) -> bool {
        let equal = core.state.rflags & flags::ZF != 0;
        match self.repeat {
            Repeat::No => false,
            Repeat::Count => true,
            Repeat::WhileEqual => equal,
            Repeat::WhileNotEqual => !equal,
        }
    }
}

/// One iteration, for [`crate::system::execute`].
pub(crate) fn one(core: &mut Core, instr: &Instruction) -> Done {
    match string(core, instr, 1) {
        Ok(outcome) => Ok(Outcome {
            control: if outcome.finished { Control::Next } else { Control::Repeat },
            retired: outcome.iterations,
            recheck: outcome.recheck,
        }),
        Err(fault) => Err(fault.exception),
    }
}

/// Executes at most `max_iterations` (at least 1) iterations of a string instruction.
///
/// Stops early where a device access may have changed what happens next. RCX, RSI, RDI, RAX, the
/// status flags and RIP are exact afterwards, also on failure. Anything but a string instruction is
/// #UD.
pub fn string(
    core: &mut Core,
    instr: &Instruction,
    max_iterations: u64,
) -> Result<StringOutcome, StringFault> {
    debug_assert!(max_iterations > 0);
    let Some(op) = Op::new(core, instr).filter(|_| !instr.has_lock_prefix()) else {
        return Err(StringFault { exception: Exception::ud(), iterations: 0 });
    };
    let next = next_rip(core, instr);
    if op.repeat != Repeat::No && op.count(core) == 0 {
        core.state.rip = next;
        return Ok(StringOutcome { iterations: 1, finished: true, recheck: false });
    }
    let result = iterate(core, &op, max_iterations);
    core.elapsed = 0;
    if let Ok(StringOutcome { finished: true, .. }) = result {
        core.state.rip = next;
    }
    result
}

fn iterate(core: &mut Core, op: &Op, max: u64) -> Result<StringOutcome, StringFault> {
    let mut done = 0;
    let mut recheck = false;
    loop {
        core.elapsed = done;
        let wanted = if op.repeat == Repeat::No { 1 } else { op.count(core).min(max - done) };
        let (step, alone) = match run(core, op, wanted) {
            Some(step) => (step, false),
            None => {
                let horizon = core.bus.horizon();
                let step =
                    single(core, op).map_err(|exception| StringFault { exception, iterations: done })?;
                recheck |= op.touches_ports() || core.bus.horizon() != horizon;
                (step, true)
            }
        };
        done += step.iterations;
        let finished = op.repeat == Repeat::No || op.count(core) == 0 || step.ended;
        if finished || done >= max || alone || core.data_hits != 0 {
            return Ok(StringOutcome { iterations: done, finished, recheck });
        }
    }
}

/// Iterations done at once, and whether a comparison ended the repeat.
struct Step {
    iterations: u64,
    ended: bool,
}

/// One element through the checked accessors.
fn single(core: &mut Core, op: &Op) -> Result<Step, Exception> {
    let size = op.size;
    let port = core.state.gpr[gpr::RDX] as u16;
    if op.touches_ports() {
        check_io(core, port, size)?;
        core.data_hits |= debug::io_breakpoints(core.state, port, size);
    }
    let accumulator = core.state.gpr[gpr::RAX] & mask(size as u32 * 8);
    let mut ended = false;
    let source = |core: &mut Core| {
        let at = core.linear(op.source, op.source_offset(core), size, false)?;
        core.read_uint(at, size, Intent::Explicit)
    };
    let destination = |core: &mut Core, write: bool| {
        core.linear(SegmentIndex::Es, op.destination_offset(core), size, write)
    };
    match op.kind {
        Kind::Movs => {
            let value = source(core)?;
            let at = destination(core, true)?;
            core.write_uint(at, size, value, Intent::Explicit)?;
        }
        Kind::Stos => {
            let at = destination(core, true)?;
            core.write_uint(at, size, accumulator, Intent::Explicit)?;
        }
        Kind::Lods => {
            let value = source(core)?;
            load_accumulator(core, size, value);
        }
        Kind::Scas => {
            let at = destination(core, false)?;
            let value = core.read_uint(at, size, Intent::Explicit)?;
            compare(core, size, accumulator, value);
            ended = !op.goes_on(core);
        }
        Kind::Cmps => {
            let left = source(core)?;
            let at = destination(core, false)?;
            let right = core.read_uint(at, size, Intent::Explicit)?;
            compare(core, size, left, right);
            ended = !op.goes_on(core);
        }
        Kind::Ins => {
            let at = destination(core, true)?;
            core.check_alignment(at, size)?;
            core.check_write(at, size, Intent::Explicit)?;
            let position = core.at();
            let value = core.bus.io_read(position, port, size);
            core.write_uint(at, size, value as u64, Intent::Explicit)?;
        }
        Kind::Outs => {
            let value = source(core)?;
            let position = core.at();
            core.bus.io_write(position, port, size, value as u32);
        }
    }
    op.advance(core, 1);
    Ok(Step { iterations: 1, ended })
}

fn load_accumulator(core: &mut Core, size: usize, value: u64) {
    let rax = &mut core.state.gpr[gpr::RAX];
    *rax = match size {
        1 => *rax & !0xff | value,
        2 => *rax & !0xffff | value,
        _ => value,
    };
}

fn compare(core: &mut Core, size: usize, left: u64, right: u64) {
    core.state.rflags = core.state.rflags & !flags::STATUS | subtract_flags(size, left, right);
}

/// The status flags of `left - right` for operands of `size` bytes.
fn subtract_flags(size: usize, left: u64, right: u64) -> u64 {
    let bits = size as u32 * 8;
    let result = left.wrapping_sub(right) & mask(bits);
    let sign = 1u64 << (bits - 1);
    let mut out = 0;
    let mut set = |flag: u64, on: bool| out |= if on { flag } else { 0 };
    set(flags::CF, left < right);
    set(flags::PF, (result as u8).count_ones().is_multiple_of(2));
    set(flags::AF, (left ^ right ^ result) & 0x10 != 0);
    set(flags::ZF, result == 0);
    set(flags::SF, result & sign != 0);
    set(flags::OF, (left ^ right) & (left ^ result) & sign != 0);
    out
}

/// One operand's stretch of a run: the offset of its lowest byte in a page of RAM.
struct Stretch {
    page: usize,
    offset: usize,
    translation: Translation,
}

/// As many elements at once as fit in the pages of both operands, at most `wanted`. `None` where
/// that is not possible or would not be exact; nothing has happened then but Accessed and Dirty
/// bits of pages that the first iteration accesses anyway.
fn run(core: &mut Core, op: &Op, wanted: u64) -> Option<Step> {
    let alignment = crate::core::alignment_checked(core.state);
    if wanted < 2 || op.touches_ports() || alignment || debug::breakpoints_enabled(core.state) {
        return None;
    }
    let backward = core.state.rflags & flags::DF != 0;
    let mut n = wanted;
    let source = (op.source, op.source_offset(core), false);
    let destination = (SegmentIndex::Es, op.destination_offset(core), op.writes_destination());
    if op.reads_source() {
        n = n.min(elements_in_page(core, op, source, backward)?);
    }
    if op.uses_destination() {
        n = n.min(elements_in_page(core, op, destination, backward)?);
    }
    if n < 2 {
        return None;
    }
    let from = if op.reads_source() { Some(stretch(core, op, source, n, backward)?) } else { None };
    let to = if op.uses_destination() { Some(stretch(core, op, destination, n, backward)?) } else { None };
    if op.writes_destination() && writes_what_it_runs_by(core, from.as_ref(), to.as_ref()?) {
        return None;
    }
    let step = match op.kind {
        Kind::Movs => {
            copy(core, &from?, &to?, op.size, n as usize, backward);
            Step { iterations: n, ended: false }
        }
        Kind::Stos => {
            fill(core, &to?, op.size, n as usize);
            Step { iterations: n, ended: false }
        }
        Kind::Lods => {
            let last = element(core, &from?, op.size, n as usize, n as usize - 1, backward);
            load_accumulator(core, op.size, last);
            Step { iterations: n, ended: false }
        }
        Kind::Scas | Kind::Cmps => scan(core, op, from.as_ref(), &to?, n as usize, backward),
        Kind::Ins | Kind::Outs => return None,
    };
    op.advance(core, step.iterations);
    Some(step)
}

/// A segment, the offset of the next element in it, and whether it is written.
type Operand = (SegmentIndex, u64, bool);

/// How many elements from the next one on lie in its page (0 when it crosses), before addresses
/// wrap; `None` where segmentation refuses.
fn elements_in_page(core: &Core, op: &Op, operand: Operand, backward: bool) -> Option<u64> {
    let (segment, offset, write) = operand;
    let size = op.size as u64;
    let linear = core.linear(segment, offset, op.size, write).ok()?;
    let in_page = linear & (PAGE_SIZE as u64 - 1);
    if in_page + size > PAGE_SIZE as u64 {
        return Some(0);
    }
    Some(if backward {
        (in_page / size + 1).min((offset / size).saturating_add(1))
    } else {
        let room = ((PAGE_SIZE as u64 - in_page) / size).max(1);
        // Elements whose last byte is still below the wrap of the offset.
        let before_wrap = (op.address_mask - offset) / size;
        room.min(before_wrap.saturating_add(1))
    })
}

/// Translates the stretch of `n` elements of an operand; `None` for what is not RAM, and for a page
/// fault, which the single way then raises.
fn stretch(core: &mut Core, op: &Op, operand: Operand, n: u64, backward: bool) -> Option<Stretch> {
    let (segment, offset, write) = operand;
    let len = n as usize * op.size;
    let lowest = if backward { offset - (n - 1) * op.size as u64 } else { offset };
    // Limits of segments outside 64-bit mode, for the whole stretch.
    let linear = core.linear(segment, lowest, len, write).ok()?;
    let access = Access::data(core.state, write);
    let translation = core.translate(linear, access).ok()?;
    let page = core.bus.ram().page_index(translation.phys)?;
    if core.bus.ram().marks(page).any(Marks::WATCHED) {
        return None;
    }
    let offset = translation.phys.page_offset();
    (offset + len <= PAGE_SIZE).then_some(Stretch { page, offset, translation })
}

/// Whether the destination page holds entries that the operands or the instruction were reached
/// through, or the instruction itself.
fn writes_what_it_runs_by(core: &mut Core, from: Option<&Stretch>, to: &Stretch) -> bool {
    let target = to.translation.phys.page();
    let holds = |t: &Translation| t.entries[..t.levels].iter().any(|entry| entry.page() == target);
    if holds(&to.translation) || from.is_some_and(|s| holds(&s.translation)) {
        return true;
    }
    // An instruction has at most fifteen bytes, so it lies in at most two pages.
    let first = deliver::instruction_address(core);
    let last = first.offset(14);
    let mut runs_from = |at| probe_code(core, at).is_none_or(|t| holds(&t) || t.phys.page() == target);
    runs_from(first) || last.page() != first.page() && runs_from(last)
}

fn probe_code(core: &mut Core, at: GuestVirt) -> Option<Translation> {
    let state = &*core.state;
    walk::probe(state, core.bus.ram(), at)
}

fn bytes<'r>(core: &'r mut Core, s: &Stretch, len: usize) -> &'r [u8] {
    &core.bus.ram().page_bytes(s.page)[s.offset..s.offset + len]
}

/// The element that iteration `i` of `n` accesses.
fn element(core: &mut Core, s: &Stretch, size: usize, n: usize, i: usize, backward: bool) -> u64 {
    let place = if backward { n - 1 - i } else { i };
    let slice = &bytes(core, s, n * size)[place * size..(place + 1) * size];
    little_endian(slice)
}

fn little_endian(slice: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..slice.len()].copy_from_slice(slice);
    u64::from_le_bytes(word)
}

/// Clearing pages is the commonest STOS by far and needs no image built.
static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];

fn fill(core: &mut Core, to: &Stretch, size: usize, n: usize) {
    let value = core.state.gpr[gpr::RAX].to_le_bytes();
    let len = n * size;
    if value[..size].iter().all(|&b| b == 0) {
        core.bus.ram().write_page(to.page, to.offset, &ZEROS[..len]);
        return;
    }
    let mut buffer = [0; PAGE_SIZE];
    let image = &mut buffer[..len];
    if value[..size].iter().all(|&b| b == value[0]) {
        image.fill(value[0]);
    } else {
        image.chunks_exact_mut(size).for_each(|chunk| chunk.copy_from_slice(&value[..size]));
    }
    core.bus.ram().write_page(to.page, to.offset, image);
}

fn copy(core: &mut Core, from: &Stretch, to: &Stretch, size: usize, n: usize, backward: bool) {
    let len = n * size;
    // Where the destination runs into source bytes not yet read, only as many elements as lie
    // between the two can be moved at once.
    let distance = if from.page != to.page {
        len
    } else if backward {
        from.offset.checked_sub(to.offset).filter(|&d| d > 0).unwrap_or(len)
    } else {
        to.offset.checked_sub(from.offset).filter(|&d| d > 0).unwrap_or(len)
    };
    let piece = (distance / size).clamp(1, n) * size;
    // Clearing a whole page's buffer would cost more than most copies, which are short.
    let (mut short, mut whole);
    let buffer: &mut [u8] = if piece <= 256 {
        short = [0; 256];
        &mut short
    } else {
        whole = [0; PAGE_SIZE];
        &mut whole
    };
    let ram = core.bus.ram();
    let mut done = 0;
    while done < len {
        let now = piece.min(len - done);
        let at = if backward { len - done - now } else { done };
        buffer[..now].copy_from_slice(&ram.page_bytes(from.page)[from.offset + at..from.offset + at + now]);
        ram.write_page(to.page, to.offset + at, &buffer[..now]);
        done += now;
    }
}

/// SCAS and CMPS: up to the first element that ends the repeat.
fn scan(core: &mut Core, op: &Op, from: Option<&Stretch>, to: &Stretch, n: usize, backward: bool) -> Step {
    let size = op.size;
    let len = n * size;
    let accumulator = core.state.gpr[gpr::RAX] & mask(size as u32 * 8);
    let ram = core.bus.ram();
    let right = &ram.page_bytes(to.page)[to.offset..to.offset + len];
    let left = from.map(|s| &ram.page_bytes(s.page)[s.offset..s.offset + len]);
    let mut last = (0, 0);
    let mut iterations = 0;
    let mut ended = false;
    for i in 0..n {
        let place = if backward { n - 1 - i } else { i } * size;
        let b = little_endian(&right[place..place + size]);
        let a = left.map_or(accumulator, |left| little_endian(&left[place..place + size]));
        last = (a, b);
        iterations += 1;
        ended = match op.repeat {
            Repeat::WhileEqual => a != b,
            Repeat::WhileNotEqual => a == b,
            _ => false,
        };
        if ended {
            break;
        }
    }
    compare(core, size, last.0, last.1);
    Step { iterations, ended }
}
