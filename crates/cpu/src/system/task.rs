//! Task switches (Intel SDM vol. 3A, chapter 7): by far jumps, far calls, interrupts and IRET, with
//! 16- and 32-bit task state segments. There are none in IA-32e mode.
//!
//! Everything that can be checked is, before anything changes. What is wrong with the new task's
//! segments is then found in the new task, as on hardware. Registers of a 16-bit task are
//! zero-extended; the T flag of a task state segment is not honoured.

use super::far::check_instruction_pointer;
use crate::core::{Core, Intent};
use crate::descriptor::{Descriptor, is_null, selector_error, system_type};
use x86::control::cr0;
use x86::{Exception, Segment, SegmentIndex, flags, vector};

/// The bit that makes a task state segment's type a busy one.
const BUSY: u16 = 2;
/// Flags that a 32-bit task state segment loads.
const LOADED: u64 = flags::STATUS
    | flags::TF
    | flags::IF
    | flags::DF
    | flags::IOPL
    | flags::NT
    | flags::VM
    | flags::AC
    | flags::ID;

/// How a task switch came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A far jump: the old task ends.
    Jump,
    /// A far call or an interrupt: the new task can return to the old one.
    Call,
    /// IRET: back to the task that called.
    Return,
}

/// Where the parts of a task state segment are.
struct Layout {
    /// Bytes of each part.
    size: usize,
    cr3: Option<usize>,
    /// EIP, EFLAGS and the general registers in the order of their numbers.
    registers: usize,
    segments: usize,
    segment_count: usize,
    ldt: usize,
    /// Its bytes at least.
    len: usize,
}

const WIDE: Layout = Layout {
    size: 4,
    cr3: Some(0x1c),
    registers: 0x20,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
    len: 0x68,
};
const NARROW: Layout =
    Layout { size: 2, cr3: None, registers: 0x0e, segments: 0x22, segment_count: 4, ldt: 0x2a, len: 0x2c };

fn layout(tss: &Segment) -> &'static Layout {
    if tss.kind() & 8 != 0 { &WIDE } else { &NARROW }
}

/// Goes to the task of TSS `selector`, leaving `rip` and `rflags` behind as the old one's. Returned
/// is the new task's word size in bytes, which an error code on its stack has.
pub(crate) fn switch(
    core: &mut Core,
    selector: u16,
    reason: Reason,
    (rip, rflags): (u64, u64),
    ext: u32,
) -> Result<usize, Exception> {
    let mut new = descriptor(core, selector, reason, ext)?;
    let to = layout(&new.segment);
    let mut image = [0; WIDE.len];
    core.read(core.system_linear(new.segment.base), &mut image[..to.len], Intent::Implicit)?;
    let old = core.state.tr;
    let from = layout(&old);
    let parts = from.registers..from.ldt;
    let at = core.system_linear(old.base.wrapping_add(parts.start as u64));
    core.check_write(at, parts.len(), Intent::Implicit)?;
    core.check_write(core.system_linear(new.segment.base), 2, Intent::Implicit)?;

    let kept = if reason == Reason::Return { rflags & !flags::NT } else { rflags };
    core.write(at, &saved(core, from, rip, kept), Intent::Implicit)?;
    if reason != Reason::Call
        && let Some(address) = core.descriptor_address(old.selector, 8)
    {
        let mut access = [0];
        core.read(address.wrapping_add(5), &mut access, Intent::Implicit)?;
        core.write(address.wrapping_add(5), &[access[0] & !BUSY as u8], Intent::Implicit)?;
    }
    if reason == Reason::Call {
        let link = core.system_linear(new.segment.base);
        core.write(link, &old.selector.to_le_bytes(), Intent::Implicit)?;
    }
    new.segment.attributes |= BUSY;
    if reason != Reason::Return {
        let access = new.segment.attributes as u8;
        core.write(new.address.wrapping_add(5), &[access], Intent::Implicit)?;
    }
    core.state.tr = new.segment;
    core.state.cr0 |= cr0::TS;
    load(core, to, &image, reason == Reason::Call);
    load_segments(core, to, &image, ext)?;
    Ok(to.size)
}

/// The checks of the TSS descriptor.
fn descriptor(core: &mut Core, selector: u16, reason: Reason, ext: u32) -> Result<Descriptor, Exception> {
    let code = selector_error(selector) + ext;
    let bad = if reason == Reason::Return { vector::TS } else { vector::GP };
    let fault = Exception::with_code(bad, code);
    if is_null(selector) || selector & 4 != 0 {
        return Err(fault);
    }
    let found = core.read_descriptor(selector, bad).map_err(|e| add_ext(e, ext))?;
    let busy = if reason == Reason::Return { BUSY } else { 0 };
    let kinds = [system_type::TSS_AVAILABLE | busy, system_type::TSS_AVAILABLE_16 | busy];
    if !found.is_system() || !kinds.contains(&found.segment.kind()) {
        return Err(fault);
    }
    if !found.segment.present() {
        return Err(Exception::with_code(vector::NP, code));
    }
    if (found.segment.limit as usize) < layout(&found.segment).len - 1 {
        return Err(Exception::with_code(vector::TS, code));
    }
    Ok(found)
}

fn add_ext(e: Exception, ext: u32) -> Exception {
    match e.error_code {
        Some(code) if e.vector != vector::PF => Exception { error_code: Some(code | ext), ..e },
        _ => e,
    }
}

/// What the old task's segment gets, from EIP to the last selector.
fn saved(core: &Core, layout: &Layout, rip: u64, rflags: u64) -> Vec<u8> {
    let state = &*core.state;
    let registers = [rip, rflags].into_iter().chain(state.gpr[..8].iter().copied());
    let segments = state.seg[..layout.segment_count].iter().map(|segment| segment.selector as u64);
    registers.chain(segments).flat_map(|word| word.to_le_bytes()[..layout.size].to_vec()).collect()
}

fn word(image: &[u8], at: usize, size: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..size].copy_from_slice(&image[at..at + size]);
    u64::from_le_bytes(bytes)
}

/// Everything but segments.
fn load(core: &mut Core, layout: &Layout, image: &[u8], nested: bool) {
    let register = |n: usize| word(image, layout.registers + n * layout.size, layout.size);
    let state = &mut *core.state;
    if let Some(at) = layout.cr3
        && state.cr0 & cr0::PG != 0
    {
        state.cr3 = word(image, at, 4);
        core.flush.non_global = true;
    }
    state.rip = register(0);
    state.rflags = register(1) & LOADED | flags::FIXED | if nested { flags::NT } else { 0 };
    for n in 0..8 {
        state.gpr[n] = register(2 + n);
    }
}

/// The new task's segments, which it finds fault with itself.
fn load_segments(core: &mut Core, layout: &Layout, image: &[u8], ext: u32) -> Result<(), Exception> {
    let selector = |n: usize| match n < layout.segment_count {
        true => word(image, layout.segments + n * layout.size, 2) as u16,
        false => 0,
    };
    let selectors: [u16; 6] = std::array::from_fn(selector);
    let ldt = word(image, layout.ldt, 2) as u16;
    let cs = selectors[SegmentIndex::Cs as usize];
    let cpl = (cs & 3) as u8;
    if core.state.virtual_8086() {
        super::virtual_8086::load_segments(core.state, selectors);
    } else {
        // Until it is loaded, a segment has its selector and cannot be used.
        core.state.seg = selectors.map(|selector| Segment { selector, ..Segment::default() });
        core.state.cpl = cpl;
    }
    core.state.ldtr = Segment { selector: ldt, ..Segment::default() };
    let ts = |selector: u16| Exception::with_code(vector::TS, selector_error(selector) + ext);
    if !is_null(ldt) {
        let found = core.read_descriptor(ldt, vector::TS).map_err(|e| add_ext(e, ext))?;
        let usable = found.is_system() && found.segment.kind() == system_type::LDT && found.segment.present();
        if ldt & 4 != 0 || !usable {
            return Err(ts(ldt));
        }
        core.state.ldtr = found.segment;
    }
    if core.state.virtual_8086() {
        return Ok(());
    }
    let stack = selectors[SegmentIndex::Ss as usize];
    let stack = core.stack_segment(stack, cpl, vector::TS).map_err(|e| add_ext(e, ext))?;
    core.state.seg[SegmentIndex::Ss as usize] = stack.segment;
    for index in [SegmentIndex::Es, SegmentIndex::Ds, SegmentIndex::Fs, SegmentIndex::Gs] {
        let loaded = core.data_segment(selectors[index as usize]).map_err(|e| match e.vector {
            vector::GP => Exception::with_code(vector::TS, e.error_code.unwrap_or(0) | ext),
            _ => add_ext(e, ext),
        })?;
        core.state.seg[index as usize] = loaded;
    }
    let mut code = core.read_descriptor(cs, vector::TS).map_err(|e| add_ext(e, ext))?;
    let dpl = code.segment.dpl();
    let matching = if code.is_conforming_code() { dpl <= cpl } else { dpl == cpl };
    if is_null(cs) || !code.is_code() || !matching {
        return Err(ts(cs));
    }
    if !code.segment.present() {
        return Err(Exception::with_code(vector::NP, selector_error(cs) + ext));
    }
    core.mark_accessed(&mut code)?;
    core.state.seg[SegmentIndex::Cs as usize] = code.segment;
    check_instruction_pointer(core, &code.segment, core.state.rip)
}
