//! The guest's RAM: one host mapping, laid out as a PC has it.
//!
//! Guest physical addresses `0 .. LOW_RAM_MAX` come first; what does not fit there appears from
//! 4 GiB upwards, leaving the hole below 4 GiB to devices. Inside, a page is known by its *index*
//! (dense, from 0), which is also its place in the host mapping.

use crate::Marks;
use crate::lending::{Lent, Loan};
use base::{GuestPhys, PAGE_SHIFT, PAGE_SIZE};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

/// RAM below the device hole, in bytes (3 GiB).
pub const LOW_RAM_MAX: u64 = 0xc000_0000;
/// Where RAM continues above the device hole.
const HIGH_RAM: u64 = 1 << 32;
/// Where the mapping is if nothing else is: far from where programs have anything, ours and the guest's, of which
/// a processor may want to map pages at the same addresses.
const WANTED_AT: usize = 0x1800_0000_0000;
const PROT_RW: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Why guest memory could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is zero or not a multiple of the page size.
    #[error("guest memory of {0} bytes is not a positive multiple of 4 KiB; pass for example --memory 512M")]
    Size(u64),
    /// The host would not map that much.
    #[error("the host cannot map {bytes} bytes of guest memory ({source}); pass a smaller --memory")]
    Map {
        /// What was asked for.
        bytes: u64,
        /// The host's answer.
        source: std::io::Error,
    },
}

/// A write to a page bearing one of [`Marks::DISTURBING`], for the processors to act on before
/// they run again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disturbance {
    /// The page's index.
    pub page: usize,
    /// First byte written, from the start of the page.
    pub offset: u16,
    /// Bytes written, at most the page size.
    pub len: u16,
    /// For writes of 8 aligned bytes or fewer within one aligned 8-byte word: that word before the
    /// write, so that a page-table entry that was not present can be told from one that was.
    pub old_word: Option<u64>,
}

/// A write by a device to a page bearing [`Marks::WATCHED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedWrite {
    /// The first byte.
    pub at: GuestPhys,
    /// How many, at most a page's.
    pub len: u16,
    /// It came after the machine had arrived at its position: see [`Ram::set_late`].
    pub late: bool,
}

/// The host's mapping of RAM, with a page before and behind it that nobody may touch. So an access
/// that strays is caught, and the mapping stays what it is to whoever looks at the process.
pub(crate) struct Mapping {
    base: *mut u8,
    /// All of it, and how long it is.
    reserved: *mut libc::c_void,
    reserved_bytes: usize,
    /// The file in memory that it is a mapping of, so that pages can be mapped at other addresses as
    /// well; none where the host has no such files.
    file: Option<OwnedFd>,
}

// SAFETY: the mapping is the process's, not a thread's; who may access what of it is the affair of
// `Ram` and `Loan`.
unsafe impl Send for Mapping {}
// SAFETY: likewise; nothing here changes behind a shared reference but the mapped bytes.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: u64) -> Result<Self, RamError> {
        let failed = || RamError::Map { bytes, source: std::io::Error::last_os_error() };
        let reserved_bytes = bytes as usize + 2 * PAGE_SIZE;
        // SAFETY: a fresh anonymous mapping, elsewhere if something is there.
        let reserved = unsafe {
            libc::mmap(
                WANTED_AT as *mut libc::c_void,
                reserved_bytes,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if reserved == libc::MAP_FAILED {
            return Err(failed());
        }
        let base = reserved.cast::<u8>().wrapping_add(PAGE_SIZE);
        let file = file_in_memory(bytes);
        let mapping = Self { base, reserved, reserved_bytes, file };
        let (flags, descriptor) = match &mapping.file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
        };
        let flags = flags | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: inside of what was just mapped, and is nobody else's.
        let mapped = unsafe { libc::mmap(base.cast(), bytes as usize, PROT_RW, flags, descriptor, 0) };
        if mapped == libc::MAP_FAILED {
            return Err(failed());
        }
        Ok(mapping)
    }

    /// Copies the page with index `page`.
    ///
    /// # Safety
    /// It lies in the mapping, and nobody writes it meanwhile.
    pub(crate) unsafe fn copy_page(&self, page: usize, into: &mut [u8; PAGE_SIZE]) {
        // SAFETY: as the caller promises.
        unsafe {
            std::ptr::copy_nonoverlapping(self.base.add(page << PAGE_SHIFT), into.as_mut_ptr(), PAGE_SIZE)
        };
    }
}

/// A file of zeroes that has no name and ends with its last mapping.
fn file_in_memory(bytes: u64) -> Option<OwnedFd> {
    // SAFETY: a new descriptor, which nobody else has.
    let file = unsafe {
        let new = libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC);
        (new >= 0).then(|| OwnedFd::from_raw_fd(new))?
    };
    let length = libc::off_t::try_from(bytes).ok()?;
    // SAFETY: the file is ours.
    (unsafe { libc::ftruncate(file.as_raw_fd(), length) } == 0).then_some(file)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more.
        unsafe { libc::munmap(self.reserved, self.reserved_bytes) };
    }
}

/// Guest RAM. Bytes outside of it do not exist here: every access says whether it succeeded.
pub struct Ram {
    /// Shared with a loan, which may outlive us.
    mapping: Arc<Mapping>,
    size: u64,
    marks: Vec<Marks>,
    dirty: Vec<u32>,
    epoch: u64,
    disturbances: Vec<Disturbance>,
    watched: Vec<WatchedWrite>,
    late: bool,
    /// The other side of the last loan.
    lent: Option<Arc<Lent>>,
}

impl Ram {
    /// Zeroed RAM of `bytes` (a positive multiple of the page size), with every page clean.
    pub fn new(bytes: u64) -> Result<Self, RamError> {
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE as u64) || bytes > 1 << 46 {
            return Err(RamError::Size(bytes));
        }
        let pages = (bytes >> PAGE_SHIFT) as usize;
        Ok(Self {
            mapping: Arc::new(Mapping::new(bytes)?),
            size: bytes,
            marks: vec![Marks::default(); pages],
            dirty: Vec::new(),
            epoch: 0,
            disturbances: Vec::new(),
            watched: Vec::new(),
            late: false,
            lent: None,
        })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of pages; indexes run below it.
    pub fn pages(&self) -> usize {
        self.marks.len()
    }

    /// The ranges of guest physical addresses that are RAM: start and length in bytes.
    pub fn ranges(&self) -> Vec<(GuestPhys, u64)> {
        let low = self.size.min(LOW_RAM_MAX);
        let mut ranges = vec![(GuestPhys(0), low)];
        if self.size > low {
            ranges.push((GuestPhys(HIGH_RAM), self.size - low));
        }
        ranges
    }

    /// The index of the page that holds `at`, or `None` when `at` is not RAM.
    #[inline]
    pub fn page_index(&self, at: GuestPhys) -> Option<usize> {
        let offset = if at.0 < LOW_RAM_MAX {
            at.0
        } else if at.0 >= HIGH_RAM {
            at.0 - HIGH_RAM + LOW_RAM_MAX
        } else {
            return None;
        };
        (offset < self.size).then_some((offset >> PAGE_SHIFT) as usize)
    }

    /// The guest physical address of the page with index `page`.
    pub fn page_address(&self, page: usize) -> GuestPhys {
        let offset = (page as u64) << PAGE_SHIFT;
        GuestPhys(if offset < LOW_RAM_MAX { offset } else { offset - LOW_RAM_MAX + HIGH_RAM })
    }

    /// The host address of a page. Writing through it is only allowed to a processor that obeys
    /// the marks (see [`Marks`]).
    #[inline]
    pub fn host_page(&self, page: usize) -> *mut u8 {
        assert!(page < self.marks.len());
        // SAFETY: in bounds of the mapping, just checked.
        unsafe { self.mapping.base.add(page << PAGE_SHIFT) }
    }

    /// The file that RAM is a mapping of, in which the page with index `n` begins at byte `n * 4096`; for
    /// mapping pages at other addresses of this process, under the same terms as [`Self::host_page`].
    /// `None` where the host has no files in memory.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.mapping.file.as_ref().map(AsFd::as_fd)
    }

    /// The bytes of a page.
    pub fn page_bytes(&self, page: usize) -> &[u8; PAGE_SIZE] {
        // SAFETY: a whole page inside the mapping, which lives as long as `self`; processors do
        // not run while the owner is borrowed.
        unsafe { &*self.host_page(page).cast() }
    }

    /// Reads RAM into `buf`; false (and `buf` unspecified) when any byte is not RAM.
    #[must_use]
    pub fn read(&self, at: GuestPhys, buf: &mut [u8]) -> bool {
        let mut done = 0;
        while done < buf.len() {
            let here = at.offset(done as u64);
            let Some(page) = self.page_index(here) else { return false };
            let n = (PAGE_SIZE - here.page_offset()).min(buf.len() - done);
            buf[done..done + n].copy_from_slice(&self.page_bytes(page)[here.page_offset()..][..n]);
            done += n;
        }
        true
    }

    /// Writes `data` to RAM, marking pages dirty and noting disturbances; false when any byte is
    /// not RAM (those before it have then been written).
    #[must_use]
    pub fn write(&mut self, at: GuestPhys, data: &[u8]) -> bool {
        let mut done = 0;
        while done < data.len() {
            let here = at.offset(done as u64);
            let Some(page) = self.page_index(here) else { return false };
            let n = (PAGE_SIZE - here.page_offset()).min(data.len() - done);
            self.write_page(page, here.page_offset(), &data[done..done + n]);
            done += n;
        }
        true
    }

    /// Writes `data` inside one page.
    pub fn write_page(&mut self, page: usize, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= PAGE_SIZE);
        self.mark_dirty(page);
        if self.marks[page].any(Marks::DISTURBING) {
            let word = offset & !7;
            let old_word = (offset + data.len() <= word + 8).then(|| {
                u64::from_le_bytes(self.page_bytes(page)[word..word + 8].try_into().expect("8 bytes"))
            });
            self.disturbances.push(Disturbance {
                page,
                offset: offset as u16,
                len: data.len() as u16,
                old_word,
            });
        }
        if self.marks[page].any(Marks::WATCHED) {
            let at = self.page_address(page).offset(offset as u64);
            self.watched.push(WatchedWrite { at, len: data.len() as u16, late: self.late });
        }
        // SAFETY: in bounds of the page, just checked; `data` cannot overlap the guest's mapping
        // mutably because we hold `&mut self`.
        unsafe { std::ptr::copy(data.as_ptr(), self.host_page(page).add(offset), data.len()) };
    }

    /// Reads a little-endian integer of `N` bytes.
    pub fn read_array<const N: usize>(&self, at: GuestPhys) -> Option<[u8; N]> {
        let mut buf = [0; N];
        self.read(at, &mut buf).then_some(buf)
    }

    /// Reads a little-endian 64-bit word.
    #[inline]
    pub fn read_u64(&self, at: GuestPhys) -> Option<u64> {
        self.read_array(at).map(u64::from_le_bytes)
    }

    /// Writes a little-endian 64-bit word.
    #[must_use]
    pub fn write_u64(&mut self, at: GuestPhys, value: u64) -> bool {
        self.write(at, &value.to_le_bytes())
    }

    /// Sets `bits` in the little-endian 64-bit word at `at` (8-aligned): for a page walk that sets
    /// Accessed and Dirty bits, which changes no translation. Only where code was made from the page a
    /// disturbance is noted. False when `at` is not RAM.
    #[must_use]
    pub fn set_bits_quietly(&mut self, at: GuestPhys, bits: u64) -> bool {
        assert!(at.0.is_multiple_of(8));
        let (Some(page), Some(old)) = (self.page_index(at), self.read_u64(at)) else { return false };
        self.mark_dirty(page);
        if self.marks[page].any(Marks::CODE) {
            let offset = at.page_offset() as u16;
            self.disturbances.push(Disturbance { page, offset, len: 8, old_word: Some(old) });
        }
        // SAFETY: eight bytes inside a page of the mapping.
        unsafe {
            self.host_page(page).add(at.page_offset()).cast::<u64>().write_unaligned((old | bits).to_le())
        };
        true
    }

    /// The number of writes to watched pages since the last [`Self::take_watched`].
    pub fn watched_count(&self) -> usize {
        self.watched.len()
    }

    /// Forgets the writes to watched pages behind the first `count`: a processor, which knows of its
    /// own ones, or a debugger made them.
    pub fn forget_watched(&mut self, count: usize) {
        self.watched.truncate(count);
    }

    /// The writes to watched pages since the last call, oldest first.
    pub fn take_watched(&mut self) -> Vec<WatchedWrite> {
        std::mem::take(&mut self.watched)
    }

    /// Says whether what devices write from here on happens in the step to the machine's position, or
    /// (`late`) at the position, before the step to the next.
    pub fn set_late(&mut self, late: bool) {
        self.late = late;
    }

    /// A page's marks.
    #[inline]
    pub fn marks(&self, page: usize) -> Marks {
        self.marks[page]
    }

    /// Adds marks to a page. [`Marks::DIRTY`] goes through [`Self::mark_dirty`].
    pub fn add_marks(&mut self, page: usize, marks: Marks) {
        debug_assert!(!marks.any(Marks::DIRTY));
        self.marks[page] = self.marks[page].with(marks);
    }

    /// Removes marks from a page.
    pub fn remove_marks(&mut self, page: usize, marks: Marks) {
        debug_assert!(!marks.any(Marks::DIRTY));
        self.marks[page] = self.marks[page].without(marks);
    }

    /// Notes that a page is (about to be) written in this epoch.
    #[inline]
    pub fn mark_dirty(&mut self, page: usize) {
        if !self.marks[page].any(Marks::DIRTY) {
            if self.marks[page].any(Marks::LENT) {
                self.keep(page);
            }
            self.marks[page] = self.marks[page].with(Marks::DIRTY);
            self.dirty.push(page as u32);
        }
    }

    /// Copies a lent page before it is written.
    #[cold]
    fn keep(&mut self, page: usize) {
        self.marks[page] = self.marks[page].without(Marks::LENT);
        if let Some(lent) = &self.lent {
            lent.keep(page, self.page_bytes(page));
        }
    }

    /// Lends pages to another thread, which will read them as they are now whatever is written
    /// meanwhile. Cheapest at the beginning of an epoch: pages written in this one are copied at once,
    /// as their next write will not be noticed. `None` while an earlier loan is not given back.
    pub fn lend(&mut self, pages: &[u32]) -> Option<Loan> {
        if self.lent.as_ref().is_some_and(|lent| Arc::strong_count(lent) > 1) {
            return None;
        }
        let lent = Arc::new(Lent::new(self.pages(), self.lent.as_deref()));
        for page in pages.iter().map(|page| *page as usize) {
            lent.add(page);
            if self.marks[page].any(Marks::DIRTY) {
                lent.keep(page, self.page_bytes(page));
            } else {
                self.marks[page] = self.marks[page].with(Marks::LENT);
            }
        }
        self.lent = Some(lent.clone());
        Some(Loan::new(self.mapping.clone(), lent))
    }

    /// The pages written in the current epoch, in the order of their first write.
    pub fn dirty_pages(&self) -> &[u32] {
        &self.dirty
    }

    /// Starts a new epoch: every page is clean. Processors must drop their write translations
    /// (they compare [`Self::epoch`]).
    pub fn begin_epoch(&mut self) {
        for page in self.dirty.drain(..) {
            self.marks[page as usize] = self.marks[page as usize].without(Marks::DIRTY);
        }
        self.epoch += 1;
    }

    /// The number of the current epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether anything was noted since the last [`Self::take_disturbances`].
    #[inline]
    pub fn is_disturbed(&self) -> bool {
        !self.disturbances.is_empty()
    }

    /// The writes to disturbing pages since the last [`Self::take_disturbances`], oldest first.
    pub fn disturbances(&self) -> &[Disturbance] {
        &self.disturbances
    }

    /// The writes to disturbing pages since the last call, oldest first.
    pub fn take_disturbances(&mut self) -> Vec<Disturbance> {
        std::mem::take(&mut self.disturbances)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_above_the_hole_appears_at_four_gibibytes() {
        let ram = Ram::new(LOW_RAM_MAX + 0x2000).unwrap();
        assert_eq!(ram.page_index(GuestPhys(LOW_RAM_MAX)), None);
        let high = ram.page_index(GuestPhys(HIGH_RAM + 0x1000)).unwrap();
        assert_eq!(ram.page_address(high), GuestPhys(HIGH_RAM + 0x1000));
        assert_eq!(ram.page_index(GuestPhys(HIGH_RAM + 0x2000)), None);
    }

    #[test]
    fn a_write_marks_its_page_dirty_once_per_epoch() {
        let mut ram = Ram::new(0x4000).unwrap();
        assert!(ram.write(GuestPhys(0x1ffe), &[1, 2, 3, 4]));
        assert!(ram.write(GuestPhys(0x1000), &[9]));
        assert_eq!(ram.dirty_pages(), &[1, 2]);
        ram.begin_epoch();
        assert!(ram.dirty_pages().is_empty());
        assert_eq!(ram.read_array(GuestPhys(0x1ffe)), Some([1u8, 2, 3, 4]));
        assert!(!ram.write(GuestPhys(0x3fff), &[1, 2]), "the second byte is past the end");
    }

    #[test]
    fn a_lent_page_is_read_as_it_was() {
        let mut ram = Ram::new(0x6000).unwrap();
        assert!((1..5).all(|page| ram.write(GuestPhys(page << 12), &[page as u8; PAGE_SIZE])));
        ram.begin_epoch();
        assert!(ram.write(GuestPhys(0x4000), &[40]));
        let loan = ram.lend(&[1, 2, 3, 4]).unwrap();
        assert!(ram.lend(&[1]).is_none(), "one loan is not given back");
        assert!(ram.write(GuestPhys(0x2fff), &[20, 30]), "before their turn");
        assert!(ram.write(GuestPhys(0x4000), &[41]), "dirty when it was lent");
        let mut page = [0; PAGE_SIZE];
        assert!(loan.read(1, &mut page) && page == [1; PAGE_SIZE]);
        assert!(ram.write(GuestPhys(0x1000), &[10]), "after its turn");
        for number in [2, 3] {
            assert!(loan.read(number, &mut page) && page == [number as u8; PAGE_SIZE]);
        }
        assert!(loan.read(4, &mut page) && page[..2] == [40, 4]);
        assert!(![0, 1, 2, 5, 1 << 40].iter().any(|number| loan.read(*number, &mut page)));
        drop(loan);
        let loan = ram.lend(&[2]).unwrap();
        assert!(ram.write(GuestPhys(0x3000), &[31]), "of a loan before this one");
        drop(ram);
        assert!(loan.read(2, &mut page) && page[PAGE_SIZE - 1] == 20, "whoever lent is gone");
    }

    #[test]
    fn a_writer_far_ahead_of_the_reader_waits_for_it_and_loses_nothing() {
        const PAGES: usize = 20_000;
        let mut ram = Ram::new((PAGES * PAGE_SIZE) as u64).unwrap();
        let write = |ram: &mut Ram, page: usize, value: u32| {
            ram.write_page(page, page % 4000, &value.to_le_bytes());
        };
        (0..PAGES).for_each(|page| write(&mut ram, page, page as u32));
        ram.begin_epoch();
        let all: Vec<u32> = (0..PAGES as u32).collect();
        let loan = ram.lend(&all).unwrap();
        let reader = std::thread::spawn(move || {
            // From the end, which the writer reaches last.
            (0..PAGES).rev().all(|number| {
                let mut page = [0xee; PAGE_SIZE];
                let read = loan.read(number, &mut page);
                read && page[number % 4000..][..4] == (number as u32).to_le_bytes()
            })
        });
        (0..PAGES).for_each(|page| write(&mut ram, page, !0));
        assert!(reader.join().unwrap());
    }

    #[test]
    fn a_write_to_a_code_page_is_noted_with_the_word_it_replaced() {
        let mut ram = Ram::new(0x2000).unwrap();
        assert!(ram.write_u64(GuestPhys(0x1008), 0x55));
        ram.add_marks(1, Marks::CODE);
        assert!(ram.write(GuestPhys(0x100a), &[7, 7]));
        let noted = ram.take_disturbances();
        assert_eq!(noted, vec![Disturbance { page: 1, offset: 10, len: 2, old_word: Some(0x55) }]);
        assert!(!ram.is_disturbed());
    }
}
