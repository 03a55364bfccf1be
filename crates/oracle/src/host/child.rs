//! The child process: maps the case pages and runs batch after batch until its pipe closes.
//!
//! It is forked from a process that may have other threads, so nothing here allocates or takes a
//! lock: system calls, raw memory and the shared slots only.

use super::entry::{
    CONTEXT_FLAGS, CS_COMPATIBILITY, CS_LONG, DATA_SEGMENT, GPR_SLOT, UserContext, breakpoint_address, enter,
    handler_address,
};
use super::slot::{BY_STEPS, NOT, RAN, Request, Shared, Slot};
use super::trace::Tracer;
use crate::layout::{Access, FRAMES, Frame, PAGE};
use crate::outcome::vector;
use crate::state::{FXSAVE, Registers, canonical_x87, flag};
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::Ordering;

/// Largest XSAVE image handled, in bytes; today's with AVX-512 and AMX has 11 KiB.
const EXTENDED_MAX: usize = 32 << 10;
/// Size of the alternate signal stack.
const SIGNAL_STACK: usize = 256 << 10;
/// Offset of XSTATE_BV in an XSAVE image, and of the upper halves of YMM (SDM vol. 1, 13.4).
const XSTATE_BV: usize = 512;
const YMM_HIGH: usize = 576;
/// Where the kernel keeps `extended_size` in the image's software bytes.
const SOFTWARE_SIZE: usize = 464 + 4;

/// Everything the child works with.
struct Child {
    shared: *mut Shared,
    /// The case pages once more, always writable: one after another.
    alias: *mut u8,
    /// What each frame is now mapped as.
    access: [u8; FRAMES],
    /// The context every case is entered through, and its extended state.
    context: *mut UserContext,
    extended: *mut u8,
}

/// The child's whole life.
///
/// # Safety
/// Call only right after `fork` in the child, with `shared` mapped shared with the parent.
pub unsafe fn child_main(shared: *mut Shared, requests: i32, replies: i32) -> ! {
    // SAFETY: the caller's contract; setup and the loop touch only what they map themselves.
    unsafe {
        match Child::set_up(shared) {
            Ok(mut child) => child.serve(requests, replies),
            Err(step) => {
                (*shared).setup_errno.store(*libc::__errno_location() as u32, Ordering::Relaxed);
                (*shared).setup_failure.store(step, Ordering::Relaxed);
                libc::_exit(1)
            }
        }
    }
}

/// Maps anonymous memory anywhere.
unsafe fn anonymous(size: usize) -> Result<*mut u8, u32> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe { libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(1) } else { Ok(at.cast()) }
}

/// Makes `size` bytes at `address` inaccessible, whatever was there.
unsafe fn reserve(address: u64, size: usize) -> Result<(), u32> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the ranges reserved hold nothing of ours: `HostExecutor::new` has checked that the
    // program lies above 4 GiB, and the shared area and stacks lie where the kernel puts mappings.
    let at = unsafe { libc::mmap(address as *mut _, size, libc::PROT_NONE, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(2) } else { Ok(()) }
}

impl Child {
    unsafe fn set_up(shared: *mut Shared) -> Result<Child, u32> {
        // SAFETY: see the functions called; every pointer comes from a mapping made here.
        unsafe {
            // Nothing of the parent's may answer below 4 GiB or around the case pages.
            reserve(0x1_0000, (1 << 32) - 0x1_0000)?;
            reserve(Frame::Code.address() - (1 << 20), 1 << 29)?;
            let alias = map_frames()?;
            let stack = anonymous(SIGNAL_STACK)?;
            install_handlers(stack)?;
            let context: *mut UserContext = anonymous(PAGE)?.cast();
            let mut child = Child {
                shared,
                alias,
                access: [Access::Read as u8; FRAMES],
                context,
                extended: ptr::null_mut(),
            };
            child.fetch_frame(stack)?;
            // 32-bit code needs data segments; 64-bit code does not care.
            std::arch::asm!("mov ds, {0:x}", "mov es, {0:x}", in(reg) u32::from(DATA_SEGMENT), options(nomem, nostack));
            child.probe_compatibility();
            Ok(child)
        }
    }

    /// Has the kernel build a signal frame and keeps its extended state as the template.
    unsafe fn fetch_frame(&mut self, stack: *mut u8) -> Result<(), u32> {
        // SAFETY: `context` is a zeroed page; the breakpoint is an INT3 that raises SIGTRAP, for
        // which the handler is installed.
        unsafe {
            let context = &mut *self.context;
            context.flags = CONTEXT_FLAGS & !1;
            context.stack = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: SIGNAL_STACK };
            context.selectors = [CS_LONG, 0, 0, DATA_SEGMENT];
            context.rip = breakpoint_address();
            context.rflags = flag::FIXED;
            context.gpr[GPR_SLOT[4]] = stack as u64 + 4096;
            let seen = enter(self.context, 0, 0);
            let image = (*seen).extended;
            let size = image.add(SOFTWARE_SIZE).cast::<u32>().read_unaligned() as usize;
            if image.is_null() || !(YMM_HIGH + 256..=EXTENDED_MAX).contains(&size) {
                return Err(7);
            }
            self.extended = anonymous(EXTENDED_MAX)?;
            ptr::copy_nonoverlapping(image, self.extended, size);
            context.flags = CONTEXT_FLAGS;
            context.extended = self.extended;
        }
        Ok(())
    }

    /// Finds out whether 32-bit code runs: one `inc eax` (0x40), which in 64-bit mode would be a prefix.
    unsafe fn probe_compatibility(&mut self) {
        // SAFETY: the program is INC EAX, INT3 on a page of its own.
        unsafe {
            let frame = Frame::LowCode;
            let code = self.alias.add(frame as usize * PAGE);
            ptr::copy_nonoverlapping([0x40, 0xcc].as_ptr(), code, 2);
            self.protect(frame, Access::ReadExecute as u8);
            self.load(&Registers::default(), frame.address(), CS_COMPATIBILITY);
            let seen = enter(self.context, 0, 0);
            let works = (*seen).vector == u64::from(vector::BP) && (*seen).gpr[GPR_SLOT[0]] == 1;
            (*self.shared).compatibility.store(u32::from(works), Ordering::Relaxed);
        }
    }

    unsafe fn serve(&mut self, requests: i32, replies: i32) -> ! {
        // SAFETY: pipes the parent made, and slots nobody else uses until the reply is sent.
        unsafe {
            let ready = [0xff_u8; 4];
            if libc::write(replies, ready.as_ptr().cast(), 4) != 4 {
                libc::_exit(1);
            }
            loop {
                let mut count = [0_u8; 4];
                if libc::read(requests, count.as_mut_ptr().cast(), 4) != 4 {
                    libc::_exit(0);
                }
                for index in 0..u32::from_le_bytes(count) {
                    (*self.shared).progress.store(index, Ordering::Relaxed);
                    let slot = &raw mut (*self.shared).slots[index as usize];
                    self.run(&mut *slot);
                }
                if libc::write(replies, count.as_ptr().cast(), 4) != 4 {
                    libc::_exit(0);
                }
            }
        }
    }

    unsafe fn run(&mut self, slot: &mut Slot) {
        // SAFETY: the request was vetted by the parent: its code is user-pure and its pages are
        // ours to give.
        unsafe {
            for frame in Frame::ALL {
                self.protect(frame, slot.request.access[frame as usize]);
            }
            if slot.request.trace == NOT {
                self.run_freely(slot);
            } else if slot.request.trace == BY_STEPS || !self.run_watched(slot, false) {
                self.run_watched(slot, true);
            }
            if slot.reply.status == RAN {
                self.collect_pages(slot);
            }
        }
    }

    /// A traced run, then the free one; false when the two did not end alike (a program that has
    /// seen a planted breakpoint may have gone another way) and it has to be stepped.
    unsafe fn run_watched(&mut self, slot: &mut Slot, every_step: bool) -> bool {
        // SAFETY: as for `run`.
        unsafe {
            self.fill_pages(slot);
            self.load(&slot.request.registers, slot.request.start, selector(&slot.request));
            let mut tracer = Tracer::new(slot, self.alias, every_step);
            let seen = tracer.run(self.context);
            let Tracer { status, retired, visited, .. } = tracer;
            (slot.reply.status, slot.reply.retired, slot.reply.visited) = (status, retired, visited);
            if status != RAN {
                return true;
            }
            save(&mut slot.reply.traced, &slot.request, &*seen);
            let end = ((*seen).rip, (*seen).vector, (*seen).cr2);
            self.run_freely(slot);
            let reply = &slot.reply;
            let free_end = (reply.rip, u64::from(reply.vector), reply.cr2);
            end == free_end && reply.traced == reply.registers
        }
    }

    /// The run that counts: nothing in the way.
    unsafe fn run_freely(&mut self, slot: &mut Slot) {
        // SAFETY: as for `run`.
        unsafe {
            self.fill_pages(slot);
            let request = &slot.request;
            self.load(&request.registers, request.start, selector(request));
            let seen = enter(self.context, request.registers.fs_base, request.registers.gs_base);
            save(&mut slot.reply.registers, request, &*seen);
            slot.reply.rip = (*seen).rip;
            slot.reply.vector = (*seen).vector as u32;
            slot.reply.error_code = (*seen).error_code as u32;
            slot.reply.cr2 = (*seen).cr2;
            slot.reply.status = RAN;
        }
    }

    unsafe fn protect(&mut self, frame: Frame, access: u8) {
        let now = &mut self.access[frame as usize];
        if *now == access {
            return;
        }
        *now = access;
        let protection = match access {
            1 => libc::PROT_READ,
            2 => libc::PROT_READ | libc::PROT_WRITE,
            3 => libc::PROT_READ | libc::PROT_EXEC,
            4 => libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
            _ => libc::PROT_NONE,
        };
        // SAFETY: the frame's page is a mapping made in `map_frames`.
        unsafe {
            if libc::mprotect(frame.address() as *mut _, PAGE, protection) != 0 {
                libc::_exit(98);
            }
        }
    }

    unsafe fn fill_pages(&self, slot: &Slot) {
        for frame in 0..FRAMES {
            if slot.request.access[frame] != 0 {
                // SAFETY: `alias` holds all frames one after another.
                unsafe {
                    ptr::copy_nonoverlapping(slot.pages[frame].as_ptr(), self.alias.add(frame * PAGE), PAGE);
                }
            }
        }
    }

    unsafe fn collect_pages(&self, slot: &mut Slot) {
        for frame in 0..FRAMES {
            let access = slot.request.access[frame];
            if access == Access::ReadWrite as u8 || access == Access::All as u8 {
                // SAFETY: as above.
                unsafe {
                    ptr::copy_nonoverlapping(
                        self.alias.add(frame * PAGE),
                        slot.pages[frame].as_mut_ptr(),
                        PAGE,
                    );
                }
            }
        }
    }

    /// Puts registers into the context that `enter` loads.
    unsafe fn load(&mut self, registers: &Registers, rip: u64, code_segment: u16) {
        // SAFETY: `context` and `extended` are our own mappings, large enough.
        unsafe {
            let context = &mut *self.context;
            for (register, &value) in registers.gpr.iter().enumerate() {
                context.gpr[GPR_SLOT[register]] = value;
            }
            context.rip = rip;
            context.rflags = registers.rflags;
            context.selectors = [code_segment, 0, 0, DATA_SEGMENT];
            let image = self.extended;
            ptr::copy_nonoverlapping(registers.x87.as_ptr(), image, 24);
            image.add(24).cast::<u32>().write(registers.mxcsr);
            ptr::copy_nonoverlapping(registers.x87[32..160].as_ptr(), image.add(32), 128);
            for (register, value) in registers.ymm.iter().enumerate() {
                ptr::copy_nonoverlapping(value.as_ptr(), image.add(160 + register * 16), 16);
                ptr::copy_nonoverlapping(value[16..].as_ptr(), image.add(YMM_HIGH + register * 16), 16);
            }
            image.add(XSTATE_BV).cast::<u64>().write(7);
        }
    }
}

/// Takes registers from the context of a signal.
unsafe fn save(registers: &mut Registers, request: &Request, context: &UserContext) {
    (registers.fs_base, registers.gs_base) = (request.registers.fs_base, request.registers.gs_base);
    registers.gpr = GPR_SLOT.map(|slot| context.gpr[slot]);
    registers.rflags = context.rflags & !flag::RF;
    let image = context.extended;
    // SAFETY: the kernel's frame holds an XSAVE image in standard form.
    unsafe {
        let present = image.add(XSTATE_BV).cast::<u64>().read_unaligned();
        registers.mxcsr = image.add(24).cast::<u32>().read_unaligned();
        if present & 1 != 0 {
            let mut x87 = [0; FXSAVE];
            ptr::copy_nonoverlapping(image, x87.as_mut_ptr(), FXSAVE);
            registers.x87 = canonical_x87(&x87);
        } else {
            registers.x87 = Registers::default().x87;
        }
        for (register, value) in registers.ymm.iter_mut().enumerate() {
            *value = [0; 32];
            if present & 2 != 0 {
                ptr::copy_nonoverlapping(image.add(160 + register * 16), value.as_mut_ptr(), 16);
            }
            if present & 4 != 0 {
                ptr::copy_nonoverlapping(image.add(YMM_HIGH + register * 16), value[16..].as_mut_ptr(), 16);
            }
        }
    }
}

fn selector(request: &Request) -> u16 {
    if request.bits == 32 { CS_COMPATIBILITY } else { CS_LONG }
}

/// Maps every frame at its address, and all of them writable in a row.
unsafe fn map_frames() -> Result<*mut u8, u32> {
    // SAFETY: the fixed addresses lie in ranges reserved just before.
    unsafe {
        let file = libc::memfd_create(c"hindsight-oracle".as_ptr(), libc::MFD_CLOEXEC);
        if file < 0 || libc::ftruncate(file, (FRAMES * PAGE) as i64) != 0 {
            return Err(3);
        }
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let shared = libc::MAP_SHARED | libc::MAP_POPULATE;
        let alias = libc::mmap(ptr::null_mut(), FRAMES * PAGE, both, shared, file, 0);
        if alias == libc::MAP_FAILED {
            return Err(4);
        }
        for frame in Frame::ALL {
            let (at, from) = (frame.address() as *mut _, (frame as usize * PAGE) as i64);
            if libc::mmap(at, PAGE, both, shared | libc::MAP_FIXED, file, from) == libc::MAP_FAILED {
                return Err(5);
            }
            // Present from the start and for good: the error code of a refused write says so.
            // Locking may be refused; then only memory pressure could make a page absent.
            ptr::write_volatile(at.cast::<u8>(), 0);
            let _ = libc::mlock(at, PAGE);
            if libc::mprotect(at, PAGE, libc::PROT_READ) != 0 {
                return Err(5);
            }
        }
        libc::close(file);
        Ok(alias.cast())
    }
}

unsafe fn install_handlers(stack: *mut u8) -> Result<(), u32> {
    // SAFETY: the handler is written for exactly this; the stack is a fresh mapping.
    unsafe {
        let alternate = libc::stack_t { ss_sp: stack.cast(), ss_flags: 0, ss_size: SIGNAL_STACK };
        if libc::sigaltstack(&raw const alternate, ptr::null_mut()) != 0 {
            return Err(6);
        }
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler_address();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            if libc::sigaction(signal, &raw const action, ptr::null_mut()) != 0 {
                return Err(6);
            }
        }
        Ok(())
    }
}

const _: () = assert!(size_of::<UserContext>() <= PAGE);
