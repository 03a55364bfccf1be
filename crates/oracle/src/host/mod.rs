//! The oracle: runs cases natively, in a child process.
//!
//! The child has nothing mapped where a case's addresses could lead except the case's own pages,
//! and it runs only code whose every instruction the generator has vetted (nothing that makes a
//! system call or reads what is not the program's own); the file `trace.rs` tells how a program
//! is watched whose control flow or stores could reach other bytes.

mod child;
mod entry;
mod slot;
mod trace;

use crate::case::{Case, Mode, is_popf, is_pushf};
use crate::executor::Executor;
use crate::layout::{Access, Frame};
use crate::outcome::{Discard, Ending, Fault, Outcome, vector};
use crate::state::{Registers, flag};
use iced_x86::{FlowControl, Instruction};
use slot::{BY_RUNS, BY_STEPS, NOT, RUNAWAY, Reply, Request, SLOTS, STRAYED, Shared};
use std::io;
use std::mem::size_of;
use std::ptr;
use std::sync::atomic::Ordering;

/// How long a batch may take before its child is given up, in milliseconds. A batch takes well
/// under one; a loaded host may keep it waiting.
const BATCH_MS_MAX: i32 = 20_000;

/// Why cases cannot be run natively.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call failed.
    #[error("{0}: {1}")]
    System(&'static str, #[source] io::Error),
    /// The child could not be set up.
    #[error("the child process failed at set-up step {step}: {error}")]
    SetUp {
        /// Which step: 1 memory, 2 reserving addresses, 3 to 5 mapping pages, 6 signals, 7 the frame.
        step: u32,
        /// The last system error seen.
        error: io::Error,
    },
    /// The kernel does not let programs set FS and GS bases (before Linux 5.9).
    #[error("the kernel does not enable FSGSBASE; Linux 5.9 or later is needed")]
    NoFsGsBase,
    /// The CPU lacks a feature of x86-64-v3, AES, PCLMULQDQ or SHA.
    #[error("the CPU lacks {0}")]
    MissingFeature(&'static str),
    /// The program is not position-independent: it lies where 32-bit cases have their pages.
    #[error("this program is loaded below 4 GiB; build it as a position-independent executable")]
    LowProgram,
}

/// Runs cases on the host CPU.
pub struct HostExecutor {
    shared: *mut Shared,
    child: libc::pid_t,
    /// Ends of the two pipes: we write batches to the one, and read completions from the other.
    requests: i32,
    replies: i32,
    /// Step through every case.
    stepping: bool,
}

// SAFETY: the shared area and the pipes belong to this value alone, whichever thread holds it.
unsafe impl Send for HostExecutor {}

impl HostExecutor {
    /// Starts the child process.
    ///
    /// # Errors
    /// When the host CPU or kernel cannot do it, or is out of memory or processes.
    pub fn new() -> Result<Self, HostError> {
        check_host()?;
        let shared = map_shared()?;
        let mut executor = Self { shared, child: 0, requests: -1, replies: -1, stepping: false };
        executor.start()?;
        Ok(executor)
    }

    /// Counts by single-stepping every case from now on (or not): much slower, with the same
    /// outcomes; the check on how instructions are counted otherwise.
    pub fn step_everything(&mut self, stepping: bool) {
        self.stepping = stepping;
    }

    /// Whether the host's kernel runs 32-bit code in a 64-bit process.
    pub fn runs_compatibility_mode(&self) -> bool {
        // SAFETY: mapped as long as `self` lives.
        unsafe { (*self.shared).compatibility.load(Ordering::Relaxed) != 0 }
    }

    fn start(&mut self) -> Result<(), HostError> {
        let (child_in, requests) = pipe()?;
        let (replies, child_out) = match pipe() {
            Ok(ends) => ends,
            Err(error) => {
                close(&[child_in, requests]);
                return Err(error);
            }
        };
        // SAFETY: the child calls nothing that could need a lock another thread holds; see `child`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: right after fork, in the child.
            unsafe {
                libc::close(requests);
                libc::close(replies);
                child::child_main(self.shared, child_in, child_out);
            }
        }
        close(&[child_in, child_out]);
        (self.child, self.requests, self.replies) = (pid, requests, replies);
        if pid < 0 {
            return Err(HostError::System("fork", io::Error::last_os_error()));
        }
        if self.await_reply().is_none() {
            // SAFETY: mapped as long as `self` lives.
            let (step, errno) = unsafe {
                let shared = &*self.shared;
                (shared.setup_failure.load(Ordering::Relaxed), shared.setup_errno.load(Ordering::Relaxed))
            };
            return Err(HostError::SetUp { step, error: io::Error::from_raw_os_error(errno as i32) });
        }
        Ok(())
    }

    fn stop(&mut self) {
        if self.child > 0 {
            // SAFETY: our own child, not yet waited for.
            unsafe {
                libc::kill(self.child, libc::SIGKILL);
                libc::waitpid(self.child, ptr::null_mut(), 0);
            }
        }
        close(&[self.requests, self.replies]);
        (self.child, self.requests, self.replies) = (0, -1, -1);
    }

    /// Waits for four bytes from the child; `None` when it died or takes too long.
    fn await_reply(&self) -> Option<[u8; 4]> {
        let mut poll = libc::pollfd { fd: self.replies, events: libc::POLLIN, revents: 0 };
        let mut bytes = [0_u8; 4];
        // SAFETY: our pipe, and a buffer of the size given.
        unsafe {
            while libc::poll(&raw mut poll, 1, BATCH_MS_MAX) < 0 {
                if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                    return None;
                }
            }
            let ready = poll.revents & libc::POLLIN != 0;
            (ready && libc::read(self.replies, bytes.as_mut_ptr().cast(), 4) == 4).then_some(bytes)
        }
    }

    /// Runs up to [`SLOTS`] cases. When the child is lost on the way, a new one takes over behind
    /// the case that lost it.
    fn run_slots(&mut self, cases: &[Case], outcomes: &mut Vec<Outcome>) {
        let mut cases = cases;
        while !cases.is_empty() {
            for (index, case) in cases.iter().enumerate() {
                // SAFETY: the child does not touch the slots between batches.
                let slot = unsafe { &mut (*self.shared).slots[index] };
                fill_slot(slot, case);
                if self.stepping {
                    slot.request.trace = BY_STEPS;
                }
            }
            let count = (cases.len() as u32).to_le_bytes();
            // SAFETY: our pipe; a dead child shows in the reply. SIGPIPE is ignored by Rust's runtime.
            unsafe { libc::write(self.requests, count.as_ptr().cast(), 4) };
            let answered = self.await_reply().is_some();
            // SAFETY: mapped; a child that hangs still tells how far it has come.
            let progress = unsafe { (*self.shared).progress.load(Ordering::Relaxed) as usize };
            let finished = if answered { cases.len() } else { progress };
            for (index, case) in cases[..finished].iter().enumerate() {
                // SAFETY: the child is through with this slot.
                outcomes.push(unsafe { read_slot(&(*self.shared).slots[index], case) });
            }
            cases = &cases[finished..];
            if !answered {
                let why = if self.child_is_alive() { Discard::Hung } else { Discard::Crashed };
                outcomes.push(discarded(&cases[0], why));
                cases = &cases[1..];
                self.stop();
                self.start().expect("the child process starts again as it did before");
            }
        }
    }

    fn child_is_alive(&self) -> bool {
        // SAFETY: asks about our own child without reaping it.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.child as u32, &raw mut info, how) == 0 && info.si_pid() == 0
        }
    }
}

impl Drop for HostExecutor {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: mapped in `new`, not used any more.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

impl Executor for HostExecutor {
    fn run(&mut self, case: &Case) -> Outcome {
        self.run_batch(std::slice::from_ref(case)).remove(0)
    }

    fn run_batch(&mut self, cases: &[Case]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(cases.len());
        for batch in cases.chunks(SLOTS) {
            self.run_slots(batch, &mut outcomes);
        }
        outcomes
    }
}

fn check_host() -> Result<(), HostError> {
    macro_rules! need {
        ($($feature:tt),*) => { $(if !is_x86_feature_detected!($feature) {
            return Err(HostError::MissingFeature($feature));
        })* };
    }
    need!("avx2", "bmi1", "bmi2", "fma", "f16c", "lzcnt", "movbe", "popcnt", "sse4.2", "cmpxchg16b");
    need!("aes", "pclmulqdq", "sha", "xsave");
    const AT_HWCAP2_FSGSBASE: u64 = 2;
    // SAFETY: reads the auxiliary vector.
    if unsafe { libc::getauxval(libc::AT_HWCAP2) } & AT_HWCAP2_FSGSBASE == 0 {
        return Err(HostError::NoFsGsBase);
    }
    if entry::breakpoint_address() < 1 << 32 { Err(HostError::LowProgram) } else { Ok(()) }
}

fn map_shared() -> Result<*mut Shared, HostError> {
    let (both, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    // SAFETY: a new mapping at an address of the kernel's choice; zero is a valid `Shared`.
    let at = unsafe { libc::mmap(ptr::null_mut(), size_of::<Shared>(), both, flags, -1, 0) };
    if at == libc::MAP_FAILED {
        return Err(HostError::System("mmap", io::Error::last_os_error()));
    }
    Ok(at.cast())
}

fn pipe() -> Result<(i32, i32), HostError> {
    let mut ends = [0; 2];
    // SAFETY: writes two descriptors into the array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(HostError::System("pipe2", io::Error::last_os_error()));
    }
    Ok((ends[0], ends[1]))
}

fn close(descriptors: &[i32]) {
    for &descriptor in descriptors {
        if descriptor >= 0 {
            // SAFETY: ours, and not used afterwards.
            unsafe { libc::close(descriptor) };
        }
    }
}

fn fill_slot(slot: &mut slot::Slot, case: &Case) {
    let request: &mut Request = &mut slot.request;
    request.registers = case.registers.clone();
    request.start = case.start;
    request.end = case.end();
    request.bits = case.mode.bits();
    request.items = case.items.len() as u32;
    request.access = [0; _];
    for page in case.pages() {
        request.access[page.frame as usize] = page.access as u8;
        slot.pages[page.frame as usize] = *page.bytes;
    }
    for (index, &address) in case.addresses().iter().enumerate() {
        request.offsets[index] = (address - case.start) as u16;
    }
    request.patched = [(0, 0); _];
    request.trace = trace_of(case, request);
}

/// How closely the case must be watched; fills in what that takes.
fn trace_of(case: &Case, request: &mut Request) -> u32 {
    (request.pushf, request.popf, request.rep) = (0, 0, [0; _]);
    (request.branches, request.alone) = (0, 0);
    let mut by_steps = case.pages().iter().any(|page| page.access == Access::All);
    let mut trace = if case.registers.rflags & flag::TF != 0 { BY_RUNS } else { NOT };
    for (index, instruction) in case.instructions().enumerate() {
        let (popf, pushf) = (is_popf(instruction.mnemonic()), is_pushf(instruction.mnemonic()));
        let straight = matches!(
            instruction.flow_control(),
            FlowControl::Next | FlowControl::Interrupt | FlowControl::Exception
        );
        request.patched[index] = case.items[index].patched.unwrap_or((0, 0));
        request.pushf |= u64::from(pushf) << index;
        request.popf |= u64::from(popf) << index;
        let (own, next) = (instruction.ip(), instruction.next_ip());
        let target = instruction.near_branch_target(); // 0 for indirect ones
        let forward = target >= next;
        by_steps |= !straight && (own..next).contains(&target);
        request.branches |= u64::from(!straight) << index;
        request.alone |= u64::from(popf || !straight && !forward) << index;
        request.rep[index] = rep_counter(&instruction, &case.items[index].bytes, case.mode);
        if popf || !straight || request.rep[index] != 0 {
            trace = BY_RUNS;
        }
    }
    if by_steps || case.reads_code && trace == BY_RUNS { BY_STEPS } else { trace }
}

/// Bits of the counter of a REP-prefixed string instruction: its address size; 0 for others.
fn rep_counter(instruction: &Instruction, bytes: &[u8], mode: Mode) -> u8 {
    let rep = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    if !rep || !instruction.is_string_instruction() {
        return 0;
    }
    let opcode = bytes.len() - 1;
    match (mode, bytes[..opcode].contains(&0x67)) {
        (Mode::Long, false) => 64,
        (Mode::Long, true) | (Mode::Compatibility, false) => 32,
        (Mode::Compatibility, true) => 16,
    }
}

fn read_slot(slot: &slot::Slot, case: &Case) -> Outcome {
    let reply: &Reply = &slot.reply;
    match reply.status {
        RUNAWAY => return discarded(case, Discard::Runaway),
        STRAYED => return discarded(case, Discard::Strayed),
        _ => {}
    }
    let mut registers = reply.registers.clone();
    if case.mode == Mode::Compatibility {
        // The upper halves, and the registers 32-bit code cannot name, are not part of its state.
        registers.gpr.iter_mut().for_each(|value| *value &= u64::from(u32::MAX));
        registers.gpr[8..].fill(0);
    }
    let page_fault = reply.vector == u32::from(vector::PF);
    let fault = Fault {
        vector: reply.vector as u8,
        error_code: if has_error_code(reply.vector) { reply.error_code } else { 0 },
        cr2: if page_fault { reply.cr2 } else { 0 },
    };
    let (retired, visited) = if slot.request.trace != NOT {
        (reply.retired, reply.visited)
    } else {
        count_by_rip(case, &fault, reply.rip)
    };
    let memory = memory_of(slot, case);
    let mut outcome = Outcome::from_exception(registers, reply.rip, retired, fault, case.end(), memory);
    outcome.visited = visited;
    outcome
}

/// Instructions retired and visited of a program without branches and REP.
fn count_by_rip(case: &Case, fault: &Fault, rip: u64) -> (u64, u64) {
    // #BP and #OF show the address after the instruction that raised them.
    let trap = matches!(fault.vector, vector::BP | vector::OF);
    let position = case.addresses().iter().position(|&address| address == rip);
    let retired = match position {
        Some(index) if trap => index.saturating_sub(1),
        Some(index) => index,
        None => case.items.len(), // behind the end marker
    };
    let touched = (retired + 1).min(case.items.len());
    (retired as u64, (1_u64 << touched) - 1)
}

fn memory_of(slot: &slot::Slot, case: &Case) -> Vec<(Frame, Box<[u8; crate::layout::PAGE]>)> {
    case.pages()
        .iter()
        .filter(|page| page.access.writable())
        .map(|page| (page.frame, Box::new(slot.pages[page.frame as usize])))
        .collect()
}

const fn has_error_code(vector: u32) -> bool {
    matches!(vector as u8, vector::SS | vector::GP | vector::PF | vector::AC)
}

fn discarded(case: &Case, why: Discard) -> Outcome {
    Outcome {
        registers: Registers::default(),
        rip: case.start,
        retired: 0,
        ending: Ending::Discarded(why),
        memory: Vec::new(),
        visited: 0,
    }
}
