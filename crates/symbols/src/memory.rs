//! Memory in pieces.

/// Where x86-64 Linux maps its image, and how much room it has there
/// (Documentation/arch/x86/x86_64/mm.rst).
pub(crate) const KERNEL_START: u64 = 0xffff_ffff_8000_0000;
pub(crate) const KERNEL_BYTES: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// More mapped memory than any kernel image has; the rest is not looked at.
const MAPPED_BYTES_MAX: u64 = 512 << 20;

/// Pieces of memory, by address, without overlaps.
#[derive(Default)]
pub struct Extents(Vec<(u64, Vec<u8>)>);

impl Extents {
    /// What is mapped in the kernel image's part of a guest's virtual memory. `read` fills the
    /// buffer from an address, or returns false when not all of it is mapped; it must see the
    /// kernel's page tables (a user process's may lack most of the kernel).
    pub fn of_guest(read: &mut dyn FnMut(u64, &mut [u8]) -> bool) -> Self {
        let mut extents = Self::default();
        let mut page = [0; PAGE as usize];
        let mut mapped = 0;
        for at in (KERNEL_START..KERNEL_START + KERNEL_BYTES).step_by(PAGE as usize) {
            if mapped < MAPPED_BYTES_MAX && read(at, &mut page) {
                mapped += PAGE;
                extents.push(at, &page);
            }
        }
        extents
    }

    /// Adds bytes that follow all others.
    pub fn push(&mut self, at: u64, bytes: &[u8]) {
        match self.0.last_mut() {
            Some((start, piece)) if *start + piece.len() as u64 == at => piece.extend_from_slice(bytes),
            _ => self.0.push((at, bytes.to_vec())),
        }
    }

    /// The pieces.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.0.iter().map(|(at, bytes)| (*at, bytes.as_slice()))
    }

    /// Bytes at an address, if all of them are there.
    pub(crate) fn bytes(&self, at: u64, count: usize) -> Option<&[u8]> {
        let next = self.0.partition_point(|(start, _)| *start <= at);
        let (start, piece) = self.0.get(next.checked_sub(1)?)?;
        let offset = usize::try_from(at - start).ok()?;
        piece.get(offset..offset.checked_add(count)?)
    }
}

/// Little-endian words of a slice.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
