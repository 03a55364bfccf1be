//! Segment descriptors in the GDT and LDT (Intel SDM vol. 3A, 3.4.5 and chapter 5).

use crate::core::{Core, Intent};
use x86::{Exception, Segment, vector};

/// Selector bit: the table is the LDT.
pub(crate) const TABLE_LOCAL: u16 = 1 << 2;
/// The type bit that the processor sets in code and data descriptors it loads.
const ACCESSED: u16 = 1;

/// System descriptor types (SDM vol. 3A, table 3-2).
pub(crate) mod system_type {
    pub const LDT: u16 = 2;
    pub const CALL_GATE: u16 = 0xc;
    pub const CALL_GATE_16: u16 = 4;
    pub const TASK_GATE: u16 = 5;
    pub const TSS_AVAILABLE_16: u16 = 1;
    pub const TSS_BUSY_16: u16 = 3;
    pub const TSS_AVAILABLE: u16 = 9;
    pub const TSS_BUSY: u16 = 0xb;
}

/// A descriptor as read from its table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    /// The first eight bytes.
    pub low: u64,
    /// Its linear address.
    pub address: u64,
    /// The segment it describes, with `selector` as given.
    pub segment: Segment,
}

/// An error code naming `selector`: its RPL bits are replaced by EXT and IDT, both clear.
pub(crate) fn selector_error(selector: u16) -> u32 {
    (selector & 0xfffc) as u32
}

/// Whether a selector is null: the first GDT entry, whatever its RPL.
pub(crate) fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// The segment an eight-byte descriptor describes.
pub(crate) fn decode(low: u64, selector: u16) -> Segment {
    let attributes = (low >> 40) as u16 & 0xf0ff;
    let raw_limit = (low & 0xffff | low >> 32 & 0xf_0000) as u32;
    let limit = if attributes & Segment::GRANULAR != 0 { raw_limit << 12 | 0xfff } else { raw_limit };
    let base = low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000;
    Segment { base, limit, attributes, selector }
}

impl Descriptor {
    pub fn is_code(&self) -> bool {
        self.segment.is_memory() && self.segment.kind() & 8 != 0
    }
    pub fn is_conforming_code(&self) -> bool {
        self.is_code() && self.segment.kind() & 4 != 0
    }
    pub fn is_readable(&self) -> bool {
        self.segment.is_memory() && (self.segment.kind() & 8 == 0 || self.segment.kind() & 2 != 0)
    }
    pub fn is_writable_data(&self) -> bool {
        self.segment.is_memory() && self.segment.kind() & 0xa == 2
    }
    pub fn is_system(&self) -> bool {
        !self.segment.is_memory()
    }
    /// L and D both set: reserved in IA-32e mode.
    pub fn has_bad_size(&self) -> bool {
        let both = Segment::LONG | Segment::DEFAULT_BIG;
        self.segment.attributes & both == both
    }
}

/// Predicates a loaded segment and a descriptor share.
pub(crate) trait SegmentExt {
    fn is_memory(&self) -> bool;
    fn is_long_code(&self) -> bool;
}

impl SegmentExt for Segment {
    fn is_memory(&self) -> bool {
        self.attributes & Segment::CODE_OR_DATA != 0
    }
    fn is_long_code(&self) -> bool {
        self.attributes & Segment::LONG != 0
    }
}

impl Core<'_> {
    /// The linear address of a selector's descriptor, if `len` bytes of it lie inside its table.
    pub(crate) fn descriptor_address(&self, selector: u16, len: u64) -> Option<u64> {
        let offset = (selector & 0xfff8) as u64;
        let (base, limit) = if selector & TABLE_LOCAL != 0 {
            let ldtr = &self.state.ldtr;
            if !ldtr.present() || is_null(ldtr.selector) {
                return None;
            }
            (ldtr.base, ldtr.limit as u64)
        } else {
            (self.state.gdtr.base, self.state.gdtr.limit as u64)
        };
        (offset + len - 1 <= limit).then(|| self.system_linear(base.wrapping_add(offset)))
    }

    /// A linear address of the processor's own structures: 32 bits outside IA-32e mode.
    pub(crate) fn system_linear(&self, address: u64) -> u64 {
        if self.state.long_mode() { address } else { address & 0xffff_ffff }
    }

    /// Reads a descriptor; `beyond` is raised, with the selector, where the table has none.
    pub(crate) fn read_descriptor(&mut self, selector: u16, beyond: u8) -> Result<Descriptor, Exception> {
        let address = self
            .descriptor_address(selector, 8)
            .ok_or(Exception::with_code(beyond, selector_error(selector)))?;
        let low = self.read_uint(address, 8, Intent::Implicit)?;
        Ok(Descriptor { low, address, segment: decode(low, selector) })
    }

    /// The upper eight bytes of a 16-byte descriptor (IA-32e mode system descriptors).
    pub(crate) fn read_upper(&mut self, descriptor: &Descriptor) -> Result<u64, Exception> {
        let selector = descriptor.segment.selector;
        let address = self.descriptor_address(selector, 16).ok_or(Exception::gp(selector_error(selector)))?;
        self.read_uint(address.wrapping_add(8), 8, Intent::Implicit)
    }

    /// Sets the descriptor's accessed bit, in memory and in the segment, unless it is set.
    pub(crate) fn mark_accessed(&mut self, descriptor: &mut Descriptor) -> Result<(), Exception> {
        if descriptor.segment.is_memory() && descriptor.segment.kind() & ACCESSED == 0 {
            descriptor.segment.attributes |= ACCESSED;
            let access_byte = descriptor.segment.attributes as u8;
            self.write(descriptor.address.wrapping_add(5), &[access_byte], Intent::Implicit)?;
        }
        Ok(())
    }

    /// The checks and the result of loading SS with `selector` for code running at `cpl`, raising
    /// `bad` for anything but absence (SDM vol. 2B, MOV; vol. 2A, IRET; vol. 3A, 6.12).
    pub(crate) fn stack_segment(&mut self, selector: u16, cpl: u8, bad: u8) -> Result<Descriptor, Exception> {
        let code = selector_error(selector);
        let fault = Exception::with_code(bad, code);
        let mut descriptor = self.read_descriptor(selector, bad)?;
        if (selector & 3) as u8 != cpl || !descriptor.is_writable_data() || descriptor.segment.dpl() != cpl {
            return Err(fault);
        }
        if !descriptor.segment.present() {
            return Err(Exception::ss(code));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor)
    }

    /// The segment of a DS, ES, FS or GS load at the current privilege (SDM vol. 2B, MOV).
    pub(crate) fn data_segment(&mut self, selector: u16) -> Result<Segment, Exception> {
        if is_null(selector) {
            return Ok(Segment { selector, ..Segment::default() });
        }
        let code = selector_error(selector);
        let mut descriptor = self.read_descriptor(selector, vector::GP)?;
        let dpl = descriptor.segment.dpl();
        let privileged = dpl < self.state.cpl.max((selector & 3) as u8);
        if !descriptor.is_readable() || privileged && !descriptor.is_conforming_code() {
            return Err(Exception::gp(code));
        }
        if !descriptor.segment.present() {
            return Err(Exception::with_code(vector::NP, code));
        }
        self.mark_accessed(&mut descriptor)?;
        Ok(descriptor.segment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flat_four_gibibyte_descriptor_decodes_to_its_fields() {
        let segment = decode(0x00cf_9b00_0000_ffff, 0x10);
        assert_eq!((segment.base, segment.limit), (0, 0xffff_ffff));
        assert_eq!(segment.attributes, 0xc09b);
        let odd = decode(0x1240_9356_789a_0123, 8);
        assert_eq!((odd.base, odd.limit, odd.attributes), (0x1256_789a, 0x123, 0x4093));
    }
}
