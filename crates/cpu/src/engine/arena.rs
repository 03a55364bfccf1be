//! The memory a vCPU's translated code lives in and talks to.
//!
//! One mapping below 2 GiB holds, in this order, the vCPU's [`Hot`] data (architectural state,
//! TLBs, jump caches) and its private code cache. Being below 2 GiB makes every address a 32-bit
//! displacement: emitted code reaches its state without a state register, and any piece of code
//! reaches any other with a 32-bit jump. Being private to the vCPU makes it safe to patch.
//!
//! ```text
//!   base                                              base + HOT_BYTES                end
//!   | CpuState | scratch | mode set 0 | … | mode set 5 | code cache: thunks, blocks … |
//! ```

use super::hot::Hot;
use crate::CpuError;

/// A mapping below 2 GiB, readable, writable and executable.
pub struct Arena {
    base: u32,
    bytes: usize,
}

const LOWEST: usize = 0x1000_0000;
const HIGHEST: usize = 0x7fff_0000;
const STEP: usize = 0x10_0000;

impl Arena {
    /// Bytes in front of the code cache.
    pub const HOT_BYTES: usize = (size_of::<Hot>() + 0xfff) & !0xfff;

    /// Maps an arena with a code cache of `code_bytes`.
    pub fn new(code_bytes: usize) -> Result<Self, CpuError> {
        let bytes = Self::HOT_BYTES + code_bytes;
        // From above: programs of the guest that are not position-independent begin low (see `mirror`).
        let mut at = HIGHEST.saturating_sub(bytes) & !(STEP - 1);
        while at >= LOWEST {
            // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping of anyone else's.
            let got = unsafe {
                libc::mmap(
                    at as *mut libc::c_void,
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            if got as usize == at {
                let arena = Self { base: at as u32, bytes };
                let code = arena.code_start();
                want_large_pages(code as usize as *const u8, (arena.code_end() - code) as usize);
                return Ok(arena);
            }
            if got != libc::MAP_FAILED {
                // A kernel without MAP_FIXED_NOREPLACE chose another place.
                // SAFETY: what it just gave us.
                unsafe { libc::munmap(got, bytes) };
            }
            at -= STEP;
        }
        Err(CpuError::NoLowMemory { bytes })
    }

    /// The hot data at the start of the arena.
    pub fn hot(&self) -> *mut Hot {
        self.base as usize as *mut Hot
    }
    /// The address of the hot data.
    pub fn base(&self) -> u32 {
        self.base
    }
    /// First address of the code cache.
    pub fn code_start(&self) -> u32 {
        self.base + Self::HOT_BYTES as u32
    }
    /// One past its last address.
    pub fn code_end(&self) -> u32 {
        self.base + self.bytes as u32
    }
    /// Copies `code` to `at` in the code cache.
    pub fn write_code(&mut self, at: u32, code: &[u8]) {
        assert!(at >= self.code_start() && at as usize + code.len() <= self.code_end() as usize);
        // SAFETY: inside our own mapping, checked; no other thread runs code from it.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), at as usize as *mut u8, code.len()) };
    }
    /// Copies `len` bytes of the code cache from `from` to `to`.
    pub fn copy_code(&mut self, from: u32, to: u32, len: usize) {
        for at in [from, to] {
            assert!(at >= self.code_start() && at as usize + len <= self.code_end() as usize);
        }
        // SAFETY: inside our own mapping, checked; no other thread runs code from it.
        unsafe { std::ptr::copy(from as usize as *const u8, to as usize as *mut u8, len) };
    }
    /// The bytes at `at` in the code cache.
    pub fn code_at(&self, at: u32, len: usize) -> &[u8] {
        assert!(at >= self.code_start() && at as usize + len <= self.code_end() as usize);
        // SAFETY: inside our own mapping, checked; nobody writes code while it is borrowed.
        unsafe { std::slice::from_raw_parts(at as usize as *const u8, len) }
    }
    /// Writes the displacement of the jump whose 32-bit field is at `field`.
    pub fn patch_jump(&mut self, field: u32, target: u32) {
        let distance = target.wrapping_sub(field.wrapping_add(4));
        self.write_code(field, &distance.to_le_bytes());
    }
}

/// Asks for large pages for so many elements of memory of ours that fills from its beginning: a fault for
/// every 4 KiB was a third of what copying a block costs. A host without them goes on with small ones.
pub fn want_large_pages<T>(start: *const T, elements: usize) {
    const PAGE: usize = base::PAGE_SIZE;
    let first = (start as usize).next_multiple_of(PAGE);
    let end = (start as usize + elements * size_of::<T>()) & !(PAGE - 1);
    if first < end {
        // SAFETY: whole pages that are the caller's; contents and rights stay as they are.
        unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the vCPU that ran from it is gone.
        unsafe { libc::munmap(self.base as usize as *mut libc::c_void, self.bytes) };
    }
}
