//! Are two outcomes the same?

use crate::case::{Case, Mode};
use crate::outcome::{Ending, Fault, Outcome, vector};
use crate::state::{FXSAVE, GPR_NAMES, flag};
use crate::vendor;
use iced_x86::{Instruction, Mnemonic, Register};
use std::fmt::{self, Write as _};

/// The bits of MXCSR that every processor has.
const MXCSR_BITS: u32 = 0xffff;
/// Linux gives programs no addresses from here on (TASK_SIZE_MAX).
const PROGRAM_END: u64 = 0x7fff_ffff_f000;

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Strictness {
    /// Compare flags the manual leaves undefined too. Translated code runs on the same host, so
    /// they must agree; off only where outcomes of different hosts are compared.
    pub undefined_flags: bool,
}

impl Default for Strictness {
    fn default() -> Self {
        Self { undefined_flags: true }
    }
}

/// How two outcomes of one case differ: one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// `what: expected …, got …`.
    pub differences: Vec<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.differences.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

/// Differences listed at most.
const DIFFERENCES_MAX: usize = 40;

/// Compares everything, undefined flags included.
pub fn compare(case: &Case, expected: &Outcome, got: &Outcome) -> Option<Mismatch> {
    compare_with(case, expected, got, Strictness::default())
}

/// Compares as `strictness` says. `expected` is the host's outcome.
pub fn compare_with(
    case: &Case,
    expected: &Outcome,
    got: &Outcome,
    strictness: Strictness,
) -> Option<Mismatch> {
    // The host may have an MXCSR bit that the model has not, and loaded it.
    if expected.is_discarded() || expected.registers.mxcsr & !MXCSR_BITS != 0 {
        return None;
    }
    if vendor::leaves_open(case, expected, got) {
        return None;
    }
    let mut lines = Lines(Vec::new());
    lines.check(&"ending", Show(ending(case, expected)), Show(ending(case, got)));
    lines.check(&"rip", Hex(expected.rip), Hex(got.rip));
    lines.check(&"retired", Hex(expected.retired), Hex(got.retired));
    if stopped_half_way(case, expected) {
        return lines.mismatch();
    }
    let (a, b) = (&expected.registers, &got.registers);
    let (count, mask) = match case.mode {
        Mode::Long => (16, u64::MAX),
        Mode::Compatibility => (8, u64::from(u32::MAX)),
    };
    for (register, name) in GPR_NAMES.iter().enumerate().take(count) {
        lines.check(name, Hex(a.gpr[register] & mask), Hex(b.gpr[register] & mask));
    }
    let mut flags = !flag::RF;
    if !strictness.undefined_flags {
        flags &= !case.undefined_flags(expected.retired);
    }
    lines.check(&"rflags", Hex(a.rflags & flags), Hex(b.rflags & flags));
    lines.check(&"mxcsr", Hex(a.mxcsr.into()), Hex(b.mxcsr.into()));
    for register in 0..16 {
        lines.check(&format_args!("ymm{register}"), Wide(&a.ymm[register]), Wide(&b.ymm[register]));
    }
    // Some processors enter MMX mode although MASKMOVQ's store faults.
    let entered = matches!(expected.ending, Ending::Fault(_))
        && faulted_in(case, expected).is_some_and(|faulted| faulted.mnemonic() == Mnemonic::Maskmovq);
    if !entered {
        compare_x87(&a.x87, &b.x87, &mut lines);
    }
    compare_memory(expected, got, &mut lines);
    lines.mismatch()
}

fn compare_x87(a: &[u8; FXSAVE], b: &[u8; FXSAVE], lines: &mut Lines) {
    let word = |image: &[u8; FXSAVE], at: usize| Hex(u16::from_le_bytes([image[at], image[at + 1]]).into());
    for (at, name) in [(0, "fcw"), (2, "fsw"), (4, "ftw")] {
        lines.check(&name, word(a, at), word(b, at));
    }
    for register in 0..8 {
        let at = 32 + register * 16;
        let name = format_args!("st{register}");
        lines.check(&name, Wide(&a[at..at + 10]), Wide(&b[at..at + 10]));
    }
}

fn compare_memory(expected: &Outcome, got: &Outcome, lines: &mut Lines) {
    for (frame, bytes) in &expected.memory {
        let Some((_, other)) = got.memory.iter().find(|(name, _)| name == frame) else {
            lines.0.push(format!("memory: page {frame:?} is missing"));
            continue;
        };
        if bytes == other {
            continue;
        }
        for (offset, (a, b)) in bytes.iter().zip(other.iter()).enumerate() {
            if a != b && lines.0.len() < DIFFERENCES_MAX {
                let at = frame.address() + offset as u64;
                lines.0.push(format!("memory {at:#x} ({frame:?}): expected {a:02x}, got {b:02x}"));
            }
        }
    }
}

/// The fault as two sides must agree on it.
///
/// Linux shows programs every fault on an address beyond theirs as a protection violation, so as
/// not to tell which are mapped. Where an instruction makes several accesses, which one comes first
/// is the processor's affair. Some want canonical form of an address before FS's or GS's base is
/// added, too.
fn ending(case: &Case, outcome: &Outcome) -> Ending {
    let Ending::Fault(mut fault) = outcome.ending else { return outcome.ending };
    let order = faulted_in(case, outcome).map_or(Order::Defined, |faulted| order(&faulted));
    let memory = matches!(fault.vector, vector::PF | vector::GP | vector::SS);
    if memory && (order == Order::Free || order == Order::InPage && case.mode == Mode::Compatibility) {
        return Ending::Fault(Fault { vector: vector::PF, error_code: 0, cr2: 0 });
    }
    // Whether an operand with masked elements wraps around 4 GiB, or exceeds a segment's limit
    // there, differs between generations of processors.
    let wraps = fault.vector != vector::PF || fault.cr2 < 32 || fault.cr2.abs_diff(1 << 32) <= 32;
    if memory && order == Order::Masked && wraps {
        return Ending::Fault(Fault { vector: vector::PF, error_code: 0, cr2: 0 });
    }
    let based = faulted_in(case, outcome).is_some_and(|faulted| {
        matches!(faulted.memory_segment(), Register::FS | Register::GS) && case.mode == Mode::Long
    });
    if fault.vector == vector::PF && fault.cr2 >= PROGRAM_END && based {
        return Ending::Fault(Fault { vector: vector::GP, error_code: 0, cr2: 0 });
    }
    if fault.vector == vector::PF {
        if fault.cr2 >= PROGRAM_END {
            fault.error_code |= 1;
        }
        if order == Order::InPage {
            fault.cr2 &= !0xfff;
        }
    }
    Ending::Fault(fault)
}

/// In which order an instruction touches its memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    /// As the manual says, or in one access.
    Defined,
    /// Any order inside its operand; where that wraps around a segment, a limit may be hit or not.
    InPage,
    /// Element by element, some of which are masked out.
    Masked,
    /// Any order at all, and what was done before the fault stays done.
    Free,
}

fn order(instruction: &Instruction) -> Order {
    use Mnemonic::*;
    match instruction.mnemonic() {
        Fldenv | Fnstenv | Frstor | Fnsave | Fxsave | Fxsave64 | Fxrstor | Fxrstor64 => Order::InPage,
        Cmpsb | Cmpsw | Cmpsq | Pusha | Pushad | Popa | Popad => Order::Free,
        Cmpsd if instruction.is_string_instruction() => Order::Free,
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => Order::Masked,
        _ => Order::Defined,
    }
}

/// Whether the fault came in the middle of PUSHA or POPA, some of whose pushes and pops may have
/// been done.
fn stopped_half_way(case: &Case, outcome: &Outcome) -> bool {
    use Mnemonic::{Popa, Popad, Pusha, Pushad};
    let faulted = if matches!(outcome.ending, Ending::Fault(_)) { faulted_in(case, outcome) } else { None };
    faulted.is_some_and(|faulted| matches!(faulted.mnemonic(), Pusha | Pushad | Popa | Popad))
}

/// The instruction that a fault points to.
pub fn faulted_in(case: &Case, outcome: &Outcome) -> Option<Instruction> {
    let at = case.addresses().iter().position(|&address| address == outcome.rip)?;
    case.instructions().nth(at)
}

struct Lines(Vec<String>);

impl Lines {
    fn mismatch(self) -> Option<Mismatch> {
        if self.0.is_empty() { None } else { Some(Mismatch { differences: self.0 }) }
    }
    fn check<T: PartialEq + fmt::Display>(&mut self, name: &dyn fmt::Display, expected: T, got: T) {
        if expected != got {
            self.0.push(format!("{name}: expected {expected}, got {got}"));
        }
    }
}

#[derive(PartialEq)]
struct Hex(u64);
impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

#[derive(PartialEq)]
struct Wide<'a>(&'a [u8]);
impl fmt::Display for Wide<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().rev().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[derive(PartialEq)]
struct Show(Ending);
impl fmt::Display for Show {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ending::Completed => f.write_str("completed"),
            Ending::Discarded(why) => write!(f, "discarded ({why:?})"),
            Ending::Fault(fault) => {
                let mut text = String::from(vector::name(fault.vector));
                write!(text, " (vector {}), error code {:#x}", fault.vector, fault.error_code)?;
                if fault.vector == vector::PF {
                    write!(text, ", address {:#x}", fault.cr2)?;
                }
                f.write_str(&text)
            }
        }
    }
}
