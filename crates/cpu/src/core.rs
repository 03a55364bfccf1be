//! The processor as Rust code works on it: state, bus and model together, and access to memory by
//! linear and segment-relative address.
//!
//! Translated code does the ordinary instructions; everything in [`crate::system`],
//! [`crate::string`] and [`crate::deliver`] goes through here. All pages of an
//! access are translated before its first byte moves, so a fault leaves nothing half done. RAM is
//! written through [`memory::Ram::write`], which notes what the translator must hear of; anything
//! else goes to the bus in naturally aligned pieces.

use crate::debug;
use crate::walk::{self, Access, Translation};
use crate::watch::WatchList;
use crate::{Bus, CpuState};
use base::{GuestPhys, GuestVirt, PAGE_SIZE, Position};
use x86::control::cr0;
use x86::{CpuModel, Exception, Segment, SegmentIndex, flags, gpr, paging};

/// What the translator must drop before it runs on. Its TLB hears of page-table writes by itself,
/// so these are the architectural flushes, as hints, and the mode changes, which are not.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Flush {
    /// Every translation, global ones too.
    pub everything: bool,
    /// Every translation that is not global (of the current PCID).
    pub non_global: bool,
    /// The translations of these linear addresses.
    pub pages: Vec<GuestVirt>,
    /// Something that blocks of code and translations are keyed by changed: paging, write
    /// protection, SMEP, SMAP, NXE, long mode.
    pub mode: bool,
}

impl Flush {
    /// Whether nothing was asked for.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
    /// Forgets all requests.
    pub fn clear(&mut self) {
        self.everything = false;
        self.non_global = false;
        self.pages.clear();
        self.mode = false;
    }
}

/// On whose behalf memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// The running program's own access, at its privilege.
    Explicit,
    /// The processor's access to its system structures: supervisor, whatever the CPL.
    Implicit,
}

/// One processor and what is around it, borrowed for one instruction or event.
pub struct Core<'a> {
    /// Architectural state.
    pub state: &'a mut CpuState,
    /// The processor model.
    pub model: &'a CpuModel,
    /// The machine.
    pub bus: &'a mut dyn Bus,
    /// Collects what the translator must drop.
    pub flush: &'a mut Flush,
    /// Iterations the running string instruction has done and the caller has not yet counted.
    pub elapsed: u64,
    /// DR6 bits B0–B3 of data breakpoints hit by explicit accesses; the caller turns them into a
    /// trap after the instruction (see [`crate::debug`]).
    pub data_hits: u64,
    /// What a debugger watches, if anything.
    pub watch: Option<&'a mut WatchList>,
}

/// The parts of an access on at most two pages.
struct Span {
    parts: [(GuestPhys, usize); 2],
    count: usize,
}

impl<'a> Core<'a> {
    /// Borrows a processor.
    pub fn new(
        state: &'a mut CpuState,
        model: &'a CpuModel,
        bus: &'a mut dyn Bus,
        flush: &'a mut Flush,
    ) -> Self {
        Self { state, model, bus, flush, elapsed: 0, data_hits: 0, watch: None }
    }

    /// The position before the instruction (or iteration) being executed.
    pub fn at(&self) -> Position {
        Position::from_count(self.state.retired.saturating_add(self.elapsed))
    }

    /// Whether protected mode is on.
    pub fn protected(&self) -> bool {
        self.state.cr0 & cr0::PE != 0
    }

    fn access(&self, intent: Intent, write: bool) -> Access {
        match intent {
            Intent::Explicit => Access::data(self.state, write),
            Intent::Implicit => Access::system(write),
        }
    }

    /// Translates one address.
    pub fn translate(&mut self, linear: u64, access: Access) -> Result<Translation, Exception> {
        walk::translate(self.state, self.bus.ram(), GuestVirt(linear), access)
    }

    fn span(&mut self, linear: u64, len: usize, access: Access) -> Result<Span, Exception> {
        assert!(len <= PAGE_SIZE, "an access of {len} bytes may touch more than two pages");
        let first = GuestVirt(linear);
        let here = len.min(PAGE_SIZE - first.page_offset());
        let mut span = Span { parts: [(GuestPhys(0), 0); 2], count: 0 };
        if len == 0 {
            return Ok(span);
        }
        span.parts[0] = (self.translate(linear, access)?.phys, here);
        span.count = 1;
        if here < len {
            let second = first.offset(here as u64).0;
            if self.state.long_mode() && !paging::is_canonical(second) {
                return Err(Exception::gp(0));
            }
            span.parts[1] = (self.translate(second, access)?.phys, len - here);
            span.count = 2;
        }
        Ok(span)
    }

    /// Reads `buf.len()` (at most a page's) bytes at a linear address, which must be canonical.
    pub fn read_as(&mut self, linear: u64, buf: &mut [u8], access: Access) -> Result<(), Exception> {
        let span = self.span(linear, buf.len(), access)?;
        let mut done = 0;
        for &(phys, len) in &span.parts[..span.count] {
            if !access.fetch {
                self.note_watched(phys, len, false);
            }
            self.read_phys(phys, &mut buf[done..done + len]);
            done += len;
        }
        Ok(())
    }

    /// Writes, likewise; the access must say that it writes.
    pub fn write_as(&mut self, linear: u64, data: &[u8], access: Access) -> Result<(), Exception> {
        debug_assert!(access.write);
        let span = self.span(linear, data.len(), access)?;
        let mut done = 0;
        for &(phys, len) in &span.parts[..span.count] {
            self.note_watched(phys, len, true);
            let noted = self.bus.ram().watched_count();
            self.write_phys(phys, &data[done..done + len]);
            if self.bus.ram().page_index(phys).is_some() {
                // Only what devices write is news.
                self.bus.ram().forget_watched(noted);
            }
            done += len;
        }
        Ok(())
    }

    fn note_watched(&mut self, phys: GuestPhys, len: usize, write: bool) {
        let at = self.at();
        if let Some(watch) = &mut self.watch {
            watch.note(at, phys, len, write);
        }
    }

    /// Reads at a linear address.
    pub fn read(&mut self, linear: u64, buf: &mut [u8], intent: Intent) -> Result<(), Exception> {
        if intent == Intent::Explicit {
            self.data_hits |= debug::data_breakpoints(self.state, linear, buf.len(), false);
        }
        self.read_as(linear, buf, self.access(intent, false))
    }

    /// Writes at a linear address.
    pub fn write(&mut self, linear: u64, data: &[u8], intent: Intent) -> Result<(), Exception> {
        let access = self.access(intent, true);
        self.write_as(linear, data, access)?;
        if intent == Intent::Explicit {
            self.data_hits |= debug::data_breakpoints(self.state, linear, data.len(), true);
        }
        Ok(())
    }

    /// Checks that `len` bytes could be written (setting Accessed and Dirty bits), without writing.
    pub fn check_write(&mut self, linear: u64, len: usize, intent: Intent) -> Result<(), Exception> {
        let access = self.access(intent, true);
        self.span(linear, len, access).map(|_| ())
    }

    /// Reads a little-endian integer of `size` (at most 8) bytes.
    pub fn read_uint(&mut self, linear: u64, size: usize, intent: Intent) -> Result<u64, Exception> {
        if intent == Intent::Explicit {
            self.check_alignment(linear, size)?;
        }
        let mut bytes = [0; 8];
        self.read(linear, &mut bytes[..size], intent)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the low `size` (at most 8) bytes of `value`.
    pub fn write_uint(
        &mut self,
        linear: u64,
        size: usize,
        value: u64,
        intent: Intent,
    ) -> Result<(), Exception> {
        if intent == Intent::Explicit {
            self.check_alignment(linear, size)?;
        }
        self.write(linear, &value.to_le_bytes()[..size], intent)
    }

    /// #AC for a misaligned access of `size` bytes while alignment checking is armed
    /// (SDM vol. 3A, 6.15, interrupt 17).
    pub fn check_alignment(&self, linear: u64, size: usize) -> Result<(), Exception> {
        if alignment_checked(self.state) && size.is_power_of_two() && linear & (size as u64 - 1) != 0 {
            return Err(Exception::with_code(x86::vector::AC, 0));
        }
        Ok(())
    }

    /// Reads physical memory inside one page: RAM, or the bus in naturally aligned pieces.
    pub fn read_phys(&mut self, phys: GuestPhys, buf: &mut [u8]) {
        if self.bus.ram().read(phys, buf) {
            return;
        }
        let at = self.at();
        let mut done = 0;
        while done < buf.len() {
            let here = phys.offset(done as u64);
            let n = natural_piece(here, buf.len() - done);
            self.bus.mmio_read(at, here, &mut buf[done..done + n]);
            done += n;
        }
    }

    /// Writes physical memory inside one page.
    pub fn write_phys(&mut self, phys: GuestPhys, data: &[u8]) {
        if self.bus.ram().write(phys, data) {
            return;
        }
        let at = self.at();
        let mut done = 0;
        while done < data.len() {
            let here = phys.offset(done as u64);
            let n = natural_piece(here, data.len() - done);
            self.bus.mmio_write(at, here, &data[done..done + n]);
            done += n;
        }
    }

    /// The linear address of `len` bytes at `offset` in a segment, after the checks of
    /// segmentation: canonical form in 64-bit mode, presence, type and limit elsewhere.
    pub fn linear(
        &self,
        segment: SegmentIndex,
        offset: u64,
        len: usize,
        write: bool,
    ) -> Result<u64, Exception> {
        let fault = || {
            if segment == SegmentIndex::Ss { Exception::ss(0) } else { Exception::gp(0) }
        };
        let seg = &self.state.seg[segment as usize];
        if self.state.code64() {
            let base = match segment {
                SegmentIndex::Fs | SegmentIndex::Gs => seg.base,
                _ => 0,
            };
            let linear = base.wrapping_add(offset);
            let last = linear.wrapping_add(len.saturating_sub(1) as u64);
            if !paging::is_canonical(linear) || !paging::is_canonical(last) {
                return Err(fault());
            }
            return Ok(linear);
        }
        if self.protected() && !data_access_allowed(seg, write) || !within_limit(seg, offset, len) {
            return Err(fault());
        }
        Ok(seg.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Width of stack addresses in bits.
    pub fn stack_bits(&self) -> u32 {
        if self.state.code64() {
            64
        } else if self.state.seg[SegmentIndex::Ss as usize].attributes & Segment::DEFAULT_BIG != 0 {
            32
        } else {
            16
        }
    }

    /// The stack pointer, as wide as stack addresses are.
    pub fn stack_pointer(&self) -> u64 {
        self.state.gpr[gpr::RSP] & mask(self.stack_bits())
    }

    /// Sets the stack pointer, keeping the bits above the stack's width (above 32: clearing them).
    pub fn set_stack_pointer(&mut self, value: u64) {
        let bits = self.stack_bits();
        let rsp = &mut self.state.gpr[gpr::RSP];
        *rsp = match bits {
            64 => value,
            32 => value & 0xffff_ffff,
            _ => *rsp & !0xffff | value & 0xffff,
        };
    }

    /// Pushes values of `size` bytes each, the first one first, as one access: nothing is written
    /// and the stack pointer stays where a push would fault.
    pub fn push(&mut self, values: &[u64], size: usize) -> Result<(), Exception> {
        let total = values.len() * size;
        let top = self.stack_pointer().wrapping_sub(total as u64) & mask(self.stack_bits());
        if self.stack_bits() == 16 && top > self.stack_pointer() {
            return self.push_around(values, size);
        }
        // Enough for the largest frame, that of a call gate with 31 parameters.
        let mut image = [0; 144];
        for (i, value) in values.iter().rev().enumerate() {
            image[i * size..(i + 1) * size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        let linear = self.linear(SegmentIndex::Ss, top, total, true)?;
        self.check_alignment(linear, size)?;
        self.write(linear, &image[..total], Intent::Explicit)?;
        self.set_stack_pointer(top);
        Ok(())
    }

    /// The same on a stack of 64 KiB that the values reach around the end of, one by one.
    fn push_around(&mut self, values: &[u64], size: usize) -> Result<(), Exception> {
        let mut top = self.stack_pointer();
        let mut places = Vec::with_capacity(values.len());
        for _ in values {
            top = top.wrapping_sub(size as u64) & mask(16);
            let linear = self.linear(SegmentIndex::Ss, top, size, true)?;
            self.check_alignment(linear, size)?;
            self.check_write(linear, size, Intent::Explicit)?;
            places.push(linear);
        }
        for (linear, value) in places.into_iter().zip(values) {
            self.write(linear, &value.to_le_bytes()[..size], Intent::Explicit)?;
        }
        self.set_stack_pointer(top);
        Ok(())
    }

    /// Reads `N` values of `size` bytes from the stack, `skip` bytes above its top, without popping.
    pub fn peek<const N: usize>(&mut self, skip: u64, size: usize) -> Result<[u64; N], Exception> {
        let from = self.stack_pointer().wrapping_add(skip) & mask(self.stack_bits());
        if self.stack_bits() == 16 && from + (N * size) as u64 > 0x1_0000 {
            return self.peek_around(from, size);
        }
        let linear = self.linear(SegmentIndex::Ss, from, N * size, false)?;
        self.check_alignment(linear, size)?;
        let mut image = [0; 64];
        self.read(linear, &mut image[..N * size], Intent::Explicit)?;
        let mut values = [0; N];
        for (i, value) in values.iter_mut().enumerate() {
            let mut bytes = [0; 8];
            bytes[..size].copy_from_slice(&image[i * size..(i + 1) * size]);
            *value = u64::from_le_bytes(bytes);
        }
        Ok(values)
    }

    /// The same around the end of a stack of 64 KiB, from `from` on.
    fn peek_around<const N: usize>(&mut self, from: u64, size: usize) -> Result<[u64; N], Exception> {
        let mut values = [0; N];
        for (i, value) in values.iter_mut().enumerate() {
            let at = from.wrapping_add((i * size) as u64) & mask(16);
            let linear = self.linear(SegmentIndex::Ss, at, size, false)?;
            *value = self.read_uint(linear, size, Intent::Explicit)?;
        }
        Ok(values)
    }

    /// Moves the stack pointer up by `bytes`.
    pub fn release(&mut self, bytes: u64) {
        let top = self.stack_pointer().wrapping_add(bytes);
        self.set_stack_pointer(top);
    }
}

/// Whether misaligned accesses fault right now: CR0.AM, EFLAGS.AC and CPL 3.
pub fn alignment_checked(state: &CpuState) -> bool {
    state.cpl == 3 && state.cr0 & cr0::AM != 0 && state.rflags & flags::AC != 0
}

/// The low `bits` bits.
pub(crate) const fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

fn natural_piece(at: GuestPhys, left: usize) -> usize {
    let aligned = if at.0 == 0 { 8 } else { 1 << at.0.trailing_zeros().min(3) };
    let mut n = aligned;
    while n > left {
        n /= 2;
    }
    n
}

/// Type check of a data access outside 64-bit mode (SDM vol. 3A, 5.5). An unusable segment has no
/// attributes at all, so it fails here.
fn data_access_allowed(seg: &Segment, write: bool) -> bool {
    let code = seg.kind() & 8 != 0;
    let second = seg.kind() & 2 != 0; // writable data, readable code
    seg.present()
        && seg.attributes & Segment::CODE_OR_DATA != 0
        && match (code, write) {
            (true, true) => false,
            (true, false) => second,
            (false, true) => second,
            (false, false) => true,
        }
}

fn within_limit(seg: &Segment, offset: u64, len: usize) -> bool {
    let last = offset + len.saturating_sub(1) as u64;
    let expand_down = seg.attributes & Segment::CODE_OR_DATA != 0 && seg.kind() & 0xc == 4;
    if expand_down {
        let top = if seg.attributes & Segment::DEFAULT_BIG != 0 { 0xffff_ffff } else { 0xffff };
        offset > seg.limit as u64 && last <= top
    } else {
        last <= seg.limit as u64
    }
}
