//! The mirror: the pages of one address space's programs, mapped in our own process at the very
//! addresses at which the guest has them.
//!
//! Code translated for it ([`super::blocks::Mode::MIRRORED`]) accesses memory as the guest wrote it: no
//! slot, no tag, no addend, and `push` is `push`. The host's own page tables do what the TLB does
//! elsewhere, a page not mapped yet is found by the host's fault (see `mirrored`), and what drops a
//! translation from the TLB unmaps it here. So the mirror is no more visible than the TLB: what is
//! mapped is what the TLB might hold, for reads or for writes, and never more.
//!
//! **Nothing else is within reach.** The guest's addresses and ours are the same 47 bits, and it may
//! compute any. They are divided into *chunks* of 16 MiB. A chunk is *claimed* by mapping all of it, and
//! its two neighbours, without any rights, where nothing of our own may be: from then on nothing can
//! get there. One page of the *guard* stands for each chunk, and can be read if the chunk is claimed.
//! An access through a pointer is preceded by
//!
//! ```text
//!   shrx r11, pointer, r15        r15's low bits are 12
//!   mov  ecx, gs:[r11]            GS has the guard's address
//! ```
//!
//! which faults unless the pointer's chunk is claimed. An address beyond the programs' half of the address
//! space is one that the access itself faults at, whatever the guard finds. Accesses less than
//! [`REACH`] from where the pointer points need no guard of their own, as the neighbours are ours too. Nor do
//! those through the stack pointer (see [`super::stack`]).
//! The guard costs two operations, off the path to the data; the same pointer is guarded once in a
//! block, and an address known at translation time not at all.
//!
//! Mapping a page costs some microseconds, so a mirror is for address spaces that keep their
//! processor for a while. There is one in a process: the addresses are there only once.
//!
//! Unmapping one costs as much, and what the kernel takes away, it takes away page by page, most of all when
//! a program ends. So pages dropped are *stale* at first: they are unmapped together before a program runs
//! again ([`Mirror::unmap_stale`]), or with everything else, if that program never does.

use super::blocks::BuildMix;
use super::entered::Entered;
use crate::marks::mark;
use memory::Ram;
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// How far from a guarded address an access may be.
pub const REACH: i64 = 512 << 10;
/// `mov ecx, gs:[r11]`. Nothing else in translated code is relative to GS, so a fault at it is the guard's,
/// whatever address it was for.
pub const GUARD_LOAD: [u8; 4] = [0x65, 0x41, 0x8b, 0x0b];
const PAGE: u64 = base::PAGE_SIZE as u64;
const CHUNK_SHIFT: u32 = 24;
pub const CHUNK: u64 = 1 << CHUNK_SHIFT;
/// The addresses that programs can have: what the host lets a process map.
const PROGRAMS: Range<u64> = 0x1_0000..(1 << 47) - PAGE;
const CHUNKS: u64 = 1 << (47 - CHUNK_SHIFT);
/// Where the guard is if nothing else is: far from where programs have anything, as its chunks are not theirs.
const GUARD_AT: u64 = 0x1000_0000_0000;
/// A page for each chunk.
const GUARD_BYTES: usize = (CHUNKS * PAGE) as usize;
/// Changes made to what is mapped until all of it is given up: a process may have 65,530 mappings, and
/// each change may divide one into three.
const CHANGES_MAX: usize = 24_000;
/// Pages mapped at once.
const PAGES_MAX: usize = 1 << 18;
/// Chunks claimed at once, and how many there may be already where another address space begins to be mirrored.
const CLAIMS_MAX: usize = 2000;
const CLAIMS_MANY: usize = 1500;
/// Pages around one that is written which are made writable with it, if they were before.
const WRITTEN_TOGETHER: u64 = 64;
/// Bytes of memory behind what is asked for that are looked at as well.
const LOOKED_AHEAD: u64 = 64 * PAGE;
const NONE: libc::c_int = libc::PROT_NONE;
const READ: libc::c_int = libc::PROT_READ;
const WRITE: libc::c_int = libc::PROT_READ | libc::PROT_WRITE;
const ARCH_SET_GS: libc::c_int = 0x1001;

/// Whether this process's mirror is in use.
static TAKEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// What this thread's GS has been set to.
    static GS: Cell<u64> = const { Cell::new(0) };
}

#[derive(Clone, Copy)]
struct Page {
    /// Of RAM.
    index: usize,
    write: bool,
    /// It was writable until writes to all pages were to be heard of again.
    written: bool,
}

/// Pages to be mapped next to each other, which are so in RAM too.
#[derive(Clone, Copy)]
pub struct Run {
    pub virt: u64,
    /// The first page's index in RAM.
    pub index: usize,
    pub pages: u64,
    pub write: bool,
}

/// See the module's head.
#[derive(Default)]
pub struct Mirror {
    guard: Option<Guard>,
    /// The address space that is mirrored, by its top page table.
    owner: Option<u64>,
    /// By linear address.
    pages: BTreeMap<u64, Page>,
    /// What was last found to be mapped, for reads and for writes.
    looked_up: [Range<u64>; 2],
    /// Where its code may be entered without looking.
    pub entered: Entered,
    /// What is still mapped, but must not be when a program runs again: adjacent pages, as start and end.
    stale: Vec<(u64, u64)>,
    /// See [`CHANGES_MAX`].
    changes: usize,
    /// Chunks that nothing of ours can come to.
    reserved: HashSet<u64>,
    /// Whether a chunk could be claimed.
    claimed: HashMap<u64, bool, BuildMix>,
}

/// The guard's pages; whoever has it has the mirror.
struct Guard(u64);

impl Guard {
    fn new() -> Option<Self> {
        if TAKEN.swap(true, Ordering::Acquire) {
            return None;
        }
        match reserve(GUARD_AT, false, GUARD_BYTES) {
            Some(at) => Some(Self(at)),
            None => {
                TAKEN.store(false, Ordering::Release);
                None
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        unmap(self.0, GUARD_BYTES);
        TAKEN.store(false, Ordering::Release);
    }
}

impl Run {
    /// Whether `next`, of one page, goes on where this one ends.
    pub fn is_followed_by(&self, next: Run) -> bool {
        next.virt == self.virt + self.pages * PAGE
            && next.index == self.index + self.pages as usize
            && next.write == self.write
            && next.virt >> CHUNK_SHIFT == self.virt >> CHUNK_SHIFT
    }
}

impl Mirror {
    /// The address space that is mirrored.
    pub fn owner(&self) -> Option<u64> {
        self.owner
    }

    /// Mirrors an address space from now on, and no other; false if this process has another mirror, or
    /// no room for one.
    pub fn adopt(&mut self, root: u64) -> bool {
        self.clear();
        if self.guard.is_none() {
            self.guard = Guard::new();
        }
        self.owner = self.guard.as_ref().map(|_| root);
        self.owner.is_some()
    }

    /// Mirrors nothing.
    pub fn abandon(&mut self) {
        self.clear();
        self.owner = None;
    }

    /// Gives this thread's GS the guard's address, before it runs mirrored code.
    pub fn arm(&self) {
        let Some(Guard(at)) = self.guard else { return };
        if GS.get() != at {
            // SAFETY: nothing in this process uses GS; the base of a segment register is the thread's.
            let set = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, at) };
            assert!(set == 0, "every x86-64 Linux sets GS");
            GS.set(at);
        }
    }

    /// Sees to it that accesses to the chunk of an address reach nothing of ours. False if they would.
    pub fn claim(&mut self, address: u64) -> bool {
        let Some(Guard(guard)) = self.guard else { return false };
        let chunk = address >> CHUNK_SHIFT;
        if chunk >= CHUNKS {
            return false;
        }
        if let Some(known) = self.claimed.get(&chunk) {
            return *known;
        }
        if self.claimed.len() >= CLAIMS_MAX {
            return false;
        }
        let ours = (chunk.saturating_sub(1)..=chunk + 1).all(|chunk| self.reserve(chunk))
            && protect(guard + chunk * PAGE, PAGE as usize, READ);
        self.claimed.insert(chunk, ours);
        ours
    }

    /// Whether few chunks are left to be claimed.
    pub fn is_worn(&self) -> bool {
        self.claimed.len() > CLAIMS_MANY
    }

    /// Gives all chunks up. Code that was translated with some of them claimed must not run any more.
    pub fn release(&mut self) {
        self.clear();
        self.unreserve();
        let claimed = self.claimed.drain();
        let Some(Guard(guard)) = self.guard else { return };
        for (chunk, _) in claimed.filter(|(_, ours)| *ours) {
            let closed = protect(guard + chunk * PAGE, PAGE as usize, NONE);
            assert!(closed, "the host cannot take back that a page may be read");
        }
    }

    fn unreserve(&mut self) {
        for chunk in self.reserved.drain() {
            let (start, bytes) = extent(chunk);
            unmap(start, bytes);
        }
    }

    fn reserve(&mut self, chunk: u64) -> bool {
        if chunk >= CHUNKS || self.reserved.contains(&chunk) {
            return true;
        }
        let (start, bytes) = extent(chunk);
        let ours = reserve(start, true, bytes).is_some();
        if ours {
            self.reserved.insert(chunk);
        }
        ours
    }

    /// Which chunk the guard kept from being accessed, if that is what a host's fault at `address` means:
    /// an address in it.
    pub fn guarded(&self, address: u64) -> Option<u64> {
        let Guard(guard) = self.guard.as_ref()?;
        let into = address.checked_sub(*guard).filter(|into| *into < GUARD_BYTES as u64)?;
        Some(into / PAGE * CHUNK)
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether a page is mapped.
    pub fn has(&self, virt: u64) -> bool {
        self.pages.contains_key(&virt)
    }

    /// Whether `virt` is on a page that is mapped, and is RAM's page `index`.
    pub fn holds(&self, virt: u64, index: usize) -> bool {
        self.pages.get(&(virt & !(PAGE - 1))).is_some_and(|page| page.index == index)
    }

    /// How many bytes from `virt` on are mapped, for writes if `write`, as far as `bytes`.
    pub fn mapped_from(&mut self, virt: u64, bytes: u64, write: bool) -> u64 {
        let start = virt & !(PAGE - 1);
        let wanted = virt.saturating_add(bytes);
        let looked = &self.looked_up[write as usize];
        if looked.contains(&virt) && wanted <= looked.end {
            return bytes;
        }
        let mut end = start;
        for (at, page) in self.pages.range(start..wanted.saturating_add(LOOKED_AHEAD)) {
            if *at != end || write && !page.write {
                break;
            }
            end += PAGE;
        }
        self.looked_up[write as usize] = start..end;
        end.clamp(virt, wanted) - virt
    }

    /// Maps pages of RAM at linear addresses within one chunk. False if they cannot be.
    pub fn map(&mut self, ram: &Ram, run: Run) -> bool {
        let Run { virt, index, pages, write } = run;
        let Some(file) = ram.file() else { return false };
        if self.owner.is_none() || !PROGRAMS.contains(&virt) || !self.claim(virt) {
            return false;
        }
        self.unmap_stale();
        let rights = if write { WRITE } else { READ };
        self.changes += 1;
        if self.changes > CHANGES_MAX || self.pages.len() + pages as usize > PAGES_MAX {
            self.clear();
        }
        if pages == 1 && self.holds(virt, index) {
            if !protect(virt, PAGE as usize, rights) {
                self.clear();
                return false;
            }
        } else {
            let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
            let (bytes, offset) = ((pages * PAGE) as usize, (index as u64 * PAGE) as libc::off_t);
            // SAFETY: the addresses are in a chunk that is ours; the pages of the file are RAM's, which
            // only translated code accesses there.
            let got = unsafe {
                libc::mmap(virt as *mut libc::c_void, bytes, rights, flags, file.as_raw_fd(), offset)
            };
            if got == libc::MAP_FAILED {
                self.clear();
                // There may be a hole now.
                bury_chunk(virt >> CHUNK_SHIFT);
                return false;
            }
        }
        for n in 0..pages {
            let page = Page { index: index + n as usize, write, written: false };
            if self.pages.insert(virt + n * PAGE, page).is_some() {
                self.looked_up = Default::default();
            }
        }
        true
    }

    /// The pages near `virt` that may not be written only because writes to all pages are to be heard of:
    /// their addresses, and their indexes in RAM.
    pub fn written_near(&self, virt: u64) -> Vec<(u64, usize)> {
        let window = WRITTEN_TOGETHER * PAGE;
        let start = virt / window * window;
        let near = self.pages.range(start..start + window);
        near.filter(|(_, page)| page.written).map(|(virt, page)| (*virt, page.index)).collect()
    }

    /// Gives back the right to write pages.
    pub fn allow_writes(&mut self, pages: &[u64]) {
        for virt in pages {
            if let Some(page) = self.pages.get_mut(virt) {
                (page.write, page.written) = (true, false);
            }
        }
        self.protect_all(pages, WRITE);
    }

    /// Drops what is mapped of so many pages from `virt` on in the address space of `root`, or in any.
    pub fn drop_range(&mut self, root: Option<u64>, virt: u64, pages: u64) {
        if root.is_some() && root != self.owner {
            return;
        }
        self.entered.leave(virt / PAGE, pages);
        if self.pages.is_empty() {
            return;
        }
        let range = virt..virt.saturating_add(pages.saturating_mul(PAGE));
        while let Some((&virt, _)) = self.pages.range(range.clone()).next() {
            self.pages.remove(&virt);
            self.looked_up = Default::default();
            match self.stale.last_mut() {
                Some((_, end)) if *end == virt => *end += PAGE,
                _ => self.stale.push((virt, virt + PAGE)),
            }
        }
    }

    /// Whether pages that were dropped are still mapped.
    pub fn has_stale(&self) -> bool {
        !self.stale.is_empty()
    }

    /// Unmaps pages that were dropped.
    pub fn unmap_stale(&mut self) {
        for (start, end) in std::mem::take(&mut self.stale) {
            mark!(MirrorUnmapped);
            self.changes += 1;
            bury(start, (end - start) as usize);
        }
    }

    /// Unmaps everything if it is of the address space of `root`.
    pub fn drop_space(&mut self, root: u64) {
        if self.owner == Some(root) {
            self.clear();
        }
    }

    /// Takes away the right to write a page.
    pub fn forbid_write(&mut self, virt: u64) {
        let Some(page) = self.pages.get_mut(&virt) else { return };
        self.looked_up = Default::default();
        page.written = false;
        if std::mem::take(&mut page.write) {
            self.protect_all(&[virt], READ);
        }
    }

    /// Takes away the right to write any page, for their next writes to be heard of.
    pub fn forbid_writes(&mut self) {
        let mut written = Vec::new();
        self.looked_up = Default::default();
        for (virt, page) in self.pages.iter_mut().filter(|(_, page)| page.write) {
            (page.write, page.written) = (false, true);
            written.push(*virt);
        }
        self.protect_all(&written, READ);
    }

    /// Changes what may be done with pages, which ascend; if the host cannot, nothing stays mapped.
    fn protect_all(&mut self, pages: &[u64], rights: libc::c_int) {
        for (start, bytes) in runs(pages.iter().copied()) {
            self.changes += 1;
            if self.changes > CHANGES_MAX || !protect(start, bytes, rights) {
                self.clear();
                return;
            }
        }
    }

    /// Unmaps everything.
    pub fn clear(&mut self) {
        let dropped =
            self.stale.drain(..).flat_map(|(start, end)| start >> CHUNK_SHIFT..=(end - 1) >> CHUNK_SHIFT);
        let mut chunks: HashSet<u64> = dropped.collect();
        chunks.extend(self.pages.keys().map(|virt| virt >> CHUNK_SHIFT));
        chunks.into_iter().for_each(bury_chunk);
        self.entered.leave_all();
        self.pages.clear();
        self.looked_up = Default::default();
        self.changes = 0;
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.unreserve();
    }
}

/// What of a chunk a process can have: start and length in bytes.
fn extent(chunk: u64) -> (u64, usize) {
    let start = (chunk << CHUNK_SHIFT).max(PROGRAMS.start);
    let end = ((chunk + 1) << CHUNK_SHIFT).min(PROGRAMS.end);
    (start, (end - start) as usize)
}

/// Runs of adjacent pages among ascending ones: start and length in bytes.
fn runs(pages: impl Iterator<Item = u64>) -> Vec<(u64, usize)> {
    let mut runs: Vec<(u64, usize)> = Vec::new();
    for virt in pages {
        match runs.last_mut() {
            Some((start, bytes)) if *start + *bytes as u64 == virt => *bytes += PAGE as usize,
            _ => runs.push((virt, PAGE as usize)),
        }
    }
    runs
}

/// Takes addresses that nothing is at, without any rights: from `wanted` on, or, unless it has to be
/// `exactly` there, elsewhere if that is taken.
fn reserve(wanted: u64, exactly: bool, bytes: usize) -> Option<u64> {
    let fixed = if exactly { libc::MAP_FIXED_NOREPLACE } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed;
    // SAFETY: without MAP_FIXED, no mapping of anyone else's is replaced.
    let got = unsafe { libc::mmap(wanted as *mut libc::c_void, bytes, NONE, flags, -1, 0) };
    if got == libc::MAP_FAILED {
        return None;
    }
    let got = got as u64;
    if exactly && wanted != got {
        // A kernel without MAP_FIXED_NOREPLACE chose another place.
        unmap(got, bytes);
        return None;
    }
    Some(got)
}

/// Puts inaccessible addresses in place of what is mapped in claimed chunks.
fn bury(start: u64, bytes: usize) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the addresses are in chunks that are ours.
    let got = unsafe { libc::mmap(start as *mut libc::c_void, bytes, NONE, flags, -1, 0) };
    let buried = got != libc::MAP_FAILED || protect(start, bytes, NONE);
    assert!(buried, "the host cannot unmap what the guest may not access any more");
}

/// False if the host cannot: the process has too many mappings.
fn protect(start: u64, bytes: usize, rights: libc::c_int) -> bool {
    // SAFETY: pages in chunks, or of the guard, that are ours.
    unsafe { libc::mprotect(start as *mut libc::c_void, bytes, rights) == 0 }
}

/// The same for all of a claimed chunk.
fn bury_chunk(chunk: u64) {
    let (start, bytes) = extent(chunk);
    bury(start, bytes);
}

fn unmap(start: u64, bytes: usize) {
    // SAFETY: addresses that were reserved here.
    unsafe { libc::munmap(start as *mut libc::c_void, bytes) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mirror there is, to be had by one test at a time.
    fn mirror() -> Mirror {
        let mut mirror = Mirror::default();
        while !mirror.adopt(0x1000) {
            std::thread::yield_now();
        }
        mirror
    }

    fn ram() -> Ram {
        let mut ram = Ram::new(16 * PAGE).unwrap();
        for page in 0..16 {
            ram.write_page(page, 0, &[page as u8 + 1]);
        }
        ram
    }

    /// What may be done at an address, from the kernel's list of this process's mappings.
    fn rights(virt: u64) -> Option<String> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(start)..number(end)).contains(&virt).then(|| rest[..3].to_owned())
        })
    }

    fn byte(virt: u64) -> u8 {
        // SAFETY: the callers have seen to it that it is mapped.
        unsafe { *(virt as *const u8) }
    }

    const HERE: u64 = 0x1234_5600_0000;

    #[test]
    fn pages_are_where_the_guest_has_them_with_its_rights_and_gone_when_dropped() {
        let (mut mirror, ram) = (mirror(), ram());
        assert!(mirror.map(&ram, Run { virt: HERE, index: 3, pages: 2, write: true }));
        assert!(mirror.map(&ram, Run { virt: HERE + 5 * PAGE, index: 9, pages: 1, write: false }));
        assert_eq!([byte(HERE), byte(HERE + PAGE), byte(HERE + 5 * PAGE)], [4, 5, 10]);
        assert_eq!(rights(HERE + PAGE).unwrap(), "rw-");
        assert_eq!(rights(HERE + 5 * PAGE).unwrap(), "r--");
        assert_eq!(rights(HERE + 2 * PAGE).unwrap(), "---");
        mirror.drop_range(Some(0x2000), HERE, 100);
        assert!(mirror.has(HERE), "another address space's");
        mirror.drop_range(Some(0x1000), HERE + PAGE, 100);
        assert!(mirror.has_stale() && !mirror.has(HERE + PAGE));
        mirror.unmap_stale();
        assert!(!mirror.has_stale());
        assert_eq!(rights(HERE).unwrap(), "rw-");
        assert_eq!(rights(HERE + PAGE).unwrap(), "---");
        assert_eq!(rights(HERE + 5 * PAGE).unwrap(), "---");
        mirror.drop_range(None, HERE, 1);
        assert!(mirror.is_empty());
        mirror.clear();
        assert!(!mirror.has_stale());
        assert_eq!(rights(HERE).unwrap(), "---");
        drop(mirror);
        assert_eq!(rights(HERE), None);
    }

    #[test]
    fn writes_are_forbidden_and_allowed_again_near_one() {
        let (mut mirror, ram) = (mirror(), ram());
        for n in 0..4 {
            assert!(
                mirror
                    .map(&ram, Run { virt: HERE + n * PAGE, index: 7 - n as usize, pages: 1, write: n != 2 })
            );
        }
        mirror.forbid_write(HERE + PAGE);
        mirror.forbid_writes();
        assert!((0..4).all(|n| rights(HERE + n * PAGE).unwrap() == "r--"));
        let near = mirror.written_near(HERE + 3 * PAGE);
        assert_eq!(
            near,
            [(HERE, 7), (HERE + 3 * PAGE, 4)],
            "not the page whose own writes are to be heard of"
        );
        mirror.allow_writes(&[HERE, HERE + 3 * PAGE]);
        let all: Vec<_> = (0..4).map(|n| rights(HERE + n * PAGE).unwrap()).collect();
        assert_eq!(all, ["rw-", "r--", "r--", "rw-"]);
        assert!(mirror.written_near(HERE).is_empty());
    }

    #[test]
    fn a_chunk_with_something_of_ours_in_it_or_beside_it_cannot_be_claimed() {
        let (mut mirror, ram) = (mirror(), ram());
        let ours = reserve(HERE + CHUNK + 7 * PAGE, true, PAGE as usize).unwrap();
        assert!(!mirror.claim(HERE) && !mirror.claim(HERE + CHUNK) && !mirror.claim(HERE + 2 * CHUNK));
        assert!(mirror.claim(HERE - CHUNK));
        assert!(!mirror.map(&ram, Run { virt: HERE, index: 0, pages: 1, write: false }));
        let Some(Guard(guard)) = mirror.guard else { unreachable!("it was adopted") };
        assert_eq!(rights(guard + (HERE >> 12)).unwrap(), "---");
        assert_eq!(rights(guard + ((HERE - CHUNK) >> 12)).unwrap(), "r--");
        assert_eq!(mirror.guarded(guard + (HERE >> 12) + 5), Some(HERE));
        unmap(ours, PAGE as usize);
    }

    #[test]
    fn there_is_one_mirror_in_a_process_and_the_ends_of_the_address_space_are_not_in_it() {
        let (mut mirror, ram) = (mirror(), ram());
        assert!(!Mirror::default().adopt(0x2000));
        for virt in [0, PAGE, PROGRAMS.end, 1 << 47, 0xffff_8000_0000_0000] {
            assert!(!mirror.map(&ram, Run { virt, index: 0, pages: 1, write: false }), "{virt:#x}");
        }
        assert!(!mirror.claim(1 << 47) && !mirror.claim(u64::MAX));
        mirror.abandon();
        assert!(!mirror.map(&ram, Run { virt: HERE, index: 0, pages: 1, write: false }));
    }

    #[test]
    fn however_much_a_guest_maps_the_process_keeps_mappings_for_itself() {
        let (mut mirror, ram) = (mirror(), ram());
        for n in 0..60_000_u64 {
            let virt = HERE + n % 700 * CHUNK + n % 1000 * 2 * PAGE;
            mirror.map(&ram, Run { virt, index: n as usize % 16, pages: 1, write: n % 3 == 0 });
        }
        let claimed = (0..10_000).filter(|n| mirror.claim(HERE + (1000 + 3 * n) * CHUNK)).count();
        assert!(claimed < CLAIMS_MAX);
        let mappings = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        assert!(mappings < 60_000, "{mappings}");
    }
}
